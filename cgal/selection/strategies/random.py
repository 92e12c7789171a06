"""The control: any physical frame, whatever the training set holds."""

import numpy as np

from cgal.selection.pool import Picks, Pool

__all__ = ["pick"]


def pick(pool: Pool, count: int, generator: np.random.Generator) -> Picks:
    """Draw frames with equal probability, none twice; every score is zero."""
    candidate = generator.permutation(len(pool))[:count]
    return Picks(candidate, np.zeros(len(candidate)))
