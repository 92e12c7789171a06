"""Published rounds: tags that git holds, and what each is made of."""

from collections.abc import Sequence
from dataclasses import dataclass

from cgal.errors import VersioningError
from flows.versioning.git import Git
from flows.versioning.round_files import RoundFiles, model_md5, pointers_of, proteins_of

__all__ = [
    "PublishedRound",
    "campaign_and_index",
    "commit_files",
    "find_tags",
    "moved_tags",
    "read_rounds",
    "round_files",
    "round_tag",
]


@dataclass(frozen=True)
class PublishedRound:
    """A round in git history: its tag and commit, and the DVC hashes of its dataset and checkpoint.

    `pointer` is the path of the DVC file that names the dataset, `proteins` what it is of. Of several proteins
    `data_md5` and `pointer` have one each with spaces between, and `pointer` ends in `dvc.yaml`. `version` is that of
    cgal which made the round and `code` its commit, if they are recorded. `warnings` says what did not work without
    harming the round, such as a remote that could not be reached.
    """

    campaign: str
    round_index: int
    tag: str
    commit: str
    data_md5: str
    model_md5: str
    pointer: str = "data.dvc"
    version: str = ""
    code: str = ""
    proteins: tuple[str, ...] = ()
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
    names = [f"{tag}^{{commit}}" for tag in tags]
    messages = [commit or b"" for commit in git.contents(names)]
    return [
        PublishedRound(
            *campaign_and_index(tag),
            tag,
            commit or "",
            held.data_md5,
            model_md5(held.lock),
            held.restored_by,
            _trailer(message, "Tool").removeprefix("cgal "),
            _trailer(message, "Code"),
            proteins_of(held.params),
        )
        for (tag, held), commit, message in zip(
            round_files(git, tags).items(), git.objects(names), messages, strict=True
        )
    ]


def moved_tags(git: Git, tags: Sequence[str]) -> dict[str, str]:
    """Tags that do not point to the round of their name, each with what it points to and how to put it back.

    Each commit of a round ends in `Round: <its tag>`.
    """
    commits = git.contents([f"{tag}^{{commit}}" for tag in tags])
    said = {tag: _trailer(commit or b"", "Round") for tag, commit in zip(tags, commits, strict=True)}
    return {tag: _tell_moved(git, tag, name) for tag, name in said.items() if name != tag}


def _trailer(commit: bytes, name: str) -> str:
    start = f"{name}: ".encode()
    named = [line.removeprefix(start) for line in commit.splitlines() if line.startswith(start)]
    return named[-1].decode(errors="replace") if named else ""


def _tell_moved(git: Git, tag: str, name: str) -> str:
    right = git.run("log", "--all", "--max-count=1", "--format=%H", "-E", f"--grep=^Round: {tag}$").strip()
    mend = f"put it back with 'git tag -f {tag} {right}'" if right else "fetch it from a clone that has it"
    return f"the tag {tag} was moved: it points to {name or 'no round'}; {mend}"


def round_files(git: Git, tags: Sequence[str]) -> dict[str, RoundFiles]:
    """What restores each of some rounds, by tag; raises VersioningError when a commit lacks a file of them."""
    numbers = commit_files(git, tags, ["dvc.lock", "params.yaml"])
    shared = git.contents([f"{tag}:data.dvc" for tag in tags])
    pointers = {
        tag: pointers_of(data_dvc, proteins_of(numbers[tag]["params.yaml"]))
        for tag, data_dvc in zip(tags, shared, strict=True)
    }
    contents = iter(git.contents([f"{tag}:{pointer}" for tag, paths in pointers.items() for pointer in paths]))
    found = {}
    for tag, paths in pointers.items():
        data = {}
        for pointer in paths:
            if (content := next(contents)) is None:
                raise VersioningError(_tell_missing(tag, pointer))
            data[pointer] = content
        found[tag] = RoundFiles(data, numbers[tag]["dvc.lock"], numbers[tag]["params.yaml"])
    return found


def commit_files(git: Git, tags: Sequence[str], paths: Sequence[str]) -> dict[str, dict[str, bytes]]:
    """Contents of files in the commits of some rounds, by tag and path; raises VersioningError when one has no such."""
    contents = iter(git.contents([f"{tag}:{path}" for tag in tags for path in paths]))
    found: dict[str, dict[str, bytes]] = {tag: {} for tag in tags}
    for tag in tags:
        for path in paths:
            if (content := next(contents)) is None:
                raise VersioningError(_tell_missing(tag, path))
            found[tag][path] = content
    return found


def _tell_missing(tag: str, path: str) -> str:
    return f"{tag} has no {path}; 'git ls-tree -r --name-only {tag}' lists what it has"


def campaign_and_index(tag: str) -> tuple[str, int]:
    """Campaign and index of a round, by its tag."""
    campaign, _, index = tag.rpartition("/round-")
    return campaign, int(index)
