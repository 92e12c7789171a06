r"""Wasserstein-1 distance between a model's and the reference's observables, with block-bootstrap intervals.

Two modes, each a table from observable to estimator (`estimators`):

`exact`
    From the samples, nothing smoothed. Bond, angle and dihedral: W1 of each term, averaged over terms (pooled terms
    can hide an error in one behind another). Dihedrals on the circle. TICA: the transport problem in the plane between
    at most `maximum_frames` evenly thinned frames a sample.
`paper`
    As the authors do it: Gaussian kernel density (Scott's rule) of the observable, terms pooled, on 100 points (TICA:
    25 x 25 points over the joint range widened by 10 %), normalised, then transported; dihedrals on the line. Two
    departures: the one-dimensional grids span the joint range, not the reference's alone, where a model's mass
    outside would vanish; and a kernel is never narrower than half the grid spacing, or it would fall between points.

Intervals. Replicas (a lone trajectory: contiguous blocks) of both sides are drawn with replacement. A resample only
reweights blocks, so each side is kept as masses on common points, one row a block: in `paper` mode the grid itself
(bandwidth held), in `exact` mode Voronoi cells around evenly thinned frames. What a resample changes there, W1* - W1,
is taken for the error of the value (the basic bootstrap): low = W1 - q_97.5 and high = W1 - q_2.5. Resampling noise
pushes every W1* up just as sampling noise pushed W1 up, so this corrects the bias that a percentile interval would
double. It is clipped to hold W1 and to stay above zero. Near the floor, where W1 is all noise, no bootstrap covers
zero reliably: read W1 against the reference-versus-reference floor.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ot
from jaxtyping import Float64, Int64
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

__all__ = ["METRICS", "Estimator", "Resamples", "Sample", "estimate", "estimators"]

METRICS = ("tica", "reaction_coordinate", "bond", "angle", "dihedral")

GRID_POINTS = 100
PLANE_GRID_POINTS = 25
PLANE_MARGIN = 0.1
LINE_CELLS = 500
PLANE_CELLS = 100
PERCENTILES = (2.5, 97.5)
PIVOTS = 10_000_000
TURN_RAD = 2 * np.pi


@dataclass(frozen=True, eq=False)
class Sample:
    """One observable of one side: a column a term (for TICA: a dimension), statistical weights, and blocks 0, 1, ...

    Frames of one block are correlated and stay together in the bootstrap.
    """

    values: Float64[np.ndarray, "frames terms"]
    weights: Float64[np.ndarray, " frames"]
    block: Int64[np.ndarray, " frames"]

    def __len__(self) -> int:
        """Give the number of frames."""
        return len(self.values)

    @property
    def terms(self) -> int:
        """Number of terms."""
        return int(self.values.shape[1])

    def take(self, frames: Int64[np.ndarray, " picked"]) -> "Sample":
        """Give the frames at these indices, blocks numbered as before."""
        return replace(self, values=self.values[frames], weights=self.weights[frames], block=self.block[frames])

    def thin(self, count: int) -> "Sample":
        """Give at most `count` frames, evenly spaced over the sample: no chance in it, every block keeps its share."""
        return self.take(np.arange(count) * len(self) // count) if len(self) > count else self

    def term(self, column: int) -> "Sample":
        """Give one term alone."""
        return replace(self, values=self.values[:, column : column + 1])

    def pooled(self) -> "Sample":
        """Give all terms as one: a frame counts once a term."""
        weights, block = (np.repeat(array, self.terms) for array in (self.weights, self.block))
        return replace(self, values=self.values.reshape(-1, 1), weights=weights, block=block)


@dataclass(frozen=True, eq=False)
class Resamples:
    """How often each block is drawn, one row a bootstrap resample; row 0 is the sample itself, every block once."""

    model: Float64[np.ndarray, "rows blocks"]
    reference: Float64[np.ndarray, "rows others"]

    @classmethod
    def draw(cls, model: Sample, reference: Sample, count: int, generator: np.random.Generator) -> "Resamples":
        """Draw `count` resamples of each side's blocks, with replacement."""
        return cls(*(_multiplicities(int(side.block.max()) + 1, count, generator) for side in (model, reference)))


@dataclass(frozen=True, eq=False)
class Masses:
    """Both sides as masses on common points, one row a block; the rows of a side add up to its distribution."""

    points: Float64[np.ndarray, "points dims"]
    model: Float64[np.ndarray, "blocks points"]
    reference: Float64[np.ndarray, "others points"]


type Rows = Float64[np.ndarray, "rows points"]
type Transport = Callable[[Any, Any, Any], Any]
"""(points, p, q) -> W1 between the probabilities p and q of each row, which lie on common points."""


@dataclass(frozen=True)
class Estimator:
    """How one observable is compared: its W1, and the masses (one pair a term) that a bootstrap reweights."""

    value: Callable[[Sample, Sample], float]
    masses: Callable[[Sample, Sample], list[Masses]]
    transport: Transport

    def changes(self, model: Sample, reference: Sample, resamples: Resamples) -> Float64[np.ndarray, " resamples"]:
        """W1 of each resample less that of the sample itself, averaged over terms."""
        distances = np.mean(
            [
                self.transport(
                    term.points, _norm(resamples.model @ term.model), _norm(resamples.reference @ term.reference)
                )
                for term in self.masses(model, reference)
            ],
            axis=0,
        )
        return np.asarray(distances[1:] - distances[0])


def estimate(estimator: Estimator, model: Sample, reference: Sample, resamples: Resamples) -> dict[str, float]:
    """W1 and its 95 % interval in the observable's unit: value, low and high, with 0 <= low <= value <= high."""
    value = estimator.value(model, reference)
    below, above = np.percentile(estimator.changes(model, reference, resamples), PERCENTILES)
    return {"value": value, "low": float(np.clip(value - above, 0.0, value)), "high": float(max(value - below, value))}


def estimators(maximum_frames: int) -> Mapping[str, Mapping[str, Estimator]]:
    """Estimator of each observable, for both modes; `maximum_frames` bounds the exact problem in the TICA plane."""
    exact_line = Estimator(line_value, line_cells, line_transport)
    paper_line = Estimator(grid_line_value, grid_line_masses, line_transport)
    return {
        "exact": {
            "tica": Estimator(partial(plane_value, maximum_frames=maximum_frames), plane_cells, plane_transport),
            "reaction_coordinate": exact_line,
            "bond": exact_line,
            "angle": exact_line,
            "dihedral": Estimator(circle_value, circle_cells, circle_transport),
        },
        "paper": {
            "tica": Estimator(grid_plane_value, grid_plane_masses, plane_transport),
            **dict.fromkeys(METRICS[1:], paper_line),
        },
    }


# Exact mode: samples


def line_value(model: Sample, reference: Sample) -> float:
    """Mean over terms of W1 on the line."""
    return float(np.mean(ot.wasserstein_1d(model.values, reference.values, *_term_weights(model, reference), p=1)))


def circle_value(model: Sample, reference: Sample) -> float:
    """Mean over terms of W1 on the circle [rad]."""
    turns = (side.values / TURN_RAD % 1.0 for side in (model, reference))
    return float(TURN_RAD * np.mean(ot.wasserstein_circle(*turns, *_term_weights(model, reference), p=1)))


def plane_value(model: Sample, reference: Sample, maximum_frames: int) -> float:
    """W1 in the plane, Euclidean, between at most `maximum_frames` frames a side."""
    few, others = model.thin(maximum_frames), reference.thin(maximum_frames)
    return _emd(_norm(few.weights), _norm(others.weights), cdist(few.values, others.values))


def line_cells(model: Sample, reference: Sample) -> list[Masses]:
    """Cells on the line, for each term."""
    return [_cells(model.term(k), reference.term(k), LINE_CELLS) for k in range(model.terms)]


def circle_cells(model: Sample, reference: Sample) -> list[Masses]:
    """Cells on the circle [rad], for each term."""
    wrapped = [replace(side, values=side.values % TURN_RAD % TURN_RAD) for side in (model, reference)]
    return [_cells(wrapped[0].term(k), wrapped[1].term(k), LINE_CELLS, TURN_RAD) for k in range(model.terms)]


def plane_cells(model: Sample, reference: Sample) -> list[Masses]:
    """Cells in the plane."""
    return [_cells(model, reference, PLANE_CELLS)]


def _cells(model: Sample, reference: Sample, count: int, period: float | None = None) -> Masses:
    """Masses of the Voronoi cells around `count` evenly thinned frames of each side, sorted by coordinate."""
    centres = np.unique(np.concatenate([side.thin(count).values for side in (model, reference)]), axis=0)
    tree = KDTree(centres, boxsize=period)  # type: ignore[arg-type]  # a scalar or None, says SciPy's manual
    return Masses(centres, *(_cell_masses(side, tree) for side in (model, reference)))


def _cell_masses(side: Sample, tree: KDTree) -> Float64[np.ndarray, "blocks cells"]:
    shape = (int(side.block.max()) + 1, tree.n)
    nearest = side.block * tree.n + tree.query(side.values)[1]
    return np.bincount(nearest, weights=_norm(side.weights), minlength=shape[0] * shape[1]).reshape(shape)


# Paper mode: kernel densities on a grid, terms pooled


def grid_line_value(model: Sample, reference: Sample) -> float:
    """W1 on the line between kernel densities."""
    (masses,) = grid_line_masses(model, reference)
    points = masses.points[:, 0]
    p, q = _norm(masses.model.sum(axis=0)), _norm(masses.reference.sum(axis=0))
    return float(ot.emd2_1d(points, points, p, q, metric="euclidean"))


def grid_plane_value(model: Sample, reference: Sample) -> float:
    """W1 in the plane between kernel densities, Euclidean."""
    (masses,) = grid_plane_masses(model, reference)
    return _moved(
        _norm(masses.model.sum(axis=0)) - _norm(masses.reference.sum(axis=0)), cdist(masses.points, masses.points)
    )


def grid_line_masses(model: Sample, reference: Sample) -> list[Masses]:
    """Kernel densities of the pooled terms over their joint range."""
    return [_grid_masses(model.pooled(), reference.pooled(), GRID_POINTS, margin=0.0)]


def grid_plane_masses(model: Sample, reference: Sample) -> list[Masses]:
    """Kernel densities in the TICA plane."""
    return [_grid_masses(model, reference, PLANE_GRID_POINTS, PLANE_MARGIN)]


def _grid_masses(model: Sample, reference: Sample, count: int, margin: float) -> Masses:
    values = np.concatenate([model.values, reference.values])
    low, high = values.min(axis=0), values.max(axis=0)
    room = margin * (high - low)
    axes = np.linspace(low - room, high + room, count)
    points = np.stack(np.meshgrid(*axes.T, indexing="ij"), axis=-1).reshape(count ** axes.shape[1], -1)
    return Masses(points, *(_kernel_masses(side, points, axes[1] - axes[0]) for side in (model, reference)))


def _kernel_masses(
    side: Sample, points: Float64[np.ndarray, "points dims"], spacing: Float64[np.ndarray, " dims"]
) -> Float64[np.ndarray, "blocks points"]:
    """Unnormalised Gaussian kernel density of each block; one bandwidth (Scott's, weighted) for the whole side."""
    weights = _norm(side.weights)
    dims = side.terms
    scott = np.sum(weights**2) ** (1 / (dims + 4))
    covariance = np.atleast_2d(np.cov(side.values.T, aweights=weights)) * scott**2
    widest = np.maximum((spacing / 2) ** 2 - np.diag(covariance), 0) + np.finfo(float).tiny
    whiten = np.linalg.inv(np.linalg.cholesky(covariance + np.diag(widest))).T
    frames, grid = side.values @ whiten, points @ whiten
    masses = np.zeros((int(side.block.max()) + 1, len(points)))
    for block in range(len(masses)):
        inside = side.block == block
        masses[block] = weights[inside] @ np.exp(-cdist(frames[inside], grid, "sqeuclidean") / 2)
    return masses


# Transport between probabilities on common points, one row a resample


def line_transport(points: Float64[np.ndarray, "points 1"], p: Rows, q: Rows) -> Float64[np.ndarray, " rows"]:
    """W1 on the line, points sorted: the area between the two distribution functions."""
    gap = np.cumsum(p - q, axis=1)[:, :-1]
    return np.asarray(np.abs(gap) @ np.diff(points[:, 0]))


def circle_transport(points: Float64[np.ndarray, "points 1"], p: Rows, q: Rows) -> Float64[np.ndarray, " rows"]:
    """W1 on the circle [rad], points sorted: that area once the gap's median is taken off (Delon et al. 2010)."""
    gap = np.cumsum(p - q, axis=1)
    arcs = np.diff(points[:, 0], append=points[0, 0] + TURN_RAD)
    order = np.argsort(gap, axis=1)
    reached = np.cumsum(arcs[order], axis=1)
    middle = np.argmax(reached >= TURN_RAD / 2, axis=1)[:, None]
    median = np.take_along_axis(gap, np.take_along_axis(order, middle, axis=1), axis=1)
    return np.asarray(np.abs(gap - median) @ arcs)


def plane_transport(points: Float64[np.ndarray, "points 2"], p: Rows, q: Rows) -> Float64[np.ndarray, " rows"]:
    """W1 in the plane, Euclidean: one network simplex a row."""
    costs = cdist(points, points)
    return np.array([_moved(surplus, costs) for surplus in p - q])


def _moved(surplus: Float64[np.ndarray, " points"], costs: Float64[np.ndarray, "points points"]) -> float:
    """Cost of carrying surplus to deficit; what both have stays in place, as it may since the cost is a metric."""
    source, sink = surplus > 0, surplus < 0
    amount = float(surplus[source].sum())
    if amount < 1e-14:
        return 0.0
    return amount * _emd(_norm(surplus[source]), _norm(surplus[sink]), costs[np.ix_(source, sink)])


def _emd(
    p: Float64[np.ndarray, " points"], q: Float64[np.ndarray, " others"], costs: Float64[np.ndarray, "points others"]
) -> float:
    return float(ot.emd2(p, q, np.ascontiguousarray(costs), numItermax=PIVOTS))


def _multiplicities(blocks: int, count: int, generator: np.random.Generator) -> Float64[np.ndarray, "rows blocks"]:
    drawn = generator.multinomial(blocks, np.full(blocks, 1 / blocks), size=count)
    return np.concatenate([np.ones((1, blocks)), drawn])


def _norm(masses: Float64[np.ndarray, "*axes"]) -> Float64[np.ndarray, "*axes"]:
    """Scale to sum to one along the last axis."""
    return np.asarray(masses / masses.sum(axis=-1, keepdims=True))


def _term_weights(*sides: Sample) -> list[Float64[np.ndarray, "_ terms"]]:
    return [np.repeat(_norm(side.weights)[:, None], side.terms, axis=1) for side in sides]
