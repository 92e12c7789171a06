"""The linear rung between prior and network: least squares on forces with a penalty, in closed form.

The energies are pair splines (`cgal.potential.pair_splines`), what the prior's dihedral series lack, and couplings of
neighbouring dihedrals (`cgal.potential.dihedral_couplings`): linear in their coefficients c, so that the force-matching
loss of the forces which the prior leaves over, with a penalty for large coefficients, has one minimum:

    c = (A^T W A + ridge 1)^-1 A^T W f,

A being the forces of unit coefficients and W the weight of errors along bonds. The ridge is chosen by leaving out one
fold of the training blocks after another; the frames that are held out for the network are never seen. It is the
largest one that is no worse than the best by more than the standard error over folds (Hastie, Tibshirani and Friedman,
The Elements of Statistical Learning, section 7.10): smaller ones leave the forces on frames that were seen as they are,
while energies of pairs grow to ten k_B T that cancel there alone. Where the share of
the left-out error that it takes off is not clear of zero (`CLEAR` standard errors), there is no rung.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from threadpoolctl import threadpool_limits
from torch import Tensor

from cgal.frames import LabelledFrames
from cgal.params import TrainingParams
from cgal.potential.force_matching import worker_threads
from cgal.potential.linear_rung import Basis, unit_forces
from cgal.potential.prior import Prior
from cgal.projection.bonds import weigh_bonds
from cgal.training.force_matching import check_shards
from cgal.training.held_out import held_out_masks, require_enough

__all__ = ["CLEAR", "Rung", "fit_rung"]

FOLDS = 5
CLEAR = 2.1
"""Student's t at 95 %, one-sided, for five folds.

From fewer training blocks a rung that explains nothing is kept more often: 6 % of the time from four, 9 % from three
and 14 % from two.
"""

BATCH = 128
RIDGES = np.geomspace(1e-4, 1e2, 13)
"""Tried ones, in units of the mean of the diagonal of A^T W A."""


@dataclass(frozen=True, eq=False)
class Rung:
    """The prior with its linear rung, if there is one, and what was found on frames left out.

    `explained` is the share of the left-out error that the rung takes off, `ridge` in units of the mean diagonal.
    """

    prior: Prior
    weight: int
    ridge: float
    explained: float
    explained_error: float

    def summary(self) -> dict[str, float | int]:
        """Numbers for a checkpoint's metadata and a round's metrics."""
        return {
            "linear_rung": self.weight,
            "linear_rung_ridge": self.ridge,
            "linear_rung_explained_fraction": self.explained,
            "linear_rung_explained_error": self.explained_error,
        }


@dataclass(eq=False)
class Fold:
    """Sums over frames that are left out together: A^T W A, A^T W f and f^T W f."""

    gram: Float64[np.ndarray, "free free"]
    along: Float64[np.ndarray, " free"]
    square: float = 0.0

    def error(self, coefficients: Float64[np.ndarray, " free"]) -> float:
        """Sum of squared weighted errors."""
        return self.square - 2 * float(self.along @ coefficients) + float(coefficients @ self.gram @ coefficients)


def fit_rung(shards: Sequence[LabelledFrames], prior: Prior, params: TrainingParams) -> Rung:
    """Fit the rung to the training frames of shards of one protein: on one thread, as sums depend on their order.

    Raises BadTrajectory (a label is not finite, or a shard is of another protein) and EmptyTrajectory (nothing to train
    on or to hold out).
    """
    check_shards(shards, [prior.sequence])
    require_enough([shard.trajectory for shard in shards], params)
    with worker_threads(1), threadpool_limits(limits=1):
        return _fit(shards, deepcopy(prior).cpu(), params)


def _fit(shards: Sequence[LabelledFrames], prior: Prior, params: TrainingParams) -> Rung:
    bare, basis = prior.with_rung({}), Basis.of(prior)
    folds = _folds(shards, bare, params, basis)
    gram, along = (np.sum([getattr(fold, part) for fold in folds], axis=0) for part in ("gram", "along"))
    ridges = RIDGES * np.trace(gram) / len(gram)
    errors = np.array([_left_out(gram, along, fold, ridges) for fold in folds])
    squares = np.array([[fold.square] for fold in folds])
    gains = (squares - errors) / squares.mean()
    means = gains.mean(0)
    errors_of_means = gains.std(0, ddof=1) / np.sqrt(len(folds)) if len(folds) > 1 else np.full(len(means), np.inf)
    best = int(np.flatnonzero(means >= means.max() - errors_of_means[means.argmax()])[-1])
    explained, error = float(means[best]), float(errors_of_means[best])
    if not explained > CLEAR * error:
        return Rung(bare, 0, float(RIDGES[best]), explained, error)
    found = _solve(gram, along, ridges[best : best + 1])[0]
    return Rung(bare.with_rung(basis.parts(found)), 1, float(RIDGES[best]), explained, error)


def _left_out(
    gram: Float64[np.ndarray, "free free"],
    along: Float64[np.ndarray, " free"],
    fold: Fold,
    ridges: Float64[np.ndarray, " ridges"],
) -> list[float]:
    """Error on a fold of the fits to all others."""
    return [fold.error(coefficients) for coefficients in _solve(gram - fold.gram, along - fold.along, ridges)]


def _solve(
    gram: Float64[np.ndarray, "free free"], along: Float64[np.ndarray, " free"], ridges: Float64[np.ndarray, " ridges"]
) -> Float64[np.ndarray, "ridges free"]:
    values, vectors = np.linalg.eigh(gram)
    return np.asarray((vectors.T @ along / (np.maximum(values, 0.0) + ridges[:, None])) @ vectors.T)


def _folds(shards: Sequence[LabelledFrames], prior: Prior, params: TrainingParams, basis: Basis) -> list[Fold]:
    """Training blocks dealt out to folds in turn."""
    free = sum(basis.sizes)
    folds: dict[int, Fold] = {}
    block = -1
    for shard, mask in zip(shards, held_out_masks(shards, params), strict=True):
        for trajectory in np.unique(shard.trajectory):
            frames = np.flatnonzero(shard.trajectory == trajectory)
            for start in range(0, len(frames), params.validation_block_frames):
                chosen = frames[start : start + params.validation_block_frames]
                chosen = chosen[~mask[chosen]]
                block += bool(len(chosen))
                for part in np.split(chosen, range(BATCH, len(chosen), BATCH)) if len(chosen) else ():
                    fold = folds.setdefault(block % FOLDS, Fold(np.zeros((free, free)), np.zeros(free)))
                    _add(fold, shard.take(part), prior, params.bond_weight, basis)
    return list(folds.values())


def _add(fold: Fold, frames: LabelledFrames, prior: Prior, bond_weight: float, basis: Basis) -> None:
    positions = torch.from_numpy(frames.positions).double()
    forces = torch.from_numpy(frames.forces).double() - prior.forces(positions)
    weights = _weights(positions, bond_weight)
    columns = unit_forces(positions, basis)
    weighted = (weights @ columns).flatten(0, 1)
    fold.gram += (columns.flatten(0, 1).T @ weighted).numpy()
    fold.along += (weighted.T @ forces.flatten()).numpy()
    fold.square += float((forces * weigh_bonds(positions, forces, bond_weight)).sum())


def _weights(positions: Float64[Tensor, "frames beads 3"], bond_weight: float) -> Float64[Tensor, "frames axes axes"]:
    """Matrix that `weigh_bonds` applies to the forces of each frame."""
    count, beads, _ = positions.shape
    units = torch.eye(3 * beads, dtype=positions.dtype).view(-1, beads, 3)
    weighed = weigh_bonds(positions.repeat_interleave(3 * beads, 0), units.repeat(count, 1, 1), bond_weight)
    return weighed.reshape(count, 3 * beads, 3 * beads)
