"""What versioning a round costs, early and late in a campaign: a synthetic one of 51 rounds on real DVC and real git.

Stages are stood in for by small files of the real formats; recording, publishing and listing are the product's own.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.figure import Figure

from benchmarks.harness import Result, interleave, seconds
from cgal.files import write_bytes, write_json, write_text
from cgal.frames import CGTrajectory, LabelledFrames
from flows.versioning import Repository

HERE = Path(__file__).parents[1]
CAMPAIGN = "synthetic"
STAGES = ("train", "simulate", "benchmark", "select", "label")
LAST = 50
SHARD_FRAMES = 24
REPETITIONS = 7
SEQUENCE = "YYDPETGTWY"
TRAINING, PICKED = "#00798c", "#edae49"


def results() -> Iterator[Result]:
    """Publishing, recording and listing in a campaign of 51 rounds; the peer is the same in one of 2 rounds."""
    os.environ["DVC_NO_ANALYTICS"] = "true"
    with TemporaryDirectory() as folder:
        long = Path(folder) / "long"
        short = Path(folder) / "short"
        _new_project(long)
        growth = []
        for k in range(LAST + 1):
            growth.append(_round(long, k))
            if k == 1:
                shutil.copytree(long, short, symlinks=True)
        _plot(growth[1:], HERE / "docs" / "images" / "versioning.png")
        yield from _compare(long, short, growth)


def _compare(long: Path, short: Path, growth: list[tuple[float, float]]) -> Iterator[Result]:
    works: dict[str, Callable[[Path, int], object]] = {
        "publish": _publish_again,
        "record": lambda root, k: _record_stages(root),
        "list": lambda root, k: Repository(root).published(CAMPAIGN),
    }
    notes = {
        "publish": "record data/, commit, tag; peer: round 1 of the same campaign",
        "record": "all five stages checked and recorded in dvc.lock; peer: round 1",
        "list": "`cgal rounds` reads 51 rounds from git; peer: 2 rounds",
    }
    for name, work in works.items():
        timing = interleave(partial(work, long, LAST), partial(work, short, 1), REPETITIONS)
        if name == "publish":
            note = f"as the campaign went: {growth[1][1]:.2f} s, and round {LAST} {growth[LAST][1]:.2f} s"
            yield Result("versioning_publish_1", timing.peer_s or 0.0, None, None, "s", note)
        yield timing.times(f"versioning_{name}_{LAST}", notes[name])
    stored_kB = _stored_bytes(long) / LAST / 1000
    yield Result("versioning_storage_a_round", stored_kB, None, None, "kB", f"DVC cache; {_new_bytes():.0f} kB are new")


def _new_project(root: Path) -> None:
    """A project as on main, with a seed and no round."""
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        write_bytes(root / name, (HERE / name).read_bytes())
    data = root / "data" / "chignolin"
    write_text(data / "structure.pdb", "structure.pdb\n")
    _trajectory(0).save(data / "reference.h5")
    _open_round(root, 0)
    for command in (
        ["git", "init", "--quiet", "--initial-branch", "main"],
        ["git", "config", "user.name", "benchmark"],
        ["git", "config", "user.email", "benchmark@example.invalid"],
    ):
        subprocess.run(command, cwd=root, check=True)
    Repository(root).dvc.record_data()
    subprocess.run(["git", "add", "--all"], cwd=root, check=True)
    subprocess.run(["git", "commit", "--quiet", "--message", "seed"], cwd=root, check=True)


def _round(root: Path, k: int) -> tuple[float, float]:
    """Open, run and publish round k; seconds for recording its stages and for publishing it."""
    if k:
        _open_round(root, k)
    _write_outputs(root, k)
    return seconds(lambda: _record_stages(root)), seconds(lambda: Repository(root).publish(CAMPAIGN, k))


def _publish_again(root: Path, k: int) -> None:
    """Publish the last round once more, as if for the first time."""
    tip = f"refs/heads/campaign/{CAMPAIGN}"
    lines = f"update {tip} {tip}^\ndelete refs/tags/{CAMPAIGN}/round-{k:03d}\n"
    subprocess.run(["git", "update-ref", "--stdin"], cwd=root, input=lines, text=True, check=True)
    Repository(root).publish(CAMPAIGN, k)


def _record_stages(root: Path) -> None:
    repository = Repository(root)
    for stage in STAGES:
        repository.dvc.stage_is_current(stage)
        repository.dvc.record_stage(stage)


def _open_round(root: Path, k: int) -> None:
    """Shard k and what else changes in `data/` when a round opens."""
    data = root / "data" / "chignolin"
    _shard(k).save(data / "shards" / f"{k:03d}.h5")
    records = [{"name": f"{i:03d}.h5", "sha256": "0" * 64, "frames": SHARD_FRAMES} for i in range(k + 1)]
    write_json(data / "manifest.json", {"protein": "chignolin", "shards": records})
    write_bytes(data / "warm_start.pt", _noise(k, 500_000))


def _write_outputs(root: Path, k: int) -> None:
    """What the five stages leave behind, with the sizes of a small campaign."""
    folder = root / "round"
    write_bytes(folder / "model.pt", _noise(1000 + k, 500_000))
    write_text(folder / "training.csv", "epoch,train_rmse_kJ_per_mol_nm,validation_rmse_kJ_per_mol_nm\n0,2.0,3.0\n")
    _trajectory(k).save(folder / "trajectory.h5")
    for name in ("metrics", "histograms", "selection"):
        write_json(folder / f"{name}.json", {"round": k})
    write_json(folder / "timings.json", {"round": k, "seconds": {"train": 1.0}})
    for stage, figures in (("training", 3), ("benchmark", 5), ("selection", 1)):
        for i in range(figures):
            write_bytes(folder / "plots" / stage / f"{i}.png", _noise(100 * k + i, 50_000))
    _shard(2000 + k).save(folder / "selection.h5")
    _shard(3000 + k).save(folder / "oracle.h5")


def _shard(seed: int) -> LabelledFrames:
    draws = np.random.default_rng(seed).normal(size=(2, SHARD_FRAMES, len(SEQUENCE), 3)).astype(np.float32)
    numbers = np.zeros(SHARD_FRAMES, dtype=np.int32)
    return LabelledFrames(SEQUENCE, draws[0], draws[1], numbers, np.arange(SHARD_FRAMES, dtype=np.float64), {})


def _trajectory(seed: int) -> CGTrajectory:
    frames = 1000
    positions = np.random.default_rng(seed).normal(size=(frames, len(SEQUENCE), 3))
    return CGTrajectory.from_positions(SEQUENCE, positions, np.arange(frames), np.zeros(frames))


def _noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def _stored_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / ".dvc" / "cache").rglob("*") if path.is_file())


def _new_bytes() -> float:
    """Kilobytes that a round writes anew: one shard, the outputs, the next warm start."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        _open_round(root, 0)
        _write_outputs(root, 0)
        return sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / 1000


def _plot(growth: list[tuple[float, float]], path: Path) -> None:
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    axes = figure.add_subplot(
        xlabel="round k (the dataset has k + 1 shards)", ylabel="wall time [s]", title="What versioning a round costs"
    )
    rounds = np.arange(1, len(growth) + 1)
    recording, publishing = np.array(growth).T
    axes.plot(rounds, recording, "o", ms=3, color=PICKED, label="record five stages (DVC)")
    axes.plot(rounds, publishing, "o", ms=3, color=TRAINING, label="publish (DVC, git commit, tag)")
    for column, colour in ((recording, PICKED), (publishing, TRAINING)):
        axes.plot(rounds, np.polyval(np.polyfit(rounds, column, 1), rounds), color=colour, lw=1)
    axes.axhline(3.0, color="#222222", lw=0.8, ls="--")
    axes.text(1, 3.03, "target for publishing", va="bottom", fontsize=8)
    axes.set_ylim(0, 1.4 * max(3.0, float(np.max(growth))))
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.stdout.writelines(f"{result}\n" for result in results())
