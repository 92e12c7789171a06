"""What a protein costs: `cgal import` of 100,000 frames; structure, seed and a round of large proteins."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import mdtraj
import numpy as np
import yaml

from benchmarks.harness import Result
from benchmarks.startup import clone
from cgal.frames import AtomFrames
from cgal.importing import as_reference, structure_pdb
from cgal.params import merged
from flows.versioning import Repository

__all__ = ["results"]

FRAMES = 100_000
UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
SHORT = {
    "campaign": {"rounds": 1},
    "training": {"epochs": 3, "validation_block_frames": 2, "preflight": False},
    "simulation": {"replicas": 8, "steps": 400, "stride": 20},
    "selection": {"frames": 2},
    "oracle": {"average_steps": 96, "burn_in_steps": 20},
    "benchmark": {"tica_lag_ps": 1.0},
}


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
    with TemporaryDirectory() as folder:
        yield from _large(Path(folder))


def _large(folder: Path) -> Iterator[Result]:
    """Structures of 76 and 200 residues by sequence; a seed and round 0 of the smaller one, as short as they can be."""
    root = folder / "large"
    cgal = [sys.executable, "-m", "flows.cli"]
    subprocess.run([*cgal, "init", str(root), "--protein", "ubiquitin"], check=True, stdout=sys.stderr)
    for residues in (76, 200):
        out = folder / f"{residues}.pdb"
        sequence = (UBIQUITIN * 3)[:residues]
        run = [*cgal, "structure", str(out), "--sequence", sequence, "--root", str(root)]
        seconds, peak_MiB = _on_one_core(run, folder)
        yield Result(f"structure_{residues}_residues", seconds, None, None, "s", f"one core; {peak_MiB:.0f} MiB")
    (root / "data" / "ubiquitin").mkdir(parents=True)
    (root / "data" / "ubiquitin" / "structure.pdb").write_text((folder / "76.pdb").read_text())
    content = yaml.safe_load((root / "params.yaml").read_text())
    (root / "params.yaml").write_text(yaml.safe_dump(merged(content, SHORT)))
    seconds, peak_MiB = _on_one_core([*cgal, "seed", "--runs", "4", "--length-ps", "5"], root)
    yield Result("seed_76_residues", seconds, None, None, "s", f"4 runs of 10 ps, one core; {peak_MiB:.0f} MiB")
    seed = AtomFrames.load(root / "data" / "ubiquitin" / "seed.h5")
    as_reference(seed).save(root / "data" / "ubiquitin" / "reference.h5")
    seconds, peak_MiB = _on_one_core([*cgal, "run"], root)
    note = f"rounds 0 and 1, 2 frames labelled by 100 steps, start-up and compilation included; {peak_MiB:.0f} MiB"
    yield Result("round_76_residues", seconds, None, None, "s", note)


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
