"""SchNet's line in the table of architectures: the network and its accelerators."""

from typing import Any

from cgal.potential.architectures import Architecture
from cgal.potential.energy_model import EnergyModel
from cgal.potential.potential import Potential
from cgal.schnet.energies import SchNetEnergies
from cgal.schnet.evaluator import Evaluator
from cgal.schnet.force_matching import SchNetForceMatching
from cgal.schnet.fused import FusedEvaluator
from cgal.schnet.network import CGSchNet
from cgal.simulation.langevin import GraphEngine, TorchEngine

__all__ = ["ARCHITECTURE"]


def _frozen(potential: Potential, device: str, filter_intervals: int) -> EnergyModel:
    return (FusedEvaluator if device == "cpu" else Evaluator)(potential, filter_intervals)


def _engine(device: str) -> Any:
    from cgal.schnet.engine import FusedEngine  # compiles its loops when it is first imported: only to simulate

    return {"cpu": FusedEngine, "cuda": GraphEngine}.get(device, TorchEngine)


ARCHITECTURE = Architecture(CGSchNet, SchNetForceMatching, _frozen, _engine, SchNetEnergies)
