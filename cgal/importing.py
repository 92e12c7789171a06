"""All-atom trajectories from elsewhere become frames with forces: the seed of a campaign, or its ground truth.

Two kinds of file are read: whatever mdtraj reads (positions, and the forces of TRR, converted to nm and ps), and a
plain HDF5 layout with forces: datasets `positions` [nm] and `forces` [kJ/mol/nm], both frames x atoms x 3, and either
a dataset `time_ps` or an attribute `stride_ps`; optional attributes are `temperature_K`, `length_unit` and
`force_unit`.

The chain is read residue by residue (`cgal.residues`); water and ions are left out. Periodic boxes are dropped, after
pieces on either side of one have been put together. What was read otherwise than it is written is said by `note`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import mdtraj
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int32
from openmm import app

from cgal.all_atom.force_field import build_system, read_structure, recompute_forces, require_implicit
from cgal.errors import BadParams, BadStructure, BadTrajectory, CgalError, EmptyTrajectory, Refusals
from cgal.files import sha256
from cgal.foreign.chemistry import Selection
from cgal.foreign.forces import ForceFiles, stored_forces, with_forces
from cgal.foreign.frame_checks import (
    CisBonds,
    check_frames,
    check_handedness,
    check_times,
    made_whole,
    notes_on_motion,
    timed,
)
from cgal.foreign.reader import Wanted, read_files
from cgal.foreign.topology import Protein
from cgal.foreign.trajectory import Source, open_protein
from cgal.frames import AtomFrames, CGTrajectory, read_pdb_text, rmsd_nm, sequence_of
from cgal.params import ForceFieldParams
from cgal.progress import Note, Progress, silent, unsaid
from cgal.projection.clusters import constrained_clusters
from cgal.projection.mapping import coordinate_map
from cgal.residues import SELENOMETHIONINE, stated_protonation

__all__ = [
    "Choice",
    "ReadTrajectories",
    "as_reference",
    "confine",
    "medoid",
    "near",
    "read_trajectories",
    "structure_pdb",
]

type ForceOrigin = Literal["stored", "recompute"] | ForceFiles
"""Forces that lie beside the positions, that a force field gives, or that have files of their own."""

RIGID_nm = 1e-3
"""A bond is rigid if the standard deviation of its length is less: XTC's rounding makes 0.0004, heat 0.0023 or more."""

RIGID_FRAMES = 10
"""Fewer frames do not tell: they may be one step apart."""

OPPOSED = -0.25
"""The force along a bond and the bond's length correlate by -0.85 (by -0.5 where positions are rounded to 0.01 nm), by
0 if the forces are of other frames, axes or atoms, and by 0.85 if they are gradients."""

MOST_FRAMES = 1000
"""Frames that a medoid is sought among (the time that takes grows with their square), or that bonds are measured in."""


@dataclass(frozen=True)
class Choice:
    """What of a file is taken: every `stride`-th frame of a trajectory, in a window of time [ps], both ends included.

    `select` leaves out water and ions ("auto"), or all that is no part of the chain ("protein"), or nothing, so that
    anything else is refused ("all"). `frame_ps` is the time between frames, for formats that hold no times (DCD, PDB,
    ...), or in place of the file's.
    """

    select: Selection = "auto"
    stride: int = 1
    first_ps: float | None = None
    last_ps: float | None = None
    frame_ps: float | None = None

    def check(self) -> None:
        """Raise BadParams for a spacing, window or stride that is none."""
        if self.frame_ps is not None and not (math.isfinite(self.frame_ps) and self.frame_ps > 0):
            raise BadParams(f"--frame-ps is {self.frame_ps:g}; the time between frames is a positive number of ps")
        if self.stride < 1:
            raise BadParams(f"stride is {self.stride}; take every frame (1), every second (2), ...")
        for name, edge in (("first_ps", self.first_ps), ("last_ps", self.last_ps)):
            if edge is not None and math.isnan(edge):
                raise BadParams(f"{name} is no number; give a time in ps")


@dataclass(frozen=True, eq=False)
class ReadTrajectories:
    """All-atom frames that were read and passed all checks; forces are yet to be had.

    `topology` is the path that errors name, `pdb` the first frame, `provenance` what the frames were read from.
    """

    topology: Path
    protein: Protein
    pdb: str
    sources: tuple[Source, ...]
    provenance: dict[str, Any]

    @property
    def time_ps(self) -> Float64[np.ndarray, " frames"]:
        """Time of each frame [ps]."""
        return np.concatenate([source.time_ps for source in self.sources])

    @property
    def trajectory(self) -> Int32[np.ndarray, " frames"]:
        """Number of each frame's trajectory."""
        lengths = [len(source.frame) for source in self.sources]
        return np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)

    def take(self, chosen: Bool[np.ndarray, " frames"]) -> "ReadTrajectories":
        """Give the frames where a mask holds."""
        starts = np.cumsum([len(source.frame) for source in self.sources])[:-1]
        parts = zip(self.sources, np.split(chosen, starts), strict=True)
        return replace(self, sources=tuple(source.take(np.flatnonzero(part)) for source, part in parts))

    def reference(self) -> CGTrajectory:
        """C-alpha beads of all frames, each trajectory one replica."""
        to_beads = coordinate_map(self.protein.topology)
        beads = np.concatenate([to_beads(piece.positions) for source in self.sources for piece in source.pieces()])
        return CGTrajectory.from_positions(sequence_of(self.protein.topology), beads, self.time_ps, self.trajectory)

    def require_forces(self, forces: ForceOrigin, force_field: ForceFieldParams) -> None:
        """Raise BadStructure or BadTrajectory when the frames cannot have forces of this origin."""
        refusals = Refusals()
        with refusals.gathered():
            _check_labels(self.topology, self.protein, forces)
        with refusals.gathered():
            _check_sulphurs(self.topology, self.protein, read_pdb_text(self.pdb).topology)
        if forces == "recompute" and not refusals:
            with refusals.gathered():
                require_implicit(force_field)
                build_system(read_structure(self.pdb)[0], force_field)
        for source in self.sources:
            with refusals.gathered():
                _check_flexible(source, self.protein)
            if forces != "recompute":
                with refusals.gathered():
                    stored_forces(source)
                    _check_opposed(source, self.protein)
                with refusals.gathered():
                    _check_force_field(source, force_field)
        refusals.tell()

    def labelled(
        self,
        forces: ForceOrigin,
        force_field: ForceFieldParams | None = None,
        *,
        note: Note = unsaid,
        progress: Progress = silent,
    ) -> AtomFrames:
        """Frames with forces, stored beside them or those of the force field; raises as `require_forces`."""
        force_field = force_field or ForceFieldParams()
        self.require_forces(forces, force_field)
        positions = np.concatenate([source.positions for source in self.sources])
        notes = list(self.provenance["notes"])
        if forces != "recompute":
            labels = np.concatenate([stored_forces(source) for source in self.sources])
            made = next((source.force_field for source in self.sources if source.force_field), None)
        else:
            labels = recompute_forces(self.pdb, positions, force_field, progress=progress)
            made = force_field.model_dump()
            if not self.protein.is_all:
                notes.append(f"forces are those of {force_field.solvent}, not of what was left out")
                note(notes[-1])
        provenance = self.provenance | {
            "forces": "instantaneous",
            "force_origin": forces.described() if isinstance(forces, ForceFiles) else forces,
            "force_field": made,
            "notes": notes,
        }
        return AtomFrames(self.pdb, positions, labels, self.trajectory, self.time_ps, provenance)


def read_trajectories(
    topology: Path,
    trajectories: Sequence[Path],
    choice: Choice,
    forces: ForceOrigin | None = None,
    *,
    temperature_K: float,
    scratch: Path | None = None,
    note: Note = unsaid,
    progress: Progress = silent,
) -> ReadTrajectories:
    """Read, check and cut every file; all faults of options, topology and files come at once.

    Parameters
    ----------
    topology : Path
        Any file that mdtraj takes a topology from, with one chain of amino acids, which may have caps. Frames have its
        order of atoms.
    trajectories : sequence of Path
        One or more files; each becomes one numbered trajectory of the result, or several if it is HDF5 with a dataset
        `trajectory` that numbers them by frame.
    choice : Choice
        What of them is taken.
    forces : {"stored", "recompute"} or ForceFiles, optional
        Where `labelled` will have forces from: stored ones (the HDF5 layout above, TRR) and those of NumPy files are
        read here, and no others.
    temperature_K : float
        Temperature that the frames were sampled at.
    scratch : Path, optional
        Folder (that of temporary files, if None) with room for the positions of the chain, and its forces if they are
        wanted, in single precision: frames lie in files there, which have no name any more, not in memory.
    note : Note
        Called with each thing that was left out, mended, or read as another; `provenance["notes"]` has them too.
    progress : Progress
        Called for each file.

    Raises
    ------
    BadParams
        `choice` has a spacing, stride or window that is none, or `forces` does not fit the files.
    BadStructure
        The topology is unreadable, or holds anything but one chain of the twenty amino acids with all their atoms.
    BadTrajectory
        A file is unreadable, has another number or order of atoms, lacks times, has times that do not increase evenly,
        is in other units, holds a number that is not finite, a broken or mirrored molecule, or was sampled at another
        temperature.
    EmptyTrajectory
        No frame of any file lies in the window, or one alone.
    Refused
        Several of these.
    """
    notes: list[str] = []

    def say(text: str) -> None:
        notes.append(text)
        note(text)

    refusals = Refusals()
    with refusals.gathered():
        choice.check()
        if isinstance(forces, ForceFiles):
            forces.check(len(trajectories))
    if refusals:  # read on, for what else is to be told
        choice, forces = Choice(choice.select, frame_ps=None if choice.frame_ps is None else 1.0), None
    sources: list[Source] = []
    with refusals.gathered(), TemporaryDirectory(dir=scratch) as folder:
        wanted = Wanted(choice.select, temperature_K, forces=forces == "stored")
        read = read_files(topology, trajectories, wanted, Path(folder), progress)
        protein = _opened(topology, choice.select, say)
        atoms, _ = read_structure(_pdb_text(protein.topology))
        for number, found in enumerate(read):
            with refusals.gathered():
                if isinstance(found, CgalError):
                    raise found
                if isinstance(forces, ForceFiles):
                    place = Path(folder) / f"forces-{number}"  # two files may have one name
                    found = with_forces(found, forces.paths[number], forces.unit, protein, place)
                sources += [_cut(_checked(source, protein, atoms, choice.frame_ps, say), choice) for source in found]
    refusals.tell()
    _check_count(sources, trajectories, choice)
    first = next(source.positions[0] for source in sources if len(source.frame))
    pdb = _with_positions(_pdb_text(protein.topology), first)
    for bridge in _bridges(read_pdb_text(pdb).topology):
        say(f"{topology.name}: the disulfide bond {bridge} is kept in the all-atom structure")
    provenance = {
        "topology": {"name": topology.name, "sha256": sha256(topology)},
        "trajectories": [{"name": path.name, "sha256": sha256(path)} for path in trajectories],
        "stride": choice.stride,
        "first_ps": choice.first_ps,
        "last_ps": choice.last_ps,
        "temperature_K": temperature_K,
        "notes": notes,
    }
    return ReadTrajectories(topology, protein, pdb, tuple(sources), provenance)


def _opened(topology: Path, select: Selection, note: Note) -> Protein:
    protein = open_protein(topology, select)
    _check_hydrogens(topology, protein)
    for text in protein.notes:
        note(f"{topology.name}: {text}")
    return protein


def as_reference(frames: AtomFrames) -> CGTrajectory:
    """Project frames that are already imported to C-alpha beads, each trajectory one replica."""
    beads = coordinate_map(frames.topology)(frames.positions)
    return CGTrajectory.from_positions(sequence_of(frames.topology), beads, frames.time_ps, frames.trajectory)


def confine(frames: AtomFrames, reference_beads: Float32[np.ndarray, "beads 3"], maximum_rmsd_nm: float) -> AtomFrames:
    """Keep the frames whose C-alpha RMSD to a reference [nm] is at most `maximum_rmsd_nm`: a seed from one basin.

    Raises EmptyTrajectory when none is.
    """
    inside = near(coordinate_map(frames.topology)(frames.positions), reference_beads, maximum_rmsd_nm)
    return replace(frames.take(inside), provenance=frames.provenance | {"maximum_rmsd_nm": maximum_rmsd_nm})


def near(
    beads: Float32[np.ndarray, "frames beads 3"],
    reference_beads: Float32[np.ndarray, "beads 3"],
    maximum_rmsd_nm: float,
) -> Bool[np.ndarray, " frames"]:
    """Which frames have a C-alpha RMSD to a reference [nm] of at most so much; raises EmptyTrajectory when none has."""
    deviations_nm = rmsd_nm(beads, reference_beads)
    inside: Bool[np.ndarray, " frames"] = deviations_nm <= maximum_rmsd_nm
    if not inside.any():
        raise EmptyTrajectory(
            f"no frame is within {maximum_rmsd_nm} nm C-alpha RMSD of the reference "
            f"(nearest: {deviations_nm.min():.3f} nm); raise the limit or give another reference"
        )
    return inside


def medoid(beads: Float32[np.ndarray, "frames beads 3"]) -> int:
    """Index of the frame with the least mean RMSD to others; raises EmptyTrajectory when there is none.

    Of more than 1,000 frames so many, evenly spaced, are compared with one another, and one of these is given.
    """
    if not len(beads):
        raise EmptyTrajectory("no frame to take the medoid of")
    compared = _spread_out(len(beads))
    some = beads[compared]
    return int(compared[np.argmin([rmsd_nm(some, frame).mean() for frame in some])])


def _spread_out(count: int) -> Int[np.ndarray, " chosen"]:
    """Indices of so many frames, or of 1,000 evenly spaced ones."""
    return np.unique(np.linspace(0, count - 1, MOST_FRAMES).round().astype(int))


def structure_pdb(frames: AtomFrames, index: int) -> str:
    """PDB text of one frame, atoms in the same order (coordinates to the 0.0001 nm that PDB can hold)."""
    return _with_positions(frames.pdb, frames.positions[index])


def _with_positions(pdb: str, positions: Float32[np.ndarray, "atoms 3"]) -> str:
    """PDB text with other coordinates [nm], nothing else changed.

    A frame far from the origin moves by multiples of 100 nm: PDB's columns hold -100 to 1,000 nm.
    """
    positions = positions - 100.0 * np.rint(positions.mean(axis=0) / 100.0)
    lines = pdb.splitlines()
    atoms = [number for number, line in enumerate(lines) if line.startswith(("ATOM", "HETATM"))]
    for number, (x, y, z) in zip(atoms, positions * 10.0, strict=True):
        lines[number] = f"{lines[number][:30]}{x:8.3f}{y:8.3f}{z:8.3f}{lines[number][54:]}"
    return "\n".join(lines) + "\n"


def _pdb_text(topology: mdtraj.Topology) -> str:
    """PDB text with all atoms at the origin."""
    frame = mdtraj.Trajectory(np.zeros((1, topology.n_atoms, 3), dtype=np.float32), topology)
    with TemporaryDirectory() as folder:
        written = Path(folder) / "topology.pdb"
        frame.save_pdb(str(written))
        lines = [line for line in written.read_text().splitlines() if not line.startswith(("REMARK", "CRYST1"))]
    return "\n".join(lines) + "\n"


def _checked(source: Source, protein: Protein, atoms: app.Topology, frame_ps: float | None, note: Note) -> Source:
    """The frames with their times, made whole, when they pass all checks."""
    source = timed(source, frame_ps)
    check_times(source)
    mended, cis = 0, CisBonds(atoms)
    for piece in source.pieces():
        whole, torn = made_whole(piece, protein.topology)
        if torn:
            piece.positions[:] = whole.positions  # in a file of our own
        check_frames(piece, protein.topology)
        check_handedness(piece, atoms)
        cis.count(piece.positions)
        mended += torn
    if mended:
        note(f"{source.path.name}: the chain was wrapped around its box in {mended} frames and is made whole")
    for text in (*notes_on_motion(source), *cis.notes(source)):
        note(text)
    return source


def _cut(source: Source, choice: Choice) -> Source:
    assert source.time_ps is not None
    inside: Bool[np.ndarray, " frames"] = np.arange(len(source.frame)) % choice.stride == 0
    if choice.first_ps is not None:
        inside &= source.time_ps >= choice.first_ps
    if choice.last_ps is not None:
        inside &= source.time_ps <= choice.last_ps
    return source.take(inside)


def _check_count(sources: Sequence[Source], trajectories: Sequence[Path], choice: Choice) -> None:
    count = sum(len(source.frame) for source in sources)
    names = ", ".join(path.name for path in trajectories)
    if not count:
        raise EmptyTrajectory(f"no frame lies in the window {(choice.first_ps, choice.last_ps)} ps of {names}")
    if count == 1:
        raise EmptyTrajectory(f"{names}: one frame only; a reference and a seed are made of many: give a trajectory")


def _check_hydrogens(topology: Path, protein: Protein) -> None:
    """Every hydrogen has its heavy atom, by the atoms' names."""
    try:
        constrained_clusters(protein.topology)
    except BadStructure as error:
        raise BadStructure(f"{topology.name}: {error}") from None


def _check_labels(topology: Path, protein: Protein, forces: ForceOrigin) -> None:
    """Refuse forces that are not those of the protein: computed for selenium as sulphur, or hydrogens left out."""
    for residue in protein.residues:
        if forces == "recompute" and residue.name == SELENOMETHIONINE:
            raise BadStructure(
                f"{topology.name}: forces cannot be recomputed for selenium ({residue}), at whose bond lengths those "
                "of sulphur are wrong; simulate the protein with methionine ('cgal structure' makes it)"
            )
    if all(atom.element.symbol != "H" for atom in protein.topology.atoms):
        raise BadStructure(
            f"{topology.name}: no hydrogens; bead forces are sums over all atoms: give the trajectory with hydrogens"
        )


def _heavy_bonds(protein: Protein) -> list[mdtraj.core.topology.Bond]:
    return [bond for bond in protein.topology.bonds if all(atom.element.symbol != "H" for atom in bond)]


def _check_opposed(source: Source, protein: Protein) -> None:
    """Raise BadTrajectory unless forces pull bonds between heavy atoms back when they stretch."""
    bonds = _heavy_bonds(protein)
    if source.forces is None or len(source.frame) < RIGID_FRAMES or not bonds:
        return
    ones, others = np.array([(one.index, other.index) for one, other in bonds]).T
    rows = _spread_out(len(source.frame))
    arms, pull = (
        (values[:, others] - values[:, ones]).astype(np.float64)
        for values in (source.positions[rows], source.forces[rows])
    )
    lengths = np.linalg.norm(arms, axis=-1)
    along = (pull * arms).sum(axis=-1) / lengths
    lengths, along = lengths - lengths.mean(axis=0), along - along.mean(axis=0)
    if np.median(lengths.std(axis=0)) < RIGID_nm:  # which is said elsewhere
        return
    found = float((lengths * along).sum() / math.sqrt(np.square(lengths).sum() * np.square(along).sum()))
    if found > OPPOSED:
        raise BadTrajectory(
            f"{source.path.name}: force and length of its bonds correlate by {found:.2f}, not the usual -0.85: the "
            "forces are those of other frames, axes (was the trajectory superposed?) or atoms, or are gradients; give "
            "positions and forces as the run wrote them, or use --forces recompute"
        )


def _check_force_field(source: Source, force_field: ForceFieldParams) -> None:
    """Raise BadTrajectory when a file of cgal says that its forces are of another force field or solvent."""
    made = source.force_field
    if made and (said := f"{made['name']} + {made['solvent']}") != force_field.physics:
        raise BadTrajectory(
            f"{source.path.name}: forces of {said}, but force_field is {force_field.physics}; set force_field.name and "
            ".solvent to that, or use --forces recompute"
        )


def _check_flexible(source: Source, protein: Protein) -> None:
    """Raise BadTrajectory when most bonds between heavy atoms are rigid: bead forces without theirs are wrong."""
    bonds = _heavy_bonds(protein)
    if len(source.frame) < RIGID_FRAMES or not bonds:
        return
    ones, others = np.array([(one.index, other.index) for one, other in bonds]).T
    positions = source.positions[_spread_out(len(source.frame))]
    spread_nm = np.linalg.norm(positions[:, ones] - positions[:, others], axis=-1).std(axis=0, dtype=np.float64)
    if 0 < np.median(spread_nm) < RIGID_nm:  # 0: all frames are equal, which is said elsewhere
        one, other = bonds[int(spread_nm.argmin())]
        raise BadTrajectory(
            f"{source.path.name}: the bond of {one} and {other}, like most between heavy atoms, keeps its length to "
            f"{spread_nm.min():.1g} nm: it was constrained, and the forces along such bonds are missing; simulate with "
            "constraints on bonds to hydrogen only (GROMACS: h-bonds, AMBER: ntc = 2, OpenMM: HBonds), or import the "
            "run as a reference (--as reference)"
        )


def _bridges(known: mdtraj.Topology) -> list[str]:
    """Names of the disulfide bonds."""
    return [f"{one.residue}-{other.residue}" for one, other in _sulphur_bonds(known)]


def _sulphur_bonds(known: mdtraj.Topology) -> list[list[mdtraj.core.topology.Atom]]:
    bonds = [bond for bond in known.bonds if bond[0].name == bond[1].name == "SG"]
    return [sorted(bond, key=lambda atom: atom.index) for bond in bonds]


def _check_sulphurs(topology: Path, protein: Protein, known: mdtraj.Topology) -> None:
    """Each sulphur of a cysteine has a hydrogen, a partner or a name that says that it has none."""
    bridged = {atom.residue.index for bond in _sulphur_bonds(known) for atom in bond}
    for residue, found in zip(protein.residues, known.residues, strict=True):
        names = {atom.name for atom in found.atoms}
        bare = found.name == "CYS" and "HG" not in names and found.index not in bridged
        if bare and stated_protonation(residue.name) != "CYM":
            raise BadStructure(
                f"{topology.name}: the sulphur of {residue} has neither a hydrogen nor another sulphur within 0.3 nm; "
                "a cysteine without its hydrogen must be named CYM, one in a disulfide needs its partner"
            )
