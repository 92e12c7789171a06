"""How good each round is, shown by MLflow: one experiment per protein, one run per campaign, one nested run per round.

The only module that imports mlflow, and only inside functions (the import takes seconds). MLflow holds numbers,
figures and pointers (git tag, commit, DVC md5), never the bytes of a dataset or checkpoint. Everything here may be
said twice: runs are found again by their tags, and a number said twice carries the same time stamp, so the store
keeps one. A killed or failed call is mended by calling again.
"""

import json
import math
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from urllib.request import urlopen

from filelock import FileLock

from cgal.errors import CgalError
from cgal.params import Params
from flows.settings import NO_TELEMETRY, without_passwords
from flows.tracking.views import HEADLINE, MODEL_TRAINING_VIEW, experiment_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

__all__ = [
    "RoundRecord",
    "RunIds",
    "TrackingConflict",
    "TrackingUnavailable",
    "experiment_name",
    "experiment_page",
    "flatten",
    "log_round",
    "open_experiment",
    "restore_line",
    "round_metrics",
    "server_command",
    "tracking_uri",
    "warm_up",
]

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
SETTINGS = NO_TELEMETRY | {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the caller retries, with a longer breath
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
"""Environment defaults, set before MLflow is imported; whatever the user has set wins."""

METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
"""Most entries that MLflow takes in one request."""

SECTIONS = ("w1", "w1_paper", "floor", "floor_paper", "tica_lag_ps", "folded_fraction", "simulation", "dataset")
"""Parts of `metrics.json` that MLflow shows."""


class TrackingUnavailable(CgalError):
    """MLflow could not be reached or did not take a round; nothing is lost, and a later call mends it."""


class TrackingConflict(CgalError):
    """MLflow already holds another round under the same protein, campaign and number; no retry helps."""


@dataclass(frozen=True, eq=False)
class RoundRecord:
    """What MLflow is told of one round.

    Of several `proteins` the numbers are those of all together, with each one's own beside (`cgal.benchmark.together`);
    `data_md5` has one hash for each, with spaces between. `params` is flat (see `flatten`); `metrics` is the content of
    `round/metrics.json`. `frames`, `oracle_steps` and `oracle_failed` are what this round asked of the oracle (the
    dataset's totals are in `metrics["dataset"]`).
    `history` has the rows of `training.csv`; the first column, an epoch or an update, is the step of the others, and
    the last one, `part`, what was trained (rounds of older versions have none: the network).
    `uncovered_fraction` is that of the simulated frames, and `closing` says why no round follows ("" if one does).
    `timings` are wall seconds by stage, `figures` are PNG files, `model_path` is the checkpoint that the registered
    version points to; its bytes stay with DVC. `dvc_md5` is the checkpoint's hash, `data_md5` that of
    the dataset, which the DVC file `data_pointer` names.
    """

    proteins: Sequence[str]
    campaign: str
    round_index: int
    params: Mapping[str, Any]
    metrics: Mapping[str, Any]
    timings: Mapping[str, float]
    git_tag: str
    git_commit: str
    dvc_md5: str
    data_md5: str
    figures: Sequence[Path]
    history: Sequence[Mapping[str, Any]]
    frames: int
    oracle_steps: int
    model_path: Path
    oracle_failed: int = 0
    uncovered_fraction: float = math.nan
    closing: str = ""
    data_pointer: str = "data.dvc"

    @property
    def name(self) -> str:
        """What the round is called, such as `round-003`."""
        return f"round-{self.round_index:03d}"

    @property
    def protein(self) -> str:
        """What experiment and registered model are called."""
        return experiment_name(self.proteins)


@dataclass(frozen=True)
class RunIds:
    """Where a round lies in MLflow: ids of experiment, campaign run and round run."""

    experiment: str
    campaign: str
    round: str


def experiment_name(proteins: Sequence[str]) -> str:
    """What the experiment of a campaign on these proteins is called.

    >>> experiment_name(["a"]), experiment_name(["a", "b"])
    ('a', 'a+b')
    """
    return "+".join(proteins)


def tracking_uri(root: Path) -> str:
    """Where MLflow keeps its numbers: `MLFLOW_TRACKING_URI`, or else `mlflow.db` in the project's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_store(root)


def _own_store(root: Path) -> str:
    return f"sqlite:///{root.resolve() / DATABASE}"


def server_command(root: Path, *, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
    """Command line of an MLflow server (page and API) on the store that the environment names, or else the project's.

    With `MLFLOW_AUTH_ADMIN_PASSWORD` set it asks for passwords. A store that the environment names is not in the
    command line, which everybody on the machine can read.
    """
    _set_environment()
    options = {"--host": host, "--port": str(port), "--workers": "1"}
    if "MLFLOW_BACKEND_STORE_URI" not in os.environ:
        options["--backend-store-uri"] = _own_store(root)
    if "MLFLOW_ARTIFACTS_DESTINATION" not in os.environ:
        options["--artifacts-destination"] = str(root.resolve() / ARTIFACTS)
    if os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD"):
        options["--app-name"] = "basic-auth"
    return [sys.executable, "-m", "mlflow", "server", *(word for pair in options.items() for word in pair)]


def experiment_page(address: str, protein: str) -> str:
    """Address of the page that lists a protein's campaigns and rounds; the list of proteins while there are none.

    Asks the MLflow server at `address`, without importing mlflow.
    """
    question = f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(protein)}"
    try:
        with urlopen(question, timeout=10) as answer:  # noqa: S310 - an http address of the caller's own server
            experiment = json.load(answer)["experiment"]["experiment_id"]
    except OSError:
        return f"{address}/#/experiments?{MODEL_TRAINING_VIEW}"
    return f"{address}/#/experiments/{experiment}/runs?{MODEL_TRAINING_VIEW}"


def flatten(content: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Nested mapping to a flat one.

    >>> flatten({"seed": 1, "training": {"epochs": 60}})
    {'seed': 1, 'training.epochs': 60}
    """
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, separator, name + separator) if isinstance(value, Mapping) else {name: value}
    return flat


def round_metrics(record: RoundRecord) -> dict[str, float]:
    """Numbers of a round under their MLflow names; one that does not exist (null in `metrics.json`) is NaN."""
    sections = {section: record.metrics[section] for section in SECTIONS if section in record.metrics}
    oracle = {"frames": record.frames, "steps": record.oracle_steps, "failed": record.oracle_failed}
    timing = {f"{stage}_s": seconds for stage, seconds in record.timings.items()}
    timing["total_s"] = sum(record.timings.values())
    selection = {"uncovered_fraction": record.uncovered_fraction}
    flat = flatten(sections | {"oracle": oracle, "timing": timing, "selection": selection}, separator="/")
    named = {name.removesuffix("/value"): _number(value) for name, value in flat.items() if _is_number(value)}
    return {HEADLINE: named[HEADLINE]} | named if HEADLINE in named else named


def log_round(root: Path, record: RoundRecord) -> RunIds:
    """Bring one published round to MLflow; calling again for the same round changes nothing.

    1. the round's nested run: params, metrics, training curves, figures, the dataset it was trained on;
    2. a version of the protein's registered model that points to the checkpoint;
    3. the campaign's run: the same metrics with `step=round`, and the tags of its latest round.

    Raises TrackingUnavailable when MLflow does not answer or refuses (try again later), TrackingConflict when it
    holds a different round under this name.
    """
    with _faults_explained(root, record):
        client = _connect(root)
        experiment = _find_or_create_experiment(client, root, record.protein)
        campaign = _find_or_create_campaign(client, experiment, record)
        run = _find_or_create_round(client, experiment, campaign.info.run_id, record)
        _log_content(client, root, run, record)
        _register_model(client, root, run.info.run_id, record)
        _log_to_campaign(client, campaign, run.info.run_id, record)
        if run.info.status != "FINISHED":
            client.set_terminated(run.info.run_id)
        return RunIds(experiment, campaign.info.run_id, run.info.run_id)


def open_experiment(root: Path, protein: str) -> None:
    """Make the protein's experiment where there is none: its artifacts lie in the project that opened it."""
    _set_environment()
    _find_or_create_experiment(_connect(root), root, protein)


def warm_up(root: Path) -> None:
    """Import MLflow and make the embedded store's tables, where they are missing; says nothing of what goes wrong.

    `log_round` does both too, and explains.
    """
    _set_environment()
    with suppress(Exception):
        _connect(root)


def _set_environment() -> None:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


@contextmanager
def _faults_explained(root: Path, record: RoundRecord) -> Iterator[None]:
    _set_environment()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        reason = " ".join(str(error).split())[:400]
        message = (
            f"{record.name} of campaign {record.campaign!r}: MLflow at {tracking_uri(root)} did not take it "
            f"({reason}); the round is safe in git and DVC: check MLFLOW_TRACKING_URI and the server, then run again"
        )
        raise TrackingUnavailable(without_passwords(message)) from error


def _connect(root: Path) -> "MlflowClient":
    from mlflow import MlflowClient

    uri = tracking_uri(root)
    (root / ".cgal").mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".cgal" / "mlflow.lock"):  # two processes that make the embedded tables at once both fail
        if _is_embedded(root) and not (root / DATABASE).exists():
            _make_tables(root)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _make_tables(root: Path) -> None:
    """Make the embedded store aside, then move it into place: MLflow cannot go on with tables that a kill left half."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    aside = root.resolve() / ".cgal" / f"{DATABASE}.new"
    for path in aside.parent.glob(f"{aside.name}*"):
        path.unlink()
    store = SqlAlchemyStore(f"sqlite:///{aside}", (root.resolve() / ARTIFACTS).as_uri())
    store.engine.dispose()
    os.replace(aside, root / DATABASE)


def _find_or_create_experiment(client: "MlflowClient", root: Path, protein: str) -> str:
    location = (root.resolve() / ARTIFACTS / protein).as_uri() if _is_embedded(root) else None
    experiment = client.get_experiment_by_name(protein)
    if experiment is None:
        created = client.create_experiment(protein, artifact_location=location)
        _describe_experiment(client, created, protein, {})
        return created
    _describe_experiment(client, experiment.experiment_id, protein, experiment.tags)
    if location and experiment.artifact_location != location and experiment.artifact_location.startswith("file:"):
        _follow_moved_project(root / DATABASE, experiment.experiment_id, experiment.artifact_location, location)
    return str(experiment.experiment_id)


def _describe_experiment(client: "MlflowClient", experiment: str, protein: str, held: Mapping[str, str]) -> None:
    """Say what a reader of the experiment needs; what somebody has written there stays."""
    for name, value in _missing(experiment_tags(protein, experiment), held).items():
        client.set_experiment_tag(experiment, name, value)


def _is_embedded(root: Path) -> bool:
    return tracking_uri(root) == _own_store(root)


def _follow_moved_project(database: Path, experiment: str, old: str, new: str) -> None:
    """MLflow stores artifact locations absolute; a project that was moved or copied must find its own figures."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, experiment))
        connection.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
            "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
            (new, len(old) + 1, experiment, len(old), old),
        )


def _find_run(client: "MlflowClient", experiment: str, tags: Mapping[str, str]) -> "Run | None":
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    found = client.search_runs([experiment], wanted, max_results=1, order_by=["attributes.start_time ASC"])
    return found[0] if found else None


def _find_or_create_campaign(client: "MlflowClient", experiment: str, record: RoundRecord) -> "Run":
    identity = {"cgal.kind": "campaign", "cgal.campaign": record.campaign}
    return _find_run(client, experiment, identity) or client.create_run(
        experiment, start_time=_start_time_ms(record), tags=identity, run_name=record.campaign
    )


def _find_or_create_round(client: "MlflowClient", experiment: str, campaign_id: str, record: RoundRecord) -> "Run":
    identity = {"cgal.kind": "round", "cgal.campaign": record.campaign, "cgal.round": str(record.round_index)}
    found = _find_run(client, experiment, identity)
    if found is None:
        tags = identity | _pointers(record) | {"mlflow.parentRunId": campaign_id, "mlflow.note.content": _note(record)}
        return client.create_run(experiment, start_time=_start_time_ms(record), tags=tags, run_name=record.name)
    if found.data.tags.get("git_commit") != record.git_commit:
        raise TrackingConflict(
            f"{record.name} of campaign {record.campaign!r} ({record.protein}): MLflow already holds it, made from "
            f"commit {found.data.tags.get('git_commit')}, not {record.git_commit}; give this campaign another name in "
            f"params.yaml, or delete run {found.info.run_id} in MLflow"
        )
    return found


def _start_time_ms(record: RoundRecord) -> int:
    """When the round began, as far as its timings tell."""
    return int(1000 * (time.time() - sum(record.timings.values())))


def _pointers(record: RoundRecord) -> dict[str, str]:
    return {
        "git_tag": record.git_tag,
        "git_commit": record.git_commit,
        "dvc_md5": record.dvc_md5,
        "data_md5": record.data_md5,
        "mlflow.source.git.commit": record.git_commit,
        "mlflow.source.name": "cgal",
        "closing": record.closing,
    }


def restore_line(tag: str, data_pointer: str) -> str:
    """What brings a round's bytes back with git and DVC alone."""
    return f"git checkout {tag} -- {data_pointer} dvc.lock params.yaml && dvc pull"


def _note(record: RoundRecord) -> str:
    """Text shown on a run's and a model version's page: where the bytes are, and how to get them."""
    physics = record.metrics.get("reference_physics")
    differs = f"Reference and oracle differ in physics: the reference is of {physics}. " if physics else ""
    return (
        f"Round {record.round_index} of campaign `{record.campaign}` on {record.protein}. {differs}"
        "Dataset and checkpoint lie in DVC; bring them back with\n\n"
        f"```\n{restore_line(record.git_tag, record.data_pointer)}\n```"
    )


def _log_content(client: "MlflowClient", root: Path, run: "Run", record: RoundRecord) -> None:
    run_id = run.info.run_id
    # what an earlier attempt said stays: a second one may have taken another time, or other execution settings
    _log_params(client, run_id, _missing(record.params, run.data.params))
    scalars = _missing(round_metrics(record), run.data.metrics)
    moment = run.info.start_time
    _log_metrics(client, run_id, [*_at_step(scalars, record.round_index, moment), *_curves(record, moment)])
    _log_files(root, run, record)
    _log_dataset(client, run_id, record)


def _log_files(root: Path, run: "Run", record: RoundRecord) -> None:
    """Figures and `metrics.json`; of a run that an MLflow server opened, where that server keeps them."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    uri, kept = run.info.artifact_uri, run.info.artifact_uri.removeprefix("mlflow-artifacts:/")
    if kept != uri and _is_embedded(root):
        uri = (root.resolve() / ARTIFACTS / kept).as_uri()
    store = get_artifact_repository(uri, tracking_uri=tracking_uri(root))
    for figure in record.figures:
        store.log_artifact(str(figure), f"figures/{_figure_folder(record, figure)}")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.json"
        path.write_text(json.dumps(dict(record.metrics), indent=2))
        store.log_artifact(str(path))


def _figure_folder(record: RoundRecord, figure: Path) -> str:
    """Where a figure of `round/plots/benchmark` or, of several proteins, `round/a/plots/benchmark` goes."""
    round_folder = record.model_path.parent
    if not figure.is_relative_to(round_folder):
        return figure.parent.name
    return "/".join(part for part in figure.parent.relative_to(round_folder).parts if part != "plots")


def _missing(said: Mapping[str, Any], held: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in said.items() if name not in held}


def _log_params(client: "MlflowClient", run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    entries = [Param(name, str(value)) for name, value in params.items()]
    for start in range(0, len(entries), PARAMS_PER_BATCH):
        client.log_batch(run_id, params=entries[start : start + PARAMS_PER_BATCH])


def _log_metrics(client: "MlflowClient", run_id: str, entries: "Sequence[Metric]") -> None:
    for start in range(0, len(entries), METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=entries[start : start + METRICS_PER_BATCH])


def _at_step(metrics: Mapping[str, float], step: int, moment_ms: int) -> "list[Metric]":
    """Metrics whose time stamp does not depend on when they are said: the store keeps one of two equal ones."""
    from mlflow.entities import Metric

    return [Metric(name, value, moment_ms, step) for name, value in metrics.items()]


def _curves(record: RoundRecord, moment_ms: int) -> "list[Metric]":
    curves: list[Metric] = []
    for row in record.history:
        (_, step), *values = ((name, value) for name, value in row.items() if name != "part")
        part = row.get("part", "network")
        path = "training" if part == "network" else f"training/{part}"
        curves += _at_step({f"{path}/{name}": _number(value) for name, value in values}, int(step), moment_ms)
    return curves


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _number(value: Any) -> float:
    return math.nan if value in (None, "") else float(value)


def _log_dataset(client: "MlflowClient", run_id: str, record: RoundRecord) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if not record.data_md5:
        return
    inputs = []
    for protein, md5 in zip(record.proteins, record.data_md5.split(), strict=True):
        source = json.dumps({"path": f"data/{protein}", "git_tag": record.git_tag, "dvc_md5": md5})
        dataset = Dataset(protein, md5[:36], source_type="dvc", source=source)
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", "training")]))
    client.log_inputs(run_id, inputs)


def _register_model(client: "MlflowClient", root: Path, run_id: str, record: RoundRecord) -> None:
    """Make a version of the registered model `<protein>` that points to the round's checkpoint."""
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    if not versions and not client.search_registered_models(f"name = '{record.protein}'"):
        client.create_registered_model(record.protein, description=f"Coarse-grained potentials of {record.protein}")
    version = (
        versions[0]
        if versions
        else client.create_model_version(
            record.protein,
            source=_model_uri(root, record),
            run_id=run_id,
            tags={"campaign": record.campaign, "round": str(record.round_index)} | _pointers(record),
            description=_note(record),
            await_creation_for=0,
        )
    )
    client.set_registered_model_alias(record.protein, f"{record.campaign}-{record.name}", str(version.version))


def _model_uri(root: Path, record: RoundRecord) -> str:
    """Pointer to the checkpoint's bytes: path in the repository, git revision and DVC hash."""
    path = Path(os.path.relpath(record.model_path, root)).as_posix()  # unresolved: DVC may link into its cache
    return f"dvc:///{path}?rev={record.git_tag}&md5={record.dvc_md5}"


def _log_to_campaign(client: "MlflowClient", campaign: "Run", run_id: str, record: RoundRecord) -> None:
    """Say on the campaign's run what the round's run holds, at `step=round`; the latest round gives the tags.

    Of the parameters only those that are not the defaults, so that two campaigns side by side show what they are about.
    """
    from mlflow.entities import RunTag

    run = client.get_run(run_id)
    defaults = flatten(Params().model_dump())
    chosen = {name: value for name, value in run.data.params.items() if value != str(defaults.get(name))}
    _log_params(client, campaign.info.run_id, _missing(chosen, campaign.data.params))
    held = {name: run.data.metrics[name] for name in round_metrics(record)}
    _log_metrics(client, campaign.info.run_id, _at_step(held, record.round_index, run.info.start_time))
    if record.round_index >= int(campaign.data.tags.get("cgal.latest_round", 0)):
        tags = _pointers(record) | {"cgal.latest_round": str(record.round_index), "mlflow.note.content": _note(record)}
        client.log_batch(campaign.info.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    client.set_terminated(campaign.info.run_id)
