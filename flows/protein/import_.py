"""Setting up a protein from an all-atom trajectory: it becomes reference, start structure, seed and first shard."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool
from rich.markup import escape

from cgal.benchmark.lag import lag_frames
from cgal.dataset import reset
from cgal.errors import BadParams, BadStructure, EmptyTrajectory, Refusals
from cgal.files import made_aside, sha256, write_json, write_text
from cgal.foreign.forces import ForceFiles
from cgal.frames import AtomFrames, CGTrajectory, read_pdb_text, sequence_of
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

__all__ = ["SeedWindow", "Source", "force_origin", "import_protein"]

type Purpose = Literal["both", "reference", "seed"]
"""What a trajectory becomes."""


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
    """Files of an all-atom trajectory, what of them is taken, what they become, and where the forces come from.

    `physics` names force field and solvent, where they are not those of `params.yaml`; "oracle" says that they are, and
    None leaves it to what the files tell.
    """

    topology: Path
    trajectories: tuple[Path, ...]
    forces: ForceOrigin = "stored"
    choice: Choice = field(default_factory=Choice)
    purpose: Purpose = "both"
    physics: str | None = None

    def physics_of(self, read: ReadTrajectories) -> str | None:
        """What the frames were made with, None if it is what `params.yaml` names."""
        if self.physics is not None:
            return None if self.physics == "oracle" else self.physics
        solvent = "" if read.protein.is_all else ", with other molecules, which were left out"
        return f"a force field that was not named{solvent}" if solvent or self.purpose == "reference" else None


class Checked(NamedTuple):
    """What was read and may become a protein: all frames as a reference, some as the seed; how to undo it, or ""."""

    read: ReadTrajectories
    reference: CGTrajectory
    in_seed: Bool[np.ndarray, " frames"]
    undo: str


def import_protein(
    workspace: Workspace, source: Source, window: SeedWindow, *, mean_force: bool, replacing: bool = False
) -> None:
    """Make `data/<protein>/` from an all-atom trajectory, or its reference or seed alone, whole or not at all.

    All frames become `reference.h5`, by their positions alone; those in the window become `seed.h5`, its medoid
    `structure.pdb`. With `mean_force` the oracle labels the seed frames again (`seed_labels.h5`). Then force map and
    shard 0 are made. All this is done aside and takes the place of what was there in the end; other files of the folder
    are kept.

    What the files, the repository and `params.yaml` do not allow is refused before any force is computed, all at once
    (Refused). A campaign that the folder held is taken back to nothing, if `replacing` (BadParams otherwise): its
    published rounds keep their bytes in the DVC cache.
    """
    checked = _checked(workspace, source, window, mean_force, replacing)
    seed = None if source.purpose == "reference" else _labelled(workspace, source, window, checked)
    with made_aside(workspace.data) as folder:
        if source.purpose != "seed":
            _save_reference(folder, checked, workspace.params.temperature_K)
        if seed is not None:
            reset(folder)
            beads = checked.reference.positions[checked.in_seed]
            write_text(folder / "structure.pdb", structure_pdb(seed, medoid(beads)))
            save_seed(workspace, folder, seed, mean_force=mean_force)
    made = [f"{len(checked.reference)} reference frames"] if source.purpose != "seed" else []
    made += [f"{len(seed)} seed frames"] if seed is not None else []
    console.print(f"{workspace.data}: {', '.join(made)}")
    tell_undo(checked.undo)


def _labelled(workspace: Workspace, source: Source, window: SeedWindow, checked: Checked) -> AtomFrames:
    """The seed's frames with their forces."""
    with stage_bar("forces") as progress:
        seed = checked.read.take(checked.in_seed).labelled(
            source.forces, workspace.params.force_field, note=_say, progress=progress
        )
    physics = checked.reference.physics
    if physics and source.forces != "recompute":
        _say(f"the seed's forces are of {physics}; labels will be of params.yaml's force field")
    said = {"maximum_rmsd_nm": window.confine_nm} | ({"physics": physics} if physics else {})
    return replace(seed, provenance=seed.provenance | said)


def _save_reference(folder: Path, checked: Checked, temperature_K: float) -> None:
    """Write `reference.h5`, and what it is into `reference.json`."""
    reference = checked.reference
    reference.save(folder / "reference.h5")
    if reference.physics:
        _say(f"reference and oracle differ in physics: the reference is of {reference.physics}; tables of W1 say so")
    write_json(
        folder / "reference.json",
        {
            "frames": len(reference),
            "imported": checked.read.provenance,
            "physics": reference.physics,
            "sha256": sha256(folder / "reference.h5"),
            "temperature_K": temperature_K,
            "trajectories": len(np.unique(reference.replica)),
        },
    )


def _checked(workspace: Workspace, source: Source, window: SeedWindow, mean_force: bool, replacing: bool) -> Checked:
    """Read all files; raises the one thing that is to be mended, or Refused with all of them."""
    params, refusals = workspace.params, Refusals()
    with refusals.gathered():
        undo = require_replaceable(workspace, require_repository(workspace), replacing)
    with refusals.gathered():
        window.check()
    with refusals.gathered():
        if mean_force and source.purpose == "reference":
            raise BadParams("--mean-force labels a seed, and --as reference makes none; leave one of them out")
    with refusals.gathered():
        read = _read(workspace, source)
        reference = replace(read.reference(), physics=source.physics_of(read))
        in_seed = np.zeros(len(reference), dtype=bool)
        with refusals.gathered():
            _require_same_protein(workspace, source.purpose, reference.sequence)
        if source.purpose != "seed":
            with refusals.gathered():
                lag_frames(reference, params.benchmark.tica_lag_ps)
        if source.purpose != "reference":
            with refusals.gathered():
                read.require_forces(source.forces, params.force_field)
            with refusals.gathered():
                in_seed = _in_seed(reference, window)
                require_enough([reference.replica[in_seed]], params.training)
    refusals.tell()
    return Checked(read, reference, in_seed, undo)


def _read(workspace: Workspace, source: Source) -> ReadTrajectories:
    scratch = workspace.scratch("import")
    shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
    scratch.mkdir(parents=True)
    with stage_bar("read") as progress:
        return read_trajectories(
            source.topology,
            source.trajectories,
            source.choice,
            None if source.purpose == "reference" else source.forces,
            temperature_K=workspace.params.temperature_K,
            scratch=scratch,
            note=_say,
            progress=progress,
        )


def _require_same_protein(workspace: Workspace, purpose: Purpose, sequence: str) -> None:
    """Raise BadStructure when a seed or reference that stays is of another protein."""
    reference, structure = workspace.data / "reference.h5", workspace.data / "structure.pdb"
    held = sequence
    if purpose == "seed" and reference.is_file():
        held = CGTrajectory.load(reference).sequence
    if purpose == "reference" and structure.is_file():
        held = sequence_of(read_pdb_text(structure.read_text(errors="replace")).topology)
    if held != sequence:
        raise BadStructure(
            f"{workspace.data}: holds {held}, the trajectory is of {sequence}; set protein: in params.yaml to another "
            "name, or import it as both (without --as)"
        )


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


def force_origin(given: Sequence[str], unit: str | None) -> ForceOrigin:
    """What `--forces` and `--force-unit` name; raises BadParams for a unit without files."""
    if len(given) == 1 and given[0] in ("stored", "recompute"):
        if unit is not None:
            raise BadParams(f"--force-unit {unit} is of files of forces; --forces {given[0]} has kJ/mol/nm")
        return "stored" if given[0] == "stored" else "recompute"
    return ForceFiles(tuple(Path(name) for name in given), unit)
