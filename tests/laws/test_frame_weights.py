"""Weights of frames: of a double well whose shares are known, and what prior and relative entropy make of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from deeptime.markov import TransitionCountModel
from torch.nn.utils import parameters_to_vector

from cgal.errors import EmptyTrajectory, SamplingError
from cgal.frames import LabelledFrames
from cgal.params import MarkovParams, PriorParams, TrainingParams
from cgal.potential.architectures import initial_potential
from cgal.potential.prior import fit_prior
from cgal.reversible import fit_reversible
from cgal.training.frame_weights import effective_frames, weigh_shards
from cgal.training.held_out import held_out_masks
from cgal.training.train import train
from tests.beads import SEQUENCE, SMALL_NETWORK, TEMPERATURE_K, real_prior, shaken_beads
from tests.laws.test_msm import MATRIX, STATES, TRUTH, walk
from tests.test_relative_entropy import PARAMS, shard

STEP_ps = 0.1
MARKOV = TrainingParams(frame_weights="markov", markov=MarkovParams(lag_ps=1.0, memory_ps=1e4, states=12))
LEFT = TRUTH[: STATES // 2].sum()


def runs(count: int, length: int, seed: int) -> tuple[LabelledFrames, np.ndarray]:
    """Chains of four beads that a walker in the double well bends; five sixths of the runs begin in the lesser well."""
    found = walk(MATRIX, [0] * (count // 6) + [STATES - 1] * (count - count // 6), length, seed)
    straight = np.arange(4)[:, None] * np.array([0.38, 0.0, 0.0])
    bent = straight[None] + (found.states[:, None, None] / STATES) * np.array([0.0, 0.3, 0.0]) * np.array(
        [[0.0], [0.0], [0.3], [1.0]]
    )
    noise = np.random.default_rng(seed).normal(scale=0.002, size=bent.shape)
    positions = (bent + noise).astype(np.float32)
    times = STEP_ps * np.tile(np.arange(length), count)
    return LabelledFrames("GGGG", positions, np.zeros_like(positions), found.replica, times, {}), found.states


def test_weights_undo_the_choice_of_starts_of_short_runs():
    """Runs of half a relaxation time (197 steps): the share of the left well is within 0.1 of the truth, as the spread
    over eight seeds is 0.05; raw frames miss it by 0.3. Shards are weighted together."""
    found = []
    for seed in range(4):
        frames, states = runs(120, 100, seed)
        parts = [frames.take(frames.trajectory % 2 == side) for side in (0, 1)]
        left = np.concatenate([states[frames.trajectory % 2 == side] for side in (0, 1)]) < STATES // 2
        assert LEFT - left.mean() > 0.25
        weights = np.concatenate([part.weights for part in weigh_shards(parts, MARKOV)])
        assert weights.mean() == pytest.approx(1.0)
        assert effective_frames(weights) < len(frames)
        found.append(weights[left].sum() / weights.sum())
    assert abs(np.mean(found) - LEFT) < 0.1


def test_states_that_runs_only_leave_are_no_obstacle():
    """A thousand transitions up for each one down: stationary probabilities that no number holds."""
    climbing = np.diag(np.full(11, 1000.0), 1) + np.diag(np.ones(11), -1)
    climbing[-3:, -3:] += 5.0
    connected, model = fit_reversible(TransitionCountModel(climbing))
    assert model is not None
    assert connected.state_symbols.tolist() == [9, 10, 11]
    connected, model = fit_reversible(TransitionCountModel(climbing[:8, :8]))
    assert (connected.n_states, model) == (1, None)


def test_without_memory_all_frames_are_equal():
    frames, _ = runs(12, 50, 0)
    forgetful = MARKOV.model_copy(update={"markov": MarkovParams(lag_ps=1.0, memory_ps=1.0, states=12)})
    np.testing.assert_allclose(weigh_shards([frames], forgetful)[0].weights, 1.0)


def test_frames_without_runs_cannot_be_weighted():
    frames, _ = runs(12, 5, 0)
    with pytest.raises(SamplingError, match=r"markov\.lag_ps \(1 ps\) apart"):
        weigh_shards([frames], MARKOV)
    assert weigh_shards([frames], TrainingParams())[0].weights is None


def test_a_prior_takes_a_frame_of_double_weight_as_two():
    frames = shaken_beads(60)
    twice = np.concatenate([frames, frames[:20]])
    weights = np.where(np.arange(60) < 20, 2.0, 1.0)
    fits = [
        fit_prior(positions, SEQUENCE, TEMPERATURE_K, PriorParams(repulsion_quantile=0.0), weights=each)
        for positions, each in ((twice, None), (frames, weights))
    ]
    for one, other in zip(*(fit.state_dict().values() for fit in fits), strict=True):
        torch.testing.assert_close(one, other)


def test_relative_entropy_neither_draws_nor_counts_a_frame_without_weight():
    """Other frames in their place change nothing."""
    frames = shard(shaken_beads(180))
    weights = (np.arange(180) % 3 > 0).astype(float)
    weighted = replace(frames, weights=weights)
    others = replace(weighted, positions=np.where(weights[:, None, None] > 0, frames.positions, shaken_beads(180, 5)))
    initial = initial_potential(real_prior(), SMALL_NETWORK, 3)
    one, same, plain = (train([each], initial, PARAMS, seed=1) for each in (weighted, others, frames))
    assert one.history == same.history
    assert one.history != plain.history
    first, second = (parameters_to_vector(found.potential.network.parameters()) for found in (one, same))
    assert torch.equal(first, second)
    held_out = held_out_masks([frames], PARAMS)[0]
    with pytest.raises(EmptyTrajectory, match=r"training\.frame_weights: none"):
        train([replace(frames, weights=(~held_out).astype(float))], initial, PARAMS, seed=1)
