"""Internal coordinates and pair distances of bead chains, differentiable and batched over frames."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

__all__ = ["Internal", "Pairs", "dihedral_angles", "in_batches", "internal_coordinates", "pair_distances", "pairs"]

SHORTEST_nm = 1e-6
"""Beads on top of each other have no direction; with this their forces are numbers."""

COLLINEAR_nm2 = 1e-5
"""Cross products of neighbouring bonds are rounded off below this (0.01 degree from a straight line), and so are the
forces, which would otherwise be singular there."""

PAIRS_AT_ONCE = 2**18
"""Frames x beads^2 of a batch: automatic differentiation takes 30 MB for a prior, 1.5 GB for PaiNN."""

FRAMES_ALIKE = 32
"""Vectorised loops round whole multiples of so many frames alike, however many there are."""


class Internal(NamedTuple):
    """Internal coordinates of a chain; cosine and sine of a dihedral vanish smoothly where its bonds are collinear."""

    bonds_nm: Float[Tensor, "frames bonds"]
    angles_rad: Float[Tensor, "frames angles"]
    dihedral_cosines: Float[Tensor, "frames dihedrals"]
    dihedral_sines: Float[Tensor, "frames dihedrals"]


def internal_coordinates(positions: Float[Tensor, "frames beads 3"]) -> Internal:
    """Bond lengths [nm], angles [rad] and dihedrals (IUPAC sign) along the chain, with finite gradients everywhere."""
    bonds = positions[:, 1:] - positions[:, :-1]
    lengths = torch.linalg.vector_norm(bonds, dim=2)
    normals = torch.linalg.cross(bonds[:, :-1], bonds[:, 1:])
    sine = (normals.square().sum(2) + COLLINEAR_nm2**2).sqrt()
    cosine = -(bonds[:, :-1] * bonds[:, 1:]).sum(2)
    x = (normals[:, :-1] * normals[:, 1:]).sum(2)
    y = lengths[:, 1:-1] * (bonds[:, :-2] * normals[:, 1:]).sum(2)
    norm = sine[:, :-1] * sine[:, 1:]
    return Internal(lengths, torch.atan2(sine, cosine), x / norm, y / norm)


class Pairs(NamedTuple):
    """Bead indices of each pair, first below second."""

    first: Int64[Tensor, " pairs"]
    second: Int64[Tensor, " pairs"]


@lru_cache(maxsize=64)
def pairs(beads: int, separation: int, device: torch.device) -> Pairs:
    """All bead pairs at least `separation` apart along the chain."""
    first, second = torch.triu_indices(beads, beads, separation, device=device)
    return Pairs(first, second)


def pair_distances(positions: Float[Tensor, "frames beads 3"], separation: int) -> Float[Tensor, "frames pairs"]:
    """Distances [nm] of all pairs at least `separation` apart along the chain."""
    first, second = pairs(positions.shape[1], separation, positions.device)
    separations = positions.index_select(1, second) - positions.index_select(1, first)
    distances: Tensor = torch.linalg.vector_norm(separations, dim=2)
    return distances


def in_batches(positions: Float[Tensor, "frames beads 3"]) -> tuple[Float[Tensor, "_ beads 3"], ...]:
    """Split frames so that the memory for their pairs is bounded.

    Batches are multiples of `FRAMES_ALIKE` frames (chains of over 90 beads: fewer frames), so that results on one
    thread are those of all frames at once, to the bit.
    """
    size = max(1, PAIRS_AT_ONCE // positions.shape[1] ** 2)
    batches: tuple[Tensor, ...] = positions.split(size - size % FRAMES_ALIKE or size)
    return batches


def dihedral_angles(coordinates: Internal) -> Float64[np.ndarray, "frames dihedrals"]:
    """Dihedrals [rad] in (-pi, pi]."""
    angles = torch.atan2(coordinates.dihedral_sines, coordinates.dihedral_cosines)
    return np.asarray(angles.detach().cpu().double().numpy())
