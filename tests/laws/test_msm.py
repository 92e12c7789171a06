"""Markov models of chains whose stationary distribution, timescales and events are known."""

from dataclasses import replace

import numpy as np
import pytest

from cgal.errors import SamplingError
from cgal.frames import CGTrajectory
from cgal.params import ReferenceParams
from cgal.reference.msm import (
    DiscreteTrajectories,
    bootstrap,
    chapman_kolmogorov,
    count_events,
    discretise,
    fit_msm,
    frame_weights,
    implied_timescales,
    prefix,
    relaxation_times,
    thin,
    weigh,
)
from cgal.reference.sampling import k_centres

SPACING_ps = 2.0
STATES = 12


def double_well() -> np.ndarray:
    """Metropolis chain on twelve points of the potential 3 (x^2 - 1)^2 + 0.3 x [kT]: slowest process 197 steps."""
    x = np.linspace(-1.4, 1.4, STATES)
    energy = 3 * (x**2 - 1) ** 2 + 0.3 * x
    matrix = np.zeros((STATES, STATES))
    for i in range(STATES):
        for j in (i - 1, i + 1):
            if 0 <= j < STATES:
                matrix[i, j] = 0.4 * min(1.0, np.exp(energy[i] - energy[j]))
        matrix[i, i] = 1 - matrix[i].sum()
    return matrix


def stationary(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eig(matrix.T)
    first = np.real(vectors[:, np.argmax(np.real(values))])
    return first / first.sum()


def walk(matrix: np.ndarray, starts: list[int], length: int, seed: int) -> DiscreteTrajectories:
    """Trajectories of a chain, all at once."""
    generator = np.random.default_rng(seed)
    rows = matrix.cumsum(axis=1)
    at = np.array(starts)
    paths = np.empty((len(starts), length), dtype=np.int64)
    for step in range(length):
        paths[:, step] = at
        at = np.minimum((rows[at] < generator.random(len(starts))[:, None]).sum(axis=1), len(matrix) - 1)
    replica = np.repeat(np.arange(len(starts), dtype=np.int32), length)
    return DiscreteTrajectories(paths.ravel(), replica, SPACING_ps, len(matrix))


MATRIX = double_well()
TRUTH = stationary(MATRIX)
UNEVEN = [0] * 10 + [STATES - 1] * 30
"""A quarter of the starts in the deeper well, which holds 63 %."""
SAMPLED = walk(MATRIX, UNEVEN, 800, seed=0)


def test_weights_undo_the_choice_of_starts() -> None:
    """Share of the left well. The standard error of 40 trajectories of four relaxation times is about 0.045."""
    weights = frame_weights(fit_msm(SAMPLED, 10.0), SAMPLED)
    left, truth = SAMPLED.states < STATES // 2, TRUTH[: STATES // 2].sum()
    assert weights.sum() == pytest.approx(1)
    assert abs(left.mean() - truth) > 0.1
    assert abs(weights[left].sum() - truth) < 0.09


def test_error_intervals_cover_the_truth() -> None:
    """Twelve independent swarms: fewer than 9 hits has a chance of 0.2 % at 95 % coverage, of 3 % at 90 %."""
    truth, hits = TRUTH[: STATES // 2].sum(), 0
    for seed in range(12):
        swarm = walk(MATRIX, UNEVEN, 800, seed=100 + seed)
        mean, _ = bootstrap(swarm, swarm.states < STATES // 2, lag_ps=10.0, resamples=60, seed=seed)
        hits += mean.low < truth < mean.high
    assert hits >= 9


def test_model_is_a_chain_in_detailed_balance() -> None:
    """To the estimator's own tolerance, 1e-8 in relative populations."""
    model = fit_msm(SAMPLED, 10.0)
    flux = model.stationary[:, None] * model.transition_matrix
    np.testing.assert_allclose(model.transition_matrix.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(flux, flux.T, atol=1e-8)
    np.testing.assert_allclose(model.stationary @ model.transition_matrix, model.stationary, atol=1e-8)


def test_timescales_are_those_of_the_chain_at_every_lag() -> None:
    """-lag / ln lambda: exact for the true matrix; a power of a matrix has the same timescales."""
    eigenvalues = np.sort(np.abs(np.linalg.eigvals(MATRIX)))[::-1]
    expected = -SPACING_ps / np.log(eigenvalues[1:4])
    np.testing.assert_allclose(relaxation_times(MATRIX, TRUTH, SPACING_ps, 3), expected, rtol=1e-8)
    fifth = np.linalg.matrix_power(MATRIX, 5)
    np.testing.assert_allclose(relaxation_times(fifth, TRUTH, 5 * SPACING_ps, 3), expected, rtol=1e-8)


def test_posterior_of_the_slowest_timescale_holds_the_truth() -> None:
    """Within twice the 95 % interval at lags up to a tenth of it.

    At longer lags the posterior is too sure: windows that few trajectories share are counted as if independent. That
    is why the errors that a reference quotes are those of the bootstrap over trajectories.
    """
    truth = relaxation_times(MATRIX, TRUTH, SPACING_ps, 1)[0]
    found = implied_timescales(SAMPLED, processes=1, samples=40, seed=1)
    short = found.lags_ps < truth / 9
    value, low, high = (side[short, 0] for side in (found.value_ps, found.low_ps, found.high_ps))
    assert short.sum() == 5
    assert (low < high).all()
    assert (truth > value - 2 * (value - low)).all()
    assert (truth < value + 2 * (high - value)).all()
    again = implied_timescales(SAMPLED, processes=1, samples=40, seed=1)
    np.testing.assert_array_equal(found.low_ps, again.low_ps)


def test_a_markov_chain_passes_the_test_and_a_lumped_one_fails() -> None:
    """Lumped into odd and even points the double well forgets at once what it needs to know."""
    good = chapman_kolmogorov(SAMPLED, 10.0, sets=2, samples=30, seed=1)
    np.testing.assert_allclose(good.predicted[0].sum(axis=1), 1, atol=1e-9)
    assert good.share.sum() == pytest.approx(1)
    assert good.largest_deviation < 0.01
    assert ((good.counted >= good.low - 1e-9) & (good.counted <= good.high + 1e-9)).mean() > 0.9
    lumps = np.array([0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2]) % 2  # one lump is both wells, the other the barrier
    lumped = replace(SAMPLED, states=lumps[SAMPLED.states].astype(np.int64), count=2)
    assert chapman_kolmogorov(lumped, 2.0, sets=2, samples=30, seed=1).largest_deviation > 0.03


def test_a_lag_that_leaves_no_multiple_to_count_is_no_test() -> None:
    """From a quarter of the longest trajectory on: at the lag itself the prediction is the count."""
    longest_ps = SAMPLED.longest_ps
    assert chapman_kolmogorov(SAMPLED, longest_ps / 5, sets=2, samples=3, seed=1).largest_deviation > 0
    assert chapman_kolmogorov(SAMPLED, longest_ps / 4, sets=2, samples=3, seed=1).largest_deviation is None


def test_frames_that_cannot_come_back_have_no_weight() -> None:
    """State 12 is entered at the end of one trajectory and never left."""
    trapped = SAMPLED.states.copy()
    trapped[780:800] = STATES
    weights = frame_weights(
        fit_msm(replace(SAMPLED, states=trapped, count=STATES + 1), 10.0),
        replace(SAMPLED, states=trapped, count=STATES + 1),
    )
    assert (weights[780:800] == 0).all()
    assert (np.delete(weights, np.s_[780:800]) > 0).all()
    assert weights.sum() == pytest.approx(1)


def test_too_short_a_swarm_says_so() -> None:
    with pytest.raises(SamplingError, match=r"longest trajectory of the swarm has 1600 ps, and a lag of 2000 ps"):
        fit_msm(SAMPLED, 2000.0)
    apart = replace(SAMPLED, states=SAMPLED.replica.astype(np.int64), count=len(UNEVEN))
    with pytest.raises(SamplingError, match="no two of the 40 states of the swarm are connected"):
        fit_msm(apart, 10.0)


def test_events_are_counted_with_hysteresis_and_within_trajectories() -> None:
    """Back and forth over one threshold is none; neither is the seam between two trajectories."""
    deviation_nm = np.array([0.1, 0.3, 0.15, 0.3, 0.6, 0.4, 0.6, 0.3, 0.1, 0.7, 0.7, 0.1, 0.4, 0.3])
    replica = np.array([0] * 9 + [1] * 5, dtype=np.int32)
    found = count_events(deviation_nm, replica, folded_nm=0.2, unfolded_nm=0.5)
    assert (found.folding, found.unfolding) == (2, 1)


def test_more_centres_leave_the_first_ones_as_they_were() -> None:
    points = np.random.default_rng(0).normal(size=(300, 5))
    few, many = k_centres(points, 4), k_centres(points, 20)
    np.testing.assert_array_equal(many[:4], few)
    assert len(set(many.tolist())) == 20
    np.testing.assert_array_equal(k_centres(np.arange(101.0)[:, None], 3), [0, 100, 50])
    with pytest.raises(SamplingError, match="only 1 different frames"):
        k_centres(np.zeros((5, 2)), 3)


def beads(discrete: DiscreteTrajectories, seed: int = 0) -> CGTrajectory:
    """Seven beads whose chain is shorter in the left well than in the right one, with noise of 0.01 nm."""
    generator = np.random.default_rng(seed)
    stretch = 0.2 + 0.02 * discrete.states
    positions = stretch[:, None, None] * np.arange(7)[:, None] * np.array([1.0, 0.3, 0.0])
    positions += generator.normal(scale=0.01, size=positions.shape)
    length = len(discrete.states) // len(discrete.paths)
    times = np.tile(np.arange(1, length + 1) * SPACING_ps, len(discrete.paths))
    return CGTrajectory.from_positions("YYDPETG", positions, times, discrete.replica)


PARAMS = ReferenceParams(tica_lag_ps=20.0, tica_dimensions=2, states=20, lag_ps=20.0, spacing_ps=SPACING_ps)


def test_weights_come_from_the_positions_alone() -> None:
    """The same law when states are found by TICA and k-means from beads."""
    trajectory = weigh(beads(SAMPLED), PARAMS, seed=1)
    left = SAMPLED.states < STATES // 2
    assert abs(trajectory.weights[left].sum() - TRUTH[: STATES // 2].sum()) < 0.09
    again = weigh(beads(SAMPLED), PARAMS, seed=1)
    np.testing.assert_array_equal(trajectory.weights, again.weights)


def test_states_number_every_frame() -> None:
    found = discretise(beads(SAMPLED), PARAMS, seed=1)
    assert found.count == 20
    assert set(found.states.tolist()) <= set(range(20))
    assert found.spacing_ps == SPACING_ps


def test_prefix_and_thin_keep_trajectories_even() -> None:
    trajectory = beads(SAMPLED)
    half = prefix(trajectory, 0.5)
    assert len(half) == len(trajectory) // 2
    assert half.time_ps.max() == 400 * SPACING_ps
    few = thin(trajectory, 4000)
    assert len(few) == 4000
    assert set(np.diff(few.time_ps)[np.diff(few.replica) == 0].tolist()) == {8 * SPACING_ps}
    assert few.weights.sum() == pytest.approx(1)
