"""The gradient of the force-matching loss along the weights of a SchNet, without a graph of second derivatives.

With forces F = -dE/dx, labels f and the loss L = mean |f - F|^2 over all n components, let v = 2 (f - F) / n. The
gradient along the weights w takes v as it is, and derivatives commute:

    dL/dw = -v . dF/dw = v . d/dw dE/dx = d/de dE/dw (x + e v)   at e = 0:

the ordinary gradient dE/dw, differentiated along one direction in the space of positions. So four sweeps over the
layers do it, of the cost of an energy each: forth and back for the forces, thereby v, and once more forth and back for
the derivative along v (the tangent) of all that the first two computed. A layer z = A y whose output has the
adjoint g = dE/dz contributes dE/dA = g y^T, whose tangent is g' y^T + g y'^T. Positions enter through distances alone:
the tangent of |r_ij|, here called approach, is (v_j - v_i) . r_ij / |r_ij|.

A continuous filter depends on one distance. So the filter networks are evaluated at the knots of a grid over the
distances that occur; each pair reads its filter off by Lagrange interpolation, and what the pairs want changed is
summed up at the knots before it goes back through the filter networks. With `KNOTS_PER_WIDTH` knots to the width of a
radial function the interpolation errs by 1e-8 of a filter and 1e-6 of its slope, no more than float32 rounds off; the
cutoff is applied exactly. The gradient is that of the interpolated energy, to the last digit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from itertools import islice
from math import ceil
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import linear
from torch.nn.utils import parameters_to_vector

from cgal.potential import pair_kernels, pair_sums
from cgal.potential.geometry import pair_distances, pairs
from cgal.potential.network import CGSchNet, ENERGY_SCALE_kJ_per_mol
from cgal.potential.pair_sums import Along, Beads, Grid, Points, Table

__all__ = ["ForceMatching", "worker_threads"]

POINTS = 8
"""Knots that a filter is interpolated from."""

KNOTS_PER_WIDTH = 8
"""Knots to the width of a radial function."""

BEADS = 160
"""Beads, of as many whole frames, that are worked on at once: their layers stay in cache, and threads share out such
batches."""

type Layer = Float[Tensor, "rows features"]
type Sharer = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""`map`, or one that works on several items at once."""


@contextmanager
def worker_threads(threads: int | None = None) -> Iterator[Sharer]:
    """Give each of so many threads (torch's own number) work of its own, instead of a part of every small product."""
    before = torch.get_num_threads()
    threads = threads or before
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield map if threads == 1 else pool.map
    finally:
        torch.set_num_threads(before)


class BlockWeights(NamedTuple):
    """Weights of one interaction block, in the order of its parameters."""

    to_sources: Tensor
    to_hidden: Tensor
    hidden_bias: Tensor
    to_update: Tensor
    update_bias: Tensor
    to_filter_hidden: Tensor
    filter_hidden_bias: Tensor
    to_filter: Tensor
    filter_bias: Tensor


class Weights(NamedTuple):
    """Weights of a network, in the order of its parameters; or what has a number for each, such as their gradient."""

    embedding: Tensor
    blocks: tuple[BlockWeights, ...]
    to_last: Tensor
    last_bias: Tensor
    readout: Tensor

    @classmethod
    def view(cls, vector: Float[Tensor, " weights"], shapes: Sequence[torch.Size]) -> "Weights":
        """Views of the parts of a vector that holds parameters of these shapes."""
        parts = vector.split([shape.numel() for shape in shapes])
        views = iter([part.view(shape) for part, shape in zip(parts, shapes, strict=True)])
        embedding = next(views)
        size = len(BlockWeights._fields)
        blocks = tuple(BlockWeights(*islice(views, size)) for _ in range((len(shapes) - 4) // size))
        return cls(embedding, blocks, *views)


def _grid(network: CGSchNet, positions: Sequence[Float[Tensor, "_ _ 3"]]) -> Grid:
    """Grid over the distances that occur, but for those beyond the cutoff."""
    radial_basis: Any = network.representation.radial_basis
    cutoff_nm, spacing_nm = network.params.cutoff_nm, float(radial_basis.widths[0]) / KNOTS_PER_WIDTH
    distances = [pair_distances(frames, 1) for frames in positions if len(frames)]
    start_nm = min(float(each.min()) for each in distances)
    end_nm = min(max(float(each.max()) for each in distances), cutoff_nm)
    intervals = max(1, ceil((end_nm - start_nm) / spacing_nm))
    return Grid(
        start_nm, spacing_nm, intervals, cutoff_nm, torch.from_numpy(_lagrange(spacing_nm)).to(distances[0].device)
    )


def _radial_expansion(network: CGSchNet, grid: Grid) -> Float[Tensor, "knots radial"]:
    """Radial functions at the knots: those of the intervals, and some to both sides."""
    radial_basis: Any = network.representation.radial_basis
    steps = torch.arange(1 - POINTS // 2, grid.intervals + POINTS // 2, device=grid.lagrange.device)
    expansion: Tensor = deepcopy(radial_basis).double()(grid.start_nm + grid.spacing_nm * steps.double())
    return expansion.to(radial_basis.widths.dtype)


def _lagrange(spacing_nm: float) -> Float64[np.ndarray, "powers weights"]:
    """Coefficients of t^0 .. t^7 for the weight of each knot in the value, then in the slope; t runs from 0 to 1."""
    nodes = np.arange(POINTS) - (POINTS // 2 - 1.0)
    values = np.linalg.inv(np.vander(nodes, increasing=True))
    slopes = np.zeros_like(values)
    slopes[:-1] = np.arange(1, POINTS)[:, None] * values[1:] / spacing_nm
    return np.concatenate([values, slopes], axis=1)


def _softplus(x: Layer) -> tuple[Layer, Layer]:
    """Shifted softplus and its slope; below -80 both are constant to float32."""
    slope = torch.sigmoid(x.clamp_(min=-80.0))
    return x - (2.0 * slope).log_(), slope


class FilterNetwork:
    """One block's filter network, evaluated at the knots of a grid."""

    def __init__(self, weights: BlockWeights, radial: Float[Tensor, "knots radial"]) -> None:
        self.weights, self.radial = weights, radial
        self.hidden, self.hidden_slope = _softplus(linear(radial, weights.to_filter_hidden, weights.filter_hidden_bias))
        self.table: Table = linear(self.hidden, weights.to_filter, weights.filter_bias)

    def back(self, along_table: Table, gradient: BlockWeights) -> None:
        """Fill in the gradient along the network's weights, given that along the table."""
        along_hidden = (along_table @ self.weights.to_filter).mul_(self.hidden_slope)
        _outer(gradient.to_filter, (along_table, self.hidden))
        _outer(gradient.to_filter_hidden, (along_hidden, self.radial))
        torch.sum(along_table, 0, out=gradient.filter_bias)
        torch.sum(along_hidden, 0, out=gradient.filter_hidden_bias)


def _outer(total: Tensor, *products: tuple[Tensor, Tensor]) -> None:
    """Sum of g y^T over the rows and over what is given."""
    torch.mm(products[0][0].T, products[0][1], out=total)
    for adjoint, features in products[1:]:
        total.addmm_(adjoint.T, features)


class Block:
    """One interaction block for a few frames, and all that its sweeps leave behind for later ones.

    A row is a bead. `received` = what the convolution brings from the `sources`; `along_x` is the adjoint dE/dx, a
    primed name of the module's docstring ends in `_tangent`.
    """

    def __init__(self, weights: BlockWeights, table: Table, points: Points, sums: ModuleType) -> None:
        self.weights, self.table, self.points, self.sums = weights, table, points, sums
        self.filters, self.filter_slopes = sums.interpolate(table, points.rows, points.values, points.slopes)

    def _beads(self, layer: Layer) -> Beads:
        return layer.view(len(self.filters), -1, layer.shape[1])

    def forth(self, features: Layer) -> Layer:
        """Features of the next block."""
        weights, self.features = self.weights, features
        self.sources = self._beads(linear(features, weights.to_sources))
        self.received = self.sums.convolve(self.filters, self.sources).flatten(0, 1)
        self.hidden, self.hidden_slope = _softplus(linear(self.received, weights.to_hidden, weights.hidden_bias))
        return linear(self.hidden, weights.to_update, weights.update_bias).add_(features)

    def back(self, along_next: Layer) -> Along:
        """Share of this block in the slope along each distance."""
        weights, self.along_next = self.weights, along_next
        self.along_hidden = (along_next @ weights.to_update).mul_(self.hidden_slope)
        self.along_received = self._beads(self.along_hidden @ weights.to_hidden)
        slopes: Along = self.sums.slopes(self.filter_slopes, self.sources, self.along_received)
        return slopes

    def back_to_features(self) -> Layer:
        """Adjoint of the features that came in."""
        self.along_sources = self.sums.convolve(self.filters, self.along_received).flatten(0, 1)
        return torch.addmm(self.along_next, self.along_sources, self.weights.to_sources)

    def tangent_forth(self, approach: Along, features_tangent: Layer | None) -> Layer:
        """Tangent of the next block's features; the first block's own features are constant."""
        weights, self.approach, self.features_tangent = self.weights, approach, features_tangent
        self.sources_tangent = (
            torch.zeros_like(self.sources)
            if features_tangent is None
            else self._beads(features_tangent @ weights.to_sources.T)
        )
        self.received_tangent = self._tangent_convolve(self.sources, self.sources_tangent)
        self.argument_tangent = self.received_tangent @ weights.to_hidden.T
        self.hidden_tangent = self.argument_tangent * self.hidden_slope
        update_tangent = self.hidden_tangent @ weights.to_update.T
        return update_tangent if features_tangent is None else update_tangent.add_(features_tangent)

    def _tangent_convolve(self, features: Beads, tangents: Beads) -> Layer:
        received: Beads = self.sums.tangent_convolve(
            self.filters, self.filter_slopes, self.approach, features, tangents
        )
        return received.flatten(0, 1)

    def tangent_back(self, along_next: Layer, gradient: BlockWeights, along_table: Table) -> Layer:
        """Fill in the gradient along the weights of the dense layers; give the tangent of the features' adjoint."""
        weights = self.weights
        _outer(gradient.to_update, (along_next, self.hidden), (self.along_next, self.hidden_tangent))
        torch.sum(along_next, 0, out=gradient.update_bias)
        curvature = self.along_hidden * self.argument_tangent.mul_(1.0 - self.hidden_slope)
        along_hidden = curvature.addcmul_(along_next @ weights.to_update, self.hidden_slope)
        _outer(gradient.to_hidden, (along_hidden, self.received), (self.along_hidden, self.received_tangent))
        torch.sum(along_hidden, 0, out=gradient.hidden_bias)
        along_received = self._beads(along_hidden @ weights.to_hidden)
        self.sums.table_gradient(
            along_table,
            *self.points[1:],
            self.approach,
            (self.sources, self.sources_tangent),
            (self.along_received, along_received),
        )
        along_sources = self._tangent_convolve(self.along_received, along_received)
        _outer(gradient.to_sources, (along_sources, self.features))
        if self.features_tangent is not None:
            gradient.to_sources.addmm_(self.along_sources.T, self.features_tangent)
        return torch.addmm(along_next, along_sources, weights.to_sources)


class Sweeps:
    """The four sweeps over all layers for a few frames of one protein."""

    def __init__(
        self,
        weights: Weights,
        tables: Sequence[Table],
        types: Int64[Tensor, " beads"],
        points: Points,
        sums: ModuleType,
    ) -> None:
        self.weights, self.types, self.points = weights, types, points
        self.blocks = [Block(block, table, points, sums) for block, table in zip(weights.blocks, tables, strict=True)]

    def forth_and_back(self) -> Along:
        """Slope of the energy along each distance [kJ/mol/nm]."""
        weights = self.weights
        features = weights.embedding[self.types].repeat(len(self.points.rows), 1)
        for block in self.blocks:
            features = block.forth(features)
        self.features = features
        _, self.last_slope = _softplus(linear(features, weights.to_last, weights.last_bias))
        self.along_last = self.last_slope * (ENERGY_SCALE_kJ_per_mol * weights.readout)
        along_features = self.along_last @ weights.to_last
        slopes = self.blocks[-1].back(along_features)
        for block, later in zip(self.blocks[-2::-1], self.blocks[:0:-1], strict=True):
            slopes += block.back(later.back_to_features())
        return slopes

    def tangent(self, approach: Along, gradient: Weights, along_tables: Sequence[Table]) -> None:
        """Fill in the gradient, but for the filter networks: of these, add to that along their tables."""
        tangent: Layer | None = None
        for block in self.blocks:
            tangent = block.tangent_forth(approach, tangent)
        assert tangent is not None  # there is a block
        along_features = self._tangent_of_readout(tangent, gradient)
        for block, part, along_table in zip(self.blocks[::-1], gradient.blocks[::-1], along_tables[::-1], strict=True):
            along_features = block.tangent_back(along_features, part, along_table)
        per_bead = along_features.view(-1, len(self.types), along_features.shape[1]).sum(0)
        gradient.embedding.zero_().index_add_(0, self.types, per_bead)

    def _tangent_of_readout(self, features_tangent: Layer, gradient: Weights) -> Layer:
        argument_tangent = features_tangent @ self.weights.to_last.T
        last_tangent = self.last_slope * argument_tangent
        torch.mul(last_tangent.sum(0, keepdim=True), ENERGY_SCALE_kJ_per_mol, out=gradient.readout)
        along_last = argument_tangent.mul_(1.0 - self.last_slope).mul_(self.along_last)
        _outer(gradient.to_last, (along_last, self.features), (self.along_last, features_tangent))
        torch.sum(along_last, 0, out=gradient.last_bias)
        return along_last @ self.weights.to_last


class ForceMatching:
    """Force errors of a network on frames of any proteins, and the gradient of their mean square along its weights.

    `weights` is a copy of the network's as one vector, which an optimiser changes in place. `positions` [nm] are all
    that will ever be asked about, one tensor a protein. What is summed together does not depend on the number of
    threads behind `share`, so that no result does.
    """

    def __init__(self, network: CGSchNet, positions: Sequence[Float[Tensor, "_ _ 3"]], share: Sharer = map) -> None:
        self.grid, self.share = _grid(network, positions), share
        self.radial = _radial_expansion(network, self.grid)
        self.shapes = [parameter.shape for parameter in network.parameters()]
        self.weights = parameters_to_vector(network.parameters()).detach()
        self.sums: ModuleType = pair_kernels if self.weights.device.type == "cpu" else pair_sums
        self._views = Weights.view(self.weights, self.shapes)

    def forces(
        self, types: Int64[Tensor, " beads"], positions: Float[Tensor, "frames beads 3"]
    ) -> Float[Tensor, "frames beads 3"]:
        """Forces of the network [kJ/mol/nm]."""
        tables = [network.table for network in self._filter_networks()]

        def forces_of(batch: Tensor) -> Tensor:
            points = self.sums.locate(batch, self.grid)
            return _forces(Sweeps(self._views, tables, types, points, self.sums).forth_and_back(), points, batch)

        return torch.cat(list(self.share(forces_of, positions.split(self._frames(positions)))))

    def gradient(
        self,
        types: Int64[Tensor, " beads"],
        positions: Float[Tensor, "frames beads 3"],
        labels: Float[Tensor, "frames beads 3"],
    ) -> tuple[Float64[Tensor, ""], Float[Tensor, " weights"]]:
        """Mean squared error of the forces against `labels` [(kJ/mol/nm)^2], and its gradient along the weights."""
        networks = self._filter_networks()
        tables = [network.table for network in networks]

        def gradient_of(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            points = self.sums.locate(batch[0], self.grid)
            sweeps = Sweeps(self._views, tables, types, points, self.sums)
            errors = batch[1] - _forces(sweeps.forth_and_back(), points, batch[0])
            gradient, along_tables = torch.empty_like(self.weights), self._zero_tables()
            approach = _approach(errors * (2.0 / labels.numel()), points)
            sweeps.tangent(approach, Weights.view(gradient, self.shapes), along_tables.unbind())
            return errors.double().square().sum(), gradient, along_tables

        size = self._frames(positions)
        parts = zip(*self.share(gradient_of, zip(positions.split(size), labels.split(size), strict=True)), strict=True)
        squares, gradient, along_tables = (_total(part) for part in parts)
        into = Weights.view(gradient, self.shapes).blocks
        list(self.share(lambda part: part[0].back(*part[1:]), zip(networks, along_tables, into, strict=True)))
        return squares / labels.numel(), gradient

    def _filter_networks(self) -> list[FilterNetwork]:
        return list(self.share(lambda block: FilterNetwork(block, self.radial), self._views.blocks))

    def _zero_tables(self) -> Float[Tensor, "blocks knots features"]:
        weights = self._views
        shape = len(weights.blocks), len(self.radial), len(weights.last_bias)
        return torch.zeros(shape, dtype=self.weights.dtype, device=self.weights.device)

    def _frames(self, positions: Tensor) -> int:
        """Frames to a batch: the device's whole memory is nearer to a GPU than any part of it."""
        return max(1, BEADS // positions.shape[1]) if self.sums is pair_kernels else max(1, len(positions))


def _total(parts: Sequence[Tensor]) -> Tensor:
    """Sum, in order."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


def _forces(slopes: Along, points: Points, positions: Beads) -> Beads:
    """Forces from slopes of the energy along all distances."""
    first, second = pairs(positions.shape[1], 1, positions.device)
    pushes = slopes[:, :, None] * points.directions
    return torch.zeros_like(positions).index_add_(1, first, pushes).index_add_(1, second, pushes, alpha=-1)


def _approach(velocities: Beads, points: Points) -> Along:
    """Rate at which each distance changes."""
    first, second = pairs(velocities.shape[1], 1, velocities.device)
    relative = velocities.index_select(1, second) - velocities.index_select(1, first)
    return (relative * points.directions).sum(2)
