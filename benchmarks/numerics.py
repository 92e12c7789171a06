"""Numerical pieces of our own beside the library that has them too."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import ot
from deeptime.markov.tools.estimation import tmatrix_sampler, transition_matrix
from jaxtyping import Float64
from scipy.spatial.distance import cdist

from benchmarks.harness import Result, interleave
from cgal.benchmark.optimal_transport import transport_costs
from cgal.reference.msm import posterior_sampler

RESAMPLES = 200


def results() -> Iterator[Result]:
    """Transport of bootstrap resamples, at the points of each mode; draws of transition matrices."""
    cells = np.random.default_rng(1).normal(size=(200, 2))
    grid = np.stack(np.meshgrid(*2 * [np.linspace(-3, 3, 25)]), axis=-1).reshape(-1, 2)
    yield _transport("transport_vs_pot", cells, "200 Voronoi cells, as in mode exact")
    yield _transport("transport_vs_pot_paper", grid, "25 x 25 points, as in mode paper")
    yield _posterior()


def _transport(name: str, points: Float64[np.ndarray, "points 2"], what: str) -> Result:
    """Two clouds of 20 blocks, resampled with replacement."""
    generator = np.random.default_rng(2)
    blocks = [np.exp(-3 * cdist(generator.normal(shift, 0.7, (20, 2)), points) ** 2) for shift in (0.0, 0.3)]
    p, q = (_resampled(side, generator) for side in blocks)
    costs = cdist(points, points)
    largest = np.abs(transport_costs(costs, p - q) / _pot(costs, p, q) - 1).max()
    note = f"{RESAMPLES} resamples of two clouds on {what}; POT: ot.emd2; largest relative difference {largest:.0e}"
    timing = interleave(partial(transport_costs, costs, p - q), partial(_pot, costs, p, q), repetitions=5)
    return timing.rates(name, RESAMPLES, "transports/s", note)


def _resampled(
    blocks: Float64[np.ndarray, "blocks points"], generator: np.random.Generator
) -> Float64[np.ndarray, "rows points"]:
    drawn = generator.multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)), RESAMPLES) @ blocks
    shares: Float64[np.ndarray, "rows points"] = drawn / drawn.sum(axis=1, keepdims=True)
    return shares


def _pot(
    costs: Float64[np.ndarray, "points points"],
    p: Float64[np.ndarray, "rows points"],
    q: Float64[np.ndarray, "rows points"],
) -> Float64[np.ndarray, " rows"]:
    return np.array([ot.emd2(mine, theirs, costs) for mine, theirs in zip(p, q, strict=True)])


def _posterior() -> Result:
    """Why `cgal.reference.msm` reaches into deeptime: the sampler that it exports takes no seed."""
    counts = np.array([[900.0, 20.0, 0.0], [20.0, 500.0, 5.0], [0.0, 5.0, 300.0]])
    most_likely = transition_matrix(counts, reversible=True)

    def ours() -> Float64[np.ndarray, "3 3"]:
        return np.asarray(posterior_sampler(counts, most_likely, seed=1).sample(10)[0])

    def public() -> Float64[np.ndarray, "3 3"]:
        matrix: Float64[np.ndarray, "3 3"] = tmatrix_sampler(counts, reversible=True, nsteps=10).sample()
        return matrix

    differences = [float(np.abs(draw() - draw()).max()) for draw in (ours, public)]
    note = (
        "largest difference of a transition probability between two draws of the same seed; peer: deeptime's public "
        "tmatrix_sampler, which takes no seed, so that no reference could be made again"
    )
    return Result("msm_posterior_repeats", differences[0], differences[1], None, "probability", note)
