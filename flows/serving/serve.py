"""`cgal serve`: Prefect and MLflow servers and the workers of both pools, on loopback, started and stopped as one.

A server that the environment names (`PREFECT_API_URL`, `MLFLOW_TRACKING_URI`) is used where it is; the rest is started
here, on the databases and buckets that the environment names (docs/operations.md).
"""

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
from secrets import token_hex
from time import monotonic, sleep
from typing import BinaryIO, Self
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from filelock import FileLock, Timeout

from cgal.errors import BadFile, CgalError
from cgal.files import read_json, write_json
from flows.settings import without_passwords
from flows.tracking.runs import experiment_page, server_command

__all__ = ["SERVERS_ONLY", "ServeFailed", "prefect_command", "serve", "worker_command"]

LOOPBACK = "127.0.0.1"
LOCAL = (LOOPBACK, "localhost", "::1")
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0
LARGE_LOG_BYTES = 10 * 2**20
OLD_LOGS = 2
DEFAULTS = {
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # beside the science the server may have to wait for a core
    "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
}
LOGGED = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO", "PREFECT_LOGGING_SERVER_LEVEL": "WARNING"}
"""Each part has a log of its own, where its faults must be found."""

SERVERS_ONLY = (
    "PREFECT_SERVER_DATABASE_",
    "PREFECT_API_DATABASE_",
    "PREFECT_SERVER_API_AUTH_STRING",
    "MLFLOW_BACKEND_STORE_URI",
    "MLFLOW_AUTH_",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
)
"""What variables that a worker has no need of begin with: they hold passwords of the servers' own stores."""

PASSWORDS = ("PREFECT_SERVER_API_AUTH_STRING", "MLFLOW_AUTH_ADMIN_PASSWORD")

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
    is_server: bool = True

    def environment(self) -> dict[str, str]:
        """What the part gets to know; workers do not see the servers' passwords."""
        return DEFAULTS | {name: value for name, value in os.environ.items() if self._may_see(name)} | LOGGED

    def _may_see(self, name: str) -> bool:
        return self.is_server or not name.startswith(SERVERS_ONLY)


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
        with open_log(self._log(part)) as log:
            return subprocess.Popen(
                part.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.logs.parent,  # where MLflow keeps its users when it asks for passwords
                env=part.environment(),
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def _log(self, part: Part) -> Path:
        return self.logs / f"{part.name.lower().replace(' ', '-')}.log"


def prefect_command(host: str = LOOPBACK, port: int = 4200) -> list[str]:
    """Command line of a Prefect server (page and API); the environment names its database."""
    module = "flows.serving.prefect_server"
    return [sys.executable, "-m", module, "server", "start", "--host", host, "--port", str(port)]


def worker_command(root: Path, pool: str) -> list[str]:
    """Command line of a worker of a project; the environment names the servers."""
    return [sys.executable, "-m", "flows.cli", "worker", pool, "--root", str(root)]


def serve(root: Path, protein: str, prefect_port: int, mlflow_port: int, host: str = LOOPBACK) -> None:
    """Run both servers and both workers until Ctrl-C or SIGTERM.

    State lies in `.cgal/prefect` (and MLflow's where embedded runs keep it), logs in `.cgal/logs`, unless the
    environment names other stores. Raises ServeFailed naming the part that did not start or that died, saying who
    serves the project already, or when others could reach the servers without a password.
    """
    _require_passwords(host)
    _name_store()
    servers = _servers(root, host, prefect_port, mlflow_port)
    _name_servers(*(server.address for server in servers))
    prefect, mlflow = (without_passwords(server.address) for server in servers)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # SIGINT too: a shell starts background jobs with it ignored
    with _alone(root, f"Prefect {prefect}, MLflow {mlflow}"):
        for server in servers:
            server.require_free(host)
        try:
            with Supervisor(root / ".cgal" / "logs") as parts:
                _start_all(parts, root, servers)
                print(f"Prefect  {prefect}", flush=True)
                print(f"MLflow   {experiment_page(mlflow, protein)}", flush=True)
                print("Ctrl-C stops servers and workers.", flush=True)
                while True:
                    parts.check()
                    sleep(1.0)
        except KeyboardInterrupt:
            print("stopped", flush=True)


@dataclass(frozen=True)
class Server:
    """Prefect's or MLflow's server: where it is found, and how it is started if the environment names no other."""

    name: str
    port: int
    health: str
    command: list[str]
    variable: str
    elsewhere: str = ""

    @property
    def address(self) -> str:
        """Where pages and API are, seen from this machine."""
        return self.elsewhere or f"http://{LOOPBACK}:{self.port}"

    def part(self) -> Part:
        """Make the part that runs it."""
        return Part(f"{self.name} server", tuple(self.command), self.answers)

    def answers(self) -> bool:
        """Whether it is at work."""
        return _answers(f"{self.address}{self.health}")

    def require_free(self, host: str) -> None:
        """Raise ServeFailed when its port is taken."""
        if not self.elsewhere:
            _require_free(self.name, host, self.port)

    def require_answer(self) -> None:
        """Raise ServeFailed when it should run elsewhere and does not answer."""
        if self.elsewhere and not self.answers():
            raise ServeFailed(
                f"no {self.name} server answers at {without_passwords(self.elsewhere)}, which {self.variable} names; "
                f"start it, or unset {self.variable} to have one started here"
            )


def _servers(root: Path, host: str, prefect_port: int, mlflow_port: int) -> tuple[Server, Server]:
    prefect = os.environ.get("PREFECT_API_URL", "").removesuffix("/").removesuffix("/api")
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "").removesuffix("/")
    mlflow = tracking if tracking.startswith("http") else ""  # else a database, which the server here shows
    return (
        Server(
            "Prefect", prefect_port, "/api/health", prefect_command(host, prefect_port), "PREFECT_API_URL",
            "" if _is_own(prefect, prefect_port) else prefect,
        ),
        Server(
            "MLflow", mlflow_port, "/health", server_command(root, host=host, port=mlflow_port), "MLFLOW_TRACKING_URI",
            "" if _is_own(mlflow, mlflow_port) else mlflow,
        ),
    )  # fmt: skip


def _is_own(address: str, port: int) -> bool:
    parts = urlsplit(address)
    return parts.hostname in LOCAL and parts.port == port


def _name_store() -> None:
    """Let the MLflow server show the database that campaigns write to, when the environment names one."""
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    if tracking and not tracking.startswith("http"):
        os.environ.setdefault("MLFLOW_BACKEND_STORE_URI", tracking)
    os.environ.setdefault("MLFLOW_FLASK_SERVER_SECRET_KEY", token_hex())  # signs forms, where it asks for passwords


def _name_servers(prefect: str, mlflow: str) -> None:
    """Let all that is started here find the servers; before Prefect's client is imported."""
    os.environ["PREFECT_API_URL"] = f"{prefect}/api"
    if "MLFLOW_BACKEND_STORE_URI" in os.environ:  # workers go through the server, which alone knows its stores
        os.environ.setdefault("MLFLOW_TRACKING_URI", mlflow)


def _require_passwords(host: str) -> None:
    missing = [name for name in PASSWORDS if not os.environ.get(name)]
    if host not in LOCAL and missing:
        raise ServeFailed(
            f"--host {host} lets others reach the servers, and whoever reaches Prefect runs programs here: set "
            f"{' and '.join(missing)} first (docs/operations.md), or leave --host out"
        )


def _start_all(parts: Supervisor, root: Path, servers: Sequence[Server]) -> None:
    for server in servers:
        server.require_answer()
    parts.start(*(server.part() for server in servers if not server.elsewhere))
    from flows.serving.pools import POOLS, provision

    provision(root)
    parts.start(*(_worker(root, pool) for pool in POOLS))


def _worker(root: Path, pool: str) -> Part:
    from flows.serving.pools import worker_is_up

    now = datetime.now(UTC)
    return Part(f"{pool} worker", tuple(worker_command(root, pool)), lambda: worker_is_up(pool, now), is_server=False)


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


def _require_free(name: str, host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            option = f"--{name.lower()}-port"
            raise ServeFailed(
                f"port {port} is taken, by a server that runs already or another program; {option} chooses another"
            ) from None


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2):  # noqa: S310 - an http address of ours or of the user's
            return True
    except (URLError, OSError):
        return False


def open_log(path: Path) -> BinaryIO:
    """Open a log to be appended to; one that has grown large becomes `<name>.1`, and that one `<name>.2`."""
    if path.is_file() and path.stat().st_size > LARGE_LOG_BYTES:
        for number in reversed(range(OLD_LOGS)):
            older = path.with_name(f"{path.name}.{number}") if number else path
            if older.is_file():
                os.replace(older, path.with_name(f"{path.name}.{number + 1}"))
    log = path.open("ab")
    log.write(f"--- {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: started\n".encode())
    log.flush()
    return log


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
