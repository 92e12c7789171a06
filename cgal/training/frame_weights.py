"""Weights of training frames whose runs began out of equilibrium, from a Markov model of all of them.

Runs of labels begin where a model went wrong. Within their few picoseconds they come to equilibrium in a small state,
not among states, where the choice of their starts decides; but how often they go from state to state does not depend on
it. So a reversible Markov model is fitted to the runs of all shards (Prinz et al., J. Chem. Phys. 134, 174105 (2011)),
with transition matrix T, and the distribution p of the frames is propagated by it for a time that is exponentially
distributed:

    p e (1 - (1 - e) T)^-1,    e = lag / memory.

A long memory gives the stationary distribution, a short one leaves all frames equal. What few runs tell of slow
transitions is mostly chance, and the memory bounds how far it is believed. The frames of a state divide its share.
States are clusters in the space of the slowest components of TICA; weights are means over several partitions. Forces
need no weights: their mean at a frame is the same wherever its run began.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float64, Int64

from cgal.errors import SamplingError
from cgal.frames import LabelledFrames
from cgal.params import MarkovParams, TrainingParams
from cgal.potential.geometry import pair_distances

__all__ = ["effective_frames", "weigh_shards"]

TOLERANCE = 0.1
"""Share of the lag by which a pair of frames may miss it."""

DIMENSIONS = 10
PARTITIONS = 4
CLUSTERED_FRAMES = 10_000
"""Frames that clusters are found with, at most."""


def weigh_shards(shards: Sequence[LabelledFrames], params: TrainingParams) -> tuple[LabelledFrames, ...]:
    """Shards of one protein with the weights that `params.frame_weights` asks for; their mean over all frames is one.

    Raises SamplingError when no two frames of a run lie `params.markov.lag_ps` apart.
    """
    if params.frame_weights == "none":
        return tuple(shards)
    weights = _markov(shards, params.markov)
    ends = np.cumsum([len(shard) for shard in shards])
    return tuple(replace(shard, weights=part) for shard, part in zip(shards, np.split(weights, ends[:-1]), strict=True))


def effective_frames(weights: Float64[np.ndarray, " frames"]) -> float:
    """Effective number of frames, (sum w)^2 / sum w^2."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def _markov(shards: Sequence[LabelledFrames], params: MarkovParams) -> Float64[np.ndarray, " frames"]:
    """Weight of each frame of all shards in order."""
    from deeptime.clustering import KMeans  # takes seconds: only where needed
    from deeptime.decomposition import TICA

    first, second = np.concatenate([np.zeros((2, 0), dtype=np.int64), *_pairs(shards, params.lag_ps)], axis=1)
    if not len(first):
        raise SamplingError(
            f"training.frame_weights: no two frames of a run lie training.markov.lag_ps ({params.lag_ps:g} ps) apart; "
            "lower it, label by longer runs (oracle.mode: free, oracle.average_steps), or set frame_weights: none"
        )
    positions = np.concatenate([shard.positions for shard in shards]).astype(np.float64)
    distances = pair_distances(torch.from_numpy(positions), 1).numpy()
    tica = TICA(lagtime=1, dim=DIMENSIONS).fit((distances[first], distances[second])).fetch_model()
    slow = np.asarray(tica.transform(distances), dtype=np.float64)
    thinned = slow[:: -(-len(slow) // CLUSTERED_FRAMES)]
    count, forgotten = min(params.states, len(thinned)), min(params.lag_ps / params.memory_ps, 1.0)
    weights = np.zeros(len(slow))
    for partition in range(PARTITIONS):
        clusters = KMeans(count, max_iter=100, fixed_seed=partition, n_jobs=1).fit(thinned).fetch_model()
        states = np.asarray(clusters.transform(slow, n_jobs=1), dtype=np.int64)
        weights += _shares(states, states[first] * count + states[second], count, forgotten)[states]
    return weights / weights.mean()


def _pairs(shards: Sequence[LabelledFrames], lag_ps: float) -> Iterator[Int64[np.ndarray, "2 pairs"]]:
    """Numbers, among the frames of all shards, of frames of a run that lie a lag apart."""
    offset = 0
    for shard in shards:
        for trajectory in np.unique(shard.trajectory):
            frames = np.flatnonzero(shard.trajectory == trajectory)
            times = shard.time_ps[frames]
            later = np.searchsorted(times, times + (1.0 - TOLERANCE) * lag_ps)
            there = np.flatnonzero(later < len(times))
            there = there[times[later[there]] - times[there] <= (1.0 + TOLERANCE) * lag_ps]
            yield offset + np.stack([frames[there], frames[later[there]]])
        offset += len(shard)


def _shares(
    states: Int64[np.ndarray, " frames"], transitions: Int64[np.ndarray, " pairs"], count: int, forgotten: float
) -> Float64[np.ndarray, " states"]:
    """Weight of a frame in each state; states that are not connected to most others keep what they have."""
    from deeptime.markov import TransitionCountModel  # takes seconds: only where needed

    from cgal.reversible import fit_reversible

    counts = np.bincount(transitions, minlength=count**2).reshape(count, count).astype(np.float64)
    matrix = np.eye(count)
    connected, model = fit_reversible(TransitionCountModel(counts))
    if model is not None:
        matrix[np.ix_(connected.state_symbols, connected.state_symbols)] = model.transition_matrix
    visits = np.bincount(states, minlength=count)
    propagated = np.linalg.solve((np.eye(count) - (1.0 - forgotten) * matrix).T, forgotten * visits)
    return np.asarray(propagated / np.maximum(visits, 1))
