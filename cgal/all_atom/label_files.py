"""Book-keeping of a labelling: a file per labelled frame in the scratch folder, and a folder for each failed one.

A file is keyed by all that its label depends on, so that a labelling that was killed goes on with what is missing, and
takes nothing that was made otherwise.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped
from openmm import app

from cgal.all_atom.dynamics import Label, RunPlan
from cgal.all_atom.force_field import read_structure, write_structure
from cgal.errors import BadFile
from cgal.files import write_text
from cgal.params import ForceFieldParams

__all__ = ["LabelFiles", "LabelTask", "Rebuild", "Rebuilt"]


class Rebuilt(NamedTuple):
    """All atoms [nm] around C-alpha beads, warm, and the all-atom steps that it took."""

    positions: Float32[np.ndarray, "atoms 3"]
    steps: int


type Rebuild = Callable[..., Rebuilt]
"""`rebuild(beads, seed=seed)` gives all atoms for C-alpha beads [nm]; picklable.

Where a task has a stored frame near its beads, it comes along as `near`.
"""

FORMAT = 5
"""Raised whenever a label's meaning changes, so that no stale one is picked up."""

STEPS_FILE = "steps.txt"


@dataclass(frozen=True, eq=False)
class LabelTask:
    """One frame to label: its beads, or all its atoms when nothing is to be rebuilt; `near`: all atoms near beads."""

    pick: int
    start: Float32[np.ndarray, "points 3"]
    seed: int
    near: Float32[np.ndarray, "atoms 3"] | None = None

    @property
    def evidence(self) -> str:
        """Folder below the scratch folder for the files of a failed frame."""
        return f"failed/frame-{self.pick:04d}"


@dataclass(frozen=True)
class LabelFiles:
    """How each frame of a batch is labelled, and the folder that keeps what came of it."""

    structure: str
    rebuild: Rebuild | None
    force_field: ForceFieldParams
    plan: RunPlan
    temperature_K: float
    scratch: Path

    def fingerprint(self, task: LabelTask) -> str:
        """SHA-256 of everything that the label of a frame depends on."""
        parts = [
            FORMAT,
            sha256(task.start.tobytes()).hexdigest(),
            task.seed,
            None if task.near is None else sha256(task.near.tobytes()).hexdigest(),
            self.structure,
            _identity(self.rebuild),
            self.force_field.model_dump_json(),
            repr(self.plan),
            self.temperature_K,
        ]
        return sha256(json.dumps(parts).encode()).hexdigest()

    def clean(self) -> None:
        """Remove the evidence of earlier failures, and what a killed process left half-written."""
        shutil.rmtree(self.scratch / "failed", ignore_errors=True)
        for leftover in self.scratch.glob(".frame-*.tmp"):
            leftover.unlink(missing_ok=True)

    def path(self, task: LabelTask) -> Path:
        """Where the label of a frame goes."""
        return self.scratch / f"frame-{task.pick:04d}.h5"

    def save(self, task: LabelTask, label: Label) -> None:
        """Write the label of a frame, with the steps of all its tries, and drop the evidence of those that failed."""
        replace(label, fingerprint=self.fingerprint(task)).save(self.path(task))
        shutil.rmtree(self.scratch / task.evidence, ignore_errors=True)

    def load(self, task: LabelTask) -> Label | None:
        """Read the label of a frame; None when there is none that was made from the same inputs."""
        try:
            found = Label.load(self.path(task))
        except BadFile:
            return None
        return found if found.fingerprint == self.fingerprint(task) else None

    def steps_lost(self, task: LabelTask) -> int:
        """Steps of the tries of this frame that failed; none is known of one whose process died."""
        path = self.scratch / task.evidence / STEPS_FILE
        return int(path.read_text()) if path.exists() else 0

    def keep_evidence(
        self, task: LabelTask, positions: Shaped[np.ndarray, "points 3"] | None, log: str, steps: int
    ) -> None:
        """Keep what a failed try came to: its log, its atoms where it had any, and all steps lost so far."""
        folder = self.scratch / task.evidence
        write_text(folder / "log.txt", log)
        topology, _ = read_structure(self.structure)
        if positions is not None and len(positions) == topology.getNumAtoms():
            write_text(folder / "structure.pdb", _printable(topology, positions))
        write_text(folder / STEPS_FILE, f"{steps}\n")

    def keep_request(self, task: LabelTask, log: str | None) -> None:
        """Keep what a failed frame was asked to be: its beads, or all its atoms; and a log if its process left none."""
        folder = self.scratch / task.evidence
        if log is not None:
            write_text(folder / "log.txt", log)
        topology, _ = read_structure(self.structure)
        if self.rebuild is not None:
            modeller = app.Modeller(topology, np.zeros((topology.getNumAtoms(), 3)))
            modeller.delete([atom for atom in topology.atoms() if atom.name != "CA"])
            topology = modeller.topology
        if topology.getNumAtoms() == len(task.start):
            write_text(folder / "picked.pdb", _printable(topology, task.start))


def _identity(rebuild: Any) -> str:
    if isinstance(rebuild, partial):
        return f"{_identity(rebuild.func)} {rebuild.args!r} {sorted(rebuild.keywords.items())!r}"
    return f"{rebuild.__module__}.{rebuild.__qualname__}" if rebuild else "none"


def _printable(topology: app.Topology, positions: Shaped[np.ndarray, "atoms 3"]) -> str:
    """PDB text of any positions: those that a PDB cannot hold are set to its limits, missing ones to the origin."""
    return write_structure(topology, np.clip(np.nan_to_num(positions, nan=0.0), -900.0, 900.0))
