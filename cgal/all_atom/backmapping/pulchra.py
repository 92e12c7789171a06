"""Heavy atoms by PULCHRA (Rotkiewicz and Skolnick, J. Comput. Chem. 29, 1460 (2008)), from the C-alpha trace alone."""

import warnings
from functools import lru_cache

import numpy as np
from jaxtyping import Float64
from pulchra import Pulchra
from scipy.spatial.transform import Rotation

from cgal.all_atom.backmapping.backmap import HeavyAtoms
from cgal.errors import BackmappingError
from cgal.units import ANGSTROM_PER_NM

__all__ = ["rebuild"]

CAPPING_RESIDUES = 2
"""Glycines put on each end of the chain while PULCHRA works: it needs neighbours on both sides to place a residue."""


def rebuild(beads: Float64[np.ndarray, "beads 3"], sequence: str) -> HeavyAtoms:
    """Heavy atoms around the beads; raises BackmappingError on degenerate geometry. See `Backmapper`."""
    chain = _extend(_extend(beads)[::-1])[::-1]
    caps = "G" * CAPPING_RESIDUES
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the outermost caps, which PULCHRA puts on straight lines
            molecule = _pulchra().reconstruct_coords(chain * ANGSTROM_PER_NM, f"{caps}{sequence}{caps}")
    except (ArithmeticError, IndexError, ValueError) as error:  # what NumPy raises on degenerate geometry
        raise BackmappingError(f"PULCHRA cannot rebuild the beads ({error})") from error
    return {
        (number, atom.name.strip()): atom.coords / ANGSTROM_PER_NM
        for number, residue in enumerate(molecule.residues[CAPPING_RESIDUES:-CAPPING_RESIDUES])
        for atom in residue.atoms
    }


@lru_cache(maxsize=1)
def _pulchra() -> Pulchra:
    return Pulchra(ca_optimize=False)  # the C-alpha stay where the model put them


def _extend(chain: Float64[np.ndarray, "beads 3"]) -> Float64[np.ndarray, "longer 3"]:
    """Go on beyond the last bead as the chain came to it: the move of the last three beads, repeated."""
    for _ in range(CAPPING_RESIDUES):
        before, after = chain[-4:-1], chain[-3:]
        rotation, _ = Rotation.align_vectors(after - after.mean(axis=0), before - before.mean(axis=0))
        chain = np.vstack([chain, rotation.apply(chain[-1] - before.mean(axis=0)) + after.mean(axis=0)])
    return chain
