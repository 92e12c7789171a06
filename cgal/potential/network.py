"""What every network has in common, whatever its architecture: bead types in, an energy out."""

from abc import abstractmethod
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from cgal.deferred import defer
from cgal.params import NetworkParams
from cgal.potential.geometry import pairs
from cgal.residues import RESIDUE_NAMES

__all__ = [
    "AMINO_ACIDS",
    "ENERGY_SCALE_kJ_per_mol",
    "FlatPairs",
    "Network",
    "RADIAL_START_nm",
    "bead_types",
    "flat_pairs",
    "new_readout",
]

defer("schnetpack")

AMINO_ACIDS = "".join(sorted(RESIDUE_NAMES))
"""Order of the bead types."""

ENERGY_SCALE_kJ_per_mol = 10.0
"""Energy of one unit of the readout: a few k_B T, so that weights stay of order one."""

RADIAL_START_nm = 0.3
"""Centre of the first radial function; no two beads of a protein come closer."""


class Network(nn.Module):
    """The part of a potential that is trained; `params` are those that it was made from."""

    params: NetworkParams

    @abstractmethod
    def forward(
        self, positions: Float[Tensor, "frames beads 3"], types: Int64[Tensor, " beads"]
    ) -> Float[Tensor, " frames"]:
        """Energy [kJ/mol] of each frame, twice differentiable along positions [nm]; zero before any training."""


def bead_types(sequence: str) -> Int64[Tensor, " beads"]:
    """Amino-acid type of each bead, 0 to 19: what makes weights transferable between proteins."""
    return torch.tensor([AMINO_ACIDS.index(letter) for letter in sequence])


class FlatPairs(NamedTuple):
    """Ordered bead pairs of a batch laid out flat (frame-major): each i-j once, then each once more as j-i."""

    centre: Int64[Tensor, " both"]
    neighbour: Int64[Tensor, " both"]


@lru_cache(maxsize=64)
def flat_pairs(frames: int, beads: int, device: torch.device) -> FlatPairs:
    """Pairs of all frames; at these sizes a neighbour list costs more than it saves."""
    first, second = pairs(beads, 1, device)
    offsets = beads * torch.arange(frames, device=device)[:, None]
    i, j = (first + offsets).flatten(), (second + offsets).flatten()
    return FlatPairs(torch.cat([i, j]), torch.cat([j, i]))


def new_readout(features: int) -> nn.Sequential:
    """Layers from the features of a bead to its energy [`ENERGY_SCALE_kJ_per_mol`]; the last one starts at zero."""
    from schnetpack.nn import Dense, shifted_softplus  # takes a second: only where needed

    return nn.Sequential(
        Dense(features, features, activation=shifted_softplus),
        Dense(features, 1, bias=False, weight_init=nn.init.zeros_),
    )
