"""Published rounds: tags that git holds, and what each is made of."""

from collections.abc import Sequence
from dataclasses import dataclass

from cgal.errors import VersioningError
from flows.versioning.git import Git
from flows.versioning.round_files import data_md5, model_md5

__all__ = [
    "PublishedRound",
    "campaign_and_index",
    "commit_files",
    "find_tags",
    "moved_tags",
    "read_rounds",
    "round_tag",
]


@dataclass(frozen=True)
class PublishedRound:
    """A round in git history: its tag and commit, and the DVC hashes of its dataset and checkpoint.

    `warnings` says what did not work without harming the round, such as a remote that could not be reached.
    """

    campaign: str
    round_index: int
    tag: str
    commit: str
    data_md5: str
    model_md5: str
    warnings: tuple[str, ...] = ()


def round_tag(campaign: str, round_index: int) -> str:
    """Git tag of a round.

    >>> round_tag("demo", 3)
    'demo/round-003'
    """
    return f"{campaign}/round-{round_index:03d}"


def find_tags(git: Git, campaign: str = "*") -> list[str]:
    """Tags of the rounds of a campaign (of all campaigns by default), in order."""
    tags = git.run("for-each-ref", "--format=%(refname:strip=2)", f"refs/tags/{campaign}/round-*").split()
    return sorted((tag for tag in tags if tag.rpartition("/round-")[2].isdecimal()), key=campaign_and_index)


def read_rounds(git: Git, tags: Sequence[str]) -> list[PublishedRound]:
    """What the tags of rounds point to; raises VersioningError when one points to anything else (see `moved_tags`)."""
    if moved := moved_tags(git, tags):
        raise VersioningError("; ".join(moved.values()))
    commits = git.objects([f"{tag}^{{commit}}" for tag in tags])
    datas = git.contents([f"{tag}:data.dvc" for tag in tags])
    locks = git.contents([f"{tag}:dvc.lock" for tag in tags])
    return [
        PublishedRound(*campaign_and_index(tag), tag, commit, data_md5(data), model_md5(lock))
        for tag, commit, data, lock in zip(tags, commits, datas, locks, strict=True)
        if commit and data and lock
    ]


def moved_tags(git: Git, tags: Sequence[str]) -> dict[str, str]:
    """Tags that do not point to the round of their name, each with what it points to and how to put it back.

    Each commit of a round ends in `Round: <its tag>`.
    """
    commits = git.contents([f"{tag}^{{commit}}" for tag in tags])
    said = {tag: _round_of(commit or b"") for tag, commit in zip(tags, commits, strict=True)}
    return {tag: _tell_moved(git, tag, name) for tag, name in said.items() if name != tag}


def _round_of(commit: bytes) -> str:
    named = [line.removeprefix(b"Round: ") for line in commit.splitlines() if line.startswith(b"Round: ")]
    return named[-1].decode(errors="replace") if named else ""


def _tell_moved(git: Git, tag: str, name: str) -> str:
    right = git.run("log", "--all", "--max-count=1", "--format=%H", "-E", f"--grep=^Round: {tag}$").strip()
    mend = f"put it back with 'git tag -f {tag} {right}'" if right else "fetch it from a clone that has it"
    return f"the tag {tag} was moved: it points to {name or 'no round'}; {mend}"


def commit_files(git: Git, tags: Sequence[str], paths: Sequence[str]) -> dict[str, dict[str, bytes]]:
    """Contents of files in the commits of some rounds, by tag and path; raises VersioningError when one has no such."""
    contents = iter(git.contents([f"{tag}:{path}" for tag in tags for path in paths]))
    found: dict[str, dict[str, bytes]] = {tag: {} for tag in tags}
    for tag in tags:
        for path in paths:
            if (content := next(contents)) is None:
                raise VersioningError(f"{tag} has no {path}; 'git ls-tree -r --name-only {tag}' lists what it has")
            found[tag][path] = content
    return found


def campaign_and_index(tag: str) -> tuple[str, int]:
    """Campaign and index of a round, by its tag."""
    campaign, _, index = tag.rpartition("/round-")
    return campaign, int(index)
