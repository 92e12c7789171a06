"""Several proteins, one network: their datasets together, and the prior of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64

from cgal.dataset import load_manifest, load_shards
from cgal.errors import BadParams, SamplingError
from cgal.frames import LabelledFrames
from cgal.params import PriorParams, TrainingParams
from cgal.potential.prior import Prior, fit_prior
from cgal.training.forces_and_noise import smeared
from cgal.training.frame_weights import effective_frames, weigh_shards

__all__ = ["TrainingSet", "load_training_set"]


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What one network is trained on: shards of one or several proteins, and by sequence the prior of each."""

    shards: tuple[LabelledFrames, ...]
    priors: Mapping[str, Prior]

    @property
    def sequences(self) -> tuple[str, ...]:
        """Sequences of the proteins, in order of their datasets."""
        return tuple(self.priors)

    def positions(self, sequence: str) -> Float32[np.ndarray, "frames beads 3"]:
        """Positions [nm] of all frames of one protein, in order of its shards."""
        return np.concatenate([shard.positions for shard in self.shards if shard.sequence == sequence])

    def weights(self, sequence: str) -> Float64[np.ndarray, " frames"] | None:
        """Weights of these frames, if they have any."""
        return _weights([shard for shard in self.shards if shard.sequence == sequence])

    def summary(self) -> dict[str, float]:
        """Effective number of frames, where they have weights."""
        weights = [shard.weights for shard in self.shards if shard.weights is not None]
        return {"effective_frames": effective_frames(np.concatenate(weights))} if weights else {}


def load_training_set(
    folders: Sequence[Path], params: PriorParams, training: TrainingParams | None = None
) -> TrainingSet:
    """Read the datasets in these folders (see `cgal.dataset`), and fit to the frames of each protein its prior.

    Frames are weighted as `training` says, if it is given; those of a seed without labels count alike where its runs
    are shorter than the lag. For an objective that noises frames, priors are those of noised frames. Raises BadParams
    when two are of the same sequence or of different temperatures, SamplingError when frames cannot be weighted, and
    what `load_shards` does.
    """
    manifests = {folder: load_manifest(folder) for folder in folders}
    owners: dict[str, Path] = {}
    for folder, manifest in manifests.items():
        if (other := owners.setdefault(manifest.sequence, folder)) != folder:
            raise BadParams(
                f"{other} and {folder} are both of {manifest.sequence}: frames of one protein share one prior; "
                "leave one out, or put its frames into the other"
            )
    temperatures_K = [f"{manifest.temperature_K:g}" for manifest in manifests.values()]
    if len(set(temperatures_K)) > 1:
        raise BadParams(
            f"{', '.join(map(str, folders))}: datasets of {', '.join(temperatures_K)} K; a network is for one"
        )
    training = training or TrainingParams()
    shards = {manifests[folder].sequence: _weigh(load_shards(folder), training) for folder in folders}
    noise_nm = training.forces_and_noise.noise_nm if training.objective == "forces_and_noise" else 0.0
    fitted = (
        fit_prior(
            np.concatenate([shard.positions for shard in shards[manifest.sequence]]),
            manifest.sequence,
            manifest.temperature_K,
            params,
            weights=_weights(shards[manifest.sequence]),
        )
        for manifest in manifests.values()
    )
    priors = {prior.sequence: smeared(prior, noise_nm) if noise_nm else prior for prior in fitted}
    return TrainingSet(tuple(shard for each in shards.values() for shard in each), priors)


def _weigh(shards: Sequence[LabelledFrames], params: TrainingParams) -> tuple[LabelledFrames, ...]:
    try:
        return weigh_shards(shards, params)
    except SamplingError:
        if sum(len(shard) > 0 for shard in shards) > 1:
            raise
        return tuple(replace(shard, weights=np.ones(len(shard))) for shard in shards)


def _weights(shards: Sequence[LabelledFrames]) -> Float64[np.ndarray, " frames"] | None:
    """Weights of all frames, if they have any."""
    weights = [shard.weights for shard in shards if shard.weights is not None]
    return np.concatenate(weights) if weights else None
