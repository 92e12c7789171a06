"""Forward and backward pass of a tabulated SchNet, written out for the compiled loops of `kernels`."""

import numpy as np
from jaxtyping import Float32

from cgal.compiled import inlined
from cgal.schnet.kernel_types import HALF, ONE, TWO, ZERO, Layers, Near, Network

__all__ = ["backward", "clear", "copy", "forward", "push", "transpose"]

LOG2_E, LN2_HIGH, LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
EXPONENT_BIAS, MANTISSA_BITS = np.int32(127), np.int32(23)
E7, E6, E5, E4, E3 = (np.float32(c) for c in (1.9875691e-4, 1.3981999e-3, 8.3334519e-3, 4.1665796e-2, 1.6666665e-1))
"""Coefficients of exp on [-ln 2 / 2, ln 2 / 2] (Cephes)."""
A11, A9, A7, A5, A3 = (np.float32(1 / n) for n in (11, 9, 7, 5, 3))
"""Coefficients of artanh, here of at most 1/3."""
FURTHEST = np.float32(87.0)


@inlined
def forward(network: Network, near: Near, layers: Layers, energies: Float32[np.ndarray, " replicas"]) -> None:
    """SchNet from embeddings to energies, which it adds to; leaves the gradient along the last layer's input."""
    replicas, beads = len(energies), len(network.embedding)
    for replica in range(replicas):
        copy(network.embedding, layers.features[replica * beads :])
    for block in range(len(network.tables)):
        if block > 0:
            np.dot(layers.features, network.to_sources[block].T, layers.sources[block])
            _convolve(network.tables[block], near, layers.sources[block], beads, layers.messages)
        else:
            _convolve(network.tables[block], near, network.first_sources, 0, layers.messages)
        np.dot(layers.messages, network.to_hidden[block].T, layers.hidden)
        _softplus(layers.hidden, network.hidden_bias[block], layers.slopes[block])
        np.dot(layers.hidden, network.to_update[block].T, layers.messages)
        _add_biased(layers.features, layers.messages, network.update_bias[block])
    np.dot(layers.features, network.to_last.T, layers.hidden)
    _softplus(layers.hidden, network.last_bias, layers.messages)
    for replica in range(replicas):
        energies[replica] += network.offset_kJ_per_mol + _read_out(
            layers.hidden[replica * beads : (replica + 1) * beads],
            layers.messages[replica * beads : (replica + 1) * beads],
            network.readout_kJ_per_mol,
        )
    np.dot(layers.messages, network.to_last, layers.features)


@inlined
def backward(network: Network, near: Near, layers: Layers) -> None:
    """Backward pass through the blocks, to the slope of the energy along each pair's distance."""
    beads = len(network.embedding)
    for block in range(len(network.tables) - 1, -1, -1):
        np.dot(layers.features, network.to_update[block], layers.hidden)
        _multiply(layers.hidden, layers.slopes[block])
        np.dot(layers.hidden, network.to_hidden[block], layers.targets)
        if block > 0:
            _add_filter_slopes(network.tables[block], near, layers.sources[block], beads, layers.targets)
            _convolve(network.tables[block], near, layers.targets, beads, layers.messages)
            np.dot(layers.messages, network.to_sources[block], layers.hidden)
            _add(layers.features, layers.hidden)
        else:
            _add_filter_slopes(network.tables[block], near, network.first_sources, 0, layers.targets)


@inlined
def _convolve(
    table: Float32[np.ndarray, "rows features"],
    near: Near,
    sources: Float32[np.ndarray, "some_rows features"],
    per_replica: int,
    messages: Float32[np.ndarray, "rows features"],
) -> None:
    """Sum filter times neighbour over the neighbours of each bead; its own transpose, since W_ij = W_ji.

    A replica has `per_replica` rows of sources of its own, or none: those of the first block are the same for all.
    """
    clear(messages)
    beads, spline = len(messages) // len(near.listed), near.spline
    for replica in range(len(near.listed)):
        for pair in range(near.listed[replica]):
            i, j, row = near.beads[replica, pair, 0], near.beads[replica, pair, 1], near.row[replica, pair]
            from_i, from_j = replica * per_replica + i, replica * per_replica + j
            to_i, to_j = replica * beads + i, replica * beads + j
            a, b = spline[replica, pair, 0], spline[replica, pair, 1]
            c, d = spline[replica, pair, 2], spline[replica, pair, 3]
            for f in range(table.shape[1]):
                value = a * table[row, f] + b * table[row + 1, f] + c * table[row + 2, f] + d * table[row + 3, f]
                messages[to_i, f] += value * sources[from_j, f]
                messages[to_j, f] += value * sources[from_i, f]


@inlined
def _add_filter_slopes(
    table: Float32[np.ndarray, "rows features"],
    near: Near,
    sources: Float32[np.ndarray, "some_rows features"],
    per_replica: int,
    targets: Float32[np.ndarray, "rows features"],
) -> None:
    """Add this block's part of the slope along each distance: filter slope times the features that it couples."""
    beads, spline = len(targets) // len(near.listed), near.spline
    for replica in range(len(near.listed)):
        for pair in range(near.listed[replica]):
            i, j, row = near.beads[replica, pair, 0], near.beads[replica, pair, 1], near.row[replica, pair]
            from_i, from_j = replica * per_replica + i, replica * per_replica + j
            to_i, to_j = replica * beads + i, replica * beads + j
            a, b = spline[replica, pair, 4], spline[replica, pair, 5]
            c, d = spline[replica, pair, 6], spline[replica, pair, 7]
            total = ZERO
            for f in range(table.shape[1]):
                slope = a * table[row, f] + b * table[row + 1, f] + c * table[row + 2, f] + d * table[row + 3, f]
                total += slope * (targets[to_i, f] * sources[from_j, f] + targets[to_j, f] * sources[from_i, f])
            near.slope[replica, pair] += total


@inlined
def push(network: Network, near: Near, gradients: Float32[np.ndarray, "replicas beads 3"]) -> None:
    """Turn slopes along distances into gradients along positions."""
    for replica in range(len(gradients)):
        for pair in range(near.listed[replica]):
            i, j = near.beads[replica, pair, 0], near.beads[replica, pair, 1]
            slope = near.slope[replica, pair] * network.knots_per_nm
            for axis in range(3):
                gradients[replica, i, axis] -= slope * near.direction[replica, pair, axis]
                gradients[replica, j, axis] += slope * near.direction[replica, pair, axis]


@inlined
def _softplus(
    x: Float32[np.ndarray, "rows features"],
    bias: Float32[np.ndarray, " features"],
    slope: Float32[np.ndarray, "rows features"],
) -> None:
    """Softplus of x + bias, in place, and its slope, to 3e-7: ln(1 + e) = 2 artanh(e / (2 + e)), e = exp(-|x|)."""
    for row in range(x.shape[0]):
        for f in range(x.shape[1]):
            at = x[row, f] + bias[f]
            exponent = -abs(at) if abs(at) < FURTHEST else -FURTHEST
            power = np.rint(exponent * LOG2_E)
            rest = exponent - power * LN2_HIGH - power * LN2_LOW
            series = E7 * rest + E6
            series = series * rest + E5
            series = series * rest + E4
            series = series * rest + E3
            series = series * rest + HALF
            two_to_power = np.int32((np.int32(power) + EXPONENT_BIAS) << MANTISSA_BITS).view(np.float32)
            e = (series * rest * rest + rest + ONE) * two_to_power
            ratio = e / (TWO + e)
            square = ratio * ratio
            series = A11 * square + A9
            series = series * square + A7
            series = series * square + A5
            series = series * square + A3
            sigmoid = ONE / (ONE + e)
            x[row, f] = max(at, ZERO) + TWO * ratio * (ONE + square * series)
            slope[row, f] = sigmoid if at > ZERO else e * sigmoid


@inlined
def _read_out(
    values: Float32[np.ndarray, "beads features"],
    slopes: Float32[np.ndarray, "beads features"],
    readout: Float32[np.ndarray, " features"],
) -> np.float32:
    """Give the energy of a replica; the slopes become its gradient along the layer's input."""
    total = ZERO
    for bead in range(values.shape[0]):
        for f in range(values.shape[1]):
            total += values[bead, f] * readout[f]
            slopes[bead, f] *= readout[f]
    return total


@inlined
def _add(features: Float32[np.ndarray, "rows features"], update: Float32[np.ndarray, "rows features"]) -> None:
    for row in range(features.shape[0]):
        for f in range(features.shape[1]):
            features[row, f] += update[row, f]


@inlined
def _add_biased(
    features: Float32[np.ndarray, "rows features"],
    update: Float32[np.ndarray, "rows features"],
    bias: Float32[np.ndarray, " features"],
) -> None:
    for row in range(features.shape[0]):
        for f in range(features.shape[1]):
            features[row, f] += update[row, f] + bias[f]


@inlined
def clear(x: Float32[np.ndarray, "rows columns"]) -> None:
    """Fill with zeros."""
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            x[row, column] = ZERO


@inlined
def copy(source: Float32[np.ndarray, "rows columns"], target: Float32[np.ndarray, "more_rows columns"]) -> None:
    """Copy to the first rows."""
    for row in range(source.shape[0]):
        for column in range(source.shape[1]):
            target[row, column] = source[row, column]


@inlined
def transpose(source: Float32[np.ndarray, "rows columns"], target: Float32[np.ndarray, "_ rows"]) -> None:
    """Transpose into the first rows of the target's columns."""
    for row in range(source.shape[0]):
        for column in range(source.shape[1]):
            target[column, row] = source[row, column]


@inlined
def _multiply(x: Float32[np.ndarray, "rows features"], by: Float32[np.ndarray, "rows features"]) -> None:
    for row in range(x.shape[0]):
        for f in range(x.shape[1]):
            x[row, f] *= by[row, f]
