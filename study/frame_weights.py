"""Do weights bring short runs from a biased set of starts nearer to equilibrium? Tables on both test beds.

    python -m study.frame_weights [--ns 16] [--seeds 5]

Trajectories of a swarm are parted as in `study.learning_curves`. From those to learn from, runs of 20, 100 and 400 ps
are cut, of `ns` in all. They start where selection would put them: at the frames furthest from one another (k-centres
in bead distances) among `CANDIDATES` that the seed draws. The frames of the runs, weighted in each way, are compared
with the other half of the swarm: TICA W1, exact. The settings of `training.markov` were chosen on seeds 0 to 2 of
chignolin, so the table has others.
"""

from collections.abc import Callable, Iterator
from typing import Annotated

import numpy as np
import typer
from jaxtyping import Float64

from cgal.benchmark.tica import fit_tica, project
from cgal.benchmark.wasserstein import Sample, plane_value
from cgal.frames import CGTrajectory, LabelledFrames
from cgal.params import MarkovParams, TrainingParams
from cgal.reference.sampling import bead_distances, k_centres
from cgal.training.frame_weights import effective_frames, weigh_shards
from study.beds import GROUND_TRUTHS
from study.handedness import parted
from study.learning_curves import Halves, as_trajectory, benchmark_params, system_of

__all__ = ["WAYS", "Weights", "cut", "drawn"]

LENGTHS_ps = (20.0, 100.0, 400.0)
FIRST_SEED = 10
CANDIDATES = 6000
DRAWN = 1000
"""Frames of each side that the exact W1 is between, drawn in proportion to their weights."""

type Weights = Float64[np.ndarray, " frames"]


def cut(parts: Halves, length_ps: float, ns: float, seed: int) -> LabelledFrames:
    """Runs of this length, each a trajectory that begins at time zero, from starts far apart."""
    pool, steps = parts.training, round(length_ps / parts.spacing_ps)
    count, index = round(1000 * ns / length_ps), np.arange(len(pool))
    ends = np.searchsorted(pool.trajectory, pool.trajectory, side="right")
    possible = np.random.default_rng(seed).permutation(index[ends - index > steps])[:CANDIDATES]
    starts = possible[k_centres(bead_distances(pool.positions[possible]), count)]
    frames = pool.take((starts[:, None] + np.arange(steps + 1)).ravel())
    return LabelledFrames(
        frames.sequence,
        frames.positions,
        frames.forces,
        np.repeat(np.arange(count, dtype=np.int32), steps + 1),
        np.tile(parts.spacing_ps * np.arange(steps + 1), count),
        {},
    )


def equal(frames: LabelledFrames) -> Weights:
    """All frames alike."""
    return np.ones(len(frames))


def later_half(frames: LabelledFrames) -> Weights:
    """Frames of the later half of each run, without its start."""
    return np.asarray(frames.time_ps > frames.time_ps.max() / 2, dtype=np.float64)


def markov(frames: LabelledFrames) -> Weights:
    """`training.frame_weights: markov`."""
    return _by(frames, MarkovParams())


def stationary(frames: LabelledFrames) -> Weights:
    """The same, propagated until it stands still."""
    return _by(frames, MarkovParams(memory_ps=1e9))


def _by(frames: LabelledFrames, params: MarkovParams) -> Weights:
    (weighted,) = weigh_shards([frames], TrainingParams(frame_weights="markov", markov=params))
    assert weighted.weights is not None
    return weighted.weights


WAYS: dict[str, Callable[[LabelledFrames], Weights]] = {
    "equal": equal,
    "later half": later_half,
    "markov": markov,
    "markov, stationary": stationary,
}


def rows(parts: Halves, ns: float, seeds: int) -> Iterator[str]:
    """A row for each length and way."""
    tica = fit_tica(parts.truth, benchmark_params().tica_lag_ps)
    truth = drawn(parts.truth, np.ones(len(parts.truth)), 0)
    slow_truth = _sample(project(tica, truth))
    for length_ps in LENGTHS_ps:
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            frames = cut(parts, length_ps, ns, seed)
            for name, way in WAYS.items():
                weights = way(frames)
                side = _sample(project(tica, drawn(as_trajectory(frames), weights, seed)))
                value = plane_value(side, slow_truth, DRAWN)
                found[name].append((value, effective_frames(weights) / len(weights)))
        for name, values in found.items():
            distances, shares = np.array(values).reshape(-1, 2).T
            listed = ", ".join(f"{distance:.2f}" for distance in distances)
            yield (
                f"| {system_of(parts.bed)} | {length_ps:g} | {round(1000 * ns / length_ps)} | {name} | "
                f"{distances.mean():.2f} | {listed} | {shares.mean():.2f} |"
            )


def drawn(trajectory: CGTrajectory, weights: Weights, seed: int) -> CGTrajectory:
    """Frames drawn in proportion to their weights, evenly spaced in their sum."""
    shares = np.cumsum(weights / weights.sum())
    at = (np.arange(DRAWN) + np.random.default_rng(seed).random()) / DRAWN
    return trajectory.take(np.searchsorted(shares / shares[-1], at))


def _sample(values: Float64[np.ndarray, "frames 2"]) -> Sample:
    return Sample(values, np.full(len(values), 1.0 / len(values)), np.zeros(len(values), dtype=np.int64))


def main(
    ns: Annotated[list[float] | None, typer.Option(help="Nanoseconds of runs; may be given again.")] = None,
    seeds: int = 5,
) -> None:
    """Print a table."""
    for total in ns or [16.0, 4.0]:
        print(f"\n{total:g} ns of runs:\n")
        print("| bed | run / ps | runs | weights | TICA W1 | each seed | effective share of frames |")
        print("|---|---|---|---|---|---|---|")
        for bed in GROUND_TRUTHS:
            for row in rows(parted(bed), total, seeds):
                print(row, flush=True)


if __name__ == "__main__":
    typer.run(main)
