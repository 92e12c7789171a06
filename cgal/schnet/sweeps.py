"""The four sweeps of `force_matching` over the layers of a SchNet, written out.

A row of a layer is a bead of a frame. `along_x` is the adjoint of x, dE/dx; `x_tangent` the derivative of x along the
direction in which the positions move. In `tangent_forward` and `tangent_backward` adjoints that go by their plain names
are the tangents of those that the first sweeps left behind.
"""

from collections.abc import Sequence
from itertools import islice
from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import linear

from cgal.potential.network import ENERGY_SCALE_kJ_per_mol
from cgal.schnet.pair_sums import Along, Beads, Points, Table

__all__ = ["BlockWeights", "FilterNetwork", "Sweeps", "Weights"]

type Layer = Float[Tensor, "rows features"]


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

    def backward(self, along_table: Table, gradient: BlockWeights) -> None:
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
    """One interaction block for a few frames, and what each sweep leaves behind for later ones.

    features -> sources -> (convolution) received -> hidden -> update, which is added to the features.
    """

    def __init__(
        self,
        weights: BlockWeights,
        table: Table,
        points: Points,
        sums: ModuleType,
        memory: Float[Tensor, "2 frames pairs features"],
    ) -> None:
        self.weights, self.points, self.sums = weights, points, sums
        self.filters, self.filter_slopes = memory
        sums.interpolate(table, points, self.filters, self.filter_slopes)

    def _beads(self, layer: Layer) -> Beads:
        return layer.view(len(self.filters), -1, layer.shape[1])

    def forward(self, features: Layer) -> Layer:
        """Features of the next block."""
        weights, self.features = self.weights, features
        self.sources = self._beads(linear(features, weights.to_sources))
        self.received = self.sums.convolve(self.filters, self.sources).flatten(0, 1)
        self.hidden, self.hidden_slope = _softplus(linear(self.received, weights.to_hidden, weights.hidden_bias))
        return linear(self.hidden, weights.to_update, weights.update_bias).add_(features)

    def backward(self, along_next: Layer) -> Along:
        """Share of this block in the slope along each distance."""
        weights, self.along_next = self.weights, along_next
        self.along_hidden = (along_next @ weights.to_update).mul_(self.hidden_slope)
        self.along_received = self._beads(self.along_hidden @ weights.to_hidden)
        slopes: Along = self.sums.slopes(self.filter_slopes, self.sources, self.along_received)
        return slopes

    def backward_to_features(self) -> Layer:
        """Adjoint of the features that came in."""
        self.along_sources = self.sums.convolve(self.filters, self.along_received).flatten(0, 1)
        return torch.addmm(self.along_next, self.along_sources, self.weights.to_sources)

    def gradient_backward(self, along_next: Layer, gradient: BlockWeights, along_table: Table) -> Layer:
        """Fill in the gradient of the energy along the weights of the dense layers; give that along the features.

        Needs `forward` alone. Along the table it is what `tangent_backward` adds when nothing but the adjoint changes.
        """
        weights = self.weights
        _outer(gradient.to_update, (along_next, self.hidden))
        torch.sum(along_next, 0, out=gradient.update_bias)
        along_hidden = (along_next @ weights.to_update).mul_(self.hidden_slope)
        _outer(gradient.to_hidden, (along_hidden, self.received))
        torch.sum(along_hidden, 0, out=gradient.hidden_bias)
        along_received = self._beads(along_hidden @ weights.to_hidden)
        still, sources = torch.zeros_like(self.filters[..., 0]), (self.sources, torch.zeros_like(self.sources))
        self.sums.table_gradient(along_table, self.points, still, sources, (along_received, along_received))
        along_sources = self.sums.convolve(self.filters, along_received).flatten(0, 1)
        _outer(gradient.to_sources, (along_sources, self.features))
        return torch.addmm(along_next, along_sources, weights.to_sources)

    def tangent_forward(self, distance_tangents: Along, features_tangent: Layer | None) -> Layer:
        """Tangent of the next block's features; the first block's own features are constant."""
        weights, self.distance_tangents, self.features_tangent = self.weights, distance_tangents, features_tangent
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
            self.filters, self.filter_slopes, self.distance_tangents, features, tangents
        )
        return received.flatten(0, 1)

    def tangent_backward(self, along_next: Layer, gradient: BlockWeights, along_table: Table) -> Layer:
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
            self.points,
            self.distance_tangents,
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
        memory: Float[Tensor, "blocks 2 frames pairs features"],
    ) -> None:
        self.weights, self.types, self.points = weights, types, points
        self.blocks = [
            Block(block, table, points, sums, part)
            for block, table, part in zip(weights.blocks, tables, memory, strict=True)
        ]

    def _forward(self) -> Layer:
        """Last hidden layer of the readout."""
        weights = self.weights
        features = weights.embedding[self.types].repeat(len(self.points.rows), 1)
        for block in self.blocks:
            features = block.forward(features)
        self.features = features
        last, self.last_slope = _softplus(linear(features, weights.to_last, weights.last_bias))
        return last

    def energies(self) -> Float[Tensor, " frames"]:
        """Energy of each frame [kJ/mol]."""
        self.last = self._forward()
        return ENERGY_SCALE_kJ_per_mol * (self.last @ self.weights.readout[0]).view(-1, len(self.types)).sum(1)

    def gradient(self, along: Float[Tensor, " frames"], gradient: Weights, along_tables: Sequence[Table]) -> None:
        """After `energies`, fill in the gradient of the sum of `along` times them, as `tangent` does."""
        weights = self.weights
        per_bead = ENERGY_SCALE_kJ_per_mol * along.repeat_interleave(len(self.types))[:, None]
        torch.sum(per_bead * self.last, 0, keepdim=True, out=gradient.readout)
        along_last = per_bead * weights.readout * self.last_slope
        _outer(gradient.to_last, (along_last, self.features))
        torch.sum(along_last, 0, out=gradient.last_bias)
        along_features = along_last @ weights.to_last
        for block, part, along_table in zip(self.blocks[::-1], gradient.blocks[::-1], along_tables[::-1], strict=True):
            along_features = block.gradient_backward(along_features, part, along_table)
        self._embed(along_features, gradient)

    def _embed(self, along_features: Layer, gradient: Weights) -> None:
        per_bead = along_features.view(-1, len(self.types), along_features.shape[1]).sum(0)
        gradient.embedding.zero_().index_add_(0, self.types, per_bead)

    def forward_and_backward(self) -> Along:
        """Slope of the energy along each distance [kJ/mol/nm]."""
        weights = self.weights
        self._forward()
        self.along_last = self.last_slope * (ENERGY_SCALE_kJ_per_mol * weights.readout)
        along_features = self.along_last @ weights.to_last
        slopes = self.blocks[-1].backward(along_features)
        for block, later in zip(self.blocks[-2::-1], self.blocks[:0:-1], strict=True):
            slopes += block.backward(later.backward_to_features())
        return slopes

    def tangent(self, distance_tangents: Along, gradient: Weights, along_tables: Sequence[Table]) -> None:
        """Fill in the gradient, but for the filter networks: of these, add to that along their tables."""
        tangent: Layer | None = None
        for block in self.blocks:
            tangent = block.tangent_forward(distance_tangents, tangent)
        assert tangent is not None  # there is a block
        along_features = self._tangent_of_readout(tangent, gradient)
        for block, part, along_table in zip(self.blocks[::-1], gradient.blocks[::-1], along_tables[::-1], strict=True):
            along_features = block.tangent_backward(along_features, part, along_table)
        self._embed(along_features, gradient)

    def _tangent_of_readout(self, features_tangent: Layer, gradient: Weights) -> Layer:
        argument_tangent = features_tangent @ self.weights.to_last.T
        last_tangent = self.last_slope * argument_tangent
        torch.mul(last_tangent.sum(0, keepdim=True), ENERGY_SCALE_kJ_per_mol, out=gradient.readout)
        along_last = argument_tangent.mul_(1.0 - self.last_slope).mul_(self.along_last)
        _outer(gradient.to_last, (along_last, self.features), (self.along_last, features_tangent))
        torch.sum(along_last, 0, out=gradient.last_bias)
        return along_last @ self.weights.to_last
