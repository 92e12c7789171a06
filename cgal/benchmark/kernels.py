"""Sums of Gaussian kernels on a grid, compiled."""

from typing import no_type_check

import numpy as np
from numba import njit

__all__ = ["add_kernels"]

NEGLIGIBLE = 40.0
"""Exponent beyond which a kernel (4e-18 of its peak) is no longer added."""


@njit(nogil=True, cache=True)
@no_type_check
def add_kernels(frames, weights, block, points, masses):
    """Add each frame's unit Gaussian, times its weight, at all points to its block's row of the masses.

    Shapes: frames x dims, frames, frames, points x dims, blocks x points.
    """
    for frame in range(len(frames)):
        row = masses[block[frame]]
        for point in range(len(points)):
            exponent = 0.0
            for dim in range(frames.shape[1]):
                exponent += (frames[frame, dim] - points[point, dim]) ** 2 / 2
            if exponent < NEGLIGIBLE:
                row[point] += weights[frame] * np.exp(-exponent)
