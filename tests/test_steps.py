"""Stages as Prefect tasks: named by stage and round, tried again with back-off, interrupted, seen as artifacts."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect import flow, tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterTaskRunId, FlowFilter, FlowFilterName
from prefect.exceptions import FailedRun

from cgal.errors import BadParams, DatasetChanged, PreflightFailed
from cgal.progress import Progress
from flows.campaign import stages
from flows.campaign.opening import change_params
from flows.campaign.stages import Summary
from flows.campaign.steps import publish_task, stage_task
from flows.versioning import Repository, dvc_session
from flows.workspace import Workspace
from tests.test_versioning import HOLD_DVC_LOCK

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times at which the stage `train` was tried; what it does is set by the test."""
    return []


def replace_train(monkeypatch: pytest.MonkeyPatch, attempts: list[float], body: Callable[[int], Summary]) -> None:
    def train(workspace: Workspace, progress: Progress) -> Summary:
        attempts.append(time.monotonic())
        return body(len(attempts))

    monkeypatch.setitem(stages.STAGES, "train", train)


def run_train(root: Path) -> Summary:
    @flow(name="one-stage")
    def one_stage() -> Summary:
        return stage_task("train", 1, Workspace(root))(root)

    return one_stage()


def write_outputs(root: Path) -> Summary:
    folder = root / "round" / "plots" / "training"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.png").write_bytes(b"\x89PNG")
    (root / "round" / "training.csv").write_text("epoch\n1\n")
    (root / "round" / "model.pt").write_bytes(b"weights")
    return {"best_epoch": 1}


def test_a_passing_fault_is_tried_again_with_growing_delays(
    make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, attempts: list[float]
) -> None:
    root = make_project(execution={"retries": 2, "retry_delay_s": 0.5})

    def body(attempt: int) -> Summary:
        if attempt < 3:
            raise ConnectionError("for a moment")
        return write_outputs(root)

    replace_train(monkeypatch, attempts, body)
    with tags("project:somewhere"):
        assert run_train(root) == {"best_epoch": 1}
    first, second = attempts[1] - attempts[0], attempts[2] - attempts[1]
    assert first >= 0.4
    assert second >= 0.8
    with get_client(sync_client=True) as client:
        mine = FlowFilter(name=FlowFilterName(any_=["one-stage"]))
        runs = [run for run in client.read_task_runs(flow_filter=mine) if run.name.startswith("train")]
        assert [run.name for run in runs] == ["train-r001"]
        assert not runs[0].tags, "Prefect asks for concurrency slots for each tag, which takes 2 s"
        made = ArtifactFilter(task_run_id=ArtifactFilterTaskRunId(any_=[runs[0].id]))
        found = {artifact.key: artifact.type for artifact in client.read_artifacts(artifact_filter=made)}
    assert found == {"train-r001": "table", "train-r001-training": "image"}
    # recorded by DVC, so that the next time it is skipped
    assert run_train(root) == {"skipped": 1}
    assert len(attempts) == 3


def test_work_is_recorded_once_dvcs_lock_is_free_and_not_done_again(
    make_project: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    attempts: list[float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Somebody's 'dvc push' holds it longer than a command waits."""
    root = make_project(execution={"retries": 2, "retry_delay_s": 0.5})
    holders = []

    def body(attempt: int) -> Summary:
        command = [sys.executable, "-c", HOLD_DVC_LOCK, str(root / ".dvc" / "tmp" / "lock")]
        holders.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        assert holders[-1].stdout is not None
        assert holders[-1].stdout.readline() == b"held\n"
        return write_outputs(root)

    monkeypatch.setattr(dvc_session, "LOCK_WAIT_S", 0.0)
    replace_train(monkeypatch, attempts, body)
    assert run_train(root) == {"best_epoch": 1}
    assert len(attempts) == len(holders) == 1
    holders[0].communicate()
    assert "train-r001 is done and not recorded yet" in " ".join(capsys.readouterr().out.split())
    assert Repository(root).dvc.stage_is_current("train")


def test_work_on_params_that_were_edited_meanwhile_is_not_recorded(
    make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, attempts: list[float]
) -> None:
    """DVC would record the new numbers for it. What the stage does not read may be edited."""
    root = make_project(execution={"retries": 2, "retry_delay_s": 0.5})
    edited = {"training": {"epochs": 7}}

    def body(attempt: int) -> Summary:
        change_params(root / "params.yaml", edited)
        return write_outputs(root)

    replace_train(monkeypatch, attempts, body)
    with pytest.raises(DatasetChanged, match=r"train-r001: params\.yaml, or a file that it reads, was changed"):
        run_train(root)
    assert len(attempts) == 1
    assert not Repository(root).dvc.stage_is_current("train")
    edited = {"campaign": {"name": "next"}}
    assert run_train(root) == {"best_epoch": 1}
    with pytest.raises(BadParams, match=r"campaign\.name is 'next' now, and 'small' is at work"):
        flow(publish_task("small", 1, Workspace(root)))(root)


def test_what_the_user_must_mend_is_not_tried_again(
    make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, attempts: list[float]
) -> None:
    root = make_project(execution={"retries": 2, "retry_delay_s": 0.5})

    def body(attempt: int) -> Summary:
        raise PreflightFailed("no better than the prior; lower training.learning_rate")

    replace_train(monkeypatch, attempts, body)
    with pytest.raises(PreflightFailed, match="no better than the prior"):
        run_train(root)
    assert len(attempts) == 1


def test_a_timeout_interrupts_a_stage_at_work(
    make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, attempts: list[float]
) -> None:
    root = make_project(execution={"retries": 0, "timeout_s": 3.0})

    def body(attempt: int) -> Summary:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            sum(range(10_000))
        return {}

    replace_train(monkeypatch, attempts, body)
    started = time.monotonic()
    with pytest.raises((TimeoutError, FailedRun)):
        run_train(root)
    assert time.monotonic() - started < 30
