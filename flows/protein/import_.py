"""Setting up a protein from an all-atom trajectory: it becomes reference, start structure, seed and first shard."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.markup import escape

from cgal.dataset import reset
from cgal.errors import EmptyTrajectory
from cgal.files import write_text
from cgal.foreign.chemistry import Selection
from cgal.frames import AtomFrames
from cgal.importing import as_reference, confine, import_trajectory, medoid, structure_pdb
from cgal.projection.mapping import coordinate_map
from flows.protein.seed import save_seed
from flows.terminal import console, stage_bar
from flows.workspace import Workspace

__all__ = ["SeedWindow", "import_protein"]


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
    select: Selection = "auto",
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
            select=select,
            progress=progress,
        )
    for note in frames.provenance["notes"]:
        console.print(f"  {escape(note)}")
    seed, centre = _seed(frames, window)
    reset(workspace.data)
    as_reference(frames).save(workspace.data / "reference.h5")
    (workspace.data / "reference.json").unlink(missing_ok=True)  # it tells of another one
    write_text(workspace.data / "structure.pdb", structure_pdb(seed, centre))
    save_seed(workspace, seed, mean_force=mean_force)
    console.print(f"{workspace.data}: {len(frames)} reference frames, {len(seed)} seed frames")


def _seed(frames: AtomFrames, window: SeedWindow) -> tuple[AtomFrames, int]:
    first = -np.inf if window.first_ps is None else window.first_ps
    last = np.inf if window.last_ps is None else window.last_ps
    seed = frames.take((frames.time_ps >= first) & (frames.time_ps <= last))
    if not len(seed):
        raise EmptyTrajectory(
            f"no frame lies between {first} and {last} ps; the trajectories go from {frames.time_ps.min():g} to "
            f"{frames.time_ps.max():g} ps: change --seed-first-ps or --seed-last-ps"
        )
    beads = coordinate_map(seed.topology)(seed.positions)
    centre = beads[medoid(beads)]
    if window.confine_nm is not None:
        seed = confine(seed, centre, window.confine_nm)
    return seed, medoid(coordinate_map(seed.topology)(seed.positions))
