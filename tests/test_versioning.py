"""Laws of versioning, on real git and real DVC; the stages are stood in for by small files."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from filelock import Timeout

from cgal.errors import CampaignLocked, VersioningError
from flows.versioning import CampaignLock, PublishedRound, Repository, RepositoryBusy, dvc_session
from flows.versioning.lock import held
from flows.versioning.round_files import has_newer_inputs
from flows.versioning.rounds import round_tag
from flows.versioning.work_trees import make_work_tree

PROJECT = Path(__file__).parents[1]
SHARD_BYTES = 100_000
STAGES = ("train", "simulate", "benchmark", "select", "label")
PARAMS = yaml.safe_load((PROJECT / "params.yaml").read_text()) | {"protein": "toy", "campaign": {"name": "demo"}}


def shell(root: Path, command: str) -> str:
    """What a user types; stdout and stderr together."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, shell=True, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def append_shard(root: Path, k: int) -> None:
    """Shard k and what else changes in `data/` when a round opens; a new file each, as `cgal.dataset` does."""
    data = root / "data" / "toy"
    write(data / "shards" / f"{k:03d}.h5", hashlib.shake_256(f"shard {k}".encode()).digest(SHARD_BYTES))
    write(data / "manifest.json", f'{{"shards": {k + 1}}}')
    write(data / "warm_start.pt", f"checkpoint before round {k}")


def metrics(k: int) -> dict[str, object]:
    value = 1.0 / (k + 1)
    return {
        "round": k,
        **{name: {"tica": {"value": value, "low": value, "high": value}} for name in ("w1", "w1_exact", "w1_paper")},
        **{name: {"tica": 0.1} for name in ("floor", "floor_exact", "floor_paper")},
        "dataset": {"frames": 10 + k, "oracle_steps": 100, "acquisition_steps": 0, "oracle_failed": 0},
        "simulation": {"exploded_fraction": 0.0, "replicas": 4, "exploded": 0, "imploded": 0, "not_finite": 0},
    }


def run_stages(root: Path) -> None:
    """Stand-in for a round: outputs that depend on the manifest, recorded stage by stage."""
    repository = Repository(root)
    k = json.loads((root / "data" / "toy" / "manifest.json").read_text())["shards"] - 1
    outputs = {
        "model.pt": f"model {k}",
        "training.csv": f"epoch,train_rmse_kJ_per_mol_nm,validation_rmse_kJ_per_mol_nm\n0,2.0,3.0\n1,1.0,{k + 1}\n",
        "plots/training/curve.png": f"curve {k}",
        "trajectory.h5": f"trajectory {k}",
        "metrics.json": json.dumps(metrics(k)),
        "histograms.json": "{}",
        "plots/benchmark/tica.png": f"map {k}",
        "selection.h5": f"selection {k}",
        "selection.json": json.dumps({"closing": ""}),
        "plots/selection/gap.png": f"gap {k}",
        "oracle.h5": f"forces {k}",
        "timings.json": '{"seconds": {"train": 1.0}}',
    }
    for name, content in outputs.items():
        write(root / "round" / name, content)
    for stage in STAGES:
        repository.dvc.record_stage(stage)


def new_repository(root: Path) -> None:
    """A project as on main: code, pipeline, params, bundled seed; one commit."""
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        write(root / name, (PROJECT / name).read_bytes())
    write(root / "params.yaml", yaml.safe_dump(PARAMS))
    write(root / "cgal" / "code.py", "print('code')\n")
    shell(root, "git init -q -b main . && git config user.name Ada && git config user.email ada@example.org")
    for name in ("structure.pdb", "reference.h5"):
        write(root / "data" / "toy" / name, name)
    append_shard(root, 0)
    write(root / "data.dvc", "outs:\n- path: data/toy\n")
    Repository(root).dvc.record_data()
    shell(root, "dvc push -q -r bundled data.dvc && git add . && git commit -qm 'Code and seed'")


def publish_two_rounds(root: Path) -> None:
    run_stages(root)
    Repository(root).publish("demo", 0)
    append_shard(root, 1)
    run_stages(root)
    Repository(root).publish("demo", 1)


@pytest.fixture(autouse=True)
def own_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits are of whom git knows: the fixture `git_identity` of other tests would overrule it."""
    for name in ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL"):
        monkeypatch.delenv(f"GIT_{name}", raising=False)


@pytest.fixture
def fresh(seeded: Path, tmp_path: Path) -> Path:
    """Working copy before its first round."""
    return Path(shutil.copytree(seeded, tmp_path / "work"))


@pytest.fixture
def root(two_rounds: Path, tmp_path: Path) -> Path:
    """Working copy with rounds 0 and 1 published."""
    return Path(shutil.copytree(two_rounds, tmp_path / "work"))


def user_state(root: Path) -> dict[str, object]:
    return {
        "head": (root / ".git" / "HEAD").read_text() + shell(root, "git rev-parse HEAD"),
        "index": sha256(root / ".git" / "index"),
        "files": {name: content for name, content in contents(root).items() if not name.startswith((".git/", ".dvc/"))},
        "status": shell(root, "GIT_OPTIONAL_LOCKS=0 git status --porcelain=v2"),
    }


def test_publishing_leaves_head_index_and_dirty_files_as_they_were(fresh: Path) -> None:
    run_stages(fresh)
    Repository(fresh).dvc.record_data()
    write(fresh / "cgal" / "code.py", "print('edited')\n")
    write(fresh / "cgal" / "staged.py", "print('staged')\n")
    write(fresh / "notes.txt", "untracked")
    shell(fresh, "git add cgal/staged.py")
    before = user_state(fresh)

    published = Repository(fresh).publish("demo", 0)

    assert user_state(fresh) == before
    assert shell(fresh, "git rev-parse campaign/demo demo/round-000").split() == [published.commit] * 2
    message = shell(fresh, "git log -1 --format='%an %B' demo/round-000")
    head = shell(fresh, "git rev-parse HEAD").strip()
    assert message.startswith("Ada ")
    assert f"Code: {head} (with uncommitted changes)" in message
    assert "print('code')" in shell(fresh, "git show demo/round-000:cgal/code.py"), "dirty code is named, not committed"


def test_a_container_names_the_commit_of_its_image(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project that is mounted there may stand at any commit."""
    run_stages(fresh)
    Repository(fresh).dvc.record_data()
    monkeypatch.setenv("CGAL_COMMIT", "c0ffee")
    Repository(fresh).publish("demo", 0)
    assert "\nCode: c0ffee (image)\n" in shell(fresh, "git log -1 --format=%B demo/round-000")


def test_stock_commands_restore_the_bytes_and_then_nothing_has_changed(root: Path) -> None:
    newest = contents(root / "data"), contents(root / "round")
    append_shard(root, 2)
    shell(root, "git checkout -q demo/round-000 -- data.dvc dvc.lock params.yaml && dvc checkout -q --force")
    assert sorted(contents(root / "data" / "toy" / "shards")) == ["000.h5"]
    assert (root / "round" / "model.pt").read_text() == "model 0"

    shell(root, "git checkout -q demo/round-001 -- data.dvc dvc.lock params.yaml && dvc checkout -q")
    assert (contents(root / "data"), contents(root / "round")) == newest
    assert "Data and pipelines are up to date." in shell(root, "dvc repro")


def test_metrics_of_two_rounds_compare_with_stock_commands(root: Path) -> None:
    difference = json.loads(shell(root, "dvc metrics diff --json demo/round-000 demo/round-001"))
    assert difference["round/metrics.json"]["w1.tica.value"] == {"old": 1.0, "new": 0.5, "diff": -0.5}


def test_rounds_are_listed_in_order_with_what_they_are_made_of(root: Path) -> None:
    rounds = Repository(root).published("demo")
    assert [(entry.round_index, entry.tag) for entry in rounds] == [(0, "demo/round-000"), (1, "demo/round-001")]
    assert rounds[1].model_md5 == hashlib.md5(b"model 1").hexdigest()
    assert rounds[1].data_md5 == yaml.safe_load((root / "data.dvc").read_text())["outs"][0]["md5"]
    assert shell(root, "git log --format=%H -2 campaign/demo").split() == [rounds[1].commit, rounds[0].commit]
    assert Repository(root).published("unheard") == []
    assert Repository(root).is_published("demo", 1)
    assert not Repository(root).is_published("demo", 2)
    with pytest.raises(VersioningError, match="no published round 7"):
        Repository(root).published_round("demo", 7)


def test_small_results_are_read_with_git_alone(root: Path) -> None:
    repository = Repository(root)
    shutil.rmtree(root / ".dvc" / "cache")
    assert json.loads(repository.read_round_file("demo/round-000", "round/metrics.json"))["w1"]["tica"]["value"] == 1.0
    assert b"train" in repository.read_round_file("demo/round-001", "round/timings.json")
    with pytest.raises(VersioningError, match=r"demo/round-000 has no round/model\.pt"):
        repository.read_round_file("demo/round-000", "round/model.pt")


def cached_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / ".dvc" / "cache").rglob("*") if path.is_file())


def test_storage_grows_by_the_new_shard_only(root: Path) -> None:
    before = cached_bytes(root)
    append_shard(root, 2)
    run_stages(root)
    Repository(root).publish("demo", 2)
    growth = cached_bytes(root) - before
    # Besides the shard: the other stand-in files and the folder listings, a few hundred bytes each.
    assert SHARD_BYTES <= growth < SHARD_BYTES + 5_000


def test_publishing_again_changes_nothing(root: Path) -> None:
    refs = shell(root, "git for-each-ref")
    assert Repository(root).publish("demo", 1) == Repository(root).published_round("demo", 1)
    assert shell(root, "git for-each-ref") == refs


def test_a_published_round_is_never_replaced(root: Path) -> None:
    refs = shell(root, "git for-each-ref")
    append_shard(root, 2)
    run_stages(root)
    with pytest.raises(VersioningError, match=r"demo/round-001 exists and has another data\.dvc, dvc\.lock"):
        Repository(root).publish("demo", 1)
    assert shell(root, "git for-each-ref") == refs


def test_a_round_with_unrecorded_outputs_is_not_published(root: Path) -> None:
    append_shard(root, 2)
    with pytest.raises(VersioningError, match="stage train, simulate, benchmark, select, label has not run"):
        Repository(root).publish("demo", 2)


def test_a_checked_out_campaign_branch_is_not_moved(root: Path) -> None:
    append_shard(root, 2)
    run_stages(root)
    shell(root, "git symbolic-ref HEAD refs/heads/campaign/demo")
    with pytest.raises(VersioningError, match="campaign/demo is checked out"):
        Repository(root).publish("demo", 2)


def test_publishing_needs_no_git_identity(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    shell(fresh, "git config --unset user.name; git config --unset user.email; git config user.useConfigOnly true")
    run_stages(fresh)
    Repository(fresh).publish("demo", 0)
    assert shell(fresh, "git log -1 --format='%an <%ae>' demo/round-000").strip() == "cgal <cgal@localhost>"


def test_publishing_from_a_git_hook_stays_out_of_the_hooks_index(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    assert len(Repository(root).published("demo")) == 2


def test_a_stage_is_current_until_its_inputs_params_or_outputs_change(root: Path) -> None:
    repository = Repository(root)
    assert all(repository.dvc.stage_is_current(stage) for stage in STAGES)

    write(root / "round" / "model.pt", "MODEL 1")  # same size, in place
    assert not repository.dvc.stage_is_current("train")
    assert not repository.dvc.stage_is_current("simulate")
    write(root / "round" / "model.pt", "model 1")
    assert repository.dvc.stage_is_current("train")

    write(root / "params.yaml", yaml.safe_dump(PARAMS | {"force_field": {"ph": 6.0}}))
    assert not repository.dvc.stage_is_current("label")
    assert not repository.dvc.stage_is_current("select")  # what a label costs depends on its water
    assert repository.dvc.stage_is_current("simulate")

    (root / "data" / "toy" / "reference.h5").write_text("another")
    assert not repository.dvc.stage_is_current("benchmark")
    assert repository.dvc.stage_is_current("train")

    (root / "round" / "selection.h5").unlink()
    assert not repository.dvc.stage_is_current("select")


def test_a_stage_whose_inputs_were_made_anew_is_not_current_by_the_lock_file_alone(root: Path) -> None:
    write(root / "round" / "model.pt", "another model")
    repository = Repository(root)
    repository.dvc.record_stage("train")
    assert repository.dvc.stage_is_current("train")
    lock = (root / "dvc.lock").read_bytes()
    assert [stage for stage in STAGES if has_newer_inputs(lock, stage)] == ["simulate"]
    assert not repository.dvc.stage_is_current("simulate")


@pytest.mark.parametrize("content", [b"", b"[]", b"stages: {train: {deps: [{}]}}", b"stages: ["])
def test_a_lock_file_that_says_nothing_leaves_the_question_to_dvc(content: bytes) -> None:
    assert not has_newer_inputs(content, "train")


def test_a_stage_whose_outputs_left_the_cache_is_not_current(root: Path) -> None:
    shutil.rmtree(root / ".dvc" / "cache")
    assert not Repository(root).dvc.stage_is_current("train")


def test_a_stage_that_never_ran_is_not_current(fresh: Path) -> None:
    assert not Repository(fresh).dvc.stage_is_current("train")


def test_a_lock_file_cut_short_by_a_kill_costs_stages_never_the_campaign(root: Path) -> None:
    repository, content = Repository(root), (root / "dvc.lock").read_bytes()
    line = content.index(b"\n", len(content) // 2) + 1
    for size in (0, 9, len(content) // 3, line, line + 4, content.rindex(b"md5: ") + 6, len(content) - 1):
        write(root / "dvc.lock", content[:size])
        assert not repository.dvc.stage_is_current("label"), size
    run_stages(root)
    assert (root / "dvc.lock").read_bytes() == content
    assert repository.publish("demo", 1) == repository.published_round("demo", 1)


def test_a_data_file_cut_short_by_a_kill_is_made_again(root: Path) -> None:
    content = (root / "data.dvc").read_bytes()
    for size in (0, len(content) // 2):
        write(root / "data.dvc", content[:size])
        Repository(root).dvc.record_data()
        assert (root / "data.dvc").read_bytes() == content


def test_a_fresh_clone_pulls_the_bundled_seed_offline(seeded: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shell(tmp_path, f"git clone -q --no-local {seeded} {clone}")
    Repository(clone).dvc.pull_bundled()
    assert contents(clone / "data") == contents(seeded / "data")
    assert "up to date" in shell(clone, "dvc pull data.dvc")
    assert shell(clone, "git status --porcelain") == ""


def test_pulling_the_seed_leaves_unrecorded_data_alone(root: Path) -> None:
    append_shard(root, 2)
    before = contents(root / "data")
    with pytest.raises(VersioningError, match="unsaved files"):
        Repository(root).dvc.pull_bundled()
    assert contents(root / "data") == before


def test_data_that_no_round_names_comes_back_after_a_checkout(root: Path) -> None:
    append_shard(root, 2)
    unpublished = contents(root / "data")
    Repository(root).checkout_round("demo/round-000")
    assert contents(root / "data") != unpublished

    (saved,) = (root / ".cgal" / "saved").iterdir()
    shutil.copy(saved, root / "data.dvc")
    shell(root, "dvc checkout -q data.dvc")
    assert contents(root / "data") == unpublished


def make_other(root: Path) -> None:
    """Make data of a second protein, and choose it in params.yaml."""
    shutil.copytree(root / "data" / "toy", root / "data" / "other")
    write(root / "params.yaml", yaml.safe_dump(PARAMS | {"protein": "other", "campaign": {"name": "second"}}))
    Repository(root).dvc.record_data()


def test_a_round_of_one_protein_leaves_the_others_alone(root: Path) -> None:
    make_other(root)
    assert (root / "data" / "other.dvc").is_file()
    run_stages(root)
    Repository(root).publish("second", 0)
    assert shell(root, "git show second/round-000:data.dvc") == shell(root, "git show main:data.dvc")
    write(root / "data" / "toy" / "notes.txt", "work in hand on the other protein")
    expected = contents(root / "data")

    Repository(root).checkout_round("second/round-000")
    assert contents(root / "data") == expected
    shell(root, "git checkout -q second/round-000 -- data/other.dvc && dvc checkout -q data/other.dvc")
    assert contents(root / "data") == expected

    (root / "data" / "toy" / "notes.txt").unlink()
    other = contents(root / "data" / "other")
    Repository(root).checkout_round("demo/round-001")
    assert contents(root / "data" / "other") == other
    assert [entry.tag for entry in Repository(root).published("second")] == ["second/round-000"]

    shutil.rmtree(root / "data" / "other")
    Repository(root).checkout_round("second/round-000")
    assert contents(root / "data" / "other") == other


def test_a_data_file_of_one_protein_cut_short_by_a_kill_is_made_again(root: Path) -> None:
    make_other(root)
    content = (root / "data" / "other.dvc").read_bytes()
    write(root / "data" / "other.dvc", content[: len(content) // 2])
    Repository(root).dvc.record_data()
    assert (root / "data" / "other.dvc").read_bytes() == content


def test_rounds_whose_data_file_names_all_proteins_are_read(fresh: Path) -> None:
    """As projects of version 0.1 have it."""
    shutil.copytree(fresh / "data" / "toy", fresh / "data" / "other")
    shell(fresh, "git rm -q --cached data.dvc && printf 'outs:\\n- path: data\\n' > data.dvc")
    Repository(fresh).dvc.record_data()
    shell(fresh, "git add data.dvc && git commit -qm 'One DVC file'")
    run_stages(fresh)
    published = Repository(fresh).publish("demo", 0)
    expected = contents(fresh / "data")
    write(fresh / "data" / "other" / "seed.h5", "changed since")
    Repository(fresh).checkout_round("demo/round-000")
    assert contents(fresh / "data") == expected
    assert Repository(fresh).published("demo") == [published]


def test_checking_out_a_round_restores_it_and_it_can_go_on_from_there(root: Path) -> None:
    repository, newest = Repository(root), contents(root / "round")
    repository.checkout_round("demo/round-000")
    assert (root / "round" / "model.pt").read_text() == "model 0"
    assert sorted(contents(root / "data" / "toy" / "shards")) == ["000.h5"]
    assert all(repository.dvc.stage_is_current(stage) for stage in STAGES)
    append_shard(root, 1)
    run_stages(root)
    assert repository.publish("demo", 1) == repository.published("demo")[1]
    assert contents(root / "round") == newest


def test_checking_out_refuses_to_overwrite_unpublished_params(root: Path) -> None:
    write(root / "params.yaml", yaml.safe_dump(PARAMS | {"seed": 2}))
    before = user_state(root)
    with pytest.raises(VersioningError, match=r"params\.yaml holds changes that no published round has"):
        Repository(root).checkout_round("demo/round-000")
    assert user_state(root) == before


def test_checking_out_refuses_to_overwrite_unrecorded_outputs(root: Path) -> None:
    write(root / "round" / "model.pt", "half a day of training")
    before = user_state(root)
    with pytest.raises(VersioningError, match="demo/round-000 is not restored, all is as it was"):
        Repository(root).checkout_round("demo/round-000")
    assert user_state(root) == before


def test_checking_out_a_round_whose_bytes_are_gone_leaves_all_as_it_was(root: Path) -> None:
    before = user_state(root)
    lost = hashlib.md5(b"model 0").hexdigest()
    (root / ".dvc" / "cache" / "files" / "md5" / lost[:2] / lost[2:]).unlink()
    with pytest.raises(VersioningError, match=r"round/model\.pt"):
        Repository(root).checkout_round("demo/round-000")
    assert user_state(root) == before


def test_checking_out_an_unknown_round_says_so(root: Path) -> None:
    with pytest.raises(VersioningError, match="demo/round-009: no such round"):
        Repository(root).checkout_round("demo/round-009")


def test_a_round_goes_to_the_users_remote_and_never_to_the_bundled_one(root: Path, tmp_path: Path) -> None:
    bundled = contents(root / ".dvc" / "bundled")
    shell(root, f"dvc remote add -q storage {tmp_path / 'storage'}")
    assert Repository(root).publish("demo", 1).warnings == ()
    assert (tmp_path / "storage" / "files" / "md5").is_dir()
    assert contents(root / ".dvc" / "bundled") == bundled


def test_a_remote_out_of_reach_is_a_warning_not_a_lost_round(root: Path) -> None:
    shell(root, "dvc remote add -q --default storage /proc/nowhere")
    warning = Repository(root).publish("demo", 1).warnings[0]
    assert "DVC remote storage does not answer" in warning
    assert "go there after the next one or by 'cgal push'" in warning


def test_work_trees_may_be_made_at_once_and_again_where_one_was_removed(fresh: Path) -> None:
    trees = [fresh / ".cgal" / f"tree-{number}" for number in range(8)]
    for _ in range(2):
        with ThreadPoolExecutor(len(trees)) as threads:
            commits = list(threads.map(lambda tree: make_work_tree(Repository(fresh), tree), trees))
        assert set(commits) == {shell(fresh, "git rev-parse HEAD").strip()}
        assert all((tree / "params.yaml").is_file() for tree in trees)
        for tree in trees[:4]:
            shutil.rmtree(tree)


def test_dvc_stays_quiet(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    append_shard(root, 2)
    run_stages(root)
    Repository(root).publish("demo", 2)
    assert capfd.readouterr() == ("", "")


def test_a_folder_without_git_and_dvc_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VersioningError, match="not a git and DVC working copy"):
        Repository(tmp_path)


HOLD_DVC_LOCK = (
    "import sys, time, zc.lockfile as z; l = z.LockFile(sys.argv[1]); print('held', flush=True); time.sleep(4.5)"
)


@pytest.fixture
def dvc_process(root: Path) -> Iterator[None]:
    """Another DVC process, which has the repository's lock for longer than DVC waits (3 s)."""
    command = [sys.executable, "-c", HOLD_DVC_LOCK, str(root / ".dvc" / "tmp" / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield
        holder.kill()


@pytest.mark.usefixtures("dvc_process")
def test_another_dvc_process_is_waited_for(root: Path) -> None:
    assert Repository(root).dvc.stage_is_current("train")


@pytest.mark.usefixtures("dvc_process")
def test_a_dvc_lock_that_is_never_released_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvc_session, "LOCK_WAIT_S", 0.0)
    with pytest.raises(RepositoryBusy, match="another DVC process has held DVC's lock"):
        Repository(root).dvc.stage_is_current("train")


# A child dies by SIGKILL just before its n-th git command; DVC is imported once, then each death is a fork.
KILLED_PUBLISH = """
import os, signal, sys
from pathlib import Path
from flows.versioning import Repository
from flows.versioning.dvc_repo import Dvc
from flows.versioning.dvc_session import dvc_tools
from flows.versioning.git import Git
dvc_tools()
root, deaths = Path(sys.argv[1]), 0
while True:
    child = os.fork()
    if child == 0:
        calls, run = 0, Git._run
        def dying(self, arguments, content, environment):
            global calls
            if calls == deaths:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return run(self, arguments, content, environment)
        Git._run = dying
        Dvc.record_data = Dvc.stale_stages = lambda self: None  # done: no git
        Repository(root).publish("demo", 2)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    deaths += 1
print(deaths)
"""


def test_kill_between_any_two_steps_of_publishing_leaves_nothing_broken(root: Path) -> None:
    append_shard(root, 2)
    run_stages(root)
    Repository(root).dvc.record_data()
    before = user_state(root)
    done = subprocess.run(
        [sys.executable, "-c", KILLED_PUBLISH, str(root)], capture_output=True, text=True, check=False, cwd=PROJECT
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 8, "each git command of publish was a place to die"
    assert user_state(root) == before
    assert [entry.round_index for entry in Repository(root).published("demo")] == [0, 1, 2]
    assert len(shell(root, "git log --format=%H main..campaign/demo").split()) == 3


def test_kill_between_branch_and_tag_is_mended(root: Path) -> None:
    append_shard(root, 2)
    run_stages(root)
    published = Repository(root).publish("demo", 2)
    shell(root, "git tag -d demo/round-002")
    assert Repository(root).publish("demo", 2) == published
    assert len(shell(root, "git log --format=%H main..campaign/demo").split()) == 3


HOLD_CAMPAIGN = """
import os, sys, time
from pathlib import Path
from flows.versioning import CampaignLock
with CampaignLock(Path(sys.argv[1]), "first"):
    if os.fork() == 0:  # a worker that outlives the campaign must not keep its lock
        print("held", flush=True)
        time.sleep(30)
        os._exit(0)
    time.sleep(30)
"""


@pytest.fixture
def campaign(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD_CAMPAIGN, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT, start_new_session=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    yield holder
    os.killpg(holder.pid, signal.SIGKILL)
    holder.communicate()


def test_a_second_campaign_is_told_who_holds_the_lock(campaign: subprocess.Popen[str], tmp_path: Path) -> None:
    said = (
        rf"campaign first \(process {campaign.pid} on .*, since 20.*dvc cache dir --local {tmp_path}/.dvc/cache && cgal"
    )
    with pytest.raises(CampaignLocked, match=said), CampaignLock(tmp_path, "second"):
        pass


def test_the_lock_of_a_killed_campaign_is_free(campaign: subprocess.Popen[str], tmp_path: Path) -> None:
    campaign.kill()
    campaign.wait()
    with CampaignLock(tmp_path, "second"):
        holder = json.loads((tmp_path / ".cgal" / "campaign.json").read_text())
        assert (holder["pid"], holder["campaign"]) == (os.getpid(), "second")
    assert not (tmp_path / ".cgal" / "campaign.json").exists()


def test_a_held_folder_is_refused_and_no_other_lock_is_taken_for_it(tmp_path: Path) -> None:
    lock = tmp_path / "new" / "lock"
    with held(lock, "first"), pytest.raises(CampaignLocked, match="taken"), held(lock, "taken"):
        pass
    with pytest.raises(Timeout), held(lock, "taken"):
        raise Timeout("of another lock")
    with held(lock, "taken"):
        pass


def test_a_published_round_is_a_value() -> None:
    entry = PublishedRound("demo", 3, "demo/round-003", "c", "d", "m")
    assert entry == PublishedRound("demo", 3, round_tag("demo", 3), "c", "d", "m")
