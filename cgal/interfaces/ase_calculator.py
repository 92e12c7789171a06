"""A model as a calculator of ASE, which works in Angstrom and eV."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from jaxtyping import Float

from cgal.interfaces.positions import EnergiesAndForces

__all__ = ["ModelCalculator", "bead_atoms"]

kJ_per_mol_eV = units.kJ / units.mol


class ModelCalculator(Calculator):
    """Energy [eV] and forces [eV/Angstrom] of the beads of one chain, in order; no periodic box."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as ASE declares it

    def __init__(self, model: EnergiesAndForces) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Do what ASE asks for; raises BadPositions when the atoms are not the beads of the model."""
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        assert self.atoms is not None
        energy, forces = self.model.energy_and_forces(self.atoms.positions / units.nm)
        self.results: dict[str, Any] = {
            "energy": float(energy) * kJ_per_mol_eV,
            "forces": forces * (kJ_per_mol_eV / units.nm),
        }


def bead_atoms(model: EnergiesAndForces, positions_nm: Float[np.ndarray, "beads 3"], mass_amu: float) -> Atoms:
    """Beads as carbon atoms of a bead's mass, with their calculator."""
    beads = len(model.sequence)
    atoms = Atoms("C" * beads, positions=positions_nm * units.nm, masses=[mass_amu] * beads)
    atoms.calc = ModelCalculator(model)
    return atoms
