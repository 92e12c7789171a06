"""The ground truth: all-atom sampling that may take days and be killed at any time, then weights, tests and floor."""

from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from deeptime.decomposition import CovarianceKoopmanModel
from prefect import flow, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff
from rich.box import SIMPLE_HEAD
from rich.table import Table

from cgal.benchmark.observables import local_observables
from cgal.benchmark.tica import fit_tica, project
from cgal.benchmark.wasserstein import METRICS, Sample, estimators
from cgal.errors import SamplingError
from cgal.files import sha256, write_json
from cgal.frames import CGTrajectory, alpha_carbons, read_pdb_text
from cgal.params import BenchmarkParams, Params
from cgal.progress import Progress, silent
from cgal.randomness import derive_generator
from cgal.reference.analysis import Analysis, analyse, summarise
from cgal.reference.figures import plot_floor, plot_reference
from cgal.reference.msm import prefix, thin, weigh
from cgal.reference.sampling import Loss, Recipe, explore, load_swarm, relax, swarm
from flows.campaign.steps import worth_retrying
from flows.protein.reference_folder import recipe_of, sampling_lock
from flows.serving.orphans import close_dead_runs, project_tag
from flows.serving.task_runners import fanning_out
from flows.terminal import METRICS as HEADINGS
from flows.terminal import SCALE, console, stage_bar
from flows.versioning.repository import CampaignLock, Repository
from flows.workspace import Workspace

__all__ = ["floors", "reference", "reference_table", "run_reference"]

SHARES = (0.25, 0.5, 0.75, 1.0)
MODES = ("exact", "paper")


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
    """Run the flow, alone in the sampling's folder, and give the summary; see `reference`."""
    recipe = recipe_of(workspace)
    with sampling_lock(recipe), tags(project_tag(recipe.folder)):
        close_dead_runs(recipe.folder)
        name, count = workspace.data.name, workers or workspace.params.execution.oracle_workers
        return reference(workspace.root, name, count, preview=preview)


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
) -> Callable[[Recipe, int], tuple[Loss, ...]]:
    def run(recipe: Recipe, workers: int) -> tuple[Loss, ...]:
        started = monotonic()
        with stage_bar(name) as progress, fanning_out(workspace, workers) as fan_out:
            losses = make(recipe, workers=workers, progress=progress, fan_out=fan_out)
        console.print(f"[green]✓[/green] {name:<8} {monotonic() - started:8.1f} s")
        for loss in losses:
            console.print(f"[yellow]![/yellow] lost: {loss.piece}: {loss.reason}")
        return losses

    return run


def _weigh(workspace: Workspace, recipe: Recipe, losses: Sequence[Loss], preview: bool) -> dict[str, Any]:
    params = workspace.params
    figures = workspace.root / "report" / "reference" / workspace.data.name
    with stage_bar("weigh") as progress:
        found = analyse(load_swarm(recipe), _native(recipe), params.reference, seed=params.seed, progress=progress)
    plot_reference(found, params.reference, figures)
    truth = thin(found.swarm, params.reference.frames)
    with stage_bar("floor") as progress:
        fallen = floors(found.swarm, truth, params, progress)
    plot_floor(fallen, params.benchmark.mode, figures)
    summary = _summary(workspace, found, fallen, losses)
    if preview:
        _write(figures, truth, summary)
    else:
        _record(workspace, truth, summary)
    console.print(f"figures: {figures}")
    return summary


def _native(recipe: Recipe) -> Any:
    structure = read_pdb_text(recipe.structure)
    return np.asarray(structure.xyz[0, alpha_carbons(structure.topology)], dtype=np.float32)


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
        Repository(workspace.root).record_data()


def floors(
    swarm: CGTrajectory, truth: CGTrajectory, params: Params, progress: Progress = silent
) -> list[dict[str, Any]]:
    """W1 between random halves of the trajectories, each with the weights of its own Markov model, as sampling grows.

    One entry for the first 25, 50, 75 and 100 % of the time of every trajectory: `sampled_ns` of both halves, and for
    each mode and metric the `mean`, lowest and highest over the splits. TICA is that of `truth`, the reference. Shares
    too short for lags or densities are left out. The reference itself has twice the trajectories of a half, and is
    nearer to the truth than that: independent errors would put it at half the floor.
    """
    tica = fit_tica(truth, params.benchmark.tica_lag_ps)
    total_ns = len(swarm) * params.reference.spacing_ps / 1000
    fallen = []
    for done, share in enumerate(SHARES):
        values = []
        for split in range(params.reference.splits):
            progress(done * params.reference.splits + split, len(SHARES) * params.reference.splits, f"{share:.0%}")
            try:
                values.append(_split_distance(prefix(swarm, share), split, tica, params))
            except SamplingError:
                break
        if values:
            fallen.append({"sampled_ns": share * total_ns, **_spread(values)})
    return fallen


def _split_distance(
    swarm: CGTrajectory, split: int, tica: CovarianceKoopmanModel, params: Params
) -> dict[str, dict[str, float]]:
    shuffled = derive_generator(params.seed, split, "reference floor").permutation(np.unique(swarm.replica))
    chosen = np.isin(swarm.replica, shuffled[: len(shuffled) // 2])
    halves = []
    for half in (chosen, ~chosen):
        weighted = weigh(swarm.take(half), params.reference, seed=params.seed)
        halves.append(thin(weighted.take(weighted.weights > 0), params.reference.frames // 2))
    return _distances(halves[0], halves[1], tica, params.benchmark)


def _distances(
    one: CGTrajectory, other: CGTrajectory, tica: CovarianceKoopmanModel, params: BenchmarkParams
) -> dict[str, dict[str, float]]:
    """W1 between two weighted trajectories, by mode and metric; raises SamplingError when there are too few frames."""
    sides = [{"tica": project(tica, side), **local_observables(side)} for side in (one, other)]
    samples = [
        {metric: Sample(values[metric], side.weights, np.zeros(len(side), dtype=np.int64)) for metric in METRICS}
        for values, side in zip(sides, (one, other), strict=True)
    ]
    table = estimators(params.maximum_frames)
    try:
        found = {
            mode: {metric: table[mode][metric].value(samples[0][metric], samples[1][metric]) for metric in METRICS}
            for mode in MODES
        }
    except np.linalg.LinAlgError:  # two frames, say, span no plane
        found = {}
    if not found or not all(np.isfinite(value) for values in found.values() for value in values.values()):
        raise SamplingError("too few frames of a half have weight for a density; sample longer")
    return found


def _spread(values: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    def over(mode: str, metric: str) -> dict[str, float]:
        found = [value[mode][metric] for value in values]
        return {"mean": float(np.mean(found)), "low": min(found), "high": max(found)}

    return {mode: {metric: over(mode, metric) for metric in METRICS} for mode in MODES}


def reference_table(summary: dict[str, Any], mode: str) -> Table:
    """The floor of each metric as sampling grows, and the numbers of the Markov model below."""
    table = Table(title=f"reference of {summary['protein']}: one half against the other ({mode} W1)", box=SIMPLE_HEAD)
    for heading in ("sampled [ns]", *HEADINGS.values()):
        table.add_column(heading, justify="right")
    for floor in summary["floor"]:
        means = (floor[mode][metric]["mean"] * SCALE.get(metric, 1.0) for metric in HEADINGS)
        table.add_row(f"{floor['sampled_ns']:.1f}", *(f"{mean:.3g}" for mean in means))
    folded, model, events = summary["folded"], summary["markov_model"], summary["events"]
    slowest = model["slowest_ps"]
    table.caption = (
        f"{summary['trajectories']} trajectories, {summary['frames']} frames, {summary['frames_without_weight']} of "
        f"them without weight; folded {folded['value']:.2f} [{folded['low']:.2f}, {folded['high']:.2f}]; slowest "
        f"process {slowest['value']:.0f} ps [{slowest['low']:.0f}, {slowest['high']:.0f}]; "
        f"{events['folding']} folding and {events['unfolding']} unfolding events"
    )
    return table
