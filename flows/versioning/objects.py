"""The files of a round by their DVC hash: which they are, and whether their bytes are those that the hash says.

DVC takes a file of its cache that is read-only for undamaged, and a folder whose list of files is there for complete.
Here everything is looked at.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any

from cgal.errors import VersioningError
from flows.versioning.dvc_session import dvc_tools, with_dvc

__all__ = ["Cache", "md5", "wrong_files"]

DIGEST = re.compile(r"[0-9a-f]{32}(\.dir)?")


def md5(path: Path) -> str:
    """Hash by which DVC calls a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def wrong_files(root: Path, files: Mapping[str, str]) -> list[str]:
    """Files of a working copy, out of these with their DVC hashes, that are missing or have other bytes."""
    named = {path: digest for path, digest in files.items() if not digest.endswith(".dir")}
    return [path for path, digest in named.items() if not (root / path).is_file() or md5(root / path) != digest]


class Cache:
    """DVC's cache of a working copy."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.odb: Any = with_dvc(root, lambda repo: copy(repo.cache.local))
        self.odb.state = dvc_tools().no_memory()  # of hashes that files had once

    def path(self, digest: str) -> Path:
        """Where the file of this hash lies, or would lie; raises VersioningError when it is no hash of DVC's."""
        if not DIGEST.fullmatch(digest):
            raise VersioningError(f"{digest!r} is no hash of DVC's")
        return Path(self.odb.oid_to_path(digest))

    def has(self, digest: str) -> bool:
        """Whether there is a file of this hash, whatever its bytes are."""
        return self.path(digest).is_file()

    def is_sound(self, digest: str) -> bool:
        """Whether there is a file of this hash, with the right bytes."""
        return self.has(digest) and md5(self.path(digest)) == digest.removesuffix(".dir")

    def files(self, outputs: Mapping[str, str]) -> dict[str, str]:
        """DVC hashes of outputs and, for a folder, of the files in it, by path; not of one whose list is not here.

        Raises VersioningError when a list of files names one outside of its folder.
        """
        found = dict(outputs)
        for folder, digest in outputs.items():
            if digest.endswith(".dir") and self.is_sound(digest):
                found |= self._listed(folder, digest)
        for path in found:
            if path.startswith("/") or ".." in path.split("/"):
                raise VersioningError(
                    f"{path}: names files outside of {self.root}; whoever wrote that is not to be trusted"
                )
        return found

    def _listed(self, folder: str, digest: str) -> Iterator[tuple[str, str]]:
        tree = dvc_tools().tree.load(self.odb, dvc_tools().hash("md5", digest))
        return (("/".join((folder, *key)), info.value) for key, _, info in tree)

    def set_aside(self, digests: Iterable[str]) -> None:
        """Move damaged files to `.cgal/damaged`, so that DVC knows that it lacks them."""
        aside = self.root / ".cgal" / "damaged"
        aside.mkdir(parents=True, exist_ok=True)
        for digest in digests:
            shutil.move(self.path(digest), aside / digest)

    def keep(self, files: Mapping[str, str]) -> None:
        """Copy those of these files and folders of the working copy into the cache whose bytes fit their DVC hash."""
        wrong = set(wrong_files(self.root, files))
        good = {path: digest for path, digest in files.items() if not digest.endswith(".dir") and path not in wrong}
        if good:
            paths = [os.fspath(self.root / path) for path in good]
            self.odb.add(paths, self.odb.fs, [*good.values()])
        for path, digest in files.items():
            if digest.endswith(".dir") and (self.root / path).is_dir():
                self._keep_list(path, digest)

    def _keep_list(self, folder: str, digest: str) -> None:
        """Make the list of a folder's files anew, and keep it if it is still the one of this hash."""
        tools = dvc_tools()
        staged, _, listed = tools.build(self.odb, os.fspath(self.root / folder), self.odb.fs, "md5")
        if listed.hash_info.value == digest:
            tools.transfer(staged, self.odb, {listed.hash_info}, shallow=False)
