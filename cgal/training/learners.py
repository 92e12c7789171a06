"""What relative entropy trains: the network of a potential, or a linear rung (`cgal.training.linear_populations`)."""

from copy import deepcopy
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from cgal.params import RelativeEntropyParams
from cgal.potential.architectures import architecture_of
from cgal.potential.potential import Potential
from cgal.units import thermal_energy_kJ_per_mol

__all__ = ["Learner", "NetworkLearner", "Positions"]

type Positions = Float32[np.ndarray, "_ beads 3"]


@runtime_checkable
class Learner(Protocol):
    """Weights, and what they mean; `words` tell all that this depends on beside the initial potential and the data.

    The optimiser changes `weights` in place, `average` is their running average over the last `average_updates`, or the
    last third while that is less; both are vectors. The best look is the last one whose held-out S is above the lowest
    by no more than `tolerance` of its standard errors; training stops `patience_updates` after it.
    """

    weights: Tensor
    average: Tensor
    optimiser: torch.optim.Optimizer
    updates: int
    learning_rate: float
    gradient_clip: float
    tolerance: float
    patience_updates: int
    average_updates: int
    words: str

    def energies(self, positions: Float[Tensor, "frames beads 3"]) -> Float[Tensor, " frames"]:
        """Energy [kJ/mol] that the averaged weights give beyond the prior, in each frame."""

    def gradient(self, data: Positions, model: Positions) -> tuple[float, Tensor]:
        """<U>_data - <U>_model [k_B T], and the gradient along the weights of what is minimised."""

    def now(self) -> Potential:
        """The potential of the weights as they are; what simulates it."""

    def model(self) -> Potential:
        """The potential of the averaged weights."""

    def potential(self, weights: Tensor) -> Potential:
        """A potential of its own with these weights."""


class NetworkLearner:
    """The network of a potential, by Adam; its mean squared energy is minimised too, with a small weight."""

    def __init__(self, initial: Potential, params: RelativeEntropyParams) -> None:
        make = architecture_of(initial.network.params).energies
        self._now, self._average = make(initial.network), make(initial.network)
        self._initial, self._penalty = initial, params.energy_penalty
        self._kT = thermal_energy_kJ_per_mol(initial.prior.temperature_K)
        self.weights, self.average = self._now.weights, self._average.weights
        self.optimiser: torch.optim.Optimizer = torch.optim.Adam([self.weights], lr=params.learning_rate)
        self.updates, self.learning_rate = params.updates, params.learning_rate
        self.gradient_clip = params.gradient_clip
        self.tolerance, self.patience_updates = 0.0, params.patience_updates
        self.average_updates, self.words = params.average_updates, repr(initial.network.params)

    def energies(self, positions: Float[Tensor, "frames beads 3"]) -> Float[Tensor, " frames"]:
        """Energy of the averaged network."""
        return self._average.energies(self._initial.types, positions)

    def gradient(self, data: Positions, model: Positions) -> tuple[float, Tensor]:
        """As `Learner` says."""
        positions = torch.from_numpy(np.concatenate([data, model])).to(self.weights.device)
        linear = torch.full(positions.shape[:1], 1.0 / (len(data) * self._kT), device=self.weights.device)
        linear[len(data) :] = -1.0 / (len(model) * self._kT)
        quadratic = torch.full_like(linear, 2 * self._penalty / (len(data) * self._kT**2))
        energies, gradient = self._now.gradient(self._initial.types, positions, linear, quadratic)
        return float((linear * energies).double().sum()), gradient

    def now(self) -> Potential:
        """With the network that the optimiser changes."""
        return Potential(self._initial.prior, self._now.network).to(self.weights.device)

    def model(self) -> Potential:
        """With the averaged network."""
        return Potential(self._initial.prior, self._average.network).to(self.weights.device)

    def potential(self, weights: Tensor) -> Potential:
        """With a network of its own."""
        potential = deepcopy(self._initial)
        vector_to_parameters(weights.clone(), potential.network.parameters())
        return potential
