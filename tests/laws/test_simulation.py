"""Laws of the Langevin integrator and of the quarantine, on potentials whose answer is known."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cgal.frames import AtomFrames, alpha_carbons, sequence_of
from cgal.params import PriorParams, SchNetParams, SimulationParams
from cgal.potential.architectures import initial_potential
from cgal.potential.prior import fit_prior
from cgal.simulation import simulate
from cgal.simulation.langevin import BAOAB, State
from cgal.units import thermal_energy_kJ_per_mol

TEMPERATURE_K = 350.0
kT = thermal_energy_kJ_per_mol(TEMPERATURE_K)
MASS_AMU = 100.0
SITES = np.arange(6)[:, None] * np.array([0.38, 0.0, 0.0])
STARTS = np.repeat(SITES[None], 3, axis=0).astype(np.float32)


class Wells:
    """Each bead in its own harmonic well: energy k/2 |x - site|^2."""

    sequence = "GGGGGG"

    def __init__(self, k: float = 2000.0) -> None:
        self.k = k
        self.sites = torch.tensor(SITES, dtype=torch.float32)

    def to(self, device):
        return self

    def energy_and_forces(self, positions):
        shift = positions - self.sites
        return 0.5 * self.k * shift.square().sum((1, 2)), -self.k * shift


class Bomb(Wells):
    """Wells whose replica 1 gets an extra force from its fifth evaluation on."""

    def __init__(self, extra: torch.Tensor) -> None:
        super().__init__()
        self.extra, self.calls = extra, 0

    def energy_and_forces(self, positions):
        energy, forces = super().energy_and_forces(positions)
        self.calls += 1
        if self.calls >= 5:
            forces[1] = forces[1] + self.extra
        return energy, forces


def integrator(timestep_ps, friction_per_ps, k=2000.0):
    return BAOAB(Wells(k), timestep_ps, MASS_AMU, friction_per_ps, kT)


def params(**changes):
    return SimulationParams(**{"replicas": 4, "steps": 40, "stride": 4, "minimum_distance_nm": 0.05, **changes})


def test_kinetic_energy_per_degree_of_freedom_is_half_kT():
    """3600 degrees of freedom, 150 steps that decorrelate over 5: 1e5 independent samples, so 0.4 % standard error.

    BAOAB's own bias here is (omega dt)^2 / 4 = 0.05 %.
    """
    langevin = integrator(timestep_ps=0.01, friction_per_ps=10.0)
    generator = torch.Generator().manual_seed(1)
    positions = torch.from_numpy(np.repeat(SITES[None], 200, axis=0)).float()
    state = State(positions, torch.zeros_like(positions), langevin.forces(positions))
    energies = []
    for step in range(250):
        state = langevin.step(state, torch.randn(positions.shape, generator=generator))
        if step >= 100:
            energies.append(0.5 * MASS_AMU * state.velocities.double().square().mean().item())
    assert np.mean(energies) == pytest.approx(0.5 * kT, rel=0.02)


def test_initial_velocities_are_maxwell_boltzmann():
    assert integrator(0.01, 1.0).thermal_speed_nm_per_ps ** 2 * MASS_AMU == pytest.approx(kT)


def test_position_variance_of_a_harmonic_well_is_exact_at_a_large_step():
    """Variance kT/k at omega dt = 0.9, where the order O B A B O would be off by 25 %; standard error about 0.5 %."""
    k = 2000.0
    run = params(
        replicas=64, steps=600, stride=2, timestep_ps=0.2, friction_per_ps=5.0, bead_mass_amu=MASS_AMU,
        maximum_bond_nm=10.0, minimum_distance_nm=0.0,
    )  # fmt: skip
    trajectory = simulate(Wells(k), STARTS, run, temperature_K=TEMPERATURE_K, seed=2)
    settled = trajectory.positions[trajectory.time_ps > 10.0].astype(np.float64) - SITES
    assert np.var(settled) == pytest.approx(kT / k, rel=0.02)
    assert np.abs(settled.mean(axis=0)).max() < 5 * np.sqrt(kT / k / (len(settled) / 10))


def largest_energy_error(timestep_ps):
    langevin = integrator(timestep_ps, friction_per_ps=1e-9)
    positions = torch.from_numpy(SITES[None] + 0.05).float()
    velocities = torch.full_like(positions, 0.1)
    state = State(positions, velocities, langevin.forces(positions))
    energies = []
    for _ in range(round(4.0 / timestep_ps)):
        energy = langevin.model.energy_and_forces(state.positions)[0].item()
        energies.append(energy + 0.5 * MASS_AMU * state.velocities.square().sum().item())
        state = langevin.step(state, torch.zeros_like(positions))
    return np.abs(np.array(energies) / energies[0] - 1).max()


def test_energy_is_conserved_without_friction_to_second_order_in_the_step():
    """Without friction BAOAB is velocity Verlet, whose energy error is (omega dt)^2 / 8 at most in a harmonic well."""
    coarse, fine = largest_energy_error(0.04), largest_energy_error(0.02)
    assert coarse < (2000.0 / MASS_AMU) * 0.04**2 / 4
    assert coarse / fine == pytest.approx(4.0, rel=0.1)


def test_same_seed_same_bytes_and_another_seed_another_trajectory():
    first, again = (simulate(Wells(), STARTS, params(), temperature_K=TEMPERATURE_K, seed=7) for _ in range(2))
    other = simulate(Wells(), STARTS, params(), temperature_K=TEMPERATURE_K, seed=8)
    assert first.positions.tobytes() == again.positions.tobytes()
    assert first.positions.tobytes() != other.positions.tobytes()


def pull(bead, force):
    extra = torch.zeros(6, 3)
    extra[bead, 0] = force
    return extra


@pytest.mark.parametrize(
    ("extra", "cause", "step"),
    [
        (torch.full((6, 3), torch.nan), "not finite", 5),  # the fifth evaluation gives the force of step 4
        (pull(5, 1e5), "exploded", None),
        (pull(2, -2e5), "imploded", None),
    ],
)
def test_lost_replica_is_quarantined_and_leaves_the_others_unchanged(extra, cause, step):
    """Replica 1 keeps its frames up to the loss; the other replicas are the same to the bit."""
    run = params(minimum_distance_nm=0.2 if cause == "imploded" else 0.05, maximum_bond_nm=0.9)
    sound = simulate(Wells(), STARTS, run, temperature_K=TEMPERATURE_K, seed=3)
    broken = simulate(Bomb(extra), STARTS, run, temperature_K=TEMPERATURE_K, seed=3)
    assert [fate.cause for fate in sound.fates] == ["completed"] * 4
    assert [fate.cause for fate in broken.fates] == ["completed", cause, "completed", "completed"]
    lost_at = broken.fates[1].last_step
    assert lost_at == step if step else 5 <= lost_at < 40
    assert broken.time_ps[broken.replica == 1].tolist() == [
        time for time in sound.time_ps[sound.replica == 1] if time < lost_at * run.timestep_ps
    ]
    assert sound.positions[sound.replica != 1].tobytes() == broken.positions[broken.replica != 1].tobytes()
    assert np.isfinite(broken.positions).all()


def test_a_broken_replica_of_the_real_network_leaves_the_others_unchanged():
    """Prior and SchNet on real chignolin frames; one of the starts is not a number, or torn apart."""
    atoms = AtomFrames.load(Path(__file__).parents[1] / "data" / "chignolin_small.h5")
    sequence = sequence_of(atoms.topology)
    beads = atoms.positions[:, alpha_carbons(atoms.topology)]
    prior = fit_prior(beads, sequence, TEMPERATURE_K, PriorParams())
    potential = initial_potential(prior, SchNetParams(features=16), seed=1)
    torch.nn.init.normal_(potential.network.readout[-1].weight, std=0.1, generator=torch.Generator().manual_seed(1))
    run = SimulationParams(replicas=4, steps=20, stride=10)
    sound = simulate(potential, beads[:4], run, temperature_K=TEMPERATURE_K, seed=3)
    assert not any(fate.lost for fate in sound.fates)
    for fault, cause in ((np.nan, "not finite"), (5.0, "exploded")):
        starts = beads[:4].copy()
        starts[2, 4] += fault
        broken = simulate(potential, starts, run, temperature_K=TEMPERATURE_K, seed=3)
        (lost,) = [fate for fate in broken.fates if fate.lost]
        assert (lost.last_step, lost.cause) == (0, cause)
        assert sound.positions[sound.replica != lost.replica].tobytes() == broken.positions.tobytes()
