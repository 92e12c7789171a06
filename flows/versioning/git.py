"""Git plumbing in one working copy; nothing here reads or writes the user's index."""

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from cgal.errors import VersioningError

__all__ = ["Git"]


class Git:
    """Git in one working copy; every method raises VersioningError, with what git says, when git fails."""

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

    def write_tree(self, base: str, entries: Mapping[str, str]) -> str:
        """Tree of a commit with some files replaced or added, built in an index of its own."""
        lines = "".join(f"100644 {blob} 0\t{path}\n" for path, blob in entries.items())
        with tempfile.TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": f"{folder}/index"}
            self.run("read-tree", base, **index)
            self.run("update-index", "--add", "--index-info", text=lines, **index)
            return self.run("write-tree", **index).strip()

    def commit_tree(self, tree: str, parent: str, message: str) -> str:
        """Commit a tree, in the user's name when git knows it."""
        return self.run("commit-tree", tree, "-p", parent, text=message, **self.identity()).strip()

    def identity(self) -> dict[str, str]:
        """Environment that names an author where git knows none, so that every machine can commit."""
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
