"""What docs/operations.md says of back-up, restore, upgrade and pruning: its commands, on real stores."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flows.tracking.runs import log_round
from flows.versioning import Repository
from tests.test_tracking import make_record
from tests.test_versioning import append_shard, contents, run_stages, shell, write

TAGS = ("demo/round-000", "demo/round-001")


@pytest.fixture
def root(two_rounds: Path, tmp_path: Path) -> Path:
    """Working copy with rounds 0 and 1 published."""
    return Path(shutil.copytree(two_rounds, tmp_path / "work"))


def restored(root: Path, tag: str) -> dict[str, str]:
    Repository(root).checkout_round(tag)
    return bytes_of_round(root)


def bytes_of_round(root: Path) -> dict[str, str]:
    """What DVC brings back: all but the wall times, which are no output."""
    held = contents(root / "data") | contents(root / "round")
    return {name: digest for name, digest in held.items() if name != "timings.json"}


def objects(folder: Path) -> set[str]:
    return {path.name for path in (folder / "files" / "md5").glob("*/*")}


def test_pruning_the_cache_keeps_every_round_and_the_one_at_work(root: Path) -> None:
    """Gone are bytes that neither a tag nor the workspace names, such as those of a round that was given up."""
    rounds = {tag: restored(root, tag) for tag in TAGS}
    append_shard(root, 2)
    run_stages(root)
    at_work = contents(root / "round")
    Repository(root).dvc.record_data()
    write(root / "data" / "toy" / "given-up", "bytes of no round")
    Repository(root).dvc.record_data()
    (root / "data" / "toy" / "given-up").unlink()
    Repository(root).dvc.record_data()
    before = objects(root / ".dvc" / "cache")

    said = shell(root, "dvc gc --workspace --all-tags --force")

    gone = before - objects(root / ".dvc" / "cache")
    assert len(gone) == 2, said  # the file, and the list of files that named it
    assert contents(root / "round") == at_work
    assert "Data and pipelines are up to date." in shell(root, "dvc status")
    Repository(root).publish("demo", 2)
    assert {tag: restored(root, tag) for tag in TAGS} == rounds


def test_pruning_a_remote_keeps_every_round_in_a_fresh_clone(root: Path, tmp_path: Path) -> None:
    rounds = {tag: restored(root, tag) for tag in TAGS}
    shell(root, f"dvc remote add -q --local --default lab {tmp_path / 'lab'}")  # counts for earlier rounds too
    shell(root, "cgal push")
    stray = tmp_path / "lab" / "files" / "md5" / "00" / ("0" * 30)
    write(stray, "bytes of no round")
    shell(root, "dvc gc --workspace --all-tags --cloud --remote lab --force")
    assert not stray.exists()
    shell(tmp_path, f"git clone -q {root} clone")
    clone = tmp_path / "clone"
    shell(clone, f"dvc remote add -q --local --default lab {tmp_path / 'lab'}")
    for tag in TAGS:
        shell(clone, f"git checkout -q {tag} -- data.dvc dvc.lock params.yaml && dvc pull --force")
        assert bytes_of_round(clone) == rounds[tag]


def test_a_lost_project_comes_back_from_a_bundle_and_the_remote(root: Path, tmp_path: Path) -> None:
    rounds = {tag: restored(root, tag) for tag in TAGS}
    shell(root, f"dvc remote add -q --local --default lab {tmp_path / 'lab'}")  # counts for earlier rounds too
    shell(root, "mkdir backup && git bundle create -q backup/project.bundle --all && cgal push")
    bundle = shutil.move(root / "backup" / "project.bundle", tmp_path)
    shutil.rmtree(root)

    shell(tmp_path, f"git clone -q {bundle} work")
    shell(root, "git fetch -q origin 'refs/heads/campaign/*:refs/heads/campaign/*'")
    shell(root, f"dvc remote add -q --local --default lab {tmp_path / 'lab'}")
    shell(root, f"git checkout -q {TAGS[1]} -- data.dvc dvc.lock params.yaml && dvc pull -q --force")
    shell(root, "dvc fetch -q --all-tags")

    assert {tag: restored(root, tag) for tag in TAGS} == rounds
    assert shell(root, "git rev-parse campaign/demo") == shell(root, f"git rev-parse {TAGS[1]}")


def test_a_database_in_use_is_copied_whole(tmp_path: Path) -> None:
    """`VACUUM INTO`, beside a program that has not closed the file, and has written to its journal alone."""
    with closing(sqlite3.connect(tmp_path / "prefect.db")) as used:
        used.execute("PRAGMA journal_mode = WAL")
        used.execute("CREATE TABLE run (id)")
        used.executemany("INSERT INTO run VALUES (?)", [(k,) for k in range(1000)])
        used.commit()
        used.execute("BEGIN")
        used.execute("DELETE FROM run")
        copy(tmp_path / "prefect.db", tmp_path / "copy.db")
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copied:
        assert copied.execute("SELECT count(*) FROM run").fetchone() == (1000,)


def copy(database: Path, target: Path) -> None:
    subprocess.run([sys.executable, "-m", "sqlite3", database, f"VACUUM INTO '{target}'"], check=True)


def run(root: Path, *command: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=root, env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tracking_is_upgraded_pruned_and_comes_back(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was deleted in the page goes for good, with its figures; the copy from before still has it."""
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root, store = tmp_path / "project", f"sqlite:///{tmp_path}/project/mlflow.db"
    root.mkdir()
    shutil.copy(empty_database, root)
    kept, dropped = (log_round(root, make_record(root, k)) for k in (0, 1))
    figures = root / "mlartifacts" / "chignolin"
    copy(root / "mlflow.db", tmp_path / "mlflow.db")
    shutil.copytree(root / "mlartifacts", tmp_path / "mlartifacts")
    MlflowClient(store).delete_run(dropped.round)

    run(root, "mlflow", "db", "upgrade", store)
    run(root, "mlflow", "gc", "--backend-store-uri", store, MLFLOW_TRACKING_URI=store)

    assert (figures / kept.round).is_dir()
    assert not [path for path in (figures / dropped.round).rglob("*") if path.is_file()]
    assert rounds_in(root / "mlflow.db") == ["round-000"]
    (root / "mlflow.db").unlink()
    shutil.rmtree(root / "mlartifacts")
    shutil.copy(tmp_path / "mlflow.db", root)
    shutil.copytree(tmp_path / "mlartifacts", root / "mlartifacts")
    assert rounds_in(root / "mlflow.db") == ["round-000", "round-001"]
    assert [*(figures / dropped.round).rglob("*.png")]


def rounds_in(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as opened:
        return [name for (name,) in opened.execute("SELECT name FROM runs WHERE name LIKE 'round-%' ORDER BY name")]
