"""Energies of two neighbouring dihedrals together, which a linear rung of a prior may have.

With z = cos phi + i sin phi of one dihedral and w of the next, the energy is the real part of

    sum over m, n = 1 .. ORDER of  (a - i b)_mn z^m w^n + (c - i d)_mn z^m conj(w)^n,

that is a cos(m phi + n psi) + b sin(m phi + n psi) and so on with m phi - n psi. Coefficients of a pair are stored as
(sum or difference, m, n, cosine or sine). Like z itself, all terms fade away smoothly where bonds are collinear.
"""

from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

__all__ = ["ORDER", "CouplingTerms", "Slopes", "coupling_energies", "coupling_terms", "slopes_at"]

ORDER = 2


class CouplingTerms(NamedTuple):
    """Products of powers, and their derivatives along z and along w (for differences: along conj(w))."""

    values: Complex[Tensor, "frames neighbours 2 order order"]
    along_first: Complex[Tensor, "frames neighbours 2 order order"]
    along_second: Complex[Tensor, "frames neighbours 2 order order"]


class Slopes(NamedTuple):
    """dE/dx - i dE/dy of energies E along z = x + i y of either dihedral."""

    first: Complex[Tensor, "*shape"]
    second: Complex[Tensor, "*shape"]


def coupling_terms(z: Complex[Tensor, "frames dihedrals"]) -> CouplingTerms:
    """Give all products for each two neighbours."""
    powers = torch.stack([z**order for order in range(ORDER + 1)], -1)
    orders = torch.arange(1, ORDER + 1, device=z.device)
    first, after = powers[:, :-1], powers[:, 1:]
    second = torch.stack([after, after.conj()], 2)[:, :, :, None, :]
    raised, lowered = first[:, :, None, 1:, None], first[:, :, None, :-1, None] * orders[:, None]
    return CouplingTerms(raised * second[..., 1:], lowered * second[..., 1:], raised * (second[..., :-1] * orders))


def slopes_at(terms: CouplingTerms, complex_coefficients: Complex[Tensor, "..."]) -> Slopes:
    """Slopes of each product times its coefficient."""
    second = terms.along_second * complex_coefficients
    return Slopes(
        terms.along_first * complex_coefficients,
        torch.stack([second[..., 0, :, :], second[..., 1, :, :].conj()], -3),
    )


def coupling_energies(
    z: Complex[Tensor, "frames dihedrals"], coefficients: Float[Tensor, "neighbours 2 order order 2"]
) -> tuple[Float[Tensor, " frames"], Complex[Tensor, "frames dihedrals"]]:
    """Energy of each frame [kJ/mol], and its slope dE/dx - i dE/dy along each z = x + i y."""
    terms = coupling_terms(z)
    turned = torch.complex(coefficients[..., 0], -coefficients[..., 1])
    first, second = (part.sum((-3, -2, -1)) for part in slopes_at(terms, turned))
    ends = torch.zeros_like(z[:, :1])
    energies = (terms.values * turned).real.sum((-4, -3, -2, -1))
    return energies, torch.cat([first, ends], 1) + torch.cat([ends, second], 1)
