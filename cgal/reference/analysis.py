"""What a swarm says: equilibrium weights, how long its slowest process takes, and how sure all of it is."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from cgal.frames import CGTrajectory, rmsd_nm
from cgal.params import ReferenceParams
from cgal.progress import Progress, silent
from cgal.randomness import derive_generator, derive_seed
from cgal.reference.msm import (
    ChapmanKolmogorov,
    Estimate,
    Events,
    MarkovModel,
    StateSpace,
    Timescales,
    bootstrap,
    chapman_kolmogorov,
    count_events,
    fit_msm,
    frame_weights,
    implied_timescales,
    population_weights,
    state_space,
)
from cgal.reference.sampling import pair_distances
from cgal.reference.tempering import Exchanges, memory

__all__ = ["Analysis", "analyse", "summarise"]

PROCESSES = 4
SETS = 3
STAGES = 4
PIECES = 5
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, eq=False)
class Analysis:
    """The swarm with its stationary weights, the Markov model behind them, and its tests.

    `deviation_nm` is each frame's C-alpha RMSD to the native frame. `folded` is the equilibrium share of frames below
    `folded_nm`: by tempering, where there is one, and `folded_by_model` by the Markov model in any case. `slowest_ps`
    is the slowest timescale. Intervals are over trajectories, or over pieces of ensembles. `outside` counts the frames
    without weight: those in states that tempering never saw, or that the others cannot be reached from. `memory` is how
    much of the slowest coordinate walkers keep through the heat (see `tempering.memory`).
    """

    swarm: CGTrajectory
    deviation_nm: Float64[np.ndarray, " frames"]
    model: MarkovModel
    timescales: Timescales
    chapman_kolmogorov: ChapmanKolmogorov
    folded: Estimate
    folded_by_model: Estimate
    slowest_ps: Estimate
    events: Events
    outside: int
    exchanges: Exchanges | None
    memory: float | None


def analyse(
    swarm: CGTrajectory,
    native: Float32[np.ndarray, "beads 3"],
    params: ReferenceParams,
    *,
    tempering: CGTrajectory | None = None,
    exchanges: Exchanges | None = None,
    seed: int,
    progress: Progress = silent,
) -> Analysis:
    """Fit the Markov model, weigh the frames, and test the model.

    `native` [nm] is the folded frame; `tempering` are frames in equilibrium (see `tempering.load_tempering`). Raises
    SamplingError when the trajectories are shorter than the lags.
    """
    progress(0, STAGES, "states")
    space = state_space(swarm, params, seed=derive_seed(seed, 0, "reference states"))
    discrete = space.discretise(swarm)
    model = fit_msm(discrete, params.lag_ps)
    if tempering is None:
        weights = frame_weights(model, discrete)
    else:
        weights = population_weights(space.assign(tempering.positions), discrete)
    deviation_nm = rmsd_nm(swarm.positions, native)
    progress(1, STAGES, "implied timescales")
    draws = derive_seed(seed, 0, "reference posterior")
    timescales = implied_timescales(discrete, processes=PROCESSES, samples=params.samples, seed=draws)
    progress(2, STAGES, "Chapman-Kolmogorov test")
    sets = min(SETS, len(model.active))
    test = chapman_kolmogorov(discrete, params.lag_ps, sets=sets, samples=params.samples, seed=draws)
    progress(3, STAGES, "bootstrap over trajectories")
    inside = deviation_nm < params.folded_nm
    by_model, slowest_ps = bootstrap(
        discrete, inside, lag_ps=params.lag_ps, resamples=params.bootstrap, seed=derive_seed(seed, 0, "bootstrap")
    )
    folded = by_model if tempering is None else _share(rmsd_nm(tempering.positions, native), tempering, params, seed)
    events = count_events(deviation_nm, swarm.replica, folded_nm=params.folded_nm, unfolded_nm=params.unfolded_nm)
    weighted = replace(swarm, weights=weights)
    outside = int((weights == 0).sum())
    kept = memory(exchanges.visits, _slowest(space, tempering)) if exchanges and tempering else None
    progress(STAGES, STAGES, "analysed")
    return Analysis(
        weighted, deviation_nm, model, timescales, test, folded, by_model, slowest_ps, events, outside, exchanges, kept
    )


def _slowest(space: StateSpace, frames: CGTrajectory) -> Float64[np.ndarray, " frames"]:
    return np.asarray(space.tica.transform(pair_distances(frames.positions)), dtype=np.float64)[:, 0]


def _share(
    deviation_nm: Float64[np.ndarray, " frames"], tempering: CGTrajectory, params: ReferenceParams, seed: int
) -> Estimate:
    """Folded share with the interval of a bootstrap over pieces of ensembles."""
    inside = deviation_nm < params.folded_nm
    pieces = [
        piece.mean()
        for ensemble in np.unique(tempering.replica)
        for piece in np.array_split(inside[tempering.replica == ensemble], PIECES)
        if len(piece)
    ]
    generator = derive_generator(seed, 0, "tempering pieces")
    drawn = generator.choice(pieces, size=(params.bootstrap, len(pieces))).mean(axis=1)
    low, high = np.percentile(drawn, PERCENTILES)
    return Estimate(float(inside.mean()), float(low), float(high))


def summarise(analysis: Analysis, params: ReferenceParams) -> dict[str, Any]:
    """Give the numbers of an analysis, JSON-able; times in ps unless the name says otherwise."""
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
            "states": params.states,
            "connected_states": len(model.active),
            "timescales_ps": [None if math.isnan(each) else float(each) for each in model.timescales_ps(PROCESSES)],
            "slowest_ps": asdict(analysis.slowest_ps),
            "chapman_kolmogorov_deviation": analysis.chapman_kolmogorov.largest_deviation,
        },
        "tempering": _tempering(analysis, params),
        "folded_by_model": asdict(analysis.folded_by_model),
        "folded": asdict(analysis.folded)
        | {"unweighted": float((analysis.deviation_nm < params.folded_nm).mean()), "below_nm": params.folded_nm},
        "events": {**asdict(analysis.events), "folded_nm": params.folded_nm, "unfolded_nm": params.unfolded_nm},
    }


def _tempering(analysis: Analysis, params: ReferenceParams) -> dict[str, Any] | None:
    exchanges = analysis.exchanges
    if exchanges is None:
        return None
    return {
        "sampled_ns": exchanges.sampled_ns,
        "ensembles": params.tempering_ensembles,
        "replicas": params.tempering_replicas,
        "acceptance": [float(each) for each in exchanges.acceptance],
        "round_trips": exchanges.round_trips,
        "visits": len(np.unique(exchanges.visits, axis=0)),
        "memory": analysis.memory,
    }
