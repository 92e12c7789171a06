"""Arms side by side: each arm and seed a campaign in a work tree of its own, at the same oracle cost, in one MLflow."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import flow, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from cgal.benchmark.observables import HEADLINE
from cgal.errors import CgalError
from cgal.files import write_text
from flows.campaign.opening import campaign_closing, change_params
from flows.campaign.records import campaign_rounds
from flows.serving.orphans import close_dead_runs, project_tag
from flows.terminal import console, stage_bar
from flows.tracking.runs import experiment_name, open_experiment, tracking_uri
from flows.versioning import Repository
from flows.versioning.work_trees import make_work_tree
from flows.workspace import Workspace
from study.design import Design
from study.statistics import seeds_needed

__all__ = ["CampaignFailed", "Comparison", "compare", "forecast", "records", "run_compare", "write_records"]

LOG_LINES = 5
CONTROLS = ("continued_md", "random", "base")
"""What the other arms are set against in a forecast of power: the first of these that is among them."""

RESOLVED_percent = -30.0
MODES = ("exact", "paper")
SHARED = ("round", "frames", "oracle_failed", "exploded_fraction", "wall_s", "tag", "reference_physics")


class CampaignFailed(CgalError):
    """A campaign of a comparison ended with an error; the others went on."""


@dataclass(frozen=True)
class Comparison:
    """A comparison in a working copy: its folder holds one work tree for its code, and one for each campaign.

    All of them are at the commit at which the comparison began, so it ends with the code that it began with.
    """

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        """Where the work trees are; they may be removed when the comparison is done."""
        return self.root / ".cgal" / "compare" / self.name

    @property
    def code(self) -> Path:
        """The code that all campaigns run."""
        return self.folder / "code"

    def campaign(self, arm: str, seed: int) -> str:
        """Name of an arm's campaign, in its tags and in MLflow."""
        return f"{self.name}-{arm}-s{seed}"

    def tree(self, arm: str, seed: int) -> Path:
        """An arm's work tree."""
        return self.folder / f"{arm}-s{seed}"


@flow(name="compare", flow_run_name="compare-{name}")
def compare(root: Path, name: str, design: Design, arms: Sequence[str], seeds: int, budget: int) -> int:
    """Run every arm with seeds 1 to `seeds`, and give the number of campaigns that failed.

    Each arm may spend `budget` all-atom steps on labels. A campaign that is complete is not run again, one that was
    stopped goes on; one that fails is told, and harms no other.
    """
    design.require(arms)
    comparison = Comparison(root, name)
    open_experiment(root, experiment_name(Workspace(root).campaign_proteins))
    commit = make_work_tree(Repository(root), comparison.code)
    console.print(f"comparison {name}: the code of commit {commit[:10]}, {budget} all-atom steps for each arm and seed")
    todo = [(arm, seed) for seed, arm in product(range(1, seeds + 1), arms)]
    futures = {_campaign.submit(comparison, design, budget, arm, seed): (arm, seed) for arm, seed in todo}
    failed = 0
    with stage_bar("campaigns") as progress:
        for done, future in enumerate(as_completed(list(futures)), 1):
            error = future.result(raise_on_failure=False)
            failed += isinstance(error, Exception)
            name = comparison.campaign(*futures[future])
            console.print(
                f"[red]✗[/red] {name}: {error}" if isinstance(error, Exception) else f"[green]✓[/green] {name}"
            )
            progress(done, len(todo), f"{failed} failed")
    return failed


def run_compare(
    comparison: Comparison, design: Design, arms: Sequence[str], seeds: int, budget: int, workers: int
) -> int:
    """Run the flow, `workers` campaigns at a time; see `compare`."""
    runner: Any = ThreadPoolTaskRunner(max_workers=workers)
    with_workers = compare.with_options(task_runner=runner)
    with tags(project_tag(comparison.root)):
        close_dead_runs(comparison.root)
        return with_workers(comparison.root, comparison.name, design, arms, seeds, budget)


def forecast(root: Path, name: str, arms: Sequence[str], seeds: int) -> Iterator[str]:
    """Say what a comparison will be able to see and cost, by the scatter and times of earlier records.

    Those of its own name if there are any, else of the committed study; nothing is said of arms that they lack.
    """
    folder = root / "docs" / "results"
    path = next((path for path in (folder / f"{name}.csv", folder / "arms.csv") if path.is_file()), None)
    if path is None:
        yield "power and cost: not known, since there are no earlier records; a pilot of a few seeds makes them"
        return
    found = pd.read_csv(path)
    known = [arm for arm in arms if arm in set(found["arm"])]
    control = next((arm for arm in CONTROLS if arm in known), None)
    for arm in known if control else ():
        needed = arm != control and seeds_needed(found, arm, str(control), HEADLINE, "exact", RESOLVED_percent)
        if needed:
            shift = f"a change of {RESOLVED_percent:.0f} % of {arm} against {control}"
            yield f"power: {shift} takes {needed} seeds, here are {seeds}"
    rows = found.query("metric == @HEADLINE and mode == 'exact' and arm in @known")
    hours = rows.groupby(["arm", "seed"])["wall_s"].sum().groupby("arm").mean().sum() * seeds / 3600
    yield f"cost: about {hours:.1f} core-hours for {len(known)} of {len(arms)} arms, as in {path.relative_to(root)}"


def records(comparison: Comparison, arms: Sequence[str], seeds: int) -> pd.DataFrame:
    """What the campaigns found, read from git: a row for each arm, seed, round, metric and mode.

    `oracle_steps` are those spent on labels, the seed's aside. A campaign that has not come to its closing round has no
    row: its last round is no result of its budget.
    """
    repository = Repository(comparison.root)
    rows = [
        {"arm": arm, "seed": seed} | row
        for arm, seed in product(arms, range(1, seeds + 1))
        if campaign_closing(repository, comparison.campaign(arm, seed))
        for entry in campaign_rounds(repository, comparison.campaign(arm, seed))
        for row in _rows(entry)
    ]
    return pd.DataFrame(rows)


def write_records(comparison: Comparison, arms: Sequence[str], seeds: int) -> Path:
    """Write the records to `docs/results/<name>.csv` and give that path; rows of other arms there are kept."""
    path = comparison.root / "docs" / "results" / f"{comparison.name}.csv"
    found = records(comparison, arms, seeds)
    if path.is_file():
        before = pd.read_csv(path)
        found = pd.concat([before[~before["arm"].isin(found.get("arm", []))], found])
    write_text(path, found.to_csv(index=False, float_format="%.6g"))
    return path


def _rows(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    shared = {name: entry[name] for name in SHARED}
    scores = [(mode, metric, score) for mode in MODES for metric, score in entry[f"w1_{mode}"].items()]
    for mode, metric, score in scores:
        floor = entry[f"floor_{mode}"][metric]
        yield {"metric": metric, "mode": mode, "w1": score["value"], "low": score["low"], "high": score["high"],
               "floor": floor, "oracle_steps": entry["acquisition_steps"]} | shared  # fmt: skip


@task(name="campaign", task_run_name="{arm}-s{seed}", cache_policy=NO_CACHE)
def _campaign(comparison: Comparison, design: Design, budget: int, arm: str, seed: int) -> None:
    tree, name = comparison.tree(arm, seed), comparison.campaign(arm, seed)
    make_work_tree(Repository(comparison.code), tree)
    change_params(tree / "params.yaml", design.of(arm, budget, seed, name))
    log = tree.with_suffix(".log")
    with log.open("ab") as output:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "run", "--root", str(tree)],
            cwd=comparison.code,
            env=os.environ | _environment(comparison),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    if done.returncode:
        last = " / ".join(log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:])
        raise CampaignFailed(f"exit code {done.returncode}, see {log}: {last}")


def _environment(comparison: Comparison) -> dict[str, str]:
    return {
        "PYTHONPATH": str(comparison.code),
        "MLFLOW_TRACKING_URI": tracking_uri(comparison.root),
        "OMP_NUM_THREADS": "1",
    }
