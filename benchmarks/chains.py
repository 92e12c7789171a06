"""Bead chains and potentials to simulate: as dense as a folded protein of that length, and stable under their prior."""

import numpy as np
import torch
from jaxtyping import Float32, Float64

from cgal.params import PriorParams, SchNetParams
from cgal.potential.architectures import new_network
from cgal.potential.potential import Potential
from cgal.potential.prior import fit_prior

__all__ = ["TEMPERATURE_K", "compact_chain", "potential", "shaken"]

TEMPERATURE_K = 350.0
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
BOND_nm, CONTACT_nm = 0.38, 0.42


def compact_chain(beads: int, seed: int = 0) -> Float32[np.ndarray, "beads 3"]:
    """Walk of C-alpha steps in a ball of radius sqrt(5/3) R_g, R_g = 0.22 nm N^0.38 (folded proteins), no overlap.

    Steps back when it is caught; bond angles lie between 80 and 150 degrees.
    """
    generator, radius_nm = np.random.default_rng(seed), 1.29 * 0.22 * beads**0.38
    chain, tries = [np.zeros(3), np.array([BOND_nm, 0.0, 0.0])], 0
    while len(chain) < beads:
        bead = chain[-1] + BOND_nm * _direction(generator)
        tries += 1
        if _fits(bead, np.array(chain), radius_nm):
            chain.append(bead)
        elif tries % 200 == 0:  # caught: give up some of the way
            chain = chain[: max(2, len(chain) - int(generator.integers(1, 12)))]
    positions: Float32[np.ndarray, "beads 3"] = np.array(chain, dtype=np.float32)
    return positions


def _direction(generator: np.random.Generator) -> Float64[np.ndarray, " 3"]:
    vector = generator.standard_normal(3)
    return np.asarray(vector / np.linalg.norm(vector))


def _fits(bead: Float64[np.ndarray, " 3"], chain: Float64[np.ndarray, "placed 3"], radius_nm: float) -> bool:
    across_nm = float(np.linalg.norm(bead - chain[-2]))
    angled = 2 * BOND_nm * np.sin(np.radians(40)) < across_nm < 2 * BOND_nm * np.sin(np.radians(75))
    inside = float(np.linalg.norm(bead)) < radius_nm + BOND_nm / 2
    return bool(angled and inside and np.linalg.norm(chain[:-1] - bead, axis=1).min() > CONTACT_nm)


def shaken(chain: Float32[np.ndarray, "beads 3"], frames: int, seed: int = 0) -> Float32[np.ndarray, "frames beads 3"]:
    """Frames about a chain, each coordinate off by 0.01 nm."""
    noise = np.random.default_rng(seed).normal(scale=0.01, size=(frames, *chain.shape))
    return (chain + noise).astype(np.float32)


def potential(chain: Float32[np.ndarray, "beads 3"], params: SchNetParams) -> Potential:
    """Prior fitted about the chain, and a network of random weights whose forces are gentle."""
    sequence = (RESIDUES * (len(chain) // len(RESIDUES) + 1))[: len(chain)]
    prior = fit_prior(shaken(chain, 100), sequence, TEMPERATURE_K, PriorParams())
    network = new_network(params, seed=0)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(network.get_parameter("readout.1.weight"), std=0.02, generator=generator)
    return Potential(prior, network)
