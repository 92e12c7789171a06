"""`cgal import` and its kin: whole or not at all, all refusals at once and before any work."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import mdtraj
import numpy as np
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from cgal.all_atom.structures import structure_from_sequence
from cgal.dataset import load_manifest
from cgal.errors import BadParams, CampaignLocked, EmptyTrajectory, Refused
from cgal.files import settle_folder
from cgal.frames import AtomFrames, CGTrajectory
from cgal.params import ForceFieldParams
from flows.cli.main import app
from flows.protein.seed import SeedRuns
from flows.versioning import Repository

SMALL = AtomFrames.load(Path(__file__).parent / "data" / "chignolin_small.h5")
FITTING = {"temperature_K": 350.0, "training": {"validation_block_frames": 5}, "benchmark": {"tica_lag_ps": 8.0}}
"""What the 40 frames, 4 ps apart, need in `params.yaml`."""

Project = Callable[..., Path]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Options that name a topology and a trajectory with forces."""
    (tmp_path / "start.pdb").write_text(SMALL.pdb)
    with h5py.File(tmp_path / "run.h5", "w") as handle:
        handle["positions"], handle["forces"] = SMALL.positions, SMALL.forces
        handle.attrs["stride_ps"] = 4.0
    return ["--topology", str(tmp_path / "start.pdb"), "--trajectory", str(tmp_path / "run.h5")]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in (root / "data").rglob("*") if path.is_file()}


def cgal(root: Path, *command: str) -> Result:
    return CliRunner().invoke(app, [*command, "--root", str(root)])


def label_once(root: Path) -> None:
    """Let the manifest tell of labels of a campaign's first round."""
    path = root / "data" / "chignolin" / "manifest.json"
    content = json.loads(path.read_text())
    content["shards"].append(content["shards"][0] | {"name": "001.h5", "origin": "oracle round 0"})
    path.write_text(json.dumps(content | {"campaign": "mine"}))


def test_import_replaces_what_it_makes_and_keeps_the_rest(make_project: Project, files: list[str]) -> None:
    root = make_project(**FITTING)
    data = root / "data" / "chignolin"
    (data / "notes.txt").write_text("mine")
    before = (root / "data.dvc").read_text()
    done = cgal(root, "import", *files, "--seed-last-ps", "100", "--confine-nm", "0.3")
    assert done.exit_code == 0, done.output
    assert "undo" not in done.output
    seed = AtomFrames.load(data / "seed.h5")
    assert (len(seed), len(CGTrajectory.load(data / "reference.h5"))) == (26, 40)
    assert seed.provenance["maximum_rmsd_nm"] == 0.3
    assert [shard.frames for shard in load_manifest(data).shards] == [26]
    assert sorted(path.name for path in data.iterdir()) == [
        "force_map.h5", "manifest.json", "notes.txt", "reference.h5", "reference.json", "seed.h5", "shards",
        "structure.pdb", "warm_start.pt",
    ]  # fmt: skip
    assert [path.name for path in data.parent.iterdir()] == ["chignolin"]
    assert (root / "data.dvc").read_text() != before


def test_seed_is_thinned_and_that_is_said(make_project: Project, files: list[str]) -> None:
    root = make_project(**FITTING)
    done = cgal(root, "import", *files, "--seed-frames", "15")
    assert done.exit_code == 0, done.output
    assert "seed: one in 3 of 40 frames (--seed-frames 15)" in done.output
    np.testing.assert_array_equal(
        AtomFrames.load(root / "data" / "chignolin" / "seed.h5").time_ps, 12.0 * np.arange(14)
    )
    assert not list((root / ".cgal" / "work" / "import").iterdir())


def test_all_refusals_come_at_once_and_nothing_changes(make_project: Project, files: list[str], tmp_path: Path) -> None:
    root = make_project(temperature_K=350.0, training={"validation_block_frames": 100}, benchmark={"tica_lag_ps": 1.0})
    label_once(root)
    (tmp_path / "empty.xtc").touch()
    before = contents(root)
    wrong = ["--trajectory", str(tmp_path / "empty.xtc"), "--trajectory", str(tmp_path / "none.dcd")]
    done = cgal(root, "import", *files, *wrong, "--seed-first-ps", "5", "--seed-last-ps", "1", "--confine-nm", "0")
    assert isinstance(done.exception, Refused)
    said = str(done.exception).splitlines()
    assert said[0] == "5 things to mend; nothing was changed"
    expected = (
        "campaigns were run on it (mine)",
        "--seed-first-ps 5 is not before --seed-last-ps 1",
        "--confine-nm is 0",
        "empty.xtc: the file is empty",
        "none.dcd: no such file",
    )
    for line, words in zip(said[1:], expected, strict=True):
        assert words in line
    assert contents(root) == before

    done = cgal(root, "import", *files, "--replace")
    said = str(done.exception).splitlines()[1:]
    assert len(said) == 2
    assert "tica_lag_ps: 1 ps is below the reference's frame spacing, 4 ps" in said[0]
    assert "40 labelled frames leave 40 to train on and 0 to hold out" in said[1]
    assert contents(root) == before


def test_campaigns_are_replaced_only_when_told_and_the_undo_is_printed(make_project: Project, files: list[str]) -> None:
    root = make_project(**FITTING)
    git, campaign = Repository(root).git, yaml.safe_load((root / "params.yaml").read_text())["campaign"]["name"]
    git.run("tag", f"{campaign}/round-000")
    git.run("tag", f"{campaign}/round-001")
    done = cgal(root, "import", *files)
    assert isinstance(done.exception, BadParams)
    assert f"campaigns were run on it ({campaign})" in str(done.exception)
    done = cgal(root, "import", *files, "--replace")
    assert done.exit_code == 0, done.output
    assert f"undo: 'cgal checkout {campaign}/round-001'" in " ".join(done.output.split())
    assert isinstance(cgal(root, "seed").exception, Refused | BadParams)


def solvated(folder: Path) -> list[str]:
    """Options that name a topology with two waters, and its trajectory without forces."""
    run = mdtraj.Trajectory(SMALL.positions, SMALL.topology, time=SMALL.time_ps)
    water = mdtraj.Topology()
    for number in range(2):
        residue = water.add_residue("HOH", water.add_chain(), resSeq=number)
        for name, element in (("O", "O"), ("H1", "H"), ("H2", "H")):
            water.add_atom(name, mdtraj.element.get_by_symbol(element), residue)
    places = (
        np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [1, 0, 0], [1.1, 0, 0], [1, 0.1, 0]], dtype=np.float32) + 4.0
    )
    both = run.stack(mdtraj.Trajectory(np.tile(places, (len(run), 1, 1)), water, time=run.time))
    both.save(str(folder / "solvated.xtc"))
    both[0].save(str(folder / "solvated.pdb"))
    return ["--topology", str(folder / "solvated.pdb"), "--trajectory", str(folder / "solvated.xtc")]


def test_reference_and_seed_come_apart(make_project: Project, files: list[str], tmp_path: Path) -> None:
    """A reference in water from positions alone, then a seed in the oracle's physics; each leaves the other's files."""
    root = make_project(**FITTING, protein="mine")
    data = root / "data" / "mine"
    done = cgal(root, "import", "--as", "reference", *solvated(tmp_path), "--physics", "CHARMM36m with TIP3P")
    assert done.exit_code == 0, done.output
    assert "reference and oracle differ in physics: the reference is of CHARMM36m with TIP3P" in done.output
    assert sorted(path.name for path in data.iterdir()) == ["reference.h5", "reference.json"]
    said = json.loads((data / "reference.json").read_text())
    assert (said["physics"], said["frames"]) == ("CHARMM36m with TIP3P", 40)
    assert "solvated.pdb: left out: 2 waters" in said["imported"]["notes"]
    reference = (data / "reference.h5").read_bytes()

    done = cgal(root, "import", "--as", "seed", *files)
    assert done.exit_code == 0, done.output
    assert (data / "reference.h5").read_bytes() == reference
    assert [shard.frames for shard in load_manifest(data).shards] == [40]
    assert load_manifest(data).protein == "mine"
    seed = (data / "seed.h5").read_bytes()

    done = cgal(root, "import", "--as", "reference", *files)
    assert done.exit_code == 0, done.output
    assert CGTrajectory.load(data / "reference.h5").physics == "a force field that was not named"
    assert (data / "seed.h5").read_bytes() == seed
    done = cgal(root, "import", "--as", "reference", *files, "--physics", "oracle")
    assert CGTrajectory.load(data / "reference.h5").physics is None

    edited = yaml.safe_load((root / "params.yaml").read_text()) | {"protein": "chignolin"}
    (root / "params.yaml").write_text(yaml.safe_dump(edited))
    (root / "data" / "chignolin" / "structure.pdb").write_text(
        structure_from_sequence("GASPG", ForceFieldParams(), temperature_K=350.0, seed=1)
    )
    done = cgal(root, "import", "--as", "reference", "--mean-force", *files)
    assert "--as reference makes none" in str(done.exception)
    assert "holds GASPG, the trajectory is of YYDPETGTWY" in str(done.exception)


def start_import(root: Path, files: list[str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "flows.cli", "import", *files, "--mean-force", "--root", str(root)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def test_killed_import_leaves_the_old_data_and_the_next_one_succeeds(make_project: Project, files: list[str]) -> None:
    """Killed while the oracle labels the seed, which lies aside; every other moment is in `test_files`."""
    root = make_project(**FITTING)
    before = contents(root)
    process = start_import(root, files)
    try:
        while not (root / "data" / ".chignolin.new" / "seed.h5").exists():
            assert process.poll() is None
            time.sleep(0.02)
        done = cgal(root, "stage", "train")
        assert isinstance(done.exception, CampaignLocked)
        assert f"campaign import (process {process.pid} on " in str(done.exception)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    left = contents(root)
    assert "data/.chignolin.new/seed.h5" in left
    assert {name: left[name] for name in before} == before
    settle_folder(root / "data" / "chignolin")
    assert contents(root) == before


def test_run_seed_and_reference_refuse_at_once(make_project: Project) -> None:
    root = make_project(
        benchmark={"tica_lag_ps": 0.1},
        training={"validation_fraction": 0.01, "validation_block_frames": 10**6},
        reference={"lag_ps": 9999.0, "trajectory_ns": 2.0},
    )
    before = contents(root)
    done = cgal(root, "seed")
    assert isinstance(done.exception, EmptyTrajectory)
    assert "250 labelled frames leave 250 to train on" in str(done.exception)
    done = cgal(root, "reference")
    assert "reference.lag_ps: 9999 ps is not shorter than a trajectory" in str(done.exception)
    assert "benchmark.tica_lag_ps: 0.1 ps is below" in str(done.exception)
    done = cgal(root, "run", "--new", "other")
    assert "to hold out" in str(done.exception)
    assert "benchmark.tica_lag_ps: 0.1 ps is below the reference's frame spacing, 50 ps" in str(done.exception)
    assert contents(root) == before
    assert "other" not in (root / "params.yaml").read_text()


def test_structure_that_the_force_field_does_not_know_is_refused_at_once(make_project: Project) -> None:
    root = make_project()
    path = root / "data" / "chignolin" / "structure.pdb"
    path.write_text(path.read_text().replace("TYR", "PTR"))
    for command in (["seed"], ["reference"], ["run"]):
        assert "residue PTR 1" in str(cgal(root, *command).exception)


def test_seed_of_a_plan_is_as_many_frames_as_is_said(make_project: Project) -> None:
    assert SeedRuns(2, 0.4, 0.1, 0.08, None).frames(ForceFieldParams()) == 5
    assert np.isclose(SeedRuns(10, 25.0, 5.0, 1.0, None).frames(ForceFieldParams()), 25)
