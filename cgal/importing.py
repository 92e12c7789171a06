"""All-atom trajectories from elsewhere become frames with forces: the seed of a campaign, or its ground truth.

Two kinds of file are read: whatever mdtraj reads (positions alone, converted to nm and ps), and a plain HDF5 layout
with forces: datasets `positions` [nm] and `forces` [kJ/mol/nm], both frames x atoms x 3, and either a dataset
`time_ps` or an attribute `stride_ps`; optional attributes are `temperature_K`, `length_unit` and `force_unit`.

The chain is read residue by residue (`cgal.residues`); water and ions are left out. Periodic boxes are dropped, after
pieces on either side of one have been put together. What was read otherwise than it is written is said by `note`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import mdtraj
import numpy as np
from jaxtyping import Bool, Float32, Float64, Shaped
from openmm import app

from cgal.all_atom.force_field import read_structure, recompute_forces
from cgal.errors import BadParams, BadStructure, BadTrajectory, EmptyTrajectory
from cgal.files import sha256
from cgal.foreign.chemistry import Selection
from cgal.foreign.frame_checks import (
    check_frames,
    check_handedness,
    check_times,
    made_whole,
    notes_on_cis,
    notes_on_motion,
    timed,
)
from cgal.foreign.topology import Protein
from cgal.foreign.trajectory import Source, check_in_child, open_protein, read_file
from cgal.frames import AtomFrames, CGTrajectory, read_pdb_text, rmsd_nm, sequence_of
from cgal.params import ForceFieldParams
from cgal.progress import Note, Progress, silent, unsaid
from cgal.projection.mapping import constrained_clusters, coordinate_map
from cgal.residues import SELENOMETHIONINE, stated_protonation

__all__ = ["as_reference", "confine", "import_reference", "import_trajectory", "medoid", "structure_pdb"]

TYPICAL_FORCE_kJ_per_mol_nm = (100.0, 1e5)
"""Between these lies the rms force on an atom of a protein near room temperature (about 850)."""


@dataclass(frozen=True)
class Choice:
    """What of a file is taken: a part of its molecules, every so-many-th frame, a window of time, times of our own."""

    select: Selection
    stride: int
    first_ps: float | None
    last_ps: float | None
    frame_ps: float | None

    def check(self) -> None:
        """Raise BadParams for a spacing, window or stride that is none."""
        if self.frame_ps is not None and not (math.isfinite(self.frame_ps) and self.frame_ps > 0):
            raise BadParams(f"--frame-ps is {self.frame_ps:g}; the time between frames is a positive number of ps")
        if self.stride < 1:
            raise BadParams(f"stride is {self.stride}; take every frame (1), every second (2), ...")
        for name, edge in (("first_ps", self.first_ps), ("last_ps", self.last_ps)):
            if edge is not None and math.isnan(edge):
                raise BadParams(f"{name} is no number; give a time in ps")


def import_trajectory(
    topology: Path,
    trajectories: Sequence[Path],
    *,
    temperature_K: float,
    forces: Literal["stored", "recompute"] = "stored",
    force_field: ForceFieldParams | None = None,
    stride: int = 1,
    first_ps: float | None = None,
    last_ps: float | None = None,
    frame_ps: float | None = None,
    select: Selection = "auto",
    note: Note = unsaid,
    progress: Progress = silent,
) -> AtomFrames:
    """Read all-atom frames with instantaneous forces, in the atom order of the topology file.

    Parameters
    ----------
    topology : Path
        Any file that mdtraj takes a topology from, with one chain of amino acids, which may have caps.
    trajectories : sequence of Path
        One or more files; each becomes one numbered trajectory of the result, or several if it is HDF5 with a dataset
        `trajectory` that numbers them by frame.
    temperature_K : float
        Temperature that the frames were sampled at.
    forces : {"stored", "recompute"}
        Read them from the HDF5 layout above, or compute them with `force_field`.
    force_field : ForceFieldParams, optional
        The oracle's force field, for "recompute".
    stride : int
        Take every so-many-th frame of a file.
    first_ps, last_ps : float, optional
        Take only frames of this window of time, both ends included.
    frame_ps : float, optional
        Time between frames, for formats that hold no times (DCD, PDB, ...), or in place of the file's.
    select : {"auto", "protein", "all"}
        Leave out water and ions; all that is no part of the chain; or nothing, so that anything else is refused.
    note : Note
        Called with each thing that was left out, mended, or read as another; `provenance["notes"]` has them too.
    progress : Progress
        Called for each file, and while forces are computed.

    Raises
    ------
    BadParams
        `frame_ps`, the stride or the window is none.
    BadStructure
        The topology is unreadable, or holds anything but one chain of the twenty amino acids with all their atoms.
    BadTrajectory
        A file is unreadable, has another number or order of atoms, lacks forces or times, has times that do not
        increase evenly, is in other units, holds a number that is not finite, a broken or mirrored molecule, or was
        sampled at another temperature.
    EmptyTrajectory
        No frame lies in the window, or one alone.
    """
    notes: list[str] = []

    def say(text: str) -> None:
        notes.append(text)
        note(text)

    choice = Choice(select, stride, first_ps, last_ps, frame_ps)
    protein, sources = _read(topology, trajectories, temperature_K, choice, say, progress)
    _check_labels(topology, protein, forces)
    positions = np.concatenate([source.positions for source in sources])
    pdb = _with_positions(_pdb_text(protein.topology), positions[0])
    _check_sulphurs(topology, protein, read_pdb_text(pdb).topology, say)
    if forces == "stored":
        labels = np.concatenate([_stored_forces(source) for source in sources])
    else:
        labels = recompute_forces(pdb, positions, force_field or ForceFieldParams(), progress=progress)
        if not protein.is_all:
            say(f"forces are those of {(force_field or ForceFieldParams()).solvent}, not of what was left out")
    provenance = {
        "topology": {"name": topology.name, "sha256": sha256(topology)},
        "trajectories": [{"name": path.name, "sha256": sha256(path)} for path in trajectories],
        "stride": stride,
        "first_ps": first_ps,
        "last_ps": last_ps,
        "temperature_K": temperature_K,
        "forces": "instantaneous",
        "force_origin": forces,
        "force_field": (force_field or ForceFieldParams()).model_dump() if forces == "recompute" else None,
        "notes": notes,
    }
    time_ps, number = _times(sources)
    return AtomFrames(pdb, positions, labels, number, time_ps, provenance)


def import_reference(
    topology: Path,
    trajectories: Sequence[Path],
    *,
    temperature_K: float,
    stride: int = 1,
    first_ps: float | None = None,
    last_ps: float | None = None,
    frame_ps: float | None = None,
    select: Selection = "auto",
    note: Note = unsaid,
    progress: Progress = silent,
) -> CGTrajectory:
    """Project all-atom trajectories to C-alpha beads: a ground truth, each file one replica; forces are not needed.

    Takes and raises the same as `import_trajectory`.
    """
    choice = Choice(select, stride, first_ps, last_ps, frame_ps)
    protein, sources = _read(topology, trajectories, temperature_K, choice, note, progress)
    to_beads = coordinate_map(protein.topology)
    beads = np.concatenate([to_beads(source.positions) for source in sources])
    return CGTrajectory.from_positions(sequence_of(protein.topology), beads, *_times(sources))


def as_reference(frames: AtomFrames) -> CGTrajectory:
    """Project frames that are already imported to C-alpha beads, each trajectory one replica."""
    beads = coordinate_map(frames.topology)(frames.positions)
    return CGTrajectory.from_positions(sequence_of(frames.topology), beads, frames.time_ps, frames.trajectory)


def confine(frames: AtomFrames, reference_beads: Float32[np.ndarray, "beads 3"], maximum_rmsd_nm: float) -> AtomFrames:
    """Keep the frames whose C-alpha RMSD to a reference [nm] is at most `maximum_rmsd_nm`: a seed from one basin.

    Raises EmptyTrajectory when none is.
    """
    deviations_nm = rmsd_nm(coordinate_map(frames.topology)(frames.positions), reference_beads)
    inside = deviations_nm <= maximum_rmsd_nm
    if not inside.any():
        raise EmptyTrajectory(
            f"no frame is within {maximum_rmsd_nm} nm C-alpha RMSD of the reference "
            f"(nearest: {deviations_nm.min():.3f} nm); raise the limit or give another reference"
        )
    return replace(frames.take(inside), provenance=frames.provenance | {"maximum_rmsd_nm": maximum_rmsd_nm})


def medoid(beads: Float32[np.ndarray, "frames beads 3"]) -> int:
    """Index of the frame with the least mean RMSD to all others; raises EmptyTrajectory when there is none."""
    if not len(beads):
        raise EmptyTrajectory("no frame to take the medoid of")
    return int(np.argmin([rmsd_nm(beads, frame).mean() for frame in beads]))


def structure_pdb(frames: AtomFrames, index: int) -> str:
    """PDB text of one frame, atoms in the same order (coordinates to the 0.0001 nm that PDB can hold)."""
    return _with_positions(frames.pdb, frames.positions[index])


def _with_positions(pdb: str, positions: Float32[np.ndarray, "atoms 3"]) -> str:
    """PDB text with other coordinates [nm], nothing else changed."""
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


def _read(
    topology: Path, trajectories: Sequence[Path], temperature_K: float, choice: Choice, note: Note, progress: Progress
) -> tuple[Protein, list[Source]]:
    """Read, check and cut every file; raises EmptyTrajectory when no frame of any is left."""
    choice.check()
    check_in_child(topology, trajectories, choice.select)
    protein = open_protein(topology, choice.select)
    _check_hydrogens(topology, protein)
    for text in protein.notes:
        note(f"{topology.name}: {text}")
    atoms, _ = read_structure(_pdb_text(protein.topology))
    sources = []
    for number, path in enumerate(trajectories, start=1):
        for source in read_file(path, protein, temperature_K):
            whole = _checked(source, protein, atoms, choice.frame_ps, note)
            sources.append(_cut(whole, choice))
        progress(number, len(trajectories), path.name)
    _check_count(sources, trajectories, choice)
    return protein, sources


def _checked(source: Source, protein: Protein, atoms: app.Topology, frame_ps: float | None, note: Note) -> Source:
    """The frames with their times, made whole, when they pass all checks."""
    source = timed(source, frame_ps)
    check_times(source)
    source, mended = made_whole(source, protein.topology)
    if mended:
        note(f"{source.path.name}: the chain was wrapped around its box in {mended} frames and is made whole")
    check_frames(source, protein.topology)
    check_handedness(source, atoms)
    for text in (*notes_on_motion(source), *notes_on_cis(source, atoms)):
        note(text)
    return source


def _cut(source: Source, choice: Choice) -> Source:
    assert source.time_ps is not None
    inside: Bool[np.ndarray, " frames"] = source.frame % choice.stride == 0
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


def _check_labels(topology: Path, protein: Protein, forces: str) -> None:
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


def _check_sulphurs(topology: Path, protein: Protein, known: mdtraj.Topology, note: Note) -> None:
    """Each sulphur of a cysteine has a hydrogen, a partner or a name that says that it has none."""
    sulphurs = [bond for bond in known.bonds if bond[0].name == bond[1].name == "SG"]
    bridges = [sorted(bond, key=lambda atom: atom.index) for bond in sulphurs]
    for one, other in bridges:
        note(f"{topology.name}: the disulfide bond {one.residue}-{other.residue} is kept in the all-atom structure")
    bridged = {atom.residue.index for bond in bridges for atom in bond}
    for residue, found in zip(protein.residues, known.residues, strict=True):
        names = {atom.name for atom in found.atoms}
        bare = found.name == "CYS" and "HG" not in names and found.index not in bridged
        if bare and stated_protonation(residue.name) != "CYM":
            raise BadStructure(
                f"{topology.name}: the sulphur of {residue} has neither a hydrogen nor another sulphur within 0.3 nm; "
                "a cysteine without its hydrogen must be named CYM, one in a disulfide needs its partner"
            )


def _stored_forces(source: Source) -> Float32[np.ndarray, "frames atoms 3"]:
    if source.forces is None:
        raise BadTrajectory(
            f"{source.path.name}: no forces stored (mdtraj's formats hold none); compute them with forces='recompute' "
            "(cgal import --forces recompute)"
        )
    rms = float(np.sqrt(np.mean(source.forces.astype(np.float64) ** 2))) if len(source.forces) else None
    low, high = TYPICAL_FORCE_kJ_per_mol_nm
    if rms is not None and not low < rms < high:
        raise BadTrajectory(
            f"{source.path.name}: stored forces have an rms of {rms:.3g}, where a protein has some 850 kJ/mol/nm; "
            "store instantaneous forces in kJ/mol/nm, or use --forces recompute"
        )
    return source.forces


def _times(sources: Sequence[Source]) -> tuple[Float64[np.ndarray, " frames"], Shaped[np.ndarray, " frames"]]:
    """Time [ps] and number of the source file, of every frame."""
    numbers = [np.full(len(source.frame), number, dtype=np.int32) for number, source in enumerate(sources)]
    return np.concatenate([source.time_ps for source in sources]), np.concatenate(numbers)
