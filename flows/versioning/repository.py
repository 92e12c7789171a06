"""The rounds of a working copy: listed, read, published, restored."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cgal.errors import VersioningError
from flows.versioning.dvc_repo import Dvc, own_remotes
from flows.versioning.dvc_session import reason, with_dvc
from flows.versioning.git import Git
from flows.versioning.publishing import commit_round, require_same, store_round_files
from flows.versioning.restoring import restore_round
from flows.versioning.round_files import ROUND_FILES
from flows.versioning.rounds import PublishedRound, find_tags, read_rounds, round_tag

__all__ = ["Repository"]


class Repository:
    """A working copy under git and DVC, seen from its root folder.

    Every method raises VersioningError, with the reason that git or DVC gave, when it cannot do its work.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.git = Git(self.root)
        self.dvc = Dvc(self.root)
        if not (self.root / ".git").exists() or not (self.root / ".dvc").is_dir():
            raise VersioningError(f"{self.root}: not a git and DVC working copy; run 'git init' and 'dvc init' there")

    def published(self, campaign: str) -> list[PublishedRound]:
        """All published rounds of a campaign, in order; an empty list for a campaign that nobody has run."""
        return read_rounds(self.git, find_tags(self.git, campaign))

    def published_round(self, campaign: str, round_index: int) -> PublishedRound:
        """One published round; raises VersioningError when it is not there."""
        if found := read_rounds(self.git, [round_tag(campaign, round_index)]):
            return found[0]
        raise VersioningError(f"campaign {campaign} has no published round {round_index}; 'cgal rounds' lists them")

    def is_published(self, campaign: str, round_index: int) -> bool:
        """Whether a round's tag exists."""
        return round_tag(campaign, round_index) in find_tags(self.git, campaign)

    def read_round_file(self, tag: str, path: str) -> bytes:
        """Content of a file of a published round, read from git alone."""
        return self.read_round_files([tag], path)[0]

    def read_round_files(self, tags: Sequence[str], path: str) -> list[bytes]:
        """Content of one file in each of some published rounds, read from git alone."""
        contents = self.git.contents([f"{tag}:{path}" for tag in tags])
        for tag, content in zip(tags, contents, strict=True):
            if content is None:
                raise VersioningError(f"{tag} has no {path}; 'git ls-tree -r --name-only {tag}' lists what it has")
        return [content for content in contents if content is not None]

    def publish(self, campaign: str, round_index: int, message: str = "") -> PublishedRound:
        """Make the workspace's round a commit on `campaign/<name>` with the tag `<name>/round-<k>`, and push its bytes.

        The tree is that of HEAD with the round's files on top, the parent is the campaign's last round (HEAD for the
        first), and the message says which commit the code was and whether it had changes. A tag that exists is
        verified, never moved. Bytes go to the configured DVC remote, if there is one beside the bundled one; a push
        that fails is a warning of the round that is returned.

        Raises VersioningError when a stage's outputs are not recorded, when the tag exists and names another round,
        or when a working copy has the campaign's branch checked out.
        """
        self.dvc.record_data()
        if stale := self.dvc.stale_stages():
            raise VersioningError(
                f"stage {', '.join(stale)} has not run on the present inputs, or its outputs are not recorded; "
                "'dvc status' shows what changed: run the round again, then publish"
            )
        blobs, tag = store_round_files(self.git), round_tag(campaign, round_index)
        if self.is_published(campaign, round_index):
            require_same(self.git, tag, blobs)
        else:
            commit_round(self.git, campaign, tag, blobs, message or f"Round {round_index} of campaign {campaign}")
        return replace(self.published_round(campaign, round_index), warnings=self._push())

    def checkout_round(self, tag: str) -> None:
        """Restore a published round: `git checkout TAG -- data.dvc dvc.lock params.yaml && dvc checkout`.

        Raises VersioningError, and leaves everything as it was, when one of those files or an output in `round/` holds
        changes that no commit or cache has. Changes in `data/` are kept in the DVC cache first; when no round names
        them, a `data.dvc` that does is kept in `.cgal/saved/`.
        """
        if tag not in find_tags(self.git):
            raise VersioningError(f"{tag}: no such round; 'cgal rounds' lists those of the campaign")
        restore_round(self.git, self.dvc, tag, {path: self.read_round_file(tag, path) for path in ROUND_FILES})

    def _push(self) -> tuple[str, ...]:
        return tuple(warning for remote in with_dvc(self.root, own_remotes) if (warning := self._push_to(remote)))

    def _push_to(self, remote: str) -> str:
        try:
            with_dvc(self.root, lambda repo: repo.push(remote=remote))
        except Exception as error:  # a remote's client may raise anything; the round is safe in the local cache
            return f"DVC remote {remote} did not take the round ({reason(error)}); try 'dvc push -r {remote}' later"
        return ""
