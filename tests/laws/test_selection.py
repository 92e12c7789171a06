"""Laws of the coverage gap, of RMSD and of what the strategies pick."""

import tracemalloc
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cgal.errors import BadTrajectory, EmptyTrajectory
from cgal.frames import CGTrajectory, rmsd_nm
from cgal.params import PriorParams, SchNetParams, SelectionParams, TrainingParams
from cgal.potential.architectures import initial_potential
from cgal.potential.prior import fit_prior
from cgal.selection import Committee, measure_pool, nearest_rmsd_nm
from cgal.selection.acquisition import select
from cgal.selection.batch import greedy_cover
from cgal.selection.committee import fit_spread
from cgal.selection.coverage import coverage_gap
from cgal.selection.within import weight_within
from cgal.training.force_matching import train
from cgal.training.held_out import held_out_masks

from .. import beads

SEQUENCE = "GGGGGGGG"
EDGES = np.linspace(0.0, 1.0, 11)
rmsds = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=50).map(lambda values: np.array(values, dtype=np.float64))


def hairpins(openings, seed=0, noise_nm=0.005):
    """Two strands of four beads 0.38 nm apart, the second turned away by each opening angle [rad], with some noise.

    The RMSD to the closed hairpin grows with the opening; bonds keep their length.
    """
    strand = np.arange(4) * 0.38
    frames = []
    for opening in openings:
        away = np.column_stack([-strand * np.cos(opening), 0.38 + strand * np.sin(opening), np.zeros(4)])
        frames.append(np.concatenate([np.column_stack([strand - 3 * 0.38, np.zeros(4), np.zeros(4)]), away]))
    noise = np.random.default_rng(seed).normal(0, noise_nm, (len(frames), 8, 3))
    return (np.array(frames).reshape(-1, 8, 3) + noise).astype(np.float32)


REFERENCE = hairpins([0.0])[0]


def trajectory_of(positions):
    return CGTrajectory.from_positions(
        SEQUENCE, positions, np.arange(len(positions)), np.zeros(len(positions), dtype=np.int32)
    )


@lru_cache
def toy_committee(members=3, seeds=(1, 2, 3)):
    """Networks with random weights, calibrated against random forces."""
    frames = hairpins(np.linspace(0.0, 1.5, 40), seed=9)
    prior = fit_prior(frames, SEQUENCE, 350.0, PriorParams())
    potentials = []
    for member in range(members):
        potential = initial_potential(prior, SchNetParams(features=8, blocks=1, radial_functions=8), 1)
        generator = torch.Generator().manual_seed(seeds[member])
        for weights in potential.network.parameters():
            weights.data += 0.3 * torch.randn(weights.shape, generator=generator)
        potentials.append(potential)
    forces = np.random.default_rng(5).normal(0, 100, frames.shape).astype(np.float32)
    return Committee(potentials, frames, forces)


def pick(positions, training, count=10, seed=1, committee=toy_committee, **changes):
    options = {"committee": committee} if committee else {}
    params = SelectionParams(**changes)
    return select(measure_pool(trajectory_of(positions), training, REFERENCE, params, **options), count, seed)


@settings(deadline=None)
@given(rmsds, rmsds)
def test_gap_sums_to_zero_and_lies_between_minus_one_and_one(simulated, training):
    shares = coverage_gap(simulated, training, EDGES)
    assert shares[0].sum() == pytest.approx(1.0)
    assert shares[1].sum() == pytest.approx(1.0)
    assert shares[2].sum() == pytest.approx(0.0, abs=1e-12)
    assert np.abs(shares[2]).max() <= 1.0


def test_gap_of_disjoint_sets_is_one_where_only_the_simulation_goes():
    gap = coverage_gap(np.array([0.05, 0.06]), np.array([0.95]), EDGES)[2]
    assert gap.tolist() == [1.0, 0, 0, 0, 0, 0, 0, 0, 0, -1.0]


def test_gap_needs_frames_on_both_sides():
    with pytest.raises(EmptyTrajectory, match="at least one frame"):
        coverage_gap(np.zeros(0), np.zeros(1), EDGES)


@pytest.mark.parametrize("seed", range(3))
def test_rmsd_is_invariant_under_rotation_and_translation(seed):
    """Single precision: 1e-4 nm, also 10 nm from the origin (near zero RMSD the square root would amplify it)."""
    frames = hairpins(np.linspace(0.2, 2.0, 20))
    rotation = Rotation.random(20, random_state=seed).as_matrix()
    moved = np.einsum("fij,fbj->fbi", rotation, frames) + np.random.default_rng(seed).normal(0, 10, (20, 1, 3))
    assert rmsd_nm(moved.astype(np.float32), REFERENCE) == pytest.approx(rmsd_nm(frames, REFERENCE), abs=1e-4)


def test_rmsd_is_the_minimal_one_and_leaves_its_input_alone():
    """Against the Kabsch rotation of scipy."""
    frames = hairpins([0.3, 1.0]) + np.float32(2.0)
    before = frames.copy()
    centred = [frame - frame.mean(axis=0) for frame in (*frames.astype(np.float64), REFERENCE.astype(np.float64))]
    kabsch = [Rotation.align_vectors(centred[2], frame)[1] / np.sqrt(8) for frame in centred[:2]]
    assert rmsd_nm(frames, REFERENCE) == pytest.approx(kabsch, abs=1e-5)
    assert frames.tobytes() == before.tobytes()


def test_rmsd_does_not_superpose_mirror_images():
    helix = np.array([[0.23 * np.cos(1.75 * i), 0.23 * np.sin(1.75 * i), 0.15 * i] for i in range(8)], dtype=np.float32)
    assert rmsd_nm((helix * np.float32([1, 1, -1]))[None], helix)[0] > 0.1


def test_identical_simulation_and_training_leave_no_gap_and_nothing_to_pick():
    frames = hairpins(np.linspace(0.0, 1.5, 100))
    selection = pick(frames, frames)
    assert not selection.coverage.gap.any()
    assert len(selection) == selection.bins_used == 0
    assert "picked 0 of 100 candidates" in selection.note
    assert "asked for 10; no more frames qualify" in selection.note


def test_picks_come_from_the_largest_gap_then_from_the_next():
    """30 simulated frames open by 1.0 rad, 20 by 0.6 and 50 closed; the training set is closed."""
    simulated = hairpins([1.0] * 30 + [0.6] * 20 + [0.0] * 50)
    selection = pick(simulated, hairpins([0.0] * 40, seed=5), count=45, bins=10)
    assert set(selection.frame[:30]) == set(range(30))
    assert set(selection.frame[30:]) < set(range(30, 50))
    assert selection.score == pytest.approx([0.3] * 30 + [0.2] * 15)
    assert selection.bins_used == 2
    ranked = np.sort(selection.coverage.gap)[::-1]
    assert ranked[:2] == pytest.approx([0.3, 0.2])


DRAWN, RANKED = (
    ["rmsd_histogram", "rmsd_proportional", "random"],
    ["coverage", "k_centre", "committee", "committee_coverage"],
)
"""Strategies with and without chance in them."""


@pytest.mark.parametrize("strategy", DRAWN + RANKED)
def test_no_frame_is_picked_twice_and_same_seed_picks_the_same(strategy):
    """The ones without chance pick the same with any seed."""
    simulated = hairpins(np.linspace(0.0, 1.5, 200))
    training = hairpins([0.1] * 20, seed=3)
    few = {"strategy": strategy, "count": 5, "novel_nm": 0.04, "distinct_nm": 0.03}
    first, again, other = (pick(simulated, training, seed=seed, **few) for seed in (1, 1, 2))
    assert len(set(first.frame)) == len(first) == 5
    assert first.frame.tolist() == again.frame.tolist()
    assert (first.frame.tolist() == other.frame.tolist()) == (strategy in RANKED)
    assert first.positions.tobytes() == simulated[first.frame].tobytes()


def test_proportional_picks_share_the_labels_as_the_gaps_share_the_frames():
    """400 single draws: the share of a bin is binomial, standard deviation at most 0.025."""
    simulated, training = hairpins(np.linspace(0.0, 1.5, 200)), hairpins([0.1] * 20, seed=3)
    pool = pick(simulated, training, strategy="rmsd_proportional", count=0).coverage
    gaps = np.maximum(pool.gap, 0.0) / np.maximum(pool.gap, 0.0).sum()
    drawn = np.zeros(len(gaps))
    for seed in range(400):
        picked = pick(simulated, training, seed=seed, strategy="rmsd_proportional", count=1)
        drawn[pool.bin_of(picked.rmsd_nm)] += 1
    np.testing.assert_allclose(drawn / 400, gaps, atol=4 * 0.025)
    assert not drawn[gaps == 0].any()


def test_random_picks_every_candidate_equally_often():
    """40 draws of 10 out of 20 physical frames: 20 picks each, standard deviation sqrt(10)."""
    simulated = hairpins([0.0] * 20)
    drawn = np.zeros(20)
    for seed in range(40):
        drawn[pick(simulated, simulated, strategy="random", seed=seed).frame] += 1
    assert drawn.sum() == 400
    assert np.abs(drawn - 20).max() < 4 * np.sqrt(10)


# Nearest training frame


def kabsch_nm(frame, other):
    """RMSD after superposition in double precision, by numpy's singular values."""
    return by_hand([frame], [other])[0][0]


def by_hand(frames, training):
    a, b = (
        np.asarray(side, dtype=np.float64) - np.mean(side, axis=1, keepdims=True, dtype=np.float64)
        for side in (frames, training)
    )
    u, s, vt = np.linalg.svd(np.einsum("fbx,tby->ftxy", a, b))
    s[..., 2] *= np.sign(np.linalg.det(u @ vt))
    norms = np.square(a).sum(axis=(1, 2))[:, None] + np.square(b).sum(axis=(1, 2))
    every = np.sqrt(np.maximum(norms - 2 * s.sum(axis=-1), 0.0) / a.shape[1])
    return every.min(axis=1), every


@pytest.mark.parametrize("beads", [4, 5, 10, 35])
def test_nearest_rmsd_is_the_least_of_all_superpositions(beads):
    """Random walks of the size of a protein; more training frames than one block, and no multiple of it."""
    walk = np.random.default_rng(beads).normal(0, 0.22, (170, beads, 3)).cumsum(axis=1).astype(np.float32)
    frames, training = walk[:30], walk[30:]
    distance, index = nearest_rmsd_nm(frames, training)
    least, every = by_hand(frames, training)
    assert distance == pytest.approx(least, abs=1e-6)
    assert index.tolist() == every.argmin(axis=1).tolist()


def test_nearest_rmsd_is_mdtrajs():
    """mdtraj's single precision is good to 1e-5 nm as long as frames do not nearly coincide."""
    walk = np.random.default_rng(0).normal(0, 0.22, (300, 10, 3)).cumsum(axis=1).astype(np.float32)
    frames, training = walk[:50], walk[50:]
    expected = np.min([rmsd_nm(frames, other) for other in training], axis=0)
    assert expected.min() > 0.05
    assert nearest_rmsd_nm(frames, training)[0] == pytest.approx(expected, abs=1e-5)


def degenerate_frames():
    generator = np.random.default_rng(2)
    chain = generator.normal(0, 0.22, (10, 3)).cumsum(axis=0)
    line = np.outer(np.arange(10), [0.3, 0.2, 0.1])
    plane = chain * [1, 1, 0]
    return {
        "itself": (chain, chain),
        "turned and moved": (chain, chain @ Rotation.random(rng=1).as_matrix().T + 5.0),
        "mirror image": (chain, chain * [1, 1, -1]),
        "nearly itself": (chain, chain + generator.normal(0, 1e-4, (10, 3))),
        "line on itself": (line, np.outer(np.arange(10), [-0.1, 0.3, 0.2])),
        "line on a chain": (line, chain),
        "plane on its turned self": (plane, plane[:, [2, 0, 1]]),
        "plane on its mirror image": (plane, plane * [-1, 1, 1]),
        "line on a plane": (line, plane),
        "collapsed on a chain": (np.ones((10, 3)), chain),
        "collapsed on collapsed": (np.ones((10, 3)), np.zeros((10, 3))),
        "exploded": (chain * 1e9, chain),
    }


@pytest.mark.parametrize("case", degenerate_frames())
def test_degenerate_frames_have_their_exact_rmsd_too(case):
    """Alone, and among many other training frames; single-precision coordinates move by 3e-7 nm themselves."""
    frame, other = (side.astype(np.float32) for side in degenerate_frames()[case])
    scale = max(float(np.abs(frame).max()), 1.0)
    assert nearest_rmsd_nm(frame[None], other[None])[0][0] == pytest.approx(kabsch_nm(frame, other), abs=1e-6 * scale)
    among = np.concatenate([hairpins(np.linspace(0, 1.5, 80))[:, [0, 1, 2, 3, 4, 5, 6, 7, 7, 7]], other[None]])
    assert nearest_rmsd_nm(frame[None], among)[0] == pytest.approx(by_hand([frame], among)[0], abs=1e-6 * scale)


def test_a_mirror_image_is_no_near_frame():
    helix = np.array([[0.23 * np.cos(1.75 * i), 0.23 * np.sin(1.75 * i), 0.15 * i] for i in range(8)], dtype=np.float32)
    assert nearest_rmsd_nm(helix[None], (helix * np.float32([1, 1, -1]))[None])[0][0] > 0.1


def test_nearest_frames_are_the_same_with_any_memory_and_threads():
    frames, training = hairpins(np.linspace(0, 1.5, 200)), hairpins(np.linspace(0, 1.5, 300), seed=4)
    plenty = nearest_rmsd_nm(frames, training, threads=1)
    scarce = nearest_rmsd_nm(frames, training, threads=2, memory_MiB=0.01)
    assert all(np.array_equal(one, other) for one, other in zip(plenty, scarce, strict=True))


def test_working_copies_stay_within_the_memory_given():
    """1 MiB for what would take 5: a little more for results and Python's own objects."""
    frames = np.random.default_rng(0).normal(size=(2, 4000, 10, 3)).astype(np.float32)
    nearest_rmsd_nm(frames[0, :2], frames[1])
    tracemalloc.start()
    nearest_rmsd_nm(*frames, memory_MiB=1.0)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1.3 * 2**20


def test_of_equal_training_frames_the_first_is_the_nearest():
    frames = hairpins(np.linspace(0, 1.5, 5))
    distance, index = nearest_rmsd_nm(frames, np.concatenate([frames, frames]))
    assert index.tolist() == [0, 1, 2, 3, 4]
    assert distance == pytest.approx(np.zeros(5), abs=1e-6)
    assert nearest_rmsd_nm(frames[:0], frames)[0].shape == (0,)


def test_frames_that_cannot_be_compared_are_refused():
    frames = hairpins([0.1, 0.2])
    with pytest.raises(EmptyTrajectory, match="training set is empty"):
        nearest_rmsd_nm(frames, frames[:0])
    with pytest.raises(BadTrajectory, match="8 beads and training frames of 7"):
        nearest_rmsd_nm(frames, frames[:, :7])
    with pytest.raises(BadTrajectory, match="training frame 1 has a coordinate that is no number"):
        nearest_rmsd_nm(frames, np.stack([frames[0], frames[1] * np.float32(np.nan)]))


def test_picks_know_how_far_they_are_from_the_training_set():
    simulated, training = hairpins(np.linspace(0.0, 1.5, 100)), hairpins([0.1] * 20, seed=3)
    selection = pick(simulated, training)
    assert selection.nearest_nm == pytest.approx(by_hand(selection.positions, training)[0], abs=1e-6)
    assert "nm (median) from the training set" in selection.note


# Batches: distance, frequency, disagreement

WALK = np.random.default_rng(4).normal(0, 0.22, (240, 8, 3)).cumsum(axis=1).astype(np.float32)
"""Random walks: frames of which few are alike, as an unfolded chain's."""

SPREAD = hairpins(np.random.default_rng(8).uniform(0.0, 1.4, 150), seed=8, noise_nm=0.015)
FOLDED = hairpins([0.1] * 20, seed=3)


def by_greed(positions, weight, prefer, count, radius_nm, distinct_nm):
    """`greedy_cover` in the plainest way, from a table of all pairs."""
    every = by_hand(positions, positions)[1]
    left, picked, score = weight.copy(), [], []
    while len(picked) < count:
        free = (left > 0) & (every[:, picked] >= distinct_nm).all(axis=1)
        if not free.any():
            break
        gain = np.where(free, ((every <= radius_nm) * left).sum(axis=1), -1.0)
        best = max(range(len(gain)), key=lambda candidate: (round(gain[candidate], 9), prefer[candidate]))
        picked.append(best)
        score.append(gain[best])
        left[every[best] <= radius_nm] = 0.0
    return picked, score


@pytest.mark.parametrize("radius_nm", [0.05, 0.25, 0.6])
@pytest.mark.parametrize("bead_number", [5, 8])
def test_weight_within_is_the_sum_over_all_superpositions(radius_nm, bead_number):
    frames, others = WALK[:70, :bead_number], np.concatenate([WALK[60:], WALK[:3]])[:, :bead_number]
    weight = np.random.default_rng(1).uniform(size=len(others))
    expected = (by_hand(frames, others)[1] <= radius_nm) @ weight
    assert weight_within(frames, others, weight, radius_nm) == pytest.approx(expected)


@pytest.mark.parametrize("case", degenerate_frames())
def test_degenerate_frames_are_within_a_radius_just_when_their_rmsd_is(case):
    frame, other = (side.astype(np.float32) for side in degenerate_frames()[case])
    exact = kabsch_nm(frame, other)
    inside, outside = weight_within(frame[None], other[None], np.ones(1), exact * 1.001 + 1e-4), 0.0
    if exact > 1e-3:
        outside = weight_within(frame[None], other[None], np.ones(1), exact * 0.999)
    assert (inside, outside) == (1.0, 0.0)


def test_nothing_is_within_nothing():
    assert weight_within(WALK[:3], WALK[:0], np.zeros(0), 1.0).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("distinct_nm", [0.0, 0.4])
def test_greedy_cover_is_its_plain_twin(seed, distinct_nm):
    generator = np.random.default_rng(seed)
    weight, prefer = (
        generator.uniform(size=len(WALK)) * (generator.uniform(size=len(WALK)) < 0.7),
        generator.uniform(size=len(WALK)),
    )
    how = {"radius_nm": 0.3, "distinct_nm": distinct_nm}
    picked, score = greedy_cover(WALK, weight, prefer, 12, **how)
    expected_picks, expected_score = by_greed(WALK, weight, prefer, 12, **how)
    assert picked.tolist() == expected_picks
    assert score == pytest.approx(expected_score)


def test_coverage_picks_no_covered_frame_and_its_scores_are_the_fall_of_the_uncovered_fraction():
    selection = pick(SPREAD, FOLDED, count=100, strategy="coverage", novel_nm=0.06)
    assert 3 < len(selection) < 100
    covered = FOLDED
    for frame in selection.positions:
        assert by_hand([frame], covered)[0][0] > 0.06
        covered = np.concatenate([covered, frame[None]])
    assert (np.diff(selection.score) <= 0).all()
    assert selection.score.sum() == pytest.approx(selection.uncovered_fraction)
    again = pick(SPREAD, covered, strategy="coverage", novel_nm=0.06)
    assert (again.uncovered_fraction, len(again)) == (0.0, 0)
    assert "no more frames qualify" in again.note


def test_coverage_prefers_where_the_simulation_goes_and_k_centre_where_it_is_strange():
    """Thirty frames half open, one wide open."""
    simulated = hairpins([0.1] * 30 + [0.7] * 30 + [1.4])
    assert pick(simulated, FOLDED, count=1, strategy="coverage").frame[0] in range(30, 60)
    assert pick(simulated, FOLDED, count=1, strategy="coverage").score[0] == pytest.approx(30 / 61)
    assert pick(simulated, FOLDED, count=1, strategy="k_centre").frame.tolist() == [60]


def test_k_centre_leaves_no_frame_further_than_its_picks_are_from_one_another():
    """Every pick is at least the last score from all others, every frame at most that from training set and picks."""
    selection = pick(SPREAD, FOLDED, count=12, strategy="k_centre", distinct_nm=0.02)
    assert len(selection) == 12
    assert (np.diff(selection.score) <= 0).all()
    between = by_hand(selection.positions, np.concatenate([selection.positions, FOLDED]))[1]
    np.fill_diagonal(between, np.inf)
    assert between.min() >= selection.score[-1] - 1e-6
    assert by_hand(SPREAD, np.concatenate([FOLDED, selection.positions]))[0].max() <= selection.score[-1] + 1e-6


@pytest.mark.parametrize("strategy", RANKED)
def test_no_two_picks_of_a_batch_are_alike(strategy):
    """Every frame is there twice."""
    twice = np.concatenate([SPREAD, SPREAD])
    selection = pick(twice, FOLDED, count=300, strategy=strategy, distinct_nm=0.05, novel_nm=0.04)
    assert 5 < len(selection) < 100
    between = by_hand(selection.positions, selection.positions)[1]
    np.fill_diagonal(between, np.inf)
    assert between.min() >= 0.05 - 1e-6


@pytest.mark.parametrize("strategy", RANKED)
def test_without_a_least_distance_still_no_frame_is_picked_twice(strategy):
    selection = pick(SPREAD[:12], FOLDED, count=20, strategy=strategy, distinct_nm=0.0, novel_nm=0.01)
    assert len(set(selection.frame)) == len(selection) <= 12


@pytest.mark.parametrize("strategy", RANKED)
def test_order_of_the_simulated_frames_does_not_matter(strategy):
    """No two of these frames are equally far from anything."""
    order = np.random.default_rng(1).permutation(len(SPREAD))
    first, second = (pick(frames, FOLDED, strategy=strategy) for frames in (SPREAD, SPREAD[order]))
    assert first.frame.tolist() == order[second.frame].tolist()


@pytest.mark.parametrize("strategy", RANKED)
def test_placing_and_turning_the_simulated_frames_does_not_matter(strategy):
    """Up to single precision, in which nothing here is near a tie."""
    rotation = Rotation.random(len(SPREAD), random_state=2).as_matrix()
    moved = (np.einsum("fij,fbj->fbi", rotation, SPREAD) + 0.5).astype(np.float32)
    first, second = (pick(frames, FOLDED, count=5, strategy=strategy) for frames in (SPREAD, moved))
    assert first.frame.tolist() == second.frame.tolist()


def test_members_that_are_the_same_do_not_disagree():
    committee = toy_committee(seeds=(1, 1, 1))
    assert not committee.disagreement(SPREAD).any()
    assert committee.calibration.spearman == 0.0
    selection = pick(SPREAD, FOLDED, strategy="committee_coverage", committee=lambda: committee)
    assert len(selection) == 0


def test_committee_takes_what_it_disagrees_most_about_first():
    committee = toy_committee()
    selection = pick(SPREAD, FOLDED, strategy="committee", distinct_nm=0.0)
    disagreement = committee.disagreement(SPREAD)
    assert selection.frame.tolist() == np.argsort(-disagreement)[:10].tolist()
    assert selection.score == pytest.approx(np.sort(disagreement)[::-1][:10])


def test_committee_coverage_scores_are_shares_of_the_squared_disagreement():
    """All together what the uncovered frames have of it."""
    selection = pick(SPREAD, FOLDED, count=200, strategy="committee_coverage", distinct_nm=0.0)
    squared = selection.candidates.disagreement**2
    assert selection.score.sum() == pytest.approx(squared[selection.candidates.nearest_nm > 0.1].sum() / squared.sum())
    assert (np.diff(selection.score) <= 1e-12).all()
    assert (selection.nearest_nm > 0.1).all()


@pytest.mark.parametrize("noise", [0.0, 100.0])
def test_calibration_finds_scale_and_noise(noise):
    """Errors of 30 components a frame with known variance; 2000 frames give the scale to a few per cent."""
    generator = np.random.default_rng(3)
    spread = generator.uniform(20, 120, 2000)
    error = np.sqrt(np.square(generator.normal(size=(2000, 30)) * np.hypot(noise, 1.7 * spread)[:, None]).mean(axis=1))
    scale, found_noise = fit_spread(spread, error, 4)
    assert scale == pytest.approx(1.7, rel=0.05)
    assert found_noise == pytest.approx(noise, abs=10.0)


def test_scale_is_never_below_the_chance_error_of_a_mean():
    scale, noise = fit_spread(np.random.default_rng(3).uniform(5, 30, 2000), np.full(2000, 50.0), 4)
    assert scale == pytest.approx(0.5)
    assert 45.0 < noise < 50.0


@pytest.fixture(scope="module")
def trained_committee():
    """Three small networks trained on real frames, shaken a little, with known forces."""
    prior = beads.real_prior()
    shards = [beads.labelled(beads.shaken_beads(240, sigma_nm=0.01), prior, noise_kJ_per_mol_nm=10.0)]
    params = TrainingParams(epochs=20)
    members = [
        train(shards, initial_potential(prior, beads.SMALL_NETWORK, seed), params, seed=seed).potential
        for seed in (1, 2, 3)
    ]
    held_out = shards[0].take(held_out_masks(shards, params)[0])
    return Committee(members, held_out.positions, held_out.forces)


def test_a_trained_committee_disagrees_more_off_its_training_data(trained_committee):
    """Beads shaken five times as far: no frame like them was seen."""
    on, off = (
        np.median(trained_committee.disagreement(beads.shaken_beads(200, seed=7, sigma_nm=sigma)))
        for sigma in (0.01, 0.05)
    )
    assert off > 1.4 * on


def test_disagreement_is_invariant_under_rotation(trained_committee):
    frames = beads.shaken_beads(20, seed=3)
    turned = (frames @ Rotation.random(rng=1).as_matrix().T).astype(np.float32)
    assert trained_committee.disagreement(turned) == pytest.approx(trained_committee.disagreement(frames), rel=0.02)


def test_held_out_errors_of_a_trained_committee_are_above_its_noise(trained_committee):
    calibration = trained_committee.calibration
    assert calibration.members == 3
    assert len(calibration.error) == 50
    assert 0 < calibration.noise_kJ_per_mol_nm <= np.sqrt(np.mean(calibration.error**2)) * 1.001
