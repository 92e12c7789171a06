"""Reading and writing files so that nothing is ever half-written and every fault names its file."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cgal.errors import BadFile

__all__ = ["atomic_write", "decode", "read_hdf5", "read_json", "sha256", "write_hdf5", "write_json", "write_text"]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on failure it vanishes.

    Raises BadFile when the disk is full or the folder cannot be written; `path` is then as it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise BadFile(f"{path}: could not be written: {error.strerror or error}; nothing was changed") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write text atomically."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: sorted keys, two spaces, no NaN (write None for a missing number)."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; raises BadFile when the file is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise BadFile(f"{path}: no such file") from None
    except ValueError as error:
        raise BadFile(f"{path}: damaged JSON: {error}") from None


UNITS = {
    "coordinates": "nanometers",
    "positions": "nanometers",
    "forces": "kilojoules_per_mole_per_nanometer",
    "time": "picoseconds",
    "time_ps": "picoseconds",
}
"""Unit of each dataset name that has one, written beside it (mdtraj converts by it)."""


def write_hdf5(path: Path, arrays: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    """Write datasets and root attributes atomically; same content, same bytes (no timestamps, fixed order).

    The file is built in memory first, so that a full disk fails in one plain write.
    """
    buffer = BytesIO()
    with h5py.File(buffer, "w", libver=("v110", "v110"), track_order=False) as handle:
        for name in sorted(attributes):
            handle.attrs[name] = attributes[name]
        for name in sorted(arrays):
            content = arrays[name]
            compress = isinstance(content, np.ndarray) and content.size > 1024
            dataset = handle.create_dataset(
                name,
                data=content,
                track_times=False,
                compression="gzip" if compress else None,
                shuffle=compress or None,
            )
            if name in UNITS:
                dataset.attrs["units"] = UNITS[name]
    write_bytes(path, buffer.getvalue())


@contextmanager
def read_hdf5(path: Path, kind: str) -> Iterator[h5py.File]:
    """Open an HDF5 file that cgal wrote, of this `kind` (its `cgal_kind` attribute).

    Raises BadFile when it is missing, truncated, of another kind, or lacks a dataset that the body asks for.
    """
    if not path.is_file():
        raise BadFile(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as handle:
            found = handle.attrs.get("cgal_kind", "unknown")
            if found != kind:
                raise BadFile(f"{path}: holds {found!r}, not {kind!r}; give the right file")
            yield handle
    except (OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise BadFile(f"{path}: truncated or damaged HDF5 ({reason}); restore it with 'dvc checkout --force'") from None


def decode(text: Any) -> str:
    """Text from an HDF5 attribute or scalar dataset."""
    return text.decode() if isinstance(text, bytes) else str(text)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
