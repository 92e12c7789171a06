"""What a comparison on a test bed says: every arm at every budget against its twins and controls, and its contrasts.

Rows are those of `study.twins`. An arm stands at a budget with the round that has spent most without exceeding it (by
more than `TOLERANCE`). Campaigns are paired by seed set and seed. Those of one seed set share its frames, so that log
ratios are averaged within a set first, and Student's intervals and tests are over sets.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from cgal.benchmark.observables import HEADLINE
from study.design import Contrast, Design
from study.statistics import BASE, Interval, RESOLVED_percent, mean_interval, sample_size, smallest_effect_percent

__all__ = [
    "CONTINUED",
    "FEWEST_SETS",
    "at_budget",
    "contrast_logs",
    "contrasts",
    "holm",
    "log_ratios",
    "summarise_budgets",
    "to_common_starts",
]

TOLERANCE = 0.1
"""A label that had to be tried again may spend more than it should."""

CONTINUED = "continued_md"
PAIR = ["seed_set", "seed"]
LEARNING = ("mapping", "training", "network", "prior")
"""Sections of `params.yaml` that say what a model makes of its frames."""

STEPS = ("label_steps", "failed_steps", "minimisation_steps", "steering_steps", "seed_steps")
LARGEST_P = 1.0
FEWEST_SETS = 3
"""That have an interval, a p value or a power worth showing: two have a scatter of one degree of freedom."""


def at_budget(twins: pd.DataFrame, arm: str, steps: int) -> pd.DataFrame:
    """Rows of an arm at a budget of so many all-atom steps; empty when no campaign of it went that far.

    Where a campaign closed earlier, for want of a frame worth a label, its closing round stands.
    """
    rows = twins.query("arm == @arm and budget_steps >= @steps and oracle_steps <= @steps * (1 + @TOLERANCE)")
    spent = rows.groupby(PAIR)["round"].transform("max")
    return rows[rows["round"] == spent]


def own_base(twins: pd.DataFrame, arm: str, design: Design) -> pd.DataFrame:
    """Round 0 of the arm's campaigns; of plain dynamics, which has none, the base of the same seed.

    No row when an arm of plain dynamics learns from its frames otherwise than the base does.
    """
    first = twins[twins["round"] == 0]
    own = first[first["arm"] == arm]
    if len(own):
        return own
    one, other = ({name: design.arms.get(each, {}).get(name) for name in LEARNING} for each in (arm, BASE))
    return first[(first["arm"] == BASE) & (one == other)]


def log_ratios(
    rows: pd.DataFrame, to: pd.DataFrame, metric: str, mode: str, kind: str = "model", of: str = "model"
) -> list[float]:
    """Logarithm of W1 of one kind over that of another, paired by seed set and seed, its mean in each set."""
    logs = np.log((_w1(rows, of, metric, mode) / _w1(to, kind, metric, mode)).dropna())
    found: list[float] = logs.groupby("seed_set").mean().tolist()
    return found


def _w1(rows: pd.DataFrame, kind: str, metric: str, mode: str) -> pd.Series:
    chosen = (rows["kind"] == kind) & (rows["metric"] == metric) & (rows["mode"] == mode)
    return rows.loc[chosen, [*PAIR, "w1"]].set_index(PAIR)["w1"]


def _percent(logs: Sequence[float]) -> Interval:
    return Interval(*(float(100 * np.expm1(value)) for value in mean_interval(logs)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number (Holm, Scand. J. Stat. 6, 65, 1979): they hold for the family as a whole.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values)
    stepped = np.maximum.accumulate(np.arange(len(values), 0, -1) * values[order])
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(stepped, LARGEST_P)
    return [float(value) for value in corrected]


def contrasts(twins: pd.DataFrame, design: Design) -> list[dict[str, Any]]:
    """Change of the headline W1 (mode exact) in each contrast that the design declares and the rows have.

    The primary one keeps its p value, those of the secondary ones are corrected for the number that was declared.
    `detectable_percent` is the smallest decrease that so many sets would have shown with 80 % power, `sets_for_30` how
    many sets a decrease by 30 % takes.
    """
    entries = []
    for contrast in design.contrasts:
        logs = contrast_logs(twins, design, contrast)
        p = float(stats.ttest_1samp(logs, 0.0).pvalue) if len(logs) > 1 else float("nan")
        entries.append(
            contrast.model_dump()
            | {"primary": contrast == design.primary, "seed_sets": len(logs), "p": p}
            | _named("change", _percent(logs))
            | {"detectable_percent": smallest_effect_percent(logs), "sets_for_30": sample_size(logs, RESOLVED_percent)}
        )
    secondary = [entry for entry in entries if not entry["primary"]]
    counted = [LARGEST_P if np.isnan(entry["p"]) else entry["p"] for entry in secondary]
    for entry, corrected in zip(secondary, holm(counted), strict=True):
        entry["p"] = corrected if not np.isnan(entry["p"]) else entry["p"]
    return [_json(entry) for entry in entries]


def contrast_logs(twins: pd.DataFrame, design: Design, contrast: Contrast) -> list[float]:
    """Log ratios of a contrast, one a seed set."""
    steps = design.budgets[contrast.budget]
    one, other = (at_budget(twins, arm, steps) for arm in (contrast.arm, contrast.control))
    return log_ratios(one, other, HEADLINE, "exact")


def to_common_starts(records: pd.DataFrame, twins: pd.DataFrame, arm: str, steps: int) -> dict[str, Any]:
    """Change [%] of the headline W1 (mode exact) of an arm's models, from their campaigns' own simulations to others.

    `records` are of the former, from training frames, `twins` of longer ones from common starts.
    """
    logs = log_ratios(at_budget(twins, arm, steps), at_budget(records, arm, steps), HEADLINE, "exact")
    return _json({"seed_sets": len(logs)} | _named("change", _percent(logs)))


def summarise_budgets(twins: pd.DataFrame, design: Design) -> list[dict[str, Any]]:
    """An entry for each arm, budget, metric and mode: W1, its changes [%], what it cost; means over campaigns.

    `change_to_base` is to the arm's own round 0, `change_to_linear` to prior and linear rung without the network,
    `change_to_prior` to the prior alone, `change_to_raw` to the frames that all of them are made of,
    `change_to_continued` to continued dynamics at the same budget; each with `_low` and `_high`. `raw_to_continued` and
    `prior_to_continued` set its frames, and the prior alone, against those of continued dynamics. `without_network` and
    `without_rung` count campaigns whose held-out runs gave the network, or the linear rung, no weight.
    """
    entries = []
    for arm in dict.fromkeys(twins["arm"]):
        base = own_base(twins, str(arm), design)
        for budget, steps in sorted(design.budgets.items()):
            rows, control = at_budget(twins, str(arm), steps), at_budget(twins, CONTINUED, steps)
            compared = {
                "change_to_base": (base, "model", "model"),
                "change_to_linear": (rows, "linear", "model"),
                "change_to_prior": (rows, "prior", "model"),
                "change_to_raw": (rows, "raw", "model"),
                "change_to_continued": (control, "model", "model"),
                "prior_to_continued": (control, "prior", "prior"),
                "raw_to_continued": (control, "raw", "raw"),
            }
            for (metric, mode), found in rows.groupby(["metric", "mode"], sort=False):
                entry = {"system": design.system, "arm": arm, "budget": budget, "metric": metric, "mode": mode}
                entry |= _costs(found.query("kind == 'model'")) | _silent(found) | _values(found)
                for name, (to, kind, of) in compared.items():
                    entry |= _named(name, _percent(log_ratios(rows, to, str(metric), str(mode), kind, of)))
                entries.append(entry)
    return [_json(entry) for entry in entries]


def _costs(models: pd.DataFrame) -> dict[str, Any]:
    counts = {"seeds": models["seed"].nunique(), "seed_sets": models["seed_set"].nunique()}
    means = {name: float(models[name].mean()) for name in (*STEPS, "oracle_steps", "frames", "exploded_fraction")}
    return counts | means | {"most_exploded_fraction": float(models["exploded_fraction"].max())}


def _silent(rows: pd.DataFrame) -> dict[str, int]:
    """Campaigns of which two kinds are the same model, to the last digit."""
    wide = rows.pivot(index=PAIR, columns="kind", values="w1").reindex(columns=["model", "linear", "prior"])
    return {
        "without_network": int((wide["model"] == wide["linear"]).sum()),
        "without_rung": int((wide["linear"] == wide["prior"]).sum()),
    }


def _values(rows: pd.DataFrame) -> dict[str, float]:
    found: dict[str, float] = {"floor": float(rows["floor"].mean())}
    for kind, values in rows.groupby("kind"):
        found |= _named(
            "w1" if kind == "model" else f"w1_{kind}", mean_interval(values.groupby("seed_set")["w1"].mean().tolist())
        )
    return found


def _named(name: str, interval: Interval) -> dict[str, float]:
    values = interval if len(interval) else (float("nan"),) * 3
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _json(entry: dict[str, Any]) -> dict[str, Any]:
    """NaN, which JSON does not know, as null; other numbers with six digits."""
    return {
        key: (None if np.isnan(value) else float(f"{value:.6g}")) if isinstance(value, float) else value
        for key, value in entry.items()
    }
