"""One round of active learning, in the order of the paper's Figure 1."""

from pathlib import Path

from prefect import flow

from flows.campaign.steps import stage_task
from flows.workspace import Summary, Workspace

__all__ = ["run_round"]


@flow(name="round", flow_run_name="round-{round_index:03d}")
def run_round(root: Path, round_index: int) -> dict[str, Summary]:
    """Run the stages of one round; a stage whose recorded inputs, params and outputs are unchanged is skipped.

    1. train a potential on shards 0..k;
    2. simulate with it (this and what follows for each protein, where there are several);
    3. benchmark the simulation against the ground truth;
    4. select frames that the training set does not cover (none in the closing round; of all proteins together);
    5. label: backmap them to all atoms and query the oracle for forces.

    Publishing the round and appending its labels to the dataset is the campaign's business.
    """
    workspace = Workspace(root)
    return {
        **_run("train", round_index, workspace),
        **_run("simulate", round_index, workspace),
        **_run("benchmark", round_index, workspace),
        **_run("select", round_index, workspace),
        **_run("label", round_index, workspace),
    }


def _run(stage: str, round_index: int, workspace: Workspace) -> dict[str, Summary]:
    parts = workspace.for_stage(stage)
    return {part.named(stage): stage_task(stage, round_index, part)(workspace.root) for part in parts}
