"""A committee of potentials: how far their forces differ, and what that says about their error."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64
from scipy.optimize import minimize

from cgal.errors import EmptyTrajectory
from cgal.potential.architectures import freeze
from cgal.potential.ensemble import force_spread
from cgal.potential.potential import Potential

__all__ = ["Calibration", "Committee", "fit_spread"]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the spread of a committee was worth on frames that no member was trained on.

    `spread` is the committee's, uncalibrated, and `error` the force error of its mean against the labels, for each
    held-out frame [kJ/mol/nm], both root mean squares over beads and axes. `scale` makes a spread an expected error,
    `noise_kJ_per_mol_nm` is the error where all members agree: the labels' own noise and what members have in common.
    """

    members: int
    scale: float
    noise_kJ_per_mol_nm: float
    spread: Float64[np.ndarray, " held_out"]
    error: Float64[np.ndarray, " held_out"]

    @property
    def spearman(self) -> float:
        """Rank correlation of spread and error over the held-out frames; 0 when either is the same everywhere."""
        if np.ptp(self.spread) == 0 or np.ptp(self.error) == 0:
            return 0.0
        from scipy.stats import spearmanr  # takes a second: no campaign without a committee waits for it

        return float(spearmanr(self.spread, self.error).statistic)

    @property
    def note(self) -> str:
        """One line for people."""
        return (
            f"committee of {self.members}: disagreement and force error of {len(self.error)} held-out frames have rank "
            f"correlation {self.spearman:.2f}, scale {self.scale:.2f}, noise {self.noise_kJ_per_mol_nm:.0f} kJ/mol/nm"
        )


class Committee:
    """Potentials trained on the same data from different seeds, and the calibration of their disagreement."""

    def __init__(
        self,
        members: Sequence[Potential],
        held_out: Float32[np.ndarray, "held_out beads 3"],
        labels: Float32[np.ndarray, "held_out beads 3"],
    ) -> None:
        """Calibrate on frames that were held out from all members, positions [nm] with forces [kJ/mol/nm].

        Raises EmptyTrajectory without such frames.
        """
        if len(held_out) == 0:
            raise EmptyTrajectory("committee: no held-out frame to calibrate on; raise training.validation_fraction")
        self.models = [freeze(member) for member in members]
        forces = self._forces(held_out)
        spread, error = force_spread(forces), _rms(forces.mean(axis=0) - labels)
        self.calibration = Calibration(len(members), *fit_spread(spread, error, len(members)), spread, error)

    def disagreement(self, positions: Float32[np.ndarray, "frames beads 3"]) -> Float64[np.ndarray, " frames"]:
        """Expected force error of each frame [kJ/mol/nm]: the calibrated spread, above the noise of the labels.

        The spread is the standard deviation of the members' forces, root mean square over beads and axes.
        """
        return self.calibration.scale * force_spread(self._forces(positions))

    def _forces(
        self, positions: Float32[np.ndarray, "frames beads 3"]
    ) -> Float64[np.ndarray, "members frames beads 3"]:
        at = torch.from_numpy(np.ascontiguousarray(positions))
        return np.stack([model.energy_and_forces(at)[1].numpy() for model in self.models]).astype(np.float64)


def fit_spread(
    spread: Float64[np.ndarray, " held_out"], error: Float64[np.ndarray, " held_out"], members: int
) -> tuple[float, float]:
    """Fit error^2 = noise^2 + (scale spread)^2 over held-out frames; returns scale and noise [kJ/mol/nm].

    By maximum likelihood with normal force errors whose variance is the right-hand side: least sum of
    log(variance) + error^2 / variance. Without the noise term this is the scale of Musil et al., J. Chem. Theory
    Comput. 15, 906 (2019); labels here are noisy, and what noise adds to the error no spread can tell. The scale is
    at least 1 / sqrt(members), the chance error of a mean of so many: near the training data noise may hide the rest.
    """
    unit_spread, unit_error = np.mean(spread**2), np.mean(error**2)
    if unit_spread == 0 or unit_error == 0:
        return members**-0.5, float(np.sqrt(unit_error))
    least = unit_spread / unit_error / members
    predictor, target = spread**2 / unit_spread, error**2 / unit_error

    def loss(terms: Float64[np.ndarray, "2"]) -> tuple[float, Float64[np.ndarray, "2"]]:
        variance = terms[0] + terms[1] * predictor
        slope = (1.0 - target / variance) / variance
        return float(np.mean(np.log(variance) + target / variance)), np.array(
            [slope.mean(), (slope * predictor).mean()]
        )

    constant, factor = minimize(
        loss, [0.5, max(0.5, least)], jac=True, method="L-BFGS-B", bounds=[(1e-6, None), (least, None)]
    ).x
    return float(np.sqrt(factor * unit_error / unit_spread)), float(np.sqrt(constant * unit_error))


def _rms(errors: Float64[np.ndarray, "frames beads 3"]) -> Float64[np.ndarray, " frames"]:
    return np.asarray(np.sqrt(np.square(errors).mean(axis=(1, 2))))
