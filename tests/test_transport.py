"""Files by their hash through a DVC remote: between two clones that see nothing of one another."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import boto3
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from cgal.dataset import prepare
from cgal.errors import BadFile, CgalError, VersioningError
from cgal.progress import silent
from flows.campaign.stages import STAGES, run_stage
from flows.serving.health import worker_name
from flows.serving.transport import Output, hash_inputs, read_outputs, received, send_inputs, send_outputs, take_outputs
from flows.settings import NO_TELEMETRY
from flows.versioning import Repository
from flows.versioning.exchange import Exchange, RemoteUnreachable
from flows.workspace import Workspace
from tests.backends import BUCKET, bucket_contents, make_bucket, running_s3
from tests.conftest import REPOSITORY, make_copy
from tests.served import clean_environment, free_port, wait_until

pytestmark = pytest.mark.timeout(900)

KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    return tmp_path / "remote"


@pytest.fixture
def campaign(tmp_path: Path, remote: Path, git_identity: None) -> Path:
    """A working copy with a protein of three small files, and a DVC remote."""
    root = tmp_path / "campaign"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {remote}\n")
    for file in ("dvc.yaml", ".gitignore", ".dvc/.gitignore"):
        shutil.copy(REPOSITORY / file, root / file)
    (root / "params.yaml").write_text("protein: tiny\n")
    write(root, "data/tiny/manifest.json", "one shard")
    write(root, "data/tiny/shards/000.h5", "shard 0")
    write(root, "data/tiny/warm_start.pt", "last weights")
    for command in (["git", "init", "--quiet"], ["git", "add", "--all"], ["git", "commit", "--quiet", "-m", "start"]):
        subprocess.run(command, cwd=root, check=True)
    return root


@pytest.fixture
def clone(campaign: Path, tmp_path: Path) -> Path:
    """Another clone, with a DVC cache of its own and no data."""
    return make_clone(campaign, tmp_path / "clone")


def make_clone(origin: Path, root: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", str(origin), str(root)], check=True)
    return root


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def git_state(root: Path) -> tuple[str, ...]:
    """Where HEAD is, what is in the index, and which files git sees changed or new."""
    commands = (["rev-parse", "HEAD"], ["ls-files", "--stage"], ["status", "--porcelain"])
    return tuple(subprocess.check_output(["git", *command], cwd=root, text=True) for command in commands)


def trained(campaign: Path, clone: Path) -> dict[str, Output]:
    """Let the other clone run a stage that writes two files, one of them in a folder."""
    workspace = Workspace(campaign)
    inputs = hash_inputs(workspace, "train")
    with received(clone, "train", inputs, send_inputs(workspace, "train")) as other:
        assert hash_inputs(other, "train") == inputs
        write(other.root, "round/model.pt", "weights")
        write(other.root, "round/training.csv", "errors")
        write(other.root, "round/plots/training/loss.png", "figure")
        return send_outputs(clone, other, "train")


def test_inputs_and_outputs_cross_and_leave_no_trace_in_the_other_clone(campaign: Path, clone: Path) -> None:
    before = git_state(clone)
    outputs = trained(campaign, clone)
    take_outputs(Workspace(campaign), "train", outputs)
    assert contents(campaign / "round") == {
        "model.pt": b"weights",
        "plots/training/loss.png": b"figure",
        "training.csv": b"errors",
    }
    assert {name: replace(output, md5="") for name, output in outputs.items()} == read_outputs(
        Workspace(campaign), "train"
    )
    assert git_state(clone) == before
    assert not (clone / "data").exists()
    assert not (clone / "round").exists()
    assert [*(clone / ".cgal" / "transport").iterdir()] == []
    assert [*(campaign / ".cgal" / "transport").iterdir()] == []


def test_what_the_remote_has_is_not_sent_again(campaign: Path, remote: Path) -> None:
    """A round adds its shard, and what names it; the shards before it stay where they are."""
    workspace = Workspace(campaign)
    files = send_inputs(workspace, "train")
    assert sorted(files) == [
        "data/tiny/manifest.json",
        "data/tiny/shards/000.h5",
        "data/tiny/warm_start.pt",
        "dvc.yaml",
        "params.yaml",
    ]
    before = contents(remote)
    assert len(before) == len(files)
    assert Exchange(campaign).push([*files.values()]) == 0
    write(campaign, "data/tiny/shards/001.h5", "shard 1")
    write(campaign, "data/tiny/manifest.json", "two shards")
    more = send_inputs(workspace, "train")
    assert before.items() <= contents(remote).items()
    assert len(contents(remote)) == len(before) + 2
    assert {name for name, digest in more.items() if files.get(name) != digest} == {
        "data/tiny/manifest.json",
        "data/tiny/shards/001.h5",
    }


def test_a_killed_stage_finds_its_scratch_again(campaign: Path, clone: Path) -> None:
    workspace = Workspace(campaign)
    inputs, files = hash_inputs(workspace, "train"), send_inputs(workspace, "train")
    with suppress(KeyboardInterrupt), received(clone, "train", inputs, files) as other:
        write(other.root, ".cgal/work/train/checkpoint", "epoch 3")
        write(other.root, "round/model.pt", "half")
        raise KeyboardInterrupt
    with received(clone, "train", inputs, files) as other:
        assert (other.scratch("train") / "checkpoint").read_text() == "epoch 3"
        assert not (other.root / "round").exists()


# ------------------------------------------------------------------------------------- what is refused


def object_of(remote: Path, digest: str) -> Path:
    return remote / "files" / "md5" / digest[:2] / digest[2:]


@pytest.fixture
def bucket(campaign: Path, clone: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, bytes], None]]:
    """Let the clones' remote be an S3 server, whose files DVC takes as they are; gives a way to forge one."""
    with running_s3() as address:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": address}).items():
            monkeypatch.setenv(name, value)
        make_bucket(dict(os.environ))
        name_remote(f"s3://{BUCKET}/dvc", campaign, clone)
        client = boto3.client("s3")
        yield lambda digest, content: client.put_object(
            Bucket=BUCKET, Key=f"dvc/files/md5/{digest[:2]}/{digest[2:]}", Body=content
        )


def name_remote(url: str, *roots: Path) -> None:
    for root in roots:
        (root / ".dvc" / "config").write_text(f"[core]\n    remote = lab\n['remote \"lab\"']\n    url = {url}\n")


def test_outputs_with_a_wrong_hash_are_refused_and_nothing_is_changed(
    campaign: Path, clone: Path, bucket: Callable[[str, bytes], None]
) -> None:
    """Wrong in the remote; wrong in what the worker says. Repaired, the same outputs are taken."""
    write(campaign, "round/model.pt", "weights of the last round")
    before = contents(campaign / "round")
    outputs = trained(campaign, clone)
    model = outputs["round/model.pt"]
    bucket(model.md5, b"forged")
    with pytest.raises(VersioningError, match=rf"model.pt is not placed: what came as {model.md5} has the hash"):
        take_outputs(Workspace(campaign), "train", outputs)
    assert contents(campaign / "round") == before
    bucket(model.md5, b"weights")
    said = outputs | {"round/model.pt": Output("0" * 64, model.md5)}
    with pytest.raises(BadFile, match=r"round/model.pt: what came from the DVC remote is not what the worker wrote"):
        take_outputs(Workspace(campaign), "train", said)
    assert contents(campaign / "round") == before
    take_outputs(Workspace(campaign), "train", outputs)
    assert (campaign / "round" / "model.pt").read_text() == "weights"


def test_inputs_with_a_wrong_hash_are_refused(
    campaign: Path, clone: Path, bucket: Callable[[str, bytes], None]
) -> None:
    files = send_inputs(Workspace(campaign), "train")
    bucket(files["data/tiny/shards/000.h5"], b"forged")
    with pytest.raises(VersioningError, match=r"000.h5 is not placed"), received(clone, "train", "0" * 64, files):
        pass


def test_what_the_remote_lost_is_named(campaign: Path, clone: Path, remote: Path) -> None:
    files = send_inputs(Workspace(campaign), "train")
    digest = files["data/tiny/warm_start.pt"]
    object_of(remote, digest).unlink()
    lost = rf"DVC remote store has no {digest}; let 'dvc remote list' say the same"
    with pytest.raises(VersioningError, match=lost), received(clone, "train", "0" * 64, files):
        pass


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "data/../../x",
        "/etc/cron.d/x",
        ".git/config",
        ".dvc/config",
        "flows/cli/main.py",
        "round/../.cgal/x",
        "",
    ],
)
def test_no_path_leads_out_of_where_a_stage_works(name: str, campaign: Path, clone: Path) -> None:
    """Neither on the worker, nor back in the campaign's folder."""
    (digest,) = Exchange(clone).keep([clone / "params.yaml"])
    Exchange(clone).push([digest])
    before = contents(campaign)
    refused = "is neither read nor written"
    with pytest.raises(BadFile, match=refused), received(clone, "train", "0" * 64, {name: digest}):
        pass
    with pytest.raises(BadFile, match="is neither read nor written"):
        take_outputs(Workspace(campaign), "train", {name: Output("0" * 64, digest)})
    assert contents(campaign) == before


def test_no_link_leads_out_of_the_project(campaign: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (campaign / "round" / "plots").mkdir(parents=True)
    (campaign / "round" / "plots" / "training").symlink_to(tmp_path / "outside")
    (digest,) = Exchange(campaign).keep([campaign / "params.yaml"])
    with pytest.raises(BadFile, match="is neither read nor written"):
        take_outputs(Workspace(campaign), "train", {"round/plots/training/x": Output("0" * 64, digest)})
    assert contents(tmp_path / "outside") == {}


def test_only_outputs_of_the_stage_are_taken(campaign: Path, clone: Path) -> None:
    digest = Exchange(clone).keep([clone / "params.yaml"])[0]
    for name in ("data/tiny/manifest.json", "params.yaml", "round/metrics.json"):
        with pytest.raises(BadFile, match="is no output of train"):
            take_outputs(Workspace(campaign), "train", {name: Output("0" * 64, digest)})


def test_every_output_of_the_stage_is_asked_for(campaign: Path, clone: Path) -> None:
    """Else what lies there from the round before would be taken for this round's."""
    outputs = trained(campaign, clone)
    for missing in ("round/model.pt", "round/plots/training/loss.png"):
        some = {name: output for name, output in outputs.items() if name != missing}
        with pytest.raises(BadFile, match="the worker did not say that train wrote it"):
            take_outputs(Workspace(campaign), "train", some)
    assert not (campaign / "round").exists()


@pytest.mark.parametrize("digest", ["", "../../../../etc/passwd", "d41d8cd98f00b204e9800998ecf8427e.dir"])
def test_what_is_no_hash_is_refused(digest: str, campaign: Path, clone: Path) -> None:
    with pytest.raises(BadFile, match="is no hash of DVC's"), received(clone, "train", "0" * 64, {"round/x": digest}):
        pass
    with pytest.raises(BadFile, match="is no hash of DVC's"):
        take_outputs(Workspace(campaign), "simulate", {"round/trajectory.h5": Output("0" * 64, digest)})


# ------------------------------------------------------------------------------------- the remote


def test_without_a_remote_it_is_said_what_to_do(campaign: Path) -> None:
    (campaign / ".dvc" / "config").write_text("")
    with pytest.raises(VersioningError, match=r"execution.transport is dvc, .*no DVC remote; .*'dvc remote add --def"):
        send_inputs(Workspace(campaign), "train")
    config = "\n".join(f"['remote \"{name}\"']\n    url = /{name}" for name in ("one", "two"))
    (campaign / ".dvc" / "config").write_text(config)
    (campaign / ".dvc" / "config").write_text(f"[core]\n    remote = bundled\n{config}\n")
    with pytest.raises(VersioningError, match=r"several DVC remotes \(one, two\)"):
        send_inputs(Workspace(campaign), "train")


def test_a_remote_that_does_not_answer_is_worth_another_try(
    campaign: Path, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An S3 server's address at which nobody listens."""
    for name, value in (
        KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", "AWS_MAX_ATTEMPTS": "1"}
    ).items():
        monkeypatch.setenv(name, value)
    name_remote("s3://cgal/dvc", campaign, clone)
    with pytest.raises(RemoteUnreachable, match=r"DVC remote lab does not answer: .*127\.0\.0\.1"):
        send_inputs(Workspace(campaign), "train")
    with pytest.raises(RemoteUnreachable, match=r"DVC remote lab does not answer: .*127\.0\.0\.1"):
        Exchange(clone).fetch(["0" * 32])
    assert not issubclass(RemoteUnreachable, CgalError)  # of those Prefect tries no other attempt


# ------------------------------------------------------------------------------------- a campaign


@contextmanager
def running(module: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """Run a server or worker; all that it has started ends with it."""
    command = [sys.executable, "-m", *module]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)


@contextmanager
def two_clones(
    campaign: Path, clone: Path, environment: dict[str, str], meanwhile: Callable[[], None]
) -> Iterator[SyncPrefectClient]:
    """A Prefect server, the worker of cgal-cpu in one clone and that of cgal-gpu in the other."""
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    here, there = (
        environment | {"PREFECT_API_URL": address, "PREFECT_HOME": str(root / ".cgal" / "prefect")}
        for root in (campaign, clone)
    )
    logs = campaign / ".cgal" / "logs"
    logs.mkdir(parents=True)
    provision = (
        f"from pathlib import Path; from flows.serving.pools import provision; provision(Path({str(campaign)!r}))"
    )
    server = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with ExitStack() as stack:
        stack.enter_context(running(server, here, logs / "server.log"))
        stack.enter_context(temporary_settings({PREFECT_API_URL: address}))
        client = stack.enter_context(get_client(sync_client=True))
        meanwhile()
        wait_until(lambda: client.api_healthcheck() is None, "the Prefect server", 180)
        subprocess.run([sys.executable, "-c", provision], env=here, check=True)
        for pool, root, known in (("cgal-cpu", campaign, here), ("cgal-gpu", clone, there)):
            worker = ["flows.cli.main", "worker", pool, "--root", str(root)]
            stack.enter_context(running(worker, known, logs / f"{pool}.log"))
        yield client


@pytest.mark.slow
def test_a_campaign_whose_gpu_worker_has_another_clone_ends_with_the_same_bytes(
    make_project: Callable[..., Path], bundled_data: Path, tmp_path: Path
) -> None:
    """One round; the remote is a bucket of an S3 server, which alone both clones reach."""
    alone = make_project("alone", campaign={"rounds": 0})
    campaign = make_copy(
        tmp_path / "campaign", bundled_data, {"campaign": {"rounds": 0}, "execution": {"transport": "dvc"}}
    )
    for command in (
        ["dvc", "remote", "add", "--quiet", "--default", "lab", f"s3://{BUCKET}/dvc"],
        ["git", "commit", "--quiet", "--all", "--message", "the lab's remote"],
    ):
        subprocess.run(command, cwd=campaign, check=True)
    clone = make_clone(campaign, tmp_path / "clone")
    before = git_state(clone)
    with running_s3() as s3:
        environment = clean_environment() | NO_TELEMETRY | KEYS | {"AWS_ENDPOINT_URL": s3}
        make_bucket(environment)
        with two_clones(campaign, clone, environment, meanwhile=partial(run_embedded, alone)) as client:
            runs = run_campaign(client)
        check_labels(runs)
        check_shipped(runs["train-r000"], bucket_contents(environment))
    for name in ("data.dvc", "dvc.lock"):
        assert Repository(campaign).read_round_file("small/round-000", name) == (alone / name).read_bytes()
    outputs = contents(alone / "round")
    assert {"model.pt", "trajectory.h5", "plots/training/training.png"} <= set(outputs)
    (campaign / "round" / "timings.json").unlink()
    assert contents(campaign / "round") == outputs
    assert git_state(clone) == before
    assert not (clone / "data").exists()
    assert not (clone / "round").exists()
    assert [*(clone / ".cgal" / "transport").iterdir()] == []


def run_embedded(root: Path) -> None:
    """What `cgal run` does up to the commit of its round: the stages in this process, recorded in DVC."""
    workspace, repository = Workspace(root), Repository(root)
    prepare(workspace.data, workspace.params)
    for stage in STAGES:
        run_stage(stage, workspace, silent)
        repository.dvc.record_stage(stage)
    repository.dvc.record_data()


def run_campaign(client: SyncPrefectClient) -> dict[str, FlowRun]:
    """Run one as from the page, and give all runs by their name."""
    deployment = client.read_deployment_by_name("active-learning/active-learning")
    run = client.create_flow_run_from_deployment(deployment.id, parameters={"campaign": "small", "rounds": 0})

    def has_ended() -> bool:
        state = client.read_flow_run(run.id).state
        return state is not None and state.is_final()

    wait_until(has_ended, "the end of the campaign", 600)
    runs = {found.name: found for found in client.read_flow_runs()}
    assert runs["small"].state_name == "Completed", runs["small"].state
    return runs


def check_labels(runs: dict[str, FlowRun]) -> None:
    """Train and simulate ran on the worker of the other clone, the campaign on that of its own."""
    assert sorted(runs) == ["round-000", "simulate-r000", "small", "train-r000"]
    for name, pool in (("small", "cgal-cpu"), ("train-r000", "cgal-gpu"), ("simulate-r000", "cgal-gpu")):
        assert runs[name].labels["prefect.worker.name"] == worker_name(pool)
        assert runs[name].state_name == "Completed"


def check_shipped(run: FlowRun, bucket: dict[str, bytes]) -> None:
    """Parameters hold names and hashes; the bytes are in the bucket."""
    files = run.parameters["files"]
    assert "data/chignolin/shards/000.h5" in files
    assert len(yaml.safe_dump(run.parameters)) < 2000
    for digest in files.values():
        assert f"dvc/files/md5/{digest[:2]}/{digest[2:]}" in bucket
