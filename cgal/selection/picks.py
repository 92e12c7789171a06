"""What was selected, from what, and why: the noun that the oracle, the figures and the report read."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64

from cgal.files import decode, read_hdf5, write_hdf5
from cgal.selection.coverage import Coverage

__all__ = ["Selection"]


@dataclass(frozen=True, eq=False)
class Selection:
    """Picked frames, best first: bead positions [nm], index into the simulated trajectory, score and RMSD [nm].

    `dropped` counts the frames that were no candidates, by reason; `candidates` those that were. `requested` is how
    many picks were asked for, which may be zero. `coverage` compares all candidates with all training frames.
    """

    strategy: str
    sequence: str
    positions: Float32[np.ndarray, "picked beads 3"]
    frame: Int64[np.ndarray, " picked"]
    score: Float64[np.ndarray, " picked"]
    rmsd_nm: Float64[np.ndarray, " picked"]
    requested: int
    candidates: int
    dropped: dict[str, int]
    coverage: Coverage

    def __len__(self) -> int:
        """Give the number of picked frames."""
        return len(self.frame)

    @property
    def bins_used(self) -> int:
        """Number of RMSD bins that the picks come from."""
        return len(np.unique(self.coverage.bin_of(self.rmsd_nm)))

    @property
    def note(self) -> str:
        """One line for people: what was picked from what, and what was dropped."""
        lost = ", ".join(f"{number} {reason}" for reason, number in self.dropped.items() if number)
        missing = "" if len(self) == self.requested else f" (asked for {self.requested}; no more frames qualify)"
        return (
            f"picked {len(self)} of {self.candidates} candidates from {self.bins_used} RMSD bins{missing}; "
            f"dropped: {lost or 'none'}"
        )

    def save(self, path: Path) -> None:
        """Write HDF5."""
        write_hdf5(
            path,
            {
                "positions": self.positions,
                "frame": self.frame,
                "score": self.score,
                "rmsd_nm": self.rmsd_nm,
                "edges": self.coverage.edges,
                "simulated": self.coverage.simulated,
                "training": self.coverage.training,
                "gap": self.coverage.gap,
            },
            {
                "cgal_kind": "selection",
                "strategy": self.strategy,
                "sequence": self.sequence,
                "requested": self.requested,
                "candidates": self.candidates,
                "dropped": json.dumps(self.dropped),
            },
        )

    @classmethod
    def load(cls, path: Path) -> "Selection":
        """Read what `save` wrote; raises BadFile."""
        with read_hdf5(path, "selection") as handle:
            return cls(
                decode(handle.attrs["strategy"]),
                decode(handle.attrs["sequence"]),
                handle["positions"][:],
                handle["frame"][:],
                handle["score"][:],
                handle["rmsd_nm"][:],
                int(handle.attrs["requested"]),
                int(handle.attrs["candidates"]),
                json.loads(decode(handle.attrs["dropped"])),
                Coverage(*(handle[name][:] for name in ("edges", "simulated", "training", "gap"))),
            )
