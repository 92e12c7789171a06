"""A folder is replaced whole or not at all, wherever the process is killed."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from cgal.errors import BadFile
from cgal.files import made_aside, read_yaml, settle_folder, write_text

OLD = {"kept.txt": "kept", "changed.txt": "old", "shards/000.h5": "old", "shards/001.h5": "old"}
NEW = {"kept.txt": "kept", "changed.txt": "new", "shards/000.h5": "new", "added.txt": "new"}
CHANGING = {"os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir", "open"}
"""Audit events of what changes a file system."""


def fill(folder: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        write_text(folder / name, text)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def replace_all(folder: Path) -> None:
    with made_aside(folder) as new:
        (new / "shards" / "001.h5").unlink(missing_ok=True)
        fill(new, {name: text for name, text in NEW.items() if name != "kept.txt"})


def killed_at(number: int, folder: Path) -> bool:
    """Replace a folder in a process that `kill -9` ends before its so-many-th change; whether it came to that."""
    child = os.fork()
    if child == 0:
        changes = 0

        def die(event: str, arguments: object) -> None:
            nonlocal changes
            changes += event in CHANGING
            if event in CHANGING and changes == number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        with suppress(BaseException):
            replace_all(folder)
            os._exit(0)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_folder_killed_anywhere_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    found, number = [], 0
    while True:
        folder = tmp_path / str(number) / "protein"
        fill(folder, OLD)
        number += 1
        if not killed_at(number, folder):
            break
        settle_folder(folder)
        assert contents(folder.parent) == {f"protein/{name}": text for name, text in contents(folder).items()}
        found.append(contents(folder))
    assert contents(folder) == NEW
    changed = found.index(NEW)
    assert changed > 10
    assert found == [OLD] * changed + [NEW] * (len(found) - changed)


def test_folder_that_was_not_there_is_made_whole(tmp_path: Path) -> None:
    replace_all(tmp_path / "protein")
    assert "kept.txt" not in contents(tmp_path / "protein")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [BadFile, OSError])
def test_folder_stays_as_it_was_after_an_error(tmp_path: Path, error: type[Exception]) -> None:
    folder = tmp_path / "protein"
    fill(folder, OLD)

    def fail() -> None:
        with made_aside(folder) as new:
            write_text(new / "changed.txt", "new")
            raise error("full")

    with pytest.raises(BadFile):
        fail()
    assert contents(tmp_path) == {f"protein/{name}": text for name, text in OLD.items()}


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    """As often as it is replaced: data may lie on another disk."""
    disk, link = tmp_path / "disk" / "x", tmp_path / "x"
    fill(disk, OLD)
    link.symlink_to(disk, target_is_directory=True)
    for _ in range(2):
        replace_all(link)
        assert link.is_symlink()
        assert contents(disk) == NEW
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: {b: 1}\nc: 2\na: {b: 3}\n", "a is there twice .* line 3"),
        (b"a: {b: 1, b: 2}\n", "b is there twice"),
        (b"# \xb5s\na: 1\n", "'utf-8' codec"),
    ],
)
def test_yaml_with_a_key_twice_or_in_another_encoding_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(BadFile, match=rf"params\.yaml: not valid YAML: .*{reason}"):
        read_yaml(path)
