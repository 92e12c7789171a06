"""MLflow in a process of its own: the same results and errors, and a kill of that process costs one try."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flows.tracking.process import log_round, warm_up
from flows.tracking.runs import TrackingConflict, TrackingUnavailable
from tests.conftest import REPOSITORY
from tests.test_tracking import make_record


def processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_errors_come_back_and_a_killed_process_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    warm_up(tmp_path)
    record = make_record(tmp_path, 0)
    ids = log_round(tmp_path, record)
    with pytest.raises(TrackingConflict, match="another name"):
        log_round(tmp_path, replace(record, git_commit="f" * 40))

    (process,) = processes()
    process.kill()
    process.wait()
    with pytest.raises(TrackingUnavailable, match="was killed"):
        log_round(tmp_path, record)
    assert log_round(tmp_path, record) == ids


def test_process_ends_with_a_run_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "if __name__ == '__main__':\n"
        "    from flows.tracking.process import warm_up\n"
        f"    warm_up(Path({str(tmp_path)!r}))\n"
        "    print('started', flush=True)\n    time.sleep(60)\n"
    )
    path = tmp_path / "run.py"
    path.write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, env=environment)
    assert run.stdout is not None
    assert run.stdout.readline() == b"started\n"
    children = psutil.Process(run.pid).children()
    assert children
    run.send_signal(signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


OPEN_AT = """
import sys, time
from pathlib import Path
import flows.tracking.runs as runs
runs._set_environment()
import mlflow
print("ready", flush=True)
sys.stdin.readline()
runs.open_experiment(Path(sys.argv[1]), "chignolin")
"""


def test_of_two_processes_that_make_the_tables_at_once_one_waits(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_AT, str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in pair:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in pair:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=120)[1] for process in pair if process.wait(timeout=120)] == []


def test_tables_that_a_kill_left_half_made_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow itself would stop at "table already exists" for ever."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code = f"from pathlib import Path; from flows.tracking.runs import warm_up; warm_up(Path({str(tmp_path)!r}))"
    aside = tmp_path / ".cgal" / "mlflow.db.new"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)
    while not (aside.is_file() and aside.stat().st_size > 0):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    record = make_record(tmp_path, 0)
    assert log_round(tmp_path, record) == log_round(tmp_path, record)
    assert not aside.exists()
