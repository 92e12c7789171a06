"""Relative entropy: the network is fitted to the ensemble of the training frames, whatever their forces.

The relative entropy of the data's distribution p to the model's, exp(-U / k_B T) / Z, is, up to the data's own entropy
(Shell, J. Chem. Phys. 129, 144108 (2008)),

    S = <U>_data / k_B T + ln Z,        dS/dw = (<dU/dw>_data - <dU/dw>_model) / k_B T.

The second average is over replicas that are kept from one update of the weights to the next and run on by the engine
that simulates (persistent contrastive divergence: Tieleman, ICML 2008; Thaler et al., J. Chem. Phys. 157, 244103
(2022)); one that is lost begins anew from a training frame. The model is the running average of the weights. The
training frames must be an equilibrium ensemble, or carry the weights of one: their populations are learned as they are.
Frames are drawn in proportion to their weights, and held-out ones count by theirs.

Which weights are best is said by frames that were held out. S is known up to a constant alone, so it is told as the
difference to the initial model,

    S - S_initial = <U - U_initial>_held_out / k_B T + ln Z / Z_initial,

below zero for a better model. The ratio is followed by a second set of replicas, which the updates never see
(`cgal.training.population`): where those behind the gradient stand, the network has just raised its energy, so that by
them S comes out too low.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from cgal.errors import BadParams, BadTrajectory, Diverged, EmptyTrajectory, PreflightFailed
from cgal.figures import ACCENT, MODEL, REFERENCE
from cgal.frames import LabelledFrames
from cgal.params import DynamicsParams, TrainingParams
from cgal.potential.architectures import without_network
from cgal.potential.potential import Potential
from cgal.potential.prior import Prior
from cgal.progress import Progress, silent
from cgal.simulation.run import Record, run_from
from cgal.training.held_out import held_out_masks, require_both
from cgal.training.learners import Learner, NetworkLearner, Positions
from cgal.training.population import Population
from cgal.training.runs import NETWORK, annealed, deterministic_algorithms, fingerprint, read_state, write_state
from cgal.units import thermal_energy_kJ_per_mol

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

__all__ = ["Data", "LookRecord", "RelativeEntropyResult", "Term", "minimise", "prepare", "train"]

AVERAGE_START = 3
"""The average of the weights begins as one over a third of the updates that have been; zeroth weights soon fade."""


class LookRecord(NamedTuple):
    """What a look at the held-out frames showed; update 0 is the potential as given.

    `energy_gap_kT` is <U>_data - <U>_model of the network over the updates since the last look, which the gradient
    brings to zero or below it; `held_out_change_kT` is S - S_initial of the averaged weights, with its standard error;
    `effective_replicas` those that tell ln Z; `lost` the replicas, of those behind the gradient, that began anew since.
    `of_term` is what a further term (see `Term`) has in the held-out change; zero where there is none.
    """

    update: int
    energy_gap_kT: float
    held_out_change_kT: float
    standard_error_kT: float
    effective_replicas: float
    lost: int
    learning_rate: float
    of_term: float = 0.0


@runtime_checkable
class Term(Protocol):
    """What is minimised beside S, in the same unit. `words` tell all that it depends on, but for the weights."""

    words: str

    def gradient(self, weights: Float[Tensor, " weights"], generator: np.random.Generator) -> Float[Tensor, " weights"]:
        """Gradient along the weights, estimated from some training frames."""

    def held_out(self, weights: Float[Tensor, " weights"]) -> Float64[np.ndarray, " held_out"]:
        """Its value on each held-out frame that is looked at."""


type MakeTerm = Callable[[Sequence[LabelledFrames], Potential, TrainingParams, Int64[np.ndarray, " looked_at"]], Term]
"""Of shards, initial potential, params, and which of the held-out frames, in order of the shards, are looked at."""


@dataclass(frozen=True, eq=False)
class RelativeEntropyResult:
    """The potential with the averaged weights of the best look, and how they were found.

    That is the one with the lowest held-out S, or (`Learner.tolerance`) the last that is hardly worse.
    """

    potential: Potential
    history: tuple[LookRecord, ...]
    best: LookRecord
    train_frames: int
    held_out_frames: int

    @property
    def curves(self) -> Mapping[str, tuple[LookRecord, ...]]:
        """The looks."""
        return {NETWORK: self.history}

    def summary(self) -> dict[str, float | int]:
        """Numbers for a checkpoint's metadata and a round's metrics."""
        return {
            "train_frames": self.train_frames,
            "held_out_frames": self.held_out_frames,
            "held_out_change_kT": self.best.held_out_change_kT,
            "standard_error_kT": self.best.standard_error_kT,
            "effective_replicas": self.best.effective_replicas,
            "best_update": self.best.update,
            "updates": self.history[-1].update,
        }

    def draw(self, figure: "FigureBase") -> None:
        """Draw the held-out change of S with its standard error, and the learning rate, by update."""
        updates, _, change, error, _, _, rates, _ = np.array(self.history, dtype=float).T
        entropy, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        entropy.plot(updates, change, color=MODEL, label="held out")
        entropy.fill_between(updates, change - error, change + error, color=MODEL, alpha=0.25, linewidth=0)
        entropy.axhline(0.0, color=REFERENCE, linestyle=":", label="as it began")
        entropy.axvline(self.best.update, color=ACCENT, linewidth=1, label=f"best, update {self.best.update}")
        entropy.set(ylabel="change of relative entropy")
        entropy.legend(frameon=False, fontsize=8)
        rate.plot(updates[1:], rates[1:], color=REFERENCE)
        rate.set(xlabel="update", ylabel="learning rate")


def train(
    shards: Sequence[LabelledFrames],
    initial: Potential,
    params: TrainingParams,
    *,
    seed: int,
    scratch: Path | None = None,
    priors: Mapping[str, Prior] | None = None,
    progress: Progress = silent,
    make_term: MakeTerm | None = None,
) -> RelativeEntropyResult:
    """Train the network of `initial` (which stays as it was) on the frames of all shards, at its prior's temperature.

    Blocks of consecutive frames are held out (see `held_out_masks`); training stops when S on them has not fallen for
    `patience_updates`, and the weights of the best look are kept. Runs on the device of `initial`. With a `scratch`
    folder a killed training continues from its last look there and ends with the same weights, to the bit.
    With `make_term` the sum of S and that term is minimised, and looked at.

    Raises BadParams (`priors` are of several proteins: replicas are of one),
    BadTrajectory (a position is not finite, or a shard is of another protein), EmptyTrajectory (nothing to train
    on or to hold out), Diverged (every replica was lost), PreflightFailed (S never fell below that of the prior alone;
    not told of a network that was trained before, nor where `params.preflight` is false).
    """
    if others := set(priors or ()) - {initial.sequence}:
        raise BadParams(
            f"training.objective: {params.objective} trains on one protein, but {', '.join(sorted(others))} came "
            f"beside {initial.sequence}; set training.objective: force_matching, or give one protein"
        )
    data = prepare(shards, initial, params)
    with deterministic_algorithms():
        term = make_term(shards, initial, params, data.looked_at) if make_term else None
        learner = NetworkLearner(initial, params.relative_entropy)
        untrained = not learner.energies(torch.from_numpy(data.held_out).to(initial.types.device)).any()
        result = minimise(learner, initial, data, params, seed=seed, scratch=scratch, progress=progress, term=term)
    if params.preflight and untrained:
        _preflight(result, params.objective)
    return result


def minimise(
    learner: Learner,
    initial: Potential,
    data: "Data",
    params: TrainingParams,
    *,
    seed: int,
    scratch: Path | None,
    progress: Progress,
    term: Term | None = None,
) -> RelativeEntropyResult:
    """Train what `learner` has, as `train` says; `initial` is the potential that its S is told against.

    The learner's average is the best one afterwards.
    """
    run = Run(learner, initial, data, params, seed, term)
    run.resume(scratch)
    while not run.finished:
        run.update()
        progress(run.updates_done, learner.updates, run.note())
        if run.look_is_due:
            run.look()
            run.save(scratch)
    learner.average.copy_(run.best_weights)
    return RelativeEntropyResult(
        learner.potential(run.best_weights), tuple(run.history), run.best, len(data.training), len(data.held_out)
    )


class Data(NamedTuple):
    """Positions to train on with the chance to be drawn, if it is not the same for all; and those held out.

    Of these, `weights` have a mean of one, `blocks` numbers the block of each, `looked_at` is its number among all.
    """

    training: Positions
    chances: Float64[np.ndarray, " training"] | None
    held_out: Positions
    weights: Float64[np.ndarray, " held_out"]
    blocks: Int64[np.ndarray, " held_out"]
    looked_at: Int64[np.ndarray, " held_out"]


def prepare(shards: Sequence[LabelledFrames], initial: Potential, params: TrainingParams) -> Data:
    """Part the frames of all shards into those to train on and those held out."""
    for number, shard in enumerate(shards):
        _check_shard(number, shard, initial.sequence)
    masks = held_out_masks(shards, params)
    mask = np.concatenate(masks)
    positions = np.concatenate([shard.positions for shard in shards])
    training, held_out = positions[~mask], positions[mask]
    blocks = np.cumsum(np.concatenate([_block_starts(mask) for mask in masks]))
    require_both(len(training), len(held_out), params)
    kept = np.unique(np.linspace(0, len(held_out) - 1, params.relative_entropy.held_out_frames).round().astype(int))
    weighted = any(shard.weights is not None for shard in shards)
    weights = np.concatenate([np.ones(len(shard)) if shard.weights is None else shard.weights for shard in shards])
    chances, weights = weights[~mask], weights[mask][kept]
    if not chances.any() or not weights.any():
        raise EmptyTrajectory(
            "no frame that is trained on, or none that is held out, has any weight: set training.frame_weights: none, "
            "or lower training.validation_block_frames"
        )
    return Data(
        training,
        chances / chances.sum() if weighted else None,
        held_out[kept],
        weights / weights.mean(),
        blocks[kept],
        kept,
    )


def _check_shard(number: int, shard: LabelledFrames, sequence: str) -> None:
    if shard.sequence != sequence:
        raise BadTrajectory(
            f"shard {number:03d} is of protein {shard.sequence}, not of {sequence}; relative entropy trains on one "
            "protein: set training.objective: force_matching, or leave the shard out"
        )
    finite = np.isfinite(shard.positions).all(axis=(1, 2))
    if not finite.all():
        raise BadTrajectory(
            f"shard {number:03d}, frame {np.flatnonzero(~finite)[0]}: position not finite; take it out of the shard"
        )


def _block_starts(mask: Bool[np.ndarray, " frames"]) -> Int64[np.ndarray, " held_out"]:
    """One for each held-out frame whose forerunner is not held out.

    >>> _block_starts(np.array([False, True, True, False, True]))
    array([1, 0, 1])
    """
    starts: Int64[np.ndarray, " held_out"] = np.diff(mask, prepend=False)[mask].astype(np.int64)
    return starts


class Run:
    """State of one training, which `save` writes and `resume` reads; the potential that it is given stays as it is."""

    def __init__(
        self,
        learner: Learner,
        initial: Potential,
        data: Data,
        params: TrainingParams,
        seed: int,
        term: Term | None = None,
    ) -> None:
        self.learner, self.data, self.term = learner, data, term
        self.params, self.entropy, self.seed = params, params.relative_entropy, seed
        self.device = initial.types.device
        self.held_out = torch.from_numpy(data.held_out).to(self.device)
        self.temperature_K = initial.prior.temperature_K
        self.kT = thermal_energy_kJ_per_mol(self.temperature_K)
        self.fingerprint = self._fingerprint(initial)
        self.best, self.best_weights = LookRecord(0, 0.0, math.inf, 0.0, 0.0, 0, 0.0), learner.average.clone()
        self.initial_energies = self._energies(self.held_out)
        self.initial_term = self._term()
        generator = np.random.default_rng([seed, 0])
        self.replicas = self._draw(generator, self.entropy.dynamics.replicas)
        self.population = Population.begin(self._draw(generator, self.entropy.look_replicas))
        self.history: list[LookRecord] = []
        self.updates_done, self.lost, self.rate = 0, 0, 0.0
        self.last_energies = self._energies(self._here())
        self.gaps: list[float] = []

    def _fingerprint(self, initial: Potential) -> str:
        params = self.params
        words = params.relative_entropy, params.validation_fraction, params.validation_block_frames
        fraction = params.final_learning_rate_fraction
        return fingerprint(
            [
                *(repr(words), repr(fraction), self.learner.words, str(self.seed), str(self.temperature_K)),
                *map(str, (AVERAGE_START, self.learner.average_updates)),
                self.term.words if self.term else "",
            ],
            [*initial.state_dict().values(), *map(torch.from_numpy, self._weighted())],
        )

    def _weighted(self) -> list[Shaped[np.ndarray, "..."]]:
        """All of the data that decides the course of a training."""
        data = self.data
        return [data.training, data.held_out, *(() if data.chances is None else (data.chances, data.weights))]

    @property
    def finished(self) -> bool:
        """Whether all updates are done, patience is spent, or the held-out S is no number any more."""
        last = self.history[-1]
        return (
            self.updates_done >= self.learner.updates
            or last.update - self.best.update >= self.learner.patience_updates
            or not math.isfinite(last.held_out_change_kT)
        )

    @property
    def look_is_due(self) -> bool:
        """Whether so many updates are done."""
        return self.updates_done % self.entropy.look_updates == 0 or self.updates_done >= self.learner.updates

    def note(self) -> str:
        last = self.history[-1]
        return (
            f"change of relative entropy {last.held_out_change_kT:.2f} +- {last.standard_error_kT:.2f}, best "
            f"{self.best.held_out_change_kT:.2f}"
        )

    def update(self) -> None:
        """Run the replicas, and change the weights by what they and the data say."""
        self.updates_done += 1
        generator = np.random.default_rng([self.seed, self.updates_done])
        record = self._run(self.learner.now(), self.replicas, self.entropy.dynamics, generator)
        model = record.positions[record.sound]
        if not len(model):
            raise Diverged(
                f"training: every replica was lost in update {self.updates_done}; lower "
                "training.relative_entropy.learning_rate or training.relative_entropy.dynamics.timestep_ps"
            )
        self._descend(self._draw(generator, len(model)), model)
        self._begin_anew(record, generator)
        self._follow(generator)

    def _descend(self, data: Positions, model: Positions) -> None:
        """One step of the optimiser along the gradient."""
        learner = self.learner
        gap, gradient = learner.gradient(data, model)
        self.gaps.append(gap)
        if self.term:
            gradient += self.term.gradient(learner.weights, np.random.default_rng([self.seed, self.updates_done, 2]))
        self.rate = annealed(
            learner.learning_rate,
            self.params.final_learning_rate_fraction,
            (self.updates_done - 1) / max(learner.updates - 1, 1),
        )
        learner.optimiser.param_groups[0]["lr"] = self.rate
        length = torch.linalg.vector_norm(gradient)
        learner.weights.grad = gradient.mul_((learner.gradient_clip / length).clamp_(max=1.0))
        learner.optimiser.step()
        kept = min(1.0 - 1.0 / self.learner.average_updates, self.updates_done / (self.updates_done + AVERAGE_START))
        learner.average.lerp_(learner.weights, 1.0 - kept)

    def _begin_anew(self, record: Record, generator: np.random.Generator) -> None:
        """Keep the replicas where they are, but for those lost and a few more, which are put to training frames."""
        lost = record.end.cause != 0
        self.lost += int(lost.sum())
        self.replicas = record.end.positions
        some = generator.choice(len(lost), round(self.entropy.restarted_fraction * len(lost)), replace=False)
        lost[some] = True
        self.replicas[lost] = self._draw(generator, int(lost.sum()))

    def _follow(self, generator: np.random.Generator) -> None:
        """Weigh the replicas that the updates never see, and have them run on under the new averaged weights."""
        rise = self._energies(self._here()) - self.last_energies
        self.population = self.population.weigh(rise).draw_anew(generator)
        self._move(self.entropy.look_steps, generator, self.learner.model())

    def _settle(self, generator: np.random.Generator) -> None:
        """Let them forget the training frames; under the prior alone, which is fast, where the network is silent."""
        model = self.learner.model()
        if not self.initial_energies.any():
            model = without_network(model.prior).to(self.device)
        self._move(self.entropy.settle_steps, generator, model)

    def _move(self, steps: int, generator: np.random.Generator, model: Potential) -> None:
        section = self.entropy.dynamics.model_copy(update={"steps": steps, "stride": steps})
        record = self._run(model, self.population.positions, section, generator)
        self.population = self.population.move(record.end.positions)  # a lost one stays where it was: a refused move
        self.last_energies = self._energies(self._here())

    def _here(self) -> Tensor:
        return torch.from_numpy(self.population.positions).to(self.device)

    def look(self) -> None:
        """See what the averaged weights are worth on the held-out frames, and keep them if none were better."""
        of_term = self._term() - self.initial_term
        changes = self._energies(self.held_out) - self.initial_energies + of_term
        change = float(np.average(changes, weights=self.data.weights)) + self.population.log_ratio
        error = math.sqrt(_variance_of_mean(changes, self.data.weights, self.data.blocks) + self.population.variance)
        gap = float(np.mean(self.gaps)) if self.gaps else 0.0
        effective, share = self.population.effective, float(np.average(of_term, weights=self.data.weights))
        look = LookRecord(self.updates_done, gap, change, error, effective, self.lost, self.rate, share)
        lowest = min((record.held_out_change_kT for record in self.history), default=math.inf)
        if change < lowest + self.learner.tolerance * error:
            self.best, self.best_weights = look, self.learner.average.clone()
        self.history.append(look)
        self.gaps, self.lost = [], 0

    def _term(self) -> Float64[np.ndarray, " held_out"]:
        """The further term of the averaged weights on each held-out frame; zero where there is none."""
        return self.term.held_out(self.learner.average) if self.term else np.zeros(len(self.data.blocks))

    def _energies(self, positions: Tensor) -> Float64[np.ndarray, " frames"]:
        """Energies of the averaged weights [k_B T]."""
        return np.asarray(self.learner.energies(positions).double().cpu().numpy() / self.kT)

    def _draw(self, generator: np.random.Generator, count: int) -> Positions:
        """Training frames, by their weights; without any, none twice while there are enough."""
        frames, chances = self.data.training, self.data.chances
        twice = len(frames) < count or chances is not None
        return frames[generator.choice(len(frames), count, replace=twice, p=chances)]

    def _run(
        self, model: Potential, home: Positions, section: DynamicsParams, generator: np.random.Generator
    ) -> Record:
        return run_from(
            model,
            home,
            section,
            temperature_K=self.temperature_K,
            seed=int(generator.integers(2**31)),
            device=str(self.device),
        )

    def save(self, scratch: Path | None) -> None:
        """Write what `resume` needs."""
        if scratch is None:
            return
        population = self.population
        write_state(
            scratch,
            {
                "fingerprint": self.fingerprint,
                "weights": self.learner.weights,
                "average": self.learner.average,
                "best": tuple(self.best),
                "best_weights": self.best_weights,
                "optimiser": self.learner.optimiser.state_dict(),
                "replicas": torch.from_numpy(self.replicas),
                "population": [torch.from_numpy(population.positions), torch.from_numpy(population.log_weights)],
                "past": (population.past, population.past_variance),
                "history": [tuple(record) for record in self.history],
            },
        )

    def resume(self, scratch: Path | None) -> None:
        """Begin, or continue from `scratch`, if what lies there is of this very training."""
        state: dict[str, Any] = read_state(scratch, self.fingerprint)
        if not state:
            self._settle(np.random.default_rng([self.seed, 0, 1]))
            self.look()
            return
        self.learner.weights.copy_(state["weights"])
        self.learner.average.copy_(state["average"])
        self.best, self.best_weights = LookRecord(*state["best"]), state["best_weights"]
        self.learner.optimiser.load_state_dict(state["optimiser"])
        self.replicas = state["replicas"].numpy()
        self.population = Population(*(part.numpy() for part in state["population"]), *state["past"])
        self.history = [LookRecord(*record) for record in state["history"]]
        self.updates_done = self.history[-1].update
        self.last_energies = self._energies(self._here())


def _variance_of_mean(
    values: Float64[np.ndarray, " frames"],
    weights: Float64[np.ndarray, " frames"],
    blocks: Int64[np.ndarray, " frames"],
) -> float:
    """Variance of the weighted mean of values that come in independent blocks; nothing is known of one alone: zero."""
    _, block, counts = np.unique(blocks, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return 0.0
    excess = np.bincount(block, weights * (values - np.average(values, weights=weights)))
    return float((excess**2).sum() / weights.sum() ** 2 * len(counts) / (len(counts) - 1))


def _preflight(result: RelativeEntropyResult, objective: str) -> None:
    """Stop a round whose model has learned nothing before its simulation, labels and time are spent on it."""
    if result.best.update:
        return
    raise PreflightFailed(
        f"{objective.replace('_', ' ')}: on the held-out frames it never fell below that of the prior alone "
        f"({result.train_frames} frames trained on, {result.held_out_frames} held out): too few frames, or no "
        "equilibrium of them; use more seed frames, lower training.relative_entropy.learning_rate, or set "
        "training.preflight: false to go on all the same"
    )
