"""The paper's strategy: fill the largest coverage gaps along the RMSD to the reference frame."""

import numpy as np

from cgal.selection.pool import Picks, Pool

__all__ = ["pick"]


def pick(pool: Pool, count: int, generator: np.random.Generator) -> Picks:
    """Take frames from the RMSD bin with the largest gap, then from the next, until `count` are taken.

    The score of a pick is the gap of its bin (Bachelor et al. 2025, arXiv:2509.17208, section 2.3). Choices made
    here: within a bin frames are drawn at random, equal gaps go to the lower RMSD first, and a bin that the
    training set already covers as well as the simulation visits it (gap zero or less) gives no frame.
    """
    gap, bins = pool.coverage.gap, pool.coverage.bin_of(pool.rmsd_nm)
    uncovered = [worst for worst in np.argsort(-gap, kind="stable") if gap[worst] > 0]
    ranked = [generator.permutation(np.flatnonzero(bins == worst)) for worst in uncovered]
    candidate = np.concatenate([np.zeros(0, dtype=np.int64), *ranked])[:count]
    return Picks(candidate, gap[bins[candidate]])
