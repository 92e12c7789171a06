"""Simulated frames for other programs."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import mdtraj
import numpy as np

from cgal.errors import BadFile, BadTrajectory, EmptyTrajectory
from cgal.files import atomic_write
from cgal.frames import CGTrajectory

__all__ = ["export_trajectory"]

EVEN = 1e-6
"""Frames are evenly spaced if their times differ from that by less, in parts of the spacing."""


def export_trajectory(
    trajectory: CGTrajectory, path: Path, *, together: bool = False, overwrite: bool = False
) -> list[Path]:
    """Write the frames of each replica to a file of its own, and the beads with their bonds beside; give all paths.

    `run.xtc` becomes `run-000.xtc`, `run-001.xtc`, ... and `run.pdb`, whose CONECT records are the chain. With
    `together` all replicas follow one another in `run.xtc`, and `run.csv` has replica and time of each frame. XTC keeps
    the time of each frame, DCD the first one and the spacing.

    With `overwrite`, files of further replicas that an export to this name has left go, too. Raises BadFile for another
    extension than `.xtc` and `.dcd`, when a file is there already and `overwrite` is not set, or none can be written;
    EmptyTrajectory when there is no frame; BadTrajectory for a DCD of frames that are not evenly spaced. Then nothing
    is written.
    """
    if path.suffix not in WRITERS:
        raise BadFile(f"{path}: can export to {' or '.join(WRITERS)} only; change the extension")
    if len(trajectory) == 0:
        raise EmptyTrajectory(f"{path}: the trajectory has no frame to export")
    topology, table = path.with_suffix(".pdb"), path.with_suffix(".csv")
    parts = {path: trajectory} if together else dict(_replicas(trajectory, path))
    written = [*parts, *([table] if together else []), topology]
    others = [] if together else [left for left in _left_replicas(path) if left not in parts]
    _require_free([*written, *others], overwrite)
    if path.suffix == ".dcd" and not together:
        for part in parts.values():
            _spacing_ps(part)
    with ExitStack() as stack:  # all of them aside, then each in its place
        for target, part in parts.items():
            WRITERS[path.suffix](part, stack.enter_context(atomic_write(target)))
        if together:
            stack.enter_context(atomic_write(table)).write_text(_table(trajectory))
        _write_pdb(trajectory, stack.enter_context(atomic_write(topology)))
    for left in others:
        left.unlink()
    return written


def _replicas(trajectory: CGTrajectory, path: Path) -> Iterator[tuple[Path, CGTrajectory]]:
    for replica in np.unique(trajectory.replica):
        yield path.with_stem(f"{path.stem}-{replica:03d}"), trajectory.take(trajectory.replica == replica)


def _left_replicas(path: Path) -> list[Path]:
    """Files that are named as replicas of an export to this path are."""
    name = re.compile(rf"{re.escape(path.stem)}-\d{{3}}{re.escape(path.suffix)}")
    return [found for found in path.parent.glob("*") if name.fullmatch(found.name)]


def _require_free(paths: Sequence[Path], overwrite: bool) -> None:
    there = [str(path) for path in paths if path.exists()]
    if there and not overwrite:
        raise BadFile(
            f"{', '.join(there[:3])}{' and more' if len(there) > 3 else ''}: there already, nothing was written; "
            "give another name, or --overwrite"
        )


def _write_xtc(trajectory: CGTrajectory, path: Path) -> None:
    trajectory.to_mdtraj().save_xtc(str(path))


def _write_dcd(trajectory: CGTrajectory, path: Path) -> None:
    """By OpenMM, as mdtraj's DCD files have no times."""
    topology = trajectory.to_mdtraj().topology.to_openmm()
    together = len(np.unique(trajectory.replica)) > 1
    first_ps, spacing_ps = (0.0, 1.0) if together else (float(trajectory.time_ps[0]), _spacing_ps(trajectory))
    with path.open("w+b") as stream:
        from openmm.app import DCDFile

        writer = DCDFile(stream, topology, spacing_ps, round(first_ps / spacing_ps))
        for frame in trajectory.positions:
            writer.writeModel(frame)


WRITERS = {".xtc": _write_xtc, ".dcd": _write_dcd}


def _spacing_ps(trajectory: CGTrajectory) -> float:
    """Time between frames, the first of which is a whole number of them from zero: what a DCD file can tell."""
    time_ps = trajectory.time_ps
    spacing_ps = float(time_ps[1] - time_ps[0]) if len(time_ps) > 1 else float(time_ps[0]) or 1.0
    number = time_ps / spacing_ps
    if np.abs(number - np.round(number[0]) - np.arange(len(number))).max() > EVEN * max(1.0, number[-1]):
        raise BadTrajectory(
            f"replica {trajectory.replica[0]}: its frames are not evenly spaced in time, which DCD cannot tell; "
            "export to .xtc"
        )
    return spacing_ps


def _table(trajectory: CGTrajectory) -> str:
    rows = zip(trajectory.replica.tolist(), trajectory.time_ps.tolist(), strict=True)
    return "frame,replica,time_ps\n" + "".join(
        f"{frame},{replica},{time_ps:.9g}\n" for frame, (replica, time_ps) in enumerate(rows)
    )


def _write_pdb(trajectory: CGTrajectory, path: Path) -> None:
    """First frame, with the bonds between beads: mdtraj leaves those of amino acids out, and viewers find none."""
    frame: mdtraj.Trajectory = trajectory.take(np.array([0])).to_mdtraj()
    frame.save_pdb(str(path))
    lines = path.read_text().splitlines()
    serials = [int(line[6:11]) for line in lines if line.startswith("ATOM")]
    neighbours = ([*serials[max(bead - 1, 0) : bead], *serials[bead + 1 : bead + 2]] for bead in range(len(serials)))
    bonds = [
        f"CONECT{serial:5d}" + "".join(f"{other:5d}" for other in others)
        for serial, others in zip(serials, neighbours, strict=True)
    ]
    end = next(number for number, line in enumerate(lines) if line.startswith("END") and "MDL" not in line)
    path.write_text("\n".join([*lines[:end], *bonds, *lines[end:]]) + "\n")
