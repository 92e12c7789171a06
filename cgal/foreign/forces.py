"""Forces that come with a trajectory: stored in its files, or in NumPy files beside them, in a unit that they name."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped

from cgal.errors import BadParams, BadTrajectory
from cgal.files import sha256
from cgal.foreign.topology import Protein
from cgal.foreign.trajectory import Source, first_line, unwritable
from cgal.units import FORCE_UNITS

__all__ = ["ForceFiles", "stored_forces", "with_forces"]

TYPICAL_FORCE_kJ_per_mol_nm = (100.0, 1e5)
"""Between these lies the rms force on an atom of a protein near room temperature (about 850)."""

NUMPY = {".npy", ".npz"}


@dataclass(frozen=True)
class ForceFiles:
    """NumPy files with the forces of all atoms, frames x atoms x 3, one for each trajectory file, in order.

    A `.npz` holds them as `forces`, and may hold their `unit`; `unit` tells it for all others.
    """

    paths: tuple[Path, ...]
    unit: str | None = None

    def check(self, trajectories: int) -> None:
        """Raise BadParams for another number of files, another format or a unit that is none."""
        names = ", ".join(path.name for path in self.paths)
        if len(self.paths) != trajectories:
            raise BadParams(f"--forces {names}: give one file for each trajectory ({trajectories}), in their order")
        if wrong := [path.name for path in self.paths if path.suffix.lower() not in NUMPY]:
            raise BadParams(f"--forces {', '.join(wrong)}: neither 'stored', 'recompute', nor a .npy or .npz file")
        if self.unit is not None:
            _factor(self.unit, "--force-unit")

    def described(self) -> list[dict[str, Any]]:
        """What a provenance says of them."""
        return [{"name": path.name, "sha256": sha256(path), "unit": self.unit} for path in self.paths]


def with_forces(
    sources: Sequence[Source], path: Path, unit: str | None, protein: Protein, folder: Path
) -> tuple[Source, ...]:
    """The trajectories of one file with the chain's forces of a NumPy file, converted piece by piece into a new folder.

    Raises BadTrajectory, naming the file of forces, when it is unreadable, names no unit, or has other frames or atoms
    (those of the chain alone may be given); BadFile when the folder cannot be written.
    """
    values, unit = _opened(path, unit)
    frames, atoms = sum(len(source.frame) for source in sources), protein.file.n_atoms
    if values.ndim != 3 or values.shape[::2] != (frames, 3) or values.shape[1] not in (atoms, len(protein.atoms)):
        raise BadTrajectory(
            f"{path.name}: forces of shape {values.shape}, where {sources[0].path.name} has {frames} frames of {atoms} "
            "atoms; store frames x atoms x 3, a force for each position"
        )
    factor, chosen = _factor(unit, path.name), protein.atoms if values.shape[1] == atoms else np.arange(values.shape[1])
    try:
        folder.mkdir()
        return tuple(
            replace(source, forces=_converted(source, values, chosen, factor, folder / str(number)))
            for number, source in enumerate(sources)
        )
    except OSError as error:
        raise unwritable(folder, error) from None


def _opened(path: Path, unit: str | None) -> tuple[Shaped[np.ndarray, "..."], str]:
    """The array, mapped into memory where the format allows it, and its unit."""
    if not path.is_file():
        raise BadTrajectory(f"{path.name}: no such file ({path}); check its name")
    try:
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        if path.suffix.lower() == ".npz":
            with content:
                if "unit" in content:
                    unit = str(content["unit"])
                values: Shaped[np.ndarray, ...] = content["forces"]
        else:
            values = content
        if values.dtype.kind != "f":
            raise ValueError(f"numbers of type {values.dtype}")
    except Exception as error:  # NumPy's readers fail in their own ways
        raise BadTrajectory(
            f"{path.name}: no readable forces ({first_line(error)}); store an array of floats, in a .npz by the name "
            "'forces'"
        ) from error
    if unit is None:
        raise BadTrajectory(
            f"{path.name}: forces of no known unit; name it with --force-unit, or in a .npz as 'unit': one of "
            f"{', '.join(FORCE_UNITS)}"
        )
    return values, unit


def _factor(unit: str, where: str) -> float:
    plain = unit.replace("Å", "A").replace("angstrom", "A").replace(" ", "")
    if plain not in FORCE_UNITS:
        raise BadParams(f"{where}: {unit!r} is no known unit of force; one of {', '.join(FORCE_UNITS)}")
    return FORCE_UNITS[plain]


def _converted(
    source: Source, values: Shaped[np.ndarray, "..."], atoms: Shaped[np.ndarray, "..."], factor: float, place: Path
) -> Float32[np.ndarray, "frames atoms 3"]:
    """Forces [kJ/mol/nm] of a trajectory's frames, in a file that is mapped into memory."""
    if not len(source.frame):
        return np.zeros(source.positions.shape, dtype=np.float32)
    with place.open("wb") as stream:
        for piece in source.pieces():
            (values[piece.frame][:, atoms] * factor).astype(np.float32).tofile(stream)
    return np.memmap(place, np.float32, "r", shape=source.positions.shape).view(np.ndarray)


def stored_forces(source: Source) -> Float32[np.ndarray, "frames atoms 3"]:
    """The forces that came with the frames; raises BadTrajectory when there are none, or in another unit."""
    if source.forces is None:
        raise BadTrajectory(
            f"{source.path.name}: no forces stored (but the plain HDF5 layout and TRR no format holds any); give them "
            "as NumPy files (--forces FILE.npy), or compute them with forces='recompute' "
            "(cgal import --forces recompute)"
        )
    parts = [piece.forces for piece in source.pieces() if piece.forces is not None]
    squares = sum(float(np.square(part, dtype=np.float64).sum()) for part in parts)
    rms, (low, high) = math.sqrt(squares / max(source.forces.size, 1)), TYPICAL_FORCE_kJ_per_mol_nm
    if parts and not low < rms < high:
        raise BadTrajectory(
            f"{source.path.name}: stored forces have an rms of {rms:.3g}, where a protein has some 850 kJ/mol/nm; "
            "store instantaneous forces in kJ/mol/nm (NumPy files: --force-unit), or use --forces recompute"
        )
    return source.forces
