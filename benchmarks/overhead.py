"""What a round costs beside its stages: which part costs what, and whether round 30 costs more than an early one.

A tiny campaign runs in a clone with a clock around each part. The parts do not overlap; what remains ("rest") is
Prefect's flow and task runs, and the console. `python -m benchmarks.overhead FILE` is that run, in the clone.
"""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from pkgutil import resolve_name
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from benchmarks.harness import Result
from benchmarks.startup import clone, seconds_to_first_stage
from flows.cli.project import open_project
from flows.serving.startup import start_prefect

__all__ = ["results"]

ROUNDS = 31
"""Rounds 0 to 30 open another; the last one closes."""

SETTINGS: dict[str, dict[str, Any]] = {
    "campaign": {"name": "tiny", "rounds": ROUNDS, "stop_below": 0.0},
    "selection": {"strategy": "random", "frames": 2},
}
"""Beside those of `benchmarks.startup.TINY`: nothing ends the campaign before its last round."""

STAGES = "stages"

PARTS: dict[str, tuple[str, str]] = {
    STAGES: ("flows.campaign.steps", "run_stage"),
    "dvc_status": ("flows.versioning.dvc_repo:Dvc", "stage_is_current"),
    "dvc_record": ("flows.versioning.dvc_repo:Dvc", "record_stage"),
    "artifacts": ("flows.campaign.steps", "_publish_artifacts"),
    "publish": ("flows.versioning:Repository", "publish"),
    "mlflow": ("flows.campaign.steps", "log_round"),
    "append": ("flows.campaign.steps", "append"),
}
"""The parts of a round: whose function, and its name."""


def results() -> Iterator[Result]:
    """Overhead of late rounds beside early ones, each part's share, and the start of a campaign in a used clone."""
    with TemporaryDirectory() as folder:
        root, path = clone(Path(folder) / "clone", "HEAD", SETTINGS), Path(folder) / "rounds.json"
        command = [sys.executable, "-m", "benchmarks.overhead", str(path)]
        subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
        rounds: list[dict[str, float]] = json.loads(path.read_text())
        yield from _growth([sum(parts.values()) - parts[STAGES] for parts in rounds])
        yield from _shares(rounds)
        new = seconds_to_first_stage(root, "--new", "again")
        again = median(seconds_to_first_stage(root) for _ in range(3))
        note = f"`cgal run` to its first stage; {new:.1f} s with --new, which brings the seed back"
        yield Result("campaign_start_used_clone", again, None, None, "s", note)


def _growth(overheads: list[float]) -> Iterator[Result]:
    """A round's overhead scatters by a half: medians of five rounds are compared."""
    early, late = median(overheads[:5]), median(overheads[-5:])
    note = f"medians of rounds 0 to 4 and {len(overheads) - 5} to {len(overheads) - 1}; peer: the early ones"
    yield Result("overhead_round_30_vs_2", late, early, early / late, "s", note)
    note = f"of {len(overheads)} rounds; the dearest {max(overheads):.2f} s"
    yield Result("overhead_median", median(overheads), None, None, "s", note)


def _shares(rounds: list[dict[str, float]]) -> Iterator[Result]:
    whole = median(sum(parts.values()) - parts[STAGES] for parts in rounds)
    for part in rounds[0]:
        if part != STAGES:
            cost = median(parts[part] for parts in rounds)
            yield Result(f"overhead_part_{part}", cost, None, None, "s", f"{cost / whole:.0%} of a round's overhead")


def main(path: Path) -> None:
    """Run the campaign of the current folder; write each round's seconds by part, from its opening to the next's."""
    open_project(Path.cwd())
    start_prefect().wait()  # before Prefect is imported, as `cgal run` does
    clock: dict[str, float] = defaultdict(float)
    rounds: list[dict[str, float]] = []
    for part, (where, name) in PARTS.items():
        owner = resolve_name(where)
        setattr(owner, name, _clocked(getattr(owner, name), part, clock))
    opened = perf_counter()
    campaign = resolve_name("flows.campaign.active_learning")
    run_round = campaign.run_round

    def next_round(root: Path, k: int) -> Any:
        nonlocal opened
        now = perf_counter()
        if k:
            rounds.append({**clock, "rest": now - opened - sum(clock.values())})
            path.write_text(json.dumps(rounds))
        opened = now
        clock.clear()
        return run_round(root, k)

    campaign.run_round = next_round
    from flows.cli.main import app

    app(["run"])


def _clocked(function: Callable[..., Any], part: str, clock: dict[str, float]) -> Callable[..., Any]:
    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        began = perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            clock[part] += perf_counter() - began

    return call


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
