"""What was selected, from what, and why: the noun that the oracle, the figures and the report read."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from cgal.hdf5 import Hdf5Record, stored
from cgal.selection.committee import Calibration
from cgal.selection.coverage import Coverage

__all__ = ["Candidates", "Selection"]


@dataclass(frozen=True, eq=False)
class Candidates:
    """All physical frames of the simulation: index into its trajectory (rising) and RMSD to the nearest training frame.

    A frame further than `novel_nm` from the whole training set is uncovered (`RoundOutcome` counts dropped frames as
    uncovered too). `disagreement` is the calibrated one of
    a committee [kJ/mol/nm], where the strategy asked for it.
    """

    frame: Int64[np.ndarray, " candidates"]
    nearest_nm: Float64[np.ndarray, " candidates"]
    novel_nm: float = field(metadata=stored(name="novel_nm"))
    disagreement: Float64[np.ndarray, " candidates"] | None = None

    def __len__(self) -> int:
        """Give the number of candidates."""
        return len(self.frame)

    @property
    def uncovered_fraction(self) -> float:
        """Share of the candidates that are uncovered."""
        return float(np.mean(self.nearest_nm > self.novel_nm))


@dataclass(frozen=True, eq=False)
class Selection(Hdf5Record):
    """Picked frames, best first: bead positions [nm], index into the simulated trajectory, score and RMSD [nm].

    `dropped` counts the frames that were no candidates, by reason. `requested` is how many picks were asked for,
    which may be zero, of the `wanted` ones of a round whose budget pays for all (an even share of a round's, where
    several proteins share it). `coverage` compares all candidates
    with all training frames; `calibration` is there when the strategy asked a committee.
    """

    KIND = "selection"

    strategy: str
    sequence: str
    positions: Float32[np.ndarray, "picked beads 3"]
    frame: Int64[np.ndarray, " picked"]
    score: Float64[np.ndarray, " picked"]
    rmsd_nm: Float64[np.ndarray, " picked"]
    requested: int
    wanted: int
    dropped: dict[str, int]
    coverage: Coverage
    candidates: Candidates = field(metadata=stored(prefix="candidate_"))
    calibration: Calibration | None = field(default=None, metadata=stored(prefix="committee_"))

    def __len__(self) -> int:
        """Give the number of picked frames."""
        return len(self.frame)

    @property
    def picked_candidates(self) -> Int64[np.ndarray, " picked"]:
        """Where the picks stand among the candidates."""
        return np.searchsorted(self.candidates.frame, self.frame)

    @property
    def nearest_nm(self) -> Float64[np.ndarray, " picked"]:
        """RMSD of each pick to the nearest training frame [nm]."""
        return np.asarray(self.candidates.nearest_nm[self.picked_candidates])

    @property
    def uncovered_fraction(self) -> float:
        """Share of the candidates further than `selection.novel_nm` from the training set, whatever the strategy."""
        return self.candidates.uncovered_fraction

    @property
    def bins_used(self) -> int:
        """Number of RMSD bins that the picks come from."""
        return len(np.unique(self.coverage.bin_of(self.rmsd_nm)))

    @property
    def note(self) -> str:
        """One line for people: what was picked from what, and what was dropped."""
        lost = ", ".join(f"{number} {reason}" for reason, number in self.dropped.items() if number)
        missing = "" if len(self) == self.requested else f" (asked for {self.requested}; no more frames qualify)"
        far = f", {np.median(self.nearest_nm):.3f} nm (median) from the training set" if len(self) else ""
        return (
            f"picked {len(self)} of {len(self.candidates)} candidates from {self.bins_used} RMSD bins{far}{missing}; "
            f"{self.uncovered_fraction:.1%} of the candidates are more than {self.candidates.novel_nm} nm from the "
            f"training set; dropped: {lost or 'none'}{f'; {self.calibration.note}' if self.calibration else ''}"
        )

    def summary(self) -> dict[str, float | int | str | dict[str, int]]:
        """Numbers for a round's metrics, fit for JSON."""
        summary: dict[str, float | int | str | dict[str, int]] = {
            "strategy": self.strategy,
            "requested": self.requested,
            "picked": len(self),
            "candidates": len(self.candidates),
            "uncovered_fraction": self.uncovered_fraction,
            "dropped": self.dropped,
        }
        if self.calibration:
            summary |= {"committee_spearman": self.calibration.spearman, "committee_scale": self.calibration.scale}
        return summary

    def _extra(self) -> dict[str, float]:
        return {"uncovered_fraction": self.uncovered_fraction}

    @classmethod
    def _upgrade(cls, content: dict[str, Any]) -> dict[str, Any]:
        upgraded = {"wanted": content["requested"]} | content
        if "committee_fit" in content:
            members, scale, noise = content["committee_fit"].tolist()
            fit = {"members": int(members), "scale": scale, "noise_kJ_per_mol_nm": noise}
            upgraded |= {f"committee_{name}": value for name, value in fit.items()}
        return upgraded
