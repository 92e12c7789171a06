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

from cgal.benchmark.lag import lag_frames, trajectories_of
from cgal.errors import BadTrajectory
from cgal.frames import CGTrajectory

__all__ = ["fit_tica", "pair_distances_of", "project"]

COMPONENTS = 2


def fit_tica(reference: CGTrajectory, lag_ps: float) -> CovarianceKoopmanModel:
    """Fit two components on all pair distances, pairs of frames a lag apart within one trajectory, weighted.

    A trajectory no longer than the lag adds no pair to the fit (its frames still count in every distribution).
    Raises BadTrajectory when none is longer, when frames are not evenly spaced, or when distances vary in fewer than
    two directions; BadParams when the lag is below the frame spacing.
    """
    lag = lag_frames(reference, lag_ps)
    distances = pair_distances_of(reference)
    first = np.concatenate([frames[:-lag] for frames in trajectories_of(reference)])
    second = np.concatenate([frames[lag:] for frames in trajectories_of(reference)])
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
