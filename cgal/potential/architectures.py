"""The table of architectures, and potentials made from it.

An architecture is a module with a `Network` and an `ARCHITECTURE`, a line in `ARCHITECTURES`, and a params model.
Nothing else names it: training, simulation, committees and checkpoints find here what makes its networks, and what
makes them fast.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch

from cgal.params import NetworkParams, SchNetParams
from cgal.potential.energy_gradient import AutogradEnergies, Energies
from cgal.potential.energy_model import EnergyModel
from cgal.potential.force_matching import AutogradForceMatching, ForceMatching, worker_threads
from cgal.potential.network import Network
from cgal.potential.potential import Potential
from cgal.potential.prior import Prior

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "architecture_of",
    "freeze",
    "initial_potential",
    "new_network",
    "without_network",
]

BLIND_nm = 0.1
"""A cutoff that no two beads of a sound chain come within."""

ARCHITECTURES = {
    "schnet": "cgal.schnet.architecture",
    "painn": "cgal.painn",
}
"""Module of each `network.architecture`, imported when one of its networks is made."""


def _copied(potential: Potential, device: str, filter_intervals: int) -> EnergyModel:
    return deepcopy(potential)


@dataclass(frozen=True)
class Architecture:
    """How networks of one kind are made, and their accelerators; without these automatic differentiation serves.

    Attributes
    ----------
    network:
        Gives a network of some params; its hidden weights are drawn from torch's default generator.
    force_matching:
        Gives the force-matching loss and gradient (`cgal.potential.force_matching`).
    frozen:
        Gives energies and forces for inference, from a potential, a type of device ("cpu" or "cuda") and
        `simulation.filter_intervals`; later changes of the potential need not reach it.
    engine:
        Gives the class in `cgal.simulation` or beside it that runs a frozen model on a type of device; None for the
        engine of any model.
    energies:
        Gives energies and their gradient along the weights (`cgal.potential.energy_gradient`).
    """

    network: Callable[[Any], Network]
    force_matching: Callable[..., ForceMatching] = AutogradForceMatching
    frozen: Callable[[Potential, str, int], EnergyModel] = _copied
    engine: Callable[[str], Any] | None = None
    energies: Callable[[Any], Energies] = AutogradEnergies


@cache
def _load(name: str) -> Architecture:
    found: Architecture = import_module(ARCHITECTURES[name]).ARCHITECTURE
    return found


def architecture_of(params: NetworkParams) -> Architecture:
    """Architecture of a network's params."""
    return _load(params.architecture)


def new_network(params: NetworkParams, seed: int) -> Network:
    """Fresh network whose energy is zero everywhere; its hidden weights are drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return architecture_of(params).network(params)


def initial_potential(prior: Prior, params: NetworkParams, seed: int) -> Potential:
    """Potential before any training: its network is fresh and gives zero, so that it equals the prior."""
    return Potential(prior, new_network(params, seed))


def without_network(prior: Prior) -> Potential:
    """Potential of a prior alone, which simulates fast: its network is small, sees no pair and stays silent."""
    blind = SchNetParams(features=1, blocks=1, radial_functions=2, cutoff_nm=BLIND_nm)
    return initial_potential(prior, blind, 0)


def freeze(potential: Potential, device: str = "cpu", filter_intervals: int = 512) -> EnergyModel:
    """Energies and forces of a potential for inference on a device, by the fastest way that its architecture has.

    On one thread: the work is too small to share, and threads that wait for one another on a busy machine made it take
    thirty times as long.
    """
    with worker_threads(1):
        return architecture_of(potential.network.params).frozen(potential, torch.device(device).type, filter_intervals)
