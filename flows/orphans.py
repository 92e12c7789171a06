"""What a killed campaign leaves behind: an embedded Prefect server without a parent, and runs that still say "Running".

Both are cleared by the next run of the campaign, under its lock: nothing of the project can then be alive.
"""

from contextlib import suppress
from pathlib import Path

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

__all__ = ["close_dead_runs", "project_tag", "stop_orphaned_servers"]


def project_tag(root: Path) -> str:
    """Tag that the flow runs of a working copy carry, so that one server can tell projects apart."""
    return f"project:{root}"


def stop_orphaned_servers(home: Path) -> int:
    """Stop embedded Prefect servers of this project whose campaign is dead, and say how many there were.

    A server belongs to the project if its PREFECT_HOME is `home`; it is an orphan if init has adopted it.
    """
    stopped = 0
    for process in psutil.process_iter(["cmdline", "ppid"]):
        with suppress(psutil.Error):
            if _is_orphaned_server(process) and process.environ().get("PREFECT_HOME") == str(home):
                process.terminate()
                stopped += 1
    return stopped


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


def _is_orphaned_server(process: psutil.Process) -> bool:
    command = process.info["cmdline"] or []
    return process.info["ppid"] == 1 and "prefect.server.api.server:create_app" in command
