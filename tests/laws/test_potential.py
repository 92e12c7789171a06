"""Laws of the prior and of the sum of prior and SchNet; `test_conformance` has those of every potential."""

import numpy as np
import pytest
import torch

from cgal.potential.architectures import initial_potential
from cgal.potential.geometry import internal_coordinates
from cgal.potential.potential import Potential
from tests.beads import SMALL_NETWORK, real_beads, real_prior


@pytest.fixture(scope="module")
def potential() -> Potential:
    """Prior plus a network with a readout far from zero."""
    made = initial_potential(real_prior(), SMALL_NETWORK, 0)
    with torch.no_grad():
        made.network.readout[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    return made.double()


@pytest.fixture(scope="module")
def positions() -> torch.Tensor:
    return torch.from_numpy(real_beads()[:6].astype(np.float64))


def test_a_mirror_image_differs_in_the_sine_of_its_dihedrals_alone(potential, positions):
    """SchNet sees distances only: chirality is the prior's, and there only the odd part of the dihedral series."""
    mirrored = positions * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        potential.network(mirrored, potential.types), potential.network(positions, potential.types)
    )
    coordinates = internal_coordinates(positions)
    phi = torch.atan2(coordinates.dihedral_sines, coordinates.dihedral_cosines)
    orders = torch.arange(1, 4)
    odd = (potential.prior.dihedral_sine_kJ_per_mol * torch.sin(phi[..., None] * orders)).sum((1, 2))
    assert float(odd.abs().min()) > 0.01
    difference = potential.energy(mirrored) - potential.energy(positions)
    torch.testing.assert_close(difference, -2 * odd, rtol=1e-4, atol=1e-6)  # collinear rounding: 1e-5 of cos, sin


def test_no_net_force_and_no_net_torque(potential, positions):
    forces = potential.forces(positions)
    torch.testing.assert_close(forces.sum(1), torch.zeros(6, 3, dtype=torch.float64), rtol=0, atol=1e-8)
    torque = torch.linalg.cross(positions, forces).sum(1)
    torch.testing.assert_close(torque, torch.zeros(6, 3, dtype=torch.float64), rtol=0, atol=1e-8)


def test_network_does_not_tell_beads_of_one_type_apart(potential, positions):
    """Tyr1, Tyr2 and Tyr10 are one type: exchanging their positions changes nothing but the prior's chain."""
    exchanged = positions[:, [1, 9, 2, 3, 4, 5, 6, 7, 8, 0]]
    network, types = potential.network, potential.types
    torch.testing.assert_close(network(exchanged, types), network(positions, types))
    other = positions[:, [2, 1, 0, 3, 4, 5, 6, 7, 8, 9]]  # Tyr1 and Asp3 are not
    assert ((network(other, types) - network(positions, types)).abs() > 1e-3).all()


def test_potential_is_prior_plus_network_and_fresh_it_is_the_prior(potential, positions):
    prior = potential.prior.energy(positions)
    torch.testing.assert_close(potential.energy(positions) - prior, potential.network(positions, potential.types))
    fresh = initial_potential(real_prior(), SMALL_NETWORK, 0).double()
    assert torch.equal(fresh.energy(positions), fresh.prior.energy(positions))
    torch.testing.assert_close(fresh.forces(positions), fresh.prior.forces(positions))


def test_one_frame_does_not_depend_on_its_batch(potential, positions):
    energies, forces = potential.energy_and_forces(positions)
    alone_energy, alone_forces = potential.energy_and_forces(positions[2:3])
    torch.testing.assert_close(alone_energy[0], energies[2], rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(alone_forces[0], forces[2], rtol=1e-9, atol=1e-8)


def test_repulsion_keeps_far_beads_apart(potential):
    """Pushed together, two beads |i-j| >= 3 meet a force that grows and drives them apart."""
    prior = potential.prior
    distances = torch.tensor([0.45, 0.4, 0.35, 0.3, 0.25], dtype=torch.float64)
    energies = prior._repulsion_energies(distances)
    assert (energies.diff() > 0).all()
    assert float(energies[-1]) > 5 * 2.91  # 5 kT at 0.25 nm: closer than that a simulation counts as imploded
