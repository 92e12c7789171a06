"""What a comparison on a test bed costs: core-hours of each arm, by speeds measured here in CPU time.

    python -m study.cost docs/results/NAME.yaml

All epochs are counted, a label as its steps at most; failed labels, selection, DVC and start-up are not.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml

from cgal.all_atom.dynamics import AtomRun
from cgal.all_atom.force_field import build_system, read_structure
from cgal.benchmark.suite import benchmark
from cgal.errors import BadParams, CgalError
from cgal.frames import CGTrajectory
from cgal.params import DynamicsParams, Params, TrainingParams, check_params, merged
from cgal.potential.architectures import initial_potential, without_network
from cgal.potential.potential import Potential
from cgal.potential.prior import fit_prior
from cgal.selection.closing import affordable_picks
from cgal.simulation.run import run_from
from cgal.training.linear_populations import REFIT_REPLICAS
from cgal.training.train import train
from study.bed_data import SWARMS, bed_of, ground_truth
from study.beds import GroundTruth
from study.design import CampaignPlan, Design, load_design
from study.learning_curves import LENGTH_ps, benchmark_params
from study.twins import KINDS, REPLICAS

__all__ = ["Speeds", "core_hours", "measure"]

FRAMES, EPOCHS, REPLICA_STEPS, ATOM_STEPS = 4000, 2, 600, 3000


class Speeds(NamedTuple):
    """CPU seconds of an all-atom step, of a frame of an epoch, of a replica's step, without network, of a benchmark."""

    step_s: float
    frame_s: float
    replica_step_s: float
    bare_step_s: float
    benchmark_s: float


def measure(bed: GroundTruth, params: Params) -> Speeds:
    """Measure on the bed's own frames, one thread; everything is run once before, so that it is compiled."""
    torch.set_num_threads(1)
    swarm = bed.load(SWARMS)
    frames = swarm.frames.take(np.linspace(0, len(swarm.frames) - 1, FRAMES).astype(int))
    initial = initial_potential(
        fit_prior(frames.positions, frames.sequence, bed.temperature_K, params.prior),
        params.network,
        1,
    )
    training = params.training.model_copy(
        update={"epochs": EPOCHS, "validation_block_frames": 10, "linear_rung": False}
    )
    dynamics = DynamicsParams(replicas=2 * REPLICAS, steps=REPLICA_STEPS, stride=REPLICA_STEPS)
    home = np.repeat(swarm.native[np.newaxis], 2 * REPLICAS, axis=0)
    truth, few = ground_truth(swarm), frames.take(np.arange(0, FRAMES, 10))
    simulated = CGTrajectory.from_positions(frames.sequence, frames.positions, frames.time_ps, frames.trajectory)
    topology, positions = read_structure(swarm.structure)
    force_field = params.force_field
    run = AtomRun(
        build_system(topology, force_field),
        force_field,
        temperature_K=bed.temperature_K,
        timestep_ps=force_field.timestep_ps,
        seed=1,
    )
    run.place(positions, constrain=True)
    run.draw_velocities()

    def compare() -> object:
        found = benchmark_params()
        return benchmark(simulated, truth, found, native=swarm.native, training_positions=few.positions, seed=1)

    def simulate(potential: Potential) -> object:
        return run_from(potential, home, dynamics, temperature_K=bed.temperature_K, seed=1)

    train([few], initial, training, seed=1)
    run.advance(10)
    bare = without_network(initial.prior)
    _ = compare(), simulate(initial), simulate(bare)
    return Speeds(
        _cpu_s(lambda: run.advance(ATOM_STEPS)) / ATOM_STEPS,
        _cpu_s(lambda: train([frames], initial, training, seed=1)) / (FRAMES * EPOCHS),
        _cpu_s(lambda: simulate(initial)) / (2 * REPLICAS * REPLICA_STEPS),
        _cpu_s(lambda: simulate(bare)) / (2 * REPLICAS * REPLICA_STEPS),
        _cpu_s(compare),
    )


def _cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def core_hours(design: Design, plan: CampaignPlan, params: Params, speeds: Speeds) -> float:
    """Core-hours of a campaign and of the twins of its rounds."""
    assert design.seed_sets is not None
    oracle, training, simulation = params.oracle, params.training, params.simulation
    plain, seed = params.campaign.continued_md_steps, design.seed_sets
    spent = [plain] if plain else list(_spent(params))
    steps_a_frame = oracle.free_stride if plain else params.label_steps * oracle.free_stride / oracle.average_steps
    seed_frames = seed.runs * round(seed.length_ps / seed.spacing_ps)
    frames = [seed_frames + steps / steps_a_frame for steps in spent]
    committee = params.selection.committee if params.selection.strategy.startswith("committee") else 0
    trained = training.members * sum(frames) + committee * sum(frames[:-1])
    replica_steps = simulation.replicas * simulation.steps + 2 * REPLICAS * LENGTH_ps / simulation.timestep_ps
    fitted = trained * training.epochs * speeds.frame_s
    if training.by_replicas:
        fitted = len(spent) * training.members * _by_replicas_s(training, speeds)
    seconds = (
        spent[-1] * speeds.step_s
        + fitted
        + len(spent) * (replica_steps * speeds.replica_step_s + (1 + len(KINDS)) * speeds.benchmark_s)
    )
    return seconds / 3600


def _by_replicas_s(training: TrainingParams, speeds: Speeds) -> float:
    """Seconds of a training by relative entropy, network and rung."""
    entropy = training.relative_entropy
    settling = entropy.look_replicas * entropy.settle_steps
    following = entropy.look_replicas * entropy.look_steps
    steps = entropy.dynamics.replicas * entropy.dynamics.steps + following
    refit = REFIT_REPLICAS * entropy.settle_steps
    bare = settling + training.linear_rung * (2 * settling + entropy.rung.updates * steps + refit)
    return entropy.updates * steps * speeds.replica_step_s + bare * speeds.bare_step_s


def _spent(params: Params) -> Iterator[int]:
    """Steps spent on labels when each round begins, if every label takes as many as it may."""
    spent = 0
    for _ in range(params.campaign.rounds):
        yield spent
        picks = affordable_picks(
            params.campaign, params.selection.frames, spent_steps=spent, steps_per_pick=params.label_steps
        )
        if not picks:
            return
        spent += picks * params.label_steps
    yield spent


def main(arguments: list[str]) -> None:
    """Print the cost of a seed of each arm, and of the whole."""
    if len(arguments) != 1:
        sys.exit(__doc__)
    design, project = load_design(Path(arguments[0])), Path("params.yaml")
    if not design.system:
        raise BadParams(f"{arguments[0]}: names no system, and speeds are those of a test bed")
    content = yaml.safe_load(project.read_text())
    speeds = measure(bed_of(design.system), check_params(merged(content, design.common), project))
    print(", ".join(f"{name} {value:.3g}" for name, value in speeds._asdict().items()))
    total = 0.0
    for arm in design.arms:
        plans = design.campaigns([arm], 1, design.steps())
        hours = sum(
            core_hours(design, plan, check_params(merged(content, design.of(plan, "x")), project), speeds)
            for plan in plans
        )
        print(f"{arm:20} {hours:6.2f} core-hours a seed, in {len(plans)} campaigns")
        total += hours
    print(f"{design.seeds} seeds: {design.seeds * total:.0f} core-hours")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CgalError as error:
        sys.exit(f"error: {error}")
