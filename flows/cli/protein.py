"""Commands that set up a protein: structure, seed and reference."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli.project import HERE, Root, open_project

__all__ = ["doctor", "import_", "reference", "seed", "structure"]

ONE = "One protein alone, in params.yaml or not; by default all of params.yaml."
Replace = Annotated[bool, typer.Option("--replace", help="Replace data that campaigns were run on.")]


def import_(
    topology: Annotated[Path, typer.Option(help="PDB with the atoms in the trajectory's order.")],
    trajectory: Annotated[list[Path], typer.Option(help="Any format mdtraj reads; may be given more than once.")],
    root: Root = HERE,
    as_: Annotated[
        Literal["both", "reference", "seed"],
        typer.Option("--as", help="Become both; the reference, by positions alone; or the seed, with forces."),
    ] = "both",
    physics: Annotated[
        str | None,
        typer.Option(
            help="Force field and solvent of the trajectory, such as 'CHARMM36m with TIP3P'; 'oracle' for those of "
            "params.yaml."
        ),
    ] = None,
    forces: Annotated[
        list[str],
        typer.Option(help="stored (plain HDF5, TRR), recompute, or a .npy or .npz file for each trajectory."),
    ] = ["stored"],  # noqa: B006 (typer copies it)
    force_unit: Annotated[
        str | None, typer.Option(help="Unit of files of forces, such as kcal/mol/A; a .npz may hold its own.")
    ] = None,
    select: Annotated[
        Literal["auto", "protein", "all"],
        typer.Option(
            help="auto: leave out water and ions. protein: leave out all but the protein. all: leave out nothing. "
            "Other molecules that remain are refused."
        ),
    ] = "auto",
    frame_ps: Annotated[float | None, typer.Option(help="Time between frames, for formats without times.")] = None,
    seed_first_ps: Annotated[float | None, typer.Option(help="Start of the seed's window.")] = None,
    seed_last_ps: Annotated[float | None, typer.Option(help="End of the seed's window.")] = None,
    confine_nm: Annotated[
        float | None, typer.Option(help="Seed frames lie this close to their medoid (CA RMSD).")
    ] = None,
    seed_frames: Annotated[int, typer.Option(min=1, help="Seed frames at most, evenly spaced.")] = 10_000,
    mean_force: Annotated[bool, typer.Option(help="Let the oracle label the seed with mean forces.")] = False,
    replace: Replace = False,
    protein: Annotated[
        str | None, typer.Option(help="Protein to set up, if not that of params.yaml, or one of several.")
    ] = None,
) -> None:
    """Set up params.yaml's protein from an all-atom trajectory: reference, structure, seed and first shard.

    A reference or a seed may come alone, from trajectories of their own.
    """
    root = open_project(root)
    from cgal.importing import Choice
    from flows.protein.import_ import SeedWindow, Source, force_origin, import_protein
    from flows.versioning import CampaignLock, Repository
    from flows.workspace import Workspace

    choice, origin = Choice(select=select, frame_ps=frame_ps), force_origin(forces, force_unit)
    source = Source(topology, tuple(trajectory), origin, choice, as_, physics)
    window = SeedWindow(seed_first_ps, seed_last_ps, confine_nm, seed_frames)
    with CampaignLock(root, "import"):
        workspace = Workspace(root, protein)
        import_protein(workspace, source, window, mean_force=mean_force, replacing=replace)
        Repository(root).dvc.record_data(workspace.data.name)


def seed(
    protein: Annotated[str | None, typer.Argument(help=ONE)] = None,
    root: Root = HERE,
    runs: Annotated[int, typer.Option(min=1, help="Runs, each with velocities of its own.")] = 10,
    length_ps: Annotated[float, typer.Option(min=0.1, help="Length of each.")] = 25.0,
    equilibration_ps: Annotated[float, typer.Option(min=0.0, help="What each leaves out first.")] = 5.0,
    spacing_ps: Annotated[float, typer.Option(min=0.01, help="Time between frames.")] = 1.0,
    confine_nm: Annotated[
        float | None, typer.Option(help="Seed frames lie this close to the structure (CA RMSD).")
    ] = None,
    mean_force: Annotated[
        bool | None, typer.Option(help="Let the oracle label the seed with mean forces; else as oracle.mode has it.")
    ] = None,
    replace: Replace = False,
) -> None:
    """Make the seed from data/<protein>/structure.pdb, by short all-atom runs in params.yaml's force field."""
    root = open_project(root)
    from flows.protein.seed import SeedRuns, make_seed
    from flows.versioning import CampaignLock, Repository
    from flows.workspace import Workspace

    plan = SeedRuns(runs, length_ps, equilibration_ps, spacing_ps, confine_nm)
    with CampaignLock(root, "seed"):
        for workspace in Workspace(root, protein).parts:
            make_seed(workspace, plan, mean_force, replacing=replace)
            Repository(root).dvc.record_data(workspace.data.name)


def reference(
    protein: Annotated[str | None, typer.Argument(help=ONE)] = None,
    root: Root = HERE,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; else execution.oracle_workers.")] = None,
    status: Annotated[bool, typer.Option("--status", help="Only show how far the sampling is.")] = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Analyse what is there; sample nothing, leave data/ as it is.")
    ] = False,
) -> None:
    """Make the ground truth: a swarm of all-atom trajectories and its Markov model. Stop and go on at any time."""
    root = open_project(root)
    from cgal.errors import Refusals
    from flows.serving.startup import start_prefect
    from flows.terminal import console
    from flows.workspace import Workspace

    parts = Workspace(root, protein).parts
    if status:
        from flows.protein.reference_folder import recipe_of, status_table

        for workspace in parts:
            console.print(status_table(recipe_of(workspace), workspace.data.name))
        return
    server = start_prefect()
    with console.status("starting Prefect, loading the science"):
        from flows.protein.reference import reference_table, require_ready, run_reference

        server.wait()
    refusals = Refusals()
    for workspace in () if preview else parts:
        with refusals.gathered():
            require_ready(workspace)
    refusals.tell()
    for workspace in parts:
        summary = run_reference(workspace, workers, preview=preview)
        console.print(reference_table(summary, workspace.params.benchmark.mode))


def doctor(
    protein: Annotated[str | None, typer.Argument(help=ONE)] = None,
    root: Root = HERE,
    steps_per_s: Annotated[
        float | None,
        typer.Option(help="Steps a second of one run on another machine; else measured here.", min=0.1),
    ] = None,
) -> None:
    """Say what a protein has and lacks, and what a campaign on it would cost: all-atom steps, hours, disk."""
    root = open_project(root)
    from flows.protein.doctor import costs, costs_table, look, measure_speed, pieces_table
    from flows.terminal import console
    from flows.workspace import Workspace
    from study.advice import advice

    parts, missing = Workspace(root, protein).parts, []
    for workspace in parts:
        pieces = look(workspace)
        missing += [piece.make for piece in pieces if piece.make]
        console.print(pieces_table(workspace.data.name, pieces))
        if pieces[0].found:
            with console.status("two seconds of all-atom dynamics"):
                speed = steps_per_s or measure_speed(workspace.structure, workspace.params)
            console.print(costs_table(costs(workspace), speed, workspace.params.execution.oracle_workers))
    shown = [workspace.data for workspace in parts]
    others = sorted(folder.name for folder in (root / "data").glob("[!.]*/") if folder not in shown)
    if others:
        console.print(f"other proteins in data/: {', '.join(others)}")
    if said := advice():
        console.print(said)
    console.print(f"next: {[*missing, 'cgal run'][0]}")


def structure(
    out: Annotated[Path, typer.Argument(help="PDB file to write.")],
    root: Root = HERE,
    sequence: Annotated[str | None, typer.Option(help="One-letter sequence: an extended chain is built.")] = None,
    pdb: Annotated[Path | None, typer.Option(help="A PDB file to complete.")] = None,
    pdb_id: Annotated[str | None, typer.Option(help="A PDB id to fetch (online).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Build an all-atom structure: hydrogens at params.yaml's pH, minimised and relaxed in its force field."""
    root = open_project(root)
    from flows.protein.structure import make_structure
    from flows.workspace import Workspace

    params = Workspace(root).params
    make_structure(out, params, sequence=sequence, pdb=pdb, pdb_id=pdb_id, overwrite=overwrite, note=print)
    print(out)
