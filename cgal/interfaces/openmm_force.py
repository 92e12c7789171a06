"""A model as a force of OpenMM: its integrators, thermostats and other forces do the rest."""

import numpy as np
import openmm
from jaxtyping import Float
from openmm import unit

from cgal.interfaces.positions import EnergiesAndForces

__all__ = ["model_force", "model_system"]


def model_force(model: EnergiesAndForces) -> openmm.PythonForce:
    """Force on the beads of one chain, in order. OpenMM calls Python at each step: for a chain, not for many at once.

    A fault such as BadPositions ends OpenMM's step as an OpenMMException that tells it.
    """

    def compute(state: openmm.State) -> tuple[float, Float[np.ndarray, "beads 3"]]:
        positions_nm = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        energy, forces = model.energy_and_forces(np.asarray(positions_nm, dtype=np.float64))
        return float(energy), forces

    return openmm.PythonForce(compute)


def model_system(model: EnergiesAndForces, mass_amu: float) -> openmm.System:
    """System of the beads alone."""
    system = openmm.System()
    for _ in model.sequence:
        system.addParticle(mass_amu)
    system.addForce(model_force(model))
    return system
