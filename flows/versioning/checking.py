"""Bytes of a round held against their DVC hash, and put right from a good copy where there is one."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from cgal.errors import VersioningError
from flows.versioning.dvc_repo import BUNDLED_REMOTE, own_remotes
from flows.versioning.dvc_session import with_dvc
from flows.versioning.objects import Cache
from flows.versioning.remotes import RemoteUnreachable, open_remote
from flows.versioning.round_files import RoundFiles, data_pointers

__all__ = ["keep_recorded", "keep_sound", "recorded_outputs", "require_sound"]


def keep_sound(cache: Cache, digests: Iterable[str]) -> set[str]:
    """Hash files of the cache, and replace those that are damaged or missing by those of the workspace.

    Gives what has no good copy there. Damaged files are set aside in `.cgal/damaged`: DVC would take them for good.
    """
    bad = {digest for digest in digests if not cache.is_sound(digest)}
    if bad:
        cache.set_aside(digest for digest in bad if cache.has(digest))
        named = recorded_outputs(cache.root)
        cache.keep({path: digest for path, digest in named.items() if digest in bad})  # lists of files among them
        cache.keep({path: digest for path, digest in cache.files(named).items() if digest in bad})
    return {digest for digest in bad if not cache.is_sound(digest)}


def keep_recorded(cache: Cache) -> None:
    """Let the cache have all that the workspace records, lists of files first, as far as the workspace has it."""
    named = recorded_outputs(cache.root)
    keep_sound(cache, (digest for digest in named.values() if digest.endswith(".dir")))
    keep_sound(cache, cache.files(named).values())


def require_sound(cache: Cache, tag: str, named: Mapping[str, str]) -> dict[str, str]:
    """Hash all files of a round in the cache; replace damaged and missing ones from the workspace, then from remotes.

    Takes the DVC hashes of the round's outputs, and gives those of all files. Raises VersioningError, which names the
    file, the round and where a good copy can come from, when there is none.
    """
    _complete(cache, tag, {path: digest for path, digest in named.items() if digest.endswith(".dir")})
    files = cache.files(named)
    _complete(cache, tag, files)
    return files


def _complete(cache: Cache, tag: str, files: Mapping[str, str]) -> None:
    absent = keep_sound(cache, files.values())
    asked = []
    for name in _remotes(cache.root) if absent else []:
        asked.append(_bring(cache, name, absent))
        absent = {digest for digest in absent if not cache.is_sound(digest)}
    if absent:
        paths = ", ".join(path for path, digest in files.items() if digest in absent)
        raise VersioningError(
            f"{paths} of {tag}: missing from DVC's cache or damaged there, and no good copy was found: not in the "
            f"workspace, {', '.join(asked)}. Another clone or a back-up may have one: 'cgal push' there, to a DVC "
            "remote that this clone knows ('dvc remote add --local --default lab URL'), and try again"
        )


def _remotes(root: Path) -> list[str]:
    known = with_dvc(root, lambda repo: set(repo.config["remote"]))
    return [*own_remotes(root), *({BUNDLED_REMOTE} & known)]


def _bring(cache: Cache, name: str, digests: Collection[str]) -> str:
    """Fetch files from a remote into the cache, and say what is wrong with those that did not come."""
    try:
        remote = open_remote(cache.root, name)
        remote.bring(cache, digests)
        held = set(digests) - remote.lacks(digests)
    except (RemoteUnreachable, VersioningError, OSError) as error:
        return f"not fetched ({error})"
    if damaged := [remote.path(digest) for digest in held if not cache.is_sound(digest)]:
        return f"damaged in DVC remote {name} (delete {', '.join(damaged)}: what is there is never sent again)"
    return f"not in DVC remote {name}"


def recorded_outputs(root: Path) -> dict[str, str]:
    """DVC hashes of the dataset and of the stages' outputs, by path, as the workspace's own files name them."""
    pointers, lock = data_pointers(root), root / "dvc.lock"
    if not all((root / path).is_file() for path in (*pointers, "dvc.lock")):
        return {}
    data = {pointer: (root / pointer).read_bytes() for pointer in pointers}
    return RoundFiles(data, lock.read_bytes(), (root / "params.yaml").read_bytes()).outputs
