"""Arms of active learning compared over seeds: paired changes with intervals, and what a quality cost in oracle steps.

Records are a table with a row for each arm, seed, round, metric and mode (`study.compare.records` makes it). Arms are
paired by seed: the same seed set, network initialisation and noise up to the first choice in which they differ.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats

from cgal.errors import BadFile

__all__ = [
    "BASE",
    "Interval",
    "RESOLVED_percent",
    "change",
    "curve",
    "detectable_percent",
    "final",
    "mean_interval",
    "own_change",
    "read_records",
    "rounds",
    "sample_size",
    "scatter_interval",
    "seeds_needed",
    "smallest_effect_percent",
    "steps_to_reach",
    "summarise",
]

BASE = "base"
"""The arm without acquisition, to which changes are relative."""

RESOLVED_percent = -30.0
"""The change that the studies were sized to show."""

LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 1000
KEYS = ["arm", "seed", "metric", "mode"]


class Interval(NamedTuple):
    """An estimate with its 95 % interval, which is not a number with fewer than two seeds (nor is it, with none)."""

    value: float
    low: float
    high: float

    def clear_of(self, value: float) -> bool:
        """Whether the whole interval is on one side of a value."""
        return bool(self.high < value or self.low > value)


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean over seeds with Student's interval."""
    sample = np.asarray(values, dtype=float)
    if len(sample) < 2:
        return Interval(*sample, *[float("nan")] * (3 - len(sample)))
    if np.allclose(sample, sample[0], rtol=1e-12, atol=0.0):
        return Interval(*[float(sample[0])] * 3)
    low, high = stats.ttest_1samp(sample, 0.0).confidence_interval(LEVEL)
    return Interval(float(sample.mean()), float(low), float(high))


def read_records(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Records of a comparison; raises BadFile when there are none, or a column is missing."""
    if not path.is_file():
        raise BadFile(f"{path}: no such file; 'cgal compare' makes it")
    try:
        records = pd.read_csv(path)
    except ValueError as error:
        raise BadFile(f"{path}: no table of records ({error}); move it away and run 'cgal compare' again") from error
    if missing := [name for name in (*KEYS, *columns) if name not in records]:
        raise BadFile(
            f"{path}: no column {', '.join(missing)}, so this is no file of records, or an older version made it; "
            "move it away and run 'cgal compare' again, which makes records of all campaigns that are in git"
        )
    return records


def scatter_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the standard deviation that normal values were drawn with, by chi squared."""
    freedom = len(values) - 1
    squares = float(np.var(values, ddof=1)) * freedom
    low, high = stats.chi2.interval(LEVEL, freedom)
    return float(np.sqrt(squares / high)), float(np.sqrt(squares / low))


def final(records: pd.DataFrame) -> pd.DataFrame:
    """Rows of each campaign's last round."""
    last = records.groupby(["arm", "seed"])["round"].transform("max")
    return records[records["round"] == last]


def change(records: pd.DataFrame, arm: str, to: str, metric: str, mode: str) -> Interval:
    """Relative change [%] of W1 in the last round of an arm to that of another, over the seeds that both have.

    Ratios are averaged by their logarithms, seed by seed, with Student's interval there: a halving and a doubling
    cancel. Not a number where one of the arms was run before the metric was measured. Raises BadFile when the arms
    share no seed.
    """
    return _relative(_ratios(records, arm, to, metric, mode))


def own_change(records: pd.DataFrame, arm: str, metric: str, mode: str) -> Interval:
    """Relative change [%] of W1 from an arm's first round to its last, as `change`; zero for an arm of one round."""
    rows = records.query("arm == @arm and metric == @metric and mode == @mode").sort_values("round")
    w1 = rows.groupby("seed")["w1"]
    return _relative((w1.last() / w1.first()).dropna())


def detectable_percent(records: pd.DataFrame, arm: str, to: str, metric: str, mode: str) -> float:
    """Smallest decrease [%] of W1 that these seeds would have shown with 80 % power, by the scatter that they have.

    See `smallest_effect_percent`, of the log ratios of `change`.
    """
    return smallest_effect_percent(np.log(_ratios(records, arm, to, metric, mode)).tolist())


def seeds_needed(records: pd.DataFrame, arm: str, to: str, metric: str, mode: str, percent: float) -> int | None:
    """Seeds that show a change of W1 by so many percent with 80 % power; None when a thousand are too few.

    The scatter is that of the log ratios in the records; None, too, when they have none, or less than two seeds.
    """
    return sample_size(np.log(_ratios(records, arm, to, metric, mode)).tolist(), percent)


def smallest_effect_percent(logs: Sequence[float]) -> float:
    """Smallest decrease [%] that a two-sided paired t-test at 5 % would have seen in log ratios with 80 % power.

    Not a number with fewer than two of them.
    """
    if len(logs) < 2:
        return float("nan")
    shift = optimize.brentq(lambda shift: _power(shift, len(logs)) - POWER, 0.0, 100.0)
    return float(100 * np.expm1(-shift * np.std(logs, ddof=1) / np.sqrt(len(logs))))


def sample_size(logs: Sequence[float], percent: float) -> int | None:
    """How many log ratios of such scatter show a change by so many percent with 80 % power; None: over a thousand."""
    if len(logs) < 2 or not np.std(logs, ddof=1):
        return None
    size = abs(np.log1p(percent / 100)) / np.std(logs, ddof=1)
    enough = (seeds for seeds in range(2, MOST_SEEDS + 1) if _power(size * np.sqrt(seeds), seeds) >= POWER)
    return next(enough, None)


def _power(shift: float, seeds: int) -> float:
    """Chance of a two-sided t-test to see a mean that is `shift` standard errors from zero."""
    bound = stats.t.ppf((1 + LEVEL) / 2, seeds - 1)
    return float(stats.nct.sf(bound, seeds - 1, shift))


def _ratios(records: pd.DataFrame, arm: str, to: str, metric: str, mode: str) -> pd.Series:
    """W1 of an arm's last round over that of another, by seed."""
    last = final(records)
    seeds, others = (set(last.loc[last["arm"] == each, "seed"]) for each in (arm, to))
    if not seeds & others:
        raise BadFile(f"records: arms {arm} and {to} share no seed; run both with 'cgal compare'")
    rows = last.query("metric == @metric and mode == @mode").pivot(index="seed", columns="arm", values="w1")
    rows = rows.reindex(columns=list({arm, to}))
    return (rows[arm] / rows[to]).dropna()


def _relative(ratios: pd.Series) -> Interval:
    logs = np.log(ratios)
    return Interval(*(100.0 * (np.exp(value) - 1.0) for value in mean_interval(logs.tolist())))


def curve(records: pd.DataFrame, arm: str, metric: str, mode: str) -> pd.DataFrame:
    """W1 of an arm by round: `oracle_steps` (mean over seeds), `w1`, `low`, `high`.

    A campaign that closed earlier than others stays where it closed, so the last row is that of all closing rounds.
    """
    rows = records.query("arm == @arm and metric == @metric and mode == @mode")
    table = rows.pivot(index="round", columns="seed", values=["w1", "oracle_steps"]).ffill()
    found = [(index, row["oracle_steps"].mean(), *mean_interval(row["w1"].tolist())) for index, row in table.iterrows()]
    return pd.DataFrame(found, columns=["round", "oracle_steps", "w1", "low", "high"])


def rounds(records: pd.DataFrame) -> pd.DataFrame:
    """Every arm round by round: W1, its change [%] to the base of the same seeds, with intervals, and the cost so far.

    One row for each arm, metric, mode and round; campaigns that closed earlier stay where they closed, as in `curve`.
    Raises BadFile when an arm shares no seed with the base.
    """
    ends = final(records).query("arm == @BASE")
    found: list[dict[str, object]] = []
    for names, rows in records.groupby(["arm", "metric", "mode"], sort=False):
        arm, metric, mode = map(str, names)
        change(records, arm, BASE, metric, mode)
        base = ends.query("metric == @metric and mode == @mode").set_index("seed")["w1"]
        columns = ["w1", "oracle_steps", "exploded_fraction"]
        table = rows.pivot(index="round", columns="seed", values=columns).ffill()
        wall = rows.pivot(index="round", columns="seed", values="wall_s").fillna(0.0).cumsum()
        for (index, row), spent in zip(table.iterrows(), wall.mean(axis=1), strict=True):
            w1 = row["w1"].dropna()
            shift = _relative((w1 / base).dropna())
            found.append(
                {"arm": arm, "metric": metric, "mode": mode, "round": int(str(index)), "seeds": len(w1)}
                | dict(zip(("w1", "low", "high"), mean_interval(w1.tolist()), strict=True))
                | dict(zip(("change_percent", "change_low", "change_high"), shift, strict=True))
                | {name: row[name].mean() for name in ("oracle_steps", "exploded_fraction")}
                | {"wall_s": spent}
            )
    return pd.DataFrame(found)


def steps_to_reach(curve: pd.DataFrame, w1: float) -> float:
    """Oracle steps at which an arm's mean W1 first is as low as this, straight between rounds; infinite if never."""
    steps, values = curve["oracle_steps"].to_numpy(), curve["w1"].to_numpy()
    reached = np.flatnonzero(values <= w1)
    if not len(reached):
        return float("inf")
    after = int(reached[0])
    if after == 0:
        return float(steps[0])
    share = (values[after - 1] - w1) / (values[after - 1] - values[after])
    return float(steps[after - 1] + share * (steps[after] - steps[after - 1]))


def summarise(records: pd.DataFrame) -> list[dict[str, float | int | str | None]]:
    """One entry for each arm, metric and mode: base and final W1 (means over seeds), change to base [%] with interval.

    `oracle_steps` and `exploded_fraction` are means over seeds in the last round. None stands for what is not there:
    the interval (`low`, `high`) of an arm of one seed, a change to a base from before the metric was measured.
    """
    last = final(records)
    entries: list[dict[str, float | int | str | None]] = []
    for names, rows in last.groupby(["arm", "metric", "mode"], sort=False):
        arm, metric, mode = map(str, names)
        shift = change(records, arm, BASE, metric, mode)
        base = last.query("arm == @BASE and metric == @metric and mode == @mode and seed in @rows.seed")
        entry: dict[str, float | int | str] = {
            "arm": arm,
            "seeds": len(rows),
            "metric": metric,
            "mode": mode,
            "base": float(base["w1"].mean()),
            "final": float(rows["w1"].mean()),
            "change_percent": shift.value,
            "low": shift.low,
            "high": shift.high,
            "oracle_steps": int(rows["oracle_steps"].mean()),
            "exploded_fraction": float(rows["exploded_fraction"].mean()),
        }
        entries.append({key: _json(value) if isinstance(value, float) else value for key, value in entry.items()})
    return entries


def _json(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 6)
