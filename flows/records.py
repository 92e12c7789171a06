"""What is known of the rounds of a campaign, read from git alone: each tag holds its metrics and timings."""

import csv
import json
from pathlib import Path
from typing import Any

from cgal.benchmark import plot_rmsd_rounds, plot_rounds
from cgal.files import read_json
from cgal.oracle import OracleResult
from flows.tracking import RoundRecord, flatten
from flows.versioning import PublishedRound, Repository
from flows.workspace import Workspace

__all__ = ["campaign_rounds", "draw_campaign", "round_record"]


def campaign_rounds(repository: Repository, campaign: str) -> list[dict[str, Any]]:
    """Every published round, in order: tag, commit, W1 with intervals, frames, oracle cost, replicas, wall time."""
    return [_describe(repository, published) for published in repository.published(campaign)]


def _describe(repository: Repository, published: PublishedRound) -> dict[str, Any]:
    metrics = _read_json(repository, published.tag, "round/metrics.json")
    seconds = _read_json(repository, published.tag, "round/timings.json")["seconds"]
    simulation = metrics["simulation"]
    return {
        "round": metrics["round"],
        "tag": published.tag,
        "commit": published.commit,
        "w1": metrics["w1"],
        "w1_exact": metrics["w1_exact"],
        "w1_paper": metrics["w1_paper"],
        "floor": metrics["floor"],
        "frames": metrics["dataset"]["frames"],
        "oracle_steps": metrics["dataset"]["oracle_steps"],
        "oracle_failed": metrics["dataset"]["oracle_failed"],
        "exploded_fraction": simulation["exploded_fraction"],
        "replicas": simulation["replicas"],
        "lost_replicas": simulation["exploded"] + simulation["imploded"] + simulation["not_finite"],
        "wall_s": sum(seconds.values()),
        "overhead_s": seconds.get("overhead", 0.0),
    }


def round_record(workspace: Workspace, repository: Repository, round_index: int) -> RoundRecord:
    """What MLflow is told of a published round whose outputs lie in the workspace."""
    params = workspace.params
    published = repository.published_round(params.campaign.name, round_index)
    labels = OracleResult.load(workspace.round / "oracle.h5")
    with (workspace.round / "training.csv").open() as stream:
        history = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    return RoundRecord(
        protein=params.protein,
        campaign=params.campaign.name,
        round_index=round_index,
        params=flatten(params.model_dump()),
        metrics=read_json(workspace.round / "metrics.json"),
        timings=workspace.timings(round_index),
        git_tag=published.tag,
        git_commit=published.commit,
        dvc_md5=published.model_md5,
        data_md5=published.data_md5,
        figures=sorted((workspace.round / "plots").glob("*/*.png")),
        history=history,
        frames=len(labels.labelled),
        oracle_steps=labels.steps,
        oracle_failed=len(labels.failures),
        model_path=workspace.round / "model.pt",
    )


def _read_json(repository: Repository, tag: str, path: str) -> Any:
    return json.loads(repository.read_round_file(tag, path))


def draw_campaign(repository: Repository, campaign: str, folder: Path) -> Path:
    """Draw W1 and RMSD histograms over the rounds of a campaign into `folder`."""
    tags = [published.tag for published in repository.published(campaign)]
    plot_rounds([_read_json(repository, tag, "round/metrics.json") for tag in tags], folder)
    plot_rmsd_rounds([_read_json(repository, tag, "round/histograms.json") for tag in tags], folder)
    return folder
