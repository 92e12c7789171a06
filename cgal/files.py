"""Reading and writing files so that nothing is ever half-written and every fault names its file."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from cgal.errors import BadFile

__all__ = [
    "atomic_write",
    "made_aside",
    "read_json",
    "read_yaml",
    "settle_folder",
    "sha256",
    "write_bytes",
    "write_json",
    "write_text",
]


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


@contextmanager
def made_aside(folder: Path) -> Iterator[Path]:
    """Yield a copy of a folder beside it, `.<name>.new`, which takes its place on success and vanishes on failure.

    Files of the copy are hard links where the file system has them: replace them, as all functions here do, and never
    write into one. A process that is killed leaves the old folder whole, or the new one; after a kill between the two
    renames the old one is called `.<name>.old`, until `settle_folder` puts it back. Raises BadFile when the disk is
    full or the folder cannot be written. A link to a folder stays one. One process at a time.
    """
    folder = folder.resolve()
    settle_folder(folder)
    new, old = _beside(folder)
    try:
        if folder.is_dir():
            shutil.copytree(folder, new, copy_function=_link)
        new.mkdir(parents=True, exist_ok=True)
        yield new
        if folder.is_dir():
            folder.rename(old)
        new.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise BadFile(f"{folder}: could not be written: {error.strerror or error}; nothing was changed") from error
    finally:
        settle_folder(folder)


def settle_folder(folder: Path) -> None:
    """Put right what a killed `made_aside` left: the old folder back if it has no successor yet, the rest away."""
    folder = folder.resolve()
    new, old = _beside(folder)
    if old.is_dir() and not folder.exists():
        old.rename(folder)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)


def _beside(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _sync(folder: Path) -> None:
    """Let the names in a folder reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


class _OnceEach(yaml.SafeLoader):
    """YAML whose mappings have each key once, as it should be; of a key that is there twice PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found: list[Any] = []
        for key, _ in node.value:
            if key.value in found:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
            found.append(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Read YAML; raises BadFile when it is damaged, or a key is there twice."""
    try:
        return yaml.load(path.read_text(), _OnceEach)  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # the latter: text that is no UTF-8
        raise BadFile(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
