"""Figures of a training."""

from pathlib import Path

from matplotlib.figure import Figure

from cgal.files import atomic_write
from cgal.training.runs import TrainingResult

__all__ = ["plot_training"]


def plot_training(result: TrainingResult, folder: Path) -> tuple[Path, ...]:
    """Draw training.png in `folder`: what was minimised, on frames trained on and held out; returns its path."""
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    result.draw(figure)
    path = folder / "training.png"
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return (path,)
