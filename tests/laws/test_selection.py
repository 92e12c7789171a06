"""Laws of the coverage gap, of RMSD and of what the strategies pick."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cgal.errors import EmptyTrajectory
from cgal.frames import CGTrajectory, rmsd_nm
from cgal.params import SelectionParams
from cgal.selection import select
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
