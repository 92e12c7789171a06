"""Locks that die with their process: one campaign per working copy, one process in a folder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from cgal.errors import BadFile, CampaignLocked
from cgal.files import read_json, write_json

__all__ = ["CampaignLock", "held"]


@contextmanager
def held(lock: Path, taken: str) -> Iterator[None]:
    """Hold a lock file, whose folder is made if need be; raises CampaignLocked, saying `taken`, if another has it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        acquired = FileLock(lock, timeout=0, thread_local=False).acquire()
    except Timeout:
        raise CampaignLocked(taken) from None
    with acquired:
        yield


class CampaignLock:
    """One campaign per working copy: a lock that dies with its process, and a note beside it of who holds it.

    Raises CampaignLocked on entry, with the holder's process, host, campaign and start, when another process has it.
    """

    def __init__(self, root: Path, campaign: str) -> None:
        self._campaign = campaign
        self._note = root / ".cgal" / "campaign.json"
        self._lock = FileLock(root / ".cgal" / "campaign.lock", timeout=0, thread_local=False)

    def __enter__(self) -> Self:
        self._note.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise CampaignLocked(self._holder()) from None
        started = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "campaign": self._campaign, "started": started}
        write_json(self._note, holder)
        return self

    def __exit__(self, *error: object) -> None:
        self._note.unlink(missing_ok=True)
        self._lock.release()

    def _holder(self) -> str:
        try:
            who = "campaign {campaign} (process {pid} on {host}, since {started}) runs".format(**read_json(self._note))
        except (BadFile, KeyError):
            who = "another campaign runs"
        return (
            f"{who} in this working copy; wait for it, or run another one in a second copy: git worktree add --detach "
            f"../second-copy && cd ../second-copy && dvc cache dir --local {self._note.parents[1]}/.dvc/cache && "
            "cgal run --new NAME"
        )
