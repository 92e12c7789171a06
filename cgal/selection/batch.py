"""A batch without near-duplicates: two labels of the same place teach hardly more than one."""

import numpy as np
from jaxtyping import Float32, Float64, Int64

from cgal.selection.nearest import nearest_rmsd_nm
from cgal.selection.within import weight_within

__all__ = ["distinct", "greedy_cover"]


def distinct(
    positions: Float32[np.ndarray, "candidates beads 3"],
    ranked: Int64[np.ndarray, " ranked"],
    count: int,
    distinct_nm: float,
) -> Int64[np.ndarray, " picked"]:
    """Go down the ranking and take at most `count` frames, none nearer to one taken before than `distinct_nm`."""
    taken: list[int] = []
    free = np.ones(len(positions), dtype=bool)
    for candidate in ranked:
        if len(taken) == count:
            break
        if free[candidate]:
            taken.append(int(candidate))
            free &= rmsd_to(positions, positions[candidate]) >= distinct_nm
            free[candidate] = False
    return np.array(taken, dtype=np.int64)


def greedy_cover(
    positions: Float32[np.ndarray, "candidates beads 3"],
    weight: Float64[np.ndarray, " candidates"],
    prefer: Float64[np.ndarray, " candidates"],
    count: int,
    *,
    radius_nm: float,
    distinct_nm: float,
) -> tuple[Int64[np.ndarray, " picked"], Float64[np.ndarray, " picked"]]:
    """Take frames one by one, each where the most weight lies within the radius that no pick before has covered.

    Only frames whose own weight is positive and not yet covered are taken, so that picks are further from one another
    than `radius_nm`, and no nearer than `distinct_nm`; among equals the one with the largest `prefer` is. Returns the
    picks and the weight that each newly covers. Greedy maximum coverage: Nemhauser, Wolsey & Fisher, Math. Program.
    14, 265 (1978). Costs at most two comparisons of all pairs, and no memory for them.
    """
    left, free = weight.copy(), np.ones(len(weight), dtype=bool)
    some = np.flatnonzero(weight > 0)
    gain = np.zeros(len(weight))
    gain[some] = weight_within(positions[some], positions[some], weight[some], radius_nm)
    taken: list[int] = []
    score: list[float] = []
    while len(taken) < count and (open_ := free & (left > 0)).any():
        best = _largest(np.where(open_, gain, -np.inf), prefer)
        taken.append(best)
        score.append(float(gain[best]))
        rmsd = rmsd_to(positions, positions[best])
        covered = (rmsd <= radius_nm) & (left > 0)
        covered[best] = True
        open_ = free & (left > 0) & ~covered
        gain[open_] -= weight_within(positions[open_], positions[covered], left[covered], radius_nm)
        left[covered] = 0.0
        free &= rmsd >= distinct_nm
    return np.array(taken, dtype=np.int64), np.array(score, dtype=np.float64)


def rmsd_to(
    positions: Float32[np.ndarray, "candidates beads 3"], frame: Float32[np.ndarray, "beads 3"]
) -> Float64[np.ndarray, " candidates"]:
    """RMSD of every candidate to one frame after superposition [nm], exact also where it is small."""
    return nearest_rmsd_nm(positions, frame[None])[0]


def _largest(gain: Float64[np.ndarray, " candidates"], prefer: Float64[np.ndarray, " candidates"]) -> int:
    """Give the most preferred of the largest; frames with the same frames around them differ by rounding."""
    equal = np.flatnonzero(gain >= gain.max() * (1 - 1e-9))
    return int(equal[np.argmax(prefer[equal])])
