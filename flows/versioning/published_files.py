"""Files of a published round, read where DVC keeps them: the workspace stays as it is."""

from collections.abc import Collection
from pathlib import Path

from cgal.errors import VersioningError
from flows.versioning.checking import require_sound
from flows.versioning.objects import Cache
from flows.versioning.repository import Repository
from flows.versioning.rounds import round_files

__all__ = ["cached_files", "find_model"]

MODEL = "round/model.pt"


def find_model(root: Path, tag: str) -> Path:
    """Where DVC keeps the checkpoint of a published round (what `cgal.load` asks for).

    Raises VersioningError when there is no such round, its tag was moved, or no good copy of the file is found.
    """
    return cached_files(Repository(root), tag, (MODEL,))[MODEL]


def cached_files(repository: Repository, tag: str, wanted: Collection[str]) -> dict[str, Path]:
    """Where DVC keeps some outputs of a round, and the files in them if they are folders, by path in the project.

    Each is held against its hash; one that is missing or damaged is fetched as `cgal checkout` would. Raises
    VersioningError as `find_model` does.
    """
    tag = repository.round(tag).tag
    outputs = round_files(repository.git, [tag])[tag].outputs
    if absent := [path for path in wanted if path not in outputs]:
        raise VersioningError(f"{tag} has no {', '.join(absent)}; 'git show {tag}:dvc.lock' lists what it has")
    cache = Cache(repository.root)
    files = require_sound(cache, tag, {path: outputs[path] for path in wanted})
    return {path: cache.path(digest) for path, digest in files.items() if not digest.endswith(".dir")}
