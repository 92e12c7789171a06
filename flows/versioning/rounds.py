"""Published rounds: tags that git holds, and what each is made of."""

from collections.abc import Sequence
from dataclasses import dataclass

from flows.versioning.git import Git
from flows.versioning.round_files import data_md5, model_md5

__all__ = ["PublishedRound", "find_tags", "read_rounds", "round_tag"]


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
    return sorted((tag for tag in tags if tag.rpartition("/round-")[2].isdecimal()), key=_campaign_and_index)


def read_rounds(git: Git, tags: Sequence[str]) -> list[PublishedRound]:
    """What the tags of rounds point to; one that does not exist is left out."""
    commits = git.objects([f"{tag}^{{commit}}" for tag in tags])
    datas = git.contents([f"{tag}:data.dvc" for tag in tags])
    locks = git.contents([f"{tag}:dvc.lock" for tag in tags])
    return [
        PublishedRound(*_campaign_and_index(tag), tag, commit, data_md5(data), model_md5(lock))
        for tag, commit, data, lock in zip(tags, commits, datas, locks, strict=True)
        if commit and data and lock
    ]


def _campaign_and_index(tag: str) -> tuple[str, int]:
    campaign, _, index = tag.rpartition("/round-")
    return campaign, int(index)
