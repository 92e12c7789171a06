"""Nearest-training-frame RMSD of 20,000 simulated frames among 20,000 training frames, against a loop over mdtraj."""

from collections.abc import Iterable, Iterator
from functools import partial
from statistics import median

import mdtraj
import numpy as np
from jaxtyping import Float32

from benchmarks.harness import Result, interleave
from cgal.selection import nearest_rmsd_nm

FRAMES, BEADS = 20_000, 10
PEER_FRAMES = 40
"""Simulated frames that the peer is timed on: each costs it the same, one superposition of the whole training set."""

type Frames = Float32[np.ndarray, "frames beads 3"]


def results() -> Iterator[Result]:
    """Chains that nowhere come near each other are the hardest case, wobbling copies of a few shapes a common one."""
    yield _compare("rmsd_vs_mdtraj", _wobbling(), "thermal noise about 200 shapes")
    yield _compare("rmsd_vs_mdtraj_far_apart", _random_chains(2), "random chains, no two alike")


def _compare(name: str, sides: Iterable[Frames], what: str) -> Result:
    simulated, training = sides
    few = simulated[:PEER_FRAMES]
    ours = partial(nearest_rmsd_nm, simulated, training)
    scale = FRAMES / PEER_FRAMES
    rounds = [interleave(ours, partial(_by_mdtraj, few, training), 1, int(first)) for first in (True, False, False)]
    ours_s, peer_s = (median(side) for side in zip(*((each.ours_s, each.peer_s or 0) for each in rounds), strict=True))
    ratios = sorted(scale * (each.ratio or 0) for each in rounds)
    found, expected = nearest_rmsd_nm(few, training)[0], _by_mdtraj(few, training)
    note = (
        f"{FRAMES} x {FRAMES} frames of {BEADS} beads, {what}; mdtraj.rmsd (all threads, precentred) timed on "
        f"{PEER_FRAMES} of them and scaled by {scale:.0f}; largest difference {np.abs(found - expected).max():.1e} nm; "
        f"ratio {ratios[0]:.0f} to {ratios[-1]:.0f} over {len(ratios)} repetitions"
    )
    return Result(name, ours_s, scale * peer_s, median(ratios), "s", note)


def _by_mdtraj(frames: Frames, training: Frames) -> Frames:
    """As its manual does it: centre once, then one call a frame."""
    many, targets = mdtraj.Trajectory(training, None), mdtraj.Trajectory(frames, None)
    many.center_coordinates()
    targets.center_coordinates()
    return np.array([mdtraj.rmsd(many, targets, frame, precentered=True).min() for frame in range(len(frames))])


def _wobbling() -> tuple[Frames, Frames]:
    """Each frame is one of 200 shapes with noise of 0.03 nm a coordinate; RMSDs to the nearest are 0.05 to 0.1 nm."""
    generator = np.random.default_rng(1)
    shapes = _random_chains(1, 200)[0]
    simulated, training = (
        (shapes[generator.integers(len(shapes), size=FRAMES)] + generator.normal(0, 0.03, (FRAMES, BEADS, 3))).astype(
            np.float32
        )
        for _ in range(2)
    )
    return simulated, training


def _random_chains(sets: int, frames: int = FRAMES) -> list[Frames]:
    """Random walks with bonds of 0.38 nm."""
    steps = np.random.default_rng(0).normal(size=(sets, frames, BEADS, 3))
    steps *= 0.38 / np.linalg.norm(steps, axis=-1, keepdims=True)
    return list(steps.cumsum(axis=2).astype(np.float32))
