"""The frames in a trajectory file, piece by piece: whatever mdtraj reads, or a plain HDF5 layout with forces."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import mdtraj
import numpy as np
from jaxtyping import Float32, Float64, Int, Shaped

from cgal.errors import BadFile, BadStructure, BadTrajectory, CgalError
from cgal.foreign.chemistry import Selection
from cgal.foreign.topology import Protein, in_lower_case, is_pdb, plain_copy, read_protein
from cgal.frames import arrays_at
from cgal.hdf5 import HDF5, check_foreign_hdf5

__all__ = [
    "Source",
    "count_frames",
    "first_line",
    "open_protein",
    "read_pieces",
    "trajectory_numbers",
    "unreadable",
    "unwritable",
]

OTHER_COUNT = ("same atoms", "must be shape")
"""What mdtraj says of a file with another number of atoms than its topology."""
NETCDF = {".nc", ".ncdf", ".netcdf"}
STREAMED = NETCDF | HDF5 | {".xtc", ".trr", ".dcd"}
"""Formats that mdtraj reads piece by piece."""
ATOMS_AT_ONCE = 2**21
"""In a piece: positions of 24 MiB, which the checks hold a few times over."""


@dataclass(frozen=True, eq=False)
class Source:
    """Frames of one trajectory in a file; `frame` is each one's number in the file, `box` its box vectors [nm].

    `time_ps` is None when the file holds none; `force_field` is what a file of cgal says that its forces are of.
    """

    path: Path
    positions: Float32[np.ndarray, "frames atoms 3"]
    forces: Float32[np.ndarray, "frames atoms 3"] | None
    time_ps: Float64[np.ndarray, " frames"] | None
    frame: Int[np.ndarray, " frames"]
    box: Float32[np.ndarray, "frames 3 3"] | None = None
    force_field: Mapping[str, Any] | None = None

    def take(self, chosen: Shaped[np.ndarray, " chosen"]) -> "Source":
        """Give the frames at `chosen` (or where a boolean mask holds); successive ones are not copied."""
        rows = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
            return replace(self, **arrays_at(self, slice(int(rows[0]), int(rows[-1]) + 1)))
        return replace(self, **arrays_at(self, rows))

    def pieces(self) -> Iterator["Source"]:
        """The frames in order, as many at a time as a check may well hold in memory several times over."""
        count = frames_at_once(self.positions.shape[1])
        for start in range(0, len(self.frame), count):
            yield replace(self, **arrays_at(self, slice(start, start + count)))


def frames_at_once(atoms: int) -> int:
    """Frames of so many atoms that are read, checked or written at a time."""
    return max(1, ATOMS_AT_ONCE // atoms)


def open_protein(path: Path, select: Selection) -> Protein:
    """Read the chain in a topology file; raises BadStructure, naming file and residue, for all that is none."""
    if not path.is_file():
        raise BadStructure(f"{path.name}: no such file ({path}); check its name")
    try:
        return read_protein(path, select)
    except BadStructure as error:
        raise BadStructure(f"{path.name}: {error}") from None
    except Exception as error:  # each of mdtraj's readers fails in its own way
        raise BadStructure(f"{path.name}: no readable topology ({first_line(error)}); give a PDB file") from error


def read_pieces(path: Path, protein: Protein, temperature_K: float, *, forces: bool = True) -> Iterator[Source]:
    """Read the chain's frames, a piece at a time, with the forces that are stored, unless these are not wanted.

    Raises BadTrajectory when the file is missing, empty, unreadable, or has other atoms than the topology.
    """
    if not path.is_file():
        raise BadTrajectory(f"{path.name}: no such file ({path}); check its name")
    if not path.stat().st_size:
        raise BadTrajectory(f"{path.name}: the file is empty; give a whole one")
    try:
        plain = _has_plain_layout(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="mdtraj")  # that reading with SciPy alone is slower
            if plain:
                yield from _read_plain(path, protein, temperature_K, forces)
            elif forces and path.suffix.lower() == ".trr":
                yield from _read_trr(path, protein)
            else:
                yield from _read_with_mdtraj(path, protein)
    except CgalError:
        raise
    except Exception as error:  # each of mdtraj's readers fails in its own way
        raise unreadable(path, first_line(error)) from error


def unreadable(path: Path, reason: str) -> BadTrajectory:
    """What to say of a file that no reader survives or understands."""
    return BadTrajectory(
        f"{path.name}: not readable ({reason}); check that the file is whole and of the format its ending says"
    )


def unwritable(folder: Path, error: OSError) -> BadFile:
    """What to say of a folder that cannot take what is read."""
    return BadFile(f"{folder}: could not be written ({error.strerror or error}); make room there")


def count_frames(path: Path) -> int | None:
    """Frames of a file as far as its format tells without reading them."""
    with suppress(Exception):
        if _has_plain_layout(path):
            with h5py.File(path, "r") as handle:
                return len(handle["positions"])
        if path.suffix.lower() in STREAMED:
            with in_lower_case(path) as readable, mdtraj.open(str(readable)) as handle:
                return len(handle)
    return None


def trajectory_numbers(path: Path, count: int) -> Int[np.ndarray, " frames"] | None:
    """Numbers by which an HDF5 file tells its trajectories apart, a dataset `trajectory`; None when there is none."""
    if path.suffix.lower() not in HDF5:
        return None
    with h5py.File(path, "r") as handle:
        numbers = np.asarray(handle["trajectory"]) if "trajectory" in handle else None
    if numbers is not None and (numbers.shape != (count,) or numbers.dtype.kind not in "iu"):
        raise BadTrajectory(f"{path.name}: 'trajectory' is not one whole number a frame; mend or drop it")
    return numbers


def _has_plain_layout(path: Path) -> bool:
    if path.suffix.lower() not in HDF5:
        return False
    check_foreign_hdf5(path)
    with h5py.File(path, "r") as handle:
        return "positions" in handle


def _read_plain(path: Path, protein: Protein, temperature_K: float, forces: bool) -> Iterator[Source]:
    with h5py.File(path, "r") as handle:
        attributes = {name: _text(value) for name, value in handle.attrs.items()}
        if "provenance" in attributes:
            attributes |= json.loads(attributes["provenance"])
        forces = forces and "forces" in handle
        _check_attributes(path, attributes, temperature_K, forces)
        _check_atom_count(path, handle["positions"].shape[1], protein)
        _check_shapes(path, handle, forces)
        count, at_once = len(handle["positions"]), frames_at_once(protein.file.n_atoms)
        time_ps = handle.get("time_ps")
        if time_ps is None and "stride_ps" in attributes:
            time_ps = np.arange(count) * attributes["stride_ps"]
        for start in range(0, max(count, 1), at_once):
            rows = slice(start, min(start + at_once, count))
            yield Source(
                path,
                _of_chain(np.asarray(handle["positions"][rows], dtype=np.float32), protein),
                _of_chain(np.asarray(handle["forces"][rows], dtype=np.float32), protein) if forces else None,
                None if time_ps is None else np.asarray(time_ps[rows], dtype=np.float64),
                np.arange(rows.start, rows.stop),
                force_field=_made_with(attributes) if forces else None,
            )


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _made_with(attributes: Mapping[str, Any]) -> Mapping[str, Any] | None:
    made = attributes.get("force_field")
    return made if isinstance(made, Mapping) and {"name", "solvent"} <= set(made) else None


def _of_chain(values: Float32[np.ndarray, "frames all 3"], protein: Protein) -> Float32[np.ndarray, "frames atoms 3"]:
    return values if protein.is_all else values[:, protein.atoms]


def _check_attributes(path: Path, attributes: dict[str, Any], temperature_K: float, forces: bool) -> None:
    """Raise BadTrajectory for what a file says of itself; of its forces only if they are read."""
    for name, unit in (("length_unit", "nm"), *([("force_unit", "kJ/mol/nm")] if forces else [])):
        if attributes.get(name, unit) != unit:
            raise BadTrajectory(f"{path.name}: {name} is {attributes[name]!r}; convert to {unit}")
    sampled_K = float(attributes.get("temperature_K", temperature_K))
    if abs(sampled_K - temperature_K) > 0.5:
        raise BadTrajectory(
            f"{path.name}: sampled at {sampled_K:g} K, but temperature_K is {temperature_K:g}; "
            "give a trajectory of that temperature, or change temperature_K"
        )
    if forces and attributes.get("forces") == "mean":
        raise BadTrajectory(
            f"{path.name}: its forces are means over runs with the C-alphas held, not those of these positions; give "
            "instantaneous ones (seed.h5 has them), or use --forces recompute"
        )


def _check_shapes(path: Path, handle: h5py.File, forces: bool) -> None:
    """Raise BadTrajectory unless there is a force for each position, and a time for each frame."""
    positions = handle["positions"].shape
    for name, expected in (("forces", positions), ("time_ps", positions[:1])):
        if name in handle and (forces or name != "forces") and handle[name].shape != expected:
            raise BadTrajectory(
                f"{path.name}: {name} of shape {handle[name].shape}, where positions are {positions}; store "
                f"{expected}: a force for each position, a time for each frame"
            )


def _check_atom_count(path: Path, found: int, protein: Protein) -> None:
    if found != protein.file.n_atoms:
        raise BadTrajectory(
            f"{path.name}: {found} atoms, but the topology has {protein.file.n_atoms}; give the topology that the "
            "trajectory was made with (or strip both to the same atoms)"
        )


def _read_trr(path: Path, protein: Protein) -> Iterator[Source]:
    """Frames of GROMACS' TRR with their forces, if the first one has any; mdtraj's public reader leaves these out."""
    with in_lower_case(path) as readable, mdtraj.formats.TRRTrajectoryFile(str(readable)) as handle:
        try:
            held = bool(handle._check_has_velocities_forces()[1])
        except Exception:  # what is wrong with the first frame is told by the reader of frames
            held = False
        if not held:
            yield from _read_with_mdtraj(path, protein)
            return
        start, at_once = 0, frames_at_once(protein.file.n_atoms)
        while True:
            positions, time_ps, _, box, _, _, forces = _trr_frames(handle, path, at_once)
            if not len(positions):
                return
            _check_atom_count(path, positions.shape[1], protein)
            yield Source(
                path,
                _of_chain(positions, protein),
                _of_chain(forces, protein),
                time_ps.astype(np.float64),
                np.arange(start, start + len(positions)),
                box if np.abs(np.linalg.det(box)).all() else None,
            )
            start += len(positions)


def _trr_frames(handle: Any, path: Path, count: int) -> tuple[Any, ...]:
    try:
        return tuple(handle._read(count, None, get_forces=True))
    except RuntimeError as error:
        if "Forces" not in str(error):
            raise
        raise BadTrajectory(
            f"{path.name}: some frames have forces and some have none; write both in the same steps (GROMACS: "
            "nstfout = nstxout), or use --forces recompute"
        ) from None


def _read_with_mdtraj(path: Path, protein: Protein) -> Iterator[Source]:
    start = 0
    with _readable(path) as (readable, own, options):
        timed = _holds_times(readable)
        for loaded in _load(path, readable, protein, own, options):
            if own:
                _check_atom_count(path, loaded.n_atoms, protein)
                _check_same_atoms(path, loaded.topology, protein.file)
            whole = loaded.n_atoms == protein.file.n_atoms
            yield Source(
                path,
                _of_chain(loaded.xyz, protein) if whole else loaded.xyz,
                None,
                np.array(loaded.time, dtype=np.float64) if timed else None,
                np.arange(start, start + loaded.n_frames),
                None if loaded.unitcell_vectors is None else loaded.unitcell_vectors.astype(np.float32),
            )
            start += loaded.n_frames


@contextmanager
def _readable(path: Path) -> Iterator[tuple[Path, bool, dict[str, Any]]]:
    """A name that mdtraj knows the format by, whether the file has a topology of its own, and options for reading."""
    if is_pdb(path):
        with plain_copy(path) as (copy, _):
            yield copy, True, {"standard_names": False}
    else:
        with in_lower_case(path) as readable:
            yield readable, readable.suffix in HDF5, {}


def _load(
    path: Path, readable: Path, protein: Protein, own: bool, options: dict[str, Any]
) -> Iterator[mdtraj.Trajectory]:
    """Pieces of a file in a format that mdtraj can stream, or all of it."""
    options = options if own else {"top": protein.file, "atom_indices": None if protein.is_all else protein.atoms}
    try:
        if not own and not protein.is_all:
            mdtraj.load_frame(str(readable), 0, top=protein.file)  # with a choice of atoms mdtraj does not count them
        if readable.suffix in STREAMED:
            yield from mdtraj.iterload(str(readable), chunk=frames_at_once(protein.file.n_atoms), **options)
        else:
            yield mdtraj.load(str(readable), **options)
    except (ValueError, AssertionError) as error:
        if own or not (isinstance(error, AssertionError) or any(told in str(error) for told in OTHER_COUNT)):
            raise
        raise BadTrajectory(
            f"{path.name}: another number of atoms than the {protein.file.n_atoms} of the topology; give the "
            "topology that the trajectory was made with (or strip both to the same atoms)"
        ) from None


def _holds_times(path: Path) -> bool:
    if path.suffix in NETCDF:
        with mdtraj.open(str(path)) as handle:
            return handle.read(1)[1] is not None
    if path.suffix in HDF5:
        with h5py.File(path, "r") as handle:
            return "time" in handle
    return path.suffix in {".xtc", ".trr"}


def _check_same_atoms(path: Path, found: mdtraj.Topology, expected: mdtraj.Topology) -> None:
    for number, (one, other) in enumerate(zip(found.atoms, expected.atoms, strict=True)):
        if one.element != other.element or one.residue.index != other.residue.index:
            raise BadTrajectory(
                f"{path.name}: atom {number} is {one}, but {other} in the topology: another order of atoms; "
                "give the topology that the trajectory was made with"
            )


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
