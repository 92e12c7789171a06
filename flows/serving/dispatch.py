"""Who runs a stage: this process, or in a served campaign a worker of the pool `cgal-gpu`.

A served campaign (`flows.serving.deployed`) asks for its GPU stages as runs of their deployments, nested in its own
graph, and waits for each. Only names, hashes and small numbers cross; the files lie in the project's folder, which both
see, or travel through a DVC remote (`flows.serving.transport`). The hash of a stage's inputs is part of what identifies
its run: a campaign that was killed and started again finds the run that it had asked for, at work or done, and a run
that failed is not found again but followed by the next attempt.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from itertools import count
from time import monotonic, sleep
from typing import Any
from uuid import UUID

from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterIdempotencyKey,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.states import Cancelling

from cgal.errors import CgalError
from cgal.params import Params
from cgal.progress import Progress
from flows.serving.orphans import close_run, project_tag
from flows.serving.transport import Output, hash_inputs, is_there, send_inputs, take_outputs
from flows.workspace import Summary, Workspace

__all__ = [
    "REFUSED",
    "StageElsewhere",
    "StageLost",
    "publish_result",
    "run_in_pool",
    "runs_in_pool",
    "use_pools",
]

GPU_STAGES = ("train", "simulate")
POLL_S = 1.0

SILENT_S = 900.0
"""A worker that has not reported for so long is taken for dead, with its machine: cut off, it ends itself before."""

REFUSED = "Refused"
"""Name of the failed state of a stage whose fault the user must mend; no retry helps."""

_served = False


class StageLost(Exception):
    """A stage's run on a worker failed, crashed or was cancelled; another attempt may succeed."""


class StageElsewhere(CgalError):
    """The worker does not see the files of this project."""


def use_pools() -> None:
    """Let this process ask the pool `cgal-gpu` for its GPU stages from now on; without it all run in process."""
    global _served
    _served = True


def runs_in_pool(stage: str, params: Params) -> bool:
    """Whether this process asks the pool `cgal-gpu` for a stage."""
    return _served and (stage in GPU_STAGES or (stage == "label" and params.force_field.platform == "CUDA"))


def run_in_pool(stage: str, round_index: int, workspace: Workspace, progress: Progress) -> Summary:
    """Let a worker of the pool run a stage, and give its few numbers once its outputs lie in the workspace.

    Raises StageLost when another attempt may succeed, CgalError when the user must mend something first.
    """
    inputs = hash_inputs(workspace, stage)
    campaign = workspace.params.campaign.name
    with get_client(sync_client=True) as client:
        for attempt in count():
            title = f"{workspace.named(stage)}-r{round_index:03d}"
            key = f"{project_tag(workspace.root)}/{campaign}/{title}/{inputs}/{attempt}"
            run = _find(client, key)
            if run is not None and _is_of_no_use(client, run, workspace, stage):
                continue
            if run is None:
                asked = {"campaign": campaign, "round_index": round_index, "inputs": inputs}
                if workspace.protein:
                    asked["protein"] = workspace.protein
                run = _ask(stage, key, asked, workspace)
            return _result(client, _wait(client, run.id, progress), workspace, stage)
    raise AssertionError("count() has no end")


def _ask(stage: str, key: str, parameters: dict[str, Any], workspace: Workspace) -> FlowRun:
    if _ships(workspace):
        parameters["files"] = send_inputs(workspace, stage)
    asked = run_deployment(f"{stage}/{stage}", parameters=parameters, idempotency_key=key, timeout=0)
    assert isinstance(asked, FlowRun)
    return asked


def _ships(workspace: Workspace) -> bool:
    return workspace.params.execution.transport == "dvc"


def _find(client: SyncPrefectClient, key: str) -> FlowRun | None:
    wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))
    return next(iter(client.read_flow_runs(flow_run_filter=wanted)), None)


def _is_of_no_use(client: SyncPrefectClient, run: FlowRun, workspace: Workspace, stage: str) -> bool:
    """Whether a run of an earlier attempt has ended without outputs that lie in the workspace or can be fetched."""
    if run.state is None or not run.state.is_final():
        return False
    if not run.state.is_completed():
        return True
    outputs = read_result(client, run.id)[1]
    if not _ships(workspace):
        return not is_there(workspace, stage, outputs)
    try:
        take_outputs(workspace, stage, outputs)
    except CgalError:
        return True
    return False


def _wait(client: SyncPrefectClient, run_id: UUID, progress: Progress) -> FlowRun:
    """Wait until a run has ended; close it when its worker is silent, cancel it when there is no more time for it."""
    started = heard = monotonic()
    last = None
    try:
        while True:
            run = client.read_flow_run(run_id)
            if run.state is not None and run.state.is_final():
                return run
            worker = run.labels.get("prefect.worker.name", "no worker yet")
            report = _last_report(client, worker)
            if report != last:
                last, heard = report, monotonic()
            elif report and monotonic() - heard > SILENT_S:
                close_run(client, run, f"its worker {worker} has not reported for {SILENT_S:.0f} s")
                continue
            state = run.state.name if run.state else ""
            progress(0, 0, f"{state}, {worker}, {monotonic() - started:.0f} s")
            sleep(POLL_S)
    except TimeoutError:
        client.set_flow_run_state(run_id, Cancelling(message="the campaign waits no longer"))
        raise


def _last_report(client: SyncPrefectClient, worker: Any) -> datetime | None:
    """When a worker of the pool reported last by the server's clock, which is compared with no other."""
    workers = client.read_workers_for_work_pool("cgal-gpu")
    return next((each.last_heartbeat_time for each in workers if each.name == worker), None)


def _result(client: SyncPrefectClient, run: FlowRun, workspace: Workspace, stage: str) -> Summary:
    worker = run.labels.get("prefect.worker.name", "a worker")
    state: State[Any] | None = run.state
    if state is None or not state.is_completed():
        name, message = (state.name, state.message) if state else ("", "")
        if name == REFUSED:
            raise CgalError(str(message))
        raise StageLost(f"{run.name} on {worker} ended as {name}: {message}")
    summary, outputs = read_result(client, run.id)
    if _ships(workspace):
        take_outputs(workspace, stage, outputs)
    elif not is_there(workspace, stage, outputs):
        raise StageElsewhere(
            f"{run.name}: what {worker} wrote is not what lies in {workspace.round}; let CGAL_ROOT of that worker name "
            "this project's folder, on a file system that both see, or set execution.transport to dvc"
        )
    return summary


def publish_result(title: str, summary: Summary, outputs: Mapping[str, Output]) -> None:
    """Show a stage's numbers and the hashes of its outputs on its run's page; the campaign reads them there."""
    rows = [{"what": name, "value": json.dumps(value)} for name, value in summary.items()]
    rows += [{"what": path, "value": str(output)} for path, output in outputs.items()]
    create_table_artifact(rows, key=f"{title}-result", description=f"{title}: numbers and outputs")


def read_result(client: SyncPrefectClient, run_id: UUID) -> tuple[Summary, dict[str, Output]]:
    """Numbers of a completed stage run, and the hashes of its outputs by path (empty when it said none)."""
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]), key=ArtifactFilterKey(like_="-result")
        )
    )
    rows = [row for artifact in found for row in json.loads(str(artifact.data))]
    summary: Summary = {}
    outputs = {}
    for row in rows:
        if row["value"].startswith("sha256 "):
            outputs[row["what"]] = Output.parse(row["value"])
        else:
            summary[row["what"]] = json.loads(row["value"])
    return summary, outputs
