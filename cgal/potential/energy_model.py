"""What a coarse-grained simulation asks of a model."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["EnergyModel"]


@runtime_checkable
class EnergyModel(Protocol):
    """What can be simulated: energies [kJ/mol] and forces [kJ/mol/nm] of a batch of chains, each on its own."""

    sequence: str

    def to(self, device: str, /) -> Any:
        """Move parameters to a device, and give the model."""

    def energy_and_forces(self, positions: Tensor, /) -> tuple[Tensor, Tensor]:
        """Energies [replicas] and forces [replicas beads 3] at positions [replicas beads 3] in nm."""
