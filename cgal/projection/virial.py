"""Are bead forces those of the ensemble that their frames are from? A test that no model has a part in.

In equilibrium integration by parts gives, for every function q of the bead positions,

    < F . grad q > = - k_B T < div grad q >,

whatever the noise in the forces F, as long as its mean at fixed beads is zero. A force map that is biased fails: bonds
and near distances show forces that are missing locally, far ones and the virial (q is half the squared distance of the
beads from their centroid, summed) what is missing on the whole.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from cgal.errors import EmptyTrajectory
from cgal.units import thermal_energy_kJ_per_mol

__all__ = ["SEPARATIONS", "Ratio", "virial_ratios"]

SEPARATIONS = {"bonds": 1, "1-3": 2, "1-6": 5}
"""Distances that are tested, by how many bonds of the chain lie between the beads."""

BLOCKS = 20


class Ratio(NamedTuple):
    """< F . grad q > / (k_B T < div grad q >), which is -1 for unbiased forces, and its standard error."""

    value: float
    error: float

    @property
    def deviations(self) -> float:
        """How many standard errors it is off."""
        return (self.value + 1.0) / self.error


def virial_ratios(
    positions: Float[np.ndarray, "frames beads 3"], forces: Float[np.ndarray, "frames beads 3"], temperature_K: float
) -> dict[str, Ratio]:
    """Ratio for the virial and for the sums of all bonds, 1-3 and 1-6 distances that the chain has.

    Frames [nm] in equilibrium, in the order in which they were sampled, with their forces [kJ/mol/nm]. Errors are those
    of the means of 20 blocks of consecutive frames, which must be longer than the forces are correlated for. Raises
    EmptyTrajectory for fewer than two frames a block.
    """
    if len(positions) < 2 * BLOCKS:
        raise EmptyTrajectory(f"the virial test needs at least {2 * BLOCKS} frames, got {len(positions)}")
    beads, pull = positions.astype(np.float64), forces.astype(np.float64)
    arms = beads - beads.mean(axis=1, keepdims=True)
    work = {"virial": (pull * arms).sum(axis=(1, 2))}
    divergence = {"virial": np.full(len(beads), 3.0 * (beads.shape[1] - 1))}
    for name, apart in SEPARATIONS.items():
        if apart < beads.shape[1]:
            between = beads[:, apart:] - beads[:, :-apart]
            length = np.linalg.norm(between, axis=2)
            stretch = ((pull[:, apart:] - pull[:, :-apart]) * between).sum(axis=2) / length
            work[name], divergence[name] = stretch.sum(axis=1), (4.0 / length).sum(axis=1)
    return _ratios(work, divergence, thermal_energy_kJ_per_mol(temperature_K))


def _ratios(
    work: Mapping[str, Float64[np.ndarray, " frames"]],
    divergence: Mapping[str, Float64[np.ndarray, " frames"]],
    kT_kJ_per_mol: float,
) -> dict[str, Ratio]:
    found = {}
    for name, done in work.items():
        ideal = kT_kJ_per_mol * divergence[name]
        value = float(done.mean() / ideal.mean())
        residuals = [block.mean() for block in np.array_split(done - value * ideal, BLOCKS)]
        found[name] = Ratio(value, float(np.std(residuals, ddof=1) / np.sqrt(BLOCKS) / ideal.mean()))
    return found
