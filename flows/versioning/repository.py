"""A round is a point in git history: the only module that runs DVC or git.

File names in the workspace are constant; git and DVC carry the time axis. DVC keeps the bytes (`data/` and the
outputs of the stages in `round/`), git keeps the small files that name them, and each round is a commit on the branch
`campaign/<name>` with the tag `<name>/round-003`. That commit is made by git plumbing in an index of its own, so HEAD,
the user's index and the user's dirty files stay as they are.

A round is restored with stock tools, `git checkout <name>/round-003 -- data.dvc dvc.lock params.yaml && dvc checkout`,
and replayed by `dvc repro` after that.
"""

import hashlib
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from io import BytesIO
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple, Self

import yaml
from filelock import FileLock, Timeout

from cgal.errors import BadFile, CampaignLocked, VersioningError
from cgal.files import atomic_write, read_json, write_bytes, write_json

__all__ = ["BUNDLED_REMOTE", "CampaignLock", "PublishedRound", "RemoteUnreachable", "Repository"]

BUNDLED_REMOTE = "bundled"
"""DVC remote that travels inside the repository (`.dvc/bundled`) and holds the seed; `publish` never pushes to it."""

ROUND_FILES = ("data.dvc", "dvc.lock", "params.yaml")
"""What restores a round: which data, which outputs, which numbers."""

DVC_FILES = ("data.dvc", "dvc.lock")
"""Those of them that DVC writes."""

READABLE_FILES = (
    "round/metrics.json",
    "round/selection.json",
    "round/histograms.json",
    "round/training.csv",
    "round/timings.json",
)
"""Small results that a round's commit also holds as plain files, so that git alone can read them."""

CODE_PATHS = ("cgal", "flows", "study", "requirements.lock")
"""What is looked at to say whether a round ran with code that is in no commit."""

LOCK_WAIT_S = 120.0
"""DVC waits 3 s for its lock; someone's `dvc status` or `dvc push` may take longer."""

NO_OBJECT = "0" * 40


class RemoteUnreachable(Exception):
    """A DVC remote did not answer, or broke off; another attempt may succeed."""


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


class Repository:
    """A working copy under git and DVC, seen from its root folder.

    Every method raises VersioningError, with the reason that git or DVC gave, when it cannot do its work.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._git = _Git(self.root)
        if not (self.root / ".git").exists() or not (self.root / ".dvc").is_dir():
            raise VersioningError(f"{self.root}: not a git and DVC working copy; run 'git init' and 'dvc init' there")

    # Stages and data

    def stage_is_current(self, stage: str) -> bool:
        """Whether command, inputs, params and outputs of a stage are those that `dvc.lock` records."""
        return not self._status(self._stage(stage))

    def record_stage(self, stage: str) -> None:
        """Keep the outputs of a stage that has just run in the DVC cache, and in `dvc.lock` what made them."""
        self._dvc(lambda repo: _record_stage(repo, self._path("dvc.yaml"), stage))

    def record_data(self) -> str:
        """Keep `data/` as it is in the DVC cache, let `data.dvc` say so, and give its hash."""
        self._dvc(lambda repo: _record_data(repo, self.root))
        return _data_md5((self.root / "data.dvc").read_bytes())

    # Rounds

    def published(self, campaign: str) -> list[PublishedRound]:
        """All published rounds of a campaign, in order; an empty list for a campaign that nobody has run."""
        return self._described(campaign, sorted(self._tags(f"refs/tags/{campaign}/round-*"), key=_round_index))

    def _described(self, campaign: str, tags: Sequence[str]) -> list[PublishedRound]:
        commits = self._git.objects([f"{tag}^{{commit}}" for tag in tags])
        datas = self._git.contents([f"{tag}:data.dvc" for tag in tags])
        locks = self._git.contents([f"{tag}:dvc.lock" for tag in tags])
        return [
            PublishedRound(campaign, _round_index(tag), tag, commit, _data_md5(data), _model_md5(lock))
            for tag, commit, data, lock in zip(tags, commits, datas, locks, strict=True)
            if commit and data and lock
        ]

    def published_round(self, campaign: str, round_index: int) -> PublishedRound:
        """One published round; raises VersioningError when it is not there."""
        if found := self._described(campaign, [round_tag(campaign, round_index)]):
            return found[0]
        raise VersioningError(f"campaign {campaign} has no published round {round_index}; 'cgal rounds' lists them")

    def is_published(self, campaign: str, round_index: int) -> bool:
        """Whether a round's tag exists."""
        return bool(self._tags(f"refs/tags/{round_tag(campaign, round_index)}"))

    def publish(self, campaign: str, round_index: int, message: str = "") -> PublishedRound:
        """Make the workspace's round a commit on `campaign/<name>` with the tag `<name>/round-<k>`, and push its bytes.

        The tree is that of HEAD with the round's files on top, the parent is the campaign's last round (HEAD for the
        first), and the message says which commit the code was and whether it had changes. A tag that exists is
        verified, never moved. Bytes go to the configured DVC remote, if there is one beside the bundled one; a push
        that fails is a warning of the round that is returned.

        Raises VersioningError when a stage's outputs are not recorded, when the tag exists and names another round,
        or when a working copy has the campaign's branch checked out.
        """
        self.record_data()
        self._require_recorded()
        entries = self._store(ROUND_FILES) | self._store((*READABLE_FILES, "dvc.yaml"), optional=True)
        tag = round_tag(campaign, round_index)
        if self.is_published(campaign, round_index):
            self._require_same(tag, entries)
        else:
            self._commit_round(campaign, tag, entries, message or f"Round {round_index} of campaign {campaign}")
        return replace(self.published_round(campaign, round_index), warnings=self._push())

    def read_round_file(self, tag: str, path: str) -> bytes:
        """Content of a file of a published round, read from git alone."""
        return self.read_round_files([tag], path)[0]

    def read_round_files(self, tags: Sequence[str], path: str) -> list[bytes]:
        """Content of one file in each of some published rounds, read from git alone."""
        contents = self._git.contents([f"{tag}:{path}" for tag in tags])
        for tag, content in zip(tags, contents, strict=True):
            if content is None:
                raise VersioningError(f"{tag} has no {path}; 'git ls-tree -r --name-only {tag}' lists what it has")
        return [content for content in contents if content is not None]

    def checkout_round(self, tag: str) -> None:
        """Restore a published round: `git checkout TAG -- data.dvc dvc.lock params.yaml && dvc checkout`.

        Raises VersioningError, and leaves everything as it was, when one of those files or an output in `round/` holds
        changes that no commit or cache has. Changes in `data/` are kept in the DVC cache first (see `restore_seed`).
        """
        if not self._tags(f"refs/tags/{tag}"):
            raise VersioningError(f"{tag}: no such round; 'cgal rounds' lists those of the campaign")
        self._require_saved(tag)
        self._save_data()
        contents = {path: self.read_round_file(tag, path) for path in ROUND_FILES}
        try:
            with self._replaced(contents):
                self._dvc(lambda repo: _check_out(repo, self.root))
        except VersioningError as error:
            raise VersioningError(
                f"{tag} is not restored, all is as it was: {error} (unsaved files: finish the round with 'cgal run' or "
                "delete them; missing from the cache: 'dvc pull')"
            ) from error
        self._git.run("checkout", tag, "--", *ROUND_FILES)

    # Seed

    def restore_seed(self, protein: str | None = None, revision: str = "HEAD") -> None:
        """Bring `data/`, or one protein's folder in it, back to what `data.dvc` of a revision says.

        What `data/` holds is recorded in the DVC cache first. When no published round names that state, a copy of its
        `data.dvc` is kept in `.cgal/saved/`, and `cp .cgal/saved/<file> data.dvc && dvc checkout` brings it back.
        """
        content = self._git.contents([f"{revision}:data.dvc"])[0]
        if content is None:
            raise VersioningError(
                f"{revision} has no data.dvc; record the seed with 'dvc add data' and commit data.dvc"
            )
        self._save_data()
        target = self._path("data" if protein is None else f"data/{protein}")
        with self._replaced({"data.dvc": content}):
            self._fetch()
            self._require_protein(protein, revision)
            self._dvc(lambda repo: _check_out(repo, self.root, targets=[target], force=True))
        self.record_data()

    def pull_bundled(self) -> None:
        """Fetch the seed that travels with the repository into `data/`, with no network (`dvc pull data.dvc`).

        Raises VersioningError when `data/` holds files that are not recorded: they are left alone.
        """
        self._dvc(lambda repo: repo.pull(targets=[self._path("data.dvc")], remote=BUNDLED_REMOTE))

    def work_tree(self, root: Path) -> str:
        """Another working copy, its DVC cache shared with this one's; made at HEAD if it is not there; its commit."""
        if not (root / ".git").exists():
            with FileLock(self.root / ".cgal" / "work-trees.lock"):  # git itself fails when two are added at once
                self._git.run("worktree", "add", "--force", "--detach", str(root), "HEAD")
        cache = self._dvc(lambda repo: repo.cache.local_cache_dir)
        copy = Repository(root)
        copy._dvc(lambda repo: _share_cache(repo, cache))
        commit = copy._git.objects(["HEAD^{commit}"])[0]
        assert commit is not None
        return commit

    def bundle_data(self) -> None:
        """Put `data/` into the bundled remote (`dvc add data && dvc push -r bundled data.dvc`), for a commit of it."""
        self.record_data()
        self._dvc(lambda repo: repo.push(targets=[self._path("data.dvc")], remote=BUNDLED_REMOTE))

    # Files by their hash, for another clone

    @property
    def transport_remote(self) -> str:
        """Name of the DVC remote through which clones exchange files; raises VersioningError when it is not clear."""
        remotes = self._dvc(_own_remotes)
        if len(remotes) != 1:
            there = f"several DVC remotes ({', '.join(remotes)})" if remotes else "no DVC remote"
            raise VersioningError(
                f"execution.transport is dvc, and {self.root} has {there}; name one that campaign and workers reach: "
                "'dvc remote add --default NAME URL', the same in each clone"
            )
        return remotes[0]

    def keep_files(self, paths: Sequence[Path]) -> list[str]:
        """Copy files into the DVC cache, those that it lacks; give their DVC hashes."""
        hashes = [_md5(path) for path in paths]
        self._dvc(lambda repo: repo.cache.local.add([str(path) for path in paths], repo.fs, hashes))
        return hashes

    def push_files(self, hashes: Sequence[str]) -> int:
        """Push files from the cache to the remote, those that it lacks; give their number.

        Raises RemoteUnreachable when that does not work.
        """
        return self._exchange("push", hashes)

    def fetch_files(self, hashes: Sequence[str]) -> None:
        """Fetch files into the cache, those that it lacks; raises RemoteUnreachable, or VersioningError without them.

        Their content is held against their hash when they are copied out of the cache, see `place_file`.
        """
        self._exchange("pull", hashes)
        missing = self._dvc(lambda repo: [digest for digest in hashes if not repo.cache.local.exists(digest)])
        if missing:
            raise VersioningError(
                f"DVC remote {self.transport_remote} has no {', '.join(missing)}; let 'dvc remote list' say the same "
                "place in each clone, and prune a remote only while no campaign is at work"
            )

    def place_file(self, digest: str, path: Path) -> None:
        """Copy a file out of the cache, atomically; raises VersioningError when its content has another hash.

        The cache then forgets it, so that the next attempt fetches it anew.
        """
        held = Path(self._dvc(lambda repo: repo.cache.local.oid_to_path(digest)))
        with atomic_write(path) as temporary:
            shutil.copyfile(held, temporary)
            if (found := _md5(temporary)) != digest:
                held.unlink()
                raise VersioningError(f"{path} is not placed: what came as {digest} has the hash {found}; try again")

    def _exchange(self, way: str, hashes: Sequence[str]) -> int:
        remote = self.transport_remote

        def move(repo: Any) -> int:
            objects = {_dvc_tools().hash("md5", digest) for digest in hashes}
            place = repo.cloud.get_remote_odb(remote, way)  # what is wrong in the configuration is said here
            try:
                moved, failed = getattr(repo.cloud, way)(objects, odb=place)
            except Exception as error:  # a remote's client may raise anything
                raise RemoteUnreachable(f"DVC remote {remote} does not answer: {_reason(error)}") from error
            if failed:
                raise RemoteUnreachable(f"DVC remote {remote} broke off: {len(failed)} of {len(objects)} files left")
            return len(moved)

        return self._dvc(move)

    # Checks

    def _require_recorded(self) -> None:
        stale = [name.rpartition(":")[2] for name in self._status(self._path("dvc.yaml"))]
        if stale:
            raise VersioningError(
                f"stage {', '.join(stale)} has not run on the present inputs, or its outputs are not recorded; "
                "'dvc status' shows what changed: run the round again, then publish"
            )

    def _require_same(self, tag: str, entries: dict[str, str]) -> None:
        held = self._git.objects([f"{tag}:{path}" for path in ROUND_FILES])
        changed = [path for path, blob in zip(ROUND_FILES, held, strict=True) if blob != entries[path]]
        if changed:
            raise VersioningError(
                f"{tag} exists and has another {', '.join(changed)}; published rounds never change: choose another "
                f"campaign.name, or restore the round with 'cgal checkout {tag}'"
            )

    def _require_saved(self, tag: str) -> None:
        rounds = self._tags("refs/tags/*/round-*")
        for path in ROUND_FILES:
            if not (self.root / path).exists():
                continue
            known = self._git.objects([f"{revision}:{path}" for revision in ("HEAD", *rounds)])
            if self._git.hash_files([path])[path] not in known:
                raise VersioningError(
                    f"{path} holds changes that no published round has, and {tag} would overwrite them: finish the "
                    f"round with 'cgal run', or drop them with 'git checkout {tag} -- {path}'"
                )

    def _require_protein(self, protein: str | None, revision: str) -> None:
        proteins = self._dvc(lambda repo: {key[0] for key, _, _ in _only_output(repo, self._path("data")).get_obj()})
        if protein is not None and protein not in proteins:
            raise VersioningError(
                f"{revision} has no data for protein {protein} (it has {', '.join(sorted(proteins))}); record its seed "
                "with 'dvc add data' and commit data.dvc"
            )

    # Steps

    def _store(self, paths: Sequence[str], *, optional: bool = False) -> dict[str, str]:
        present = [path for path in paths if not optional or (self.root / path).is_file()]
        return self._git.hash_files(present, write=True)

    def _commit_round(self, campaign: str, tag: str, entries: dict[str, str], message: str) -> None:
        branch = f"refs/heads/campaign/{campaign}"
        self._require_not_checked_out(branch)
        head, tip = self._git.objects(["HEAD^{commit}", f"{branch}^{{commit}}"])
        if head is None:
            raise VersioningError("the repository has no commit yet; commit the code once, then publish")
        tree = self._git.write_tree(head, entries)
        if tip and self._is_unfinished(tip, tree, tag):
            commit = tip
        else:
            commit = self._git.commit_tree(tree, tip or head, self._message(message, tag, head))
        self._git.update_refs({branch: (commit, tip or NO_OBJECT), f"refs/tags/{tag}": (commit, NO_OBJECT)})

    def _is_unfinished(self, tip: str, tree: str, tag: str) -> bool:
        """Whether the branch already has this round: a process was killed between moving the branch and the tag."""
        same_tree = self._git.objects([f"{tip}^{{tree}}"])[0] == tree
        return same_tree and f"\nRound: {tag}\n" in self._git.run("log", "-1", "--format=%B", tip)

    def _message(self, message: str, tag: str, head: str) -> str:
        changed = self._git.run("status", "--porcelain", "--", *CODE_PATHS)
        state = "with uncommitted changes" if changed else "clean"
        data_md5 = _data_md5((self.root / "data.dvc").read_bytes())
        model_md5 = _model_md5((self.root / "dvc.lock").read_bytes())
        trailers = (f"Round: {tag}", f"Code: {head} ({state})", f"Data-MD5: {data_md5}", f"Model-MD5: {model_md5}")
        return f"{message}\n\n" + "\n".join(trailers) + "\n"

    def _require_not_checked_out(self, branch: str) -> None:
        worktrees = self._git.run("worktree", "list", "--porcelain")
        if f"branch {branch}\n" in worktrees:
            raise VersioningError(
                f"{branch.removeprefix('refs/heads/')} is checked out in a working copy, which publishing would leave "
                "behind; switch to a code branch there, such as 'git switch main'"
            )

    @contextmanager
    def _replaced(self, contents: dict[str, bytes]) -> Iterator[None]:
        """Give files other contents for a checkout by DVC; when that fails, files and data are as they were."""
        paths = [self.root / path for path in contents]
        before = {path: path.read_bytes() for path in paths if path.exists()}
        for path, content in zip(paths, contents.values(), strict=True):
            write_bytes(path, content)
        try:
            yield
        except VersioningError:
            for path in paths:
                path.unlink()
            for path, content in before.items():
                write_bytes(path, content)
            with suppress(VersioningError):
                self._dvc(lambda repo: repo.checkout(allow_missing=True))
            raise

    def _save_data(self) -> None:
        if not (self.root / "data").is_dir():
            return
        md5 = self.record_data()
        content = (self.root / "data.dvc").read_bytes()
        known = self._git.contents(
            [f"{revision}:data.dvc" for revision in ("HEAD", *self._tags("refs/tags/*/round-*"))]
        )
        if md5 not in {_data_md5(held) for held in known if held}:
            write_bytes(self.root / ".cgal" / "saved" / f"data-{md5.removesuffix('.dir')}.dvc", content)

    def _push(self) -> tuple[str, ...]:
        return tuple(warning for remote in self._dvc(_own_remotes) if (warning := self._push_to(remote)))

    def _push_to(self, remote: str) -> str:
        try:
            self._dvc(lambda repo: repo.push(remote=remote))
        except Exception as error:  # a remote's client may raise anything; the round is safe in the local cache
            return f"DVC remote {remote} did not take the round ({_reason(error)}); try 'dvc push -r {remote}' later"
        return ""

    def _fetch(self) -> None:
        """Fetch what `data.dvc` names and the cache lacks."""
        if self._dvc(lambda repo: _only_output(repo, self._path("data")).changed_cache()):
            self._dvc(lambda repo: repo.fetch(targets=[self._path("data.dvc")]))

    # Tools

    def _path(self, path: str) -> str:
        return str(self.root / path)

    def _stage(self, stage: str) -> str:
        return f"{self.root}/dvc.yaml:{stage}"

    def _tags(self, pattern: str) -> list[str]:
        tags = self._git.run("for-each-ref", "--format=%(refname:strip=2)", pattern).split()
        return [tag for tag in tags if tag.rpartition("/round-")[2].isdecimal()]

    def _status(self, target: str) -> dict[str, list[Any]]:
        status: dict[str, list[Any]] = self._dvc(lambda repo: repo.status(targets=[target]))
        return status

    def _dvc[T](self, action: Callable[[Any], T]) -> T:
        """Do something with DVC's Python API, on a new `Repo` each time: an old one remembers files as they were."""
        dvc = _dvc_tools()
        deadline = monotonic() + LOCK_WAIT_S
        while True:
            try:
                with dvc.repo(str(self.root)) as repo:
                    repo.lock._friendly = False  # no "Waiting to acquire lock" across a progress bar
                    with dvc.lock(repo):
                        self._set_aside_cut_files()
                        return action(repo)
            except dvc.locked as error:
                if monotonic() > deadline:
                    raise VersioningError(
                        f"{self.root}: another DVC process has held DVC's lock for {LOCK_WAIT_S:.0f} s; wait for it"
                    ) from error
            except dvc.damaged as error:
                if not self._set_aside(Path(error.path)):
                    raise VersioningError(f"DVC: {_reason(error)}") from error
            except dvc.errors as error:
                raise VersioningError(f"DVC: {_reason(error)}") from error

    def _set_aside_cut_files(self) -> None:
        """Find what a kill or a full disk left of a file while DVC wrote it, in place: its last line has no end."""
        for name in DVC_FILES:
            path = self.root / name
            if path.is_file() and not path.read_bytes().endswith(b"\n"):
                self._set_aside(path)

    def _set_aside(self, path: Path) -> bool:
        """Move a damaged file that DVC can make again out of the way; stages that it recorded count as never run."""
        if path.name not in DVC_FILES or not path.is_file():
            return False
        aside = self.root / ".cgal" / f"{path.name}.damaged"
        aside.parent.mkdir(exist_ok=True)
        os.replace(path, aside)
        return True


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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._note.unlink(missing_ok=True)
        self._lock.release()

    def _holder(self) -> str:
        try:
            who = "campaign {campaign} (process {pid} on {host}, since {started}) runs".format(**read_json(self._note))
        except (BadFile, KeyError):
            who = "another campaign runs"
        return f"{who} in this working copy; wait for it, or use a second copy: git worktree add ../second-copy"


def round_tag(campaign: str, round_index: int) -> str:
    """Git tag of a round.

    >>> round_tag("demo", 3)
    'demo/round-003'
    """
    return f"{campaign}/round-{round_index:03d}"


def _round_index(tag: str) -> int:
    return int(tag.rpartition("-")[2])


def _data_md5(data_dvc: bytes) -> str:
    return str(_yaml(data_dvc)["outs"][0]["md5"])


def _model_md5(dvc_lock: bytes) -> str:
    outputs = _yaml(dvc_lock)["stages"]["train"]["outs"]
    return str(next(output["md5"] for output in outputs if output["path"] == "round/model.pt"))


def _yaml(content: bytes) -> Any:
    """Parse by libyaml where it is there: ten times faster, which counts once a campaign has many rounds."""
    return yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe


def _record_stage(repo: Any, path: str, stage_name: str) -> None:
    """Do `dvc commit --force` for one stage, in any current folder: without DVC's run cache, which we do not use."""
    stage = repo.stage.load_one(path, stage_name)
    stage.save(run_cache=False)
    stage.commit()
    stage.dump(update_pipeline=False)


def _record_data(repo: Any, root: Path) -> None:
    if (root / "data.dvc").is_file():
        repo.commit(str(root / "data.dvc"), force=True)
    else:
        repo.add(str(root / "data"))


def _share_cache(repo: Any, cache: str) -> None:
    with repo.config.edit("local") as settings:
        settings["cache"]["dir"] = cache


def _check_out(repo: Any, root: Path, **options: Any) -> None:
    """Do `dvc checkout`, after a look at where it would write: DVC follows names that lead out of the project.

    They come from a tag, and from the list of a folder's files that its remote holds: from whoever may write those.
    """
    for output in repo.index.outs:
        if not _stays_inside(output, root):
            raise VersioningError(f"{output}: names files outside of {root}; whoever wrote that is not to be trusted")
    repo.checkout(**options)


def _stays_inside(output: Any, root: Path) -> bool:
    if not Path(os.path.normpath(output.fs_path)).is_relative_to(root):
        return False
    is_folder = output.hash_info and output.hash_info.isdir
    return not (is_folder and any(".." in key for key, _, _ in output.get_obj() or ()))


def _only_output(repo: Any, path: str) -> Any:
    return repo.find_outs_by_path(path)[0]


def _md5(path: Path) -> str:
    """Hash by which DVC calls a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _own_remotes(repo: Any) -> list[str]:
    """DVC remotes that a round is pushed to: the default one, or all when the bundled one is the default."""
    default = repo.config["core"].get("remote", BUNDLED_REMOTE)
    return [default] if default != BUNDLED_REMOTE else sorted(set(repo.config["remote"]) - {BUNDLED_REMOTE})


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _DvcTools(NamedTuple):
    """What is used of DVC's Python API."""

    repo: Any
    lock: Any
    locked: type[Exception]
    damaged: tuple[type[Any], ...]
    errors: tuple[type[Exception], ...]
    hash: Any


@cache
def _dvc_tools() -> _DvcTools:
    """Import DVC when it is first needed (that takes seconds) and keep it quiet."""
    os.environ.setdefault("DVC_NO_ANALYTICS", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo, lock_repo
    from dvc.utils.strictyaml import YAMLSyntaxError, YAMLValidationError
    from dvc_data.hashfile.hash_info import HashInfo

    for name in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return _DvcTools(
        Repo,
        lock_repo,
        LockError,
        (YAMLSyntaxError, YAMLValidationError),
        (DvcException, OSError, sqlite3.Error),
        HashInfo,
    )


class _Git:
    """Git plumbing in one working copy; nothing here reads or writes the user's index."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *arguments: str, text: str = "", **environment: str) -> str:
        """Run git and give its output; raises VersioningError with what git says when it fails."""
        return self._run(arguments, text.encode(), environment).decode()

    def _run(self, arguments: Sequence[str], content: bytes, environment: dict[str, str]) -> bytes:
        command = ["git", "-C", str(self.root), *arguments]
        try:
            done = subprocess.run(
                command, input=content, capture_output=True, env=_git_environment() | environment, check=True
            )
        except FileNotFoundError:
            raise VersioningError("git is not installed or not on the PATH") from None
        except subprocess.CalledProcessError as error:
            raise VersioningError(f"git {arguments[0]}: {' '.join(error.stderr.decode().split())}") from None
        return done.stdout

    def objects(self, names: Sequence[str]) -> list[str | None]:
        """Ids of objects such as `TAG:data.dvc`; None for one that does not exist."""
        lines = self.run("cat-file", "--batch-check", text="".join(f"{name}\n" for name in names)).splitlines()
        return [None if line.endswith(" missing") else line.split()[0] for line in lines]

    def contents(self, names: Sequence[str]) -> list[bytes | None]:
        """Contents of files such as `TAG:data.dvc`; None for one that does not exist."""
        stream = BytesIO(self._run(["cat-file", "--batch"], "".join(f"{name}\n" for name in names).encode(), {}))
        return [_next_content(stream) for _ in names]

    def hash_files(self, paths: Sequence[str], *, write: bool = False) -> dict[str, str]:
        """Blob ids of files of the working copy, which git stores when `write` is set."""
        blobs = self.run("hash-object", *(["-w"] if write else []), "--", *paths).split()
        return dict(zip(paths, blobs, strict=True))

    def write_tree(self, base: str, entries: dict[str, str]) -> str:
        """Tree of a commit with some files replaced or added, built in an index of its own."""
        lines = "".join(f"100644 {blob} 0\t{path}\n" for path, blob in entries.items())
        with tempfile.TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": f"{folder}/index"}
            self.run("read-tree", base, **index)
            self.run("update-index", "--add", "--index-info", text=lines, **index)
            return self.run("write-tree", **index).strip()

    def commit_tree(self, tree: str, parent: str, message: str) -> str:
        """Commit a tree, in the user's name when git knows it."""
        return self.run("commit-tree", tree, "-p", parent, text=message, **self._identity()).strip()

    def _identity(self) -> dict[str, str]:
        try:
            self.run("var", "GIT_AUTHOR_IDENT")
            self.run("var", "GIT_COMMITTER_IDENT")
        except VersioningError:
            roles = ("AUTHOR", "COMMITTER")
            names = {f"GIT_{role}_NAME": "cgal" for role in roles}
            return names | {f"GIT_{role}_EMAIL": "cgal@localhost" for role in roles}
        return {}

    def update_refs(self, changes: dict[str, tuple[str, str]]) -> None:
        """Move refs to new ids in one transaction, if each is still at its old id."""
        updates = "".join(f"update {ref} {new} {old}\n" for ref, (new, old) in changes.items())
        self.run("update-ref", "--stdin", text=f"start\n{updates}prepare\ncommit\n")


def _next_content(stream: BytesIO) -> bytes | None:
    """Read one answer of `git cat-file --batch`: a header that ends in the size, the content, a line end."""
    header = stream.readline()
    if header.endswith(b" missing\n"):
        return None
    content = stream.read(int(header.split()[-1]))
    stream.read(1)
    return content


def _git_environment() -> dict[str, str]:
    """The user's environment without what a git hook sets, which would lead git to another index or repository."""
    hooks = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")
    kept = {name: value for name, value in os.environ.items() if name not in hooks}
    return kept | {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
