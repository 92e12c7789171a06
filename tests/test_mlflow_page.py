"""MLflow's compare page, seen in a real browser: rounds side by side with readable names and their numbers.

By hand, on a project with a finished campaign (writes the picture that the README shows):
`python -m tests.test_mlflow_page PROJECT PROTEIN CAMPAIGN PICTURE.png`
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from typing import Any
from urllib.parse import quote

import pytest

from flows.tracking.runs import RunIds, experiment_page, log_round, round_metrics, tracking_uri
from flows.tracking.views import MODEL_TRAINING_VIEW, view_page
from tests.browser import NO_ASSISTANT, Browser, browsing, needs_browser
from tests.test_tracking import make_record, serving

HEADLINES = ("w1/tica", "w1/reaction_coordinate", "w1/bond", "w1/angle", "w1/dihedral")

ROW_PX = 45
"""Height of a row in the table of metrics."""

SHOW_DIFFERENCES = """document.querySelector(`button[aria-label="${arguments[0]} - Show diff only"]`).click()"""
CLEAR_PLOT = """
[...document.querySelectorAll("button")].find(button => button.innerText.trim() === "Clear All").click();
"""
OPEN_METRICS_OF_PLOT = """
const select = document.querySelectorAll("input[role=combobox]")[1].closest(".du-bois-light-select");
select.querySelector(".du-bois-light-select-selector").dispatchEvent(new MouseEvent("mousedown", {bubbles: true}));
"""
PICK_METRIC_OF_PLOT = """
const list = document.querySelector(".rc-virtual-list-holder");
const option = list && list.querySelector(`.du-bois-light-select-item-option[title="${arguments[0]}"]`);
if (option) { option.click(); return true; }
if (list) {
  const end = list.scrollHeight - list.clientHeight;
  list.scrollTop = list.scrollTop >= end - 1 ? 0 : list.scrollTop + 100;
}
return false;
"""
CLOSE_LISTS = """document.body.dispatchEvent(new MouseEvent("mousedown", {bubbles: true}))"""
METRICS_TABLE = """
const grid = document.querySelectorAll(".ReactVirtualized__Grid")[1];
grid.scrollIntoView({block: "nearest"});
const box = grid.getBoundingClientRect();
return [Math.round(box.x + box.width / 2), Math.round(box.y + box.height / 2), grid.scrollTop, grid.scrollHeight];
"""
METRICS_IN_VIEW = """
const cells = grid => [...grid.querySelectorAll("[role=rowgroup] > *")].map(
  cell => [cell.style.top, cell.style.left, cell.innerText]);
return [...document.querySelectorAll(".ReactVirtualized__Grid")].map(cells);
"""


def compare_page(address: str, rounds: Sequence[RunIds]) -> str:
    """Address of the page that shows rounds side by side, on the MLflow server at `address`."""
    runs = quote(json.dumps([ids.round for ids in rounds]))
    experiments = quote(json.dumps(sorted({ids.experiment for ids in rounds})))
    return f"{address}/#/compare-runs?runs={runs}&experiments={experiments}&{MODEL_TRAINING_VIEW}"


def show_rounds(browser: Browser, address: str, rounds: Sequence[RunIds]) -> None:
    """Open the compare page with the five W1 in its plot, and what differs between the rounds below."""
    browser.open(
        f"{address}/health"
    )  # same origin, so that the assistant's panel is switched off before the page opens
    browser.run(NO_ASSISTANT)
    browser.open(compare_page(address, rounds))
    arrange(browser)


def arrange(browser: Browser) -> None:
    """Let an open compare page plot the five W1, and list only what differs."""
    browser.wait_for(["Parallel Coordinates Plot", "Clear All", "dataset/frames"])
    for section in ("Parameters", "Metrics"):
        browser.run(SHOW_DIFFERENCES, section)
    browser.run(CLEAR_PLOT)  # the page begins with some metric of its own choice
    browser.run(OPEN_METRICS_OF_PLOT)
    for name in HEADLINES:
        wait_until(lambda name=name: browser.run(PICK_METRIC_OF_PLOT, name), f"{name} in the list of metrics")
    browser.run(CLOSE_LISTS)
    browser.wait_for(HEADLINES)


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never seen: {what}"
        time.sleep(0.3)


def scroll_metrics(browser: Browser, top: int) -> None:
    """Turn the mouse wheel over the table of metrics, the last pixel by itself.

    In MLflow 3.17 the names beside the numbers stay one turn behind, which a hand on a wheel does not notice.
    """
    for target in (top - 1, top):
        x, y, now, _ = browser.run(METRICS_TABLE)
        browser.page.mouse.move(x, y)
        browser.page.mouse.wheel(0, target - now)
        time.sleep(0.5)


def read_metrics(browser: Browser) -> dict[str, list[str]]:
    """Metric names and what is shown for each round; the page draws only the rows in view, so scroll through all."""
    names: dict[str, str] = {}
    values: dict[tuple[str, str], str] = {}
    for top in range(0, browser.run(METRICS_TABLE)[-1], 200):
        scroll_metrics(browser, top)
        left, right = browser.run(METRICS_IN_VIEW)
        names |= {row: text.strip() for row, _, text in left}
        values |= {(row, column): text.strip() for row, column, text in right}
    columns = sorted({column for _, column in values}, key=lambda column: float(column.removesuffix("px")))
    return {name: [values[row, column] for column in columns] for row, name in names.items()}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    root = tmp_path_factory.mktemp("page")
    copyfile(empty_database, root / "mlflow.db")
    return root


@pytest.fixture(scope="module")
def address(project: Path) -> Iterator[str]:
    with serving(project) as address:
        yield address


@pytest.mark.slow
@needs_browser
def test_the_compare_page_shows_two_rounds_side_by_side(
    project: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    records = [make_record(tmp_path, k) for k in range(2)]
    rounds = [log_round(project, record) for record in records]
    with browsing(1400, 1800) as browser:
        show_rounds(browser, address, rounds)
        text = browser.wait_for(["round-000", "round-001", "demo/round-000", "demo/round-001"])
        assert "Comparing 2 Runs from 1 Experiment" in text
        shown = read_metrics(browser)
        browser.photograph(tmp_path / "compare.png")
        for protein, shown_there in (("nobody", ["chignolin", "Last modified"]), ("chignolin", ["demo", "Run Name"])):
            browser.open(experiment_page(address, protein))
            text = browser.wait_for(shown_there)
            assert "Judges" not in text, "in the menu for language models"
    expected = [round_metrics(record) for record in records]
    for name in [f"{headline}{part}" for headline in HEADLINES for part in ("", "/low", "/high")]:
        assert [float(text) for text in shown[name]] == pytest.approx([m[name] for m in expected], abs=6e-4), name
    assert shown["dataset/frames"] == ["200", "224"]
    assert (tmp_path / "compare.png").stat().st_size > 50_000


@pytest.mark.slow
@needs_browser
def test_somebody_else_finds_w1_and_what_campaigns_differ_in(
    project: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text, table and charts of an experiment with two campaigns, each from the link in its description."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    chosen = {"demo": {"selection.acquisition": "coverage"}, "other": {"selection.acquisition": "random", "seed": "7"}}
    campaigns = []
    for offset, (campaign, params) in enumerate(chosen.items()):
        for k in range(3):
            record = make_record(tmp_path, k, "villin", campaign=campaign, git_commit=f"{10 * offset + k + 1:040x}")
            record = replace(record, metrics={**record.metrics, "w1": dict(sorted(record.metrics["w1"].items()))})
            ids = log_round(project, replace(record, params=dict(record.params) | params))
        campaigns.append(replace(ids, round=ids.campaign))
    with browsing(1800, 1200) as browser:
        browser.open(f"{address}/health")
        browser.run(NO_ASSISTANT)
        browser.open(experiment_page(address, "villin"))
        browser.page.get_by_text("Active learning of coarse-grained").first.wait_for()
        links = [
            f"{address}/{browser.page.get_by_role('link', name=name).get_attribute('href')}"
            for name in ("Table of rounds", "Comparison")
        ]
        assert links == [f"{address}/{view_page(campaigns[0].experiment, view)}" for view in ("rounds", "comparison")]
        browser.open(links[0])
        text = browser.wait_for([*HEADLINES, "closing", "cgal.latest_round", "demo", "other"])
        assert "dataset/frames" not in text
        assert "rounds: all" in text
        browser.open(links[1])
        browser.wait_for(["W1 to the reference", *HEADLINES, "demo (w1/tica)", "other (w1/tica)"])
        browser.open(compare_page(address, campaigns))
        text = browser.wait_for(["Parallel Coordinates Plot", "Clear All", "Run details"])
        plot, details = text.split("Run details", 1)
        assert "w1/tica" in plot
        assert "dataset/" not in plot
        assert "selection.acquisition" in plot
        assert "training.epochs" not in details
        browser.run("document.querySelector('main').scrollTop = 0")
        browser.photograph(tmp_path / "campaigns.png")


def photograph_campaign(root: Path, protein: str, campaign: str, picture: Path) -> None:
    """Picture of the compare page with all rounds of a campaign that `root`'s MLflow holds."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(root))
    experiment = client.get_experiment_by_name(protein)
    assert experiment is not None
    wanted = f"tags.`cgal.kind` = 'round' and tags.`cgal.campaign` = '{campaign}'"
    runs = client.search_runs([experiment.experiment_id], wanted)
    runs.sort(key=lambda run: int(run.data.tags["cgal.round"]))
    rounds = [RunIds(experiment.experiment_id, "", run.info.run_id) for run in runs]
    with serving(root) as address, browsing(1400, 1700) as browser:
        show_rounds(browser, address, rounds)
        scroll_metrics(browser, ROW_PX * list(read_metrics(browser)).index("w1/reaction_coordinate"))
        browser.run("document.querySelector('main').scrollTop = 0")
        time.sleep(1)
        browser.photograph(picture)


if __name__ == "__main__":
    photograph_campaign(Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
