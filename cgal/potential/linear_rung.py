"""What a linear rung of a prior is made of: energies that are linear in their coefficients, and the forces of each.

Splines of the distances between beads three or more apart (`cgal.potential.pair_splines`), what the prior's dihedral
series lack, and couplings of neighbouring dihedrals (`cgal.potential.dihedral_couplings`). Chains of up to `EACH_PAIR`
beads have coefficients for each pair and each dihedral; in longer ones all pairs of one separation share theirs, and so
do all dihedrals.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex128, Float64, Int64
from torch import Tensor

from cgal.potential.dihedral_couplings import ORDER, coupling_terms, slopes_at
from cgal.potential.geometry import internal_coordinates, pair_distances, pairs
from cgal.potential.pair_splines import COEFFICIENTS, FREE, locate
from cgal.potential.prior import RUNG, Prior

__all__ = ["Basis", "unit_energies", "unit_forces"]

EACH_PAIR = 16
FARTHEST = 20
"""Separation from which on pairs of a long chain are alike."""

COUPLING = 4 * ORDER**2
"""Coefficients of two neighbouring dihedrals."""


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
            series.reshape(int(self.dihedrals.max(initial=-1)) + 1, self.order, 2)[self.dihedrals],
            couplings.reshape(-1, 2, ORDER, ORDER, 2)[self.neighbours],
        )
        return {name: torch.from_numpy(part) for name, part in zip(RUNG, shaped, strict=True)}


def unit_energies(positions: Float64[Tensor, "frames beads 3"], basis: Basis) -> Float64[Tensor, "frames free"]:
    """Energies of unit coefficients [kJ/mol]."""
    located = locate(pair_distances(positions, 3))
    rows = COEFFICIENTS * torch.from_numpy(basis.pairs).to(positions.device)
    columns = (rows + located.first)[..., None] + torch.arange(4, device=positions.device)
    splines = positions.new_zeros(len(positions), COEFFICIENTS * (int(basis.pairs.max(initial=-1)) + 1))
    splines.scatter_add_(1, columns.flatten(1), located.values.flatten(1))
    coordinates = internal_coordinates(positions)
    z = torch.complex(coordinates.dihedral_cosines, coordinates.dihedral_sines)
    powers = torch.stack([z**order for order in range(basis.order + 1)], -1)[..., 1:]
    parts = (
        splines.view(len(positions), -1, COEFFICIENTS)[..., :FREE].flatten(1),
        _summed(_parts(powers), basis.dihedrals),
        _summed(_parts(coupling_terms(z).values), basis.neighbours),
    )
    return torch.cat(parts, 1)


def _parts(values: Complex128[Tensor, "frames terms *shape"]) -> Float64[Tensor, "frames terms *shape 2"]:
    return torch.stack([values.real, values.imag], -1)


def _summed(
    values: Float64[Tensor, "frames terms ..."], groups: Int64[np.ndarray, " terms"]
) -> Float64[Tensor, "frames columns"]:
    """Sum over the terms that share coefficients."""
    sums = values.new_zeros(len(values), int(groups.max(initial=-1)) + 1, *values.shape[2:])
    return sums.index_add_(1, torch.from_numpy(groups).to(values.device), values).flatten(1)


def unit_forces(positions: Float64[Tensor, "frames beads 3"], basis: Basis) -> Float64[Tensor, "frames axes free"]:
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
