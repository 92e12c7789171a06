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

Chains of up to `EACH_PAIR` beads have coefficients for each pair and each dihedral; in longer ones all pairs of one
separation share theirs, and so do all dihedrals.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex128, Float64, Int64
from threadpoolctl import threadpool_limits
from torch import Tensor

from cgal.frames import LabelledFrames
from cgal.params import TrainingParams
from cgal.potential.dihedral_couplings import ORDER, coupling_terms, slopes_at
from cgal.potential.force_matching import worker_threads
from cgal.potential.geometry import internal_coordinates, pairs
from cgal.potential.pair_splines import COEFFICIENTS, FREE, locate
from cgal.potential.prior import RUNG, Prior
from cgal.projection.bonds import weigh_bonds
from cgal.training.held_out import held_out_masks

__all__ = ["Basis", "Rung", "design", "fit_rung"]

EACH_PAIR = 16
FARTHEST = 20
"""Separation from which on pairs of a long chain are alike."""

COUPLING = 4 * ORDER**2
"""Coefficients of two neighbouring dihedrals."""

FOLDS = 5
CLEAR = 2.1
"""Student's t at 95 %, one-sided, for five folds."""

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
    """Fit the rung to the training frames of shards of one protein: on one thread, as sums depend on their order."""
    with worker_threads(1), threadpool_limits(limits=1):
        return _fit(shards, deepcopy(prior).cpu(), params)


@dataclass(frozen=True, eq=False)
class Basis:
    """Which coefficients each pair |i-j| >= 3, each dihedral and each two neighbouring dihedrals have."""

    pairs: Int64[np.ndarray, " pairs"]
    dihedrals: Int64[np.ndarray, " dihedrals"]
    neighbours: Int64[np.ndarray, " neighbours"]
    order: int

    @classmethod
    def of(cls, prior: Prior) -> "Basis":
        """For the prior's chain and the order of its dihedral series."""
        beads = len(prior.sequence)
        first, second = (part.numpy() for part in pairs(beads, 3, torch.device("cpu")))
        each = beads <= EACH_PAIR
        separations = np.unique(np.minimum(second - first, FARTHEST), return_inverse=True)[1]
        dihedrals = np.arange(beads - 3) if each else np.zeros(beads - 3, dtype=np.int64)
        order = prior.dihedral_cosine_kJ_per_mol.shape[1]
        return cls(np.arange(len(first)) if each else np.asarray(separations), dihedrals, dihedrals[:-1], order)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Coefficients of the splines, of the series and of the couplings."""
        groups = (int(part.max(initial=-1)) + 1 for part in (self.pairs, self.dihedrals, self.neighbours))
        splines, series, couplings = groups
        return FREE * splines, 2 * self.order * series, COUPLING * couplings

    def parts(self, coefficients: Float64[np.ndarray, " free"]) -> dict[str, Tensor]:
        """Buffers of a prior with this rung."""
        splines, series, couplings = np.split(coefficients, np.cumsum(self.sizes)[:-1])
        padded = np.pad(splines.reshape(-1, FREE), [(0, 0), (0, COEFFICIENTS - FREE)])[self.pairs]
        shaped = (
            padded,
            series.reshape(-1, self.order, 2)[self.dihedrals],
            couplings.reshape(-1, 2, ORDER, ORDER, 2)[self.neighbours],
        )
        return {name: torch.from_numpy(part) for name, part in zip(RUNG, shaped, strict=True)}


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
    columns = design(positions, basis)
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


def design(positions: Float64[Tensor, "frames beads 3"], basis: Basis) -> Float64[Tensor, "frames axes free"]:
    """Forces of unit coefficients [kJ/mol/nm]."""
    return torch.cat([_pair_forces(positions, basis.pairs), _dihedral_forces(positions, basis)], -1)


def _pair_forces(
    positions: Float64[Tensor, "frames beads 3"], groups: Int64[np.ndarray, " pairs"]
) -> Float64[Tensor, "frames axes free"]:
    """Forces of splines of unit coefficients."""
    count, beads, _ = positions.shape
    first, second = pairs(beads, 3, torch.device("cpu"))
    separations = positions[:, second] - positions[:, first]
    distances = torch.linalg.vector_norm(separations, dim=2)
    located = locate(distances)
    slopes = torch.zeros(count, len(first), COEFFICIENTS, dtype=positions.dtype)
    slopes.scatter_(2, located.first[..., None] + torch.arange(4), located.slopes)
    pulls = torch.einsum("fpd,fpk->fpdk", separations / distances[..., None], slopes[..., :FREE])
    pushes = torch.zeros(int(groups.max()) + 1, beads, count, 3, FREE, dtype=positions.dtype)
    for pair, (i, j) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        pushes[groups[pair], i] += pulls[:, pair]
        pushes[groups[pair], j] -= pulls[:, pair]
    return pushes.permute(2, 1, 3, 0, 4).reshape(count, 3 * beads, -1)


def _dihedral_forces(positions: Float64[Tensor, "frames beads 3"], basis: Basis) -> Float64[Tensor, "frames axes free"]:
    """Forces of dihedral series and couplings of unit coefficients: -Re(slope x gradient of z) of each z."""
    count, beads, _ = positions.shape
    z, gradients = _turns(positions)
    _, series, couplings = basis.sizes
    design = torch.zeros(count, 3 * beads, series + couplings, dtype=positions.dtype)
    orders = torch.arange(1, basis.order + 1)
    slopes = orders * z[..., None] ** (orders - 1)
    for dihedral, group in enumerate(basis.dihedrals.tolist()):
        columns = design[..., 2 * basis.order * group : 2 * basis.order * (group + 1)]
        columns -= _along(gradients[:, dihedral], torch.stack([slopes[:, dihedral], -1j * slopes[:, dihedral]], -1))
    terms = coupling_terms(z)
    waves = [slopes_at(terms, torch.tensor(unit, dtype=z.dtype)) for unit in (1.0, -1.0j)]
    first, second = (torch.stack([getattr(wave, part) for wave in waves], -1) for part in ("first", "second"))
    for pair, group in enumerate(basis.neighbours.tolist()):
        columns = design[..., series + COUPLING * group : series + COUPLING * (group + 1)]
        columns -= _along(gradients[:, pair], first[:, pair]) + _along(gradients[:, pair + 1], second[:, pair])
    return design


def _turns(
    positions: Float64[Tensor, "frames beads 3"],
) -> tuple[Complex128[Tensor, "frames dihedrals"], Complex128[Tensor, "frames dihedrals axes"]]:
    """Each dihedral as z = cos phi + i sin phi, and the gradient of z along all coordinates."""
    at = positions.detach().requires_grad_()
    with torch.enable_grad():
        coordinates = internal_coordinates(at)
        parts = torch.stack([coordinates.dihedral_cosines, coordinates.dihedral_sines])
        units = torch.eye(parts.shape[2], dtype=parts.dtype)
        gradients = [
            torch.stack([torch.autograd.grad((part @ unit).sum(), at, retain_graph=True)[0] for unit in units], 1)
            for part in parts
        ]
    real, imaginary = (gradient.flatten(2) for gradient in gradients)
    return torch.complex(*parts.detach()), torch.complex(real, imaginary)


def _along(
    gradients: Complex128[Tensor, "frames axes"], slopes: Complex128[Tensor, "..."]
) -> Float64[Tensor, "frames axes free"]:
    """Gradients of energies with these slopes dE/dx - i dE/dy along z = x + i y."""
    return (gradients[:, :, None] * slopes.flatten(1)[:, None]).real
