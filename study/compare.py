"""Arms side by side: each arm and seed a campaign in a work tree of its own, at the same oracle cost, in one MLflow."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from prefect import flow, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from cgal.benchmark.observables import HEADLINE
from cgal.benchmark.wasserstein import MODES
from cgal.errors import CgalError
from cgal.files import made_aside, write_text
from cgal.params import check_params, merged
from cgal.randomness import derive_seed
from flows.campaign.opening import campaign_closing, change_params
from flows.campaign.records import campaign_rounds
from flows.serving.orphans import close_dead_runs, project_tag
from flows.terminal import console, stage_bar
from flows.tracking.runs import experiment_name, open_experiment, tracking_uri
from flows.versioning import Repository
from flows.versioning.work_trees import make_work_tree
from flows.workspace import Workspace
from study.bed_data import bed_of, draw_seed, require_physics, write_bed
from study.comparison import Comparison, campaigns_of, read_campaigns
from study.design import CampaignPlan, Design
from study.statistics import RESOLVED_percent, read_records, sample_size, seeds_needed
from study.summary import contrast_logs

__all__ = ["CampaignFailed", "compare", "forecast", "make_data", "records", "run_compare", "write_records"]

LOG_LINES = 5
CONTROLS = ("continued_md", "random", "base")
"""What the other arms are set against in a forecast of power: the first of these that is among them."""

SHARED = ("round", "frames", "oracle_failed", "exploded_fraction", "wall_s", "tag", "reference_physics", "code")


class CampaignFailed(CgalError):
    """A campaign of a comparison ended with an error; the others went on."""


@flow(name="compare", flow_run_name="compare-{name}")
def compare(root: Path, name: str, design: Design, plans: Sequence[CampaignPlan]) -> int:
    """Run campaigns, and give the number of those that failed.

    One that was stopped goes on; one that fails is told, and harms no other. A test bed's ground truth is written, and
    its seed sets are drawn, before.
    """
    comparison = Comparison(root, name)
    commit = make_work_tree(Repository(root), comparison.code)
    proteins = make_data(comparison, design, plans)
    open_experiment(root, experiment_name(proteins))
    console.print(f"comparison {name}: the code of commit {commit[:10]}, {len(plans)} campaigns")
    futures = {_campaign.submit(comparison, design, plan): plan for plan in plans}
    failed = 0
    with stage_bar("campaigns") as progress:
        for done, future in enumerate(as_completed(list(futures)), 1):
            error = future.result(raise_on_failure=False)
            failed += isinstance(error, Exception)
            name = comparison.campaign(futures[future])
            console.print(
                f"[red]✗[/red] {name}: {error}" if isinstance(error, Exception) else f"[green]✓[/green] {name}"
            )
            progress(done, len(plans), f"{failed} failed")
            write_records(comparison, design, plans)
    return failed


def run_compare(comparison: Comparison, design: Design, plans: Sequence[CampaignPlan], workers: int) -> int:
    """Run the flow, `workers` campaigns at a time; see `compare`."""
    runner: Any = ThreadPoolTaskRunner(max_workers=workers)
    with_workers = compare.with_options(task_runner=runner)
    with tags(project_tag(comparison.root)):
        close_dead_runs(comparison.root)
        return with_workers(comparison.root, comparison.name, design, plans)


def make_data(comparison: Comparison, design: Design, plans: Sequence[CampaignPlan]) -> tuple[str, ...]:
    """Write the data that campaigns on a test bed begin with, where they are missing; give the names of the proteins.

    A seed set depends on the comparison's name and its number alone, so that a pilot has others. Raises BadParams when
    the design has other physics than the bed.
    """
    path = comparison.code / "params.yaml"
    params = check_params(merged(yaml.safe_load(path.read_text()), design.common), path)
    if not (design.system and design.seed_sets):
        return Workspace(comparison.root).campaign_proteins
    bed = bed_of(design.system)
    require_physics(params, bed)
    for number in sorted({design.seed_set(plan.seed) for plan in plans}):
        folder = comparison.data(number)
        if folder.is_dir():
            continue
        with made_aside(folder) as aside:
            write_bed(bed, aside)
            seed = derive_seed(0, number, f"seed set of {comparison.name}")
            scratch = comparison.folder / "scratch" / folder.name
            text = (aside / "structure.pdb").read_text()
            draw_seed(text, design.seed_sets, params, seed=seed, scratch=scratch).save(aside / "seed.h5")
        shutil.rmtree(scratch)
    return (str(params.protein),)


def forecast(root: Path, name: str, design: Design, arms: Sequence[str], seeds: int) -> Iterator[str]:
    """Say what a comparison will be able to see and cost, by the scatter and times of its records, or its pilot's.

    The pilot is `NAME_pilot`; nothing is said of arms that the records lack.
    """
    folder = root / "docs" / "results"
    path = next((path for path in (folder / f"{name}.csv", folder / f"{name}_pilot.csv") if path.is_file()), None)
    if path is None:
        yield "power and cost: not known without records; a pilot of a few seeds (NAME_pilot) makes them"
        return
    found = read_records(path)
    known = [arm for arm in arms if arm in set(found["arm"])]
    yield from _primary_power(folder, name, design, seeds) if design.primary else _power(found, known, seeds)
    rows = found.query("metric == @HEADLINE and mode == 'exact' and arm in @known")
    hours = rows.groupby(["arm", "seed"])["wall_s"].sum().groupby("arm").mean().sum() * seeds / 3600
    yield f"cost: about {hours:.1f} core-hours for {len(known)} of {len(arms)} arms, as in {path.relative_to(root)}"


def _power(found: pd.DataFrame, arms: Sequence[str], seeds: int) -> Iterator[str]:
    control = next((arm for arm in CONTROLS if arm in arms), None)
    for arm in arms if control else ():
        needed = arm != control and seeds_needed(found, arm, str(control), HEADLINE, "exact", RESOLVED_percent)
        if needed:
            shift = f"a change of {RESOLVED_percent:.0f} % of {arm} against {control}"
            yield f"power: {shift} takes {needed} seeds, here are {seeds}"


def _primary_power(folder: Path, name: str, design: Design, seeds: int) -> Iterator[str]:
    path, contrast = folder / f"{name}_pilot_twins.csv", design.primary
    if contrast is None or not path.is_file():
        yield "power of the primary contrast: not known without the pilot's twins (python -m study.twins)"
        return
    logs = contrast_logs(pd.read_csv(path), design, contrast)
    yield (
        f"power: a change of {RESOLVED_percent:.0f} % of {contrast.arm} against {contrast.control} at "
        f"{contrast.budget:g} takes {sample_size(logs, RESOLVED_percent) or 'too many'} seed sets by the scatter of "
        f"{len(logs)} in {path.name}, here are {len({design.seed_set(seed) for seed in range(1, seeds + 1)})}"
    )


def records(comparison: Comparison, design: Design, plans: Sequence[CampaignPlan]) -> pd.DataFrame:
    """What the campaigns found, read from git: a row for each arm, seed, round, metric and mode.

    `oracle_steps` are those spent on labels, the seed's aside; `budget_steps` those that the campaign might spend. A
    campaign that has not come to its closing round has no row: its last round is no result of its budget.
    """
    repository = Repository(comparison.root)
    rows = [
        {"arm": plan.arm, "seed": plan.seed, "seed_set": design.seed_set(plan.seed), "budget_steps": plan.budget_steps}
        | row
        for plan in plans
        if campaign_closing(repository, comparison.campaign(plan))
        for entry in campaign_rounds(repository, comparison.campaign(plan))
        for row in _rows(entry)
    ]
    return pd.DataFrame(rows)


def write_records(comparison: Comparison, design: Design, plans: Sequence[CampaignPlan]) -> None:
    """Write what these campaigns found to the comparison's records; rows of other campaigns there are kept.

    Without a complete campaign nothing is written.
    """
    found = records(comparison, design, plans)
    if found.empty:
        return
    if comparison.records.is_file():
        before = read_campaigns(comparison)
        found = pd.concat([before[~campaigns_of(before).isin(campaigns_of(found))], found])
        found = found.sort_values(["seed", "arm", "budget_steps"], kind="stable")
    write_text(comparison.records, found.to_csv(index=False, float_format="%.6g"))


def _rows(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    shared = {name: entry[name] for name in SHARED}
    scores = [(mode, metric, score) for mode in MODES for metric, score in entry[f"w1_{mode}"].items()]
    for mode, metric, score in scores:
        floor = entry[f"floor_{mode}"][metric]
        yield {"metric": metric, "mode": mode, "w1": score["value"], "low": score["low"], "high": score["high"],
               "floor": floor, "oracle_steps": entry["acquisition_steps"]} | shared  # fmt: skip


@task(name="campaign", task_run_name="{plan.name}", cache_policy=NO_CACHE)
def _campaign(comparison: Comparison, design: Design, plan: CampaignPlan) -> None:
    tree = comparison.tree(plan)
    make_work_tree(Repository(comparison.code), tree)
    change_params(tree / "params.yaml", design.of(plan, comparison.campaign(plan)))
    if design.seed_sets and not (data := Workspace(tree).data).is_dir():
        with made_aside(data) as aside:
            shutil.copytree(comparison.data(design.seed_set(plan.seed)), aside, dirs_exist_ok=True)
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
