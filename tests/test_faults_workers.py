"""Workers that nobody supervises, as under systemd or in containers, when the Prefect server is away for a while."""

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from flows.serving.serve import prefect_command, worker_command
from flows.versioning import Repository
from tests.served import Served, alive, clean_environment, end_with_parent, free_port, wait_until
from tests.test_faults import is_at, slots_taken, unfinished

AWAY_S, STOP_S = 30.0, 15.0


@contextmanager
def running(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run a program in a group of its own, which ends with the test however that ends.

    It is told to end, and killed when it has not soon after, as systemd and Docker do: a Prefect worker that
    had lost its server for long now and then hangs there.
    """
    with log.open("a") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_S)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/api/health", timeout=10):
            return True
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_campaign_outlives_a_server_that_is_away_for_half_a_minute(
    make_project: Callable[..., Path], undisturbed: Path
) -> None:
    """Killed in training, back after 30 s: nobody else is started again, and nothing has been lost, no slot either."""
    short = {"name": "small", "rounds": 0}
    root = make_project("disturbed", campaign=short, execution={"retries": 2, "retry_delay_s": 0.5})
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = clean_environment() | {
        "PREFECT_HOME": str(root / ".cgal" / "prefect"),
        "PREFECT_API_URL": f"{address}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    (root / ".cgal" / "prefect").mkdir(parents=True)
    with ExitStack() as stack:
        server = running(prefect_command(port=port), environment, root / ".cgal" / "server.log")
        with server as process:
            wait_until(lambda: answers(address), "the server", 300)
            for pool in ("cgal-cpu", "cgal-gpu"):
                command = worker_command(root, pool)
                worker = stack.enter_context(running(command, environment, root / ".cgal" / f"{pool}.log"))
                served = Served(root, address, "", worker)
                check = [*command, "--check"]
                wait_until(lambda check=check: subprocess.run(check, env=environment).returncode == 0, pool, 300)
            second = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert "a worker of this pool is at work" in second.stderr
            served.start("active-learning", campaign="small", rounds=0)
            wait_until(lambda: is_at(served, "train-r000"), "training", 300)
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(AWAY_S)
        with running(prefect_command(port=port), environment, root / ".cgal" / "server.log"):
            wait_until(lambda: answers(address), "the server again", 300)
            wait_until(lambda: Repository(root).is_published("small", 0), "the closing round", 600)
            wait_until(lambda: not unfinished(served), lambda: f"the end of all runs: {unfinished(served)}", 300)
            with served.client() as client:
                assert slots_taken(client) == 0
            stack.close()
    assert not alive(root)
    found, wanted = (Repository(folder).published_round("small", 0) for folder in (root, undisturbed))
    assert (found.data_md5, found.model_md5) == (wanted.data_md5, wanted.model_md5)
