"""The ground truth: all-atom sampling that may take days and be killed at any time, then weights, tests and floor."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from prefect import flow, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from cgal.benchmark.lag import used_lag_ps
from cgal.benchmark.observables import in_records
from cgal.errors import CampaignLocked, Refusals
from cgal.files import settle_folder, sha256, write_json
from cgal.frames import CGTrajectory, native_beads
from cgal.reference.analysis import Analysis, analyse, summarise
from cgal.reference.figures import plot_floor, plot_reference
from cgal.reference.floor import floors
from cgal.reference.lags import require_lags
from cgal.reference.msm import thin
from cgal.reference.sampling import Loss, SwarmRecipe, explore, load_swarm, relax, swarm
from flows.campaign.preflight import require_repository, require_sound_structure
from flows.campaign.steps import worth_retrying
from flows.protein.reference_folder import recipe_of, sampling_lock
from flows.serving.orphans import close_dead_runs, project_tag
from flows.serving.task_runners import fanning_out
from flows.terminal import console, stage_bar
from flows.versioning import CampaignLock, Repository
from flows.workspace import Workspace

__all__ = ["reference", "reference_table", "require_ready", "run_reference"]


@flow(name="reference", flow_run_name="reference-{protein}")
def reference(root: Path, protein: str, workers: int, *, preview: bool = False) -> dict[str, Any]:
    """Make the ground truth of a protein from `data/<protein>/structure.pdb`, and give its summary.

    1. explore: a few trajectories at a high temperature;
    2. relax: k-centres of their frames, and the structure itself, brought to the target temperature;
    3. sample: a swarm of unbiased trajectories from there;
    4. weigh: a Markov state model gives each frame its equilibrium weight, and is tested;
    5. floor: how far half of the trajectories lies from the other half, in each of the benchmark's metrics.

    Steps 1 to 3 go on where they were, however they were stopped; `preview` leaves them out, and leaves `data/` as it
    is: everything then goes to `report/reference/<protein>/`.
    """
    workspace = Workspace(root, protein)
    recipe = recipe_of(workspace)
    losses: list[Loss] = []
    for name, make in (("explore", explore), ("relax", relax), ("sample", swarm)):
        if not preview:
            losses += _step(name, _sampling(name, make, workspace), workspace)(recipe, workers)
    summary: dict[str, Any] = _step("weigh", _weigh, workspace)(workspace, recipe, tuple(losses), preview)
    return summary


def run_reference(workspace: Workspace, workers: int | None = None, *, preview: bool = False) -> dict[str, Any]:
    """Run the flow, alone in the sampling's folder, and give the summary; see `reference`.

    What would fail in the end is refused at once.
    """
    if not preview:
        require_ready(workspace)
    recipe = recipe_of(workspace)
    with sampling_lock(recipe), tags(project_tag(recipe.folder)):
        close_dead_runs(recipe.folder)
        name, count = workspace.data.name, workers or workspace.params.execution.oracle_workers
        return reference(workspace.root, name, count, preview=preview)


def require_ready(workspace: Workspace) -> None:
    """Raise the one thing that is to be mended before days of sampling, or Refused with all of them."""
    refusals = Refusals()
    with suppress(CampaignLocked), CampaignLock(workspace.root, "reference"):
        settle_folder(workspace.data)
    for check in (require_repository, require_sound_structure):
        with refusals.gathered():
            check(workspace)
    with refusals.gathered():
        require_lags(workspace.params)
    refusals.tell()


def _step(name: str, function: Callable[..., Any], workspace: Workspace) -> Callable[..., Any]:
    execution = workspace.params.execution
    wrap = task(
        name=name,
        task_run_name=f"{name}-{workspace.data.name}",
        retries=execution.retries,
        retry_delay_seconds=exponential_backoff(backoff_factor=execution.retry_delay_s),
        retry_condition_fn=worth_retrying,
        cache_policy=NO_CACHE,
    )
    return wrap(function)


def _sampling(
    name: str, make: Callable[..., tuple[Loss, ...]], workspace: Workspace
) -> Callable[[SwarmRecipe, int], tuple[Loss, ...]]:
    def run(recipe: SwarmRecipe, workers: int) -> tuple[Loss, ...]:
        started = monotonic()
        with stage_bar(name) as progress, fanning_out(workspace, workers) as fan_out:
            losses = make(recipe, workers=workers, progress=progress, fan_out=fan_out)
        console.print(f"[green]✓[/green] {name:<8} {monotonic() - started:8.1f} s")
        for loss in losses:
            console.print(f"[yellow]![/yellow] lost: {loss.piece}: {loss.reason}")
        return losses

    return run


def _weigh(workspace: Workspace, recipe: SwarmRecipe, losses: Sequence[Loss], preview: bool) -> dict[str, Any]:
    params = workspace.params
    figures = workspace.root / "report" / "reference" / workspace.data.name
    with stage_bar("weigh") as progress:
        found = analyse(
            load_swarm(recipe), native_beads(recipe.structure), params.reference, seed=params.seed, progress=progress
        )
    plot_reference(found, params.reference, figures)
    truth = thin(found.swarm, params.reference.frames)
    with stage_bar("floor") as progress:
        fallen = floors(found.swarm, truth, params, progress)
    plot_floor(fallen, params.benchmark.mode, figures)
    summary = _summary(workspace, found, fallen, losses)
    summary["floor_tica_lag_ps"] = used_lag_ps(truth, params.benchmark.tica_lag_ps)
    if preview:
        _write(figures, truth, summary)
    else:
        _record(workspace, truth, summary)
    console.print(f"figures: {figures}")
    return summary


def _summary(
    workspace: Workspace, found: Analysis, fallen: Sequence[dict[str, Any]], losses: Sequence[Loss]
) -> dict[str, Any]:
    params = workspace.params
    return summarise(found, params.reference) | {
        "protein": workspace.data.name,
        "temperature_K": params.temperature_K,
        "force_field": params.force_field.model_dump(exclude={"platform"}),
        "reference": params.reference.model_dump(),
        "seed": params.seed,
        "losses": [vars(loss) for loss in losses],
        "floor": fallen,
    }


def _write(folder: Path, truth: CGTrajectory, summary: dict[str, Any]) -> None:
    truth.save(folder / "reference.h5")
    write_json(folder / "reference.json", summary | {"sha256": sha256(folder / "reference.h5")})


def _record(workspace: Workspace, truth: CGTrajectory, summary: dict[str, Any]) -> None:
    """Put the reference into the protein's data, and let DVC know; no campaign may be at work on it."""
    with CampaignLock(workspace.root, "reference"):
        _write(workspace.data, truth, summary)
        Repository(workspace.root).dvc.record_data(workspace.data.name)


def reference_table(summary: dict[str, Any], mode: str) -> Table:
    """The floor of each metric as sampling grows, and the numbers of the Markov model below."""
    table = Table(title=f"reference of {summary['protein']}: one half against the other ({mode} W1)", box=SIMPLE_HEAD)
    shown = in_records(name for floor in summary["floor"] for name in floor[mode])
    for heading in ("sampled [ns]", *(observable.heading for observable in shown.values())):
        table.add_column(escape(heading), justify="right")
    for floor in summary["floor"]:
        means = (floor[mode][name]["mean"] * observable.scale for name, observable in shown.items())
        table.add_row(f"{floor['sampled_ns']:.1f}", *(f"{mean:.3g}" for mean in means))
    folded, model, events = summary["folded"], summary["markov_model"], summary["events"]
    slowest = model["slowest_ps"]
    table.caption = (
        f"{summary['trajectories']} trajectories, {summary['frames']} frames, {summary['frames_without_weight']} of "
        f"them without weight; folded {folded['value']:.2f} [{folded['low']:.2f}, {folded['high']:.2f}]; slowest "
        f"process {slowest['value']:.0f} ps [{slowest['low']:.0f}, {slowest['high']:.0f}]; "
        f"{events['folding']} folding and {events['unfolding']} unfolding events; "
        f"TICA of the benchmark: at a lag of {summary['floor_tica_lag_ps']:g} ps"
    )
    return table
