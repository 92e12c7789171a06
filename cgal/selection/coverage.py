"""How well the training set covers what the simulation visits, along the RMSD to a reference frame."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from cgal.errors import EmptyTrajectory

__all__ = ["Coverage", "coverage_gap"]


def coverage_gap(
    simulated: Float64[np.ndarray, " frames"],
    training: Float64[np.ndarray, " training_frames"],
    edges: Float64[np.ndarray, " edges"],
) -> tuple[Float64[np.ndarray, " bins"], Float64[np.ndarray, " bins"], Float64[np.ndarray, " bins"]]:
    """Share of simulated and of training frames in each RMSD bin, and by how much the first exceeds the second.

    RMSDs to the reference frame and edges in nm; every RMSD must lie within the edges. Each histogram sums to one,
    so the gap lies in [-1, 1] and sums to zero (Bachelor et al. 2025, arXiv:2509.17208, section 2.3).
    Raises EmptyTrajectory when either has no frame.
    """
    if len(simulated) == 0 or len(training) == 0:
        raise EmptyTrajectory("coverage gap: both simulation and training set need at least one frame")
    shares = [np.histogram(values, edges)[0] / len(values) for values in (simulated, training)]
    return shares[0], shares[1], shares[0] - shares[1]


@dataclass(frozen=True, eq=False)
class Coverage:
    """Histograms of the RMSD to the reference frame with common edges [nm], and their difference.

    `gap` is positive where the simulation goes more often than the training set.
    """

    edges: Float64[np.ndarray, " edges"]
    simulated: Float64[np.ndarray, " bins"]
    training: Float64[np.ndarray, " bins"]
    gap: Float64[np.ndarray, " bins"]

    @classmethod
    def measure(
        cls,
        simulated: Float64[np.ndarray, " frames"],
        training: Float64[np.ndarray, " training_frames"],
        bins: int,
        cutoff_nm: float,
    ) -> "Coverage":
        """Compare RMSDs [nm] in equal bins from zero to the cutoff, or to the largest training RMSD if that is beyond.

        Edges that do not follow the data make the histograms of different rounds comparable, and no training frame
        is ever left out.
        """
        edges = np.linspace(0.0, training.max(initial=cutoff_nm), bins + 1)
        return cls(edges, *coverage_gap(simulated, training, edges))

    def bin_of(self, values: Float64[np.ndarray, " frames"]) -> Int64[np.ndarray, " frames"]:
        """Give the bin of each RMSD, by the rule of `numpy.histogram` (the last bin holds its upper edge)."""
        bins = np.searchsorted(self.edges, values, side="right") - 1
        return np.minimum(bins, len(self.gap) - 1)
