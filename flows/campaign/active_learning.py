"""The campaign: rounds of active learning until the last one, each published before the next begins."""

from pathlib import Path
from time import monotonic

from prefect import flow

from flows.campaign.round import run_round
from flows.campaign.steps import append_task, continue_task, prepare_task, publish_task, track_task
from flows.terminal import console
from flows.tracking.process import warm_up
from flows.versioning import Repository
from flows.versioning.published_files import bring_outputs
from flows.versioning.rounds import round_tag
from flows.workspace import Workspace

__all__ = ["active_learning"]


@flow(name="active-learning", flow_run_name="{campaign}")
def active_learning(root: Path, campaign: str, startup_s: float = 0.0) -> int:
    """Run a campaign from where it stands to its closing round, and give that round's index.

    1. prepare: fit the force map, project the seed to shard 0 (once a campaign);
    2. run the round's stages;
    3. publish: DVC records the bytes, git tags them `<campaign>/round-<k>`;
    4. track: MLflow shows how good the round is;
    5. append the labels as shard k + 1, which opens the next round; or stop, when the round's selection found a
       reason to ask for no label (`cgal.selection.closing`).

    A tag that exists means that steps 2 and 3 are done; 4 and 5 get that round's outputs, whatever lies in `round/`. So
    a killed campaign goes on. `startup_s` is what it took to get here; the first round bears it.
    """
    opened = monotonic() - startup_s
    workspace, repository = Workspace(root), Repository(root)
    repository.require_writable()
    repository.require_publishable(campaign)
    warm_up(root)
    prepare_task(workspace)(root)
    if workspace.params.campaign.continued_md_steps:
        continue_task(workspace)(root)
    while True:
        k = workspace.round_index
        if repository.is_published(campaign, k):
            bring_outputs(repository, round_tag(campaign, k))
        else:
            opened = _run_and_publish(workspace, campaign, k, opened)
        track_task(campaign, k, workspace)(root)
        if closing := workspace.closing_reason():
            console.print(f"The campaign ends here. {closing[0].upper()}{closing[1:]}.")
            return k
        frames = append_task(k, workspace)(root)
        console.print(f"[green]✓[/green] append-r{k:03d}: {frames} labelled frames open round {k + 1}")


def _run_and_publish(workspace: Workspace, campaign: str, k: int, opened: float) -> float:
    """Run and publish a round, and give the moment up to which its timings go: from `opened`, nothing is left out.

    They are published with the round, so what publishing and tracking it takes is the overhead of the next one.
    """
    before = workspace.timings(k)
    console.rule(f"round {k} of {workspace.params.campaign.rounds}", align="left")
    run_round(workspace.root, k)
    stages = sum(seconds for stage, seconds in workspace.timings(k).items() if before.get(stage) != seconds)
    closed = monotonic()
    workspace.add_timing(k, "overhead", closed - opened - stages)
    tag = publish_task(campaign, k, workspace)(workspace.root)
    console.print(f"[green]✓[/green] published {tag} in {monotonic() - closed:.1f} s")
    return closed
