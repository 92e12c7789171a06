"""Figures of a training."""

from pathlib import Path

from matplotlib.figure import Figure

from cgal.figures import save_figure
from cgal.training.runs import TrainingResult

__all__ = ["plot_training"]


def plot_training(result: TrainingResult, folder: Path) -> list[Path]:
    """Draw training.png in `folder`: what was minimised, on frames trained on and held out."""
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    result.draw(figure)
    return [save_figure(figure, folder / "training.png")]
