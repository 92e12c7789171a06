"""The floor of the benchmark: how far one half of a reference's trajectories lies from the other half."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from deeptime.decomposition import CovarianceKoopmanModel

from cgal.benchmark.observables import OBSERVABLES
from cgal.benchmark.suite import observe
from cgal.benchmark.tica import fit_tica
from cgal.benchmark.wasserstein import MODES, estimators
from cgal.errors import SamplingError
from cgal.frames import CGTrajectory
from cgal.params import BenchmarkParams, Params
from cgal.progress import Progress, silent
from cgal.randomness import derive_generator
from cgal.reference.msm import prefix, thin, weigh

__all__ = ["floors"]

SHARES = (0.25, 0.5, 0.75, 1.0)


def floors(
    swarm: CGTrajectory, truth: CGTrajectory, params: Params, progress: Progress = silent
) -> list[dict[str, Any]]:
    """W1 between random halves of the trajectories, each with the weights of its own Markov model, as sampling grows.

    One entry for the first 25, 50, 75 and 100 % of the time of every trajectory: `sampled_ns` of both halves, and for
    each mode and metric the `mean`, lowest and highest over the splits. TICA is that of `truth`, the reference. A share
    is left out when a half of any split is too short for lags or densities. The reference itself has twice the
    trajectories of a half, and is nearer to the truth than that: independent errors would put it at half the floor.

    Raises SamplingError when there is no second trajectory.
    """
    if len(np.unique(swarm.replica)) < 2:
        raise SamplingError(
            "reference: the swarm has one trajectory, and a floor is between two halves of several; raise "
            "reference.trajectories ('cgal reference' adds more)"
        )
    tica = fit_tica(truth, params.benchmark.tica_lag_ps)
    total_ns = len(swarm) * params.reference.spacing_ps / 1000
    fallen = []
    for done, share in enumerate(SHARES):
        values = []
        for split in range(params.reference.splits):
            progress(done * params.reference.splits + split, len(SHARES) * params.reference.splits, f"{share:.0%}")
            try:
                values.append(_split_distance(prefix(swarm, share), split, tica, params))
            except SamplingError:
                values = []
                break
        if values:
            fallen.append({"sampled_ns": share * total_ns, **_spread(values)})
    return fallen


def _split_distance(
    swarm: CGTrajectory, split: int, tica: CovarianceKoopmanModel, params: Params
) -> dict[str, dict[str, float]]:
    shuffled = derive_generator(params.seed, split, "reference floor").permutation(np.unique(swarm.replica))
    chosen = np.isin(swarm.replica, shuffled[: len(shuffled) // 2])
    halves = []
    for half in (chosen, ~chosen):
        weighted = weigh(swarm.take(half), params.reference, seed=params.seed)
        halves.append(thin(weighted.take(weighted.weights > 0), params.reference.frames // 2))
    return _distances(halves[0], halves[1], tica, params.benchmark)


def _distances(
    one: CGTrajectory, other: CGTrajectory, tica: CovarianceKoopmanModel, params: BenchmarkParams
) -> dict[str, dict[str, float]]:
    """W1 between two weighted trajectories, by mode and metric; raises SamplingError when there are too few frames."""
    mine, theirs = (observe(side, tica, np.zeros(len(side), dtype=np.int64)) for side in (one, other))
    table = estimators(params.maximum_frames)
    try:
        found = {
            mode: {
                name: table[mode][observable.geometry].value(mine[name], theirs[name])
                for name, observable in OBSERVABLES.items()
            }
            for mode in MODES
        }
    except np.linalg.LinAlgError:  # two frames, say, span no plane
        found = {}
    if not found or not all(np.isfinite(value) for values in found.values() for value in values.values()):
        raise SamplingError("too few frames of a half have weight for a density; sample longer")
    return found


def _spread(values: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    def over(mode: str, metric: str) -> dict[str, float]:
        found = [value[mode][metric] for value in values]
        return {"mean": float(np.mean(found)), "low": min(found), "high": max(found)}

    return {mode: {metric: over(mode, metric) for metric in OBSERVABLES} for mode in MODES}
