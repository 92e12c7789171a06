"""What a strategy chooses from: the physical frames of a simulation, and why the others are out."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped

from cgal.frames import CGTrajectory
from cgal.params import SelectionParams
from cgal.selection.coverage import Coverage

__all__ = ["Picks", "Pool", "Strategy", "drop_reasons"]


@dataclass(frozen=True, eq=False)
class Pool:
    """Candidate frames with their RMSD to the reference frame [nm], and the coverage of the training set.

    `frame` gives each candidate's index in the simulated trajectory; `training` are the training positions.
    """

    frame: Int64[np.ndarray, " candidates"]
    positions: Float32[np.ndarray, "candidates beads 3"]
    rmsd_nm: Float64[np.ndarray, " candidates"]
    training: Float32[np.ndarray, "training_frames beads 3"]
    coverage: Coverage

    def __len__(self) -> int:
        """Give the number of candidates."""
        return len(self.frame)


@dataclass(frozen=True, eq=False)
class Picks:
    """Chosen candidates (index into the pool), best first and none twice, and the score each was chosen for."""

    candidate: Int64[np.ndarray, " picked"]
    score: Float64[np.ndarray, " picked"]


Strategy = Callable[[Pool, int, np.random.Generator], Picks]
"""Chooses at most `count` candidates of a pool; all randomness comes from the generator."""


def drop_reasons(
    trajectory: CGTrajectory, rmsd: Float64[np.ndarray, " frames"], params: SelectionParams
) -> Shaped[np.ndarray, " frames"]:
    """Say why each frame cannot be labelled: the first reason that holds, or "" for a candidate.

    "not finite": a coordinate is no number; "unphysical bond": a CA-CA bond outside `minimum_bond_nm` to
    `maximum_bond_nm`; "overlap": two beads that are not bonded to each other closer than `minimum_distance_nm`;
    "beyond cutoff": RMSD to the reference frame over `cutoff_nm`, the paper's guard against implosions and explosions.
    """
    positions = trajectory.positions.astype(np.float64)
    bonds = np.linalg.norm(np.diff(positions, axis=1), axis=-1)
    first, second = np.triu_indices(positions.shape[1], k=2)
    apart = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1)
    faults = {
        "not finite": ~np.isfinite(positions).all(axis=(1, 2)),
        "unphysical bond": ((bonds < params.minimum_bond_nm) | (bonds > params.maximum_bond_nm)).any(axis=1),
        "overlap": (apart < params.minimum_distance_nm).any(axis=1),
        "beyond cutoff": rmsd > params.cutoff_nm,
    }
    return np.select(list(faults.values()), list(faults), default="")
