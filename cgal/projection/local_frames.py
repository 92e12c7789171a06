"""Bead forces by local frames: all other atoms follow the C-alpha beads as rigid groups, so no stiff bond is strained.

A linear force map moves atoms along straight lines when a bead moves. That strains bonds and angles, and their thermal
forces are most of the noise of the result. Here each atom keeps its place in a frame that the beads span: with origin
o(R) and axes Q(R) of its group, r = o(R) + Q(R) s. The force on the beads at fixed s,

    F = sum over atoms (dr/dR)^T f,

has the mean force at fixed beads as its mean, because R and s are coordinates of the same volume as r (the determinant
is that of rotations, one): no term k_B T div is left over (Ciccotti, Kapral and Vanden-Eijnden, ChemPhysChem 6, 1809
(2005), with a vector field that turns with the chain; Noid et al. 2008 and Kramer et al. 2023 have linear ones). A
hydrogen is in the group of its heavy atom, so rigid X-H constraints do no work and are not missed.

Groups: C, O of a residue and N, H of the next are the peptide plane, which turns with the bond CA-CA and, for its
rotation about it, half with the bead before and half with the one after; the rest of a residue follows its own bead and
both neighbours, and so does a cap (ACE, NME, NH2) with the residue that it is bonded to.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mdtraj
import numpy as np
from jaxtyping import Float32, Float64, Int

from cgal.errors import BadStructure
from cgal.frames import AtomFrames, alpha_carbons, beads_of_residues
from cgal.residues import CAPS

__all__ = ["RigidGroup", "project_in_local_frames", "rigid_groups"]

type Vectors = Float64[np.ndarray, "frames 3"]


class RigidGroup(NamedTuple):
    """Atoms in a frame of beads: origin midway between two, first axis from one to another, a third in the plane."""

    atoms: Int[np.ndarray, " members"]
    origin: tuple[int, int]
    axis: tuple[int, int]
    towards: int


def project_in_local_frames(
    frames: AtomFrames, clusters: Sequence[Int[np.ndarray, " _"]]
) -> Float32[np.ndarray, "frames beads 3"]:
    """Bead forces [kJ/mol/nm] of frames with instantaneous forces.

    `clusters` are the atoms that constraints tie together, each with one heavy atom. Raises BadStructure for a chain of
    fewer than three beads.
    """
    carbons = alpha_carbons(frames.topology)
    positions, forces = frames.positions.astype(np.float64), frames.forces.astype(np.float64)
    beads, total = positions[:, carbons], forces[:, carbons]
    for follows_next in (False, True):
        for group in rigid_groups(frames.topology, clusters, follows_next=follows_next):
            total += 0.5 * _on_beads(group, beads, positions[:, group.atoms], forces[:, group.atoms])
    return total.astype(np.float32)


def rigid_groups(
    topology: mdtraj.Topology, clusters: Sequence[Int[np.ndarray, " _"]], *, follows_next: bool
) -> list[RigidGroup]:
    """Rigid groups of all atoms but C-alpha; peptide planes turn with the bead after them or with the one before."""
    residues = len(alpha_carbons(topology))
    if residues < 3:
        raise BadStructure(
            f"local frames need at least three residues, the chain has {residues}; use another force map"
        )
    planes, rest = _planes_and_rest(topology, clusters, residues)
    groups = []
    for i, members in enumerate(planes):
        before, after = (i - 1 if i > 0 else i + 2), (i + 2 if i + 2 < residues else i - 1)
        groups.append(RigidGroup(np.array(members), (i, i + 1), (i, i + 1), after if follows_next else before))
    for i, members in enumerate(rest):
        middle = min(max(i, 1), residues - 2)  # of the three beads that the first and last residue follow
        axis, towards = ((i - 1, i + 1), i) if middle == i else ((middle, i), 2 * middle - i)
        if members:
            groups.append(RigidGroup(np.array(members), (i, i), axis, towards))
    return groups


def _planes_and_rest(
    topology: mdtraj.Topology, clusters: Sequence[Int[np.ndarray, " _"]], residues: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Atoms of the peptide plane after each residue but the last, and those that follow each residue's own bead."""
    beads = beads_of_residues(topology)
    planes: list[list[int]] = [[] for _ in range(residues - 1)]
    rest: list[list[int]] = [[] for _ in range(residues)]
    atoms = list(topology.atoms)
    for cluster in clusters:
        heavy = next(atoms[index] for index in cluster if atoms[index].element.symbol != "H")
        residue = int(beads[heavy.residue.index])
        others = [int(index) for index in cluster if atoms[index].name != "CA"]
        if heavy.residue.name in CAPS:
            rest[residue] += others
        elif heavy.name in ("C", "O") and residue < residues - 1:
            planes[residue] += others
        elif heavy.name == "N" and residue > 0:
            planes[residue - 1] += others
        else:
            rest[residue] += others
    return planes, rest


def _on_beads(
    group: RigidGroup,
    beads: Float64[np.ndarray, "frames beads 3"],
    positions: Float64[np.ndarray, "frames members 3"],
    forces: Float64[np.ndarray, "frames members 3"],
) -> Float64[np.ndarray, "frames beads 3"]:
    """What the forces on a group come to on the beads: their sum at its origin, and a torque that turns its frame."""
    found = np.zeros_like(beads)
    origin = beads[:, group.origin].mean(axis=1)
    push = forces.sum(axis=1)
    for bead in group.origin:
        found[:, bead] += 0.5 * push
    torque = np.cross(positions - origin[:, None], forces).sum(axis=1)
    start, end = group.axis
    axis, length = _direction(beads[:, end] - beads[:, start])
    arm = beads[:, group.towards] - beads[:, start]
    along = _dot(arm, axis)
    normal, _ = _direction(np.cross(axis, arm))
    height = _dot(np.cross(normal, axis), arm)
    swing = np.cross(torque, axis) / length  # turns the axis
    twist = normal * _dot(torque, axis) / height  # turns the rest about the axis
    found[:, end] += swing - twist * along / length
    found[:, start] += -swing - twist * (1.0 - along / length)
    found[:, group.towards] += twist
    return found


def _direction(vectors: Vectors) -> tuple[Vectors, Float64[np.ndarray, "frames 1"]]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / length, length


def _dot(first: Vectors, second: Vectors) -> Float64[np.ndarray, "frames 1"]:
    return np.asarray((first * second).sum(axis=1, keepdims=True))
