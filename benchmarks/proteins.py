"""What setting up a protein costs: `cgal import` of 100,000 frames, on one core."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import mdtraj
import numpy as np

from benchmarks.harness import Result
from benchmarks.startup import clone
from cgal.frames import AtomFrames
from cgal.importing import structure_pdb
from flows.versioning import Repository

__all__ = ["results"]

FRAMES = 100_000


def results() -> Iterator[Result]:
    """The whole command, start of Python to DVC's record, from an XTC file of chignolin's own frames."""
    with TemporaryDirectory() as folder:
        root = clone(Path(folder) / "clone", "HEAD")
        Repository(root).dvc.pull_bundled()
        options = _written(root, Path(folder))
        seconds, peak_MiB = _on_one_core([sys.executable, "-m", "flows.cli", "import", *options], root)
    note = f"{FRAMES} frames of chignolin (166 atoms, XTC), one core; forces recomputed for a seed of 10000 frames"
    yield Result("import_100k_frames", seconds, None, None, "s", note)
    note = "largest resident set of its processes, mapped files included: the imports are 650, the positions 190"
    yield Result("import_100k_frames_memory", peak_MiB, None, None, "MiB", note)


def _written(root: Path, folder: Path) -> list[str]:
    """Write a topology and a trajectory; gives the options that name them."""
    seed = AtomFrames.load(root / "data" / "chignolin" / "seed.h5")
    topology, trajectory = folder / "start.pdb", folder / "run.xtc"
    topology.write_text(structure_pdb(seed, 0))
    with mdtraj.formats.XTCTrajectoryFile(str(trajectory), "w") as handle:
        for start in range(0, FRAMES, len(seed)):
            positions = seed.positions[: FRAMES - start]
            handle.write(positions, time=np.arange(start, start + len(positions), dtype=np.float32))
    return ["--topology", str(topology), "--trajectory", str(trajectory), "--forces", "recompute"]


def _on_one_core(command: list[str], root: Path) -> tuple[float, float]:
    """Wall seconds of a command, and the peak memory [MiB] of the largest of its processes."""
    core = min(os.sched_getaffinity(0))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    began = perf_counter()
    child = subprocess.Popen(["taskset", "-c", str(core), *command], cwd=root, env=environment, stdout=sys.stderr)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {child.returncode}")
    return perf_counter() - began, usage.ru_maxrss / 1024
