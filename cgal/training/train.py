"""Training by the objective that `training.objective` names: `train` of the module of that name, like the one here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cgal.frames import LabelledFrames
from cgal.params import TrainingParams
from cgal.potential.potential import Potential
from cgal.potential.prior import Prior
from cgal.progress import Progress, silent
from cgal.training import linear, linear_populations
from cgal.training.forces_and_noise import noised
from cgal.training.linear import Rung
from cgal.training.linear_populations import PopulationsRung, Refit
from cgal.training.members import train_members
from cgal.training.runs import NETWORK, TrainingResult, widen

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

__all__ = ["fit_rung", "train"]


def train(
    shards: Sequence[LabelledFrames],
    initial: Potential,
    params: TrainingParams,
    *,
    seed: int,
    scratch: Path | None = None,
    priors: Mapping[str, Prior] | None = None,
    progress: Progress = silent,
) -> TrainingResult:
    """Train the network of `initial` (which stays as it was) on the frames of all shards, on its device.

    A share of the frames is held out and says which weights are best. Shards may be of several proteins, which then
    train one network: `priors` gives the prior of each sequence (`initial` has that of its own), and the network's
    weights do not depend on whose potential `initial` is. With a `scratch` folder a killed training
    continues from its last checkpoint there and ends with the same weights, to the bit. Raises what the objective does.

    With `params.members` more than one, the model is the mean of so many networks (`cgal.training.members`).
    With `params.linear_rung` the prior of the potential has a linear rung if frames left out say that it helps, and the
    network learns what that leaves over. Objectives that want frames in equilibrium fit it to their populations
    (`cgal.training.linear_populations`), and move it beneath the network in the end; where that does not help, and for
    all others, it is fitted to the forces (`cgal.training.linear`). A network of several proteins has none below it, as
    what it knows is to hold for others.
    """
    objective = import_module(f"cgal.training.{params.objective}").train
    run = partial(train_members, objective, seed=seed, scratch=scratch, progress=progress)
    if not params.linear_rung or {shard.sequence for shard in shards} != {initial.sequence}:
        return run(shards, initial, params, priors=priors)
    rung = fit_rung(shards, initial.prior, params, seed=seed, scratch=scratch, progress=progress)
    checks = params.model_copy(update={"preflight": params.preflight and not rung.weight})
    result = run(shards, initial.with_prior(rung.prior), checks)
    if isinstance(rung, Rung) or not rung.weight:
        return OnRung(result.potential, rung, result)
    again = linear_populations.refit(rung, result.potential, params, seed=seed, progress=progress)
    return OnRung(again.potential, rung, result, again)


def fit_rung(
    shards: Sequence[LabelledFrames],
    prior: Prior,
    params: TrainingParams,
    *,
    seed: int,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> Rung | PopulationsRung:
    """Fit a prior's linear rung: to the populations if the objective is about them and they help, else to forces.

    An objective about populations needs no forces: where frames lack them (not finite, or all zero), there is no rung
    if populations do not help. Raises what the two fits do.
    """
    if params.by_replicas:
        rung = linear_populations.fit_rung(shards, prior, params, seed=seed, scratch=scratch, progress=progress)
        if rung.weight or not all(map(_has_forces, shards)):
            return rung
    if params.objective == "forces_and_noise":  # whose prior is that of noised frames
        shards = noised(shards, params.forces_and_noise.noise_nm, prior.temperature_K, seed)
    return linear.fit_rung(shards, prior, params)


def _has_forces(shard: LabelledFrames) -> bool:
    labelled = np.isfinite(shard.forces).all(axis=(1, 2)) & shard.forces.any(axis=(1, 2))
    return bool(labelled.all())


@dataclass(frozen=True, eq=False)
class OnRung:
    """A training on top of a linear rung, which was moved beneath it afterwards if it is of populations."""

    potential: Potential
    rung: Rung | PopulationsRung
    result: TrainingResult
    refit: Refit | None = None

    @property
    def curves(self) -> Mapping[str, tuple[Any, ...]]:
        """Those of a rung which has one, and of the network."""
        return {**({} if isinstance(self.rung, Rung) else self.rung.curves), **self.result.curves}

    def summary(self) -> dict[str, float | int]:
        """Numbers of both."""
        return self.rung.summary() | self.result.summary() | (self.refit.summary() if self.refit else {})

    def draw(self, figure: "FigureBase") -> None:
        """Draw the history of the network, beside those of a rung which has one."""
        parts = {linear_populations.LINEAR_RUNG: self.rung, NETWORK: self.result}
        drawn = {title: part for title, part in parts.items() if part and not isinstance(part, Rung)}
        if len(drawn) == 1:
            self.result.draw(figure)
            return
        widen(figure, len(drawn))
        for panel, (title, part) in zip(figure.subfigures(1, len(drawn), squeeze=False)[0], drawn.items(), strict=True):
            panel.suptitle(title)
            part.draw(panel)
