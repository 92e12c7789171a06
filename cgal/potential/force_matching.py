"""The force-matching loss and its gradient along the weights of any network, by automatic differentiation.

The gradient needs the derivative of forces along the weights, a second derivative of the energy. An architecture may
bring a faster way (`cgal.potential.architectures`); this one is the definition.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from cgal.potential.network import Network
from cgal.projection.bonds import weigh_bonds

__all__ = ["AutogradForceMatching", "ForceMatching", "ParallelMap", "worker_threads"]

BEADS = 160
"""Beads, of as many whole frames, that are worked on at once: threads share out such batches."""

type ParallelMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""`map`, or one that works on several items at once."""


@contextmanager
def worker_threads(threads: int | None = None) -> Iterator[ParallelMap]:
    """Give each of so many threads (torch's own number) work of its own, instead of a part of every small product."""
    before = torch.get_num_threads()
    threads = threads or before
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield map if threads == 1 else pool.map
    finally:
        torch.set_num_threads(before)


@runtime_checkable
class ForceMatching(Protocol):
    """Force errors of a network on frames of any proteins, and the gradient of their mean square along its weights.

    `weights` is a copy of the network's as one vector, in the order of its parameters, which an optimiser changes in
    place. No result depends on the number of threads.
    """

    weights: Float[Tensor, " weights"]

    def forces(
        self, types: Int64[Tensor, " beads"], positions: Float[Tensor, "frames beads 3"]
    ) -> Float[Tensor, "frames beads 3"]:
        """Forces of the network [kJ/mol/nm]."""

    def gradient(
        self,
        types: Int64[Tensor, " beads"],
        positions: Float[Tensor, "frames beads 3"],
        labels: Float[Tensor, "frames beads 3"],
    ) -> tuple[Float64[Tensor, ""], Float[Tensor, " weights"]]:
        """Mean squared weighted error against `labels` [(kJ/mol/nm)^2], and its gradient along the weights."""


class AutogradForceMatching:
    """`ForceMatching` of any network. `positions`, all that will be asked about, are for accelerators alone."""

    def __init__(
        self,
        network: Network,
        positions: Sequence[Float[Tensor, "_ _ 3"]],
        parallel_map: ParallelMap = map,
        bond_weight: float = 1.0,
    ) -> None:
        self.network, self.parallel_map, self.bond_weight = deepcopy(network), parallel_map, bond_weight
        self.weights = parameters_to_vector(network.parameters()).detach()
        vector_to_parameters(self.weights, self.network.parameters())  # which from now on are views of the vector

    def forces(
        self, types: Int64[Tensor, " beads"], positions: Float[Tensor, "frames beads 3"]
    ) -> Float[Tensor, "frames beads 3"]:
        """Forces of the network [kJ/mol/nm]."""

        def forces_of(batch: Tensor) -> Tensor:
            return self._forces(types, batch, create_graph=False)

        return torch.cat(list(self.parallel_map(forces_of, positions.split(_frames(positions)))))

    def gradient(
        self,
        types: Int64[Tensor, " beads"],
        positions: Float[Tensor, "frames beads 3"],
        labels: Float[Tensor, "frames beads 3"],
    ) -> tuple[Float64[Tensor, ""], Float[Tensor, " weights"]]:
        """Mean squared weighted error against `labels` [(kJ/mol/nm)^2], and its gradient along the weights."""
        parameters = list(self.network.parameters())

        def gradient_of(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            errors = batch[1] - self._forces(types, batch[0], create_graph=True)
            square = (errors * weigh_bonds(batch[0], errors, self.bond_weight)).double().sum()
            slopes = torch.autograd.grad(square, parameters, allow_unused=True, materialize_grads=True)
            return square.detach(), torch.cat([slope.flatten() for slope in slopes])

        size = _frames(positions)
        batches = zip(positions.split(size), labels.split(size), strict=True)
        squares, slopes = zip(*self.parallel_map(gradient_of, batches), strict=True)
        return sum(squares) / labels.numel(), sum(slopes) / labels.numel()

    def _forces(self, types: Tensor, positions: Tensor, *, create_graph: bool) -> Tensor:
        with torch.enable_grad():
            at = positions.detach().requires_grad_()
            energy = self.network(at, types).sum()
            (gradient,) = torch.autograd.grad(energy, at, create_graph=create_graph)
        return -gradient


def _frames(positions: Tensor) -> int:
    """Frames to a batch: a few on a CPU, all of them on a GPU."""
    return max(1, BEADS // positions.shape[1] if positions.device.type == "cpu" else len(positions))
