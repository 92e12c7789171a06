"""Controls without active learning: what their shard says of the runs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cgal.dataset import load_manifest
from cgal.progress import silent
from flows.campaign import plain_md
from flows.workspace import Workspace


def test_runs_that_fail_are_counted_over_all_epochs(
    make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both epochs all atoms of one start of two lie in one point."""
    starts_of = plain_md._starts

    def with_a_bad_start(*arguments: object) -> np.ndarray:
        starts = starts_of(*arguments)
        starts[1] = 0.0
        return starts

    monkeypatch.setattr(plain_md, "_starts", with_a_bad_start)
    root = make_project(
        campaign={"continued_md_steps": 40, "plain_md": "least_counts"},
        selection={"frames": 2},
        oracle={"average_steps": 10, "free_stride": 5, "quorum": 0.5},
    )
    workspace = Workspace(root)
    plain_md.add_plain_md(workspace, silent)
    shard = load_manifest(workspace.data).shards[-1]
    assert (shard.origin, shard.oracle_failed, shard.frames) == (plain_md.ORIGIN, 2, 4)
