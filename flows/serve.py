"""`cgal serve`: Prefect and MLflow servers and the workers of both pools, on loopback, started and stopped as one."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Self
from urllib.error import URLError
from urllib.request import urlopen

from filelock import FileLock, Timeout

from cgal.errors import BadFile, CgalError
from cgal.files import read_json, write_json
from flows.tracking import experiment_page, server_command

__all__ = ["ServeFailed", "serve"]

HOST = "127.0.0.1"
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0
DEFAULTS = {"PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false"}
LOGGED = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO", "PREFECT_LOGGING_SERVER_LEVEL": "WARNING"}
"""Each part has a log of its own, where its faults must be found."""

LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


class ServeFailed(CgalError):
    """A part of what `cgal serve` runs did not start or died; the rest was stopped."""


@dataclass(frozen=True)
class Part:
    """A process of the whole: what it is called, how it is started, and how one sees that it is at work."""

    name: str
    command: tuple[str, ...]
    is_up: Callable[[], bool]


@dataclass
class Supervisor:
    """Starts parts, and on leaving stops all that they have started: the last ones first."""

    logs: Path
    _running: "list[dict[Part, subprocess.Popen[bytes]]]" = field(default_factory=list)

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # stopping is under way
        for processes in reversed(self._running):
            _stop_groups([*processes.values()])

    def start(self, *parts: Part) -> None:
        """Start parts side by side and wait until all are at work; raises ServeFailed when one is not."""
        self._running.append({})
        for part in parts:
            self._running[-1][part] = self._launch(part)
        deadline = monotonic() + START_TIMEOUT_S
        for part in parts:
            while not part.is_up():
                self.check()
                if monotonic() > deadline:
                    raise ServeFailed(f"{part.name} was not up in {START_TIMEOUT_S:.0f} s; see {self._log(part)}")
                sleep(0.3)

    def check(self) -> None:
        """Raise ServeFailed when a part has died."""
        for part, process in (pair for processes in self._running for pair in processes.items()):
            if process.poll() is not None:
                raise ServeFailed(
                    f"{part.name} stopped ({_how_it_ended(process.returncode)}); see {self._log(part)}. The rest is "
                    "stopped too; 'cgal serve' goes on with what was at work"
                )

    def _launch(self, part: Part) -> "subprocess.Popen[bytes]":
        with self._log(part).open("wb") as log:
            return subprocess.Popen(
                part.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=DEFAULTS | os.environ | LOGGED,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def _log(self, part: Part) -> Path:
        return self.logs / f"{part.name.lower().replace(' ', '-')}.log"


def serve(root: Path, protein: str, prefect_port: int, mlflow_port: int) -> None:
    """Run both servers and both workers until Ctrl-C or SIGTERM.

    State lies in `.cgal/prefect` (and MLflow's where embedded runs keep it), logs in `.cgal/logs`. Raises ServeFailed
    naming the part that did not start or that died, or saying who serves the project already.
    """
    prefect, mlflow = (f"http://{HOST}:{port}" for port in (prefect_port, mlflow_port))
    os.environ["PREFECT_API_URL"] = f"{prefect}/api"  # before Prefect's client is imported
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # SIGINT too: a shell starts background jobs with it ignored
    with _alone(root, f"Prefect {prefect}, MLflow {mlflow}"):
        for name, port in (("Prefect", prefect_port), ("MLflow", mlflow_port)):
            _require_free(name, port)
        try:
            with Supervisor(root / ".cgal" / "logs") as parts:
                _start_all(parts, root, prefect_port, mlflow_port)
                print(f"Prefect  {prefect}", flush=True)
                print(f"MLflow   {experiment_page(mlflow, protein)}", flush=True)
                print("Ctrl-C stops servers and workers.", flush=True)
                while True:
                    parts.check()
                    sleep(1.0)
        except KeyboardInterrupt:
            print("stopped", flush=True)


def _start_all(parts: Supervisor, root: Path, prefect_port: int, mlflow_port: int) -> None:
    server = (sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(prefect_port))
    parts.start(
        Part("Prefect server", server, lambda: _answers(f"http://{HOST}:{prefect_port}/api/health")),
        Part(
            "MLflow server",
            tuple(server_command(root, host=HOST, port=mlflow_port)),
            lambda: _answers(f"http://{HOST}:{mlflow_port}/health"),
        ),
    )
    from flows.pools import POOLS, provision

    provision(root)
    parts.start(*(_worker(root, pool) for pool in POOLS))


def _worker(root: Path, pool: str) -> Part:
    from flows.pools import worker_is_up

    now = datetime.now(UTC)
    command = (sys.executable, "-m", "flows.cli", "worker", pool, "--root", str(root))
    return Part(f"{pool} worker", command, lambda: worker_is_up(pool, now))


@contextmanager
def _alone(root: Path, where: str) -> Iterator[None]:
    """Hold the project's lock; raises ServeFailed with the holder when it is served already."""
    note = root / ".cgal" / "serve.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / ".cgal" / "serve.lock", timeout=0):
            write_json(note, {"pid": os.getpid(), "where": where})
            try:
                yield
            finally:
                note.unlink(missing_ok=True)
    except Timeout:
        who = ""
        with suppress(BadFile, KeyError):
            who = " by process {pid}: {where}".format(**read_json(note))
        raise ServeFailed(f"{root} is served already{who}") from None


def _require_free(name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            option = f"--{name.lower()}-port"
            raise ServeFailed(
                f"port {port} is taken, by a server that runs already or another program; {option} chooses another"
            ) from None


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2):  # noqa: S310 - a loopback address of our own making
            return True
    except (URLError, OSError):
        return False


def _end_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # even when `cgal serve` is killed


def _how_it_ended(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _stop_groups(processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Ask parts and all that they started to end, wait, and kill what is left."""
    for process in processes:
        _signal_group(process, signal.SIGTERM)
    deadline = monotonic() + STOP_TIMEOUT_S
    while monotonic() < deadline and any(_group_is_alive(process) for process in processes):
        sleep(0.1)
    for process in processes:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _group_is_alive(process: "subprocess.Popen[bytes]") -> bool:
    process.poll()  # a dead child would else count as alive
    return _signal_group(process, 0)


def _signal_group(process: "subprocess.Popen[bytes]", number: int) -> bool:
    """Send a signal to all that a part has started, and tell whether there was anyone to get it."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True
