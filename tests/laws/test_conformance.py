"""What every potential in the table of architectures keeps, in float64 so that no tolerance hides a sign."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cgal.params import NetworkParams, SimulationParams, section_models
from cgal.potential.architectures import ARCHITECTURES, architecture_of, freeze, initial_potential
from cgal.potential.checkpoint import load_checkpoint, save_checkpoint
from cgal.potential.energy_gradient import AutogradEnergies
from cgal.potential.force_matching import AutogradForceMatching, worker_threads
from cgal.potential.potential import Potential
from cgal.simulation.run import simulate
from tests.beads import SEQUENCE, contact_forces, real_beads, real_prior, shaken_beads

SMALL = {"features": 16, "blocks": 2, "radial_functions": 12, "cutoff_nm": 1.2}
PARAMS = {model.model_fields["architecture"].default: model(**SMALL) for model in section_models(NetworkParams)}


def test_every_architecture_of_the_params_is_in_the_table():
    assert set(PARAMS) == set(ARCHITECTURES)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def single(request: pytest.FixtureRequest) -> Potential:
    """Prior plus a network with a readout far from zero, in float32 as it is used."""
    made = initial_potential(real_prior(), PARAMS[request.param], 0)
    with torch.no_grad():
        made.network.readout[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    return made


@pytest.fixture
def double(single: Potential) -> Iterator[Potential]:
    """The same in float64."""
    torch.set_default_dtype(torch.float64)
    yield single.double()
    torch.set_default_dtype(torch.float32)
    single.float()


@pytest.fixture(scope="module")
def positions() -> torch.Tensor:
    return torch.from_numpy(real_beads()[:6].astype(np.float64))


def test_forces_are_minus_the_gradient(double, positions):
    """Central differences of step h err by h^2 |U'''| / 6: about 1e-4 of a 400 kJ/mol/nm force at h = 1e-5 nm."""
    step = 1e-5
    displacements = step * torch.eye(30, dtype=torch.float64).view(30, 10, 3)
    for frame in positions[:2]:
        rise = double.energy(frame + displacements) - double.energy(frame - displacements)
        expected = -(rise / (2 * step)).view(10, 3).detach()
        forces = double.forces(frame[None])[0]
        assert float(forces.abs().max()) > 100.0
        torch.testing.assert_close(forces, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_energy_is_invariant_and_forces_turn_along_under_rigid_motion(double, positions, seed):
    generator = np.random.default_rng(seed)
    turn = torch.from_numpy(Rotation.random(rng=generator).as_matrix())
    shift = torch.from_numpy(generator.normal(size=3))
    energies, forces = double.energy_and_forces(positions)
    moved_energies, moved_forces = double.energy_and_forces(positions @ turn.T + shift)
    torch.testing.assert_close(moved_energies, energies, rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(moved_forces, forces @ turn.T, rtol=1e-8, atol=1e-7)


def test_frames_of_a_batch_do_not_see_one_another(double, positions):
    together, forces = double.energy_and_forces(positions)
    alone = [double.energy_and_forces(frame[None]) for frame in positions]
    torch.testing.assert_close(together, torch.cat([energy for energy, _ in alone]))
    torch.testing.assert_close(forces, torch.cat([force for _, force in alone]))


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_energies_and_forces_are_finite_on_squeezed_and_stretched_chains(single, positions, scale):
    energies, forces = single.energy_and_forces(scale * positions.float())
    assert energies.isfinite().all()
    assert forces.isfinite().all()


def test_a_fresh_network_is_silent_and_depends_on_its_seed_alone(single, positions):
    fresh, again, other = (initial_potential(single.prior, single.network.params, seed) for seed in (1, 1, 2))
    assert not fresh.network(positions.float(), fresh.types).any()
    weights = [torch.nn.utils.parameters_to_vector(one.network.parameters()) for one in (fresh, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_checkpoint_gives_the_same_numbers(single, positions, tmp_path):
    save_checkpoint(tmp_path / "model.pt", single, {"round": 3})
    loaded, metadata = load_checkpoint(tmp_path / "model.pt", sequence=SEQUENCE, architecture=single.network.params)
    assert metadata == {"round": 3}
    for mine, saved in zip(
        loaded.energy_and_forces(positions.float()), single.energy_and_forces(positions.float()), strict=True
    ):
        assert torch.equal(mine, saved)


def test_the_frozen_model_has_the_potentials_energies_and_forces(single):
    """Tables and another order of sums: 1e-5 of the largest force, and of the spread of energies."""
    at = torch.from_numpy(shaken_beads(40))
    energies, forces = freeze(single).energy_and_forces(at)
    expected_energies, expected = single.energy_and_forces(at)
    torch.testing.assert_close(forces, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    torch.testing.assert_close(energies, expected_energies, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("bond_weight", [1.0, 0.1])
def test_the_gradient_of_force_matching_is_that_of_automatic_differentiation(single, bond_weight):
    at = torch.from_numpy(shaken_beads(24))
    labels = torch.from_numpy(contact_forces(at.numpy())).float()
    found = []
    for kind in (AutogradForceMatching, architecture_of(single.network.params).force_matching):
        with worker_threads(2) as parallel_map:
            matching = kind(single.network, [at], parallel_map, bond_weight)
            found.append((matching.forces(single.types, at), *matching.gradient(single.types, at, labels)))
    for expected, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_gradient_of_energies_is_their_difference_quotient(double, positions):
    """Along a random direction in the space of weights, in float64: central differences err by h^2."""
    energies = architecture_of(double.network.params).energies(double.network)
    linear, quadratic = torch.linspace(-1.0, 1.0, 6), torch.linspace(0.1, 0.2, 6)

    def total() -> torch.Tensor:
        found = energies.energies(double.types, positions)
        return (linear * found + 0.5 * quadratic * found.square()).sum()

    found, gradient = energies.gradient(double.types, positions, linear, quadratic)
    torch.testing.assert_close(found, double.network(positions, double.types).detach())
    step = 1e-6 * torch.randn(energies.weights.shape, generator=torch.Generator().manual_seed(0))
    energies.weights += step
    rise = total()
    energies.weights -= 2 * step
    assert float(rise - total()) == pytest.approx(2 * float(gradient @ step), rel=1e-5)


def test_energies_and_their_gradient_are_those_of_automatic_differentiation(single):
    """Beyond the cutoff and nearer than any two beads come, too."""
    at = torch.from_numpy(shaken_beads(70)) * torch.linspace(0.3, 2.0, 70)[:, None, None]
    linear, quadratic = torch.linspace(-1.0, 1.0, 70), torch.full((70,), 1e-3)
    found = []
    for kind in (AutogradEnergies, architecture_of(single.network.params).energies):
        energies = kind(single.network)
        found.append((energies.energies(single.types, at), *energies.gradient(single.types, at, linear, quadratic)))
    for expected, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_weights_of_force_matching_are_changed_in_place(single):
    at = torch.from_numpy(shaken_beads(4))
    matching = architecture_of(single.network.params).force_matching(single.network, [at])
    before = matching.forces(single.types, at)
    matching.weights *= 0.5
    assert not torch.equal(matching.forces(single.types, at), before)


def test_threads_change_no_bit_of_the_gradient(single):
    at = torch.from_numpy(shaken_beads(64))
    labels = torch.from_numpy(contact_forces(at.numpy())).float()
    gradients = []
    for threads in (1, 2):
        with worker_threads(threads) as parallel_map:
            matching = architecture_of(single.network.params).force_matching(single.network, [at], parallel_map)
            gradients.append(matching.gradient(single.types, at, labels)[1])
    assert torch.equal(*gradients)


def test_it_is_simulated_and_the_same_seed_gives_the_same_frames(single):
    params = SimulationParams(replicas=6, steps=20, stride=10, timestep_ps=0.002)
    first, second = (simulate(single, shaken_beads(6), params, temperature_K=300.0, seed=4) for _ in range(2))
    assert np.array_equal(first.positions, second.positions)
    assert len(first.positions) == 12
