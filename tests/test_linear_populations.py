"""The linear rung that is fitted to populations: what it knows, when it is silent, and that a killed fit goes on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cgal.frames import LabelledFrames
from cgal.params import DynamicsParams, PopulationsRungParams, PriorParams, RelativeEntropyParams, TrainingParams
from cgal.potential.architectures import initial_potential, new_network, without_network
from cgal.potential.geometry import dihedral_angles, internal_coordinates
from cgal.potential.linear_rung import Basis, unit_energies
from cgal.potential.potential import Potential
from cgal.potential.prior import Prior
from cgal.simulation.run import simulate
from cgal.training import relative_entropy
from cgal.training.figures import plot_training
from cgal.training.linear_populations import PopulationsRung, RungLearner, fit_rung, refit
from cgal.training.train import train
from tests.beads import SMALL_NETWORK, TEMPERATURE_K, real_prior, shaken_beads
from tests.test_relative_entropy import shard

SAMPLING = DynamicsParams(replicas=128, steps=12000, stride=300, timestep_ps=0.01)
ENTROPY = RelativeEntropyParams(
    look_replicas=128,
    settle_steps=8000,
    average_updates=30,
    dynamics=DynamicsParams(replicas=32, steps=100, stride=50, timestep_ps=0.01),
    rung=PopulationsRungParams(updates=100, prior_frames=10.0),
)
PARAMS = TrainingParams(
    objective="relative_entropy",
    relative_entropy=ENTROPY,
    linear_rung=True,
    validation_block_frames=24,
    preflight=False,
    warm_start=False,
)


def twisted() -> Prior:
    """One dihedral, and its coupling with the next, are pulled by a few k_B T."""
    bare = real_prior()
    basis = Basis.of(bare)
    coefficients = np.zeros(sum(basis.sizes))
    splines, series, _ = basis.sizes
    coefficients[splines : splines + 2] = -6.0, 9.0
    coefficients[splines + series : splines + series + 2] = 7.0, 3.0
    return bare.with_rung(basis.parts(coefficients))


def sampled(prior: Prior, seed: int) -> LabelledFrames:
    run = simulate(without_network(prior), shaken_beads(64), SAMPLING, temperature_K=TEMPERATURE_K, seed=seed)
    return shard(run.positions[run.time_ps > 0.4 * run.time_ps.max()])


@pytest.fixture(scope="module")
def frames() -> LabelledFrames:
    return sampled(twisted(), 1)


@pytest.fixture(scope="module")
def rung(frames) -> PopulationsRung:
    return fit_rung([frames], real_prior(), PARAMS, seed=1)


@pytest.fixture(scope="module")
def of_prior() -> LabelledFrames:
    return sampled(real_prior(), 3)


def sine(positions: np.ndarray) -> float:
    """Mean sine of the first dihedral: SchNet is blind to it."""
    angles = dihedral_angles(internal_coordinates(torch.from_numpy(positions.astype(np.float64))))
    return float(np.sin(angles[:, 0]).mean())


@pytest.mark.parametrize("order", [0, 3])
def test_unit_energies_are_those_of_a_prior_with_such_a_rung(order):
    positions = torch.from_numpy(shaken_beads(20, sigma_nm=0.03)).double()
    bare = real_prior(PriorParams(dihedral_order=order))
    basis = Basis.of(bare)
    coefficients = np.random.default_rng(0).normal(size=sum(basis.sizes))
    of_rung = bare.with_rung(basis.parts(coefficients)).energy(positions) - bare.energy(positions)
    found = unit_energies(positions, basis) @ torch.from_numpy(coefficients)
    assert (found - of_rung).abs().max() < 1e-9 * of_rung.abs().max()


def test_a_twist_that_a_network_cannot_see_is_learned(frames, rung, of_prior):
    assert rung.weight == 1
    assert rung.result.best.held_out_change_kT < 0
    learned, unlearned, wanted = (sine(each.positions) for each in (sampled(rung.prior, 2), of_prior, frames))
    assert abs(learned - wanted) < 0.25 * abs(unlearned - wanted)


def test_the_gradient_vanishes_where_model_and_data_are_the_same_frames(frames):
    data = relative_entropy.prepare([frames], without_network(real_prior()), PARAMS)
    learner = RungLearner(without_network(real_prior()), data, PARAMS, 1)
    gap, gradient = learner.gradient(data.training, data.training)
    assert abs(gap) < 1e-9
    assert gradient.abs().max() < 1e-9
    _, shifted = learner.gradient(data.training, data.training[:200])
    assert shifted.norm() > 0.01


def test_frames_of_the_prior_itself_leave_no_rung(of_prior):
    assert fit_rung([of_prior], real_prior(), PARAMS, seed=1).weight == 0


def on_rung(rung: PopulationsRung, strength: float) -> Potential:
    """A network that was not trained, with readouts of this strength."""
    network = new_network(SMALL_NETWORK, 3)
    with torch.no_grad():
        network.readout[-1].weight.normal_(std=strength, generator=torch.Generator().manual_seed(3))
    return Potential(rung.prior, network)


def test_beneath_a_network_the_rung_is_moved_to_leave_the_populations_as_they_were(frames, rung):
    """A network that pulls at the chain moves them away from those of the rung alone; most of that is taken back."""
    trained = on_rung(rung, strength=2.0)
    moved = refit(rung, trained, PARAMS, seed=1)
    assert moved.moved == 1
    assert 0.2 < moved.effective_share < 0.8
    assert torch.equal(moved.potential.network.readout[-1].weight, trained.network.readout[-1].weight)

    def averages(potential: Potential) -> torch.Tensor:
        run = simulate(potential, frames.positions[:128], SAMPLING, temperature_K=TEMPERATURE_K, seed=5)
        return (rung.learner.unit(torch.from_numpy(run.positions)) @ rung.learner.scale).mean(0) / rung.learner.kT

    wanted = averages(without_network(rung.prior))
    assert (averages(moved.potential) - wanted).norm() < 0.5 * (averages(trained) - wanted).norm()


def test_a_network_that_has_left_the_frames_of_the_rung_behind_does_not_move_it(rung):
    trained = on_rung(rung, strength=200.0)
    left = refit(rung, trained, PARAMS, seed=1)
    assert left.moved == 0
    assert left.effective_share < 0.01
    assert left.potential is trained


def test_of_a_single_block_nothing_is_known(frames):
    few = frames.take(np.arange(100))  # four whole blocks, one of which is held out
    assert fit_rung([few], real_prior(), PARAMS, seed=1).weight == 0


@pytest.mark.parametrize("force", [0.0, np.nan])
def test_frames_without_forces_have_no_rung_by_forces_where_populations_give_none(frames, force):
    few = frames.take(np.arange(100))
    few = replace(few, forces=np.full_like(few.forces, force))
    small = ENTROPY.model_copy(update={"updates": 2, "rung": PopulationsRungParams(updates=2)})
    params = PARAMS.model_copy(update={"relative_entropy": small})
    result = train([few], initial_potential(real_prior(), SMALL_NETWORK, 3), params, seed=1)
    assert result.summary()["linear_rung"] == 0
    assert "refit_moved" not in result.summary()
    assert result.potential.prior.pair_splines_kJ_per_mol is None


def test_coefficients_do_not_depend_on_the_number_of_threads(rung, monkeypatch):
    """To the last bit of float64, which a potential rounds to float32."""
    found, parts, before = [], Basis.parts, torch.get_num_threads()
    monkeypatch.setattr(Basis, "parts", lambda basis, made: parts(basis, found.append(made) or made))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            rung.learner.potential(rung.learner.mean)
        finally:
            torch.set_num_threads(before)
    np.testing.assert_array_equal(*found)


def test_a_killed_fit_goes_on_and_gives_the_same_bytes_with_any_number_of_threads(frames, tmp_path: Path):
    """It is stopped by its progress bar, right after a state was written, and later inside the network's training."""
    short = PARAMS.model_copy(
        update={
            "relative_entropy": ENTROPY.model_copy(
                update={
                    **{"updates": 10, "look_updates": 5, "look_replicas": 16, "settle_steps": 500},
                    "rung": PopulationsRungParams(updates=40, prior_frames=10.0),
                }
            )
        }
    )

    def run(scratch: Path | None, progress: Callable[..., None]) -> bytes:
        initial = initial_potential(real_prior(), SMALL_NETWORK, 3)
        result = train([frames], initial, short, seed=4, scratch=scratch, progress=progress)
        assert result.summary()["linear_rung"] == 1
        assert [len(looks) for looks in result.curves.values()] == [9, 3]
        (drawn,) = plot_training(result, tmp_path)
        assert drawn.stat().st_size > 20_000
        return b"".join(value.numpy().tobytes() for value in result.potential.state_dict().values())

    class KilledError(Exception):
        pass

    def stop(at: int, total: int) -> Callable[..., None]:
        def show(done: int, of: int, note: str = "") -> None:
            if (done, of) == (at, total):
                raise KilledError

        return show

    for fault in (stop(18, 40), stop(7, 10)):
        with pytest.raises(KilledError):
            run(tmp_path, fault)
    resumed, before = run(tmp_path, lambda *_: None), torch.get_num_threads()
    torch.set_num_threads(3 - min(before, 2))
    try:
        assert run(None, lambda *_: None) == resumed
    finally:
        torch.set_num_threads(before)
