"""The linear rung between prior and network, fitted to the populations of the training frames by relative entropy.

The energy of the rung is linear in its coefficients c, U = c . phi(x), so that S of `cgal.training.relative_entropy` is
convex in them, with the gradient (<phi>_data - <phi>_model) / k_B T and the covariance of phi over (k_B T)^2 as its
matrix of second derivatives. The coefficients are followed in coordinates w in which that matrix is near to one,

    c = k_B T C^-1/2 w,    C = (cov_data + cov_prior) / 2 + ridge 1,

so that plain steps along the gradient are Newton's steps (natural gradient: Amari, Neural Comput. 10, 251 (1998)), and
distances, dihedrals and their couplings come to the data's populations in some ten updates each. What is minimised has
a penalty K / N |w|^2 / 2 beside, for N training frames (effective ones, if they have weights): as if K further frames
spoke for the prior. The model is the running average of w, the last one that frames held out cannot tell from the best,
however long ago that was: what is slow takes hundreds of updates, and is a small part of S.

A rung whose change of the held-out S is not below zero by more than its error allows is none. The error is that of
independent blocks (`training.validation_block_frames`, as many as the slowest motion takes); of a single one nothing is
known, so there is no rung either.

A network that is trained on top follows the chance of its few replicas in populations that build up slowly, and moves
them. The rung had them right; so the rung is moved in the end until the network leaves them where they were (`refit`).
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.optimize import minimize
from scipy.special import stdtrit
from torch import Tensor

from cgal.frames import LabelledFrames
from cgal.params import TrainingParams
from cgal.potential.architectures import without_network
from cgal.potential.force_matching import worker_threads
from cgal.potential.linear_rung import Basis, unit_energies
from cgal.potential.potential import Potential
from cgal.potential.prior import RUNG, Prior
from cgal.progress import Progress, silent
from cgal.simulation.run import run_from
from cgal.training.learners import Positions
from cgal.training.relative_entropy import Data, LookRecord, RelativeEntropyResult, minimise, prepare
from cgal.training.runs import deterministic_algorithms
from cgal.units import thermal_energy_kJ_per_mol

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

__all__ = ["LINEAR_RUNG", "PopulationsRung", "Refit", "RungLearner", "fit_rung", "refit"]

LINEAR_RUNG = "linear rung"

CONFIDENCE = 0.95
"""One-sided, that a rung takes something off the held-out S."""

REFIT_REPLICAS = 512
"""Independent replicas whose frames are reweighted."""

SAVED = 20
"""Frames that are kept of each replica of a prior, for its covariance and for the refit."""

BATCH = 500


@dataclass(frozen=True, eq=False)
class PopulationsRung:
    """The prior with its linear rung, if there is one (`weight` 1), and how it was found."""

    prior: Prior
    weight: int
    result: RelativeEntropyResult
    learner: "RungLearner"
    data: Data

    @property
    def curves(self) -> Mapping[str, tuple[LookRecord, ...]]:
        """The looks."""
        return {LINEAR_RUNG: self.result.history}

    def summary(self) -> dict[str, float | int]:
        """Numbers for a checkpoint's metadata and a round's metrics."""
        return {
            "linear_rung": self.weight,
            "linear_rung_held_out_change_kT": self.result.best.held_out_change_kT,
            "linear_rung_standard_error_kT": self.result.best.standard_error_kT,
            "linear_rung_best_update": self.result.best.update,
        }

    def draw(self, figure: "FigureBase") -> None:
        """Draw the history, as `RelativeEntropyResult` does."""
        self.result.draw(figure)


def fit_rung(
    shards: Sequence[LabelledFrames],
    prior: Prior,
    params: TrainingParams,
    *,
    seed: int,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> PopulationsRung:
    """Fit the rung to the training frames of shards of one protein, on the processor, whatever runs the network.

    Sums are made on one thread, as they depend on their order; replicas are run by all. A killed fit continues from
    `scratch`. Raises what `relative_entropy.train` does.
    """
    bare = without_network(deepcopy(prior).cpu().with_rung({}))
    data = prepare(shards, bare, params)
    folder = scratch and scratch / "linear-rung"
    with deterministic_algorithms():
        learner = RungLearner(bare, data, params, seed, progress)
        result = minimise(learner, bare, data, params, seed=seed, scratch=folder, progress=progress)
    weight = int(_helps(result, data))
    parts = {name: getattr(result.potential.prior, name).to(prior.bond_length_nm.device) for name in RUNG}
    return PopulationsRung(prior.with_rung(parts if weight else {}), weight, result, learner, data)


@dataclass(frozen=True, eq=False)
class Refit:
    """A potential beneath whose network the rung was moved, if that was possible (`moved` 1).

    `effective_share` is the share of the frames that this rests on.
    """

    potential: Potential
    moved: int
    effective_share: float

    def summary(self) -> dict[str, float | int]:
        """Numbers for a checkpoint's metadata and a round's metrics."""
        return {"refit_moved": self.moved, "refit_effective_share": self.effective_share}


def refit(
    rung: PopulationsRung, trained: Potential, params: TrainingParams, *, seed: int, progress: Progress = silent
) -> Refit:
    """Move a rung so that a network on top leaves the averages of the rung's energies as they are.

    These averages are over frames of replicas of the rung alone, and over the same frames reweighted by the network and
    the change d of the coefficients: both have the same slow motions, so that these cancel. With the network's energies
    u and the rung's X w over k_B T, d is at the minimum of the convex

        ln <exp(-u - X d)> + <X> d + P |d|^2 / 2

    (Geyer and Thompson, J. R. Stat. Soc. B 54, 657 (1992)). P is the number of coefficients over that of replicas: with
    less, states that a few replicas saw get energies that draw all others there. `trained` stays as it was. The rung
    stays too where the network has left its frames behind: where the reweighted ones are worth fewer than there are
    coefficients, or no minimum is found.
    """
    learner = rung.learner
    bare = without_network(deepcopy(rung.prior).cpu())
    frames = torch.from_numpy(_settled(bare, rung.data, params, seed, REFIT_REPLICAS, progress))
    if not len(frames):
        return Refit(trained, 0, 0.0)
    with worker_threads(1), torch.no_grad():
        network = [trained.network(part.to(trained.types.device), trained.types) for part in frames.split(BATCH)]
        u = torch.cat(network).cpu().double() / learner.kT
        X = torch.cat([learner.unit(part) @ learner.scale for part in frames.split(BATCH)]) / learner.kT
        X -= X.mean(0)
        penalty = X.shape[1] / REFIT_REPLICAS

        def reweighted(change: Float64[Tensor, " free"]) -> Float64[Tensor, " frames"]:
            return torch.log_softmax(-u - X @ change, 0).exp()

        def cost(change: Float64[np.ndarray, " free"]) -> tuple[float, Float64[np.ndarray, " free"]]:
            d = torch.from_numpy(change)
            value = torch.logsumexp(-u - X @ d, 0) + penalty * d.square().sum() / 2
            return float(value), (penalty * d - reweighted(d) @ X).numpy()

        found = minimize(cost, np.zeros(X.shape[1]), jac=True, method="L-BFGS-B")
        change = torch.from_numpy(found.x)
        effective = 1.0 / float(reweighted(change).square().sum())
        coefficients = learner.scale @ (learner.average + change)
    if not found.success or not effective >= X.shape[1]:
        return Refit(trained, 0, effective / len(u))
    parts = learner.basis.parts(coefficients.numpy())
    return Refit(trained.with_prior(trained.prior.with_rung(parts)), 1, effective / len(u))


def _helps(result: RelativeEntropyResult, data: Data) -> bool:
    """Whether the change of the held-out S is below zero by more than its error allows."""
    blocks = len(np.unique(data.blocks))
    if blocks < 2:
        return False
    quantile = float(stdtrit(blocks - 1, CONFIDENCE))  # Student's t; scipy.stats takes seconds to import
    return result.best.held_out_change_kT + quantile * result.best.standard_error_kT < 0.0


class RungLearner:
    """A `cgal.training.learners.Learner` of the rung's coefficients, in the coordinates w."""

    def __init__(
        self, bare: Potential, data: Data, params: TrainingParams, seed: int, progress: Progress = silent
    ) -> None:
        section = params.relative_entropy.rung
        self.bare, self.basis = bare, Basis.of(bare.prior)
        kT = thermal_energy_kJ_per_mol(bare.prior.temperature_K)
        mean, covariance = self._moments(data.training, data.chances)
        settled = _settled(bare, data, params, seed, params.relative_entropy.dynamics.replicas, progress)
        whole = (covariance + self._moments(settled, None)[1]) / 2
        with worker_threads(1):
            values, vectors = torch.linalg.eigh(whole)
            ridge = section.ridge * values.mean()
            self.scale = kT * vectors / (values.clamp_min(0.0) + ridge).sqrt()
            self.mean = mean @ self.scale / kT
        self.kT, self.shrinkage = kT, section.prior_frames / _effective(data)
        self.weights = torch.zeros(len(mean), dtype=torch.float64)
        self.average = self.weights.clone()
        self.optimiser: torch.optim.Optimizer = torch.optim.SGD([self.weights], lr=section.learning_rate)
        self.updates, self.learning_rate = section.updates, section.learning_rate
        self.gradient_clip = section.gradient_clip
        self.tolerance, self.patience_updates = 1.0, section.updates
        self.average_updates, self.words = section.average_updates, LINEAR_RUNG

    def energies(self, positions: Float[Tensor, "frames beads 3"]) -> Float[Tensor, " frames"]:
        """Energy of the averaged rung."""
        with worker_threads(1):
            coefficients = self.scale @ self.average
            return torch.cat([self.unit(batch) @ coefficients for batch in positions.split(BATCH)])

    def gradient(self, data: Positions, model: Positions) -> tuple[float, Tensor]:
        """As `Learner` says; the data's average is that of all training frames."""
        with worker_threads(1):
            gap = self.mean - self._moments(model, None)[0] @ self.scale / self.kT
            return float(gap @ self.weights), gap + self.shrinkage * self.weights

    def now(self) -> Potential:
        """With the coefficients that the optimiser changes."""
        return self.potential(self.weights)

    def model(self) -> Potential:
        """With the averaged ones."""
        return self.potential(self.average)

    def potential(self, weights: Float64[Tensor, " free"]) -> Potential:
        """The prior with these coefficients, and no network."""
        with worker_threads(1):
            rung = self.basis.parts((self.scale @ weights).numpy())
        return self.bare.with_prior(self.bare.prior.with_rung(rung))

    def unit(self, positions: Float[Tensor, "frames beads 3"]) -> Float64[Tensor, "frames free"]:
        """Energies of unit coefficients [kJ/mol]."""
        return unit_energies(positions.double(), self.basis)

    def _moments(
        self, positions: Positions, chances: Float64[np.ndarray, " frames"] | None
    ) -> tuple[Float64[Tensor, " free"], Float64[Tensor, "free free"]]:
        """Mean and covariance of the energies of unit coefficients."""
        shares = torch.full((len(positions),), 1.0 / len(positions), dtype=torch.float64)
        if chances is not None:
            shares = torch.from_numpy(chances)
        free = sum(self.basis.sizes)
        mean, square = torch.zeros(free, dtype=torch.float64), torch.zeros(free, free, dtype=torch.float64)
        with worker_threads(1):
            for batch, share in zip(torch.from_numpy(positions).split(BATCH), shares.split(BATCH), strict=True):
                found = self.unit(batch)
                mean += share @ found
                square += found.T @ (share[:, None] * found)
        return mean, square - torch.outer(mean, mean)


def _effective(data: Data) -> float:
    """Number of training frames, or as many of equal weight as those with weights are worth."""
    return float(len(data.training) if data.chances is None else 1.0 / np.square(data.chances).sum())


def _settled(
    bare: Potential, data: Data, params: TrainingParams, seed: int, replicas: int, progress: Progress
) -> Positions:
    """Frames of replicas of a prior that began at training frames and have forgotten their fast motions."""
    section = params.relative_entropy
    generator = np.random.default_rng([seed, 3])
    home = data.training[generator.choice(len(data.training), replicas, p=data.chances)]
    steps = section.settle_steps
    dynamics = section.dynamics.model_copy(
        update={"replicas": replicas, "steps": steps, "stride": max(1, steps // (2 * SAVED))}
    )
    velocities = int(generator.integers(2**31))
    record = run_from(bare, home, dynamics, temperature_K=bare.prior.temperature_K, seed=velocities, progress=progress)
    half = len(record.positions) // 2
    frames: Positions = record.positions[half:][record.sound[half:]]
    return frames
