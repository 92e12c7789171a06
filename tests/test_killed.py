"""Killed is not lost: `kill -9` wherever a campaign is, and it still ends with the bytes of an undisturbed one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flows.versioning import Repository
from tests.conftest import ONE_ROUND

WHERE = [
    "train-r000 starts",
    "benchmark-r000 starts",
    "label-r000 starts",
    "✓ label-r000",  # while the round is published
    "published small/round-000",  # while MLflow is told and the labels are appended
]
"""What the campaign says just before it is killed."""


def start(root: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "flows.cli", "run", "--root", str(root)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def kill_when(root: Path, text: str) -> None:
    process = start(root)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            process.kill()  # the process alone: its embedded server and its oracle workers are orphans now
            break
    process.wait()
    assert process.returncode == -signal.SIGKILL, f"ended before it said {text!r}:\n{said}"


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
def test_killed_campaign_ends_with_the_same_bytes(make_project: Callable[..., Path], undisturbed: Path) -> None:
    disturbed = make_project("disturbed", campaign=ONE_ROUND)
    for text in WHERE:
        kill_when(disturbed, text)
    said = finish(disturbed)
    assert "train-r000" not in said, "a finished round was run again"

    assert not alive(disturbed), "a killed campaign left processes behind"

    expected, found = (Repository(root).published("small") for root in (undisturbed, disturbed))
    assert [entry.tag for entry in found] == ["small/round-000", "small/round-001"]
    assert [entry.data_md5 for entry in found] == [entry.data_md5 for entry in expected]
    assert [entry.model_md5 for entry in found] == [entry.model_md5 for entry in expected]


@pytest.mark.slow
def test_a_second_campaign_in_one_copy_is_told_who_holds_the_lock(make_project: Callable[..., Path]) -> None:
    root = make_project()
    first = start(root)
    try:
        assert first.stdout is not None
        for line in first.stdout:
            if "train-r000 starts" in line:
                break
        second = start(root)
        said, _ = second.communicate(timeout=120)
        assert second.returncode == 1
        assert str(first.pid) in said
        assert "Traceback" not in said
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
