"""Energies and gradients of the prior, written out for the compiled loops of `kernels`; `Prior` is the definition."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from cgal.compiled import inlined
from cgal.potential.dihedral_couplings import ORDER
from cgal.potential.pair_splines import INTERVALS, SPACING_nm, START_nm
from cgal.schnet.kernel_types import HALF, ONE, SHORTEST, SIX, THREE, TWO, ZERO, Chain, Near, Network

__all__ = ["bend_terms", "pair_terms"]

COLLINEAR_nm4 = np.float32(1e-10)
"""Square of `geometry.COLLINEAR_nm2`."""

START, KNOTS_PER_NM, KNOTS, FOUR = (np.float32(number) for number in (START_nm, 1 / SPACING_nm, INTERVALS, 4))


@inlined
def pair_terms(
    axes: Float32[np.ndarray, "4 beads"],
    pulls: Float32[np.ndarray, "3 beads"],
    chain: Chain,
    network: Network,
    near: Near,
    replica: int,
) -> tuple[np.float32, np.float32]:
    """Bonds, repulsion, splines; list the pairs within the cutoff. Gives their energy and the least square distance."""
    beads = axes.shape[1]
    reach, closest = network.cutoff_nm * network.cutoff_nm, np.float32(np.inf)
    energy, listed = ZERO, 0
    for i in range(beads - 1):
        _measure(axes, i)
        energy += _bond(axes, pulls, i, chain) + _repel(axes, pulls, i, chain.repulsion_kJ_nm6_per_mol)
        if len(chain.pair_splines_kJ_per_mol):
            energy += _spline(axes, pulls, i, chain.pair_splines_kJ_per_mol)
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
    length = max(np.sqrt(axes[3, i + 1]), SHORTEST)
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
        inverse = ONE / (square if square > SHORTEST * SHORTEST else SHORTEST * SHORTEST)
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
def _spline(
    axes: Float32[np.ndarray, "4 beads"],
    pulls: Float32[np.ndarray, "3 beads"],
    i: int,
    coefficients: Float32[np.ndarray, "pairs coefficients"],
) -> np.float32:
    """Energy of the splines between bead i and those three or more steps after it (see `pair_splines`)."""
    energy, beads = ZERO, axes.shape[1]
    before = i * (beads - 3) - i * (i - 1) // 2 - i - 3
    for j in range(i + 3, beads):
        distance_nm = np.sqrt(axes[3, j])
        at = (distance_nm - START) * KNOTS_PER_NM
        if not (at > ZERO and at < KNOTS):
            at = ZERO if at <= ZERO else KNOTS
        knot = min(int(at), INTERVALS - 1)
        t = at - np.float32(knot)
        u, four = ONE - t, coefficients[before + j, knot : knot + 4]
        energy += (
            u * u * u * four[0]
            + ((THREE * t - SIX) * t * t + FOUR) * four[1]
            + (((THREE - THREE * t) * t + THREE) * t + ONE) * four[2]
            + t * t * t * four[3]
        ) / SIX
        if at > ZERO:
            slope = (HALF * KNOTS_PER_NM) * (
                t * t * four[3]
                - u * u * four[0]
                + (THREE * t - FOUR) * t * four[1]
                + ((TWO - THREE * t) * t + ONE) * four[2]
            )
            for axis in range(3):
                pull = slope / distance_nm * (axes[axis, j] - axes[axis, i])
                pulls[axis, j] += pull
                pulls[axis, i] -= pull
    return np.float32(energy)


@inlined
def _list(
    near: Near, replica: int, pair: int, i: int, j: int, axes: Float32[np.ndarray, "4 beads"], network: Network
) -> None:
    """Put down a pair: its direction, and the weights of value and slope at the knots around its distance."""
    distance_nm = max(np.sqrt(axes[3, j]), SHORTEST)
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
def bend_terms(
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
        turn = _turn(positions, i)
        value, slope = _series(turn.z, i, chain)
        energy += value
        _pull_turn(gradients, i, turn, slope)
    for i in range(len(chain.dihedral_couplings_kJ_per_mol)):
        turn, neighbour = _turn(positions, i), _turn(positions, i + 1)
        value, slope, slope_of_neighbour = _coupling(turn.z, neighbour.z, chain.dihedral_couplings_kJ_per_mol[i])
        energy += value
        _pull_turn(gradients, i, turn, slope)
        _pull_turn(gradients, i + 1, neighbour, slope_of_neighbour)
    return energy


type Vector = tuple[np.float32, np.float32, np.float32]


class Turn(NamedTuple):
    """A dihedral as z = cos phi + i sin phi, its three bonds, and what the gradient along them needs."""

    start: Vector
    middle: Vector
    end: Vector
    left: Vector
    right: Vector
    left_square: np.float32
    right_square: np.float32
    length: np.float32
    triple_product: np.float32
    norm: np.float32
    z: np.complex64


@inlined
def _turn(positions: Float32[np.ndarray, "beads 3"], i: int) -> Turn:
    """The dihedral of four beads from bead i on."""
    start, middle, end = _difference(positions, i), _difference(positions, i + 1), _difference(positions, i + 2)
    left, right = _cross(start, middle), _cross(middle, end)
    left_square, right_square = _dot(left, left) + COLLINEAR_nm4, _dot(right, right) + COLLINEAR_nm4
    norm = np.sqrt(left_square) * np.sqrt(right_square)
    length = max(np.sqrt(_dot(middle, middle)), SHORTEST)
    triple_product = _dot(start, right)
    z = np.complex64(complex(_dot(left, right) / norm, triple_product * length / norm))
    return Turn(start, middle, end, left, right, left_square, right_square, length, triple_product, norm, z)


@inlined
def _series(z: np.complex64, i: int, chain: Chain) -> tuple[np.float32, np.complex64]:
    """Energy sum_n (a_n cos n phi + b_n sin n phi), a polynomial of z (see `analytic`), and its slope."""
    value, slope = np.complex64(0), np.complex64(0)
    for order in range(chain.dihedral_cosine_kJ_per_mol.shape[1] - 1, -1, -1):
        term = complex(chain.dihedral_cosine_kJ_per_mol[i, order], -chain.dihedral_sine_kJ_per_mol[i, order])
        value = value + np.complex64(term)
        slope = slope * z + value
        value = value * z
    return value.real, slope


@inlined
def _coupling(
    z: np.complex64, w: np.complex64, coefficients: Float32[np.ndarray, "2 order order 2"]
) -> tuple[np.float32, np.complex64, np.complex64]:
    """Energy of two neighbours together (see `dihedral_couplings`), and its slopes along z and w."""
    energy, along_z, along_w = ZERO, np.complex64(0), np.complex64(0)
    for sign in range(2):
        partner = w if sign == 0 else np.complex64(complex(w.real, -w.imag))
        raised, lowered = z, np.complex64(1)
        along_partner = np.complex64(0)
        for m in range(ORDER):
            value, slope = np.complex64(0), np.complex64(0)
            for n in range(ORDER - 1, -1, -1):
                term = complex(coefficients[sign, m, n, 0], -coefficients[sign, m, n, 1])
                value = value + np.complex64(term)
                slope = slope * partner + value
                value = value * partner
            energy += (raised * value).real
            along_z += np.float32(m + 1) * lowered * value
            along_partner += raised * slope
            lowered, raised = raised, raised * z
        along_w += along_partner if sign == 0 else np.complex64(complex(along_partner.real, -along_partner.imag))
    return energy, along_z, along_w


@inlined
def _pull_turn(gradients: Float32[np.ndarray, "beads 3"], i: int, turn: Turn, slope: np.complex64) -> None:
    """Add the gradient of an energy whose slope along z is given."""
    along_real, along_imaginary = slope.real / turn.norm, -slope.imag / turn.norm
    along_triple_product = along_imaginary * turn.length
    radial_slope = (slope * turn.z).real
    along_left = _sum(_scaled(along_real, turn.right), _scaled(-radial_slope / turn.left_square, turn.left))
    along_right = _sum(
        _sum(_scaled(along_real, turn.left), _scaled(-radial_slope / turn.right_square, turn.right)),
        _scaled(along_triple_product, turn.start),
    )
    _pull(gradients, i, _sum(_cross(turn.middle, along_left), _scaled(along_triple_product, turn.right)))
    _pull(
        gradients,
        i + 1,
        _sum(
            _sum(_cross(along_left, turn.start), _cross(turn.end, along_right)),
            _scaled(along_imaginary * turn.triple_product / turn.length, turn.middle),
        ),
    )
    _pull(gradients, i + 2, _cross(along_right, turn.middle))


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
