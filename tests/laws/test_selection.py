"""Laws of the coverage gap, of RMSD and of what the strategies pick."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cgal.errors import BadTrajectory, EmptyTrajectory
from cgal.frames import CGTrajectory, rmsd_nm
from cgal.params import SelectionParams
from cgal.selection import nearest_rmsd_nm, select
from cgal.selection.coverage import coverage_gap

SEQUENCE = "GGGGGGGG"
EDGES = np.linspace(0.0, 1.0, 11)
rmsds = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=50).map(lambda values: np.array(values, dtype=np.float64))


def hairpins(openings, seed=0):
    """Two strands of four beads 0.38 nm apart, the second turned away by each opening angle [rad], with small noise.

    The RMSD to the closed hairpin grows with the opening; bonds keep their length.
    """
    strand = np.arange(4) * 0.38
    frames = []
    for opening in openings:
        away = np.column_stack([-strand * np.cos(opening), 0.38 + strand * np.sin(opening), np.zeros(4)])
        frames.append(np.concatenate([np.column_stack([strand - 3 * 0.38, np.zeros(4), np.zeros(4)]), away]))
    noise = np.random.default_rng(seed).normal(0, 0.005, (len(frames), 8, 3))
    return (np.array(frames).reshape(-1, 8, 3) + noise).astype(np.float32)


REFERENCE = hairpins([0.0])[0]


def trajectory_of(positions):
    return CGTrajectory.from_positions(
        SEQUENCE, positions, np.arange(len(positions)), np.zeros(len(positions), dtype=np.int32)
    )


def pick(positions, training, count=10, seed=1, **changes):
    return select(
        trajectory_of(positions), training, REFERENCE, SelectionParams(**changes), count=count, seed=seed
    )  # fmt: skip


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


@pytest.mark.parametrize("strategy", ["rmsd_histogram", "random"])
def test_no_frame_is_picked_twice_and_same_seed_picks_the_same(strategy):
    simulated = hairpins(np.linspace(0.0, 1.5, 200))
    training = hairpins([0.1] * 20, seed=3)
    first, again, other = (pick(simulated, training, strategy=strategy, seed=seed) for seed in (1, 1, 2))
    assert len(set(first.frame)) == len(first) == 10
    assert first.frame.tolist() == again.frame.tolist() != other.frame.tolist()
    assert first.positions.tobytes() == simulated[first.frame].tobytes()


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
    a, b = (side.astype(np.float64) - side.mean(axis=0, dtype=np.float64) for side in (frame, other))
    u, s, vt = np.linalg.svd(a.T @ b)
    flip = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    return np.sqrt(max((np.sum(a**2) + np.sum(b**2) - 2 * np.sum(s * flip)) / len(a), 0.0))


def by_hand(frames, training):
    every = np.array([[kabsch_nm(frame, other) for other in training] for frame in frames])
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
