"""Figures of the study: W1 against cost, changes to an arm, labels against the length of the burn-in."""

from collections.abc import Sequence
from itertools import cycle

import pandas as pd
from matplotlib.figure import Figure

from study.burn_in import ANNEAL_STEPS, BURN_IN_STEPS, OWN
from study.statistics import BASE, change, curve

__all__ = ["plot_burn_in", "plot_changes", "plot_curves"]

LARGEST_CHANGE = 200.0  # percent
COLOURS = ("#222222", "#00798c", "#d1495b", "#edae49", "#66a182", "#8d6a9f", "#2e4057", "#b86f52")
START_COLOURS = dict(zip((OWN, *ANNEAL_STEPS), ("#222222", "#d1495b", "#edae49", "#00798c"), strict=True))


def plot_curves(records: pd.DataFrame, arms: Sequence[str], metrics: dict[str, str], mode: str) -> Figure:
    """Draw W1 against oracle steps: a panel per metric (`metrics` gives headings), a line per arm, bands over seeds."""
    figure = Figure(figsize=(3.1 * len(metrics), 3.6), layout="constrained")
    panels = figure.subplots(1, len(metrics))
    for panel, (metric, heading) in zip(panels, metrics.items(), strict=True):
        for arm, colour in zip(arms, cycle(COLOURS), strict=False):
            line = curve(records, arm, metric, mode)
            steps = line["oracle_steps"] / 1000
            panel.errorbar(
                steps, line["w1"], yerr=[line["w1"] - line["low"], line["high"] - line["w1"]],
                color=colour, label=arm, marker="o", markersize=4, linewidth=1.4, capsize=2,
            )  # fmt: skip
        floor = records.query("metric == @metric and mode == @mode")["floor"].median()
        panel.axhline(floor, color="0.6", linestyle=":", label="reference against itself")
        panel.set(title=heading, xlabel="oracle steps [thousands]", ylim=(0, None))
    panels[0].set_ylabel(f"W1, {mode}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def plot_changes(
    records: pd.DataFrame, arms: Sequence[str], metrics: dict[str, str], mode: str, to: str = BASE
) -> Figure:
    """Draw the change of W1 to an arm with its interval: a panel per metric, a row per arm.

    Panels end at `LARGEST_CHANGE`, whatever lies beyond.
    """
    figure = Figure(figsize=(2.6 * len(metrics) + 1, 0.45 * len(arms) + 1.4), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True)
    for panel, (metric, heading) in zip(panels, metrics.items(), strict=True):
        for row, (arm, colour) in enumerate(zip(arms, cycle(COLOURS[1:]), strict=False)):
            shift = change(records, arm, to, metric, mode)
            panel.plot([shift.low, shift.high], [row, row], color=colour, linewidth=2)
            panel.plot(shift.value, row, "o", color=colour)
        panel.axvline(0, color="0.6", linewidth=1)
        right = min(panel.get_xlim()[1], LARGEST_CHANGE)
        panel.set(title=heading, xlabel=f"change to {to} [%]", xlim=(None, right))
    panels[0].set(yticks=range(len(arms)), yticklabels=arms, ylim=(len(arms) - 0.5, -0.5))
    return figure


def plot_burn_in(found: pd.DataFrame) -> Figure:
    """Draw both differences against the length of the burn-in, a line per start."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    texts = {"between": "two labels of a frame differ by", "error": "a label is off the long average by"}
    for axes, (what, text) in zip(figure.subplots(1, 2, sharey=True), texts.items(), strict=True):
        for start, colour in START_COLOURS.items():
            rows = found[found["start"] == start]
            errors = (rows[what] - rows[f"{what}_low"], rows[f"{what}_high"] - rows[what])
            axes.errorbar(rows["burn_in_steps"], rows[what], errors, color=colour, marker="o", capsize=3, label=start)
        axes.set_xscale("symlog", linthresh=150)
        axes.set_xticks(BURN_IN_STEPS, [str(steps) for steps in BURN_IN_STEPS])
        axes.minorticks_off()
        axes.set_xlabel("burn-in [steps]")
        axes.set_ylabel(f"{text} [kJ/mol/nm]")
        axes.set_ylim(bottom=0)
    figure.axes[0].legend(title="start")
    return figure
