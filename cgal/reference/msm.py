"""From a swarm of short trajectories to equilibrium: a Markov state model whose stationary weights go with the frames.

Short trajectories are in equilibrium within a small state but not among states, where their starts decide. A Markov
state model takes only the transition probabilities from them, and its stationary distribution gives each state its
due (Prinz et al., J. Chem. Phys. 134, 174105 (2011)). Estimators are deeptime's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from deeptime.clustering import KMeans
from deeptime.decomposition import TICA
from deeptime.markov import TransitionCountEstimator, TransitionCountModel, pcca
from deeptime.markov.tools.estimation.dense.tmat_sampling.sampler_rev import SamplerRev
from jaxtyping import Bool, Float64, Int32, Int64

from cgal.errors import SamplingError
from cgal.frames import CGTrajectory
from cgal.params import ReferenceParams
from cgal.randomness import derive_generator, derive_seed
from cgal.reference.sampling import bead_distances
from cgal.reversible import fit_reversible
from cgal.units import whole_frames

__all__ = [
    "ChapmanKolmogorov",
    "DiscreteTrajectories",
    "Estimate",
    "Events",
    "MarkovModel",
    "Timescales",
    "bootstrap",
    "chapman_kolmogorov",
    "count_events",
    "discretise",
    "fit_msm",
    "frame_weights",
    "implied_timescales",
    "prefix",
    "thin",
    "weigh",
]

PERCENTILES = (2.5, 97.5)
SHORTEST_LAG_FRAMES = 2
LAGS = 10
MULTIPLES = 5
NOT_CONVERGED = 1e-12


@dataclass(frozen=True, eq=False)
class DiscreteTrajectories:
    """State of each frame, frames of one replica in order of time and `spacing_ps` apart; states 0 to `count` - 1."""

    states: Int64[np.ndarray, " frames"]
    replica: Int32[np.ndarray, " frames"]
    spacing_ps: float
    count: int

    @cached_property
    def paths(self) -> list[Int64[np.ndarray, " _"]]:
        """States of each trajectory."""
        return [self.states[self.replica == replica] for replica in np.unique(self.replica)]

    def frames(self, lag_ps: float) -> int:
        """Lag in frames; raises SamplingError when no trajectory is longer."""
        lag = max(1, whole_frames(lag_ps, self.spacing_ps))
        longest = max(len(path) for path in self.paths)
        if longest <= lag:
            raise SamplingError(
                f"the longest trajectory of the swarm has {longest * self.spacing_ps:g} ps, and a lag of {lag_ps:g} ps "
                "asks for more; sample longer ('cgal reference' goes on) or lower reference.lag_ps"
            )
        return lag

    @property
    def longest_ps(self) -> float:
        """Length of the longest trajectory."""
        return max(len(path) for path in self.paths) * self.spacing_ps


@dataclass(frozen=True, eq=False)
class MarkovModel:
    """A reversible Markov chain over the `active` states, the largest set whose members can all reach one another."""

    lag_ps: float
    active: Int64[np.ndarray, " active"]
    transition_matrix: Float64[np.ndarray, "active active"]
    stationary: Float64[np.ndarray, " active"]

    def timescales_ps(self, count: int) -> Float64[np.ndarray, " count"]:
        """Implied timescales, slowest first: -lag / ln |eigenvalue|; NaN for those that the chain has not got."""
        return relaxation_times(self.transition_matrix, self.stationary, self.lag_ps, count)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Timescales:
    """Implied timescales [ps] at each lag [ps], with 95 % intervals of the posterior; slowest process first."""

    lags_ps: Float64[np.ndarray, " lags"]
    value_ps: Float64[np.ndarray, "lags processes"]
    low_ps: Float64[np.ndarray, "lags processes"]
    high_ps: Float64[np.ndarray, "lags processes"]


@dataclass(frozen=True, eq=False)
class ChapmanKolmogorov:
    """Probability to go from metastable set i to j in a time: predicted by the model, and counted at that lag.

    Sets are PCCA+ memberships; `share` is the stationary probability of each. Intervals (95 %) are the posterior's.
    """

    times_ps: Float64[np.ndarray, " times"]
    predicted: Float64[np.ndarray, "times sets sets"]
    low: Float64[np.ndarray, "times sets sets"]
    high: Float64[np.ndarray, "times sets sets"]
    counted: Float64[np.ndarray, "times sets sets"]
    share: Float64[np.ndarray, " sets"]

    @property
    def largest_deviation(self) -> float | None:
        """Largest difference between prediction and count; None where no multiple of the lag was counted.

        Zero lags and one say nothing: there the prediction is the count.
        """
        deviations = np.abs(self.predicted - self.counted)[2:]
        return None if np.isnan(deviations).all() else float(np.nanmax(deviations))


@dataclass(frozen=True)
class Events:
    """How often the swarm's trajectories went from folded to unfolded, and back."""

    folding: int
    unfolding: int


def discretise(trajectory: CGTrajectory, params: ReferenceParams, *, seed: int) -> DiscreteTrajectories:
    """Assign each frame to one of `states` k-means clusters in the plane of the slowest TICA components.

    TICA (Perez-Hernandez et al., J. Chem. Phys. 139, 015102 (2013)) on all C-alpha pair distances, `tica_dimensions`
    components scaled by their eigenvalues. Raises SamplingError when no trajectory is longer than `tica_lag_ps`.
    """
    undivided = DiscreteTrajectories(
        np.zeros(len(trajectory), dtype=np.int64), trajectory.replica, _spacing_ps(trajectory), 1
    )
    lag = undivided.frames(params.tica_lag_ps)
    distances = bead_distances(trajectory.positions)
    pieces = [distances[trajectory.replica == replica] for replica in np.unique(trajectory.replica)]
    tica = TICA(lagtime=lag, dim=params.tica_dimensions).fit([piece for piece in pieces if len(piece) > lag])
    slow = np.asarray(tica.fetch_model().transform(distances), dtype=np.float64)
    count = min(params.states, len(trajectory))
    clusters = KMeans(count, max_iter=100, fixed_seed=seed, n_jobs=1).fit(slow).fetch_model()
    states = np.asarray(clusters.transform(slow, n_jobs=1), dtype=np.int64)
    return replace(undivided, states=states, count=count)


def fit_msm(discrete: DiscreteTrajectories, lag_ps: float) -> MarkovModel:
    """Maximum-likelihood reversible chain at a lag, from sliding-window counts (Bowman et al. 2009).

    Raises SamplingError when no trajectory is longer than the lag.
    """
    lag = discrete.frames(lag_ps)
    counts = sum(_path_counts(discrete, lag))
    model = _reversible(np.asarray(counts, dtype=np.float64), lag * discrete.spacing_ps)
    if len(model.active) == 1:
        raise SamplingError(
            f"no two of the {discrete.count} states of the swarm are connected at a lag of {lag_ps:g} ps; "
            "sample longer ('cgal reference' goes on), or lower reference.lag_ps or reference.states"
        )
    return model


def frame_weights(model: MarkovModel, discrete: DiscreteTrajectories) -> Float64[np.ndarray, " frames"]:
    """Weight of each frame: its state's stationary probability, shared among the frames in it; zero outside."""
    visits = np.bincount(discrete.states, minlength=discrete.count)
    share = np.zeros(discrete.count)
    share[model.active] = model.stationary
    return np.asarray((share / np.maximum(visits, 1))[discrete.states])


def weigh(trajectory: CGTrajectory, params: ReferenceParams, *, seed: int) -> CGTrajectory:
    """Give the frames the stationary weights of a Markov state model of their own trajectories."""
    discrete = discretise(trajectory, params, seed=seed)
    return replace(trajectory, weights=frame_weights(fit_msm(discrete, params.lag_ps), discrete))


def implied_timescales(discrete: DiscreteTrajectories, *, processes: int, samples: int, seed: int) -> Timescales:
    """Timescales at ten lags from two frames to half of the longest trajectory; they level off where a lag suffices.

    A lag at which no two states are connected leaves NaN.
    """
    longest = int(discrete.longest_ps / discrete.spacing_ps / 2)
    lags = np.unique(np.geomspace(SHORTEST_LAG_FRAMES, max(longest, SHORTEST_LAG_FRAMES + 1), LAGS).round().astype(int))
    value, low, high = (np.full((len(lags), processes), np.nan) for _ in range(3))
    for k, lag in enumerate(lags):
        lag_ps = float(lag * discrete.spacing_ps)
        model = _fit_if_connected(discrete, lag_ps)
        if model is None:
            continue
        value[k] = model.timescales_ps(processes)
        chains = _posterior(discrete, lag_ps, samples, derive_seed(seed, k, "timescales"))
        drawn = np.array([chain.timescales_ps(processes) for chain in chains])
        if not len(drawn):
            continue
        known = min(processes, len(model.active) - 1)
        low[k, :known], high[k, :known] = np.percentile(drawn[:, :known], PERCENTILES, axis=0)
    return Timescales(lags * discrete.spacing_ps, value, low, high)


def chapman_kolmogorov(
    discrete: DiscreteTrajectories, lag_ps: float, *, sets: int, samples: int, seed: int
) -> ChapmanKolmogorov:
    """Compare T(lag)^k with T(k lag), coarse-grained to PCCA+ sets (Roeblitz and Weber 2013), for k = 0 to 5.

    A multiple of the lag beyond half of the longest trajectory is left out, so that a lag of a quarter of it or more
    leaves nothing to test; one at which no two states are connected has NaN for its count. Raises SamplingError when
    too little was sampled to tell sets apart.
    """
    model = fit_msm(discrete, lag_ps)
    memberships = np.zeros((discrete.count, sets))
    try:
        memberships[model.active] = pcca(model.transition_matrix, sets).memberships
    except (AssertionError, ValueError) as error:  # deeptime's answer to states that hardly anything connects
        raise SamplingError(
            f"the Markov model's {len(model.active)} states do not part into {sets} sets: too few transitions were "
            "sampled; raise reference.trajectories or reference.trajectory_ns, or lower reference.states"
        ) from error
    multiples = [0] + [k for k in range(1, MULTIPLES + 1) if k * model.lag_ps < discrete.longest_ps / 2]
    predicted = _moved(model, memberships, multiples)
    drawn = [
        _moved(chain, memberships, multiples)
        for chain in _posterior(discrete, lag_ps, samples, derive_seed(seed, 0, "ck"))
    ]
    if not drawn:
        raise SamplingError(
            f"hardly any two of the Markov model's {len(model.active)} states are connected both ways: raise "
            "reference.trajectories or reference.trajectory_ns, or lower reference.states"
        )
    low, high = np.percentile(drawn, PERCENTILES, axis=0)
    counted = np.full_like(predicted, np.nan)
    counted[0] = predicted[0]
    for row, multiple in enumerate(multiples[1:], start=1):
        longer = _fit_if_connected(discrete, multiple * model.lag_ps)
        if longer is not None:
            counted[row] = _moved(longer, memberships, [1])[0]
    share = model.stationary @ memberships[model.active]
    return ChapmanKolmogorov(np.array(multiples) * model.lag_ps, predicted, low, high, counted, share)


def bootstrap(
    discrete: DiscreteTrajectories,
    observable: Float64[np.ndarray, " frames"] | Bool[np.ndarray, " frames"],
    *,
    lag_ps: float,
    resamples: int,
    seed: int,
) -> tuple[Estimate, Estimate]:
    """Equilibrium mean of an observable, and the slowest timescale [ps], with errors over trajectories.

    Whole trajectories are drawn with replacement, and each draw gets a Markov model of its own on the same states.
    """
    lag = discrete.frames(lag_ps)
    counts = np.array(list(_path_counts(discrete, lag)))
    _, path = np.unique(discrete.replica, return_inverse=True)
    index, shape = path * discrete.count + discrete.states, (len(counts), discrete.count)
    visits, sums = (
        np.bincount(index, weights=each, minlength=shape[0] * shape[1]).reshape(shape)
        for each in (np.ones(len(index)), observable.astype(np.float64))
    )
    generator = derive_generator(seed, 0, "trajectories")
    drawn = generator.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=resamples)
    found = np.array(
        [
            _expectation(np.tensordot(often, counts, 1), often @ visits, often @ sums, lag * discrete.spacing_ps)
            for often in np.concatenate([np.ones((1, len(counts))), drawn])
            if np.tensordot(often, counts, 1).sum() > 0
        ]
    )
    low, high = np.nanpercentile(found[1:], PERCENTILES, axis=0)
    mean, slowest = (Estimate(float(found[0, k]), float(low[k]), float(high[k])) for k in (0, 1))
    return mean, slowest


def count_events(
    deviation_nm: Float64[np.ndarray, " frames"],
    replica: Int32[np.ndarray, " frames"],
    *,
    folded_nm: float,
    unfolded_nm: float,
) -> Events:
    """Count changes between folded (RMSD below `folded_nm`) and unfolded (above `unfolded_nm`).

    What lies between belongs to where the trajectory was before (hysteresis), so that crossing one threshold back and
    forth is no event.
    """
    folding = unfolding = 0
    for each in np.unique(replica):
        path = deviation_nm[replica == each]
        visits = np.select([path < folded_nm, path > unfolded_nm], [1, -1], 0)
        changes = np.diff(visits[visits != 0])
        folding += int((changes > 0).sum())
        unfolding += int((changes < 0).sum())
    return Events(folding, unfolding)


def prefix(trajectory: CGTrajectory, share: float) -> CGTrajectory:
    """Give the first `share` of the time of every trajectory: what there was when the swarm had got that far."""
    ranks = _ranks(trajectory.replica)
    lengths = np.bincount(trajectory.replica)[trajectory.replica]
    return trajectory.take(ranks < np.round(share * lengths))


def thin(trajectory: CGTrajectory, frames: int) -> CGTrajectory:
    """Give every n-th frame of each trajectory, with the smallest n that leaves at most about so many in all."""
    stride = -(-len(trajectory) // frames)
    return trajectory.take(_ranks(trajectory.replica) % stride == stride - 1)


def relaxation_times(
    transition_matrix: Float64[np.ndarray, "states states"],
    stationary: Float64[np.ndarray, " states"],
    lag_ps: float,
    count: int,
) -> Float64[np.ndarray, " count"]:
    """Timescales [ps] of a reversible chain, slowest first."""
    root = np.sqrt(stationary)
    symmetric = root[:, None] * transition_matrix / root
    eigenvalues = np.linalg.eigvalsh((symmetric + symmetric.T) / 2)[::-1][1 : count + 1]
    times = np.full(count, np.nan)
    with np.errstate(divide="ignore"):
        times[: len(eigenvalues)] = -lag_ps / np.log(np.clip(np.abs(eigenvalues), NOT_CONVERGED, 1 - NOT_CONVERGED))
    return times


def _fit_if_connected(discrete: DiscreteTrajectories, lag_ps: float) -> MarkovModel | None:
    try:
        return fit_msm(discrete, lag_ps)
    except SamplingError:
        return None


def _reversible(counts: Float64[np.ndarray, "states states"], lag_ps: float) -> MarkovModel:
    """Maximum-likelihood chain on the largest strongly connected set."""
    connected, model = fit_reversible(TransitionCountModel(counts))
    if model is None:
        return MarkovModel(lag_ps, np.asarray(connected.state_symbols, dtype=np.int64), np.ones((1, 1)), np.ones(1))
    return MarkovModel(
        lag_ps,
        np.asarray(connected.state_symbols, dtype=np.int64),
        np.asarray(model.transition_matrix, dtype=np.float64),
        np.asarray(model.stationary_distribution, dtype=np.float64),
    )


def _path_counts(discrete: DiscreteTrajectories, lag: int) -> Iterator[Int64[np.ndarray, "states states"]]:
    """Transitions of each trajectory, in windows that slide by a frame."""
    for path in discrete.paths:
        pairs = path[:-lag] * discrete.count + path[lag:]
        yield np.bincount(pairs, minlength=discrete.count**2).reshape(discrete.count, discrete.count)


def _posterior(discrete: DiscreteTrajectories, lag_ps: float, samples: int, seed: int) -> Iterator[MarkovModel]:
    """Reversible chains drawn from the posterior of effective counts (Trendelkamp-Schroer et al. 2015), seeded.

    None where no two states are connected both ways.
    """
    lag = discrete.frames(lag_ps)
    long = [path for path in discrete.paths if len(path) > lag]
    counts = TransitionCountEstimator(lag, "effective", n_states=discrete.count).fit(long, n_jobs=1).fetch_model()
    connected, model = fit_reversible(counts)
    if model is None:
        return
    sampler = posterior_sampler(connected.count_matrix, model.transition_matrix, seed)
    active = np.asarray(connected.state_symbols, dtype=np.int64)
    for _ in range(samples):
        matrix, stationary = sampler.sample(max(1, round(np.sqrt(len(active)))), return_statdist=True)
        yield MarkovModel(lag * discrete.spacing_ps, active, np.array(matrix), np.array(stationary))


def posterior_sampler(
    counts: Float64[np.ndarray, "states states"], start: Float64[np.ndarray, "states states"], seed: int
) -> SamplerRev:
    """Gibbs sampler of reversible transition matrices, from `start`; same seed, same draws.

    A private class of deeptime, since its public `tmatrix_sampler` takes no seed (`make bench`: msm_posterior_repeats).
    """
    return SamplerRev(counts, P0=start, seed=seed)


def _moved(
    model: MarkovModel, memberships: Float64[np.ndarray, "states sets"], multiples: Sequence[int]
) -> Float64[np.ndarray, "times sets sets"]:
    """Probability of each set after so many lags, started in equilibrium within a set."""
    inside = memberships[model.active]
    start = (model.stationary[:, None] * inside).T
    start /= start.sum(axis=1, keepdims=True)
    return np.array([start @ np.linalg.matrix_power(model.transition_matrix, k) @ inside for k in multiples])


def _expectation(
    counts: Float64[np.ndarray, "states states"],
    visits: Float64[np.ndarray, " states"],
    sums: Float64[np.ndarray, " states"],
    lag_ps: float,
) -> tuple[float, float]:
    model = _reversible(counts, lag_ps)
    means = (sums / np.maximum(visits, 1))[model.active]
    return float(model.stationary @ means), float(model.timescales_ps(1)[0])


def _ranks(replica: Int32[np.ndarray, " frames"]) -> Int64[np.ndarray, " frames"]:
    """Place of each frame in its trajectory: 0, 1, ..."""
    ranks = np.empty(len(replica), dtype=np.int64)
    for each in np.unique(replica):
        frames = np.flatnonzero(replica == each)
        ranks[frames] = np.arange(len(frames))
    return ranks


def _spacing_ps(trajectory: CGTrajectory) -> float:
    same = np.diff(trajectory.replica) == 0
    return float(np.median(np.diff(trajectory.time_ps)[same]))
