"""Query by committee: label the frames on whose forces networks trained alike disagree most."""

import numpy as np

from cgal.selection.batch import distinct
from cgal.selection.pool import Picks, Pool

__all__ = ["pick"]


def pick(pool: Pool, count: int, generator: np.random.Generator) -> Picks:
    """Take frames by falling disagreement, none nearer than `distinct_nm` to one taken before.

    The score is the calibrated disagreement [kJ/mol/nm] (see `Committee.disagreement`). Seung, Opper & Sompolinsky,
    COLT 1992; on forces of neural potentials: Schran, Brezina & Marsalek, J. Chem. Phys. 153, 104105 (2020).
    """
    committee = pool.committee()
    disagreement = committee.disagreement(pool.positions)
    ranked = np.argsort(-disagreement, kind="stable")
    picked = distinct(pool.positions, ranked, count, pool.params.distinct_nm)
    return Picks(picked, disagreement[picked], committee.calibration, disagreement)
