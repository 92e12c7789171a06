"""Training by the objective that `training.objective` names."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from cgal.frames import LabelledFrames
from cgal.params import TrainingParams
from cgal.potential.potential import Potential
from cgal.potential.prior import Prior
from cgal.progress import Progress, silent
from cgal.training.runs import TrainingResult

__all__ = ["OBJECTIVES", "train"]

OBJECTIVES = {
    "force_matching": "cgal.training.force_matching",
    "relative_entropy": "cgal.training.relative_entropy",
}
"""Module of each `training.objective`, imported when it is asked for; its `train` has the signature of the one here."""


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
    """
    found: TrainingResult = import_module(OBJECTIVES[params.objective]).train(
        shards, initial, params, seed=seed, scratch=scratch, priors=priors, progress=progress
    )
    return found
