"""Where everything of a working copy lies: constant file names, read the same by every stage."""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cgal.errors import BadFile
from cgal.files import read_json, write_json
from cgal.params import Params, load_params

__all__ = ["Summary", "Workspace"]

type Summary = dict[str, float | int | str]
"""A few numbers that say how a stage went, by name."""


@dataclass(frozen=True)
class Workspace:
    """A working copy of the project, seen from its root folder; of params.yaml's protein if no other is named."""

    root: Path
    protein: str | None = None

    @cached_property
    def params(self) -> Params:
        """The checked `params.yaml`, read once."""
        return load_params(self.root / "params.yaml")

    @property
    def data(self) -> Path:
        """Folder of the protein's data, versioned as a whole by `data/<protein>.dvc` (`data.dvc`: the bundled one)."""
        return self.root / "data" / (self.protein or self.params.protein)

    @property
    def round(self) -> Path:
        """Outputs of the stages of the current round."""
        return self.root / "round"

    def scratch(self, stage: str) -> Path:
        """Where a stage keeps what it needs to go on after a kill; never versioned."""
        return self.root / ".cgal" / "work" / stage

    def prune_scratch(self, keep: str) -> None:
        """Remove what stages of a published round kept, but for one folder: the evidence of its failed labels."""
        for folder in (self.root / ".cgal" / "work").glob("*"):
            if folder.name != keep:
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def structure(self) -> str:
        """The all-atom start structure, as PDB text; raises BadFile when there is none."""
        path = self.data / "structure.pdb"
        if not path.is_file():
            raise BadFile(
                f"{path}: no such file; make it with 'cgal structure data/{self.data.name}/structure.pdb --sequence "
                "SEQUENCE' (or --pdb FILE); 'dvc pull data.dvc' fetches that of the bundled protein"
            )
        return path.read_text()

    def closing_reason(self) -> str:
        """Why the round whose outputs lie here is the campaign's last one; "" when it asked for labels."""
        reason: str = read_json(self.round / "selection.json")["closing"]
        return reason

    def timings(self, round_index: int) -> dict[str, float]:
        """Wall seconds of each stage of this round, so far."""
        path = self.round / "timings.json"
        content = read_json(path) if path.is_file() else {}
        seconds: dict[str, float] = content.get("seconds", {}) if content.get("round") == round_index else {}
        return seconds

    def add_timing(self, round_index: int, stage: str, seconds: float) -> None:
        """Note how long a stage took (the last time it really ran)."""
        content = {"round": round_index, "seconds": self.timings(round_index) | {stage: round(seconds, 2)}}
        write_json(self.round / "timings.json", content)
