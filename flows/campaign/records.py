"""What is known of the rounds of a campaign, read from git alone: each tag holds its metrics and timings."""

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cgal import __version__
from cgal.files import read_json
from flows.tracking.runs import RoundRecord, flatten
from flows.versioning import PublishedRound, Repository
from flows.workspace import Workspace

__all__ = ["campaign_rounds", "draw_campaign", "made_by_others", "round_record"]


def campaign_rounds(repository: Repository, campaign: str, *, but: Collection[str] = ()) -> list[dict[str, Any]]:
    """Every published round, in order: tag, commit, W1 with intervals, frames, oracle cost, replicas, wall time.

    Rounds of the tags `but` are left out.
    """
    rounds = repository.published(campaign, but=but)
    tags = [published.tag for published in rounds]
    metrics, timings = (_read_json(repository, tags, f"round/{name}.json") for name in ("metrics", "timings"))
    return [
        _describe(published, scores, spent["seconds"])
        for published, scores, spent in zip(rounds, metrics, timings, strict=True)
    ]


def _describe(published: PublishedRound, metrics: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    simulation = metrics["simulation"]
    return {
        "round": metrics["round"],
        "tag": published.tag,
        "commit": published.commit,
        "pointer": published.pointer,
        "version": published.version,
        "w1": metrics["w1"],
        "w1_exact": metrics["w1_exact"],
        "w1_paper": metrics["w1_paper"],
        "floor": metrics["floor"],
        "floor_exact": metrics["floor_exact"],
        "floor_paper": metrics["floor_paper"],
        "tica_lag_ps": metrics.get("tica_lag_ps"),
        "reference_physics": metrics.get("reference_physics"),
        "frames": metrics["dataset"]["frames"],
        "oracle_steps": metrics["dataset"]["oracle_steps"],
        "acquisition_steps": metrics["dataset"]["acquisition_steps"],
        "oracle_failed": metrics["dataset"]["oracle_failed"],
        "exploded_fraction": simulation["exploded_fraction"],
        "replicas": simulation["replicas"],
        "lost_replicas": simulation["exploded"] + simulation["imploded"] + simulation["not_finite"],
        "wall_s": sum(seconds.values()),
        "overhead_s": seconds.get("overhead", 0.0),
    }


def made_by_others(versions: Mapping[str, str]) -> str:
    """What to say of rounds, by tag, that another version of cgal made; "" when there are none."""
    others = {tag: version for tag, version in versions.items() if version not in ("", __version__)}
    if not others:
        return ""
    listed = ", ".join(f"{tag} by {version}" for tag, version in others.items())
    return (
        f"made by another version of cgal than this one ({__version__}): {listed}; made again, their numbers may differ"
    )


def round_record(workspace: Workspace, repository: Repository, round_index: int) -> RoundRecord:
    """What MLflow is told of a published round whose outputs lie in the workspace."""
    from cgal.all_atom.oracle import OracleResult

    params = workspace.params
    published = repository.published_round(params.campaign.name, round_index)
    labels = OracleResult.load(workspace.round / "oracle.h5")
    selection = read_json(workspace.round / "selection.json")
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
        uncovered_fraction=selection["outcome"]["uncovered_fraction"],
        closing=selection["closing"],
        data_pointer=published.pointer,
    )


def draw_campaign(repository: Repository, campaign: str, folder: Path) -> Path:
    """Draw W1 and RMSD histograms over the rounds of a campaign into `folder`."""
    from cgal.benchmark.figures import plot_rmsd_rounds, plot_rounds

    tags = [published.tag for published in repository.published(campaign)]
    plot_rounds(_read_json(repository, tags, "round/metrics.json"), folder)
    plot_rmsd_rounds(_read_json(repository, tags, "round/histograms.json"), folder)
    return folder


def _read_json(repository: Repository, tags: Sequence[str], path: str) -> list[Any]:
    return [json.loads(content) for content in repository.read_round_files(tags, path)]
