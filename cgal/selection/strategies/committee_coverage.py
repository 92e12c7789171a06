"""Coverage weighed by a committee: label where one label meets the most of the expected force error."""

import numpy as np

from cgal.selection.batch import greedy_cover
from cgal.selection.pool import Picks, Pool

__all__ = ["pick"]


def pick(pool: Pool, count: int, generator: np.random.Generator) -> Picks:
    """Take the uncovered frame around which uncovered frames have the largest sum of squared expected errors.

    As `coverage`, with every uncovered frame weighed by its squared disagreement (see `Committee.disagreement`)
    instead of by one: what force matching would want least, summed over the frames that the model visits. So neither a
    frame visited once (as by disagreement alone) nor a new place where all members agree (as by coverage alone)
    comes first. Frames within `novel_nm` of the training set weigh nothing: there are labels there, and where the
    members differ still, the noise of these labels is the reason. The score is a pick's share of the
    squared disagreement on all candidates. Disagreement times density: Settles & Craven, EMNLP 2008, 1070.
    """
    committee, params = pool.committee(), pool.params
    disagreement = committee.disagreement(pool.positions)
    squared = disagreement**2
    picked, met = greedy_cover(
        pool.positions,
        np.where(pool.candidates.nearest_nm > params.novel_nm, squared, 0.0),
        pool.candidates.nearest_nm,
        count,
        radius_nm=params.novel_nm,
        distinct_nm=params.distinct_nm,
    )
    return Picks(picked, met / squared.sum() if len(met) else met, committee.calibration, disagreement)
