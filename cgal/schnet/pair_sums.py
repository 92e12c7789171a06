"""What is done pair by pair in a continuous-filter convolution and its derivatives.

This module is their definition, in plain torch, and serves any device; `pair_kernels` has the same functions compiled
for the CPU, where they are several times faster. A pair p = (i, j), i < j, stands for both directions, since they
share a filter W_p. A filter is read from a table of its values at evenly spaced distances: W_p = sum_k a_pk T_(m+k)
and its slope W'_p = sum_k b_pk T_(m+k), with m the pair's first row.
"""

from math import pi
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import embedding_bag

from cgal.potential.geometry import SHORTEST_nm, pairs

__all__ = ["Grid", "Points", "convolve", "interpolate", "locate", "slopes", "table_gradient", "tangent_convolve"]

type Beads = Float[Tensor, "frames beads features"]
type Filters = Float[Tensor, "frames pairs features"]
type Along = Float[Tensor, "frames pairs"]
type Stencil = Float[Tensor, "frames pairs points"]
type Rows = Int64[Tensor, "frames pairs"]
type Table = Float[Tensor, "knots features"]


class Grid(NamedTuple):
    """Intervals between evenly spaced knots, and coefficients of t^0, t^1 ... (t runs from 0 to 1 in an interval).

    They give the weight of each knot around in the value, then that in the slope.
    """

    start_nm: float
    spacing_nm: float
    intervals: int
    cutoff_nm: float
    lagrange: Float64[Tensor, "powers weights"]


class Points(NamedTuple):
    """Where the pairs are: unit vectors, and what to read off a table for the filter times cutoff and its slope."""

    directions: Float[Tensor, "frames pairs 3"]
    rows: Rows
    values: Stencil
    slopes: Stencil


def locate(positions: Float[Tensor, "frames beads 3"], grid: Grid) -> Points:
    """Find all pairs on the grid; positions in nm."""
    first, second = pairs(positions.shape[1], 1, positions.device)
    separations = (positions.index_select(1, second) - positions.index_select(1, first)).double()
    distances = separations.square().sum(2).sqrt().clamp(min=SHORTEST_nm)
    at = (distances - grid.start_nm) / grid.spacing_nm
    rows = at.long().clamp(0, grid.intervals - 1)
    orders = torch.arange(len(grid.lagrange), device=rows.device)
    powers = (at - rows).clamp(0.0, 1.0)[:, :, None].pow(orders)
    values, slopes = (powers @ grid.lagrange).chunk(2, dim=2)
    inside, phase = distances < grid.cutoff_nm, distances * (pi / grid.cutoff_nm)
    cutoff = (inside * (0.5 + 0.5 * phase.cos()))[:, :, None]
    cutoff_slope = (inside * phase.sin() * (-0.5 * pi / grid.cutoff_nm))[:, :, None]
    found = separations / distances[:, :, None], values * cutoff, values * cutoff_slope + slopes * cutoff
    directions, values, slopes = (tensor.to(positions.dtype) for tensor in found)
    return Points(directions, rows, values, slopes)


def interpolate(table: Table, points: Points, filters: Filters, filter_slopes: Filters) -> None:
    """Fill in the filter of each pair and its slope along the distance."""
    rows = _rows(points)
    for weights, found in ((points.values, filters), (points.slopes, filter_slopes)):
        found.copy_(embedding_bag(rows, table, mode="sum", per_sample_weights=weights.flatten(0, 1)).view(found.shape))


def convolve(filters: Filters, features: Beads) -> Beads:
    """h_i = sum_j W_ij y_j; its own transpose, since W_ij = W_ji."""
    first, second = pairs(features.shape[1], 1, features.device)
    to_first, to_second = filters * features[:, second], filters * features[:, first]
    return torch.zeros_like(features).index_add(1, first, to_first).index_add(1, second, to_second)


def tangent_convolve(
    filters: Filters, filter_slopes: Filters, distance_tangents: Along, features: Beads, tangents: Beads
) -> Beads:
    """Tangent of `convolve` when the features change by `tangents` and each distance by `distance_tangents`."""
    return convolve(filters, tangents) + convolve(distance_tangents[:, :, None] * filter_slopes, features)


def slopes(filter_slopes: Filters, features: Beads, adjoints: Beads) -> Along:
    """Slope along each distance of what has gradients `adjoints` along the result of `convolve`."""
    return (filter_slopes * _pair_products(features, adjoints)).sum(2)


def table_gradient(
    gradient: Table,
    points: Points,
    distance_tangents: Along,
    features: tuple[Beads, Beads],
    adjoints: tuple[Beads, Beads],
) -> None:
    """Add the tangent of the gradient along the table; features and adjoints come with their tangents."""
    along_filters = _pair_products(features[0], adjoints[1]) + _pair_products(features[1], adjoints[0])
    along_slopes = distance_tangents[:, :, None] * _pair_products(features[0], adjoints[0])
    parts = points.values[..., None] * along_filters[:, :, None] + points.slopes[..., None] * along_slopes[:, :, None]
    gradient.index_add_(0, _rows(points).flatten(), parts.flatten(0, 2))


def _rows(points: Points) -> Int64[Tensor, "all_pairs points"]:
    return points.rows.flatten()[:, None] + torch.arange(points.values.shape[2], device=points.rows.device)


def _pair_products(features: Beads, adjoints: Beads) -> Filters:
    """y_i g_j + y_j g_i of each pair: the gradient along its filter."""
    first, second = pairs(features.shape[1], 1, features.device)
    return features[:, first] * adjoints[:, second] + features[:, second] * adjoints[:, first]
