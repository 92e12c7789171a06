"""Where everything of a working copy lies: constant file names, read the same by every stage."""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cgal.errors import BadFile, BadParams
from cgal.files import read_json, write_json
from cgal.params import Params, check_params, load_params, protein_names

__all__ = ["JOINT_STAGES", "Summary", "Workspace"]

JOINT_STAGES = ("train", "select")
"""Stages that run once a round, for all proteins of a campaign; the others run for each."""

type Summary = dict[str, float | int | str]
"""A few numbers that say how a stage went, by name."""


@dataclass(frozen=True)
class Workspace:
    """A working copy of the project, seen from its root folder; of params.yaml's proteins if none is named.

    Where `params.yaml` names several, `parts` gives the view of each: the same working copy with the data, the round's
    folder, the scratch folders and the random numbers of that protein.
    """

    root: Path
    protein: str | None = None

    @cached_property
    def params(self) -> Params:
        """The checked `params.yaml`, read once; its `protein` is the one that this is the view of, if it is of one."""
        path = self.root / "params.yaml"
        params = load_params(path)
        if self.protein is None:
            return params
        check_params({"protein": self.protein}, Path("name of a protein"))
        return params.model_copy(update={"protein": self.protein})

    @cached_property
    def campaign_proteins(self) -> tuple[str, ...]:
        """All proteins that `params.yaml` names."""
        return protein_names(load_params(self.root / "params.yaml").protein)

    @property
    def parts(self) -> tuple["Workspace", ...]:
        """The view of each protein: of one, this very workspace."""
        names = protein_names(self.params.protein)
        return (self,) if len(names) == 1 else tuple(Workspace(self.root, name) for name in names)

    def of(self, protein: str | None) -> "Workspace":
        """The view of one of params.yaml's proteins; raises BadParams for another, or for none of several."""
        if protein is None and len(self.campaign_proteins) == 1:
            return self
        if protein not in self.campaign_proteins:
            raise BadParams(f"{protein or 'protein'}: name one of params.yaml's: {', '.join(self.campaign_proteins)}")
        return self if len(self.campaign_proteins) == 1 else Workspace(self.root, protein)

    def for_stage(self, stage: str) -> tuple["Workspace", ...]:
        """The views that a stage runs in, one after the other."""
        return (self,) if stage in JOINT_STAGES else self.parts

    @property
    def _suffix(self) -> str:
        """Name of the protein where it is one of several; "" else."""
        if self.protein is None or len(self.campaign_proteins) == 1:
            return ""
        return self.protein if self.protein in self.campaign_proteins else ""

    @property
    def beside(self) -> tuple[str, ...]:
        """The other proteins that train the same network."""
        return tuple(name for name in self.campaign_proteins if name != self._suffix) if self._suffix else ()

    @property
    def data(self) -> Path:
        """Folder of the protein's data, versioned as a whole by `data/<protein>.dvc` (`data.dvc`: the bundled one).

        Raises BadParams when `params.yaml` names several proteins and this is the view of none.
        """
        names = protein_names(self.params.protein)
        if len(names) > 1:
            raise BadParams(f"params.yaml names several proteins: say which of {', '.join(names)}")
        return self.root / "data" / names[0]

    @property
    def round_index(self) -> int:
        """Index of the round that the datasets are at; where a kill left one of them behind, of that one."""
        from cgal.dataset import load_manifest, round_index  # seconds of imports, and many commands only look

        return min(round_index(load_manifest(part.data)) for part in self.parts)

    @property
    def round(self) -> Path:
        """Outputs of the stages of the current round; of one protein of several, those that are its own."""
        return self.root / "round" / self._suffix

    @property
    def model(self) -> Path:
        """The checkpoint of the current round, which serves all proteins."""
        return self.root / "round" / "model.pt"

    def named(self, stage: str, separator: str = "-") -> str:
        """Name of a stage, with the protein's name where it is one of several: `simulate`, or `simulate-a`."""
        return separator.join(part for part in (stage, self._suffix) if part)

    def scratch(self, stage: str) -> Path:
        """Where a stage keeps what it needs to go on after a kill; never versioned."""
        return self.root / ".cgal" / "work" / self.named(stage)

    def prune_scratch(self, keep: str) -> None:
        """Remove what stages of a published round kept, but for one stage: the evidence of its failed labels."""
        kept = {part.named(keep) for part in self.parts}
        for folder in (self.root / ".cgal" / "work").glob("*"):
            if folder.name not in kept:
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
        return path.read_text(errors="replace")

    def closing_reason(self) -> str:
        """Why the round whose outputs lie here is the campaign's last one; "" when it asked for labels."""
        reason: str = read_json(self.root / "round" / "selection.json")["closing"]
        return reason

    def timings(self, round_index: int) -> dict[str, float]:
        """Wall seconds of each stage of this round, so far."""
        path = self.root / "round" / "timings.json"
        content = read_json(path) if path.is_file() else {}
        seconds: dict[str, float] = content.get("seconds", {}) if content.get("round") == round_index else {}
        return seconds

    def add_timing(self, round_index: int, stage: str, seconds: float) -> None:
        """Note how long a stage took (the last time it really ran), under its name (`named` with a slash)."""
        content = {"round": round_index, "seconds": self.timings(round_index) | {stage: round(seconds, 2)}}
        write_json(self.root / "round" / "timings.json", content)
