"""What a strategy saw and what it picked, at a glance (the left column as in the paper's Figure 2, for one round)."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cgal.figures import ACCENT, MODEL, REFERENCE, TRAINING, save_figure
from cgal.selection.committee import Calibration
from cgal.selection.picks import Selection

__all__ = ["plot_selection"]

BINS = 50
"""Of the histogram of nearest-training RMSD."""

GROUPS = 8
"""Of held-out frames by disagreement, whose errors are averaged."""


def plot_selection(selection: Selection, folder: Path) -> list[Path]:
    """Draw `selection.png`: what simulation and training set cover, what is new, what was picked, and of whose advice.

    Left: RMSD histograms of simulation and training set, and their gap. Right: how far the candidates are from the
    training set. Below, if a committee was asked: what its disagreement was worth on held-out frames, and how it
    grows with the distance from the training set.
    """
    rows: list[Any] = [["shares", "nearest"], ["gap", "nearest"], ["calibration", "disagreement"]]
    figure = Figure(figsize=(10.0, 8.4 if selection.calibration else 5.6), layout="constrained")
    axes = figure.subplot_mosaic(rows if selection.calibration else rows[:2])
    _draw_shares(axes["shares"], selection)
    _draw_gap(axes["gap"], selection)
    _draw_nearest(axes["nearest"], selection)
    for name in ("shares", "gap"):
        axes[name].set_xlim(*_visited_range(selection))
    if selection.calibration:
        _draw_calibration(axes["calibration"], selection.calibration)
        _draw_disagreement(axes["disagreement"], selection)
    figure.suptitle(_title(selection), fontsize="medium")
    return [save_figure(figure, folder / "selection.png")]


def _title(selection: Selection) -> str:
    return (
        f"{selection.strategy}: {len(selection)} picked of {len(selection.candidates)} physical frames, "
        f"{sum(selection.dropped.values())} dropped"
    )


def _draw_shares(axes: Axes, selection: Selection) -> None:
    coverage = selection.coverage
    axes.stairs(coverage.training, coverage.edges, fill=True, color=TRAINING, alpha=0.35)
    axes.stairs(coverage.training, coverage.edges, color=TRAINING, linewidth=1.5, label="training set")
    axes.stairs(coverage.simulated, coverage.edges, color=MODEL, linewidth=1.5, label="simulation")
    axes.set_ylabel("share of frames per bin")
    axes.legend(frameon=False)


def _draw_gap(axes: Axes, selection: Selection) -> None:
    coverage = selection.coverage
    axes.stairs(coverage.gap, coverage.edges, fill=True, color=ACCENT, alpha=0.35)
    axes.stairs(coverage.gap, coverage.edges, color=ACCENT, linewidth=1.5, label="simulation - training")
    axes.axhline(0.0, color=REFERENCE, linewidth=0.8)
    _draw_picks(axes, selection.rmsd_nm, coverage.gap[coverage.bin_of(selection.rmsd_nm)])
    axes.margins(y=0.15)
    axes.set_ylabel("coverage gap per bin")
    axes.set_xlabel("RMSD to the reference frame / nm")
    axes.legend(frameon=False)


def _draw_nearest(axes: Axes, selection: Selection) -> None:
    candidates = selection.candidates
    edges = np.linspace(0.0, max(candidates.nearest_nm.max(), candidates.novel_nm) * 1.05, BINS + 1)
    shares = np.histogram(candidates.nearest_nm, edges)[0] / len(candidates)
    axes.stairs(shares, edges, fill=True, color=MODEL, alpha=0.35)
    axes.stairs(shares, edges, color=MODEL, linewidth=1.5, label="simulation")
    axes.axvline(
        candidates.novel_nm,
        color=REFERENCE,
        linestyle=":",
        label=f"uncovered beyond: {selection.uncovered_fraction:.1%} of the candidates",
    )
    bins = np.minimum(np.digitize(selection.nearest_nm, edges) - 1, BINS - 1)
    _draw_picks(axes, selection.nearest_nm, shares[bins])
    axes.set_ylabel("share of frames per bin")
    axes.set_xlabel("RMSD to the nearest training frame / nm")
    axes.legend(edgecolor="none", framealpha=1.0)


def _draw_calibration(axes: Axes, calibration: Calibration) -> None:
    expected = calibration.scale * calibration.spread
    axes.plot(expected, calibration.error, ".", color=TRAINING, markersize=3, alpha=0.5, label="held-out frames")
    groups = [group for group in np.array_split(np.argsort(expected, kind="stable"), GROUPS) if len(group)]
    middles = [float(np.median(expected[group])) for group in groups]
    errors = [float(np.sqrt(np.mean(calibration.error[group] ** 2))) for group in groups]
    axes.plot(middles, errors, "o", color=TRAINING, markersize=6, label=f"root mean square of {GROUPS} groups")
    line = np.linspace(0.0, expected.max(), 100)
    axes.plot(
        line, np.hypot(calibration.noise_kJ_per_mol_nm, line), color=REFERENCE, label="fit: disagreement and noise"
    )
    axes.set_ylim(bottom=0.0)
    axes.set_ylabel("force error, held out / kJ/mol/nm")
    axes.set_xlabel(f"calibrated disagreement / kJ/mol/nm; rank correlation {calibration.spearman:.2f}")
    axes.legend(frameon=False, fontsize="small")


def _draw_disagreement(axes: Axes, selection: Selection) -> None:
    apart, disagreement = selection.candidates.nearest_nm, selection.candidates.disagreement
    assert disagreement is not None
    axes.plot(apart, disagreement, ".", color=MODEL, markersize=3, alpha=0.3, label="simulation")
    _draw_picks(axes, selection.nearest_nm, disagreement[selection.picked_candidates])
    axes.axvline(selection.candidates.novel_nm, color=REFERENCE, linestyle=":")
    axes.set_ylim(bottom=0.0)
    axes.set_ylabel("calibrated disagreement / kJ/mol/nm")
    axes.set_xlabel("RMSD to the nearest training frame / nm")
    axes.legend(frameon=False, fontsize="small")


def _draw_picks(axes: Axes, x: Float64[np.ndarray, " picked"], y: Float64[np.ndarray, " picked"]) -> None:
    if len(x):
        axes.plot(x, y, "v", color=REFERENCE, markerfacecolor=ACCENT, markersize=6, label="picked frames")


def _visited_range(selection: Selection) -> tuple[float, float]:
    """RMSD range that any frame lies in, with one empty bin on either side [nm]."""
    edges = selection.coverage.edges
    visited = np.flatnonzero(selection.coverage.simulated + selection.coverage.training)
    width = edges[1] - edges[0]
    return max(0.0, float(edges[visited[0]] - width)), float(edges[visited[-1] + 1] + width)
