"""The benchmark of one round, figures included: now, and as it was before anyone looked at its speed."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.harness import Result, Timing
from cgal.frames import CGTrajectory

BEFORE = "3807277"
"""The last commit before."""

HERE = Path(__file__).parents[1]
FRAMES, RESAMPLES, REPETITIONS = 20_000, 1000, 3
SEQUENCE = "YYDPETGTWY"
STAGE = """
import sys, time
from pathlib import Path
try:
    from cgal.benchmark.figures import plot_benchmark
    from cgal.benchmark.suite import benchmark
except ImportError:
    from cgal.benchmark import benchmark, plot_benchmark
from cgal.frames import CGTrajectory
from cgal.params import BenchmarkParams
folder = Path(sys.argv[1])
model, reference = (CGTrajectory.load(folder / f"{side}.h5") for side in ("model", "reference"))
start = time.perf_counter()
result = benchmark(
    model, reference, BenchmarkParams(bootstrap=int(sys.argv[2])), native=reference.positions[0],
    training_positions=reference.positions[:500], seed=1,
)
plot_benchmark(result, folder / "plots")
print(time.perf_counter() - start)
"""


def results() -> Iterator[Result]:
    """Five metrics in both modes, with intervals and floors, and two figures."""
    note = (
        f"five metrics in both modes, {RESAMPLES} resamples, figures; {FRAMES} model and {FRAMES} weighted reference "
        "frames; seconds within a fresh process, imports not counted; "
    )
    with TemporaryDirectory() as name:
        folder = Path(name)
        _write_trajectories(folder)
        before = _unpack(folder / "before")
        timing = _time(folder, before)
    peer = f"peer: cgal at commit {BEFORE}" if before else f"peer: commit {BEFORE} is not in this clone"
    yield timing.times("benchmark_stage", note + peer)


def _time(folder: Path, before: Path | None) -> Timing:
    _seconds(HERE, folder, resamples=10)  # compiled and cached once
    if before is None:
        return Timing(median(_seconds(HERE, folder) for _ in range(REPETITIONS)), None, None, "")
    pairs = [(_seconds(HERE, folder), _seconds(before, folder)) for _ in range(REPETITIONS)]
    ratios = sorted(theirs / own for own, theirs in pairs)
    spread = f"ratio {ratios[0]:.2f} to {ratios[-1]:.2f} over {REPETITIONS} repetitions"
    return Timing(median(own for own, _ in pairs), median(theirs for _, theirs in pairs), median(ratios), spread)


def _seconds(tree: Path, folder: Path, resamples: int = RESAMPLES) -> float:
    """Time of the stage, with the package as it is in the tree."""
    command = [sys.executable, "-c", STAGE, str(folder), str(resamples)]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def _unpack(folder: Path) -> Path | None:
    """The package at the commit before; None when git does not have it."""
    archive = subprocess.run(["git", "archive", BEFORE, "cgal"], cwd=HERE, capture_output=True)
    if archive.returncode:
        return None
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def _write_trajectories(folder: Path) -> None:
    _walk(1, trajectories=32, weighted=False).save(folder / "model.h5")
    _walk(2, trajectories=20, weighted=True).save(folder / "reference.h5")


def _walk(seed: int, *, trajectories: int, weighted: bool) -> CGTrajectory:
    """A chain that goes to and fro slowly between open and folded back on itself, with noise on every bead."""
    generator = np.random.default_rng(seed)
    frames = FRAMES // trajectories
    slow = generator.normal(0, 0.1, (trajectories, frames, 2)).cumsum(axis=1) + generator.normal(0, 1, (1, 1, 2))
    opening = np.stack([1.5 + 1.5 * np.sin(slow[..., 0]), 0.5 * np.sin(slow[..., 1])], axis=-1).reshape(-1, 2)
    bead = np.arange(10)
    angle = np.where(bead < 5, 0.0, 1.0) * opening[:, :1]
    step = 0.33 * np.stack([np.cos(angle), np.sin(angle), np.sin(opening[:, 1:] * bead)], axis=-1)
    positions = step.cumsum(axis=1) + generator.normal(0, 0.03, (len(step), 10, 3))
    positions[:, ::2, 2] += 0.19
    time_ps = np.tile(np.arange(frames) * 2.0, trajectories)
    walk = CGTrajectory.from_positions(SEQUENCE, positions, time_ps, np.repeat(np.arange(trajectories), frames))
    if weighted:
        walk.weights[:] = generator.dirichlet(np.full(trajectories, 3.0))[walk.replica]
        walk.weights[:] /= walk.weights.sum()
    return walk
