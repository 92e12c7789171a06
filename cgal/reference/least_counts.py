"""Adaptive restarts of all-atom dynamics without a model: from the cells that were visited least."""

import numpy as np
from deeptime.clustering import KMeans
from jaxtyping import Float32, Int64

from cgal.errors import EmptyTrajectory
from cgal.reference.sampling import bead_distances

__all__ = ["least_counts"]

CELLS = 50


def least_counts(
    positions: Float32[np.ndarray, "frames beads 3"], count: int, *, seed: int
) -> Int64[np.ndarray, " count"]:
    """Indices of frames to restart from: one from each of the least populated k-means cells of bead distances [nm].

    Least-counts adaptive sampling (Bowman, Ensign and Pande, J. Chem. Theory Comput. 6, 787, 2010; Hruska et al.,
    J. Chem. Phys. 149, 244119, 2018), with 50 cells, or as many as there are frames; the frame of a cell is drawn at
    random. With fewer cells than restarts they are taken in turn. Same seed, same frames. Raises EmptyTrajectory when
    there is no frame.
    """
    if not len(positions):
        raise EmptyTrajectory("adaptive restarts: there is no frame to restart from")
    features = bead_distances(positions).astype(np.float64)
    cells = KMeans(min(CELLS, len(features)), fixed_seed=seed, n_jobs=1).fit_fetch(features).transform(features)
    occupied, visits = np.unique(cells, return_counts=True)
    order = np.resize(occupied[np.argsort(visits, kind="stable")], count)
    generator = np.random.default_rng(seed)
    return np.array([generator.choice(np.flatnonzero(cells == cell)) for cell in order])
