"""A round's commit and tag, made by git plumbing."""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile

from cgal import __version__
from cgal.errors import VersioningError
from flows.versioning.git import Git
from flows.versioning.round_files import data_md5, data_pointers, model_md5, proteins_of
from flows.versioning.rounds import campaign_and_index, round_tag

__all__ = ["commit_round", "require_publishable", "require_same", "require_writable", "store_round_files"]

READABLE_FILES = ("metrics.json", "selection.json", "histograms.json", "training.csv", "timings.json")
"""Small results that a round's commit also holds as plain files, so that git alone can read them.

They lie in `round/` and, of several proteins, in a folder of each in it."""

JOINT_FILES = ("selection.json", "training.csv", "timings.json")
"""Those of all proteins together."""

CODE_PATHS = ("cgal", "flows", "study", "requirements.lock")
"""What is looked at to say whether a round ran with code that is in no commit."""

NO_OBJECT = "0" * 40


def store_round_files(git: Git) -> dict[str, str]:
    """Store the files of the workspace that a round's commit holds; give the blob of each by its path."""
    proteins = proteins_of((git.root / "params.yaml").read_bytes())
    readable = [f"round/{name}" for name in (READABLE_FILES if len(proteins) == 1 else JOINT_FILES)]
    readable += [f"round/{protein}/{name}" for protein in proteins if len(proteins) > 1 for name in READABLE_FILES]
    optional = [path for path in (*readable, "dvc.yaml") if (git.root / path).is_file()]
    return git.hash_files([*data_pointers(git.root), "dvc.lock", "params.yaml", *optional], write=True)


def require_writable(folder: Path) -> None:
    """Raise VersioningError when nothing can be written in a folder, which is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise VersioningError(
            f"{folder}: cannot be written ({error.strerror}), so no round could be kept; let its owner allow it "
            "('ls -ld' shows), or, for DVC's cache, name another: 'dvc cache dir --local FOLDER'"
        ) from error


def require_publishable(git: Git, campaign: str) -> None:
    """Raise VersioningError when a campaign can have no branch or tags: one is checked out, or a name is in the way."""
    branch = _branch(campaign)
    _require_not_checked_out(git, branch)
    changes = f"update {branch} HEAD\ncreate refs/tags/{campaign}/round HEAD\n"
    try:
        git.run("update-ref", "--stdin", text=f"start\n{changes}prepare\nabort\n")
    except VersioningError as error:
        raise VersioningError(
            f"no round of campaign {campaign} could be published ({error}): rename the branch or tag that is in the "
            "way, or choose another campaign.name"
        ) from None


def require_same(git: Git, tag: str, blobs: Mapping[str, str]) -> None:
    """Raise VersioningError when a round that is published is not that of the workspace."""
    paths = (*data_pointers(git.root), "dvc.lock", "params.yaml")
    held = git.objects([f"{tag}:{path}" for path in paths])
    changed = [path for path, blob in zip(paths, held, strict=True) if blob != blobs[path]]
    if changed:
        raise VersioningError(
            f"{tag} exists and has another {', '.join(changed)}; published rounds never change: choose another "
            f"campaign.name, or restore the round with 'cgal checkout {tag}'"
        )


def commit_round(git: Git, campaign: str, tag: str, blobs: Mapping[str, str], message: str) -> None:
    """Commit these files on top of HEAD's tree to the campaign's branch, and tag the commit, in one transaction.

    A clone without this branch, but with the tag of the round before, begins its branch there. Raises VersioningError
    when a working copy has the branch checked out, or the repository has no commit.
    """
    branch, last = _branch(campaign), round_tag(campaign, campaign_and_index(tag)[1] - 1)
    _require_not_checked_out(git, branch)
    head, tip, before = git.objects(["HEAD^{commit}", f"{branch}^{{commit}}", f"refs/tags/{last}^{{commit}}"])
    if head is None:
        raise VersioningError("the repository has no commit yet; commit the code once, then publish")
    tree = git.write_tree(head, blobs)
    if tip and _is_unfinished(git, tip, tree, tag):
        commit = tip
    else:
        commit = git.commit_tree(tree, tip or before or head, _with_trailers(git, message, tag, head))
    git.update_refs({branch: (commit, tip or NO_OBJECT), f"refs/tags/{tag}": (commit, NO_OBJECT)})


def _branch(campaign: str) -> str:
    return f"refs/heads/campaign/{campaign}"


def _require_not_checked_out(git: Git, branch: str) -> None:
    worktrees = git.run("worktree", "list", "--porcelain")
    if f"branch {branch}\n" in worktrees:
        raise VersioningError(
            f"{branch.removeprefix('refs/heads/')} is checked out in a working copy, which publishing would leave "
            "behind; switch to a code branch there, such as 'git switch main'"
        )


def _is_unfinished(git: Git, tip: str, tree: str, tag: str) -> bool:
    """Whether the branch already has this round: a process was killed between moving the branch and the tag."""
    same_tree = git.objects([f"{tip}^{{tree}}"])[0] == tree
    return same_tree and f"\nRound: {tag}\n" in git.run("log", "-1", "--format=%B", tip)


def _with_trailers(git: Git, message: str, tag: str, head: str) -> str:
    if image := os.environ.get("CGAL_COMMIT"):  # the code is that of a container's image, not that of the project
        code = f"{image} (image)"
    elif git.objects(["HEAD:cgal"])[0] is None:  # a project apart from the source, which is installed
        code = f"cgal {__version__} (installed)"
    else:
        changed = git.run("status", "--porcelain", "--", *CODE_PATHS)
        code = f"{head} ({'with uncommitted changes' if changed else 'clean'})"
    data = " ".join(data_md5((git.root / pointer).read_bytes()) for pointer in data_pointers(git.root))
    model = model_md5((git.root / "dvc.lock").read_bytes())
    trailers = (
        f"Round: {tag}",
        f"Code: {code}",
        f"Tool: cgal {__version__}",
        f"Data-MD5: {data}",
        f"Model-MD5: {model}",
    )
    return f"{message}\n\n" + "\n".join(trailers) + "\n"
