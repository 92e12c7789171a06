"""Ground truth from unbiased all-atom sampling: a swarm of trajectories and the Markov state model that weighs it."""

from cgal.reference.analysis import Analysis, analyse, summarise
from cgal.reference.figures import plot_floor, plot_reference
from cgal.reference.msm import prefix, thin, weigh
from cgal.reference.sampling import Loss, Recipe, Status, explore, load_swarm, relax, status, swarm

__all__ = [
    "Analysis",
    "Loss",
    "Recipe",
    "Status",
    "analyse",
    "explore",
    "load_swarm",
    "plot_floor",
    "plot_reference",
    "prefix",
    "relax",
    "status",
    "summarise",
    "swarm",
    "thin",
    "weigh",
]
