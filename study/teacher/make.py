"""Make the teacher of `study.teacher`: its potential, frames of its equilibrium, and its slowest process.

    python -m study.teacher.make

Prior, linear rung and network by relative entropy on the swarm of chignolin at 350 K, a quarter of an hour on one core;
then `REPLICAS` runs of `LENGTH_ps` from frames of the swarm, of which the first `SETTLE_ps` are left out; then a Markov
model of these runs. The committed teacher is of commit 49cb06c; what has changed in training since makes another one.
"""

from pathlib import Path

import numpy as np
import torch

from cgal.frames import CGTrajectory
from cgal.params import DynamicsParams, ReferenceParams, SchNetParams, TrainingParams, load_params
from cgal.potential.architectures import initial_potential
from cgal.potential.checkpoint import save_checkpoint
from cgal.potential.potential import Potential
from cgal.potential.prior import fit_prior
from cgal.reference.analysis import analyse
from cgal.simulation.run import draw_starts, run_from, to_trajectory
from cgal.training.train import train
from study.beds import GROUND_TRUTHS, SETTLE_ns, Swarm
from study.teacher.oracle import MODEL, TRUTH, STEP_ps, Teacher, TICA_LAG_ps, sample_of, w1

BED = GROUND_TRUTHS[0]
NETWORK = SchNetParams(features=32)
REPLICAS, LENGTH_ps, SETTLE_ps, SPACING_ps = 64, 700.0, 100.0, 4.0
ANALYSIS = ReferenceParams(tica_lag_ps=TICA_LAG_ps, lag_ps=20.0, spacing_ps=SPACING_ps, folded_nm=0.2, unfolded_nm=0.35)
SPLITS = 8


def trained(swarm: Swarm) -> Potential:
    """Prior, rung and network on all frames."""
    frames = swarm.frames.take(np.flatnonzero(swarm.frames.time_ps > 1000 * SETTLE_ns))
    demo = load_params(Path("params.yaml"))
    prior = fit_prior(frames.positions, frames.sequence, BED.temperature_K, demo.prior)
    wishes = {"objective": "relative_entropy", "linear_rung": True, "validation_block_frames": 1000, "preflight": False}
    params = TrainingParams.model_validate(demo.training.model_dump() | wishes)
    return train([frames], initial_potential(prior, NETWORK, 1), params, seed=1).potential


def equilibrium(potential: Potential, swarm: Swarm) -> CGTrajectory:
    """Frames of long runs."""
    steps, stride = round(LENGTH_ps / STEP_ps), round(SPACING_ps / STEP_ps)
    params = DynamicsParams(replicas=REPLICAS, steps=steps, stride=stride, timestep_ps=STEP_ps)
    home = draw_starts(swarm.frames.positions, REPLICAS, 1)
    record = run_from(potential, home, params, temperature_K=BED.temperature_K, seed=1)
    whole = to_trajectory(potential.sequence, record, params, "cpu")
    return whole.take(np.flatnonzero(whole.time_ps > SETTLE_ps))


def facts(potential: Potential, truth: CGTrajectory, swarm: Swarm) -> dict[str, object]:
    """Slowest process, folded share, events, and W1 between random halves of the runs, mean of `SPLITS`."""
    found = analyse(truth, swarm.native, ANALYSIS, seed=1)
    tica = Teacher(potential, truth, swarm.native, {}).tica
    halves = []
    for split in range(SPLITS):
        chosen = np.isin(truth.replica, np.random.default_rng(split).permutation(REPLICAS)[: REPLICAS // 2])
        halves.append(w1(*(sample_of(truth.take(np.flatnonzero(half)), tica) for half in (chosen, ~chosen))))
    floor = {f"{metric} {mode}": float(np.mean([h[metric, mode] for h in halves])) for metric, mode in halves[0]}
    slow = {name: float(getattr(found.slowest_ps, name)) for name in ("value", "low", "high")}
    levels = np.vstack([found.timescales.lags_ps, found.timescales.value_ps[:, 0]]).T
    return {
        "slowest_ps": slow,
        "timescale_by_lag_ps": levels.tolist(),
        "folded": found.folded.value,
        "folding": found.events.folding,
        "unfolding": found.events.unfolding,
        "sampled_ps": REPLICAS * (LENGTH_ps - SETTLE_ps),
        "floor": floor,
        "native_nm": swarm.native.tolist(),
    }


def main() -> None:
    """Train, run, measure and write."""
    torch.set_num_threads(1)
    swarm = BED.load()
    potential = trained(swarm)
    truth = equilibrium(potential, swarm)
    truth.save(TRUTH)
    save_checkpoint(MODEL, potential, facts(potential, truth, swarm))


if __name__ == "__main__":
    main()
