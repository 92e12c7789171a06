"""Statistics of a comparison on records with a known answer, and the page that is made of them."""

import json
import math
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cgal.benchmark.observables import OBSERVABLES
from cgal.errors import BadFile
from study.burn_in import ANNEAL_STEPS, OWN
from study.results import in_shown_units, write_results
from study.statistics import (
    change,
    curve,
    detectable_percent,
    final,
    mean_interval,
    own_change,
    rounds,
    seeds_needed,
    steps_to_reach,
    summarise,
)
from tests.conftest import REPOSITORY

FACTORS = {"base": 1.0, "paper": 0.7, "random": 0.8, "coverage": 0.4}
"""W1 of an arm's last round, relative to the base of the same seed."""


def records(noise: float = 0.0, seeds: int = 5, rounds: int = 3) -> pd.DataFrame:
    generator = np.random.default_rng(1)
    rows = []
    for (arm, factor), seed, mode, metric in product(
        FACTORS.items(), range(1, seeds + 1), ("exact", "paper"), OBSERVABLES
    ):
        last = 0 if arm == "base" else rounds
        for k in range(last + 1):
            share = 1.0 if last == 0 else k / last
            w1 = seed * (1.0 + (factor - 1.0) * share) * math.exp(noise * generator.normal())
            rows.append({"arm": arm, "seed": seed, "round": k, "metric": metric, "mode": mode, "w1": w1, "low": w1,
                         "high": w1, "floor": 0.1, "frames": 250 + 40 * k, "oracle_steps": 1000 * k, "oracle_failed": 1,
                         "exploded_fraction": 0.0, "wall_s": 60.0, "tag": f"{arm}-{seed}/round-{k:03d}"})  # fmt: skip
    return pd.DataFrame(rows)


def test_a_change_is_paired_by_seed() -> None:
    """Seeds differ fivefold, the ratio does not at all: unpaired, the interval would hold anything."""
    shift = change(records(), "coverage", "base", "tica", "exact")
    assert shift == pytest.approx((-60.0, -60.0, -60.0))
    assert change(records(), "base", "coverage", "tica", "exact").value == pytest.approx(150.0)


def test_the_interval_of_a_change_holds_the_truth_at_its_level() -> None:
    held, exact = 0, records().query("metric == 'tica' and mode == 'exact'")
    for trial in range(200):
        generator = np.random.default_rng(trial)
        table = exact.assign(w1=exact["w1"] * np.exp(0.2 * generator.normal(size=len(exact))))
        shift = change(table, "paper", "base", "tica", "exact")
        held += shift.low < -30.0 < shift.high
    assert held / 200 == pytest.approx(0.95, abs=0.05)  # standard error 0.015


def test_the_power_is_the_share_of_tests_that_see_the_effect() -> None:
    """With the seeds that are said to be needed, four of five repetitions of a comparison show it."""
    pilot = records(noise=0.3, seeds=40).query("metric == 'tica' and mode == 'exact'")
    seeds = seeds_needed(pilot, "coverage", "random", "tica", "exact", -30.0)
    assert seeds is not None
    scatter = np.log(1 / 0.7) / 0.3 / math.sqrt(2)
    assert 5 < seeds < 60 / scatter**2
    generator, seen = np.random.default_rng(1), 0
    for _ in range(400):
        logs = np.log(0.7) + 0.3 * math.sqrt(2) * generator.normal(size=seeds)
        seen += mean_interval(logs.tolist()).high < 0
    assert 0.7 < seen / 400 < 0.95
    few = pilot[pilot["seed"] <= seeds]
    assert detectable_percent(few, "coverage", "random", "tica", "exact") == pytest.approx(-30.0, abs=10.0)
    assert math.isnan(detectable_percent(pilot[pilot["seed"] == 1], "coverage", "random", "tica", "exact"))


def test_an_arm_against_its_own_first_round() -> None:
    assert own_change(records(), "coverage", "bond", "exact").value == pytest.approx(-60.0)
    assert own_change(records(), "base", "bond", "exact") == (0.0, 0.0, 0.0)


def test_one_seed_has_no_interval() -> None:
    shift = change(records(seeds=1), "paper", "base", "bond", "paper")
    assert shift.value == pytest.approx(-30.0)
    assert math.isnan(shift.low)
    assert not shift.clear_of(0.0)
    assert mean_interval([2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_only_seeds_that_both_arms_have_are_compared() -> None:
    table = records()
    table = table[(table["arm"] != "paper") | (table["seed"] <= 2)]
    assert change(table, "paper", "base", "tica", "exact").value == pytest.approx(-30.0)
    with pytest.raises(BadFile, match="share no seed"):
        change(table[table["seed"] > 2], "paper", "base", "tica", "exact")


def test_steps_to_reach_a_quality_are_read_between_rounds() -> None:
    line = curve(records(), "coverage", "tica", "exact")
    assert line["oracle_steps"].tolist() == [0, 1000, 2000, 3000]
    start = float(line["w1"].iloc[0])
    assert steps_to_reach(line, start) == 0.0
    assert steps_to_reach(line, 0.7 * start) == pytest.approx(1500.0)
    assert steps_to_reach(line, 0.1 * start) == math.inf


def test_a_campaign_that_closed_early_stays_where_it_closed() -> None:
    found = records()
    short = found[~((found["arm"] == "coverage") & (found["seed"] == 1) & (found["round"] == 3))]
    line, last = curve(short, "coverage", "tica", "exact"), final(short)
    assert line["round"].tolist() == [0, 1, 2, 3]
    closing = last.query("arm == 'coverage' and metric == 'tica' and mode == 'exact'")
    assert line["w1"].iloc[-1] == pytest.approx(closing["w1"].mean())
    assert line["oracle_steps"].iloc[-1] == pytest.approx(closing["oracle_steps"].mean())


def test_every_round_has_its_change_and_its_cost() -> None:
    found = rounds(records()).query("arm == 'coverage' and metric == 'bond' and mode == 'paper'")
    assert found["round"].tolist() == [0, 1, 2, 3]
    assert found["change_percent"].tolist() == pytest.approx([0.0, -20.0, -40.0, -60.0])
    assert found["change_high"].tolist() == pytest.approx([0.0, -20.0, -40.0, -60.0])
    assert found["oracle_steps"].tolist() == [0, 1000, 2000, 3000]
    assert found["wall_s"].tolist() == [60, 120, 180, 240]
    assert set(found["seeds"]) == {5}


def test_an_arm_of_one_seed_is_shown_without_an_interval(tmp_path: Path) -> None:
    found = records(noise=0.05)
    found[(found["arm"] != "coverage") | (found["seed"] == 1)].to_csv(tmp_path / "arms.csv", index=False)
    (tmp_path / "preface.md").write_text("# Results\n")
    write_results(tmp_path)
    assert "(one seed)" in (tmp_path / "results.md").read_text()
    entries = [entry for entry in json.loads((tmp_path / "summary.json").read_text()) if entry["arm"] == "coverage"]
    assert {(entry["seeds"], entry["low"], entry["high"]) for entry in entries} == {(1, None, None)}


def test_final_is_each_campaigns_own_last_round() -> None:
    last = final(records()).groupby("arm")["round"].agg(["min", "max"])
    assert last.loc["base"].tolist() == [0, 0]
    assert last.loc["paper"].tolist() == [3, 3]


def test_the_summary_has_an_entry_for_each_arm_metric_and_mode() -> None:
    entries = summarise(records(noise=0.1))
    assert len(entries) == 4 * len(OBSERVABLES) * 2
    assert set(entries[0]) == {"arm", "seeds", "metric", "mode", "base", "final", "change_percent", "low", "high",
                               "oracle_steps", "exploded_fraction"}  # fmt: skip
    for entry in entries:
        assert entry["low"] <= entry["change_percent"] <= entry["high"]


def test_the_page_tells_the_losing_arms_too(tmp_path: Path) -> None:
    records(noise=0.05).to_csv(tmp_path / "arms.csv", index=False)
    (tmp_path / "preface.md").write_text("# Title\n")
    write_results(tmp_path)
    page = (tmp_path / "results.md").read_text()
    for arm in FACTORS:
        assert f"`{arm}`" in page
    assert "`coverage` against `base`: better: tica" in page
    assert "| `coverage` | yes | yes | none | 0.00% |" in page
    assert "| `random` | no | no | none | 0.00% | never |" in page
    assert (tmp_path / "rounds.csv").is_file()
    assert json.loads((tmp_path / "summary.json").read_text())
    assert {path.name for path in tmp_path.glob("*.png")} == {"w1_exact.png", "w1_paper.png", "changes.png"}


def test_ablations_and_burn_in_have_their_sections(tmp_path: Path) -> None:
    (tmp_path / "preface.md").write_text("# Title\n")
    records().to_csv(tmp_path / "arms.csv", index=False)
    records().replace({"arm": {"base": "default", "paper": "slice"}}).to_csv(tmp_path / "ablations.csv", index=False)
    errors = {f"{what}{end}": 30.0 + shift for what in ("between", "error")
              for end, shift in (("", 0), ("_low", -3), ("_high", 4))}  # fmt: skip
    pd.DataFrame(
        {"start": start, "burn_in_steps": steps, "average_steps": 600, "steps": 600 + steps, "frames": 20, "failed": 0,
         "signal": 150.0} | errors for start, steps in product((OWN, *ANNEAL_STEPS), (0, 150))
    ).to_csv(tmp_path / "burn_in.csv", index=False)  # fmt: skip
    write_results(tmp_path)
    page = (tmp_path / "results.md").read_text()
    assert "| `slice` | 5 | 3000 | 370 | -30 (-30 to -30)" in page
    assert "| own atoms | 150 | 30 (27 to 34) | 30 (27 to 34) | 750 | 0 |" in page
    assert (tmp_path / "burn_in.png").is_file()


def test_missing_records_and_a_missing_base_are_said(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="cgal compare"):
        write_results(tmp_path)
    table = records()
    table[table["arm"] != "base"].to_csv(tmp_path / "arms.csv", index=False)
    with pytest.raises(BadFile, match="'base'"):
        write_results(tmp_path)
    table.drop(columns=["arm", "seed"]).to_csv(tmp_path / "arms.csv", index=False)
    with pytest.raises(BadFile, match="no column arm, seed"):
        write_results(tmp_path)
    (tmp_path / "arms.csv").write_text("")
    with pytest.raises(BadFile, match="no table of records"):
        write_results(tmp_path)


def test_figures_are_in_the_units_of_their_headings() -> None:
    table = records()
    shown = in_shown_units(table)
    np.testing.assert_allclose(shown["w1"] / table["w1"], np.where(table["metric"] == "bond", 1000.0, 1.0))
    assert OBSERVABLES["bond"].heading.endswith("[pm]")


def test_what_the_study_computes_needs_no_workflow_tool() -> None:
    code = "import sys; sys.modules |= dict.fromkeys(('prefect', 'dvc', 'mlflow')); import study.results, study.design"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_arms_from_before_a_metric_show_a_dash_for_it(tmp_path: Path) -> None:
    """Base and `paper` were run before the last metric of the table was measured, the other arms after."""
    found, newest = records(noise=0.05), list(OBSERVABLES)[-1]
    found = found[~(found["arm"].isin(["base", "paper"]) & (found["metric"] == newest))]
    found.to_csv(tmp_path / "arms.csv", index=False)
    (tmp_path / "preface.md").write_text("# Results\n")
    write_results(tmp_path)
    page = (tmp_path / "results.md").read_text()
    (line, _) = [line for line in page.splitlines() if line.startswith("| `coverage` | 5 |")]
    assert line.endswith("| – |")
    assert line.count("–") == 1
    assert f"not measured: {newest}" in page
    entries = json.loads((tmp_path / "summary.json").read_text())
    (entry,) = [e for e in entries if (e["arm"], e["metric"], e["mode"]) == ("random", newest, "exact")]
    assert entry["final"] > 0
    assert entry["base"] is entry["change_percent"] is entry["low"] is None
