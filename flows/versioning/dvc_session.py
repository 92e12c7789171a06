"""DVC's Python API: imported late, used under DVC's lock, its errors as VersioningError."""

import logging
import os
import sqlite3
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from cgal.errors import VersioningError
from flows.versioning.git import Git
from flows.versioning.pipeline import fit_pipeline

__all__ = ["RepositoryBusy", "dvc_tools", "reason", "with_dvc"]

LOCK_WAIT_S = 120.0
"""DVC waits 3 s for its lock; someone's `dvc status` or `dvc push` may take longer."""

WRITTEN_BY_DVC = ("data.dvc", "dvc.lock", "data/*.dvc")


class RepositoryBusy(VersioningError):
    """Another process has kept DVC's lock for long; another attempt may succeed."""


def with_dvc[T](root: Path, action: Callable[[Any], T]) -> T:
    """Do something with a new `dvc.repo.Repo` under DVC's lock: an old one remembers files as they were.

    Raises VersioningError with DVC's reason, RepositoryBusy when another process keeps DVC's lock for LOCK_WAIT_S.
    """
    dvc = dvc_tools()
    deadline = monotonic() + LOCK_WAIT_S
    while True:
        try:
            with dvc.repo(str(root)) as repo:
                repo.lock._friendly = False  # no "Waiting to acquire lock" across a progress bar
                with dvc.lock(repo):
                    _set_aside_cut_files(root)
                    fit_pipeline(root)
                    return action(repo)
        except dvc.locked as error:
            if monotonic() > deadline:
                raise RepositoryBusy(
                    f"{root}: another DVC process has held DVC's lock for {LOCK_WAIT_S:.0f} s; wait for it"
                ) from error
        except dvc.damaged as error:
            if not _set_aside(root, Path(error.path)):
                raise VersioningError(f"DVC: {reason(error)}") from error
        except dvc.errors as error:
            raise VersioningError(f"DVC: {reason(error)}") from error


def _set_aside_cut_files(root: Path) -> None:
    """Find what a kill or a full disk left of a file while DVC wrote it, in place: its last line has no end."""
    for path in _written_by_dvc(root):
        if not path.read_bytes().endswith(b"\n"):
            _set_aside(root, path)


def _set_aside(root: Path, path: Path) -> bool:
    """Move a damaged file that DVC can make again out of the way; stages that it recorded count as never run.

    `data.dvc` is as HEAD has it then: it says itself which folder it is for.
    """
    if path not in _written_by_dvc(root):
        return False
    aside = root / ".cgal" / f"{path.name}.damaged"
    aside.parent.mkdir(exist_ok=True)
    os.replace(path, aside)
    if path == root / "data.dvc":
        path.write_bytes(Git(root).contents(["HEAD:data.dvc"])[0] or b"outs:\n- path: data\n")
    return True


def _written_by_dvc(root: Path) -> list[Path]:
    return [path for pattern in WRITTEN_BY_DVC for path in root.glob(pattern) if path.is_file()]


def reason(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


class _DvcTools(NamedTuple):
    """What is used of DVC's Python API."""

    repo: Any
    lock: Any
    locked: type[Exception]
    damaged: tuple[type[Any], ...]
    errors: tuple[type[Exception], ...]
    hash: Any
    no_memory: Any
    tree: Any
    status: Any
    transfer: Any
    build: Any


@cache
def dvc_tools() -> _DvcTools:
    """Import DVC when it is first needed (that takes seconds) and keep it quiet."""
    os.environ.setdefault("DVC_NO_ANALYTICS", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo, lock_repo
    from dvc.utils.strictyaml import YAMLSyntaxError, YAMLValidationError
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.state import StateNoop
    from dvc_data.hashfile.status import status
    from dvc_data.hashfile.transfer import transfer
    from dvc_data.hashfile.tree import Tree

    for name in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return _DvcTools(
        Repo,
        lock_repo,
        LockError,
        (YAMLSyntaxError, YAMLValidationError),
        (DvcException, OSError, sqlite3.Error),
        HashInfo,
        StateNoop,
        Tree,
        status,
        transfer,
        build,
    )
