"""Small, deterministic bead data for tests: real chignolin C-alphas, shaken, with forces of a known potential."""

from pathlib import Path

import numpy as np
import torch

from cgal.frames import AtomFrames, LabelledFrames, alpha_carbons, sequence_of
from cgal.params import PriorParams, SchNetParams
from cgal.potential.prior import Prior, fit_prior

SEQUENCE = "YYDPETGTWY"
TEMPERATURE_K = 350.0
SMALL_NETWORK = SchNetParams(features=16, blocks=2, radial_functions=12, cutoff_nm=1.2)


def real_beads() -> np.ndarray:
    """C-alpha positions [nm] of the 40 real frames of the test data."""
    frames = AtomFrames.load(Path(__file__).parent / "data" / "chignolin_small.h5")
    assert sequence_of(frames.topology) == SEQUENCE
    return np.ascontiguousarray(frames.positions[:, alpha_carbons(frames.topology)])


def shaken_beads(frames: int, seed: int = 0, sigma_nm: float = 0.004) -> np.ndarray:
    """Real frames in turn, every bead displaced by Gaussian noise."""
    real = real_beads()
    noise = np.random.default_rng(seed).normal(scale=sigma_nm, size=(frames, *real.shape[1:]))
    return (real[np.arange(frames) % len(real)] + noise).astype(np.float32)


def real_prior(params: PriorParams | None = None) -> Prior:
    """Prior fitted to the real frames."""
    return fit_prior(real_beads(), SEQUENCE, TEMPERATURE_K, params or PriorParams())


def contact_forces(positions: np.ndarray) -> np.ndarray:
    """Forces [kJ/mol/nm] of a known attraction between beads |i-j| >= 3: -10 exp(-(r - 0.55)^2 / (2 0.1^2)) kJ/mol."""
    at = torch.from_numpy(positions.astype(np.float64)).requires_grad_()
    first, second = torch.triu_indices(at.shape[1], at.shape[1], 3)
    distances = (at[:, first] - at[:, second]).norm(dim=2)
    energy = -10.0 * torch.exp(-((distances - 0.55) ** 2) / (2 * 0.1**2)).sum()
    return -torch.autograd.grad(energy, at)[0].numpy()


def labelled(
    positions: np.ndarray, prior: Prior, noise_kJ_per_mol_nm: float = 0.0, trajectory: int = 0
) -> LabelledFrames:
    """Frames labelled with prior plus contact forces, and noise if asked for."""
    forces = prior.forces(torch.from_numpy(positions)).numpy() + contact_forces(positions)
    forces += np.random.default_rng(1).normal(scale=noise_kJ_per_mol_nm or 1e-9, size=forces.shape)
    count = len(positions)
    return LabelledFrames(
        prior.sequence,
        positions,
        forces.astype(np.float32),
        np.full(count, trajectory, dtype=np.int32),
        np.arange(count, dtype=np.float64),
        {"origin": "test"},
    )
