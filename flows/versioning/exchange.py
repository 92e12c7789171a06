"""Files by their DVC hash, between clones through the DVC remote that they share."""

import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from cgal.errors import VersioningError
from cgal.files import atomic_write
from flows.versioning.dvc_repo import own_remotes
from flows.versioning.dvc_session import with_dvc
from flows.versioning.objects import Cache, md5
from flows.versioning.remotes import RemoteUnreachable, open_remote

__all__ = ["Exchange", "RemoteUnreachable"]


class Exchange:
    """What a clone, seen from its root folder, sends to others and gets from them."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    @cached_property
    def remote(self) -> str:
        """Name of the DVC remote through which clones exchange files; raises VersioningError when it is not clear."""
        remotes = own_remotes(self.root)
        if len(remotes) != 1:
            there = f"several DVC remotes ({', '.join(remotes)})" if remotes else "no DVC remote"
            raise VersioningError(
                f"execution.transport is dvc, and {self.root} has {there}; name one that campaign and workers reach: "
                "'dvc remote add --default NAME URL', the same in each clone"
            )
        return remotes[0]

    def keep(self, paths: Sequence[Path]) -> list[str]:
        """Copy files into the DVC cache, those that it lacks; give their DVC hashes."""
        hashes = [md5(path) for path in paths]
        with_dvc(self.root, lambda repo: repo.cache.local.add([str(path) for path in paths], repo.fs, hashes))
        return hashes

    def push(self, hashes: Sequence[str]) -> int:
        """Push files from the cache to the remote, those that it lacks; give their number.

        Raises RemoteUnreachable when that does not work.
        """
        return open_remote(self.root, self.remote).send(Cache(self.root), hashes)

    def fetch(self, hashes: Sequence[str]) -> None:
        """Fetch files into the cache, those that it lacks; raises RemoteUnreachable, or VersioningError without them.

        Their content is held against their hash when they are copied out of the cache, see `place`.
        """
        cache = Cache(self.root)
        open_remote(self.root, self.remote).bring(cache, hashes, verify=False)  # `place` does
        if missing := [digest for digest in hashes if not cache.has(digest)]:
            raise VersioningError(
                f"DVC remote {self.remote} has no {', '.join(missing)}; let 'dvc remote list' say the same place in "
                "each clone, and prune a remote only while no campaign is at work"
            )

    def place(self, digest: str, path: Path) -> None:
        """Copy a file out of the cache, atomically; raises VersioningError when its content has another hash.

        The cache then forgets it, so that the next attempt fetches it anew.
        """
        held = Cache(self.root).path(digest)
        with atomic_write(path) as temporary:
            shutil.copyfile(held, temporary)
            if (found := md5(temporary)) != digest:
                held.unlink()
                raise VersioningError(
                    f"{path} is not placed: what came as {digest} has the hash {found}; try again, and if that says "
                    f"the same delete {open_remote(self.root, self.remote).path(digest)}: the next run sends it anew"
                )
