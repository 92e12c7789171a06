"""Labels of noised frames have the mean force of the smeared density, with less variance than forces or noise alone."""

from dataclasses import replace

import numpy as np
import torch

from cgal.frames import LabelledFrames
from cgal.params import PriorParams, TrainingParams
from cgal.potential.architectures import initial_potential
from cgal.potential.prior import fit_prior
from cgal.training import linear
from cgal.training.forces_and_noise import noised, smeared
from cgal.training.train import fit_rung, train
from cgal.units import thermal_energy_kJ_per_mol
from tests.beads import SEQUENCE, SMALL_NETWORK, TEMPERATURE_K, labelled, real_prior, shaken_beads

kT = thermal_energy_kJ_per_mol(TEMPERATURE_K)
NOISE_nm = 0.02
COVARIANCE_nm2 = 0.05**2 * (np.eye(4) + 0.4 * (np.eye(4, k=1) + np.eye(4, k=-1)))


def harmonic(frames: int = 100_000) -> LabelledFrames:
    """Four coupled oscillators, whose forces are noisy as labels are."""
    generator = np.random.default_rng(0)
    positions = np.einsum("ij,fjk->fik", np.linalg.cholesky(COVARIANCE_nm2), generator.normal(size=(frames, 4, 3)))
    forces = -kT * np.einsum("ij,fjk->fik", np.linalg.inv(COVARIANCE_nm2), positions)
    forces += generator.normal(scale=100.0, size=forces.shape)
    numbers = np.arange(frames)
    return LabelledFrames(
        "GGGG", positions.astype(np.float32), forces.astype(np.float32), numbers.astype(np.int32), 1.0 * numbers, {}
    )


def test_the_mean_force_is_that_of_the_smeared_density():
    """Least squares of labels on positions; labels scatter by some 100 kJ/mol/nm, so coefficients by
    100 / (0.05 sqrt(3 frames)), about 4 kJ/mol/nm^2, and more for coupled beads. Without noise they are 240 larger."""
    frames = harmonic()
    (found,) = noised([frames], NOISE_nm, TEMPERATURE_K, seed=1)
    at, labels = (array.transpose(0, 2, 1).reshape(-1, 4).astype(float) for array in (found.positions, found.forces))
    slope = np.linalg.lstsq(at, labels)[0].T
    expected = -kT * np.linalg.inv(COVARIANCE_nm2 + NOISE_nm**2 * np.eye(4))
    np.testing.assert_allclose(slope, expected, atol=30.0)
    assert np.abs(slope + kT * np.linalg.inv(COVARIANCE_nm2)).max() > 200.0
    assert (found.forces**2).mean() < 0.8 * min((frames.forces**2).mean(), (kT / NOISE_nm) ** 2)


def test_a_training_depends_on_its_seed_alone_and_is_kept(tmp_path):
    params = TrainingParams(objective="forces_and_noise", epochs=2, checkpoint_epochs=1, preflight=False)
    shards = [labelled(shaken_beads(100), real_prior())]
    initial = initial_potential(real_prior(), SMALL_NETWORK, 3)
    first = train(shards, initial, params, seed=1, scratch=tmp_path)
    epochs = []
    kept = train(shards, initial, params, seed=1, scratch=tmp_path, progress=lambda *args: epochs.append(args[0]))
    assert not epochs
    again, other = (train(shards, initial, params, seed=seed) for seed in (1, 2))
    weights = [
        torch.nn.utils.parameters_to_vector(found.potential.network.parameters())
        for found in (first, kept, again, other)
    ]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_the_prior_is_that_of_noised_frames():
    """To first order in the noise: by far nearer than the prior of the frames as they were."""
    positions, params = shaken_beads(4000), PriorParams()
    noise = np.random.default_rng(1).standard_normal(positions.shape, dtype=np.float32) * np.float32(0.005)
    before, wanted = (fit_prior(each, SEQUENCE, TEMPERATURE_K, params) for each in (positions, positions + noise))
    found = smeared(before, 0.005)
    for name in ("bond_stiffness_kJ_per_mol_nm2", "angle_stiffness_kJ_per_mol_rad2"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=0.1, atol=0.0)
    assert (before.bond_stiffness_kJ_per_mol_nm2 / wanted.bond_stiffness_kJ_per_mol_nm2).min() > 1.5
    assert torch.equal(found.dihedral_sine_kJ_per_mol, before.dihedral_sine_kJ_per_mol)


def test_its_linear_rung_is_fitted_to_noised_frames():
    shards, prior = [labelled(shaken_beads(200), real_prior())], smeared(real_prior(), NOISE_nm)
    params = TrainingParams(objective="forces_and_noise", forces_and_noise={"noise_nm": NOISE_nm})
    found, of_noised = (
        fit_rung(shards, prior, params, seed=1),
        linear.fit_rung(noised(shards, NOISE_nm, TEMPERATURE_K, seed=1), prior, params),
    )
    assert found.summary() == of_noised.summary() != linear.fit_rung(shards, prior, params).summary()


def test_noise_does_not_depend_on_which_protein_comes_first():
    shards = [harmonic(20), replace(harmonic(20), sequence="GGGA")]
    forward, reverse = (noised(each, NOISE_nm, TEMPERATURE_K, seed=1) for each in (shards, shards[::-1]))
    for one, other in zip(forward, reverse[::-1], strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)
        np.testing.assert_array_equal(one.forces, other.forces)
