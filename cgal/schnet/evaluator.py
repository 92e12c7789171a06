"""Energies and forces of a trained potential without automatic differentiation: what a simulation calls each step."""

from typing import cast

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from cgal.potential.analytic import BendTerms, PairTerms
from cgal.potential.ensemble import members_of
from cgal.potential.geometry import SHORTEST_nm, pairs
from cgal.potential.potential import Potential
from cgal.schnet.network import CGSchNet
from cgal.schnet.tabulated import INTERVALS, TabulatedSchNet

__all__ = ["Evaluator"]


class Evaluator(nn.Module):
    """A potential frozen for inference, in float32: energies and forces alone, to 1e-5 of the potential's own.

    Later changes of the potential do not reach it. Beads, pairs and replicas are array axes: nothing loops over
    them, waits for the device, or mixes one replica with another.
    """

    differences: Tensor
    bonded: Tensor

    def __init__(self, potential: Potential, filter_intervals: int = INTERVALS) -> None:
        super().__init__()
        self.sequence = potential.sequence
        self.pair_terms = PairTerms(potential.prior)
        self.bend_terms = BendTerms(potential.prior)
        self.networks = nn.ModuleList(
            TabulatedSchNet(cast(CGSchNet, network), potential.types, filter_intervals)
            for network in members_of(potential.network)
        )
        first, second = pairs(len(self.sequence), 1, torch.device("cpu"))
        beads = torch.eye(len(self.sequence))
        self.register_buffer("differences", beads[:, second] - beads[:, first])
        self.register_buffer("bonded", torch.nonzero(second - first == 1).flatten())
        self.to(potential.types.device)

    def energy_and_forces(
        self, positions: Float32[Tensor, "frames beads 3"]
    ) -> tuple[Float32[Tensor, " frames"], Float32[Tensor, "frames beads 3"]]:
        """Energies [kJ/mol] and forces [kJ/mol/nm], minus their gradient; positions in nm."""
        with torch.inference_mode():
            energies, gradients = self._energy_and_gradients(positions)
        return energies.clone(), -gradients.mT  # ordinary tensors, as those made in inference mode are not

    def _energy_and_gradients(
        self, positions: Float32[Tensor, "frames beads 3"]
    ) -> tuple[Float32[Tensor, " frames"], Float32[Tensor, "frames 3 beads"]]:
        components = positions.mT.reshape(-1, len(self.sequence))
        separations = (components @ self.differences).view(len(positions), 3, -1)
        distances = separations.square().sum(1).sqrt_().clamp_min_(SHORTEST_nm)
        pair_energies, pair_slopes = self.pair_terms(distances)
        network_energies, network_slopes = self._mean(distances)
        bend_energies, bend_gradients = self.bend_terms(
            separations.index_select(2, self.bonded), distances.index_select(1, self.bonded)
        )
        along_separations = separations * ((pair_slopes + network_slopes) / distances)[:, None]
        gradients = along_separations @ self.differences.mT
        gradients[:, :, 1:] += bend_gradients
        gradients[:, :, :-1] -= bend_gradients
        return pair_energies + network_energies + bend_energies, gradients

    def _mean(
        self, distances: Float32[Tensor, "frames pairs"]
    ) -> tuple[Float32[Tensor, " frames"], Float32[Tensor, "frames pairs"]]:
        """Energies of the networks [kJ/mol] and their slopes along each distance [kJ/mol/nm]."""
        energies, slopes = zip(*(network(distances) for network in self.networks), strict=True)
        return sum(energies) / len(energies), sum(slopes) / len(slopes)
