"""From a simulated trajectory to the frames that the oracle shall label."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32, Shaped

from cgal.errors import EmptyTrajectory
from cgal.frames import CGTrajectory, rmsd_nm
from cgal.params import SelectionParams
from cgal.selection.coverage import Coverage
from cgal.selection.nearest import nearest_rmsd_nm
from cgal.selection.picks import Selection
from cgal.selection.pool import Pool, Strategy, drop_reasons
from cgal.selection.rmsd_histogram import rmsd_histogram
from cgal.selection.uniform import uniform

__all__ = ["STRATEGIES", "select"]

STRATEGIES: Mapping[str, Strategy] = MappingProxyType({"rmsd_histogram": rmsd_histogram, "random": uniform})
"""Every strategy by its name in `params.yaml`."""


def select(
    trajectory: CGTrajectory,
    training: Float32[np.ndarray, "training_frames beads 3"],
    reference: Float32[np.ndarray, "beads 3"],
    params: SelectionParams,
    *,
    count: int,
    seed: int,
) -> Selection:
    """Pick `count` simulated frames by `params.strategy`; unphysical frames are dropped and counted by reason first.

    `training` are the positions of the whole training set [nm], `reference` the frame that RMSDs are measured to.
    A `count` of zero (the closing round) gives no pick but all histograms. When fewer frames qualify, all of them are
    picked. Raises EmptyTrajectory when no simulated frame is physical or the training set is empty.
    """
    rmsd = rmsd_nm(trajectory.positions, reference)
    reasons = drop_reasons(trajectory, rmsd, params)
    frame = np.flatnonzero(reasons == "")
    dropped = _count(reasons)
    if len(frame) == 0:
        raise EmptyTrajectory(
            f"selection: none of {len(trajectory)} simulated frames is physical ({dropped or 'no frame at all'}); "
            "train longer, or widen the bounds under selection"
        )
    coverage = Coverage.measure(rmsd[frame], rmsd_nm(training, reference), params.bins, params.cutoff_nm)
    pool = Pool(frame, trajectory.positions[frame], rmsd[frame], training, coverage)
    picks = STRATEGIES[params.strategy](pool, count, np.random.default_rng(seed))
    positions = pool.positions[picks.candidate]
    return Selection(
        params.strategy,
        trajectory.sequence,
        positions,
        pool.frame[picks.candidate],
        picks.score,
        pool.rmsd_nm[picks.candidate],
        count,
        len(pool),
        dropped,
        coverage,
        nearest_rmsd_nm(positions, training)[0],
    )


def _count(reasons: Shaped[np.ndarray, " frames"]) -> dict[str, int]:
    return dict(sorted(Counter(str(reason) for reason in reasons if reason).items()))
