"""The command line: `cgal ...`. Heavy packages are imported inside the commands, so that `cgal --help` is instant."""

import json
import sys
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Literal

import typer

from cgal.errors import CgalError

app = typer.Typer(
    help="Active learning for coarse-grained machine-learned molecular dynamics.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help pages take as long to import as all the rest
    context_settings={"max_content_width": 120},
)

Root = Annotated[Path, typer.Option("--root", help="The project's folder.", file_okay=False)]
HERE = Path()


def main() -> None:
    """Run the command line; an error that the user can mend is one message and exit code 1."""
    try:
        app()
    except CgalError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


@app.command()
def run(
    root: Root = HERE,
    new: Annotated[str | None, typer.Option(help="Start a new campaign of this name from the seed.")] = None,
) -> None:
    """Run the campaign of params.yaml from where it stands to its closing round."""
    started = monotonic()
    root = _open(root)
    from flows.campaign.opening import campaign_state
    from flows.terminal import console
    from flows.versioning.repository import CampaignLock, Repository
    from flows.workspace import Workspace

    workspace, repository = Workspace(root), Repository(root)
    with CampaignLock(root, new or workspace.params.campaign.name):
        state = campaign_state(workspace, repository)
        if state.complete and not new:
            console.print(f"Campaign {state.name} is complete (rounds 0 to {state.last_published}). {state.closing}")
        else:
            state = _run_campaign(root, new, started)
    _print_campaign(root, state.name)
    if state.complete:
        console.print(f"Start another from the seed: [bold]cgal run --new {_next_name(state.name)}[/bold]")


def _run_campaign(root: Path, new: str | None, started: float) -> Any:
    """Open the campaign while Prefect starts, run it, and give the state in which it was found."""
    from flows.campaign.opening import campaign_state, continue_campaign, fetch_data, new_campaign
    from flows.serving.startup import load_campaign, start_prefect
    from flows.terminal import console
    from flows.versioning.repository import Repository
    from flows.workspace import Workspace

    workspace, repository = Workspace(root), Repository(root)
    server = start_prefect()
    with console.status("starting Prefect, loading the science"):
        fetch_data(workspace, repository)
        if new:
            workspace = new_campaign(workspace, repository, new)
        state = campaign_state(workspace, repository)
        continue_campaign(workspace, repository, state)
        load_campaign(server)
    console.print(_opening(state))
    _run_flow(root, state.name, started)
    return state


def _opening(state: Any) -> str:
    if state.last_published is None:
        return f"Campaign {state.name}: at most {state.rounds} acquisition rounds and a closing one."
    return f"Campaign {state.name} goes on: rounds 0 to {state.last_published} are published."


def _run_flow(root: Path, campaign: str, started: float) -> None:
    from prefect import tags

    from flows.campaign.active_learning import active_learning
    from flows.serving.orphans import close_dead_runs, project_tag

    close_dead_runs(root)
    with tags(project_tag(root)):
        active_learning(root, campaign, startup_s=monotonic() - started)


def _next_name(name: str) -> str:
    stem = name.rstrip("0123456789")
    number = name[len(stem) :]
    return f"{stem}{int(number) + 1}" if number else f"{name}2"


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="train, simulate, benchmark, select or label.")], root: Root = HERE
) -> None:
    """Run one stage of the current round in place (this is what dvc.yaml calls)."""
    root = _open(root)
    from flows.campaign.stages import STAGES, run_stage
    from flows.terminal import console, describe, stage_bar
    from flows.workspace import Workspace

    if name not in STAGES:
        raise typer.BadParameter(f"no stage {name!r}; the stages are {', '.join(STAGES)}")
    with stage_bar(name) as progress:
        summary = run_stage(name, Workspace(root), progress)
    console.print(f"{name}: {describe(summary)}")


@app.command()
def rounds(
    root: Root = HERE,
    campaign: Annotated[str | None, typer.Option(help="Another campaign than that of params.yaml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show every published round: tag, commit, the five W1 with intervals, frames, oracle steps, lost replicas."""
    root = _open(root)
    from flows.campaign.records import campaign_rounds
    from flows.versioning.repository import Repository
    from flows.workspace import Workspace

    name = campaign or Workspace(root).params.campaign.name
    if as_json:
        print(json.dumps(campaign_rounds(Repository(root), name), indent=2))
    else:
        _print_campaign(root, name)


@app.command()
def checkout(
    tag: Annotated[str, typer.Argument(help="A round's number, or its tag such as demo/round-001.")], root: Root = HERE
) -> None:
    """Restore the bytes of a published round: dataset, checkpoint, params and all stage outputs."""
    root = _open(root)
    from flows.terminal import console
    from flows.versioning.repository import CampaignLock, Repository
    from flows.workspace import Workspace

    name = Workspace(root).params.campaign.name
    tag = f"{name}/round-{int(tag):03d}" if tag.isdecimal() else tag
    with CampaignLock(root, name):
        Repository(root).checkout_round(tag)
    console.print(f"{tag} is restored; 'dvc repro' replays it.")


@app.command()
def report(root: Root = HERE) -> None:
    """Draw W1 and RMSD histograms over all rounds of the campaign, and print its table."""
    root = _open(root)
    from flows.campaign.records import draw_campaign
    from flows.terminal import console
    from flows.versioning.repository import Repository
    from flows.workspace import Workspace

    name = Workspace(root).params.campaign.name
    folder = draw_campaign(Repository(root), name, root / "report" / name)
    _print_campaign(root, name)
    console.print(f"figures: {folder}")


@app.command("import")
def import_(
    topology: Annotated[Path, typer.Option(help="PDB with the atoms in the trajectory's order.")],
    trajectory: Annotated[list[Path], typer.Option(help="Any format mdtraj reads; may be given more than once.")],
    root: Root = HERE,
    forces: Annotated[
        Literal["stored", "recompute"], typer.Option(help="Read from the HDF5, or made with the force field.")
    ] = "stored",
    frame_ps: Annotated[float | None, typer.Option(help="Time between frames, for formats without times.")] = None,
    seed_first_ps: Annotated[float | None, typer.Option(help="Start of the seed's window.")] = None,
    seed_last_ps: Annotated[float | None, typer.Option(help="End of the seed's window.")] = None,
    confine_nm: Annotated[
        float | None, typer.Option(help="Seed frames lie this close to their medoid (CA RMSD).")
    ] = None,
    mean_force: Annotated[bool, typer.Option(help="Let the oracle label the seed with mean forces.")] = False,
) -> None:
    """Set up params.yaml's protein from an all-atom trajectory: reference, structure, seed and first shard."""
    root = _open(root)
    from flows.protein.importing import SeedWindow, import_protein
    from flows.versioning.repository import CampaignLock, Repository
    from flows.workspace import Workspace

    workspace = Workspace(root)
    with CampaignLock(root, "import"):
        window = SeedWindow(seed_first_ps, seed_last_ps, confine_nm)
        import_protein(workspace, topology, trajectory, forces, window, frame_ps=frame_ps, mean_force=mean_force)
        Repository(root).record_data()


@app.command()
def seed(
    protein: Annotated[str | None, typer.Argument(help="Another protein than that of params.yaml.")] = None,
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
) -> None:
    """Make the seed from data/<protein>/structure.pdb, by short all-atom runs in params.yaml's force field."""
    root = _open(root)
    from flows.protein.importing import SeedRuns, make_seed
    from flows.versioning.repository import CampaignLock, Repository
    from flows.workspace import Workspace

    plan = SeedRuns(runs, length_ps, equilibration_ps, spacing_ps, confine_nm)
    with CampaignLock(root, "seed"):
        make_seed(Workspace(root, protein), plan, mean_force)
        Repository(root).record_data()


@app.command()
def reference(
    protein: Annotated[str | None, typer.Argument(help="Another protein than that of params.yaml.")] = None,
    root: Root = HERE,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; else execution.oracle_workers.")] = None,
    status: Annotated[bool, typer.Option("--status", help="Only show how far the sampling is.")] = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Analyse what is there; sample nothing, leave data/ as it is.")
    ] = False,
) -> None:
    """Make the ground truth: a swarm of all-atom trajectories and its Markov model. Stop and go on at any time."""
    root = _open(root)
    from flows.serving.startup import start_prefect
    from flows.terminal import console
    from flows.workspace import Workspace

    workspace = Workspace(root, protein)
    if status:
        from flows.protein.reference_folder import recipe_of, status_table

        console.print(status_table(recipe_of(workspace), workspace.data.name))
        return
    server = start_prefect()
    with console.status("starting Prefect, loading the science"):
        from flows.protein.reference import reference_table, run_reference

        server.wait()
    summary = run_reference(workspace, workers, preview=preview)
    console.print(reference_table(summary, workspace.params.benchmark.mode))


@app.command()
def compare(
    arms: Annotated[str, typer.Option(help="Arms of the design, separated by commas.")],
    budget: Annotated[int, typer.Option(min=1, help="All-atom steps that each campaign may spend on labels.")],
    root: Root = HERE,
    seeds: Annotated[int, typer.Option(min=1, help="Each arm runs with the seeds 1 to this.")] = 5,
    name: Annotated[str, typer.Option(help="Of the comparison; the same name goes on with it.")] = "arms",
    design: Annotated[
        Path | None, typer.Option(help="What each arm changes in params.yaml; else docs/results/arms.yaml.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Campaigns at a time, one core each.")] = 2,
) -> None:
    """Run arms side by side at equal oracle cost, and write what they found to docs/results/NAME.csv."""
    root = _open(root)
    from flows.serving.startup import start_prefect
    from flows.terminal import console

    server = start_prefect()
    with console.status("starting Prefect"):
        from study.arms import load_design
        from study.compare import Comparison, run_compare, write_records

        server.wait()
    comparison, chosen = Comparison(root, name), arms.split(",")
    failed = run_compare(
        comparison, load_design(design or root / "docs/results/arms.yaml"), chosen, seeds, budget, workers
    )
    console.print(f"records: {write_records(comparison, chosen, seeds)}")
    if failed:
        raise CgalError(f"{failed} campaigns failed, see above; the same command tries them again")


@app.command(name="burn-in")
def burn_in(
    root: Root = HERE,
    frames: Annotated[int, typer.Option(min=2, help="Frames of the seed that are labelled.")] = 20,
) -> None:
    """Measure whether oracle.burn_in_steps suffices, by labels of seed frames, rebuilt and as they are."""
    root = _open(root)
    from flows.terminal import console, stage_bar
    from flows.versioning.repository import CampaignLock
    from flows.workspace import Workspace
    from study.burn_in import RECORDS, burn_in_table, write_burn_in

    with CampaignLock(root, "burn-in"), stage_bar("burn-in") as progress:
        found = write_burn_in(Workspace(root), frames, progress)
    console.print(burn_in_table(found))
    console.print(f"records: {root / 'docs' / 'results' / RECORDS}")


@app.command()
def structure(
    out: Annotated[Path, typer.Argument(help="PDB file to write.")],
    root: Root = HERE,
    sequence: Annotated[str | None, typer.Option(help="One-letter sequence: an extended chain is built.")] = None,
    pdb: Annotated[Path | None, typer.Option(help="A PDB file to complete.")] = None,
    pdb_id: Annotated[str | None, typer.Option(help="A PDB id to fetch (online).")] = None,
) -> None:
    """Build an all-atom structure: hydrogens at params.yaml's pH, minimised and relaxed in its force field."""
    root = _open(root)
    from cgal.all_atom.structures import structure_from_pdb_file, structure_from_pdb_id, structure_from_sequence
    from cgal.files import write_text
    from flows.workspace import Workspace

    params = Workspace(root).params
    if sum(source is not None for source in (sequence, pdb, pdb_id)) != 1:
        raise typer.BadParameter("give one of --sequence, --pdb and --pdb-id")
    physics, temperature_K, seed = params.force_field, params.temperature_K, params.seed
    if sequence is not None:
        text = structure_from_sequence(sequence, physics, temperature_K=temperature_K, seed=seed)
    elif pdb is not None:
        text = structure_from_pdb_file(pdb, physics, temperature_K=temperature_K, seed=seed)
    else:
        text = structure_from_pdb_id(str(pdb_id), physics, temperature_K=temperature_K, seed=seed)
    write_text(out, text)
    print(out)


@app.command()
def serve(
    root: Root = HERE,
    prefect_port: Annotated[int, typer.Option(min=1, max=65535)] = 4200,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback want passwords.")] = "127.0.0.1",
) -> None:
    """Run Prefect and MLflow servers and a worker for each pool, until Ctrl-C; only this machine reaches them."""
    root = _open(root)
    from flows.serving.serve import serve as serve_project
    from flows.workspace import Workspace

    serve_project(root, Workspace(root).params.protein, prefect_port, mlflow_port, host)


@app.command()
def worker(
    pool: Annotated[str, typer.Argument(help="cgal-cpu or cgal-gpu.")],
    root: Root = HERE,
    check: Annotated[
        bool, typer.Option("--check", help="Only tell by the exit code whether this machine's worker is at work.")
    ] = False,
) -> None:
    """Run a worker of a pool, for the Prefect server that PREFECT_API_URL names; 'cgal serve' starts its own."""
    root = _open(root)
    from flows.serving.pools import POOLS, become_worker, require_worker

    if pool not in POOLS:
        raise typer.BadParameter(f"no pool {pool!r}; the pools are {', '.join(POOLS)}")
    if check:
        require_worker(pool)
    else:
        become_worker(root, pool)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="An .xtc or .dcd file; a PDB with the beads is written beside it.")],
    root: Root = HERE,
) -> None:
    """Write the current round's trajectory in a format that other programs read."""
    root = _open(root)
    from cgal.frames import CGTrajectory
    from cgal.simulation import export_trajectory
    from flows.workspace import Workspace

    topology = export_trajectory(CGTrajectory.load(Workspace(root).round / "trajectory.h5"), out)
    print(f"{out}, {topology}")


@app.command()
def params() -> None:
    """Print every key of params.yaml: default, bounds, meaning."""
    from flows.terminal import console, params_table

    console.print(params_table())


def _print_campaign(root: Path, campaign: str) -> None:
    from flows.campaign.records import campaign_rounds
    from flows.terminal import campaign_table, console, next_lines
    from flows.versioning.repository import Repository

    rounds = campaign_rounds(Repository(root), campaign)
    if not rounds:
        raise CgalError(f"campaign {campaign} has no published round yet; 'cgal run' makes the first")
    console.print(campaign_table(campaign, rounds))
    console.print(next_lines(campaign, rounds))


def _open(root: Path) -> Path:
    from flows.settings import use_project_settings

    root = root.resolve()
    use_project_settings(root)
    return root


if __name__ == "__main__":
    main()
