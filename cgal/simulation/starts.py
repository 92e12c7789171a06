"""Frames that a simulation begins at, from a file."""

from pathlib import Path

import mdtraj
import numpy as np
from jaxtyping import Float32

from cgal.errors import BadFile, BadTrajectory
from cgal.frames import alpha_carbons, sequence_of

__all__ = ["read_starts"]


def read_starts(path: Path, sequence: str) -> Float32[np.ndarray, "frames beads 3"]:
    """C-alpha positions [nm] of all frames of a file with a topology that mdtraj reads (HDF5, PDB).

    A file of this program does, such as `round/trajectory.h5`; other atoms are left out. Raises BadFile when it cannot
    be read, BadTrajectory when it is of another protein or a position is not finite.
    """
    try:
        trajectory = mdtraj.load(str(path))
    except Exception as error:  # mdtraj raises whatever its parsers met
        raise BadFile(
            f"{path}: no frames to start from ({error}); simulation.starts_file names an HDF5 or PDB file of C-alpha "
            "frames in the protein's folder"
        ) from None
    found = sequence_of(trajectory.topology)
    if found != sequence:
        raise BadTrajectory(f"{path}: frames of {found}, the model is of {sequence}; give frames of the same protein")
    positions = np.asarray(trajectory.xyz[:, alpha_carbons(trajectory.topology)], dtype=np.float32)
    finite = np.isfinite(positions).all(axis=(1, 2))
    if not finite.all():
        raise BadTrajectory(f"{path}, frame {np.flatnonzero(~finite)[0]}: position not finite; take it out of the file")
    return positions
