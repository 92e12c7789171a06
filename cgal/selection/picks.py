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
    many picks were asked for, which may be zero. `coverage` compares all candidates with all training frames, and
    `nearest_nm` is the RMSD of each pick to the nearest of these.
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
    nearest_nm: Float64[np.ndarray, " picked"]

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
        far = f", {np.median(self.nearest_nm):.3f} nm (median) from the training set" if len(self) else ""
        return (
            f"picked {len(self)} of {self.candidates} candidates from {self.bins_used} RMSD bins{far}{missing}; "
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
                "nearest_nm": self.nearest_nm,
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
                handle["nearest_nm"][:],
            )
