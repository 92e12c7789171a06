"""Bringing the workspace back to a published round, without losing what it holds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from cgal.errors import VersioningError
from cgal.files import write_bytes
from flows.versioning.checking import keep_recorded, require_sound
from flows.versioning.dvc_repo import Dvc
from flows.versioning.git import Git
from flows.versioning.objects import Cache, wrong_files
from flows.versioning.round_files import ROUND_FILES, data_md5, outputs
from flows.versioning.rounds import find_tags

__all__ = ["restore_round"]


def restore_round(git: Git, dvc: Dvc, tag: str, contents: Mapping[str, bytes]) -> None:
    """Give the workspace a round's files, by these contents of its ROUND_FILES; `git status` shows them as staged.

    Raises VersioningError, and leaves everything as it was, when a file that would be overwritten holds changes that
    no commit or cache has, or bytes of the round are missing.
    """
    _require_saved(git, tag)
    try:
        cache = Cache(git.root)
        files = require_sound(cache, tag, outputs(contents["data.dvc"], contents["dvc.lock"]))
        keep_recorded(cache)
        _save_data(git, dvc)
        with _replaced(dvc, contents):
            dvc.check_out()
            _require_right(git.root, files)
    except (VersioningError, OSError) as error:
        raise VersioningError(f"{tag} is not restored, all is as it was: {error}") from error
    git.run("checkout", tag, "--", *ROUND_FILES)


def _require_right(root: Path, files: Mapping[str, str]) -> None:
    """Hash what was restored: DVC leaves a file alone that has the size and the time of the right one."""
    if wrong := wrong_files(root, files):
        raise VersioningError(
            f"{', '.join(wrong)} in the workspace: changed behind DVC's back, which has a good copy; delete it and "
            "try again"
        )


def _require_saved(git: Git, tag: str) -> None:
    revisions = ["HEAD", *find_tags(git)]
    for path in ROUND_FILES:
        if not (git.root / path).exists():
            continue
        known = git.objects([f"{revision}:{path}" for revision in revisions])
        if git.hash_files([path])[path] not in known:
            raise VersioningError(
                f"{path} holds changes that no published round has, and {tag} would overwrite them: finish the "
                f"round with 'cgal run', or drop them with 'git checkout {tag} -- {path}'"
            )


def _save_data(git: Git, dvc: Dvc) -> None:
    """Record `data/` in the DVC cache.

    When no published round names that state, a copy of its `data.dvc` is kept in `.cgal/saved/`, and
    `cp .cgal/saved/<file> data.dvc && dvc checkout` brings it back.
    """
    if not (git.root / "data").is_dir():
        return
    md5 = dvc.record_data()
    content = (git.root / "data.dvc").read_bytes()
    known = git.contents([f"{revision}:data.dvc" for revision in ("HEAD", *find_tags(git))])
    if md5 not in {data_md5(held) for held in known if held}:
        write_bytes(git.root / ".cgal" / "saved" / f"data-{md5.removesuffix('.dir')}.dvc", content)


@contextmanager
def _replaced(dvc: Dvc, contents: Mapping[str, bytes]) -> Iterator[None]:
    """Give files other contents for a checkout by DVC; when that fails, files and data are as they were."""
    paths = [dvc.root / path for path in contents]
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
            dvc.check_out(allow_missing=True)
        raise
