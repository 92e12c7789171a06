"""A long simulation is what it is however often it was killed, in one go or in several."""

import shutil

import numpy as np
import pytest
import torch

from cgal.errors import BadFile
from cgal.params import SimulationParams
from cgal.potential.architectures import initial_potential
from cgal.simulation import long_run
from cgal.simulation.long_run import Piece, simulate_long
from tests.beads import SMALL_NETWORK, TEMPERATURE_K, real_prior, shaken_beads

STARTS = shaken_beads(6)
RUN = SimulationParams(replicas=6, steps=130, stride=10)
"""13 frames of each replica: pieces of 5, 5 and 3."""


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    monkeypatch.setattr(long_run, "PIECE_STEPS", 50)


@pytest.fixture(scope="module")
def potential():
    potential = initial_potential(real_prior(), SMALL_NETWORK, 3)
    with torch.no_grad():
        potential.network.readout[-1].weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return potential


@pytest.fixture
def run(potential, tmp_path):
    def call(folder="run", params=RUN, starts=STARTS, seed=1, **options):
        return simulate_long(
            potential, starts, params, temperature_K=TEMPERATURE_K, seed=seed, folder=tmp_path / folder, **options
        )

    return call


def bytes_of(trajectory):
    fates = repr(trajectory.fates).encode()
    return trajectory.positions.tobytes() + trajectory.time_ps.tobytes() + trajectory.replica.tobytes() + fates


def test_a_run_that_died_between_or_within_pieces_goes_on_to_the_same_bytes(run, tmp_path):
    whole = run("whole")
    assert whole.time_ps[:13] == pytest.approx(0.05 * np.arange(1, 14))
    assert len(whole) == 6 * 13

    class Killed(BaseException):
        pass

    for step in (10, 50, 90):

        def die(done, total, note="", step=step):
            assert total == 130
            if done == step:
                raise Killed

        with pytest.raises(Killed):
            run("killed", progress=die)
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["00000.h5"]
    steps = []
    assert bytes_of(run("killed", progress=lambda done, total, note="": steps.append(done))) == bytes_of(whole)
    assert steps == [60, 70, 80, 90, 100, 110, 120, 130], "the first piece was not run again"
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


def test_a_run_can_be_made_longer_and_looked_at_shorter(run, tmp_path):
    whole = run("whole")
    run("grown", RUN.model_copy(update={"steps": 70}))
    grown = run("grown")
    assert bytes_of(grown) == bytes_of(whole)
    shorter = run("grown", RUN.model_copy(update={"steps": 60}))
    assert shorter.positions.tobytes() == whole.positions.reshape(6, 13, 10, 3)[:, :6].tobytes()


def test_replicas_go_on_with_the_velocities_they_had(run, tmp_path):
    """A frame later a bead has moved by v t; with velocities drawn anew it would have moved by as much elsewhere."""
    short = RUN.model_copy(update={"stride": 1, "steps": 100, "friction_per_ps": 1e-3})
    run("run", short)
    first, second = (Piece.load(tmp_path / "run" / name) for name in ("00000.h5", "00001.h5"))
    moved = (second.positions[0] - first.positions[-1]) / short.timestep_ps
    assert np.abs(moved - first.velocities).mean() < 0.1 * np.abs(first.velocities).mean()


def test_a_lost_replica_stays_lost_and_changes_nothing_for_the_others(run):
    torn = STARTS.copy()
    torn[2, 4] += 5.0
    whole, broken = run("whole"), run("broken", starts=torn)
    (lost,) = [fate for fate in broken.fates if fate.lost]
    assert (lost.last_step, lost.cause) == (0, "exploded")
    others = whole.replica != lost.replica
    assert broken.positions.tobytes() == whole.positions[others].tobytes()


def test_a_replica_lost_on_the_way_keeps_its_frames_and_its_step(run):
    """Bonds of over 0.4 nm are common: all are lost at some step of some piece, and then the run is over."""
    params = RUN.model_copy(update={"maximum_bond_nm": 0.402, "steps": 2000, "stride": 1})
    trajectory = run("run", params)
    assert len({fate.last_step for fate in trajectory.fates if fate.lost}) > 1
    for fate in trajectory.fates:
        assert fate.cause == "exploded"
        assert (trajectory.replica == fate.replica).sum() == max(fate.last_step - 1, 0)
    assert bytes_of(run("run", params)) == bytes_of(trajectory)


def test_pieces_of_another_run_are_not_gone_on_from(run, tmp_path):
    run("run")
    for change in ({"seed": 2}, {"params": RUN.model_copy(update={"timestep_ps": 0.004})}, {"starts": STARTS + 1}):
        with pytest.raises(BadFile, match=r"00000\.h5: a piece of another run .*name another folder"):
            run("run", **change)


def test_a_damaged_piece_is_made_again(run, tmp_path):
    whole = run("run")
    expected = (tmp_path / "run" / "00001.h5").read_bytes()
    (tmp_path / "run" / "00001.h5").write_bytes(expected[:-500])
    assert bytes_of(run("run")) == bytes_of(whole)
    assert (tmp_path / "run" / "00001.h5").read_bytes() == expected
    shutil.rmtree(tmp_path / "run")
