"""Arms side by side, for real: campaigns in work trees that share one DVC cache, at the same oracle cost."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from cgal.benchmark.lag import frame_spacing_ps
from cgal.benchmark.observables import OBSERVABLES
from cgal.benchmark.wasserstein import MODES
from cgal.errors import BadFile, BadParams
from cgal.frames import AtomFrames, CGTrajectory
from cgal.params import check_params, merged
from flows.versioning import Repository
from study import cost, twins
from study.bed_data import bed_of, require_physics
from study.compare import make_data
from study.comparison import Comparison, to_run
from study.design import CampaignPlan, Design, load_design
from tests.conftest import REPOSITORY

DESIGN = {
    "common": {"campaign": {"rounds": 6}, "selection": {"frames": 3}},
    "arms": {
        "base": {"campaign": {"rounds": 0}},
        "random": {"selection": {"strategy": "random"}},
        "continued_md": {"campaign": {"rounds": 0, "continued_md_steps": 1}},
        "least_counts": {"campaign": {"rounds": 0, "continued_md_steps": 1, "plain_md": "least_counts"}},
        "broken": {"selection": {"minimum_bond_nm": 0.46}},
    },
}
PICK = 500 + 180
"""Steps that a pick is expected to take: minimisation, warm-up and label."""

BUDGET = 1500
"""Two picks in the first round, and as many after as what minimisation has left pays for."""


def compare(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "flows.cli", "compare", "--root", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}, check=False)


@pytest.fixture
def project(make_project: Callable[..., Path], prefect_address: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_API_URL", prefect_address)
    root = make_project()
    (root / "docs" / "results").mkdir(parents=True)
    (root / "docs" / "results" / "small.yaml").write_text(yaml.safe_dump(DESIGN))
    return root


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_arms_spend_the_same_budget_one_that_fails_harms_no_other_and_the_project_is_as_it_was(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = subprocess.run(["git", "status", "--porcelain"], cwd=project, capture_output=True, text=True).stdout
    wanted = ("--arms", ",".join(DESIGN["arms"]), "--seeds", "1", "--budget", str(BUDGET), "--name", "small")
    done = compare(project, *wanted)
    assert done.returncode == 1
    assert "1 campaigns failed" in done.stderr
    assert "physical" in done.stdout, "why the arm broken failed"
    assert "Traceback" not in done.stdout + done.stderr

    repository = Repository(project)
    tags = {arm: [entry.tag for entry in repository.published(f"small-{arm}-s1")] for arm in DESIGN["arms"]}
    assert tags["broken"] == []
    assert tags["base"] == ["small-base-s1/round-000"]
    closing = repository.read_round_file(tags["random"][-1], "round/selection.json")
    assert json.loads(closing)["closing"].startswith("budget"), "and not for its six rounds"
    assert tags["continued_md"] == ["small-continued_md-s1/round-001"]
    after = subprocess.run(["git", "status", "--porcelain"], cwd=project, capture_output=True, text=True).stdout
    assert set(after.splitlines()) - set(before.splitlines()) <= {"?? docs/results/small.csv"}

    records = pd.read_csv(project / "docs" / "results" / "small.csv")
    assert len(records) == 5 * 2 * (1 + len(tags["random"]) + 2)
    spent = records.groupby("arm")["oracle_steps"].max()
    assert spent["base"] == 0
    assert BUDGET - PICK < spent["random"] <= BUDGET + PICK, "one more only when a frame had to be tried again"
    assert spent["continued_md"] == BUDGET
    assert BUDGET - 3 < spent["least_counts"] <= BUDGET
    shared = [path for path in (project / ".dvc" / "cache").rglob("*") if path.is_file()]
    assert shared
    assert not (project / ".cgal" / "compare" / "small" / "random-s1" / ".dvc" / "cache").exists()

    path, base = project / "docs" / "results" / "small.csv", records.query("arm == 'base'")
    records.query("arm != 'base'").to_csv(path, index=False)
    refused = compare(project, "--arms", "base", "--seeds", "1", "--budget", str(2 * BUDGET), "--name", "small")
    assert f"base-s1 from {BUDGET} to {2 * BUDGET} steps" in refused.stderr, "by its rounds in git, without records"
    elsewhere = base.assign(seed=2, tag=base["tag"].str.replace("-s1/", "-s2/"))
    pd.concat([records.query("arm != 'base'"), elsewhere]).to_csv(path, index=False)
    again = compare(project, "--arms", "base", "--seeds", "2", "--budget", str(BUDGET), "--name", "small")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "1 campaigns" in again.stdout, "seed 2 has records of another machine"
    both = pd.concat([records, elsewhere]).sort_values(list(records), ignore_index=True)
    assert pd.read_csv(path).sort_values(list(records), ignore_index=True).equals(both)

    monkeypatch.setattr(twins, "LENGTH_ps", 1.2)
    monkeypatch.setattr(twins, "REPLICAS", 2)
    rounds = {(entry.arm, entry.number): entry for entry in twins.rounds_of(project, "small")}
    assert len(rounds) == len(set(records["tag"]))
    for key in (("random", 1), ("continued_md", 1)):
        found = pd.DataFrame(twins.measure(rounds[key]))
        assert len(found) == len(twins.KINDS) * len(OBSERVABLES) * len(MODES)
        assert np.isfinite(found["w1"]).all()
        by_kind = found.iloc[0][["label_steps", "failed_steps", "minimisation_steps", "steering_steps"]]
        assert by_kind.sum() == found["oracle_steps"].iloc[0] > 0
        assert by_kind.min() >= 0


def test_a_design_merges_common_and_own_settings_and_gives_each_arm_its_budget() -> None:
    design = Design.model_validate(DESIGN)
    (plan,) = design.campaigns(["random"], 1, [BUDGET])
    random = design.of(plan._replace(seed=7), "x-random-s7")
    assert random["selection"] == {"frames": 3, "strategy": "random"}
    assert random["campaign"] == {"rounds": 6, "name": "x-random-s7", "budget_steps": BUDGET, "cut_steps": []}
    assert random["seed"] == 7
    assert design.of(CampaignPlan("continued_md", 7, BUDGET), "x")["campaign"]["continued_md_steps"] == BUDGET


def test_plain_dynamics_has_a_campaign_for_each_budget_and_the_others_a_cut() -> None:
    design = Design.model_validate(DESIGN | {"budgets": {0.1: 100, 1: 1000, 0.3: 300}})
    plans = design.campaigns(["random", "continued_md"], 2, design.steps())
    assert [plan.name for plan in plans[:4]] == ["random-s1", *(f"continued_md-b{b}-s1" for b in (100, 300, 1000))]
    assert plans[0].cut_steps == (100, 300)
    assert {plan.seed for plan in plans[4:]} == {2}
    assert design.steps(300) == (100, 300)
    with pytest.raises(BadParams, match="--budget"):
        Design.model_validate(DESIGN).steps()


def test_a_campaign_of_plain_dynamics_has_its_budget_in_its_name_whatever_others_are_run() -> None:
    design = Design.model_validate(DESIGN | {"budgets": {0.1: 100, 0.3: 300}})
    (smallest,) = design.campaigns(["continued_md"], 1, design.steps(100))
    assert smallest in design.campaigns(["continued_md"], 1, design.steps())


def test_recorded_campaigns_are_not_run_again_at_a_budget_at_which_they_were_cut() -> None:
    path = REPOSITORY / "docs" / "results" / "arms_350K.yaml"
    design, comparison = load_design(path), Comparison(REPOSITORY, "arms_350K")

    def left(arms: list[str], seeds: int, budget: int | None) -> list[CampaignPlan]:
        return to_run(comparison, design, design.campaigns(arms, seeds, design.steps(budget)))

    assert left(["least_counts", "random", "paper"], 1, 95250) == []
    assert left(["base", "continued_md", "coverage"], 5, 95250) == []
    assert left(["coverage"], 5, None) == []
    with pytest.raises(BadParams, match="coverage-s1 from 952500 to 95000 steps"):
        left(["coverage"], 1, 95000)
    with pytest.raises(BadParams, match="random-s1 from 95250 to 952500 steps"):
        left(["coverage", "random"], 1, None)


def test_a_comparison_that_cannot_be_run_is_refused_before_prefect_starts(tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((REPOSITORY / name).read_text())
    absent = compare(tmp_path, "--name", "small")
    assert "small.yaml: no such file" in absent.stderr
    folder = tmp_path / "docs" / "results"
    folder.mkdir(parents=True)
    (folder / "small.yaml").write_text(yaml.safe_dump(DESIGN))
    rows = "arm,seed,round,metric,mode,w1,tag,budget_steps\nrandom,1,0,tica,exact,1.0,small-random-s1/round-000,1500\n"
    (folder / "small.csv").write_text(rows)
    short = compare(tmp_path, "--name", "small", "--arms", "random", "--seeds", "1", "--budget", "3000")
    assert "random-s1 from 1500 to 3000 steps" in short.stderr
    assert absent.returncode == short.returncode == 1
    assert (folder / "small.csv").read_text() == rows
    assert not list((tmp_path / ".cgal").rglob("server.log"))


def test_contrasts_are_of_arms_and_budgets_that_the_design_has() -> None:
    wanted = {"primary": {"arm": "random", "control": "base", "budget": 0.3}, "budgets": {0.3: 300}}
    assert Design.model_validate(DESIGN | wanted).primary is not None
    for wrong, match in (({"arm": "best"}, "best"), ({"budget": 1.0}, "no budget")):
        with pytest.raises(ValueError, match=match):
            Design.model_validate(DESIGN | wanted | {"primary": wanted["primary"] | wrong})


def test_what_is_wrong_with_a_design_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no such file"):
        load_design(tmp_path / "arms.yaml")
    (tmp_path / "arms.yaml").write_text("amrs: {}")
    with pytest.raises(BadFile, match="arms"):
        load_design(tmp_path / "arms.yaml")
    with pytest.raises(BadParams, match="best"):
        Design.model_validate(DESIGN).campaigns(["base", "best"], 1, [1])


def test_seeds_differ_between_campaigns_of_an_arm_and_agree_between_arms() -> None:
    design = Design.model_validate(DESIGN)
    plans = design.campaigns(list(DESIGN["arms"]), 2, [1])
    seeds = np.array([design.of(plan, "x")["seed"] for plan in plans]).reshape(2, -1)
    assert (seeds == [[1], [2]]).all()


def test_seed_sets_of_a_test_bed_are_drawn_in_its_physics(tmp_path: Path) -> None:
    content = {
        "system": "chignolin, ff96 + OBC2, 350 K",
        "seed_sets": {"count": 2, "runs": 2, "length_ps": 0.2, "equilibration_ps": 0.0, "spacing_ps": 0.04},
        "common": {"protein": "bed", "temperature_K": 350.0},
        "arms": {"base": {}},
    }
    design, comparison = Design.model_validate(content), Comparison(tmp_path, "one")
    comparison.code.mkdir(parents=True)
    (comparison.code / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    plans = design.campaigns(["base"], 3, [1])
    assert make_data(comparison, design, plans) == ("bed",)
    first, second = (AtomFrames.load(comparison.data(number) / "seed.h5") for number in (1, 2))
    assert len(first) == len(second) == 2 * 5
    assert not np.array_equal(first.positions, second.positions)
    assert first.provenance["run_steps"] == 2 * 50
    assert first.provenance["temperature_K"] == 350.0
    assert not comparison.data(3).exists(), "the third seed takes the first set again"
    reference = CGTrajectory.load(comparison.data(1) / "reference.h5")
    assert frame_spacing_ps(reference) == 50.0
    hot = design.model_copy(update={"common": {"protein": "bed", "temperature_K": 450.0}})
    with pytest.raises(BadParams, match="temperature_K 350"):
        make_data(comparison, hot, plans)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "docs" / "results").rglob("a*.yaml")), ids=lambda path: path.stem)
def test_every_committed_design_gives_params_that_are_right(path: Path) -> None:
    design, params = load_design(path), REPOSITORY / "params.yaml"
    content = yaml.safe_load(params.read_text())
    plans = design.campaigns(list(design.arms), 1, design.steps(None if design.budgets else 1000))
    found = [check_params(merged(content, design.of(plan, "x")), params) for plan in plans]
    assert len({(each.temperature_K, each.force_field.model_dump_json()) for each in found}) == 1
    if design.system:
        require_physics(found[0], bed_of(design.system))


def test_the_design_of_the_page_is_right() -> None:
    page, params = (REPOSITORY / "docs" / "how-to" / "compare.md").read_text(), REPOSITORY / "params.yaml"
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    design, content = Design.model_validate(yaml.safe_load(text)), yaml.safe_load(params.read_text())
    for plan in design.campaigns(list(design.arms), 1, design.steps(100000)):
        check_params(merged(content, design.of(plan, "x")), params)


@pytest.mark.parametrize("name", ["arms_350K", "arms_a10"])
def test_a_campaign_has_a_round_at_every_budget_and_costs_what_its_steps_do(name: str) -> None:
    """A label takes as many steps as it may; one all-atom step is said to take a second, all else nothing."""
    design, path = load_design(REPOSITORY / "docs" / "results" / f"{name}.yaml"), REPOSITORY / "params.yaml"
    (plan,) = design.campaigns(["coverage"], 1, design.steps())
    params = check_params(merged(yaml.safe_load(path.read_text()), design.of(plan, "x")), path)
    spent = list(cost._spent(params))
    for steps in design.budgets.values():
        assert any(0.9 * steps < each <= steps for each in spent)
    hours = cost.core_hours(design, plan, params, cost.Speeds(1.0, 0.0, 0.0, 0.0, 0.0))
    assert hours == spent[-1] / 3600
