"""The burn-in study on two real frames: independent labels, each start with its own cost, and a run that goes on."""

from pathlib import Path

import numpy as np
import pytest

from cgal.frames import AtomFrames
from cgal.params import MappingParams, Params, load_params
from cgal.projection.mapping import ForceMap, fit_force_map
from flows.cli.study import _burn_in_table
from study import burn_in
from study.figures import plot_burn_in
from tests.conftest import REPOSITORY

SMALL = REPOSITORY / "tests" / "data" / "chignolin_small.h5"
BURN_INS = (0, 20)


@pytest.fixture(scope="module")
def frames() -> AtomFrames:
    return AtomFrames.load(SMALL).take(np.array([3, 30]))


@pytest.fixture(scope="module")
def force_map(frames: AtomFrames) -> ForceMap:
    return fit_force_map(AtomFrames.load(SMALL), MappingParams())


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(REPOSITORY / "params.yaml")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burn_in, "BURN_IN_STEPS", BURN_INS)
    monkeypatch.setattr(burn_in, "LONG_STEPS", 100)
    monkeypatch.setattr(burn_in, "AVERAGE_STEPS", 40)
    monkeypatch.setattr(burn_in, "ANNEAL_STEPS", {"annealed": 200})


@pytest.mark.usefixtures("short")
def test_each_start_and_burn_in_has_a_row_with_its_cost_and_an_interval(
    frames: AtomFrames, force_map: ForceMap, params: Params, tmp_path: Path
) -> None:
    found = burn_in.measure(frames, force_map, params, scratch=tmp_path)
    assert len(found) == 2 * len(BURN_INS)
    assert (found["failed"] == 0).all()
    for what in ("between", "error"):
        assert (found[what] > 0).all(), "two labels were not independent"
        assert (found[f"{what}_low"] <= found[what]).all()
        assert (found[what] <= found[f"{what}_high"]).all()
    steps = found.set_index(["start", "burn_in_steps"])["steps"]
    assert steps[burn_in.OWN, 0] == 40
    assert steps[burn_in.OWN, 20] == 60
    assert steps["annealed", 20] > 60 + params.backmapping.warm_up_steps + 200, "minimisation counts"

    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.h5")}
    again = burn_in.measure(frames, force_map, params, scratch=tmp_path)
    assert again.equals(found)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.h5")} == made, "labels were made again"
    assert _burn_in_table(found).row_count == len(found)
    plot_burn_in(found).savefig(tmp_path / "burn_in.png")
