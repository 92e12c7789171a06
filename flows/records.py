"""What is known of the rounds of a campaign, read from git alone: each tag holds its metrics and timings."""

import json
from pathlib import Path
from typing import Any

from flows.tracking import RoundRecord
from flows.versioning import PublishedRound, Repository
from flows.workspace import Workspace

__all__ = ["campaign_rounds", "round_record"]


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


def _read_json(repository: Repository, tag: str, path: str) -> Any:
    return json.loads(repository.read_round_file(tag, path))
