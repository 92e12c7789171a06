"""Records of the teacher study: `python -m study.teacher [--student linear] [--processes N] [--until SECONDS]`.

Rows that are there are not made again; `--pilot` runs the primary contrast alone, on seed
sets of its own.
"""

from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer

from study.in_processes import append_rows, measure_all, rows_of
from study.teacher.arms import ARMS, BUDGETS, Row, Task, measure
from study.teacher.oracle import ALIKE, load_teacher
from study.teacher.students import STUDENTS

__all__ = ["done", "main", "tasks"]

RECORDS = {"network": "teacher", "linear": "teacher_linear"}
"""Files of docs/results by student, `_pilot` is added for the pilot."""

NOISES = {"network": 1.0, "linear": ALIKE}

PRIMARY, SEEDS, OTHER_SEEDS = 3, {"network": 14, "linear": 10}, 5
"""The first three of `ARMS` have as many seeds as, by the scatter of the pilot, show a change of 30 % in the primary
contrast with 80 % power (0.44 in the log ratio of networks, 0.35 of linear rungs). The others have five."""

PILOT_ARMS, PILOT_BUDGETS, PILOT_SEEDS = ("continued", "coverage"), BUDGETS[:2], range(101, 106)

teacher = cache(load_teacher)


def tasks(seeds: int, noise: float, pilot: bool) -> Iterator[Task]:
    """Seed by seed, each with a seed set of its own; all arms have their least number before any has more."""
    parts: list[tuple[range, tuple[str, ...]]] = [(PILOT_SEEDS, PILOT_ARMS)]
    if not pilot:
        few = range(1, min(seeds, OTHER_SEEDS) + 1)
        parts = [(few, ARMS[:PRIMARY]), (few, ARMS[PRIMARY:]), (range(len(few) + 1, seeds + 1), ARMS[:PRIMARY])]
    yield from (Task(arm, seed, seed, noise) for part in parts for seed, arm in product(*part))


def run(task: Task, student: str, budgets: Sequence[float]) -> list[Row]:
    """One campaign on one thread."""
    torch.set_num_threads(1)
    return measure(task, teacher(), STUDENTS[student], budgets)


def done(path: Path) -> set[Task]:
    """Campaigns whose rows are there."""
    return {Task(row["arm"], int(row["seed_set"]), int(row["seed"]), float(row["noise"])) for row in rows_of(path)}


def main(
    seeds: Annotated[
        int | None, typer.Option(help="Each with a seed set of its own; else what power asks for.")
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="Of labels, in units of the measured one; else the student's own.")
    ] = None,
    pilot: Annotated[bool, typer.Option("--pilot", help="The primary contrast alone, on other seed sets.")] = False,
    processes: Annotated[int, typer.Option(help="Campaigns at a time, of one thread each.")] = 1,
    until: Annotated[float, typer.Option(help="Seconds after which nothing is waited for any more.")] = float("inf"),
    student: Annotated[str, typer.Option(help="Of study.teacher.students.")] = "linear",
    records: Annotated[Path | None, typer.Option(help="Instead of the student's file in docs/results.")] = None,
) -> None:
    """Run all campaigns whose rows are not there."""
    path = records or Path("docs", "results", f"{RECORDS[student]}{'_pilot' if pilot else ''}.csv")
    known = done(path)
    waiting = [
        task
        for task in tasks(seeds or SEEDS[student], NOISES[student] if noise is None else noise, pilot)
        if task not in known
    ]
    campaign = partial(run, student=student, budgets=PILOT_BUDGETS if pilot else BUDGETS)
    measure_all(campaign, waiting, partial(append_rows, path), what="campaigns", processes=processes, until_s=until)
