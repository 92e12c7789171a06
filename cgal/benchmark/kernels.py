"""Sums of Gaussian kernels on a grid, compiled."""

import numpy as np
from jaxtyping import Float64, Int64

from cgal.compiled import compiled

__all__ = ["add_kernels"]

NEGLIGIBLE = 40.0
"""Exponent beyond which a kernel (4e-18 of its peak) is no longer added."""


@compiled
def add_kernels(
    frames: Float64[np.ndarray, "frames dims"],
    weights: Float64[np.ndarray, " frames"],
    block: Int64[np.ndarray, " frames"],
    points: Float64[np.ndarray, "points dims"],
    masses: Float64[np.ndarray, "blocks points"],
) -> None:
    """Add each frame's unit Gaussian, times its weight, at all points to its block's row of the masses.

    Points on a line must be sorted.
    """
    line = points[:, 0] if points.shape[1] == 1 else points[:0, 0]
    first, last, reach = 0, len(points), np.sqrt(2 * NEGLIGIBLE)
    for frame in range(len(frames)):
        row = masses[block[frame]]
        if len(line):
            first = np.searchsorted(line, frames[frame, 0] - reach)
            last = np.searchsorted(line, frames[frame, 0] + reach)
        for point in range(first, last):
            exponent = 0.0
            for dim in range(frames.shape[1]):
                exponent += (frames[frame, dim] - points[point, dim]) ** 2 / 2
            if exponent < NEGLIGIBLE:
                row[point] += weights[frame] * np.exp(-exponent)
