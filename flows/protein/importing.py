"""Setting up a protein: an all-atom trajectory becomes reference, start structure, seed and first shard.

Without a trajectory, the seed comes from short runs from the structure, and the reference from `cgal reference`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from cgal.all_atom.oracle import check_quorum, relabel, run_md
from cgal.dataset import prepare, reset
from cgal.errors import BadParams, EmptyTrajectory
from cgal.files import write_text
from cgal.frames import AtomFrames, read_pdb_text
from cgal.importing import as_reference, confine, import_trajectory, medoid, structure_pdb
from cgal.projection.mapping import coordinate_map
from cgal.randomness import derive_seed
from flows.terminal import console, stage_bar
from flows.workspace import Workspace

__all__ = ["SeedRuns", "SeedWindow", "import_protein", "make_seed"]


@dataclass(frozen=True)
class SeedWindow:
    """Which frames become the seed: a window in time, and at most this far from its medoid in RMSD."""

    first_ps: float | None
    last_ps: float | None
    confine_nm: float | None


def import_protein(
    workspace: Workspace,
    topology: Path,
    trajectories: list[Path],
    forces: Literal["stored", "recompute"],
    window: SeedWindow,
    *,
    frame_ps: float | None,
    mean_force: bool,
) -> None:
    """Write `data/<protein>/` from an all-atom trajectory.

    All frames become `reference.h5`; those in the window become `seed.h5`, its medoid `structure.pdb`. With
    `mean_force` the oracle labels the seed frames again (`seed_labels.h5`). Then force map and shard 0 are made.
    A campaign that the folder held is taken back to nothing: its published rounds keep their bytes in the DVC cache.
    """
    params = workspace.params
    with stage_bar("import") as progress:
        frames = import_trajectory(
            topology,
            trajectories,
            temperature_K=params.temperature_K,
            forces=forces,
            force_field=params.force_field,
            frame_ps=frame_ps,
            progress=progress,
        )
    seed, centre = _seed(frames, window)
    reset(workspace.data)
    as_reference(frames).save(workspace.data / "reference.h5")
    (workspace.data / "reference.json").unlink(missing_ok=True)  # it tells of another one
    write_text(workspace.data / "structure.pdb", structure_pdb(seed, centre))
    _save_seed(workspace, seed, mean_force=mean_force)
    console.print(f"{workspace.data}: {len(frames)} reference frames, {len(seed)} seed frames")


@dataclass(frozen=True)
class SeedRuns:
    """Short all-atom runs from the structure: how many, their length, what each leaves out first, between frames."""

    runs: int
    length_ps: float
    equilibration_ps: float
    spacing_ps: float
    confine_nm: float | None


def make_seed(workspace: Workspace, plan: SeedRuns, mean_force: bool | None = None) -> None:
    """Write the seed of `data/<protein>/` from runs in the force field and at the temperature of params.yaml.

    The frames, at most `confine_nm` from the structure in C-alpha RMSD, become `seed.h5`; what follows, and what is
    lost, is as with `import_protein`. `mean_force` left out is as `oracle.mode` has it. The reference, if there is one,
    stays. Raises BadStructure or BadParams.
    """
    params, timestep_ps = workspace.params, workspace.params.force_field.timestep_ps
    if plan.length_ps < plan.spacing_ps or plan.spacing_ps < timestep_ps:
        raise BadParams(
            f"runs of {plan.length_ps} ps with a frame every {plan.spacing_ps} ps: the spacing must lie between "
            f"force_field.timestep_ps ({timestep_ps} ps) and the length"
        )
    start = np.asarray(read_pdb_text(workspace.structure).xyz, dtype=np.float32)
    with stage_bar("seed runs") as progress:
        result = run_md(
            workspace.structure,
            np.repeat(start, plan.runs, axis=0),
            steps=round(plan.length_ps / timestep_ps),
            stride=round(plan.spacing_ps / timestep_ps),
            equilibration_steps=round(plan.equilibration_ps / timestep_ps),
            force_field=params.force_field,
            oracle=params.oracle,
            temperature_K=params.temperature_K,
            seeds=[derive_seed(params.seed, 0, "seed run", run) for run in range(plan.runs)],
            workers=params.execution.oracle_workers,
            scratch=workspace.scratch("seed-runs"),
            progress=progress,
        )
    check_quorum(result, plan.runs, params.oracle)
    seed = result.labelled
    if plan.confine_nm is not None:
        seed = confine(seed, coordinate_map(seed.topology)(start)[0], plan.confine_nm)
    reset(workspace.data)
    _save_seed(workspace, seed, mean_force=params.oracle.mode == "mean_force" if mean_force is None else mean_force)
    console.print(f"{workspace.data}: {len(seed)} seed frames of {len(result.labelled)}, {result.steps:,} steps")


def _save_seed(workspace: Workspace, seed: AtomFrames, *, mean_force: bool) -> None:
    seed.save(workspace.data / "seed.h5")
    (workspace.data / "seed_labels.h5").unlink(missing_ok=True)
    if mean_force:
        _label(workspace, seed)
    prepare(workspace.data, workspace.params)


def _seed(frames: AtomFrames, window: SeedWindow) -> tuple[AtomFrames, int]:
    first = frames.time_ps[0] if window.first_ps is None else window.first_ps
    last = frames.time_ps[-1] if window.last_ps is None else window.last_ps
    seed = frames.take((frames.time_ps >= first) & (frames.time_ps <= last))
    if not len(seed):
        raise EmptyTrajectory(
            f"no frame lies between {first} and {last} ps; the trajectory ends at {frames.time_ps[-1]} ps"
        )
    beads = coordinate_map(seed.topology)(seed.positions)
    centre = beads[medoid(beads)]
    if window.confine_nm is not None:
        seed = confine(seed, centre, window.confine_nm)
    return seed, medoid(coordinate_map(seed.topology)(seed.positions))


def _label(workspace: Workspace, seed: AtomFrames) -> None:
    params = workspace.params
    with stage_bar("label seed") as progress:
        result = relabel(
            seed,
            force_field=params.force_field,
            oracle=params.oracle,
            temperature_K=params.temperature_K,
            seeds=[derive_seed(params.seed, 0, "label seed", index) for index in range(len(seed))],
            workers=params.execution.oracle_workers,
            scratch=workspace.scratch("seed"),
            progress=progress,
        )
    cost = result.labelled.provenance | {"oracle_steps": result.steps}
    replace(result.labelled, provenance=cost).save(workspace.data / "seed_labels.h5")
    console.print(f"labelled {len(result.labelled)} of {len(seed)} seed frames in {result.steps:,} all-atom steps")
    for failure in result.failures:
        console.print(f"  frame {failure.pick}: {failure.stage}: {failure.reason} (kept in {failure.folder})")
