"""Setting up a protein from an all-atom trajectory: it becomes reference, start structure, seed and first shard."""

import math
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from rich.markup import escape

from cgal.benchmark.lag import lag_frames
from cgal.dataset import reset
from cgal.errors import BadParams, EmptyTrajectory, Refusals
from cgal.files import made_aside, write_text
from cgal.frames import CGTrajectory
from cgal.importing import (
    Choice,
    ForceOrigin,
    ReadTrajectories,
    medoid,
    near,
    read_trajectories,
    structure_pdb,
)
from cgal.training.held_out import require_enough
from flows.campaign.preflight import require_replaceable, require_repository, tell_undo
from flows.protein.seed import save_seed
from flows.terminal import console, stage_bar
from flows.workspace import Workspace

__all__ = ["SeedWindow", "Source", "import_protein"]


@dataclass(frozen=True)
class SeedWindow:
    """Which frames become the seed: a window in time, at most this far from its medoid in RMSD, at most so many.

    Of more than `frames` every n-th is taken: force map and network are fitted to all of them.
    """

    first_ps: float | None = None
    last_ps: float | None = None
    confine_nm: float | None = None
    frames: int = 10_000

    def check(self) -> None:
        """Raise BadParams for a window or distance that holds nothing."""
        (first, last), refusals = self.edges_ps, Refusals()
        with refusals.gathered():
            if not first < last:
                raise BadParams(f"--seed-first-ps {first:g} is not before --seed-last-ps {last:g}; turn them round")
        with refusals.gathered():
            if self.confine_nm is not None and not (math.isfinite(self.confine_nm) and self.confine_nm > 0):
                raise BadParams(f"--confine-nm is {self.confine_nm:g}; give a positive number of nm")
        refusals.tell()

    @property
    def edges_ps(self) -> tuple[float, float]:
        """First and last time [ps]."""
        first = -math.inf if self.first_ps is None else self.first_ps
        return first, math.inf if self.last_ps is None else self.last_ps


@dataclass(frozen=True)
class Source:
    """Files of an all-atom trajectory, what of them is taken, and where the forces come from."""

    topology: Path
    trajectories: tuple[Path, ...]
    forces: ForceOrigin = "stored"
    choice: Choice = field(default_factory=Choice)


class Checked(NamedTuple):
    """What was read and may become a protein: all frames as a reference, some as the seed; how to undo it, or ""."""

    read: ReadTrajectories
    reference: CGTrajectory
    in_seed: Bool[np.ndarray, " frames"]
    undo: str


def import_protein(
    workspace: Workspace, source: Source, window: SeedWindow, *, mean_force: bool, replacing: bool = False
) -> None:
    """Make `data/<protein>/` from an all-atom trajectory, whole or not at all.

    All frames become `reference.h5`; those in the window become `seed.h5`, its medoid `structure.pdb`. With
    `mean_force` the oracle labels the seed frames again (`seed_labels.h5`). Then force map and shard 0 are made. All
    this is done aside and takes the place of what was there in the end; other files of the folder are kept.

    What the files, the repository and `params.yaml` do not allow is refused before any force is computed, all at once
    (Refused). A campaign that the folder held is taken back to nothing, if `replacing` (BadParams otherwise): its
    published rounds keep their bytes in the DVC cache.
    """
    params = workspace.params
    read, reference, in_seed, undo = _checked(workspace, source, window, replacing)
    with stage_bar("forces") as progress:
        seed = read.take(in_seed).labelled(source.forces, params.force_field, note=_say, progress=progress)
    seed = replace(seed, provenance=seed.provenance | {"maximum_rmsd_nm": window.confine_nm})
    with made_aside(workspace.data) as folder:
        reset(folder)
        reference.save(folder / "reference.h5")
        (folder / "reference.json").unlink(missing_ok=True)  # it tells of another one
        write_text(folder / "structure.pdb", structure_pdb(seed, medoid(reference.positions[in_seed])))
        save_seed(workspace, folder, seed, mean_force=mean_force)
    console.print(f"{workspace.data}: {len(reference)} reference frames, {len(seed)} seed frames")
    tell_undo(undo)


def _checked(workspace: Workspace, source: Source, window: SeedWindow, replacing: bool) -> Checked:
    """Read all files; raises the one thing that is to be mended, or Refused with all of them."""
    params, refusals = workspace.params, Refusals()
    with refusals.gathered():
        undo = require_replaceable(workspace, require_repository(workspace), replacing)
    with refusals.gathered():
        window.check()
    scratch = workspace.scratch("import")
    shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
    scratch.mkdir(parents=True)
    with refusals.gathered():
        with stage_bar("read") as progress:
            read = read_trajectories(
                source.topology,
                source.trajectories,
                source.choice,
                temperature_K=params.temperature_K,
                scratch=scratch,
                note=_say,
                progress=progress,
            )
        reference = read.reference()
        with refusals.gathered():
            lag_frames(reference, params.benchmark.tica_lag_ps)
        with refusals.gathered():
            read.require_forces(source.forces, params.force_field)
        with refusals.gathered():
            in_seed = _in_seed(reference, window)
            require_enough([reference.replica[in_seed]], params.training)
    refusals.tell()
    return Checked(read, reference, in_seed, undo)


def _in_seed(reference: CGTrajectory, window: SeedWindow) -> Bool[np.ndarray, " frames"]:
    """Which frames are taken of those in the window, in time and near its medoid; raises EmptyTrajectory if none is."""
    (first, last), time_ps = window.edges_ps, reference.time_ps
    inside: Bool[np.ndarray, " frames"] = (time_ps >= first) & (time_ps <= last)
    if not inside.any():
        raise EmptyTrajectory(
            f"no frame lies between {first} and {last} ps; the trajectories go from {time_ps.min():g} to "
            f"{time_ps.max():g} ps: change --seed-first-ps or --seed-last-ps"
        )
    if window.confine_nm is not None:
        beads = reference.positions[inside]
        inside[inside] = near(beads, beads[medoid(beads)], window.confine_nm)
    candidates = np.flatnonzero(inside)
    stride = -(-len(candidates) // window.frames)
    if stride > 1:
        _say(f"seed: one in {stride} of {len(candidates)} frames (--seed-frames {window.frames})")
    return np.isin(np.arange(len(inside)), candidates[::stride])


def _say(note: str) -> None:
    console.print(f"  {escape(note)}")
