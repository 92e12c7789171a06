"""Killed is not lost: `kill -9` wherever a campaign is, and it still ends with the bytes of an undisturbed one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from flows.versioning import Repository
from tests.conftest import ONE_ROUND


def start(root: Path, output: int | None = None, prefect: str = "") -> "subprocess.Popen[str]":
    """Run the campaign, with its embedded server or with that at the address `prefect`."""
    command = [sys.executable, "-m", "flows.cli", "run", "--root", str(root)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    if prefect:
        environment["PREFECT_API_URL"] = prefect
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE if output is None else output,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def kill_when(root: Path, there: Callable[[str], object], prefect: str = "") -> None:
    """Run the campaign, and kill it as soon as something is there, or was said."""
    log = root.parent / "said"
    with log.open("w") as output:
        process = start(root, output.fileno(), prefect)
    while not there(log.read_text()):
        assert process.poll() is None, f"ended before it was killed:\n{log.read_text()}"
        time.sleep(0.01)  # a moment later the next file would be there
    process.kill()  # the process alone: its embedded server and its oracle workers are orphans now
    assert process.wait() == -signal.SIGKILL


def written_ns(file: Path) -> int:
    """When a file was written; 0 if there is none."""
    return file.stat().st_mtime_ns if file.exists() else 0


def epochs_of(state: Path) -> int:
    return len(torch.load(state, weights_only=True)["history"])


def alive(root: Path) -> list[str]:
    """Commands of the processes that belong to a project, by its PREFECT_HOME."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("PREFECT_HOME") == str(root / ".cgal" / "prefect"):
                found.append(" ".join(process.cmdline()))
    return found


def finish(root: Path) -> str:
    process = start(root)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_campaign_ends_with_the_same_bytes(
    make_project: Callable[..., Path], with_databases: Callable[[Path], Path], undisturbed: Path, prefect_address: str
) -> None:
    """Training goes on from the state that was saved, labels that are there stay, and a round is published once.

    The first life and the last have an embedded server, the others one that outlives them.
    """
    disturbed = with_databases(make_project("disturbed", campaign=ONE_ROUND))
    work = disturbed / ".cgal" / "work"
    state = work / "train" / "training.pt"
    kill_when(disturbed, lambda said: written_ns(state))
    epochs, written = epochs_of(state), written_ns(state)
    kill_when(disturbed, lambda said: written_ns(state) != written, prefect_address)
    assert epochs_of(state) > epochs
    kill_when(disturbed, lambda said: [*work.glob("label-r000/frame-*.h5")], prefect_address)
    label = next(work.glob("label-r000/frame-*.h5"))
    labelled = written_ns(label)
    kill_when(disturbed, lambda said: "✓ label-r000" in said, prefect_address)  # while the round is published
    assert written_ns(label) == labelled
    told = "published small/round-000"  # while MLflow is told, and labels are appended
    kill_when(disturbed, lambda said: told in said, prefect_address)
    said = finish(disturbed)
    assert "train-r000" not in said, "a finished round was run again"

    assert not alive(disturbed), "a killed campaign left processes behind"

    expected, found = Repository(undisturbed), Repository(disturbed)
    tags = [entry.tag for entry in found.published("small")]
    assert tags == ["small/round-000", "small/round-001"]
    for file in ("data.dvc", "dvc.lock"):
        assert found.read_round_files(tags, file) == expected.read_round_files(tags, file)


@pytest.mark.slow
def test_a_second_campaign_in_one_copy_is_told_who_holds_the_lock(
    make_project: Callable[..., Path], prefect_address: str
) -> None:
    root = make_project()
    first = start(root, prefect=prefect_address)
    try:
        assert first.stdout is not None
        for line in first.stdout:
            if "train-r000 starts" in line:
                break
        second = start(root, prefect=prefect_address)
        said, _ = second.communicate(timeout=120)
        assert second.returncode == 1
        assert str(first.pid) in said
        assert "Traceback" not in said
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
