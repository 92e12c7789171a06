"""SchNet for simulation: filters from a table, and the gradient along every distance written out by hand.

A continuous filter depends on one distance alone, so the network of each filter is needed no more once it is tabulated
(a cubic Hermite spline). The spline's slope is continuous, and it is the slope that the forces use: forces are minus
the gradient of the tabulated energy, so that a table costs accuracy but never energy conservation.
"""

import math
from copy import deepcopy
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, linear

from cgal.potential.geometry import pairs
from cgal.potential.network import ENERGY_SCALE_kJ_per_mol
from cgal.schnet.network import CGSchNet

__all__ = ["TabulatedSchNet"]

INTERVALS = 512
"""Intervals of a filter table by default, each of width h. The spline errs by h^4 |W''''| / 384 and its slope by
h^3 |W''''| / (72 sqrt 3) at most. A filter varies over w, the width of a radial function: with |W''''| ~ |W| / w^4,
w = 0.05 nm and h = 0.003 nm that is 3e-8 |W| and 2e-6 |W / w|, below what float32 rounds off along the way."""

HERMITE = ((1.0, 0.0, -3.0, 2.0), (0.0, 1.0, -2.0, 1.0), (0.0, 0.0, 3.0, -2.0), (0.0, 0.0, -1.0, 1.0))
"""Weights of value and slope at the left knot, then at the right one: coefficients of 1, t, t^2 and t^3."""

HERMITE_SLOPE = ((0.0, -6.0, 6.0, 0.0), (1.0, -4.0, 3.0, 0.0), (0.0, 6.0, -6.0, 0.0), (0.0, -2.0, 3.0, 0.0))
"""Derivatives of these polynomials."""


class Spline(NamedTuple):
    """Where each distance lies in a table: four rows, and their weights for the value and for its slope."""

    rows: Int64[Tensor, " four_each"]
    values: Float32[Tensor, " four_each"]
    slopes: Float32[Tensor, " four_each"]


class Activation(NamedTuple):
    """Softplus and its slope."""

    value: Float32[Tensor, "*shape"]
    slope: Float32[Tensor, "*shape"]


class Filters(NamedTuple):
    """One block's filter of each pair, and its slope along the distance (times the table's spacing)."""

    values: Float32[Tensor, "frames pairs features"]
    slopes: Float32[Tensor, "frames pairs features"]


class Dense(nn.Module):
    """Weights of a linear layer, frozen; where its input is a shifted softplus, the shift is in the bias."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Module, input_shift: float = 0.0) -> None:
        super().__init__()
        weight = cast(Tensor, layer.weight)
        bias = cast(Tensor | None, layer.bias)
        bias = torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", (bias - input_shift * weight.sum(1)).float())

    def forward(self, features: Tensor) -> Tensor:
        """Apply the layer."""
        return linear(features, self.weight, self.bias)

    def backward(self, gradients: Tensor) -> Tensor:
        """Gradient along the input, given the gradient along the output."""
        return gradients @ self.weight


class TabulatedBlock(nn.Module):
    """One interaction block of SchNet: its table, and the layers before and after the convolution."""

    table: Tensor

    def __init__(self, schnet: Any, block: Any, cutoff_nm: float, intervals: int) -> None:
        super().__init__()
        self.register_buffer("table", _tabulate(schnet, block, cutoff_nm, intervals))
        self.to_sources = Dense(block.in2f)
        self.to_hidden = Dense(block.f2out[0])
        self.to_update = Dense(block.f2out[1], input_shift=math.log(2))

    def filters(self, spline: Spline, frames: int) -> Filters:
        """Look up all pairs; a weighted sum of four rows of the table is one call."""
        shape = (frames, -1, self.table.shape[1])
        values, slopes = (sum_rows(self.table, spline.rows, 4, weights).view(shape) for weights in spline[1:])
        return Filters(values, slopes)


def _tabulate(schnet: Any, block: Any, cutoff_nm: float, intervals: int) -> Float32[Tensor, "rows features"]:
    """Filter times cutoff at evenly spaced knots from 0 to the cutoff, each followed by its slope times the spacing."""

    def filters(distances: Float64[Tensor, " knots"]) -> Float64[Tensor, "knots features"]:
        values: Tensor = block.filter_network(schnet.radial_basis(distances)) * schnet.cutoff_fn(distances)[:, None]
        return values

    knots = torch.linspace(0.0, cutoff_nm, intervals + 1, dtype=torch.float64)
    values, slopes = cast(tuple[Tensor, Tensor], torch.func.jvp(filters, (knots,), (torch.ones_like(knots),)))
    return torch.stack([values, slopes * (cutoff_nm / intervals)], 1).flatten(0, 1).float()


class TabulatedSchNet(nn.Module):
    """`CGSchNet` frozen for one sequence, in float32: energies and slopes as a function of the pair distances."""

    blocks: Any
    embedding: Tensor
    readout: Tensor
    offset_kJ_per_mol: Tensor
    hermite: Tensor
    hermite_slope: Tensor
    four: Tensor
    neighbours: Tensor

    def __init__(self, network: CGSchNet, types: Int64[Tensor, " beads"], intervals: int = INTERVALS) -> None:
        super().__init__()
        exact: Any = deepcopy(network).cpu().double().requires_grad_(False)
        schnet, cutoff_nm = exact.representation, network.params.cutoff_nm
        self.intervals, self.cutoff_nm = intervals, cutoff_nm
        readout = ENERGY_SCALE_kJ_per_mol * exact.readout[1].weight[0]
        self.knots_per_nm = intervals / cutoff_nm
        self.blocks = nn.ModuleList(
            TabulatedBlock(schnet, block, cutoff_nm, intervals) for block in schnet.interactions
        )
        self.to_hidden = Dense(exact.readout[0])
        self.register_buffer("embedding", schnet.embedding(types.cpu()).float()[None])
        self.register_buffer("readout", readout.float())
        self.register_buffer("offset_kJ_per_mol", (-math.log(2) * len(types) * readout.sum()).float())
        first, second = pairs(len(types), 1, torch.device("cpu"))
        self.register_buffer("neighbours", torch.cat([second, first]))
        self.register_buffer("four", torch.arange(4))
        self.register_buffer("hermite", torch.tensor(HERMITE).T.contiguous())
        self.register_buffer("hermite_slope", torch.tensor(HERMITE_SLOPE).T.contiguous())

    def forward(
        self, distances: Float32[Tensor, "frames pairs"]
    ) -> tuple[Float32[Tensor, " frames"], Float32[Tensor, "frames pairs"]]:
        """Energies [kJ/mol] and their slopes along each distance [kJ/mol/nm]."""
        spline = self._spline(distances)
        features, tape = self.embedding, []
        for block in self.blocks:
            filters = block.filters(spline, len(distances))
            sources = self._neighbours(block.to_sources(features))
            hidden = _softplus(block.to_hidden(self._convolve(filters.values, sources)))
            features = block.to_update(hidden.value).add_(features)
            tape.append((block, filters, sources, hidden.slope))
        hidden = _softplus(self.to_hidden(features))
        energies = (hidden.value @ self.readout).sum(1) + self.offset_kJ_per_mol

        gradients = self.to_hidden.backward(hidden.slope.mul_(self.readout))
        slopes = torch.zeros_like(distances)
        for block, filters, sources, slope in reversed(tape):
            targets = self._neighbours(block.to_hidden.backward(block.to_update.backward(gradients).mul_(slope)))
            meetings = (targets[:, 0] * sources[:, 1]).addcmul_(targets[:, 1], sources[:, 0])
            slopes += meetings.mul_(filters.slopes).sum(2)
            if block is not self.blocks[0]:  # the embedding has no gradient
                gradients += block.to_sources.backward(self._convolve(filters.values, targets))
        return energies, slopes.mul_(self.knots_per_nm)

    def _spline(self, distances: Float32[Tensor, "frames pairs"]) -> Spline:
        """Find each distance in the table: past the cutoff it is the last knot, where value and slope are zero."""
        at = distances.flatten().mul(self.knots_per_nm).clamp_(max=self.intervals)
        knot = at.long().clamp_(0, self.intervals - 1)  # of a number that is none, too
        t = at - knot
        squares = t * t
        powers = torch.stack([torch.ones_like(t), t, squares, squares * t], 1)
        rows = 2 * knot[:, None] + self.four
        return Spline(rows.flatten(), (powers @ self.hermite).flatten(), (powers @ self.hermite_slope).flatten())

    def _neighbours(
        self, features: Float32[Tensor, "any_frames beads features"]
    ) -> Float32[Tensor, "any_frames 2 pairs features"]:
        """Features of what the first bead of each pair sees, its second; then of what the second sees.

        One frame stands for all while no bead has met another.
        """
        both = features.index_select(1, self.neighbours)
        return both.view(len(features), 2, -1, features.shape[2])

    def _convolve(
        self,
        filters: Float32[Tensor, "frames pairs features"],
        neighbours: Float32[Tensor, "any_frames 2 pairs features"],
    ) -> Float32[Tensor, "frames beads features"]:
        """Sum filter times neighbour over the neighbours of each bead; its own transpose, since W_ij = W_ji."""
        frames, beads = len(filters), self.embedding.shape[1]
        messages = (filters[:, None] * neighbours).flatten(0, 2)
        received = received_messages(frames, beads, filters.device)
        return sum_rows(messages, received, beads - 1).view(frames, beads, -1)


def _softplus(x: Float32[Tensor, "*shape"]) -> Activation:
    """Softplus and its slope; the shift is in the layer behind. Below -80 both are zero to float32."""
    slope = torch.sigmoid(x.clamp_(min=-80.0))
    return Activation(x - slope.log(), slope)


def sum_rows(
    table: Float32[Tensor, "rows features"],
    rows: Int64[Tensor, " some_each"],
    each: int,
    weights: Float32[Tensor, " some_each"] | None = None,
) -> Float32[Tensor, "sums features"]:
    """Sum `each` rows of a table after another, weighted, in one pass over memory."""
    starts = _bag_starts(len(rows), each, rows.device)
    sums: Tensor = embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights)
    return sums


@lru_cache(maxsize=64)
def _bag_starts(rows: int, each: int, device: torch.device) -> Int64[Tensor, " sums"]:
    return torch.arange(0, rows, each, device=device)


@lru_cache(maxsize=64)
def received_messages(frames: int, beads: int, device: torch.device) -> Int64[Tensor, " received"]:
    """Rows of the messages that each bead of each frame gets, `beads - 1` each.

    The messages of a frame are those to the first bead of each pair, then those to the second.
    """
    receivers = torch.cat(pairs(beads, 1, device))
    rows = torch.argsort(receivers, stable=True)
    return (rows + len(receivers) * torch.arange(frames, device=device)[:, None]).flatten()
