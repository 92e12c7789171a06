"""The nouns of the pipeline, frozen, and the files that hold them.

Axes are `frames x beads x 3` (or atoms for beads); positions in nm, forces in kJ/mol/nm, times in ps.
Coordinates and forces are float32. Every `take` returns a new object and leaves the old one as it was.
"""

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from tempfile import NamedTemporaryFile
from typing import Any

import mdtraj
import numpy as np
from jaxtyping import Float32, Float64, Int, Int32, Shaped
from mdtraj.formats.hdf5 import HDF5TrajectoryFile

from cgal.errors import BadStructure
from cgal.hdf5 import Hdf5Record, stored
from cgal.residues import AMINO_ACIDS, CAPS, RESIDUE_NAMES, amino_acid_of

__all__ = [
    "AtomFrames",
    "CGTrajectory",
    "LabelledFrames",
    "ReplicaFate",
    "arrays_at",
    "bead_topology",
    "check_sequence",
]


def check_sequence(sequence: str) -> str:
    """Return the sequence if all its letters are amino acids; raises BadStructure naming the first that is not."""
    for position, letter in enumerate(sequence, start=1):
        if letter not in RESIDUE_NAMES:
            raise BadStructure(
                f"sequence {sequence!r}: letter {letter!r} at position {position} is no amino acid; "
                f"use the one-letter codes {''.join(sorted(RESIDUE_NAMES))}"
            )
    if len(sequence) < 4:
        raise BadStructure(f"sequence {sequence!r}: a model needs at least 4 residues (one dihedral)")
    return sequence


def bead_topology(sequence: str) -> mdtraj.Topology:
    """Topology of one C-alpha bead a residue, bonded along the chain."""
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for number, letter in enumerate(check_sequence(sequence), start=1):
        residue = topology.add_residue(RESIDUE_NAMES[letter], chain, resSeq=number)
        topology.add_atom("CA", mdtraj.element.carbon, residue)
    atoms = list(topology.atoms)
    for first, second in pairwise(atoms):
        topology.add_bond(first, second)
    return topology


def arrays_at(record: Any, rows: slice | Shaped[np.ndarray, " picked"]) -> dict[str, Any]:
    """The arrays of a record of frames, which all have these as first axis, at some rows (or where a mask holds)."""
    return {name: value[rows] for name, value in vars(record).items() if isinstance(value, np.ndarray)}


@dataclass(frozen=True)
class ReplicaFate:
    """How a simulated replica ended: `cause` is "completed", "exploded", "imploded" or "not finite"."""

    replica: int
    last_step: int
    cause: str

    @property
    def lost(self) -> bool:
        """Whether the replica was quarantined before its last step."""
        return self.cause != "completed"


@dataclass(frozen=True, eq=False)
class CGTrajectory(Hdf5Record):
    """Frames of a coarse-grained trajectory: a model's simulation, or a projected all-atom reference.

    `replica` tells which replica (or all-atom trajectory) a frame belongs to; frames of one replica come in order.
    `weights` are statistical weights that sum to one, equal unless a reference brings its own.
    `fates` and `device` (what simulated it: "cpu" or "cuda") are empty for a reference; `forces` on the beads
    [kJ/mol/nm] are there for a reference whose every frame has them. `physics` names the force field and solvent of a
    reference that was made with others than the oracle's. `spread_of_forces` is there where a committee of networks was
    simulated: the standard deviation of its members' forces, rms over beads and axes [kJ/mol/nm]. On disk: HDF5 that
    `mdtraj.load` opens.
    """

    KIND = "cg-trajectory"

    sequence: str
    positions: Float32[np.ndarray, "frames beads 3"] = field(metadata=stored(name="coordinates"))
    time_ps: Float64[np.ndarray, " frames"] = field(metadata=stored(name="time"))
    replica: Int32[np.ndarray, " frames"]
    weights: Float64[np.ndarray, " frames"]
    fates: tuple[ReplicaFate, ...] = field(default=(), metadata=stored(text=True))
    device: str = ""
    forces: Float32[np.ndarray, "frames beads 3"] | None = None
    physics: str | None = None
    spread_of_forces: Float64[np.ndarray, " frames"] | None = None

    @classmethod
    def from_positions(
        cls,
        sequence: str,
        positions: Shaped[np.ndarray, "frames beads 3"],
        time_ps: Shaped[np.ndarray, " frames"],
        replica: Shaped[np.ndarray, " frames"],
        fates: tuple[ReplicaFate, ...] = (),
    ) -> "CGTrajectory":
        """Build with equal weights, converting to the dtypes of the contract."""
        return cls(
            sequence,
            np.ascontiguousarray(positions, dtype=np.float32),
            np.asarray(time_ps, dtype=np.float64),
            np.asarray(replica, dtype=np.int32),
            np.full(len(positions), 1.0 / max(len(positions), 1)),
            fates,
        )

    def __len__(self) -> int:
        """Give the number of frames."""
        return len(self.positions)

    def take(self, indices: Shaped[np.ndarray, " picked"]) -> "CGTrajectory":
        """Give the frames at `indices` (or where a boolean mask holds), weights renormalised."""
        taken = replace(self, **arrays_at(self, indices))
        total = taken.weights.sum()
        return replace(taken, weights=taken.weights / total) if total > 0 else taken

    def to_mdtraj(self) -> mdtraj.Trajectory:
        """Give an mdtraj trajectory of C-alpha beads, without a box."""
        return mdtraj.Trajectory(self.positions, bead_topology(self.sequence), time=self.time_ps)

    def _extra(self) -> dict[str, Any]:
        """What `mdtraj.load` looks for."""
        topology = HDF5TrajectoryFile.convert_topology_to_dict(bead_topology(self.sequence))
        return {
            "topology": np.array([json.dumps(topology).encode("ascii")]),
            "conventions": "Pande",
            "conventionVersion": "1.1",
            "program": "cgal",
            "programVersion": "0",
            "application": "cgal",
        }

    @classmethod
    def _upgrade(cls, content: dict[str, Any]) -> dict[str, Any]:
        names = ("replica", "last_step", "cause")
        fates = [dict(zip(names, fate, strict=True)) for fate in json.loads(content["fates"])]
        return content | {"fates": json.dumps(fates)}


@dataclass(frozen=True, eq=False)
class LabelledFrames(Hdf5Record):
    """Bead positions with their projected forces: what a shard holds and what a network is trained on.

    `trajectory` numbers the source trajectory of each frame, so that validation can hold out whole blocks of one.
    `provenance` says where the frames come from (JSON-able). `weights` are statistical weights, if there are any
    (`cgal.training.frame_weights`); only their ratios count.
    """

    KIND = "labelled-frames"

    sequence: str
    positions: Float32[np.ndarray, "frames beads 3"]
    forces: Float32[np.ndarray, "frames beads 3"]
    trajectory: Int32[np.ndarray, " frames"]
    time_ps: Float64[np.ndarray, " frames"]
    provenance: dict[str, Any]
    weights: Float64[np.ndarray, " frames"] | None = None

    def __len__(self) -> int:
        """Give the number of frames."""
        return len(self.positions)

    def take(self, indices: Shaped[np.ndarray, " picked"]) -> "LabelledFrames":
        """Give the frames at `indices` (or where a boolean mask holds)."""
        return replace(self, **arrays_at(self, indices))


@dataclass(frozen=True, eq=False)
class AtomFrames(Hdf5Record):
    """All-atom positions and forces, before projection: the imported seed, or the oracle's labels.

    `pdb` is the topology as PDB text (its coordinates are those of some frame). `forces` are as OpenMM reports them,
    without constraint forces; either instantaneous or averaged over a run with held C-alpha (`provenance["forces"]`
    is "instantaneous" or "mean"). Mean forces come with `bead_forces`, projected in local frames at each look and then
    averaged, since an average has no single place of each atom to project it with.
    """

    KIND = "atom-frames"

    pdb: str = field(metadata=stored(text=True))
    positions: Float32[np.ndarray, "frames atoms 3"]
    forces: Float32[np.ndarray, "frames atoms 3"]
    trajectory: Int32[np.ndarray, " frames"]
    time_ps: Float64[np.ndarray, " frames"]
    provenance: dict[str, Any]
    bead_forces: Float32[np.ndarray, "frames beads 3"] | None = None

    def __len__(self) -> int:
        """Give the number of frames."""
        return len(self.positions)

    def take(self, indices: Shaped[np.ndarray, " picked"]) -> "AtomFrames":
        """Give the frames at `indices` (or where a boolean mask holds)."""
        return replace(self, **arrays_at(self, indices))

    @cached_property
    def topology(self) -> mdtraj.Topology:
        """The atoms, as mdtraj sees them."""
        return read_pdb_text(self.pdb).topology


def read_pdb_text(pdb: str) -> mdtraj.Trajectory:
    """Parse PDB text with mdtraj (which wants a file), dropping any box; disulfide bonds are those of near sulphurs.

    mdtraj looks for these while positions are in Angstrom, by a distance in nm, and so finds none.
    """
    with NamedTemporaryFile("w", suffix=".pdb") as stream:
        stream.write(pdb)
        stream.flush()
        trajectory = mdtraj.load_pdb(stream.name, standard_names=False)
    trajectory.unitcell_vectors = None
    if not any(one.name == other.name == "SG" for one, other in trajectory.topology.bonds):  # by CONECT
        trajectory.topology.create_disulfide_bonds(trajectory.xyz[0])
    return trajectory


def native_beads(pdb: str) -> Float32[np.ndarray, "beads 3"]:
    """C-alpha positions of a PDB text [nm]."""
    structure = read_pdb_text(pdb)
    return np.asarray(structure.xyz[0, alpha_carbons(structure.topology)], dtype=np.float32)


def sequence_of(topology: mdtraj.Topology) -> str:
    """One-letter sequence of a protein topology, without its caps; raises BadStructure for any other residue."""
    letters: list[str] = []
    for residue in topology.residues:
        if residue.name in CAPS:
            continue
        name = amino_acid_of(residue.name)
        if name is None:
            raise BadStructure(f"residue {residue} is no amino acid; strip water, ions and ligands first")
        letters.append(AMINO_ACIDS[name])
    return check_sequence("".join(letters))


def alpha_carbons(topology: mdtraj.Topology) -> Shaped[np.ndarray, " beads"]:
    """Indices of the C-alpha atoms, one a residue and in order; raises BadStructure when a residue has none.

    Caps (ACE, NME, NH2) are no residues here.
    """
    residues = [residue for residue in topology.residues if residue.name not in CAPS]
    indices = [atom.index for residue in residues for atom in residue.atoms if atom.name == "CA"]
    if len(indices) != len(residues):
        raise BadStructure(f"{len(residues)} residues but {len(indices)} C-alpha atoms: every residue needs one")
    return np.array(indices, dtype=int)


def beads_of_residues(topology: mdtraj.Topology) -> Int[np.ndarray, " residues"]:
    """Number of each residue's bead; a cap goes with its neighbour's."""
    counted = np.cumsum([residue.name not in CAPS for residue in topology.residues])
    return np.asarray(np.maximum(counted - 1, 0))


def rmsd_nm(
    positions: Float32[np.ndarray, "frames beads 3"], reference: Float32[np.ndarray, "beads 3"]
) -> Float64[np.ndarray, " frames"]:
    """Minimal RMSD of each frame to the reference frame, after optimal superposition [nm].

    Centred here, in double precision: `mdtraj.rmsd` works in single precision and centres its input in place.
    """
    if len(positions) == 0:
        return np.zeros(0)
    frames = mdtraj.Trajectory(_centred(positions), None)
    return np.asarray(mdtraj.rmsd(frames, mdtraj.Trajectory(_centred(reference[None]), None)), dtype=np.float64)


def _centred(positions: Float32[np.ndarray, "frames beads 3"]) -> Float32[np.ndarray, "frames beads 3"]:
    precise = positions.astype(np.float64)
    return (precise - precise.mean(axis=1, keepdims=True)).astype(np.float32)
