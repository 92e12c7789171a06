"""Work spread over processes, any of which may crash or be killed without harm to the rest.

Whoever calls for work may spread it otherwise: a `FanOut` does the same somewhere else, such as on a cluster.

`concurrent.futures.ProcessPoolExecutor` gives up as a whole when one of its processes dies; here the task that it was
at is tried again in a new process, and the others never notice. A process ends when its parent does, however that ends.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any

from cgal.errors import BadFile, CgalError

__all__ = ["Announce", "FanOut", "Job", "Outcome", "Work", "attempt_task", "die_with", "run_in_processes"]

type Announce = Callable[[str], None]
type Work[Task] = Callable[[Task, int, Announce], None]
"""`work(task, attempt, announce)`: does one task, says by `announce(stage)` how far it is, raises when it cannot."""

type FanOut = Callable[..., Iterator["Outcome"]]
"""`fan_out(work, tasks, workers=n)` does each task somewhere, at most `n` at a time, and yields outcomes as they come.

Seeds depend on task and attempt alone, and every task writes its own file: who does it changes no byte.
"""

ATTEMPTS = 2
"""Tries of a task in all."""

POLITENESS = 5
POLL_s = 0.5


@dataclass(frozen=True)
class Outcome:
    """How a task ended: `reason` is None when it was done; else `stage` is the last one that it announced."""

    index: int
    stage: str
    reason: str | None = None
    crashed: bool = False
    permanent: bool = False


@dataclass
class Job:
    """A task and how often it was tried: a failed try counts as a new attempt, a crash repeats the attempt."""

    index: int
    failures: int = 0
    crashes: int = 0
    stage: str = "start"

    def retry(self, outcome: Outcome) -> bool:
        """Count one more unsuccessful try, and tell whether another one is due."""
        if outcome.crashed:
            self.crashes += 1
        else:
            self.failures += 1
        return not outcome.permanent and self.failures + self.crashes < ATTEMPTS

    def outcome(self, kind: str, text: str) -> Outcome:
        """How a try ended, from what `attempt_task` said; raises BadFile when it could not write its file."""
        if kind == "no file":
            raise BadFile(text)
        return Outcome(self.index, self.stage, None if kind == "done" else text, permanent=kind == "permanent")

    def crash(self, reason: str) -> Outcome:
        """How a try ended whose process died."""
        return Outcome(self.index, self.stage, reason, crashed=True)


@dataclass
class _Worker:
    """A process and the job that it is at."""

    process: BaseProcess
    connection: Connection
    job: Job | None = field(default=None)


def run_in_processes[Task](work: Work[Task], tasks: Sequence[Task], *, workers: int) -> Iterator[Outcome]:
    """Do each task in one of `workers` processes; yield each outcome as it comes, in no particular order.

    A task that raises is tried once more, with the next `attempt` number (0, 1); one whose process died is tried once
    more with the same number, so that a kill from outside changes no result; none is after a `permanent` CgalError.
    `work` and tasks must be picklable. Processes end when the iterator is closed, and within a second of the parent's
    death.

    Raises BadFile when a task could not write its file: a full disk is no task's own fault and meets them all.
    """
    waiting = deque(Job(index) for index in range(len(tasks)))
    crew: list[_Worker] = []
    try:
        while waiting or crew:
            while waiting and len(crew) < workers:
                crew.append(_hire(work))
                _give(crew[-1], waiting, tasks)
            for worker in _ready(crew):
                outcome = _hear(worker)
                if outcome is None:
                    continue
                job = worker.job
                assert job is not None
                if outcome.reason is not None and job.retry(outcome):
                    waiting.append(job)
                else:
                    yield outcome
                if outcome.crashed or not waiting:
                    crew.remove(worker)
                    _dismiss(worker)
                else:
                    _give(worker, waiting, tasks)
    finally:
        for worker in crew:
            worker.process.kill()
            _dismiss(worker)


def attempt_task(work: Work[Any], attempt: int, task: Any, announce: Announce) -> tuple[str, str]:
    """Do one task; tell how it ended ("done", "failed", "permanent" or "no file"), and why."""
    try:
        work(task, attempt, announce)
    except BadFile as error:
        return "no file", str(error)
    except CgalError as error:
        return "permanent" if error.permanent else "failed", str(error)
    except Exception as error:  # one bad task must not end the batch, whatever a library raised
        return "failed", f"{type(error).__name__}: {error}"
    return "done", ""


def _hire(work: Work[Any]) -> _Worker:
    context = get_context("spawn")  # a forked child would inherit OpenMM's and Prefect's threads half-dead
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs, os.getpid()), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _give(worker: _Worker, waiting: deque[Job], tasks: Sequence[Any]) -> None:
    worker.job = waiting.popleft()
    worker.job.stage = "start"
    with suppress(OSError):  # it died already: its closed pipe is heard of next
        worker.connection.send((worker.job.failures, tasks[worker.job.index]))


def _ready(crew: list[_Worker]) -> list[_Worker]:
    heard = wait([worker.connection for worker in crew], timeout=POLL_s)
    return [worker for worker in crew if worker.connection in heard]


def _hear(worker: _Worker) -> Outcome | None:
    """Outcome of the worker's job, or None when it only announced a stage."""
    job = worker.job
    assert job is not None
    try:
        kind, text = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        return job.crash(f"its process died ({_cause(worker.process.exitcode)})")
    if kind == "stage":
        job.stage = text
        return None
    return job.outcome(kind, text)


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"signal {signal.Signals(-exitcode).name}"
    return f"exit code {exitcode}"


def _dismiss(worker: _Worker) -> None:
    with suppress(OSError):
        worker.connection.send(None)
    worker.process.join()
    worker.connection.close()


def _serve(work: Work[Any], connection: Connection, parent: int) -> None:
    """Do the tasks that come through the connection, until None comes or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent sees to us
    os.nice(POLITENESS)
    Thread(target=die_with, args=(parent,), daemon=True).start()
    with suppress(EOFError, OSError):  # the parent is gone
        while (message := connection.recv()) is not None:
            attempt, task = message
            connection.send(attempt_task(work, attempt, task, lambda stage: connection.send(("stage", stage))))


def die_with(parent: int) -> None:
    """End this process within half a second of its parent's end, however that ends; for a thread of its own."""
    while os.getppid() == parent:
        time.sleep(POLL_s)
    os._exit(1)
