"""All-atom trajectories from elsewhere become frames with forces: the seed of a campaign, or its ground truth.

Two kinds of file are read: whatever mdtraj reads (positions alone, converted to nm and ps), and a plain HDF5 layout
with forces: datasets `positions` [nm] and `forces` [kJ/mol/nm], both frames x atoms x 3, and either a dataset
`time_ps` or an attribute `stride_ps`; optional attributes are `temperature_K`, `length_unit` and `force_unit`.

Periodic boxes are dropped, so molecules must come whole.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import h5py
import mdtraj
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Shaped

from cgal.all_atom.force_field import recompute_forces
from cgal.errors import BadStructure, BadTrajectory, CgalError, EmptyTrajectory
from cgal.files import sha256
from cgal.frames import AtomFrames, CGTrajectory, rmsd_nm, sequence_of
from cgal.hdf5 import check_foreign_hdf5
from cgal.params import ForceFieldParams
from cgal.progress import Progress, silent
from cgal.projection.mapping import constrained_clusters, coordinate_map

__all__ = ["as_reference", "confine", "import_reference", "import_trajectory", "medoid", "structure_pdb"]

LONGEST_HYDROGEN_BOND_nm = 0.15
"""No bond to hydrogen is longer (S-H has 0.134)."""
LONGEST_HEAVY_BOND_nm = 0.23
"""No other bond in a protein is longer (S-S has 0.205)."""
TYPICAL_BOND_nm = (0.05, 0.3)
"""Between these lies the median bond of any molecule whose positions are in nm."""
TYPICAL_FORCE_kJ_per_mol_nm = (100.0, 1e5)
"""Between these lies the rms force on an atom of a protein near room temperature (about 850)."""
FORMATS_WITH_TIMES = {".xtc", ".trr", ".nc", ".ncdf", ".netcdf", ".h5", ".hdf5"}


@dataclass(frozen=True, eq=False)
class _Source:
    """The chosen frames of one file; `frame` is each one's number in it, `box` its box vectors [nm]."""

    path: Path
    positions: Float32[np.ndarray, "frames atoms 3"]
    forces: Float32[np.ndarray, "frames atoms 3"] | None
    time_ps: Float64[np.ndarray, " frames"]
    frame: Int[np.ndarray, " frames"]
    box: Float32[np.ndarray, "frames 3 3"] | None = None

    def take(self, chosen: Shaped[np.ndarray, " chosen"]) -> "_Source":
        return replace(
            self,
            positions=self.positions[chosen],
            forces=None if self.forces is None else self.forces[chosen],
            time_ps=self.time_ps[chosen],
            frame=self.frame[chosen],
            box=None if self.box is None else self.box[chosen],
        )


def import_trajectory(
    topology: Path,
    trajectories: Sequence[Path],
    *,
    temperature_K: float,
    forces: Literal["stored", "recompute"] = "stored",
    force_field: ForceFieldParams | None = None,
    stride: int = 1,
    first_ps: float | None = None,
    last_ps: float | None = None,
    frame_ps: float | None = None,
    progress: Progress = silent,
) -> AtomFrames:
    """Read all-atom frames with instantaneous forces, in the atom order of the topology file.

    Parameters
    ----------
    topology : Path
        Any file that mdtraj takes a topology from; protein only, one C-alpha a residue.
    trajectories : sequence of Path
        One or more files; each becomes one numbered trajectory of the result.
    temperature_K : float
        Temperature that the frames were sampled at.
    forces : {"stored", "recompute"}
        Read them from the HDF5 layout above, or compute them with `force_field`.
    force_field : ForceFieldParams, optional
        The oracle's force field, for "recompute".
    stride : int
        Take every so-many-th frame of a file.
    first_ps, last_ps : float, optional
        Take only frames of this window of time, both ends included.
    frame_ps : float, optional
        Time between frames, for formats that hold no times (DCD, PDB, ...).
    progress : Progress
        Called for each file, and while forces are computed.

    Raises
    ------
    BadStructure
        The topology is unreadable or holds anything but amino acids.
    BadTrajectory
        A file is unreadable, has another number or order of atoms, lacks forces or times, is in other units, holds a
        number that is not finite, a broken or wrapped molecule, or was sampled at another temperature.
    EmptyTrajectory
        No frame lies in the window.
    """
    template, pdb = _read_topology(topology)
    sources = _read_sources(template, trajectories, stride, (first_ps, last_ps), frame_ps, temperature_K, progress)
    positions = np.concatenate([source.positions for source in sources])
    pdb = _with_positions(pdb, positions[0])
    if forces == "stored":
        labels = np.concatenate([_stored_forces(source) for source in sources])
    else:
        labels = recompute_forces(pdb, positions, force_field or ForceFieldParams(), progress=progress)
    provenance = {
        "topology": {"name": topology.name, "sha256": sha256(topology)},
        "trajectories": [{"name": path.name, "sha256": sha256(path)} for path in trajectories],
        "stride": stride,
        "first_ps": first_ps,
        "last_ps": last_ps,
        "temperature_K": temperature_K,
        "forces": "instantaneous",
        "force_origin": forces,
        "force_field": (force_field or ForceFieldParams()).model_dump() if forces == "recompute" else None,
    }
    time_ps, number = _times(sources)
    return AtomFrames(pdb, positions, labels, number, time_ps, provenance)


def import_reference(
    topology: Path,
    trajectories: Sequence[Path],
    *,
    temperature_K: float,
    stride: int = 1,
    first_ps: float | None = None,
    last_ps: float | None = None,
    frame_ps: float | None = None,
    progress: Progress = silent,
) -> CGTrajectory:
    """Project all-atom trajectories to C-alpha beads: a ground truth, each file one replica; forces are not needed.

    Takes and raises the same as `import_trajectory`.
    """
    template, _ = _read_topology(topology)
    sources = _read_sources(template, trajectories, stride, (first_ps, last_ps), frame_ps, temperature_K, progress)
    to_beads = coordinate_map(template.topology)
    beads = np.concatenate([to_beads(source.positions) for source in sources])
    return CGTrajectory.from_positions(sequence_of(template.topology), beads, *_times(sources))


def as_reference(frames: AtomFrames) -> CGTrajectory:
    """Project frames that are already imported to C-alpha beads, each trajectory one replica."""
    beads = coordinate_map(frames.topology)(frames.positions)
    return CGTrajectory.from_positions(sequence_of(frames.topology), beads, frames.time_ps, frames.trajectory)


def confine(frames: AtomFrames, reference_beads: Float32[np.ndarray, "beads 3"], maximum_rmsd_nm: float) -> AtomFrames:
    """Keep the frames whose C-alpha RMSD to a reference [nm] is at most `maximum_rmsd_nm`: a seed from one basin.

    Raises EmptyTrajectory when none is.
    """
    deviations_nm = rmsd_nm(coordinate_map(frames.topology)(frames.positions), reference_beads)
    inside = deviations_nm <= maximum_rmsd_nm
    if not inside.any():
        raise EmptyTrajectory(
            f"no frame is within {maximum_rmsd_nm} nm C-alpha RMSD of the reference "
            f"(nearest: {deviations_nm.min():.3f} nm); raise the limit or give another reference"
        )
    return replace(frames.take(inside), provenance=frames.provenance | {"maximum_rmsd_nm": maximum_rmsd_nm})


def medoid(beads: Float32[np.ndarray, "frames beads 3"]) -> int:
    """Index of the frame with the least mean RMSD to all others; raises EmptyTrajectory when there is none."""
    if not len(beads):
        raise EmptyTrajectory("no frame to take the medoid of")
    return int(np.argmin([rmsd_nm(beads, frame).mean() for frame in beads]))


def structure_pdb(frames: AtomFrames, index: int) -> str:
    """PDB text of one frame, atoms in the same order (coordinates to the 0.0001 nm that PDB can hold)."""
    return _with_positions(frames.pdb, frames.positions[index])


def _with_positions(pdb: str, positions: Float32[np.ndarray, "atoms 3"]) -> str:
    """PDB text with other coordinates [nm], nothing else changed."""
    lines = pdb.splitlines()
    atoms = [number for number, line in enumerate(lines) if line.startswith(("ATOM", "HETATM"))]
    for number, (x, y, z) in zip(atoms, positions * 10.0, strict=True):
        lines[number] = f"{lines[number][:30]}{x:8.3f}{y:8.3f}{z:8.3f}{lines[number][54:]}"
    return "\n".join(lines) + "\n"


def _read_topology(path: Path) -> tuple[mdtraj.Trajectory, str]:
    """One frame (coordinates may be zero) and PDB text of a protein topology."""
    try:
        topology = mdtraj.load_topology(str(path))
        sequence_of(topology)
        coordinate_map(topology)
        constrained_clusters(topology)
    except BadStructure as error:
        raise BadStructure(f"{path.name}: {error}") from None
    except Exception as error:  # each of mdtraj's readers fails in its own way
        raise BadStructure(f"{path.name}: no readable topology ({_first_line(error)}); give a PDB file") from error
    frame = mdtraj.Trajectory(np.zeros((1, topology.n_atoms, 3), dtype=np.float32), topology)
    with TemporaryDirectory() as folder:
        written = Path(folder) / "topology.pdb"
        frame.save_pdb(str(written))
        lines = [line for line in written.read_text().splitlines() if not line.startswith(("REMARK", "CRYST1"))]
    return frame, "\n".join(lines) + "\n"


def _read_sources(
    template: mdtraj.Trajectory,
    trajectories: Sequence[Path],
    stride: int,
    window_ps: tuple[float | None, float | None],
    frame_ps: float | None,
    temperature_K: float,
    progress: Progress,
) -> list[_Source]:
    """Read, cut and check every file; raises EmptyTrajectory when no frame of any is left."""
    sources = []
    for number, path in enumerate(trajectories, start=1):
        source = _read(path, template.topology, frame_ps, temperature_K)
        source = _cut(source, stride, *window_ps)
        _check(source, template.topology)
        sources.append(source)
        progress(number, len(trajectories), path.name)
    if not sum(len(source.frame) for source in sources):
        raise EmptyTrajectory(f"no frame lies in the window {window_ps} ps of {[path.name for path in trajectories]}")
    return sources


def _read(path: Path, topology: mdtraj.Topology, frame_ps: float | None, temperature_K: float) -> _Source:
    if not path.is_file():
        raise BadTrajectory(f"{path.name}: no such file ({path}); check its name")
    try:
        if _has_plain_layout(path):
            return _read_plain(path, topology.n_atoms, temperature_K)
        return _read_with_mdtraj(path, topology, frame_ps)
    except CgalError:
        raise
    except Exception as error:  # each of mdtraj's readers fails in its own way
        reason = _first_line(error)
        raise BadTrajectory(
            f"{path.name}: not readable ({reason}); check that the file is whole and of the format its ending says"
        ) from error


def _has_plain_layout(path: Path) -> bool:
    if path.suffix not in (".h5", ".hdf5"):
        return False
    check_foreign_hdf5(path)
    with h5py.File(path, "r") as handle:
        return "positions" in handle


def _read_plain(path: Path, n_atoms: int, temperature_K: float) -> _Source:
    with h5py.File(path, "r") as handle:
        attributes = dict(handle.attrs)
        if "provenance" in attributes:
            attributes |= json.loads(attributes["provenance"])
        _check_attributes(path, attributes, temperature_K)
        _check_atom_count(path, handle["positions"].shape[1], n_atoms)
        count = len(handle["positions"])
        if "time_ps" not in handle and "stride_ps" not in attributes:
            raise BadTrajectory(f"{path.name}: no dataset 'time_ps' and no attribute 'stride_ps'; add one of them")
        return _Source(
            path,
            np.asarray(handle["positions"], dtype=np.float32),
            np.asarray(handle["forces"], dtype=np.float32) if "forces" in handle else None,
            np.asarray(handle["time_ps"] if "time_ps" in handle else np.arange(count) * attributes["stride_ps"], float),
            np.arange(count),
        )


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


def _check_atom_count(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise BadTrajectory(
            f"{path.name}: {found} atoms, but the topology has {expected}; give the topology that the trajectory was "
            "made with (or strip both to the same atoms)"
        )


def _read_with_mdtraj(path: Path, topology: mdtraj.Topology, frame_ps: float | None) -> _Source:
    own = path.suffix in (".h5", ".hdf5", ".pdb")
    loaded = mdtraj.load(str(path)) if own else _load(path, topology)
    _check_atom_count(path, loaded.n_atoms, topology.n_atoms)
    if own:
        _check_same_atoms(path, loaded.topology, topology)
    if frame_ps is None and path.suffix not in FORMATS_WITH_TIMES:
        raise BadTrajectory(f"{path.name}: files of this kind hold no times; say how many ps lie between its frames")
    frame = np.arange(loaded.n_frames)
    time_ps = np.array(loaded.time, dtype=np.float64) if frame_ps is None else frame * frame_ps
    box = None if loaded.unitcell_vectors is None else loaded.unitcell_vectors.astype(np.float32)
    return _Source(path, loaded.xyz, None, time_ps, frame, box)


def _load(path: Path, topology: mdtraj.Topology) -> mdtraj.Trajectory:
    try:
        return mdtraj.load(str(path), top=topology)
    except (ValueError, AssertionError) as error:
        if isinstance(error, AssertionError) or "same atoms" in str(error):
            raise BadTrajectory(
                f"{path.name}: another number of atoms than the {topology.n_atoms} of the topology; give the topology "
                "that the trajectory was made with (or strip both to the same atoms)"
            ) from None
        raise


def _check_same_atoms(path: Path, found: mdtraj.Topology, expected: mdtraj.Topology) -> None:
    for number, (one, other) in enumerate(zip(found.atoms, expected.atoms, strict=True)):
        if one.element != other.element or one.residue.index != other.residue.index:
            raise BadTrajectory(
                f"{path.name}: atom {number} is {one}, but {other} in the topology: another order of atoms; "
                "give the topology that the trajectory was made with"
            )


def _cut(source: _Source, stride: int, first_ps: float | None, last_ps: float | None) -> _Source:
    inside: Bool[np.ndarray, " frames"] = source.frame % stride == 0
    if first_ps is not None:
        inside &= source.time_ps >= first_ps
    if last_ps is not None:
        inside &= source.time_ps <= last_ps
    return source.take(inside)


def _check(source: _Source, topology: mdtraj.Topology) -> None:
    """Raise BadTrajectory for the first thing that is wrong with a file's frames."""
    if not len(source.frame):
        return
    _check_finite(source, "position", source.positions, topology)
    if source.forces is not None:
        _check_finite(source, "force", source.forces, topology)
    bonds = np.array([[one.index, other.index] for one, other in topology.bonds])
    vectors = source.positions[:, bonds[:, 0]] - source.positions[:, bonds[:, 1]]
    _check_length_unit(source, vectors)
    _check_bonds(source, topology, bonds, vectors)


def _check_finite(
    source: _Source, what: str, values: Float32[np.ndarray, "frames atoms 3"], topology: mdtraj.Topology
) -> None:
    wrong = np.argwhere(~np.isfinite(values).all(axis=2))
    if len(wrong):
        row, atom = wrong[0]
        raise BadTrajectory(
            f"{source.path.name}: frame {source.frame[row]}: the {what} of atom {atom} ({topology.atom(atom)}) is not "
            f"finite ({len(wrong)} such in the file); the run blew up there: import the frames before, or run again"
        )


def _check_length_unit(source: _Source, vectors: Float32[np.ndarray, "frames bonds 3"]) -> None:
    median_nm = float(np.median(np.linalg.norm(vectors[0], axis=-1)))
    low, high = TYPICAL_BOND_nm
    if not low < median_nm < high:
        raise BadTrajectory(
            f"{source.path.name}: frame {source.frame[0]}: the median bond is {median_nm:.3g} nm long, where some 0.13 "
            "is right; either positions are not in nm (angstrom, perhaps): convert them, or the atoms are in another "
            "order than the topology's: give the topology that the trajectory was made with"
        )


def _check_bonds(
    source: _Source,
    topology: mdtraj.Topology,
    bonds: Int[np.ndarray, "bonds 2"],
    vectors: Float32[np.ndarray, "frames bonds 3"],
) -> None:
    hydrogen = np.array([any(atom.element.symbol == "H" for atom in bond) for bond in topology.bonds])
    limits_nm = np.where(hydrogen, LONGEST_HYDROGEN_BOND_nm, LONGEST_HEAVY_BOND_nm)
    broken = np.argwhere(np.linalg.norm(vectors, axis=-1) > limits_nm)
    if not len(broken):
        return
    row, bond = broken[0]
    one, other = (topology.atom(index) for index in bonds[bond])
    length_nm = float(np.linalg.norm(vectors[row, bond]))
    image_nm = _nearest_image_nm(vectors[row, bond], None if source.box is None else source.box[row])
    where = f"{source.path.name}: frame {source.frame[row]}: {one} and {other} are bonded but {length_nm:.2f} nm apart"
    if image_nm <= limits_nm[bond]:
        cure = "the molecule is wrapped around the box: make it whole first (mdtraj: make_molecules_whole)"
    elif row == 0:
        cure = (
            "the atoms are in another order than the topology's (give the topology that the trajectory was made with), "
            "or the molecule is wrapped (make it whole first, mdtraj: make_molecules_whole)"
        )
    else:
        cure = "the molecule is broken or wrapped: make it whole first (mdtraj: make_molecules_whole), or leave it out"
    raise BadTrajectory(f"{where}: {cure}")


def _nearest_image_nm(vector: Float32[np.ndarray, " 3"], box: Float32[np.ndarray, "3 3"] | None) -> float:
    """Length of a bond vector after taking off whole box vectors [nm]; infinite without a box."""
    if box is None or not np.linalg.det(box):
        return float("inf")
    return float(np.linalg.norm(vector - np.rint(np.linalg.solve(box.T, vector)) @ box))


def _stored_forces(source: _Source) -> Float32[np.ndarray, "frames atoms 3"]:
    if source.forces is None:
        raise BadTrajectory(
            f"{source.path.name}: no forces stored (mdtraj's formats hold none); compute them with forces='recompute' "
            "(cgal import --forces recompute)"
        )
    rms = float(np.sqrt(np.mean(source.forces.astype(np.float64) ** 2))) if len(source.forces) else None
    low, high = TYPICAL_FORCE_kJ_per_mol_nm
    if rms is not None and not low < rms < high:
        raise BadTrajectory(
            f"{source.path.name}: stored forces have an rms of {rms:.3g}, where a protein has some 850 kJ/mol/nm; "
            "store instantaneous forces in kJ/mol/nm, or use --forces recompute"
        )
    return source.forces


def _times(sources: Sequence[_Source]) -> tuple[Float64[np.ndarray, " frames"], Shaped[np.ndarray, " frames"]]:
    """Time [ps] and number of the source file, of every frame."""
    numbers = [np.full(len(source.frame), number, dtype=np.int32) for number, source in enumerate(sources)]
    return np.concatenate([source.time_ps for source in sources]), np.concatenate(numbers)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
