"""`docs/results.md`, its figures and `summary.json`: comparisons on test beds, from their designs and twins alone.

A comparison is there when `docs/results/NAME_twins.csv` has rows (`study.twins`) beside its design
(`docs/results/NAME.yaml`) and its records (`docs/results/NAME.csv`); its pilot is in
`docs/results/NAME_pilot_twins.csv`. What was asked and done is told by hand in `docs/results/preface.md`.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cgal.benchmark.observables import HEADLINE, MISSING, OBSERVABLES
from cgal.files import write_json, write_text
from study.design import Contrast, Design, load_design
from study.figures import COLOURS, save_figure
from study.statistics import Interval, mean_interval, read_records, sample_size, scatter_interval
from study.summary import FEWEST_SETS, RESOLVED_percent, contrast_logs, contrasts, summarise_budgets

__all__ = ["write_arms"]

TITLE = OBSERVABLES[HEADLINE].title
CHANGES = ("base", "linear", "prior", "raw", "continued")
"""What a change is to, as `summarise_budgets` names them."""

FEWEST_SEEDS = 2
"""That have a scatter."""

SHORT_COMMIT = 7
"""Letters of a commit that are shown."""

type Entries = Sequence[Mapping[str, Any]]


def write_arms(folder: Path, page: Path) -> None:
    """Write the page, a figure for each comparison, and `summary.json` with all entries and contrasts."""
    parts = [(folder / "preface.md").read_text().rstrip()]
    summary: dict[str, list[dict[str, Any]]] = {"budgets": [], "contrasts": []}
    for path in sorted(folder.glob("*.yaml")):
        design, name = load_design(path), path.stem
        pilot, found = folder / f"{name}_pilot_twins.csv", folder / f"{name}_twins.csv"
        if pilot.is_file() or found.is_file():
            parts.append(f"## {design.system}")
        if pilot.is_file() and design.primary:
            parts += _pilot(pd.read_csv(pilot), design, design.primary)
        if not found.is_file():
            continue
        twins = pd.read_csv(found)
        entries, tested = summarise_budgets(twins, design), contrasts(twins, design)
        save_figure(_draw(entries), folder / f"{name}.png")
        parts += [
            *_missing(twins, design),
            *_code(read_records(folder / f"{name}.csv")),
            *_tables(entries, tested, design.budgets),
            f"![W1 against the budget](results/{name}.png)",
        ]
        summary["budgets"] += entries
        summary["contrasts"] += [{"system": design.system} | each for each in tested]
    if summary["budgets"]:
        write_json(folder / "summary.json", summary)
    write_text(page, "\n\n".join(parts) + "\n")


def _pilot(twins: pd.DataFrame, design: Design, primary: Contrast) -> Iterator[str]:
    """Scatter, power and change of the primary contrast, and its two arms against the cheaper controls."""
    logs = contrast_logs(twins, design, primary)
    if len(logs) < FEWEST_SEEDS:
        yield f"**The pilot** has {len(logs)} seeds with both arms of the primary contrast: too few to show a scatter."
        return
    change = Interval(*(100 * math.expm1(value) for value in mean_interval(logs)))
    low, high = scatter_interval(logs)
    yield (
        f"**The pilot**, {len(logs)} seeds on seed sets of their own, decided how many seed sets there are. The log "
        f"ratio of `{primary.arm}` to `{primary.control}` at {primary.budget:g} of the slowest process scatters by "
        f"{statistics.stdev(logs):.2f} (95 % interval {low:.2f} to {high:.2f}). If the true scatter is that, a change "
        f"by {RESOLVED_percent:.0f} % takes {sample_size(logs, RESOLVED_percent) or 'over a thousand'} seed sets for "
        f"80 % power. Its own change is {change.value:+.0f} % ({change.low:+.0f} to {change.high:+.0f})."
    )
    entries = [e for e in summarise_budgets(twins, design) if e["metric"] == HEADLINE and e["mode"] == "exact"]
    yield _table(
        ["arm", "budget", "sets", *(f"to {to}, %" for to in CHANGES)],
        (
            [f"`{e['arm']}`", f"{e['budget']:g}", str(e["seed_sets"])]
            + [_change(e, f"change_to_{to}") for to in CHANGES]
            for e in entries
        ),
        f"Change of the pilot's arms relative to their controls, {TITLE} W1, mode `exact`.",
    )


def _missing(twins: pd.DataFrame, design: Design) -> Iterator[str]:
    """What the design asks for and has no records, if there is such."""
    wanted = len({design.seed_set(seed) for seed in range(1, design.seeds + 1)})
    sets = twins.groupby("arm")["seed_set"].nunique()
    arms: dict[int, list[str]] = {}
    for arm in design.arms:
        arms.setdefault(int(sets.get(arm, 0)), []).append(f"`{arm}`")
    if min(arms) < wanted:
        told = (f"{count or 'none'} of {', '.join(arms[count])}" for count in sorted(arms, reverse=True))
        yield f"**Unfinished.** The design asks for {wanted} seed sets of each arm, and there are {'; '.join(told)}."


def _code(records: pd.DataFrame) -> Iterator[str]:
    """Which code made the campaigns of which seed sets."""
    if "code" in records:
        commits = records["code"].str[:SHORT_COMMIT].fillna("unknown")
        sets = records.groupby(["arm", commits], sort=False)["seed_set"].unique().map(sorted).map(tuple).reset_index()
        told = (
            f"{commit} ({', '.join(f'`{arm}`' for arm in found['arm'])}: {', '.join(map(str, numbers))})"
            for (numbers, commit), found in sets.groupby(["seed_set", "code"])
        )
        yield f"The campaigns ran at these commits (arms: seed sets): {'; '.join(told)}."


def _tables(entries: Entries, tested: Entries, steps: Mapping[float, int]) -> Iterator[str]:
    yield from _primary(tested)
    yield from _contrasts(tested)
    headline = [each for each in entries if each["metric"] == HEADLINE and each["mode"] == "exact"]
    yield _table(
        [
            "arm",
            "budget",
            "seeds (sets)",
            "model",
            "prior and rung",
            "prior alone",
            "raw frames",
            "weighted",
            *(f"to {to}, %" for to in CHANGES),
        ],
        (
            [f"`{e['arm']}`", f"{e['budget']:g}", f"{e['seeds']} ({e['seed_sets']})"]
            + [_value(e, name) for name in ("w1", "w1_linear", "w1_prior", "w1_raw", "w1_weighted")]
            + [_change(e, f"change_to_{to}") for to in CHANGES]
            for e in headline
        ),
        f"{TITLE} W1 (mode `exact`, 95 % intervals over seed sets) at budgets in multiples of the slowest process: of "
        "models, of prior and linear rung without the network and of the prior alone, all of the same frames, and of "
        "the frames themselves (and of these weighted by a Markov model of all runs). Changes of models are relative "
        "to the arm's own round 0 (plain dynamics: to `base`, if that learns from frames in the same way), to prior "
        "and rung, to the prior, to those frames, and to `continued_md` at the same budget.",
    )
    yield _table(
        ["arm", "budget", *(f"{o.heading}, to {to}" for o in OBSERVABLES.values() for to in ("base", "prior"))],
        (
            [f"`{arm}`", f"{budget:g}"]
            + [_change(each, f"change_to_{to}") for each in found for to in ("base", "prior")]
            for (arm, budget), found in _by_metric(entries)
        ),
        "Changes of all metrics, mode `exact`, in percent.",
    )
    kinds = ("label", "failed", "minimisation", "steering", "seed")
    yield _table(
        ["arm", "budget", "spent", "frames", *(f"{kind} steps" for kind in kinds), "replicas lost"],
        (
            [f"`{e['arm']}`", f"{e['budget']:g}", f"{e['oracle_steps'] / steps[e['budget']]:.0%}", f"{e['frames']:.0f}"]
            + [f"{e[f'{kind}_steps']:.0f}" for kind in kinds]
            + [f"{e['exploded_fraction']:.2%}"]
            for e in headline
        ),
        "Cost in all-atom steps by kind, means over campaigns; the seed's steps are the same for all. An arm that "
        "acquires stops where the next pick would not fit, so it may spend less than plain dynamics.",
    )


def _contrasts(tested: Entries) -> Iterator[str]:
    yield _table(
        ["contrast", "budget", "sets", "change, %", "p", "detectable, %", "sets for -30 %"],
        (
            [
                f"{'**primary** ' if e['primary'] else ''}`{e['arm']}` against `{e['control']}`",
                f"{e['budget']:g}",
                str(e["seed_sets"]),
                _change(e, "change"),
                *(
                    [f"{e['p']:.3g}", f"{e['detectable_percent']:.0f}", str(e["sets_for_30"] or MISSING)]
                    if e["seed_sets"] >= FEWEST_SETS
                    else [MISSING] * 3
                ),
            ]
            for e in tested
        ),
        f"Contrasts that were declared in advance, in {TITLE} W1, mode `exact`. p values of the secondary ones "
        "are corrected for their number (Holm). Detectable is the smallest decrease with 80 % power. Intervals, here "
        f"and below, are given from {FEWEST_SETS} seed sets on.",
    )


def _primary(tested: Entries) -> Iterator[str]:
    """Whether the primary contrast excludes the decrease that the study was made to see."""
    for e in tested:
        if e["primary"] and e["seed_sets"] >= FEWEST_SETS:
            excluded = f"; a decrease by {-RESOLVED_percent:.0f} % lies outside of the interval"
            yield (
                f"**The primary contrast**, `{e['arm']}` against `{e['control']}` at {e['budget']:g} of the slowest "
                f"process: {_change(e, 'change')} %, {e['seed_sets']} seed sets"
                f"{excluded if e['change_low'] > RESOLVED_percent else ''}."
            )


def _by_metric(entries: Entries) -> Iterator[tuple[tuple[str, float], list[Mapping[str, Any]]]]:
    exact = [each for each in entries if each["mode"] == "exact"]
    for key in dict.fromkeys((each["arm"], each["budget"]) for each in exact):
        of = {each["metric"]: each for each in exact if (each["arm"], each["budget"]) == key}
        yield key, [of[name] for name in OBSERVABLES if name in of]


def _table(headings: Sequence[str], rows: Iterator[list[str]], said: str) -> str:
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([said, "", *lines])


def _value(entry: Mapping[str, Any], name: str) -> str:
    return _interval(entry, name, "{:.3g}")


def _change(entry: Mapping[str, Any], name: str) -> str:
    return _interval(entry, name, "{:+.0f}")


def _interval(entry: Mapping[str, Any], name: str, form: str) -> str:
    value, low, high = (entry.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return MISSING
    known = low is not None and entry["seed_sets"] >= FEWEST_SETS
    return f"{form} ({form} to {form})".format(value, low, high) if known else form.format(value)


def _draw(entries: Entries) -> Figure:
    """W1 of the models against the budget, an arm a line; beside it that of the prior alone and of the raw frames."""
    kinds = {"w1": "model", "w1_prior": "prior alone", "w1_raw": "raw frames"}
    figure = Figure(figsize=(4.2 * len(kinds), 4.6), layout="constrained")
    found = [each for each in entries if each["metric"] == HEADLINE and each["mode"] == "exact"]
    for panel, (name, title) in zip(figure.subplots(1, len(kinds), sharey=True), kinds.items(), strict=True):
        for number, arm in enumerate(dict.fromkeys(each["arm"] for each in found)):
            colour, marker = COLOURS[number % len(COLOURS)], "os"[number // len(COLOURS)]
            line = [
                (
                    e["budget"],
                    e[name],
                    *((e[f"{name}_low"], e[f"{name}_high"]) if e["seed_sets"] >= FEWEST_SETS else (None, None)),
                )
                for e in found
                if e["arm"] == arm
            ]
            at, values, low, high = zip(*line, strict=True)
            errors = [[v - (v if e is None else e) for v, e in zip(values, low, strict=True)],
                      [(v if e is None else e) - v for v, e in zip(values, high, strict=True)]]  # fmt: skip
            panel.errorbar(at, values, errors, color=colour, label=arm, marker=marker, markersize=4, capsize=2)
        floor = found[0]["floor"] if found else math.nan
        panel.axhline(floor, color="0.6", linestyle=":", label="reference against itself")
        panel.set(title=title, xscale="log", ylim=(0, None), xlabel="all-atom steps over the slowest process")
    figure.axes[0].set_ylabel(f"{TITLE} W1, exact")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure
