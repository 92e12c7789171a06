"""What noise times steps means, on series whose answer is known, and the page of the study from a tiny run."""

from pathlib import Path

import numpy as np
import pytest

from cgal.frames import AtomFrames
from study.label_noise import HELD_LOOK_STEPS, dynamics, noise, noise_times_steps, with_variates

SMALL = AtomFrames.load(Path(__file__).parent / "data" / "chignolin_small.h5")


def test_independent_labels_cost_their_variance_times_the_stride() -> None:
    white = 3.0 * np.random.default_rng(0).standard_normal((4, 1280, 30))
    for stride in (1, 4, 16):
        assert noise_times_steps(white, stride) == pytest.approx(9.0 * stride * HELD_LOOK_STEPS, rel=0.05)


def test_labels_that_repeat_each_other_gain_nothing_from_a_dense_stride() -> None:
    slow = np.repeat(np.random.default_rng(0).standard_normal((4, 80, 30)), 16, axis=1)
    assert noise_times_steps(slow, 1) == pytest.approx(noise_times_steps(slow, 16), rel=0.01)


def test_local_frames_have_less_noise_than_the_linear_map() -> None:
    held = dynamics(SMALL.take(np.array([8, 20])), looks=128, stride=4, held=True)
    carbons = held.topology.select("name CA")
    assert np.ptp(held.positions[:128, carbons], axis=0).max() == 0.0
    framed, linear = (noise(SMALL, held, kind) for kind in ("local_frames", "slice"))
    assert noise_times_steps(framed, 16) < 0.5 * noise_times_steps(linear, 16)


def test_a_strong_ridge_leaves_the_forces_as_they_were() -> None:
    whole, none = (with_variates(SMALL, SMALL, SMALL, ridge) for ridge in (0.01, 1e9))
    assert np.abs(whole - none).max() > 10.0
    assert np.mean(whole**2) < np.mean(none**2)
