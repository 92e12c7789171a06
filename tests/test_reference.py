"""Sampling a real tetrapeptide in real processes, killed and resumed; the flow; the floor."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import mdtraj
import numpy as np
import pytest
from jaxtyping import Float32, Float64
from typer.testing import CliRunner

from cgal.all_atom.force_field import build_system, forces_of, make_context, read_structure, write_structure
from cgal.all_atom.structures import structure_from_sequence
from cgal.errors import BadParams, CampaignLocked, EmptyTrajectory, SamplingError
from cgal.files import read_json
from cgal.frames import AtomFrames, CGTrajectory
from cgal.params import BenchmarkParams, ForceFieldParams, Params, ReferenceParams, check_params
from cgal.projection.clusters import constrained_clusters
from cgal.projection.local_frames import project_in_local_frames
from cgal.reference import floor
from cgal.reference.figures import plot_floor
from cgal.reference.floor import floors
from cgal.reference.lags import require_lags
from cgal.reference.least_counts import least_counts
from cgal.reference.msm import thin
from cgal.reference.sampling import (
    SwarmRecipe,
    explore,
    load_swarm,
    load_swarm_labels,
    relax,
    status,
    swarm,
    trajectory_ends,
)
from flows.cli.main import app
from flows.protein.reference import run_reference
from flows.protein.reference_folder import recipe_of, sampling_lock
from flows.versioning import Repository
from flows.workspace import Workspace
from tests.laws.test_msm import MATRIX, UNEVEN, beads, walk

FORCE_FIELD = ForceFieldParams(platform="CPU")
TINY = ReferenceParams(
    hot_trajectories=2,
    hot_ps=4.0,
    hot_spacing_ps=0.4,
    equilibration_ps=0.4,
    trajectories=2,
    trajectory_ns=0.008,
    segment_ps=4.0,
    spacing_ps=0.2,
    tica_lag_ps=0.4,
    tica_dimensions=2,
    states=4,
    lag_ps=0.4,
    samples=5,
    bootstrap=10,
    splits=2,
    frames=100,
)


def sample(recipe: SwarmRecipe) -> tuple[str, ...]:
    """All stages; gives what was lost."""
    losses = [loss for make in (explore, relax, swarm) for loss in make(recipe, workers=2)]
    return tuple(loss.reason for loss in losses)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.h5"))}


@pytest.fixture(scope="module")
def structure() -> str:
    return structure_from_sequence("GASP", FORCE_FIELD, temperature_K=350.0, seed=1)


@pytest.fixture(scope="module")
def sampled(structure: str, tmp_path_factory: pytest.TempPathFactory) -> SwarmRecipe:
    """An undisturbed run."""
    recipe = SwarmRecipe(structure, FORCE_FIELD, TINY, 350.0, 1, tmp_path_factory.mktemp("undisturbed"))
    assert sample(recipe) == ()
    return recipe


@pytest.fixture
def copy(sampled: SwarmRecipe, tmp_path: Path) -> SwarmRecipe:
    shutil.copytree(sampled.folder, tmp_path / "copy")
    return replace(sampled, folder=tmp_path / "copy")


def test_swarm_is_as_long_and_as_dense_as_asked(sampled: SwarmRecipe) -> None:
    found = load_swarm(sampled)
    assert found.sequence == "GASP"
    np.testing.assert_array_equal(found.replica, np.repeat([0, 1], 40))
    np.testing.assert_allclose(found.time_ps, np.tile(np.arange(1, 41) * 0.2, 2))
    bonds_nm = np.linalg.norm(np.diff(found.positions.astype(np.float64), axis=1), axis=2)
    assert ((bonds_nm > 0.27) & (bonds_nm < 0.43)).all()
    state = status(sampled)
    assert (state.hot, state.starts, state.total_ns, state.asked_ns) == (2, 2, pytest.approx(0.016), 0.008)


def test_segments_join_without_a_jump(sampled: SwarmRecipe) -> None:
    """Successive frames are 0.2 ps apart, also over the seam of two segments: C-alphas move by some 0.02 nm."""
    positions = load_swarm(sampled).positions[:40].astype(np.float64)
    steps_nm = np.linalg.norm(np.diff(positions, axis=0), axis=2).mean(axis=1)
    assert steps_nm[19] < steps_nm.max() * 1.01
    assert steps_nm.max() < 0.1


def test_trajectories_differ(sampled: SwarmRecipe) -> None:
    positions = load_swarm(sampled).positions
    assert np.abs(positions[:40] - positions[40:]).max() > 0.05


def test_forces_are_those_on_the_beads_at_their_frames(sampled: SwarmRecipe) -> None:
    """The last frame of a trajectory is kept with all atoms: OpenMM's forces there, projected, are the frame's.

    Stored forces and positions are float32, which costs some 1e-3 kJ/mol/nm of the thousands on an atom.
    """
    topology, _ = read_structure(sampled.structure)
    context = make_context(
        build_system(topology, FORCE_FIELD), FORCE_FIELD, temperature_K=350.0, timestep_ps=0.001, seed=1
    )
    found = load_swarm(sampled)
    for replica, end in enumerate(trajectory_ends(sampled)):
        context.setPositions(end.positions)
        positions, forces = (each[np.newaxis].astype(np.float32) for each in (end.positions, forces_of(context)))
        atoms = AtomFrames(sampled.structure, positions, forces, np.zeros(1, dtype=np.int32), np.zeros(1), {})
        expected = project_in_local_frames(atoms, constrained_clusters(atoms.topology))[0]
        np.testing.assert_allclose(found.forces[found.replica == replica][-1], expected, atol=0.5)
        assert np.abs(expected).max() > 50


def test_labels_of_a_swarm_are_its_frames_and_forces(sampled: SwarmRecipe) -> None:
    labels, frames = load_swarm_labels(sampled), load_swarm(sampled)
    assert np.array_equal(labels.positions, frames.positions)
    assert np.array_equal(labels.forces, frames.forces)
    assert np.array_equal(labels.trajectory, frames.replica)
    np.testing.assert_allclose(labels.time_ps, frames.time_ps)


def test_segments_without_forces_are_read_and_continued(copy: SwarmRecipe, sampled: SwarmRecipe) -> None:
    """As early versions wrote them: the frames are the same without forces, and what is missing is made with them."""
    for path in copy.folder.glob("swarm/*/*.h5"):
        with h5py.File(path, "a") as handle:
            del handle["forces"]
    whole, found = load_swarm(sampled), load_swarm(copy)
    assert found.forces is None
    assert np.array_equal(found.positions, whole.positions)
    with pytest.raises(SamplingError, match="no frame with forces yet"):
        load_swarm_labels(copy)
    copy.segment(1, 1).unlink()
    assert swarm(copy, workers=1) == ()
    assert copy.segment(1, 1).read_bytes() == sampled.segment(1, 1).read_bytes()
    assert load_swarm(copy).forces is None
    labels = load_swarm_labels(copy)
    assert np.array_equal(labels.forces, whole.forces[60:])
    np.testing.assert_allclose(labels.time_ps, np.arange(21, 41) * 0.2)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(sampled: SwarmRecipe, tmp_path: Path) -> None:
    """Killed (with its workers, by themselves) when the first segment is there."""
    folder = tmp_path / "killed"
    (tmp_path / "structure.pdb").write_text(sampled.structure)
    code = f"""
import json
from pathlib import Path
from cgal.params import BenchmarkParams, ForceFieldParams, ReferenceParams
from cgal.reference.sampling import SwarmRecipe, explore, relax, swarm
if __name__ == "__main__":
    recipe = SwarmRecipe(Path({str(tmp_path / "structure.pdb")!r}).read_text(), ForceFieldParams(platform="CPU"),
                    ReferenceParams.model_validate_json({TINY.model_dump_json()!r}), 350.0, 1, Path({str(folder)!r}))
    for make in (explore, relax, swarm):
        make(recipe, workers=1)
"""
    (tmp_path / "run.py").write_text(code)
    with subprocess.Popen([sys.executable, str(tmp_path / "run.py")], start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while not list(folder.glob("swarm/*/0000.h5")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    made = contents(folder)
    assert 0 < len(list(folder.glob("swarm/*/*.h5"))) < 4
    time.sleep(1.0)  # its workers end within half a second
    assert sample(replace(sampled, folder=folder)) == ()
    assert contents(folder) == contents(sampled.folder)
    assert {name: content for name, content in contents(folder).items() if name in made} == made


def test_asking_for_more_adds_to_what_is_there(copy: SwarmRecipe) -> None:
    """A third trajectory, and a third segment of each; all that was there keeps its bytes."""
    before = contents(copy.folder)
    params = copy.params.model_copy(update={"trajectories": 3, "trajectory_ns": 0.012})
    more = replace(copy, params=params)
    assert sample(more) == ()
    after = contents(copy.folder)
    assert len(after) == len(before) + 1 + 2 + 3
    assert before.items() <= after.items()
    assert status(more).swarm_ns == (0.012, 0.012, 0.012)


def test_a_damaged_segment_is_made_again(copy: SwarmRecipe) -> None:
    before = contents(copy.folder)
    path = copy.segment(1, 1)
    path.write_bytes(path.read_bytes()[:1000])
    assert status(copy).swarm_ns == (0.008, 0.004)
    assert swarm(copy, workers=1) == ()
    assert contents(copy.folder) == before


def test_another_recipe_is_refused(copy: SwarmRecipe) -> None:
    with pytest.raises(BadParams, match=r"sampled with temperature_K 350.0, which is now 340.0; set it back, or move"):
        swarm(replace(copy, temperature_K=340.0), workers=1)
    other = copy.params.model_copy(update={"segment_ps": 2.0})
    with pytest.raises(BadParams, match=r"reference.segment_ps 4.0, which is now 2.0"):
        swarm(replace(copy, params=other), workers=1)


def test_an_unsound_structure_is_lost_with_its_reason(structure: str, tmp_path: Path) -> None:
    """The mirror image: every residue has the wrong hand."""
    topology, positions = read_structure(structure)
    params = TINY.model_copy(update={"hot_trajectories": 1})
    recipe = SwarmRecipe(write_structure(topology, -positions), FORCE_FIELD, params, 350.0, 1, tmp_path)
    (loss,) = explore(recipe, workers=1)
    assert loss.piece == "hot trajectory 0"
    assert "wrong handedness at CA of ALA 2" in loss.reason
    with pytest.raises(SamplingError, match="the swarm has no frame yet; run 'cgal reference'"):
        load_swarm(recipe)


def test_floor_falls_as_sampling_grows() -> None:
    """Four times the sampling: half the floor, when trajectories are long against the slowest process.

    The mean over splits of W1 to the other half falls by 1.4 at the least, in TICA and in the reaction coordinate.
    """
    swarm_ = beads(walk(MATRIX, UNEVEN, 1600, seed=3))
    reference = ReferenceParams(
        tica_lag_ps=20.0, tica_dimensions=2, states=20, lag_ps=20.0, spacing_ps=2.0, splits=4, frames=2000
    )
    params = Params(reference=reference, benchmark=BenchmarkParams(maximum_frames=400))
    found = floors(swarm_, thin(swarm_, 4000), params)
    assert [floor["sampled_ns"] for floor in found] == [32.0, 64.0, 96.0, 128.0]
    for metric in ("tica", "reaction_coordinate"):
        first, last = (floor["exact"][metric]["mean"] for floor in (found[0], found[-1]))
        assert last < first / 1.4
        assert found[-1]["exact"][metric]["low"] <= last <= found[-1]["exact"][metric]["high"]


def test_floor_of_too_short_a_swarm_starts_where_it_can(tmp_path: Path) -> None:
    """A quarter of each trajectory is 16 ps, less than the lag."""
    swarm_ = beads(walk(MATRIX, UNEVEN, 32, seed=3))
    reference = ReferenceParams(
        tica_lag_ps=20.0, tica_dimensions=2, states=5, lag_ps=20.0, spacing_ps=2.0, splits=2, frames=2000
    )
    found = floors(swarm_, swarm_, Params(reference=reference, benchmark=BenchmarkParams(tica_lag_ps=20.0)))
    assert [floor["sampled_ns"] for floor in found] == pytest.approx([1.28, 1.92, 2.56])
    assert plot_floor(found, "exact", tmp_path)[0].stat().st_size > 10_000


def test_a_share_of_which_a_split_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the second split of each share but the last; and one trajectory has no halves."""
    swarm_ = beads(walk(MATRIX, UNEVEN, 100, seed=3))
    reference = ReferenceParams(
        tica_lag_ps=4.0, tica_dimensions=2, states=5, lag_ps=4.0, spacing_ps=2.0, splits=2, frames=2000
    )
    params = Params(reference=reference, benchmark=BenchmarkParams(tica_lag_ps=4.0))
    distance = floor._split_distance

    def failing(part: CGTrajectory, split: int, *rest: Any) -> Any:
        if split == 1 and len(part) < len(swarm_):
            raise SamplingError("too short")
        return distance(part, split, *rest)

    monkeypatch.setattr(floor, "_split_distance", failing)
    found = floors(swarm_, swarm_, params)
    assert [each["sampled_ns"] for each in found] == pytest.approx([len(swarm_) * 0.002])
    with pytest.raises(SamplingError, match=r"one trajectory.*reference\.trajectories"):
        floors(swarm_.take(swarm_.replica == 0), swarm_, params)
    with pytest.raises(BadParams, match=r"reference\.trajectories: .* 2"):
        require_lags(check_params({"reference": {"trajectories": 1}}, Path("params.yaml")))


# ------------------------------------------------------------------------------------- the flow and the command


@pytest.fixture
def project(make_project: Callable[..., Path], sampled: SwarmRecipe) -> Path:
    """A working copy with a second protein, whose sampling is done but for a segment."""
    root = make_project(
        temperature_K=350.0,
        force_field=FORCE_FIELD.model_dump(),
        reference=TINY.model_dump(),
        benchmark={"tica_lag_ps": 0.4},
    )
    (root / "data" / "tetra").mkdir()
    (root / "data" / "tetra" / "structure.pdb").write_text(sampled.structure)
    shutil.copytree(sampled.folder, root / ".cgal" / "reference" / "tetra")
    (root / ".cgal" / "reference" / "tetra" / "swarm" / "001" / "0001.h5").unlink()
    return root


def test_command_makes_the_reference_and_says_how_far_it_is(project: Path, prefect_server: None) -> None:
    """Status, then the real flow; the reference is recorded in DVC, and a second run writes the same bytes."""
    shown = CliRunner().invoke(app, ["reference", "tetra", "--root", str(project), "--status"])
    assert shown.exit_code == 0, shown.output
    assert "0.0 to 0.0 ns" in shown.output
    workspace = Workspace(project, "tetra")
    assert status(recipe_of(workspace)).total_ns == pytest.approx(0.012)
    summary = run_reference(workspace, 1)
    assert summary["sampled_ns"] == pytest.approx(0.016)
    assert summary["losses"] == []
    assert len(summary["floor"]) > 0
    truth = CGTrajectory.load(workspace.data / "reference.h5")
    assert len(truth) == 80
    assert truth.weights.sum() == pytest.approx(1)
    assert truth.forces is not None
    assert np.array_equal(truth.forces, load_swarm(recipe_of(workspace)).forces)
    assert mdtraj.load(workspace.data / "reference.h5").n_frames == 80
    assert read_json(workspace.data / "reference.json")["folded"]["low"] >= 0
    assert (project / "data" / "tetra.dvc").is_file()
    figures = {path.name for path in (project / "report" / "reference" / "tetra").glob("*.png")}
    assert figures == {
        "chapman_kolmogorov.png", "floor.png", "populations.png", "timescales.png", "trajectories.png"
    }  # fmt: skip
    first = {path.name: path.read_bytes() for path in workspace.data.iterdir()}
    recorded = Repository(project).dvc.record_data("tetra")
    run_reference(workspace, 1)
    assert {path.name: path.read_bytes() for path in workspace.data.iterdir()} == first
    assert Repository(project).dvc.record_data("tetra") == recorded


def test_preview_leaves_data_as_it_is(project: Path, prefect_server: None) -> None:
    workspace = Workspace(project, "tetra")
    with sampling_lock(recipe_of(workspace)), pytest.raises(CampaignLocked, match="another 'cgal reference' samples"):
        run_reference(workspace, preview=True)
    summary = run_reference(workspace, preview=True)
    assert summary["sampled_ns"] == pytest.approx(0.012)
    assert [path.name for path in workspace.data.iterdir()] == ["structure.pdb"]
    assert (project / "report" / "reference" / "tetra" / "reference.h5").is_file()


def test_command_without_a_structure_says_what_to_do(project: Path) -> None:
    shown = subprocess.run(
        ["cgal", "reference", "missing", "--status"], cwd=project, capture_output=True, text=True, check=False,
        env=os.environ | {"PREFECT_HOME": str(project / ".prefect")},
    )  # fmt: skip
    assert shown.returncode == 1
    assert "data/missing/structure.pdb: no such file" in shown.stderr


def test_adaptive_restarts_begin_where_few_frames_are() -> None:
    """A cell with three frames of three hundred is among the first to be restarted from, and the draw is the seed's."""
    rare = rods(np.full(3, 0.9))
    positions = np.concatenate([rods(np.repeat(np.linspace(0.38, 0.5, 27), 11)), rare])
    chosen = least_counts(positions, 10, seed=1)
    assert chosen[0] in {297, 298, 299}
    assert (chosen == least_counts(positions, 10, seed=1)).all()
    assert len(least_counts(positions[:2], 5, seed=1)) == 5
    with pytest.raises(EmptyTrajectory, match="restart"):
        least_counts(positions[:0], 1, seed=1)


def rods(lengths_nm: Float64[np.ndarray, " frames"]) -> Float32[np.ndarray, "frames 4 3"]:
    """Four beads on a line, so far apart."""
    line = np.zeros((len(lengths_nm), 4, 3), dtype=np.float32)
    line[:, :, 0] = lengths_nm[:, None] * np.arange(4)
    return line
