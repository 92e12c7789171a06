"""What each arm asks the teacher for, and what models of the answers are worth.

All arms of a seed share the frames of its seed set (`SEED_RUNS` runs of `RUN` from the native frame), the student's
initial weights, and the starts and noise of its simulations, which begin half at frames of the seed and half at a
stretched chain, as those of the learning curves. An arm spends the same teacher time up to each of `BUDGETS`; a label
run takes `RUN` of the slowest time. `continued` is one run from the last frame of the seed, `parallel` ten runs from
the ends of the seed's, `least_counts` ten runs at a time from the least visited cells (`cgal.reference.least_counts`);
the others are strategies of `cgal.selection`, which pick from the simulation of the student's model
(`study.teacher.students`) of what there was at the last budget. Where fewer frames qualify than runs are paid for,
those run longer; where none does, frames are picked at random. `equilibrium`, which nobody has, begins label runs at
frames drawn from the truth: what a better choice of starts could give at most.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from cgal.benchmark.observables import OBSERVABLES
from cgal.benchmark.wasserstein import MODES
from cgal.frames import CGTrajectory, LabelledFrames
from cgal.params import SelectionParams
from cgal.randomness import derive_seed
from cgal.reference.least_counts import least_counts
from cgal.selection import measure_pool, select
from study.teacher.oracle import BOUND, Teacher
from study.teacher.students import DISCARD, RUN, Seen, Student, joined

__all__ = ["ARMS", "BUDGETS", "COLUMNS", "Task", "measure"]

ARMS = ("seed", "continued", "coverage", "least_counts", "random", "parallel", "rmsd_histogram", BOUND)
"""The primary contrast first; `seed` buys nothing."""

BUDGETS = (0.1, 0.3, 1.0, 3.0)
RUNS, SEED_RUNS = 10, 10
COLUMNS = (
    "arm",
    "seed_set",
    "seed",
    "budget_over_slowest",
    "noise",
    "model",
    "metric",
    "mode",
    "value",
    "floor",
    "teacher_steps",
    "failed",
    "lost_replicas",
)

type Row = dict[str, str | int | float]
type Positions = Float32[np.ndarray, "_ beads 3"]


class Task(NamedTuple):
    """One campaign: an arm from a seed set, with randomness of its own, at a noise in units of the measured one."""

    arm: str
    seed_set: int
    seed: int
    noise: float


def measure(task: Task, teacher: Teacher, student: Student, budgets: Sequence[float] = BUDGETS) -> list[Row]:
    """Run one campaign; rows in the order of `COLUMNS`, from its seed alone for the arm `seed`."""
    seed_frames, seen = opening(teacher, student, task.seed_set, task.seed, task.noise)
    if task.arm == "seed":
        return list(_rows(task, 0.0, teacher, seen, 0, 0))
    rows: list[Row] = []
    frames = [seed_frames]
    spent = failed = 0
    for number, budget in enumerate(budgets, start=1):
        steps = teacher.steps(budget) - spent
        for starts, length in _requests(task, teacher, frames, seen[student.name], steps, number):
            added, lost = teacher.label(
                starts,
                length,
                noise=task.noise,
                seed=derive_seed(task.seed, len(frames), "label"),
                first=int(frames[-1].trajectory.max()) + 1,
            )
            frames.append(added)
            spent, failed = spent + len(starts) * length, failed + lost
        seen = student.learn(teacher, frames, task.seed, number)
        rows += _rows(task, budget, teacher, seen, spent, failed)
    return rows


@lru_cache(maxsize=1)
def opening(teacher: Teacher, student: Student, seed_set: int, seed: int, noise: float) -> tuple[LabelledFrames, Seen]:
    """Frames of a seed set, and what is made of them: all arms of a seed begin with it."""
    home = np.repeat(teacher.native[None], SEED_RUNS, axis=0)
    length = teacher.steps(RUN)
    frames, _ = teacher.label(home, length, noise=noise, seed=derive_seed(seed_set, 0, "seed set"), first=0)
    return frames, student.learn(teacher, [frames], seed, 0)


def _requests(
    task: Task, teacher: Teacher, shards: list[LabelledFrames], simulated: CGTrajectory, steps: int, number: int
) -> Iterator[tuple[Positions, int]]:
    """Starts of label runs and their length, which together take these steps; `shards` has the answers so far."""
    run = teacher.steps(RUN)
    match task.arm:
        case "continued":
            yield shards[-1].positions[-1:], steps
        case "parallel":
            ends = np.flatnonzero(np.append(np.diff(shards[-1].trajectory) != 0, True))
            yield shards[-1].positions[np.resize(ends, RUNS)], steps // RUNS
        case "least_counts":
            epochs = max(1, steps // (RUNS * run))
            for epoch in range(epochs):
                positions = joined(shards)
                chosen = least_counts(positions, RUNS, seed=derive_seed(task.seed, number, "least counts", epoch))
                yield positions[chosen], steps // (RUNS * epochs)
        case "equilibrium":
            chance = np.random.default_rng(derive_seed(task.seed, number, BOUND))
            count = steps // run
            yield chance.choice(teacher.truth.positions, count, replace=False), steps // count
        case strategy:
            picks = _picks(strategy, simulated, joined(shards), teacher.native, steps // run, task.seed + number)
            yield picks, steps // len(picks)


def _picks(
    strategy: str, simulated: CGTrajectory, training: Positions, native: Positions, count: int, seed: int
) -> Positions:
    for name in (strategy, "random"):
        params = SelectionParams.model_validate({"strategy": name, "frames": count})
        selection = select(measure_pool(simulated, training, native, params), count, derive_seed(seed, 0, "select"))
        if len(selection):
            break
    return selection.positions


def _rows(task: Task, budget: float, teacher: Teacher, seen: Seen, spent: int, failed: int) -> Iterator[Row]:
    for model, trajectory in seen.items():
        lost = sum(fate.lost for fate in trajectory.fates)
        late = np.flatnonzero(trajectory.time_ps > DISCARD * trajectory.time_ps.max())
        found = teacher.score(trajectory if model.startswith("raw") else trajectory.take(late))
        for mode, metric in product(MODES, OBSERVABLES):
            yield {
                "arm": task.arm,
                "seed_set": task.seed_set,
                "seed": task.seed,
                "budget_over_slowest": budget,
                "noise": task.noise,
                "model": model,
                "metric": metric,
                "mode": mode,
                "value": found[metric, mode],
                "floor": teacher.facts["floor"][f"{metric} {mode}"],
                "teacher_steps": spent,
                "failed": failed,
                "lost_replicas": lost,
            }
