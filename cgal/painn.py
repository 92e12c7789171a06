"""PaiNN on C-alpha beads: schnetpack's representation, trained and simulated by automatic differentiation.

Schütt, Unke and Gastegger, Proc. Mach. Learn. Res. 139, 9377 (2021). Beside SchNet's scalars each bead has vectors that
turn with the chain, so that directions between neighbours count too.
"""

from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor, nn

from cgal.params import PaiNNParams
from cgal.potential.architectures import Architecture
from cgal.potential.network import (
    AMINO_ACIDS,
    ENERGY_SCALE_kJ_per_mol,
    Network,
    RADIAL_START_nm,
    flat_pairs,
    new_readout,
)

__all__ = ["ARCHITECTURE", "CGPaiNN"]


class CGPaiNN(Network):
    """Energy of bead positions: schnetpack's PaiNN, then a readout whose last layer starts at zero."""

    def __init__(self, params: PaiNNParams) -> None:
        from schnetpack.nn import CosineCutoff, GaussianRBF  # takes a second: only where needed
        from schnetpack.representation import PaiNN

        super().__init__()
        self.params = params
        self.representation = PaiNN(
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
        from schnetpack import properties

        frames, beads = positions.shape[:2]
        centre, neighbour = flat_pairs(frames, beads, positions.device)
        flat = positions.reshape(-1, 3)
        inputs: dict[str, Any] = {
            properties.Z: types.repeat(frames),
            properties.Rij: flat.index_select(0, neighbour) - flat.index_select(0, centre),
            properties.idx_i: centre,
            properties.idx_j: neighbour,
        }
        features: Tensor = self.representation(inputs)["scalar_representation"]
        energies: Tensor = self.readout(features).view(frames, beads).sum(1)
        return ENERGY_SCALE_kJ_per_mol * energies


ARCHITECTURE = Architecture(CGPaiNN)
