"""The benchmark of one round: Wasserstein-1 distances to the reference, and what became of the simulation."""

from collections import Counter
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from deeptime.decomposition import CovarianceKoopmanModel
from jaxtyping import Bool, Float32, Float64, Int64

from cgal.benchmark.halves import compare_halves
from cgal.benchmark.lag import used_lag_ps
from cgal.benchmark.observables import HEADLINE, OBSERVABLES
from cgal.benchmark.tica import fit_tica
from cgal.benchmark.wasserstein import MODES, Resamples, Sample, estimate, estimators
from cgal.errors import BadTrajectory, EmptyTrajectory
from cgal.frames import CGTrajectory, rmsd_nm
from cgal.params import BenchmarkParams
from cgal.progress import Progress, silent
from cgal.randomness import derive_generator

__all__ = ["BenchmarkResult", "benchmark", "observe"]

MINIMUM_FRAMES = 3


@dataclass(frozen=True, eq=False)
class BenchmarkResult:
    """What a benchmark found.

    `metrics` and `histograms` are JSON-able (layout: see `benchmark`). `model` and `reference` hold the samples behind
    them, by observable, for the figures.
    """

    metrics: dict[str, Any]
    histograms: dict[str, Any]
    model: dict[str, Sample]
    reference: dict[str, Sample]


def benchmark(
    trajectory: CGTrajectory,
    reference: CGTrajectory,
    params: BenchmarkParams,
    *,
    native: Float32[np.ndarray, "beads 3"],
    training_positions: Float32[np.ndarray, "training beads 3"],
    seed: int,
    progress: Progress = silent,
) -> BenchmarkResult:
    """Compare a model's simulation with the reference.

    The first `discard_fraction` of the run's time is dropped (of the times at which any replica saved a frame), so that
    a replica that was lost within it adds nothing. Replicas that exploded, imploded or went NaN are counted from
    `trajectory.fates`; the sound frames that they left count like all others. `native` [nm] is the folded frame.

    Metrics: `w1` (headline mode), `w1_exact` and `w1_paper` give value, low and high for each observable in its unit;
    `floor`, `floor_exact` and `floor_paper` W1 between two halves of the reference, by trajectory (contiguous, if it is
    only one); `tica_lag_ps` the lag used, in whole frames of the reference; `simulation` the losses and frames;
    `halves` whether the earlier and the later half of the simulation agree (see `compare_halves`);
    `folded_fraction` of model and reference; `reference_physics` names that of a reference of other physics than the
    oracle's. Histograms: `rmsd`, to the native frame [nm], of simulation, training and
    reference, each summing to one.

    Raises EmptyTrajectory when too few usable frames are left, BadTrajectory when the reference is of another protein
    or too short for the TICA lag, BadParams when the lag is below its frame spacing.
    """
    _check_same_protein(trajectory, reference)
    production = _production(trajectory, params.discard_fraction)
    tica = fit_tica(reference, params.tica_lag_ps)
    model, truth = (observe(side, tica, _blocks(side, params.blocks)) for side in (production, reference))
    one, other = (next(iter(side.values())) for side in (model, truth))  # all observables have the same blocks
    resamples = Resamples.draw(one, other, params.bootstrap, derive_generator(seed, 0, "bootstrap"))
    halves = _halves(reference)

    table = estimators(params.maximum_frames)
    w1: dict[str, dict[str, dict[str, float]]] = {mode: {} for mode in MODES}
    floor: dict[str, dict[str, float]] = {mode: {} for mode in MODES}
    todo = list(product(MODES, OBSERVABLES.values()))
    for done, (mode, observable) in enumerate(todo):
        progress(done, len(todo), f"W1 of {observable.title}, {mode} mode")
        metric, estimator = observable.name, table[mode][observable.geometry]
        w1[mode][metric] = estimate(estimator, model[metric], truth[metric], resamples)
        floor[mode][metric] = estimator.value(*(truth[metric].take(half) for half in halves))
    progress(len(todo), len(todo), "W1 done")

    deviations_nm = {
        "simulation": (rmsd_nm(production.positions, native), production.weights),
        "training": (rmsd_nm(training_positions, native), np.ones(len(training_positions))),
        "reference": (rmsd_nm(reference.positions, native), reference.weights),
    }
    metrics = {
        "w1": w1[params.mode],
        "floor": floor[params.mode],
        **{f"w1_{mode}": w1[mode] for mode in MODES},
        **{f"floor_{mode}": floor[mode] for mode in MODES},
        "tica_lag_ps": used_lag_ps(reference, params.tica_lag_ps),
        "simulation": _fates(trajectory, production),
        "halves": _compare_halves(production, model[HEADLINE], truth[HEADLINE]),
        "folded_fraction": {
            "model": _share_below(*deviations_nm["simulation"], params.folded_rmsd_nm),
            "reference": _share_below(*deviations_nm["reference"], params.folded_rmsd_nm),
        },
    }
    if reference.physics:
        metrics["reference_physics"] = reference.physics
    return BenchmarkResult(metrics, {"rmsd": _histograms(deviations_nm, params.rmsd_bins)}, model, truth)


def _compare_halves(production: CGTrajectory, model: Sample, truth: Sample) -> dict[str, Any]:
    """Along the slowest coordinate of the reference, in its standard deviations."""
    slow = truth.values[:, 0]
    mean = np.average(slow, weights=truth.weights)
    spread = float(np.sqrt(np.average((slow - mean) ** 2, weights=truth.weights)))
    return compare_halves(model.values[:, 0], production.replica.astype(np.int64), spread)


def _check_same_protein(trajectory: CGTrajectory, reference: CGTrajectory) -> None:
    if trajectory.sequence != reference.sequence:
        raise BadTrajectory(
            f"simulation is of {trajectory.sequence}, reference of {reference.sequence}: "
            "give the reference of the same protein"
        )


def _production(trajectory: CGTrajectory, discard_fraction: float) -> CGTrajectory:
    """Finite frames after the first share of the run's time."""
    times_ps = np.unique(trajectory.time_ps)
    late = np.isin(trajectory.time_ps, times_ps[int(discard_fraction * len(times_ps)) :])
    production = trajectory.take(late & _finite(trajectory))
    if len(production) < MINIMUM_FRAMES:
        lost = sum(fate.lost for fate in trajectory.fates)
        raise EmptyTrajectory(
            f"simulation: {len(production)} of {len(trajectory)} frames are usable after dropping the first "
            f"{discard_fraction:.0%} of the run ({lost} of {len(trajectory.fates)} replicas were lost), "
            f"the benchmark needs {MINIMUM_FRAMES}; train longer, lower simulation.timestep_ps or simulation.stride"
        )
    return production


def _finite(trajectory: CGTrajectory) -> Bool[np.ndarray, " frames"]:
    return np.asarray(np.isfinite(trajectory.positions).all(axis=(1, 2)))


def observe(
    trajectory: CGTrajectory, tica: CovarianceKoopmanModel, block: Int64[np.ndarray, " frames"]
) -> dict[str, Sample]:
    """Samples of all observables; `block` numbers the frames that stay together in the bootstrap."""
    return {
        name: Sample(observable.values(trajectory, tica), trajectory.weights, block)
        for name, observable in OBSERVABLES.items()
    }


def _blocks(trajectory: CGTrajectory, count: int) -> Int64[np.ndarray, " frames"]:
    """Block of each frame: its replica, or the contiguous piece it lies in when there is only one replica."""
    replicas, block = np.unique(trajectory.replica, return_inverse=True)
    if len(replicas) > 1:
        return block.astype(np.int64)
    pieces = min(count, len(trajectory))
    return np.arange(len(trajectory), dtype=np.int64) * pieces // len(trajectory)


def _halves(reference: CGTrajectory) -> tuple[Int64[np.ndarray, " some"], Int64[np.ndarray, " rest"]]:
    """Frames of every other trajectory, and the rest; of a lone trajectory its first and its second half.

    Raises BadTrajectory when all weight lies in one of them.
    """
    second = _blocks(reference, 2) % 2 == 1
    halves = np.flatnonzero(~second), np.flatnonzero(second)
    if not all(reference.weights[half].sum() > 0 for half in halves):
        raise BadTrajectory(
            "every other trajectory of the reference has no weight, for its Markov model does not connect them: sample "
            "longer ('cgal reference' goes on after reference.trajectory_ns or reference.trajectories is raised)"
        )
    return halves


def _fates(trajectory: CGTrajectory, production: CGTrajectory) -> dict[str, int | float]:
    """What became of the replicas; a trajectory without fates counts the replicas that it has frames of."""
    causes = Counter(fate.cause for fate in trajectory.fates)
    lost = sum(fate.lost for fate in trajectory.fates)
    replicas = len(trajectory.fates) or len(np.unique(trajectory.replica))
    return {
        "replicas": replicas,
        "exploded": causes["exploded"],
        "imploded": causes["imploded"],
        "not_finite": causes["not finite"],
        "exploded_fraction": lost / replicas,
        "frames": len(production),
        "frames_saved": len(trajectory),
        "frames_not_finite": int((~_finite(trajectory)).sum()),
    }


def _share_below(
    values: Float64[np.ndarray, " frames"], weights: Float64[np.ndarray, " frames"], threshold: float
) -> float:
    return float(weights[values < threshold].sum() / weights.sum())


type Weighted = tuple[Float64[np.ndarray, " _"], Float64[np.ndarray, " _"]]


def _histograms(deviations_nm: dict[str, Weighted], bins: int) -> dict[str, list[float]]:
    """Histogram of each side over the joint range, each summing to one (empty sides: to zero)."""
    highest = max(values.max(initial=0.0) for values, _ in deviations_nm.values())
    edges = np.linspace(0.0, max(float(highest), 0.01), bins + 1)
    return {"edges_nm": edges.tolist()} | {
        side: (np.histogram(values, edges, weights=weights)[0] / max(weights.sum(), 1e-300)).tolist()
        for side, (values, weights) in deviations_nm.items()
    }
