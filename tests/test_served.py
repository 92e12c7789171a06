"""A project as a lab runs it, under `cgal serve`: a schedule fires, a form starts a campaign, workers run its stages.

With `CGAL_PICTURES=docs/images` the pages that are seen here are photographed into that folder.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Locator
from playwright.sync_api import TimeoutError as PageTimeout
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule

from flows.serving.health import worker_name
from flows.tracking.runs import experiment_page
from flows.versioning import CampaignLock, Repository
from tests.browser import NO_ASSISTANT, Browser, browsing, needs_browser
from tests.conftest import make_copy
from tests.served import Served, alive, serving_project, wait_until
from tests.test_mlflow_page import arrange

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PICTURES = os.environ.get("CGAL_PICTURES")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, bundled_data: Path, git_identity: None) -> Iterator[Served]:
    changes = {"execution": {"retries": 1, "retry_delay_s": 0.5}}
    root = make_copy(tmp_path_factory.mktemp("served") / "project", bundled_data, changes)
    with serving_project(root) as served:
        yield served
        assert "stopped" in served.stop()
        assert served.process.returncode == 0
    assert not alive(root)


def photograph(browser: Browser, name: str) -> None:
    if PICTURES:
        browser.page.wait_for_timeout(1500)
        browser.photograph(Path(PICTURES) / f"{name}.png")


def test_a_project_is_served_once(served: Served) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "flows.cli", "serve", "--root", str(served.root)], capture_output=True, text=True
    )
    assert second.returncode == 1
    assert f"served already by process {served.process.pid}" in second.stderr
    assert served.prefect in second.stderr


def test_a_run_that_finds_another_campaign_at_work_fails_with_its_name(served: Served) -> None:
    with CampaignLock(served.root, "mine"):
        run = served.wait_for(served.start("active-learning", campaign="late"))
    assert run.state is not None
    assert run.state.name == "Failed"
    assert f"campaign mine (process {os.getpid()}" in str(run.state.message)
    assert not Repository(served.root).published("late")


def test_a_value_out_of_bounds_is_refused_before_anything_runs(served: Served) -> None:
    with pytest.raises(Exception, match="rounds"):
        served.start("active-learning", rounds=-1)


def test_what_comes_from_the_form_is_no_command(served: Served) -> None:
    with pytest.raises(Exception, match="campaign"):
        served.start("active-learning", campaign="x; touch pwned")
    assert not list(served.root.rglob("pwned"))


def test_a_schedule_fires_and_each_stage_runs_on_its_pool(served: Served) -> None:
    """The committed weekly schedule, switched on and set to forty seconds from now; a closing round alone."""
    moment = datetime.now(UTC) + timedelta(seconds=40)
    with served.client() as client:
        deployment = client.read_deployment_by_name("active-learning/active-learning")
        (schedule,) = deployment.schedules
        assert not schedule.active
        client.update_deployment(deployment.id, DeploymentUpdate(parameters={"rounds": 0}))
        client.update_deployment_schedule(
            deployment.id,
            schedule.id,
            active=True,
            schedule=IntervalSchedule(interval=timedelta(weeks=1), anchor_date=moment),
        )
        fired = []

        def has_begun() -> bool:
            fired[:] = [run for run in served.runs() if run.auto_scheduled and run.start_time]
            return bool(fired)

        wait_until(has_begun, "the scheduled run", 180)
        client.update_deployment_schedule(deployment.id, schedule.id, active=False)
    run = served.wait_for(fired[0])
    assert run.state is not None
    assert run.state.is_completed(), run.state
    assert run.name == "scheduled"
    assert [entry.tag for entry in Repository(served.root).published("scheduled")] == ["scheduled/round-000"]
    check_places(served, run, rounds=1)


def children(served: Served, run: FlowRun) -> list[FlowRun]:
    """Flow runs that are nested directly below one in its graph."""
    with served.client() as client:
        return [
            child
            for child in client.read_flow_runs()
            if child.parent_task_run_id and client.read_task_run(child.parent_task_run_id).flow_run_id == run.id
        ]


def check_places(served: Served, campaign: FlowRun, rounds: int) -> None:
    """Rounds run with their campaign in the CPU pool; train and simulate in the GPU pool, each below its round."""
    assert campaign.work_pool_name == "cgal-cpu"
    assert campaign.labels["prefect.worker.name"] == worker_name("cgal-cpu")
    below = children(served, campaign)
    assert sorted(run.name for run in below) == [f"round-{k:03d}" for k in range(rounds)]
    for round_run in below:
        stages = children(served, round_run)
        k = round_run.name.removeprefix("round-")
        assert sorted(run.name for run in stages) == [f"simulate-r{k}", f"train-r{k}"]
        for stage in stages:
            assert stage.work_pool_name == "cgal-gpu"
            assert stage.labels["prefect.worker.name"] == worker_name("cgal-gpu")
            assert stage.state is not None
            assert stage.state.is_completed()


@needs_browser
def test_a_form_starts_a_campaign_that_is_seen_at_work_and_compared(served: Served) -> None:
    with browsing(1400, 1100) as browser:
        run = start_from_form(browser, served)
        see_campaign(browser, served, run)
        compare_rounds(browser, served, "shown")
    check_places(served, served.wait_for(run), rounds=2)


def start_from_form(browser: Browser, served: Served) -> FlowRun:
    """Fill the form of the deployment as a person does, and start its run."""
    with served.client() as client:
        deployment = client.read_deployment_by_name("active-learning/active-learning")
    before = {run.id for run in served.runs()}
    for _ in range(3):  # the form draws itself anew while its data come in: what was filled in or clicked then is lost
        submit_form(browser, f"{served.prefect}/v2/deployments/deployment/{deployment.id}/run")
        started = [run for run in served.runs() if run.id not in before and not run.auto_scheduled]
        if started:
            break
    (run,) = started
    assert run.parameters["acquisition"] == "random", browser.text()
    return run


def submit_form(browser: Browser, address: str) -> None:
    page = browser.page
    browser.open(address)
    page.wait_for_load_state("networkidle")
    page.get_by_role("textbox", name="campaign").fill("shown")
    change = page.get_by_role("tab", name="change")  # of protein, rounds, budget, acquisition and overrides
    change.nth(1).click()
    page.get_by_role("spinbutton").fill("1")
    change.nth(3).click()
    page.get_by_role("button", name="Select change").click()
    page.get_by_role("option", name="random", exact=True).click()
    change.nth(4).click()
    photograph(browser, "prefect-form")
    page.get_by_role("button", name="Submit").click()
    with suppress(PageTimeout):
        page.wait_for_url("**/deployments/deployment/*?tab=Runs", timeout=60_000)


def see_campaign(browser: Browser, served: Served, run: FlowRun) -> None:
    """Follow the run's page while the campaign is at work, then look at a round and its artifacts."""
    tab = browser.page.get_by_role("tab")
    browser.open(f"{served.prefect}/v2/runs/flow-run/{run.id}")
    tab.get_by_text("Subflow Runs").click()
    browser.wait_for(["Running", "round-000"], 300)
    browser.open("about:blank")  # drawing the live page costs as much as the campaign
    ended = served.wait_for(run)
    assert ended.state is not None
    assert ended.state.is_completed(), ended.state
    browser.open(f"{served.prefect}/v2/runs/flow-run/{run.id}")
    tab.get_by_text("Subflow Runs").click()
    browser.wait_for(["shown", "Completed", "round-000", "round-001"])
    photograph(browser, "prefect-campaign")
    (first,) = (child for child in children(served, run) if child.name == "round-000")
    browser.open(f"{served.prefect}/v2/runs/flow-run/{first.id}")
    tab.get_by_text("Task Runs").click()
    browser.wait_for(["train-r000", "simulate-r000", "benchmark-r000", "select-r000", "label-r000"])
    photograph(browser, "prefect-round")
    tab.get_by_text("Artifacts").click()
    browser.wait_for(["benchmark-r000-tica", "train-r000-training", "label-r000"])
    browser.page.get_by_role("link", name="benchmark-r000-tica").click()
    browser.page.locator("a[href*='/artifacts/artifact/']").first.click()
    browser.page.get_by_role("img", name="artifact-image").wait_for()
    photograph(browser, "prefect-artifact")


def compare_rounds(browser: Browser, served: Served, campaign: str) -> None:
    """Unfold a campaign in MLflow's list of runs, tick two of its rounds and open the compare page."""
    page = browser.page
    browser.open(f"{served.mlflow}/health")
    browser.run(NO_ASSISTANT)
    browser.open(experiment_page(served.mlflow, "chignolin"))

    def row(name: str) -> Locator:
        return page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))

    row(campaign).get_by_role("button").first.click()
    for name in ("round-000", "round-001"):
        row(name).get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Compare").click()
    browser.wait_for(["Comparing 2 Runs from 1 Experiment", "round-000", "round-001"])
    arrange(browser)
    photograph(browser, "mlflow-compare-served")
