"""Compiled loops of a simulation step on a CPU: prior, tabulated SchNet and BAOAB for one block of replicas at a time.

The arrays of a block stay in a core's cache from one step to the next. A filter is interpolated where it is used and
never stored; the bead-wise layers are matrix products (numba's `np.dot` is SciPy's BLAS). Only pairs within the cutoff
cost anything: they are found anew at each step, in the loop over all pairs that the repulsion needs anyway.

Everything here is one file, since numba's cache looks at no other file than that of the function called from outside.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  (numba finds BLAS there)
from jaxtyping import Float32, Int8, Int32, Int64

from cgal.compiled import compiled, inlined

__all__ = ["CAUSES", "Chain", "Langevin", "Network", "advance", "evaluate"]

CAUSES = ("completed", "exploded", "imploded", "not finite")
"""What `ReplicaFate.cause` may say; arrays of causes hold the index."""

SHORTEST_nm = np.float32(1e-6)
"""Beads on top of each other have no direction; with this their forces are numbers."""

COLLINEAR_nm4 = np.float32(1e-10)
"""Square of `geometry.COLLINEAR_nm2`."""

ZERO, HALF, ONE, TWO, THREE, SIX = (np.float32(number) for number in (0, 0.5, 1, 2, 3, 6))
LOG2_E, LN2_HIGH, LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
EXPONENT_BIAS, MANTISSA_BITS = np.int32(127), np.int32(23)
E7, E6, E5, E4, E3 = (np.float32(c) for c in (1.9875691e-4, 1.3981999e-3, 8.3334519e-3, 4.1665796e-2, 1.6666665e-1))
"""Coefficients of exp on [-ln 2 / 2, ln 2 / 2] (Cephes)."""
A11, A9, A7, A5, A3 = (np.float32(1 / n) for n in (11, 9, 7, 5, 3))
"""Coefficients of artanh, here of at most 1/3."""
FURTHEST = np.float32(87.0)


class Chain(NamedTuple):
    """Terms of a `Prior` in float32, and the sum over pairs |i-j| >= 3 of `repulsion_kJ_nm6_per_mol` / r^6."""

    bond_length_nm: Float32[np.ndarray, " bonds"]
    bond_stiffness_kJ_per_mol_nm2: Float32[np.ndarray, " bonds"]
    angle_rad: Float32[np.ndarray, " angles"]
    angle_stiffness_kJ_per_mol_rad2: Float32[np.ndarray, " angles"]
    dihedral_cosine_kJ_per_mol: Float32[np.ndarray, "dihedrals order"]
    dihedral_sine_kJ_per_mol: Float32[np.ndarray, "dihedrals order"]
    repulsion_kJ_nm6_per_mol: np.float32


class Network(NamedTuple):
    """A `TabulatedSchNet`: rows of a table are value and slope (times the spacing) of each knot in turn."""

    cutoff_nm: np.float32
    knots_per_nm: np.float32
    tables: Float32[np.ndarray, "blocks rows features"]
    embedding: Float32[np.ndarray, "beads features"]
    first_sources: Float32[np.ndarray, "beads features"]
    to_sources: Float32[np.ndarray, "blocks features features"]
    to_hidden: Float32[np.ndarray, "blocks features features"]
    hidden_bias: Float32[np.ndarray, "blocks features"]
    to_update: Float32[np.ndarray, "blocks features features"]
    update_bias: Float32[np.ndarray, "blocks features"]
    to_last: Float32[np.ndarray, "features features"]
    last_bias: Float32[np.ndarray, " features"]
    readout_kJ_per_mol: Float32[np.ndarray, " features"]
    offset_kJ_per_mol: np.float32


class Langevin(NamedTuple):
    """Constants of a BAOAB step, and the bounds that a sound chain keeps."""

    kick_ps_per_amu: np.float32
    """Velocity per force of half a step."""
    drift_ps: np.float32
    """Half a step."""
    memory: np.float32
    """Share of the velocity that the thermostat leaves."""
    scatter_nm_per_ps: np.float32
    """Velocity that it adds, times a standard normal number."""
    maximum_bond_nm: np.float32
    minimum_distance_nm: np.float32


class Near(NamedTuple):
    """Pairs within the cutoff of each replica, `listed` of them, and where each lies in the tables."""

    listed: Int64[np.ndarray, " replicas"]
    beads: Int32[np.ndarray, "replicas pairs 2"]
    row: Int32[np.ndarray, "replicas pairs"]
    spline: Float32[np.ndarray, "replicas pairs 8"]
    """Weights of four rows of a table for the value of a filter, then for its slope."""
    direction: Float32[np.ndarray, "replicas pairs 3"]
    slope: Float32[np.ndarray, "replicas pairs"]
    """Of the network's energy along the distance, in table spacings."""
    axes: Float32[np.ndarray, "4 beads"]
    """One replica's x, y and z, and the square distances from one bead."""
    pulls: Float32[np.ndarray, "3 beads"]
    """Its gradients along them."""


class Layers(NamedTuple):
    """Features of all beads of a block, `replicas * beads` rows, and what the way back needs of the way forth."""

    features: Float32[np.ndarray, "rows features"]
    hidden: Float32[np.ndarray, "rows features"]
    messages: Float32[np.ndarray, "rows features"]
    targets: Float32[np.ndarray, "rows features"]
    sources: Float32[np.ndarray, "blocks rows features"]
    slopes: Float32[np.ndarray, "blocks rows features"]


@compiled
def evaluate(
    positions: Float32[np.ndarray, "replicas beads 3"],
    chain: Chain,
    network: Network,
    energies: Float32[np.ndarray, " replicas"],
    gradients: Float32[np.ndarray, "replicas beads 3"],
) -> None:
    """Fill energies [kJ/mol] and gradients [kJ/mol/nm] of a batch of replicas at positions in nm."""
    near, layers, closest = _workspace(positions.shape[0], positions.shape[1], network)
    _energies_and_gradients(positions, chain, network, near, layers, closest, energies, gradients)


@compiled
def advance(
    positions: Float32[np.ndarray, "replicas beads 3"],
    velocities: Float32[np.ndarray, "replicas beads 3"],
    forces: Float32[np.ndarray, "replicas beads 3"],
    home: Float32[np.ndarray, "replicas beads 3"],
    cause: Int8[np.ndarray, " replicas"],
    lost_at: Int64[np.ndarray, " replicas"],
    step: int,
    noise: Float32[np.ndarray, "steps replicas beads 3"],
    langevin: Langevin,
    chain: Chain,
    network: Network,
) -> None:
    """Take `len(noise)` steps of BAOAB after `step`, in place; a replica found unsound is put home and left there."""
    replicas = len(positions)
    energies, gradients = np.empty(replicas, np.float32), np.empty(positions.shape, np.float32)
    near, layers, closest = _workspace(positions.shape[0], positions.shape[1], network)
    for index in range(len(noise)):
        for replica in range(replicas):
            if cause[replica] == 0:
                _kick_and_drift(
                    positions[replica], velocities[replica], forces[replica], noise[index, replica], langevin
                )
        _energies_and_gradients(positions, chain, network, near, layers, closest, energies, gradients)
        for replica in range(replicas):
            if cause[replica] != 0:
                continue
            cause[replica] = _diagnose(positions[replica], closest[replica], langevin)
            if cause[replica] == 0:
                _take_forces(velocities[replica], forces[replica], gradients[replica], langevin)
            else:
                lost_at[replica] = step + index + 1
                _copy(home[replica], positions[replica])


@inlined
def _workspace(replicas: int, beads: int, network: Network) -> tuple[Near, Layers, Float32[np.ndarray, " replicas"]]:
    pairs = beads * (beads - 1) // 2
    near = Near(
        np.zeros(replicas, np.int64),
        np.empty((replicas, pairs, 2), np.int32),
        np.empty((replicas, pairs), np.int32),
        np.empty((replicas, pairs, 8), np.float32),
        np.empty((replicas, pairs, 3), np.float32),
        np.empty((replicas, pairs), np.float32),
        np.empty((4, beads), np.float32),
        np.empty((3, beads), np.float32),
    )
    blocks, features = network.hidden_bias.shape
    rows = np.empty((4, replicas * beads, features), np.float32)
    layers = Layers(
        rows[0],
        rows[1],
        rows[2],
        rows[3],
        np.empty((blocks, replicas * beads, features), np.float32),
        np.empty((blocks, replicas * beads, features), np.float32),
    )
    return near, layers, np.empty(replicas, np.float32)


@inlined
def _kick_and_drift(
    positions: Float32[np.ndarray, "beads 3"],
    velocities: Float32[np.ndarray, "beads 3"],
    forces: Float32[np.ndarray, "beads 3"],
    noise: Float32[np.ndarray, "beads 3"],
    langevin: Langevin,
) -> None:
    """B A O A: all of a step but the new forces and the last kick."""
    for bead in range(len(positions)):
        for axis in range(3):
            velocity = velocities[bead, axis] + langevin.kick_ps_per_amu * forces[bead, axis]
            half_way = positions[bead, axis] + langevin.drift_ps * velocity
            velocity = langevin.memory * velocity + langevin.scatter_nm_per_ps * noise[bead, axis]
            velocities[bead, axis] = velocity
            positions[bead, axis] = half_way + langevin.drift_ps * velocity


@inlined
def _take_forces(
    velocities: Float32[np.ndarray, "beads 3"],
    forces: Float32[np.ndarray, "beads 3"],
    gradients: Float32[np.ndarray, "beads 3"],
    langevin: Langevin,
) -> None:
    """B: the last kick."""
    for bead in range(len(forces)):
        for axis in range(3):
            forces[bead, axis] = -gradients[bead, axis]
            velocities[bead, axis] += langevin.kick_ps_per_amu * forces[bead, axis]


@inlined
def _diagnose(positions: Float32[np.ndarray, "beads 3"], closest_nm2: np.float32, langevin: Langevin) -> int:
    """Index into `CAUSES`, 0 for a sound chain."""
    found = 2 if closest_nm2 < langevin.minimum_distance_nm * langevin.minimum_distance_nm else 0
    for bead in range(len(positions)):
        square = ZERO
        for axis in range(3):
            if not np.isfinite(positions[bead, axis]):
                return 3
            step = positions[bead, axis] - positions[max(bead - 1, 0), axis]
            square += step * step
        if square > langevin.maximum_bond_nm * langevin.maximum_bond_nm:
            found = 1
    return found


@inlined
def _energies_and_gradients(
    positions: Float32[np.ndarray, "replicas beads 3"],
    chain: Chain,
    network: Network,
    near: Near,
    layers: Layers,
    closest_nm2: Float32[np.ndarray, " replicas"],
    energies: Float32[np.ndarray, " replicas"],
    gradients: Float32[np.ndarray, "replicas beads 3"],
) -> None:
    """Fill energies [kJ/mol], their gradients [kJ/mol/nm] and the square of the least distance of each replica."""
    for replica in range(len(positions)):
        _transpose(positions[replica], near.axes)
        _clear(near.pulls)
        energies[replica], closest_nm2[replica] = _pair_terms(near.axes, near.pulls, chain, network, near, replica)
        _transpose(near.pulls, gradients[replica])
        energies[replica] += _bend_terms(positions[replica], chain, gradients[replica])
    _forth(network, near, layers, energies)
    _back(network, near, layers)
    _push(network, near, gradients)


@inlined
def _pair_terms(
    axes: Float32[np.ndarray, "4 beads"],
    pulls: Float32[np.ndarray, "3 beads"],
    chain: Chain,
    network: Network,
    near: Near,
    replica: int,
) -> tuple[np.float32, np.float32]:
    """Bonds and repulsion; list the pairs within the cutoff. Gives their energy and the least square distance."""
    beads = axes.shape[1]
    reach, closest = network.cutoff_nm * network.cutoff_nm, np.float32(np.inf)
    energy, listed = ZERO, 0
    for i in range(beads - 1):
        _measure(axes, i)
        energy += _bond(axes, pulls, i, chain) + _repel(axes, pulls, i, chain.repulsion_kJ_nm6_per_mol)
        for j in range(i + 1, beads):
            square = axes[3, j]
            closest = min(closest, square)
            if square < reach:
                _list(near, replica, listed, i, j, axes, network)
                listed += 1
    near.listed[replica] = listed
    return energy, closest


@inlined
def _measure(axes: Float32[np.ndarray, "4 beads"], i: int) -> None:
    """Square distances of all later beads from bead i."""
    for j in range(i + 1, axes.shape[1]):
        x, y, z = axes[0, j] - axes[0, i], axes[1, j] - axes[1, i], axes[2, j] - axes[2, i]
        axes[3, j] = x * x + y * y + z * z


@inlined
def _bond(
    axes: Float32[np.ndarray, "4 beads"], pulls: Float32[np.ndarray, "3 beads"], i: int, chain: Chain
) -> np.float32:
    """Energy of the bond from bead i to the next."""
    length = max(np.sqrt(axes[3, i + 1]), SHORTEST_nm)
    stretch = length - chain.bond_length_nm[i]
    tension = chain.bond_stiffness_kJ_per_mol_nm2[i] * stretch
    for axis in range(3):
        pull = tension / length * (axes[axis, i + 1] - axes[axis, i])
        pulls[axis, i] -= pull
        pulls[axis, i + 1] += pull
    return np.float32(HALF * tension * stretch)


@inlined
def _repel(
    axes: Float32[np.ndarray, "4 beads"],
    pulls: Float32[np.ndarray, "3 beads"],
    i: int,
    repulsion_kJ_nm6_per_mol: np.float32,
) -> np.float32:
    """Energy of the repulsion between bead i and those three or more steps after it."""
    energy, x_pull, y_pull, z_pull = ZERO, ZERO, ZERO, ZERO
    x, y, z = axes[0, i], axes[1, i], axes[2, i]
    for j in range(i + 3, axes.shape[1]):
        square = axes[3, j]
        inverse = ONE / (square if square > SHORTEST_nm * SHORTEST_nm else SHORTEST_nm * SHORTEST_nm)
        repulsion = repulsion_kJ_nm6_per_mol * inverse * inverse * inverse
        energy += repulsion
        pull = -SIX * repulsion * inverse
        along_x, along_y, along_z = pull * (axes[0, j] - x), pull * (axes[1, j] - y), pull * (axes[2, j] - z)
        pulls[0, j] += along_x
        pulls[1, j] += along_y
        pulls[2, j] += along_z
        x_pull += along_x
        y_pull += along_y
        z_pull += along_z
    pulls[0, i] -= x_pull
    pulls[1, i] -= y_pull
    pulls[2, i] -= z_pull
    return energy


@inlined
def _list(
    near: Near, replica: int, pair: int, i: int, j: int, axes: Float32[np.ndarray, "4 beads"], network: Network
) -> None:
    """Put down a pair: its direction, and the weights of value and slope at the knots around its distance."""
    distance_nm = max(np.sqrt(axes[3, j]), SHORTEST_nm)
    near.beads[replica, pair, 0], near.beads[replica, pair, 1] = i, j
    for axis in range(3):
        near.direction[replica, pair, axis] = (axes[axis, j] - axes[axis, i]) / distance_nm
    near.slope[replica, pair] = ZERO
    at = distance_nm * network.knots_per_nm
    knot = min(int(at), network.tables.shape[1] // 2 - 2)
    near.row[replica, pair] = 2 * knot
    t = at - np.float32(knot)
    u = ONE - t
    spline = near.spline
    spline[replica, pair, 0], spline[replica, pair, 1] = u * u * (ONE + TWO * t), t * u * u
    spline[replica, pair, 2], spline[replica, pair, 3] = t * t * (THREE - TWO * t), -t * t * u
    spline[replica, pair, 4], spline[replica, pair, 5] = -SIX * t * u, u * (u - TWO * t)
    spline[replica, pair, 6], spline[replica, pair, 7] = SIX * t * u, t * (t - TWO * u)


@inlined
def _bend_terms(
    positions: Float32[np.ndarray, "beads 3"], chain: Chain, gradients: Float32[np.ndarray, "beads 3"]
) -> np.float32:
    """Angles and dihedrals along the chain; the coordinates are those of `geometry.internal_coordinates`."""
    energy = ZERO
    for i in range(len(positions) - 2):
        before, after = _difference(positions, i), _difference(positions, i + 1)
        normal = _cross(before, after)
        square = _dot(normal, normal) + COLLINEAR_nm4
        sine, cosine = np.sqrt(square), -_dot(before, after)
        bend = np.arctan2(sine, cosine) - chain.angle_rad[i]
        torque = chain.angle_stiffness_kJ_per_mol_rad2[i] * bend
        energy += HALF * torque * bend
        torque /= square + cosine * cosine
        along_normal = _scaled(torque * cosine / sine, normal)
        along_product = torque * sine
        _pull(gradients, i, _sum(_cross(after, along_normal), _scaled(along_product, after)))
        _pull(gradients, i + 1, _sum(_cross(along_normal, before), _scaled(along_product, before)))
    for i in range(len(positions) - 3):
        energy += _dihedral(positions, i, chain, gradients)
    return energy


@inlined
def _dihedral(
    positions: Float32[np.ndarray, "beads 3"], i: int, chain: Chain, gradients: Float32[np.ndarray, "beads 3"]
) -> np.float32:
    """One series sum_n (a_n cos n phi + b_n sin n phi), a polynomial of z = cos phi + i sin phi (see `analytic`)."""
    start, middle, end = _difference(positions, i), _difference(positions, i + 1), _difference(positions, i + 2)
    left, right = _cross(start, middle), _cross(middle, end)
    left_square, right_square = _dot(left, left) + COLLINEAR_nm4, _dot(right, right) + COLLINEAR_nm4
    norm = np.sqrt(left_square) * np.sqrt(right_square)
    length = max(np.sqrt(_dot(middle, middle)), SHORTEST_nm)
    lift = _dot(start, right)
    z = np.complex64(complex(_dot(left, right) / norm, lift * length / norm))
    value, slope = np.complex64(0), np.complex64(0)
    for order in range(chain.dihedral_cosine_kJ_per_mol.shape[1] - 1, -1, -1):
        term = complex(chain.dihedral_cosine_kJ_per_mol[i, order], -chain.dihedral_sine_kJ_per_mol[i, order])
        value = value + np.complex64(term)
        slope = slope * z + value
        value = value * z
    along_real, along_imaginary = slope.real / norm, -slope.imag / norm
    along_lift = along_imaginary * length
    fall = (slope * z).real
    along_left = _sum(_scaled(along_real, right), _scaled(-fall / left_square, left))
    along_right = _sum(
        _sum(_scaled(along_real, left), _scaled(-fall / right_square, right)), _scaled(along_lift, start)
    )
    _pull(gradients, i, _sum(_cross(middle, along_left), _scaled(along_lift, right)))
    _pull(
        gradients,
        i + 1,
        _sum(
            _sum(_cross(along_left, start), _cross(end, along_right)), _scaled(along_imaginary * lift / length, middle)
        ),
    )
    _pull(gradients, i + 2, _cross(along_right, middle))
    return value.real


type Vector = tuple[np.float32, np.float32, np.float32]


@inlined
def _difference(positions: Float32[np.ndarray, "beads 3"], i: int) -> Vector:
    return (
        positions[i + 1, 0] - positions[i, 0],
        positions[i + 1, 1] - positions[i, 1],
        positions[i + 1, 2] - positions[i, 2],
    )


@inlined
def _cross(a: Vector, b: Vector) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@inlined
def _dot(a: Vector, b: Vector) -> np.float32:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@inlined
def _scaled(factor: np.float32, a: Vector) -> Vector:
    return factor * a[0], factor * a[1], factor * a[2]


@inlined
def _sum(a: Vector, b: Vector) -> Vector:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@inlined
def _pull(gradients: Float32[np.ndarray, "beads 3"], i: int, along_bond: Vector) -> None:
    """Add the gradient along the bond from bead i to the next."""
    for axis in range(3):
        gradients[i, axis] -= along_bond[axis]
        gradients[i + 1, axis] += along_bond[axis]


@inlined
def _forth(network: Network, near: Near, layers: Layers, energies: Float32[np.ndarray, " replicas"]) -> None:
    """SchNet from embeddings to energies, which it adds to; leaves the gradient along the last layer's input."""
    replicas, beads = len(energies), len(network.embedding)
    for replica in range(replicas):
        _copy(network.embedding, layers.features[replica * beads :])
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
def _back(network: Network, near: Near, layers: Layers) -> None:
    """Way back through the blocks, to the slope of the energy along each pair's distance."""
    beads = len(network.embedding)
    for block in range(len(network.tables) - 1, -1, -1):
        np.dot(layers.features, network.to_update[block], layers.hidden)
        _multiply(layers.hidden, layers.slopes[block])
        np.dot(layers.hidden, network.to_hidden[block], layers.targets)
        if block > 0:
            _meet(network.tables[block], near, layers.sources[block], beads, layers.targets)
            _convolve(network.tables[block], near, layers.targets, beads, layers.messages)
            np.dot(layers.messages, network.to_sources[block], layers.hidden)
            _add(layers.features, layers.hidden)
        else:
            _meet(network.tables[block], near, network.first_sources, 0, layers.targets)


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
    _clear(messages)
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
def _meet(
    table: Float32[np.ndarray, "rows features"],
    near: Near,
    sources: Float32[np.ndarray, "some_rows features"],
    per_replica: int,
    targets: Float32[np.ndarray, "rows features"],
) -> None:
    """Add this block's part of the slope along each distance: slope of the filter times what it brought together."""
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
def _push(network: Network, near: Near, gradients: Float32[np.ndarray, "replicas beads 3"]) -> None:
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
            fall = -abs(at) if abs(at) < FURTHEST else -FURTHEST
            power = np.rint(fall * LOG2_E)
            rest = fall - power * LN2_HIGH - power * LN2_LOW
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
def _clear(x: Float32[np.ndarray, "rows columns"]) -> None:
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            x[row, column] = ZERO


@inlined
def _copy(source: Float32[np.ndarray, "rows columns"], target: Float32[np.ndarray, "more_rows columns"]) -> None:
    for row in range(source.shape[0]):
        for column in range(source.shape[1]):
            target[row, column] = source[row, column]


@inlined
def _transpose(source: Float32[np.ndarray, "rows columns"], target: Float32[np.ndarray, "_ rows"]) -> None:
    for row in range(source.shape[0]):
        for column in range(source.shape[1]):
            target[column, row] = source[row, column]


@inlined
def _multiply(x: Float32[np.ndarray, "rows features"], by: Float32[np.ndarray, "rows features"]) -> None:
    for row in range(x.shape[0]):
        for f in range(x.shape[1]):
            x[row, f] *= by[row, f]
