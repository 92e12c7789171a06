"""Figures of a reference: timescales, Chapman-Kolmogorov test, what was sampled, and how the floor falls."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cgal.benchmark.observables import in_records
from cgal.figures import ACCENT, MODEL, REFERENCE, TRAINING, save_figure
from cgal.params import ReferenceParams
from cgal.reference.analysis import Analysis
from cgal.reference.msm import ChapmanKolmogorov

__all__ = ["plot_floor", "plot_reference"]

COLOURS = (REFERENCE, TRAINING, MODEL, ACCENT)
RMSD_BINS = 80
COLUMNS = 8


def plot_reference(analysis: Analysis, params: ReferenceParams, folder: Path) -> list[Path]:
    """Draw `timescales.png`, `chapman_kolmogorov.png`, `populations.png` and `trajectories.png`."""
    return [
        save_figure(_timescales(analysis), folder / "timescales.png"),
        save_figure(_chapman_kolmogorov(analysis.chapman_kolmogorov), folder / "chapman_kolmogorov.png"),
        save_figure(_populations(analysis, params), folder / "populations.png"),
        save_figure(_trajectories(analysis, params), folder / "trajectories.png"),
    ]


def plot_floor(floors: Sequence[Mapping[str, Any]], mode: str, folder: Path) -> list[Path]:
    """Draw W1 of one half of the trajectories to the other against their total length (`floor.png`).

    Each mapping: `sampled_ns` of both halves together, and for each mode and metric `mean`, `low` and `high`.
    """
    drawn = list(in_records(floors[-1][mode] if floors else ()).values())
    rows = -(-(len(drawn) + 1) // 3)
    figure = Figure(figsize=(10, 2.8 * rows), layout="constrained")
    panels = list(figure.subplots(rows, 3, squeeze=False).flat)
    total_ns = np.array([floor["sampled_ns"] for floor in floors])
    for panel, observable in zip(panels, drawn, strict=False):
        mean, low, high = (
            np.array([floor[mode][observable.name][key] for floor in floors]) for key in ("mean", "low", "high")
        )
        panel.fill_between(total_ns, low, high, color=REFERENCE, alpha=0.15, label="all splits")
        panel.plot(total_ns, mean, color=REFERENCE, marker="o", label="mean over splits")
        panel.plot(total_ns, mean[-1] * np.sqrt(total_ns[-1] / total_ns), color=TRAINING, ls=":", label="1/√time")
        panel.set_title(observable.title, fontsize=10)
        panel.set_ylabel(observable.with_unit("W$_1$"))
        panel.set_xlabel("both halves together / ns")
        panel.set_ylim(bottom=0)
    for empty in panels[len(drawn) :]:
        empty.axis("off")
    panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False)
    figure.suptitle(f"Reference against itself, halves by trajectory ({mode} W$_1$)", fontsize=11)
    return [save_figure(figure, folder / "floor.png")]


def _timescales(analysis: Analysis) -> Figure:
    found, lag_ps, slowest = analysis.timescales, analysis.model.lag_ps, analysis.slowest_ps
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    panel = figure.subplots()
    for process in range(found.value_ps.shape[1]):
        colour = COLOURS[process % len(COLOURS)]
        low, high = found.low_ps[:, process], found.high_ps[:, process]
        panel.fill_between(found.lags_ps, low, high, color=colour, alpha=0.18, linewidth=0)
        panel.plot(found.lags_ps, found.value_ps[:, process], color=colour, marker="o", markersize=4)
    panel.fill_between(found.lags_ps, 0, found.lags_ps, color="#dddddd", label="faster than the lag")
    errors = [[max(slowest.value - slowest.low, 0)], [max(slowest.high - slowest.value, 0)]]
    label = "95 % interval over trajectories"
    panel.errorbar([lag_ps], [slowest.value], errors, color=MODEL, marker="s", capsize=4, zorder=5, label=label)
    panel.axvline(lag_ps, color=REFERENCE, linestyle=":", label=f"chosen lag, {lag_ps:g} ps")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(found.lags_ps[0], found.lags_ps[-1])
    panel.set_ylim(bottom=found.lags_ps[0])
    panel.set_xlabel("lag / ps")
    panel.set_ylabel("implied timescale / ps")
    panel.set_title("Implied timescales, 95 % intervals of the posterior", fontsize=11)
    panel.legend(frameon=False, loc="upper left")
    return figure


def _chapman_kolmogorov(test: ChapmanKolmogorov) -> Figure:
    sets = len(test.share)
    figure = Figure(figsize=(2.7 * sets, 2.4 * sets + 0.5), layout="constrained")
    panels = figure.subplots(sets, sets, sharex=True, sharey=True, squeeze=False)
    for first in range(sets):
        for second in range(sets):
            panel, at = panels[first][second], (slice(None), first, second)
            panel.fill_between(test.times_ps, test.low[at], test.high[at], color=TRAINING, alpha=0.2, linewidth=0)
            panel.plot(test.times_ps, test.predicted[at], color=TRAINING, label="predicted, 95 % interval")
            panel.plot(test.times_ps, test.counted[at], color=REFERENCE, ls="", marker="o", ms=4, label="counted")
            panel.set_title(f"{_set_name(test, first)} → {_set_name(test, second)}", fontsize=9)
            panel.set_ylim(-0.03, 1.03)
    figure.supxlabel("time / ps", fontsize=10)
    figure.supylabel("probability", fontsize=10)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def _set_name(test: ChapmanKolmogorov, index: int) -> str:
    return f"{'ABCDEFGH'[index]} ({test.share[index]:.0%})"


def _populations(analysis: Analysis, params: ReferenceParams) -> Figure:
    """RMSD to the native frame, as sampled and in equilibrium."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    panel = figure.subplots()
    edges = np.linspace(0, float(analysis.deviation_nm.max()), RMSD_BINS + 1)
    weighted, plain = (
        np.histogram(analysis.deviation_nm, edges, weights=weights, density=True)[0]
        for weights in (analysis.swarm.weights, None)
    )
    panel.stairs(weighted, edges, color=REFERENCE, fill=True, alpha=0.15)
    panel.stairs(weighted, edges, color=REFERENCE, label="in equilibrium (Markov model)")
    panel.stairs(plain, edges, color=ACCENT, label="as sampled")
    _mark_thresholds(panel.axvline, params)
    folded = analysis.folded
    panel.set_title(f"folded: {folded.value:.2f} [{folded.low:.2f}, {folded.high:.2f}]", fontsize=11)
    panel.set_xlabel("CA RMSD to the native frame / nm")
    panel.set_ylabel("density / nm$^{-1}$")
    panel.set_xlim(0, edges[-1])
    panel.legend(frameon=False)
    return figure


def _trajectories(analysis: Analysis, params: ReferenceParams) -> Figure:
    """RMSD of every trajectory against time."""
    swarm = analysis.swarm
    replicas = np.unique(swarm.replica)
    rows = -(-len(replicas) // COLUMNS)
    figure = Figure(figsize=(12, 1.25 * rows + 0.7), layout="constrained")
    panels = list(figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flat)
    for panel, replica in zip(panels, replicas, strict=False):
        frames = swarm.replica == replica
        panel.plot(swarm.time_ps[frames] / 1000, analysis.deviation_nm[frames], color=REFERENCE, linewidth=0.5)
        _mark_thresholds(panel.axhline, params)
        panel.text(0.97, 0.95, str(replica), transform=panel.transAxes, ha="right", va="top", fontsize=8)
    for panel in panels[len(replicas) :]:
        panel.axis("off")
    panels[0].set_ylim(0, float(analysis.deviation_nm.max()))
    events = analysis.events
    figure.suptitle(f"{events.folding} folding and {events.unfolding} unfolding events", fontsize=11)
    figure.supxlabel("time / ns", fontsize=10)
    figure.supylabel("CA RMSD to native / nm", fontsize=10)
    return figure


def _mark_thresholds(draw: Callable[..., Any], params: ReferenceParams) -> None:
    draw(params.folded_nm, color=TRAINING, linestyle="--", linewidth=0.8)
    draw(params.unfolded_nm, color=MODEL, linestyle="--", linewidth=0.8)
