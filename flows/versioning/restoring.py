"""Bringing the workspace back to a published round, without losing what it holds."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from cgal.errors import VersioningError
from cgal.files import write_bytes
from flows.versioning.checking import keep_recorded, require_sound
from flows.versioning.dvc_repo import Dvc
from flows.versioning.git import Git
from flows.versioning.objects import Cache, wrong_files
from flows.versioning.round_files import RoundFiles, data_md5, data_pointer, proteins_of
from flows.versioning.rounds import find_tags

__all__ = ["keep_unsaved", "restore_round"]


def restore_round(git: Git, dvc: Dvc, tag: str, held: RoundFiles) -> None:
    """Give the workspace a round's files, by what its commit holds; `git status` shows them as staged.

    Raises VersioningError, and leaves everything as it was, when a file that would be overwritten holds changes that
    no commit or cache has, or bytes of the round are missing.
    """
    _require_saved(git, tag, held.by_path)
    try:
        cache = Cache(git.root)
        files = require_sound(cache, tag, held.outputs)
        keep_recorded(cache)
        _save_data(git, dvc, held)
        with _replaced(dvc, held.by_path):
            dvc.check_out()
            _require_right(git.root, files)
    except (VersioningError, OSError) as error:
        raise VersioningError(f"{tag} is not restored, all is as it was: {error}") from error
    git.run("checkout", tag, "--", *held.by_path)


def _require_right(root: Path, files: Mapping[str, str]) -> None:
    """Hash what was restored: DVC leaves a file alone that has the size and the time of the right one."""
    if wrong := wrong_files(root, files):
        raise VersioningError(
            f"{', '.join(wrong)} in the workspace: changed behind DVC's back, which has a good copy; delete it and "
            "try again"
        )


def _require_saved(git: Git, tag: str, paths: Iterable[str]) -> None:
    for path in paths:
        if (git.root / path).exists() and _unsaved_blob(git, path):
            raise VersioningError(
                f"{path} holds changes that no published round has, and {tag} would overwrite them: finish the "
                f"round with 'cgal run', or drop them with 'git checkout {tag} -- {path}'"
            )


def _unsaved_blob(git: Git, path: str) -> str:
    """Git's id of a file's content when neither HEAD nor a round has it under this path; "" when one does."""
    blob = git.hash_files([path])[path]
    return "" if blob in git.objects([f"{revision}:{path}" for revision in ("HEAD", *find_tags(git))]) else blob


def keep_unsaved(git: Git, path: str) -> Path | None:
    """Copy a file that neither HEAD nor a round has as it is to `.cgal/saved/`; give the copy, None without one."""
    blob = _unsaved_blob(git, path)
    if not blob:
        return None
    name = Path(path)
    copy = git.root / ".cgal" / "saved" / f"{name.stem}-{blob[:8]}{name.suffix}"
    write_bytes(copy, (git.root / path).read_bytes())
    return copy


def _save_data(git: Git, dvc: Dvc, held: RoundFiles) -> None:
    """Record the data that a checkout will change in the DVC cache.

    When no published round names that state, a copy of its DVC file is kept in `.cgal/saved/`, and
    `cp .cgal/saved/<file> data.dvc && dvc checkout` (or `data/<protein>.dvc`) brings it back.
    """
    for protein in proteins_of(held.params):
        if (git.root / "data" / protein).is_dir():
            _save_data_of(git, dvc, protein)


def _save_data_of(git: Git, dvc: Dvc, protein: str) -> None:
    md5 = dvc.record_data(protein)
    pointer = data_pointer(git.root, protein)
    content = (git.root / pointer).read_bytes()
    known = git.contents([f"{revision}:{pointer}" for revision in ("HEAD", *find_tags(git))])
    if md5 not in {data_md5(found) for found in known if found}:
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
