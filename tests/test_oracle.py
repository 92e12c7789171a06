"""Labelling of real chignolin frames with real OpenMM, real processes and real kills."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import openmm
import pytest
from pydantic import ValidationError

from cgal.all_atom.dynamics import run_plan
from cgal.all_atom.force_field import build_system, make_context, positions_of, read_structure
from cgal.all_atom.label_files import LabelFiles, LabelTask, Rebuilt
from cgal.all_atom.oracle import (
    Failure,
    OracleResult,
    _label,
    check_quorum,
    label,
    relabel,
)
from cgal.errors import BackmappingError, BadFile, BadParams, BadStructure, QuorumMissed
from cgal.frames import AtomFrames, alpha_carbons
from cgal.params import BackmappingParams, ForceFieldParams, OracleParams

FRAMES = AtomFrames.load(Path(__file__).parent / "data" / "chignolin_small.h5")
ALPHA = alpha_carbons(FRAMES.topology)
FORCE_FIELD = ForceFieldParams(platform="CPU")
SHORT = OracleParams(burn_in_steps=10, average_steps=20, sample_stride=5, free_stride=10)
WARM_UP_STEPS = 10


def recall(beads: np.ndarray, *, seed: int) -> Rebuilt:
    """Stand-in for backmapping that is right and quick: the all-atom frame that these beads were taken from."""
    found = np.flatnonzero((FRAMES.positions[:, ALPHA] == beads).all(axis=(1, 2)))
    if len(found) == 0:
        raise ValueError("beads of no known frame")
    return Rebuilt(FRAMES.positions[found[0]], WARM_UP_STEPS)


def killed_once(beads: np.ndarray, *, seed: int, folder: str) -> Rebuilt:
    """Like `recall`, but the first process to come here dies."""
    try:
        (Path(folder) / "killed").touch(exist_ok=False)
    except FileExistsError:
        return recall(beads, seed=seed)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def killed_at_frame_4(beads: np.ndarray, *, seed: int) -> Rebuilt:
    """Like `recall`, but the process that gets frame 4 dies, always."""
    if np.array_equal(beads, FRAMES.positions[4, ALPHA]):
        os.kill(os.getpid(), signal.SIGSEGV)
    return recall(beads, seed=seed)


def slow(beads: np.ndarray, *, seed: int) -> Rebuilt:
    """Like `recall`, but slow enough to be killed."""
    time.sleep(1.5)
    return recall(beads, seed=seed)


def run(scratch: Path, *, picks: int = 3, rebuild=recall, oracle: OracleParams = SHORT, **options) -> OracleResult:
    beads = options.pop("beads", FRAMES.positions[: 2 * picks : 2, ALPHA])
    return label(
        beads,
        FRAMES.pdb,
        rebuild=rebuild,
        oracle=oracle,
        seeds=range(1, len(beads) + 1),
        scratch=scratch,
        **{"workers": 1, "temperature_K": 350.0, "force_field": FORCE_FIELD} | options,
    )


def saved(result: OracleResult, folder: Path) -> bytes:
    result.save(folder / "result.h5")
    return (folder / "result.h5").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed")


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> OracleResult:
    """Three picks on two workers; the other tests use one, so that they also show that the number does not matter."""
    return run(folder, workers=2)


def test_every_pick_is_labelled_in_order_with_held_alpha_carbons(undisturbed: OracleResult) -> None:
    frames = undisturbed.labelled
    assert frames.trajectory.tolist() == [0, 1, 2]
    assert frames.provenance["forces"] == "mean"
    assert np.abs(frames.positions[:, ALPHA] - FRAMES.positions[:6:2, ALPHA]).max() < 1e-6
    assert np.isfinite(frames.forces).all()
    assert undisturbed.failures == ()
    assert (undisturbed.steps, undisturbed.failed_steps) == (3 * (WARM_UP_STEPS + 10 + 20), 0)


def test_beads_go_through_backmapping_and_bad_ones_become_failures_with_files(tmp_path: Path) -> None:
    from cgal.all_atom.backmapping.backmap import backmap  # not above: workers of the other tests do without

    beads = FRAMES.positions[:3, ALPHA].copy()
    beads[1] *= 0.2
    rebuild = partial(
        backmap,
        structure=FRAMES.pdb,
        params=BackmappingParams(warm_up_steps=WARM_UP_STEPS),
        force_field=FORCE_FIELD,
        temperature_K=350.0,
    )
    result = run(tmp_path, rebuild=rebuild, beads=beads)
    assert result.labelled.trajectory.tolist() == [0, 2]
    assert 0 < result.failed_steps < result.steps, "the minimisation of impossible beads"
    assert result.steps - result.failed_steps > 2 * (WARM_UP_STEPS + 10 + 20), "minimisation counts"
    (failure,) = result.failures
    assert (failure.pick, failure.stage) == (1, "backmapping")
    assert "raise backmapping.minimise_steps" in failure.reason
    assert {path.name for path in (tmp_path / failure.folder).iterdir()} == {
        "log.txt", "picked.pdb", "steps.txt", "structure.pdb"
    }  # fmt: skip
    check_quorum(result, 3, OracleParams(quorum=0.5))
    with pytest.raises(QuorumMissed, match=r"only 2 of 3 .* 100%.*\n  1 x backmapping: "):
        check_quorum(result, 3, OracleParams(quorum=1.0))


def test_a_diverging_run_is_a_failure_and_keeps_its_structure(tmp_path: Path) -> None:
    wild = OracleParams(timestep_ps=0.05, burn_in_steps=50, average_steps=20, sample_stride=5)
    result = run(tmp_path, picks=1, oracle=wild)
    (failure,) = result.failures
    assert failure.stage == "labelling"
    assert failure.reason.endswith("lower oracle.timestep_ps")
    assert (tmp_path / failure.folder / "structure.pdb").is_file()
    assert len(result.labelled) == 0
    assert WARM_UP_STEPS < result.steps <= 2 * (WARM_UP_STEPS + 50 + 20)


def test_a_diverging_free_run_names_the_time_step_that_it_took(tmp_path: Path) -> None:
    wild = FORCE_FIELD.model_copy(update={"timestep_ps": 0.05})
    result = run(tmp_path, picks=1, oracle=SHORT.model_copy(update={"mode": "free"}), force_field=wild)
    (failure,) = result.failures
    assert failure.reason.startswith("the all-atom run diverged")
    assert failure.reason.endswith("lower force_field.timestep_ps")


def test_the_heaviest_hydrogens_run_at_the_default_time_step(tmp_path: Path) -> None:
    """With 4.4 amu such a run ends within 500 steps: the carbon of a methyl group keeps 1.8 amu."""
    with pytest.raises(ValidationError, match=r"hydrogen_mass_amu above 4\.25"):
        ForceFieldParams(hydrogen_mass_amu=4.4)
    assert ForceFieldParams(hydrogen_mass_amu=4.4, timestep_ps=0.002)
    heaviest = ForceFieldParams(platform="CPU", hydrogen_mass_amu=4.25)
    free = SHORT.model_copy(update={"mode": "free", "burn_in_steps": 1000})
    assert not run(tmp_path, picks=1, oracle=free, force_field=heaviest).failures


def unlucky_once(beads: np.ndarray, *, seed: int) -> Rebuilt:
    """Like `recall`, but a warm-up with any of the first seeds fails."""
    if seed <= 3:
        error = BackmappingError("bad luck")
        error.steps = 7
        raise error
    return recall(beads, seed=seed)


def permanent(beads: np.ndarray, *, seed: int, folder: str) -> Rebuilt:
    """Leave a file for each try, and fail for good."""
    Path(folder, f"tried-{seed}").touch()
    error = BackmappingError("no such molecule")
    error.permanent = True
    raise error


def strained(beads: np.ndarray, *, seed: int) -> Rebuilt:
    """Like `recall`, but the chain before the second peptide bond is turned about it by half a turn, and relaxed."""
    positions = recall(beads, seed=seed).positions.copy()
    index = {(atom.residue.index, atom.name): atom.index for atom in FRAMES.topology.atoms}
    carbon, nitrogen = positions[index[1, "C"]], positions[index[2, "N"]]
    axis = (nitrogen - carbon) / np.linalg.norm(nitrogen - carbon)
    before = [atom.index for atom in FRAMES.topology.atoms if atom.residue.index <= 1 and atom.index != index[1, "O"]]
    arm = positions[before] - carbon
    positions[before] = carbon + 2 * np.outer(arm @ axis, axis) - arm
    topology, _ = read_structure(FRAMES.pdb)
    system = build_system(topology, FORCE_FIELD)
    context = make_context(system, FORCE_FIELD, temperature_K=350.0, timestep_ps=0.001, seed=seed)
    context.setPositions(positions.astype(np.float64))
    openmm.LocalEnergyMinimizer.minimize(context)
    return Rebuilt(positions_of(context).astype(np.float32), WARM_UP_STEPS)


def test_a_peptide_bond_that_snaps_over_is_a_failure_whose_steps_count(tmp_path: Path) -> None:
    result = run(tmp_path, picks=1, rebuild=strained)
    (failure,) = result.failures
    assert (failure.stage, len(result.labelled)) == ("labelling", 0)
    assert failure.reason.startswith("cis peptide bond before ASP 3, which the structure has not")
    assert result.steps == 2 * (WARM_UP_STEPS + 10 + 20)


def test_steps_of_failed_tries_count_also_after_a_restart(tmp_path: Path) -> None:
    result = run(tmp_path, rebuild=unlucky_once)
    assert result.failures == ()
    assert (result.steps, result.failed_steps) == (3 * (7 + WARM_UP_STEPS + 10 + 20), 3 * 7)
    again = run(tmp_path, rebuild=unlucky_once)
    assert (again.steps, again.failed_steps) == (result.steps, result.failed_steps)


def from_near(beads: np.ndarray, *, seed: int, near: np.ndarray | None = None) -> Rebuilt:
    """Like `recall`, but the near frame where there is one."""
    return recall(beads, seed=seed) if near is None else Rebuilt(near, 5)


def test_a_stored_frame_goes_to_the_rebuilding_of_its_own_pick(tmp_path: Path) -> None:
    near = [None, FRAMES.positions[3]]
    result = run(tmp_path, picks=2, rebuild=from_near, near=near)
    np.testing.assert_allclose(result.labelled.positions[1, ALPHA], FRAMES.positions[3, ALPHA], atol=1e-6)
    assert result.steps == WARM_UP_STEPS + 5 + 2 * (10 + 20)
    other = run(tmp_path, picks=2, rebuild=from_near, near=[None, FRAMES.positions[5]])
    np.testing.assert_allclose(other.labelled.positions[1, ALPHA], FRAMES.positions[5, ALPHA], atol=1e-6)


def test_a_frame_that_no_seed_can_help_is_tried_once(tmp_path: Path) -> None:
    result = run(tmp_path, picks=1, rebuild=partial(permanent, folder=str(tmp_path)))
    assert [failure.reason for failure in result.failures] == ["no such molecule"]
    assert [path.name for path in tmp_path.glob("tried-*")] == ["tried-1"]
    assert result.steps == 0


def test_a_killed_worker_changes_nothing(tmp_path: Path, undisturbed: OracleResult) -> None:
    result = run(tmp_path, rebuild=partial(killed_once, folder=str(tmp_path)), workers=1)
    assert (tmp_path / "killed").exists()
    assert saved(result, tmp_path) == saved(undisturbed, tmp_path)


def test_a_frame_that_always_crashes_costs_only_itself(tmp_path: Path) -> None:
    result = run(tmp_path, rebuild=killed_at_frame_4)
    assert result.labelled.trajectory.tolist() == [0, 1]
    (failure,) = result.failures
    assert failure == Failure(2, "backmapping", "its process died (signal SIGSEGV)", "failed/frame-0002")
    assert {path.name for path in (tmp_path / failure.folder).iterdir()} == {"log.txt", "picked.pdb"}


def test_a_killed_labelling_continues_with_the_missing_frames(tmp_path: Path, undisturbed: OracleResult) -> None:
    """`kill -9` of the whole process: its worker goes too, frames on disk are kept, same result to the byte."""
    scratch = tmp_path / "scratch"
    path = tmp_path / "labelling.py"
    path.write_text(
        "from pathlib import Path\n"
        "from tests.test_oracle import run, slow\n"
        'if __name__ == "__main__":\n'
        f"    run(Path({str(scratch)!r}), rebuild=slow)\n"
    )
    process = subprocess.Popen([sys.executable, path], env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])})
    wait_until(lambda: any(scratch.glob("frame-*.h5")))
    workers = children(process.pid)
    process.kill()
    process.wait()
    assert workers
    wait_until(lambda: not any(alive(worker) for worker in workers))
    kept = modified(scratch)
    assert 0 < len(kept) < 3

    told: list[tuple[int, str]] = []
    result = run(scratch, rebuild=slow, progress=lambda done, total, note="": told.append((done, note)))
    assert told[0] == (len(kept), "taken from an earlier run")
    assert kept.items() <= modified(scratch).items()
    assert saved(result, tmp_path) == saved(undisturbed, tmp_path)


def modified(scratch: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in scratch.glob("frame-*.h5")}


def wait_until(condition, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Worker processes of a process (multiprocessing has a resource tracker besides)."""
    found = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if parent(path) == pid]
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def parent(stat: Path) -> int | None:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_damaged_labels_are_made_again(tmp_path: Path, undisturbed: OracleResult, folder: Path) -> None:
    scratch = tmp_path / "scratch"
    shutil.copytree(folder, scratch)
    (scratch / "frame-0001.h5").write_bytes((scratch / "frame-0001.h5").read_bytes()[:3000])
    told: list[int] = []
    result = run(scratch, progress=lambda done, total, note="": told.append(done))
    assert told == [2, 3]
    assert saved(result, tmp_path) == saved(undisturbed, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature_K": 300.0},
        {"plan": run_plan(SHORT.model_copy(update={"burn_in_steps": 11}), FORCE_FIELD)},
        {"force_field": FORCE_FIELD.model_copy(update={"name": "ff14SB"})},
        {"rebuild": slow},
        {"structure": FRAMES.pdb + "\n"},
    ],
)
def test_labels_of_other_inputs_are_not_taken(undisturbed: OracleResult, folder: Path, change: dict) -> None:
    files = LabelFiles(FRAMES.pdb, recall, FORCE_FIELD, run_plan(SHORT, FORCE_FIELD), 350.0, folder)
    task = LabelTask(0, FRAMES.positions[0, ALPHA], 1)
    assert files.load(task) is not None
    assert files.load(replace(task, seed=2)) is None
    assert files.load(replace(task, start=FRAMES.positions[1, ALPHA])) is None
    assert replace(files, **change).load(task) is None


def test_free_labels_are_frames_of_a_run_with_instantaneous_forces(tmp_path: Path) -> None:
    result = run(tmp_path, picks=2, oracle=SHORT.model_copy(update={"mode": "free"}))
    frames = result.labelled
    assert frames.trajectory.tolist() == [0, 0, 1, 1]
    assert frames.time_ps.tolist() == pytest.approx([0.04, 0.08, 0.04, 0.08])
    assert frames.provenance["forces"] == "instantaneous"
    assert np.abs(frames.positions[1, ALPHA] - frames.positions[0, ALPHA]).max() > 1e-4
    assert result.steps == 2 * (WARM_UP_STEPS + 10 + 20)


def test_relabelled_frames_keep_their_alpha_carbons_trajectories_and_times(tmp_path: Path) -> None:
    seed = replace(FRAMES, trajectory=np.arange(40, dtype=np.int32) % 3).take(np.array([5, 7]))
    result = relabel(
        seed, force_field=FORCE_FIELD, oracle=SHORT, temperature_K=350.0, seeds=[1, 2], workers=2, scratch=tmp_path
    )
    frames = result.labelled
    assert np.abs(frames.positions[:, ALPHA] - seed.positions[:, ALPHA]).max() < 1e-6
    assert frames.trajectory.tolist() == seed.trajectory.tolist()
    assert frames.time_ps.tolist() == seed.time_ps.tolist()
    assert frames.provenance["forces"] == "mean"
    assert frames.provenance["relabelled"] == FRAMES.provenance


def test_mean_force_labels_are_less_noisy_than_instantaneous_ones() -> None:
    """Noise: difference of two replicas. 60 samples in 0.9 ps, correlated: a factor of two is safe."""

    def noise(oracle: OracleParams) -> float:
        files = LabelFiles(FRAMES.pdb, None, FORCE_FIELD, run_plan(oracle, FORCE_FIELD), 350.0, Path())
        pairs = [[_label(FRAMES.positions[frame], files, seed).forces for seed in (1, 2)] for frame in (0, 20)]
        return float(np.sqrt(np.mean([(first - second) ** 2 for first, second in pairs])))

    one_sample = OracleParams(burn_in_steps=100, average_steps=5, sample_stride=5)
    assert noise(OracleParams(burn_in_steps=100, average_steps=300, sample_stride=5)) < 0.5 * noise(one_sample)


def test_no_pick_is_a_valid_empty_result(tmp_path: Path) -> None:
    result = run(tmp_path, beads=FRAMES.positions[:0, ALPHA])
    result.save(tmp_path / "empty.h5")
    loaded = OracleResult.load(tmp_path / "empty.h5")
    assert (len(loaded.labelled), loaded.requested, loaded.steps, loaded.failures) == (0, 0, 0, ())
    assert loaded.labelled.topology.n_atoms == 166
    check_quorum(loaded, 0, OracleParams())


def test_saved_results_come_back(tmp_path: Path, undisturbed: OracleResult) -> None:
    failure = Failure(7, "labelling", "diverged", "failed/frame-0007")
    saved(replace(undisturbed, failures=(failure,)), tmp_path)
    loaded = OracleResult.load(tmp_path / "result.h5")
    assert np.array_equal(loaded.labelled.forces, undisturbed.labelled.forces)
    assert loaded.failures == (failure,)
    (tmp_path / "result.h5").write_bytes((tmp_path / "result.h5").read_bytes()[:1000])
    with pytest.raises(BadFile, match="truncated"):
        OracleResult.load(tmp_path / "result.h5")


def test_what_no_frame_can_do_without_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadStructure, match="XYZ 6"):
        label(
            FRAMES.positions[:1, ALPHA],
            FRAMES.pdb.replace("THR A   6", "XYZ A   6"),
            rebuild=recall,
            force_field=FORCE_FIELD,
            oracle=SHORT,
            temperature_K=350.0,
            seeds=[1],
            workers=1,
            scratch=tmp_path,
        )
    with pytest.raises(BadParams, match="OpenCL does not work here"):
        run(tmp_path, picks=1, force_field=ForceFieldParams(platform="OpenCL"))


def test_quorum_groups_reasons_that_differ_in_numbers_only(undisturbed: OracleResult) -> None:
    failures = tuple(
        Failure(pick, "backmapping", f"C-alpha of residue {pick} moved 0.0{pick} nm", "x") for pick in (1, 2)
    )
    with pytest.raises(QuorumMissed, match="2 x backmapping: C-alpha of residue # moved # nm"):
        check_quorum(replace(undisturbed, failures=failures), 3, OracleParams())
