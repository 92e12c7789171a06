"""What a protein has and lacks, and what a campaign on it would cost on this machine."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from cgal.all_atom.dynamics import AtomRun
from cgal.all_atom.force_field import build_system, read_structure
from cgal.all_atom.solvation import solvated
from cgal.frames import AtomFrames, CGTrajectory
from cgal.params import ForceFieldParams, Params
from cgal.reference.sampling import status
from flows.campaign.opening import MADE_BY
from flows.protein.reference_folder import recipe_of
from flows.protein.seed import SeedRuns
from flows.versioning.dvc_repo import Dvc
from flows.workspace import Workspace

__all__ = ["Cost", "Piece", "costs", "costs_table", "forecast", "look", "measure_speed", "pieces_table"]

MEASURE_S = 2.0
BYTES_OF_VECTOR = 12
"""Three coordinates, or three components of a force, in single precision."""


@dataclass(frozen=True)
class Piece:
    """One thing that a campaign needs of a protein: what there is of it, or the command that makes it."""

    name: str
    found: str
    make: str = ""


@dataclass(frozen=True)
class Cost:
    """All-atom steps of one piece of work, and the bytes that it keeps."""

    what: str
    steps: int
    kept_bytes: int


def look(workspace: Workspace) -> list[Piece]:
    """Read what is in a protein's folder; raises BadFile when a file there is damaged.

    Data that travel with the repository are fetched by the first `cgal run`.
    """
    if not workspace.data.is_dir() and Dvc(workspace.root).is_bundled(workspace.data.name):
        return [Piece(name, "", "cgal run") for name in MADE_BY]
    return [_piece(workspace, name, command) for name, command in MADE_BY.items()]


def _piece(workspace: Workspace, name: str, command: str) -> Piece:
    path = workspace.data / name
    if not path.is_file():
        return Piece(name, "", command.format(protein=workspace.data.name))
    if name == "structure.pdb":
        topology, _ = read_structure(workspace.structure)
        return Piece(name, f"{topology.getNumResidues()} residues, {topology.getNumAtoms()} atoms")
    if name == "seed.h5":
        seed = AtomFrames.load(path)
        return Piece(name, f"{len(seed)} frames with forces, of {len(np.unique(seed.trajectory))} runs")
    reference = CGTrajectory.load(path)
    return Piece(name, f"{len(reference)} frames, of {len(np.unique(reference.replica))} trajectories")


def measure_speed(structure: str, params: Params) -> float:
    """Steps a second that one run of the protein makes here, over two seconds (a run keeps one core, or the GPU)."""
    topology, positions = read_structure(structure)
    force_field: ForceFieldParams = params.force_field
    at_once = force_field.model_copy(update={"water": force_field.water.model_copy(update={"settling_steps": 0})})
    run = AtomRun(
        build_system(topology, force_field),
        force_field,
        temperature_K=params.temperature_K,
        timestep_ps=force_field.timestep_ps,
        seed=params.seed,
    )
    start = solvated(positions, structure, at_once, temperature_K=params.temperature_K, seed=params.seed)
    run.place(start.positions)
    if not force_field.explicit:
        run.minimise(max_steps=200)
    run.draw_velocities()
    run.advance(20)
    run.positions()
    began, taken = time.perf_counter(), 0
    while (passed_s := time.perf_counter() - began) < MEASURE_S:
        run.advance(50)
        run.positions()  # what was asked of a GPU is done then
        taken += 50
    return taken / passed_s


def costs(workspace: Workspace) -> list[Cost]:
    """All-atom steps of what is still to be made, and of a campaign's labels as params.yaml has it.

    A minimisation counts as `backmapping.minimise_steps`, tries that fail are not foreseen; files are counted as if
    nothing could be compressed, figures and models apart.
    """
    topology, _ = read_structure(workspace.structure)
    atoms, beads = topology.getNumAtoms(), topology.getNumResidues()
    return [
        *_seed_cost(workspace, atoms, beads),
        *_reference_cost(workspace, beads),
        _campaign_cost(workspace, atoms, beads),
    ]


def _seed_cost(workspace: Workspace, atoms: int, beads: int) -> Iterator[Cost]:
    if (workspace.data / "seed.h5").is_file():
        return
    plan, force_field = SeedRuns(), workspace.params.force_field
    frames = plan.runs * plan.frames(force_field)
    steps = plan.runs * (
        force_field.water_steps + round((plan.equilibration_ps + plan.length_ps) / force_field.timestep_ps)
    )
    if workspace.params.oracle.mode == "mean_force":
        steps += frames * (force_field.water_steps + workspace.params.oracle.steps)
    yield Cost("seed", steps, frames * 2 * BYTES_OF_VECTOR * (atoms + beads))


def _reference_cost(workspace: Workspace, beads: int) -> Iterator[Cost]:
    if (workspace.data / "reference.h5").is_file():
        return
    recipe = recipe_of(workspace)
    state, asked = status(recipe), recipe.params
    hot_ps = (state.hot_asked - state.hot) * asked.hot_ps
    swarm_ps = 1000 * (asked.trajectories * state.asked_ns - state.total_ns)
    frames = int(1000 * asked.trajectories * state.asked_ns / asked.spacing_ps)
    starts = max(state.hot_asked - state.hot, 0) + max(asked.trajectories - state.starts, 0)
    steps = recipe.steps(max(hot_ps + swarm_ps, 0.0)) + starts * recipe.force_field.water_steps
    yield Cost("reference", steps, frames * 2 * BYTES_OF_VECTOR * beads)


def _campaign_cost(workspace: Workspace, atoms: int, beads: int) -> Cost:
    params = workspace.params
    oracle, simulation, campaign = params.oracle, params.simulation, params.campaign
    picks = -(-campaign.rounds * params.selection.frames // (len(workspace.beside) + 1))  # an even share
    steps = picks * params.label_steps
    if campaign.limit_steps:
        steps = min(steps, campaign.limit_steps // (len(workspace.beside) + 1))
    labels = picks * (oracle.average_steps // oracle.free_stride if oracle.mode == "free" else 1)
    simulated = (campaign.rounds + 1) * simulation.replicas * (simulation.steps // simulation.stride)
    kept = labels * 2 * BYTES_OF_VECTOR * (atoms + beads) + simulated * BYTES_OF_VECTOR * beads
    told = f"labels of {campaign.rounds} rounds"
    if campaign.continued_md_steps:
        told, steps = f"plain dynamics and {told}", steps + campaign.continued_md_steps
    return Cost(told, steps, kept)


def pieces_table(protein: str, pieces: list[Piece]) -> Table:
    """What is there, and what makes what is not."""
    table = Table(title=f"protein {protein}", box=SIMPLE_HEAD)
    for heading in ("needed", "there is", "make it with"):
        table.add_column(heading, overflow="fold")
    for piece in pieces:
        table.add_row(piece.name, piece.found or "[yellow]nothing[/yellow]", piece.make)
    return table


def costs_table(expected: list[Cost], steps_per_s: float, workers: int) -> Table:
    """Steps, hours and disk of what is to be done; hours with so many runs at a time, each at this speed."""
    table = Table(
        title=f"all-atom cost: {steps_per_s:,.0f} steps/s a run, {workers} at a time (execution.oracle_workers)",
        box=SIMPLE_HEAD,
        caption="Tries that fail come on top; training and simulation of the model take minutes a round.",
    )
    for heading in ("work", "steps", "hours", "disk [MB]"):
        table.add_column(heading, justify="left" if heading == "work" else "right")
    for cost in expected:
        table.add_row(cost.what, *_figures(cost, steps_per_s, workers))
    return table


def forecast(workspace: Workspace) -> str:
    """One line on what a campaign's labels will cost here; measures the speed of a run first, for two seconds."""
    workers = workspace.params.execution.oracle_workers
    cost, steps_per_s = costs(workspace)[-1], measure_speed(workspace.structure, workspace.params)
    steps, hours, megabytes = _figures(cost, steps_per_s, workers)
    return (
        f"{workspace.named('Forecast', ' for ')}: {cost.what} take about {steps} all-atom steps, {hours} h at "
        f"{steps_per_s:,.0f} steps/s a run and {workers} at a time, and {megabytes} MB of disk."
    )


def _figures(cost: Cost, steps_per_s: float, workers: int) -> tuple[str, str, str]:
    """Steps, hours and MB, as they are shown."""
    hours = cost.steps / (steps_per_s * workers) / 3600
    return f"{cost.steps:,}", f"{hours:.2g}", f"{cost.kept_bytes / 1e6:.1f}"
