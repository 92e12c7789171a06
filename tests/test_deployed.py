"""What a served campaign decides before it computes: which of a series is next, with which seed, and who is refused."""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from jsonschema import ValidationError, validate
from prefect.client.schemas.objects import FlowRun
from prefect.states import Failed
from prefect.utilities.callables import parameter_schema

from cgal.dataset import prepare
from cgal.errors import BadParams, CgalError
from cgal.params import check_params, merged
from flows.serving import deployed, dispatch, pools
from flows.versioning import Repository
from flows.workspace import Workspace
from tests.conftest import REPOSITORY, make_copy

FORM: dict[str, Any] = {"protein": "chignolin", "campaign": {"rounds": 0, "budget_steps": 0}}


def publish(root: Path, tag: str, seed: int, closing: str) -> None:
    """A round of somebody's, as far as the next of a series looks at it."""
    files = {
        "dvc.lock": yaml.safe_dump({"stages": {"train": {"outs": [{"path": "round/model.pt", "md5": "0" * 32}]}}}),
        "params.yaml": yaml.safe_dump(yaml.safe_load((root / "params.yaml").read_text()) | {"seed": seed}),
        "round/selection.json": json.dumps({"closing": closing}),
    }
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(content)
    for command in (
        ["git", "add", "--force", *files],
        ["git", "commit", "--quiet", "--message", f"{tag}\n\nRound: {tag}"],
        ["git", "tag", tag],
        ["git", "reset", "--quiet", "--hard", "HEAD~1"],
    ):
        subprocess.run(command, cwd=root, check=True)


def test_the_next_of_a_series_gets_the_next_name_and_seed(make_project: Callable[..., Path]) -> None:
    """Counted from the first campaign's seed, whatever params.yaml and the form say now."""
    root = make_project(seed=500)
    repository = Repository(root)
    assert deployed._next_of_series(repository, "weekly") == "weekly"
    publish(root, "weekly/round-000", 7, "rounds: all are done")
    publish(root, "weekly2/round-000", 8, "rounds: all are done")
    publish(root, "other/round-000", 100, "rounds: all are done")
    assert deployed._next_of_series(repository, "weekly") == "weekly3"

    deployed._open_campaign(root, "weekly", "weekly3", FORM | {"seed": 40})

    params = Workspace(root).params
    assert (params.campaign.name, params.seed, params.campaign.rounds) == ("weekly3", 9, 0)


def test_a_campaign_that_has_not_closed_is_gone_on_with(make_project: Callable[..., Path]) -> None:
    root = make_project()
    publish(root, "weekly/round-000", 7, "")
    assert deployed._next_of_series(Repository(root), "weekly") == "weekly"


def test_a_series_begins_with_the_forms_seed(make_project: Callable[..., Path]) -> None:
    root = make_project(seed=500)
    deployed._open_campaign(root, "weekly", "weekly", FORM | {"seed": 40})
    assert Workspace(root).params.seed == 40


def test_what_the_form_leaves_alone_is_as_committed(make_project: Callable[..., Path]) -> None:
    """Not as the last campaign had it, nor as anybody's default."""
    root = make_project(selection={"strategy": "coverage"}, campaign={"rounds": 3, "budget_steps": 5000})
    form = {"selection": {"strategy": "random"}, "training": {"epochs": 2}, "campaign": {"rounds": 1}}
    deployed._open_campaign(root, "first", "first", form)
    assert Workspace(root).params.selection.strategy == "random"
    publish(root, "first/round-000", 7, "rounds: all are done")
    mine = yaml.safe_dump(Workspace(root).params.model_dump() | {"temperature_K": 333.0})
    (root / "params.yaml").write_text(mine)

    deployed._open_campaign(root, "second", "second", {})

    assert mine in [path.read_text() for path in (root / ".cgal" / "saved").glob("params-*.yaml")], "edits are kept"

    params, committed = Workspace(root).params, yaml.safe_load(Repository(root).git.run("show", "HEAD:params.yaml"))
    assert params.model_dump(mode="json") == check_params(
        merged(committed, {"campaign": {"name": "second"}}), Path()
    ).model_dump(mode="json")


def test_every_default_of_the_form_says_nothing() -> None:
    said = {name: each.default for name, each in inspect.signature(deployed.active_learning.fn).parameters.items()}
    assert said.pop("campaign") == "scheduled"
    assert set(said.values()) == {None}


def test_a_value_that_is_wrong_changes_neither_params_nor_data(make_project: Callable[..., Path]) -> None:
    root = make_project()
    prepare(Workspace(root).data, Workspace(root).params)
    before = {path: path.read_bytes() for path in (root / "params.yaml", *(root / "data").rglob("*.*"))}
    with pytest.raises(BadParams, match="stride"):
        deployed._open_campaign(root, "other", "other", {"simulation": {"steps": 10, "stride": 20}})
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("parameters", "key"),
    [
        ({"campaign": "demo\n"}, "campaign"),
        ({"protein": "a\nb"}, "protein"),
        ({"campaign": "{{ 7 * 7 }}"}, "campaign"),
        ({"overrides": {"training": {"learning_rate": float("inf")}}}, "overrides"),
        ({"overrides": {"execution": {"oracle_workers": 10**6}}}, "overrides"),
        ({"rounds": -1}, "rounds"),
    ],
)
def test_the_forms_schema_refuses_what_no_campaign_means(parameters: dict[str, Any], key: str) -> None:
    """What Prefect's server checks at submission."""
    schema = parameter_schema(deployed.active_learning.fn).model_dump_for_openapi()
    validate({"campaign": "demo"}, schema)
    with pytest.raises(ValidationError) as refused:
        validate(parameters, schema)
    assert refused.value.absolute_path[0] == key


WITHOUT_A_WORKER = """
import os, sys
from datetime import timedelta
from pathlib import Path
from flows.settings import use_project_settings
root = Path(sys.argv[1])
os.chdir(root)
use_project_settings(root)
from flows.serving.startup import start_prefect
start_prefect().wait()
from prefect import task
from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import CronSchedule
from prefect.states import Completed, Crashed, Failed, Pending, Running
from flows.serving import dispatch, orphans, pools
from flows.serving.health import worker_name
pools.provision(root)
orphans.LATE = timedelta()
label = task(pools.provision, name="label")
with get_client(sync_client=True) as client:
    deployment = client.read_deployment_by_name("active-learning/active-learning")
    states = {"old": Crashed(), "atwork": Running(), "refused": Failed(), "done": Completed()}
    for name, state in states.items():
        run = client.create_flow_run_from_deployment(deployment.id, name=name, parameters={"campaign": name})
        client.update_flow_run_labels(run.id, {"prefect.worker.name": worker_name("cgal-cpu")})
        client.create_task_run(label, run.id, name, state=Running())
        client.set_flow_run_state(run.id, state, force=True)
    for _ in range(2):
        pools.take_over("cgal-cpu")
    print("tasks:", *{run.state_name for run in client.read_task_runs()})
    again = [run for run in client.read_flow_runs() if run.state_name == "Scheduled"]
    print("again:", *(run.name for run in again))
    fires = again + [client.create_flow_run_from_deployment(deployment.id, parameters={}) for _ in range(3)]
    print("fires:", *(client.set_flow_run_state(run.id, Pending()).state.name for run in fires))

    dispatch.SILENT_S = 2.0
    asked = {"campaign": "old", "round_index": 0, "inputs": "0" * 64}
    train = client.read_deployment_by_name("train/train")
    run = client.create_flow_run_from_deployment(train.id, parameters=asked)
    client.update_flow_run_labels(run.id, {"prefect.worker.name": "cgal-gpu@gone"})
    client.set_flow_run_state(run.id, Running(), force=True)
    client.send_worker_heartbeat("cgal-gpu", "cgal-gpu@gone")
    print("silent:", dispatch._wait(client, run.id, lambda *shown: None).state)

    (weekly,) = deployment.schedules
    client.update_deployment_schedule(deployment.id, weekly.id, active=True, schedule=CronSchedule(cron="0 6 * * 1"))
    client.create_deployment_schedules(deployment.id, [(CronSchedule(cron="0 6 * * 2"), False)])
    with (root / "prefect.yaml").open("a") as file:
        file.write("# another version\\n")
    pools.provision(root)
    after = client.read_deployment(deployment.id)
    print("anew:", after.version != deployment.version)
    print("schedules:", ", ".join(sorted(f"{each.schedule.cron}/{each.active}" for each in after.schedules)))
"""


@pytest.fixture(scope="module")
def said(
    tmp_path_factory: pytest.TempPathFactory,
    bundled_data: Path,
    with_databases: Callable[[Path], Path],
    git_identity: None,
) -> dict[str, str]:
    """What a real server says of a project's runs and deployments; no worker is there."""
    root = with_databases(make_copy(tmp_path_factory.mktemp("deployed") / "project", bundled_data, {}))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_WORKER, str(root)],
        env={name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)


def test_an_interrupted_campaign_comes_back_once_and_one_of_the_missed_fires_runs(said: dict[str, str]) -> None:
    """Whatever was refused or done since."""
    assert said["tasks"] == "Crashed", "also of flows whose tasks' end a killed server never heard of"
    assert said["again"] == "atwork"
    assert said["fires"] == "Pending Cancelled Cancelled Cancelled"


def test_a_stage_whose_worker_is_silent_is_not_waited_for(said: dict[str, str]) -> None:
    assert said["silent"].startswith("Crashed(")
    assert "cgal-gpu@gone has not reported" in said["silent"]


def test_schedules_of_the_page_outlive_deployments_made_anew(said: dict[str, str]) -> None:
    assert said["anew"] == "True"
    assert said["schedules"] == "0 6 * * 1/True, 0 6 * * 2/False"


def test_a_pool_has_one_worker_of_a_project_on_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock lasts through `exec`, as a worker's does, and ends with the process."""
    monkeypatch.setattr(pools, "LAST_WORDS_S", 0.0)
    code = (
        "import os, sys; from pathlib import Path; from flows.serving.pools import hold_lock;"
        "hold_lock(Path(sys.argv[1]), 'cgal-cpu'); os.execvp('sh', ['sh', '-c', 'echo held; exec sleep 60'])"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "held\n"
        with pytest.raises(CgalError, match="on this machine already"):
            pools.hold_lock(tmp_path, "cgal-cpu")
        pools.hold_lock(tmp_path, "cgal-gpu")
        worker.kill()
    pools.hold_lock(tmp_path, "cgal-cpu")


@pytest.mark.parametrize(("state", "error"), [(dispatch.REFUSED, CgalError), ("Failed", dispatch.StageLost)])
def test_what_a_worker_refuses_is_not_tried_again(tmp_path: Path, state: str, error: type[Exception]) -> None:
    """A fault that the user must mend ends the campaign with the worker's words; any other is worth another try."""
    run = FlowRun(flow_id="00000000-0000-0000-0000-000000000000", state=Failed(name=state, message="wrong folder"))
    with pytest.raises(error, match="wrong folder"):
        dispatch._result(Mock(), run, Workspace(tmp_path), "train")
