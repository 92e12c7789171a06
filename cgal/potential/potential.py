"""The potential of a protein: prior plus network."""

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cgal.potential.geometry import in_batches
from cgal.potential.network import Network, bead_types
from cgal.potential.prior import Prior

__all__ = ["Potential"]


class Potential(nn.Module):
    """U(x) = prior + network for the beads of the prior's protein, in float32 (a copy of the prior is cast to it).

    Energies and forces by automatic differentiation, whatever the network: the definition that accelerators agree with.
    """

    types: Tensor

    def __init__(self, prior: Prior, network: Network) -> None:
        super().__init__()
        self.sequence = prior.sequence
        self.prior = deepcopy(prior).float()
        self.network = network
        self.register_buffer("types", bead_types(prior.sequence), persistent=False)

    def with_prior(self, prior: Prior) -> "Potential":
        """Give the potential of the prior's protein with the same network, which both share."""
        return Potential(prior, self.network).to(self.types.device)

    def energy(self, positions: Float[Tensor, "frames beads 3"]) -> Float[Tensor, " frames"]:
        """Energy [kJ/mol] of each frame; positions in nm."""
        energies: Tensor = self.prior.energy(positions) + self.network(positions, self.types)
        return energies

    def energy_and_forces(
        self, positions: Float[Tensor, "frames beads 3"]
    ) -> tuple[Float[Tensor, " frames"], Float[Tensor, "frames beads 3"]]:
        """Energies [kJ/mol] and forces [kJ/mol/nm], minus their gradient; both detached."""
        energies, forces = zip(*map(self._energy_and_forces, in_batches(positions)), strict=True)
        return torch.cat(energies), torch.cat(forces)

    def forces(self, positions: Float[Tensor, "frames beads 3"]) -> Float[Tensor, "frames beads 3"]:
        """Give the forces [kJ/mol/nm], detached."""
        return self.energy_and_forces(positions)[1]

    def _energy_and_forces(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = positions.detach().requires_grad_()
            energies = self.energy(at)
            (gradient,) = torch.autograd.grad(energies.sum(), at)
        return energies.detach(), -gradient
