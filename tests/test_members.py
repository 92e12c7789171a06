"""A committee's mean force is simulated, its spread is told, and its first member is what a single network would be."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cgal
from cgal.frames import CGTrajectory, LabelledFrames
from cgal.params import PaiNNParams, SimulationParams, TrainingParams
from cgal.potential.architectures import freeze, initial_potential
from cgal.potential.checkpoint import load_checkpoint, save_checkpoint
from cgal.potential.ensemble import Ensemble, force_spread, members_of
from cgal.potential.potential import Potential
from cgal.schnet.evaluator import Evaluator
from cgal.simulation.long_run import simulate_long
from cgal.simulation.run import simulate, start_engine
from cgal.training.figures import plot_training
from cgal.training.runs import write_curves_csv
from cgal.training.train import train
from tests.beads import SEQUENCE, SMALL_NETWORK, TEMPERATURE_K, labelled, real_prior, shaken_beads
from tests.test_relative_entropy import SHORT

FORCES = TrainingParams(epochs=6, checkpoint_epochs=2, members=2, preflight=False)
RUN = SimulationParams(replicas=12, steps=20, stride=10, timestep_ps=0.002)
OBJECTIVES = {
    "force_matching": FORCES,
    "relative_entropy": FORCES.model_copy(update={"objective": "relative_entropy", "relative_entropy": SHORT}),
}


def data() -> LabelledFrames:
    return labelled(shaken_beads(100), real_prior())


def fresh(params=SMALL_NETWORK) -> Potential:
    return initial_potential(real_prior(), params, 3)


@pytest.fixture(scope="module", params=OBJECTIVES)
def result(request):
    return train([data()], fresh(), OBJECTIVES[request.param], seed=11)


def alone(potential: Potential) -> list[Potential]:
    return [Potential(potential.prior, member) for member in members_of(potential.network)]


def forces_of_members(potential: Potential, positions: np.ndarray) -> np.ndarray:
    at = torch.from_numpy(positions)
    return np.stack([freeze(member).energy_and_forces(at)[1].numpy() for member in alone(potential)]).astype(float)


def test_simulated_energies_and_forces_are_the_mean_of_the_members(result):
    """To what float32 rounds off a force of some 1000 kJ/mol/nm."""
    at = torch.from_numpy(shaken_beads(30))
    for make in (freeze, Evaluator, lambda potential: potential):
        energies, forces = make(result.potential).energy_and_forces(at)
        each = [make(member).energy_and_forces(at) for member in alone(result.potential)]
        assert not torch.equal(each[0][1], each[1][1])
        torch.testing.assert_close(energies, (each[0][0] + each[1][0]) / 2, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(forces, (each[0][1] + each[1][1]) / 2, rtol=1e-5, atol=1e-2)


def test_the_engine_steps_by_the_mean_force(result):
    engine = start_engine(result.potential, shaken_beads(12), RUN, TEMPERATURE_K, 1, "cpu")
    engine.advance(5)
    expected = forces_of_members(result.potential, engine.snapshot().positions).mean(axis=0)
    np.testing.assert_allclose(engine.forces, expected, rtol=1e-5, atol=1e-2)


def test_a_trajectory_tells_the_spread_of_each_frame(result, tmp_path):
    run = simulate(result.potential, shaken_beads(12), RUN, temperature_K=TEMPERATURE_K, seed=4)
    expected = force_spread(forces_of_members(result.potential, run.positions))
    np.testing.assert_allclose(run.spread_of_forces, expected, rtol=1e-6)
    assert expected.min() > 0
    run.save(tmp_path / "trajectory.h5")
    kept = CGTrajectory.load(tmp_path / "trajectory.h5").take(np.arange(3))
    np.testing.assert_array_equal(kept.spread_of_forces, run.spread_of_forces[:3])
    long = simulate_long(
        result.potential, shaken_beads(12), RUN, temperature_K=TEMPERATURE_K, seed=4, folder=tmp_path / "pieces"
    )
    assert len(long.spread_of_forces) == len(long)
    single = simulate(alone(result.potential)[0], shaken_beads(12), RUN, temperature_K=TEMPERATURE_K, seed=4)
    assert single.spread_of_forces is None


def test_a_checkpoint_holds_all_members(result, tmp_path):
    save_checkpoint(tmp_path / "model.pt", result.potential, result.summary())
    loaded, _ = load_checkpoint(tmp_path / "model.pt", sequence=SEQUENCE, architecture=SMALL_NETWORK)
    assert isinstance(loaded.network, Ensemble)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in result.potential.state_dict().items())
    positions = shaken_beads(4)
    _, forces = cgal.load(tmp_path / "model.pt").energy_and_forces(positions)
    np.testing.assert_allclose(
        forces, forces_of_members(result.potential, positions).mean(axis=0), rtol=1e-5, atol=1e-2
    )


def test_the_first_member_is_the_single_network_and_a_warm_start_goes_on_with_each():
    both = train([data()], fresh(), FORCES, seed=11)
    single = train([data()], fresh(), FORCES.model_copy(update={"members": 1}), seed=11)
    weights = [
        torch.nn.utils.parameters_to_vector(member.parameters()) for member in members_of(both.potential.network)
    ]
    assert torch.equal(weights[0], torch.nn.utils.parameters_to_vector(single.potential.network.parameters()))
    warm = train([data()], both.potential, FORCES.model_copy(update={"epochs": 1}), seed=1)
    for before, after in zip(both.results, warm.results, strict=True):
        best = before.validation.model_rmse_kJ_per_mol_nm
        assert after.history[0].validation_rmse_kJ_per_mol_nm == pytest.approx(best, rel=1e-6)


def test_other_architectures_have_committees_too():
    params = PaiNNParams(features=8, blocks=1, radial_functions=6, cutoff_nm=0.9)
    found = train([data()], fresh(params), FORCES.model_copy(update={"epochs": 1}), seed=1).potential
    run = simulate(found, shaken_beads(12), RUN, temperature_K=TEMPERATURE_K, seed=4)
    np.testing.assert_allclose(run.spread_of_forces, force_spread(forces_of_members(found, run.positions)), rtol=1e-6)


def content(result, folder: Path) -> bytes:
    save_checkpoint(folder / "model.pt", result.potential, result.summary())
    write_curves_csv(result, folder / "training.csv")
    (figure,) = plot_training(result, folder)
    assert figure.read_bytes().startswith(b"\x89PNG")
    return (folder / "model.pt").read_bytes() + (folder / "training.csv").read_bytes()


def train_until_killed(scratch: str) -> None:
    """Run in a process of its own, which kills itself the hard way in the second network's epoch 3 of 6."""

    def kill(done: int, total: int, note: str = "") -> None:
        if done == 9:
            signal.raise_signal(signal.SIGKILL)

    train([data()], fresh(), FORCES, seed=11, scratch=Path(scratch), progress=kill)


def test_killed_training_ends_with_the_same_bytes(tmp_path):
    scratch = tmp_path / "scratch"
    command = f"from tests.test_members import train_until_killed; train_until_killed({str(scratch)!r})"
    process = subprocess.run([sys.executable, "-W", "ignore", "-c", command], cwd=Path(__file__).parents[1])
    assert process.returncode == -signal.SIGKILL
    seen = []
    continued = train([data()], fresh(), FORCES, seed=11, scratch=scratch, progress=lambda *args: seen.append(args[0]))
    assert seen[0] == 9
    assert content(continued, tmp_path) == content(train([data()], fresh(), FORCES, seed=11), tmp_path)
