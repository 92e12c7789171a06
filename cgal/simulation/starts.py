"""Frames that a simulation begins at, from a file."""

from pathlib import Path

import mdtraj
import numpy as np
import torch
from jaxtyping import Float32

from cgal.errors import BadFile, BadStructure, BadTrajectory
from cgal.frames import alpha_carbons, sequence_of
from cgal.hdf5 import check_foreign_hdf5
from cgal.params import DynamicsParams
from cgal.simulation.langevin import CAUSES, diagnose

__all__ = ["read_starts"]


def read_starts(path: Path, sequence: str, params: DynamicsParams) -> Float32[np.ndarray, "frames beads 3"]:
    """C-alpha positions [nm] of all frames of a file with a topology that mdtraj reads (HDF5, PDB).

    A file of this program does, such as `round/trajectory.h5`; other atoms are left out. Raises BadFile when it cannot
    be read, BadStructure when it holds more than a protein, BadTrajectory when it is of another one, or a frame is
    such that its replica would be lost at once.
    """
    try:
        check_foreign_hdf5(path)
        trajectory = mdtraj.load(str(path))
        found = sequence_of(trajectory.topology)
    except BadFile:
        raise
    except BadStructure as error:
        raise BadStructure(f"{path}: {error}") from None
    except Exception as error:  # mdtraj raises whatever its parsers met
        raise BadFile(
            f"{path}: no frames to start from ({error}); simulation.starts_file names an HDF5 or PDB file of C-alpha "
            "frames in the protein's folder"
        ) from None
    if found != sequence:
        raise BadTrajectory(f"{path}: frames of {found}, the model is of {sequence}; give frames of the same protein")
    positions = np.asarray(trajectory.xyz[:, alpha_carbons(trajectory.topology)], dtype=np.float32)
    causes = torch.cat([diagnose(some, params) for some in torch.from_numpy(positions).split(1000)])
    if lost := causes.nonzero().flatten().tolist():
        raise BadTrajectory(
            f"{path}, frame {lost[0]}: {CAUSES[causes[lost[0]]]}, as {len(lost)} of {len(causes)} frames; give whole "
            "chains in nm, by the bounds simulation.maximum_bond_nm and minimum_distance_nm"
        )
    return positions
