"""CGSchNet: schnetpack's SchNet on C-alpha beads, with an energy read out bead by bead.

Schütt et al., J. Chem. Phys. 148, 241722 (2018); Husic et al., J. Chem. Phys. 153, 194101 (2020).
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from cgal.params import SchNetParams
from cgal.potential.network import (
    AMINO_ACIDS,
    ENERGY_SCALE_kJ_per_mol,
    Network,
    RADIAL_START_nm,
    flat_pairs,
    new_readout,
)

__all__ = ["CGSchNet"]


class CGSchNet(Network):
    """Energy of bead positions: schnetpack's SchNet, then a readout whose last layer starts at zero.

    The forward pass runs the layers of schnetpack's `SchNet` on half the pairs, since a filter depends on the distance
    alone and i-j and j-i share it: the same numbers as `SchNet.forward` (a test says so) in 60 % of the time.
    """

    def __init__(self, params: SchNetParams) -> None:
        from schnetpack.nn import CosineCutoff, GaussianRBF  # takes a second: only where needed
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
        self.readout = new_readout(params.features)

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
