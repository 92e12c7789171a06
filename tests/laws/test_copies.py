"""Copies side by side feel what one alone feels: the same forces, whatever the others do."""

import numpy as np
import openmm
import pytest

from cgal.all_atom.copies import CUTOFF_nm, Lattice, SPACING_nm, side_by_side
from cgal.all_atom.force_field import build_system, forces_of, make_context, read_structure
from cgal.errors import BadParams
from cgal.params import ForceFieldParams

COPIES = 3


def context_of(system, platform):
    params = ForceFieldParams(platform=platform)
    return make_context(system, params, temperature_K=350.0, timestep_ps=0.004, seed=1)


@pytest.mark.parametrize("name", ["ff96", "ff14SB"])
def test_a_copy_feels_the_forces_of_one_alone(name, bundled_data):
    topology, native = read_structure((bundled_data / "structure.pdb").read_text())
    system = build_system(topology, ForceFieldParams(name=name))
    alone = context_of(system, "Reference")
    shaken = native + 0.002 * np.random.default_rng(0).normal(size=(COPIES, *native.shape))
    lattice = Lattice(COPIES)
    together = context_of(side_by_side(system, COPIES), "Reference")
    together.setPositions(lattice.spread(shaken))
    found = lattice.gather(forces_of(together))
    for positions, forces in zip(shaken, found, strict=True):
        alone.setPositions(positions)
        expected = forces_of(alone)
        assert (
            np.abs(forces - expected).max() < 1e-6 * np.abs(expected).max()
        )  # double precision, 20 nm from the origin


def test_copies_are_out_of_reach_of_one_another():
    sites = Lattice(100).sites
    apart = np.linalg.norm(sites[:, None] - sites[None], axis=2) + np.eye(100) * 1e3
    assert apart.min() == pytest.approx(SPACING_nm)
    assert SPACING_nm > 2 * CUTOFF_nm
    assert np.abs(sites).max() < 40.0  # single precision resolves 4e-6 nm there


def test_a_force_that_cannot_be_copied_is_named():
    system = openmm.System()
    system.addParticle(1.0)
    system.addForce(openmm.CustomGBForce())
    with pytest.raises(BadParams, match="CustomGBForce"):
        side_by_side(system, 2)
