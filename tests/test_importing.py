"""What may come in, and one clear error for each thing that may not (files made from 40 real chignolin frames)."""

import json
import resource
from dataclasses import replace
from pathlib import Path

import h5py
import mdtraj
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cgal.all_atom.force_field import read_structure
from cgal.errors import BadFile, BadParams, BadStructure, BadTrajectory, EmptyTrajectory, Refused
from cgal.files import sha256
from cgal.foreign import reader
from cgal.foreign.forces import ForceFiles
from cgal.foreign.trajectory import Source, count_frames, open_protein, read_pieces
from cgal.frames import AtomFrames, read_pdb_text
from cgal.importing import as_reference, confine, medoid, structure_pdb
from cgal.params import ForceFieldParams
from cgal.projection.mapping import coordinate_map
from tests.imported import import_reference, import_trajectory

SMALL = AtomFrames.load(Path(__file__).parent / "data" / "chignolin_small.h5")
N_ATOMS = 166


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    path = tmp_path / "topology.pdb"
    path.write_text(SMALL.pdb)
    return path


def plain(path: Path, **changes: object) -> Path:
    """Write the plain HDF5 layout; a change of None leaves the entry out."""
    content: dict[str, object] = {
        "positions": SMALL.positions,
        "forces": SMALL.forces,
        "stride_ps": 4.0,
        "temperature_K": 350.0,
    }
    with h5py.File(path, "w") as handle:
        for name, value in (content | changes).items():
            if isinstance(value, np.ndarray):
                handle[name] = value
            elif value is not None:
                handle.attrs[name] = value
    return path


def as_mdtraj(positions: np.ndarray = SMALL.positions, box_nm: float | None = None) -> mdtraj.Trajectory:
    trajectory = mdtraj.Trajectory(positions, SMALL.topology, time=SMALL.time_ps)
    if box_nm is not None:
        trajectory.unitcell_lengths = np.full((len(positions), 3), box_nm)
        trajectory.unitcell_angles = np.full((len(positions), 3), 90.0)
    return trajectory


def shifted(values: np.ndarray, frame: int, atom: int, by: float) -> np.ndarray:
    changed = values.copy()
    changed[frame, atom] += by
    return changed


def test_plain_layout_comes_in_with_its_forces_and_provenance(topology: Path, tmp_path: Path) -> None:
    path = plain(tmp_path / "run.h5")
    frames = import_trajectory(topology, [path], temperature_K=350.0)
    np.testing.assert_array_equal(frames.positions, SMALL.positions)
    np.testing.assert_array_equal(frames.forces, SMALL.forces)
    np.testing.assert_array_equal(frames.time_ps, 4.0 * np.arange(40))
    assert [atom.name for atom in frames.topology.atoms] == [atom.name for atom in SMALL.topology.atoms]
    assert frames.provenance["trajectories"] == [{"name": "run.h5", "sha256": sha256(path)}]
    assert frames.provenance["force_origin"] == "stored"
    assert str(tmp_path) not in str(frames.provenance)


def test_own_atom_frames_come_in_again(topology: Path, tmp_path: Path) -> None:
    SMALL.save(tmp_path / "seed.h5")
    frames = import_trajectory(topology, [tmp_path / "seed.h5"], temperature_K=350.0)
    np.testing.assert_array_equal(frames.forces, SMALL.forces)
    np.testing.assert_array_equal(frames.time_ps, SMALL.time_ps)


def test_stride_and_window_choose_frames_by_number_and_time(topology: Path, tmp_path: Path) -> None:
    path = plain(tmp_path / "run.h5")
    frames = import_trajectory(topology, [path, path], temperature_K=350.0, stride=5, first_ps=20.0, last_ps=100.0)
    np.testing.assert_array_equal(frames.time_ps, [20, 40, 60, 80, 100] * 2)
    np.testing.assert_array_equal(frames.trajectory, [0] * 5 + [1] * 5)
    np.testing.assert_array_equal(frames.forces[:5], SMALL.forces[5:26:5])


def test_stride_counts_within_each_trajectory_of_a_file(topology: Path, tmp_path: Path) -> None:
    """Two walkers that write in turn: every second frame of the file would be those of one of them alone."""
    path = plain(
        tmp_path / "run.h5", stride_ps=None, time_ps=np.repeat(4.0 * np.arange(20), 2), trajectory=np.arange(40) % 2
    )
    frames = import_trajectory(topology, [path], temperature_K=350.0, stride=2)
    np.testing.assert_array_equal(frames.trajectory, np.repeat([0, 1], 10))
    np.testing.assert_array_equal(frames.positions, SMALL.positions[[*range(0, 40, 4), *range(1, 40, 4)]])


@pytest.mark.parametrize("ending", ["xtc", "dcd", "nc", "trr", "h5"])
def test_mdtraj_formats_give_the_same_forces_by_recomputing(topology: Path, tmp_path: Path, ending: str) -> None:
    """XTC and NetCDF keep 1e-3 nm and 1e-6 nm; a bond of 3e5 kJ/mol/nm^2 moved by 1e-3 nm changes a force by 3e2."""
    path = tmp_path / f"run.{ending}"
    as_mdtraj()[:2].save(str(path))
    frames = import_trajectory(
        topology,
        [path],
        temperature_K=350.0,
        forces="recompute",
        force_field=ForceFieldParams(platform="Reference"),
        frame_ps=4.0,
    )
    assert frames.provenance["force_field"]["name"] == "ff96"
    tolerance = 600.0 if ending == "xtc" else 2.0
    np.testing.assert_allclose(frames.forces, SMALL.forces[:2], atol=tolerance)


def as_trr(path: Path, forces: np.ndarray | None = SMALL.forces, frames: int = 40) -> Path:
    """Write GROMACS' format, with forces if there are any; mdtraj has these in its inner writer alone."""
    count = len(SMALL.positions[:frames])
    with mdtraj.formats.TRRTrajectoryFile(str(path), "w") as handle:
        handle._write(
            SMALL.positions[:frames],
            4.0 * np.arange(count, dtype=np.float32),
            np.arange(count, dtype=np.int32),
            np.tile(5.0 * np.eye(3, dtype=np.float32), (count, 1, 1)),
            np.zeros(count, dtype=np.float32),
            None,
            forces,
        )
    return path


def test_forces_of_trr_come_in(topology: Path, tmp_path: Path) -> None:
    frames = import_trajectory(topology, [as_trr(tmp_path / "run.trr")], temperature_K=350.0)
    np.testing.assert_array_equal(frames.forces, SMALL.forces)
    np.testing.assert_array_equal(frames.time_ps, 4.0 * np.arange(40))
    refuse(topology, as_trr(tmp_path / "bare.trr", None), "no forces stored")
    assert len(import_reference(topology, [tmp_path / "run.trr"], temperature_K=350.0)) == 40


def test_forces_that_nobody_wants_are_not_read(topology: Path, tmp_path: Path) -> None:
    """Those of the plain layout, one of which is no number, for a reference."""
    path = plain(tmp_path / "run.h5", forces=shifted(SMALL.forces, 3, 0, np.nan))
    assert len(import_reference(topology, [path], temperature_K=350.0)) == 40


@pytest.mark.parametrize(("unit", "factor"), [("kJ/mol/nm", 1.0), ("kcal/mol/Å", 41.84), ("eV / A", 964.8533212331)])
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_forces_of_numpy_files_come_in_by_their_unit(
    topology: Path, tmp_path: Path, ending: str, unit: str, factor: float
) -> None:
    as_mdtraj().save(str(tmp_path / "run.xtc"))
    path, forces = tmp_path / f"forces.{ending}", SMALL.forces.astype(np.float64) / factor
    if ending == "npy":
        np.save(path, forces)
    else:
        np.savez(path, forces=forces, unit=unit)
    origin = ForceFiles((path, path), unit if ending == "npy" else None)
    runs = [tmp_path / "run.xtc"] * 2
    frames = import_trajectory(topology, runs, temperature_K=350.0, forces=origin, stride=3)
    np.testing.assert_allclose(frames.forces, np.tile(SMALL.forces[::3], (2, 1, 1)), rtol=1e-5)
    assert [each["name"] for each in frames.provenance["force_origin"]] == [path.name] * 2


def test_files_of_forces_of_one_name_keep_their_own_forces(topology: Path, tmp_path: Path) -> None:
    as_mdtraj().save(str(tmp_path / "run.xtc"))
    paths = tuple(tmp_path / folder / "forces.npy" for folder in ("run1", "run2"))
    for path, factor in zip(paths, (1, 2), strict=True):
        path.parent.mkdir()
        np.save(path, factor * SMALL.forces)
    origin = ForceFiles(paths, "kJ/mol/nm")
    frames = import_trajectory(topology, [tmp_path / "run.xtc"] * 2, temperature_K=350.0, forces=origin)
    np.testing.assert_array_equal(frames.forces, np.concatenate([SMALL.forces, 2 * SMALL.forces]))


@pytest.mark.parametrize(
    ("forces", "unit", "message"),
    [
        (SMALL.forces, None, r"forces\.npy: forces of no known unit; .*--force-unit"),
        (SMALL.forces, "N", "--force-unit: 'N' is no known unit of force; one of kJ/mol/nm"),
        (
            SMALL.forces[:39],
            "kJ/mol/nm",
            r"forces\.npy: forces of shape \(39, 166, 3\), where run.xtc has 40 frames of 166",
        ),
        (SMALL.forces, "kcal/mol/nm", None),
        (SMALL.forces / 964.85, "kJ/mol/nm", r"run\.xtc: stored forces have an rms .*--force-unit"),
        (np.array("nothing"), "kJ/mol/nm", r"forces\.npy: no readable forces"),
    ],
)
def test_forces_of_numpy_files_that_fit_nothing(
    topology: Path, tmp_path: Path, forces: np.ndarray, unit: str | None, message: str | None
) -> None:
    as_mdtraj().save(str(tmp_path / "run.xtc"))
    np.save(tmp_path / "forces.npy", forces)
    origin = ForceFiles((tmp_path / "forces.npy",), unit)
    if message is None:  # a factor of four is not seen
        import_trajectory(topology, [tmp_path / "run.xtc"], temperature_K=350.0, forces=origin)
        return
    with pytest.raises((BadParams, BadTrajectory), match=message):
        import_trajectory(topology, [tmp_path / "run.xtc"], temperature_K=350.0, forces=origin)


def test_box_is_dropped(topology: Path, tmp_path: Path) -> None:
    as_mdtraj(box_nm=50.0).save(str(tmp_path / "run.xtc"))
    reference = import_reference(topology, [tmp_path / "run.xtc"], temperature_K=350.0)
    assert reference.to_mdtraj().unitcell_vectors is None


def test_reference_needs_no_forces_and_numbers_its_files(topology: Path, tmp_path: Path) -> None:
    paths = [plain(tmp_path / "a.h5", forces=None), plain(tmp_path / "b.h5", forces=None)]
    reference = import_reference(topology, paths, temperature_K=350.0)
    assert reference.sequence == "YYDPETGTWY"
    np.testing.assert_array_equal(reference.replica, np.repeat([0, 1], 40))
    np.testing.assert_array_equal(reference.positions[:40], as_reference(SMALL).positions)


def test_confined_frames_are_near_the_reference_and_the_medoid_is_among_them() -> None:
    beads = coordinate_map(SMALL.topology)(SMALL.positions)
    centre = medoid(beads)
    inside = confine(SMALL, beads[centre], 0.08)
    assert 1 < len(inside) < len(SMALL)
    kept = mdtraj.Trajectory(coordinate_map(SMALL.topology)(inside.positions), None)
    assert mdtraj.rmsd(kept, mdtraj.Trajectory(beads[centre][None], None)).max() <= 0.08 + 1e-6
    assert SMALL.time_ps[centre] in inside.time_ps
    with pytest.raises(EmptyTrajectory, match="no frame is within"):
        confine(SMALL, beads[0] * 2, 0.01)


def test_structure_of_a_frame_holds_its_coordinates_in_the_same_order() -> None:
    """PDB keeps 1e-4 nm, so half of that is lost in rounding."""
    text = structure_pdb(SMALL, 7)
    assert read_pdb_text(text).topology == SMALL.topology
    topology, positions = read_structure(text)
    assert topology.getNumAtoms() == N_ATOMS
    np.testing.assert_allclose(positions, SMALL.positions[7], atol=0.51e-4)


@pytest.mark.parametrize("far_nm", [-150.0, 1234.0])
def test_frame_far_from_the_origin_still_fits_into_a_pdb(topology: Path, tmp_path: Path, far_nm: float) -> None:
    """Half of float32's step at 1,000 nm, 3e-5 nm, comes to what PDB rounds away."""
    path = plain(tmp_path / "run.h5", positions=SMALL.positions + np.float32(far_nm))
    frames = import_trajectory(topology, [path], temperature_K=350.0)
    for text in (frames.pdb, structure_pdb(frames, 0)):
        _, positions = read_structure(text)
        np.testing.assert_allclose(np.ptp(positions, axis=0), np.ptp(SMALL.positions[0], axis=0), atol=3e-4)


# faults: file, frame and cure in one sentence


def refuse(topology: Path, path: Path, message: str, **options: object) -> None:
    with pytest.raises(BadTrajectory, match=message) as fault:
        import_trajectory(topology, [path], temperature_K=350.0, **options)
    assert path.name in str(fault.value)
    assert "\n" not in str(fault.value)


def test_wrong_atom_count(topology: Path, tmp_path: Path) -> None:
    refuse(
        topology, plain(tmp_path / "run.h5", positions=SMALL.positions[:, 1:]), "165 atoms, but the topology has 166"
    )


@pytest.mark.parametrize("ending", ["xtc", "dcd", "nc", "h5", "gro"])
def test_wrong_atom_count_in_mdtraj_formats(topology: Path, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"run.{ending}"
    as_mdtraj().atom_slice(range(100)).save(str(path))
    refuse(topology, path, "atoms.* topology", forces="recompute", frame_ps=4.0)


def test_wrong_order_by_bond_lengths(topology: Path, tmp_path: Path) -> None:
    order = np.arange(N_ATOMS)
    order[[4, 8]] = [8, 4]  # CA and CB of the first residue
    path = plain(tmp_path / "run.h5", positions=SMALL.positions[:, order])
    refuse(topology, path, r"frame 0: .* are bonded but 0\.\d+ nm apart: the atoms are in another order")


def test_wrong_order_by_names(topology: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    reordered = SMALL.topology.subset(range(N_ATOMS))
    reordered.atom(0).element, reordered.atom(1).element = mdtraj.element.hydrogen, mdtraj.element.nitrogen
    mdtraj.Trajectory(SMALL.positions, reordered).save(str(path))
    refuse(topology, path, "another order of atoms", forces="recompute")


def test_missing_forces(topology: Path, tmp_path: Path) -> None:
    refuse(topology, plain(tmp_path / "run.h5", forces=None), "no forces stored .* --forces recompute")


def test_position_that_is_no_number(topology: Path, tmp_path: Path) -> None:
    path = plain(tmp_path / "run.h5", positions=shifted(SMALL.positions, 12, 30, np.nan))
    refuse(topology, path, "frame 12: the position of atom 30 .* is not finite")


def test_force_that_is_infinite_is_named_by_its_frame_in_the_file(topology: Path, tmp_path: Path) -> None:
    path = plain(tmp_path / "run.h5", forces=shifted(SMALL.forces, 12, 30, np.inf))
    refuse(topology, path, "frame 12: the force of atom 30 .* is not finite", stride=4)


def skewed(count: int) -> np.ndarray:
    """Box vectors of a truncated octahedron [nm]."""
    return np.tile(np.array([[3.0, 0, 0], [1.0, 2.828, 0], [-1.0, 1.414, 2.449]], dtype=np.float32), (count, 1, 1))


@pytest.mark.parametrize("ending", ["xtc", "nc"])
@pytest.mark.parametrize("box", [np.tile(3.0 * np.eye(3, dtype=np.float32), (40, 1, 1)), skewed(40)])
def test_molecule_wrapped_in_its_box_is_made_whole(
    topology: Path, tmp_path: Path, box: np.ndarray, ending: str
) -> None:
    """Every atom put into the cell, so that bonds run through its faces; XTC keeps 1e-3 nm, so does the result."""
    inverse = np.linalg.inv(box.astype(np.float64))
    fractions = np.einsum("fai,fij->faj", SMALL.positions, inverse) % 1.0
    wrapped = np.einsum("fai,fij->faj", fractions, box).astype(np.float32)
    run = as_mdtraj(wrapped)
    run.unitcell_vectors = box
    run.save(str(tmp_path / f"run.{ending}"))
    said: list[str] = []
    path = tmp_path / f"run.{ending}"
    whole = import_reference(topology, [path], temperature_K=350.0, note=said.append)
    expected = as_reference(SMALL).positions
    for found, true in zip(whole.positions, expected, strict=True):
        np.testing.assert_allclose(found - found[0], true - true[0], atol=3e-3)
    assert f"run.{ending}: the chain was wrapped around its box in 40 frames and is made whole" in said


def test_molecule_wrapped_without_a_box(topology: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.xtc"
    as_mdtraj(np.mod(SMALL.positions, 3.0).astype(np.float32)).save(str(path))
    refuse(topology, path, "wrapped .*make_molecules_whole", forces="recompute")


def test_molecule_that_breaks_later(topology: Path, tmp_path: Path) -> None:
    path = plain(tmp_path / "run.h5", positions=shifted(SMALL.positions, 5, 50, 3.0))
    refuse(topology, path, "frame 5: .* broken or wrapped: .*make_molecules_whole")


def test_positions_in_angstrom(topology: Path, tmp_path: Path) -> None:
    refuse(topology, plain(tmp_path / "run.h5", positions=SMALL.positions * 10), "median bond is 1.*angstrom")


@pytest.mark.parametrize("factor", [0.0, 1 / 41.84])
def test_forces_that_are_zero_or_in_other_units(topology: Path, tmp_path: Path, factor: float) -> None:
    path = plain(tmp_path / "run.h5", forces=(SMALL.forces * factor).astype(np.float32))
    refuse(topology, path, "some 850 kJ/mol/nm")


TURNED = np.einsum("fij,faj->fai", Rotation.random(40, np.random.default_rng(0)).as_matrix(), SMALL.forces).astype(
    np.float32
)


@pytest.mark.parametrize(
    "forces", [-SMALL.forces, SMALL.forces[::-1].copy(), TURNED], ids=["gradients", "other frames", "other axes"]
)
def test_forces_that_do_not_belong_to_their_positions(topology: Path, tmp_path: Path, forces: np.ndarray) -> None:
    refuse(
        topology, plain(tmp_path / "run.h5", forces=forces), r"force and length of its bonds .*, not the usual -0\.85"
    )
    rounded = np.round(SMALL.positions, 2)  # as in the coarsest XTC
    assert len(import_trajectory(topology, [plain(tmp_path / "run.h5", positions=rounded)], temperature_K=350.0)) == 40


def test_units_that_the_file_names(topology: Path, tmp_path: Path) -> None:
    refuse(topology, plain(tmp_path / "run.h5", force_unit="kcal/mol/A"), "force_unit is 'kcal/mol/A'; convert")
    refuse(
        topology, plain(tmp_path / "run.h5", length_unit=np.bytes_("A"), force_unit=np.bytes_("kJ/mol/nm")), "is 'A'"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forces": SMALL.forces[:37]}, r"forces of shape \(37, 166, 3\), where positions are \(40, 166, 3\)"),
        ({"forces": np.repeat(SMALL.forces, 2, axis=0)}, r"forces of shape \(80, 166, 3\)"),
        ({"forces": SMALL.forces[:, :100]}, r"forces of shape \(40, 100, 3\)"),
        ({"time_ps": np.arange(80.0)}, r"time_ps of shape \(80,\)"),
    ],
)
def test_one_force_a_position_and_one_time_a_frame(
    topology: Path, tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    refuse(topology, plain(tmp_path / "run.h5", **changes), message)


def test_what_a_file_of_cgal_says_of_its_forces_counts(topology: Path, tmp_path: Path) -> None:
    """Mean forces are not those of their frames; forces of another force field are not those of the labels."""
    made = ForceFieldParams()
    kept = import_trajectory(topology, [said_by_cgal(tmp_path, made, "instantaneous")], temperature_K=350.0)
    assert kept.provenance["force_field"] == made.model_dump()
    refuse(topology, said_by_cgal(tmp_path, made, "mean"), "its forces are means")
    other = said_by_cgal(tmp_path, ForceFieldParams(name="ff14SB"), "instantaneous")
    refuse(topology, other, r"forces of ff14SB \+ obc2, but force_field is ff96 \+ obc2")
    assert len(import_reference(topology, [other], temperature_K=350.0)) == 40


def said_by_cgal(folder: Path, force_field: ForceFieldParams, forces: str) -> Path:
    said = {"force_field": force_field.model_dump(), "forces": forces, "temperature_K": 350.0}
    return plain(folder / "seed.h5", provenance=json.dumps(said))


def test_full_disk_is_no_fault_of_the_file(topology: Path, tmp_path: Path) -> None:
    """No file may be longer than 40 kB here: the positions are 80 kB, the copy of the topology is 14 kB."""
    path = plain(tmp_path / "run.h5")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        with pytest.raises(BadFile, match=r"could not be written .*make room there"):
            import_trajectory(topology, [path], temperature_K=350.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_modules_beside_the_user_are_not_imported(
    topology: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    assert len(import_reference(topology, [plain(tmp_path / "run.h5")], temperature_K=350.0)) == 40


def test_other_temperature(topology: Path, tmp_path: Path) -> None:
    refuse(topology, plain(tmp_path / "run.h5", temperature_K=300.0), "sampled at 300 K, but temperature_K is 350")


def test_formats_without_times_must_be_told(topology: Path, tmp_path: Path) -> None:
    as_mdtraj().save(str(tmp_path / "run.dcd"))
    refuse(topology, tmp_path / "run.dcd", "holds no times; .*--frame-ps", forces="recompute")


def test_netcdf_without_times_must_be_told(topology: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.nc"
    with mdtraj.formats.NetCDFTrajectoryFile(str(path), "w") as handle:
        handle.write(SMALL.positions[:3] * 10.0)
    refuse(topology, path, "holds no times; .*--frame-ps", forces="recompute")
    told = import_reference(topology, [path], temperature_K=350.0, frame_ps=2.0)
    np.testing.assert_array_equal(told.time_ps, [0.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("time_ps", "message"),
    [
        ([0, 0, 0, 0], "frame 0 is at 0 ps and frame 1 at 0 ps: times must increase.*--frame-ps"),
        ([0, 1, 2, 1], "frame 2 is at 2 ps and frame 3 at 1 ps: times must increase"),
        ([0, 1, 2, 100], "frame 2 is at 2 ps and frame 3 at 100 ps: times must be evenly spaced, and 1 ps is usual"),
        ([0, 1, np.nan, 3], "the time of frame 2 is not finite"),
    ],
)
def test_times_that_no_clock_would_show(topology: Path, tmp_path: Path, time_ps: list[float], message: str) -> None:
    run = as_mdtraj()[:4]
    run.time = np.array(time_ps)
    run.save(str(tmp_path / "run.xtc"))
    refuse(topology, tmp_path / "run.xtc", message, forces="recompute")
    changed = {"positions": SMALL.positions[:4], "forces": SMALL.forces[:4], "time_ps": np.array(time_ps, float)}
    refuse(topology, plain(tmp_path / "run.h5", stride_ps=None, **changed), message)


def test_times_of_a_long_run_keep_their_rounding(topology: Path, tmp_path: Path) -> None:
    """XTC keeps times in single precision: steps of 0.1 ps after a microsecond are 0.125 or 0.0625 ps there."""
    run = as_mdtraj()
    run.time = 1e6 + 0.1 * np.arange(40)
    run.save(str(tmp_path / "run.xtc"))
    reference = import_reference(topology, [tmp_path / "run.xtc"], temperature_K=350.0)
    np.testing.assert_allclose(reference.time_ps, run.time, atol=0.07)


@pytest.mark.parametrize("frame_ps", [0.0, -1.0, float("nan"), float("inf")])
def test_time_between_frames_that_is_none(topology: Path, tmp_path: Path, frame_ps: float) -> None:
    with pytest.raises(BadParams, match=r"--frame-ps is .*positive"):
        import_trajectory(topology, [plain(tmp_path / "run.h5")], temperature_K=350.0, frame_ps=frame_ps)


def test_time_between_frames_replaces_times_of_any_file(topology: Path, tmp_path: Path) -> None:
    frames = import_trajectory(topology, [plain(tmp_path / "run.h5")], temperature_K=350.0, frame_ps=2.5)
    np.testing.assert_array_equal(frames.time_ps, 2.5 * np.arange(40))


@pytest.mark.parametrize("layout", ["plain", "mdtraj"])
def test_trajectories_that_a_file_numbers_are_kept_apart(topology: Path, tmp_path: Path, layout: str) -> None:
    numbers = np.repeat([3, 1], [25, 15])
    time_ps = np.concatenate([4.0 * np.arange(25), 4.0 * np.arange(15)])
    path = tmp_path / "run.h5"
    if layout == "plain":
        plain(path, stride_ps=None, time_ps=time_ps, trajectory=numbers)
    else:
        run = as_mdtraj()
        run.time = time_ps
        run.save(str(path))
        with h5py.File(path, "a") as handle:
            handle["trajectory"] = numbers
    reference = import_reference(topology, [path, path], temperature_K=350.0)
    np.testing.assert_array_equal(reference.replica, np.repeat([0, 1, 2, 3], [25, 15, 25, 15]))
    np.testing.assert_array_equal(reference.time_ps, np.tile(time_ps, 2))


def test_trajectory_numbers_that_are_none(topology: Path, tmp_path: Path) -> None:
    refuse(topology, plain(tmp_path / "run.h5", trajectory=np.zeros(7, dtype=int)), "not one whole number a frame")


def test_ending_in_capitals(topology: Path, tmp_path: Path) -> None:
    as_mdtraj().save(str(tmp_path / "run.xtc"))
    path = (tmp_path / "run.xtc").rename(tmp_path / "RUN.XTC")
    capital = topology.rename(tmp_path / "TOPOLOGY.PDB")
    reference = import_reference(capital, [path], temperature_K=350.0)
    np.testing.assert_allclose(reference.positions, as_reference(SMALL).positions, atol=1e-3)


def test_file_that_takes_its_reader_down(topology: Path, tmp_path: Path) -> None:
    """A word of the first frame's header that sends XTC's decompression out of its memory: SIGSEGV."""
    path = tmp_path / "run.xtc"
    as_mdtraj().save(str(path))
    damaged = bytearray(path.read_bytes())
    damaged[86] = 8
    path.write_bytes(damaged)
    with pytest.raises(BadTrajectory, match=r"run\.xtc: not readable .*SIG"):
        import_reference(topology, [path], temperature_K=350.0)


def test_file_that_takes_its_reader_down_does_not_hide_the_faults_of_others(topology: Path, tmp_path: Path) -> None:
    as_mdtraj().save(str(tmp_path / "run.xtc"))
    damaged = bytearray((tmp_path / "run.xtc").read_bytes())
    damaged[86] = 8
    (tmp_path / "damaged.xtc").write_bytes(damaged)
    names = ["none.xtc", "damaged.xtc", "run.xtc", "damaged.xtc", "none.xtc", "run.dcd"]
    as_mdtraj().save(str(tmp_path / "run.dcd"))
    with pytest.raises(Refused) as fault:
        import_reference(topology, [tmp_path / name for name in names], temperature_K=350.0)
    said = [str(error) for error in fault.value.errors]
    assert [line.split(":")[0] for line in said] == ["none.xtc", "damaged.xtc", "damaged.xtc", "none.xtc", "run.dcd"]
    assert said[1].startswith("damaged.xtc: not readable (reading it ends the process: SIG")


@pytest.mark.parametrize("ending", ["plain", "xtc", "trr", "dcd", "nc", "h5"])
def test_pieces_are_the_whole(topology: Path, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if ending == "plain":
        path = plain(tmp_path / "run.h5")
    else:
        path = tmp_path / f"run.{ending}"
        as_mdtraj(box_nm=50.0).save(str(path))
    protein = open_protein(topology, "auto")
    monkeypatch.setattr("cgal.foreign.trajectory.ATOMS_AT_ONCE", 7 * N_ATOMS)
    pieces = list(read_pieces(path, protein, 350.0))
    assert [len(piece.frame) for piece in pieces] == [7, 7, 7, 7, 7, 5]
    assert count_frames(path) == 40
    np.testing.assert_array_equal(np.concatenate([piece.frame for piece in pieces]), np.arange(40))
    positions = np.concatenate([piece.positions for piece in pieces])
    np.testing.assert_allclose(positions, SMALL.positions, atol=1e-3 if ending == "xtc" else 1e-5)
    if ending != "dcd":
        expected = 4.0 * np.arange(40) if ending == "plain" else SMALL.time_ps
        np.testing.assert_allclose(np.concatenate([piece.time_ps for piece in pieces]), expected)


def test_a_box_that_later_pieces_lack_is_refused(
    topology: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.trr"
    whole = Source(path, SMALL.positions, None, SMALL.time_ps, np.arange(40), skewed(40))
    pieces = [whole.take(np.arange(20)), replace(whole.take(np.arange(20, 40)), box=None)]
    monkeypatch.setattr(reader, "read_pieces", lambda *_, **__: iter(pieces))
    with pytest.raises(BadTrajectory, match=r"run\.trr: box in 20 of 40 frames"):
        reader._lay_down(
            path, open_protein(topology, "auto"), reader.Wanted("auto", 350.0, False), tmp_path / "0", lambda _: None
        )


def test_fault_in_a_later_piece_is_named_by_its_frame(
    topology: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cgal.foreign.trajectory.ATOMS_AT_ONCE", 7 * N_ATOMS)
    path = plain(tmp_path / "run.h5", positions=shifted(SMALL.positions, 14, 50, 3.0))
    refuse(topology, path, "frame 14: .* the molecule is broken or wrapped")
    few = import_trajectory(topology, [plain(tmp_path / "few.h5", positions=turned_over(3))], temperature_K=350.0)
    assert few.provenance["notes"] == ["few.h5: cis peptide bond before THR 6 in 3 of 40 frames"]


def test_remarks_of_a_pdb_file_are_in_any_encoding(topology: Path, tmp_path: Path) -> None:
    topology.write_bytes(b"REMARK distances in \xc5\n" + topology.read_bytes())
    assert len(import_reference(topology, [plain(tmp_path / "run.h5")], temperature_K=350.0)) == 40


def test_medoid_of_many_frames_is_one_of_a_thousand() -> None:
    """Chains of many lengths: the least mean deviation is that of the median length (flat: within 1 %)."""
    lengths = np.linspace(1.0, 2.0, 5001)
    beads = np.zeros((5001, 4, 3), dtype=np.float32)
    beads[:, :, 0] = lengths[:, None] * np.arange(4)
    assert abs(medoid(beads) - 2500) <= 50
    assert abs(medoid(beads[:801]) - 400) <= 8


def test_empty_file(topology: Path, tmp_path: Path) -> None:
    (tmp_path / "run.xtc").touch()
    refuse(topology, tmp_path / "run.xtc", "the file is empty", forces="recompute")


def test_frames_that_are_all_equal(topology: Path, tmp_path: Path) -> None:
    still = np.repeat(SMALL.positions[:1], 40, axis=0)
    path = plain(tmp_path / "run.h5", positions=still)
    said = import_trajectory(topology, [path], temperature_K=350.0).provenance["notes"]
    assert said[0].startswith("warning: run.h5: all 40 frames are equal, so nothing was sampled")


def with_rigid_bonds(frames: int, spread_nm: float = 0.0) -> np.ndarray:
    """One frame turned at random, so that all moves but no bond length, or each atom by so much along each axis."""
    generator = np.random.default_rng(0)
    turns = Rotation.random(frames, generator).as_matrix()
    turned = np.einsum("fij,aj->fai", turns, SMALL.positions[0].astype(np.float64))
    return (turned + spread_nm / np.sqrt(2) * generator.standard_normal(turned.shape)).astype(np.float32)


@pytest.mark.parametrize(("ending", "forces"), [("h5", "stored"), ("h5", "recompute"), ("xtc", "recompute")])
def test_rigid_bonds_between_heavy_atoms_are_refused(topology: Path, tmp_path: Path, ending: str, forces: str) -> None:
    """XTC's rounding does not hide them; a reference, which needs no forces, may have them."""
    path = plain(tmp_path / "run.h5", positions=with_rigid_bonds(40))
    if ending == "xtc":
        path = tmp_path / "run.xtc"
        as_mdtraj(with_rigid_bonds(40)).save(str(path))
    refuse(topology, path, "the bond of .* and .* keeps its length .* bonds to hydrogen only", forces=forces)
    assert len(import_reference(topology, [path], temperature_K=350.0)) == 40


def test_bonds_of_few_frames_or_of_thermal_lengths_are_not_called_rigid(topology: Path, tmp_path: Path) -> None:
    for name, frames, spread_nm in (("few.h5", 9, 0.0), ("thermal.h5", 40, 0.0023)):
        positions = with_rigid_bonds(frames, spread_nm)
        path = plain(tmp_path / name, positions=positions, forces=bond_forces(positions))
        assert len(import_trajectory(topology, [path], temperature_K=350.0)) == frames


def bond_forces(positions: np.ndarray) -> np.ndarray:
    """Forces [kJ/mol/nm] of harmonic bonds alone that are as long at rest as on average."""
    ones, others = np.array([(one.index, other.index) for one, other in SMALL.topology.bonds]).T
    arms = positions[:, others] - positions[:, ones]
    lengths = np.linalg.norm(arms, axis=-1, keepdims=True)
    pull = 250_000 * (lengths - lengths.mean(axis=0) + 1e-3) * arms / lengths
    forces = np.zeros_like(positions)
    for bond, (one, other) in enumerate(zip(ones, others, strict=True)):
        forces[:, one] += pull[:, bond]
        forces[:, other] -= pull[:, bond]
    return forces


def test_one_frame_alone(topology: Path, tmp_path: Path) -> None:
    as_mdtraj()[:1].save(str(tmp_path / "run.xtc"))
    with pytest.raises(EmptyTrajectory, match=r"run\.xtc: one frame only"):
        import_reference(topology, [tmp_path / "run.xtc"], temperature_K=350.0)


def test_mirror_image(topology: Path, tmp_path: Path) -> None:
    mirrored = SMALL.positions * np.array([1, 1, -1], dtype=np.float32)
    message = r"frame 0: wrong handedness at CA of TYR 1 \(and at \d+ more\): the frame is a mirror image"
    refuse(topology, plain(tmp_path / "run.h5", positions=mirrored), message)


def test_one_residue_that_is_not_left_handed(topology: Path, tmp_path: Path) -> None:
    """The side chain of ASP 3 is reflected in the plane of N, CA and C, so that no bond changes its length."""
    index = {atom.name: atom.index for atom in SMALL.topology.residue(2).atoms}
    changed = SMALL.positions.copy()
    nitrogen, centre, carbon = (changed[7, index[name]] for name in ("N", "CA", "C"))
    normal = np.cross(nitrogen - centre, carbon - centre)
    normal /= np.linalg.norm(normal)
    side = [number for name, number in index.items() if name not in ("N", "H", "CA", "C", "O")]
    arms = changed[7, side] - centre
    changed[7, side] = centre + arms - 2.0 * (arms @ normal)[:, None] * normal
    path = plain(tmp_path / "run.h5", positions=changed)
    refuse(topology, path, "frame 7: wrong handedness at CA of ASP 3: it is no L residue")


def turned_over(frames: int) -> np.ndarray:
    """Frames of which the first ones have a cis peptide bond before THR 6.

    All atoms up to CA of GLU 5 turn by 180 degrees about the bond from its C to the next N, and its O with them.
    """
    changed = SMALL.positions.copy()
    residues = list(SMALL.topology.residues)
    index = {atom.name: atom.index for atom in residues[4].atoms}
    before = [atom.index for residue in residues[:5] for atom in residue.atoms if atom.index != index["C"]]
    origin = changed[:frames, None, index["C"]]
    axis = changed[:frames, None, residues[5].atom(0).index] - origin
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    arms = changed[:frames, before] - origin
    changed[:frames, before] = origin + 2.0 * (arms * axis).sum(axis=-1, keepdims=True) * axis - arms
    return changed


def test_cis_peptide_bonds_are_said_and_refused_when_they_stay(topology: Path, tmp_path: Path) -> None:
    assert SMALL.topology.residue(5).atom(0).name == "N"
    few = plain(tmp_path / "few.h5", positions=turned_over(3))
    frames = import_trajectory(topology, [few], temperature_K=350.0)
    assert frames.provenance["notes"] == ["few.h5: cis peptide bond before THR 6 in 3 of 40 frames"]
    refuse(topology, plain(tmp_path / "run.h5", positions=turned_over(30)), "cis peptide bond before THR 6 in 30 of 40")


@pytest.mark.parametrize("ending", ["xtc", "h5", "nc"])
def test_truncated_file(topology: Path, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"run.{ending}"
    as_mdtraj().save(str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuse(topology, path, "not readable .* whole", forces="recompute")


def test_missing_file(topology: Path, tmp_path: Path) -> None:
    refuse(topology, tmp_path / "absent.xtc", "no such file")


def test_empty_window(topology: Path, tmp_path: Path) -> None:
    with pytest.raises(EmptyTrajectory, match="no frame lies in the window"):
        import_trajectory(topology, [plain(tmp_path / "run.h5")], temperature_K=350.0, first_ps=1e6)


def test_water_in_the_topology(tmp_path: Path) -> None:
    solvated = SMALL.pdb.replace(
        "END\n", "HETATM  167  O   HOH B  11      10.000  10.000  10.000  1.00  0.00           O  \nEND\n"
    )
    path = tmp_path / "solvated.pdb"
    path.write_text(solvated)
    with pytest.raises(BadStructure, match=r"solvated\.pdb: residue HOH 11 is no amino acid; strip water"):
        import_trajectory(path, [plain(tmp_path / "run.h5")], temperature_K=350.0, select="all")
    with pytest.raises(BadTrajectory, match="166 atoms, but the topology has 167"):
        import_trajectory(path, [plain(tmp_path / "run.h5")], temperature_K=350.0)


def test_topology_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "topology.pdb"
    path.write_text("not a structure")
    with pytest.raises(BadStructure, match=r"topology\.pdb"):
        import_trajectory(path, [plain(tmp_path / "run.h5")], temperature_K=350.0)
