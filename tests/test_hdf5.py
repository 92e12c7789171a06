"""HDF5 files: what is written comes back, old files are read, and nothing in a foreign one is believed unchecked."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from cgal.all_atom.oracle import Failure, OracleResult
from cgal.errors import BadFile
from cgal.frames import AtomFrames, CGTrajectory, LabelledFrames, ReplicaFate
from cgal.projection.mapping import ForceMap, LinearMap
from cgal.selection.committee import Calibration
from cgal.selection.coverage import Coverage
from cgal.selection.picks import Candidates, Selection
from tests.conftest import REPOSITORY

ATOMS = AtomFrames.load(REPOSITORY / "tests" / "data" / "chignolin_small.h5")
ZEROS = np.zeros((2, 10, 3), np.float32)
TRAJECTORY = replace(
    CGTrajectory.from_positions("YYDPETGTWY", ZEROS, np.arange(2), np.arange(2), (ReplicaFate(1, 7, "exploded"),)),
    device="cuda",
)
CALIBRATION = Calibration(3, 1.5, 20.0, np.ones(4), np.ones(4))
SELECTION = Selection(
    "committee",
    "YYDPETGTWY",
    ZEROS,
    np.array([3, 5]),
    np.ones(2),
    np.ones(2),
    2,
    4,
    {"overlap": 1},
    Coverage(np.linspace(0, 1, 3), np.ones(2), np.ones(2), np.zeros(2)),
    Candidates(np.arange(6), np.ones(6), 0.1, np.ones(6)),
    CALIBRATION,
)
RECORDS = {
    "trajectory": TRAJECTORY,
    "labelled": LabelledFrames("YYDPETGTWY", ZEROS, ZEROS, np.zeros(2, np.int32), np.zeros(2), {"origin": "test"}),
    "atoms": ATOMS,
    "oracle": OracleResult(ATOMS, (Failure(1, "labelling", "it diverged", "failed/1"),), 3, 100),
    "selection": SELECTION,
    "selection without committee": replace(
        SELECTION, calibration=None, candidates=replace(SELECTION.candidates, disagreement=None)
    ),
    "linear map": ForceMap("slice", LinearMap(np.eye(3)), {"slice": 10.0, "optimal": 5.0}),
    "local frames": ForceMap("local_frames", None),
}


def same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    if hasattr(one, "__dataclass_fields__"):
        return type(one) is type(other) and all(
            same(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__
        )
    return one == other


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_a_record_comes_back_and_is_the_same_bytes_twice(record, tmp_path):
    record.save(tmp_path / "one.h5")
    loaded = type(record).load(tmp_path / "one.h5")
    assert same(loaded, record)
    loaded.save(tmp_path / "two.h5")
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_files_of_the_first_format_are_read(bundled_data):
    reference = CGTrajectory.load(bundled_data / "reference.h5")
    assert len(reference.fates) == 0
    assert ForceMap.load(bundled_data / "force_map.h5").figures
    assert LabelledFrames.load(bundled_data / "shards" / "000.h5").provenance["origin"] == "seed"


def test_units_stand_beside_the_data(tmp_path):
    TRAJECTORY.save(tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5") as handle:
        assert {name: handle[name].attrs.get("units") for name in ("coordinates", "time", "replica")} == {
            "coordinates": "nanometers",
            "time": "picoseconds",
            "replica": None,
        }


def elsewhere(handle: h5py.File) -> None:
    handle.create_dataset("coordinates", (2, 10, 3), "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def external_link(handle: h5py.File) -> None:
    handle["coordinates"] = h5py.ExternalLink("/etc/hostname", "coordinates")


def soft_link(handle: h5py.File) -> None:
    handle["coordinates"] = h5py.SoftLink("/time")


def virtual(handle: h5py.File) -> None:
    layout = h5py.VirtualLayout((2, 10, 3), "f4")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "coordinates", (2, 10, 3))
    handle.create_virtual_dataset("coordinates", layout)


def immense(handle: h5py.File) -> None:
    handle.create_dataset("coordinates", (2**40, 10, 3), "f4", chunks=(16, 10, 3), compression="gzip")


def group(handle: h5py.File) -> None:
    handle.create_group("coordinates")


def flat(handle: h5py.File) -> None:
    handle["coordinates"] = np.zeros((2, 10), np.float32)


def double(handle: h5py.File) -> None:
    handle["coordinates"] = np.zeros((2, 10, 3))


def longer(handle: h5py.File) -> None:
    handle["coordinates"] = np.zeros((3, 10, 3), np.float32)


def missing(handle: h5py.File) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (elsewhere, "lie in another file"),
        (external_link, "is a link to /etc/hostname, which is not read"),
        (soft_link, "is a link to"),
        (virtual, "lie in another file"),
        (immense, "bytes large, of which the file holds 0"),
        (group, "is a group"),
        (flat, r"is float32 of shape \(2, 10\), not"),
        (double, "is float64 of shape"),
        (longer, r"\w+ is \w+ of shape \(2,\), not"),
        (missing, "has no coordinates"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cgal_does_not_write_is_refused(spoil: Callable[[h5py.File], None], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    TRAJECTORY.save(path)
    with h5py.File(path, "a") as handle:
        del handle["coordinates"]
        spoil(handle)
    with pytest.raises(BadFile, match=reason):
        CGTrajectory.load(path)


def test_text_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    TRAJECTORY.save(path)
    with h5py.File(path, "a") as handle:
        handle.attrs["sequence"] = np.bytes_(b"\xb5")
    with pytest.raises(BadFile, match=r"t\.h5: truncated or damaged HDF5 \('utf-8'"):
        CGTrajectory.load(path)


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "t.h5"
    shutil.copy(REPOSITORY / "tests" / "data" / "chignolin_small.h5", path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BadFile, match=r"t\.h5: truncated or damaged"):
        AtomFrames.load(path)
