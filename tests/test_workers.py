"""Processes that fail, crash and are killed."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from cgal.all_atom.workers import run_in_processes
from cgal.errors import BadFile, CgalError


def work(task: str, attempt: int, announce, *, folder: Path) -> None:
    """Do what the task's name says, leaving a file for each try."""
    announce("at work")
    (folder / f"{task}-{attempt}-{len(list(folder.iterdir()))}").touch()
    tries = len(list(folder.glob(f"{task}-*")))
    if task == "permanent":
        error = CgalError("whatever the seed")
        error.permanent = True
        raise error
    if task == "fails":
        raise ValueError("this cannot be")
    if task == "crashes" or (task == "killed-once" and tries == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "disk":
        raise BadFile("disk full")


def test_every_task_ends_with_an_outcome_whatever_the_others_do(tmp_path: Path) -> None:
    """A failing task is tried as attempt 0 and 1, a permanent one once; one that was killed twice as attempt 0."""
    tasks = ["good", "fails", "crashes", "killed-once", "last", "permanent"]
    found = {outcome.index: outcome for outcome in run_in_processes(partial(work, folder=tmp_path), tasks, workers=2)}
    assert sorted(found) == [0, 1, 2, 3, 4, 5]
    assert [found[index].reason for index in (0, 3, 4)] == [None] * 3
    assert found[1].reason == "ValueError: this cannot be"
    assert found[2].reason == "its process died (signal SIGKILL)"
    assert found[2].stage == "at work"
    assert found[5].reason == "whatever the seed"
    tries = sorted(path.name.rsplit("-", 1)[0] for path in tmp_path.iterdir())
    assert tries == sorted(
        [
            "good-0",
            "last-0",
            "fails-0",
            "fails-1",
            "crashes-0",
            "crashes-0",
            "killed-once-0",
            "killed-once-0",
            "permanent-0",
        ]
    )


def test_a_full_disk_ends_the_batch(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="disk full"):
        list(run_in_processes(partial(work, folder=tmp_path), ["disk"], workers=1))


def test_no_task_no_process(tmp_path: Path) -> None:
    assert list(run_in_processes(partial(work, folder=tmp_path), [], workers=2)) == []
