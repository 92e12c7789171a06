"""What a comparison on a test bed says: budgets, twins, contrasts, on rows with a known answer."""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from cgal.benchmark.observables import OBSERVABLES
from cgal.errors import BadFile
from study.arms_page import write_arms
from study.design import Design
from study.statistics import mean_interval
from study.summary import at_budget, contrasts, holm, log_ratios, summarise_budgets, to_common_starts

BUDGETS = {0.1: 100, 0.3: 300}
DESIGN = Design.model_validate(
    {
        "system": "somewhere",
        "seed_sets": {"count": 4},
        "budgets": BUDGETS,
        "primary": {"arm": "coverage", "control": "continued_md", "budget": 0.3},
        "secondary": [{"arm": "random", "control": "continued_md", "budget": budget} for budget in BUDGETS],
        "arms": {"base": {}, "continued_md": {}, "coverage": {}, "random": {}},
    }
)
FACTORS = {"base": 1.0, "continued_md": 0.8, "coverage": 0.4, "random": 0.8}
"""W1 of a model at the last budget, in units of its seed; half way there at the first."""


def twins(noise: float = 0.0, seeds: int = 8, of_a_set: float = 0.0) -> pd.DataFrame:
    generator, rows = np.random.default_rng(1), []
    for (arm, factor), seed in product(FACTORS.items(), range(1, seeds + 1)):
        seed_set = DESIGN.seed_set(seed)
        common = math.exp(of_a_set * np.random.default_rng([len(arm), seed_set]).normal())
        for k, spent in enumerate([0] if arm == "base" else [0, 95, 305]):
            if arm == "continued_md" and not k:
                continue
            share = (1.0, (1 + factor) / 2, factor)[k]
            w1 = seed * share * (common if k else 1.0) * math.exp(noise * generator.normal())
            budget = [100, 300][k - 1] if arm == "continued_md" else 300
            kinds = {"model": 1.0, "linear": 1.25, "prior": 2.0, "raw": 0.5}
            rows += [
                {"arm": arm, "seed": seed, "seed_set": seed_set, "budget_steps": budget, "round": k, "frames": 10,
                 "oracle_steps": spent, "label_steps": spent, "failed_steps": 0, "minimisation_steps": 0,
                 "steering_steps": 0, "seed_steps": 50, "tag": f"{arm}-b{budget}-s{seed}/{k}", "kind": kind,
                 "exploded_fraction": 0.0, "wall_s": 1.0, "metric": metric, "mode": mode, "w1": w1 * times,
                 "floor": 0.1}
                for (kind, times), metric, mode in product(kinds.items(), OBSERVABLES, ("exact", "paper"))
            ]  # fmt: skip
    return pd.DataFrame(rows)


def test_an_arm_stands_at_a_budget_with_the_last_round_that_it_paid_for() -> None:
    """5 % over is what a second try of a label costs; plain dynamics has a campaign for each budget."""
    rows = twins()
    assert set(at_budget(rows, "coverage", 100)["round"]) == {1}
    assert set(at_budget(rows, "coverage", 300)["round"]) == {2}
    assert set(at_budget(rows, "continued_md", 300)["budget_steps"]) == {300}
    lost = rows.query("arm != 'continued_md' or budget_steps == 100")
    assert at_budget(lost, "continued_md", 300).empty, "a campaign that failed has no smaller one in its place"
    assert len(at_budget(lost, "coverage", 200)) == 8 * rows["kind"].nunique() * len(OBSERVABLES) * 2


def test_changes_are_to_the_own_base_the_prior_the_frames_and_continued_dynamics() -> None:
    entries = summarise_budgets(twins(), DESIGN)
    assert len(entries) == 4 * 2 * len(OBSERVABLES) * 2
    found = {(e["arm"], e["budget"]): e for e in entries if e["metric"] == "tica" and e["mode"] == "exact"}
    coverage = found["coverage", 0.3]
    expected = {"base": -60.0, "linear": -20.0, "prior": -50.0, "raw": 100.0, "continued": -50.0}
    for to, percent in expected.items():
        assert coverage[f"change_to_{to}"] == pytest.approx(percent)
        assert coverage[f"change_to_{to}_low"] == pytest.approx(percent)
    assert (coverage["seeds"], coverage["seed_sets"], coverage["seed_steps"]) == (8, 4, 50)
    assert found["continued_md", 0.1]["change_to_base"] == pytest.approx(-10.0)
    assert found["base", 0.3]["change_to_base"] == pytest.approx(0.0)
    json.dumps(entries, allow_nan=False)


def test_plain_dynamics_that_learns_otherwise_than_the_base_has_no_base() -> None:
    """Its change would be that of the objective as well."""
    arms = DESIGN.arms | {"continued_md": {"training": {"objective": "relative_entropy"}}}
    entries = summarise_budgets(twins(), DESIGN.model_copy(update={"arms": arms}))
    (found,) = [
        e for e in entries if (e["arm"], e["budget"], e["metric"], e["mode"]) == ("continued_md", 0.1, "tica", "exact")
    ]
    assert found["change_to_base"] is None
    assert found["change_to_prior"] is not None


def test_seeds_of_one_set_count_once() -> None:
    """Sets scatter and seeds do not: with one ratio a seed the interval would be far too narrow."""
    rows = twins(of_a_set=0.3)
    one, other = at_budget(rows, "coverage", 300), at_budget(rows, "continued_md", 300)
    assert len(log_ratios(one, other, "tica", "exact")) == 4


def test_a_model_that_holds_only_its_own_starts_is_further_from_the_truth_from_others() -> None:
    """Own simulations with the same W1 but for continued dynamics, where it is half as large."""
    from_common = twins(seeds=4)
    own = from_common.query("kind == 'model'").copy()
    own.loc[own["arm"] == "continued_md", "w1"] /= 2
    assert to_common_starts(own, from_common, "coverage", 300)["change"] == pytest.approx(0.0, abs=1e-9)
    assert to_common_starts(own, from_common, "continued_md", 300)["change"] == pytest.approx(100.0)


def test_intervals_over_sets_hold_the_truth_at_their_level() -> None:
    held = 0
    for trial in range(300):
        generator = np.random.default_rng(trial)
        seeds = np.log(0.5) + np.repeat(0.3 * generator.normal(size=4), 3) + 0.1 * generator.normal(size=12)
        interval = mean_interval(seeds.reshape(4, 3).mean(axis=1).tolist())
        held += interval.low < np.log(0.5) < interval.high
    assert held / 300 == pytest.approx(0.95, abs=0.04)  # standard error 0.013


def test_secondary_contrasts_are_corrected_for_their_number_and_the_primary_is_not() -> None:
    rows = twins(noise=0.2)
    primary, *secondary = contrasts(rows, DESIGN)
    assert primary["primary"]
    assert primary["change"] == pytest.approx(-50.0, abs=20.0)
    assert primary["p"] < 0.05
    assert primary["seed_sets"] == 4
    assert [entry["primary"] for entry in secondary] == [False, False]
    alone = contrasts(rows, DESIGN.model_copy(update={"secondary": DESIGN.secondary[1:]}))[1]
    assert secondary[1]["p"] >= alone["p"]
    assert contrasts(rows[rows["arm"] != "random"], DESIGN)[1]["p"] is None, "not run yet"


def test_holm_keeps_the_family_wise_error() -> None:
    """Of ten true hypotheses the chance that any is rejected is 5 %; standard error 0.005."""
    generator = np.random.default_rng(1)
    rejected = sum(min(holm(generator.uniform(size=10).tolist())) < 0.05 for _ in range(2000))
    assert rejected / 2000 == pytest.approx(0.05, abs=0.015)
    assert holm([]) == []


def test_the_page_tells_every_comparison_that_has_rows(tmp_path: Path) -> None:
    (tmp_path / "preface.md").write_text("# Title\n")
    write_arms(tmp_path, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == "# Title\n"
    (tmp_path / "bed.yaml").write_text(yaml.safe_dump(DESIGN.model_dump(mode="json")))
    write_arms(tmp_path, tmp_path / "page.md")
    assert "No arm has been run on it." in (tmp_path / "page.md").read_text()
    twins(seeds=1).to_csv(tmp_path / "bed_pilot_twins.csv", index=False)
    write_arms(tmp_path, tmp_path / "page.md")
    assert "**The pilot** has 1 seeds" in (tmp_path / "page.md").read_text()
    twins(noise=0.05, seeds=4).to_csv(tmp_path / "bed_pilot_twins.csv", index=False)
    write_arms(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "**The pilot**, 4 seeds" in page
    assert "Its own change is -5" in page or "Its own change is -4" in page
    twins(noise=0.05).to_csv(tmp_path / "bed_twins.csv", index=False)
    with pytest.raises(BadFile, match=r"bed\.csv: no such file"):
        write_arms(tmp_path, tmp_path / "page.md")
    made = twins().assign(code=lambda rows: rows["seed_set"].map(lambda number: f"{'ab'[number % 2] * 40} (clean)"))
    made.to_csv(tmp_path / "bed.csv", index=False)
    write_arms(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| **primary** `coverage` against `continued_md` | 0.3 | 4 |" in page
    assert "| `coverage` | 0.1 | 8 (4) |" in page
    assert "**Unfinished.**" not in page
    primary = page.partition("**The primary contrast**")[2].partition("\n")[0]
    assert "4 seed sets" in primary
    assert "outside of the interval" not in primary, "it is a decrease by a half"
    arms = ", ".join(f"`{arm}`" for arm in made["arm"].unique())
    assert f"(arms: seed sets): bbbbbbb ({arms}: 1, 3); aaaaaaa ({arms}: 2, 4)." in page
    assert "| `coverage` below `continued_md` by 30 %, at 0.3 | -5" in page
    assert "| model of `coverage` below its raw frames, at 0.3 | +100 (+100 to +100) % | excluded |" in page
    both = page.partition("**Two measurements of the same models.**")[2].partition("\n\n**")[0]
    assert "| `coverage` against `continued_md` | 0.3 | -4" in both or "| 0.3 | -5" in both
    assert "| `base` | 0.1 | 8 (4) |" in page
    assert "| same |" in page, "continued dynamics is its own control"
    assert "0 of 8 | 0 of 8 |" in page, "no network is silent"
    assert (tmp_path / "bed.png").is_file()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["contrasts"]) == 3
    assert {entry["system"] for entry in summary["budgets"]} == {"somewhere"}
    twins(noise=0.05).query("seed_set != 1 and arm != 'random'").to_csv(tmp_path / "bed_twins.csv", index=False)
    write_arms(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "There are, of `base`, `continued_md`, `coverage` 3 seed sets up to 0.3; of `random` none." in page
    assert page.count("no verdict") == 1, "fewer steps than an arm that has no rows"
