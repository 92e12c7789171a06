"""The functions of `pair_sums` compiled for one CPU core; they run without the interpreter's lock.

Nothing of the size pairs x features is written but the filters themselves: the features of a pair's beads stay in cache
while both are served.
"""

from math import pi
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from cgal.compiled import compiled, inlined
from cgal.potential.geometry import SHORTEST_nm, pairs
from cgal.schnet.pair_sums import Along, Beads, Filters, Grid, Points, Table

__all__ = ["convolve", "interpolate", "locate", "slopes", "table_gradient", "tangent_convolve"]

type Ends = Int64[np.ndarray, " pairs"]
type Row = Float[np.ndarray, " features"]
type Weights = Float[np.ndarray, " points"]
type AlongArray = Float[np.ndarray, "frames pairs"]
type BeadsArray = Float[np.ndarray, "frames beads features"]
type FiltersArray = Float[np.ndarray, "frames pairs features"]
type RowsArray = Int64[np.ndarray, "frames pairs"]
type StencilArray = Float[np.ndarray, "frames pairs points"]
type TableArray = Float[np.ndarray, "knots features"]


def locate(positions: Float[Tensor, "frames beads 3"], grid: Grid) -> Points:
    """Find all pairs on the grid; positions in nm."""
    first, second = pairs(positions.shape[1], 1, positions.device)
    shape, points = (len(positions), len(first)), grid.lagrange.shape[1] // 2
    directions, values, slopes = (torch.empty(*shape, n, dtype=positions.dtype) for n in (3, points, points))
    rows = torch.empty(shape, dtype=torch.int64)
    found = directions, rows, values, slopes
    knots = grid.start_nm, grid.spacing_nm, grid.intervals, grid.cutoff_nm
    _locate(knots, *_arrays(first, second, positions, grid.lagrange, *found))
    return Points(directions, rows, values, slopes)


def interpolate(table: Table, points: Points, filters: Filters, filter_slopes: Filters) -> None:
    """Fill in the filter of each pair and its slope along the distance."""
    _interpolate(*_arrays(table, *points[1:], filters, filter_slopes))


def convolve(filters: Filters, features: Beads) -> Beads:
    """h_i = sum_j W_ij y_j; its own transpose, since W_ij = W_ji."""
    received = torch.zeros_like(features)
    _convolve(*_pairs(features), *_arrays(filters, features, received))
    return received


def tangent_convolve(
    filters: Filters, filter_slopes: Filters, distance_tangents: Along, features: Beads, tangents: Beads
) -> Beads:
    """Tangent of `convolve` when the features change by `tangents` and each distance by `distance_tangents`."""
    received = torch.zeros_like(features)
    _tangent_convolve(
        *_pairs(features), *_arrays(filters, filter_slopes, distance_tangents, features, tangents, received)
    )
    return received


def slopes(filter_slopes: Filters, features: Beads, adjoints: Beads) -> Along:
    """Slope along each distance of what has gradients `adjoints` along the result of `convolve`."""
    along = torch.empty(filter_slopes.shape[:2], dtype=filter_slopes.dtype)
    _slopes(*_pairs(features), *_arrays(filter_slopes, features, adjoints, along))
    return along


def table_gradient(
    gradient: Table,
    points: Points,
    distance_tangents: Along,
    features: tuple[Beads, Beads],
    adjoints: tuple[Beads, Beads],
) -> None:
    """Add the tangent of the gradient along the table; features and adjoints come with their tangents."""
    _table_gradient(*_pairs(features[0]), *_arrays(gradient, *points[1:], distance_tangents, *features, *adjoints))


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.numpy() for tensor in tensors]


def _pairs(features: Beads) -> list[Any]:
    return _arrays(*pairs(features.shape[1], 1, features.device))


@compiled
def _locate(
    grid: tuple[float, float, int, float],
    first: Ends,
    second: Ends,
    positions: Float[np.ndarray, "frames beads 3"],
    lagrange: Float64[np.ndarray, "powers weights"],
    directions: Float[np.ndarray, "frames pairs 3"],
    rows: RowsArray,
    values: StencilArray,
    slopes: StencilArray,
) -> None:
    start_nm, spacing_nm, intervals, cutoff_nm = grid
    separation = np.empty(3, np.float64)
    for n in range(positions.shape[0]):
        for p in range(len(first)):
            square = 0.0
            for axis in range(3):
                separation[axis] = positions[n, second[p], axis] - positions[n, first[p], axis]
                square += separation[axis] * separation[axis]
            distance = max(np.sqrt(square), SHORTEST_nm)
            for axis in range(3):
                directions[n, p, axis] = separation[axis] / distance
            at = (distance - start_nm) / spacing_nm
            rows[n, p] = min(max(int(at), 0), intervals - 1)
            t = min(max(at - rows[n, p], 0.0), 1.0)
            inside, phase = 0.5 if distance < cutoff_nm else 0.0, distance * (pi / cutoff_nm)
            cutoff, cutoff_slope = inside + inside * np.cos(phase), -inside * (pi / cutoff_nm) * np.sin(phase)
            for k in range(values.shape[2]):
                value, slope = 0.0, 0.0
                for power in range(len(lagrange) - 1, -1, -1):
                    value = value * t + lagrange[power, k]
                    slope = slope * t + lagrange[power, k + values.shape[2]]
                values[n, p, k] = value * cutoff
                slopes[n, p, k] = value * cutoff_slope + slope * cutoff


@compiled
def _interpolate(
    table: TableArray,
    rows: RowsArray,
    values: StencilArray,
    slopes: StencilArray,
    filters: FiltersArray,
    filter_slopes: FiltersArray,
) -> None:
    for n in range(rows.shape[0]):
        for p in range(rows.shape[1]):
            _read(table, rows[n, p], values[n, p], filters[n, p])
            _read(table, rows[n, p], slopes[n, p], filter_slopes[n, p])


@inlined
def _read(table: TableArray, row: int, weights: Weights, found: Row) -> None:
    """Weighted sum of eight rows in one go: in registers."""
    a, b, c, d = weights[0], weights[1], weights[2], weights[3]
    q, r, s, t = weights[4], weights[5], weights[6], weights[7]
    for f in range(table.shape[1]):
        left = a * table[row, f] + b * table[row + 1, f] + c * table[row + 2, f] + d * table[row + 3, f]
        right = q * table[row + 4, f] + r * table[row + 5, f] + s * table[row + 6, f] + t * table[row + 7, f]
        found[f] = left + right


@inlined
def _write(
    table: TableArray,
    row: int,
    values: Weights,
    slopes: Weights,
    along_filter: Row,
    along_slope: Row,
) -> None:
    """Add to four rows in one go."""
    a, b, c, d = values[0], values[1], values[2], values[3]
    q, r, s, t = slopes[0], slopes[1], slopes[2], slopes[3]
    for f in range(table.shape[1]):
        filter_part, slope_part = along_filter[f], along_slope[f]
        table[row, f] += a * filter_part + q * slope_part
        table[row + 1, f] += b * filter_part + r * slope_part
        table[row + 2, f] += c * filter_part + s * slope_part
        table[row + 3, f] += d * filter_part + t * slope_part


@compiled
def _convolve(
    first: Ends,
    second: Ends,
    filters: FiltersArray,
    features: BeadsArray,
    received: BeadsArray,
) -> None:
    for n in range(filters.shape[0]):
        for p in range(filters.shape[1]):
            i, j = first[p], second[p]
            for f in range(filters.shape[2]):
                received[n, i, f] += filters[n, p, f] * features[n, j, f]
            for f in range(filters.shape[2]):
                received[n, j, f] += filters[n, p, f] * features[n, i, f]


@compiled
def _tangent_convolve(
    first: Ends,
    second: Ends,
    filters: FiltersArray,
    filter_slopes: FiltersArray,
    distance_tangents: AlongArray,
    features: BeadsArray,
    tangents: BeadsArray,
    received: BeadsArray,
) -> None:
    for n in range(filters.shape[0]):
        for p in range(filters.shape[1]):
            i, j, rate = first[p], second[p], distance_tangents[n, p]
            for f in range(filters.shape[2]):
                change = rate * filter_slopes[n, p, f]
                received[n, i, f] += filters[n, p, f] * tangents[n, j, f] + change * features[n, j, f]
            for f in range(filters.shape[2]):
                change = rate * filter_slopes[n, p, f]
                received[n, j, f] += filters[n, p, f] * tangents[n, i, f] + change * features[n, i, f]


@compiled
def _slopes(
    first: Ends,
    second: Ends,
    filter_slopes: FiltersArray,
    features: BeadsArray,
    adjoints: BeadsArray,
    along: AlongArray,
) -> None:
    for n in range(filter_slopes.shape[0]):
        for p in range(filter_slopes.shape[1]):
            i, j = first[p], second[p]
            total = filter_slopes.dtype.type(0)
            for f in range(filter_slopes.shape[2]):
                met = features[n, i, f] * adjoints[n, j, f] + features[n, j, f] * adjoints[n, i, f]
                total += filter_slopes[n, p, f] * met
            along[n, p] = total


@compiled
def _table_gradient(
    first: Ends,
    second: Ends,
    gradient: TableArray,
    rows: RowsArray,
    values: StencilArray,
    slopes: StencilArray,
    distance_tangents: AlongArray,
    features: BeadsArray,
    tangents: BeadsArray,
    adjoints: BeadsArray,
    adjoint_tangents: BeadsArray,
) -> None:
    along_filter = np.empty(gradient.shape[1], gradient.dtype)
    along_slope = np.empty_like(along_filter)
    for n in range(rows.shape[0]):
        for p in range(rows.shape[1]):
            i, j, rate = first[p], second[p], distance_tangents[n, p]
            for f in range(gradient.shape[1]):
                met = features[n, i, f] * adjoints[n, j, f] + features[n, j, f] * adjoints[n, i, f]
                along_slope[f] = rate * met
            for f in range(gradient.shape[1]):
                along_filter[f] = (
                    features[n, i, f] * adjoint_tangents[n, j, f] + features[n, j, f] * adjoint_tangents[n, i, f]
                )
            for f in range(gradient.shape[1]):
                along_filter[f] += tangents[n, i, f] * adjoints[n, j, f] + tangents[n, j, f] * adjoints[n, i, f]
            for k in range(0, values.shape[2], 4):
                _write(gradient, rows[n, p] + k, values[n, p, k:], slopes[n, p, k:], along_filter, along_slope)
