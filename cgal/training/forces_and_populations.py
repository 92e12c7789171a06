"""Forces and populations: relative entropy and force matching as one likelihood, of frames and of their forces.

A frame x of the ensemble has the probability exp(-U(x) / k_B T) / Z, and its projected force scatters about the mean
force -dU/dx with a variance s^2 on each of its 3 n components. Minus the logarithm of both, a frame, is

    S + w 3 n / 2 chi^2 / s^2

with S of `cgal.training.relative_entropy`, chi^2 of `cgal.training.force_matching` and w = 1. For s^2 stands the mean
square that the prior leaves over: the network explains little of it. As labels of neighbouring beads, atoms and frames
are not independent, they tell less than so many, and w (`force_weight`) may be set lower. One optimiser takes the sum
of both gradients; the same sum on held-out frames says which weights are best.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from cgal.frames import LabelledFrames
from cgal.params import TrainingParams
from cgal.potential.architectures import architecture_of
from cgal.potential.force_matching import worker_threads
from cgal.potential.potential import Potential
from cgal.potential.prior import Prior
from cgal.progress import Progress, silent
from cgal.projection.bonds import weigh_bonds
from cgal.training import relative_entropy
from cgal.training.force_matching import mean_square, prepare
from cgal.training.relative_entropy import RelativeEntropyResult
from cgal.training.runs import fingerprint

__all__ = ["Forces", "train"]


def train(
    shards: Sequence[LabelledFrames],
    initial: Potential,
    params: TrainingParams,
    *,
    seed: int,
    scratch: Path | None = None,
    priors: Mapping[str, Prior] | None = None,
    progress: Progress = silent,
) -> RelativeEntropyResult:
    """Train as `relative_entropy.train` does, with the forces beside; raises what it does, and for forces, too."""
    run = partial(relative_entropy.train, seed=seed, scratch=scratch, priors=priors, progress=progress)
    return run(shards, initial, params, make_term=Forces)


class Forces:
    """w 3 n / 2 chi^2 / s^2 of the network, a `cgal.training.relative_entropy.Term`."""

    def __init__(
        self,
        shards: Sequence[LabelledFrames],
        initial: Potential,
        params: TrainingParams,
        looked_at: Int64[np.ndarray, " looked_at"],
    ) -> None:
        (self.training,), (held_out,) = prepare(shards, {initial.sequence: initial.prior}, params)
        self.looked_at = held_out.take(torch.from_numpy(looked_at).to(held_out.positions.device))
        self.params, self.bond_weight = params.forces_and_populations, params.bond_weight
        self.matching = architecture_of(initial.network.params).force_matching(
            initial.network, [self.training.positions, self.looked_at.positions], _in_threads, self.bond_weight
        )
        scale = max(mean_square([self.training], self.bond_weight), 1e-12)
        self.share = self.params.force_weight / (2.0 * scale)
        self.words = fingerprint(
            [repr(self.params), repr(self.bond_weight)], [self.training.residuals, self.looked_at.residuals]
        )

    def gradient(self, weights: Float[Tensor, " weights"], generator: np.random.Generator) -> Float[Tensor, " weights"]:
        """Gradient along the weights on frames that are drawn."""
        total = len(self.training.positions)
        drawn = torch.from_numpy(generator.choice(total, min(total, self.params.frames), replace=False))
        batch = self.training.take(drawn.to(weights.device))
        self.matching.weights.copy_(weights)
        _, gradient = self.matching.gradient(batch.types, batch.positions, batch.residuals)
        return gradient * (self.share * batch.positions[0].numel())

    def held_out(self, weights: Float[Tensor, " weights"]) -> Float64[np.ndarray, " held_out"]:
        """Value on each held-out frame that is looked at."""
        frames = self.looked_at
        self.matching.weights.copy_(weights)
        errors = frames.residuals - self.matching.forces(frames.types, frames.positions)
        squares = errors.double() * weigh_bonds(frames.positions, errors, self.bond_weight).double()
        return np.asarray(self.share * squares.sum((1, 2)).cpu().numpy())


def _in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """`map` on the threads that torch has, which other parts of the training take in turn."""
    with worker_threads() as parallel_map:
        return list(parallel_map(function, items))
