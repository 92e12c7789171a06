"""A whole campaign under a real Prefect server: two acquisition rounds and the closing one."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import mdtraj
import pytest
import yaml

from cgal.all_atom.oracle import OracleResult
from cgal.benchmark.observables import OBSERVABLES
from cgal.dataset import StoredAtoms, load_manifest
from cgal.files import sha256
from cgal.potential.checkpoint import load_checkpoint
from flows.campaign.active_learning import active_learning
from flows.campaign.opening import change_params
from flows.campaign.records import campaign_rounds, round_record
from flows.protein.seed import SeedRuns, make_seed
from flows.versioning import Repository
from flows.workspace import Workspace
from tests.conftest import REPOSITORY

PARAMS = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
METHODS = {
    "mapping": PARAMS["mapping"],
    "training": {"bond_weight": PARAMS["training"]["bond_weight"], "warm_start": PARAMS["training"]["warm_start"]},
    "selection": {"strategy": PARAMS["selection"]["strategy"], "novel_nm": 0.05, "distinct_nm": 0.03},
    "backmapping": {"steer_within_nm": 0.3, "steer_steps": 200},
    "oracle": {"mode": PARAMS["oracle"]["mode"], "average_steps": 100, "free_stride": 20},
}
"""The default ways to project, choose and label, from stored frames; runs are short and frames are soon new."""


def run(root: Path, *command: str) -> str:
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_two_rounds_and_a_closing_one(make_project: Callable[..., Path], prefect_server: None) -> None:
    root = make_project(**METHODS)
    untouched = root / "untouched.txt"
    untouched.write_text("somebody's work")
    before = run(root, "git", "rev-parse", "HEAD")

    started = monotonic()
    assert active_learning(root, "small") == 2
    elapsed_s = monotonic() - started

    rounds = campaign_rounds(Repository(root), "small")
    assert [entry["tag"] for entry in rounds] == ["small/round-000", "small/round-001", "small/round-002"]
    manifest = load_manifest(root / "data" / "chignolin")
    assert [shard.name for shard in manifest.shards] == ["000.h5", "001.h5", "002.h5"]
    assert all(shard.atoms_sha256 for shard in manifest.shards[1:]), "later labels may start from these"
    # stages and the rest add up to the wall time: nothing is left out but the last publishing, nothing counts twice
    assert 0.8 * elapsed_s < sum(entry["wall_s"] for entry in rounds) < elapsed_s
    assert all(0 < entry["overhead_s"] < entry["wall_s"] for entry in rounds)
    assert rounds[2]["frames"] == sum(shard.frames for shard in manifest.shards)
    assert rounds[0]["seed_steps"] == 75_000 + 183_750, "runs and labels of the bundled seed"
    assert 0 <= rounds[2]["failed_steps"] < rounds[2]["acquisition_steps"]
    assert rounds[2]["oracle_steps"] > rounds[1]["oracle_steps"] > rounds[0]["oracle_steps"]
    for entry in rounds:
        for name in OBSERVABLES:
            assert entry["w1"][name]["low"] <= entry["w1"][name]["value"] <= entry["w1"][name]["high"]

    # the trajectory is one that the field's tools open
    assert mdtraj.load(str(root / "round" / "trajectory.h5")).n_atoms == 10
    # the user's own state is as it was
    assert run(root, "git", "rev-parse", "HEAD") == before
    assert untouched.read_text() == "somebody's work"
    _check_restore_and_replay(root)
    _check_record(root)
    _check_tracking(root)


@pytest.mark.slow
def test_a_painn_campaign_whose_last_labels_all_fail_comes_to_its_end(
    make_project: Callable[..., Path], prefect_server: None
) -> None:
    """PaiNN instead of SchNet. The rest of the budget pays for fewer labels than a round's, and none succeeds."""
    root = make_project(
        campaign={"rounds": 1, "budget_steps": 1400},
        backmapping={"maximum_displacement_nm": 1e-6},
        network={"architecture": "painn", "features": 8},
        training={"warm_start": False},
        simulation={"replicas": 4, "steps": 100, "stride": 20},
    )
    assert active_learning(root, "small") == 1
    before, after = campaign_rounds(Repository(root), "small")
    assert after["frames"] == before["frames"]
    assert after["oracle_failed"] == 2
    network = load_checkpoint(root / "round" / "model.pt")[0].network
    assert type(network).__name__ == "CGPaiNN"


WATER = {
    "temperature_K": 300.0,
    "force_field": {
        "name": "ff14SB",
        "solvent": "tip3pfb",
        "water": {"box_nm": 3.6, "minimise_steps": 10, "settling_steps": 10},
    },
    "campaign": {"rounds": 1, "stop_below": 0.0},
    "mapping": {"force_map": "local_frames"},
    "training": {"epochs": 2, "validation_block_frames": 2, "preflight": False},
    "simulation": {"replicas": 4, "steps": 100, "stride": 20},
    "selection": {"frames": 1},
    "backmapping": {"steer_within_nm": 0.3, "steer_steps": 50},
    "oracle": {"mode": "free", "burn_in_steps": 5, "average_steps": 20, "free_stride": 10},
    "benchmark": {"bootstrap": 5, "maximum_frames": 100},
    "execution": {"oracle_workers": 1},
}
SEED_STEPS, SEED_RUNS = 5 + 25, 2


@pytest.mark.slow
def test_a_campaign_in_explicit_water(make_project: Callable[..., Path], prefect_server: None) -> None:
    """Seed, labels and training from frames of the protein alone, and every all-atom step is counted."""
    root = make_project(**WATER)
    make_seed(Workspace(root), SeedRuns(SEED_RUNS, length_ps=0.1, equilibration_ps=0.02, spacing_ps=0.02))
    Repository(root).dvc.record_data("chignolin")
    assert active_learning(root, "small") == 1
    before, after = campaign_rounds(Repository(root), "small")
    result = OracleResult.load(root / "round" / "oracle.h5")
    assert len(result.labelled) == 0, "the closing round labels nothing"
    manifest = load_manifest(root / "data" / "chignolin")
    labels = manifest.shards[1]
    assert [shard.frames for shard in manifest.shards] == [10, 2]
    assert after["frames"] == 12
    atoms = StoredAtoms.load(root / "data" / "chignolin" / "shards" / labels.atoms_name)
    assert atoms.positions.shape[1:] == (166, 3), "water is in no file"
    params = Workspace(root).params
    water = params.force_field.water
    least_steps = water.minimise_steps + water.settling_steps
    assert before["seed_steps"] > SEED_RUNS * (least_steps + SEED_STEPS), "the minimiser begins anew at times"
    assert labels.oracle_steps > least_steps + params.oracle.steps + params.backmapping.warm_up_steps
    assert labels.failed_steps == 0


def _check_restore_and_replay(root: Path) -> None:
    tag = "small/round-001"
    run(root, "git", "checkout", tag, "--", "data.dvc", "dvc.lock", "params.yaml")
    run(root, "dvc", "checkout", "--quiet")
    manifest = load_manifest(root / "data" / "chignolin")
    assert [shard.name for shard in manifest.shards] == ["000.h5", "001.h5"]
    for shard in manifest.shards:
        assert sha256(root / "data" / "chignolin" / "shards" / shard.name) == shard.sha256
    said = run(root, "dvc", "repro")
    assert said.count("didn't change") >= 5
    assert "Running stage" not in said
    difference = json.loads(run(root, "dvc", "metrics", "diff", "--json", "small/round-000", tag))
    assert difference


def _check_record(root: Path) -> None:
    """What MLflow is told of a round is what the round was made with, whatever was edited before it was told."""
    repository = Repository(root)
    published = repository.published_round("small", 1)
    expected = round_record(Workspace(root), repository, published)
    assert expected.params["selection.frames"] == 4
    change_params(root / "params.yaml", {"selection": {"frames": 9}})
    for name in ("training.csv", "metrics.json", "selection.json", "timings.json"):
        (root / "round" / name).unlink()
    found = round_record(Workspace(root), repository, published)
    assert vars(found) == vars(expected)
    assert found.history


def _check_tracking(root: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.search_experiments(filter_string="name != 'Default'")[0]
    runs = client.search_runs([experiment.experiment_id])
    nested = [one for one in runs if "mlflow.parentRunId" in one.data.tags]
    assert len(nested) == 3
    assert {one.data.tags["git_tag"] for one in nested} == {f"small/round-{k:03d}" for k in range(3)}
    (parent,) = [one for one in runs if one not in nested]
    assert [point.step for point in client.get_metric_history(parent.info.run_id, "w1/tica")] == [0, 1, 2]
