"""A project under `cgal serve`, for tests: the real servers and workers, and what Prefect holds of them."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from tests.test_killed import alive

__all__ = ["Served", "alive", "clean_environment", "end_with_parent", "free_port", "serving_project", "wait_until"]


@dataclass
class Served:
    """A served project: its folder, its two addresses, and the process of `cgal serve`."""

    root: Path
    prefect: str
    mlflow: str
    process: "subprocess.Popen[str]"
    environment: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        password = self.environment.get("PREFECT_SERVER_API_AUTH_STRING")
        settings = {PREFECT_API_URL: f"{self.prefect}/api", PREFECT_API_AUTH_STRING: password}
        with temporary_settings(settings), get_client(sync_client=True) as client:
            yield client

    def start(self, deployment: str, **parameters: Any) -> FlowRun:
        with self.client() as client:
            found = client.read_deployment_by_name(f"{deployment}/{deployment}")
            return client.create_flow_run_from_deployment(found.id, parameters=parameters)

    def runs(self) -> list[FlowRun]:
        with self.client() as client:
            return client.read_flow_runs()

    def wait_for(self, run: FlowRun, seconds: float = 600) -> FlowRun:
        """Wait until a run has ended."""
        with self.client() as client:
            wait_until(lambda: _ended(client.read_flow_run(run.id)), f"the end of {run.name}", seconds)
            return client.read_flow_run(run.id)

    def stop(self) -> str:
        """Stop as Ctrl-C does, and give what was said; nothing may be left."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        said, _ = self.process.communicate(timeout=120)
        return said


def _ended(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()


@contextmanager
def serving_project(root: Path, environment: Mapping[str, str] | None = None) -> Iterator[Served]:
    """Run `cgal serve` on a project, on two free ports, with more variables in its environment."""
    ports = [free_port(), free_port()]
    options = ["--root", str(root), "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "serve", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=clean_environment() | dict(environment or {}),
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    try:
        said = []
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if "Ctrl-C" in line:
                break
        else:
            raise AssertionError("".join(said))
        yield Served(root, said[0].split()[1], said[1].split()[1].split("/#")[0], process, environment or {})
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(120)


def end_with_parent() -> None:
    """Let a process that a test has started get SIGINT when the test's own process is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGINT)


def clean_environment() -> dict[str, str]:
    """The environment without what this machine says of servers and stores."""
    own = ("PREFECT_", "MLFLOW_", "AWS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return kept | {"PYTHONUNBUFFERED": "1", "COLUMNS": "200"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any], what: str | Callable[[], str], seconds: float = 120) -> None:
    """Wait for a condition; `what` says what was never seen, at that moment if it is a function."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never seen: {what if isinstance(what, str) else what()}"
        time.sleep(0.5)
