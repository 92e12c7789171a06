"""Reading and writing files so that nothing is ever half-written and every fault names its file."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cgal.errors import BadFile

__all__ = ["atomic_write", "read_json", "sha256", "write_bytes", "write_json", "write_text"]


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


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
