"""The evaluator is the potential: the same energies and forces, found by hand-written gradients and tables.

The potential in float64 is the truth. Forces may differ by 1e-4 of their rms, ten times what float32 rounds off.
"""

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schnetpack import properties
from scipy.spatial.transform import Rotation

from cgal.params import PriorParams, SchNetParams
from cgal.potential.architectures import initial_potential, new_network
from cgal.potential.network import ENERGY_SCALE_kJ_per_mol
from cgal.potential.potential import Potential
from cgal.potential.prior import fit_prior
from cgal.schnet.evaluator import Evaluator
from cgal.schnet.fused import FusedEvaluator
from tests.beads import SEQUENCE, SMALL_NETWORK, TEMPERATURE_K, real_beads, real_prior, shaken_beads

type AnyEvaluator = Evaluator | FusedEvaluator
EVALUATORS = (Evaluator, FusedEvaluator)
ARCHITECTURES = [SchNetParams(), SchNetParams(features=8, blocks=1, radial_functions=6, cutoff_nm=0.8)]


def trained(params: SchNetParams, sequence: str = SEQUENCE, seed: int = 0) -> Potential:
    """Potential whose readout, biases and embedding are far from where a fresh network has them."""
    prior = real_prior() if sequence == SEQUENCE else fit_prior(chain(sequence), sequence, TEMPERATURE_K, PriorParams())
    network, generator = new_network(params, seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        network.readout[-1].weight.normal_(generator=generator)
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3, generator=generator)
    return Potential(prior, network)


def chain(sequence: str) -> np.ndarray:
    """Random walks of steps around 0.38 nm that never turn back sharply."""
    steps = np.random.default_rng(0).normal(size=(8, len(sequence), 3)) * 0.5 + [1.0, 0.0, 0.0]
    lengths_nm = np.random.default_rng(1).normal(0.38, 0.01, size=(8, len(sequence), 1))
    steps *= lengths_nm / np.linalg.norm(steps, axis=2, keepdims=True)
    return steps.cumsum(axis=1).astype(np.float32)


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda params: f"{params.features}x{params.blocks}")
def potential(request) -> Potential:
    return trained(request.param)


@pytest.fixture(scope="module", params=EVALUATORS)
def evaluator(request, potential) -> AnyEvaluator:
    return request.param(potential)


def assert_agree(evaluator: AnyEvaluator, potential: Potential, positions: torch.Tensor) -> None:
    expected_energies, expected = deepcopy(potential).double().energy_and_forces(positions.double())
    energies, forces = evaluator.energy_and_forces(positions)
    assert energies.dtype == forces.dtype == torch.float32
    rms = expected.square().mean().sqrt()
    assert float((forces - expected).abs().max() / rms) < 1e-4
    torch.testing.assert_close(energies.double(), expected_energies, rtol=2e-6, atol=2e-3)


@given(st.integers(0, 2**31 - 1), st.sampled_from([0.004, 0.03]))
@settings(max_examples=4, deadline=None)
def test_energies_and_forces_are_those_of_the_potential(potential, evaluator, seed, sigma_nm):
    assert_agree(evaluator, potential, torch.from_numpy(shaken_beads(12, seed, sigma_nm)))


def schnetpack_forces(potential: Potential, positions: torch.Tensor) -> torch.Tensor:
    """Forces of the prior and of schnetpack's own `SchNet.forward` on ordered pairs, in float64, by autograd."""
    exact = deepcopy(potential).double()
    frames, beads = positions.shape[:2]
    at = positions.double().requires_grad_()
    frame, i, j = (~torch.eye(beads, dtype=torch.bool)).repeat(frames, 1, 1).nonzero().unbind(1)
    centre, neighbour = frame * beads + i, frame * beads + j
    flat = at.reshape(-1, 3)
    inputs = {
        properties.Z: exact.types.repeat(frames),
        properties.Rij: flat[neighbour] - flat[centre],
        properties.idx_i: centre,
        properties.idx_j: neighbour,
    }
    features = exact.network.representation(inputs)["scalar_representation"]
    energy = exact.prior.energy(at).sum() + ENERGY_SCALE_kJ_per_mol * exact.network.readout(features).sum()
    return -torch.autograd.grad(energy, at)[0]


@pytest.mark.parametrize("scale", [0.6, 0.9, 1.0, 1.4, 2.5])
def test_forces_are_those_of_schnetpacks_own_module(potential, evaluator, scale):
    """Fresh random frames, compressed and stretched; 1e-4 of the rms force."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    positions = torch.from_numpy(shaken_beads(8, seed, 0.03)) * scale
    expected = schnetpack_forces(potential, positions)
    error = (evaluator.energy_and_forces(positions)[1] - expected).abs().max() / expected.square().mean().sqrt()
    assert float(error) < 1e-4, f"seed {seed}"


@pytest.mark.parametrize("kind", EVALUATORS)
def test_the_table_errs_as_its_bound_says(kind):
    """Forces use the spline's slope, whose error falls as the third power of the interval: 8 times a halving."""
    potential, positions = trained(SchNetParams()), torch.from_numpy(shaken_beads(12))
    exact = deepcopy(potential).double().energy_and_forces(positions.double())[1]
    evaluators = (kind(potential, intervals) for intervals in (32, 64))
    coarse, fine = (float((evaluator.energy_and_forces(positions)[1] - exact).abs().max()) for evaluator in evaluators)
    assert 4 < coarse / fine < 16


@pytest.mark.parametrize("scale", [0.6, 0.8, 1.3, 2.0, 4.0])
def test_they_agree_on_stretched_and_compressed_chains(potential, evaluator, scale):
    """Pairs down to 0.15 nm, about the cutoff and far past it."""
    assert_agree(evaluator, potential, torch.from_numpy(real_beads()[:10]) * scale)


def test_they_agree_with_a_pair_across_the_cutoff(potential, evaluator):
    """The last bead is put at distances from the first that straddle the cutoff by float32's last digits."""
    cutoff_nm = potential.network.params.cutoff_nm
    shifts = torch.tensor([-1e-2, -1e-3, -1e-5, -1e-7, 0.0, 1e-7, 1e-5, 1e-3])
    positions = torch.from_numpy(real_beads())[:1].repeat(len(shifts), 1, 1)
    away = torch.nn.functional.normalize(positions[:, -1] - positions[:, 0], dim=1)
    positions[:, -1] = positions[:, 0] + (cutoff_nm + shifts)[:, None] * away
    assert_agree(evaluator, potential, positions)


@pytest.mark.parametrize("kind", EVALUATORS)
def test_forces_of_nearly_straight_and_of_folded_back_chains_agree(kind):
    """Where bonds are collinear the coordinates are rounded off; the two round off alike."""
    potential = trained(SMALL_NETWORK)
    line = torch.arange(10)[:, None] * torch.tensor([0.38, 0.0, 0.0])
    noise = torch.randn(6, 10, 3, generator=torch.Generator().manual_seed(0))
    bent = line + torch.tensor([0.0, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1])[:, None, None] * noise
    evaluator = kind(potential)
    assert_agree(evaluator, potential, bent[2:])
    assert evaluator.energy_and_forces(bent)[1].isfinite().all()


@pytest.mark.parametrize("kind", EVALUATORS)
@pytest.mark.parametrize("sequence", ["YDPE", "ACDEFGHIKLMNPQRSTVWY"])
def test_chains_of_other_lengths_agree(kind, sequence):
    potential = trained(SMALL_NETWORK, sequence)
    assert_agree(kind(potential), potential, torch.from_numpy(chain(sequence)))


@pytest.mark.parametrize("kind", EVALUATORS)
def test_forces_are_minus_the_gradient_of_the_tabulated_energy(kind):
    """The spline's slope is its own: along a straight path the work of the forces is the loss of energy.

    1000 midpoints over 0.1 nm a bead err by 1e-7; float32 energies of 1e3 kJ/mol by 1e-4.
    """
    evaluator = kind(trained(SMALL_NETWORK))
    ends = torch.from_numpy(real_beads()[[0, -1]])
    path = torch.linspace(0, 1, 1001)[:, None, None]
    points = ends[0] + path * (ends[1] - ends[0])
    middles = (points[1:] + points[:-1]) / 2
    forces = evaluator.energy_and_forces(middles)[1].double()
    work = (forces * (points[1:] - points[:-1]).double()).sum()
    first, last = evaluator.energy_and_forces(points[[0, -1]])[0].double()
    assert abs(float(first - last)) > 1.0
    assert float(work) == pytest.approx(float(first - last), abs=0.01)


def test_no_net_force_and_no_net_torque(evaluator):
    """Forces of 400 kJ/mol/nm in float32: sums of ten are rounded off at 1e-3."""
    positions = torch.from_numpy(shaken_beads(20))
    _, forces = evaluator.energy_and_forces(positions)
    assert float(forces.abs().max()) > 100.0
    assert float(forces.sum(1).abs().max()) < 2e-3
    assert float(torch.linalg.cross(positions, forces).sum(1).abs().max()) < 5e-3


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=4, deadline=None)
def test_energy_is_invariant_and_forces_turn_along_under_rigid_motion(evaluator, seed):
    generator = np.random.default_rng(seed)
    turn = torch.from_numpy(Rotation.random(rng=generator).as_matrix()).float()
    positions = torch.from_numpy(shaken_beads(8))
    energies, forces = evaluator.energy_and_forces(positions)
    moved_energies, moved_forces = evaluator.energy_and_forces(positions @ turn.T + 0.5)
    torch.testing.assert_close(moved_energies, energies, rtol=1e-5, atol=5e-3)
    rms = forces.square().mean().sqrt()
    assert float((moved_forces - forces @ turn.T).abs().max() / rms) < 2e-4


@pytest.mark.parametrize("kind", EVALUATORS)
def test_of_an_untrained_potential_it_is_the_prior(kind):
    potential = initial_potential(real_prior(), SMALL_NETWORK, 0)
    positions = torch.from_numpy(shaken_beads(12))
    energies, forces = kind(potential).energy_and_forces(positions)
    exact = real_prior()
    torch.testing.assert_close(energies.double(), exact.energy(positions.double()), rtol=1e-5, atol=1e-3)
    expected = exact.forces(positions.double())
    assert float((forces - expected).abs().max() / expected.square().mean().sqrt()) < 1e-4


def test_same_positions_same_bits_and_a_broken_frame_leaves_the_others_unchanged(potential, evaluator):
    positions = torch.from_numpy(shaken_beads(12))
    first, again = evaluator.energy_and_forces(positions), type(evaluator)(potential).energy_and_forces(positions)
    for fault in (torch.nan, torch.inf, 1e30):
        broken = positions.clone()
        broken[3, 4] = fault
        third = evaluator.energy_and_forces(broken)
        for one, two, three in zip(first, again, third, strict=True):
            assert torch.equal(one, two)
            others = torch.arange(12) != 3
            assert torch.equal(one[others], three[others])


@pytest.mark.parametrize("kind", EVALUATORS)
def test_it_is_frozen_while_the_potential_may_go_on_learning(kind):
    potential = trained(SMALL_NETWORK)
    evaluator, positions = kind(potential), torch.from_numpy(shaken_beads(3))
    before = evaluator.energy_and_forces(positions)[0]
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.add_(0.1)
        for term in potential.prior.buffers():
            term.add_(0.1)
    assert torch.equal(evaluator.energy_and_forces(positions)[0], before)
