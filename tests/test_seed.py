"""`cgal seed`: a seed from the structure alone, by real short runs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cgal.all_atom.oracle import OracleResult, run_md
from cgal.dataset import load_manifest
from cgal.frames import AtomFrames
from flows.cli.main import app

OPTIONS = ["--runs", "2", "--length-ps", "0.4", "--equilibration-ps", "0.1", "--spacing-ps", "0.08"]


def test_seed_comes_from_runs_of_their_own_and_the_same_ones_each_time(make_project: Callable[..., Path]) -> None:
    project = make_project(training={"validation_block_frames": 2})
    data = project / "data" / "chignolin"
    kept = {name: (data / name).read_bytes() for name in ("structure.pdb", "reference.h5")}
    before = (project / "data.dvc").read_text()
    command = ["seed", "--root", str(project), *OPTIONS]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    seed, labels = AtomFrames.load(data / "seed.h5"), AtomFrames.load(data / "seed_labels.h5")
    np.testing.assert_array_equal(seed.trajectory, np.repeat([0, 1], 5))
    np.testing.assert_allclose(seed.time_ps, np.tile(0.08 * np.arange(1, 6), 2))
    assert not np.allclose(seed.positions[0], seed.positions[5], atol=0.01), "both runs are the same"
    assert len(labels) == 10
    assert labels.provenance["relabelled"]["forces"] == "instantaneous"
    manifest = load_manifest(data)
    assert [shard.frames for shard in manifest.shards] == [10]
    assert {name: (data / name).read_bytes() for name in kept} == kept
    assert (project / "data.dvc").read_text() != before

    first = {path.name: path.read_bytes() for path in data.glob("*.h5")}
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    assert {path.name: path.read_bytes() for path in data.glob("*.h5")} == first


def test_runs_that_fail_are_told(make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """All atoms of one start lie in one point."""

    def with_a_bad_start(structure: str, starts: np.ndarray, **options: object) -> OracleResult:
        starts[1] = 0.0
        return run_md(structure, starts, **options)

    monkeypatch.setattr("flows.protein.seed.run_md", with_a_bad_start)
    project = make_project(training={"validation_block_frames": 2}, oracle={"quorum": 0.5})
    done = CliRunner().invoke(app, ["seed", "--root", str(project), *OPTIONS, "--runs", "3", "--no-mean-force"])
    assert done.exit_code == 0, done.output
    assert "run 1: labelling: " in done.output
    seed = AtomFrames.load(project / "data" / "chignolin" / "seed.h5")
    np.testing.assert_array_equal(seed.trajectory, np.repeat([0, 2], 5))


def test_runs_shorter_than_their_spacing_change_nothing(make_project: Callable[..., Path]) -> None:
    project = make_project()
    before = {path: path.read_bytes() for path in (project / "data").rglob("*") if path.is_file()}
    done = CliRunner().invoke(app, ["seed", "--root", str(project), "--length-ps", "0.5", "--spacing-ps", "1"])
    assert "spacing must lie between" in str(done.exception)
    assert {path: path.read_bytes() for path in before} == before


def test_a_missing_structure_is_named(make_project: Callable[..., Path]) -> None:
    done = CliRunner().invoke(app, ["seed", "missing", "--root", str(make_project())])
    assert done.exit_code != 0
    assert "structure.pdb" in str(done.exception)
