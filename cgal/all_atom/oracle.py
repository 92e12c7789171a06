"""All-atom labels: forces on picked frames from OpenMM, one process a frame, no frame lost without a reason.

Two kinds of label. `mean_force`: C-alpha held, the forces on all atoms averaged over the rest; far less noise a
label. `free` (Bachelor et al. 2025): a short unconstrained run, whose frames carry instantaneous forces. Both let the
other degrees of freedom equilibrate first, which is all that force matching asks of frames picked by any rule.

Each labelled frame is a file in the scratch folder, keyed by all that it depends on: a labelling that was killed goes
on with the frames still missing.
"""

import json
import re
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from jaxtyping import Float32, Float64, Shaped
from openmm import app

from cgal.all_atom.force_field import (
    build_system,
    choose_platform,
    forces_of,
    make_context,
    positions_of,
    read_structure,
    write_structure,
)
from cgal.all_atom.soundness import cis_peptide_bonds
from cgal.all_atom.workers import Announce, FanOut, Outcome, run_in_processes
from cgal.errors import BadFile, OracleError, QuorumMissed
from cgal.files import decode, read_hdf5, write_hdf5, write_text
from cgal.frames import AtomFrames
from cgal.params import ForceFieldParams, OracleParams
from cgal.progress import Progress, silent
from cgal.randomness import derive_seed

__all__ = ["Failure", "OracleResult", "Rebuild", "check_quorum", "label", "relabel", "run_md", "steps_per_pick"]

type Rebuild = Callable[..., Float32[np.ndarray, "atoms 3"]]
"""`rebuild(beads, seed=seed)` gives warm all-atom positions [nm] for C-alpha beads [nm]; picklable."""

FORMAT = 2
"""Raised whenever a label's meaning changes, so that no stale one is picked up."""

STEPS_FILE = "steps.txt"

DIVERGED_kJ_per_mol_nm = 1e5
"""A force on one atom beyond this (thermal ones stay below 1e4) means that the run has diverged."""


@dataclass(frozen=True)
class Failure:
    """A pick without a label: where it failed, why, and the folder (in the scratch folder) that keeps its files."""

    pick: int
    stage: str
    reason: str
    folder: str


@dataclass(frozen=True, eq=False)
class OracleResult:
    """Labelled frames, failed ones, and what they cost.

    `steps` counts all molecular-dynamics steps: warm-up, burn-in and average, those of failed tries too (what a process
    had done when it was killed, and minimisation, are not in it). `wall_time_s` is that of the call, and is not saved.
    """

    labelled: AtomFrames
    failures: tuple[Failure, ...]
    requested: int
    steps: int
    wall_time_s: float = 0.0

    def save(self, path: Path) -> None:
        """Write the result; same seeds, same bytes."""
        frames = self.labelled
        write_hdf5(
            path,
            {
                "positions": frames.positions,
                "forces": frames.forces,
                "trajectory": frames.trajectory,
                "time_ps": frames.time_ps,
                "pdb": frames.pdb,
                "failures": json.dumps([vars(failure) for failure in self.failures], sort_keys=True),
            },
            {
                "cgal_kind": "oracle-result",
                "provenance": json.dumps(frames.provenance, sort_keys=True),
                "requested": self.requested,
                "steps": self.steps,
            },
        )

    @classmethod
    def load(cls, path: Path) -> "OracleResult":
        """Read what `save` wrote; raises BadFile."""
        with read_hdf5(path, "oracle-result") as handle:
            return cls(
                AtomFrames(
                    decode(handle["pdb"][()]),
                    handle["positions"][:],
                    handle["forces"][:],
                    handle["trajectory"][:],
                    handle["time_ps"][:],
                    json.loads(decode(handle.attrs["provenance"])),
                ),
                tuple(Failure(**failure) for failure in json.loads(decode(handle["failures"][()]))),
                int(handle.attrs["requested"]),
                int(handle.attrs["steps"]),
            )


@dataclass(frozen=True)
class Recipe:
    """How each frame of a batch is labelled."""

    structure: str
    rebuild: Rebuild | None
    force_field: ForceFieldParams
    oracle: OracleParams
    temperature_K: float
    scratch: Path
    rebuild_steps: int = 0

    def fingerprint(self, task: "Task") -> str:
        """SHA-256 of everything that the label of a frame depends on."""
        parts = [
            FORMAT,
            sha256(task.start.tobytes()).hexdigest(),
            task.seed,
            self.structure,
            _identity(self.rebuild),
            self.force_field.model_dump_json(),
            self.oracle.model_dump_json(exclude={"quorum"}),
            self.temperature_K,
            self.rebuild_steps,
        ]
        return sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Task:
    """One frame to label: its beads, or all its atoms when nothing is to be rebuilt."""

    pick: int
    start: Float32[np.ndarray, "points 3"]
    seed: int

    def label_path(self, scratch: Path) -> Path:
        """Where the label goes."""
        return scratch / f"frame-{self.pick:04d}.h5"

    @property
    def evidence(self) -> str:
        """Folder below the scratch folder for the files of a failed frame."""
        return f"failed/frame-{self.pick:04d}"


@dataclass(frozen=True, eq=False)
class Label:
    """What one frame brought: one frame with a mean force, or several with instantaneous ones."""

    positions: Float32[np.ndarray, "frames atoms 3"]
    forces: Float32[np.ndarray, "frames atoms 3"]
    time_ps: Float64[np.ndarray, " frames"]
    steps: int = 0


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
    progress: Progress = silent,
    rebuild_steps: int = 0,
    fan_out: FanOut = run_in_processes,
) -> OracleResult:
    """Label coarse-grained frames [nm]: rebuild all atoms, equilibrate, take forces.

    `structure` is PDB text, and its atom order is the result's. One positive seed a frame. `rebuild` is a function or
    a `functools.partial` of one. `rebuild_steps` are the molecular-dynamics steps that it takes (its warm-up), for the
    count. `fan_out` does the frames (see `cgal.all_atom.workers`). `trajectory` is the index of the pick.

    A frame that fails is tried once more if chance had a part in it (with another seed, unless its process was killed),
    and is then a Failure whose files lie in `scratch/failed`. Labels found in `scratch` are taken if they were made
    from the same inputs.
    Raises BadStructure or BadParams before any work when structure, force field or platform cannot be used, and
    BadFile when the disk is full.
    """
    recipe = Recipe(structure, rebuild, force_field, oracle, temperature_K, scratch, rebuild_steps)
    tasks = [Task(pick, frame, int(seed)) for pick, (frame, seed) in enumerate(zip(beads, seeds, strict=True))]
    return _run(tasks, recipe, workers, progress, fan_out)


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
    recipe = Recipe(frames.pdb, None, force_field, mean, temperature_K, scratch)
    tasks = [
        Task(pick, frame, int(seed)) for pick, (frame, seed) in enumerate(zip(frames.positions, seeds, strict=True))
    ]
    result = _run(tasks, recipe, workers, progress)
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
    oracle: OracleParams,
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
    update = {"mode": "free", "burn_in_steps": equilibration_steps, "average_steps": steps, "free_stride": stride}
    recipe = Recipe(structure, None, force_field, oracle.model_copy(update=update), temperature_K, scratch)
    tasks = [Task(run, start, int(seed)) for run, (start, seed) in enumerate(zip(starts, seeds, strict=True))]
    return _run(tasks, recipe, workers, progress)


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


def _run(
    tasks: Sequence[Task], recipe: Recipe, workers: int, progress: Progress, fan_out: FanOut = run_in_processes
) -> OracleResult:
    begin = time.monotonic()
    topology, _ = read_structure(recipe.structure)
    if tasks:  # what no frame can do without fails here, once
        choose_platform(recipe.force_field.platform)
        _system(recipe.structure, recipe.force_field, recipe.oracle.mode)
    _clean(recipe.scratch)
    missing = [task for task in tasks if _load_label(task, recipe) is None]
    failures: list[Failure] = []
    done = len(tasks) - len(missing)
    progress(done, len(tasks), "taken from an earlier run" if done else "")
    for outcome in fan_out(partial(_label_task, recipe=recipe), missing, workers=workers):
        if outcome.reason is not None:
            failures.append(_failure(missing[outcome.index], outcome, recipe))
        done += 1
        progress(done, len(tasks), f"{len(failures)} failed" if failures else "")
    result = _collect(tasks, sorted(failures, key=lambda failure: failure.pick), recipe, topology.getNumAtoms())
    return replace(result, wall_time_s=time.monotonic() - begin)


def _clean(scratch: Path) -> None:
    """Remove the evidence of earlier failures, and what a killed process left half-written."""
    shutil.rmtree(scratch / "failed", ignore_errors=True)
    for leftover in scratch.glob(".frame-*.tmp"):
        leftover.unlink(missing_ok=True)


def _collect(tasks: Sequence[Task], failures: Sequence[Failure], recipe: Recipe, atoms: int) -> OracleResult:
    failed = {failure.pick for failure in failures}
    nothing = np.empty((0, atoms, 3), dtype=np.float32)
    labels = [Label(nothing, nothing, np.empty(0))]
    picks = [-1]
    for task in tasks:
        if task.pick not in failed:
            found = _load_label(task, recipe)
            if found is None:
                raise BadFile(f"{task.label_path(recipe.scratch)}: vanished while the labelling ran; run it again")
            labels.append(found)
            picks.append(task.pick)
    frames = AtomFrames(
        recipe.structure,
        np.concatenate([found.positions for found in labels]),
        np.concatenate([found.forces for found in labels]),
        np.repeat(picks, [len(found.time_ps) for found in labels]).astype(np.int32),
        np.concatenate([found.time_ps for found in labels]),
        _provenance(recipe),
    )
    lost = sum(_steps_lost(task, recipe) for task in tasks if task.pick in failed)
    return OracleResult(frames, tuple(failures), len(tasks), sum(found.steps for found in labels) + lost)


def _provenance(recipe: Recipe) -> dict[str, Any]:
    return {
        "forces": "mean" if recipe.oracle.mode == "mean_force" else "instantaneous",
        "force_field": recipe.force_field.model_dump(),
        "oracle": recipe.oracle.model_dump(exclude={"quorum"}),
        "temperature_K": recipe.temperature_K,
    }


def steps_per_pick(oracle: OracleParams, rebuild_steps: int = 0) -> int:
    """All-atom steps of a pick that is labelled at the first try."""
    stride = oracle.sample_stride if oracle.mode == "mean_force" else oracle.free_stride
    return rebuild_steps + oracle.burn_in_steps + oracle.average_steps // stride * stride


def _identity(rebuild: Rebuild | None) -> str:
    if isinstance(rebuild, partial):
        return f"{_identity(rebuild.func)} {rebuild.args!r} {sorted(rebuild.keywords.items())!r}"
    return f"{rebuild.__module__}.{rebuild.__qualname__}" if rebuild else "none"


def _load_label(task: Task, recipe: Recipe) -> Label | None:
    try:
        with read_hdf5(task.label_path(recipe.scratch), "oracle-frame") as handle:
            if handle.attrs["fingerprint"] != recipe.fingerprint(task):
                return None
            steps = int(handle.attrs["steps"])
            return Label(handle["positions"][:], handle["forces"][:], handle["time_ps"][:], steps)
    except BadFile:
        return None


def _failure(task: Task, outcome: Outcome, recipe: Recipe) -> Failure:
    assert outcome.reason is not None
    folder = recipe.scratch / task.evidence
    if outcome.crashed:
        write_text(folder / "log.txt", f"{outcome.stage}: {outcome.reason}\n")
    _write_beads(task, recipe, folder)
    return Failure(task.pick, outcome.stage, outcome.reason, task.evidence)


def _write_beads(task: Task, recipe: Recipe, folder: Path) -> None:
    """Write what the frame was asked to be: its beads, or all its atoms."""
    topology, _ = read_structure(recipe.structure)
    if recipe.rebuild is not None:
        modeller = app.Modeller(topology, np.zeros((topology.getNumAtoms(), 3)))
        modeller.delete([atom for atom in topology.atoms() if atom.name != "CA"])
        topology = modeller.topology
    if topology.getNumAtoms() == len(task.start):
        write_text(folder / "picked.pdb", _printable(topology, task.start))


def _printable(topology: app.Topology, positions: Shaped[np.ndarray, "atoms 3"]) -> str:
    """PDB text of any positions: those that a PDB cannot hold are set to its limits, missing ones to the origin."""
    return write_structure(topology, np.clip(np.nan_to_num(positions, nan=0.0), -900.0, 900.0))


# ------------------------------------------------------------------------------------- inside a worker process


def _label_task(task: Task, attempt: int, announce: Announce, *, recipe: Recipe) -> None:
    """Label one frame and write it; on failure keep the structure and the traceback, and raise."""
    seed = task.seed if attempt == 0 else derive_seed(task.seed, 0, "oracle-retry", attempt)
    lost = _steps_lost(task, recipe) if attempt else 0
    positions = None
    try:
        positions = task.start
        if recipe.rebuild is not None:
            announce("backmapping")
            positions = recipe.rebuild(task.start, seed=seed)
        announce("labelling")
        found = (_mean_force if recipe.oracle.mode == "mean_force" else _free)(positions, recipe, seed)
        if recipe.rebuild is not None:
            _check_isomer(found, recipe)
    except Exception as error:
        _keep_evidence(task, recipe, getattr(error, "positions", positions), traceback.format_exc())
        write_text(recipe.scratch / task.evidence / STEPS_FILE, f"{lost + getattr(error, 'steps', 0)}\n")
        raise
    write_hdf5(
        task.label_path(recipe.scratch),
        {"positions": found.positions, "forces": found.forces, "time_ps": found.time_ps},
        {
            "cgal_kind": "oracle-frame",
            "fingerprint": recipe.fingerprint(task),
            "steps": lost + steps_per_pick(recipe.oracle, recipe.rebuild_steps),
        },
    )
    shutil.rmtree(recipe.scratch / task.evidence, ignore_errors=True)


def _steps_lost(task: Task, recipe: Recipe) -> int:
    """Molecular-dynamics steps of the tries of this frame that failed; none is known of one whose process died."""
    path = recipe.scratch / task.evidence / STEPS_FILE
    return int(path.read_text()) if path.exists() else 0


def _keep_evidence(task: Task, recipe: Recipe, positions: Shaped[np.ndarray, "points 3"] | None, log: str) -> None:
    folder = recipe.scratch / task.evidence
    write_text(folder / "log.txt", log)
    topology, _ = read_structure(recipe.structure)
    if positions is not None and len(positions) == topology.getNumAtoms():
        write_text(folder / "structure.pdb", _printable(topology, positions))


@lru_cache(maxsize=4)
def _system(structure: str, force_field: ForceFieldParams, mode: str) -> openmm.System:
    topology, _ = read_structure(structure)
    return build_system(topology, force_field, hold_alpha_carbons=mode == "mean_force")


def _start(positions: Float32[np.ndarray, "atoms 3"], recipe: Recipe, timestep_ps: float, seed: int) -> openmm.Context:
    """Context after burn-in."""
    system = _system(recipe.structure, recipe.force_field, recipe.oracle.mode)
    context = make_context(
        system, recipe.force_field, temperature_K=recipe.temperature_K, timestep_ps=timestep_ps, seed=seed
    )
    context.setPositions(positions.astype(np.float64))
    context.applyConstraints(1e-6)
    context.setVelocitiesToTemperature(recipe.temperature_K, seed)
    _advance(context, recipe.oracle.burn_in_steps, recipe)
    return context


def _advance(context: openmm.Context, steps: int, recipe: Recipe) -> Float64[np.ndarray, "atoms 3"]:
    """Forces [kJ/mol/nm] after so many steps; raises OracleError when the run has diverged."""
    try:
        context.getIntegrator().step(steps)
        forces = forces_of(context)
    except openmm.OpenMMException as error:
        raise _diverged(str(error), context, recipe) from error
    if not np.abs(forces).max() < DIVERGED_kJ_per_mol_nm:
        raise _diverged("a force is out of bounds", context, recipe)
    return forces


def _check_isomer(found: Label, recipe: Recipe) -> None:
    """Raise OracleError when a peptide bond is cis that is not so in the structure.

    A strained rebuilt backbone may snap over once its C-alpha are free. Unstrained peptide bonds do not turn within a
    simulation, so neither the ground truth nor the model's other frames ever see that isomer.
    """
    topology, structure = read_structure(recipe.structure)
    known = cis_peptide_bonds(topology, structure)
    new = [fault for frame in found.positions for fault in cis_peptide_bonds(topology, frame) if fault not in known]
    if new:
        error = OracleError(f"{new[0]}, which the structure has not: the rebuilt backbone was strained")
        error.steps = steps_per_pick(recipe.oracle, recipe.rebuild_steps)
        raise error


def _diverged(reason: str, context: openmm.Context, recipe: Recipe) -> OracleError:
    error = OracleError(f"the all-atom run diverged ({reason}); lower oracle.timestep_ps")
    error.steps = recipe.rebuild_steps + context.getStepCount()
    return error


def _mean_force(positions: Float32[np.ndarray, "atoms 3"], recipe: Recipe, seed: int) -> Label:
    """Last frame of a run with held C-alpha, and the forces averaged over the run."""
    oracle = recipe.oracle
    context = _start(positions, recipe, oracle.timestep_ps, seed)
    samples = oracle.average_steps // oracle.sample_stride
    total = np.zeros(positions.shape)
    for _ in range(samples):
        total += _advance(context, oracle.sample_stride, recipe)
    return Label(
        positions_of(context)[np.newaxis].astype(np.float32),
        (total / samples)[np.newaxis].astype(np.float32),
        np.zeros(1),
    )


def _free(positions: Float32[np.ndarray, "atoms 3"], recipe: Recipe, seed: int) -> Label:
    """Frames of an unconstrained run with their instantaneous forces, times counted from the end of the burn-in."""
    oracle, timestep_ps = recipe.oracle, recipe.force_field.timestep_ps
    context = _start(positions, recipe, timestep_ps, seed)
    frames = oracle.average_steps // oracle.free_stride
    forces = np.empty((frames, *positions.shape), dtype=np.float32)
    trajectory = np.empty_like(forces)
    for frame in range(frames):
        forces[frame] = _advance(context, oracle.free_stride, recipe)
        trajectory[frame] = positions_of(context)
    return Label(trajectory, forces, np.arange(1, frames + 1) * (oracle.free_stride * timestep_ps))
