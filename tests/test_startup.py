"""Laws of starting: what a command must not import, and that the embedded server ends with its run."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.serving.startup import PrefectServer, ServerUnavailable, start_prefect
from flows.settings import use_project_settings

REPOSITORY = Path(__file__).parents[1]
WORKFLOW = {"prefect", "dvc", "mlflow", "sqlalchemy", "httpx"}
SCIENCE = {"numpy", "scipy", "torch", "h5py", "matplotlib", "mdtraj", "openmm", "schnetpack", "deeptime", "ot", "numba"}
TEXT = {"rich", "pydantic", "yaml"}

PROBE = """
import atexit, sys
atexit.register(lambda: print("imported:", *sorted(sys.modules), file=sys.stderr))
from flows.cli.main import main
main()
"""


def imported_by(*arguments: str, root: Path = REPOSITORY) -> set[str]:
    """Modules that a command has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], cwd=root, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("imported:")[2].split())


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPOSITORY)}


def test_help_imports_nothing_but_the_command_line() -> None:
    assert not imported_by("--help") & (WORKFLOW | SCIENCE | TEXT)


@pytest.mark.parametrize("command", ["run", "rounds", "stage", "reference"])
def test_help_of_a_command_imports_nothing_heavy(command: str) -> None:
    assert not imported_by(command, "--help") & (WORKFLOW | SCIENCE)


def test_listing_parameters_loads_no_science() -> None:
    assert not imported_by("params") & (WORKFLOW | SCIENCE)


def test_rounds_are_read_from_git_alone(make_project: Callable[..., Path]) -> None:
    root = make_project()
    heavy = SCIENCE - {"numpy", "h5py"}  # which the reading and writing of files shares with HDF5
    assert not imported_by("rounds", "--json", root=root) & (WORKFLOW | heavy | {"rich"})


def server_of(root: Path, then: str) -> tuple["subprocess.Popen[str]", psutil.Process]:
    """A process that starts the embedded server and goes on with `then`; and the server."""
    code = (
        "from pathlib import Path\nfrom flows.settings import use_project_settings\n"
        f"use_project_settings(Path({str(root)!r}))\n"
        "from flows.serving.startup import start_prefect\nserver = start_prefect()\n"
        f"print(server.process.pid, flush=True)\n{then}"
    )
    unset = {name: value for name, value in environment().items() if not name.startswith("PREFECT_")}
    run = subprocess.Popen([sys.executable, "-c", code], env=unset, cwd=root, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    return run, psutil.Process(int(run.stdout.readline()))


def test_server_answers_and_ends_with_its_run(tmp_path: Path) -> None:
    run, server = server_of(tmp_path, "server.wait()\nprint(server.up)")
    said, _ = run.communicate(timeout=300)
    assert said == "True\n"
    assert run.returncode == 0
    assert not server.is_running()


def test_server_ends_with_a_run_that_is_killed(tmp_path: Path) -> None:
    run, server = server_of(tmp_path, "import time\ntime.sleep(60)")
    run.send_signal(signal.SIGKILL)
    run.wait()
    server.wait(timeout=10)
    assert not server.is_running()


def test_no_server_is_started_beside_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example.invalid/api")
    use_project_settings(tmp_path)
    assert start_prefect().process is None
    assert os.environ["PREFECT_API_URL"] == "http://prefect.example.invalid/api"


def test_a_server_that_dies_is_one_clear_error(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    dead.wait()
    with pytest.raises(ServerUnavailable, match=r"exit code 3; see .*server\.log"):
        PrefectServer(dead, "http://127.0.0.1:1/api", tmp_path / "server.log").wait()
