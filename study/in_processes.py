"""Tasks of a study, each in a process of one thread, whose records are kept as they come."""

import csv
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from io import StringIO
from pathlib import Path

from rich.progress import Progress, TimeElapsedColumn

from cgal.files import write_text

__all__ = ["append_rows", "measure_all", "rows_of"]


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def append_rows(path: Path, rows: Sequence[Mapping[str, str | int | float]]) -> None:
    """Add the rows of one task to a CSV file, all or none."""
    before, added = path.read_text() if path.is_file() else "", StringIO()
    writer = csv.DictWriter(added, list(rows[0]), lineterminator="\n")
    if not before:
        writer.writeheader()
    writer.writerows({key: f"{v:.5g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    write_text(path, before + added.getvalue())


def measure_all[Task, Found](
    measure: Callable[[Task], Found],
    tasks: Sequence[Task],
    keep: Callable[[Found], None],
    *,
    what: str,
    processes: int,
    until_s: float,
) -> None:
    """Call `measure` with each task and `keep` with what it gives.

    After `until_s` the interpreter ends without waiting for tasks that are under way: the same command goes on.
    """
    began = time.monotonic()
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    waiting = {pool.submit(measure, task) for task in tasks}
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn()) as bar:
        shown = bar.add_task(what, total=len(waiting))
        while waiting and time.monotonic() - began < until_s:
            ready, waiting = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in ready:
                keep(future.result())
                bar.advance(shown)
    if waiting:
        print(f"{what}: {len(waiting)} are left; the same command goes on", flush=True)
        for process in list(pool._processes.values()):
            process.kill()
        os._exit(0)
    pool.shutdown()
