"""Frozen dataclasses as HDF5 files: one writer and one reader for all, and nothing in a file is believed unchecked.

Arrays are datasets, numbers and text root attributes, anything else JSON in an attribute; a dataclass within another is
laid out flat. The same content gives the same bytes. A file that came from elsewhere can name other files of this
machine (external storage, links, virtual datasets) or claim more memory than there is; such files are refused.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from io import BytesIO
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

import h5py
import numpy as np
from jaxtyping import AbstractArray, jaxtyped
from pydantic import TypeAdapter

from cgal.errors import BadFile
from cgal.files import write_bytes

__all__ = ["Hdf5Record", "check_foreign_hdf5", "read_hdf5", "stored", "write_hdf5"]

FORMAT = 2
"""Of the files that are written; those before 2 said none."""

HDF5 = {".h5", ".hdf5"}
"""How names of such files end."""

LARGEST_DEFLATION = 1032
"""How many times larger than its storage a dataset can be at most that was compressed."""

UNITS = {
    "positions": "nanometers",
    "coordinates": "nanometers",
    "_nm": "nanometers",
    "velocities": "nanometers_per_picosecond",
    "forces": "kilojoules_per_mole_per_nanometer",
    "time": "picoseconds",
    "_ps": "picoseconds",
}
"""Unit of the datasets whose names end so, written beside each (mdtraj converts by it)."""


def stored(*, name: str = "", prefix: str = "", text: bool = False) -> dict[str, Any]:
    """Metadata of a field: another name in the file, a prefix for the datasets of a dataclass within, or long text (a
    dataset instead of an attribute).
    """  # noqa: D205
    return {"hdf5": {"name": name, "prefix": prefix, "text": text}}


Record = TypeVar("Record", bound="Hdf5Record")


@dataclass(frozen=True, eq=False)
class Hdf5Record:
    """Base of a frozen dataclass that is one file; `KIND` says what the file holds."""

    KIND: ClassVar[str]

    def save(self, path: Path) -> None:
        """Write HDF5 atomically; same content, same bytes."""
        content = _flatten(self) | self._extra()
        write_hdf5(path, content, {"cgal_kind": self.KIND})

    @classmethod
    def load(cls: type[Record], path: Path) -> Record:
        """Read what `save` wrote; raises BadFile, naming the dataset, when the file is not such a one."""
        content = read_hdf5(path, cls.KIND)
        if content.pop("cgal_format", 1) < FORMAT:
            content = cls._upgrade(content)
        with jaxtyped("context"):  # in which a dimension of one name has one size
            for name, kind in _arrays(cls, ""):
                value = content.get(name)
                if value is not None and not isinstance(value, kind):
                    shape = f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)
                    raise BadFile(f"{path}: {name} is {shape}, not {kind.__name__} as it should be")
        record: Record = _build(cls, content, "", path)
        return record

    def _extra(self) -> dict[str, Any]:
        """What other programs want to find in the file besides."""
        return {}

    @classmethod
    def _upgrade(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Content of a file of an earlier format, as it would be today."""
        return content


def write_hdf5(path: Path, content: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    """Write arrays and long text (bytes) as datasets, all else as root attributes, atomically and in fixed order.

    The file is built in memory first, so that a full disk fails in one plain write.
    """
    datasets = {name: value for name, value in content.items() if isinstance(value, np.ndarray | bytes)}
    attributes = {name: value for name, value in content.items() if name not in datasets} | dict(attributes)
    buffer = BytesIO()
    with h5py.File(buffer, "w", libver=("v110", "v110"), track_order=False) as handle:
        for name, value in sorted((attributes | {"cgal_format": FORMAT}).items()):
            handle.attrs[name] = value
        for name, value in sorted(datasets.items()):
            compress = isinstance(value, np.ndarray) and value.size > 1024
            dataset = handle.create_dataset(
                name,
                data=value.decode() if isinstance(value, bytes) else value,
                track_times=False,
                compression="gzip" if compress else None,
                shuffle=compress or None,
            )
            unit = next((unit for ending, unit in UNITS.items() if name.endswith(ending)), None)
            if unit:
                dataset.attrs["units"] = unit
    write_bytes(path, buffer.getvalue())


def read_hdf5(path: Path, kind: str) -> dict[str, Any]:
    """All datasets and root attributes of a file that cgal wrote, of this `kind`.

    Raises BadFile when it is missing, truncated or of another kind, when a dataset lies elsewhere than in the file, or
    is said to be larger than the file can hold.
    """
    if not path.is_file():
        raise BadFile(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as handle:
            attributes = {name: _plain(value) for name, value in handle.attrs.items()}
            found = attributes.pop("cgal_kind", "unknown")
            if found != kind:
                raise BadFile(f"{path}: holds {found!r}, not {kind!r}; give the right file")
            return attributes | {name: _plain(_dataset(handle, name, path)[()]) for name in handle}
    except (OSError, KeyError, RuntimeError, ValueError) as error:  # the last: text that is no UTF-8
        reason = " ".join(str(error).split())
        raise BadFile(f"{path}: truncated or damaged HDF5 ({reason}); restore it with 'dvc checkout --force'") from None


def check_foreign_hdf5(path: Path) -> None:
    """Look through a file of another program, if it is HDF5, before it is read: raises BadFile as `read_hdf5` does."""
    if path.suffix.lower() not in HDF5:
        return
    with h5py.File(path, "r") as handle:
        for name in handle:
            _dataset(handle, name, path)


def _dataset(handle: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """A dataset that lies in the file itself and can be as large as it says."""
    link = handle.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise BadFile(f"{path}: {name} is a link to {getattr(link, 'filename', 'another place')}, which is not read")
    dataset = handle[name]
    if not isinstance(dataset, h5py.Dataset):
        raise BadFile(f"{path}: {name} is a group, not a dataset")
    if dataset.external or dataset.is_virtual:
        raise BadFile(f"{path}: the data of {name} lie in another file of this machine, which is not read")
    held = dataset.id.get_storage_size()
    filtered = dataset.id.get_create_plist().get_nfilters()
    if dataset.nbytes > held * (LARGEST_DEFLATION if filtered else 1):
        raise BadFile(f"{path}: {name} is said to be {dataset.nbytes} bytes large, of which the file holds {held}")
    return dataset


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value


def _flatten(record: Any, prefix: str = "") -> dict[str, Any]:
    """Content of a file, by name; a dataclass within another has a prefix or none."""
    content: dict[str, Any] = {}
    for field in fields(record):
        how, value = _how(field), getattr(record, field.name)
        name = how["name"] or prefix + field.name
        if value is None:
            continue
        if isinstance(value, np.ndarray):
            content[name] = value
        elif isinstance(value, int | float | str):
            content[name] = value.encode() if how["text"] and isinstance(value, str) else value
        elif is_dataclass(value):
            content |= _flatten(value, how["prefix"])
        else:
            text = json.dumps(_adapter(type(record), field.name).dump_python(value, mode="json"), sort_keys=True)
            content[name] = text.encode() if how["text"] else text
    return content


def _arrays(cls: type, prefix: str) -> Iterator[tuple[str, Any]]:
    """Name and type of each dataset of a dataclass."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        how, kind = _how(field), _without_none(hints[field.name])[1]
        if isinstance(kind, type) and is_dataclass(kind):
            yield from _arrays(kind, how["prefix"])
        elif isinstance(kind, type) and issubclass(kind, AbstractArray):
            yield how["name"] or prefix + field.name, kind


def _build(cls: type, content: Mapping[str, Any], prefix: str, path: Path) -> Any:
    """Dataclass from the content of a file; what has a default may be missing."""
    hints, values = get_type_hints(cls), {}
    for field in fields(cls):
        how, hint = _how(field), hints[field.name]
        name = how["name"] or prefix + field.name
        optional, kind = _without_none(hint)
        if isinstance(kind, type) and is_dataclass(kind):
            needed = _first_array(kind, how["prefix"])
            values[field.name] = (
                None if optional and needed not in content else _build(kind, content, how["prefix"], path)
            )
        elif name in content:
            values[field.name] = _checked(kind, content[name], name, path, cls, field.name)
        elif optional:
            values[field.name] = None
        elif field.default is MISSING and field.default_factory is MISSING:
            raise BadFile(f"{path}: has no {name}; restore it with 'dvc checkout --force'")
    return cls(**values)


def _checked(kind: Any, value: Any, name: str, path: Path, owner: type, field: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, AbstractArray):
        return value
    try:
        if kind in (int, float, str):
            return kind(value)
        return _adapter(owner, field).validate_json(value)
    except (TypeError, ValueError) as error:
        raise BadFile(f"{path}: {name} is damaged ({str(error).splitlines()[0]})") from None


def _adapter(owner: type, field: str) -> Any:
    return TypeAdapter(get_type_hints(owner)[field])


def _how(field: Any) -> dict[str, Any]:
    found: dict[str, Any] = field.metadata.get("hdf5") or stored()["hdf5"]
    return found


def _without_none(hint: Any) -> tuple[bool, Any]:
    """Whether a hint allows None, and the rest of it."""
    if get_origin(hint) in (Union, UnionType) and type(None) in get_args(hint):
        return True, next(part for part in get_args(hint) if part is not type(None))
    return False, hint


def _first_array(kind: Any, prefix: str) -> str:
    """Name of the dataset whose absence says that there is none of such a dataclass in the file."""
    field = fields(kind)[0]
    return _how(field)["name"] or prefix + field.name
