"""Simulated frames for other programs."""

from pathlib import Path

from cgal.errors import BadFile, EmptyTrajectory
from cgal.files import atomic_write
from cgal.frames import CGTrajectory

__all__ = ["export_trajectory"]


def export_trajectory(trajectory: CGTrajectory, path: Path) -> Path:
    """Write frames as `.xtc` or `.dcd` and their topology as `.pdb` beside; give the path of the PDB.

    Replicas follow one another; the time of each frame is kept in XTC (DCD has none). Raises BadFile for another
    extension, and EmptyTrajectory when there is no frame.
    """
    if path.suffix not in (".xtc", ".dcd"):
        raise BadFile(f"{path}: can export to .xtc or .dcd only; change the extension")
    if len(trajectory) == 0:
        raise EmptyTrajectory(f"{path}: the trajectory has no frame to export")
    frames = trajectory.to_mdtraj()
    topology = path.with_suffix(".pdb")
    with atomic_write(topology) as temporary:
        frames[0].save_pdb(str(temporary))
    with atomic_write(path) as temporary:
        write = frames.save_xtc if path.suffix == ".xtc" else frames.save_dcd
        write(str(temporary))
    return topology
