"""Maximum coverage: label where one label brings the most of what the model visits near a training frame."""

import numpy as np

from cgal.selection.batch import greedy_cover
from cgal.selection.pool import Picks, Pool

__all__ = ["pick"]


def pick(pool: Pool, count: int, generator: np.random.Generator) -> Picks:
    """Take the uncovered frame with the most uncovered frames around it, then the next, until `count` are taken.

    A frame is covered within `novel_nm` (RMSD after superposition) of a training frame or of an earlier pick. The
    score of a pick is the share of all candidates that it newly covers; the scores add up to the fall of their
    uncovered fraction. Of equal ones the furthest from the training set is taken.
    With every candidate covered there is nothing to pick, and no oracle call is spent.

    Why this and not the furthest frame: a force-matched model errs where it extrapolates, and what is seen of an
    error is weighed by how often the simulation goes there. K-centre on its own (Sener & Savarese, ICLR 2018,
    arXiv:1708.00489) minimises the largest distance and so spends labels on frames visited once, many of them
    strained ones on their way to an explosion. Balls that cover the most points are its robust form, k-centre with
    outliers (Charikar et al., SODA 2001). The paper's histogram sees one number a frame, the RMSD to one structure, in
    which frames that have nothing in common fall into one bin.
    """
    uncovered = (pool.candidates.nearest_nm > pool.params.novel_nm).astype(np.float64)
    picked, covered = greedy_cover(
        pool.positions,
        uncovered,
        pool.candidates.nearest_nm,
        count,
        radius_nm=pool.params.novel_nm,
        distinct_nm=pool.params.distinct_nm,
    )
    return Picks(picked, covered / len(pool))
