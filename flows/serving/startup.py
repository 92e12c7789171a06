"""How a run starts: the embedded Prefect server in one process, the imports of the science in the other, side by side.

Both take many seconds of CPU time. The server is started before anything heavy is imported, and it ends when the run
does, however that ends.
"""

import atexit
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from threading import Thread
from urllib.error import URLError
from urllib.request import urlopen

from cgal.all_atom.workers import die_with
from cgal.errors import CgalError

__all__ = ["PrefectServer", "ServerUnavailable", "load_campaign", "start_prefect"]

HOST = "127.0.0.1"
POLL_S = 0.1
STOP_S = 5.0

NEEDED = ("prefect", "flows.campaign.active_learning")
"""What a campaign imports before its first stage; what one stage alone needs is imported there."""

SERVER_SETTINGS = {"PREFECT_API_BLOCKS_REGISTER_ON_START": "false"}
"""No flow of ours uses Prefect's blocks; `cgal serve` registers them for its page."""


class ServerUnavailable(CgalError):
    """The embedded Prefect server did not come up."""


@dataclass
class PrefectServer:
    """A server process that was started and may not answer yet; `process` is None for a server of the user's own."""

    process: "subprocess.Popen[bytes] | None" = None
    address: str = ""
    log: Path = field(default_factory=Path)

    @property
    def up(self) -> bool:
        """Whether the server answers; raises ServerUnavailable when its process has died."""
        if self.process is None:
            return True
        if self.process.poll() is not None:
            raise ServerUnavailable(
                f"Prefect's embedded server stopped with exit code {self.process.returncode}; see {self.log}"
            )
        try:
            with urlopen(f"{self.address}/health", timeout=2):  # noqa: S310 - a loopback address of our own making
                return True
        except (URLError, OSError):
            return False

    def wait(self) -> None:
        """Return when the server answers; raises ServerUnavailable when it does not in time."""
        limit_s = float(os.environ.get("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180"))
        deadline = time.monotonic() + limit_s
        while not self.up:
            if time.monotonic() > deadline:
                raise ServerUnavailable(
                    f"Prefect's embedded server did not answer in {limit_s:.0f} s; see {self.log}, or raise "
                    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"
                )
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End the process, if it is ours."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_prefect() -> PrefectServer:
    """Start the embedded Prefect server in the background; it is stopped when this process ends.

    Prefect would start it itself, but only after everything else, and it would import its server's code here too. With
    a server of the user's own (`PREFECT_API_URL`, a Prefect profile) nothing is started. Call this before Prefect is
    imported, which finds the server by `PREFECT_API_URL`.
    """
    if _has_own_settings():
        return PrefectServer()
    server = _start()
    os.environ["PREFECT_API_URL"] = server.address
    atexit.register(server.stop)  # before Prefect registers its own: its last log lines go out first
    return server


def load_campaign(server: PrefectServer) -> None:
    """Import what a campaign needs while its server starts, and wait until that answers."""
    for name in NEEDED:
        import_module(name)
    server.wait()


def _has_own_settings() -> bool:
    named = "PREFECT_API_URL" in os.environ or "PREFECT_PROFILE" in os.environ
    files = (Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser() / "profiles.toml", Path("prefect.toml"))
    return named or any(file.is_file() for file in files)


def _start() -> PrefectServer:
    log = Path(os.environ["PREFECT_HOME"]) / "server.log"
    with socket.socket() as listener, log.open("wb") as output:
        listener.bind((HOST, 0))  # the child gets the socket itself, so that nobody can take the port in between
        address = f"http://{HOST}:{listener.getsockname()[1]}/api"
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.serving.startup", str(listener.fileno()), str(os.getpid())],
            env=os.environ | SERVER_SETTINGS | {"PYTHONPATH": _with_this_package()},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(listener.fileno(),),
            start_new_session=True,  # Ctrl-C is for the run, which stops the server after it has said its last words
        )
    return PrefectServer(process, address, log)


def _with_this_package() -> str:
    return os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])


def _serve(listener: int, parent: int) -> None:
    Thread(target=die_with, args=(parent,), daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    from flows.serving.one_writer import waiting_writers

    with waiting_writers():
        uvicorn.run(create_app(ephemeral=True, final=True), fd=listener, log_level="error", lifespan="on")


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
