"""Who runs a stage: this process, or in a served campaign a worker of the pool `cgal-gpu`.

A served campaign (`flows.deployed`) asks for its GPU stages as runs of their deployments, nested in its own graph, and
waits for each. Only names, hashes and small numbers cross; the files lie in the project's folder, which both see. The
hash of a stage's inputs is part of what identifies its run: a campaign that was killed and started again finds the run
that it had asked for, at work or done, and a run that failed is not found again but followed by the next attempt.
"""

import hashlib
import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from uuid import UUID

import yaml
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
from cgal.files import sha256
from cgal.params import Params
from cgal.progress import Progress
from flows.orphans import project_tag
from flows.stages import Summary, run_stage
from flows.workspace import Workspace

__all__ = [
    "REFUSED",
    "StageElsewhere",
    "StageLost",
    "hash_inputs",
    "hash_outputs",
    "perform_stage",
    "publish_result",
    "use_pools",
]

GPU_STAGES = ("train", "simulate")
POLL_S = 1.0

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


def perform_stage(stage: str, round_index: int, workspace: Workspace, progress: Progress) -> Summary:
    """Run one stage of a round, here or in the GPU pool, and give its few numbers."""
    if _served and _wants_gpu(stage, workspace.params):
        return _run_in_pool(stage, round_index, workspace, progress)
    return run_stage(stage, workspace, progress)


def _wants_gpu(stage: str, params: Params) -> bool:
    return stage in GPU_STAGES or (stage == "label" and params.force_field.platform == "CUDA")


def _run_in_pool(stage: str, round_index: int, workspace: Workspace, progress: Progress) -> Summary:
    inputs = hash_inputs(workspace, stage)
    campaign = workspace.params.campaign.name
    parameters = {"campaign": campaign, "round_index": round_index, "inputs": inputs}
    with get_client(sync_client=True) as client:
        for attempt in count():
            key = f"{project_tag(workspace.root)}/{campaign}/{stage}-r{round_index:03d}/{inputs}/{attempt}"
            run = _find(client, key)
            if run is not None and _is_of_no_use(client, run, workspace, stage):
                continue
            if run is None:
                asked = run_deployment(f"{stage}/{stage}", parameters=parameters, idempotency_key=key, timeout=0)
                assert isinstance(asked, FlowRun)
                run = asked
            return _result(client, _wait(client, run.id, progress), workspace, stage)
    raise AssertionError("count() has no end")


def _find(client: SyncPrefectClient, key: str) -> FlowRun | None:
    wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))
    return next(iter(client.read_flow_runs(flow_run_filter=wanted)), None)


def _is_of_no_use(client: SyncPrefectClient, run: FlowRun, workspace: Workspace, stage: str) -> bool:
    """Whether a run of an earlier attempt has ended without the outputs that lie in the workspace."""
    if run.state is None or not run.state.is_final():
        return False
    if not run.state.is_completed():
        return True
    return read_result(client, run.id)[1] != hash_outputs(workspace, stage)


def _wait(client: SyncPrefectClient, run_id: UUID, progress: Progress) -> FlowRun:
    """Wait until a run has ended; when there is no more time for it, cancel it."""
    started = monotonic()
    try:
        while True:
            run = client.read_flow_run(run_id)
            if run.state is not None and run.state.is_final():
                return run
            worker = run.labels.get("prefect.worker.name", "no worker yet")
            state = run.state.name if run.state else ""
            progress(0, 0, f"{state}, {worker}, {monotonic() - started:.0f} s")
            sleep(POLL_S)
    except TimeoutError:
        client.set_flow_run_state(run_id, Cancelling(message="the campaign waits no longer"))
        raise


def _result(client: SyncPrefectClient, run: FlowRun, workspace: Workspace, stage: str) -> Summary:
    worker = run.labels.get("prefect.worker.name", "a worker")
    state: State[Any] | None = run.state
    if state is None or not state.is_completed():
        name, message = (state.name, state.message) if state else ("", "")
        if name == REFUSED:
            raise CgalError(str(message))
        raise StageLost(f"{run.name} on {worker} ended as {name}: {message}")
    summary, outputs = read_result(client, run.id)
    if outputs != hash_outputs(workspace, stage):
        raise StageElsewhere(
            f"{run.name}: what {worker} wrote is not what lies in {workspace.round}; let CGAL_ROOT of that worker name "
            "this project's folder, on a file system that both see"
        )
    return summary


def publish_result(title: str, summary: Summary, outputs: dict[str, str]) -> None:
    """Show a stage's numbers and the hashes of its outputs on its run's page; the campaign reads them there."""
    rows = [{"what": name, "value": json.dumps(value)} for name, value in summary.items()]
    rows += [{"what": path, "value": f"sha256 {digest}"} for path, digest in outputs.items()]
    create_table_artifact(rows, key=f"{title}-result", description=f"{title}: numbers and outputs")


def read_result(client: SyncPrefectClient, run_id: UUID) -> tuple[Summary, dict[str, str]]:
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
            outputs[row["what"]] = row["value"].removeprefix("sha256 ")
        else:
            summary[row["what"]] = json.loads(row["value"])
    return summary, outputs


def hash_inputs(workspace: Workspace, stage: str) -> str:
    """One hash of the files and params that `dvc.yaml` names as a stage's inputs.

    Folders are left out: the manifest, an input too, holds the hashes of the shards.
    """
    described = _stage(workspace, stage)
    files = [path for path in _paths(workspace, described["deps"]) if path.is_file()]
    content = {
        "files": {str(path.relative_to(workspace.root)): sha256(path) for path in sorted(files)},
        "params": {key: _value(workspace.params, key) for key in described["params"]},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def hash_outputs(workspace: Workspace, stage: str) -> dict[str, str]:
    """Hash of each file that a stage has written, by its path in the project."""
    described = _stage(workspace, stage)
    files: list[Path] = []
    for path in _paths(workspace, [*described.get("outs", []), *described.get("metrics", [])]):
        files += [path] if path.is_file() else (file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(workspace.root).as_posix(): sha256(file) for file in sorted(files)}


def _stage(workspace: Workspace, stage: str) -> dict[str, Any]:
    pipeline = yaml.safe_load((workspace.root / "dvc.yaml").read_text())
    described: dict[str, Any] = pipeline["stages"][stage]
    return described


def _paths(workspace: Workspace, names: list[str]) -> Iterator[Path]:
    for name in names:
        yield workspace.root / name.replace("${protein}", workspace.params.protein)


def _value(params: Params, key: str) -> Any:
    value: Any = params.model_dump(mode="json")
    for name in key.split("."):
        value = value[name]
    return value
