"""The colleague's page, word for word, and the lines that restore a round, in fresh clones of a published campaign."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.terminal import next_lines
from flows.tracking.runs import restore_line
from tests.backends import BUCKET, make_bucket, running_s3
from tests.test_versioning import PROJECT, contents, own_identity, shell

__all__ = ["own_identity"]  # a fixture

PAGE = PROJECT / "docs" / "how-to" / "colleague.md"
TAGS = ("demo/round-000", "demo/round-001")
ROUNDS: list[dict[str, Any]] = [{"round": k, "tag": tag, "pointer": "data.dvc"} for k, tag in enumerate(TAGS)]


def bytes_of_round(root: Path) -> dict[str, str]:
    """What DVC brings back: all but the wall times, which are no output."""
    held = contents(root / "data") | contents(root / "round")
    return {name: digest for name, digest in held.items() if name != "timings.json"}


def commands() -> list[tuple[str, list[str]]]:
    """Each command of the page, with the lines that it prints."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            else:
                found[-1][1].append(line)
    return found


@pytest.fixture(params=["folder", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a DVC remote, which the environment says how to reach."""
    if request.param == "folder":
        yield str(tmp_path / "lab")
        return
    with running_s3() as address:
        keys = {"ACCESS_KEY_ID": "testing", "SECRET_ACCESS_KEY": "testing", "DEFAULT_REGION": "us-east-1"}
        for name, value in (keys | {"ENDPOINT_URL": address}).items():
            monkeypatch.setenv(f"AWS_{name}", value)
        make_bucket(dict(os.environ))
        yield f"s3://{BUCKET}/dvc"


@pytest.fixture
def owner(two_rounds: Path, tmp_path: Path) -> Path:
    """The owner's working copy, with an empty remote for git."""
    root = Path(shutil.copytree(two_rounds, tmp_path / "owner"))
    shell(tmp_path, "git init -q --bare -b main hub.git")
    shell(root, f"git remote add origin {tmp_path}/hub.git && git push -q origin main")
    return root


def test_the_page_works_word_for_word(
    owner: Path, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but `make setup`: the environment of the tests stands in for it."""
    monkeypatch.setenv("GIT_URL", str(tmp_path / "hub.git"))
    monkeypatch.setenv("DVC_URL", remote)
    shell(owner, f"dvc remote add -q --local --default lab {remote}")
    (push, said), *steps = commands()
    answers = [(push, said, shell(owner, push))]
    script = ["set -eu", *(f"{command}\necho ----" for command, _ in steps if not command.startswith("make setup"))]
    printed = shell(tmp_path, "\n".join(script)).split("----\n")
    steps = [step for step in steps if not step[0].startswith("make setup")]
    answers += [(*step, text) for step, text in zip(steps, printed, strict=False)]
    assert len(answers) > 6
    for command, lines, text in answers:
        seen = [" ".join(line.split()) for line in text.splitlines()]
        for line in lines:
            pattern = ".*".join(re.escape(" ".join(part.split())) for part in line.split("..."))
            assert any(re.fullmatch(pattern, each) for each in seen), f"{command}: {line}\n{text}"
    assert bytes_of_round(tmp_path / "project") == bytes_of_round(owner)


def restoring_lines() -> dict[str, str]:
    """The lines that README, MLflow and the table of rounds print, for the last round."""
    (readme,) = re.findall(r"^git checkout demo/round-001 .*$", (PROJECT / "README.md").read_text(), flags=re.MULTILINE)
    (table,) = re.findall(r"git checkout .*$", next_lines(Path("nowhere"), ROUNDS), flags=re.MULTILINE)
    return {"readme": readme, "mlflow": restore_line(TAGS[1], "data.dvc"), "table": table}


def test_the_next_lines_activate_only_an_environment_of_the_project(tmp_path: Path) -> None:
    assert ".venv" not in next_lines(tmp_path, ROUNDS)
    (tmp_path / ".venv").mkdir()
    assert "source .venv/bin/activate" in next_lines(tmp_path, ROUNDS)


def test_the_lines_that_restore_a_round_work_here_and_in_a_fresh_clone(owner: Path, tmp_path: Path) -> None:
    expected = bytes_of_round(owner)
    lines = set(restoring_lines().values())
    assert len(lines) == 1, "all say the same"
    shell(owner, "cgal checkout 0 && " + lines.copy().pop())
    assert bytes_of_round(owner) == expected, "no DVC remote is needed where the cache has all"
    shell(owner, f"dvc remote add -q --local --default lab {tmp_path / 'lab'} && cgal push")
    shell(tmp_path, "git clone -q hub.git clone")
    shell(tmp_path / "clone", f"dvc remote add -q --local --default lab {tmp_path / 'lab'} && {lines.pop()}")
    assert bytes_of_round(tmp_path / "clone") == expected


def test_the_restored_round_says_so_only_after_its_bytes_were_hashed(owner: Path) -> None:
    """`cgal checkout` of the page ends in exit code 1 where a file has other bytes."""
    held = next(
        path for path in (owner / ".dvc" / "cache").rglob("*") if path.is_file() and path.read_bytes() == b"model 0"
    )
    held.chmod(0o644)
    held.write_bytes(b"MODEL 0")
    held.chmod(0o444)
    done = subprocess.run(["cgal", "checkout", "0"], cwd=owner, capture_output=True, text=True)
    assert done.returncode == 1
    assert "round/model.pt of demo/round-000: missing from DVC's cache or damaged there" in done.stderr
