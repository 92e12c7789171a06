"""More working copies of one project: each with files of its own, all with one git history and one DVC cache."""

from pathlib import Path

from filelock import FileLock

from flows.versioning.repository import Repository

__all__ = ["make_work_tree"]


def make_work_tree(repository: Repository, root: Path) -> str:
    """Make another working copy at HEAD, if it is not there, its DVC cache shared with this one's; give its commit.

    Raises VersioningError, with the reason that git or DVC gave, when that does not work.
    """
    if not (root / ".git").exists():
        with FileLock(repository.root / ".cgal" / "work-trees.lock"):  # git itself fails when two are added at once
            repository.git.run("worktree", "add", "--force", "--detach", str(root), "HEAD")
    copy = Repository(root)
    copy.dvc.share_cache(repository.dvc.cache_folder())
    return copy.git.run("rev-parse", "HEAD").strip()
