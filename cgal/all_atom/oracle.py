"""All-atom labels: forces on picked frames from OpenMM, one process per frame, no frame lost without a reason.

Two kinds of label. `mean_force`: C-alpha held, the forces on all atoms, and those on the beads in local frames,
averaged over the rest; far less noise a label. `free` (Bachelor et al. 2025): a short unconstrained run, whose frames
carry instantaneous forces. Both let the other degrees of freedom equilibrate first, which is all that force matching
asks of frames picked by any rule.
"""

import re
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from jaxtyping import Float32, Int

from cgal.all_atom.dynamics import AtomRun, Label, Moment, RunPlan, run_plan
from cgal.all_atom.force_field import build_system, choose_platform, read_structure
from cgal.all_atom.label_files import LabelFiles, LabelTask, Rebuild
from cgal.all_atom.solvation import solvated
from cgal.all_atom.soundness import cis_peptide_bonds
from cgal.all_atom.workers import Announce, FanOut, Outcome, run_in_processes
from cgal.errors import BadFile, Diverged, OracleError, QuorumMissed
from cgal.frames import AtomFrames, alpha_carbons, read_pdb_text
from cgal.hdf5 import Hdf5Record, stored
from cgal.params import ForceFieldParams, OracleParams
from cgal.progress import Progress, silent
from cgal.projection.clusters import constrained_clusters
from cgal.projection.local_frames import project_in_local_frames
from cgal.randomness import derive_seed

__all__ = ["Failure", "OracleResult", "bead_forces", "check_quorum", "label", "relabel", "run_md"]


@dataclass(frozen=True)
class Failure:
    """A pick without a label: where it failed, why, and the folder (in the scratch folder) that keeps its files."""

    pick: int
    stage: str
    reason: str
    folder: str


@dataclass(frozen=True, eq=False)
class OracleResult(Hdf5Record):
    """Labelled frames, failed ones, and what they cost.

    `steps` counts all all-atom steps: minimisations, warm-up, settling of water, burn-in and run, those of failed tries
    too, which `failed_steps` counts (None in files from before it was); what a process had done when it was killed is
    not in them.
    """

    KIND = "oracle-result"

    labelled: AtomFrames
    failures: tuple[Failure, ...] = field(metadata=stored(text=True))
    requested: int
    steps: int
    failed_steps: int | None = None


def label(
    beads: Float32[np.ndarray, "picks beads 3"],
    structure: str,
    *,
    rebuild: Rebuild,
    force_field: ForceFieldParams,
    oracle: OracleParams,
    temperature_K: float,
    seeds: Sequence[int],
    workers: int,
    scratch: Path,
    near: Sequence[Float32[np.ndarray, "atoms 3"] | None] = (),
    progress: Progress = silent,
    fan_out: FanOut = run_in_processes,
) -> OracleResult:
    """Label coarse-grained frames [nm]: rebuild all atoms, equilibrate, take forces.

    `structure` is PDB text, and its atom order is the result's. One positive seed a frame. `rebuild` is a function or
    a `functools.partial` of one. `fan_out` does the frames (see `cgal.all_atom.workers`). `trajectory` is the index of
    the pick. `near` has for each frame all atoms near its beads, which `rebuild` then gets, too, or None.

    A frame that fails is tried once more if chance had a part in it (with another seed, unless its process was killed),
    and is then a Failure whose files lie in `scratch/failed`. Labels found in `scratch` are taken if they were made
    from the same inputs.
    Raises BadStructure or BadParams before any work when structure, force field or platform cannot be used, and
    BadFile when the disk is full.
    """
    plan = run_plan(oracle, force_field)
    files = LabelFiles(structure, rebuild, force_field, plan, temperature_K, scratch)
    tasks = _tasks(beads, seeds)
    if near:
        tasks = [replace(task, near=frame) for task, frame in zip(tasks, near, strict=True)]
    return _run(tasks, files, _settings(oracle), workers, progress, fan_out)


def relabel(
    frames: AtomFrames,
    *,
    force_field: ForceFieldParams,
    oracle: OracleParams,
    temperature_K: float,
    seeds: Sequence[int],
    workers: int,
    scratch: Path,
    progress: Progress = silent,
) -> OracleResult:
    """Give all-atom frames mean-force labels, C-alpha held where they are; see `label`.

    Trajectory numbers and times of the frames stay with them.
    """
    mean = oracle.model_copy(update={"mode": "mean_force"})
    files = LabelFiles(frames.pdb, None, force_field, run_plan(mean, force_field), temperature_K, scratch)
    result = _run(_tasks(frames.positions, seeds), files, _settings(mean), workers, progress)
    picks = result.labelled.trajectory
    labelled = replace(
        result.labelled,
        trajectory=frames.trajectory[picks],
        time_ps=frames.time_ps[picks],
        provenance=result.labelled.provenance | {"relabelled": frames.provenance},
    )
    return replace(result, labelled=labelled)


def run_md(
    structure: str,
    starts: Float32[np.ndarray, "runs atoms 3"],
    *,
    steps: int,
    stride: int,
    equilibration_steps: int = 0,
    force_field: ForceFieldParams,
    temperature_K: float,
    seeds: Sequence[int],
    workers: int,
    scratch: Path,
    progress: Progress = silent,
) -> OracleResult:
    """Plain all-atom dynamics from each start [nm], in the atom order of `structure` (PDB text).

    A run keeps a frame with its forces every `stride` steps, from the end of its equilibration on; `trajectory` is the
    index of the run. See `label` for `seeds`, `scratch` and errors; a run that was killed begins anew.
    """
    plan = RunPlan(equilibration_steps, steps, stride, force_field.timestep_ps, mean_force=False)
    files = LabelFiles(structure, None, force_field, plan, temperature_K, scratch)
    settings = {"run": {"equilibration_steps": equilibration_steps, "steps": steps, "stride": stride}}
    return _run(_tasks(starts, seeds), files, settings, workers, progress)


def check_quorum(result: OracleResult, requested: int, params: OracleParams) -> None:
    """Raise QuorumMissed, with the reasons and how often each, when too few of the requested frames are labelled."""
    done = result.requested - len(result.failures)
    if requested == 0 or done >= params.quorum * requested:
        return
    # numbers differ from frame to frame: reasons that differ in nothing else count as one
    groups = Counter(re.sub(r"\d+(\.\d+)?", "#", f"{failure.stage}: {failure.reason}") for failure in result.failures)
    reasons = "\n".join(f"  {count} x {reason}" for reason, count in groups.most_common())
    raise QuorumMissed(
        f"only {done} of {requested} picked frames could be labelled, and oracle.quorum asks for {params.quorum:.0%}; "
        f"their files are kept in the oracle's scratch folder, in 'failed':\n{reasons}"
    )


def _tasks(frames: Float32[np.ndarray, "frames points 3"], seeds: Sequence[int]) -> list[LabelTask]:
    return [LabelTask(pick, frame, int(seed)) for pick, (frame, seed) in enumerate(zip(frames, seeds, strict=True))]


def _settings(oracle: OracleParams) -> dict[str, Any]:
    return {"oracle": oracle.model_dump(exclude={"quorum"})}


def _run(
    tasks: Sequence[LabelTask],
    files: LabelFiles,
    settings: dict[str, Any],
    workers: int,
    progress: Progress,
    fan_out: FanOut = run_in_processes,
) -> OracleResult:
    if tasks:  # what no frame can do without fails here, once
        choose_platform(files.force_field.platform)
        _system(files.structure, files.force_field, files.plan.mean_force)
    files.clean()
    missing = [task for task in tasks if files.load(task) is None]
    failures: list[Failure] = []
    done = len(tasks) - len(missing)
    progress(done, len(tasks), "taken from an earlier run" if done else "")
    for outcome in fan_out(partial(_label_task, files=files), missing, workers=workers):
        if outcome.reason is not None:
            failures.append(_failure(missing[outcome.index], outcome, files))
        done += 1
        progress(done, len(tasks), f"{len(failures)} failed" if failures else "")
    return _collect(tasks, sorted(failures, key=lambda failure: failure.pick), files, settings)


def _failure(task: LabelTask, outcome: Outcome, files: LabelFiles) -> Failure:
    assert outcome.reason is not None
    files.keep_request(task, f"{outcome.stage}: {outcome.reason}\n" if outcome.crashed else None)
    return Failure(task.pick, outcome.stage, outcome.reason, task.evidence)


def _collect(
    tasks: Sequence[LabelTask], failures: Sequence[Failure], files: LabelFiles, settings: dict[str, Any]
) -> OracleResult:
    atoms = read_structure(files.structure)[0].getNumAtoms()
    failed = {failure.pick for failure in failures}
    nothing = np.empty((0, atoms, 3), dtype=np.float32)
    labels = [Label(nothing, nothing, np.empty(0))]
    picks = [-1]
    for task in tasks:
        if task.pick not in failed:
            found = files.load(task)
            if found is None:
                raise BadFile(f"{files.path(task)}: vanished while the labelling ran; run it again")
            labels.append(found)
            picks.append(task.pick)
    frames = AtomFrames(
        files.structure,
        np.concatenate([found.positions for found in labels]),
        np.concatenate([found.forces for found in labels]),
        np.repeat(picks, [len(found.time_ps) for found in labels]).astype(np.int32),
        np.concatenate([found.time_ps for found in labels]),
        {
            "forces": "mean" if files.plan.mean_force else "instantaneous",
            "force_field": files.force_field.model_dump(),
            "temperature_K": files.temperature_K,
        }
        | settings,
        _joined_bead_forces(labels[1:], files) if files.plan.mean_force else None,
    )
    lost = sum(files.steps_lost(task) for task in tasks if task.pick in failed)
    return OracleResult(
        frames,
        tuple(failures),
        len(tasks),
        sum(found.steps for found in labels) + lost,
        sum(found.failed_steps for found in labels) + lost,
    )


def _joined_bead_forces(labels: Sequence[Label], files: LabelFiles) -> Float32[np.ndarray, "frames beads 3"]:
    beads = len(alpha_carbons(read_pdb_text(files.structure).topology))
    found = [label.bead_forces for label in labels if label.bead_forces is not None]
    return np.concatenate([np.empty((0, beads, 3), dtype=np.float32), *found])


# ------------------------------------------------------------------------------------- inside a worker process


def _label_task(task: LabelTask, attempt: int, announce: Announce, *, files: LabelFiles) -> None:
    """Label one frame and write it; on failure keep the structure and the traceback, and raise."""
    seed = task.seed if attempt == 0 else derive_seed(task.seed, 0, "oracle-retry", attempt)
    lost = files.steps_lost(task) if attempt else 0
    positions, spent = task.start, lost
    try:
        if files.rebuild is not None:
            announce("backmapping")
            known = {} if task.near is None else {"near": task.near}
            positions, steps = files.rebuild(task.start, seed=seed, **known)
            spent += steps
        announce("labelling")
        found = _label(positions, files, seed)
        if files.rebuild is not None:
            _check_isomer(found, files)
    except Exception as error:
        spent += getattr(error, "steps", 0)
        files.keep_evidence(task, getattr(error, "positions", positions), traceback.format_exc(), spent)
        raise
    files.save(task, replace(found, steps=spent + found.steps, failed_steps=lost))


@lru_cache(maxsize=4)
def _system(structure: str, force_field: ForceFieldParams, hold_alpha_carbons: bool) -> openmm.System:
    topology, _ = read_structure(structure)
    return build_system(topology, force_field, hold_alpha_carbons=hold_alpha_carbons)


def bead_forces(structure: str, moments: Sequence[Moment]) -> Float32[np.ndarray, "moments beads 3"]:
    """Forces in local frames at each moment [kJ/mol/nm]."""
    frames = AtomFrames(
        structure,
        np.array([moment.positions for moment in moments], dtype=np.float32),
        np.array([moment.forces for moment in moments], dtype=np.float32),
        np.zeros(len(moments), dtype=np.int32),
        np.zeros(len(moments)),
        {"forces": "instantaneous"},
    )
    return project_in_local_frames(frames, _clusters(structure))


@lru_cache(maxsize=4)
def _clusters(structure: str) -> tuple[Int[np.ndarray, " members"], ...]:
    return constrained_clusters(read_pdb_text(structure).topology)


def _label(positions: Float32[np.ndarray, "atoms 3"], files: LabelFiles, seed: int) -> Label:
    run = AtomRun(
        _system(files.structure, files.force_field, files.plan.mean_force),
        files.force_field,
        temperature_K=files.temperature_K,
        timestep_ps=files.plan.timestep_ps,
        seed=seed,
        atoms=len(positions),
    )
    solvation_steps = 0
    try:
        start, solvation_steps = solvated(
            positions, files.structure, files.force_field, temperature_K=files.temperature_K, seed=seed
        )
        run.place(start, constrain=True)
        run.draw_velocities()
        found = files.plan.label(run, partial(bead_forces, files.structure))
    except Diverged as reason:
        section = "oracle" if files.plan.mean_force else "force_field"
        error = OracleError(f"the all-atom run diverged ({reason}); lower {section}.timestep_ps")
        error.steps = solvation_steps + run.steps + reason.steps
        raise error from reason
    return replace(found, steps=solvation_steps + run.steps)


def _check_isomer(found: Label, files: LabelFiles) -> None:
    """Raise OracleError when a peptide bond is cis that is not so in the structure.

    A strained rebuilt backbone may snap over once its C-alpha are free. Unstrained peptide bonds do not turn within a
    simulation, so neither the ground truth nor the model's other frames ever see that isomer.
    """
    topology, structure = read_structure(files.structure)
    known = cis_peptide_bonds(topology, structure)
    new = [fault for frame in found.positions for fault in cis_peptide_bonds(topology, frame) if fault not in known]
    if new:
        error = OracleError(f"{new[0]}, which the structure has not: the rebuilt backbone was strained")
        error.steps = found.steps
        raise error
