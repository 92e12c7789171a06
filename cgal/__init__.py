"""Active learning for coarse-grained machine-learned molecular dynamics: the science, free of any workflow tool.

Read in the order in which data flows: `params`, `frames`, `projection`, `potential`, `training`, `simulation`,
`benchmark`, `selection`, `all_atom`, `dataset`. `cgal.load` gives a trained model to other programs.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cgal.interfaces.model import Model, load

__all__ = ["Model", "load"]

__version__ = version("cgal")


def __getattr__(name: str) -> Any:
    """Import what is heavy when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cgal.interfaces import model

    return getattr(model, name)
