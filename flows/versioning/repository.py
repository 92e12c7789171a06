"""The rounds of a working copy: listed, read, published, restored."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from cgal.errors import VersioningError
from flows.versioning.checking import keep_recorded, recorded_outputs, require_sound
from flows.versioning.dvc_repo import Dvc
from flows.versioning.git import Git
from flows.versioning.objects import Cache, wrong_files
from flows.versioning.publishing import (
    commit_round,
    require_publishable,
    require_same,
    require_writable,
    store_round_files,
)
from flows.versioning.restoring import keep_unsaved, restore_round
from flows.versioning.rounds import (
    PublishedRound,
    commit_files,
    find_tags,
    moved_tags,
    read_rounds,
    round_files,
    round_tag,
)
from flows.versioning.sending import Delivery, compare_remotes, git_remote, push_tags, send_rounds

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

    def published(self, campaign: str, *, but: Collection[str] = ()) -> list[PublishedRound]:
        """All published rounds of a campaign, in order, but those of some tags; empty for one that nobody has run.

        Raises VersioningError when a tag was moved.
        """
        return read_rounds(self.git, [tag for tag in find_tags(self.git, campaign) if tag not in but])

    def moved_tags(self, campaign: str) -> dict[str, str]:
        """Tags that somebody moved away from the round of their name, each with what to do about it."""
        return moved_tags(self.git, find_tags(self.git, campaign))

    def published_round(self, campaign: str, round_index: int) -> PublishedRound:
        """One published round; raises VersioningError when it is not there, or its tag was moved."""
        if not self.is_published(campaign, round_index):
            raise VersioningError(
                f"campaign {campaign} has no published round {round_index}; 'cgal rounds' lists them{self.shallow}"
            )
        return read_rounds(self.git, [round_tag(campaign, round_index)])[0]

    def round(self, tag: str) -> PublishedRound:
        """A published round by its tag; raises VersioningError when it is not there, or the tag was moved."""
        if tag not in find_tags(self.git):
            raise VersioningError(f"{tag}: no such round; 'cgal rounds' lists those of the campaign{self.shallow}")
        return read_rounds(self.git, [tag])[0]

    @property
    def shallow(self) -> str:
        """What to add where a round is not found: "" unless this is a shallow clone."""
        if self.git.run("rev-parse", "--is-shallow-repository").strip() != "true":
            return ""
        return " (this is a shallow clone, without the rounds: 'git fetch --unshallow --tags' brings them)"

    def is_published(self, campaign: str, round_index: int) -> bool:
        """Whether a round's tag exists."""
        return round_tag(campaign, round_index) in find_tags(self.git, campaign)

    def read_round_file(self, tag: str, path: str) -> bytes:
        """Content of a file of a published round, read from git alone."""
        return self.read_round_files([tag], path)[0]

    def read_round_files(self, tags: Sequence[str], path: str) -> list[bytes]:
        """Content of one file in each of some published rounds, read from git alone."""
        return [files[path] for files in commit_files(self.git, tags, [path]).values()]

    def publish(self, campaign: str, round_index: int, message: str = "") -> PublishedRound:
        """Make the workspace's round a commit on `campaign/<name>` with the tag `<name>/round-<k>`, and push its bytes.

        The tree is that of HEAD with the round's files on top, the parent is the campaign's last round (HEAD for the
        first), and the message says which commit the code was and whether it had changes. A tag that exists is
        verified, never moved. Bytes go to the configured DVC remote, if there is one beside the bundled one; a push
        that fails is a warning of the round that is returned.

        Raises VersioningError when a stage's outputs are not recorded, when the tag exists and names another round,
        or when a working copy has the campaign's branch checked out.
        """
        keep_recorded(Cache(self.root))
        self.dvc.record_data()
        if stale := self.dvc.stale_stages():
            raise VersioningError(
                f"stage {', '.join(stale)} has not run on the present inputs, or its outputs are not recorded; "
                "'dvc status' shows what changed: run the round again, then publish"
            )
        blobs, tag = store_round_files(self.git), round_tag(campaign, round_index)
        self._require_sound(tag)
        if self.is_published(campaign, round_index):
            self.published_round(campaign, round_index)
            require_same(self.git, tag, blobs)
        else:
            commit_round(self.git, campaign, tag, blobs, message or f"Round {round_index} of campaign {campaign}")
        warnings = tuple(delivery.warning for delivery in self.send() if delivery.warning)
        return replace(self.published_round(campaign, round_index), warnings=warnings)

    def _require_sound(self, tag: str) -> None:
        cache = Cache(self.root)
        files = require_sound(cache, tag, recorded_outputs(self.root))
        if wrong := wrong_files(self.root, files):
            raise VersioningError(
                f"{', '.join(wrong)}: changed behind DVC's back since the stage that made it; delete it and bring it "
                "back with 'dvc checkout'"
            )

    def send(self) -> list[Delivery]:
        """Send each DVC remote, the bundled one apart, what it lacks of all published rounds; none if there is none."""
        return send_rounds(self.root, self.git, self._right_tags())

    def compare_remotes(self, campaign: str) -> list[Delivery]:
        """What each DVC remote, the bundled one apart, lacks of the rounds of a campaign; nothing is sent."""
        return compare_remotes(self.root, self.git, self._right_tags(campaign))

    def send_history(self) -> str:
        """Push the branches and tags of all campaigns to git's remote and give its name; "" when there is none."""
        remote = git_remote(self.git)
        if remote:
            push_tags(self.git, remote, self._right_tags())
        return remote

    def _right_tags(self, campaign: str = "*") -> list[str]:
        tags = find_tags(self.git, campaign)
        moved = moved_tags(self.git, tags)
        return [tag for tag in tags if tag not in moved]

    def require_writable(self) -> None:
        """Raise VersioningError, which names the folder, when a round that runs now could not be kept in the end."""
        require_writable(self.root)
        shared = self.git.run("rev-parse", "--path-format=absolute", "--git-common-dir").strip()
        kept = Path(self.dvc.cache_folder()) / "files" / "md5"
        for folder in (f"{shared}/objects", f"{shared}/refs", kept, self.root / "data", self.root / "round"):
            require_writable(Path(folder))

    def require_publishable(self, campaign: str) -> None:
        """Raise VersioningError when no round of this campaign could be published, whatever was computed."""
        require_publishable(self.git, campaign)

    def keep_unsaved(self, path: str) -> Path | None:
        """Copy a file that neither HEAD nor a round has as it is to `.cgal/saved/`; give the copy, None without one."""
        return keep_unsaved(self.git, path)

    def checkout_round(self, tag: str) -> None:
        """Restore a published round: `git checkout TAG -- data.dvc dvc.lock params.yaml && dvc pull`.

        Raises VersioningError, and leaves everything as it was, when one of those files or an output in `round/` holds
        changes that no commit or cache has. Changes in `data/` are kept in the DVC cache first; when no round names
        them, a `data.dvc` that does is kept in `.cgal/saved/`.
        """
        self.round(tag)
        restore_round(self.git, self.dvc, tag, round_files(self.git, [tag])[tag])
