"""Energies that are cubic splines of the distances between beads three or more apart: the linear rung of a prior.

Between `START_nm` and `START_nm + INTERVALS * SPACING_nm` the energy of a pair is a sum of uniform cubic B-splines; it
is constant below, and beyond it is zero, with its slope and curvature.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["COEFFICIENTS", "FREE", "INTERVALS", "Located", "SPACING_nm", "START_nm", "locate", "spline_energies"]

START_nm, SPACING_nm, INTERVALS = 0.3, 0.1, 12

COEFFICIENTS = INTERVALS + 3
"""Of a pair; the last three are zero, which makes it end smoothly."""

FREE = INTERVALS
"""Coefficients that are not zero by definition."""


class Located(NamedTuple):
    """First of the four coefficients that a distance is read from, their weights, and slopes of these [1/nm]."""

    first: Int64[Tensor, "*shape"]
    values: Float[Tensor, "*shape 4"]
    slopes: Float[Tensor, "*shape 4"]


def locate(distances: Float[Tensor, "*shape"]) -> Located:
    """Find distances [nm] among the knots."""
    at = ((distances - START_nm) / SPACING_nm).clamp(0, INTERVALS)
    first = at.detach().long().clamp(0, INTERVALS - 1)  # of a number that is none, too
    t = at - first
    u = 1.0 - t
    values = torch.stack([u**3, (3 * t - 6) * t * t + 4, ((3 - 3 * t) * t + 3) * t + 1, t**3], -1) / 6
    slopes = torch.stack([-u * u, (3 * t - 4) * t, (2 - 3 * t) * t + 1, t * t], -1) / (2 * SPACING_nm)
    return Located(first, values, slopes * (distances > START_nm)[..., None])


def spline_energies(
    distances: Float[Tensor, "frames pairs"], coefficients: Float[Tensor, "pairs coefficients"]
) -> tuple[Float[Tensor, "frames pairs"], Float[Tensor, "frames pairs"]]:
    """Energy of each pair [kJ/mol], and its slope along the distance [kJ/mol/nm]."""
    located = locate(distances)
    rows = COEFFICIENTS * torch.arange(len(coefficients), device=distances.device)
    four = torch.arange(4, device=distances.device)
    read = coefficients.flatten()[(located.first + rows)[..., None] + four]
    return (located.values * read).sum(-1), (located.slopes * read).sum(-1)
