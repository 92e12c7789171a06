"""What a killed campaign leaves behind in Prefect: runs that still say "Running".

The next run of the campaign closes them, under its lock: nothing of the project can then be alive (the embedded
server of `flows.serving.startup` ends by itself; a worker's runs are closed by its next life, `flows.serving.pools`).
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType
from prefect.states import Crashed

__all__ = ["close_dead_runs", "close_lost_tasks", "close_run", "long_ended", "project_tag"]

UNFINISHED = TaskRunFilter(
    state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING]))
)
LATE = timedelta(seconds=30)
"""The server hears of the end of a task up to so much after that of its flow."""


def project_tag(root: Path) -> str:
    """Tag that the flow runs of a working copy carry, so that one server can tell projects apart."""
    return f"project:{root.name}-{sha256(str(root).encode()).hexdigest()[:8]}"


def close_dead_runs(root: Path) -> int:
    """Set flow runs of this project that a kill left "Running" to "Crashed", and say how many there were."""
    dead = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])),
        tags=FlowRunFilterTags(all_=[project_tag(root)]),
    )
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=dead)
        for run in runs:
            close_run(client, run, "its process was killed")
    return len(runs)


def close_run(client: SyncPrefectClient, run: FlowRun, reason: str) -> None:
    """Set a flow run whose process is dead to "Crashed", and the tasks that it was at."""
    crashed: State[Any] = Crashed(message=f"{reason}; the next run goes on")
    tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])), task_run_filter=UNFINISHED
    )
    client.set_flow_run_state(run.id, crashed, force=True)
    for task in tasks:
        client.set_task_run_state(task.id, crashed, force=True)


def long_ended() -> FlowRunFilter:
    """Flow runs that ended so long ago that the server must have heard of the end of their tasks."""
    return FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[*TERMINAL_STATES])),
        end_time=FlowRunFilterEndTime(before_=datetime.now(UTC) - LATE),
    )


def close_lost_tasks(client: SyncPrefectClient, ended: Sequence[FlowRun]) -> None:
    """Set tasks of ended flow runs that still say "Running" to "Crashed": a killed server lost their end."""
    if not ended:
        return
    flows = FlowRunFilter(id=FlowRunFilterId(any_=[run.id for run in ended]))
    for task in client.read_task_runs(flow_run_filter=flows, task_run_filter=UNFINISHED):
        lost: State[Any] = Crashed(message="the server was killed before it heard of its end")
        client.set_task_run_state(task.id, lost, force=True)
