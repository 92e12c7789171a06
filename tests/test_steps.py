"""Stages as Prefect tasks: named by stage and round, tried again with back-off, interrupted, seen as artifacts."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect import flow, tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.exceptions import FailedRun
from prefect.testing.utilities import prefect_test_harness

from cgal.errors import PreflightFailed
from cgal.progress import Progress
from flows.campaign import stages
from flows.campaign.stages import Summary
from flows.campaign.steps import stage_task
from flows.workspace import Workspace


@pytest.fixture(scope="module", autouse=True)
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=180):
        yield


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
        runs = [run for run in client.read_task_runs() if run.name.startswith("train")]
        assert [run.name for run in runs] == ["train-r001"]
        assert not runs[0].tags, "Prefect asks for concurrency slots for each tag, which takes 2 s"
        keys = ArtifactFilter(key=ArtifactFilterKey(like_="train-r001"))
        found = {artifact.key: artifact.type for artifact in client.read_artifacts(artifact_filter=keys)}
    assert found == {"train-r001": "table", "train-r001-training": "image"}
    # recorded by DVC, so that the next time it is skipped
    assert run_train(root) == {"skipped": 1}
    assert len(attempts) == 3


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
