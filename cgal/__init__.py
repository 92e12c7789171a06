"""Active learning for coarse-grained machine-learned molecular dynamics: the science, free of any workflow tool.

Read in the order in which data flows: `params`, `frames`, `mapping`, `potential`, `training`, `simulation`,
`benchmark`, `selection`, `backmapping`, `oracle`, `dataset`.
"""
