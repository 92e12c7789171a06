"""Ground truth from unbiased all-atom sampling: a swarm of trajectories and the Markov state model that weighs it."""

from cgal.reference.sampling import Loss, Recipe, Status, explore, load_swarm, relax, status, swarm

__all__ = ["Loss", "Recipe", "Status", "explore", "load_swarm", "relax", "status", "swarm"]
