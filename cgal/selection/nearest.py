"""Nearest training frame of each simulated frame by RMSD after superposition: all pairs, exact, on all cores.

A pair's RMSD follows from the largest eigenvalue of a 4x4 matrix, a root of a quartic in the 3x3 correlation matrix
of the two frames (Theobald, Acta Cryst. A 61, 478, 2005). To find the nearest frame the root is hardly ever needed: for
a block of training frames at a time, in single precision, the quartic and its derivatives tell whether the root lies
below what a frame nearer than the best so far would need. Only frames that this cannot rule out (some ten a search,
beyond the first block) are solved, in double precision.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from cgal.compiled import compiled, inlined
from cgal.errors import BadTrajectory, EmptyTrajectory

__all__ = ["LANES", "TILE", "Centred", "correlate", "nearest_rmsd_nm", "screen"]

LANES = 64
"""Training frames a block: their sums of products lie in the first-level cache."""

TILE = 64
"""Frames that go through one block while it is in cache."""

SWEEPS = 30
"""Far more Jacobi sweeps over three vectors than ever needed (four or five)."""


@dataclass(frozen=True, eq=False)
class Centred:
    """Frames about their centres, and half the sum of their squared coordinates [nm^2]."""

    positions: Float64[np.ndarray, "frames beads 3"]
    half_norm: Float64[np.ndarray, " frames"]

    @classmethod
    def of(cls, frames: Float32[np.ndarray, "frames beads 3"]) -> "Centred":
        """Centre frames in double precision."""
        positions = frames.astype(np.float64)
        positions -= positions.mean(axis=1, keepdims=True)
        return cls(positions, 0.5 * np.einsum("fbx,fbx->f", positions, positions))

    def even(self, precision: type[np.floating] = np.float32) -> Float[np.ndarray, "frames padded 3"]:
        """Give the positions, with a bead at the centre added (which changes no sum) when their number is odd."""
        padding = self.positions.shape[1] % 2
        return np.pad(self.positions.astype(precision), ((0, 0), (0, padding), (0, 0)))

    def blocks(
        self, precision: type[np.floating] = np.float32
    ) -> tuple[Float[np.ndarray, "blocks padded 3 lanes"], Float[np.ndarray, "blocks lanes"]]:
        """Frames side by side in blocks, the last one filled up with frames that are all at the origin."""
        missing = -len(self.half_norm) % LANES
        frames = np.pad(self.even(precision), ((0, missing), (0, 0), (0, 0)))
        norms = np.pad(self.half_norm, (0, missing)).astype(precision)
        side_by_side = frames.reshape(-1, LANES, *frames.shape[1:]).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(side_by_side), norms.reshape(-1, LANES)


def nearest_rmsd_nm(
    frames: Float32[np.ndarray, "frames beads 3"],
    training: Float32[np.ndarray, "training_frames others 3"],
    *,
    memory_MiB: float = 64.0,
    threads: int = 0,
) -> tuple[Float64[np.ndarray, " frames"], Int64[np.ndarray, " frames"]]:
    """Smallest RMSD after superposition of each frame to any training frame [nm], and the index of that frame.

    Rotations only: a mirror image is far away. Exact to 1e-6 nm; of equally near frames the first is given.
    `memory_MiB` bounds the working copies of both sides (not the arguments, nor the result); `threads` is the number of
    threads, 0 one a core. Neither changes the result. Raises EmptyTrajectory when there is no training frame,
    BadTrajectory when the numbers of beads differ or a coordinate is not finite.
    """
    _check(frames, training)
    squared, index = np.full(len(frames), np.inf), np.full(len(frames), -1)
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        for chunk in _chunks(len(frames), frames.shape[1], memory_MiB):
            some = Centred.of(frames[chunk])
            for block in _chunks(len(training), frames.shape[1], memory_MiB):
                some_training = Centred.of(training[block])
                search = partial(
                    _search,
                    some.even(),
                    some.positions,
                    some.half_norm,
                    *some_training.blocks(),
                    some_training.positions,
                    some_training.half_norm,
                    squared[chunk],
                    index[chunk],
                    block.start,
                )
                list(pool.map(search, range(0, len(some.half_norm), TILE)))
    return np.sqrt(np.maximum(squared, 0.0)), index


def _check(
    frames: Float32[np.ndarray, "frames beads 3"], training: Float32[np.ndarray, "training_frames others 3"]
) -> None:
    if len(training) == 0:
        raise EmptyTrajectory("nearest training frame: the training set is empty; import or label frames first")
    if frames.shape[1] != training.shape[1]:
        raise BadTrajectory(
            f"nearest training frame: frames of {frames.shape[1]} beads and training frames of {training.shape[1]}; "
            "give frames of the same protein"
        )
    for name, side in (("frame", frames), ("training frame", training)):
        broken = np.flatnonzero(~np.isfinite(side.sum(axis=(1, 2), dtype=np.float64)))
        if len(broken):
            raise BadTrajectory(f"nearest training frame: {name} {broken[0]} has a coordinate that is no number")


def _chunks(count: int, beads: int, memory_MiB: float) -> Iterator[slice]:
    """Slices whose working copies (24 bytes a bead in double, at most 36 in single precision) fill half the memory."""
    size = max(int(memory_MiB * 2**20 / 2 / (60 * (beads + 1))), 1)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


@compiled
def _search(
    single: Float32[np.ndarray, "frames padded 3"],
    double: Float64[np.ndarray, "frames beads 3"],
    half_norm: Float64[np.ndarray, " frames"],
    blocks: Float32[np.ndarray, "blocks padded 3 lanes"],
    block_norms: Float32[np.ndarray, "blocks lanes"],
    training: Float64[np.ndarray, "training_frames beads 3"],
    training_norms: Float64[np.ndarray, " training_frames"],
    squared: Float64[np.ndarray, " frames"],
    index: Int64[np.ndarray, " frames"],
    offset: int,
    start: int,
) -> None:
    """Bring squared distances and indices of one tile of frames, from `start` on, up to date with these blocks."""
    beads = double.shape[1]
    tolerance = np.float32(1e-5 * (beads + 10))
    correlation = np.empty((3, 3, LANES), dtype=np.float32)
    possible = np.empty(LANES, dtype=np.float32)
    for block in range(len(blocks)):
        lanes = min(LANES, len(training) - block * LANES)
        for frame in range(start, min(start + TILE, len(double))):
            correlate(single[frame], blocks[block], correlation)
            lost = np.float32(0.5 * beads * squared[frame])
            if not screen(correlation, block_norms[block], np.float32(half_norm[frame]), lost, tolerance, possible):
                continue
            for lane in range(lanes):
                if possible[lane] > 0:
                    other = block * LANES + lane
                    found = _squared_rmsd(double[frame], training[other], half_norm[frame] + training_norms[other])
                    if found < squared[frame]:
                        squared[frame] = found
                        index[frame] = offset + other


@inlined
def correlate(
    frame: Float[np.ndarray, "padded 3"],
    block: Float[np.ndarray, "padded 3 lanes"],
    correlation: Float[np.ndarray, "3 3 lanes"],
) -> None:
    """Sums over beads of the products of coordinates, two beads a pass so that stores do not hold up the products."""
    correlation[:] = 0
    for bead in range(0, len(frame), 2):
        x, y, z = frame[bead, 0], frame[bead, 1], frame[bead, 2]
        next_x, next_y, next_z = frame[bead + 1, 0], frame[bead + 1, 1], frame[bead + 1, 2]
        for axis in range(3):
            for lane in range(LANES):
                here, there = block[bead, axis, lane], block[bead + 1, axis, lane]
                correlation[0, axis, lane] += x * here + next_x * there
                correlation[1, axis, lane] += y * here + next_y * there
                correlation[2, axis, lane] += z * here + next_z * there


@inlined
def screen(
    m: Float[np.ndarray, "3 3 lanes"],
    norms: Float[np.ndarray, " lanes"],
    norm: float | np.float32,
    lost: float | np.float32,
    tolerance: float | np.float32,
    possible: Float[np.ndarray, " lanes"],
) -> bool:
    """Mark training frames that may be nearer than the best so far, and tell whether there are any.

    A nearer frame needs an eigenvalue above `trial` = half norms - `lost`. The quartic is x^4 - 2 S x^2 - 8 D x + C,
    with S the squared norm and D the determinant of the correlation matrix, C = S^2 - 4 sum of its squared minors.
    All four roots are real: the largest lies below a positive `trial` just when the quartic and its first and second
    derivative are positive there. The tolerance is above single precision's error in sums over the beads times what
    the quartic makes of it, 128 at most; in double precision it may be zero.
    """
    for lane in range(LANES):
        xx, xy, xz = m[0, 0, lane], m[0, 1, lane], m[0, 2, lane]
        yx, yy, yz = m[1, 0, lane], m[1, 1, lane], m[1, 2, lane]
        zx, zy, zz = m[2, 0, lane], m[2, 1, lane], m[2, 2, lane]
        square = xx * xx + xy * xy + xz * xz + yx * yx + yy * yy + yz * yz + zx * zx + zy * zy + zz * zz
        a, b, c = yy * zz - yz * zy, yz * zx - yx * zz, yx * zy - yy * zx
        d, e, f = xz * zy - xy * zz, xx * zz - xz * zx, xy * zx - xx * zy
        g, h, i = xy * yz - xz * yy, xz * yx - xx * yz, xx * yy - xy * yx
        minors = a * a + b * b + c * c + d * d + e * e + f * f + g * g + h * h + i * i
        determinant = xx * a + xy * b + xz * c
        scale = norm + norms[lane]
        trial = scale - lost
        trial2 = trial * trial
        bend = trial2 - square
        quartic = trial2 * (bend - square) - np.float32(8) * determinant * trial
        quartic += square * square - np.float32(4) * minors
        slope = np.float32(4) * trial * bend - np.float32(8) * determinant
        curvature = np.float32(2) * trial2 + bend
        noise = tolerance * scale * scale
        farther = (
            (trial > np.float32(0)) & (quartic > noise * scale * scale) & (slope > noise * scale) & (curvature > noise)
        )
        possible[lane] = np.float32(0) if farther else np.float32(1)
    some = np.float32(0)
    for lane in range(LANES):
        some += possible[lane]
    return bool(some > 0)


@inlined
def _squared_rmsd(frame: Float64[np.ndarray, "beads 3"], other: Float64[np.ndarray, "beads 3"], scale: float) -> float:
    """Squared RMSD in double precision: 2 / beads of half norms less largest eigenvalue.

    The eigenvalue is the sum of the correlation matrix's singular values, the smallest one counted negative when the
    determinant is (Kabsch 1978). One-sided Jacobi rotations give them to full precision, for lines and points too.
    """
    m = np.zeros((3, 3))
    for bead in range(len(frame)):
        for column in range(3):
            for row in range(3):
                m[column, row] += other[bead, column] * frame[bead, row]
    for _ in range(SWEEPS):
        if not (_rotate(m[0], m[1]) | _rotate(m[0], m[2]) | _rotate(m[1], m[2])):
            break
    first, second, third = _length(m[0]), _length(m[1]), _length(m[2])
    determinant = (
        m[0, 0] * (m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1])
        + m[0, 1] * (m[1, 2] * m[2, 0] - m[1, 0] * m[2, 2])
        + m[0, 2] * (m[1, 0] * m[2, 1] - m[1, 1] * m[2, 0])
    )
    smallest = min(first, second, third) if determinant < 0 else 0.0
    return 2 * (scale - (first + second + third - 2 * smallest)) / len(frame)


@inlined
def _rotate(one: Float64[np.ndarray, " 3"], other: Float64[np.ndarray, " 3"]) -> bool:
    """Turn two vectors in their common plane until they are orthogonal; false when they are already."""
    product = one[0] * other[0] + one[1] * other[1] + one[2] * other[2]
    if abs(product) <= 1e-16 * _length(one) * _length(other):
        return False
    cotangent = (_length(other) ** 2 - _length(one) ** 2) / (2 * product)
    tangent = 1 / (abs(cotangent) + np.sqrt(1 + cotangent**2))
    if cotangent < 0:
        tangent = -tangent
    cosine = 1 / np.sqrt(1 + tangent**2)
    for axis in range(3):
        kept = one[axis]
        one[axis] = cosine * (kept - tangent * other[axis])
        other[axis] = cosine * (other[axis] + tangent * kept)
    return True


@inlined
def _length(vector: Float64[np.ndarray, " 3"]) -> float:
    return float(np.sqrt(vector[0] ** 2 + vector[1] ** 2 + vector[2] ** 2))
