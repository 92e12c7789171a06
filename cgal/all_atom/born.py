"""Generalised Born solvation (OBC2, GBn2) as compiled loops: OpenMM's own forces on a CPU, several times as fast.

OBC2 is the model of OpenMM's `GBSAOBCForce` without cutoff: Onufriev, Bashford and Case, Proteins 55, 383 (2004), with
the surface term of Schaefer, Bartels and Karplus (J. Mol. Biol. 284, 835, 1998). GBn2 is the model of OpenMM's
`implicit/gbn2.xml`, a CustomGBForce whose parameters and tables are taken over: Nguyen, Roe and Simmerling, J. Chem.
Theory Comput. 9, 2020 (2013), with the neck correction of Mongan et al., ibid. 3, 156 (2007). Single precision, as on
OpenMM's CPU platform; one thread, fixed order: the same positions give the same bits. Units: nm, kJ/mol, elementary
charges.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import openmm
from jaxtyping import Float32, Float64, Int32
from openmm.app.internal.customgbforces import GBSAGBn2Force

from cgal.compiled import compiled, inlined

__all__ = ["Born", "with_compiled_born"]

COULOMB_kJ_nm_per_mol = 138.93545764
OBC2_OFFSET_nm = 0.009
OBC2_SHAPE = (1.0, 0.8, 4.85)
GBN2_SOLVENT_DIELECTRIC = 78.5
GBN2_SURFACE_TENSION_kJ_per_mol_nm2 = 28.3919551
PROBE_RADIUS_nm = 0.14
NECK_SCALE, NECK_CUT_nm = np.float32(0.826836), np.float32(0.68)
NECK_2_per_nm2, NECK_6_per_nm6 = np.float32(100), np.float32(0.3e6)
"""Of the neck's integral, m / (1 + NECK_2 x^2 + NECK_6 x^6) at a distance x from its peak."""
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
ZERO, QUARTER, HALF, ONE, TWO, THREE = (np.float32(number) for number in (0, 0.25, 0.5, 1, 2, 3))
EIGHTH = np.float32(0.125)


class Necks(NamedTuple):
    """Neck integrals [1/nm] by an atom's kind and the other atom: their peaks and where these are; none in OBC2."""

    kind: Int32[np.ndarray, " atoms"]
    peak: Float32[np.ndarray, "kinds atoms"]
    place: Float32[np.ndarray, "kinds atoms"]


class Parameters(NamedTuple):
    """Of each atom: charge, radius, radius less the dielectric offset, that scaled [nm], shape of the Born radius."""

    charge: Float32[np.ndarray, " atoms"]
    radius: Float32[np.ndarray, " atoms"]
    offset: Float32[np.ndarray, " atoms"]
    scaled: Float32[np.ndarray, " atoms"]
    shape: Float64[np.ndarray, "atoms 3"]
    necks: Necks


@dataclass(frozen=True, eq=False)
class Born:
    """Parameters of a force; called with an OpenMM state it gives energy [kJ/mol] and forces [kJ/mol/nm].

    `shape` holds alpha, beta and gamma of each atom. Without `necks` the model is OBC2, with them GBn2.
    """

    charge: Float64[np.ndarray, " atoms"]
    radius_nm: Float64[np.ndarray, " atoms"]
    scale: Float64[np.ndarray, " atoms"]
    prefactor_kJ_nm_per_mol: float
    surface_tension_kJ_per_mol_nm2: float
    offset_nm: float
    shape: Float64[np.ndarray, "atoms 3"]
    necks: Necks | None = None

    @classmethod
    def of(cls, force: openmm.GBSAOBCForce) -> "Born":
        """Take the parameters of OBC2 over."""
        table = [force.getParticleParameters(atom) for atom in range(force.getNumParticles())]
        charge, radius, scale = np.array([(charge._value, radius._value, scale) for charge, radius, scale in table]).T
        vacuum = 1 / force.getSoluteDielectric() - 1 / force.getSolventDielectric()
        return cls(
            charge,
            radius,
            scale,
            -COULOMB_kJ_nm_per_mol * vacuum,
            4 * np.pi * force.getSurfaceAreaEnergy()._value,
            OBC2_OFFSET_nm,
            np.tile(OBC2_SHAPE, (len(charge), 1)),
        )

    @classmethod
    def of_gbn2(cls, force: openmm.CustomGBForce) -> "Born":
        """Take the parameters of GBn2 over, tables of the necks included."""
        table = np.array([force.getParticleParameters(atom) for atom in range(force.getNumParticles())])
        charge, offset, scaled = table[:, :3].T
        kind = table[:, 6].astype(np.int32)
        return cls(
            charge,
            offset + GBSAGBn2Force.OFFSET,
            scaled / offset,
            -COULOMB_kJ_nm_per_mol * (1 - 1 / GBN2_SOLVENT_DIELECTRIC),
            GBN2_SURFACE_TENSION_kJ_per_mol_nm2,
            GBSAGBn2Force.OFFSET,
            np.ascontiguousarray(table[:, 3:6]),
            Necks(kind, _neck_table(force, "getm0", kind), _neck_table(force, "getd0", kind)),
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
        reduced_nm = self.radius_nm - self.offset_nm
        charge, radius, offset, scaled = (
            array.astype(np.float32) for array in (self.charge, self.radius_nm, reduced_nm, self.scale * reduced_nm)
        )
        return Parameters(charge, radius, offset, scaled, self.shape, self.necks or _no_necks())


def _neck_table(
    force: openmm.CustomGBForce, name: str, kind: Int32[np.ndarray, " atoms"]
) -> Float32[np.ndarray, "kinds atoms"]:
    """Property of a neck by an atom's kind and the other atom; OpenMM lists the values of the first kind fastest."""
    names = [force.getTabulatedFunctionName(index) for index in range(force.getNumTabulatedFunctions())]
    columns, rows, values = force.getTabulatedFunction(names.index(name)).getFunctionParameters()
    return np.ascontiguousarray(np.reshape(values, (rows, columns)).T[:, kind], dtype=np.float32)


def _no_necks() -> Necks:
    none = np.empty((0, 0), dtype=np.float32)
    return Necks(np.empty(0, dtype=np.int32), none, none)


def with_compiled_born(system: openmm.System) -> openmm.System:
    """Copy of a system with its OBC2 or GBn2 force (if without cutoff) in this form; the system itself if it has none.

    A CustomGBForce is taken for GBn2 when its parameters and formulas are, to the letter, those of `implicit/gbn2.xml`.
    """
    forms = [(index, _compiled_form(force)) for index, force in enumerate(system.getForces())]
    chosen = [(index, form) for index, form in forms if form is not None]
    if not chosen:
        return system
    copy = openmm.XmlSerializer.clone(system)
    for index, form in reversed(chosen):
        copy.removeForce(index)
        copy.addForce(openmm.PythonForce(form))
    return copy


def _compiled_form(force: openmm.Force) -> Born | None:
    if not isinstance(force, openmm.GBSAOBCForce | openmm.CustomGBForce):
        return None
    if force.getNonbondedMethod() != force.NoCutoff or force.getNumParticles() > MAXIMUM_ATOMS:
        return None
    if isinstance(force, openmm.GBSAOBCForce):
        return Born.of(force)
    return Born.of_gbn2(force) if _formulas(force) == _formulas_of_gbn2() else None


@cache
def _formulas_of_gbn2() -> list[object]:
    force = GBSAGBn2Force(SA="ACE")
    force.addParticle([0.0, 0.15, 1.0, *OBC2_SHAPE])
    force.finalize()
    return _formulas(force)


def _formulas(force: openmm.CustomGBForce) -> list[object]:
    return [
        *(force.getPerParticleParameterName(index) for index in range(force.getNumPerParticleParameters())),
        *(force.getComputedValueParameters(index) for index in range(force.getNumComputedValues())),
        *(force.getEnergyTermParameters(index) for index in range(force.getNumEnergyTerms())),
    ]


@compiled
def _evaluate(
    positions: Float64[np.ndarray, "atoms 3"],
    parameters: Parameters,
    prefactor: float,
    tension: float,
) -> tuple[float, Float64[np.ndarray, "atoms 3"]]:
    """Energy and forces, in OpenMM's order: Born radii, pairs, and the pairs again by what the radii did."""
    charge, radius, offset, scaled, shape, necks = parameters
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
        if len(necks.kind):
            descreening += _add_necks(centred, atom, others, parameters, chain[atom])
        others[atom] = ONE
        _set_born_radius(atom, HALF * offset[atom] * descreening, radius, offset, shape[atom], born, slope)
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
    """How much the others keep the solvent away from an atom; `chain` gets its derivatives by distance / distance.

    A scaled radius may be negative (GBn2's sulfur): what would end within the atom is not seen.
    """
    x, y, z = centred[0, atom], centred[1, atom], centred[2, atom]
    whole = ONE / own
    total = ZERO
    for other in range(len(chain)):
        dx, dy, dz = centred[0, other] - x, centred[1, other] - y, centred[2, other] - z
        square = dx * dx + dy * dy + dz * dz + (ONE - others[other])
        distance = np.sqrt(square)
        near = ONE / distance
        size = scaled[other]
        upper = max(own, distance + size)
        lower = max(own, abs(distance - size))
        far_end, near_end = ONE / upper, ONE / lower
        difference = near_end * near_end - far_end * far_end
        log = _log(lower * far_end)
        term = near_end - far_end + QUARTER * difference * (size * size * near - distance) + HALF * near * log
        term += TWO * (whole - near_end) if own < size - distance else ZERO
        seen = others[other] if own < upper else ZERO
        total += seen * term
        near2 = near * near
        change = EIGHTH * (ONE + size * size * near2) * difference + QUARTER * log * near2
        chain[other] = seen * near * change
    return total


@inlined
def _add_necks(
    centred: Float32[np.ndarray, "3 atoms"],
    atom: int,
    others: Float32[np.ndarray, " atoms"],
    parameters: Parameters,
    chain: Float32[np.ndarray, " atoms"],
) -> np.float32:
    """What GBn2 adds to an atom's descreening: the necks between it and the others; `chain` gets the derivatives.

    It takes away what `_descreen` gives an atom within another's sphere: `implicit/gbn2.xml` has no such term.
    """
    x, y, z = centred[0, atom], centred[1, atom], centred[2, atom]
    radius, scaled, necks = parameters.radius, parameters.scaled, parameters.necks
    peak, place = necks.peak[necks.kind[atom]], necks.place[necks.kind[atom]]
    own, reach = parameters.offset[atom], radius[atom] + NECK_CUT_nm
    whole = ONE / own
    total = ZERO
    for other in range(len(chain)):
        dx, dy, dz = centred[0, other] - x, centred[1, other] - y, centred[2, other] - z
        distance = np.sqrt(dx * dx + dy * dy + dz * dz + (ONE - others[other]))
        past = distance - place[other]
        square = past * past
        sixth = NECK_6_per_nm6 * square * square
        inverse = ONE / (ONE + square * (NECK_2_per_nm2 + sixth))
        neck = TWO * NECK_SCALE * peak[other] * inverse if distance <= reach + radius[other] else ZERO
        fall = neck * inverse * past * (NECK_2_per_nm2 + THREE * sixth)
        gap = max(own, scaled[other] - distance)
        full = ONE / gap
        fall -= full * full if gap > own else ZERO
        total += others[other] * (neck - TWO * (whole - full))
        chain[other] += others[other] * fall / distance
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
    shape: Float64[np.ndarray, " 3"],
    born: Float32[np.ndarray, " atoms"],
    slope: Float32[np.ndarray, " atoms"],
) -> None:
    """Born radius from the descreening (model II of OBC's paper), and the derivative of one by the other."""
    alpha, beta, gamma = shape
    level = np.tanh(alpha * descreening - beta * descreening**2 + gamma * descreening**3)
    born[atom] = 1 / (1 / offset[atom] - level / radius[atom])
    rise = alpha - 2 * beta * descreening + 3 * gamma * descreening**2
    slope[atom] = (1 - level**2) * offset[atom] * rise / radius[atom]


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
