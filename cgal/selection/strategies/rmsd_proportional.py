"""The paper's histogram with labels in proportion to the gaps along the RMSD to the reference frame."""

import numpy as np

from cgal.selection.pool import Picks, Pool

__all__ = ["pick"]


def pick(pool: Pool, count: int, generator: np.random.Generator) -> Picks:
    """Draw frames without replacement, a bin's frames sharing the probability that its gap has among all gaps.

    The score of a pick is the gap of its bin; best first. Bachelor et al. 2025 (arXiv:2509.17208, section 2.3) do not
    say how labels are dealt to the bins: here each bin gets its share, where `rmsd_histogram` empties the worst first.
    A bin that the training set covers as well as the simulation visits it gives no frame.
    """
    bins = pool.coverage.bin_of(pool.rmsd_nm)
    gap = np.maximum(pool.coverage.gap, 0.0)[bins]
    weight = gap / np.bincount(bins, minlength=len(pool.coverage.gap))[bins]
    if not weight.any():
        return Picks(np.zeros(0, dtype=np.int64), np.zeros(0))
    drawn = generator.choice(len(pool), min(count, int((weight > 0).sum())), replace=False, p=weight / weight.sum())
    candidate = drawn[np.argsort(-gap[drawn], kind="stable")].astype(np.int64)
    return Picks(candidate, gap[candidate])
