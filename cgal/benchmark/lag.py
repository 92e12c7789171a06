"""The lag of the benchmark's TICA in whole frames of a reference, and whether the reference has room for it."""

import numpy as np
from jaxtyping import Shaped

from cgal.errors import BadParams, BadTrajectory
from cgal.frames import CGTrajectory
from cgal.units import whole_frames

__all__ = ["frame_spacing_ps", "lag_frames", "require_lag", "trajectories_of", "used_lag_ps"]


def lag_frames(reference: CGTrajectory, lag_ps: float) -> int:
    """Lag in frames of the reference, as a whole number (`whole_frames`): what is used is `used_lag_ps`.

    Raises BadParams when the lag is below the frame spacing, BadTrajectory when no trajectory is longer.
    """
    longest = max(len(frames) for frames in trajectories_of(reference))
    return require_lag(lag_ps, frame_spacing_ps(reference), longest)


def require_lag(lag_ps: float, spacing_ps: float, longest: int) -> int:
    """Lag in frames of a reference whose longest trajectory has so many; raises as `lag_frames`."""
    lag = whole_frames(lag_ps, spacing_ps)
    if lag < 1:
        raise BadParams(
            f"benchmark.tica_lag_ps: {lag_ps:g} ps is below the reference's frame spacing, {spacing_ps:g} ps; raise it"
        )
    if longest <= lag:
        raise BadTrajectory(
            f"reference: its longest trajectory has {longest} frames ({longest * spacing_ps:g} ps), not more than the "
            f"TICA lag of {lag} frames ({lag * spacing_ps:g} ps); give longer ones or lower benchmark.tica_lag_ps"
        )
    return lag


def used_lag_ps(reference: CGTrajectory, lag_ps: float) -> float:
    """Lag that TICA is fitted with [ps]: the one asked for, in whole frames of the reference (`lag_frames`)."""
    return lag_frames(reference, lag_ps) * frame_spacing_ps(reference)


def frame_spacing_ps(reference: CGTrajectory) -> float:
    """Time between successive frames of each trajectory [ps]; raises BadTrajectory when it is not constant."""
    steps_ps = np.concatenate(
        [np.zeros(0), *(np.diff(reference.time_ps[frames]) for frames in trajectories_of(reference))]
    )
    if not len(steps_ps):
        raise BadTrajectory(f"reference: {len(reference)} frames and no two of one trajectory; TICA needs time series")
    spacing_ps = float(np.median(steps_ps))
    if spacing_ps <= 0 or not np.allclose(steps_ps, spacing_ps, rtol=1e-2):
        raise BadTrajectory(
            f"reference: frames lie {steps_ps.min():g} to {steps_ps.max():g} ps apart; TICA needs evenly spaced ones, "
            "so import each unbroken piece as a trajectory of its own"
        )
    return spacing_ps


def trajectories_of(reference: CGTrajectory) -> list[Shaped[np.ndarray, " frames"]]:
    """Frame indices of each trajectory, in order of time."""
    return [np.flatnonzero(reference.replica == replica) for replica in np.unique(reference.replica)]
