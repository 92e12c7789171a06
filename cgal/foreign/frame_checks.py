"""Checks of a trajectory: a whole molecule of natural handedness, at times that a clock would show.

Each check raises BadTrajectory naming file, frame and cure, or gives what is to be said.
"""

from collections.abc import Iterator
from dataclasses import replace

import mdtraj
import numpy as np
from jaxtyping import Float32, Int
from openmm import app
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from cgal.all_atom.soundness import are_cis, chiral_centres, handedness_nm3, peptide_bonds
from cgal.errors import BadTrajectory
from cgal.foreign.trajectory import Source

__all__ = ["CisBonds", "check_frames", "check_handedness", "check_times", "made_whole", "notes_on_motion", "timed"]

LONGEST_HYDROGEN_BOND_nm = 0.15
"""No bond to hydrogen is longer (S-H has 0.134)."""
LONGEST_HEAVY_BOND_nm = 0.23
"""No other bond in a protein is longer (S-S has 0.205)."""
TYPICAL_BOND_nm = (0.05, 0.3)
"""Between these lies the median bond of any molecule whose positions are in nm."""
UNEVEN = 1e-3
"""Steps in time that differ by this share are uneven, beyond the rounding of single precision."""


def timed(source: Source, frame_ps: float | None) -> Source:
    """Frames with the times of their file, or `frame_ps` apart; raises BadTrajectory when there are none."""
    if frame_ps is not None:
        return replace(source, time_ps=np.arange(len(source.frame)) * frame_ps)
    if source.time_ps is None:
        raise BadTrajectory(
            f"{source.path.name}: the file holds no times; say how many ps lie between its frames (--frame-ps, or "
            "'time_ps' or 'stride_ps' in the plain HDF5 layout)"
        )
    return source


def check_times(source: Source) -> None:
    """Times must be finite, increasing and evenly spaced."""
    time_ps = source.time_ps
    assert time_ps is not None
    cure = "; give the true time between frames (--frame-ps), or each run as a file of its own"
    wrong = np.flatnonzero(~np.isfinite(time_ps))
    if len(wrong):
        raise BadTrajectory(f"{source.path.name}: the time of frame {source.frame[wrong[0]]} is not finite{cure}")
    steps_ps = np.diff(time_ps)
    if not len(steps_ps):
        return
    usual_ps = float(np.median(steps_ps))
    rounding_ps = 2.0 * float(np.spacing(np.float32(np.abs(time_ps).max())))
    for wrong, fault in (
        (np.flatnonzero(steps_ps <= 0), "times must increase"),
        (
            np.flatnonzero(np.abs(steps_ps - usual_ps) > UNEVEN * usual_ps + rounding_ps),
            f"times must be evenly spaced, and {usual_ps:g} ps is usual here",
        ),
    ):
        if len(wrong):
            row = wrong[0]
            raise BadTrajectory(
                f"{source.path.name}: frame {source.frame[row]} is at {time_ps[row]:g} ps and frame "
                f"{source.frame[row + 1]} at {time_ps[row + 1]:g} ps: {fault}{cure}"
            )


def made_whole(source: Source, topology: mdtraj.Topology) -> tuple[Source, int]:
    """Frames in which no bond runs through the box, and how many of them had to be mended.

    Atoms move by whole box vectors, each next to the one that it is bonded to, from the first atom on. Frames without
    a box stay as they are.
    """
    if source.box is None or not topology.n_bonds:
        return source, 0
    bonds = _bonds(topology)
    lengths_nm = np.linalg.norm(source.positions[:, bonds[:, 1]] - source.positions[:, bonds[:, 0]], axis=-1)
    boxed = np.abs(np.linalg.det(source.box)) > 0
    torn = np.flatnonzero(boxed & (lengths_nm > LONGEST_HEAVY_BOND_nm).any(axis=1))
    if not len(torn):
        return source, 0
    box = source.box[torn].astype(np.float64)
    inverse = np.linalg.inv(box)
    positions = source.positions[torn].astype(np.float64)
    for parent, child in _outwards(bonds, topology.n_atoms):
        step = positions[:, child] - positions[:, parent]
        images = np.rint(np.einsum("fi,fij->fj", step, inverse))
        positions[:, child] -= np.einsum("fi,fij->fj", images, box)
    whole = source.positions.copy()
    whole[torn] = positions
    return replace(source, positions=whole), len(torn)


def _outwards(bonds: Int[np.ndarray, "bonds 2"], n_atoms: int) -> Iterator[tuple[int, int]]:
    """Bonds that reach every atom of each molecule from its first, in the order of reaching."""
    graph = coo_array((np.ones(len(bonds)), bonds.T), shape=(n_atoms, n_atoms)).tocsr()
    _, molecules = connected_components(graph, directed=False)
    for first in np.unique(molecules, return_index=True)[1]:
        order, parents = breadth_first_order(graph, first, directed=False)
        for atom in order[1:]:
            yield int(parents[atom]), int(atom)


def check_frames(source: Source, topology: mdtraj.Topology) -> None:
    """Positions and forces are finite, in nm, and bonds are whole."""
    if not len(source.frame):
        return
    _check_finite(source, "position", source.positions, topology)
    if source.forces is not None:
        _check_finite(source, "force", source.forces, topology)
    if not topology.n_bonds:
        return
    bonds = _bonds(topology)
    vectors = source.positions[:, bonds[:, 1]] - source.positions[:, bonds[:, 0]]
    _check_length_unit(source, vectors)
    _check_bonds(source, topology, bonds, vectors)


def _bonds(topology: mdtraj.Topology) -> Int[np.ndarray, "bonds 2"]:
    return np.array([(one.index, other.index) for one, other in topology.bonds])


def _check_finite(
    source: Source, what: str, values: Float32[np.ndarray, "frames atoms 3"], topology: mdtraj.Topology
) -> None:
    wrong = np.argwhere(~np.isfinite(values).all(axis=2))
    if len(wrong):
        row, atom = wrong[0]
        raise BadTrajectory(
            f"{source.path.name}: frame {source.frame[row]}: the {what} of atom {atom} ({topology.atom(atom)}) is not "
            f"finite ({len(wrong)} such near by); the run blew up there: import the frames before, or run again"
        )


def notes_on_motion(source: Source) -> tuple[str, ...]:
    """What to say of frames that are equal: nothing was sampled, and no force map or benchmark comes of them."""
    if len(source.frame) < 2 or any((piece.positions != source.positions[:1]).any() for piece in source.pieces()):
        return ()
    return (
        f"warning: {source.path.name}: all {len(source.frame)} frames are equal, so nothing was sampled; "
        "give the trajectory of a run",
    )


def _check_length_unit(source: Source, vectors: Float32[np.ndarray, "frames bonds 3"]) -> None:
    median_nm = float(np.median(np.linalg.norm(vectors[0], axis=-1)))
    low, high = TYPICAL_BOND_nm
    if not low < median_nm < high:
        raise BadTrajectory(
            f"{source.path.name}: frame {source.frame[0]}: the median bond is {median_nm:.3g} nm long, where some 0.13 "
            "is right; either positions are not in nm (angstrom, perhaps): convert them, or the atoms are in another "
            "order than the topology's: give the topology that the trajectory was made with"
        )


def _check_bonds(
    source: Source,
    topology: mdtraj.Topology,
    bonds: Int[np.ndarray, "bonds 2"],
    vectors: Float32[np.ndarray, "frames bonds 3"],
) -> None:
    hydrogen = np.array([any(atom.element.symbol == "H" for atom in bond) for bond in topology.bonds])
    limits_nm = np.where(hydrogen, LONGEST_HYDROGEN_BOND_nm, LONGEST_HEAVY_BOND_nm)
    lengths_nm = np.linalg.norm(vectors, axis=-1)
    broken = np.argwhere(lengths_nm > limits_nm)
    if not len(broken):
        return
    row, bond = broken[0]
    one, other = (topology.atom(index) for index in bonds[bond])
    _check_gap(source, one, other, bool((lengths_nm[:, bond] > limits_nm[bond]).all()))
    where = (
        f"{source.path.name}: frame {source.frame[row]}: {one} and {other} are bonded but "
        f"{lengths_nm[row, bond]:.2f} nm apart"
    )
    if source.frame[row] == 0:
        cure = (
            "the atoms are in another order than the topology's (give the topology that the trajectory was made with), "
            "or the molecule is wrapped (make it whole first, mdtraj: make_molecules_whole)"
        )
    else:
        cure = "the molecule is broken or wrapped: make it whole first (mdtraj: make_molecules_whole), or leave it out"
    raise BadTrajectory(f"{where}: {cure}")


def _check_gap(
    source: Source, one: mdtraj.core.topology.Atom, other: mdtraj.core.topology.Atom, in_all_frames: bool
) -> None:
    """Name a gap: a peptide bond that no frame has, between residues whose numbers are not next to one another."""
    first, second = sorted((one.residue, other.residue), key=lambda residue: residue.index)
    peptide = first is not second and {one.name, other.name} == {"C", "N"}
    if peptide and in_all_frames and second.resSeq - first.resSeq > 1:
        raise BadTrajectory(
            f"{source.path.name}: residues between {first} and {second} are missing; a chain with a gap is no chain of "
            "beads: model the missing residues and simulate the whole chain"
        )


def check_handedness(source: Source, topology: app.Topology) -> None:
    """Every chiral centre is that of natural amino acids, in every frame."""
    labels, centres = chiral_centres(topology)
    wrong = np.argwhere(handedness_nm3(source.positions, centres) <= 0) if len(source.frame) else np.zeros((0, 2), int)
    if not len(wrong):
        return
    row = wrong[0, 0]
    there = wrong[wrong[:, 0] == row, 1]
    mirrored = len(there) > len(labels) / 2
    cause = "the frame is a mirror image: an axis was turned over in conversion" if mirrored else "it is no L residue"
    others = f" (and at {len(there) - 1} more)" if len(there) > 1 else ""
    raise BadTrajectory(
        f"{source.path.name}: frame {source.frame[row]}: wrong handedness at {labels[there[0]]}{others}: {cause}; "
        "give a trajectory of L amino acids"
    )


class CisBonds:
    """Counts, over pieces of a trajectory, in how many frames each peptide bond is cis."""

    def __init__(self, topology: app.Topology) -> None:
        self._labels, self._bonds = peptide_bonds(topology)
        self._counts = np.zeros(len(self._labels), dtype=int)

    def count(self, positions: Float32[np.ndarray, "frames atoms 3"]) -> None:
        """Take in some frames."""
        if self._labels:
            self._counts += are_cis(positions, self._bonds).sum(axis=0)

    def notes(self, source: Source) -> tuple[str, ...]:
        """What to say of the bonds; raises BadTrajectory for one that most frames have, unless before proline."""
        notes = []
        for label, count in zip(self._labels, self._counts, strict=True):
            where = f"{source.path.name}: cis peptide bond before {label} in {count} of {len(source.frame)} frames"
            if count > len(source.frame) / 2 and not label.startswith("PRO"):
                raise BadTrajectory(f"{where}, which but proline's almost never are; give a trajectory of trans ones")
            if count:
                notes.append(where)
        return tuple(notes)
