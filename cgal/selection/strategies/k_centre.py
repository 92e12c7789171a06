"""Greedy k-centre: always the frame furthest from all training frames and all earlier picks."""

import numpy as np

from cgal.selection.batch import rmsd_to
from cgal.selection.pool import Picks, Pool

__all__ = ["pick"]


def pick(pool: Pool, count: int, generator: np.random.Generator) -> Picks:
    """Take the frame whose nearest training frame or earlier pick is furthest, until `count` are taken.

    Distances are RMSDs after superposition; a pick's score is its distance when taken [nm]. The largest distance left
    is at most twice the least possible one (Gonzalez, Theor. Comput. Sci. 38, 293, 1985); active learning of neural
    networks by it: Sener & Savarese, ICLR 2018, arXiv:1708.00489. How often the simulation visits a frame does
    not count: the comparison for `coverage`, for which it does. Frames nearer than `distinct_nm` are not taken.
    """
    distance = pool.candidates.nearest_nm.copy()
    candidate: list[int] = []
    score: list[float] = []
    while len(candidate) < min(count, len(pool)):
        furthest = int(distance.argmax())
        if distance[furthest] < pool.params.distinct_nm or furthest in candidate:
            break
        candidate.append(furthest)
        score.append(float(distance[furthest]))
        distance = np.minimum(distance, rmsd_to(pool.positions, pool.positions[furthest]))
    return Picks(np.array(candidate, dtype=np.int64), np.array(score, dtype=np.float64))
