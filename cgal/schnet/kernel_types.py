"""Numbers, parameters and work arrays of the compiled loops in `kernels`, all in float32."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64

from cgal.potential.geometry import SHORTEST_nm

__all__ = ["Chain", "Committee", "Langevin", "Layers", "Near", "Network"]

SHORTEST = np.float32(SHORTEST_nm)

ZERO, HALF, ONE, TWO, THREE, SIX = (np.float32(number) for number in (0, 0.5, 1, 2, 3, 6))


class Chain(NamedTuple):
    """Terms of a `Prior` in float32, and the sum over pairs |i-j| >= 3 of `repulsion_kJ_nm6_per_mol` / r^6."""

    bond_length_nm: Float32[np.ndarray, " bonds"]
    bond_stiffness_kJ_per_mol_nm2: Float32[np.ndarray, " bonds"]
    angle_rad: Float32[np.ndarray, " angles"]
    angle_stiffness_kJ_per_mol_rad2: Float32[np.ndarray, " angles"]
    dihedral_cosine_kJ_per_mol: Float32[np.ndarray, "dihedrals order"]
    dihedral_sine_kJ_per_mol: Float32[np.ndarray, "dihedrals order"]
    repulsion_kJ_nm6_per_mol: np.float32
    pair_splines_kJ_per_mol: Float32[np.ndarray, "pairs coefficients"]
    """Of the pairs |i-j| >= 3, row by row; no row where the prior has none."""
    dihedral_couplings_kJ_per_mol: Float32[np.ndarray, "neighbours 2 order order 2"]
    """As in `cgal.potential.dihedral_couplings`; no row where the prior has none."""


class Network(NamedTuple):
    """A `TabulatedSchNet`: rows of a table are value and slope (times the spacing) of each knot in turn."""

    cutoff_nm: np.float32
    knots_per_nm: np.float32
    tables: Float32[np.ndarray, "blocks rows features"]
    embedding: Float32[np.ndarray, "beads features"]
    first_sources: Float32[np.ndarray, "beads features"]
    to_sources: Float32[np.ndarray, "blocks features features"]
    to_hidden: Float32[np.ndarray, "blocks features features"]
    hidden_bias: Float32[np.ndarray, "blocks features"]
    to_update: Float32[np.ndarray, "blocks features features"]
    update_bias: Float32[np.ndarray, "blocks features"]
    to_last: Float32[np.ndarray, "features features"]
    last_bias: Float32[np.ndarray, " features"]
    readout_kJ_per_mol: Float32[np.ndarray, " features"]
    offset_kJ_per_mol: np.float32


class Committee(NamedTuple):
    """Networks whose energies add up: all that a `Network` has, with an axis of members in front."""

    cutoff_nm: np.float32
    knots_per_nm: np.float32
    tables: Float32[np.ndarray, "members blocks rows features"]
    embedding: Float32[np.ndarray, "members beads features"]
    first_sources: Float32[np.ndarray, "members beads features"]
    to_sources: Float32[np.ndarray, "members blocks features features"]
    to_hidden: Float32[np.ndarray, "members blocks features features"]
    hidden_bias: Float32[np.ndarray, "members blocks features"]
    to_update: Float32[np.ndarray, "members blocks features features"]
    update_bias: Float32[np.ndarray, "members blocks features"]
    to_last: Float32[np.ndarray, "members features features"]
    last_bias: Float32[np.ndarray, "members features"]
    readout_kJ_per_mol: Float32[np.ndarray, "members features"]
    offset_kJ_per_mol: Float32[np.ndarray, " members"]


class Langevin(NamedTuple):
    """Constants of a BAOAB step, and the bounds that a sound chain keeps."""

    kick_ps_per_amu: np.float32
    """Velocity per force of half a step."""
    drift_ps: np.float32
    """Half a step."""
    memory: np.float32
    """Share of the velocity that the thermostat leaves."""
    scatter_nm_per_ps: np.float32
    """Velocity that it adds, times a standard normal number."""
    maximum_bond_nm: np.float32
    minimum_distance_nm: np.float32


class Near(NamedTuple):
    """Pairs within the cutoff of each replica, `listed` of them, and where each lies in the tables."""

    listed: Int64[np.ndarray, " replicas"]
    beads: Int32[np.ndarray, "replicas pairs 2"]
    row: Int32[np.ndarray, "replicas pairs"]
    spline: Float32[np.ndarray, "replicas pairs 8"]
    """Weights of four rows of a table for the value of a filter, then for its slope."""
    direction: Float32[np.ndarray, "replicas pairs 3"]
    slope: Float32[np.ndarray, "replicas pairs"]
    """Of the network's energy along the distance, in table spacings."""
    axes: Float32[np.ndarray, "4 beads"]
    """One replica's x, y and z, and the square distances from one bead."""
    pulls: Float32[np.ndarray, "3 beads"]
    """Its gradients along them."""


class Layers(NamedTuple):
    """Features of all beads of a block, `replicas * beads` rows, and what the forward pass keeps for the other."""

    features: Float32[np.ndarray, "rows features"]
    hidden: Float32[np.ndarray, "rows features"]
    messages: Float32[np.ndarray, "rows features"]
    targets: Float32[np.ndarray, "rows features"]
    sources: Float32[np.ndarray, "blocks rows features"]
    slopes: Float32[np.ndarray, "blocks rows features"]
