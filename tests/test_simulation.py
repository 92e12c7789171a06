"""What simulation returns, and what it says when there is nothing to return."""

import struct
from dataclasses import replace

import h5py
import mdtraj
import numpy as np
import pytest
import torch

from cgal.errors import BadFile, BadTrajectory, EmptyTrajectory
from cgal.frames import CGTrajectory
from cgal.params import SimulationParams
from cgal.simulation import export_trajectory, simulate
from cgal.simulation.starts import read_starts

from .laws.test_simulation import STARTS, Bomb, Wells

RUN = SimulationParams(replicas=3, steps=25, stride=10, timestep_ps=0.01)


def run(model=None, starts=STARTS, params=RUN, **options):
    return simulate(model or Wells(), starts, params, temperature_K=350.0, seed=1, **options)


def test_frames_come_ordered_by_replica_then_time_without_the_start():
    trajectory = run()
    assert trajectory.replica.tolist() == [0, 0, 1, 1, 2, 2]
    assert trajectory.time_ps == pytest.approx([0.1, 0.2] * 3)
    assert [(fate.replica, fate.last_step, fate.cause) for fate in trajectory.fates] == [
        (replica, 25, "completed") for replica in range(3)
    ]
    assert trajectory.positions.shape == (6, 6, 3)


def test_no_start_is_drawn_twice_while_there_are_enough():
    """A start far from all wells stays recognisable after one short step."""
    starts = (STARTS + np.arange(3)[:, None, None] * 100).astype(np.float32)
    short = SimulationParams(replicas=3, steps=1, stride=1, timestep_ps=1e-6)
    offsets = run(starts=starts, params=short).positions[:, 0, 0].round(-2)
    assert sorted(offsets.tolist()) == [0.0, 100.0, 200.0]


def test_progress_is_reported_at_every_save():
    calls = []
    run(progress=lambda done, total, note="": calls.append((done, total, note)))
    assert calls == [(10, 25, "3 of 3 replicas sound"), (20, 25, "3 of 3 replicas sound")]


def test_unsound_start_is_lost_at_step_zero():
    starts = STARTS.copy()
    starts[1, 3:] += 1.0
    fates = run(starts=starts).fates
    assert sorted((fate.last_step, fate.cause) for fate in fates) == [
        (0, "exploded"), (25, "completed"), (25, "completed"),
    ]  # fmt: skip


def test_frames_to_start_from_are_sound_chains_that_lie_in_the_file(tmp_path):
    trajectory, path = run(), tmp_path / "starts.h5"
    trajectory.save(path)
    assert read_starts(path, trajectory.sequence, RUN) == pytest.approx(trajectory.positions)
    torn = trajectory.positions.copy()
    torn[4, 3:] += 1.0
    replace(trajectory, positions=torn).save(path)
    with pytest.raises(
        BadTrajectory, match=r"starts\.h5, frame 4: exploded, as 1 of 6 frames; give whole chains in nm"
    ):
        read_starts(path, trajectory.sequence, RUN)
    with h5py.File(path, "a") as handle:
        del handle["coordinates"]
        handle.create_dataset("coordinates", torn.shape, "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
    with pytest.raises(BadFile, match="lie in another file"):
        read_starts(path, trajectory.sequence, RUN)


def test_all_replicas_lost_stops_early_and_keeps_what_was_saved():
    class Doomed(Bomb):
        def energy_and_forces(self, positions):
            energy, forces = Wells.energy_and_forces(self, positions)
            self.calls += 1
            return energy, forces * (torch.nan if self.calls > 15 else 1.0)

    model = Doomed(torch.zeros(6, 3))
    trajectory = run(model, params=RUN.model_copy(update={"steps": 1000}))
    assert len(trajectory) == 3
    assert {(fate.last_step, fate.cause) for fate in trajectory.fates} == {(16, "not finite")}
    assert model.calls == 21


def test_no_sound_frame_at_all_is_an_error_that_counts_the_causes():
    torn = STARTS * np.float32(10)
    with pytest.raises(EmptyTrajectory, match=r"3 replicas: 3 exploded, the last at step 0; lower simulation"):
        run(starts=torn)
    with pytest.raises(EmptyTrajectory, match="no start frame"):
        run(starts=STARTS[:0])


def test_result_survives_saving(tmp_path):
    trajectory = run()
    trajectory.save(tmp_path / "trajectory.h5")
    loaded = CGTrajectory.load(tmp_path / "trajectory.h5")
    assert loaded.fates == trajectory.fates
    assert loaded.positions.tobytes() == trajectory.positions.tobytes()
    assert mdtraj.load(tmp_path / "trajectory.h5").xyz == pytest.approx(trajectory.positions)


@pytest.mark.parametrize("extension", ["xtc", "dcd"])
def test_export_is_a_file_a_replica_with_its_times_and_the_beads_beside(tmp_path, extension):
    """XTC keeps three decimals of a nanometre; mdtraj ignores the times of DCD files, which are in their header."""
    trajectory = run()
    *files, topology = export_trajectory(trajectory, tmp_path / f"run.{extension}")
    assert [path.name for path in files] == [f"run-{replica:03d}.{extension}" for replica in range(3)]
    for replica, path in enumerate(files):
        opened, mine = mdtraj.load(path, top=topology), trajectory.replica == replica
        assert opened.xyz == pytest.approx(trajectory.positions[mine], abs=5.1e-4)
        if extension == "xtc":
            assert opened.time == pytest.approx(trajectory.time_ps[mine])
        else:
            frames, first, every = struct.unpack("<3i", path.read_bytes()[8:20])
            spacing_ps = struct.unpack("<f", path.read_bytes()[44:48])[0] * 0.04888821  # CHARMM's unit of time
            assert frames == 2
            assert [(first + frame * every) * spacing_ps for frame in range(2)] == pytest.approx([0.1, 0.2])
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (*files, topology)}


def test_export_together_tells_replica_and_time_of_each_frame(tmp_path):
    trajectory = run()
    written = export_trajectory(trajectory, tmp_path / "run.xtc", together=True)
    assert [path.name for path in written] == ["run.xtc", "run.csv", "run.pdb"]
    opened = mdtraj.load(written[0], top=written[2])
    assert opened.time == pytest.approx(trajectory.time_ps)
    table = np.genfromtxt(written[1], delimiter=",", names=True)
    assert table["replica"].tolist() == trajectory.replica.tolist()
    assert table["time_ps"].tolist() == pytest.approx(trajectory.time_ps)


def test_exported_beads_are_bonded_along_the_chain(tmp_path):
    topology = export_trajectory(run(), tmp_path / "run.xtc")[-1]
    bonds = [(bond.atom1.index, bond.atom2.index) for bond in mdtraj.load(topology).topology.bonds]
    assert bonds == [(bead, bead + 1) for bead in range(5)]
    assert len([line for line in topology.read_text().splitlines() if line.startswith("CONECT")]) == 6


def test_export_overwrites_only_when_told(tmp_path):
    (tmp_path / "run-001.xtc").write_text("mine")
    with pytest.raises(BadFile, match=r"run-001\.xtc: there already, nothing was written; .* --overwrite"):
        export_trajectory(run(), tmp_path / "run.xtc")
    assert [path.name for path in tmp_path.iterdir()] == ["run-001.xtc"]
    assert len(export_trajectory(run(), tmp_path / "run.xtc", overwrite=True)) == 4
    for name in ("run-31.xtc", "run-031.dcd", "run-end.xtc"):
        (tmp_path / name).write_text("mine")
    two = run().take(np.flatnonzero(run().replica < 2))
    export_trajectory(two, tmp_path / "run.xtc", overwrite=True)
    kept = {"run-31.xtc", "run-031.dcd", "run-end.xtc", "run.pdb", "run-000.xtc", "run-001.xtc"}
    assert {path.name for path in tmp_path.iterdir()} == kept, "and no replica of the run before"


def test_export_that_fails_halfway_changes_nothing(tmp_path, monkeypatch):
    export_trajectory(run(), tmp_path / "run.xtc")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(trajectory, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cgal.simulation.export._write_pdb", full)
    with pytest.raises(BadFile, match="No space left on device; nothing was changed"):
        export_trajectory(replace(run(), time_ps=2 * run().time_ps), tmp_path / "run.xtc", overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_export_refuses_another_extension_and_an_empty_trajectory(tmp_path):
    with pytest.raises(BadFile, match=r"\.xtc or \.dcd"):
        export_trajectory(run(), tmp_path / "replicas.trr")
    with pytest.raises(EmptyTrajectory):
        export_trajectory(run().take(np.zeros(0, dtype=int)), tmp_path / "replicas.xtc")
    with pytest.raises(BadTrajectory, match="replica 0: its frames are not evenly spaced"):
        export_trajectory(replace(run(), time_ps=np.array([0.1, 0.25] * 3)), tmp_path / "replicas.dcd")
    assert not list(tmp_path.iterdir())
