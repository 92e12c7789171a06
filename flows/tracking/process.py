"""MLflow in a process of its own: import and first start take ten seconds, hidden by a campaign's first stage."""

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from threading import Thread

from cgal.all_atom.workers import die_with
from flows.tracking import runs as tracking
from flows.tracking.runs import RoundRecord, RunIds, TrackingUnavailable

__all__ = ["log_round", "warm_up"]


def warm_up(root: Path) -> None:
    """Let the process import MLflow and open the project's store, and do not wait for it; one that died is replaced."""
    try:
        _process().submit(tracking.warm_up, root)
    except BrokenProcessPool:
        _process.cache_clear()
        _process().submit(tracking.warm_up, root)


def log_round(root: Path, record: RoundRecord) -> RunIds:
    """Do `tracking.log_round` there, with its errors; TrackingUnavailable too when the process has died."""
    try:
        return _process().submit(tracking.log_round, root, record).result()
    except BrokenProcessPool:
        _process.cache_clear()  # the next try gets a new one
        raise TrackingUnavailable(
            f"{record.name} of campaign {record.campaign!r}: the process that speaks to MLflow was killed; the round "
            "is safe in git and DVC: run again"
        ) from None


@cache
def _process() -> ProcessPoolExecutor:
    # spawned: a forked child would inherit Prefect's and torch's threads half-dead
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin, initargs=(os.getpid(),))


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent sees to us
    Thread(target=die_with, args=(parent,), daemon=True).start()
