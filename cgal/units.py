"""Units and physical constants: nm, ps, kJ/mol, amu and K everywhere (those of OpenMM and mdtraj)."""

import math
from typing import Final

BOLTZMANN_kJ_per_mol_K: Final = 8.31446261815324e-3
ANGSTROM_PER_NM: Final = 10.0

FORCE_UNITS: Final = {
    "kJ/mol/nm": 1.0,
    "kJ/mol/A": 10.0,
    "kcal/mol/nm": 4.184,
    "kcal/mol/A": 41.84,
    "eV/A": 964.8533212331,
    "Eh/a0": 49614.7526,
}
"""Units of force of other programs, in kJ/mol/nm; Eh/a0 is the atomic unit (CODATA 2018)."""


def thermal_energy_kJ_per_mol(temperature_K: float) -> float:
    """Boltzmann's constant times temperature, k_B T [kJ/mol].

    >>> round(thermal_energy_kJ_per_mol(350.0), 4)
    2.9101
    """
    return BOLTZMANN_kJ_per_mol_K * temperature_K


def whole_frames(time_ps: float, spacing_ps: float) -> int:
    """Nearest whole number of frames to a time; the smaller one of two equally near.

    >>> whole_frames(20.0, 8.0), whole_frames(21.0, 8.0)
    (2, 3)
    """
    return math.ceil(time_ps / spacing_ps - 0.5)
