"""The fit recovers a known potential, and errs on the soft side."""

import mdtraj
import numpy as np
import pytest
import torch

from cgal.errors import EmptyTrajectory
from cgal.frames import bead_topology
from cgal.params import PriorParams
from cgal.potential.figures import plot_prior
from cgal.potential.geometry import dihedral_angles, internal_coordinates, pair_distances
from cgal.potential.prior import fit_prior
from cgal.units import thermal_energy_kJ_per_mol
from tests.beads import SEQUENCE, TEMPERATURE_K, real_beads, real_prior

KT = thermal_energy_kJ_per_mol(TEMPERATURE_K)


def chains(bonds_nm, angles_rad, dihedrals_rad):
    """Chains of beads from their internal coordinates (natural extension of the reference frame)."""
    frames = len(bonds_nm)
    positions = np.zeros((frames, bonds_nm.shape[1] + 1, 3))
    positions[:, 1, 0] = bonds_nm[:, 0]
    turn = np.stack([-np.cos(angles_rad[:, 0]), np.sin(angles_rad[:, 0]), np.zeros(frames)], axis=1)
    positions[:, 2] = positions[:, 1] + bonds_nm[:, 1, None] * turn
    for bead in range(3, positions.shape[1]):
        back = positions[:, bead - 1] - positions[:, bead - 2]
        back /= np.linalg.norm(back, axis=1, keepdims=True)
        normal = np.cross(positions[:, bead - 2] - positions[:, bead - 3], back)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        angle, dihedral = angles_rad[:, bead - 2, None], dihedrals_rad[:, bead - 3, None]
        step = -np.cos(angle) * back + np.sin(angle) * (
            np.cos(dihedral) * np.cross(normal, back) + np.sin(dihedral) * normal
        )
        positions[:, bead] = positions[:, bead - 1] + bonds_nm[:, bead - 1, None] * step
    return positions.astype(np.float32)


def test_internal_coordinates_agree_with_mdtraj():
    positions = real_beads()
    trajectory = mdtraj.Trajectory(positions, bead_topology(SEQUENCE))
    coordinates = internal_coordinates(torch.from_numpy(positions.astype(np.float64)))
    runs = [np.array([range(first, first + size) for first in range(10 - size + 1)]) for size in (2, 3, 4)]
    # mdtraj works in float32: 1e-6 nm; an angle's rounding error is divided by its sine, 1e-5 rad is 20 times that
    np.testing.assert_allclose(coordinates.bonds_nm, mdtraj.compute_distances(trajectory, runs[0]), atol=1e-6)
    np.testing.assert_allclose(coordinates.angles_rad, mdtraj.compute_angles(trajectory, runs[1]), atol=1e-5)
    np.testing.assert_allclose(dihedral_angles(coordinates), mdtraj.compute_dihedrals(trajectory, runs[2]), atol=2e-5)


def test_fit_recovers_the_potential_that_the_frames_were_drawn_from():
    """40,000 draws know a variance to 0.7 % and a mean to 0.005 sigma: 4 % and 0.03 sigma are six standard errors."""
    rng = np.random.default_rng(3)
    frames, bond_sigma, angle_sigma = 40_000, 0.01, 0.25
    bonds = rng.normal(0.385, bond_sigma, (frames, 3))
    grid = np.linspace(0.2, np.pi - 0.05, 20_000)
    density = np.sin(grid) * np.exp(-((grid - 1.9) ** 2) / (2 * angle_sigma**2))
    angles = np.interp(rng.random((frames, 2)), np.cumsum(density) / density.sum(), grid)
    barrier = 4.0
    phi = np.linspace(-np.pi, np.pi, 20_001)
    weight = np.exp(-barrier * np.cos(phi - 0.7) / KT)
    dihedrals = np.interp(rng.random((frames, 1)), np.cumsum(weight) / weight.sum(), phi)
    params = PriorParams(dihedral_scale=1.0, dihedral_floor=1 / frames, minimum_angle_sigma_rad=0.01)
    prior = fit_prior(chains(bonds, angles, dihedrals), "AGTW", TEMPERATURE_K, params)
    np.testing.assert_allclose(prior.angle_rad, 1.9, atol=0.03 * angle_sigma)
    np.testing.assert_allclose(prior.angle_stiffness_kJ_per_mol_rad2, KT / angle_sigma**2, rtol=0.04)
    np.testing.assert_allclose(prior.bond_stiffness_kJ_per_mol_nm2, KT / bond_sigma**2, rtol=0.04)
    # the floor raises the rare bins a little: one in a hundred here
    expected = [[barrier * np.cos(0.7), 0.0, 0.0]], [[barrier * np.sin(0.7), 0.0, 0.0]]
    np.testing.assert_allclose(prior.dihedral_cosine_kJ_per_mol, expected[0], atol=0.15)
    np.testing.assert_allclose(prior.dihedral_sine_kJ_per_mol, expected[1], atol=0.15)


def test_chignolin_bonds_have_the_published_stiffness():
    """CLN025, AMBER, 300 K: 3.865 +- 0.056 A; 40 frames know a mean length to 0.001 nm and a variance to 22 %."""
    prior = real_prior()
    assert float(prior.bond_length_nm.mean()) == pytest.approx(0.3865, abs=0.001)
    assert float((KT / prior.bond_stiffness_kJ_per_mol_nm2).sqrt().mean()) == pytest.approx(0.0056, rel=0.2)
    assert int(prior.bond_length_nm.argmax()) == 2  # Asp3-Pro4


def test_no_term_is_stiffer_than_its_bound():
    still = np.repeat(real_beads()[:1], 10, axis=0)
    params = PriorParams(minimum_bond_sigma_nm=0.004, minimum_angle_sigma_rad=0.1)
    prior = fit_prior(still, SEQUENCE, TEMPERATURE_K, params)
    np.testing.assert_allclose(prior.bond_stiffness_kJ_per_mol_nm2, KT / 0.004**2)
    np.testing.assert_allclose(prior.angle_stiffness_kJ_per_mol_rad2, KT / 0.1**2)


def test_a_narrow_seed_does_not_forbid_other_dihedrals():
    """All 40 frames in one basin: no dihedral may cost more than a few kT, or the model could never leave it."""
    prior = real_prior()
    phi = torch.linspace(-np.pi, np.pi, 181, dtype=torch.float64)[:, None].expand(-1, 7)
    energies = prior._dihedral_energies(phi.cos(), phi.sin())
    assert float((energies.amax(0) - energies.amin(0)).max()) < 4 * KT


def test_the_range_of_a_dihedral_does_not_grow_with_the_number_of_frames():
    """The same frames ten times over say no more about an angle that none of them has."""
    once, often = (
        fit_prior(np.tile(real_beads(), (times, 1, 1)), SEQUENCE, TEMPERATURE_K, PriorParams()) for times in (1, 10)
    )
    np.testing.assert_allclose(once.dihedral_cosine_kJ_per_mol, often.dihedral_cosine_kJ_per_mol, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(once.dihedral_sine_kJ_per_mol, often.dihedral_sine_kJ_per_mol, rtol=1e-9, atol=1e-9)


def test_an_extended_seed_does_not_forbid_contacts():
    frames = 20
    extended = chains(np.full((frames, 9), 0.385), np.full((frames, 8), 2.4), np.full((frames, 7), 3.0))
    prior = fit_prior(extended, SEQUENCE, TEMPERATURE_K, PriorParams())
    assert float(prior.repulsion_radius_nm) == PriorParams().maximum_repulsion_radius_nm
    folded = prior._repulsion_energies(pair_distances(torch.from_numpy(real_beads()).double(), 3))
    assert float(folded.max()) < KT


def test_energy_is_bounded_for_a_straight_and_for_a_folded_back_chain():
    straight = np.zeros((2, 10, 3), dtype=np.float32)
    straight[0, :, 0] = 0.385 * np.arange(10)
    straight[1, :, 0] = 0.385 * (np.arange(10) % 2) + 0.5 * (np.arange(10) // 2)
    prior = real_prior().float()
    positions = torch.from_numpy(straight)
    assert torch.isfinite(prior.energy(positions)).all()
    assert torch.isfinite(prior.forces(positions)).all()


def test_one_frame_is_too_few():
    with pytest.raises(EmptyTrajectory, match="at least 2"):
        fit_prior(real_beads()[:1], SEQUENCE, TEMPERATURE_K, PriorParams())


def test_figures_are_written(tmp_path):
    paths = plot_prior(real_prior(), real_beads(), tmp_path, PriorParams())
    assert [path.name for path in paths] == [
        "prior_bonds.png",
        "prior_angles.png",
        "prior_dihedrals.png",
        "prior_repulsion.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert not any(b"Matplotlib" in path.read_bytes() for path in paths), "its version would change a round's bytes"
