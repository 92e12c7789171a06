"""Active learning for coarse-grained machine-learned molecular dynamics: the science, free of any workflow tool.

Read in the order in which data flows: `params`, `frames`, `projection`, `potential`, `training`, `simulation`,
`benchmark`, `selection`, `all_atom`, `dataset`.
"""

from importlib.metadata import version

__version__ = version("cgal")
