"""The coverage gap and the picked frames at a glance (as in the paper's Figure 2, for one round)."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cgal.files import atomic_write
from cgal.selection.picks import Selection

__all__ = ["plot_selection"]

MODEL, TRAINING, PICKED = "#d1495b", "#00798c", "#edae49"


def plot_selection(selection: Selection, folder: Path) -> Path:
    """Draw `selection.png`: RMSD histograms of simulation and training set, their gap, and the picked frames."""
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    shares, gap = figure.subplots(2, 1, sharex=True)
    _draw_shares(shares, selection)
    _draw_gap(gap, selection)
    shares.set_xlim(*_visited_range(selection))
    path = folder / "selection.png"
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return path


def _draw_shares(axes: Axes, selection: Selection) -> None:
    coverage = selection.coverage
    axes.stairs(coverage.training, coverage.edges, fill=True, color=TRAINING, alpha=0.35)
    axes.stairs(coverage.training, coverage.edges, color=TRAINING, linewidth=1.5, label="training set")
    axes.stairs(coverage.simulated, coverage.edges, color=MODEL, linewidth=1.5, label="simulation")
    axes.set_ylabel("share of frames per bin")
    axes.set_title(
        f"{selection.strategy}: {len(selection)} picked of {selection.candidates} physical frames, "
        f"{sum(selection.dropped.values())} dropped",
        fontsize="medium",
    )
    axes.legend(frameon=False)


def _draw_gap(axes: Axes, selection: Selection) -> None:
    coverage = selection.coverage
    axes.stairs(coverage.gap, coverage.edges, fill=True, color=PICKED, alpha=0.35)
    axes.stairs(coverage.gap, coverage.edges, color=PICKED, linewidth=1.5, label="simulation - training")
    axes.axhline(0.0, color="#222222", linewidth=0.8)
    if len(selection):
        height = coverage.gap[coverage.bin_of(selection.rmsd_nm)]
        axes.plot(
            selection.rmsd_nm, height, "v", color="#222222", markerfacecolor=PICKED, markersize=6, label="picked frames"
        )
    axes.margins(y=0.15)
    axes.set_ylabel("coverage gap per bin")
    axes.set_xlabel("RMSD to the reference frame / nm")
    axes.legend(frameon=False)


def _visited_range(selection: Selection) -> tuple[float, float]:
    """RMSD range that any frame lies in, with one empty bin on either side [nm]."""
    edges = selection.coverage.edges
    visited = np.flatnonzero(selection.coverage.simulated + selection.coverage.training)
    width = edges[1] - edges[0]
    return max(0.0, float(edges[visited[0]] - width)), float(edges[visited[-1] + 1] + width)
