"""Arms side by side, for real: campaigns in work trees that share one DVC cache, at the same oracle cost."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from cgal.errors import BadFile, BadParams
from flows.versioning import Repository
from study.design import Design, load_design

DESIGN = {
    "common": {"campaign": {"rounds": 6}, "selection": {"frames": 3}},
    "arms": {
        "base": {"campaign": {"rounds": 0}},
        "random": {"selection": {"strategy": "random"}},
        "continued_md": {"campaign": {"rounds": 0, "continued_md_steps": 1}},
        "least_counts": {"campaign": {"rounds": 0, "continued_md_steps": 1, "plain_md": "least_counts"}},
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
def project(make_project: Callable[..., Path]) -> Path:
    root = make_project()
    (root / "docs" / "results").mkdir(parents=True)
    (root / "docs" / "results" / "arms.yaml").write_text(yaml.safe_dump(DESIGN))
    return root


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_arms_spend_the_same_budget_and_leave_the_project_as_it_was(project: Path) -> None:
    before = subprocess.run(["git", "status", "--porcelain"], cwd=project, capture_output=True, text=True).stdout
    wanted = ("--arms", ",".join(DESIGN["arms"]), "--seeds", "1", "--budget", str(BUDGET), "--name", "small")
    done = compare(project, *wanted)
    assert done.returncode == 0, done.stdout + done.stderr

    repository = Repository(project)
    tags = {arm: [entry.tag for entry in repository.published(f"small-{arm}-s1")] for arm in DESIGN["arms"]}
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

    again = compare(project, *wanted)
    assert again.returncode == 0, again.stdout + again.stderr
    assert pd.read_csv(project / "docs" / "results" / "small.csv").equals(records), "complete campaigns ran again"


@pytest.mark.slow
def test_a_campaign_that_fails_is_told_and_harms_no_other(project: Path) -> None:
    design = DESIGN | {"arms": DESIGN["arms"] | {"broken": {"selection": {"minimum_bond_nm": 0.46}}}}
    (project / "docs" / "results" / "arms.yaml").write_text(yaml.safe_dump(design))
    done = compare(project, "--arms", "broken,base", "--seeds", "1", "--budget", str(BUDGET), "--name", "small")
    assert done.returncode == 1
    assert "1 campaigns failed" in done.stderr
    assert "physical" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert set(pd.read_csv(project / "docs" / "results" / "small.csv")["arm"]) >= {"base"}


def test_a_design_merges_common_and_own_settings_and_gives_each_arm_its_budget() -> None:
    design = Design.model_validate(DESIGN)
    random = design.of("random", BUDGET, 7, "x-random-s7")
    assert random["selection"] == {"frames": 3, "strategy": "random"}
    assert random["campaign"] == {"rounds": 6, "name": "x-random-s7", "budget_steps": BUDGET}
    assert random["seed"] == 7
    assert design.of("continued_md", BUDGET, 7, "x")["campaign"]["continued_md_steps"] == BUDGET


def test_what_is_wrong_with_a_design_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no such file"):
        load_design(tmp_path / "arms.yaml")
    (tmp_path / "arms.yaml").write_text("amrs: {}")
    with pytest.raises(BadFile, match="arms"):
        load_design(tmp_path / "arms.yaml")
    with pytest.raises(BadParams, match="best"):
        Design.model_validate(DESIGN).require(["base", "best"])


def test_seeds_differ_between_campaigns_of_an_arm_and_agree_between_arms() -> None:
    design = Design.model_validate(DESIGN)
    seeds = np.array([[design.of(arm, 1, seed, "x")["seed"] for arm in DESIGN["arms"]] for seed in (1, 2)])
    assert (seeds == [[1], [2]]).all()
