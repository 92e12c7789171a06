"""Forces and noise: force matching on frames with Gaussian noise, whose labels mix the forces with the noise's own.

Durumeric et al., arXiv 2407.01286. Beads y = x + s xi of frames x with forces f have the density of the frames, smeared
out by the noise. Its mean force is the mean given y of f, and just as well of the noise's g = -k_B T (y - x) / s^2
(denoising), and so of B f + (1 - B) g for any fixed matrix B of beads. As f and g are uncorrelated, the labels' mean
square is least for

    B = c (C + c)^-1,    c = (k_B T / s)^2,    C_ij = <f_i . f_j> / 3.

Little noise leaves the forces nearly as they are, much noise takes their place. The prior is that of the frames without
noise; all errors are told on noised frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from cgal.frames import LabelledFrames
from cgal.params import TrainingParams
from cgal.potential.potential import Potential
from cgal.potential.prior import Prior
from cgal.progress import Progress, silent
from cgal.training import force_matching
from cgal.training.force_matching import ForceMatchingResult
from cgal.units import thermal_energy_kJ_per_mol

__all__ = ["noised", "train"]


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
    """Train as `force_matching.train` does, and raise what it does, on frames whose noise is drawn once from `seed`."""
    frames = noised(shards, params.forces_and_noise.noise_nm, initial.prior.temperature_K, seed)
    return force_matching.train(frames, initial, params, seed=seed, scratch=scratch, priors=priors, progress=progress)


def noised(shards: Sequence[LabelledFrames], noise_nm: float, temperature_K: float, seed: int) -> list[LabelledFrames]:
    """Frames with noise of this standard deviation on each coordinate, and their mixed labels."""
    generator, kT = np.random.default_rng([seed, 2]), thermal_energy_kJ_per_mol(temperature_K)
    mixing = {
        sequence: _mixing([shard.forces for shard in shards if shard.sequence == sequence], kT / noise_nm)
        for sequence in {shard.sequence for shard in shards}
    }
    found = []
    for shard in shards:
        xi = generator.standard_normal(shard.positions.shape, dtype=np.float32)
        of_noise = np.float32(-kT / noise_nm) * xi
        labels = of_noise + np.einsum("ij,fjk->fik", mixing[shard.sequence], shard.forces - of_noise)
        positions = shard.positions + np.float32(noise_nm) * xi
        found.append(replace(shard, positions=positions, forces=labels.astype(np.float32)))
    return found


def _mixing(
    forces: Sequence[Float32[np.ndarray, "_ beads 3"]], noise_kJ_per_mol_nm: float
) -> Float32[np.ndarray, "beads beads"]:
    """Weights of the forces for the least mean square of the labels; forces that are not finite have no say in it."""
    whole = np.concatenate(forces).astype(np.float64)
    whole = whole[np.isfinite(whole).all(axis=(1, 2))]
    beads, square = whole.shape[1], noise_kJ_per_mol_nm**2
    covariance = np.einsum("fik,fjk->ij", whole, whole) / max(3 * len(whole), 1)
    mixing = square * np.linalg.inv(covariance + square * np.eye(beads))
    return np.asarray(mixing, dtype=np.float32)
