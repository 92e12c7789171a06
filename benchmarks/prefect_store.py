"""Prefect on SQLite as `cgal serve` starts it: two workers, clicks on the page, a schedule, on a machine that is busy.

The peer is `prefect server start` as it comes. A write that finds the database locked is refused with status 503.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import httpx
import psutil

from benchmarks.harness import Result
from flows.serving.serve import DEFAULTS, prefect_command

SECONDS = 45.0
PORT = 4377
CLICK_S = 0.3
START_TIMEOUT_S = 120.0
PLAIN = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(PORT)]
WORKER = """
import sys, time
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact

@task
def stage(number):
    get_run_logger().info("stage %d", number)
    create_markdown_artifact("x" * 2000, key="stage")

@flow
def one_round():
    for number in range(8):
        stage(number)

until, done = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < until:
    one_round()
    done += 1
print(done)
"""
"""What a worker's engine does to the server in a round: eight tasks, each with a line of log and an artifact."""


class Load(NamedTuple):
    """Runs that the workers finished, clicks by what came of them, and the slowest of those that came through."""

    runs: tuple[int, ...]
    answers: Counter[str]
    slowest_s: float

    @property
    def refused(self) -> str:
        """Clicks that were not answered as they should be, of all."""
        return f"{self.answers.total() - self.answers['fine']} of {self.answers.total()} clicks refused"


def results() -> Iterator[Result]:
    """Runs a minute with two workers, beside plain Prefect; and with four and eight."""
    ours, plain = _load(prefect_command(port=PORT), 2), _load(PLAIN, 2)
    per_minute = 60 / SECONDS
    yield Result(
        "sqlite_runs_2_workers",
        sum(ours.runs) * per_minute,
        sum(plain.runs) * per_minute,
        sum(ours.runs) / max(1, sum(plain.runs)),
        "runs/min",
        f"busy cores; {ours.refused}, slowest {ours.slowest_s:.1f} s; runs by worker {ours.runs}; "
        f"peer, plain Prefect: {plain.refused}, {plain.runs}",
    )
    for workers in (4, 8):
        more = _load(prefect_command(port=PORT), workers)
        note = f"busy cores; {more.refused}, slowest {more.slowest_s:.1f} s"
        yield Result(f"sqlite_runs_{workers}_workers", sum(more.runs) * per_minute, None, None, "runs/min", note)


def _load(command: Sequence[str], workers: int) -> Load:
    """Start a server on a new database, load it, stop it."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        environment = (
            DEFAULTS
            | os.environ
            | {
                "PREFECT_HOME": folder,
                "PREFECT_API_URL": f"http://127.0.0.1:{PORT}/api",
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            }
        )
        start = partial(_process, environment=environment, log=Path(folder) / "log")
        stack.enter_context(start(command))
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{PORT}/api", timeout=100))
        _wait(client)
        for _ in range(os.cpu_count() or 1):
            stack.enter_context(start([sys.executable, "-c", "while True: pass"]))
        engines = [
            stack.enter_context(start([sys.executable, "-c", WORKER, str(SECONDS)], output=subprocess.PIPE))
            for _ in range(workers)
        ]
        answers, slowest_s = _click(client)
        runs = tuple(int((engine.communicate()[0] or b"0").split()[-1]) for engine in engines)
        return Load(runs, answers, slowest_s)


def _click(client: httpx.Client) -> tuple[Counter[str], float]:
    """A schedule, then what a page does on clicks: lists of runs and artifacts, and new runs."""
    while (made := client.post("/flows/", json={"name": "click"})).is_error:
        time.sleep(CLICK_S)
    flow = made.json()["id"]
    schedule = {"schedule": {"interval": 5.0}, "active": True}
    often = {"name": "often", "flow_id": flow, "schedules": [schedule]}
    while client.post("/deployments/", json=often).is_error:  # the peer may refuse it
        time.sleep(CLICK_S)
    clicks = (
        ("/flow_runs/filter", {"limit": 50}),
        ("/flow_runs/", {"flow_id": flow, "state": {"type": "SCHEDULED"}}),
        ("/artifacts/filter", {"limit": 20}),
    )
    answers: Counter[str] = Counter()
    slowest_s, until = 0.0, time.monotonic() + SECONDS
    while time.monotonic() < until:
        for path, content in clicks:
            began = time.monotonic()
            answer = _answer(client, path, content)
            answers[answer] += 1
            slowest_s = max(slowest_s, time.monotonic() - began)
        time.sleep(CLICK_S)
    return answers, slowest_s


def _answer(client: httpx.Client, path: str, content: object) -> str:
    try:
        answer = client.post(path, json=content, headers={"Connection": "close"})
    except httpx.TransportError as error:
        return type(error).__name__
    return "fine" if answer.is_success else str(answer.status_code)


def _wait(client: httpx.Client) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        try:
            if client.get("/health").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    raise TimeoutError(f"the Prefect server was not up in {START_TIMEOUT_S:.0f} s")


@contextmanager
def _process(
    command: Sequence[str], *, environment: dict[str, str], log: Path, output: int | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process, and stop it and its children at the end."""
    with log.open("ab") as stream:
        process = subprocess.Popen(command, env=environment, stdout=output or stream, stderr=stream)
    try:
        yield process
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.stdout.writelines(f"{result}\n" for result in results())
