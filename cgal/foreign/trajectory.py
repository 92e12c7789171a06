"""The frames in a trajectory file: whatever mdtraj reads, or a plain HDF5 layout with forces.

A file is read in another process first: a damaged one can take down the C library that reads it, and with it the
process. As a program, `python -m cgal.foreign.trajectory SELECT TOPOLOGY FILE ...` is that other process.
"""

import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import h5py
import mdtraj
import numpy as np
from jaxtyping import Float32, Float64, Int, Shaped

from cgal.errors import BadStructure, BadTrajectory, CgalError
from cgal.foreign.chemistry import Selection
from cgal.foreign.topology import Protein, in_lower_case, is_pdb, plain_copy, read_protein
from cgal.hdf5 import check_foreign_hdf5

__all__ = ["Source", "check_in_child", "open_protein", "read_file"]

FORMATS_WITH_TIMES = {".xtc", ".trr", ".nc", ".ncdf", ".netcdf", ".h5", ".hdf5"}
OTHER_COUNT = ("same atoms", "must be shape")
"""What mdtraj says of a file with another number of atoms than its topology."""
READING = b"cgal reads the next file"
NETCDF = {".nc", ".ncdf", ".netcdf"}
HDF5 = {".h5", ".hdf5"}


@dataclass(frozen=True, eq=False)
class Source:
    """Frames of one trajectory in a file; `frame` is each one's number in the file, `box` its box vectors [nm].

    `time_ps` is None when the file holds none.
    """

    path: Path
    positions: Float32[np.ndarray, "frames atoms 3"]
    forces: Float32[np.ndarray, "frames atoms 3"] | None
    time_ps: Float64[np.ndarray, " frames"] | None
    frame: Int[np.ndarray, " frames"]
    box: Float32[np.ndarray, "frames 3 3"] | None = None

    def take(self, chosen: Shaped[np.ndarray, " chosen"]) -> "Source":
        """Give the chosen frames."""
        return replace(
            self,
            positions=self.positions[chosen],
            forces=None if self.forces is None else self.forces[chosen],
            time_ps=None if self.time_ps is None else self.time_ps[chosen],
            frame=self.frame[chosen],
            box=None if self.box is None else self.box[chosen],
        )


def open_protein(path: Path, select: Selection) -> Protein:
    """Read the chain in a topology file; raises BadStructure, naming file and residue, for all that is none."""
    if not path.is_file():
        raise BadStructure(f"{path.name}: no such file ({path}); check its name")
    try:
        return read_protein(path, select)
    except BadStructure as error:
        raise BadStructure(f"{path.name}: {error}") from None
    except Exception as error:  # each of mdtraj's readers fails in its own way
        raise BadStructure(f"{path.name}: no readable topology ({_first_line(error)}); give a PDB file") from error


def read_file(path: Path, protein: Protein, temperature_K: float) -> tuple[Source, ...]:
    """Read the chain's frames; a file that numbers its trajectories gives one source for each.

    Raises BadTrajectory when it is missing, empty, unreadable, or has other atoms than the topology.
    """
    if not path.is_file():
        raise BadTrajectory(f"{path.name}: no such file ({path}); check its name")
    if not path.stat().st_size:
        raise BadTrajectory(f"{path.name}: the file is empty; give a whole one")
    try:
        plain = _has_plain_layout(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="mdtraj")  # that reading with SciPy alone is slower
            source = _read_plain(path, protein, temperature_K) if plain else _read_with_mdtraj(path, protein)
        return _apart(source)
    except CgalError:
        raise
    except Exception as error:  # each of mdtraj's readers fails in its own way
        raise _unreadable(path, _first_line(error)) from error


def _unreadable(path: Path, reason: str) -> BadTrajectory:
    return BadTrajectory(
        f"{path.name}: not readable ({reason}); check that the file is whole and of the format its ending says"
    )


def check_in_child(topology: Path, paths: Sequence[Path], select: Selection) -> None:
    """Read all files in another process and forget them; raises BadTrajectory naming the one that it died of."""
    child = subprocess.run(
        [sys.executable, "-m", "cgal.foreign.trajectory", select, str(topology), *map(str, paths)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    if child.returncode < 0:
        reached = child.stdout.count(READING)
        name = signal.Signals(-child.returncode).name
        raise _unreadable([topology, *paths][reached], f"reading it ends the process with {name}")


def _read_and_forget(select: Selection, topology: Path, paths: Sequence[Path]) -> None:
    """Read each file as the parent will, who tells of errors; a line on stdout before each but the topology."""
    with suppress(ImportError, ValueError, OSError):
        import resource  # there is none on Windows

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(Exception):
        protein = open_protein(topology, select)
        for path in paths:
            print(READING.decode(), flush=True)
            with suppress(Exception):
                read_file(path, protein, float("nan"))


def _apart(source: Source) -> tuple[Source, ...]:
    """One source for each trajectory that an HDF5 file tells apart by a dataset `trajectory`, in order of coming."""
    numbers = None
    if source.path.suffix.lower() in HDF5:
        with h5py.File(source.path, "r") as handle:
            numbers = np.asarray(handle["trajectory"]) if "trajectory" in handle else None
    if numbers is None:
        return (source,)
    if numbers.shape != source.frame.shape or numbers.dtype.kind not in "iu":
        raise BadTrajectory(f"{source.path.name}: 'trajectory' is not one whole number a frame; mend or drop it")
    return tuple(source.take(np.flatnonzero(numbers == number)) for number in dict.fromkeys(numbers.tolist()))


def _has_plain_layout(path: Path) -> bool:
    if path.suffix.lower() not in HDF5:
        return False
    check_foreign_hdf5(path)
    with h5py.File(path, "r") as handle:
        return "positions" in handle


def _read_plain(path: Path, protein: Protein, temperature_K: float) -> Source:
    with h5py.File(path, "r") as handle:
        attributes = dict(handle.attrs)
        if "provenance" in attributes:
            attributes |= json.loads(attributes["provenance"])
        _check_attributes(path, attributes, temperature_K)
        _check_atom_count(path, handle["positions"].shape[1], protein)
        count = len(handle["positions"])
        time_ps = handle.get("time_ps")
        if time_ps is None and "stride_ps" in attributes:
            time_ps = np.arange(count) * attributes["stride_ps"]
        return Source(
            path,
            _of_chain(np.asarray(handle["positions"], dtype=np.float32), protein),
            _of_chain(np.asarray(handle["forces"], dtype=np.float32), protein) if "forces" in handle else None,
            None if time_ps is None else np.asarray(time_ps, dtype=np.float64),
            np.arange(count),
        )


def _of_chain(values: Float32[np.ndarray, "frames all 3"], protein: Protein) -> Float32[np.ndarray, "frames atoms 3"]:
    return values if protein.is_all else values[:, protein.atoms]


def _check_attributes(path: Path, attributes: dict[str, Any], temperature_K: float) -> None:
    for name, unit in (("length_unit", "nm"), ("force_unit", "kJ/mol/nm")):
        if attributes.get(name, unit) != unit:
            raise BadTrajectory(f"{path.name}: {name} is {attributes[name]!r}; convert to {unit}")
    sampled_K = float(attributes.get("temperature_K", temperature_K))
    if abs(sampled_K - temperature_K) > 0.5:
        raise BadTrajectory(
            f"{path.name}: sampled at {sampled_K:g} K, but temperature_K is {temperature_K:g}; "
            "give a trajectory of that temperature, or change temperature_K"
        )


def _check_atom_count(path: Path, found: int, protein: Protein) -> None:
    if found != protein.file.n_atoms:
        raise BadTrajectory(
            f"{path.name}: {found} atoms, but the topology has {protein.file.n_atoms}; give the topology that the "
            "trajectory was made with (or strip both to the same atoms)"
        )


def _read_with_mdtraj(path: Path, protein: Protein) -> Source:
    with _readable(path) as (readable, own, options):
        if own:
            loaded = mdtraj.load(str(readable), **options)
            _check_atom_count(path, loaded.n_atoms, protein)
            _check_same_atoms(path, loaded.topology, protein.file)
        else:
            loaded = _load(path, readable, protein)
        timed = _holds_times(readable)
    positions = _of_chain(loaded.xyz, protein) if loaded.n_atoms == protein.file.n_atoms else loaded.xyz
    time_ps = np.array(loaded.time, dtype=np.float64) if timed else None
    box = None if loaded.unitcell_vectors is None else loaded.unitcell_vectors.astype(np.float32)
    return Source(path, positions, None, time_ps, np.arange(loaded.n_frames), box)


@contextmanager
def _readable(path: Path) -> Iterator[tuple[Path, bool, dict[str, Any]]]:
    """A name that mdtraj knows the format by, whether the file has a topology of its own, and options for reading."""
    if is_pdb(path):
        with plain_copy(path) as (copy, _):
            yield copy, True, {"standard_names": False}
    else:
        with in_lower_case(path) as readable:
            yield readable, readable.suffix in HDF5, {}


def _load(path: Path, readable: Path, protein: Protein) -> mdtraj.Trajectory:
    try:
        if protein.is_all:
            return mdtraj.load(str(readable), top=protein.file)
        mdtraj.load_frame(str(readable), 0, top=protein.file)  # with a choice of atoms mdtraj does not count them
        return mdtraj.load(str(readable), top=protein.file, atom_indices=protein.atoms)
    except (ValueError, AssertionError) as error:
        if isinstance(error, AssertionError) or any(told in str(error) for told in OTHER_COUNT):
            raise BadTrajectory(
                f"{path.name}: another number of atoms than the {protein.file.n_atoms} of the topology; give the "
                "topology that the trajectory was made with (or strip both to the same atoms)"
            ) from None
        raise


def _holds_times(path: Path) -> bool:
    if path.suffix in NETCDF:
        with mdtraj.open(str(path)) as handle:
            return handle.read(1)[1] is not None
    if path.suffix in HDF5:
        with h5py.File(path, "r") as handle:
            return "time" in handle
    return path.suffix in FORMATS_WITH_TIMES


def _check_same_atoms(path: Path, found: mdtraj.Topology, expected: mdtraj.Topology) -> None:
    for number, (one, other) in enumerate(zip(found.atoms, expected.atoms, strict=True)):
        if one.element != other.element or one.residue.index != other.residue.index:
            raise BadTrajectory(
                f"{path.name}: atom {number} is {one}, but {other} in the topology: another order of atoms; "
                "give the topology that the trajectory was made with"
            )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


if __name__ == "__main__":
    chosen = next(kind for kind in get_args(Selection.__value__) if kind == sys.argv[1])
    _read_and_forget(chosen, Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
