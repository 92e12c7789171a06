"""The slow coordinates of the reference: time-lagged independent component analysis on all bead distances.

Fitted on the reference alone; reference and model are then projected by the same model. Components keep deeptime's
`kinetic_map` scaling (each multiplied by its eigenvalue), so that a Euclidean distance in the plane of the two
is a kinetic distance (Noe and Clementi 2015) and W1 in it has one meaning for both axes. They have no unit.
"""

from itertools import combinations

import mdtraj
import numpy as np
from deeptime.decomposition import TICA, CovarianceKoopmanModel
from deeptime.numeric import ZeroRankError
from jaxtyping import Float64

from cgal.errors import BadParams, BadTrajectory
from cgal.frames import CGTrajectory
from cgal.units import whole_frames

__all__ = ["fit_tica", "frame_spacing_ps", "lag_frames", "pair_distances_of", "project", "used_lag_ps"]

COMPONENTS = 2


def fit_tica(reference: CGTrajectory, lag_ps: float) -> CovarianceKoopmanModel:
    """Fit two components on all pair distances, pairs of frames a lag apart within one trajectory, weighted.

    A trajectory no longer than the lag adds no pair to the fit (its frames still count in every distribution).
    Raises BadTrajectory when none is longer, when frames are not evenly spaced, or when distances vary in fewer than
    two directions; BadParams when the lag is below the frame spacing.
    """
    lag = lag_frames(reference, lag_ps)
    distances = pair_distances_of(reference)
    first = np.concatenate([frames[:-lag] for frames in _trajectories(reference)])
    second = np.concatenate([frames[lag:] for frames in _trajectories(reference)])
    weights = reference.weights[first] * len(reference)
    covariances = TICA.covariance_estimator(lag).partial_fit((distances[first], distances[second]), weights=weights)
    try:
        model = TICA(lagtime=lag, dim=COMPONENTS).fit_from_covariances(covariances.fetch_model()).fetch_model()
        found = model.output_dimension
    except ZeroRankError:
        found = 0
    if found < COMPONENTS:
        raise BadTrajectory(
            f"reference: its bead distances vary in {found} direction(s), TICA needs {COMPONENTS}; "
            "give a reference whose frames differ"
        )
    return model


def project(model: CovarianceKoopmanModel, trajectory: CGTrajectory) -> Float64[np.ndarray, "frames 2"]:
    """Two TICA components of each frame, dimensionless."""
    return np.asarray(model.transform(pair_distances_of(trajectory)), dtype=np.float64)


def pair_distances_of(trajectory: CGTrajectory) -> Float64[np.ndarray, "frames pairs"]:
    """Distance of every two beads [nm]: 45 columns for ten beads."""
    pairs = list(combinations(range(len(trajectory.sequence)), 2))
    distances = mdtraj.compute_distances(trajectory.to_mdtraj(), pairs, periodic=False)
    return np.asarray(distances, dtype=np.float64)


def lag_frames(reference: CGTrajectory, lag_ps: float) -> int:
    """Lag in frames of the reference, as a whole number (`whole_frames`): what is used is `used_lag_ps`.

    Raises BadParams when the lag is below the frame spacing, BadTrajectory when no trajectory is longer.
    """
    spacing_ps = frame_spacing_ps(reference)
    lag = whole_frames(lag_ps, spacing_ps)
    if lag < 1:
        raise BadParams(
            f"benchmark.tica_lag_ps: {lag_ps:g} ps is below the reference's frame spacing, {spacing_ps:g} ps; raise it"
        )
    longest = max(len(frames) for frames in _trajectories(reference))
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
        [np.zeros(0), *(np.diff(reference.time_ps[frames]) for frames in _trajectories(reference))]
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


def _trajectories(reference: CGTrajectory) -> list[np.ndarray]:
    """Frame indices of each trajectory, in order of time."""
    return [np.flatnonzero(reference.replica == replica) for replica in np.unique(reference.replica)]
