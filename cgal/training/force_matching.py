"""Force matching: fit the network to the projected forces that the prior leaves unexplained.

Loss (Noid et al., J. Chem. Phys. 128, 244114 (2008); Husic et al., J. Chem. Phys. 153, 194101 (2020)) over M frames
of n beads:

    chi^2 = 1 / (3 n M) sum | F_prior(x) + F_network(x) - Xi_F f |^2

Errors along the CA-CA bonds count `bond_weight` times: their noise is the greatest, and the prior's springs are there.
The prior is fixed, so its forces are taken off the labels once and the network alone is trained. The noise of the
labels is part of chi^2: the held-out error of a perfect model is that noise, not zero. How the gradient of chi^2 along
the weights is found is told in `cgal.potential.force_matching`.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from cgal.errors import BadTrajectory, PreflightFailed
from cgal.figures import ACCENT, MODEL, REFERENCE, TRAINING
from cgal.frames import LabelledFrames
from cgal.params import TrainingParams
from cgal.potential.architectures import architecture_of
from cgal.potential.force_matching import ForceMatching, ParallelMap, worker_threads
from cgal.potential.network import Network, bead_types
from cgal.potential.potential import Potential
from cgal.potential.prior import Prior
from cgal.progress import Progress, silent
from cgal.projection.bonds import weigh_bonds
from cgal.training.held_out import held_out_masks, require_both
from cgal.training.runs import NETWORK, annealed, deterministic_algorithms, fingerprint, read_state, write_state

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

__all__ = ["EpochRecord", "ForceMatchingResult", "Validation", "check_shards", "mean_square", "prepare", "train"]

AVERAGE_START = 10
"""The average of the weights begins as one over a tenth of the steps that have been."""

EVALUATION_BATCH = 256
"""Frames evaluated at once when no weight gradient is wanted."""

NOT_IN_FINGERPRINT = {
    "checkpoint_epochs",
    "forces_and_noise",
    "forces_and_populations",
    "frame_weights",
    "markov",
    "members",
    "objective",
    "preflight",
    "relative_entropy",
    "warm_start",
}
"""Training parameters that leave the course of a training as it is."""


class EpochRecord(NamedTuple):
    """Force errors of one epoch, root mean square over frames, beads and axes; epoch 0 is the potential as given.

    Errors along bonds are weighted (`bond_weight`). The training error is the mean over the epoch's batches, each
    before its step.
    """

    epoch: int
    train_rmse_kJ_per_mol_nm: float
    validation_rmse_kJ_per_mol_nm: float
    learning_rate: float


class Validation(NamedTuple):
    """Force errors on the held-out blocks, of the prior alone and of the best model; both include the label noise."""

    train_frames: int
    held_out_frames: int
    prior_rmse_kJ_per_mol_nm: float
    model_rmse_kJ_per_mol_nm: float

    @property
    def explained_fraction(self) -> float:
        """Share of the prior's mean squared held-out error that the network takes away."""
        return 1.0 - (self.model_rmse_kJ_per_mol_nm / self.prior_rmse_kJ_per_mol_nm) ** 2


@dataclass(frozen=True, eq=False)
class ForceMatchingResult:
    """The potential with the weights of the best epoch (lowest held-out error), and how they were found.

    `proteins` has the validation of each sequence where there are several.
    """

    potential: Potential
    history: tuple[EpochRecord, ...]
    validation: Validation
    best_epoch: int
    proteins: Mapping[str, Validation] = field(default_factory=dict)

    @property
    def curves(self) -> Mapping[str, tuple[EpochRecord, ...]]:
        """The epochs."""
        return {NETWORK: self.history}

    def summary(self) -> dict[str, float | int]:
        """Numbers for a checkpoint's metadata and a round's metrics."""
        return {
            **self.validation._asdict(),
            "explained_fraction": self.validation.explained_fraction,
            "best_epoch": self.best_epoch,
            "epochs": len(self.history) - 1,
            **{f"explained_fraction/{name}": each.explained_fraction for name, each in self.proteins.items()},
        }

    def draw(self, figure: "FigureBase") -> None:
        """Draw force errors and learning rate by epoch."""
        epochs, train_rmse, validation_rmse, rates = np.array(self.history, dtype=float).T
        errors, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        errors.plot(epochs, train_rmse, color=TRAINING, label="training")
        errors.plot(epochs, validation_rmse, color=MODEL, label="held out")
        prior_rmse = self.validation.prior_rmse_kJ_per_mol_nm
        errors.axhline(prior_rmse, color=REFERENCE, linestyle=":", label="prior alone, held out")
        errors.axvline(self.best_epoch, color=ACCENT, linewidth=1, label=f"best, epoch {self.best_epoch}")
        errors.set(ylabel="force error, rms [kJ/mol/nm]")
        errors.legend(frameon=False, fontsize=8)
        rate.plot(epochs[1:], rates[1:], color=REFERENCE)
        rate.set(xlabel="epoch", ylabel="learning rate")


def train(
    shards: Sequence[LabelledFrames],
    initial: Potential,
    params: TrainingParams,
    *,
    seed: int,
    scratch: Path | None = None,
    priors: Mapping[str, Prior] | None = None,
    progress: Progress = silent,
) -> ForceMatchingResult:
    """Train the network of `initial` (which stays as it was) on the labelled frames of all shards.

    Blocks of consecutive frames are held out (see `held_out_masks`); training stops when the error on them has not
    fallen for `params.patience_epochs`, and the weights of the best epoch are kept. Shards may be of several
    proteins: `priors` then gives the prior of each sequence other than `initial.sequence`, every batch is of
    one protein, and each has its frames held out; a frame counts by its beads, whatever protein it is of. Runs on the
    device of `initial`. With a `scratch` folder a killed training continues from its last checkpoint there and ends
    with the same weights, to the bit.

    Raises BadTrajectory (a label is not finite, or a protein has no prior), EmptyTrajectory (nothing to train on or
    to hold out), PreflightFailed (held-out error not below the prior's, unless `params.preflight` is false).
    """
    with deterministic_algorithms(), worker_threads() as parallel_map:
        training, held_out = prepare(shards, _as_in_potentials(priors or {}, initial), params)
        run = Run(initial.network, training, held_out, params, seed, parallel_map)
        run.resume(scratch)
        while not run.finished:
            run.epoch()
            run.save(scratch)
            progress(run.epochs_done, params.epochs, run.note())
        proteins = run.validate_each()
    validation = Validation(_count(training), _count(held_out), run.prior_rmse, run.best_rmse)
    if params.preflight:
        _preflight(validation)
    potential = deepcopy(initial)
    vector_to_parameters(run.best_weights, potential.network.parameters())
    return ForceMatchingResult(potential, tuple(run.history), validation, run.best_epoch, proteins)


def _as_in_potentials(priors: Mapping[str, Prior], initial: Potential) -> dict[str, Prior]:
    """Priors by sequence as their potentials have them: in float32, on the device of `initial`."""
    device = initial.types.device
    cast = {sequence: deepcopy(prior).float().to(device) for sequence, prior in priors.items()}
    return cast | {initial.sequence: initial.prior}


class Frames(NamedTuple):
    """Frames of one protein: bead types, positions [nm] and the forces that the prior leaves over [kJ/mol/nm]."""

    sequence: str
    types: Int64[Tensor, " beads"]
    positions: Float[Tensor, "frames beads 3"]
    residuals: Float[Tensor, "frames beads 3"]

    def take(self, index: Tensor) -> "Frames":
        return self._replace(positions=self.positions[index], residuals=self.residuals[index])

    def split(self, size: int) -> "Iterator[Frames]":
        """Batches of frames in order."""
        for positions, residuals in zip(self.positions.split(size), self.residuals.split(size), strict=True):
            yield self._replace(positions=positions, residuals=residuals)


def prepare(
    shards: Sequence[LabelledFrames], priors: Mapping[str, Prior], params: TrainingParams
) -> tuple[list[Frames], list[Frames]]:
    """Frames to train on and frames held out, one entry per protein, in order of sequence."""
    training, held_out = [], []
    masks = held_out_masks(shards, params)
    check_shards(shards, priors)
    for sequence in sorted({shard.sequence for shard in shards}):
        chosen = [index for index, shard in enumerate(shards) if shard.sequence == sequence]
        frames = _residuals([shards[index] for index in chosen], priors[sequence])
        mask = torch.from_numpy(np.concatenate([masks[index] for index in chosen])).to(frames.positions.device)
        require_both(int((~mask).sum()), int(mask.sum()), params, f"labelled frames of {sequence}")
        training.append(frames.take(~mask))
        held_out.append(frames.take(mask))
    return training, held_out


def check_shards(shards: Sequence[LabelledFrames], with_prior: Collection[str]) -> None:
    """Raise BadTrajectory when a label is not finite, or a shard is of no sequence that has a prior."""
    for number, shard in enumerate(shards):
        if shard.sequence not in with_prior:
            raise BadTrajectory(
                f"shard {number:03d} is of protein {shard.sequence}, for which no prior is given; train on shards of "
                f"{', '.join(sorted(with_prior))} or fit a prior for it"
            )
        finite = np.isfinite(shard.positions).all(axis=(1, 2)) & np.isfinite(shard.forces).all(axis=(1, 2))
        if not finite.all():
            raise BadTrajectory(
                f"shard {number:03d}, frame {np.flatnonzero(~finite)[0]}: position or force not finite; label the "
                "frame again or take it out of the shard"
            )


def _residuals(shards: Sequence[LabelledFrames], prior: Prior) -> Frames:
    """All frames of one protein with the prior's forces taken off, on the prior's device."""
    device = prior.bond_length_nm.device
    positions = torch.from_numpy(np.concatenate([shard.positions for shard in shards])).to(device)
    forces = torch.from_numpy(np.concatenate([shard.forces for shard in shards])).to(device)
    residuals = forces - prior.forces(positions.double()).float()
    sequence = shards[0].sequence
    return Frames(sequence, bead_types(sequence).to(device), positions, residuals)


def _count(proteins: Sequence[Frames]) -> int:
    return sum(len(frames.positions) for frames in proteins)


def _components(proteins: Sequence[Frames]) -> int:
    return sum(frames.residuals.numel() for frames in proteins)


def mean_square(proteins: Sequence[Frames], bond_weight: float, matching: ForceMatching | None = None) -> float:
    """Mean squared weighted force error [(kJ/mol/nm)^2] over all frames: of the prior alone, or with the network."""
    total, components = 0.0, 0
    for frames in proteins:
        for batch in frames.split(EVALUATION_BATCH):
            errors = batch.residuals
            if matching is not None:
                errors = errors - matching.forces(batch.types, batch.positions)
            weighted = weigh_bonds(batch.positions, errors, bond_weight)
            total += float((errors.double() * weighted.double()).sum())
            components += errors.numel()
    return total / components


class Run:
    """State of one training, which `save` writes and `resume` reads; the network that it is given stays as it is."""

    def __init__(
        self,
        network: Network,
        training: list[Frames],
        held_out: list[Frames],
        params: TrainingParams,
        seed: int,
        parallel_map: ParallelMap,
    ) -> None:
        self.training, self.held_out, self.params = training, held_out, params
        self.fingerprint = fingerprint(
            [params.model_dump_json(exclude=NOT_IN_FINGERPRINT), network.params.model_dump_json(), str(seed)],
            [*network.state_dict().values(), *(part for frames in [*training, *held_out] for part in frames[1:])],
        )
        self.matching = architecture_of(network.params).force_matching(
            network, [frames.positions for frames in [*training, *held_out]], parallel_map, params.bond_weight
        )
        self.weights = self.matching.weights
        self.generator = torch.Generator().manual_seed(seed)
        self.average = self.weights.clone()
        self.optimiser = torch.optim.AdamW(
            [self.weights], lr=params.learning_rate, weight_decay=self._decay(), fused=True
        )
        self.scale = max(mean_square(training, params.bond_weight), 1e-12)
        self.components_per_frame = _components(training) / _count(training)
        self.prior_rmse = math.sqrt(mean_square(held_out, params.bond_weight))
        self.history: list[EpochRecord] = []
        self.best_epoch, self.best_rmse, self.best_weights = 0, math.inf, self.weights.clone()
        self._record(math.sqrt(mean_square(training, params.bond_weight, self.matching)), 0.0)

    @property
    def epochs_done(self) -> int:
        return len(self.history) - 1

    @property
    def finished(self) -> bool:
        return (
            self.epochs_done >= self.params.epochs
            or self.epochs_done - self.best_epoch >= self.params.patience_epochs
            or not math.isfinite(self.history[-1].train_rmse_kJ_per_mol_nm)
        )

    @property
    def _steps(self) -> int:
        """Steps of the optimiser in an epoch."""
        return sum(-(-len(frames.positions) // self.params.batch_size) for frames in self.training)

    def _rate(self, epoch: int) -> float:
        """Learning rate of an epoch, the first being 0."""
        done = epoch / max(self.params.epochs - 1, 1)
        return annealed(self.params.learning_rate, self.params.final_learning_rate_fraction, done)

    def _decay(self) -> float:
        """AdamW's own, which shrinks weights by its product with the learning rate at each step; not below zero."""
        rates = sum(self._rate(epoch) for epoch in range(self.params.epochs))
        return min(self.params.weight_decay / (self._steps * rates), 1.0 / self.params.learning_rate)

    def note(self) -> str:
        return (
            f"held-out force error {self.history[-1].validation_rmse_kJ_per_mol_nm:.1f}, best {self.best_rmse:.1f}, "
            f"prior alone {self.prior_rmse:.1f} kJ/mol/nm"
        )

    def epoch(self) -> None:
        """One pass over the training frames, then the held-out error."""
        rate = self._rate(self.epochs_done)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        errors = [self.step(batch) for batch in self._batches()]
        self._record(math.sqrt(float(torch.stack(errors).sum()) / _components(self.training)), rate)

    def _batches(self) -> Iterator[Frames]:
        """Shuffled batches, each of one protein, in shuffled order."""
        batches = [
            frames.take(index.to(frames.positions.device))
            for frames in self.training
            for index in torch.randperm(len(frames.positions), generator=self.generator).split(self.params.batch_size)
            if len(index)
        ]
        for number in torch.randperm(len(batches), generator=self.generator).tolist():
            yield batches[number]

    def step(self, batch: Frames) -> Float64[Tensor, ""]:
        """One step of the optimiser; returns the batch's sum of squared force errors before it."""
        mean_square, gradient = self.matching.gradient(batch.types, batch.positions, batch.residuals)
        share = batch.residuals[0].numel() / self.components_per_frame  # a frame counts by its beads; of one protein: 1
        length = torch.linalg.vector_norm(gradient.div_(self.scale / share))
        self.weights.grad = gradient.mul_((self.params.gradient_clip / length).clamp_(max=1.0))
        self.optimiser.step()
        self._average()
        return mean_square * batch.residuals.numel()

    def _average(self) -> None:
        """Have the average follow; the weights as they began soon fade from it."""
        steps = float(next(iter(self.optimiser.state.values()))["step"])
        memory = self.params.average_epochs * self._steps
        kept = min(1.0 - 1.0 / max(memory, 1.0), steps / (steps + AVERAGE_START)) if memory else 0.0
        self.average.lerp_(self.weights, 1.0 - kept)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the average in place of the weights, and these back."""
        weights = self.weights.clone()
        self.weights.copy_(self.average)
        yield
        self.weights.copy_(weights)

    def _record(self, train_rmse: float, rate: float) -> None:
        """Note the epoch, and keep its weights if no held-out error was lower."""
        with self._averaged():
            validation_rmse = math.sqrt(mean_square(self.held_out, self.params.bond_weight, self.matching))
        self.history.append(EpochRecord(len(self.history), train_rmse, validation_rmse, rate))
        if validation_rmse < self.best_rmse:
            self.best_epoch, self.best_rmse = self.epochs_done, validation_rmse
            self.best_weights = self.average.clone()

    def validate_each(self) -> dict[str, Validation]:
        """Put the best weights in place, and see what they are worth for each protein, where there are several."""
        if len(self.training) == 1:
            return {}
        self.weights.copy_(self.best_weights)
        weight = self.params.bond_weight
        return {
            held_out.sequence: Validation(
                len(training.positions),
                len(held_out.positions),
                math.sqrt(mean_square([held_out], weight)),
                math.sqrt(mean_square([held_out], weight, self.matching)),
            )
            for training, held_out in zip(self.training, self.held_out, strict=True)
        }

    def save(self, scratch: Path | None) -> None:
        """Every `checkpoint_epochs`, write what `resume` needs."""
        if scratch is None or (self.epochs_done % self.params.checkpoint_epochs and not self.finished):
            return
        write_state(
            scratch,
            {
                "fingerprint": self.fingerprint,
                "weights": self.weights,
                "average": self.average,
                "optimiser": self.optimiser.state_dict(),
                "generator": self.generator.get_state(),
                "history": [tuple(record) for record in self.history],
                "best": (self.best_epoch, self.best_rmse),
                "best_weights": self.best_weights,
            },
        )

    def resume(self, scratch: Path | None) -> None:
        """Continue from `scratch`, if what lies there is of this very training (same data, weights, numbers, seed)."""
        state = read_state(scratch, self.fingerprint)
        if not state:
            return
        self.weights.copy_(state["weights"])
        self.average.copy_(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.history = [EpochRecord(*record) for record in state["history"]]
        self.best_epoch, self.best_rmse = state["best"]
        self.best_weights = state["best_weights"]


def _preflight(validation: Validation) -> None:
    """Stop a round whose model has learned nothing before its simulation, labels and time are spent on it."""
    if validation.model_rmse_kJ_per_mol_nm < validation.prior_rmse_kJ_per_mol_nm:
        return
    raise PreflightFailed(
        f"held-out force error {validation.model_rmse_kJ_per_mol_nm:.2f} kJ/mol/nm of the trained model is not below "
        f"{validation.prior_rmse_kJ_per_mol_nm:.2f} of the prior alone ({validation.train_frames} frames trained on, "
        f"{validation.held_out_frames} held out): too few or too noisy labels for this network; use mean-force labels "
        "or more seed frames, lower training.learning_rate, or set training.preflight: false to go on all the same"
    )
