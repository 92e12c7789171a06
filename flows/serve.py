"""The web pages of a project on loopback: Prefect's runs and MLflow's rounds, over the state that campaigns leave."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep
from urllib.error import URLError
from urllib.request import urlopen

from cgal.errors import CgalError
from flows.tracking import experiment_page, server_command

__all__ = ["serve"]

HOST = "127.0.0.1"
START_TIMEOUT_S = 180.0


def serve(root: Path, protein: str, prefect_port: int, mlflow_port: int) -> None:
    """Start both servers, wait until they answer, and stop them on Ctrl-C.

    Raises CgalError naming the part that did not start or that died.
    """
    python = Path(sys.executable).parent
    commands = {
        "Prefect": [str(python / "prefect"), "server", "start", "--host", HOST, "--port", str(prefect_port)],
        "MLflow": server_command(root, host=HOST, port=mlflow_port),
    }
    health = {
        "Prefect": f"http://{HOST}:{prefect_port}/api/health",
        "MLflow": f"http://{HOST}:{mlflow_port}/health",
    }
    logs = root / ".cgal" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PREFECT_API_URL": f"http://{HOST}:{prefect_port}/api"}
    parts: dict[str, subprocess.Popen[bytes]] = {}
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)  # SIGINT too: a shell starts background jobs with it ignored
    try:
        for name, command in commands.items():
            with (logs / f"{name.lower()}.log").open("wb") as log:
                parts[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        for name, part in parts.items():
            _wait_until_healthy(name, part, health[name], logs)
        print(f"Prefect  http://{HOST}:{prefect_port}/runs", flush=True)
        print(f"MLflow   {experiment_page(f'http://{HOST}:{mlflow_port}', protein)}", flush=True)
        print("Ctrl-C stops both.", flush=True)
        _watch(parts, logs)
    except KeyboardInterrupt:
        print("stopping", flush=True)
    finally:
        _stop(parts)


def _wait_until_healthy(name: str, part: "subprocess.Popen[bytes]", url: str, logs: Path) -> None:
    deadline = monotonic() + START_TIMEOUT_S
    while monotonic() < deadline:
        _raise_if_dead(name, part, logs)
        try:
            with urlopen(url, timeout=2):  # noqa: S310 - a loopback address of our own making
                return
        except (URLError, OSError):
            sleep(0.5)
    raise CgalError(f"{name} did not answer at {url} in {START_TIMEOUT_S:.0f} s; see {logs / f'{name.lower()}.log'}")


def _watch(parts: "dict[str, subprocess.Popen[bytes]]", logs: Path) -> None:
    while True:
        for name, part in parts.items():
            _raise_if_dead(name, part, logs)
        sleep(1.0)


def _raise_if_dead(name: str, part: "subprocess.Popen[bytes]", logs: Path) -> None:
    if part.poll() is not None:
        raise CgalError(f"{name} stopped with exit code {part.returncode}; see {logs / f'{name.lower()}.log'}")


def _stop(parts: "dict[str, subprocess.Popen[bytes]]") -> None:
    for part in parts.values():
        if part.poll() is None:
            os.killpg(part.pid, signal.SIGTERM)
    for part in parts.values():
        try:
            part.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(part.pid, signal.SIGKILL)
            part.wait()
