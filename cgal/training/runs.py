"""What trainings by any objective share: the same bytes for the same seed, a state to go on from, a history."""

import csv
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from cgal.files import write_bytes, write_text
from cgal.potential.potential import Potential

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

__all__ = [
    "NETWORK",
    "TrainingResult",
    "annealed",
    "deterministic_algorithms",
    "fingerprint",
    "read_state",
    "widen",
    "write_curves_csv",
    "write_state",
]

NETWORK = "network"
"""Name of a network's curve; of several they are numbered from 1."""

STATE = "training.pt"
"""File in a scratch folder that a killed training continues from."""


@runtime_checkable
class TrainingResult(Protocol):
    """What a training gives, whatever its objective."""

    @property
    def potential(self) -> Potential:
        """The potential with the best weights by the objective's held-out criterion."""

    @property
    def curves(self) -> Mapping[str, tuple[Any, ...]]:
        """What was minimised, by part (`NETWORK`, a linear rung, a member): named tuples of the same fields in all.

        The first field says how far the training was: an epoch, or an update.
        """

    def summary(self) -> dict[str, float | int]:
        """Numbers for a checkpoint's metadata and a round's metrics."""

    def draw(self, figure: "FigureBase") -> None:
        """Draw the history."""


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Have torch use deterministic algorithms, and set it back afterwards."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # a debugging aid that costs a fifth of the time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


def annealed(first: float, final_fraction: float, done: float) -> float:
    """Half a cosine from `first` down to its final fraction, as `done` goes from 0 to 1."""
    return first * (final_fraction + (1.0 - final_fraction) * (1.0 + math.cos(math.pi * done)) / 2.0)


def fingerprint(words: Iterable[str], tensors: Iterable[Tensor]) -> str:
    """SHA-256 of all that decides the course of a training."""
    digest = hashlib.sha256(" ".join(words).encode())
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_state(scratch: Path, state: dict[str, Any]) -> None:
    """Write what a killed training continues from."""
    buffer = BytesIO()
    torch.save(state, buffer)
    write_bytes(scratch / STATE, buffer.getvalue())


def read_state(scratch: Path | None, wanted: str) -> dict[str, Any]:
    """Read the state whose `fingerprint` is wanted; empty when there is none (then training starts again)."""
    if scratch is None:
        return {}
    try:
        state = torch.load(scratch / STATE, weights_only=True)
    except Exception:  # torch raises whatever its parser met
        return {}
    return state if isinstance(state, dict) and state.get("fingerprint") == wanted else {}


def widen(figure: "FigureBase", parts: int) -> None:
    """Make room for parts side by side in a figure, or in a part of one."""
    whole: Any = figure.get_figure(root=True)
    whole.set_figwidth(whole.get_figwidth() * parts)


def write_curves_csv(result: TrainingResult, path: Path) -> None:
    """Write one row per record; the last column, `part`, says of what."""
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    first = next(iter(result.curves.values()))[0]
    writer.writerow((*first._fields, "part"))
    for part, records in result.curves.items():
        writer.writerows((*record, part) for record in records)
    write_text(path, stream.getvalue())
