"""What is known of the rounds of a campaign, read from git alone: each tag holds its metrics and timings."""

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cgal import __version__
from cgal.benchmark.halves import verdict
from cgal.benchmark.together import together
from cgal.params import check_params
from flows.tracking.runs import RoundRecord, flatten
from flows.versioning import PublishedRound, Repository
from flows.workspace import Workspace

__all__ = ["campaign_rounds", "differing_halves", "draw_campaign", "made_by_others", "round_record"]


def campaign_rounds(repository: Repository, campaign: str, *, but: Collection[str] = ()) -> list[dict[str, Any]]:
    """Every published round, in order: tag, commit, W1 with intervals, frames, oracle cost, replicas, wall time.

    Rounds of the tags `but` are left out.
    """
    rounds = repository.published(campaign, but=but)
    timings = _read_json(repository, [published.tag for published in rounds], "round/timings.json")
    metrics = _read_each(repository, rounds, "metrics.json")
    return [
        _describe(published, scores, spent["seconds"])
        for published, scores, spent in zip(rounds, metrics, timings, strict=True)
    ]


def _describe(
    published: PublishedRound, metrics: dict[str, dict[str, Any]], seconds: dict[str, float]
) -> dict[str, Any]:
    """A round in numbers; of several proteins those of all together (`together`), and `proteins` has each one's."""
    described: dict[str, Any] = {
        "round": published.round_index,
        "tag": published.tag,
        "commit": published.commit,
        "pointer": published.pointer,
        "version": published.version,
        "code": published.code,
        **_scores(_all_proteins(metrics)),
        "wall_s": sum(seconds.values()),
        "overhead_s": seconds.get("overhead", 0.0),
    }
    if len(metrics) > 1:
        described["proteins"] = {protein: _scores(each) for protein, each in metrics.items()}
    return described


def _all_proteins(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics of a round, from those of each protein."""
    if len(metrics) == 1:
        return dict(*metrics.values())
    physics = {protein: each["reference_physics"] for protein, each in metrics.items() if "reference_physics" in each}
    said = {"reference_physics": ", ".join(f"{made} ({name})" for name, made in physics.items())} if physics else {}
    joined = together({protein: {k: v for k, v in each.items() if k != "halves"} for protein, each in metrics.items()})
    return joined | {"round": next(iter(metrics.values()))["round"]} | said


def _scores(metrics: Mapping[str, Any]) -> dict[str, Any]:
    simulation = metrics["simulation"]
    return {
        "w1": metrics["w1"],
        "w1_exact": metrics["w1_exact"],
        "w1_paper": metrics["w1_paper"],
        "floor": metrics["floor"],
        "floor_exact": metrics["floor_exact"],
        "floor_paper": metrics["floor_paper"],
        "tica_lag_ps": metrics.get("tica_lag_ps"),
        "halves": metrics.get("halves"),
        "reference_physics": metrics.get("reference_physics"),
        "frames": metrics["dataset"]["frames"],
        "oracle_steps": metrics["dataset"]["oracle_steps"],
        "acquisition_steps": metrics["dataset"]["acquisition_steps"],
        "oracle_failed": metrics["dataset"]["oracle_failed"],
        "failed_steps": metrics["dataset"].get("failed_steps"),
        "seed_steps": metrics["dataset"].get("seed_steps"),
        "exploded_fraction": simulation["exploded_fraction"],
        "replicas": simulation["replicas"],
        "lost_replicas": simulation["exploded"] + simulation["imploded"] + simulation["not_finite"],
    }


def differing_halves(rounds: Sequence[Mapping[str, Any]]) -> str:
    """What to say of rounds (`campaign_rounds`) whose simulation drifts from one half to the other; "" if none does."""
    found = {
        f"round {entry['round']}{f' ({protein})' if protein else ''}": scores["halves"]
        for entry in rounds
        for protein, scores in (entry.get("proteins") or {"": entry}).items()
        if scores.get("halves") and scores["halves"]["agree"] is False
    }
    if not found:
        return ""
    listed = ", ".join(f"{name} {verdict(halves)}" for name, halves in found.items())
    return (
        f"the two halves of a simulation differ along the slowest coordinate, in the reference's standard deviations: "
        f"{listed}; it still forgets its starts, which W1 measures too: raise simulation.steps, or 'cgal production'"
    )


def made_by_others(versions: Mapping[str, str]) -> str:
    """What to say of rounds, by tag, that another version of cgal made; "" when there are none."""
    others = {tag: version for tag, version in versions.items() if version not in ("", __version__)}
    if not others:
        return ""
    listed = ", ".join(f"{tag} by {version}" for tag, version in others.items())
    return (
        f"made by another version of cgal than this one ({__version__}): {listed}; made again, their numbers may differ"
    )


def round_record(workspace: Workspace, repository: Repository, published: PublishedRound) -> RoundRecord:
    """What MLflow is told of a published round: what its commit holds; labels and figures lie in the workspace."""
    from cgal.all_atom.oracle import OracleResult

    tag = published.tag
    params = check_params(yaml.safe_load(repository.read_round_file(tag, "params.yaml")), Path(f"params.yaml of {tag}"))
    labels = [OracleResult.load(part.round / "oracle.h5") for part in workspace.parts]
    (selection,) = _read_json(repository, [tag], "round/selection.json")
    (timings,) = _read_json(repository, [tag], "round/timings.json")
    (metrics,) = _read_each(repository, [published], "metrics.json")
    history = repository.read_round_file(tag, "round/training.csv").decode().splitlines()
    return RoundRecord(
        proteins=published.proteins,
        campaign=published.campaign,
        round_index=published.round_index,
        params=flatten(params.model_dump() | {"protein": ", ".join(published.proteins)}),
        metrics=_all_proteins(metrics),
        timings=timings["seconds"],
        git_tag=tag,
        git_commit=published.commit,
        dvc_md5=published.model_md5,
        data_md5=published.data_md5,
        figures=sorted(workspace.round.rglob("plots/**/*.png")),
        history=list(csv.DictReader(history)),
        frames=sum(len(each.labelled) for each in labels),
        oracle_steps=sum(each.steps for each in labels),
        oracle_failed=sum(len(each.failures) for each in labels),
        model_path=workspace.model,
        uncovered_fraction=selection["outcome"]["uncovered_fraction"],
        closing=selection["closing"],
        data_pointer=published.pointer,
    )


def draw_campaign(repository: Repository, campaign: str, folder: Path) -> Path:
    """Draw W1 and RMSD histograms over the rounds of a campaign into `folder`; of several proteins in one for each."""
    from cgal.benchmark.figures import plot_rmsd_rounds, plot_rounds

    rounds = repository.published(campaign)
    metrics, histograms = (_read_each(repository, rounds, name) for name in ("metrics.json", "histograms.json"))
    for protein in {name: None for each in metrics for name in each}:
        into = folder / protein if any(len(each) > 1 for each in metrics) else folder
        plot_rounds([each[protein] for each in metrics if protein in each], into)
        plot_rmsd_rounds([each[protein] for each in histograms if protein in each], into)
    return folder


def _read_each(repository: Repository, rounds: Sequence[PublishedRound], name: str) -> list[dict[str, Any]]:
    """Content of a file of each round for each of its proteins; of several it lies in a folder of each."""
    alone = [published.tag for published in rounds if len(published.proteins) == 1]
    single = dict(zip(alone, _read_json(repository, alone, f"round/{name}"), strict=True))
    return [
        {published.proteins[0]: single[published.tag]}
        if published.tag in single
        else {
            protein: _read_json(repository, [published.tag], f"round/{protein}/{name}")[0]
            for protein in published.proteins
        }
        for published in rounds
    ]


def _read_json(repository: Repository, tags: Sequence[str], path: str) -> list[Any]:
    return [json.loads(content) for content in repository.read_round_files(tags, path)]
