"""DVC remotes: asked for what they hold, file by file, and given up when they are silent.

DVC's lock is not held meanwhile: files of a cache only come, under names that say their bytes.
"""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from flows.versioning.dvc_session import dvc_tools, reason, with_dvc
from flows.versioning.objects import Cache

__all__ = ["ANSWER_S", "Remote", "RemoteUnreachable", "open_remote"]

ANSWER_S = 20.0
"""A remote that has said nothing for so long is given up; a transfer may take longer, if it answers meanwhile."""


class RemoteUnreachable(Exception):
    """A DVC remote did not answer, or broke off; another attempt may succeed."""


@dataclass(frozen=True)
class Remote:
    """A DVC remote; every method raises RemoteUnreachable, with the reason, when it does not answer."""

    name: str
    store: Any

    def lacks(self, digests: Iterable[str]) -> set[str]:
        """Those of these files that it does not have; each is asked for, members of a folder too."""
        answer = self._ask(lambda: dvc_tools().status(self.store, _infos(digests)))
        return {info.value for info in answer.missing}

    def path(self, digest: str) -> str:
        """Where it keeps, or would keep, the file of this hash."""
        return str(self.store.fs.unstrip_protocol(self.store.oid_to_path(digest)))

    def send(self, cache: Cache, digests: Iterable[str]) -> int:
        """Send those of these files that it lacks and the cache has, a folder's list last; give their number."""
        return self._transfer(cache.odb, self.store, digests, cache)

    def bring(self, cache: Cache, digests: Iterable[str], *, verify: bool = True) -> int:
        """Fetch those of these files that the cache lacks and the remote has, checked or not; give their number."""
        sound = set(digests)
        if lists := {digest for digest in sound if digest.endswith(".dir")}:
            sound -= self._ask(lambda: {digest for digest in lists if self._is_damaged(digest)})
        return self._transfer(self.store, cache.odb, sound, cache, verify=verify)

    def _is_damaged(self, digest: str) -> bool:
        """Whether the remote has other bytes under the hash of a folder's list, which DVC loads unchecked."""
        try:
            content = self.store.fs.cat_file(self.store.oid_to_path(digest))
        except FileNotFoundError:
            return False
        return hashlib.md5(content, usedforsecurity=False).hexdigest() != digest.removesuffix(".dir")

    def _transfer(self, source: Any, target: Any, digests: Iterable[str], cache: Cache, **options: bool) -> int:
        infos = _infos(digests)
        moved, failed = self._ask(lambda: dvc_tools().transfer(source, target, infos, cache_odb=cache.odb, **options))
        if failed:
            raise RemoteUnreachable(f"DVC remote {self.name} broke off: {len(failed)} of {len(infos)} files left")
        return len(moved)

    def _ask[T](self, question: Callable[[], T]) -> T:
        try:
            self._require_answer()
            answer = _in_background(question)
            while not wait([answer], ANSWER_S).done:
                self._require_answer()
            return answer.result()
        except RemoteUnreachable:
            raise
        except Exception as error:  # a remote's client may raise anything
            raise RemoteUnreachable(f"DVC remote {self.name} does not answer: {reason(error)}") from error

    def _require_answer(self) -> None:
        answer = _in_background(lambda: self.store.fs.exists(self.store.path))
        if not wait([answer], ANSWER_S).done:
            raise RemoteUnreachable(f"DVC remote {self.name} does not answer: nothing came within {ANSWER_S:.0f} s")
        with suppress(PermissionError):  # it may allow less than this, and has answered
            answer.result()


def open_remote(root: Path, name: str) -> Remote:
    """DVC remote of this name; raises VersioningError when its configuration is wrong."""
    return Remote(name, with_dvc(root, lambda repo: repo.cloud.get_remote_odb(name, "push")))


def _infos(digests: Iterable[str]) -> set[Any]:
    return {dvc_tools().hash("md5", digest) for digest in digests}


def _in_background[T](action: Callable[[], T]) -> Future[T]:
    """Start something in a thread that does not keep the process alive, as those of an executor do."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future
