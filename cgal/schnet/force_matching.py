"""The gradient of the force-matching loss along the weights of a SchNet, without a graph of second derivatives.

With forces F = -dE/dx, labels f and the loss L = mean |f - F|^2 over all n components, let v = 2 (f - F) / n. The
gradient along the weights w takes v as it is, and derivatives commute:

    dL/dw = -v . dF/dw = v . d/dw dE/dx = d/de dE/dw (x + e v)   at e = 0:

the ordinary gradient dE/dw, differentiated along one direction in the space of positions. So four passes over the
layers do it, of the cost of an energy each: a forward and a backward pass for the forces, thereby v, and both once
more for the derivative along v (the tangent) of all that the first two computed. A layer z = A y whose output has the
adjoint g = dE/dz contributes dE/dA = g y^T, whose tangent is g' y^T + g y'^T. Positions enter through distances alone:
the tangent of |r_ij| is (v_j - v_i) . r_ij / |r_ij|.

A continuous filter depends on one distance. So the filter networks are evaluated at the knots of a grid over the
distances that occur; each pair reads its filter off by Lagrange interpolation, and what the pairs want changed is
summed up at the knots before it goes back through the filter networks. With `KNOTS_PER_WIDTH` knots to the width of a
radial function the interpolation errs by 1e-8 of a filter and 1e-6 of its slope, no more than float32 rounds off; the
cutoff is applied exactly. The gradient is that of the interpolated energy, to the last digit.

Errors along bonds can be weighted (`bond_weight`): with the projector P onto the bonds' gradients, which depends on
positions alone, L = mean e . (e - (1 - w) P e) for e = f - F, and v above takes the weighted error.
"""

from collections.abc import Sequence
from copy import deepcopy
from math import ceil
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from cgal.potential.force_matching import ParallelMap
from cgal.potential.geometry import in_batches, pair_distances, pairs
from cgal.projection.bonds import weigh_bonds
from cgal.schnet import pair_kernels, pair_sums
from cgal.schnet.network import CGSchNet
from cgal.schnet.pair_sums import Along, Beads, Grid, Points, Table
from cgal.schnet.sweeps import FilterNetwork, Sweeps, Weights

__all__ = ["KNOTS_PER_WIDTH", "Buffers", "SchNetForceMatching", "lagrange", "radial_expansion"]

POINTS = 8
"""Knots that a filter is interpolated from."""

KNOTS_PER_WIDTH = 8
"""Knots to the width of a radial function."""

BEADS = 320
"""Beads, of as many whole frames, that are worked on at once: their layers stay in cache, and threads share out such
batches."""


class Buffers:
    """Memory for a batch of frames, used again: mapping new pages takes longer than filling them."""

    def __init__(
        self, weights: Float[Tensor, " weights"], shapes: Sequence[torch.Size], tables: Sequence[Table]
    ) -> None:
        self.gradient = torch.empty_like(weights)
        self.parts = Weights.view(self.gradient, shapes)
        self.along_tables = torch.stack(list(tables))
        self._filters = torch.empty_like(weights[:0])

    def filters(self, points: Points) -> Float[Tensor, "blocks 2 frames pairs features"]:
        """Filter and slope of each pair in each block."""
        blocks, _, features = self.along_tables.shape
        shape = torch.Size((blocks, 2, *points.rows.shape, features))
        if len(self._filters) < shape.numel():
            self._filters = self._filters.new_empty(shape.numel())
        return self._filters[: shape.numel()].view(shape)

    def add(self, other: "Buffers") -> None:
        """Add the other's gradients."""
        self.gradient += other.gradient
        self.along_tables += other.along_tables


class SchNetForceMatching:
    """`ForceMatching` of a SchNet; `positions` [nm] are all that will ever be asked about, one tensor a protein.

    What is summed together does not depend on the number of threads behind `parallel_map`, so that no result does.
    """

    def __init__(
        self,
        network: CGSchNet,
        positions: Sequence[Float[Tensor, "_ _ 3"]],
        parallel_map: ParallelMap = map,
        bond_weight: float = 1.0,
    ) -> None:
        self.grid, self.parallel_map, self.bond_weight = _grid(network, positions), parallel_map, bond_weight
        self.radial = radial_expansion(network, self.grid)
        self.shapes = [parameter.shape for parameter in network.parameters()]
        self.weights = parameters_to_vector(network.parameters()).detach()
        self.sums: ModuleType = pair_kernels if self.weights.device.type == "cpu" else pair_sums
        self._parts = Weights.view(self.weights, self.shapes)
        self._idle: list[Buffers] = []

    def forces(
        self, types: Int64[Tensor, " beads"], positions: Float[Tensor, "frames beads 3"]
    ) -> Float[Tensor, "frames beads 3"]:
        """Forces of the network [kJ/mol/nm]."""
        tables = [network.table for network in self._filter_networks()]

        def forces_of(batch: Tensor) -> Tensor:
            points, workspace = self.sums.locate(batch, self.grid), self._borrow(tables)
            sweeps = Sweeps(self._parts, tables, types, points, self.sums, workspace.filters(points))
            forces = _forces(sweeps.forward_and_backward(), points, batch)
            self._idle.append(workspace)
            return forces

        return torch.cat(list(self.parallel_map(forces_of, positions.split(self._frames(positions)))))

    def gradient(
        self,
        types: Int64[Tensor, " beads"],
        positions: Float[Tensor, "frames beads 3"],
        labels: Float[Tensor, "frames beads 3"],
    ) -> tuple[Float64[Tensor, ""], Float[Tensor, " weights"]]:
        """Mean squared weighted error against `labels` [(kJ/mol/nm)^2], and its gradient along the weights."""
        networks = self._filter_networks()
        tables = [network.table for network in networks]

        def gradient_of(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Buffers]:
            points, workspace = self.sums.locate(batch[0], self.grid), self._borrow(tables)
            sweeps = Sweeps(self._parts, tables, types, points, self.sums, workspace.filters(points))
            errors = batch[1] - _forces(sweeps.forward_and_backward(), points, batch[0])
            weighted = weigh_bonds(batch[0], errors, self.bond_weight)
            distance_tangents = _distance_tangents(weighted * (2.0 / labels.numel()), points)
            sweeps.tangent(distance_tangents, workspace.parts, workspace.along_tables.zero_().unbind())
            return (errors.double() * weighted.double()).sum(), workspace

        size = self._frames(positions)
        found = list(self.parallel_map(gradient_of, zip(positions.split(size), labels.split(size), strict=True)))
        (square, total), *others = found
        for other_square, other in others:
            square += other_square
            total.add(other)
        work = zip(networks, total.along_tables, total.parts.blocks, strict=True)
        list(self.parallel_map(lambda part: part[0].backward(*part[1:]), work))
        self._idle += [workspace for _, workspace in reversed(found)]
        return square / labels.numel(), total.gradient.clone()

    def _filter_networks(self) -> list[FilterNetwork]:
        return list(self.parallel_map(lambda block: FilterNetwork(block, self.radial), self._parts.blocks))

    def _borrow(self, tables: Sequence[Table]) -> Buffers:
        try:
            return self._idle.pop()
        except IndexError:
            return Buffers(self.weights, self.shapes, tables)

    def _frames(self, positions: Tensor) -> int:
        """Frames to a batch: as many as fill a CPU's cache, or all of them for a GPU."""
        return max(1, BEADS // positions.shape[1] if self.sums is pair_kernels else len(positions))


def _forces(slopes: Along, points: Points, positions: Beads) -> Beads:
    """Forces from slopes of the energy along all distances."""
    first, second = pairs(positions.shape[1], 1, positions.device)
    pushes = slopes[:, :, None] * points.directions
    return torch.zeros_like(positions).index_add_(1, first, pushes).index_add_(1, second, pushes, alpha=-1)


def _distance_tangents(velocities: Beads, points: Points) -> Along:
    """Rate at which each distance changes."""
    first, second = pairs(velocities.shape[1], 1, velocities.device)
    relative = velocities.index_select(1, second) - velocities.index_select(1, first)
    return (relative * points.directions).sum(2)


def _grid(network: CGSchNet, positions: Sequence[Float[Tensor, "_ _ 3"]]) -> Grid:
    """Grid over the distances that occur, but for those beyond the cutoff."""
    radial_basis: Any = network.representation.radial_basis
    cutoff_nm, spacing_nm = network.params.cutoff_nm, float(radial_basis.widths[0]) / KNOTS_PER_WIDTH
    batches = [batch for frames in positions if len(frames) for batch in in_batches(frames)]
    ranges = [torch.aminmax(pair_distances(batch, 1)) for batch in batches]
    start_nm = min(float(each.min) for each in ranges)
    end_nm = min(max(float(each.max) for each in ranges), cutoff_nm)
    intervals = max(1, ceil((end_nm - start_nm) / spacing_nm))
    return Grid(
        start_nm, spacing_nm, intervals, cutoff_nm, torch.from_numpy(lagrange(spacing_nm)).to(batches[0].device)
    )


def radial_expansion(network: CGSchNet, grid: Grid) -> Float[Tensor, "knots radial"]:
    """Radial functions at the knots: those of the intervals, and some to both sides."""
    radial_basis: Any = network.representation.radial_basis
    steps = torch.arange(1 - POINTS // 2, grid.intervals + POINTS // 2, device=grid.lagrange.device)
    expansion: Tensor = deepcopy(radial_basis).double()(grid.start_nm + grid.spacing_nm * steps.double())
    return expansion.to(radial_basis.widths.dtype)


def lagrange(spacing_nm: float) -> Float64[np.ndarray, "powers weights"]:
    """Coefficients of t^0 .. t^7 for the weight of each knot in the value, then in the slope; t runs from 0 to 1."""
    nodes = np.arange(POINTS) - (POINTS // 2 - 1.0)
    values = np.linalg.inv(np.vander(nodes, increasing=True))
    slopes = np.zeros_like(values)
    slopes[:-1] = np.arange(1, POINTS)[:, None] * values[1:] / spacing_nm
    return np.concatenate([values, slopes], axis=1)
