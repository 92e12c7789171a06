"""Energies of any network on many frames, and the gradient of sums over them along its weights."""

from copy import deepcopy
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from cgal.potential.force_matching import worker_threads
from cgal.potential.network import Network

__all__ = ["AutogradEnergies", "Energies", "frames_of_a_batch"]

BEADS = 320
"""Beads, of as many whole frames, that are worked on at once: threads share out such batches."""


@runtime_checkable
class Energies(Protocol):
    """Energies of a network on frames of any proteins, and gradients along its weights.

    `weights` is a copy of the network's as one vector, in the order of its parameters, which an optimiser changes in
    place; `network` follows. No result depends on the number of threads.
    """

    network: Network
    weights: Float[Tensor, " weights"]

    def energies(
        self, types: Int64[Tensor, " beads"], positions: Float[Tensor, "frames beads 3"]
    ) -> Float[Tensor, " frames"]:
        """Energy of the network [kJ/mol] in each frame."""

    def gradient(
        self,
        types: Int64[Tensor, " beads"],
        positions: Float[Tensor, "frames beads 3"],
        linear: Float[Tensor, " frames"],
        quadratic: Float[Tensor, " frames"],
    ) -> tuple[Float[Tensor, " frames"], Float[Tensor, " weights"]]:
        """Energies U [kJ/mol], and the gradient along the weights of the sum of linear U + quadratic U^2 / 2."""


class AutogradEnergies:
    """`Energies` by automatic differentiation."""

    def __init__(self, network: Network) -> None:
        self.network = deepcopy(network)
        self.weights = parameters_to_vector(network.parameters()).detach()
        vector_to_parameters(self.weights, self.network.parameters())  # which from now on are views of the vector

    def energies(
        self, types: Int64[Tensor, " beads"], positions: Float[Tensor, "frames beads 3"]
    ) -> Float[Tensor, " frames"]:
        """Energy of the network [kJ/mol] in each frame."""

        def energies_of(batch: Tensor) -> Tensor:
            with torch.no_grad():
                energies: Tensor = self.network(batch, types)
            return energies

        with worker_threads() as parallel_map:
            return torch.cat(list(parallel_map(energies_of, positions.split(frames_of_a_batch(positions)))))

    def gradient(
        self,
        types: Int64[Tensor, " beads"],
        positions: Float[Tensor, "frames beads 3"],
        linear: Float[Tensor, " frames"],
        quadratic: Float[Tensor, " frames"],
    ) -> tuple[Float[Tensor, " frames"], Float[Tensor, " weights"]]:
        """Energies U [kJ/mol], and the gradient along the weights of the sum of linear U + quadratic U^2 / 2."""
        parameters = list(self.network.parameters())

        def gradient_of(batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                energies = self.network(batch[0], types)
                total = (batch[1] * energies + 0.5 * batch[2] * energies.square()).sum()
                slopes = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
            return energies.detach(), torch.cat([slope.flatten() for slope in slopes])

        size = frames_of_a_batch(positions)
        batches = zip(*(each.split(size) for each in (positions, linear, quadratic)), strict=True)
        with worker_threads() as parallel_map:
            energies, slopes = zip(*parallel_map(gradient_of, batches), strict=True)
        return torch.cat(energies), torch.stack(slopes).sum(0)


def frames_of_a_batch(positions: Tensor) -> int:
    """Frames to a batch: a few on a CPU, all of them on a GPU."""
    return max(1, BEADS // positions.shape[1] if positions.device.type == "cpu" else len(positions))
