"""Bad input gets one clear error that names culprit and cure; the exit code says so; nothing is half-written."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from filelock import FileLock

from cgal.errors import BadFile, BadParams, BadTrajectory, Refused
from cgal.files import read_json, sha256, write_json
from cgal.frames import CGTrajectory
from cgal.hdf5 import write_hdf5
from cgal.params import Params, PriorParams, SchNetParams
from cgal.potential.architectures import initial_potential
from cgal.potential.checkpoint import save_checkpoint
from cgal.potential.prior import fit_prior
from flows.campaign import production
from flows.campaign.preflight import require_runnable
from flows.cli import main
from flows.protein.structure import make_structure
from flows.workspace import Workspace
from tests.conftest import cgal_fails
from tests.test_exchange import unprivileged

Project = Callable[..., Path]


def said_by_run(root: Path) -> str:
    """What `cgal run` says in a process of its own, which ends with exit code 1."""
    command = [sys.executable, "-m", "flows.cli", "run", "--root", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr


def fails_clearly(said: str, *words: str) -> None:
    """No traceback, one error with these words."""
    assert "Traceback" not in said
    assert said.count("error: ") == 1
    for word in words:
        assert word in said


def edit_params(root: Path, section: str | None, key: str, value: object) -> None:
    path = root / "params.yaml"
    content = yaml.safe_load(path.read_text())
    (content if section is None else content[section])[key] = value
    path.write_text(yaml.safe_dump(content))


def test_a_misspelt_key_is_named_with_the_nearest_one(make_project: Project) -> None:
    root = make_project()
    edit_params(root, "selection", "cutof_nm", 1.0)
    fails_clearly(said_by_run(root), "selection.cutof_nm", "did you mean cutoff_nm?")


def test_a_negative_temperature_is_refused(make_project: Project) -> None:
    root = make_project()
    edit_params(root, None, "temperature_K", -3.0)
    fails_clearly(said_by_run(root), "temperature_K", "greater than 0", "-3.0")


def test_label_runs_shorter_than_the_lag_of_frame_weights_are_refused_before_any_work(make_project: Project) -> None:
    root = make_project(training={"frame_weights": "markov"}, oracle={"mode": "free", "average_steps": 500})
    with pytest.raises(BadParams, match=r"training\.frame_weights: .*lag_ps \(10 ps\).*500, 2 ps"):
        require_runnable(Workspace(root))
    edit_params(root, "oracle", "average_steps", 4000)
    edit_params(root, "oracle", "free_stride", 2000)  # 16 ps with two frames, 8 ps apart
    with pytest.raises(BadParams, match=r"lag_ps \(10 ps\).*4000, 16 ps"):
        require_runnable(Workspace(root))


def test_a_cutoff_that_drops_true_frames_is_refused_before_any_work(make_project: Project) -> None:
    """The bundled chignolin passes with its own."""
    root = make_project()
    require_runnable(Workspace(root))
    edit_params(root, "selection", "cutoff_nm", 0.3)
    said = r"selection\.cutoff_nm: \d+% of the (seed|reference) of chignolin is more than 0\.3 nm .* set it to 1\.1"
    with pytest.raises(BadParams, match=said):
        require_runnable(Workspace(root))
    edit_params(root, "selection", "cutoff_nm", 1.1)
    require_runnable(Workspace(root))


def test_a_missing_file_of_starts_is_refused_before_any_work(make_project: Project) -> None:
    root = make_project(simulation={"starts": "given", "starts_file": "mine.h5"})
    with pytest.raises(BadFile, match=r"mine\.h5: no frames to start from"):
        require_runnable(Workspace(root))


@pytest.mark.parametrize("name", ["my protein", "../x", "1abc.A"])
def test_a_name_that_params_yaml_would_not_take_is_refused(make_project: Project, name: str) -> None:
    with pytest.raises(BadParams, match="name of a protein: protein"):
        _ = Workspace(make_project(), name).data


def test_a_reference_of_another_protein_is_refused_before_any_work(make_project: Project) -> None:
    root = make_project()
    path = root / "data" / "chignolin" / "reference.h5"
    reference = CGTrajectory.load(path)
    replace(reference, sequence="G" * 10).save(path)
    with pytest.raises(Refused, match=r"reference\.h5: its bytes are not those that reference\.json records"):
        require_runnable(Workspace(root))
    path.with_suffix(".json").unlink()
    with pytest.raises(BadTrajectory, match=f"the reference is of GGGGGGGGGG, structure.pdb of {reference.sequence}"):
        require_runnable(Workspace(root))


def test_a_reference_of_another_temperature_is_refused_before_any_work(make_project: Project) -> None:
    root = make_project()
    note = root / "data" / "chignolin" / "reference.json"
    write_json(note, read_json(note) | {"temperature_K": 300.0})
    with pytest.raises(BadParams, match=r"reference\.h5: sampled at 300 K, but temperature_K is 350"):
        require_runnable(Workspace(root))


def test_a_letter_that_is_no_residue_is_named(make_project: Project) -> None:
    root = make_project()
    out = root / "start.pdb"
    command = ["structure", str(out), "--sequence", "YYDPXTGTWY", "--root", str(root)]
    fails_clearly(cgal_fails(*command), "'X'", "position 5")
    assert not out.exists()


def test_a_model_carried_to_another_protein_asks_for_frames_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"third/mine\.h5: no such file, .* put frames of third"):
        production._copy(tmp_path / "third" / "mine.h5", tmp_path / "copy.h5")


def test_a_structure_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "start.pdb").write_text("mine")
    with pytest.raises(BadFile, match=r"start\.pdb: there already, nothing was written; .*--overwrite"):
        make_structure(tmp_path / "start.pdb", Params(), sequence="GG")
    assert (tmp_path / "start.pdb").read_text() == "mine"


def test_a_truncated_trajectory_is_named_and_leaves_no_metrics(make_project: Project) -> None:
    root = make_project()
    path = root / "round" / "trajectory.h5"
    path.parent.mkdir()
    whole = (root / "data" / "chignolin" / "reference.h5").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fails_clearly(cgal_fails("stage", "benchmark", "--root", str(root)), "trajectory.h5", "truncated")
    assert not (root / "round" / "metrics.json").exists()


def test_a_checkpoint_of_another_protein_is_refused(make_project: Project) -> None:
    root = make_project()
    other = "AAAAAA"
    positions = np.cumsum(np.full((20, 6, 3), 0.22), axis=1) + np.random.default_rng(0).normal(0, 0.02, (20, 6, 3))
    prior = fit_prior(positions.astype(np.float32), other, 350.0, PriorParams())
    (root / "round").mkdir()
    save_checkpoint(root / "round" / "model.pt", initial_potential(prior, SchNetParams(), 1), {})
    fails_clearly(cgal_fails("stage", "simulate", "--root", str(root)), "model.pt", other, "YYDPETGTWY")
    assert not (root / "round" / "trajectory.h5").exists()


def test_a_shard_changed_by_hand_is_named(make_project: Project) -> None:
    root = make_project()
    shard = root / "data" / "chignolin" / "shards" / "000.h5"
    with h5py.File(shard, "r+") as handle:
        handle["forces"][0] = 0.0
    fails_clearly(cgal_fails("stage", "train", "--root", str(root)), "000.h5", "dvc checkout")
    assert not (root / "round" / "model.pt").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a tmpfs needs root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_file_and_no_rest(small_disk: Path) -> None:
    path = small_disk / "frames.h5"
    write_hdf5(path, {"positions": np.zeros((10, 3), np.float32)}, {"cgal_kind": "test"})
    before = sha256(path)
    noise = np.random.default_rng(0).normal(size=(100_000, 3)).astype(np.float32)
    with pytest.raises(BadFile, match="No space left on device"):
        write_hdf5(path, {"positions": noise}, {"cgal_kind": "test"})
    assert sha256(path) == before
    assert [entry.name for entry in small_disk.iterdir()] == ["frames.h5"]


def test_a_stage_on_a_full_disk_says_so(make_project: Project, small_disk: Path) -> None:
    bundled_network = {"features": 64, "blocks": 2, "radial_functions": 24}  # that of the bundled warm start
    root = make_project(network=bundled_network)
    (root / "round").symlink_to(small_disk)
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * 250_000)
    fails_clearly(cgal_fails("stage", "train", "--root", str(root)), "model.pt", "No space left on device")
    assert {entry.name for entry in small_disk.iterdir()} <= {"filler", "plots"}


def test_missing_rights_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "campaign.lock"
    lock.touch(0o444)
    monkeypatch.setattr(main, "app", FileLock(lock).acquire)
    with unprivileged(), pytest.raises(SystemExit, match=rf"^error: {tmp_path}\S*: Permission denied; see who"):
        main.main()
