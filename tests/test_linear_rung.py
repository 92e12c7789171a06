"""The linear rung: what simulates it agrees with its definition, it finds pair forces, and it is silent about noise."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cgal.errors import BadTrajectory, EmptyTrajectory
from cgal.frames import LabelledFrames
from cgal.params import PriorParams, TrainingParams
from cgal.potential.architectures import freeze, initial_potential
from cgal.potential.checkpoint import load_checkpoint, save_checkpoint
from cgal.potential.linear_rung import Basis, unit_forces
from cgal.potential.pair_splines import COEFFICIENTS, FREE, INTERVALS, SPACING_nm, START_nm, spline_energies
from cgal.potential.potential import Potential
from cgal.potential.prior import fit_prior
from cgal.schnet.evaluator import Evaluator
from cgal.training.linear import fit_rung
from cgal.training.train import train
from tests.beads import SEQUENCE, SMALL_NETWORK, labelled, real_prior, shaken_beads

PAIRS = (len(SEQUENCE) - 3) * (len(SEQUENCE) - 2) // 2
PARAMS = TrainingParams(linear_rung=True, epochs=2, validation_block_frames=10, warm_start=False, preflight=False)


def splined(scale_kJ_per_mol: float = 3.0) -> Potential:
    coefficients = torch.zeros(PAIRS, COEFFICIENTS, dtype=torch.float64)
    coefficients[:, :FREE].normal_(std=scale_kJ_per_mol, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    dihedrals = len(SEQUENCE) - 3
    rung = {
        "pair_splines_kJ_per_mol": coefficients,
        "dihedral_series_kJ_per_mol": scale_kJ_per_mol * torch.randn(dihedrals, 3, 2, generator=generator),
        "dihedral_couplings_kJ_per_mol": scale_kJ_per_mol * torch.randn(dihedrals - 1, 2, 2, 2, 2, generator=generator),
    }
    return initial_potential(real_prior().with_rung(rung), SMALL_NETWORK, 0)


def test_a_spline_is_smooth_flat_below_and_zero_beyond():
    ends = START_nm + INTERVALS * SPACING_nm
    distances = torch.linspace(0.1, ends + 0.2, 4001, dtype=torch.float64).view(-1, 1)
    coefficients = torch.zeros(1, COEFFICIENTS, dtype=torch.float64)
    coefficients[:, :FREE].normal_(generator=torch.Generator().manual_seed(0))
    energies, slopes = (part.flatten().numpy() for part in spline_energies(distances, coefficients))
    inside = distances.flatten().numpy() > START_nm + 0.01
    difference = np.gradient(energies, distances.flatten().numpy())
    assert np.abs(difference - slopes)[inside][:-1].max() < 1e-3 * np.abs(slopes).max()
    assert np.ptp(energies[distances.flatten() < START_nm]) == 0.0
    assert not energies[distances.flatten() > ends + 1e-9].any()


@pytest.mark.parametrize("frozen", [freeze, Evaluator], ids=["compiled", "torch"])
def test_what_simulates_has_the_energies_and_forces_of_the_definition(frozen):
    """Squeezed and stretched chains reach below the first knot and beyond the last one."""
    positions = torch.from_numpy(shaken_beads(40))
    positions[:10] *= 0.6
    positions[10:20] *= 1.5
    potential = splined()
    energies, forces = potential.energy_and_forces(positions)
    found, pushes = frozen(potential).energy_and_forces(positions)
    assert (found - energies).abs().max() < 1e-5 * energies.abs().max()
    assert (pushes - forces).abs().max() < 1e-5 * forces.abs().max()


def test_pair_forces_are_found_and_the_potential_survives_its_checkpoint(tmp_path):
    frames = labelled(shaken_beads(400, sigma_nm=0.03), real_prior(), noise_kJ_per_mol_nm=20.0)
    result = train([frames], initial_potential(real_prior(), SMALL_NETWORK, 0), PARAMS, seed=1)
    summary = result.summary()
    assert summary["linear_rung"] == 1
    clean = labelled(shaken_beads(40, seed=5, sigma_nm=0.03), real_prior())
    left = clean.forces - real_prior().forces(torch.from_numpy(clean.positions)).numpy()
    explained = result.potential.prior.forces(torch.from_numpy(clean.positions)).numpy()
    assert np.square(clean.forces - explained).sum() < 0.15 * np.square(left).sum()
    save_checkpoint(tmp_path / "model.pt", result.potential, summary)
    again, _ = load_checkpoint(tmp_path / "model.pt")
    positions = torch.from_numpy(clean.positions)
    assert torch.equal(again.energy(positions), result.potential.energy(positions))


def test_forces_without_a_pattern_leave_no_rung_and_the_potential_as_without():
    frames = labelled(shaken_beads(200), real_prior())
    noise = np.random.default_rng(7).normal(scale=130.0, size=frames.forces.shape)
    forces = real_prior().forces(torch.from_numpy(frames.positions)).numpy() + noise
    nothing = LabelledFrames(
        SEQUENCE, frames.positions, forces.astype(np.float32), frames.trajectory, frames.time_ps, {}
    )
    initial = initial_potential(real_prior(), SMALL_NETWORK, 0)
    result = train([nothing], initial, PARAMS, seed=1)
    assert result.summary()["linear_rung"] == 0
    assert result.potential.prior.pair_splines_kJ_per_mol is None
    without = train([nothing], initial, PARAMS.model_copy(update={"linear_rung": False}), seed=1)
    assert result.curves == without.curves


def test_the_fit_is_the_same_to_the_bit_with_any_number_of_threads():
    frames = labelled(shaken_beads(200, sigma_nm=0.03), real_prior(), noise_kJ_per_mol_nm=20.0)
    before = torch.get_num_threads()
    fits = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            fits.append(fit_rung([frames], real_prior(), PARAMS))
        finally:
            torch.set_num_threads(before)
    one, two = (fit.prior.pair_splines_kJ_per_mol for fit in fits)
    assert one is not None
    assert torch.equal(one, two)


def test_what_cannot_be_fitted_is_named_before_the_fit():
    frames = labelled(shaken_beads(60), real_prior())
    spoilt = replace(frames, forces=frames.forces.copy())
    spoilt.forces[3, 2, 1] = np.nan
    initial = initial_potential(real_prior(), SMALL_NETWORK, 0)
    with pytest.raises(BadTrajectory, match=r"shard 001, frame 3: position or force not finite"):
        train([frames, spoilt], initial, PARAMS, seed=1)
    with pytest.raises(EmptyTrajectory, match="0 labelled frames leave 0 to train on"):
        train([frames.take(np.arange(0))], initial, PARAMS, seed=1)


@pytest.mark.parametrize("order", [0, 3])
def test_every_column_of_the_fit_is_the_force_of_its_coefficient(order):
    bare = real_prior(PriorParams(dihedral_order=order))
    basis = Basis.of(bare)
    positions = torch.from_numpy(shaken_beads(20, sigma_nm=0.03)).double()
    for column in np.random.default_rng(0).choice(sum(basis.sizes), 40, replace=False):
        unit = np.zeros(sum(basis.sizes))
        unit[column] = 1.0
        forces = bare.with_rung(basis.parts(unit)).forces(positions) - bare.forces(positions)
        found = unit_forces(positions, basis)[..., column].view(forces.shape)
        assert (found - forces).abs().max() < 1e-8 * (1.0 + forces.abs().max())


def pulled(frames: LabelledFrames) -> LabelledFrames:
    """The same with another 300 kJ/mol/nm between beads three apart."""
    forces = frames.forces.copy()
    along = frames.positions[:, 3:] - frames.positions[:, :-3]
    along *= 300 / np.linalg.norm(along, axis=2, keepdims=True)
    forces[:, :-3] += along
    forces[:, 3:] -= along
    return LabelledFrames(frames.sequence, frames.positions, forces, frames.trajectory, frames.time_ps, {})


def test_a_long_chain_shares_splines():
    sequence = "ACDEFGHIKLMNPQRSTV"
    generator = np.random.default_rng(0)
    straight = np.arange(18)[:, None] * np.array([0.38, 0.0, 0.0])
    positions = (straight + generator.normal(scale=0.05, size=(60, 18, 3))).astype(np.float32)
    prior = fit_prior(positions, sequence, 350.0, PriorParams())
    frames = LabelledFrames(
        sequence,
        positions,
        prior.forces(torch.from_numpy(positions)).numpy() + generator.normal(size=positions.shape).astype(np.float32),
        np.zeros(60, dtype=np.int32),
        np.arange(60.0),
        {},
    )
    design_forces = fit_rung([pulled(frames)], prior, PARAMS).prior.pair_splines_kJ_per_mol
    assert design_forces is not None
    assert torch.equal(design_forces[0], design_forces[17 - 2])  # both of separation 3: pairs 0-3 and 1-4
