"""Files of a published round, read where DVC keeps them: the workspace stays as it is."""

from collections.abc import Mapping
from pathlib import Path

from cgal.errors import VersioningError
from flows.versioning.checking import require_sound
from flows.versioning.objects import Cache
from flows.versioning.repository import Repository
from flows.versioning.round_files import outputs
from flows.versioning.rounds import campaign_and_index

__all__ = ["cached_files", "find_model"]

MODEL = "round/model.pt"


def find_model(root: Path, tag: str) -> Path:
    """Where DVC keeps the checkpoint of a published round (what `cgal.load` asks for).

    Raises VersioningError when there is no such round, its tag was moved, or no good copy of the file is found.
    """
    return cached_files(Repository(root), tag, (MODEL,))[MODEL]


def cached_files(repository: Repository, tag: str, wanted: tuple[str, ...]) -> Mapping[str, Path]:
    """Where DVC keeps some outputs of a round, and the files in them if they are folders, by path in the project.

    Each is held against its hash; one that is missing or damaged is fetched as `cgal checkout` would. Raises
    VersioningError as `find_model` does.
    """
    tag = repository.published_round(*campaign_and_index(tag)).tag
    data_dvc, dvc_lock = (repository.read_round_file(tag, name) for name in ("data.dvc", "dvc.lock"))
    named = {path: digest for path, digest in outputs(data_dvc, dvc_lock).items() if path in wanted}
    if absent := [path for path in wanted if path not in named]:
        raise VersioningError(f"{tag} has no {', '.join(absent)}; 'git show {tag}:dvc.lock' lists what it has")
    cache = Cache(repository.root)
    files = require_sound(cache, tag, named)
    return {path: cache.path(digest) for path, digest in files.items() if not digest.endswith(".dir")}
