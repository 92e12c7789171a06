"""Files of a published round, read where DVC keeps them: the workspace stays as it is."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from cgal.errors import VersioningError
from cgal.files import atomic_write
from flows.versioning.checking import require_sound
from flows.versioning.objects import Cache, wrong_files
from flows.versioning.repository import Repository
from flows.versioning.rounds import round_files

__all__ = ["MODEL", "bring_files", "bring_outputs", "find_model", "hashes_of"]

MODEL = "round/model.pt"


def find_model(root: Path, tag: str) -> Path:
    """Where DVC keeps the checkpoint of a published round (what `cgal.load` asks for).

    Raises VersioningError when there is no such round, its tag was moved, or no good copy of the file is found.
    """
    repository = Repository(root)
    cache = Cache(repository.root)
    return cache.path(_sound_files(repository, cache, tag, lambda output: output == MODEL)[MODEL])


def bring_files(repository: Repository, tag: str, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Copy files of a round's model and dataset into a folder, by the paths that they have in a project.

    `wanted` says which. Those that are there, with the right bytes, are left alone. Raises VersioningError as
    `find_model` does, and BadFile when a file cannot be written.
    """
    cache = Cache(repository.root)
    files = _sound_files(repository, cache, tag, lambda output: output == MODEL or output.split("/")[0] == "data")
    _place(cache, {path: digest for path, digest in files.items() if wanted(path)}, folder)


def bring_outputs(repository: Repository, tag: str) -> None:
    """Let `round/` hold what the stages of a round wrote; a file there with other bytes is replaced.

    Raises as `bring_files`.
    """
    _place(Cache(repository.root), hashes_of(repository, tag, "round"), repository.root)


def hashes_of(repository: Repository, tag: str, folder: str) -> dict[str, str]:
    """DVC hashes of the files that a round has in `data` or `round`, by path in the project.

    Raises VersioningError as `find_model`.
    """
    return _sound_files(repository, Cache(repository.root), tag, lambda output: output.split("/")[0] == folder)


def _place(cache: Cache, files: Mapping[str, str], folder: Path) -> None:
    for path in wrong_files(folder, files):
        with atomic_write(folder / path) as temporary:
            shutil.copyfile(cache.path(files[path]), temporary)


def _sound_files(repository: Repository, cache: Cache, tag: str, wanted: Callable[[str], bool]) -> dict[str, str]:
    """DVC hashes of some outputs of a round, and of the files in them if they are folders, by path in the project.

    Each is held against its hash; one that is missing or damaged is fetched as `cgal checkout` would.
    """
    repository.round(tag)
    outputs = round_files(repository.git, [tag])[tag].outputs
    found = {path: digest for path, digest in outputs.items() if wanted(path)}
    if not found:
        raise VersioningError(f"{tag}: its dvc.lock names no such file; 'git show {tag}:dvc.lock' lists what it has")
    files = require_sound(cache, tag, found)
    return {path: digest for path, digest in files.items() if not digest.endswith(".dir")}
