"""Langevin dynamics of the coarse-grained model: many replicas in one batch, each on its own when it breaks.

A model that has not seen a region of conformations can tear the chain apart or let it collapse there. Such a replica
is quarantined: its step and cause are recorded, the frames saved before are kept, and the others go on, to the
bit as if nothing had happened.
"""

from cgal.potential.energy_model import EnergyModel
from cgal.simulation.export import export_trajectory
from cgal.simulation.run import simulate

__all__ = ["EnergyModel", "export_trajectory", "simulate"]
