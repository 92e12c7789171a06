"""What is compared: bonds, angles, dihedrals, reaction coordinate, pair distances and RMSD of C-alpha beads.

All in nm and rad, never across a periodic box: beads have none.
"""

from itertools import combinations

import mdtraj
import numpy as np
from jaxtyping import Float64

from cgal.frames import CGTrajectory

__all__ = ["angles", "bonds", "dihedrals", "local_observables", "pair_distances", "reaction_coordinate"]


def bonds(beads: mdtraj.Trajectory) -> Float64[np.ndarray, "frames bonds"]:
    """Distance of each two successive beads [nm]."""
    return _distances(beads, _runs(beads, 2))


def angles(beads: mdtraj.Trajectory) -> Float64[np.ndarray, "frames angles"]:
    """Angle at the middle of each three successive beads [rad, 0 to pi]."""
    return np.asarray(mdtraj.compute_angles(beads, _runs(beads, 3), periodic=False), dtype=np.float64)


def dihedrals(beads: mdtraj.Trajectory) -> Float64[np.ndarray, "frames dihedrals"]:
    """Torsion of each four successive beads [rad, -pi to pi, periodic]."""
    return np.asarray(mdtraj.compute_dihedrals(beads, _runs(beads, 4), periodic=False), dtype=np.float64)


def reaction_coordinate(beads: mdtraj.Trajectory) -> Float64[np.ndarray, "frames 1"]:
    """Distance from the first to the last bead [nm]."""
    return _distances(beads, [(0, beads.n_atoms - 1)])


def pair_distances(beads: mdtraj.Trajectory) -> Float64[np.ndarray, "frames pairs"]:
    """Distance of every two beads [nm]: 45 columns for ten beads."""
    return _distances(beads, list(combinations(range(beads.n_atoms), 2)))


def local_observables(trajectory: CGTrajectory) -> dict[str, Float64[np.ndarray, "frames _"]]:
    """Give the four observables that need no fit, one column a term: reaction coordinate, bond, angle, dihedral."""
    beads = trajectory.to_mdtraj()
    return {
        "reaction_coordinate": reaction_coordinate(beads),
        "bond": bonds(beads),
        "angle": angles(beads),
        "dihedral": dihedrals(beads),
    }


def _runs(beads: mdtraj.Trajectory, length: int) -> list[tuple[int, ...]]:
    return [tuple(range(first, first + length)) for first in range(beads.n_atoms - length + 1)]


def _distances(beads: mdtraj.Trajectory, pairs: list[tuple[int, ...]]) -> Float64[np.ndarray, "frames pairs"]:
    return np.asarray(mdtraj.compute_distances(beads, pairs, periodic=False), dtype=np.float64)
