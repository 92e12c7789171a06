"""What a swarm says: equilibrium weights, how long its slowest process takes, and how sure all of it is."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from cgal.frames import CGTrajectory, rmsd_nm
from cgal.params import ReferenceParams
from cgal.progress import Progress, silent
from cgal.randomness import derive_seed
from cgal.reference.msm import (
    ChapmanKolmogorov,
    Estimate,
    Events,
    MarkovModel,
    Timescales,
    bootstrap,
    chapman_kolmogorov,
    count_events,
    discretise,
    fit_msm,
    frame_weights,
    implied_timescales,
)
from cgal.units import whole_frames

__all__ = ["Analysis", "analyse", "summarise"]

PROCESSES = 4
SETS = 3
STAGES = 4


@dataclass(frozen=True, eq=False)
class Analysis:
    """The swarm with its stationary weights, the Markov model behind them, and its tests.

    `deviation_nm` is each frame's C-alpha RMSD to the native frame. `folded` is the equilibrium share of frames below
    `folded_nm`, `slowest_ps` the slowest timescale; their intervals are over trajectories. `outside` counts the frames
    without weight: those in states that the others cannot be reached from, or cannot reach.
    """

    swarm: CGTrajectory
    deviation_nm: Float64[np.ndarray, " frames"]
    model: MarkovModel
    timescales: Timescales
    chapman_kolmogorov: ChapmanKolmogorov
    folded: Estimate
    slowest_ps: Estimate
    events: Events
    outside: int


def analyse(
    swarm: CGTrajectory,
    native: Float32[np.ndarray, "beads 3"],
    params: ReferenceParams,
    *,
    seed: int,
    progress: Progress = silent,
) -> Analysis:
    """Fit the Markov model, weigh the frames, and test the model.

    `native` [nm] is the folded frame. Raises SamplingError when the trajectories are shorter than the lags.
    """
    progress(0, STAGES, "states")
    discrete = discretise(swarm, params, seed=derive_seed(seed, 0, "reference states"))
    model = fit_msm(discrete, params.lag_ps)
    weights = frame_weights(model, discrete)
    deviation_nm = rmsd_nm(swarm.positions, native)
    progress(1, STAGES, "implied timescales")
    draws = derive_seed(seed, 0, "reference posterior")
    timescales = implied_timescales(discrete, processes=PROCESSES, samples=params.samples, seed=draws)
    progress(2, STAGES, "Chapman-Kolmogorov test")
    sets = min(SETS, len(model.active))
    test = chapman_kolmogorov(discrete, params.lag_ps, sets=sets, samples=params.samples, seed=draws)
    progress(3, STAGES, "bootstrap over trajectories")
    inside = deviation_nm < params.folded_nm
    folded, slowest_ps = bootstrap(
        discrete, inside, lag_ps=params.lag_ps, resamples=params.bootstrap, seed=derive_seed(seed, 0, "bootstrap")
    )
    events = count_events(deviation_nm, swarm.replica, folded_nm=params.folded_nm, unfolded_nm=params.unfolded_nm)
    weighted = replace(swarm, weights=weights)
    outside = int((weights == 0).sum())
    progress(STAGES, STAGES, "analysed")
    return Analysis(weighted, deviation_nm, model, timescales, test, folded, slowest_ps, events, outside)


def summarise(analysis: Analysis, params: ReferenceParams) -> dict[str, Any]:
    """Give the numbers of an analysis, JSON-able; times in ps unless the name says otherwise.

    `chapman_kolmogorov_deviation` is None where the trajectories are too short for the test.
    """
    swarm, model = analysis.swarm, analysis.model
    lengths = np.bincount(swarm.replica) * params.spacing_ps
    return {
        "sampled_ns": float(lengths.sum() / 1000),
        "trajectories": int((lengths > 0).sum()),
        "trajectory_ps": {"shortest": float(lengths[lengths > 0].min()), "longest": float(lengths.max())},
        "frames": len(swarm),
        "frames_without_weight": analysis.outside,
        "effective_frames": float(1 / np.sum(swarm.weights**2)),
        "markov_model": {
            "lag_ps": model.lag_ps,
            "tica_lag_ps": max(1, whole_frames(params.tica_lag_ps, params.spacing_ps)) * params.spacing_ps,
            "states": params.states,
            "connected_states": len(model.active),
            "timescales_ps": [None if math.isnan(each) else float(each) for each in model.timescales_ps(PROCESSES)],
            "slowest_ps": asdict(analysis.slowest_ps),
            "chapman_kolmogorov_deviation": analysis.chapman_kolmogorov.largest_deviation,
        },
        "folded": asdict(analysis.folded)
        | {"unweighted": float((analysis.deviation_nm < params.folded_nm).mean()), "below_nm": params.folded_nm},
        "events": {**asdict(analysis.events), "folded_nm": params.folded_nm, "unfolded_nm": params.unfolded_nm},
    }
