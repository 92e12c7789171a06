"""Faults of a served project, real ones: `kill -9` of its parts while a campaign is at work, which then goes on."""

import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterName
from prefect.client.schemas.objects import StateType

from flows.serving.pools import GPU_LIMIT
from flows.versioning import Repository
from tests.conftest import ONE_ROUND
from tests.served import Served, alive, serving_project, wait_until

UNFINISHED = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)

FAULTS = [
    ("train-r000", "cgal-gpu worker", "--pool cgal-gpu"),
    ("label-r000", "cgal-cpu worker", "--pool cgal-cpu"),
    ("simulate-r001", "", ""),  # everything at once, `cgal serve` too
    ("benchmark-r001", "MLflow server", "mlflow server"),
]
"""While which task is at work, what is killed: its name, and what its command line holds. A Prefect server that is
killed alone is for `tests/test_faults_workers.py`."""


def processes(root: Path, words: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            own = process.environ().get("PREFECT_HOME") == str(root / ".cgal" / "prefect")
            if own and words in " ".join(process.cmdline()):
                yield process


def is_at(served: Served, task: str) -> bool:
    """Whether a task is at work now (for a GPU stage: on its worker, with the slot of `gpu`)."""
    with served.client() as client:
        if task.startswith(("train", "simulate")):
            states = [run.state_type for run in client.read_flow_runs() if run.name == task]
            return StateType.RUNNING in states and bool(slots_taken(client))
        named = client.read_task_runs(task_run_filter=TaskRunFilter(name=TaskRunFilterName(any_=[task])))
    return StateType.RUNNING in [run.state_type for run in named]


def slots_taken(client: SyncPrefectClient) -> int:
    return client.read_global_concurrency_limit_by_name(GPU_LIMIT).active_slots


def strike(served: Served, words: str) -> None:
    """Kill a part, or everything."""
    victims = [*processes(served.root, words)]
    if not words:
        victims.append(psutil.Process(served.process.pid))
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGKILL)


def unfinished(served: Served) -> list[str]:
    with served.client() as client:
        runs = [*client.read_flow_runs(), *client.read_task_runs()]
        return [f"{run.name}: {run.state_name}" for run in runs if run.state_type in UNFINISHED]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_served_campaign_survives_the_death_of_each_part_with_the_same_bytes(
    make_project: Callable[..., Path], undisturbed: Path
) -> None:
    root = make_project("disturbed", campaign=ONE_ROUND, execution={"retries": 2, "retry_delay_s": 0.5})
    for number, (task, name, words) in enumerate(FAULTS):
        with serving_project(root) as served:
            if number == 0:
                served.start("active-learning", campaign="small", rounds=1)
            wait_until(lambda task=task, served=served: is_at(served, task), f"{task} at work", 300)
            strike(served, words)
            said, _ = served.process.communicate(timeout=120)
        if name:
            assert served.process.returncode == 1
            assert f"{name} stopped (killed by SIGKILL)" in said
        wait_until(lambda: not alive(root), f"the end of all after {name} was killed: {alive(root)}", 60)
    with serving_project(root) as served:
        wait_until(lambda: Repository(root).is_published("small", 1), "the closing round", 300)
        wait_until(lambda: not unfinished(served), lambda: f"the end of all runs: {unfinished(served)}", 120)
        with served.client() as client:
            wait_until(lambda: slots_taken(client) == 0, "a free slot", 180)
            assert client.read_global_concurrency_limit_by_name(GPU_LIMIT).limit == 1
    assert not alive(root)
    check_bytes(undisturbed, root)
    check_tracking(root)


def check_bytes(undisturbed: Path, disturbed: Path) -> None:
    """An embedded campaign and a served one that was killed four times end with the same data and weights."""
    expected, found = (Repository(root).published("small") for root in (undisturbed, disturbed))
    assert [entry.tag for entry in found] == ["small/round-000", "small/round-001"]
    assert [entry.data_md5 for entry in found] == [entry.data_md5 for entry in expected]
    assert [entry.model_md5 for entry in found] == [entry.model_md5 for entry in expected]


def check_tracking(root: Path) -> None:
    """MLflow has each round once, and no gap."""
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.search_experiments(filter_string="name != 'Default'")[0]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["git_tag"] for run in runs if run.data.tags["cgal.kind"] == "round") == [
        "small/round-000",
        "small/round-001",
    ]
    (campaign,) = [run for run in runs if run.data.tags["cgal.kind"] == "campaign"]
    assert [point.step for point in client.get_metric_history(campaign.info.run_id, "w1/tica")] == [0, 1]
    assert {run.info.status for run in runs} == {"FINISHED"}
