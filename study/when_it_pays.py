"""`docs/results/when-it-pays.md`, its map and its advice, from the records of `study.teacher`; no campaign is run.

Changes are of the TICA W1 (mode exact) at equal teacher time, paired by seed. Every seed has a seed set of its own.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from cgal.benchmark.observables import HEADLINE, MISSING, OBSERVABLES
from cgal.figures import save_figure
from cgal.files import read_json, write_text
from study.advice import ADVICE
from study.figures import COLOURS
from study.statistics import Interval, RESOLVED_percent, change, mean_interval, sample_size, smallest_effect_percent
from study.summary import FEWEST_SETS, holm
from study.teacher.oracle import ALIKE, BOUND

__all__ = ["contrasts", "logs", "write_when_it_pays"]

CONTROL, SEED = "continued", "seed"
PRIMARY = ("coverage", CONTROL, 0.3)
"""Arm, control and budget over the slowest time."""

OTHERS = ("random", "least_counts")
"""Controls that `coverage` is set against, beside plain dynamics."""

FIRST_STUDY, FIRST_BUDGET = Path("450K", "arms.csv"), 255_000 * 0.004 / 136.9
"""Records of all-atom arms at 450 K, and their steps of 4 fs over the slowest process, 137 ps."""

TITLES = {"raw": "raw frames", "network": "networks", "linear": "linear rungs"}
TICKS = (0.1, 0.3, 1.0, 3.0, 10.0)
ENDS = ("", "_low", "_high")
DRAWN = ("coverage", "least_counts", "random", "parallel", "rmsd_histogram", BOUND)
COLOUR_OF = dict(zip(DRAWN, COLOURS[1:], strict=False))
MARKERS = (("*", 1.0), ("P", 1.04), ("s", 1.08))
"""Of all-atom systems, and what sets them apart along the budget."""

LEVEL, LEAST_SEEDS = 0.05, 5
PREFACE = """# When does acquisition pay? A teacher in place of all atoms

Written by `make results` from the records of `python -m study.teacher --student linear` and `--student network`, and
of their pilots (`--pilot`). **None of these figures is of all-atom simulations.** The oracle is the teacher, a fixed
coarse-grained potential of chignolin at 350 K: prior, linear rung and a network by relative entropy (32 features, two
blocks), fitted to all of [a test bed](../decisions/19-test-beds.md) with `python -m study.teacher.make`. Its
equilibrium is known from 64 runs of 600 ps, 0.13 of it folded, with 319 unfoldings. A Markov model gives its slowest
process 155 ps (121 to 198) at a lag of 20 ps, and 143 to 160 ps at lags of 8 to 200 ps. A label run is a run of the
teacher with a frame every 0.25 ps. Its forces have white noise of 241 kJ/mol/nm (`local_frames`, measured at 450 K:
[noise of labels](label-noise.md)) times a factor. So backmapping, its failures and its cost are left out, and so is the
effect on a label of atoms that are not yet at rest.

All arms share, seed by seed, the same seed set (the initial training frames: ten runs of 0.01 of the slowest relaxation
time from the folded structure) and the starts of the models' simulations: half at frames of the seed, half at a
stretched chain, with the first half left out. Every arm spends the same teacher time; a label run takes 0.01 of the
slowest relaxation time.

- `continued` is one run from the last frame of the seed, `parallel` is ten runs from the ends of the seed's runs, and
  `least_counts` restarts ten at a time from the cells visited least.
- The others pick frames of the student's simulation at 0, 0.1, 0.3 and 1 of the slowest relaxation time, with
  `novel_nm` 0.1.

Where fewer frames qualify than runs are paid for, those run longer. A committee is not in these studies."""

MAP = """![when it pays](when_it_pays.png)

Points of one budget are drawn beside each other. Open markers are all-atom points of fewer than three seed sets. Panels
of different noise differ in student and length of simulation too, so the map shows no effect of noise alone; the
barrier is that of chignolin in all of them."""


class Study(NamedTuple):
    """Arms with one student: the file of its records, the noise of its labels and what is said of it."""

    student: str
    stem: str
    noise: float
    told: str

    @property
    def with_network(self) -> str:
        """Word for whether its models have a network."""
        return "with" if self.student == "network" else "without"


STUDIES = (
    Study(
        "linear",
        "teacher_linear",
        ALIKE,
        f"""The student is the prior with a linear rung fitted to forces, without the network that `params.yaml` puts on
top (the teacher has such a rung too, so that it fits this student well). Labels have {ALIKE:g} of the measured noise.
The reason: the teacher's slowest relaxation time holds 620 frames, that of chignolin at 350 K 13,200 of the all-atom
oracle (1270 ps, a frame every 24 steps of 4 fs). With this noise, labels of one slowest relaxation time tell as much of
mean forces as there. Models are simulated 32 times for 240 ps. `prior` is the model without the rung,
`linear_weighted` the same rung on a prior of frames weighted by a Markov model of all runs (`training.frame_weights`),
and `raw_weighted` the frames drawn by these weights.

Noise and student were chosen after one seed of three arms (991, up to the slowest relaxation time, not kept as records)
had been seen, first with the whole noise, where the rung helps as little as the first study's network, and then with
this noise. Label runs of 0.033 and 0.1 of the slowest relaxation time and frames of the later half of the simulations
were tried on one seed set of the pilot (101, not kept as records); nothing was changed because of them.""",
    ),
    Study(
        "network",
        "teacher",
        1.0,
        """The first study. The student is smaller than the teacher (16 features, one block), and its prior has no rung.
It is trained by force matching with the settings of `params.yaml`. Labels of one slowest relaxation time tell a
twentieth of what they do with all atoms (see above). Models are simulated 16 times for 120 ps.""",
    ),
)


def write_when_it_pays(folder: Path, told: Path = ADVICE) -> None:
    """Write page and map into a folder that has pilots and records of `STUDIES`, and the advice of the first to `told`.

    Before an arm of a study has five seeds, its table is of the pilot; without any such study there is no advice.
    """
    parts, sentence, panels = [PREFACE], "", list[tuple[pd.DataFrame, str, float, str]]()
    for study in STUDIES:
        paths = folder / f"{study.stem}.csv", folder / f"{study.stem}_pilot.csv"
        if not paths[1].is_file():
            continue
        pilot = pd.read_csv(paths[1])
        records = pd.read_csv(paths[0]) if paths[0].is_file() else pilot.head(0)
        alike = records[records["noise"] == study.noise]
        found = contrasts(alike, study.student)
        shown = records if len(found) else pilot
        parts += [f"## The student `{study.student}`", study.told, _power(pilot, alike, found, study.student)]
        if len(found):
            sentence = sentence or _advise(alike, found, study)
            bound = [_bound(alike, study.student)] if BOUND in set(alike["arm"]) else []
            parts += [_contrast_table(found), *bound, _twins_table(alike, study.student)]
        else:
            parts += ["**There are no records yet**: what follows is the pilot, which decides nothing."]
        noises = sorted(shown["noise"].unique())
        parts += [_table(shown, noise) for noise in noises]
        stage = "" if len(found) else ", pilot"
        panels += [(shown, model, noise, stage) for model in (study.student, "raw") for noise in noises]
    if sentence:
        write_text(told, sentence + "\n")
        parts.insert(1, f"## Advice\n\n{sentence}")
    save_figure(_draw(panels, all_atom(folder)), folder / "when_it_pays.png")
    parts.insert(2 if sentence else 1, MAP)
    write_text(folder / "when-it-pays.md", "\n\n".join(parts) + "\n")


def logs(records: pd.DataFrame, arm: str, to: str, budget: float, models: tuple[str, str]) -> list[float]:
    """Log ratios of W1 of an arm's model to that of another at a budget (`SEED` has none to spend), a seed each."""
    rows = records.query("metric == @HEADLINE and mode == 'exact'")
    one, other = (
        rows.query("arm == @name and model == @model and budget_over_slowest == @spent").set_index("seed")["value"]
        for name, model, spent in zip((arm, to), models, (budget, 0.0 if to == SEED else budget), strict=True)
    )
    found: list[float] = np.log((one / other).dropna()).tolist()
    return found


def contrasts(records: pd.DataFrame, student: str) -> pd.DataFrame:
    """Of a student's models: each arm but `BOUND` against continued dynamics, and `coverage` against `OTHERS`.

    Budgets with fewer than `LEAST_SEEDS` are left out.

    `p` of the primary contrast is that of a paired t-test; of the others it is corrected for their number.
    """
    arms = [arm for arm in records["arm"].unique() if arm not in (SEED, CONTROL, BOUND)]
    budgets = sorted(budget for budget in records["budget_over_slowest"].unique() if budget)
    pairs = [(arm, CONTROL) for arm in arms] + [(PRIMARY[0], to) for to in OTHERS if to in arms]
    rows = []
    for (arm, to), budget in product(pairs, budgets):
        values = logs(records, arm, to, budget, (student, student))
        if len(values) >= LEAST_SEEDS:
            test = float(stats.ttest_1samp(values, 0.0).pvalue)
            percent = Interval(*(float(100 * np.expm1(value)) for value in mean_interval(values)))
            rows.append((arm, to, budget, len(values), *percent, test, smallest_effect_percent(values)))
    table = pd.DataFrame(
        rows, columns=["arm", "control", "budget", "seeds", "change", "low", "high", "p", "detectable"]
    )
    primary = (table[["arm", "control", "budget"]] == PRIMARY).all(axis=1)
    table.loc[~primary, "p"] = holm(table.loc[~primary, "p"].tolist())
    return table.assign(primary=primary)


def all_atom(folder: Path) -> pd.DataFrame:
    """Change of the TICA W1 [%] of all-atom arms to continued dynamics, by system, arm and budget, as far as known.

    Fewer than `FEWEST_SETS` seed sets have no interval: both of its ends are the change itself.
    """
    rows = []
    if (folder / FIRST_STUDY).is_file():
        first = pd.read_csv(folder / FIRST_STUDY)
        rows += [
            ("chignolin, 450 K", arm, FIRST_BUDGET, *change(first, arm, "continued_md", HEADLINE, "exact"))
            for arm in (PRIMARY[0], "random")
        ]
    if (folder / "summary.json").is_file():
        rows += [
            (
                *(each["system"], each["arm"], each["budget"]),
                *(each[f"change_to_continued{end if each['seed_sets'] >= FEWEST_SETS else ''}"] for end in ENDS),
            )
            for each in read_json(folder / "summary.json")["budgets"]
            if each["metric"] == HEADLINE and each["mode"] == "exact" and each["arm"] in COLOUR_OF
        ]
    return pd.DataFrame(rows, columns=["system", "arm", "budget", "change", "low", "high"]).dropna()


def _advise(records: pd.DataFrame, found: pd.DataFrame, study: Study) -> str:
    """What is surely better than plain dynamics, where the default strategy stands, and what plain dynamics brings."""
    plain = found[found["control"] == CONTROL]
    budgets = sorted(plain["budget"].unique())
    sure = plain[(plain["change"] < 0) & (plain["p"] < LEVEL)].sort_values(["budget", "change"])
    better = "; ".join(f"at {row['budget']:g} {row['arm']} ({_percent(row)})" for _, row in sure.iterrows())
    default = plain[plain["arm"] == PRIMARY[0]].sort_values("budget")
    stands = ", ".join(f"{row['budget']:g}: {_percent(row)}" for _, row in default.iterrows())
    to_seed = [(budget, logs(records, CONTROL, SEED, budget, (study.student,) * 2)) for budget in budgets]
    brings = ", ".join(f"{budget:g}: {_changed(values)}" for budget, values in to_seed if len(values) >= LEAST_SEEDS)
    seeds = " to ".join(str(number) for number in sorted({plain["seeds"].min(), plain["seeds"].max()}))
    return " ".join(
        [
            "Which strategy to use, by the all-atom time over the slowest process of your protein. Changes of the "
            f"model's TICA W1 are in percent with 95 % intervals, {seeds} seeds (one protein, a coarse-grained teacher "
            f"in place of all atoms, models {study.with_network} a network).",
            f"Surely better than one continued run of the same length: {better}."
            if better
            else f"No strategy was shown to be better in TICA W1 than one continued run of the same length, from "
            f"{budgets[0]:g} to {budgets[-1]:g} of the slowest relaxation time.",
            f"{PRIMARY[0]}, the default, against that run, at {stands}.",
            f"That run against no label at all, at {brings}." if brings else "",
            "So compare before you trust a strategy (cgal compare --help says how)"
            + ("." if better else ", or use plain dynamics (campaign.continued_md_steps)."),
        ]
    ).replace("  ", " ")


def _percent(row: pd.Series) -> str:
    return f"{row['change']:+.0f} ({row['low']:+.0f} to {row['high']:+.0f})"


def _power(pilot: pd.DataFrame, records: pd.DataFrame, found: pd.DataFrame, student: str) -> str:
    arm, to, budget = PRIMARY
    values = logs(pilot, arm, to, budget, (student, student))
    scatter, needed = float(np.std(values, ddof=1)), sample_size(values, RESOLVED_percent)
    mean = mean_interval(values)
    lines = [
        f"**The primary contrast** is `{arm}` against `{to}` at {budget:g} of the slowest relaxation time, TICA W1 of "
        f"the model, mode exact. The pilot ({len(values)} seeds on other seed sets) has a scatter of {scatter:.2f} in "
        f"the log ratio: a change by {RESOLVED_percent:.0f} % takes {needed or 'over a thousand'} seeds for 80 % "
        f"power. Its own change is {100 * np.expm1(mean.value):+.0f} %, {100 * np.expm1(mean.low):+.0f} to "
        f"{100 * np.expm1(mean.high):+.0f}.",
    ]
    for _, row in found[found["primary"]].iterrows():
        lines[-1] += (
            f" The records have {row['seeds']}: {_percent(row)} %, p = {row['p']:.3f}; the smallest decrease that "
            f"they would have shown with 80 % power is {row['detectable']:.0f} %."
        )
        if row["low"] > RESOLVED_percent:
            lines[-1] += f" A decrease by {-RESOLVED_percent:.0f} % lies outside of the interval."
        lines[-1] += f" {_pooled(pilot, records, student)}."
    return "\n".join(lines)


def _pooled(pilot: pd.DataFrame, records: pd.DataFrame, student: str) -> str:
    """The primary contrast over the seeds of pilot and records."""
    arm, to, budget = PRIMARY
    values = [value for rows in (pilot, records) for value in logs(rows, arm, to, budget, (student, student))]
    return f"With the seeds of the pilot, which was not planned, it is {_changed(values)} %, {len(values)} seeds"


def _contrast_table(found: pd.DataFrame) -> str:
    lines = [
        "### All contrasts",
        "",
        "Change of the model's TICA W1 in percent with 95 % intervals over seeds. The primary contrast is bold; p "
        f"values of the others are corrected for their number (Holm, {len(found) - int(found['primary'].sum())}). The "
        "last column is the smallest decrease that would have been shown with 80 % power.",
        "",
        "| arm | against | budget | seeds | change | p | detectable |",
        "|---|---|---|---|---|---|---|",
    ]
    for _, row in found.sort_values(["control", "budget", "arm"]).iterrows():
        name = f"**`{row['arm']}`**" if row["primary"] else f"`{row['arm']}`"
        lines.append(
            f"| {name} | `{row['control']}` | {row['budget']:g} | {row['seeds']} | {_percent(row)} | {row['p']:.3f} "
            f"| {row['detectable']:.0f} |"
        )
    return "\n".join(lines)


def _bound(records: pd.DataFrame, student: str) -> str:
    """What starts of label runs drawn from the truth give."""
    lines = [
        "### What starts in equilibrium give",
        "",
        f"`{BOUND}` begins each label run at a frame drawn from the truth, which no strategy has. It was added after "
        "the records of the other arms had been seen, and is not a candidate. It bounds what raw frames can give; for "
        "a model, whose forces may need other frames, it is not a bound. These frames are a sample of the very truth "
        "that they are measured on, so the truth's own error cancels, and raw frames can be below the floor. "
        "The table gives changes of TICA W1 in "
        "percent, with 95 % intervals over seeds. Where its model is shown to be further from the truth than its own "
        "raw frames, what is learned from the labels holds the model back, wherever they begin.",
        "",
        f"| budget | seeds | its model to that of `{CONTROL}` | its model to that of `{PRIMARY[0]}` | its raw frames "
        f"to those of `{CONTROL}` | its model to its raw frames |",
        "|---|---|---|---|---|---|",
    ]
    pairs = (
        (CONTROL, student, student),
        (PRIMARY[0], student, student),
        (CONTROL, "raw", "raw"),
        (BOUND, student, "raw"),
    )
    for budget in sorted(records.loc[records["arm"] == BOUND, "budget_over_slowest"].unique()):
        found = [logs(records, BOUND, to, budget, (one, other)) for to, one, other in pairs]
        lines.append(f"| {budget:g} | {len(found[0])} | {' | '.join(map(_changed, found))} |")
    return "\n".join(lines)


def _changed(logs_of_seeds: Sequence[float]) -> str:
    """Mean change in percent with its interval, if there is one."""
    if len(logs_of_seeds) < 2:
        return f"{100 * np.expm1(logs_of_seeds[0]):+.0f}" if logs_of_seeds else MISSING
    return "{:+.0f} ({:+.0f} to {:+.0f})".format(*100 * np.expm1(mean_interval(logs_of_seeds)))


def _twins_table(records: pd.DataFrame, student: str) -> str:
    """The model's W1 over that of other things made of the same labels, of no labels, and of plain dynamics."""
    others = [model for model in records["model"].unique() if model != student]
    controls = [*others, student]
    lines = [
        "### Compared with cheaper alternatives",
        "",
        "Change of TICA W1 in percent, with 95 % intervals over seeds. First the model, relative to what else its "
        "labels give and to the model of the seed, which has no labels; then each of these, relative to what "
        f"`{CONTROL}` makes of as many labels. These intervals are not corrected for their number. "
        f"{_worse_frames(records)}",
        "",
        f"| arm | budget | seeds | {' | '.join(f'to its `{other}`' for other in others)} | to the seed's model | "
        f"{' | '.join(f'`{model}` to that of `{CONTROL}`' for model in controls)} |",
        f"|---|---|---|{'---|' * (len(others) + 1 + len(controls))}",
    ]
    for arm, budget in records[["arm", "budget_over_slowest"]].drop_duplicates().itertuples(index=False):
        values = [logs(records, arm, arm, budget, (student, other)) for other in others]
        values.append([] if arm == SEED else logs(records, arm, SEED, budget, (student, student)))
        values += [[] if arm == CONTROL else logs(records, arm, CONTROL, budget, (each, each)) for each in controls]
        lines.append(f"| `{arm}` | {budget:g} | {len(values[0])} | {' | '.join(map(_changed, values))} |")
    return "\n".join(lines)


def _worse_frames(records: pd.DataFrame) -> str:
    """At which budgets the raw frames of the default strategy are shown to be farther from the truth."""
    budgets = sorted(budget for budget in records["budget_over_slowest"].unique() if budget)
    found = {budget: logs(records, PRIMARY[0], CONTROL, budget, ("raw", "raw")) for budget in budgets}
    worse = [f"{budget:g}" for budget, values in found.items() if len(values) > 1 and mean_interval(values).low > 0]
    if not worse:
        return ""
    return (
        f"The raw frames of `{PRIMARY[0]}` are farther from the truth than those of `{CONTROL}` at {', '.join(worse)}."
    )


def _table(records: pd.DataFrame, noise: float) -> str:
    rows = records.query("noise == @noise and mode == 'exact'")
    metrics = list(OBSERVABLES.values())
    lines = [
        f"### W1 of every arm, noise {noise:g} times the measured one",
        "",
        "Mode exact, means over seeds, TICA with its 95 % interval, for the raw labelled frames and the models made of "
        "them. Failed are label runs that were lost; lost are simulated replicas. Means of arms with different seeds "
        "cannot be compared; the tables above can.",
        "",
        f"| budget | arm | model | seeds | {' | '.join(each.heading for each in metrics)} | failed | lost |",
        f"|---|---|---|---|{'---|' * len(metrics)}---|---|",
    ]
    for (budget, arm, model), part in rows.groupby(["budget_over_slowest", "arm", "model"], sort=False):
        one = part[part["metric"] == HEADLINE]
        cells = []
        for each in metrics:
            values = (part.loc[part["metric"] == each.name, "value"] * each.scale).tolist()
            mean = mean_interval(values)
            spread = f" ({mean.low:.3g} to {mean.high:.3g})" if each.name == HEADLINE and len(values) > 1 else ""
            cells.append(f"{mean.value:.3g}{spread}")
        lines.append(
            f"| {budget:g} | `{arm}` | {model} | {len(one)} | {' | '.join(cells)} | {one['failed'].mean():.1f} "
            f"| {one['lost_replicas'].mean():.1f} |"
        )
    floors = rows.groupby("metric")["floor"].first()
    return "\n".join(
        [*lines, f"| | floor | | | {' | '.join(f'{floors[e.name] * e.scale:.3g}' for e in metrics)} | | |"]
    )


def _draw(panels_of: Sequence[tuple[pd.DataFrame, str, float, str]], atoms: pd.DataFrame) -> Figure:
    """Change to continued dynamics against the budget: models at each noise, beside all-atom ones, and raw frames."""
    figure = Figure(figsize=(4.4 * len(panels_of), 4.4), layout="constrained")
    panels = figure.subplots(1, len(panels_of), squeeze=False, sharey=True)[0]
    for panel, (records, model, noise, stage) in zip(panels, panels_of, strict=True):
        rows = records[records["noise"] == noise]
        budgets = np.array(sorted(budget for budget in rows["budget_over_slowest"].unique() if budget))
        for arm, colour in COLOUR_OF.items():
            of_seeds = [logs(rows, arm, CONTROL, budget, (model, model)) for budget in budgets]
            found = [mean_interval(each if len(each) >= LEAST_SEEDS else []) for each in of_seeds]
            value, low, high = 100 * np.expm1(np.array(found)).T
            panel.errorbar(
                budgets * _aside(arm),
                value,
                [value - low, high - value],
                color=colour,
                label=arm,
                marker="o",
                capsize=2,
            )
        panel.axhline(0.0, color="0.4", linewidth=0.8)
        title = f"{TITLES.get(model, model)}, noise x {noise:g} (circles: teacher{stage})"
        panel.set(xscale="log", xlabel="budget over slowest time", title=title, xlim=(0.07, 14.0), ylim=(-100, 150))
        panel.set_xticks(TICKS, [f"{budget:g}" for budget in TICKS], minor=False)
        panel.minorticks_off()
    _add_all_atom(panels[0], atoms)
    panels[0].set_ylabel("change of TICA W1 to continued dynamics [%]")
    handles = {label: h for panel in panels for h, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _aside(arm: str) -> float:
    """Factor of the budget by which points of an arm are drawn beside those of others."""
    return 1.07 ** (DRAWN.index(arm) - 2)


def _add_all_atom(panel: Axes, atoms: pd.DataFrame) -> None:
    for system, (marker, shift) in zip(dict.fromkeys(atoms["system"]), MARKERS, strict=False):
        for _, row in atoms[atoms["system"] == system].iterrows():
            panel.errorbar(
                row["budget"] * shift * _aside(row["arm"]), row["change"],
                [[row["change"] - row["low"]], [row["high"] - row["change"]]], color=COLOUR_OF[row["arm"]],
                label=f"{row['arm']}, all atoms, with network: {system}",
                marker=marker, markersize=10, linestyle="", capsize=2,
                markerfacecolor="white" if row["low"] == row["high"] else COLOUR_OF[row["arm"]],
            )  # fmt: skip
