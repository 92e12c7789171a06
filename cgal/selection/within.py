"""How much lies within a given RMSD of each frame: all pairs, exact, on all cores, no table of pairs.

The test is the one that `cgal.selection.nearest` rules frames out by (where the quartic's root lies), in double
precision, in which it is exact: no root is ever solved for.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from jaxtyping import Float32, Float64

from cgal.compiled import compiled
from cgal.selection.nearest import LANES, TILE, Centred, correlate, screen

__all__ = ["weight_within"]


def weight_within(
    frames: Float32[np.ndarray, "frames beads 3"],
    others: Float32[np.ndarray, "others beads 3"],
    weight: Float64[np.ndarray, " others"],
    radius_nm: float,
) -> Float64[np.ndarray, " frames"]:
    """Sum of the weights of the other frames whose RMSD after superposition to a frame is at most the radius.

    Rotations only: a mirror image is far away. Coordinates must be finite. The number of threads changes nothing.
    """
    total = np.zeros(len(frames))
    if len(others) == 0:
        return total
    some, rest = Centred.of(frames), Centred.of(others)
    weights = np.pad(weight, (0, -len(weight) % LANES)).reshape(-1, LANES)
    lost = 0.5 * frames.shape[1] * radius_nm**2
    search = partial(_add, some.even(np.float64), some.half_norm, *rest.blocks(np.float64), weights, lost, total)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(search, range(0, len(frames), TILE)))
    return total


@compiled
def _add(
    frames: Float64[np.ndarray, "frames padded 3"],
    half_norm: Float64[np.ndarray, " frames"],
    blocks: Float64[np.ndarray, "blocks padded 3 lanes"],
    block_norms: Float64[np.ndarray, "blocks lanes"],
    weights: Float64[np.ndarray, "blocks lanes"],
    lost: float,
    total: Float64[np.ndarray, " frames"],
    start: int,
) -> None:
    """Sum up one tile of frames, from `start` on."""
    correlation = np.empty((3, 3, LANES))
    within = np.empty(LANES)
    for block in range(len(blocks)):
        for frame in range(start, min(start + TILE, len(frames))):
            correlate(frames[frame], blocks[block], correlation)
            if screen(correlation, block_norms[block], half_norm[frame], lost, 0.0, within):
                total[frame] += np.dot(within, weights[block])
