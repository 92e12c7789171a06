"""Water about a protein, brought to rest: where every run in explicit solvent begins."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import openmm
from jaxtyping import Float64, Shaped
from openmm import app

from cgal.all_atom.dynamics import AtomRun
from cgal.all_atom.force_field import build_system, read_structure, with_solvent
from cgal.all_atom.water import fill, require_room
from cgal.errors import Diverged
from cgal.params import ForceFieldParams

__all__ = ["Solvated", "require_solvable", "solvated"]

TIMESTEP_ps = 0.002


class Solvated(NamedTuple):
    """Positions [nm] of a protein's atoms and of its water, at rest, and the all-atom steps that it took."""

    positions: Float64[np.ndarray, "particles 3"]
    steps: int


def solvated(
    positions: Shaped[np.ndarray, "atoms 3"],
    structure: str,
    params: ForceFieldParams,
    *,
    temperature_K: float,
    seed: int,
) -> Solvated:
    """Positions [nm] of all particles of `build_system`: a protein's atoms, and its water where the solvent is such.

    Water is laid about the protein, then the energy is lowered, then dynamics let water and
    side chains come to rest; C-alpha are held where they are all the while, and the volume is constant. `structure` is
    PDB text. In implicit solvent the positions stay as they are. Same seed, same positions.

    Raises BadStructure when the chain has no room in its box, Diverged, with the `steps` until then, when numbers run
    away.
    """
    if not params.explicit:
        return Solvated(positions.astype(np.float64), 0)
    topology, system = _held(structure, params)
    run = AtomRun(system, params, temperature_K=temperature_K, timestep_ps=TIMESTEP_ps, seed=seed)
    run.place(fill(positions, topology, seed=seed), constrain=True)
    try:
        run.minimise(max_steps=params.water.minimise_steps)
        run.draw_velocities()
        run.advance(params.water.settling_steps)
    except Diverged as error:
        error.steps = run.steps
        raise
    return Solvated(run.positions(), run.steps)


def require_solvable(positions: Shaped[np.ndarray, "atoms 3"], params: ForceFieldParams) -> None:
    """Raise BadStructure when the solvent is explicit and the chain has no room in its box."""
    if params.explicit:
        require_room(positions, params.water.box_nm)


@lru_cache(maxsize=2)
def _held(structure: str, params: ForceFieldParams) -> tuple[app.Topology, openmm.System]:
    """Topology and system of all particles, C-alpha massless."""
    topology, _ = read_structure(structure)
    return with_solvent(topology, params), build_system(topology, params, hold_alpha_carbons=True)
