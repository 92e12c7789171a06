"""Where a reference's sampling lies, who is at it, and how far it has got; light, so that `--status` is quick."""

from contextlib import AbstractContextManager

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cgal.reference.sampling import SwarmRecipe, status
from flows.versioning.lock import held
from flows.workspace import Workspace

__all__ = ["recipe_of", "sampling_lock", "status_table"]


def recipe_of(workspace: Workspace) -> SwarmRecipe:
    """What the protein's sampling is made from, and the folder that it goes to; raises BadFile without a structure."""
    params = workspace.params
    folder = workspace.root / ".cgal" / "reference" / workspace.data.name
    return SwarmRecipe(
        workspace.structure, params.force_field, params.reference, params.temperature_K, params.seed, folder
    )


def sampling_lock(recipe: SwarmRecipe) -> AbstractContextManager[None]:
    """Hold the sampling's folder; raises CampaignLocked when another process samples there."""
    taken = f"{recipe.folder}: another 'cgal reference' samples there; 'cgal reference --status' shows how far it is"
    return held(recipe.folder / "lock", taken)


def status_table(recipe: SwarmRecipe, protein: str) -> Table:
    """How far the sampling has got."""
    state = status(recipe)
    table = Table(title=f"reference of {protein}", box=SIMPLE_HEAD)
    for heading in ("stage", "done", "asked for"):
        table.add_column(heading, justify="right")
    count = len(state.swarm_ns)
    table.add_row("explore", f"{state.hot} trajectories", f"{state.hot_asked} trajectories")
    table.add_row("relax", f"{state.starts} starts", f"{count} starts")
    table.add_row("sample", f"{state.total_ns:.1f} ns", f"{count * state.asked_ns:.1f} ns")
    shortest, longest = min(state.swarm_ns), max(state.swarm_ns)
    table.add_row("each trajectory", f"{shortest:.1f} to {longest:.1f} ns", f"{state.asked_ns:.1f} ns")
    return table
