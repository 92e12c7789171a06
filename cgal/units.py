"""Units and physical constants: nm, ps, kJ/mol, amu and K everywhere (those of OpenMM and mdtraj)."""

from typing import Final

BOLTZMANN_kJ_per_mol_K: Final = 8.31446261815324e-3
ANGSTROM_PER_NM: Final = 10.0


def thermal_energy_kJ_per_mol(temperature_K: float) -> float:
    """Boltzmann's constant times temperature, k_B T [kJ/mol].

    >>> round(thermal_energy_kJ_per_mol(350.0), 4)
    2.9101
    """
    return BOLTZMANN_kJ_per_mol_K * temperature_K
