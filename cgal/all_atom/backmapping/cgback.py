"""Heavy atoms by CGBack (Ugarte La Torre and Sugita, J. Chem. Inf. Model. 2025, 10.1021/acs.jcim.5c01281).

A diffusion model that was trained on structures of the Protein Data Bank; its weights come with the package, which is
the optional `cgal[cgback]`. It draws the same noise for every frame, turned with the first three beads, so that the
same beads give the same atoms wherever they are.
"""

import logging
import random
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from cgback.backmapper import Backmapper
from cgback.parser import HEAVY_ATOM_TYPE_DECODER, RESIDUE_TYPE_ENCODER, determine_loc_types
from cgback.system import System
from jaxtyping import Float64

from cgal.all_atom.backmapping.backmap import HeavyAtoms
from cgal.errors import BackmappingError
from cgal.residues import RESIDUE_NAMES
from cgal.units import ANGSTROM_PER_NM

__all__ = ["rebuild"]

SETTINGS = {
    "model": "M",
    "diffuser": "DDPM",
    "num_timesteps": None,
    "device": "cpu",
    "batch": 1024,
    "seed": 1,
    "fix_structure_model": "M",
    "fix_structure_max_iterations": 20,
    "skip_fix_structure_clashes": False,
    "skip_add_hydrogen": True,
    "skip_sampling": False,
    "skip_fix_structure": False,
    "ignore_existing": False,
    "keep": False,
    "verbose": False,
    "debug": False,
    "INPUT": "",
    "output": "",
}
"""Of CGBack's command line; residues that clash, thread a ring or are mirrored are drawn again, up to 20 times."""

ALPHA = 1
"""Place of the C-alpha among the heavy atoms of a residue."""


def rebuild(beads: Float64[np.ndarray, "beads 3"], sequence: str) -> HeavyAtoms:
    """Heavy atoms around the beads; raises BackmappingError on degenerate geometry. See `Backmapper`."""
    axes = _axes(beads)
    if not np.isfinite(axes).all():
        raise BackmappingError("CGBack cannot rebuild the beads (the first three lie on a line)")
    system = _system((beads - beads[0]) @ axes.T * ANGSTROM_PER_NM, sequence)
    try:
        with _chance_of_its_own():
            backmapper = _backmapper()
            backmapper.setup_rng_seed()
            backmapper.sampling(system, *backmapper.setup_data(system))
            backmapper.fix_structure(system)
    except (ArithmeticError, IndexError, RuntimeError, ValueError) as error:
        raise BackmappingError(f"CGBack cannot rebuild the beads ({error})") from error
    placed = system.heavy_coordinates / ANGSTROM_PER_NM @ axes + beads[0]
    return {
        (number, name): placed[number, atom]
        for number, kind in enumerate(system.residue_types)
        for atom, name in enumerate(HEAVY_ATOM_TYPE_DECODER[kind])
        if np.isfinite(placed[number, atom]).all()
    }


def _axes(beads: Float64[np.ndarray, "beads 3"]) -> Float64[np.ndarray, "3 3"]:
    """Right-handed axes that turn with the first three beads; not finite when these lie on a line."""
    with np.errstate(invalid="ignore", over="ignore"):
        first = beads[1] - beads[0]
        third = np.cross(first, beads[2] - beads[1])
        axes = np.array([first, np.cross(third, first), third])
        return np.asarray(axes / np.linalg.norm(axes, axis=1, keepdims=True))


def _system(alpha_carbons: Float64[np.ndarray, "beads 3"], sequence: str) -> System:
    """What CGBack reads from a PDB file of C-alpha [Angstrom]."""
    count = len(sequence)
    heavy, hydrogens = (np.full((count, atoms, 3), np.nan, dtype=np.float32) for atoms in (15, 16))
    heavy[:, ALPHA] = alpha_carbons
    chain = np.zeros(count, dtype=np.uint32)
    kinds = np.array([RESIDUE_TYPE_ENCODER[RESIDUE_NAMES[letter]] for letter in sequence], dtype=np.uint8)
    return System(chain, kinds, determine_loc_types(chain), heavy, hydrogens, *np.full((2, count), True))


@lru_cache(maxsize=1)
def _backmapper() -> Backmapper:
    backmapper = Backmapper(Namespace(**SETTINGS))
    logging.getLogger("cgback.backmapper").setLevel(logging.ERROR)  # `backmap` finds what it leaves unsound
    return backmapper


@contextmanager
def _chance_of_its_own() -> Iterator[None]:
    """Leave all generators of random numbers as they were, which CGBack seeds, and torch's number of threads."""
    states, threads = (random.getstate(), np.random.get_state()), torch.get_num_threads()  # noqa: NPY002 (CGBack draws from it)
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002 (the same)
        torch.set_num_threads(threads)
