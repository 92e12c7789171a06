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
SCIENCE = {"numpy", "scipy", "torch", "h5py", "matplotlib", "mdtraj", "openmm", "numba"} | {
    "schnetpack.properties", "deeptime.base", "ot.utils",  # the packages themselves may be there, unused: cgal.deferred
}  # fmt: skip
UNUSED = {"sklearn", "pandas", "pytorch_lightning", "ase", "scipy.stats"}
"""What schnetpack, deeptime and POT would import beside what a round uses of them."""
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


def printed_by(code: str) -> set[str]:
    """Words that a process of this code prints."""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_stages_import_only_what_they_use_of_large_packages() -> None:
    """Training on a network, simulation and benchmark; and what else the user wants of such a package is all there."""
    imported = printed_by(
        "import sys, flows.campaign.stages, cgal.training.linear_populations, cgal.benchmark.suite\n"
        "from cgal.schnet.network import CGSchNet\nfrom cgal.painn import CGPaiNN\n"
        "from cgal.params import PaiNNParams, SchNetParams\n"
        "CGSchNet(SchNetParams())\nCGPaiNN(PaiNNParams())\nprint(*sys.modules)"
    )
    assert not imported & UNUSED
    assert imported >= {"schnetpack.nn", "deeptime.decomposition", "ot.lp"}


def test_a_deferred_package_is_the_users_own() -> None:
    """Classes imported before and after are the same, names of its `__init__` come, and networks can be pickled."""
    assert printed_by(
        "import pickle, threading\nfrom cgal.params import SchNetParams\nfrom cgal.schnet.network import CGSchNet\n"
        "network = CGSchNet(SchNetParams())\nfound = []\n"
        "threads = [threading.Thread(target=lambda: found.append(schnetpack.AtomisticTask)) for _ in range(4)]\n"
        "import schnetpack\n[thread.start() for thread in threads]\n[thread.join() for thread in threads]\n"
        "from schnetpack import AtomisticTask, properties\nfrom schnetpack.nn.base import Dense\n"
        "print(found == 4 * [AtomisticTask], isinstance(network.readout[0], schnetpack.nn.Dense),\n"
        "      schnetpack.nn.Dense is Dense, schnetpack.__version__ > '2', not hasattr(schnetpack, 'nothing'),\n"
        "      type(pickle.loads(pickle.dumps(network.readout[0]))) is Dense)"
    ) == {"True"}


def test_server_answers_and_ends_with_a_run_that_is_killed(tmp_path: Path) -> None:
    """Of a run that ends by itself, `tests/test_killed.py` asks the same."""
    code = (
        "from pathlib import Path\nfrom flows.settings import use_project_settings\n"
        f"use_project_settings(Path({str(tmp_path)!r}))\n"
        "from flows.serving.startup import start_prefect\nserver = start_prefect()\n"
        "server.wait()\nprint(server.process.pid, server.up, flush=True)\nimport time\ntime.sleep(60)"
    )
    unset = {name: value for name, value in environment().items() if not name.startswith("PREFECT_")}
    run = subprocess.Popen([sys.executable, "-c", code], env=unset, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    number, up = run.stdout.readline().split()
    assert up == "True"
    server = psutil.Process(int(number))
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
