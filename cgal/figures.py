"""What all figures have in common: their colours, and how they become files. Matplotlib is left to those who draw."""

from pathlib import Path
from typing import TYPE_CHECKING

from cgal.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ACCENT", "MODEL", "REFERENCE", "TRAINING", "save_figure"]

REFERENCE, MODEL, TRAINING, ACCENT = "#222222", "#d1495b", "#00798c", "#edae49"
"""Colours of what is measured against, of a model, of what it learned from, and of what else is to be seen."""


def save_figure(figure: "Figure", path: Path) -> Path:
    """Write a PNG atomically, and give its path; same figure, same bytes (matplotlib's version is not in it)."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    return path
