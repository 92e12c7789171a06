"""A committee of networks as one, whose energy and forces are the mean of its members'; and how far these differ."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from cgal.potential.network import Network

__all__ = ["Ensemble", "force_spread", "members_of", "together"]


class Ensemble(Network):
    """The mean of networks of one architecture."""

    def __init__(self, members: Sequence[Network]) -> None:
        super().__init__()
        self.params = members[0].params
        self.members = nn.ModuleList(members)

    def forward(
        self, positions: Float[Tensor, "frames beads 3"], types: Int64[Tensor, " beads"]
    ) -> Float[Tensor, " frames"]:
        """Energy [kJ/mol] of each frame; positions in nm."""
        return torch.stack([member(positions, types) for member in self.members]).mean(0)


def members_of(network: Network) -> list[Network]:
    """Members of an ensemble; any other network is the only one."""
    return list(network.members) if isinstance(network, Ensemble) else [network]  # type: ignore[arg-type]  # a ModuleList forgets its type


def together(members: Sequence[Network]) -> Network:
    """One network: the ensemble of several, or the only one."""
    return Ensemble(members) if len(members) > 1 else members[0]


def force_spread(forces: Float64[np.ndarray, "members frames beads 3"]) -> Float64[np.ndarray, " frames"]:
    """Standard deviation of the members' forces, root mean square over beads and axes [kJ/mol/nm]."""
    return np.asarray(np.sqrt(forces.var(axis=0, ddof=1).mean(axis=(1, 2))))
