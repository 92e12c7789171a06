"""Rounds between clones: which of them each DVC remote has, and sending what it lacks."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cgal.errors import VersioningError
from flows.versioning.checking import keep_sound
from flows.versioning.dvc_repo import own_remotes
from flows.versioning.git import Git
from flows.versioning.objects import Cache
from flows.versioning.remotes import Remote, RemoteUnreachable, open_remote
from flows.versioning.rounds import round_files

__all__ = ["Delivery", "compare_remotes", "git_remote", "push_tags", "send_rounds"]


@dataclass(frozen=True)
class Delivery:
    """What a DVC remote has of the rounds: files it was `sent`, tags of those it has not in full, and why.

    `lost` names files that this clone has no good copy of either; `error` says why the remote could not be asked.
    """

    remote: str
    sent: int = 0
    lacking: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    error: str = ""

    @property
    def warning(self) -> str:
        """What a person should know and do; "" when the remote has all rounds."""
        if self.error:
            return f"{self.error}; the rounds are safe here, and go there after the next one or by 'cgal push'"
        if self.lost:
            return (
                f"DVC remote {self.remote} lacks {', '.join(self.lost)}, and this clone has no good copy: "
                "'cgal push' in a clone that has one sends it"
            )
        if self.lacking:
            return f"DVC remote {self.remote} lacks {', '.join(self.lacking)}; 'cgal push' sends what is missing"
        return ""


def compare_remotes(root: Path, git: Git, tags: Sequence[str]) -> list[Delivery]:
    """Ask each DVC remote of one's own which of these rounds it lacks; members of folders are asked for one by one."""
    return [_deliver(root, git, tags, name, send=False) for name in own_remotes(root)]


def send_rounds(root: Path, git: Git, tags: Sequence[str]) -> list[Delivery]:
    """Send each DVC remote of one's own what it lacks of these rounds; a damaged file is not sent."""
    return [_deliver(root, git, tags, name, send=True) for name in own_remotes(root)]


def _deliver(root: Path, git: Git, tags: Sequence[str], name: str, *, send: bool) -> Delivery:
    try:
        cache, remote = Cache(root), open_remote(root, name)
        rounds = _files(cache, git, tags, remote)
        lacking = before = remote.lacks({digest for files in rounds.values() for digest in files.values()})
        if send and lacking:
            keep_sound(cache, lacking)
            remote.send(cache, lacking)
            lacking = remote.lacks(lacking)
    except (RemoteUnreachable, VersioningError, OSError) as error:
        return Delivery(name, error=str(error))
    return _describe(cache, rounds, name, len(before) - len(lacking), lacking)


def _files(cache: Cache, git: Git, tags: Sequence[str], remote: Remote) -> dict[str, dict[str, str]]:
    """DVC hashes of the files of each round, by tag and path; lists of files that are not here come from the remote."""
    named = {tag: files.outputs for tag, files in round_files(git, tags).items()}
    lists = {digest for found in named.values() for digest in found.values() if digest.endswith(".dir")}
    if absent := keep_sound(cache, lists):
        remote.bring(cache, absent)
    return {tag: cache.files(found) for tag, found in named.items()}


def _describe(
    cache: Cache, rounds: Mapping[str, Mapping[str, str]], name: str, sent: int, lacking: Collection[str]
) -> Delivery:
    short = {tag: [path for path, digest in files.items() if digest in lacking] for tag, files in rounds.items()}
    lost = {digest for digest in lacking if not cache.has(digest)}
    return Delivery(
        name,
        sent,
        tuple(tag for tag, paths in short.items() if paths),
        tuple(f"{path} of {tag}" for tag, paths in short.items() for path in paths if rounds[tag][path] in lost),
    )


def push_tags(git: Git, remote: str, tags: Sequence[str]) -> None:
    """Push tags of rounds, and the branches of campaigns, to a git remote; raises VersioningError with git's reason."""
    refs = ["refs/heads/campaign/*:refs/heads/campaign/*", *(f"refs/tags/{tag}:refs/tags/{tag}" for tag in tags)]
    git.run("push", "--quiet", remote, *refs, GIT_HTTP_LOW_SPEED_LIMIT="1", GIT_HTTP_LOW_SPEED_TIME="30")


def git_remote(git: Git) -> str:
    """Where git pushes to: `remote.pushDefault`, else `origin`, else the only remote; "" when that is not clear."""
    remotes = git.run("remote").split()
    chosen = git.run("config", "--default", "", "--get", "remote.pushDefault").strip()
    if chosen or "origin" in remotes:
        return chosen or "origin"
    return remotes[0] if len(remotes) == 1 else ""
