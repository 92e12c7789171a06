"""Nothing is lost between clones, and nothing believed: bytes, tags and remotes are looked at."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest
import yaml

from cgal.errors import BadFile, BadParams, VersioningError
from flows.campaign.active_learning import active_learning
from flows.campaign.opening import campaign_state, continue_campaign, fetch_data
from flows.versioning import Repository, remotes
from flows.versioning.exchange import Exchange, RemoteUnreachable
from flows.versioning.published_files import bring_outputs
from flows.workspace import Workspace
from tests.test_versioning import (
    PARAMS,
    append_shard,
    contents,
    make_other,
    own_identity,
    run_stages,
    shell,
    user_state,
    write,
)

__all__ = ["own_identity"]  # a fixture

TAGS = ("demo/round-000", "demo/round-001")
NOBODY = 65534
KINDS = (
    "round/model.pt",
    "round/plots/benchmark/tica.png",
    "round/plots/benchmark",
    "data/toy/shards/001.h5",
    "data/toy",
)
"""An output, one in a folder of outputs, that folder's list of files; a shard, and the dataset's list of files."""


@pytest.fixture
def root(two_rounds: Path, tmp_path: Path) -> Path:
    """Working copy with rounds 0 and 1 published."""
    return Path(shutil.copytree(two_rounds, tmp_path / "work"))


def object_of(root: Path, tag: str, path: str, store: Path | None = None) -> Path:
    """File of a round in the DVC cache, or in the folder of a remote."""
    store = store or root / ".dvc" / "cache"
    outs = yaml.safe_load(shell(root, f"git show {tag}:data.dvc"))["outs"]
    outs += [
        out for stage in yaml.safe_load(shell(root, f"git show {tag}:dvc.lock"))["stages"].values()
        for out in stage["outs"]
    ]  # fmt: skip
    (out,) = [out for out in outs if path == out["path"] or path.startswith(f"{out['path']}/")]
    digest = out["md5"]
    if digest.endswith(".dir") and path != out["path"]:
        listed = json.loads((root / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]).read_text())
        (digest,) = [each["md5"] for each in listed if each["relpath"] == path.removeprefix(f"{out['path']}/")]
    return store / "files" / "md5" / digest[:2] / digest[2:]


def damage(path: Path) -> None:
    """Let a file have other bytes, and be read-only as DVC leaves it: it then takes it for good."""
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"X")
    path.chmod(0o444)


def lab(root: Path, url: Path | str) -> None:
    """What `dvc remote add --local --default lab URL` writes."""
    write(root / ".dvc" / "config.local", f"[core]\n    remote = lab\n['remote \"lab\"']\n    url = {url}\n")


# ---------------------------------------------------------------------------------- bytes


def bytes_of_round(root: Path) -> dict[str, str]:
    """What DVC brings back: all but the wall times, which are no output."""
    held = {name: held for name, held in contents(root).items() if name.startswith(("round/", "data/"))}
    return {name: digest for name, digest in held.items() if name != "round/timings.json"}


def test_a_round_whose_cached_bytes_are_damaged_is_not_restored(root: Path) -> None:
    Repository(root).checkout_round(TAGS[0])
    before = bytes_of_round(root)
    for path in KINDS:
        held = object_of(root, TAGS[1], path)
        good = held.read_bytes()
        damage(held)
        said = rf"demo/round-001 is not restored, all is as it was: {path} of demo/round-001: .*damaged"
        with pytest.raises(VersioningError, match=said):
            Repository(root).checkout_round(TAGS[1])
        assert bytes_of_round(root) == before, path
        (aside,) = (root / ".cgal" / "damaged").iterdir()
        assert aside.read_bytes() == good + b"X", "set aside, not thrown away"
        aside.unlink()
        held.write_bytes(good)


def test_good_copies_come_from_the_remote(root: Path, tmp_path: Path) -> None:
    expected = bytes_of_round(root)
    lab(root, tmp_path / "lab")
    Repository(root).send()
    Repository(root).checkout_round(TAGS[0])
    held = [object_of(root, TAGS[1], path) for path in KINDS]
    for spoil in (damage, Path.unlink):
        for path in held:
            spoil(path)
        Repository(root).checkout_round(TAGS[1])
        assert bytes_of_round(root) == expected
        Repository(root).checkout_round(TAGS[0])


def test_good_copies_come_from_the_workspace_before_it_is_overwritten(root: Path) -> None:
    """Round 1 lies in the workspace; its damaged copy in the cache is mended when round 0 replaces it there."""
    for held in [object_of(root, TAGS[1], path) for path in KINDS]:
        damage(held)
    expected = bytes_of_round(root)
    Repository(root).checkout_round(TAGS[0])
    Repository(root).checkout_round(TAGS[1])
    assert bytes_of_round(root) == expected


@pytest.mark.parametrize("path", ["round/model.pt", "round/plots/benchmark"])
def test_a_remote_with_damaged_bytes_is_not_believed(path: str, root: Path, tmp_path: Path) -> None:
    """A file, and the list of a folder's files."""
    lab(root, tmp_path / "lab")
    Repository(root).send()
    there, here = (object_of(root, TAGS[0], path, store) for store in (tmp_path / "lab", None))
    damage(there)
    good = here.read_bytes()
    here.unlink()
    said = rf"{path} of demo/round-000: .*damaged in DVC remote lab \(delete .*{there}: .* never sent again"
    with pytest.raises(VersioningError, match=said):
        Repository(root).checkout_round(TAGS[0])
    there.unlink()
    here.write_bytes(good)
    (delivery,) = Repository(root).send()
    assert (delivery.sent, delivery.warning, there.read_bytes()) == (1, "", good)


def test_a_file_changed_behind_dvcs_back_is_not_called_restored(root: Path) -> None:
    """Of the same size and time, DVC takes it for what it was."""
    path = root / "round" / "model.pt"
    assert "up to date" in shell(root, "dvc status")
    moment = path.stat()
    with path.open("r+b") as stream:
        stream.write(b"M")
    os.utime(path, ns=(moment.st_atime_ns, moment.st_mtime_ns))
    assert "up to date" in shell(root, "dvc status")
    for action in (lambda: Repository(root).checkout_round(TAGS[1]), lambda: Repository(root).publish("demo", 1)):
        with pytest.raises(VersioningError, match=r"round/model\.pt.*changed behind DVC's back"):
            action()
    path.unlink()
    Repository(root).checkout_round(TAGS[1])
    assert path.read_text() == "model 1"


def test_publishing_mends_the_cache_from_the_workspace(root: Path) -> None:
    good = {held: held.read_bytes() for held in (object_of(root, TAGS[1], path) for path in KINDS)}
    for held in good:
        damage(held)
    assert Repository(root).publish("demo", 1).warnings == ()
    assert {held: held.read_bytes() for held in good} == good


def test_damaged_bytes_are_not_sent(root: Path, tmp_path: Path) -> None:
    damage(object_of(root, TAGS[0], "round/plots/benchmark/tica.png"))
    lab(root, tmp_path / "lab")
    (warning,) = Repository(root).publish("demo", 1).warnings
    assert "DVC remote lab lacks round/plots/benchmark/tica.png of demo/round-000, and" in warning
    assert "this clone has no good copy: 'cgal push' in a clone that has one sends it" in warning
    assert not object_of(root, TAGS[0], "round/plots/benchmark", tmp_path / "lab").exists(), "a list without its file"
    assert object_of(root, TAGS[0], "round/model.pt", tmp_path / "lab").exists()


# ---------------------------------------------------------------------------------- tags


@pytest.mark.parametrize("target", ["demo/round-001", "main"])
def test_a_moved_tag_is_named_and_not_believed(target: str, root: Path) -> None:
    repository, right = Repository(root), shell(root, f"git rev-parse {TAGS[0]}").strip()
    before = user_state(root)
    shell(root, f"git tag -f {TAGS[0]} {target}")
    said = rf"the tag demo/round-000 was moved: it points to .*put it back with 'git tag -f demo/round-000 {right}'"
    for action in (
        lambda: repository.checkout_round(TAGS[0]),
        lambda: repository.published("demo"),
        lambda: repository.published_round("demo", 0),
        lambda: repository.publish("demo", 0),
    ):
        with pytest.raises(VersioningError, match=said):
            action()
    assert user_state(root) == before
    assert [*repository.moved_tags("demo")] == [TAGS[0]]
    assert [entry.tag for entry in repository.published("demo", but=[TAGS[0]])] == [TAGS[1]]
    shell(root, f"git tag -f {TAGS[0]} {right}")
    assert [entry.tag for entry in repository.published("demo")] == [*TAGS]


# ---------------------------------------------------------------------------------- remotes


def test_a_round_whose_push_failed_is_sent_with_the_next(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "lab", "a file where the remote's folder should be")
    lab(root, tmp_path / "lab")
    Repository(root).checkout_round(TAGS[0])
    (warning,) = Repository(root).publish("demo", 0).warnings
    assert "DVC remote lab does not answer" in warning
    (tmp_path / "lab").unlink()
    Repository(root).checkout_round(TAGS[1])
    assert Repository(root).publish("demo", 1).warnings == ()
    for tag in TAGS:
        assert object_of(root, tag, "round/trajectory.h5", tmp_path / "lab").is_file()


def test_a_file_lost_in_the_remote_is_noticed_and_sent_again(root: Path, tmp_path: Path) -> None:
    """The list of the folder's files is there, and so DVC takes the folder for complete (iterative/dvc#10977)."""
    lab(root, tmp_path / "lab")
    Repository(root).send()
    lost = object_of(root, TAGS[0], "data/toy/shards/000.h5", tmp_path / "lab")
    lost.unlink()
    (delivery,) = Repository(root).compare_remotes("demo")
    assert (delivery.lacking, delivery.lost) == (TAGS, ())
    assert delivery.warning == "DVC remote lab lacks demo/round-000, demo/round-001; 'cgal push' sends what is missing"
    (delivery,) = Repository(root).send()
    assert (delivery.sent, delivery.lacking, delivery.warning) == (1, (), "")
    assert lost.is_file()


def test_what_neither_remote_nor_clone_has_is_named(root: Path, tmp_path: Path) -> None:
    object_of(root, TAGS[0], "round/oracle.h5").unlink()
    lab(root, tmp_path / "lab")
    (delivery,) = Repository(root).send()
    assert (delivery.lacking, delivery.lost) == ((TAGS[0],), ("round/oracle.h5 of demo/round-000",))


@pytest.fixture
def silent_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server's address that takes connections and never answers."""
    monkeypatch.setattr(remotes, "ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            monkeypatch.setenv(f"AWS_{name}", "key")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        yield address


@pytest.mark.usefixtures("silent_s3")
def test_a_silent_remote_costs_little_and_leaves_dvcs_lock_alone(root: Path) -> None:
    lab(root, "s3://cgal/dvc")
    started = monotonic()
    (warning,) = Repository(root).publish("demo", 1).warnings
    assert "DVC remote lab does not answer: nothing came within 1 s" in warning
    with pytest.raises(RemoteUnreachable, match="nothing came within 1 s"):
        Exchange(root).push(["0" * 32])
    assert monotonic() - started < 20
    assert remotes.ANSWER_S == 1.0


def test_a_transfer_takes_its_time_while_the_remote_answers(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remotes, "ANSWER_S", 0.01)
    lab(root, tmp_path / "lab")
    (delivery,) = Repository(root).send()
    assert delivery.warning == ""
    assert delivery.sent > 10


def test_the_list_of_rounds_names_what_a_remote_lacks_and_what_was_moved(root: Path, tmp_path: Path) -> None:
    lab(root, tmp_path / "lab")
    Repository(root).send()
    object_of(root, TAGS[1], "round/model.pt", tmp_path / "lab").unlink()
    shell(root, f"git tag -f {TAGS[0]} main")
    moved, lacking = json.loads(shell(root, "cgal rounds --json"))
    assert (moved["round"], moved["tag"]) == (0, TAGS[0])
    assert "was moved: it points to no round" in moved["moved"]
    assert (lacking["tag"], lacking["lacking_in"]) == (TAGS[1], ["lab"])
    said = " ".join(shell(root, "cgal rounds").split())
    assert "the tag demo/round-000 was moved" in said
    assert "DVC remote lab lacks demo/round-001; 'cgal push' sends what is missing" in said
    shell(root, f"git tag -f {TAGS[0]} {TAGS[1]}~1")
    write(tmp_path / "file", "no folder")
    lab(root, tmp_path / "file")
    entries = json.loads(shell(root, "cgal rounds --json"))
    assert [entry["lacking_in"] for entry in entries] == [None, None], "not known"


# ---------------------------------------------------------------------------------- clones


def test_a_clone_from_gits_remote_has_all_rounds_after_a_push(root: Path, tmp_path: Path) -> None:
    said = subprocess.run(["cgal", "push"], cwd=root, capture_output=True, text=True)
    assert said.returncode == 1
    assert "no DVC remote of your own" in said.stderr
    assert "no git remote" in said.stderr
    shell(tmp_path, "git init -q --bare hub.git")
    shell(root, f"git remote add origin {tmp_path}/hub.git && git push -q origin main")
    lab(root, tmp_path / "lab")
    said = shell(root, "cgal push")
    assert "DVC remote lab has all rounds" in said
    assert "git remote origin has their branches and tags" in said
    shell(tmp_path, "git clone -q -b main hub.git clone && git --git-dir hub.git tag -f demo/round-000 main")
    refused = subprocess.run(["cgal", "push"], cwd=root, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "DVC remote lab has all rounds; 0 files were sent" in refused.stdout
    assert "git push: " in refused.stderr
    assert "demo/round-000 -> demo/round-000 (already exists)" in refused.stderr
    shell(root, "git push -q --force origin demo/round-000")
    clone = Repository(tmp_path / "clone")
    lab(clone.root, tmp_path / "lab")
    assert clone.published("demo") == Repository(root).published("demo")
    clone.checkout_round(TAGS[1])
    assert bytes_of_round(clone.root) == bytes_of_round(root)
    assert "DVC remote lab has all rounds; 0 files were sent" in shell(clone.root, "cgal push")
    append_shard(clone.root, 2)
    run_stages(clone.root)
    clone.publish("demo", 2)
    assert "git remote origin has their branches and tags" in shell(clone.root, "cgal push"), "no second history"


def test_a_shallow_clone_says_that_it_is_shallow(root: Path, tmp_path: Path) -> None:
    shell(tmp_path, f"git clone -q --depth 1 file://{root} clone")
    clone = Repository(tmp_path / "clone")
    for action in (lambda: clone.checkout_round(TAGS[0]), lambda: clone.published_round("demo", 0)):
        with pytest.raises(VersioningError, match=r"this is a shallow clone.*'git fetch --unshallow --tags'"):
            action()
    shell(clone.root, "git fetch -q --unshallow --tags")
    assert len(clone.published("demo")) == 2


# ---------------------------------------------------------------------------------- going on


def test_outputs_of_a_published_round_come_back_and_nothing_else_changes(root: Path) -> None:
    """What lies in `round/` may be of a later 'dvc repro'; edits of params.yaml are for the next round."""
    expected = contents(root / "round")
    write(root / "params.yaml", yaml.safe_dump(PARAMS | {"seed": 2}))
    run_stages(root)
    write(root / "round" / "oracle.h5", "other forces")
    (root / "round" / "selection.json").unlink()
    before = {name: (root / name).read_bytes() for name in ("params.yaml", "dvc.lock", "data.dvc")}
    bring_outputs(Repository(root), TAGS[1])
    assert contents(root / "round") == expected
    assert {name: (root / name).read_bytes() for name in before} == before


def test_a_campaign_without_its_data_goes_on_from_its_last_round(root: Path) -> None:
    """As in a fresh clone, where the bundled seed has no manifest and a protein of one's own has no data."""
    expected, repository = contents(root / "data"), Repository(root)
    (root / "data" / "toy" / "manifest.json").unlink()
    continue_campaign(Workspace(root), repository, campaign_state(Workspace(root), repository))
    assert contents(root / "data") == expected
    make_other(root)
    run_stages(root)
    repository.publish("second", 0)
    expected = contents(root / "data")
    shutil.rmtree(root / "data" / "other")
    with pytest.raises(BadFile, match=r"other/seed\.h5: no such file"):  # the toy has none
        fetch_data(Workspace(root), repository)
    assert contents(root / "data") == expected


def test_data_that_were_replaced_do_not_give_way_to_a_campaign_without_a_word(root: Path) -> None:
    """As after `cgal import --replace`."""
    (root / "data" / "toy" / "manifest.json").unlink()
    write(root / "data" / "toy" / "structure.pdb", "another molecule")
    before, repository = user_state(root), Repository(root)
    said = r"data/toy/structure\.pdb: not what campaign demo began with; .*--new NAME.*cgal checkout demo/round-001'"
    with pytest.raises(BadParams, match=said):
        continue_campaign(Workspace(root), repository, campaign_state(Workspace(root), repository))
    assert user_state(root) == before


# ---------------------------------------------------------------------------------- early


def test_a_name_that_is_in_the_way_is_said_before_the_campaign(root: Path) -> None:
    refs = shell(root, "git for-each-ref")
    Repository(root).require_publishable("demo")
    Repository(root).require_publishable("new")
    assert shell(root, "git for-each-ref") == refs
    shell(root, "git tag taken")
    with pytest.raises(
        VersioningError, match=r"no round of campaign taken could be published .*'refs/tags/taken' exists"
    ):
        active_learning.fn(root, "taken")
    shell(root, "git symbolic-ref HEAD refs/heads/campaign/demo")
    with pytest.raises(VersioningError, match="campaign/demo is checked out"):
        active_learning.fn(root, "demo")


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be somebody whom permissions hold back, who is not root."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def owned(two_rounds: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Working copy of somebody who is not root, in a folder that they reach."""
    home = Path(tempfile.mkdtemp(prefix="cgal-"))
    root = home / "work"
    shutil.copytree(two_rounds, root)
    if os.geteuid() == 0:
        for path in (home, *home.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    monkeypatch.setenv("HOME", str(home))
    yield root
    shutil.rmtree(home)


def test_a_folder_that_cannot_be_written_is_said_before_the_campaign(owned: Path) -> None:
    repository = Repository(owned)
    with unprivileged():
        repository.require_writable()
    for name in (".", ".git/objects", ".git/refs", ".dvc/cache/files/md5", "data", "round"):
        folder = owned / name
        mode = folder.stat().st_mode
        folder.chmod(0o555)
        with unprivileged(), pytest.raises(VersioningError, match=rf"{folder}: cannot be written \(Permission denied"):
            active_learning.fn(owned, "demo")
        folder.chmod(mode)


def test_a_cache_that_cannot_be_made_is_said_before_the_campaign(root: Path) -> None:
    shell(root, "dvc cache dir --local /proc/nowhere")
    with pytest.raises(VersioningError, match=r"/proc/nowhere/files/md5: cannot be written.*'dvc cache dir --local"):
        active_learning.fn(root, "demo")
