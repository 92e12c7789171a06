"""From a simulated trajectory to the frames that the oracle shall label."""

from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32, Shaped

from cgal.errors import BadParams, EmptyTrajectory
from cgal.frames import CGTrajectory, rmsd_nm
from cgal.params import SelectionParams
from cgal.selection.committee import Committee
from cgal.selection.committee_coverage import committee_coverage
from cgal.selection.coverage import Coverage
from cgal.selection.k_centre import k_centre
from cgal.selection.max_coverage import max_coverage
from cgal.selection.nearest import nearest_rmsd_nm
from cgal.selection.picks import Candidates, Selection
from cgal.selection.pool import Picks, Pool, Strategy, drop_reasons
from cgal.selection.query_by_committee import query_by_committee
from cgal.selection.rmsd_histogram import rmsd_histogram
from cgal.selection.uniform import uniform

__all__ = ["STRATEGIES", "select"]

STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        "rmsd_histogram": rmsd_histogram,
        "random": uniform,
        "coverage": max_coverage,
        "k_centre": k_centre,
        "committee": query_by_committee,
        "committee_coverage": committee_coverage,
    }
)
"""Every strategy by its name in `params.yaml`."""


def no_committee() -> Committee:
    """Stand in for a committee where none is given; raises BadParams."""
    raise BadParams("selection.strategy asks for a committee of networks, and none was given: pass `committee`")


def select(
    trajectory: CGTrajectory,
    training: Float32[np.ndarray, "training_frames beads 3"],
    reference: Float32[np.ndarray, "beads 3"],
    params: SelectionParams,
    *,
    count: int,
    seed: int,
    committee: Callable[[], Committee] = no_committee,
) -> Selection:
    """Pick `count` simulated frames by `params.strategy`; unphysical frames are dropped and counted by reason first.

    `training` are the positions of the whole training set [nm], `reference` the frame that RMSDs are measured to.
    `committee` is called, once, only if the strategy needs networks and a pick is wanted.
    A `count` of zero (the closing round) gives no pick but all histograms. When fewer frames qualify, all of them are
    picked. Raises EmptyTrajectory when no simulated frame is physical or the training set is empty, BadParams when
    the strategy needs a committee that was not given.
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
    positions = trajectory.positions[frame]
    nearest = nearest_rmsd_nm(positions, training)[0]
    pool = Pool(frame, positions, rmsd[frame], nearest, coverage, params, committee)
    picks = STRATEGIES[params.strategy](pool, count, np.random.default_rng(seed)) if count else _none()
    return Selection(
        params.strategy,
        trajectory.sequence,
        pool.positions[picks.candidate],
        pool.frame[picks.candidate],
        picks.score,
        pool.rmsd_nm[picks.candidate],
        count,
        dropped,
        coverage,
        Candidates(pool.frame, pool.nearest_nm, params.novel_nm, picks.disagreement),
        picks.calibration,
    )


def _none() -> Picks:
    return Picks(np.zeros(0, dtype=np.int64), np.zeros(0))


def _count(reasons: Shaped[np.ndarray, " frames"]) -> dict[str, int]:
    return dict(sorted(Counter(str(reason) for reason in reasons if reason).items()))
