"""What is no science: how soon commands answer, how a campaign starts, and what a round costs beside its stages.

The peer is cgal itself as it was before this was looked at, from the same repository's history.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from benchmarks.harness import Result, interleave
from cgal.errors import VersioningError
from cgal.params import merged
from flows.versioning import Repository

HERE = Path(__file__).parents[1]
BEFORE = "3807277"
REPETITIONS = 7
TINY: dict[str, dict[str, Any]] = {
    "campaign": {"name": "tiny", "rounds": 2},
    "network": {"features": 16, "blocks": 1, "radial_functions": 12},
    "training": {"epochs": 6, "checkpoint_epochs": 2},
    "simulation": {"replicas": 8, "steps": 400, "stride": 20},
    "selection": {"frames": 4},
    "oracle": {"burn_in_steps": 20, "average_steps": 60},
    "benchmark": {"bootstrap": 20},
}
"""Chignolin, real in every part; the stages take a few seconds."""


class Campaign(NamedTuple):
    """Seconds from the command to its first stage, and seconds beside the stages in the last round."""

    start_s: float
    overhead_s: float


def results() -> Iterator[Result]:
    """Commands, start and overhead of HEAD, beside those of an earlier commit."""
    with TemporaryDirectory() as folder:
        ours = clone(Path(folder) / "ours", "HEAD")
        try:
            peer = clone(Path(folder) / "before", BEFORE)
        except subprocess.CalledProcessError:
            peer = None
        note = f"peer: cgal at {BEFORE}" if peer else f"no peer: commit {BEFORE} is not in this clone"
        yield _command("cli_help", ours, peer, note, "--help")
        campaign, former = _campaign(ours), _campaign(peer) if peer else None
        yield _pair(
            "overhead_per_round",
            campaign.overhead_s,
            former and former.overhead_s,
            f"round 2 of a tiny campaign; {note}",
        )
        yield _pair("campaign_start", campaign.start_s, former and former.start_s, f"fresh clone; {note}")
        yield _command("cli_rounds", ours, peer, note, "rounds", "--json", repetitions=3)
        yield _command("cli_params", ours, peer, note, "params", repetitions=3)


def clone(root: Path, revision: str, settings: Mapping[str, Any] = MappingProxyType({})) -> Path:
    """Clone this repository at a revision, with tiny settings, and some of one's own."""
    for command in (
        ["git", "clone", "--quiet", "--local", "--no-checkout", str(HERE), str(root)],
        ["git", "-C", str(root), "checkout", "--quiet", "--detach", revision],
        ["git", "-C", str(root), "config", "user.name", "benchmark"],
        ["git", "-C", str(root), "config", "user.email", "benchmark@example.invalid"],
    ):
        subprocess.run(command, check=True)
    path = root / "params.yaml"
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(merged(merged(content, TINY), settings)))
    return root


def _command(
    name: str, ours: Path, peer: Path | None, note: str, *arguments: str, repetitions: int = REPETITIONS
) -> Result:
    theirs = partial(_answer, peer, *arguments) if peer else None
    return interleave(partial(_answer, ours, *arguments), theirs, repetitions).times(name, note)


def _answer(root: Path, *arguments: str) -> None:
    _cgal(root, *arguments, stdout=subprocess.DEVNULL).wait()


def _campaign(root: Path) -> Campaign:
    """Run a campaign of two acquisition rounds and a closing one, from nothing."""
    began = time.perf_counter()
    process = _cgal(root, "run", stdout=subprocess.PIPE)
    seen: dict[str, float] = {}
    assert process.stdout is not None
    for line in process.stdout:
        for what in ("train-r000 starts", "published tiny/round-001", "published tiny/round-002"):
            if what in line:
                seen[what] = time.perf_counter() - began
    if process.wait():
        raise VersioningError(f"the campaign in {root} ended with exit code {process.returncode}")
    started, *published = seen.values()
    return Campaign(started, published[1] - published[0] - _stage_seconds(root, "tiny/round-002"))


def seconds_to_first_stage(root: Path, *options: str) -> float:
    """Time `cgal run` from the command to the start of its first stage, and stop it there."""
    began = time.perf_counter()
    process = _cgal(root, "run", *options, stdout=subprocess.PIPE)
    assert process.stdout is not None
    for line in process.stdout:
        if line.endswith(" starts\n"):
            taken = time.perf_counter() - began
            process.send_signal(signal.SIGINT)
            process.communicate()
            return taken
    raise VersioningError(f"the campaign in {root} ended before its first stage")


def _stage_seconds(root: Path, tag: str) -> float:
    timings: dict[str, float] = json.loads(Repository(root).read_round_file(tag, "round/timings.json"))["seconds"]
    return sum(seconds for stage, seconds in timings.items() if stage != "overhead")


def _cgal(root: Path, *arguments: str, stdout: int) -> "subprocess.Popen[str]":
    """Run `cgal` from the code in `root`, which Python looks at before what is installed."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.Popen(command, cwd=root, env=environment, stdout=stdout, stderr=stdout, text=True)


def _pair(name: str, ours_s: float, peer_s: float | None, note: str) -> Result:
    return Result(name, ours_s, peer_s, peer_s / ours_s if peer_s else None, "s", note)


if __name__ == "__main__":
    sys.stdout.writelines(f"{result}\n" for result in results())
