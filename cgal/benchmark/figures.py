"""Figures of the benchmark: free-energy maps, densities, and both over the rounds of a campaign."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

from cgal.benchmark.observables import OBSERVABLES, Observable, in_records
from cgal.benchmark.suite import BenchmarkResult
from cgal.benchmark.wasserstein import Sample
from cgal.figures import ACCENT, MODEL, REFERENCE, TRAINING, save_figure

__all__ = ["plot_benchmark", "plot_rmsd_rounds", "plot_rounds"]

MAP_BINS = 50
MAP_SMOOTHING_BINS = 1.0
HIGHEST_kT = 6.0
DENSITY_BINS = 80


def plot_benchmark(result: BenchmarkResult, folder: Path) -> list[Path]:
    """Draw free-energy maps (`<name>.png`) of observables in a plane, and densities of all others (`densities.png`)."""
    planes = [observable for observable in OBSERVABLES.values() if observable.geometry == "plane"]
    maps = [save_figure(_maps(plane, result), folder / f"{plane.name}.png") for plane in planes]
    return [*maps, save_figure(_densities(result), folder / "densities.png")]


def plot_rounds(rounds: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw each W1 over rounds with intervals and floor, and folded and lost fractions (`w1_rounds.png`).

    Each mapping is the metrics of one round, as `benchmark` gives them, with its number as `round` (else its place). A
    round from before an observable was measured has no point in its panel.
    """
    drawn = in_records(name for metrics in rounds for name in metrics["w1"])
    figure, panels = _grid(len(drawn) + 1, columns=3, panel=(10 / 3, 2.9))
    numbers = [int(metrics.get("round", place)) for place, metrics in enumerate(rounds)]
    for panel, observable in zip(panels, drawn.values(), strict=False):
        _draw_w1(panel, observable, numbers, rounds)
    _draw_fractions(panels[-1], numbers, rounds)
    for panel in panels:
        panel.set_xlabel("round")
        panel.set_xticks(numbers)
        panel.set_xlim(min(numbers, default=0) - 0.4, max(numbers, default=0) + 0.4)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    if physics := dict.fromkeys(_reference(metrics) for metrics in rounds if metrics.get("reference_physics")):
        figure.suptitle(f"against the {', '.join(physics)}", fontsize=11)
    return [save_figure(figure, folder / "w1_rounds.png")]


def plot_rmsd_rounds(rounds: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw the RMSD histograms of simulation, training set and reference, a panel per round (`rmsd_rounds.png`).

    Each mapping is the histograms of one round, as `benchmark` gives them, with its number as `round` (else its place).
    """
    columns = min(3, max(len(rounds), 1))
    rows = -(-max(len(rounds), 1) // columns)
    figure = Figure(figsize=(max(3.5 * columns, 5), 2.8 * rows + 0.4), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for place, (panel, histograms) in enumerate(zip(panels, rounds, strict=False)):
        _draw_rmsd(panel, histograms["rmsd"])
        panel.set_title(f"round {histograms.get('round', place)}", fontsize=10)
    for place, panel in enumerate(panels):
        panel.tick_params(labelbottom=place + columns >= len(rounds))
        panel.set_visible(place < len(rounds))
    figure.supxlabel("CA RMSD to the native frame / nm", fontsize=10)
    figure.supylabel("density / nm$^{-1}$", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return [save_figure(figure, folder / "rmsd_rounds.png")]


def _maps(plane: Observable, result: BenchmarkResult) -> Figure:
    """Free energy in the plane of an observable, of reference and model."""
    sides = {_reference(result.metrics): result.reference[plane.name], "model": result.model[plane.name]}
    edges = _map_edges([side.values for side in sides.values()])
    figure = Figure(figsize=(9, 4.1), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, (name, side) in zip(panels, sides.items(), strict=True):
        contours = _draw_map(panel, side, edges)
        panel.set_title(f"{name} ({len(side)} frames)", fontsize=10)
        panel.set_xlabel(plane.with_unit(f"{plane.axis} 1"))
    panels[0].set_ylabel(plane.with_unit(f"{plane.axis} 2"))
    figure.colorbar(contours, ax=panels, label="free energy / kT")
    figure.suptitle(_w1_title(plane, result.metrics), fontsize=11)
    return figure


def _reference(metrics: Mapping[str, Any]) -> str:
    """Name the reference, with its physics where they are not the oracle's."""
    physics = metrics.get("reference_physics")
    return f"reference of {physics}" if physics else "reference"


def _map_edges(values: Sequence[Float64[np.ndarray, "_ 2"]]) -> list[Float64[np.ndarray, " edges"]]:
    joint = np.concatenate(values)
    low, high = joint.min(axis=0), joint.max(axis=0)
    room = 0.05 * (high - low) + 1e-9
    return [np.linspace(low[k] - room[k], high[k] + room[k], MAP_BINS + 1) for k in range(2)]


def _draw_map(panel: Axes, side: Sample, edges: Sequence[Float64[np.ndarray, " edges"]]) -> QuadContourSet:
    """Free energy -kT ln p above its own minimum, of a lightly smoothed histogram."""
    counts, _, _ = np.histogram2d(side.values[:, 0], side.values[:, 1], bins=list(edges), weights=side.weights)
    probability = gaussian_filter(counts, MAP_SMOOTHING_BINS, mode="constant")
    with np.errstate(divide="ignore"):
        energy = np.log(probability.max()) - np.log(probability)
    middles = [(axis[1:] + axis[:-1]) / 2 for axis in edges]
    shown = np.ma.masked_greater(energy.T, HIGHEST_kT)
    return panel.contourf(*middles, shown, levels=np.linspace(0, HIGHEST_kT, 13), cmap="viridis")


def _densities(result: BenchmarkResult) -> Figure:
    drawn = [observable for observable in OBSERVABLES.values() if observable.geometry != "plane"]
    figure, panels = _grid(len(drawn), columns=2, panel=(4.5, 3.2))
    for panel, observable in zip(panels, drawn, strict=True):
        sides = (result.reference[observable.name], result.model[observable.name])
        edges = _density_edges(observable, sides)
        reference, model = (_density(side.pooled(), edges) for side in sides)
        panel.stairs(reference, edges, color=REFERENCE, alpha=0.15, fill=True)
        panel.stairs(reference, edges, color=REFERENCE, linewidth=1.4, label=_reference(result.metrics))
        panel.stairs(model, edges, color=MODEL, linewidth=1.4, label="model")
        panel.set_xlabel(observable.with_unit(observable.axis))
        panel.set_ylabel(f"density / {observable.unit}$^{{-1}}$" if observable.unit else "density")
        panel.set_ylim(bottom=0)
        panel.set_title(_w1_title(observable, result.metrics), fontsize=10)
        panel.legend(frameon=False)
    return figure


def _density_edges(observable: Observable, sides: Sequence[Sample]) -> Float64[np.ndarray, " edges"]:
    """Bin edges over the joint range, or the whole circle."""
    if observable.periodic:
        return np.linspace(-np.pi, np.pi, DENSITY_BINS + 1)
    low, high = min(side.values.min() for side in sides), max(side.values.max() for side in sides)
    room = 0.02 * (high - low) + 1e-9
    return np.linspace(low - room, high + room, DENSITY_BINS + 1)


def _density(side: Sample, edges: Float64[np.ndarray, " edges"]) -> Float64[np.ndarray, " bins"]:
    return np.asarray(np.histogram(side.values[:, 0], edges, weights=side.weights, density=True)[0])


def _w1_title(observable: Observable, metrics: Mapping[str, Any]) -> str:
    w1, floor = metrics["w1"][observable.name], metrics["floor"][observable.name]
    return (
        f"{observable.title}\nW$_1$ = {w1['value']:.3g} [{w1['low']:.3g}, {w1['high']:.3g}] {observable.unit}".rstrip()
        + f", floor {floor:.3g}"
    )


def _draw_w1(panel: Axes, observable: Observable, numbers: Sequence[int], rounds: Sequence[Mapping[str, Any]]) -> None:
    """Draw the rounds that have the observable; those from before it was measured have none."""
    missing = dict.fromkeys(("value", "low", "high"), np.nan)
    scores = [metrics["w1"].get(observable.name, missing) for metrics in rounds]
    value, low, high = (np.array([score[key] for score in scores]) for key in ("value", "low", "high"))
    panel.errorbar(
        numbers,
        value,
        yerr=[value - low, high - value],
        color=MODEL,
        marker="o",
        capsize=4,
        label="model, 95 % interval",
    )
    if rounds and observable.name in rounds[-1]["floor"]:
        floor = rounds[-1]["floor"][observable.name]
        panel.axhline(
            floor, color=REFERENCE, linestyle="--", label="floor: one half of the reference against the other"
        )
    panel.set_title(observable.title, fontsize=10)
    panel.set_ylabel(observable.with_unit("W$_1$"))
    panel.set_ylim(bottom=0)


def _draw_fractions(panel: Axes, numbers: Sequence[int], rounds: Sequence[Mapping[str, Any]]) -> None:
    folded = [metrics["folded_fraction"] for metrics in rounds]
    lost = [metrics["simulation"]["exploded_fraction"] for metrics in rounds]
    panel.plot(numbers, [each["model"] for each in folded], color=MODEL, marker="o", label="model folded")
    panel.plot(numbers, lost, color=ACCENT, marker="s", label="replicas lost")
    if rounds:
        panel.axhline(folded[-1]["reference"], color=REFERENCE, linestyle="--", label="reference folded")
    panel.set_title("Folded frames, lost replicas", fontsize=10)
    panel.set_ylabel("fraction")
    panel.set_ylim(-0.03, 1.03)
    panel.legend(frameon=False, fontsize=8)


def _draw_rmsd(panel: Axes, histogram: Mapping[str, Sequence[float]]) -> None:
    edges = np.asarray(histogram["edges_nm"])
    density = {side: np.asarray(histogram[side]) / np.diff(edges) for side in ("reference", "training", "simulation")}
    panel.stairs(density["reference"], edges, color=REFERENCE, alpha=0.15, fill=True)
    for side, color in (("reference", REFERENCE), ("training", TRAINING), ("simulation", MODEL)):
        panel.stairs(density[side], edges, color=color, label=side, linewidth=1.4)


def _grid(count: int, columns: int, panel: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels of one size [inches], row by row."""
    rows = -(-count // columns)
    figure = Figure(figsize=(columns * panel[0], rows * panel[1]), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for empty in panels[count:]:
        empty.set_visible(False)
    return figure, panels[:count]
