"""Commands of a campaign: run it, run a stage of it, draw its rounds."""

from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer

from flows.cli.project import HERE, Root, open_project, print_rounds

__all__ = ["export", "params", "report", "run", "stage"]


def run(
    root: Root = HERE,
    new: Annotated[str | None, typer.Option(help="Start a new campaign of this name from the seed.")] = None,
) -> None:
    """Run the campaign of params.yaml from where it stands to its closing round."""
    started = monotonic()
    root = open_project(root)
    from flows.campaign.opening import campaign_state
    from flows.terminal import console
    from flows.versioning import CampaignLock, Repository
    from flows.workspace import Workspace

    workspace, repository = Workspace(root), Repository(root)
    with CampaignLock(root, new or workspace.params.campaign.name):
        state = campaign_state(workspace, repository)
        if state.complete and not new:
            console.print(f"Campaign {state.name} is complete (rounds 0 to {state.last_published}). {state.closing}")
        else:
            state = _run_campaign(root, new, started)
    print_rounds(root, state.name)
    if state.complete:
        console.print(f"Start another from the seed: [bold]cgal run --new {_next_name(state.name)}[/bold]")


def _run_campaign(root: Path, new: str | None, started: float) -> Any:
    """Open the campaign while Prefect starts, run it, and give the state in which it was found."""
    from flows.serving.startup import load_campaign, start_prefect
    from flows.versioning import Repository

    repository = Repository(root)
    repository.require_writable()
    server = start_prefect()

    from flows.campaign.opening import campaign_state, continue_campaign, fetch_data, new_campaign
    from flows.terminal import console
    from flows.workspace import Workspace

    workspace = Workspace(root)
    with console.status("starting Prefect, loading the science"):
        fetch_data(workspace, repository)
        if new or campaign_state(workspace, repository).last_published is None:
            from flows.campaign.preflight import require_runnable  # half a second, before the first round alone

            require_runnable(workspace)
        if new:
            workspace = new_campaign(workspace, repository, new)
        state = campaign_state(workspace, repository)
        continue_campaign(workspace, repository, state)
        load_campaign(server)
    console.print(_opening(state))
    if state.last_published is None:
        from flows.protein.doctor import forecast

        for part in workspace.parts:
            console.print(forecast(part))
    _run_flow(root, state.name, started)
    return state


def _opening(state: Any) -> str:
    if state.last_published is None:
        return f"Campaign {state.name}: at most {state.rounds} acquisition rounds and a closing one."
    return f"Campaign {state.name} goes on: rounds 0 to {state.last_published} are published."


def _run_flow(root: Path, campaign: str, started: float) -> None:
    """Run the flow without heartbeats, whose end every flow waits for: `close_dead_runs` finds a run that died."""
    from prefect import tags
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.campaign.active_learning import active_learning
    from flows.serving.orphans import close_dead_runs, project_tag

    close_dead_runs(root)
    with tags(project_tag(root)), temporary_settings(updates={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        active_learning(root, campaign, startup_s=monotonic() - started)


def _next_name(name: str) -> str:
    stem = name.rstrip("0123456789")
    number = name[len(stem) :]
    return f"{stem}{int(number) + 1}" if number else f"{name}2"


def stage(
    name: Annotated[str, typer.Argument(help="train, simulate, benchmark, select or label.")],
    protein: Annotated[str | None, typer.Argument(help="Which of params.yaml's, if there are several.")] = None,
    root: Root = HERE,
) -> None:
    """Run one stage of the current round in place (this is what dvc.yaml calls); of several proteins for each."""
    root = open_project(root)
    from flows.campaign.stages import STAGES, run_stage
    from flows.terminal import console, describe, stage_bar
    from flows.versioning import CampaignLock
    from flows.workspace import Workspace

    if name not in STAGES:
        raise typer.BadParameter(f"no stage {name!r}; the stages are {', '.join(STAGES)}")
    workspace = Workspace(root)
    with CampaignLock(root, f"cgal stage {name}"):
        for part in (workspace.of(protein),) if protein else workspace.for_stage(name):
            with stage_bar(part.named(name)) as progress:
                summary = run_stage(name, part, progress)
            console.print(f"{part.named(name)}: {describe(summary)}")


def report(root: Root = HERE) -> None:
    """Draw W1 and RMSD histograms over all rounds of the campaign, and print its table."""
    root = open_project(root)
    from flows.campaign.records import draw_campaign
    from flows.terminal import console
    from flows.versioning import Repository
    from flows.workspace import Workspace

    name = Workspace(root).params.campaign.name
    folder = draw_campaign(Repository(root), name, root / "report" / name)
    print_rounds(root, name)
    console.print(f"figures: {folder}")


def export(
    out: Annotated[Path, typer.Argument(help="A name such as run.xtc or run.dcd: run-000.xtc, ... and run.pdb.")],
    root: Root = HERE,
    protein: Annotated[str | None, typer.Option(help="Which of params.yaml's, if there are several.")] = None,
    trajectory: Annotated[
        Path | None, typer.Option(help="Another trajectory.h5 than that of the current round.", dir_okay=False)
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="All replicas in one file, and whose each frame is in run.csv.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there, of all replicas.")
    ] = False,
) -> None:
    """Write the current round's trajectory in a format that other programs read, a file a replica."""
    root = open_project(root)
    from cgal.frames import CGTrajectory
    from cgal.simulation import export_trajectory
    from flows.workspace import Workspace

    frames = CGTrajectory.load(trajectory or Workspace(root).of(protein).round / "trajectory.h5")
    print(*export_trajectory(frames, out, together=together, overwrite=overwrite), sep="\n")


def params() -> None:
    """Print every key of params.yaml: default, bounds, meaning."""
    from flows.terminal import console, params_table

    console.print(params_table())
