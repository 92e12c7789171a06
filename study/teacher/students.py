"""What learns from the teacher's labels: a network by force matching, or the linear rung by forces.

A student makes models of the same frames, each of which is simulated from common starts; the one that it is named after
is asked where labels are missing. `network` is the first one that was studied: prior and network, no rung. `linear` is
what the network of today's `params.yaml` stands on, prior and linear rung by forces, and no network; beside it stands
the rung on a prior of frames that a Markov model weighs (`linear_weighted`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from cgal.frames import CGTrajectory, LabelledFrames
from cgal.params import DynamicsParams, Params, SchNetParams, TrainingParams, load_params
from cgal.potential.architectures import initial_potential, without_network
from cgal.potential.potential import Potential
from cgal.potential.prior import Prior, fit_prior
from cgal.randomness import derive_seed
from cgal.simulation.run import draw_starts, run_from, to_trajectory
from cgal.training import linear
from cgal.training.frame_weights import weigh_shards
from cgal.training.train import train
from study.frame_weights import Weights, drawn
from study.learning_curves import stretched
from study.teacher.oracle import STRIDE, STEP_ps, Teacher

__all__ = ["DISCARD", "RUN", "STUDENTS", "Seen", "Student", "joined"]

RUN = 0.01
"""Length of a label run over the slowest time."""

NETWORK = SchNetParams(features=16, blocks=1)
LAG, MEMORY = 0.0065, 0.8
"""Of the Markov model that weighs frames, over the slowest time; on the test bed at 350 K they are 0.008 and 0.8."""

DISCARD = 0.5
"""Share of every simulation that is left out."""

type Positions = Float32[np.ndarray, "_ beads 3"]
type Seen = Mapping[str, CGTrajectory]
"""By model: frames that count. `raw` are the labelled frames themselves."""


class _Lesson(NamedTuple):
    """What a student learns from after `number` acquisitions; `weights` are of the frames, where it asks for them."""

    teacher: Teacher
    shards: Sequence[LabelledFrames]
    params: Params
    seed: int
    number: int
    weights: Weights | None

    def prior(self, weights: Weights | None = None) -> Prior:
        """Fit the prior to the frames."""
        sequence, temperature_K = self.shards[0].sequence, self.teacher.temperature_K
        return fit_prior(joined(self.shards), sequence, temperature_K, self.params.prior, weights=weights)


class Student(NamedTuple):
    """Its name, how models are made, and how long each is simulated."""

    name: str
    models: Callable[[_Lesson], Mapping[str, Potential]]
    weighted: bool
    replicas: int
    steps: int

    def learn(self, teacher: Teacher, shards: Sequence[LabelledFrames], seed: int, number: int) -> Seen:
        """The labelled frames, and the simulation of each model, half from frames of the seed, half stretched."""
        params = load_params(Path("params.yaml"))
        sequence, half = shards[0].sequence, self.replicas // 2
        raw = _raw(shards)
        seen = {"raw": raw}
        weights = _weights(teacher, shards) if self.weighted else None
        if weights is not None:
            seen["raw_weighted"] = drawn(raw, weights, seed)
        stretch = np.repeat(stretched(len(sequence))[None], half, 0)
        home = np.concatenate([draw_starts(shards[0].positions, half, seed), stretch])
        dynamics = DynamicsParams(replicas=len(home), steps=self.steps, stride=self.steps // 100, timestep_ps=STEP_ps)
        chance = derive_seed(seed, number, "simulate")
        for name, model in self.models(_Lesson(teacher, shards, params, seed, number, weights)).items():
            record = run_from(model, home, dynamics, temperature_K=teacher.temperature_K, seed=chance)
            seen[name] = to_trajectory(sequence, record, dynamics, "cpu")
        return seen


def _network(lesson: _Lesson) -> Mapping[str, Potential]:
    prior, (seed, number) = lesson.prior(), (lesson.seed, lesson.number)
    initial = initial_potential(prior, NETWORK, derive_seed(seed, number, "network"))
    network = train(lesson.shards, initial, _training(lesson), seed=derive_seed(seed, number, "train")).potential
    return {"prior": without_network(prior), "network": network}


def _linear(lesson: _Lesson) -> Mapping[str, Potential]:
    prior, weighted = lesson.prior(), lesson.prior(lesson.weights)
    return {
        "prior": without_network(prior),
        "linear": without_network(linear.fit_rung(lesson.shards, prior, _training(lesson)).prior),
        "linear_weighted": without_network(linear.fit_rung(lesson.shards, weighted, _training(lesson)).prior),
    }


STUDENTS = {
    "network": Student("network", _network, weighted=False, replicas=16, steps=24_000),
    "linear": Student("linear", _linear, weighted=True, replicas=32, steps=48_000),
}


def _training(lesson: _Lesson) -> TrainingParams:
    """Those of params.yaml; whole runs are held out."""
    block = max(1, lesson.teacher.steps(RUN) // STRIDE)
    changes = {"linear_rung": False, "validation_block_frames": block, "preflight": False}
    return TrainingParams.model_validate(lesson.params.training.model_dump() | changes)


def _weights(teacher: Teacher, shards: Sequence[LabelledFrames]) -> Weights:
    markov = {"lag_ps": LAG * teacher.slowest_ps, "memory_ps": MEMORY * teacher.slowest_ps}
    weighed = weigh_shards(shards, TrainingParams.model_validate({"frame_weights": "markov", "markov": markov}))
    return np.concatenate([shard.weights for shard in weighed if shard.weights is not None])


def _raw(shards: Sequence[LabelledFrames]) -> CGTrajectory:
    numbers = np.concatenate([shard.trajectory for shard in shards])
    times = np.concatenate([shard.time_ps for shard in shards])
    return CGTrajectory.from_positions(shards[0].sequence, joined(shards), times, numbers)


def joined(shards: Sequence[LabelledFrames]) -> Positions:
    """Positions of all shards."""
    return np.concatenate([shard.positions for shard in shards])
