"""Trajectories from elsewhere in one call: read, checked, and given forces or projected to beads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cgal.frames import AtomFrames, CGTrajectory
from cgal.importing import Choice, ForceOrigin, read_trajectories
from cgal.params import ForceFieldParams
from cgal.progress import Note, unsaid


def import_trajectory(
    topology: Path,
    trajectories: Sequence[Path],
    *,
    temperature_K: float,
    forces: ForceOrigin = "stored",
    force_field: ForceFieldParams | None = None,
    note: Note = unsaid,
    **choice: Any,
) -> AtomFrames:
    """Frames with forces; `choice` is that of `Choice`."""
    read = read_trajectories(topology, trajectories, Choice(**choice), forces, temperature_K=temperature_K, note=note)
    return read.labelled(forces, force_field, note=note)


def import_reference(
    topology: Path, trajectories: Sequence[Path], *, temperature_K: float, note: Note = unsaid, **choice: Any
) -> CGTrajectory:
    """C-alpha beads, each trajectory one replica, by positions alone."""
    return read_trajectories(
        topology, trajectories, Choice(**choice), temperature_K=temperature_K, note=note
    ).reference()
