"""What a model learns from how much plain dynamics: rows of docs/results/learning_curves.csv.

    python -m study.learning_curves --processes 2 [--until SECONDS]

The swarms of `study.beds` are parted by trajectory: every other one is the ground truth that models are measured on,
and the rest is what they may learn from. A size of training data is so many whole trajectories, the last one cut. `raw`
are these frames themselves, `prior` is the model without a network, `linear` has a linear rung by forces on top,
`linear_populations` one by relative entropy, and the other models are named as their objective, with `_on_linear` where
the network is on top of that objective's rung.
Each is simulated from the folded structure and from a stretched chain, `REPLICAS` times for `LENGTH_ps` each, and the
first half is left out (`folded_model` is of all of it). Rows that are there are not made again. Trainings go on from
`SCRATCH` after a kill, and models of the same frames and seed share a rung by relative entropy there; `wall_s` is then
without it.
"""

import time
from collections.abc import Iterator
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from jaxtyping import Float32

from cgal.benchmark.observables import OBSERVABLES
from cgal.benchmark.suite import benchmark, observe
from cgal.benchmark.tica import fit_tica
from cgal.benchmark.wasserstein import MODES, estimators
from cgal.frames import CGTrajectory, LabelledFrames
from cgal.params import BenchmarkParams, DynamicsParams, Params, TrainingParams, load_params
from cgal.potential.architectures import initial_potential, without_network
from cgal.potential.potential import Potential
from cgal.potential.prior import fit_prior
from cgal.simulation.run import run_from, to_trajectory
from cgal.training.forces_and_noise import smeared
from cgal.training.train import fit_rung, train
from study.beds import GROUND_TRUTHS, GroundTruth, SETTLE_ns, Swarm
from study.curves_plan import MODELS, SEEDS, SIZES_ns
from study.in_processes import append_rows, measure_all, rows_of

__all__ = ["COLUMNS", "Task", "measure", "tasks"]

RECORDS = Path("docs", "results", "learning_curves.csv")
SCRATCH = Path(".cgal", "learning_curves")
COLUMNS = (
    "system",
    "ns",
    "model",
    "seed",
    "metric",
    "mode",
    "value",
    "floor",
    "folded_model",
    "folded_reference",
    "wall_s",
    "folded_from_native",
    "folded_from_extended",
    "lost_replicas",
)
RUNGS = {"linear": "force_matching", "linear_populations": "relative_entropy"}
"""Objective of each rung without a network."""

CONTROLS = ("raw", "prior", *RUNGS)
ON_LINEAR = "_on_linear"
"""Ends the names of networks on top of the linear rung."""

COMMITTEE, MEMBERS = "_committee", 4
"""Ends the names of so many networks whose mean force is simulated."""

REPLICAS = 32
"""From each of the two starts."""

LENGTH_ps = 960.0
"""Long enough for the folded shares from both starts to meet, which takes the better models 200 to 300 ps,
and for the folded share to be known: half as long, the TICA W1 of one model was 0.25 instead of 0.14 (not kept as a
record)."""

SPLITS = 8
BOND_nm, BEND_nm = 0.38, 0.05
MOST_EPOCH_FRAMES = 400_000
"""Frames that force matching sees in all its epochs, at most."""

type Row = dict[str, str | int | float]


class Task(NamedTuple):
    """One model of one system, trained on so many nanoseconds that `seed` drew."""

    system: str
    ns: float
    model: str
    seed: int


class Halves(NamedTuple):
    """A swarm parted by trajectory, what it was thinned to [ps], and the mean W1 between random halves of the truth."""

    bed: GroundTruth
    swarm: Swarm
    training: LabelledFrames
    truth: CGTrajectory
    spacing_ps: float
    floor: dict[tuple[str, str], float]


@cache
def halves(system: str) -> Halves:
    """Every other trajectory for the truth, its first `SETTLE_ns` left out; the others to learn from, likewise."""
    bed = next(bed for bed in GROUND_TRUTHS if system_of(bed) == system)
    swarm = bed.load()
    frames = swarm.frames
    settled = frames.take(np.flatnonzero(frames.time_ps > 1000 * SETTLE_ns))
    for_truth = settled.trajectory % 2 == 0
    training, truth = settled.take(np.flatnonzero(~for_truth)), as_trajectory(settled.take(np.flatnonzero(for_truth)))
    spacing_ps = float(np.diff(truth.time_ps[:2])[0])
    return Halves(bed, swarm, training, truth, spacing_ps, floors(as_trajectory(settled), truth))


def as_trajectory(frames: LabelledFrames) -> CGTrajectory:
    """The frames without their forces."""
    return CGTrajectory.from_positions(frames.sequence, frames.positions, frames.time_ps, frames.trajectory)


def share(parts: Halves, positions: Float32[np.ndarray, "frames beads 3"]) -> float:
    """Folded share of frames; not a number when there are none."""
    return float(parts.bed.folded(positions, parts.swarm.structure).mean()) if len(positions) else float("nan")


def system_of(bed: GroundTruth) -> str:
    """Short name of a test bed."""
    return bed.name.split(",")[0].lower()


def floors(whole: CGTrajectory, truth: CGTrajectory) -> dict[tuple[str, str], float]:
    """Mean W1 of each metric and mode between `SPLITS` random halves of all trajectories, on the truth's TICA."""
    tica, table = fit_tica(truth, benchmark_params().tica_lag_ps), estimators(benchmark_params().maximum_frames)
    names = np.unique(whole.replica)
    found: dict[tuple[str, str], list[float]] = {}
    for split in range(SPLITS):
        one = np.random.default_rng(split).permutation(names)[: len(names) // 2]
        mask = np.isin(whole.replica, one)
        sides = [whole.take(np.flatnonzero(half)) for half in (mask, ~mask)]
        seen = [observe(side, tica, np.zeros(len(side), dtype=np.int64)) for side in sides]
        for mode, observable in product(MODES, OBSERVABLES.values()):
            value = table[mode][observable.geometry].value(*(side[observable.name] for side in seen))
            found.setdefault((observable.name, mode), []).append(value)
    return {key: float(np.mean(values)) for key, values in found.items()}


def benchmark_params() -> BenchmarkParams:
    """The benchmark of the test beds: their frames are 10 ps apart."""
    return BenchmarkParams(tica_lag_ps=200.0, discard_fraction=0.5, bootstrap=2)


def tasks() -> Iterator[Task]:
    """All of them: the cheap controls, then models where they should pay, then small sizes."""
    systems = [system_of(bed) for bed in GROUND_TRUTHS]
    for model in CONTROLS:
        yield from (Task(system, ns, model, seed) for ns, system, seed in product(SIZES_ns, systems, range(SEEDS)))
    for model, sizes, seed in product(MODELS, (SIZES_ns[:3], SIZES_ns[3:]), range(SEEDS)):
        yield from (Task(system, ns, model, seed) for ns, system in product(sizes, systems))


def measure(task: Task) -> list[Row]:
    """Train, simulate and benchmark one task; rows in the order of `COLUMNS`."""
    began = time.monotonic()
    torch.set_num_threads(1)
    parts = halves(task.system)
    frames = draw(parts, task)
    if task.model == "raw":
        simulated, folded = as_trajectory(frames), [float("nan")] * 2
        params = benchmark_params().model_copy(update={"discard_fraction": 0.0})
    else:
        simulated, folded = simulate(parts, model_of(parts, frames, task), task.seed)
        params = benchmark_params()
    native = parts.swarm.native
    result = benchmark(
        simulated, parts.truth, params, native=native, training_positions=frames.positions, seed=task.seed
    ).metrics
    common: Row = {
        "folded_model": share(parts, simulated.positions),
        "folded_reference": share(parts, parts.truth.positions),
        "wall_s": time.monotonic() - began,
        "folded_from_native": folded[0],
        "folded_from_extended": folded[1],
        "lost_replicas": sum(fate.cause != "completed" for fate in simulated.fates),
    }
    return [
        {
            **task._asdict(),
            "metric": metric,
            "mode": mode,
            "value": result[f"w1_{mode}"][metric]["value"],
            "floor": parts.floor[metric, mode],
            **common,
        }
        for mode, metric in product(MODES, OBSERVABLES)
    ]


def draw(parts: Halves, task: Task) -> LabelledFrames:
    """Whole trajectories drawn by the seed, of `ns` in all; the last one is cut."""
    pool = parts.training
    if not task.ns:
        return pool
    order = np.random.default_rng([task.seed, 1]).permutation(np.unique(pool.trajectory))
    index = np.concatenate([np.flatnonzero(pool.trajectory == trajectory) for trajectory in order])
    return pool.take(np.sort(index[: round(1000 * task.ns / parts.spacing_ps)]))


def model_of(parts: Halves, frames: LabelledFrames, task: Task) -> Potential:
    """Prior, and network unless it is `prior`, from these frames alone."""
    demo = load_params(Path("params.yaml"))
    prior = fit_prior(frames.positions, frames.sequence, parts.bed.temperature_K, demo.prior)
    params = training_params(demo, task, len(frames))
    if params.objective == "forces_and_noise":
        prior = smeared(prior, params.forces_and_noise.noise_nm)
    scratch = SCRATCH / f"{task.system}-{task.ns:g}-{task.seed}"
    if task.model in RUNGS:
        prior = fit_rung([frames], prior, params, seed=task.seed, scratch=scratch).prior
    if task.model in CONTROLS:
        return without_network(prior)
    initial = initial_potential(prior, demo.network, task.seed)
    return train([frames], initial, params, seed=task.seed, scratch=scratch).potential


def training_params(demo: Params, task: Task, frames: int) -> TrainingParams:
    """Those of params.yaml; whole trajectories are held out where there are enough, else blocks of a twentieth."""
    epochs = max(1, min(demo.training.epochs, MOST_EPOCH_FRAMES // frames))
    objective = RUNGS.get(task.model, task.model.removesuffix(COMMITTEE).removesuffix(ON_LINEAR))
    wishes: dict[str, str | int | bool] = {
        "objective": "force_matching" if task.model in ("raw", "prior") else objective,
        "members": MEMBERS if task.model.endswith(COMMITTEE) else 1,
        "linear_rung": task.model.removesuffix(COMMITTEE).endswith(ON_LINEAR),
        "epochs": epochs,
        "validation_block_frames": max(1, min(1000, frames // 20)),
        "preflight": False,
    }
    return TrainingParams.model_validate(demo.training.model_dump() | wishes)


def simulate(parts: Halves, model: Potential, seed: int) -> tuple[CGTrajectory, list[float]]:
    """Replicas from both starts, in this order, and the folded share of the latter half of each."""
    demo = load_params(Path("params.yaml")).simulation
    steps = round(LENGTH_ps / demo.timestep_ps)
    params = DynamicsParams(replicas=2 * REPLICAS, steps=steps, stride=steps // 100, timestep_ps=demo.timestep_ps)
    home = np.repeat(np.stack([parts.swarm.native, stretched(len(model.sequence))]), REPLICAS, axis=0)
    record = run_from(model, home, params, temperature_K=parts.bed.temperature_K, seed=seed)
    trajectory = to_trajectory(model.sequence, record, params, "cpu")
    late = trajectory.time_ps > LENGTH_ps / 2
    folded = []
    for side in (trajectory.replica < REPLICAS, trajectory.replica >= REPLICAS):
        folded.append(share(parts, trajectory.positions[late & side]))
    return trajectory, folded


def stretched(beads: int) -> Float32[np.ndarray, "beads 3"]:
    """A zigzag with bonds of 0.38 nm [nm], each bead a little out of the plane of the last ones."""
    along = np.sqrt(BOND_nm**2 - 2 * (2 * BEND_nm) ** 2)
    index = np.arange(beads)
    sideways = BEND_nm * np.where(index % 2, 1.0, -1.0)
    upwards = BEND_nm * np.where(index // 2 % 2, 1.0, -1.0)
    return np.stack([along * index, sideways, upwards], axis=1).astype(np.float32)


def done(path: Path) -> set[Task]:
    """Tasks whose rows are there."""
    return {Task(row["system"], float(row["ns"]), row["model"], int(row["seed"])) for row in rows_of(path)}


def main(
    processes: Annotated[int, typer.Option(help="Tasks at a time, of one thread each.")] = 1,
    until: Annotated[float, typer.Option(help="Seconds after which nothing is waited for any more.")] = float("inf"),
    records: Path = RECORDS,
    model: Annotated[list[str] | None, typer.Option(help="Only this model; may be given again.")] = None,
) -> None:
    """Measure all tasks whose rows are not there."""
    known = done(records)
    waiting = [task for task in tasks() if task not in known and (not model or task.model in model)]
    measure_all(measure, waiting, partial(append_rows, records), what="tasks", processes=processes, until_s=until)


if __name__ == "__main__":
    typer.run(main)
