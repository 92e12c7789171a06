"""What Prefect runs for `prefect.yaml`: campaigns in the pool `cgal-cpu`, GPU stages in the pool `cgal-gpu`.

The project is the folder that the worker's `CGAL_ROOT` names. Nothing heavy is imported before a flow begins: Prefect
reads this module to make the forms.
"""

import os
from contextlib import nullcontext
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from prefect import flow, get_run_logger, runtime, tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.states import Completed, Failed
from pydantic import Field

from cgal.all_atom.workers import die_with
from cgal.errors import BadFile, CgalError
from cgal.files import read_json
from cgal.params import Name, check_params, merged, protein_names
from cgal.progress import Progress
from flows.serving.form import Acquisition, Overrides
from flows.serving.pools import CAMPAIGN_TAG, GPU_LIMIT
from flows.settings import use_project_settings

if TYPE_CHECKING:
    from flows.versioning import Repository
    from flows.workspace import Workspace

__all__ = ["active_learning", "label", "reference", "simulate", "train"]

LEASE_S = 60.0
"""A killed stage gives its slot back when its lease ends."""

LOG_INTERVAL_S = 15.0

CHANGE = Field(title="change")
"""What the form calls the tab beside "None" in which a value is given."""

MOST_ROUNDS, MOST_STEPS, MOST_WORKERS = 10_000, 10**12, 1024
"""Bounds of the forms: far beyond any campaign, and no slip of the finger."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Files = dict[str, str] | None


@flow(name="active-learning")
def active_learning(
    protein: Annotated[Name, CHANGE] | None = None,
    campaign: Name = "scheduled",
    rounds: Annotated[int, Field(ge=0, le=MOST_ROUNDS), CHANGE] | None = None,
    budget: Annotated[int, Field(ge=0, le=MOST_STEPS), CHANGE] | None = None,
    acquisition: Annotated[Acquisition, CHANGE] | None = None,
    overrides: Overrides | None = None,
) -> str:
    """Run a campaign of active learning in this project, from where it stands to its closing round.

    A campaign that is not there yet starts from the seed, with the values of this form in `params.yaml`; what the form
    leaves alone is as in the `params.yaml` that is committed, whatever the last campaign had. One that was
    interrupted goes on as it was begun, whatever the form says now. One that is complete is followed by the next of its
    series: `scheduled` by `scheduled2`, `scheduled3` ... each with the next random seed, so that a schedule builds up
    the spread over seeds that claims about a model need.

    One campaign at a time works in a project: a run that finds another at work fails, and says which.

    Args:
        protein: Folder in data/ that holds structure, seed and reference.
        campaign: Name of the campaign, or of the first of its series. Its rounds become the git tags NAME/round-000 ...
        rounds: Acquisition rounds at most; a closing round without acquisition follows.
        budget: All-atom MD steps to spend on labels at most, the seed's aside. 0: what the rounds ask for.
        acquisition: How the simulated frames that are worth a label are chosen.
        overrides: Other values for params.yaml. What is left out stays as it is there; 'cgal params' explains each.
    """
    root = _begin()
    from flows.versioning import CampaignLock

    asked = {
        "protein": protein,
        "campaign": {"rounds": rounds, "budget_steps": budget},
        "selection": {"strategy": acquisition},
    }
    form = merged(overrides.model_dump(exclude_none=True) if overrides else {}, _without_none(asked))
    with CampaignLock(root, campaign):  # before the science is imported
        from flows.campaign.active_learning import active_learning as run_campaign
        from flows.campaign.opening import campaign_closing
        from flows.serving.dispatch import use_pools
        from flows.serving.orphans import close_dead_runs, project_tag
        from flows.versioning import Repository

        close_dead_runs(root)
        name = _interrupted() or _next_of_series(Repository(root), campaign)
        _introduce(name, project_tag(root))
        if not campaign_closing(Repository(root), name):
            Repository(root).require_writable()
            _open_campaign(root, campaign, name, form)
            use_pools()
            with tags(project_tag(root)):
                run_campaign.fn(root, name)
    return name


@flow(name="reference", flow_run_name="reference-{protein}")
def reference(protein: Name = "chignolin", workers: Annotated[int, Field(ge=1, le=MOST_WORKERS)] = 2) -> dict[str, Any]:
    """Make the ground truth of a protein, or go on with it: a swarm of all-atom trajectories and its Markov model.

    Args:
        protein: Folder in data/ that holds structure.pdb.
        workers: Processes that sample at a time.
    """
    root = _begin()
    from flows.protein.reference import reference as run_reference
    from flows.protein.reference import require_ready
    from flows.protein.reference_folder import recipe_of, sampling_lock
    from flows.serving.orphans import project_tag
    from flows.workspace import Workspace

    require_ready(Workspace(root, protein))
    recipe = recipe_of(Workspace(root, protein))
    with sampling_lock(recipe), tags(project_tag(recipe.folder)):
        summary: dict[str, Any] = run_reference.fn(root, protein, workers)
    return summary


@flow(name="train", flow_run_name="train-r{round_index:03d}")
def train(campaign: Name, round_index: int, inputs: Sha256, files: Files = None) -> State[Any]:
    """Train the potential of a round; a campaign asks for it.

    Args:
        campaign: The campaign at work in the project.
        round_index: Its round.
        inputs: Hash of what the stage depends on, which the worker must find too.
        files: DVC hash of each input by its path, to be fetched from the DVC remote; none: they lie in the project.
    """
    return _run_stage("train", campaign, round_index, inputs, files)


@flow(name="simulate", flow_run_name="simulate-r{round_index:03d}")
def simulate(
    campaign: Name, round_index: int, inputs: Sha256, files: Files = None, protein: Name | None = None
) -> State[Any]:
    """Simulate with the potential of a round; a campaign asks for it.

    Args:
        campaign: The campaign at work in the project.
        round_index: Its round.
        inputs: Hash of what the stage depends on, which the worker must find too.
        files: DVC hash of each input by its path, to be fetched from the DVC remote; none: they lie in the project.
        protein: Which of the campaign's, if it has several.
    """
    return _run_stage("simulate", campaign, round_index, inputs, files, protein)


@flow(name="label", flow_run_name="label-r{round_index:03d}")
def label(
    campaign: Name, round_index: int, inputs: Sha256, files: Files = None, protein: Name | None = None
) -> State[Any]:
    """Rebuild and label the frames of a round on CUDA; a campaign asks for it when force_field.platform says so.

    Args:
        campaign: The campaign at work in the project.
        round_index: Its round.
        inputs: Hash of what the stage depends on, which the worker must find too.
        files: DVC hash of each input by its path, to be fetched from the DVC remote; none: they lie in the project.
        protein: Which of the campaign's, if it has several.
    """
    return _run_stage("label", campaign, round_index, inputs, files, protein)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    """What is said, of values and of values within values."""
    said = {key: _without_none(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in said.items() if value not in (None, {})}


def _begin() -> Path:
    """Tie this process to its worker, however that ends, and give the project's folder."""
    Thread(target=die_with, args=(os.getppid(),), daemon=True).start()
    root = Path(os.environ.get("CGAL_ROOT", ".")).resolve()
    if not (root / "params.yaml").is_file():
        raise BadFile(f"{root}: no params.yaml; let CGAL_ROOT of the worker name the project's folder")
    use_project_settings(root)
    return root


def _interrupted() -> str | None:
    """Name of the campaign that this run goes on with, when it is the second life of one that was killed."""
    named = [tag.removeprefix(CAMPAIGN_TAG) for tag in runtime.flow_run.tags if tag.startswith(CAMPAIGN_TAG)]
    return named[0] if named else None


def _introduce(name: str, tag: str) -> None:
    """Let this run be called as its campaign, and be found by its tags."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(runtime.flow_run.id, name=name, tags=[CAMPAIGN_TAG + name, tag])


def _next_of_series(repository: "Repository", first: str) -> str:
    from flows.campaign.opening import campaign_closing

    name, number = first, 1
    while campaign_closing(repository, name):
        number += 1
        name = f"{first}{number}"
    return name


def _open_campaign(root: Path, series: str, name: str, form: dict[str, Any]) -> None:
    """Bring the workspace to a campaign: to its last round, or to the seed with the form's values in `params.yaml`."""
    from flows.campaign.opening import campaign_state, change_params, continue_campaign, fetch_data, new_campaign
    from flows.campaign.preflight import require_runnable
    from flows.versioning import Repository
    from flows.workspace import Workspace

    repository = Repository(root)
    published = repository.published(name)
    if published and Workspace(root).params.campaign.name != name:
        repository.checkout_round(published[-1].tag)
    elif not published and not _has_begun(Workspace(root), name):
        committed = repository.git.run("show", "HEAD:params.yaml")
        before = check_params(yaml.safe_load(committed), Path("params.yaml of HEAD"))
        for protein in protein_names(form.get("protein", before.protein)):
            fetch_data(Workspace(root, protein), repository)
        seed = _first_seed(repository, series, form.get("seed", before.seed)) + int(name.removeprefix(series) or 1) - 1
        change_params(root / "params.yaml", merged(form, {"seed": seed, "campaign": {"name": name}}), committed)
        require_runnable(Workspace(root))
        new_campaign(Workspace(root), repository, name)
    workspace = Workspace(root)
    continue_campaign(workspace, repository, campaign_state(workspace, repository))


def _has_begun(workspace: "Workspace", name: str) -> bool:
    manifests = [part.data / "manifest.json" for part in workspace.parts]
    owners = {read_json(path)["campaign"] if path.is_file() else None for path in manifests}
    return owners == {name} and name == workspace.params.campaign.name


def _first_seed(repository: "Repository", series: str, otherwise: int) -> int:
    """Random seed of the first campaign of a series."""
    if published := repository.published(series):
        return int(yaml.safe_load(repository.read_round_file(published[0].tag, "params.yaml"))["seed"])
    return otherwise


def _run_stage(
    stage: str, campaign: str, round_index: int, inputs: str, files: Files, protein: str | None = None
) -> State[Any]:
    """Run a stage when the slot is free; a fault that the user must mend is the state "Refused"."""
    root = _begin()
    from flows.campaign.stages import run_stage
    from flows.serving.dispatch import REFUSED, publish_result
    from flows.serving.transport import hash_inputs, read_outputs, received, send_outputs
    from flows.terminal import describe
    from flows.workspace import Workspace

    try:
        here = nullcontext(Workspace(root, protein))
        with received(root, stage, inputs, files, protein) if files else here as workspace:
            with concurrency(GPU_LIMIT, occupy=1, lease_duration=LEASE_S):
                if hash_inputs(workspace, stage) != inputs:
                    raise BadFile(
                        f"{root}: not the inputs of {stage} in round {round_index} of campaign {campaign}; let "
                        "CGAL_ROOT of this worker name the campaign's project, on a file system that both see, or set "
                        "execution.transport to dvc"
                    )
                summary = run_stage(stage, workspace, _logged())
            outputs = send_outputs(root, workspace, stage) if files else read_outputs(workspace, stage)
            publish_result(f"{stage}-r{round_index:03d}", summary, outputs)
    except CgalError as error:
        return Failed(name=REFUSED, message=str(error))
    return Completed(message=describe(summary))


def _logged() -> Progress:
    """Show progress as a line of the run's log now and then."""
    logger = get_run_logger()
    last = monotonic()

    def show(done: int, total: int, note: str = "") -> None:
        nonlocal last
        if monotonic() - last > LOG_INTERVAL_S:
            last = monotonic()
            logger.info("%d/%d %s", done, total, note)

    return show
