"""`docs/results/450K/results.md`, its figures, `rounds.csv` and `summary.json`, from records; no campaign is run.

Records of the arms must be there; those of the ablations and of the burn-in add a section each.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cgal.benchmark.observables import HEADLINE, MISSING, OBSERVABLES, in_records
from cgal.errors import BadFile
from cgal.figures import save_figure
from cgal.files import write_json, write_text
from study.arms_page import write_arms
from study.burn_in import RECORDS as BURN_IN
from study.curves_page import write_curves
from study.figures import plot_burn_in, plot_changes, plot_curves
from study.statistics import (
    BASE,
    Interval,
    RESOLVED_percent,
    change,
    curve,
    detectable_percent,
    final,
    own_change,
    read_records,
    rounds,
    seeds_needed,
    steps_to_reach,
    summarise,
)
from study.when_it_pays import write_when_it_pays

__all__ = ["write_results"]

PAPER_ARM = "paper"
"""The published method."""

CONTROLS = ("seed_prior", "random", "continued_md", PAPER_ARM)
"""Arms that the others are set against, beside the base."""

DEFAULT = "default"
"""The arm of the ablations that changes nothing."""

"""Change of the headline W1 in percent that a comparison should be able to see."""

TARGET_CHANGE, TARGET_CLEAR = -50.0, -33.0
"""What the best arm should reach against the base, in percent of the headline W1, and what its interval clears."""

TITLE = OBSERVABLES[HEADLINE].title

WORDS = ("better", "worse", "undecided", "not measured")
"""What is said of a metric of an arm."""

ABLATIONS = "ablations.csv"
PAPER_CHANGE = {"tica": -33.05, "reaction_coordinate": 153.6, "bond": -48.8, "angle": -8.2, "dihedral": 42.7}
"""Bachelor et al. (arXiv:2509.17208), Table 1: change in percent of one run, no interval."""


def write_results(folder: Path) -> None:
    """Write the page: the preface (by hand: what was asked and done), then all that follows from the records.

    `folder` holds `arms.csv` and `preface.md`, and takes the rest. Raises BadFile when there are no records.
    """
    records = load_records(folder / "arms.csv")
    arms = [str(arm) for arm in records["arm"].unique()]
    write_json(folder / "summary.json", summarise(records))
    write_text(folder / "rounds.csv", rounds(records).to_csv(index=False, float_format="%.6g"))
    shown = in_shown_units(records)
    figures = {f"w1_{mode}.png": plot_curves(shown, arms, headings(records), mode) for mode in ("exact", "paper")}
    others = [arm for arm in arms if arm != BASE]
    figures["changes.png"] = plot_changes(records, others, headings(records), "exact")
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    parts = [
        (folder / "preface.md").read_text().rstrip(),
        _changes(records, others),
        _cost(records, others),
        _verdicts(records, others),
        _own_start(records, others),
        _controls(records, others),
        _targets(records, others),
    ]
    if (folder / ABLATIONS).is_file():
        ablations = load_records(folder / ABLATIONS, DEFAULT)
        changed = [str(arm) for arm in ablations["arm"].unique() if arm != DEFAULT]
        save_figure(plot_changes(ablations, changed, headings(ablations), "exact", DEFAULT), folder / "ablations.png")
        parts.append(_ablations(ablations, changed))
    if (folder / BURN_IN).is_file():
        burn_in = pd.read_csv(folder / BURN_IN)
        save_figure(plot_burn_in(burn_in), folder / "burn_in.png")
        parts.append(_burn_in(burn_in))
    write_text(folder / "results.md", "\n\n".join(parts) + "\n")


def load_records(path: Path, base: str = BASE) -> pd.DataFrame:
    """Records of a comparison; raises BadFile when there are none, or none of the arm that others are set against."""
    records = read_records(path)
    if base not in set(records["arm"]):
        raise BadFile(f"{path}: no arm {base!r}, to which changes are relative; run it with 'cgal compare'")
    return records


def headings(records: pd.DataFrame) -> dict[str, str]:
    """Headings of the metrics that the records have."""
    return {name: observable.heading for name, observable in in_records(records["metric"]).items()}


def in_shown_units(records: pd.DataFrame) -> pd.DataFrame:
    """The records with W1 in the units of the headings."""
    scale = records["metric"].map({name: observable.scale for name, observable in OBSERVABLES.items()})
    return records.assign(**{name: records[name] * scale for name in ("w1", "low", "high", "floor")})


def _changes(records: pd.DataFrame, arms: Sequence[str]) -> str:
    lines = ["## Change of each W1 to the base model, in percent, with 95 % intervals over seeds", ""]
    metrics = headings(records)
    for mode in ("exact", "paper"):
        lines += [
            f"Mode `{mode}`:",
            "",
            f"| arm | seeds | {' | '.join(metrics)} |",
            f"|---|---|{'---|' * len(metrics)}",
        ]
        for arm in arms:
            cells = [_percent(change(records, arm, BASE, metric, mode)) for metric in metrics]
            seeds = records.loc[records["arm"] == arm, "seed"].nunique()
            lines.append(f"| `{arm}` | {seeds} | {' | '.join(cells)} |")
        if mode == "paper":
            theirs = " | ".join(f"{PAPER_CHANGE[name]:+.0f}" if name in PAPER_CHANGE else MISSING for name in metrics)
            lines.append(f"| Bachelor et al., explicit solvent, one run | 1 | {theirs} |")
        lines.append("")
    return "\n".join(
        [
            *lines,
            "![W1 against oracle steps](w1_exact.png)",
            "",
            "![changes](changes.png)",
            "",
            "Every round of every arm, in both modes, with intervals and cost, is in [rounds.csv](rounds.csv); "
            "[w1_paper.png](w1_paper.png) shows mode `paper`.",
        ]
    )


def _cost(records: pd.DataFrame, arms: Sequence[str]) -> str:
    last = final(records).query("metric == @HEADLINE and mode == 'exact'")
    lines = [
        "## What it cost",
        "",
        "| arm | closing round | oracle steps | failed picks | replicas lost | wall, minutes |",
        "|---|---|---|---|---|---|",
    ]
    for arm in (BASE, *arms):
        rows = last[last["arm"] == arm]
        wall = records.query("arm == @arm and metric == @HEADLINE and mode == 'exact'").groupby("seed")["wall_s"].sum()
        lines.append(
            f"| `{arm}` | {rows['round'].min()} to {rows['round'].max()} | {rows['oracle_steps'].mean():.0f} | "
            f"{rows['oracle_failed'].mean():.0f} | {rows['exploded_fraction'].mean():.2%} | {wall.mean() / 60:.1f} |"
        )
    return "\n".join(lines)


def _verdicts(records: pd.DataFrame, arms: Sequence[str]) -> str:
    lines = ["## What improved, and what did not", ""]
    pairs = [(arm, to) for to in (BASE, PAPER_ARM) if to in {BASE, *arms} for arm in arms if arm != to]
    for arm, to in pairs:
        words = {metric: _word(change(records, arm, to, metric, "exact")) for metric in headings(records)}
        groups = {word: [m for m, w in words.items() if w == word] for word in WORDS}
        said = "; ".join(f"{word}: {', '.join(metrics)}" for word, metrics in groups.items() if metrics)
        lines.append(f"- `{arm}` against `{to}`: {said}.")
    floor = final(records).query("mode == 'exact'").groupby("metric")["floor"].mean()
    shown = ", ".join(
        f"{observable.heading} {floor[name] * observable.scale:.3g}"
        for name, observable in in_records(records["metric"]).items()
    )
    return "\n".join([*lines, "", f"Floor (one half of the reference against the other): {shown}."])


def _own_start(records: pd.DataFrame, arms: Sequence[str]) -> str:
    metrics = headings(records)
    lines = [
        "## Against each arm's own round 0",
        "",
        "An arm with another force map or loss starts from a different model than the base. This change is what its "
        "rounds have added (mode `exact`, closing round relative to round 0 of the same campaign, in percent, 95 % "
        "intervals over seeds).",
        "",
        f"| arm | {' | '.join(metrics)} |",
        f"|---|{'---|' * len(metrics)}",
    ]
    for arm in arms:
        if records.loc[records["arm"] == arm, "round"].nunique() > 1:
            cells = [_percent(own_change(records, arm, metric, "exact")) for metric in metrics]
            lines.append(f"| `{arm}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _controls(records: pd.DataFrame, arms: Sequence[str]) -> str:
    controls = [arm for arm in CONTROLS if arm in arms]
    lines = [
        "## Is it the acquisition? Arms against the controls",
        "",
        f"Change of the {TITLE} W1 (mode `exact`) in the closing round relative to that of the control, in percent, "
        "with 95 % intervals over the seeds that both have.",
        "",
        f"| arm | {' | '.join(f'`{control}`' for control in controls)} |",
        f"|---|{'---|' * len(controls)}",
    ]
    for arm in arms:
        cells = ["" if arm == to else _percent(change(records, arm, to, HEADLINE, "exact")) for to in controls]
        lines.append(f"| `{arm}` | {' | '.join(cells)} |")
    lines += [
        "",
        f"What these seeds could have shown: the smallest decrease of the {TITLE} W1 with 80 % power (two-sided paired "
        f"t-test at 5 %, scatter as found). In brackets: the number of seeds that {RESOLVED_percent:.0f} % takes.",
        "",
        f"| arm | {' | '.join(f'`{control}`' for control in controls)} |",
        f"|---|{'---|' * len(controls)}",
    ]
    for arm in arms:
        cells = ["" if arm == to else _power(records, arm, to) for to in controls]
        lines.append(f"| `{arm}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _power(records: pd.DataFrame, arm: str, to: str) -> str:
    seen = detectable_percent(records, arm, to, HEADLINE, "exact")
    return (
        MISSING
        if math.isnan(seen)
        else f"{seen:.0f} ({seeds_needed(records, arm, to, HEADLINE, 'exact', RESOLVED_percent)})"
    )


def _targets(records: pd.DataFrame, arms: Sequence[str]) -> str:
    last = final(records).query("metric == @HEADLINE and mode == 'exact'")
    lines = [
        "## The targets",
        "",
        "Mode `exact`, relative to `base`. A metric is worse when its change is above zero; metrics whose interval is "
        f"above zero, too, are in brackets. The last column is the steps after which the mean {TITLE} W1 first reaches "
        f"that of `{PAPER_ARM}`'s closing round, as a share of all that `{PAPER_ARM}` spent.",
        "",
        f"| arm | {TITLE} by half or more | interval clear of {TARGET_CLEAR:.0f} % | metrics worse | "
        "replicas lost in the closing round | steps to `paper` |",
        "|---|---|---|---|---|---|",
    ]
    for arm in arms:
        shifts = {metric: change(records, arm, BASE, metric, "exact") for metric in headings(records)}
        worse = [name if shift.low <= 0 else f"({name})" for name, shift in shifts.items() if shift.value > 0]
        cells = [
            "yes" if shifts[HEADLINE].value <= TARGET_CHANGE else "no",
            "yes" if shifts[HEADLINE].high < TARGET_CLEAR else "no",
            ", ".join(worse) or "none",
            f"{last[last['arm'] == arm]['exploded_fraction'].max():.2%}",
            _share(records, arm) if PAPER_ARM in arms else "",
        ]
        lines.append(f"| `{arm}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(records: pd.DataFrame, arm: str) -> str:
    target, line = (curve(records, each, HEADLINE, "exact") for each in (PAPER_ARM, arm))
    share = steps_to_reach(line, float(target["w1"].iloc[-1])) / float(target["oracle_steps"].iloc[-1])
    return "never" if math.isinf(share) else f"{'at most ' if len(line) == 1 else ''}{share:.0%}"


def _ablations(records: pd.DataFrame, arms: Sequence[str]) -> str:
    last = final(records).query("mode == 'exact'")
    lines = [
        "## Ablations: what each choice does to the default, at the same oracle steps",
        "",
        "Change of each W1 (mode `exact`) in the closing round relative to that of the arm `default`, in percent, with "
        "95 % intervals over the seeds that both have. A seed is missing where the campaign ended in an error. "
        "What each arm changes, the command and its cost are in "
        "[ablations.yaml](ablations.yaml); the conclusions are in "
        "[decision 17](../../decisions/17-what-labels-can-teach.md).",
        "",
        f"| arm | seeds | oracle steps | frames | {' | '.join(headings(records))} |",
        f"|---|---|---|---|{'---|' * len(headings(records))}",
    ]
    for arm in arms:
        rows = last[(last["arm"] == arm) & (last["metric"] == HEADLINE)]
        cells = [_percent(change(records, arm, DEFAULT, metric, "exact")) for metric in headings(records)]
        lines.append(
            f"| `{arm}` | {len(rows)} | {rows['oracle_steps'].mean():.0f} | {rows['frames'].mean():.0f} | "
            f"{' | '.join(cells)} |"
        )
    return "\n".join([*lines, "", "![ablations](ablations.png)"])


def _burn_in(found: pd.DataFrame) -> str:
    lines = [
        "## Local equilibrium: does burn-in suffice?",
        "",
        f"{found['frames'].max()} frames of the seed, whose own atoms are in equilibrium, were labelled twice from "
        "each start (`cgal burn-in`). The table gives root mean square differences in kJ/mol/nm with 95 % intervals "
        f"over frames; the long averages themselves are {found['signal'].max():.0f} kJ/mol/nm.",
        "",
        "| start | burn-in, steps | two labels differ by | off the long average by | steps per label | failed |",
        "|---|---|---|---|---|---|",
    ]
    for row in found.to_dict("records"):
        cells = [f"{row[w]:.0f} ({row[w + '_low']:.0f} to {row[w + '_high']:.0f})" for w in ("between", "error")]
        lines.append(
            f"| {row['start']} | {row['burn_in_steps']} | {' | '.join(cells)} | {row['steps']:.0f} | {row['failed']} |"
        )
    return "\n".join([*lines, "", "![burn-in](burn_in.png)"])


def _word(shift: Interval) -> str:
    if math.isnan(shift.value):
        return "not measured"
    if not shift.clear_of(0.0):
        return "undecided"
    return "better" if shift.value < 0 else "worse"


def _percent(shift: Interval) -> str:
    if math.isnan(shift.value):
        return MISSING
    interval = "one seed" if math.isnan(shift.low) else f"{shift.low:+.0f} to {shift.high:+.0f}"
    return f"{shift.value:+.0f} ({interval})"


if __name__ == "__main__":
    here = Path(__file__).parents[1] / "docs" / "results"
    try:
        write_results(here / "450K")
        write_curves(here)
        write_arms(here, here.parent / "results.md")
        write_when_it_pays(here)
    except BadFile as error:
        sys.exit(f"error: {error}")
    print(here)
