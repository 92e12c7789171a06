"""The test beds with structure: packed swarms, and which share of a frame is folded there."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
from jaxtyping import Float32, Float64

from cgal.frames import LabelledFrames, bead_topology, native_beads, read_pdb_text, rmsd_nm, sequence_of
from cgal.hdf5 import Hdf5Record, stored

__all__ = [
    "GROUND_TRUTHS",
    "GroundTruth",
    "HELIX_degrees",
    "SETTLE_ns",
    "Swarm",
    "dihedrals_degrees",
    "helical_share",
    "native_share",
]

SETTLE_ns = 1.0
"""What is left out of every trajectory at its start."""

NATIVE_nm = 0.2
HELIX_degrees = (30.0, 80.0)

type Positions = Float32[np.ndarray, "frames beads 3"]
type Folded = Callable[[Positions, str], Float64[np.ndarray, " frames"]]


@dataclass(frozen=True, eq=False)
class Swarm(Hdf5Record):
    """Frames of a swarm, and positions [nm] and velocities [nm/ps] of all atoms at the end of each trajectory."""

    KIND = "swarm"

    frames: LabelledFrames
    end_positions: Float64[np.ndarray, "trajectories atoms 3"]
    end_velocities: Float64[np.ndarray, "trajectories atoms 3"]
    structure: str = field(metadata=stored(text=True))
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def native(self) -> Float32[np.ndarray, "beads 3"]:
        """C-alpha of the structure [nm]."""
        return native_beads(self.structure)


def native_share(positions: Positions, structure: str) -> Float64[np.ndarray, " frames"]:
    """One for a frame within 0.2 nm RMSD of the structure's C-alpha, else zero."""
    return (rmsd_nm(positions, native_beads(structure)) < NATIVE_nm).astype(np.float64)


def helical_share(positions: Positions, structure: str) -> Float64[np.ndarray, " frames"]:
    """Share of a frame's C-alpha dihedrals in the right-handed helix, 30 to 80 degrees."""
    degrees = dihedrals_degrees(positions, structure)
    return np.asarray(((degrees > HELIX_degrees[0]) & (degrees < HELIX_degrees[1])).mean(axis=1))


def dihedrals_degrees(positions: Positions, structure: str) -> Float32[np.ndarray, "frames dihedrals"]:
    """C-alpha dihedrals."""
    sequence = sequence_of(read_pdb_text(structure).topology)
    four = np.arange(len(sequence) - 3)[:, None] + np.arange(4)
    beads = mdtraj.Trajectory(positions, bead_topology(sequence))
    return np.asarray(np.degrees(mdtraj.compute_dihedrals(beads, four)))


@dataclass(frozen=True)
class GroundTruth:
    """A packed swarm, its temperature, and what its folded share is."""

    name: str
    file: str
    temperature_K: float
    folded: Folded

    def load(self, folder: Path = Path("study", "swarms")) -> Swarm:
        """Read the swarm."""
        return Swarm.load(folder / self.file)


GROUND_TRUTHS = (
    GroundTruth("chignolin, ff96 + OBC2, 350 K", "chignolin_350K_long.h5", 350.0, native_share),
    GroundTruth("A10, ff14SB + OBC2, 300 K", "a10_300K.h5", 300.0, helical_share),
)
