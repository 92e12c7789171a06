"""Relative entropy learns an ensemble, and knows how well."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from cgal.errors import BadTrajectory, Diverged, EmptyTrajectory, PreflightFailed
from cgal.frames import LabelledFrames
from cgal.params import DynamicsParams, RelativeEntropyParams, TrainingParams
from cgal.potential.architectures import initial_potential
from cgal.potential.checkpoint import save_checkpoint
from cgal.potential.potential import Potential
from cgal.simulation.run import simulate
from cgal.training.figures import plot_training
from cgal.training.runs import write_curves_csv
from cgal.training.train import train
from cgal.units import thermal_energy_kJ_per_mol
from tests.beads import SEQUENCE, SMALL_NETWORK, TEMPERATURE_K, real_prior, shaken_beads

SAMPLING = DynamicsParams(replicas=64, steps=6000, stride=200)
SHORT = RelativeEntropyParams(
    updates=12,
    look_updates=3,
    look_replicas=16,
    look_steps=20,
    settle_steps=100,
    dynamics=DynamicsParams(replicas=8, steps=20, stride=10),
)
PARAMS = TrainingParams(objective="relative_entropy", relative_entropy=SHORT, preflight=False, warm_start=False)


def fresh() -> Potential:
    return initial_potential(real_prior(), SMALL_NETWORK, 3)


def sampled(potential: Potential, seed: int) -> np.ndarray:
    """Settled frames of a potential, ordered by replica."""
    run = simulate(potential, shaken_beads(64), SAMPLING, temperature_K=TEMPERATURE_K, seed=seed)
    return run.positions[run.time_ps > 0.4 * run.time_ps.max()]


def shard(positions: np.ndarray) -> LabelledFrames:
    count = len(positions)
    numbers = np.arange(count)
    return LabelledFrames(
        SEQUENCE, positions, np.zeros_like(positions), (numbers // 18).astype(np.int32), 0.5 * numbers, {}
    )


@pytest.fixture(scope="module")
def teacher() -> Potential:
    """A network of the same shape as those that learn, of a few k_B T."""
    made = initial_potential(real_prior(), SMALL_NETWORK, 8)
    with torch.no_grad():
        made.network.readout[-1].weight.normal_(std=0.6, generator=torch.Generator().manual_seed(1))
    return made


def test_an_ensemble_of_a_known_network_is_learned_and_how_well_is_told_without_bias(teacher):
    """No model comes closer to the teacher's frames than the teacher, whose S follows from frames of both ends."""
    data, prior_frames = sampled(teacher, 1), sampled(fresh(), 2)
    kT = thermal_energy_kJ_per_mol(TEMPERATURE_K)
    of_data, of_prior = (
        teacher.network(torch.from_numpy(frames), teacher.types).detach().double().numpy() / kT
        for frames in (data, prior_frames)
    )
    forward = logsumexp(-of_prior) - np.log(len(of_prior))
    backward = np.log(len(of_data)) - logsumexp(of_data)
    least = of_data.mean() + 0.5 * (forward + backward)
    assert least < -0.5
    entropy = RelativeEntropyParams(
        updates=80, learning_rate=5e-3, look_replicas=128, settle_steps=1000, look_steps=40, average_updates=20
    )
    params = TrainingParams(
        objective="relative_entropy", relative_entropy=entropy, validation_block_frames=18, warm_start=False
    )
    best = train([shard(data)], fresh(), params, seed=1).best
    assert best.held_out_change_kT < 0.6 * least
    assert best.held_out_change_kT > least - 3 * best.standard_error_kT


@pytest.fixture(scope="module")
def result():
    return train([shard(shaken_beads(180))], fresh(), PARAMS, seed=11)


def content(result, folder: Path) -> bytes:
    save_checkpoint(folder / "model.pt", result.potential, result.summary())
    write_curves_csv(result, folder / "training.csv")
    return (folder / "model.pt").read_bytes() + (folder / "training.csv").read_bytes()


def test_same_seed_same_bytes_with_any_number_of_threads(result, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(3 - min(before, 2))
    try:
        again = train([shard(shaken_beads(180))], fresh(), PARAMS, seed=11)
    finally:
        torch.set_num_threads(before)
    assert content(again, tmp_path) == content(result, tmp_path)
    assert content(train([shard(shaken_beads(180))], fresh(), PARAMS, seed=12), tmp_path) != content(result, tmp_path)


def test_history_starts_at_the_potential_as_given_and_is_drawn(result, tmp_path):
    assert [record.update for record in result.history] == [0, 3, 6, 9, 12]
    assert result.history[0].held_out_change_kT == pytest.approx(0.0, abs=1e-9)
    write_curves_csv(result, tmp_path / "training.csv")
    assert (tmp_path / "training.csv").read_text().startswith("update,energy_gap_kT,held_out_change_kT,")
    (figure,) = plot_training(result, tmp_path)
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_training_stops_when_patience_is_spent():
    """Held out are frames of another shape: what is learned makes them less likely, never more."""
    frames = shaken_beads(180)
    straight = frames.copy()
    blocks = np.arange(180) // 18 % 5 == 2
    straight[blocks] = np.linspace(0, 3.42, 10)[None, :, None] * np.array([1.0, 0, 0]) + straight[blocks] * 0.05
    impatient = SHORT.model_copy(update={"updates": 60, "patience_updates": 6, "learning_rate": 1e-2})
    params = PARAMS.model_copy(update={"relative_entropy": impatient, "validation_block_frames": 18})
    found = train([shard(straight.astype(np.float32))], fresh(), params, seed=1)
    assert found.history[-1].update < 60


def test_steps_too_long_are_refused_by_preflight_or_said_to_diverge():
    """After one such step no ensemble fits a network of hundreds of k_B T; after three no replica is left."""
    for updates, fault, advice in (
        (1, PreflightFailed, r"training\.preflight: false"),
        (3, Diverged, r"lower training\.relative_entropy\.learning_rate"),
    ):
        far = SHORT.model_copy(update={"updates": updates, "learning_rate": 1.0})
        params = PARAMS.model_copy(update={"relative_entropy": far, "preflight": True})
        with pytest.raises(fault, match=advice):
            train([shard(shaken_beads(180))], fresh(), params, seed=1)


def test_preflight_asks_of_a_fresh_network_alone_whether_it_is_better_than_the_prior(teacher):
    """With `warm_start` too, as in a first round: only a network that was trained before has no prior to beat."""
    far = SHORT.model_copy(update={"updates": 1, "learning_rate": 1.0})
    params = PARAMS.model_copy(update={"relative_entropy": far, "preflight": True, "warm_start": True})
    with pytest.raises(PreflightFailed):
        train([shard(shaken_beads(180))], fresh(), params, seed=1)
    assert train([shard(shaken_beads(180))], teacher, params, seed=1).best.update == 0


def test_what_cannot_be_trained_on_is_named():
    frames = shard(shaken_beads(180))
    spoilt = frames.positions.copy()
    spoilt[17, 3, 1] = np.nan
    with pytest.raises(BadTrajectory, match="shard 001, frame 17"):
        train([frames, replace(frames, positions=spoilt)], fresh(), PARAMS, seed=1)
    with pytest.raises(EmptyTrajectory, match=r"validation_block_frames \(10\)"):
        train([shard(shaken_beads(12))], fresh(), PARAMS, seed=1)
    fragment = replace(frames, sequence=SEQUENCE[:7], positions=frames.positions[:, :7], forces=frames.forces[:, :7])
    with pytest.raises(BadTrajectory, match="relative entropy trains on one protein"):
        train([fragment], fresh(), PARAMS, seed=1)
