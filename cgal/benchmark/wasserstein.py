r"""Wasserstein-1 distance between a model's and the reference's observables, with block-bootstrap intervals.

Two modes, each with an estimator for what an observable lies on (`estimators`):

`exact`
    From the samples, nothing smoothed. Bond, angle and dihedral: W1 of each term, averaged over terms (pooled terms
    can hide an error in one behind another). Dihedrals on the circle. TICA: the transport problem in the plane between
    at most `maximum_frames` evenly thinned frames per sample.
`paper`
    As the authors do it: Gaussian kernel density (Scott's rule) of the observable, terms pooled, on 100 points (TICA:
    25 x 25 points over the joint range widened by 10 %), normalised, then transported; dihedrals on the line. Two
    departures: the one-dimensional grids span the joint range, not the reference's alone, where a model's mass
    outside would vanish; and a kernel is never narrower than half the grid spacing, or it would fall between points.

Intervals. Replicas (a lone trajectory: contiguous blocks) of both sides are drawn with replacement. A resample only
reweights blocks, so each side is kept as masses on common points, one row per block: in `paper` mode the grid itself
(bandwidth held), in `exact` mode Voronoi cells around evenly thinned frames. What a resample changes there, W1* - W1,
is taken for the error of the value (the basic bootstrap): low = W1 - q_97.5 and high = W1 - q_2.5. Resampling noise
pushes every W1* up just as sampling noise pushed W1 up, so this corrects the bias that a percentile interval would
double. It is clipped to hold W1 and to stay above zero. Near the floor, where W1 is all noise, no bootstrap covers
zero reliably: read W1 against the reference-versus-reference floor.

Weights of a reference go with their frames as they are. So against a reference that a Markov model weighted the
interval leaves out the error of the weights themselves: on a toy with a known answer a "95 %" interval held the truth
for 49 to 81 % of the swarms. For the same reason the benchmark's floor, of halves with the weights of the joint model,
is another quantity than that of `cgal reference`, each half with a model of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from ot.lp import emd2, wasserstein_1d
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from cgal.benchmark.kernels import add_kernels
from cgal.benchmark.optimal_transport import transport_costs

__all__ = ["MODES", "Estimator", "Resamples", "Sample", "estimate", "estimators"]

MODES = ("exact", "paper")

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
    """One observable of one side: a column per term (for TICA: a dimension), statistical weights, and blocks 0, 1, ...

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

    @property
    def blocks(self) -> int:
        """Number of blocks, empty ones included."""
        return int(self.block.max()) + 1

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
    """How often each block is drawn, one row per bootstrap resample; row 0 is the sample itself, every block once."""

    model: Float64[np.ndarray, "rows blocks"]
    reference: Float64[np.ndarray, "rows others"]

    @classmethod
    def draw(cls, model: Sample, reference: Sample, count: int, generator: np.random.Generator) -> "Resamples":
        """Draw `count` resamples of each side's blocks that have weight, with replacement."""
        return cls(*(_multiplicities(side, count, generator) for side in (model, reference)))

    @classmethod
    def none(cls, model: Sample, reference: Sample) -> "Resamples":
        """Give the sample itself alone."""
        return cls(*(np.ones((1, side.blocks)) for side in (model, reference)))


@dataclass(frozen=True, eq=False)
class Masses:
    """Both sides as masses on common points, one row per block; the rows of a side add up to its distribution."""

    points: Float64[np.ndarray, "points dims"]
    model: Float64[np.ndarray, "blocks points"]
    reference: Float64[np.ndarray, "others points"]


type Rows = Float64[np.ndarray, "rows points"]
type Transport = Callable[[Any, Any, Any], Any]
"""(points, p, q) -> W1 between the probabilities p and q of each row, which lie on common points."""


@dataclass(frozen=True)
class Estimator:
    """How one observable is compared: the masses (one pair a term) that a bootstrap reweights, and its W1.

    Without `exact` W1 is the one between the masses.
    """

    masses: Callable[[Sample, Sample], list[Masses]]
    transport: Transport
    exact: Callable[[Sample, Sample], float] | None = None

    def value(self, model: Sample, reference: Sample) -> float:
        """W1, averaged over terms."""
        if self.exact is not None:
            return self.exact(model, reference)
        return float(self.distances(model, reference, Resamples.none(model, reference))[0])

    def distances(self, model: Sample, reference: Sample, resamples: Resamples) -> Float64[np.ndarray, " rows"]:
        """W1 between the masses of each resample, averaged over terms."""
        return np.asarray(
            np.mean(
                [
                    self.transport(
                        term.points, _norm(resamples.model @ term.model), _norm(resamples.reference @ term.reference)
                    )
                    for term in self.masses(model, reference)
                ],
                axis=0,
            )
        )


def estimate(estimator: Estimator, model: Sample, reference: Sample, resamples: Resamples) -> dict[str, float]:
    """W1 and its 95 % interval in the observable's unit: value, low and high, with 0 <= low <= value <= high."""
    distances = estimator.distances(model, reference, resamples)
    value = float(distances[0]) if estimator.exact is None else estimator.exact(model, reference)
    below, above = np.percentile(distances[1:] - distances[0], PERCENTILES)
    return {"value": value, "low": float(np.clip(value - above, 0.0, value)), "high": float(max(value - below, value))}


def estimators(maximum_frames: int) -> Mapping[str, Mapping[str, Estimator]]:
    """Estimators of both modes, by geometry; `maximum_frames` bounds the exact problem in a plane."""
    plane = partial(plane_value, maximum_frames=maximum_frames)
    return {
        "exact": {
            "line": Estimator(line_cells, line_transport, line_value),
            "circle": Estimator(circle_cells, circle_transport, circle_value),
            "plane": Estimator(plane_cells, plane_transport, plane),
        },
        "paper": {
            "line": Estimator(grid_line_masses, line_transport),
            "circle": Estimator(grid_line_masses, line_transport),
            "plane": Estimator(grid_plane_masses, plane_transport),
        },
    }


# Exact mode: samples


def line_value(model: Sample, reference: Sample) -> float:
    """Mean over terms of W1 on the line."""
    return float(np.mean(wasserstein_1d(model.values, reference.values, *_term_weights(model, reference), p=1)))


def circle_value(model: Sample, reference: Sample) -> float:
    """Mean over terms of W1 on the circle [rad]."""
    p, q = _side_by_side(_norm(model.weights), _norm(reference.weights))
    terms = np.concatenate([model.values, reference.values]).T % TURN_RAD
    orders = np.argsort(terms, axis=1)
    return float(
        np.mean(
            [
                circle_transport(term[order, None], p[None, order], q[None, order])
                for term, order in zip(terms, orders, strict=True)
            ]
        )
    )


def plane_value(model: Sample, reference: Sample, maximum_frames: int) -> float:
    """W1 in the plane, Euclidean, between at most `maximum_frames` frames per side."""
    few, others = model.thin(maximum_frames), reference.thin(maximum_frames)
    return _emd(_norm(few.weights), _norm(others.weights), cdist(few.values, others.values))


def line_cells(model: Sample, reference: Sample) -> list[Masses]:
    """Cells on the line, for each term."""
    return [_cells(model.term(k), reference.term(k), LINE_CELLS, _nearest_on_line) for k in range(model.terms)]


def circle_cells(model: Sample, reference: Sample) -> list[Masses]:
    """Cells on the circle [rad], for each term."""
    wrapped = [replace(side, values=side.values % TURN_RAD % TURN_RAD) for side in (model, reference)]
    return [_cells(wrapped[0].term(k), wrapped[1].term(k), LINE_CELLS, _nearest_on_circle) for k in range(model.terms)]


def plane_cells(model: Sample, reference: Sample) -> list[Masses]:
    """Cells in the plane."""
    return [_cells(model, reference, PLANE_CELLS, _nearest_in_plane)]


def _cells(model: Sample, reference: Sample, count: int, nearest: Callable[[Any, Any], Any]) -> Masses:
    """Masses of the Voronoi cells around `count` evenly thinned frames of each side, sorted by coordinate."""
    centres = np.unique(np.concatenate([side.thin(count).values for side in (model, reference)]), axis=0)
    return Masses(
        centres, *(_cell_masses(side, nearest(centres, side.values), len(centres)) for side in (model, reference))
    )


def _cell_masses(side: Sample, cell: Int64[np.ndarray, " frames"], cells: int) -> Float64[np.ndarray, "blocks cells"]:
    masses = np.bincount(side.block * cells + cell, weights=_norm(side.weights), minlength=side.blocks * cells)
    return masses.reshape(side.blocks, cells)


def _nearest_on_line(
    centres: Float64[np.ndarray, "cells 1"], values: Float64[np.ndarray, "frames 1"]
) -> Int64[np.ndarray, " frames"]:
    middles = (centres[1:, 0] + centres[:-1, 0]) / 2
    return np.searchsorted(middles, values[:, 0])


def _nearest_on_circle(
    centres: Float64[np.ndarray, "cells 1"], values: Float64[np.ndarray, "frames 1"]
) -> Int64[np.ndarray, " frames"]:
    around = np.concatenate([centres[-1:] - TURN_RAD, centres, centres[:1] + TURN_RAD])
    return (_nearest_on_line(around, values) - 1) % len(centres)


def _nearest_in_plane(
    centres: Float64[np.ndarray, "cells 2"], values: Float64[np.ndarray, "frames 2"]
) -> Int64[np.ndarray, " frames"]:
    return np.asarray(KDTree(centres).query(values)[1])


# Paper mode: kernel densities on a grid, terms pooled


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
    masses = np.zeros((side.blocks, len(points)))
    add_kernels(side.values @ whiten, weights, side.block, points @ whiten, masses)
    return masses


# Transport between probabilities on common points, one row per resample


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
    """W1 in the plane, Euclidean: what both have stays in place, as it may since the cost is a metric."""
    costs = cdist(points, points)
    distances = transport_costs(costs, p - q)
    for row in np.flatnonzero(np.isnan(distances)):
        distances[row] = _emd(p[row], q[row], costs)
    return distances


def _emd(
    p: Float64[np.ndarray, " points"], q: Float64[np.ndarray, " others"], costs: Float64[np.ndarray, "points others"]
) -> float:
    return float(emd2(p, q, costs, numItermax=PIVOTS))


def _multiplicities(side: Sample, count: int, generator: np.random.Generator) -> Float64[np.ndarray, "rows blocks"]:
    weighty = np.flatnonzero(np.bincount(side.block, weights=side.weights) > 0)
    rows = np.zeros((count + 1, side.blocks))
    rows[0] = 1
    rows[1:, weighty] = generator.multinomial(len(weighty), np.full(len(weighty), 1 / len(weighty)), size=count)
    return rows


def _norm(masses: Float64[np.ndarray, "*axes"]) -> Float64[np.ndarray, "*axes"]:
    """Scale to sum to one along the last axis."""
    return np.asarray(masses / masses.sum(axis=-1, keepdims=True))


def _side_by_side(
    p: Float64[np.ndarray, " points"], q: Float64[np.ndarray, " others"]
) -> tuple[Float64[np.ndarray, " all"], Float64[np.ndarray, " all"]]:
    """Probabilities of both sides on the points of both, one after the other."""
    return np.concatenate([p, np.zeros_like(q)]), np.concatenate([np.zeros_like(p), q])


def _term_weights(*sides: Sample) -> list[Float64[np.ndarray, "_ terms"]]:
    return [np.repeat(_norm(side.weights)[:, None], side.terms, axis=1) for side in sides]
