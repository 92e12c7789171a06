"""One Prefect task per stage: retries with back-off, a timeout that interrupts, artifacts; skipped when unchanged."""

import base64
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from prefect import Task, task
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import TagsContext
from prefect.tasks import exponential_backoff

from cgal.dataset import append, prepare
from cgal.errors import BadParams, CgalError, DatasetChanged
from cgal.files import read_json
from cgal.outcomes import RoundOutcome
from cgal.projection.mapping import ForceMap
from flows.campaign.plain_md import add_plain_md
from flows.campaign.records import round_record
from flows.campaign.stages import run_stage
from flows.serving.dispatch import run_in_pool, runs_in_pool
from flows.serving.transport import hash_inputs
from flows.terminal import console, describe, stage_bar
from flows.tracking.process import log_round
from flows.tracking.runs import TrackingUnavailable
from flows.versioning import Repository, RepositoryBusy
from flows.workspace import Summary, Workspace

__all__ = ["append_task", "continue_task", "prepare_task", "publish_task", "stage_task", "track_task", "worth_retrying"]

FIGURES = {"train": "training", "benchmark": "benchmark", "select": "selection"}
"""Stages that draw, and the folder of `round/plots` they draw in."""


def worth_retrying(task: Any, run: Any, state: Any) -> bool:
    """A fault that the user must mend fails at once; anything else is tried again."""
    try:
        state.result()
    except (TrackingUnavailable, RepositoryBusy):
        return True
    except CgalError:
        return False
    except Exception:
        return True
    return True


def _as_task(
    function: Callable[[Path], Any], name: str, round_index: int, workspace: Workspace
) -> Callable[[Path], Any]:
    execution = workspace.params.execution
    wrap = task(
        name=name,
        task_run_name=f"{name}-r{round_index:03d}",
        retries=execution.retries,
        retry_delay_seconds=exponential_backoff(backoff_factor=execution.retry_delay_s),
        retry_jitter_factor=0.2,
        retry_condition_fn=worth_retrying,
        timeout_seconds=execution.timeout_s,
        cache_policy=NO_CACHE,
    )
    wrapped: Task[[Path], Any] = wrap(function)

    def call(root: Path) -> Any:
        with TagsContext(current_tags=set()):  # for each tagged task the server is asked for concurrency slots: 2 s
            return wrapped(root)

    return call


def stage_task(stage: str, round_index: int, workspace: Workspace) -> Callable[[Path], Summary]:
    """Prefect task `<stage>-r<round>` that runs one stage unless DVC says that nothing it depends on has changed.

    Of several proteins it is that of the workspace's: `<stage>-<protein>-r<round>`.
    """

    def run(root: Path) -> Summary:
        return _run_stage(Workspace(root, workspace.protein), stage, round_index)

    return _as_task(run, workspace.named(stage), round_index, workspace)


def _run_stage(workspace: Workspace, stage: str, k: int) -> Summary:
    repository = Repository(workspace.root)
    title = f"{workspace.named(stage)}-r{k:03d}"
    if repository.dvc.stage_is_current(workspace.named(stage, "@")):
        console.print(f"[dim]= {title:<16} unchanged, skipped[/dim]")
        return {"skipped": 1}
    started, inputs = monotonic(), hash_inputs(workspace, stage)
    with stage_bar(title) as progress:
        if runs_in_pool(stage, workspace.params):
            summary = run_in_pool(stage, k, workspace, progress)
        else:
            summary = run_stage(stage, workspace, progress)
    seconds = monotonic() - started
    _record(workspace, stage, title, inputs)
    workspace.add_timing(k, workspace.named(stage, "/"), seconds)
    console.print(f"[green]✓[/green] {title:<16} {seconds:6.1f} s  {describe(summary)}")
    _publish_artifacts(workspace, stage, title, summary | {"wall_s": round(seconds, 1)})
    return summary


def _record(workspace: Workspace, stage: str, title: str, inputs: str) -> None:
    """Let DVC record what a stage made, as soon as nobody else holds its lock.

    Raises DatasetChanged when the stage's inputs have another hash than before it ran: DVC would record those for it.
    """
    while True:
        if hash_inputs(Workspace(workspace.root, workspace.protein), stage) != inputs:
            raise DatasetChanged(
                f"{title}: params.yaml, or a file that it reads, was changed while it ran, so what it made is not "
                "recorded; put that back and run again, and edit params.yaml only while no campaign runs"
            )
        try:
            return Repository(workspace.root).dvc.record_stage(workspace.named(stage, "@"))
        except RepositoryBusy as busy:
            console.print(f"[yellow]![/yellow] {title} is done and not recorded yet: {busy}")


def _publish_artifacts(workspace: Workspace, stage: str, title: str, summary: Summary) -> None:
    rows = [{"what": name.replace("_", " "), "value": value} for name, value in summary.items()]
    create_table_artifact(rows, key=_as_key(title), description=f"{title} in numbers")
    if stage not in FIGURES:
        return
    for figure in sorted((workspace.round / "plots" / FIGURES[stage]).glob("*.png")):
        encoded = base64.b64encode(figure.read_bytes()).decode()
        key = _as_key(f"{title}-{figure.stem}")
        create_image_artifact(f"data:image/png;base64,{encoded}", key=key, description=f"{title}: {figure.stem}")


def _as_key(title: str) -> str:
    """Key of an artifact, which knows lower case alone."""
    return title.lower().replace("_", "-")


def prepare_task(workspace: Workspace) -> Callable[[Path], None]:
    """Prefect task that fits the force map and projects the seed, once a campaign."""

    def run(root: Path) -> None:
        for part in Workspace(root).parts:
            prepare(part.data, part.params, beside=part.beside)
            force_map = ForceMap.load(part.data / "force_map.h5")
            noise = ", ".join(f"{kind} {rms:.0f}" for kind, rms in force_map.figures.items())
            console.print(
                f"[green]✓[/green] {part.named('force map', ' of ')}: {force_map.kind} (held-out rms of each across "
                f"the bonds, kJ/mol/nm: {noise})"
            )

    return _as_task(run, "prepare", 0, workspace)


def continue_task(workspace: Workspace) -> Callable[[Path], None]:
    """Prefect task that adds all-atom dynamics that no model has steered as a shard, once a campaign."""

    def run(root: Path) -> None:
        for part in Workspace(root).parts:
            with stage_bar(part.named("continued MD", " of ")) as progress:
                steps = add_plain_md(part, progress)
            console.print(f"[green]✓[/green] {part.params.campaign.plain_md} all-atom dynamics: {steps} steps")

    return _as_task(run, "continue", 0, workspace)


def publish_task(campaign: str, round_index: int, workspace: Workspace) -> Callable[[Path], str]:
    """Prefect task that records the round in DVC and git and gives its tag."""

    def run(root: Path) -> str:
        if (named := Workspace(root).params.campaign.name) != campaign:
            raise BadParams(f"campaign.name is {named!r} now, and {campaign!r} is at work: set it back, then run again")
        published = Repository(root).publish(campaign, round_index)
        for warning in published.warnings:
            console.print(f"[yellow]![/yellow] {warning}")
        Workspace(root).prune_scratch(keep=f"label-r{round_index:03d}")
        return published.tag

    return _as_task(run, "publish", round_index, workspace)


def track_task(campaign: str, round_index: int, workspace: Workspace) -> Callable[[Path], None]:
    """Prefect task that brings the published round to MLflow (again and again to the same run)."""

    def run(root: Path) -> None:
        repository = Repository(root)
        published = repository.published_round(campaign, round_index)
        log_round(root, round_record(Workspace(root), repository, published))

    return _as_task(run, "track", round_index, workspace)


def append_task(round_index: int, workspace: Workspace) -> Callable[[Path], int]:
    """Prefect task that makes the oracle's frames the next shard, which opens the next round; gives their number."""

    def run(root: Path) -> int:
        from cgal.all_atom.oracle import OracleResult

        frames = 0
        for part in Workspace(root).parts:
            result = OracleResult.load(part.round / "oracle.h5")
            manifest = append(
                part.data,
                labelled=result.labelled,
                origin=f"oracle round {round_index}",
                oracle_steps=result.steps,
                oracle_failed=len(result.failures),
                failed_steps=result.failed_steps,
                checkpoint=part.model,
                keep_atoms=part.params.backmapping.steer_within_nm > 0,
                outcome=RoundOutcome(**read_json(part.round / "selection.json")["outcome"]),
            )
            frames += manifest.shards[-1].frames
        return frames

    return _as_task(run, "append", round_index, workspace)
