"""Forces and noise: force matching on frames with Gaussian noise, whose labels mix the forces with the noise's own.

Durumeric et al., arXiv 2407.01286. Beads y = x + s xi of frames x with forces f have the density of the frames, smeared
out by the noise. Its mean force is the mean given y of f, and just as well of the noise's g = -k_B T (y - x) / s^2
(denoising), and so of B f + (1 - B) g for any fixed matrix B of beads. As f and g are uncorrelated, the labels' mean
square is least for

    B = c (C + c)^-1,    c = (k_B T / s)^2,    C_ij = <f_i . f_j> / 3.

Little noise leaves the forces nearly as they are, much noise takes their place. The model is of the noised frames, and
so is its prior (`smeared`, in `cgal.training.proteins`): noise widens bonds, and a prior as stiff as before would
leave it to the network to cancel forces far larger than the labels. All errors are told on noised frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from cgal.frames import LabelledFrames
from cgal.params import TrainingParams
from cgal.potential.potential import Potential
from cgal.potential.prior import Prior
from cgal.progress import Progress, silent
from cgal.training import force_matching
from cgal.training.force_matching import ForceMatchingResult
from cgal.units import thermal_energy_kJ_per_mol

__all__ = ["noised", "smeared", "train"]


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
    """Train as `force_matching.train` does, and raise what it does, on frames whose noise is drawn once from `seed`.

    The priors, that of `initial` included, are those of noised frames: see `smeared`.
    """
    frames = noised(shards, params.forces_and_noise.noise_nm, initial.prior.temperature_K, seed)
    return force_matching.train(frames, initial, params, seed=seed, scratch=scratch, priors=priors, progress=progress)


def smeared(prior: Prior, noise_nm: float) -> Prior:
    """Give the prior of the same frames with noise of this standard deviation on each coordinate.

    To first order, noise adds s^2 |grad q|^2 to the variance of a bond or angle q. |grad q|^2 is 2 for a bond, and
    1/a^2 + 1/b^2 + |u/a + v/b|^2 for an angle between bonds of lengths a and b, where u and v are the directions in
    which its outer beads open it, u.v = -cos(q). Dihedrals, repulsion and the linear rung stay: noise that is small
    beside a bond's length hardly changes them.
    """
    kT, lengths, angles = thermal_energy_kJ_per_mol(prior.temperature_K), prior.bond_length_nm, prior.angle_rad
    one, other = 1 / lengths[:-1], 1 / lengths[1:]
    of_angles = 2 * (one**2 + other**2 - one * other * torch.cos(angles))
    bonds, bends = prior.bond_stiffness_kJ_per_mol_nm2, prior.angle_stiffness_kJ_per_mol_rad2
    return prior.with_terms(
        bond_stiffness_kJ_per_mol_nm2=kT / (kT / bonds + noise_nm**2 * 2),
        angle_stiffness_kJ_per_mol_rad2=kT / (kT / bends + noise_nm**2 * of_angles),
    )


def noised(shards: Sequence[LabelledFrames], noise_nm: float, temperature_K: float, seed: int) -> list[LabelledFrames]:
    """Frames with noise of this standard deviation on each coordinate, and their mixed labels.

    The noise of a protein does not depend on where it stands among the others.
    """
    generator, kT = np.random.default_rng([seed, 2]), thermal_energy_kJ_per_mol(temperature_K)
    mixing = {
        sequence: _mixing([shard.forces for shard in shards if shard.sequence == sequence], kT / noise_nm)
        for sequence in {shard.sequence for shard in shards}
    }
    found = list(shards)
    for index in sorted(range(len(shards)), key=lambda each: shards[each].sequence):
        shard = shards[index]
        xi = generator.standard_normal(shard.positions.shape, dtype=np.float32)
        of_noise = np.float32(-kT / noise_nm) * xi
        labels = of_noise + np.einsum("ij,fjk->fik", mixing[shard.sequence], shard.forces - of_noise)
        positions = shard.positions + np.float32(noise_nm) * xi
        found[index] = replace(shard, positions=positions, forces=labels.astype(np.float32))
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
