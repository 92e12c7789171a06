"""CGSchNet: schnetpack's SchNet on C-alpha beads, with an energy read out bead by bead.

Schütt et al., J. Chem. Phys. 148, 241722 (2018); Husic et al., J. Chem. Phys. 153, 194101 (2020).
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from cgal.frames import RESIDUE_NAMES
from cgal.params import NetworkParams
from cgal.potential.geometry import pairs

__all__ = ["CGSchNet", "bead_types", "new_network"]

AMINO_ACIDS = "".join(sorted(RESIDUE_NAMES))
"""Order of the bead types."""

ENERGY_SCALE_kJ_per_mol = 10.0
"""Energy of one unit of the readout: a few k_B T, so that weights stay of order one."""

RADIAL_START_nm = 0.3
"""Centre of the first radial function; no two beads of a protein come closer."""


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


class CGSchNet(nn.Module):
    """Energy of bead positions: schnetpack's SchNet, then a readout whose last layer starts at zero.

    The forward pass runs the layers of schnetpack's `SchNet` on half the pairs, since a filter depends on the distance
    alone and i-j and j-i share it: the same numbers as `SchNet.forward` (a test says so) in 60 % of the time.
    """

    def __init__(self, params: NetworkParams) -> None:
        from schnetpack.nn import CosineCutoff, Dense, GaussianRBF, shifted_softplus  # takes 10 s: only where needed
        from schnetpack.representation import SchNet

        super().__init__()
        self.params = params
        self.representation = SchNet(
            n_atom_basis=params.features,
            n_interactions=params.blocks,
            radial_basis=GaussianRBF(params.radial_functions, params.cutoff_nm, start=RADIAL_START_nm),
            cutoff_fn=CosineCutoff(params.cutoff_nm),
            nuclear_embedding=nn.Embedding(len(AMINO_ACIDS), params.features),
        )
        self.readout = nn.Sequential(
            Dense(params.features, params.features, activation=shifted_softplus),
            Dense(params.features, 1, bias=False, weight_init=nn.init.zeros_),
        )

    def forward(
        self, positions: Float[Tensor, "frames beads 3"], types: Int64[Tensor, " beads"]
    ) -> Float[Tensor, " frames"]:
        """Energy [kJ/mol] of each frame; positions in nm."""
        frames, beads = positions.shape[:2]
        centre, neighbour = flat_pairs(frames, beads, positions.device)
        features = self._represent(positions.reshape(-1, 3), types.repeat(frames), centre, neighbour)
        energies: Tensor = self.readout(features).view(frames, beads).sum(1)
        return ENERGY_SCALE_kJ_per_mol * energies

    def _represent(self, positions: Tensor, types: Tensor, centre: Tensor, neighbour: Tensor) -> Tensor:
        """`SchNet.forward`, with each filter computed once for both directions of a pair."""
        schnet = self.representation
        i, j = centre.chunk(2)
        distances = torch.linalg.vector_norm(positions.index_select(0, j) - positions.index_select(0, i), dim=1)
        expanded = schnet.radial_basis(distances)
        cutoff = schnet.cutoff_fn(distances)[:, None]
        features: Tensor = schnet.embedding(types)
        for block in schnet.interactions:
            half_filters = block.filter_network(expanded) * cutoff
            messages = torch.cat([half_filters, half_filters]) * block.in2f(features).index_select(0, neighbour)
            features = features + block.f2out(torch.zeros_like(features).index_add(0, centre, messages))
        return features


def new_network(params: NetworkParams, seed: int) -> CGSchNet:
    """Fresh network whose energy is zero everywhere; its hidden weights are drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CGSchNet(params)
