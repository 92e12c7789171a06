"""`docs/results.md`, its figures and `summary.json`: comparisons on test beds, from their designs and twins alone.

A comparison is there when `docs/results/NAME_twins.csv` has rows (`study.twins`) beside its design
(`docs/results/NAME.yaml`) and its records (`docs/results/NAME.csv`); its pilot is in
`docs/results/NAME_pilot_twins.csv`. What was asked and done is told by hand in `docs/results/preface.md`.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cgal.benchmark.observables import HEADLINE, MISSING, OBSERVABLES
from cgal.figures import save_figure
from cgal.files import write_json, write_text
from study.design import Contrast, Design, load_design
from study.figures import COLOURS
from study.statistics import (
    BASE,
    Interval,
    RESOLVED_percent,
    mean_interval,
    read_records,
    sample_size,
    scatter_interval,
    steps_to_reach,
)
from study.summary import (
    CONTINUED,
    FEWEST_SETS,
    at_budget,
    contrast_logs,
    contrasts,
    summarise_budgets,
    to_common_starts,
)

__all__ = ["write_arms"]

TITLE = OBSERVABLES[HEADLINE].title
CHANGES = ("base", "linear", "prior", "raw", "continued")
"""What a change is to, as `summarise_budgets` names them."""

SHOWN_CHANGES = ("base", "prior", "continued")
"""Those that are shown for all metrics."""

LEADING, PAPER = "coverage", "paper"
"""The arm that the targets are for, and the published recipe."""

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
        parts.append(f"## {design.system}")
        paths = folder / f"{name}_pilot_twins.csv", folder / f"{name}_twins.csv"
        pilot, twins = (pd.read_csv(path) if path.is_file() else None for path in paths)
        if pilot is not None and design.primary:
            parts += _pilot(pilot, design, design.primary)
        if twins is None:
            parts.append("No arm has been run on it.")
            continue
        records = read_records(folder / f"{name}.csv")
        entries, tested = summarise_budgets(twins, design), contrasts(twins, design)
        save_figure(_draw(entries), folder / f"{name}.png")
        parts += [
            *_missing(twins, design),
            *_code(records),
            *_primary(tested, twins, pilot, design),
            *_targets(entries, tested, twins, design),
            *_contrasts(tested),
            *_own(records, twins, tested, design),
            *_elsewhere(entries),
            *_tables(entries, design.budgets),
            f"![W1 of each arm at each budget](results/{name}.png)",
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
        f"**The pilot**, {len(logs)} seeds on seed sets of their own, is to say how many seed sets it takes. The log "
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
    arms: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for arm in design.arms:
        sets = {budget: _sets(twins, arm, steps) for budget, steps in sorted(design.budgets.items())}
        ends = tuple((count, max(b for b in sets if sets[b] == count)) for count in dict.fromkeys(sets.values()))
        arms.setdefault(ends, []).append(f"`{arm}`")
    if any(ends != ((wanted, max(design.budgets)),) for ends in arms):
        told = (
            f"{', '.join(arms[ends])} "
            + (", ".join(f"{_counted(count)} up to {budget:g}" for count, budget in ends if count) or "none")
            for ends in sorted(arms, reverse=True)
        )
        yield (
            f"**Unfinished.** The design asks for {wanted} seed sets of each arm, up to {max(design.budgets):g} of the "
            f"slowest process. There are, of {'; of '.join(told)}."
        )


def _counted(sets: int) -> str:
    return f"{sets} seed set{'s' if sets != 1 else ''}"


def _sets(twins: pd.DataFrame, arm: str, steps: int) -> int:
    """Seed sets of an arm that went as far as this."""
    return int(at_budget(twins, arm, steps)["seed_set"].nunique())


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


def _tables(entries: Entries, steps: Mapping[float, int]) -> Iterator[str]:
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
        "and rung, to the prior, to those frames, and to `continued_md` at the same budget. `same` is the same model: "
        "the arm is the control, or its network has no weight. Means of arms with different seed sets cannot be "
        f"compared. The floor is {headline[0]['floor']:.3g}, between even and odd trajectories of the reference.",
    )
    yield _table(
        ["arm", "budget", *(f"{o.heading}, to {to}" for o in OBSERVABLES.values() for to in SHOWN_CHANGES)],
        (
            [f"`{arm}`", f"{budget:g}"] + [_change(each, f"change_to_{to}") for each in found for to in SHOWN_CHANGES]
            for (arm, budget), found in _by_metric(entries)
        ),
        "Changes of all metrics, mode `exact`, in percent. Intervals in this and the table before are not corrected "
        "for their number: by chance one in twenty excludes no change.",
    )
    kinds = ("label", "failed", "minimisation", "steering", "seed")
    yield _table(
        ["arm", "budget", "spent", "frames", *(f"{kind} steps" for kind in kinds), "lost", "no network", "no rung"],
        (
            [f"`{e['arm']}`", f"{e['budget']:g}", f"{e['oracle_steps'] / steps[e['budget']]:.0%}", f"{e['frames']:.0f}"]
            + [f"{e[f'{kind}_steps']:.0f}" for kind in kinds]
            + [f"{e['exploded_fraction']:.1%}, {e['most_exploded_fraction']:.0%}"]
            + [f"{e['without_network']} of {e['seeds']}", f"{e['without_rung']} of {e['seeds']}"]
            for e in headline
        ),
        "Cost in all-atom steps by kind, means over campaigns; the seed's steps are the same for all. An arm that "
        "acquires stops where the next pick would not fit, so it may spend less than plain dynamics. `lost` is the "
        "share of replicas lost from the simulations from common starts, mean and most of a campaign; the last "
        "columns are campaigns whose held-out runs gave the network, or the linear rung, no weight.",
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


def _primary(tested: Entries, twins: pd.DataFrame, pilot: pd.DataFrame | None, design: Design) -> Iterator[str]:
    """Whether the primary contrast excludes the decrease that the study was made to see, and what the pilot adds."""
    for e in tested:
        if e["primary"] and design.primary and e["seed_sets"] >= FEWEST_SETS:
            excluded = f"; a decrease by {-RESOLVED_percent:.0f} % lies outside of the interval"
            told = (
                f"**The primary contrast**, `{e['arm']}` against `{e['control']}` at {e['budget']:g} of the slowest "
                f"process: {_change(e, 'change')} %, {e['seed_sets']} seed sets"
                f"{excluded if e['change_low'] > RESOLVED_percent else ''}."
            )
            if pilot is not None:
                logs = [value for rows in (pilot, twins) for value in contrast_logs(rows, design, design.primary)]
                value, low, high = (100 * math.expm1(each) for each in mean_interval(logs))
                told += (
                    " With the seed sets of the pilot, which was not planned, it is "
                    f"{value:+.0f} ({low:+.0f} to {high:+.0f}) %, {len(logs)} seed sets."
                )
            yield told


def _targets(entries: Entries, tested: Entries, twins: pd.DataFrame, design: Design) -> Iterator[str]:
    """A verdict on each target of the study."""
    headline = {(e["arm"], e["budget"]): e for e in entries if e["metric"] == HEADLINE and e["mode"] == "exact"}
    lines = [
        (f"`{e['arm']}` below `{e['control']}` by {-RESOLVED_percent:.0f} %, at {e['budget']:g}", e, "change")
        for e in tested
        if e["control"] == CONTINUED and e["arm"] == LEADING and e["budget"] < 1
    ]
    lines += [
        (f"model of `{arm}` below its raw frames, at {budget:g}", headline[arm, budget], "change_to_raw")
        for arm in (LEADING, CONTINUED)
        for budget in sorted(design.budgets)
        if (arm, budget) in headline
    ]
    rows = [[what, f"{_change(e, name)} %", _judged(e, name)] for what, e, name in lines]
    for arm in (LEADING, CONTINUED):
        worse = [
            f"{e['metric'].replace('_', ' ')} to {to} at {e['budget']:g} ({_change(e, f'change_to_{to}')} %)"
            for e in entries
            for to in ("base", "prior")
            if e["arm"] == arm and e["mode"] == "exact" and _known(e) and e[f"change_to_{to}_low"] > 0
        ]
        rows.append(
            [f"no metric of `{arm}` worse than the base's or the prior's", "; ".join(worse) or MISSING,
             "not reached" if worse else "none shown to be worse"]
        )  # fmt: skip
    share, sets = _steps_to_paper(twins, design)
    rows.append(
        [f"`{LEADING}` at the W1 of `{PAPER}` after half of its steps", share,
         "not reached" if share == "never" and sets >= FEWEST_SETS else f"no verdict: {_counted(sets)}"]
    )  # fmt: skip
    for e in tested:
        if e["arm"] == LEADING and e["control"] in ("random", "least_counts"):
            enough = e["seed_sets"] >= FEWEST_SETS
            seen = f"least decrease with 80 % power: {e['detectable_percent']:.0f} %" if enough else "no verdict"
            rows.append(
                [f"`{e['arm']}` against `{e['control']}` at {e['budget']:g}, whatever it is",
                 f"{_change(e, 'change')} %, {_counted(e['seed_sets'])}", seen]
            )  # fmt: skip
    yield _table(
        ["target", "found", "verdict"],
        iter(rows),
        f"**The targets.** {TITLE} W1, mode `exact`, unless a metric is named. Excluded: the interval does not reach "
        "the target. Not shown: it holds both the target and no change, or there are too few seed sets.",
    )


def _judged(entry: Mapping[str, Any], name: str) -> str:
    """Whether a change is a decrease, by so much where that is the target."""
    target = RESOLVED_percent if name == "change" else 0.0
    if not _known(entry):
        return "not shown"
    if entry[f"{name}_high"] < 0 and entry[name] <= target:
        return "reached"
    return "excluded" if entry[f"{name}_low"] > target else "not shown"


def _steps_to_paper(twins: pd.DataFrame, design: Design) -> tuple[str, int]:
    """Share of the paper's steps at which the leading arm is first as near, and the seed sets that both have."""
    steps = sorted(design.budgets.values())
    found = {arm: [at_budget(twins, arm, spent) for spent in steps] for arm in (LEADING, PAPER)}
    most = [rows for rows in found[PAPER] if len(rows)]
    if not most:
        return MISSING, 0
    sets = set(most[-1]["seed_set"]) & set(found[LEADING][0]["seed_set"])
    line = pd.DataFrame(
        [
            rows.query("kind == 'model' and metric == @HEADLINE and mode == 'exact' and seed_set in @sets")[
                ["oracle_steps", "w1"]
            ].mean()
            for rows in (*found[LEADING], most[-1])
        ]
    )
    target = line.iloc[-1]
    share = steps_to_reach(line.iloc[:-1].dropna(), float(target["w1"])) / float(target["oracle_steps"])
    return "never" if math.isinf(share) else f"{share:.0%} of its steps", len(sets)


def _own(records: pd.DataFrame, twins: pd.DataFrame, tested: Entries, design: Design) -> Iterator[str]:
    """What the simulations that the campaigns made themselves say, beside those from common starts."""
    own = records.assign(kind="model")
    pairs = [(e, o) for e, o in zip(tested, contrasts(own, design), strict=True) if _known(e) and _known(o)]
    if not pairs:
        return
    yield _table(
        ["contrast", "budget", "from common starts, %", "by the campaigns' own simulations, %"],
        (
            [f"`{e['arm']}` against `{e['control']}`", f"{e['budget']:g}", _change(e, "change"), _change(o, "change")]
            for e, o in pairs
        ),
        "**Two measurements of the same models.** All figures of this page, but those of this table's last column, "
        "are of simulations of 960 ps from common starts, half of them a stretched chain, as was decided before "
        "the first record. `cgal rounds` shows W1 of the campaign's own simulation, which is shorter and starts "
        "at training frames. Where the two disagree, neither alone is a figure to choose an arm by.",
    )
    arms = dict.fromkeys(arm for e, _ in pairs for arm in (e["control"], e["arm"]))
    changes = [(arm, budget, to_common_starts(own, twins, arm, steps)) for arm, (budget, steps) in
               product(arms, design.budgets.items())]  # fmt: skip
    yield _table(
        ["arm", "budget", "TICA W1 from common starts, relative to the campaign's own simulation, %"],
        ([f"`{arm}`", f"{budget:g}", _change(e, "change")] for arm, budget, e in changes if _known(e)),
        "**Whose models depend on the simulation** is seen when each model is compared with itself (not planned, "
        "intervals not corrected). Near zero, both simulations say the same of it. Far above zero, its campaign's own "
        "simulation flatters it. That one is shorter, and starts at training frames, which are spread out where an arm "
        "acquires; these records do not tell which of these makes the difference.",
    )


def _elsewhere(entries: Entries) -> Iterator[str]:
    """What is shown in other metrics, of frames and of priors against continued dynamics, uncorrected."""
    kinds = {"change": "model", "prior": "prior alone", "raw": "raw frames"}
    told = [
        f"{OBSERVABLES[e['metric']].title} of the {kind} of `{e['arm']}` at {e['budget']:g}: "
        f"{_change(e, f'{name}_to_continued')} %"
        for name, kind in kinds.items()
        for e in entries
        if e["mode"] == "exact" and e["arm"] not in (CONTINUED, BASE) and _known(e)
        and (e[f"{name}_to_continued_low"] or 0) * (e[f"{name}_to_continued_high"] or 0) > 0
    ]  # fmt: skip
    if told:
        yield (
            "**Against continued dynamics, in all metrics**, these intervals exclude no change. They are not corrected "
            f"for their number (five metrics, four budgets, three kinds for each arm): {'; '.join(told)}."
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
    return "same" if entry.get(name) == 0.0 else _interval(entry, name, "{:+.0f}")


def _interval(entry: Mapping[str, Any], name: str, form: str) -> str:
    value, low, high = (entry.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return MISSING
    known = low is not None and _known(entry)
    return f"{form} ({form} to {form})".format(value, low, high) if known else form.format(value)


def _known(entry: Mapping[str, Any]) -> bool:
    """Whether there are seed sets enough for an interval."""
    return bool(entry["seed_sets"] >= FEWEST_SETS)


def _draw(entries: Entries) -> Figure:
    """W1 of models, of their priors alone and of the raw frames: an arm a row, a budget a panel.

    Bars are intervals; open markers are of too few seed sets for one.
    """
    kinds = {"w1": "model", "w1_prior": "prior alone", "w1_raw": "raw frames"}
    found = [each for each in entries if each["metric"] == HEADLINE and each["mode"] == "exact"]
    arms, budgets = (list(dict.fromkeys(each[name] for each in found)) for name in ("arm", "budget"))
    figure = Figure(figsize=(3.1 * len(budgets) + 1.6, 0.42 * len(arms) + 1.4), layout="constrained")
    for panel, budget in zip(figure.subplots(1, len(budgets), sharex=True, sharey=True), budgets, strict=True):
        for e in (e for e in found if e["budget"] == budget):
            for place, (colour, marker, name) in enumerate(zip(COLOURS, "osD", kinds, strict=False)):
                errors = [[e[name] - e[f"{name}_low"]], [e[f"{name}_high"] - e[name]]] if _known(e) else None
                panel.errorbar(
                    e[name], arms.index(e["arm"]) + 0.24 * (place - 1), xerr=errors, color=colour, marker=marker,
                    markersize=4, markerfacecolor=colour if _known(e) else "white", linestyle="", label=kinds[name],
                )  # fmt: skip
        panel.axvline(found[0]["floor"], color="0.6", linestyle=":", label="floor (even against odd trajectories)")
        panel.set(title=f"{budget:g} of the slowest process", xlabel=f"{TITLE} W1, exact")
    figure.axes[0].set(yticks=range(len(arms)), yticklabels=arms, ylim=(len(arms) - 0.5, -0.5), xlim=(0, None))
    handles = {label: handle for handle, label in zip(*figure.axes[0].get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure
