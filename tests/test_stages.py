"""Stages of a round without Prefect: what each reads is what `dvc.yaml` says that it depends on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cgal.dataset import load_shards, prepare
from cgal.errors import BadFile, BadParams, BadTrajectory
from cgal.frames import CGTrajectory, alpha_carbons, read_pdb_text
from cgal.params import Params, check_params, load_params
from cgal.progress import silent
from flows.campaign.opening import move_device
from flows.campaign.stages import STAGES, run_stage
from flows.workspace import Workspace
from tests.conftest import REPOSITORY

DEPENDENCIES = {
    name: set(stage["params"])
    for name, stage in yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"].items()
}
FREE = {"execution"}
"""Decides how fast a stage goes, never what it finds."""


class Watched:
    """Params that note which of their keys are read, by their properties too."""

    def __init__(self, params: Params) -> None:
        self.params, self.read = params, set[str]()

    def __getattr__(self, name: str) -> Any:
        if isinstance(derived := getattr(Params, name, None), property):
            return derived.__get__(self)
        self.read.add(name)
        return getattr(self.params, name)


def test_a_stage_reads_the_parameters_that_dvc_names_for_it_and_no_others(
    make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_project(selection={"strategy": "committee", "committee": 2, "frames": 2})
    prepare(Workspace(root).data, Workspace(root).params)
    for name in STAGES:
        watched = Watched(Workspace(root).params)
        monkeypatch.setattr(Workspace, "params", watched)
        run_stage(name, Workspace(root), silent)
        monkeypatch.undo()
        assert watched.read - FREE == DEPENDENCIES[name], name
    assert CGTrajectory.load(root / "round" / "trajectory.h5").device == "cpu"


def test_a_round_is_trained_by_relative_entropy(make_project: Callable[..., Path]) -> None:
    entropy = {"updates": 2, "look_updates": 1, "look_replicas": 8, "look_steps": 10, "settle_steps": 10}
    entropy |= {"rung": {"updates": 2}}
    dynamics = {"replicas": 4, "steps": 10, "stride": 5}
    root = make_project(
        training={
            "objective": "relative_entropy",
            "preflight": False,
            "relative_entropy": entropy | {"dynamics": dynamics},
        }
    )
    prepare(Workspace(root).data, Workspace(root).params)
    assert run_stage("train", Workspace(root), silent)["updates"] == 2
    assert (root / "round" / "training.csv").read_text().startswith("update,")
    assert (root / "round" / "plots" / "training" / "training.png").is_file()
    run_stage("simulate", Workspace(root), silent)


def test_replicas_may_all_begin_at_the_structure(make_project: Callable[..., Path]) -> None:
    """One step and a save: no bead has gone far from where it was."""
    root = make_project(simulation={"starts": "native", "replicas": 3, "steps": 1, "stride": 1})
    prepare(Workspace(root).data, Workspace(root).params)
    run_stage("train", Workspace(root), silent)
    run_stage("simulate", Workspace(root), silent)
    native = read_pdb_text(Workspace(root).structure)
    beads = native.xyz[0, alpha_carbons(native.topology)]
    assert np.abs(CGTrajectory.load(root / "round" / "trajectory.h5").positions - beads).max() < 0.02


def test_replicas_may_begin_at_given_frames(make_project: Callable[..., Path]) -> None:
    """One step and a save: no bead has gone far from one of the two frames, and both were drawn."""
    starts = {"starts": "given", "starts_file": "mine.h5", "replicas": 6, "steps": 1, "stride": 1}
    root = make_project(simulation=starts)
    data = Workspace(root).data
    prepare(data, Workspace(root).params)
    run_stage("train", Workspace(root), silent)
    (shard,) = load_shards(data)
    two = CGTrajectory.from_positions(shard.sequence, shard.positions[[0, -1]], np.arange(2), np.arange(2))
    with pytest.raises(BadFile, match=r"mine\.h5: no frames to start from .*simulation\.starts_file"):
        run_stage("simulate", Workspace(root), silent)
    two.save(data / "mine.h5")
    run_stage("simulate", Workspace(root), silent)
    found = CGTrajectory.load(root / "round" / "trajectory.h5").positions
    away = np.abs(found[:, None] - two.positions[None]).max(axis=(2, 3))
    assert away.min(axis=1).max() < 0.02
    assert set(away.argmin(axis=1)) == {0, 1}
    fragment = CGTrajectory.from_positions(shard.sequence[:7], two.positions[:, :7], np.arange(2), np.arange(2))
    fragment.save(data / "mine.h5")
    with pytest.raises(BadTrajectory, match="the model is of"):
        run_stage("simulate", Workspace(root), silent)


@pytest.mark.parametrize("section", [{"starts": "given"}, {"starts_file": "a.h5"}, {"starts_file": "../a.h5"}])
def test_a_file_of_starts_goes_with_given_and_lies_in_the_folder_of_the_protein(section: dict[str, str]) -> None:
    with pytest.raises(BadParams, match="starts"):
        check_params({"simulation": section}, Path("params.yaml"))


def test_a_device_where_earlier_versions_had_it_is_taken() -> None:
    params = check_params({"execution": {"device": "cpu", "oracle_workers": 3}}, Path("params.yaml"))
    assert params.simulation.device == "cpu"
    assert params.execution.oracle_workers == 3


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("execution:\n  device: cuda\n  retries: 1\n", {"execution": {"retries": 1}, "simulation": {"device": "cuda"}}),
        ("execution: {device: cuda}\nsimulation: {device: cpu}\n", {"execution": {}, "simulation": {"device": "cpu"}}),
    ],
)
def test_a_device_of_earlier_versions_is_written_where_rounds_record_it(
    tmp_path: Path, before: str, after: dict[str, Any]
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("seed: 3  # kept\n" + before)
    meant = load_params(path)
    assert move_device(path)
    assert yaml.safe_load(path.read_text()) == {"seed": 3} | after
    assert "# kept" in path.read_text()
    assert load_params(path) == meant
    assert not move_device(path)
