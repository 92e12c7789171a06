"""Whatever the objective, a killed training ends with the same bytes."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from cgal.params import TrainingParams
from cgal.potential.architectures import initial_potential
from cgal.potential.checkpoint import save_checkpoint
from cgal.progress import Progress, silent
from cgal.training.runs import TrainingResult, write_curves_csv
from cgal.training.train import train
from tests.beads import SMALL_NETWORK, labelled, real_prior, shaken_beads
from tests.test_relative_entropy import SHORT

KILLED_AT = 8
"""Epoch or update; what is kept last is of the fifth or sixth."""


def run(objective: str, scratch: Path | None, progress: Progress = silent) -> TrainingResult:
    params = TrainingParams.model_validate(
        {
            "objective": objective,
            "epochs": 12,
            "average_epochs": 0.5,
            "relative_entropy": SHORT.model_dump(),
            "preflight": False,
            "warm_start": False,
        }
    )
    shard = labelled(shaken_beads(180), real_prior(), 20.0)
    initial = initial_potential(real_prior(), SMALL_NETWORK, 3)
    return train([shard], initial, params, seed=11, scratch=scratch, progress=progress)


def train_until_killed(objective: str, scratch: str) -> None:
    """Run in a process of its own, which kills itself the hard way."""

    def kill(done: int, total: int, note: str = "") -> None:
        if done == KILLED_AT:
            signal.raise_signal(signal.SIGKILL)

    run(objective, Path(scratch), kill)


def content(result: TrainingResult, folder: Path) -> bytes:
    save_checkpoint(folder / "model.pt", result.potential, result.summary())
    write_curves_csv(result, folder / "training.csv")
    return (folder / "model.pt").read_bytes() + (folder / "training.csv").read_bytes()


@pytest.mark.parametrize("objective", get_args(TrainingParams.model_fields["objective"].annotation))
def test_killed_training_ends_with_the_same_bytes(objective, tmp_path):
    scratch = tmp_path / "scratch"
    command = (
        f"from tests.test_objectives import train_until_killed; train_until_killed({objective!r}, {str(scratch)!r})"
    )
    process = subprocess.run([sys.executable, "-W", "ignore", "-c", command], cwd=Path(__file__).parents[1])
    assert process.returncode == -signal.SIGKILL
    done = []
    continued = run(objective, scratch, lambda now, total, note="": done.append(now))
    assert 1 < done[0] <= KILLED_AT
    assert content(continued, tmp_path) == content(run(objective, None), tmp_path)
