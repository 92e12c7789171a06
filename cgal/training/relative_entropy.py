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
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped
from torch import Tensor

from cgal.errors import BadParams, BadTrajectory, Diverged, EmptyTrajectory, PreflightFailed
from cgal.frames import LabelledFrames
from cgal.params import DynamicsParams, SchNetParams, TrainingParams
from cgal.potential.architectures import architecture_of, new_network
from cgal.potential.potential import Potential
from cgal.potential.prior import Prior
from cgal.progress import Progress, silent
from cgal.simulation.run import Record, run_from
from cgal.training.held_out import held_out_masks, require_both
from cgal.training.population import Population
from cgal.training.runs import annealed, deterministic_algorithms, fingerprint, read_state, write_state
from cgal.units import thermal_energy_kJ_per_mol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LookRecord", "RelativeEntropyResult", "Term", "train"]

AVERAGE_START = 10
"""The average of the weights begins as one over a tenth of the updates that have been; zeroth weights soon fade."""

type Positions = Float32[np.ndarray, "_ beads 3"]


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
    """The potential with the averaged weights of the best look (lowest held-out S), and how they were found."""

    potential: Potential
    history: tuple[LookRecord, ...]
    train_frames: int
    held_out_frames: int

    @property
    def best(self) -> LookRecord:
        """The look with the lowest held-out S."""
        return _best(self.history)

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

    def draw(self, figure: "Figure") -> None:
        """Draw the held-out change of S with its standard error, and the learning rate, by update."""
        updates, _, change, error, _, _, rates, _ = np.array(self.history, dtype=float).T
        entropy, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        entropy.plot(updates, change, color="#d1495b", label="held out")
        entropy.fill_between(updates, change - error, change + error, color="#d1495b", alpha=0.25, linewidth=0)
        entropy.axhline(0.0, color="#222222", linestyle=":", label="as it began")
        entropy.axvline(self.best.update, color="#edae49", linewidth=1, label=f"best, update {self.best.update}")
        entropy.set(ylabel="change of relative entropy")
        entropy.legend(frameon=False, fontsize=8)
        rate.plot(updates[1:], rates[1:], color="#222222")
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
    on or to hold out), Diverged (every replica was lost), PreflightFailed (S never fell below that of the prior alone,
    unless `params.preflight` is false).
    """
    if others := set(priors or ()) - {initial.sequence}:
        raise BadParams(
            f"training.objective: {params.objective} trains on one protein, but {', '.join(sorted(others))} came "
            f"beside {initial.sequence}; set training.objective: force_matching, or give one protein"
        )
    data = _prepare(shards, initial, params)
    with deterministic_algorithms():
        term = make_term(shards, initial, params, data.looked_at) if make_term else None
        run = Run(initial, data, params, seed, term)
        run.resume(scratch)
        while not run.finished:
            run.update()
            progress(run.updates_done, params.relative_entropy.updates, run.note())
            if run.look_is_due:
                run.look()
                run.save(scratch)
    potential = deepcopy(initial)
    torch.nn.utils.vector_to_parameters(run.best_weights.clone(), potential.network.parameters())
    result = RelativeEntropyResult(potential, tuple(run.history), len(data.training), len(data.held_out))
    if params.preflight and not params.warm_start:
        _preflight(result, params.objective)
    return result


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


def _prepare(shards: Sequence[LabelledFrames], initial: Potential, params: TrainingParams) -> Data:
    """Part the frames of all shards."""
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


def _best(history: Sequence[LookRecord]) -> LookRecord:
    return min(history, key=lambda record: record.held_out_change_kT)


class Run:
    """State of one training, which `save` writes and `resume` reads; the potential that it is given stays as it is."""

    def __init__(
        self,
        initial: Potential,
        data: Data,
        params: TrainingParams,
        seed: int,
        term: Term | None = None,
    ) -> None:
        self.data, self.term = data, term
        self.params, self.entropy, self.seed = params, params.relative_entropy, seed
        self.device = initial.types.device
        self.held_out = torch.from_numpy(data.held_out).to(self.device)
        self.temperature_K = initial.prior.temperature_K
        self.kT = thermal_energy_kJ_per_mol(self.temperature_K)
        self.fingerprint = self._fingerprint(initial)
        energies = architecture_of(initial.network.params).energies
        self.now, self.average = energies(initial.network), energies(initial.network)
        self.fast = Potential(initial.prior, self.now.network, initial.sequence).to(self.device)
        self.model = Potential(initial.prior, self.average.network, initial.sequence).to(self.device)
        self.weights, self.best_weights = self.now.weights, self.average.weights.clone()
        self.optimiser = torch.optim.Adam([self.weights], lr=self.entropy.learning_rate)
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
                *(repr(words), repr(fraction), repr(initial.network.params), str(self.seed), str(self.temperature_K)),
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
        last, best = self.history[-1], _best(self.history)
        return (
            self.updates_done >= self.entropy.updates
            or last.update - best.update >= self.entropy.patience_updates
            or not math.isfinite(last.held_out_change_kT)
        )

    @property
    def look_is_due(self) -> bool:
        """Whether so many updates are done."""
        return self.updates_done % self.entropy.look_updates == 0 or self.updates_done >= self.entropy.updates

    def note(self) -> str:
        last, best = self.history[-1], _best(self.history)
        return (
            f"change of relative entropy {last.held_out_change_kT:.2f} +- {last.standard_error_kT:.2f}, best "
            f"{best.held_out_change_kT:.2f}"
        )

    def update(self) -> None:
        """Run the replicas, and change the weights by what they and the data say."""
        self.updates_done += 1
        generator = np.random.default_rng([self.seed, self.updates_done])
        record = self._run(self.fast, self.replicas, self.entropy.dynamics, generator)
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
        """One step of the optimiser along the gradient of S, and of the mean squared energies times their weight."""
        positions = torch.from_numpy(np.concatenate([data, model])).to(self.device)
        share = 1.0 / (len(data) * self.kT)
        linear = torch.full(positions.shape[:1], share, device=self.device)
        linear[len(data) :] = -share
        quadratic = torch.full_like(linear, 2 * self.entropy.energy_penalty * share / self.kT)
        energies, gradient = self.now.gradient(self.fast.types, positions, linear, quadratic)
        self.gaps.append(float((linear * energies).double().sum()))
        if self.term:
            gradient += self.term.gradient(self.weights, np.random.default_rng([self.seed, self.updates_done, 2]))
        self.rate = annealed(
            self.entropy.learning_rate,
            self.params.final_learning_rate_fraction,
            (self.updates_done - 1) / max(self.entropy.updates - 1, 1),
        )
        self.optimiser.param_groups[0]["lr"] = self.rate
        length = torch.linalg.vector_norm(gradient)
        self.weights.grad = gradient.mul_((self.entropy.gradient_clip / length).clamp_(max=1.0))
        self.optimiser.step()
        kept = min(1.0 - 1.0 / self.entropy.average_updates, self.updates_done / (self.updates_done + AVERAGE_START))
        self.average.weights.lerp_(self.weights, 1.0 - kept)

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
        self._move(self.entropy.look_steps, generator, self.model)

    def _settle(self, generator: np.random.Generator) -> None:
        """Let them forget the training frames; under the prior alone, which is fast, where the network is silent."""
        model = self.model
        if not self.initial_energies.any():
            silent_network = new_network(SchNetParams(features=1, blocks=1, radial_functions=2), 0)
            model = Potential(self.model.prior, silent_network, self.model.sequence).to(self.device)
        self._move(self.entropy.settle_steps, generator, model)

    def _move(self, steps: int, generator: np.random.Generator, model: Potential) -> None:
        section = self.entropy.dynamics.model_copy(update={"steps": steps, "stride": steps})
        record = self._run(model, self.population.positions, section, generator)
        self.population = self.population.move(record.end.positions)  # a lost one stays where it was: a refused move
        self.last_energies = self._energies(self._here())

    def _here(self) -> Tensor:
        return torch.from_numpy(self.population.positions).to(self.device)

    def look(self) -> None:
        """See what the averaged weights are worth on the held-out frames; keep them if none had a lower S."""
        of_term = self._term() - self.initial_term
        changes = self._energies(self.held_out) - self.initial_energies + of_term
        change = float(np.average(changes, weights=self.data.weights)) + self.population.log_ratio
        error = math.sqrt(_variance_of_mean(changes, self.data.weights, self.data.blocks) + self.population.variance)
        gap = float(np.mean(self.gaps)) if self.gaps else 0.0
        effective, share = self.population.effective, float(np.average(of_term, weights=self.data.weights))
        self.history.append(LookRecord(self.updates_done, gap, change, error, effective, self.lost, self.rate, share))
        self.gaps, self.lost = [], 0
        if _best(self.history) is self.history[-1]:
            self.best_weights = self.average.weights.clone()

    def _term(self) -> Float64[np.ndarray, " held_out"]:
        """The further term of the averaged weights on each held-out frame; zero where there is none."""
        return self.term.held_out(self.average.weights) if self.term else np.zeros(len(self.data.blocks))

    def _energies(self, positions: Tensor) -> Float64[np.ndarray, " frames"]:
        """Energies of the averaged weights [k_B T]."""
        energies: Float64[np.ndarray, " frames"] = (
            self.average.energies(self.model.types, positions).double().cpu().numpy() / self.kT
        )
        return energies

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
                "weights": self.weights,
                "average": self.average.weights,
                "best_weights": self.best_weights,
                "optimiser": self.optimiser.state_dict(),
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
        self.weights.copy_(state["weights"])
        self.average.weights.copy_(state["average"])
        self.best_weights = state["best_weights"]
        self.optimiser.load_state_dict(state["optimiser"])
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
