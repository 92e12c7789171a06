"""Energies of a SchNet and their gradient along its weights, by the sweeps and the grid of `force_matching`.

The gradient of a sum of c U over frames is an ordinary backward pass with c in front of the readout; filters are read
off a grid from zero to the cutoff, so that any positions can be asked about.
"""

from collections.abc import Sequence
from copy import deepcopy
from math import ceil
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from cgal.potential.energy_gradient import frames_of_a_batch
from cgal.potential.force_matching import worker_threads
from cgal.potential.network import Network
from cgal.schnet import pair_kernels, pair_sums
from cgal.schnet.force_matching import KNOTS_PER_WIDTH, Buffers, lagrange, radial_expansion
from cgal.schnet.network import CGSchNet
from cgal.schnet.pair_sums import Grid, Points, Table
from cgal.schnet.sweeps import FilterNetwork, Sweeps, Weights

__all__ = ["SchNetEnergies"]


class SchNetEnergies:
    """`Energies` of a SchNet."""

    def __init__(self, network: CGSchNet) -> None:
        self.network: Network = deepcopy(network)
        self.weights = parameters_to_vector(network.parameters()).detach()
        vector_to_parameters(self.weights, self.network.parameters())
        self.shapes = [parameter.shape for parameter in network.parameters()]
        self.grid = _whole_grid(network)
        self.radial = radial_expansion(network, self.grid)
        self.sums: Any = pair_kernels if self.weights.device.type == "cpu" else pair_sums
        self._parts = Weights.view(self.weights, self.shapes)

    def energies(
        self, types: Int64[Tensor, " beads"], positions: Float[Tensor, "frames beads 3"]
    ) -> Float[Tensor, " frames"]:
        """Energy of the network [kJ/mol] in each frame."""
        with torch.no_grad(), worker_threads() as parallel_map:
            tables = [FilterNetwork(block, self.radial).table for block in self._parts.blocks]

            def energies_of(batch: Tensor) -> Tensor:
                points, buffers = self._prepare(batch, tables)
                return self._sweeps(tables, types, points, buffers).energies()

            return torch.cat(list(parallel_map(energies_of, positions.split(frames_of_a_batch(positions)))))

    def gradient(
        self,
        types: Int64[Tensor, " beads"],
        positions: Float[Tensor, "frames beads 3"],
        linear: Float[Tensor, " frames"],
        quadratic: Float[Tensor, " frames"],
    ) -> tuple[Float[Tensor, " frames"], Float[Tensor, " weights"]]:
        """Energies U [kJ/mol], and the gradient along the weights of the sum of linear U + quadratic U^2 / 2."""
        size = frames_of_a_batch(positions)
        batches = zip(*(each.split(size) for each in (positions, linear, quadratic)), strict=True)
        with torch.no_grad(), worker_threads() as parallel_map:
            networks = [FilterNetwork(block, self.radial) for block in self._parts.blocks]
            tables = [network.table for network in networks]

            def gradient_of(batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Buffers]:
                points, buffers = self._prepare(batch[0], tables)
                sweeps = self._sweeps(tables, types, points, buffers)
                energies = sweeps.energies()
                along = batch[1] + batch[2] * energies
                sweeps.gradient(along, buffers.parts, buffers.along_tables.zero_().unbind())
                return energies, buffers

            found = list(parallel_map(gradient_of, batches))
            (_, total), *others = found
            for _, other in others:
                total.add(other)
            for network, along_table, part in zip(networks, total.along_tables, total.parts.blocks, strict=True):
                network.backward(along_table, part)
        return torch.cat([energies for energies, _ in found]), total.gradient

    def _prepare(self, positions: Tensor, tables: Sequence[Table]) -> tuple[Points, Buffers]:
        return self.sums.locate(positions, self.grid), Buffers(self.weights, self.shapes, tables)

    def _sweeps(self, tables: Sequence[Table], types: Tensor, points: Points, buffers: Buffers) -> Sweeps:
        return Sweeps(self._parts, tables, types, points, self.sums, buffers.filters(points))


def _whole_grid(network: CGSchNet) -> Grid:
    radial_basis: Any = network.representation.radial_basis
    cutoff_nm, spacing_nm = network.params.cutoff_nm, float(radial_basis.widths[0]) / KNOTS_PER_WIDTH
    device = radial_basis.widths.device
    intervals = ceil(cutoff_nm / spacing_nm)
    return Grid(0.0, spacing_nm, intervals, cutoff_nm, torch.from_numpy(lagrange(spacing_nm)).to(device))
