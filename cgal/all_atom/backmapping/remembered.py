"""All-atom frames that are stored near picked beads: starts that remember side chains and peptide planes."""

import mdtraj
import numpy as np
from jaxtyping import Float32, Int, Shaped
from scipy.spatial.transform import Rotation

__all__ = ["nearest_stored"]


def nearest_stored(
    picks: Float32[np.ndarray, "picks beads 3"],
    stored: Float32[np.ndarray, "frames atoms 3"],
    alpha_carbons: Int[np.ndarray, " beads"],
    within_nm: float,
) -> list[Float32[np.ndarray, "atoms 3"] | None]:
    """For each pick the stored frame of least C-alpha RMSD, superposed on it; None where none is `within_nm`."""
    beads = stored[:, alpha_carbons].astype(np.float64)
    frames = mdtraj.Trajectory((beads - beads.mean(axis=1, keepdims=True)).astype(np.float32), None)
    found: list[Float32[np.ndarray, "atoms 3"] | None] = []
    for pick in picks.astype(np.float64):
        centred = (pick - pick.mean(axis=0)).astype(np.float32)
        deviations_nm = mdtraj.rmsd(frames, mdtraj.Trajectory(centred[None], None))
        nearest = int(np.argmin(deviations_nm)) if len(deviations_nm) else -1
        near = nearest >= 0 and deviations_nm[nearest] <= within_nm
        found.append(_superposed(stored[nearest], alpha_carbons, pick) if near else None)
    return found


def _superposed(
    atoms: Shaped[np.ndarray, "atoms 3"], alpha_carbons: Int[np.ndarray, " beads"], beads: Shaped[np.ndarray, "beads 3"]
) -> Float32[np.ndarray, "atoms 3"]:
    own = atoms[alpha_carbons].astype(np.float64)
    rotation, _ = Rotation.align_vectors(beads - beads.mean(axis=0), own - own.mean(axis=0))
    return (rotation.apply(atoms - own.mean(axis=0)) + beads.mean(axis=0)).astype(np.float32)
