"""Generalised Born solvation (OBC) as compiled loops: OpenMM's native force on a CPU, several times as fast.

The model is that of OpenMM's `GBSAOBCForce` without cutoff: Onufriev, Bashford and Case, Proteins 55, 383 (2004), with
the surface term of Schaefer, Bartels and Karplus (J. Mol. Biol. 284, 835, 1998). Single precision, as on OpenMM's
CPU platform; one thread, fixed order: the same positions give the same bits. Units: nm, kJ/mol, elementary charges.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import openmm
from jaxtyping import Float32, Float64

from cgal.compiled import compiled, inlined

__all__ = ["Born", "with_compiled_born"]

COULOMB_kJ_nm_per_mol = 138.93545764
DIELECTRIC_OFFSET_nm = 0.009
PROBE_RADIUS_nm = 0.14
MAXIMUM_ATOMS = 4000
"""Beyond this the derivatives of all pairs would take more than 128 MB."""

LOG2_E, LN2_HIGH, LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
EXPONENT_BIAS, MANTISSA_BITS, MANTISSA = np.int32(127), np.int32(23), np.int32(0x7FFFFF)
E7, E6, E5, E4, E3, E2 = (
    np.float32(c) for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
)
"""Coefficients of exp on [-ln 2 / 2, ln 2 / 2] (Cephes)."""
A9, A7, A5, A3 = (np.float32(1 / n) for n in (9, 7, 5, 3))
"""Coefficients of artanh."""
BIAS, MANTISSA_SIZE = np.float32(127), np.float32(2**23)
LOWEST = np.float32(-80.0)
SQRT2 = np.float32(1.41421356)
ZERO, QUARTER, HALF, ONE, TWO = (np.float32(number) for number in (0, 0.25, 0.5, 1, 2))
EIGHTH = np.float32(0.125)


class Parameters(NamedTuple):
    """Of each atom: charge, radius, radius less the dielectric offset, and that scaled [nm]."""

    charge: Float32[np.ndarray, " atoms"]
    radius: Float32[np.ndarray, " atoms"]
    offset: Float32[np.ndarray, " atoms"]
    scaled: Float32[np.ndarray, " atoms"]


@dataclass(frozen=True, eq=False)
class Born:
    """Parameters of a `GBSAOBCForce`; called with an OpenMM state it gives energy [kJ/mol] and forces [kJ/mol/nm]."""

    charge: Float64[np.ndarray, " atoms"]
    radius_nm: Float64[np.ndarray, " atoms"]
    scale: Float64[np.ndarray, " atoms"]
    prefactor_kJ_nm_per_mol: float
    surface_tension_kJ_per_mol_nm2: float

    @classmethod
    def of(cls, force: openmm.GBSAOBCForce) -> "Born":
        """Take the parameters over."""
        table = [force.getParticleParameters(atom) for atom in range(force.getNumParticles())]
        charge, radius, scale = np.array([(charge._value, radius._value, scale) for charge, radius, scale in table]).T
        vacuum = 1 / force.getSoluteDielectric() - 1 / force.getSolventDielectric()
        return cls(
            charge,
            radius,
            scale,
            -COULOMB_kJ_nm_per_mol * vacuum,
            4 * np.pi * force.getSurfaceAreaEnergy()._value,
        )

    def __call__(self, state: openmm.State) -> tuple[float, Float64[np.ndarray, "atoms 3"]]:
        """Energy and forces at a state's positions."""
        return self.evaluate(np.asarray(state.getPositions(asNumpy=True)._value))

    def evaluate(self, positions: Float64[np.ndarray, "atoms 3"]) -> tuple[float, Float64[np.ndarray, "atoms 3"]]:
        """Energy and forces at positions [nm]."""
        energy, forces = _evaluate(
            positions, self._parameters, self.prefactor_kJ_nm_per_mol, self.surface_tension_kJ_per_mol_nm2
        )
        return energy, forces

    @cached_property
    def _parameters(self) -> "Parameters":
        offset = self.radius_nm - DIELECTRIC_OFFSET_nm
        arrays = (self.charge, self.radius_nm, offset, self.scale * offset)
        return Parameters(*(array.astype(np.float32) for array in arrays))


def with_compiled_born(system: openmm.System) -> openmm.System:
    """Copy of a system with its native OBC force (if without cutoff) in this form; the system itself if it has none."""
    chosen = [index for index, force in enumerate(system.getForces()) if _fits(force)]
    if not chosen:
        return system
    copy = openmm.XmlSerializer.clone(system)
    for index in reversed(chosen):
        copy.removeForce(index)
        copy.addForce(openmm.PythonForce(Born.of(system.getForce(index))))
    return copy


def _fits(force: openmm.Force) -> bool:
    return (
        isinstance(force, openmm.GBSAOBCForce)
        and force.getNonbondedMethod() == openmm.GBSAOBCForce.NoCutoff
        and force.getNumParticles() <= MAXIMUM_ATOMS
    )


@compiled
def _evaluate(
    positions: Float64[np.ndarray, "atoms 3"],
    parameters: Parameters,
    prefactor: float,
    tension: float,
) -> tuple[float, Float64[np.ndarray, "atoms 3"]]:
    """Energy and forces, in OpenMM's order: Born radii, pairs, and the pairs again by what the radii did."""
    charge, radius, offset, scaled = parameters
    count = len(positions)
    centred = np.empty((3, count), dtype=np.float32)
    for axis in range(3):
        middle = positions[:, axis].mean()
        for atom in range(count):
            centred[axis, atom] = positions[atom, axis] - middle
    others = np.ones(count, dtype=np.float32)
    chain = np.empty((count, count), dtype=np.float32)
    born = np.empty(count, dtype=np.float32)
    slope = np.empty(count, dtype=np.float32)
    for atom in range(count):
        others[atom] = ZERO
        descreening = _descreen(centred, atom, others, offset[atom], scaled, chain[atom])
        others[atom] = ONE
        _set_born_radius(atom, HALF * offset[atom] * descreening, radius, offset, born, slope)
    force = np.empty((count, 3))
    pull = np.empty(count, dtype=np.float32)
    energy = 0.0
    for atom in range(count):
        others[atom] = ZERO
        polarisation, pull[atom] = _polarise(
            centred, atom, others, charge, np.float32(prefactor) * charge[atom], born, force[atom]
        )
        others[atom] = ONE
        surface = tension * (radius[atom] + PROBE_RADIUS_nm) ** 2 * (radius[atom] / born[atom]) ** 6
        energy += polarisation + surface
        pull[atom] = (pull[atom] - 6 * surface / born[atom]) * born[atom] ** 2 * slope[atom]
    back = chain.T.copy()
    for atom in range(count):
        _push(centred, atom, pull, chain[atom], back[atom], force[atom])
    return energy, force


@inlined
def _descreen(
    centred: Float32[np.ndarray, "3 atoms"],
    atom: int,
    others: Float32[np.ndarray, " atoms"],
    own: np.float32,
    scaled: Float32[np.ndarray, " atoms"],
    chain: Float32[np.ndarray, " atoms"],
) -> np.float32:
    """How much the others keep the solvent away from an atom; `chain` gets its derivatives by distance / distance."""
    x, y, z = centred[0, atom], centred[1, atom], centred[2, atom]
    whole = ONE / own
    total = ZERO
    for other in range(len(chain)):
        dx, dy, dz = centred[0, other] - x, centred[1, other] - y, centred[2, other] - z
        square = dx * dx + dy * dy + dz * dz + (ONE - others[other])
        distance = np.sqrt(square)
        near = ONE / distance
        size = scaled[other]
        upper = distance + size
        lower = max(own, abs(distance - size))
        far_end, near_end = ONE / upper, ONE / lower
        difference = near_end * near_end - far_end * far_end
        log = _log(lower * far_end)
        term = near_end - far_end + QUARTER * difference * (size * size * near - distance) + HALF * near * log
        term += TWO * (whole - near_end) if own < size - distance else ZERO
        seen = others[other] if own < upper else ZERO
        total += seen * term
        near2 = near * near
        chain[other] = seen * near * (EIGHTH * (ONE + size * size * near2) * difference + QUARTER * log * near2)
    return total


@inlined
def _log(ratio: np.float32) -> np.float32:
    """Natural logarithm of a positive normal number, to 2e-7."""
    bits = np.float32(ratio).view(np.int32)
    power = np.int32((bits >> MANTISSA_BITS) - EXPONENT_BIAS)
    mantissa = np.int32((bits & MANTISSA) | (EXPONENT_BIAS << MANTISSA_BITS)).view(np.float32)
    large = mantissa > SQRT2
    mantissa = mantissa * HALF if large else mantissa
    exponent = np.float32(power) + (ONE if large else ZERO)
    t = (mantissa - ONE) / (mantissa + ONE)
    square = t * t
    series = ((A9 * square + A7) * square + A5) * square + A3
    return exponent * LN2_HIGH + (exponent * LN2_LOW + TWO * t * (ONE + square * series))


@inlined
def _exp(x: np.float32) -> np.float32:
    """Exponential of a number that is not positive, to 2e-7."""
    x = max(x, LOWEST)
    power = np.floor(x * LOG2_E + HALF)
    rest = x - power * LN2_HIGH - power * LN2_LOW
    series = ((((E7 * rest + E6) * rest + E5) * rest + E4) * rest + E3) * rest + E2
    two_to_power = np.int32((power + BIAS) * MANTISSA_SIZE).view(np.float32)
    return np.float32((series * rest * rest + rest + ONE) * two_to_power)


@inlined
def _set_born_radius(
    atom: int,
    descreening: np.float32,
    radius: Float32[np.ndarray, " atoms"],
    offset: Float32[np.ndarray, " atoms"],
    born: Float32[np.ndarray, " atoms"],
    slope: Float32[np.ndarray, " atoms"],
) -> None:
    """Born radius from the descreening (model II of the paper), and the derivative of one by the other."""
    shape = descreening - 0.8 * descreening**2 + 4.85 * descreening**3
    level = np.tanh(shape)
    born[atom] = 1 / (1 / offset[atom] - level / radius[atom])
    slope[atom] = (1 - level**2) * offset[atom] * (1 - 1.6 * descreening + 3 * 4.85 * descreening**2) / radius[atom]


@inlined
def _polarise(
    centred: Float32[np.ndarray, "3 atoms"],
    atom: int,
    others: Float32[np.ndarray, " atoms"],
    charge: Float32[np.ndarray, " atoms"],
    strength: np.float32,
    born: Float32[np.ndarray, " atoms"],
    force: Float64[np.ndarray, " 3"],
) -> tuple[np.float32, np.float32]:
    """Energy of an atom with itself and half of that with the others; its derivative by the Born radius; the force."""
    x, y, z = centred[0, atom], centred[1, atom], centred[2, atom]
    own = born[atom]
    energy = pull = fx = fy = fz = ZERO
    for other in range(len(charge)):
        dx, dy, dz = centred[0, other] - x, centred[1, other] - y, centred[2, other] - z
        square = dx * dx + dy * dy + dz * dz
        product = own * born[other]
        ratio = QUARTER * square / product
        decay = _exp(-ratio)
        inverse = ONE / (square + product * decay)
        pair = strength * charge[other] * others[other] * np.sqrt(inverse)
        energy += pair
        pair *= inverse
        pull -= pair * decay * (ONE + ratio) * born[other]
        pair *= QUARTER * decay - ONE
        fx += pair * dx
        fy += pair * dy
        fz += pair * dz
    force[0], force[1], force[2] = fx, fy, fz
    itself = strength * charge[atom] / own
    return HALF * (energy + itself), HALF * (pull - itself / own)


@inlined
def _push(
    centred: Float32[np.ndarray, "3 atoms"],
    atom: int,
    pull: Float32[np.ndarray, " atoms"],
    chain: Float32[np.ndarray, " atoms"],
    back: Float32[np.ndarray, " atoms"],
    force: Float64[np.ndarray, " 3"],
) -> None:
    """Force on an atom by what it and the others do to each other's Born radii."""
    x, y, z = centred[0, atom], centred[1, atom], centred[2, atom]
    own = pull[atom]
    fx = fy = fz = ZERO
    for other in range(len(chain)):
        amount = own * chain[other] + pull[other] * back[other]
        fx += amount * (x - centred[0, other])
        fy += amount * (y - centred[1, other])
        fz += amount * (z - centred[2, other])
    force[0] += fx
    force[1] += fy
    force[2] += fz
