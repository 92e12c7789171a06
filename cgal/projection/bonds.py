"""Which part of bead forces acts along the CA-CA bonds, and which across them.

The stiff bonds of a chain carry most of the noise of projected forces and nothing of its fold. The prior's springs
describe them; a network is to learn the rest.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["along_bonds", "weigh_bonds"]


def along_bonds(
    positions: Float[Tensor, "frames beads 3"], forces: Float[Tensor, "frames beads 3"]
) -> Float[Tensor, "frames beads 3"]:
    """Part of the forces that lies in the span of the gradients of all bond lengths; what is left changes no bond.

    The orthogonal projection B^T (B B^T)^-1 B, of which the row k of B is the gradient of bond k. B B^T is
    tridiagonal: 2 on the diagonal, minus the cosine between neighbouring bonds beside it.
    """
    bonds = torch.nn.functional.normalize(positions[:, 1:] - positions[:, :-1], dim=2)
    stretch = ((forces[:, 1:] - forces[:, :-1]) * bonds).sum(2)
    cosines = (bonds[:, 1:] * bonds[:, :-1]).sum(2)
    twos = torch.full_like(stretch, 2.0)
    gram = torch.diag_embed(twos) - torch.diag_embed(cosines, 1) - torch.diag_embed(cosines, -1)
    tensions = torch.linalg.solve(gram, stretch)[:, :, None] * bonds
    zero = torch.zeros_like(tensions[:, :1])
    return torch.cat([zero, tensions], 1) - torch.cat([tensions, zero], 1)


def weigh_bonds(
    positions: Float[Tensor, "frames beads 3"], errors: Float[Tensor, "frames beads 3"], weight: float
) -> Float[Tensor, "frames beads 3"]:
    """Force errors with their part along the bonds times a weight; their product with the errors is what is summed."""
    return errors if weight == 1.0 else errors - (1.0 - weight) * along_bonds(positions, errors)
