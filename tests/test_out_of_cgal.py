"""A published round leaves cgal: its model, a long simulation of it, trajectories for other programs."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch

import cgal
from cgal.errors import BadParams, CampaignLocked, CgalError, VersioningError
from cgal.files import read_json, write_json
from cgal.frames import CGTrajectory
from cgal.potential.checkpoint import load_checkpoint, save_checkpoint
from cgal.progress import silent
from flows.campaign.production import Wish, open_production
from flows.campaign.stages import STAGES, run_stage
from flows.versioning import Repository
from flows.workspace import Workspace
from tests.beads import real_beads
from tests.conftest import REPOSITORY, make_copy
from tests.test_versioning import contents

ROUND = "small/round-000"
SCRIPT = REPOSITORY / "docs" / "how-to" / "use_a_model.py"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, bundled_data: Path, git_identity: None) -> Path:
    """A project whose campaign is one closing round, published; every stage has really run."""
    changes = {"campaign": {"name": "small", "rounds": 0}, "training": {"warm_start": False}}
    root = make_copy(tmp_path_factory.mktemp("published") / "project", bundled_data, changes)
    repository = Repository(root)
    for stage in STAGES:
        run_stage(stage, Workspace(root), silent)
        repository.dvc.record_stage(stage)
    repository.publish("small", 0)
    return root


@pytest.fixture
def project(published: Path, tmp_path: Path) -> Path:
    """A copy of that project."""
    return Path(shutil.copytree(published, tmp_path / "project"))


def test_the_model_of_a_round_is_loaded_whatever_lies_in_the_workspace(project: Path) -> None:
    expected, metadata = load_checkpoint(project / "round" / "model.pt")
    (project / "round" / "model.pt").write_bytes(b"that of a later round")
    (project / "params.yaml").write_text("half edited")
    before = contents(project)
    model = cgal.load(ROUND, root=project)
    assert model.metadata == metadata
    assert str(model.potential.state_dict()) == str(expected.state_dict())
    after = contents(project)
    assert {name: after.get(name) for name in before if not name.startswith(".dvc/tmp")} == {
        name: digest for name, digest in before.items() if not name.startswith(".dvc/tmp")
    }
    assert np.isfinite(model.energy_and_forces(real_beads())[1]).all()


def test_a_round_that_is_not_there_or_damaged_is_said(project: Path) -> None:
    with pytest.raises(VersioningError, match="small/round-007: no such round; 'cgal rounds' lists"):
        cgal.load("small/round-007", root=project)
    (project / "round" / "model.pt").unlink()
    shutil.rmtree(project / ".dvc" / "cache")
    with pytest.raises(VersioningError, match=r"round/model\.pt of small/round-000: missing from DVC's cache"):
        cgal.load(ROUND, root=project)


# ---------------------------------------------------------------------------------- production


def kill_when(command: list[str], root: Path, reached: Callable[[], bool]) -> None:
    """Run a command and kill it, without a word, once something is there."""
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not reached():
        assert process.poll() is None, "it was done before it could be killed"
        sleep(0.002)
    process.kill()
    process.wait()


def test_a_killed_production_goes_on_to_the_same_bytes_in_the_documented_script(project: Path) -> None:
    """2 replicas, 0.6 ns in pieces of 0.25 ns; the kill comes when the first piece is there."""
    folder, wish = project / "production" / ROUND, ["--replicas", "2", "--ns", "0.6"]
    (project / "params.yaml").write_text((project / "params.yaml").read_text() + "# edited since\n")
    before = contents(project / "round") | contents(project / "data")
    kill_when(["cgal", "production", "0", *wish], project, (folder / "pieces" / "00000.h5").is_file)
    killed = {path.name: path.stat().st_mtime_ns for path in (folder / "pieces").glob("[0-9]*.h5")}
    assert len(killed) < 3
    assert not (folder / "round" / "trajectory.h5").exists()

    command = [sys.executable, SCRIPT, ROUND, *wish]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "production: frames 6000, lost replicas 0" in done.stdout
    assert "replica 0: 3000 frames of 10 beads, 0.2 to 600 ps" in done.stdout
    assert "OpenMM, 500 steps later: " in done.stdout
    assert {name: (folder / "pieces" / name).stat().st_mtime_ns for name in killed} == killed
    with open_production(Repository(project), ROUND, Wish(0.6, replicas=2), project / "undisturbed") as workspace:
        run_stage("production", workspace, silent)
    for name in ("round/trajectory.h5", "params.yaml", "production.json", "round/model.pt"):
        assert (folder / name).read_bytes() == (project / "undisturbed" / name).read_bytes(), name

    metrics = read_json(folder / "round" / "metrics.json")
    assert metrics["simulation"]["replicas"] == 2
    assert metrics["simulation"]["frames_saved"] == 6000
    assert metrics["w1"].keys() == read_json(project / "round" / "metrics.json")["w1"].keys()
    assert (folder / "round" / "plots" / "benchmark" / "tica.png").is_file()
    assert contents(project / "round") | contents(project / "data") == before, "the workspace is as it was"


def test_a_production_is_made_longer_and_what_does_not_fit_it_is_refused(project: Path, tmp_path: Path) -> None:
    repository, folder = Repository(project), tmp_path / "production"

    def produced(*wish: Any) -> CGTrajectory:
        with open_production(repository, ROUND, Wish(*wish), folder) as workspace:
            run_stage("production", workspace, silent)
            with pytest.raises(CampaignLocked, match="another process is at work there"):
                open_production(repository, ROUND, Wish(*wish), folder).__enter__()
            return CGTrajectory.load(workspace.round / "trajectory.h5")

    short = produced(0.002, 3, 0.2)
    longer = produced(0.004)
    assert (len(short), len(longer)) == (3 * 10, 3 * 20)
    assert longer.time_ps[:20] == pytest.approx(0.2 * np.arange(1, 21))
    for replica in range(3):
        mine = longer.positions[longer.replica == replica]
        assert mine[:10].tobytes() == short.positions[short.replica == replica].tobytes()
    for wish, said in (
        ((0.004, 5), "--replicas: .* holds a run that was begun with another"),
        ((0.004, 3, 0.1), "--frame-ps: .* holds a run"),
        ((0.0001,), "--ns 0.0001: no frame would be saved, as they are 0.2 ps apart"),
        ((np.inf,), "must be finite"),
    ):
        with pytest.raises(BadParams, match=said):
            produced(*wish)
    note = read_json(folder / "production.json")
    write_json(folder / "production.json", note | {"round": "small/round-003"})
    with pytest.raises(CgalError, match=r"belongs to small/round-003, not to small/round-000; .* --out"):
        produced(0.004)


def test_a_rung_that_was_moved_beneath_its_network_is_not_simulated_without_it(project: Path, tmp_path: Path) -> None:
    model, repository, alone = project / "round" / "model.pt", Repository(project), Wish(0.002, prior_alone=True)
    with open_production(repository, ROUND, alone, tmp_path / "as-fitted") as workspace:
        potential = load_checkpoint(workspace.model)[0]
    start = torch.from_numpy(real_beads()[:1])
    assert potential.energy(start) == potential.prior.energy(start)
    trained, metadata = load_checkpoint(model)
    save_checkpoint(model, trained, metadata | {"refit_moved": 1})
    for stage in STAGES:
        repository.dvc.record_stage(stage)
    repository.publish("moved", 0)
    with pytest.raises(BadParams, match="moved/round-000: --prior-alone would leave a linear rung that was moved"):
        open_production(repository, "moved/round-000", alone, tmp_path / "moved").__enter__()
    assert not (tmp_path / "moved").exists()


def test_frames_of_a_long_production_are_thinned(project: Path, tmp_path: Path) -> None:
    """The round saves each 0.1 ps; a microsecond of 8 replicas would be 80 million frames."""
    with open_production(Repository(project), ROUND, Wish(1000.0), tmp_path / "production") as workspace:
        simulation = workspace.params.simulation
    assert simulation.replicas * simulation.steps / simulation.stride == 100_000
    assert (simulation.stride * simulation.timestep_ps, simulation.replicas) == (pytest.approx(80.0), 8)
