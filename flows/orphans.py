"""What a killed campaign leaves behind in Prefect: runs that still say "Running".

The next run of the campaign closes them, under its lock: nothing of the project can then be alive. (The embedded
server of `flows.startup` ends by itself.)
"""

from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

__all__ = ["close_dead_runs", "project_tag"]


def project_tag(root: Path) -> str:
    """Tag that the flow runs of a working copy carry, so that one server can tell projects apart."""
    return f"project:{root}"


def close_dead_runs(root: Path) -> int:
    """Set flow runs of this project that a kill left "Running" to "Crashed", and say how many there were."""
    dead = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])),
        tags=FlowRunFilterTags(all_=[project_tag(root)]),
    )
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=dead)
        for run in runs:
            client.set_flow_run_state(
                run.id, Crashed(message="its process was killed; the next run goes on"), force=True
            )
    return len(runs)
