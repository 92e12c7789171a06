"""What others may say (names in forms, tags, manifests, lists of files) neither runs nor leaves the project.

Passwords, addresses and secrets of a served project are tested on real servers, in tests/test_backends.py.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from cgal.dataset import load_manifest
from cgal.errors import BadFile, VersioningError
from cgal.params import Name
from flows.serving.serve import Part
from flows.settings import without_passwords
from flows.tracking.runs import TrackingUnavailable, log_round
from flows.versioning import Repository
from tests.test_tracking import make_record

NAMES = [
    "../x",
    "a/b",
    "/etc",
    "x; touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "-option",
    ".",
    "",
    "x\n",
    "a" * 65,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_letters_digits_hyphen_and_underscore(name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Name).validate_python(name)


@pytest.mark.parametrize("tag", ["../x", "--force", "x; touch pwned", "$(touch pwned)", "HEAD", "refs/heads/main"])
def test_what_is_no_tag_of_a_round_is_not_restored(project: Path, tag: str) -> None:
    with pytest.raises(VersioningError, match="no such round"):
        Repository(project).checkout_round(tag)
    assert not [*project.parent.rglob("pwned")]


@pytest.mark.parametrize("name", ["../../seed.h5", "/etc/passwd", "000.h5/../../x", "latest.h5"])
def test_a_manifest_names_no_file_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": [{"name": name}], "files": {"../x": ""}}))
    with pytest.raises(BadFile, match="damaged manifest"):
        load_manifest(tmp_path)


@pytest.fixture
def project(tmp_path: Path, template: Path) -> Path:
    return shutil.copytree(template, tmp_path / "project")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, git_identity: None) -> Path:
    """A working copy with a little data and a published round of one stage, a line of shell."""
    root = tmp_path_factory.mktemp("template") / "project"
    (root / "data" / "toy").mkdir(parents=True)
    (root / "data" / "toy" / "seed").write_text("seed")
    (root / "params.yaml").write_text("protein: toy\nseed: 1\n")
    stage = {"cmd": "cp data/toy/seed round/model.pt", "deps": ["data/toy/seed"], "outs": ["round/model.pt"]}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}}))
    (root / "round").mkdir()
    for command in (
        ["git", "init", "--quiet", "--initial-branch", "main"],
        ["dvc", "init", "--quiet"],
        ["dvc", "add", "--quiet", "data"],
        ["dvc", "repro", "--quiet"],
        ["git", "add", "data.dvc", "dvc.lock", "dvc.yaml", "params.yaml", ".dvc/config"],
        ["git", "commit", "--quiet", "--message", "start\n\nRound: honest/round-000"],
        ["git", "tag", "honest/round-000"],
    ):
        subprocess.run(command, cwd=root, check=True)
    return root


def publish(root: Path, tag: str, data_dvc: str) -> None:
    """Give a commit with another `data.dvc` the tag of a round, as one might get it from somebody's remote."""
    path = root / "data.dvc"
    before = path.read_text()
    path.write_text(data_dvc)
    for command in (
        ["git", "commit", "--quiet", "--all", "--message", f"hostile\n\nRound: {tag}"],
        ["git", "tag", tag],
        ["git", "reset", "--quiet", "--hard", "HEAD~1"],
    ):
        subprocess.run(command, cwd=root, check=True)
    assert path.read_text() == before


def forge_folder(root: Path, path: str) -> str:
    """A `data.dvc` whose list of files, as a remote may hold it, has one more of this path."""
    described = yaml.safe_load((root / "data.dvc").read_text())
    objects = root / ".dvc" / "cache" / "files" / "md5"
    md5 = described["outs"][0]["md5"]
    listed = json.loads((objects / md5[:2] / md5[2:]).read_text())
    forged = json.dumps([*listed, {"md5": listed[0]["md5"], "relpath": path}]).encode()
    digest = hashlib.md5(forged).hexdigest() + ".dir"
    (objects / digest[:2]).mkdir(exist_ok=True)
    (objects / digest[:2] / digest[2:]).write_bytes(forged)
    described["outs"][0]["md5"] = digest
    return yaml.safe_dump(described)


@pytest.mark.parametrize("path", ["../pwned", "../../pwned", "x/../../../pwned"])
def test_a_list_of_files_from_a_remote_does_not_lead_out(project: Path, path: str) -> None:
    """`dvc checkout` itself would write there."""
    publish(project, "hostile/round-000", forge_folder(project, path))
    with pytest.raises(VersioningError, match="names files outside"):
        Repository(project).checkout_round("hostile/round-000")
    assert not [*project.parent.rglob("pwned")]
    assert (project / "data" / "toy" / "seed").read_text() == "seed"


def test_a_tag_whose_data_lies_elsewhere_is_not_restored(project: Path) -> None:
    described = yaml.safe_load((project / "data.dvc").read_text())
    described["outs"][0]["path"] = "../pwned"
    publish(project, "hostile/round-000", yaml.safe_dump(described))
    with pytest.raises(VersioningError, match=r"names files outside|has no data/toy\.dvc"):
        Repository(project).checkout_round("hostile/round-000")
    assert not [*project.parent.rglob("pwned")]


def test_a_link_in_the_way_is_replaced_and_not_followed(project: Path) -> None:
    outside = project.parent / "outside"
    outside.write_text("mine")
    seed = project / "data" / "toy" / "seed"
    seed.unlink()
    seed.symlink_to(outside)
    Repository(project).checkout_round("honest/round-000")
    assert outside.read_text() == "mine"
    assert seed.read_text() == "seed"
    assert not seed.is_symlink()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_others_reach_the_servers_by_passwords_alone(project: Path, host: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    command = [sys.executable, "-m", "flows.cli", "serve", "--root", str(project), "--host", host]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "set PREFECT_SERVER_API_AUTH_STRING and MLFLOW_AUTH_ADMIN_PASSWORD first" in done.stderr


def test_workers_do_not_inherit_passwords_of_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql://u:secret@db/prefect")
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://u:secret@db/mlflow")
    worker, server = (Part("part", (), lambda: True, is_server=is_server).environment() for is_server in (False, True))
    assert "secret" not in " ".join(worker.values())
    assert server["MLFLOW_BACKEND_STORE_URI"] == "postgresql://u:secret@db/mlflow"


def test_a_fault_of_a_store_is_told_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message goes to logs and to Prefect's page."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://lab:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingUnavailable, match=r"MLflow at http://\*\*\*@127.0.0.1:9") as found:
        log_round(tmp_path, make_record(tmp_path, 0))
    assert "secret" not in str(found.value)


def test_addresses_lose_their_passwords() -> None:
    assert without_passwords("a postgresql+asyncpg://u:p%40@h/d?x=1 b") == "a postgresql+asyncpg://***@h/d?x=1 b"
    assert without_passwords("http://host:4200/@x") == "http://host:4200/@x"
