"""What a strategy chooses from: the physical frames of a simulation, and why the others are out."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped

from cgal.frames import CGTrajectory
from cgal.params import SelectionParams
from cgal.selection.committee import Calibration, Committee
from cgal.selection.coverage import Coverage
from cgal.selection.picks import Candidates

__all__ = ["Picks", "Pool", "Strategy", "chain_cutoff_nm", "drop_reasons"]

CA_BOND_nm = 0.38
PAPER_CUTOFF_nm = 1.0


@dataclass(frozen=True, eq=False)
class Pool:
    """Candidate frames with their RMSD to the nearest training frame (in `candidates`) and to the reference frame [nm].

    `dropped` counts the frames that are no candidates, by reason; `coverage` are the histograms of the RMSD to the
    reference frame. `committee` trains one when it is called, or returns what it trained before.
    """

    sequence: str
    candidates: Candidates
    positions: Float32[np.ndarray, "candidates beads 3"]
    rmsd_nm: Float64[np.ndarray, " candidates"]
    dropped: dict[str, int]
    coverage: Coverage
    params: SelectionParams
    committee: Callable[[], Committee]

    def __len__(self) -> int:
        """Give the number of candidates."""
        return len(self.candidates)

    @property
    def dropped_fraction(self) -> float:
        """Share of the simulated frames that are no candidates."""
        dropped = sum(self.dropped.values())
        return dropped / (dropped + len(self))

    @property
    def uncovered_fraction(self) -> float:
        """Share of the simulated frames that are uncovered: candidates far from the training set, and dropped ones."""
        return self.dropped_fraction + (1 - self.dropped_fraction) * self.candidates.uncovered_fraction


@dataclass(frozen=True, eq=False)
class Picks:
    """Chosen candidates (index into the pool), best first and none twice, and the score each was chosen for.

    A strategy that asked a committee adds its calibration and the disagreement on every candidate [kJ/mol/nm].
    """

    candidate: Int64[np.ndarray, " picked"]
    score: Float64[np.ndarray, " picked"]
    calibration: Calibration | None = None
    disagreement: Float64[np.ndarray, " candidates"] | None = None


Strategy = Callable[[Pool, int, np.random.Generator], Picks]
"""Chooses at most `count` candidates of a pool; all randomness comes from the generator."""


def chain_cutoff_nm(beads: int) -> float:
    """Value of `selection.cutoff_nm` that no intact chain is beyond, whatever the reference frame [nm].

    A third of the chain's length, and no less than the paper's for ten beads. A stretched chain and a hairpin, about
    as far apart as chains without a broken bond can be, differ by 0.32 of their length.

    >>> chain_cutoff_nm(4), chain_cutoff_nm(10), chain_cutoff_nm(20)
    (1.0, 1.1, 2.4)
    """
    return round(max(PAPER_CUTOFF_nm, CA_BOND_nm * (beads - 1) / 3), 1)


def drop_reasons(
    trajectory: CGTrajectory, rmsd: Float64[np.ndarray, " frames"], params: SelectionParams
) -> Shaped[np.ndarray, " frames"]:
    """Say why each frame cannot be labelled: the first reason that holds, or "" for a candidate.

    "not finite": a coordinate is NaN or infinite; "unphysical bond": a CA-CA bond outside `minimum_bond_nm` to
    `maximum_bond_nm`; "overlap": two beads that are not bonded to each other closer than `minimum_distance_nm`;
    "beyond cutoff": RMSD to the reference frame over `cutoff_nm`, the paper's guard against implosions and explosions.
    """
    positions = trajectory.positions.astype(np.float64)
    bonds = np.linalg.norm(np.diff(positions, axis=1), axis=-1)
    first, second = np.triu_indices(positions.shape[1], k=2)
    apart = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1)
    faults = {
        "not finite": ~np.isfinite(positions).all(axis=(1, 2)),
        "unphysical bond": ((bonds < params.minimum_bond_nm) | (bonds > params.maximum_bond_nm)).any(axis=1),
        "overlap": (apart < params.minimum_distance_nm).any(axis=1),
        "beyond cutoff": rmsd > params.cutoff_nm,
    }
    return np.select(list(faults.values()), list(faults), default="")
