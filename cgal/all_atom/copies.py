"""Many copies of one protein in one OpenMM context, out of reach of each other: they fill a GPU that one leaves idle.

The copies stand on a lattice so wide that no pair of them is within the cutoff, and the cutoff is longer than the
protein: within a copy every pair interacts as without a cutoff, between copies none does. Forces are those of one copy
alone; energies differ by a constant a pair (the shift of the cutoff, with a reaction field of dielectric constant one).
"""

from dataclasses import dataclass

import numpy as np
import openmm
from jaxtyping import Float64, Shaped

from cgal.errors import BadParams

__all__ = ["CUTOFF_nm", "Lattice", "SPACING_nm", "side_by_side"]

CUTOFF_nm = 5.0
"""Longer than any chain of ten residues, stretched out."""

SPACING_nm = 15.0
"""Cutoff, length of a chain, and room for a copy to drift in a tenth of a nanosecond."""

TERMS: dict[type[openmm.Force], tuple[tuple[str, int], ...]] = {
    openmm.HarmonicBondForce: (("Bond", 2),),
    openmm.HarmonicAngleForce: (("Angle", 3),),
    openmm.PeriodicTorsionForce: (("Torsion", 4),),
    openmm.NonbondedForce: (("Particle", 0), ("Exception", 2)),
    openmm.GBSAOBCForce: (("Particle", 0),),
}
"""Terms of each force that can be copied, and how many of a term's first parameters are particles."""


def side_by_side(system: openmm.System, copies: int) -> openmm.System:
    """One system of so many copies, particles in the order of the copies.

    Raises BadParams for a force that cannot be copied (solvent models other than `obc2`).
    """
    if system.usesPeriodicBoundaryConditions():
        raise BadParams("a periodic box is not known side by side; set force_field.solvent to obc2")
    size = system.getNumParticles()
    many = openmm.System()
    for copy in range(copies):
        for particle in range(size):
            many.addParticle(system.getParticleMass(particle))
        for index in range(system.getNumConstraints()):
            first, second, distance = system.getConstraintParameters(index)
            many.addConstraint(first + copy * size, second + copy * size, distance)
    for force in system.getForces():
        many.addForce(_copied(force, copies, size))
    return many


def _copied(force: openmm.Force, copies: int, size: int) -> openmm.Force:
    if type(force) not in TERMS:
        raise BadParams(
            f"{type(force).__name__} is not known side by side; set force_field.solvent to obc2, or sample on CPUs"
        )
    many = type(force)()
    for term, particles in TERMS[type(force)]:
        read, add = getattr(force, f"get{term}Parameters"), getattr(many, f"add{term}")
        terms = [read(index) for index in range(getattr(force, f"getNum{term}s")())]
        for copy in range(copies):
            for parameters in terms:
                add(*(number + copy * size for number in parameters[:particles]), *parameters[particles:])
    if isinstance(force, openmm.NonbondedForce):
        many.setReactionFieldDielectric(1.0)
    if isinstance(force, openmm.GBSAOBCForce):
        many.setSolventDielectric(force.getSolventDielectric())
        many.setSoluteDielectric(force.getSoluteDielectric())
        many.setSurfaceAreaEnergy(force.getSurfaceAreaEnergy())
    if isinstance(force, openmm.NonbondedForce | openmm.GBSAOBCForce):
        many.setNonbondedMethod(many.CutoffNonPeriodic)
        many.setCutoffDistance(CUTOFF_nm)
    return many


@dataclass(frozen=True)
class Lattice:
    """Where the copies stand: a cube about the origin, so that coordinates stay small in single precision."""

    copies: int

    @property
    def sites(self) -> Float64[np.ndarray, "copies 3"]:
        """Middle of each copy [nm]."""
        edge = int(np.ceil(self.copies ** (1 / 3)))
        return SPACING_nm * (np.argwhere(np.ones((edge, edge, edge)))[: self.copies] - 0.5 * (edge - 1))

    def spread(self, positions: Shaped[np.ndarray, "copies atoms 3"]) -> Float64[np.ndarray, "all_atoms 3"]:
        """Put each copy's middle on its site [nm], atoms of all copies in one list."""
        middles = positions.mean(axis=1, keepdims=True, dtype=np.float64)
        return np.asarray((positions - middles + self.sites[:, None]).reshape(-1, 3))

    def gather(self, values: Float64[np.ndarray, "all_atoms 3"]) -> Float64[np.ndarray, "copies atoms 3"]:
        """Give a list of all atoms back copy by copy: positions, velocities or forces."""
        return values.reshape(self.copies, -1, 3)
