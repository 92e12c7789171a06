"""What MLflow's pages show to somebody who did not make the campaigns: text, columns and charts of an experiment."""

import json
from typing import Any

__all__ = ["HEADLINE", "MODEL_TRAINING_VIEW", "experiment_tags", "view_page"]

MODEL_TRAINING_VIEW = "workflowType=machine_learning"
"""Without it MLflow's pages open in their view for language models, which shows no runs.

In MLflow 3.17 the address alone decides; the tag `mlflow.experimentKind` does not.
"""

HEADLINE = "w1/tica"
"""The metric that a comparison opens on: MLflow's page takes the one that was logged first."""


def experiment_tags(protein: str, experiment: str) -> dict[str, str]:
    """Tags of a protein's experiment, which MLflow 3.17's pages read: description and shared views."""
    return {
        "mlflow.note.content": _description(protein, experiment),
        "mlflow.sharedViewState.rounds": json.dumps(_table(protein)),
        "mlflow.sharedViewState.comparison": json.dumps(_charts(protein)),
    }


def view_page(experiment: str, view: str) -> str:
    """Address, within MLflow's server, of an experiment's runs in one of the views `rounds` and `comparison`."""
    mode = "&compareRunsMode=CHART" if view == "comparison" else ""
    return f"#/experiments/{experiment}/runs?{MODEL_TRAINING_VIEW}{mode}&viewStateShareKey={view}"


def _description(protein: str, experiment: str) -> str:
    return (
        f"Active learning of coarse-grained potentials of {protein}: one run a campaign, in it one run a round.\n\n"
        f"- [Table of rounds]({view_page(experiment, 'rounds')}): the W1 distances to the reference (0 is best), "
        "the latest round, and why the last one was the last\n"
        f"- [Comparison]({view_page(experiment, 'comparison')}): the W1 over the rounds, a line a campaign\n\n"
        "A campaign's parameters are those that are not the defaults; a round has all of them. "
        "The bytes lie in DVC and git; each round says how to bring them back."
    )


def _metrics(protein: str) -> list[str]:
    """W1 of each observable; of several proteins (`a+b`) their mean, and that of TICA for each."""
    from cgal.benchmark.observables import OBSERVABLES

    proteins = protein.split("+")
    own = [f"{HEADLINE}/{name}" for name in proteins if len(proteins) > 1]
    return [*(f"w1/{name}" for name in OBSERVABLES), *own]


def _table(protein: str) -> dict[str, Any]:
    metrics = [f"metrics.`{name}`" for name in _metrics(protein)]
    return {"selectedColumns": [*metrics, "tags.`cgal.latest_round`", "tags.`closing`"]}


def _charts(protein: str) -> dict[str, Any]:
    section = {"uuid": "w1", "name": "W1 to the reference", "display": True, "isReordered": True, "deleted": False}
    charts = [
        {
            "uuid": name.replace("/", "-"),
            "type": "LINE",
            "metricSectionId": "w1",
            "metricKey": name,
            "selectedMetricKeys": [name],
            "xAxisKey": "step",
            "runsCountToCompare": 10,
            "deleted": False,
            "isGenerated": False,
        }
        for name in _metrics(protein)
    ]
    return _table(protein) | {"compareRunCharts": charts, "compareRunSections": [section], "isAccordionReordered": True}
