"""MLflow is told of each round once, however often, wherever it was killed, on SQLite and on a real server."""

import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
from matplotlib.figure import Figure

from cgal.params import Params
from flows.tracking.runs import (
    RoundRecord,
    TrackingConflict,
    TrackingUnavailable,
    flatten,
    log_round,
    round_metrics,
    server_command,
    tracking_uri,
)

OBSERVABLES = ("tica", "reaction_coordinate", "bond", "angle", "dihedral")


def make_record(root: Path, k: int, protein: str = "chignolin", **changes: Any) -> RoundRecord:
    """What round `k` of a campaign that gets better leaves behind; the last of three acquires nothing."""
    scale = 1.5 / (k + 1)
    w1 = {
        name: {"value": scale / i, "low": 0.9 * scale / i, "high": 1.1 * scale / i}
        for i, name in enumerate(OBSERVABLES, start=1)
    }
    floor = {name: 0.05 / i for i, name in enumerate(OBSERVABLES, start=1)}
    lost = {"replicas": 32, "exploded": 3 - k, "imploded": 0, "not_finite": 0, "exploded_fraction": (3 - k) / 32}
    record = RoundRecord(
        proteins=[protein],
        campaign="demo",
        round_index=k,
        params=flatten(Params().model_dump()),
        metrics={
            "round": k,
            "w1": w1,
            "w1_exact": w1,
            "w1_paper": w1,
            "floor": floor,
            "floor_exact": floor,
            "floor_paper": floor,
            "simulation": {**lost, "frames": 3200},
            "dataset": {"frames": 200 + 24 * k, "oracle_steps": 20400 * k, "oracle_failed": k},
        },
        timings={"train": 41.25, "simulate": 30.5, "benchmark": 6.0, "select": 1.5, "label": 55.0},
        git_tag=f"demo/round-{k:03d}",
        git_commit=f"{k + 1:040x}",
        dvc_md5=f"{k + 11:032x}",
        data_md5=f"{k + 21:032x}.dir",
        figures=draw_figures(root / "round" / "plots"),
        history=[
            {"epoch": e, "train_rmse": 90 + 40 / e, "validation_rmse": 95 + 35 / e, "learning_rate": 1e-3 / e}
            for e in range(1, 31)
        ]
        + [{"epoch": str(e), "validation_rmse": str(5.0 / e), "part": "linear rung"} for e in (1, 2)],
        frames=24 if k < 2 else 0,
        oracle_steps=20400 if k < 2 else 0,
        oracle_failed=1 if k < 2 else 0,
        uncovered_fraction=0.25 / (k + 1),
        closing="" if k < 2 else "rounds: all 2 acquisition rounds are done",
        model_path=root / "round" / "model.pt",
    )
    return replace(record, **changes)


def draw_figures(folder: Path) -> list[Path]:
    paths = [folder / "training" / "loss.png", folder / "benchmark" / "densities.png"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            figure = Figure(figsize=(3, 2))
            axes = figure.add_subplot(xlabel="epoch", ylabel="force RMSE [kJ/mol/nm]")
            axes.plot([0, 1, 2], [130, 100, 95])
            figure.savefig(path)
    return paths


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """Run a real MLflow server on loopback, on the store of `root`; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = server_command(root, port=port)
    with (root / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=root, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until_healthy(process, address, root / "server.log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_until_healthy(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
    raise AssertionError(log.read_text())


@dataclass(frozen=True)
class Store:
    """A place that rounds are logged to, and an experiment in it that no other test uses."""

    root: Path
    protein: str

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri(self.root), tracking_uri(self.root))

    def log(self, k: int, **changes: Any) -> Any:
        return log_round(self.root, make_record(self.root, k, self.protein, **changes))

    def state(self) -> dict[str, Any]:
        """Everything that MLflow holds of the experiment, but for ids and time stamps that differ by nature."""
        client = self.client
        experiment = client.get_experiment_by_name(self.protein)
        runs = client.search_runs([experiment.experiment_id])
        names = {run.info.run_id: run.info.run_name for run in runs}
        assert len(set(names.values())) == len(names), "a run is doubled"
        versions = client.search_model_versions(f"name='{self.protein}'")
        return {
            "runs": {run.info.run_name: describe_run(client, run, names) for run in runs},
            "versions": [(v.version, v.source, names[v.run_id], v.tags, v.aliases) for v in versions],
        }


def describe_run(client: Any, run: Any, names: dict[str, str]) -> dict[str, Any]:
    tags = dict(run.data.tags)
    parent = tags.pop("mlflow.parentRunId", None)
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {
        "status": run.info.status,
        "parent": names.get(parent) if parent else None,
        "tags": tags,
        "params": run.data.params,
        "metrics": {name: [(point.step, str(point.value)) for point in history] for name, history in histories.items()},
        "artifacts": sorted(list_files(client, run.info.run_id)),
        "datasets": [(entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs],
    }


def list_files(client: Any, run_id: str, folder: str | None = None) -> list[str]:
    entries = client.list_artifacts(run_id, folder)
    return [path for e in entries for path in (list_files(client, run_id, e.path) if e.is_dir else [e.path])]


@pytest.fixture
def embedded(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    copyfile(empty_database, tmp_path / "mlflow.db")
    return Store(tmp_path, "chignolin")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project whose store the server shows."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(served: Path, empty_database: Path) -> Iterator[str]:
    copyfile(empty_database, served / "mlflow.db")
    with serving(served) as address:
        yield address


@pytest.fixture(params=["embedded", "server"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The same tests on SQLite and on a server, which only an environment variable tells apart."""
    if request.param == "embedded":
        return request.getfixturevalue("embedded")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("server"))
    return Store(tmp_path, f"protein-{tmp_path.name}"[:60])


def test_importing_the_module_does_not_import_mlflow() -> None:
    script = "import flows.tracking.runs, sys; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_metrics_carry_the_names_of_the_contract(tmp_path: Path) -> None:
    record = make_record(tmp_path, 1)
    metrics = round_metrics(record)
    for name in OBSERVABLES:
        assert metrics[f"w1/{name}/low"] < metrics[f"w1/{name}"] < metrics[f"w1/{name}/high"]
        assert metrics[f"floor/{name}"] < metrics[f"w1/{name}"]
        assert f"w1_paper/{name}" in metrics
    assert metrics["oracle/steps"] == 20400
    assert metrics["oracle/frames"] == 24
    assert metrics["oracle/failed"] == 1
    assert metrics["simulation/exploded_fraction"] == 2 / 32
    assert metrics["dataset/frames"] == 224
    assert metrics["timing/train_s"] == 41.25
    assert metrics["timing/total_s"] == sum(record.timings.values())


def test_the_tica_distance_is_logged_first(tmp_path: Path) -> None:
    """MLflow's comparison opens on the metric that was logged first, whatever the order in `metrics.json`."""
    metrics = dict(make_record(tmp_path, 1).metrics)
    record = make_record(tmp_path, 1, metrics=metrics | {"w1": dict(sorted(metrics["w1"].items()))})
    assert next(iter(round_metrics(record))) == "w1/tica"


def test_a_metric_that_is_new_in_a_round_is_logged_from_there(embedded: Store) -> None:
    metrics = dict(make_record(embedded.root, 1).metrics)
    new = {"gyration": {"value": 0.1, "low": 0.05, "high": 0.2}}
    first = embedded.log(0)
    second = embedded.log(1, metrics=metrics | {"w1": metrics["w1"] | new, "tica_lag_ps": 16.0})
    assert "w1/gyration" not in embedded.client.get_run(first.round).data.metrics
    held = embedded.client.get_run(second.round).data.metrics
    assert (held["w1/gyration"], held["w1/gyration/low"], held["tica_lag_ps"]) == (0.1, 0.05, 16.0)
    history = embedded.client.get_metric_history(first.campaign, "w1/gyration")
    assert [(point.step, point.value) for point in history] == [(1, 0.1)]


def test_a_missing_number_is_shown_as_nan_and_not_left_out(store: Store) -> None:
    metrics = {"round": 0, "w1": {"tica": {"value": None, "low": None, "high": None}}}
    ids = store.log(0, metrics=metrics)
    held = store.client.get_run(ids.round).data.metrics
    assert math.isnan(held["w1/tica"])
    assert math.isnan(store.client.get_run(ids.campaign).data.metrics["w1/tica"])


def test_a_round_run_holds_params_metrics_curves_figures_and_pointers(store: Store) -> None:
    record = make_record(store.root, 0, store.protein)
    ids = store.log(0)
    client = store.client
    run = client.get_run(ids.round)
    assert client.get_experiment(ids.experiment).name == store.protein
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == ids.campaign
    assert run.data.tags["closing"] == ""
    assert run.data.params == {name: str(value) for name, value in record.params.items()}
    assert run.data.params["training.epochs"] == str(Params().training.epochs)
    expected = round_metrics(record)
    assert {name: run.data.metrics[name] for name in expected} == expected
    curve = client.get_metric_history(ids.round, "training/validation_rmse")
    assert [(point.step, point.value) for point in curve] == [
        (r["epoch"], r["validation_rmse"]) for r in record.history if "part" not in r
    ]
    rung = client.get_metric_history(ids.round, "training/linear rung/validation_rmse")
    assert [(point.step, point.value) for point in rung] == [(1, 5.0), (2, 2.5)]
    assert set(list_files(client, ids.round)) == {
        "figures/training/loss.png",
        "figures/benchmark/densities.png",
        "metrics.json",
    }
    for run_id in (ids.round, ids.campaign):
        tags = client.get_run(run_id).data.tags
        assert tags["git_tag"] == record.git_tag
        assert tags["git_commit"] == record.git_commit
        assert tags["dvc_md5"] == record.dvc_md5
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == (store.protein, record.data_md5)


def test_figures_come_back_byte_for_byte(store: Store, tmp_path: Path) -> None:
    ids = store.log(0)
    fetched = store.client.download_artifacts(ids.round, "figures/training/loss.png", str(tmp_path))
    assert Path(fetched).read_bytes() == (store.root / "round/plots/training/loss.png").read_bytes()


def test_the_campaign_run_shows_w1_by_round(store: Store) -> None:
    ids = [store.log(k) for k in range(3)]
    assert len({i.campaign for i in ids}) == 1
    assert len({i.round for i in ids}) == 3
    for name in OBSERVABLES:
        for part in ("", "/low", "/high"):
            history = store.client.get_metric_history(ids[0].campaign, f"w1/{name}{part}")
            expected = [round_metrics(make_record(store.root, k))[f"w1/{name}{part}"] for k in range(3)]
            assert [(point.step, point.value) for point in history] == list(enumerate(expected))
    campaign = store.client.get_run(ids[0].campaign)
    assert campaign.data.tags["git_tag"] == "demo/round-002"
    assert campaign.data.metrics["w1/tica"] == round_metrics(make_record(store.root, 2))["w1/tica"]
    assert campaign.info.status == "FINISHED"


def test_the_campaign_run_carries_the_parameters_that_are_not_defaults(store: Store) -> None:
    params = dict(make_record(store.root, 0).params) | {"training.epochs": 3, "seed": 7}
    ids = store.log(0, params=params)
    store.log(1, params=params)
    assert store.client.get_run(ids.campaign).data.params == {"training.epochs": "3", "seed": "7"}


def test_what_a_reader_wrote_on_the_experiment_stays_and_what_lacks_comes_back(store: Store) -> None:
    ids = store.log(0)
    tags = store.client.get_experiment(ids.experiment).tags
    assert f"#/experiments/{ids.experiment}/runs?" in tags["mlflow.note.content"]
    store.client.set_experiment_tag(ids.experiment, "mlflow.note.content", "ours")
    store.client.delete_experiment_tag(ids.experiment, "mlflow.sharedViewState.rounds")
    store.log(1)
    again = store.client.get_experiment(ids.experiment).tags
    assert again == tags | {"mlflow.note.content": "ours"}


def test_each_round_has_a_model_version_that_points_and_holds_no_bytes(store: Store) -> None:
    (store.root / "round").mkdir(exist_ok=True)
    (store.root / "round" / "model.pt").write_bytes(b"weights")
    ids = [store.log(k) for k in range(2)]
    for k, round_ids in enumerate(ids):
        version = store.client.get_model_version_by_alias(store.protein, f"demo-round-{k:03d}")
        assert version.run_id == round_ids.round
        assert version.source == f"dvc:///round/model.pt?rev=demo/round-{k:03d}&md5={k + 11:032x}"
        assert version.tags["git_tag"] == f"demo/round-{k:03d}"
        assert version.tags["git_commit"] == f"{k + 1:040x}"
        assert version.tags["dvc_md5"] == f"{k + 11:032x}"
        assert not [path for path in list_files(store.client, round_ids.round) if path.endswith(".pt")]
    assert len(store.client.search_model_versions(f"name='{store.protein}'")) == 2


def test_logging_a_round_again_changes_nothing(store: Store) -> None:
    """A second attempt may differ in time taken and execution settings: what was said first stays, none twice."""
    first = [store.log(0), store.log(1)]
    before = store.state()
    params = make_record(store.root, 0).params | {"execution.retries": 7}
    again = [store.log(0, timings={"train": 99.0, "simulate": 1.0}, params=params), store.log(1)]
    assert again == first
    assert store.state() == before


def test_an_older_round_told_late_does_not_move_the_latest_tags(embedded: Store) -> None:
    embedded.log(1)
    ids = embedded.log(0)
    campaign = embedded.client.get_run(ids.campaign)
    assert campaign.data.tags["git_tag"] == "demo/round-001"
    assert campaign.data.metrics["dataset/frames"] == 224


def test_campaigns_of_one_protein_share_an_experiment_and_nothing_else(embedded: Store) -> None:
    one, other = embedded.log(0), embedded.log(0, campaign="other", git_commit="f" * 40)
    assert one.experiment == other.experiment
    assert one.campaign != other.campaign
    assert one.round != other.round
    versions = embedded.client.search_model_versions(f"name='{embedded.protein}'")
    assert {version.run_id for version in versions} == {one.round, other.round}


def test_another_round_under_the_same_name_is_refused_and_leaves_the_first_alone(embedded: Store) -> None:
    embedded.log(0)
    before = embedded.state()
    with pytest.raises(TrackingConflict, match=r"round-000 of campaign 'demo'.*another name"):
        embedded.log(0, git_commit="f" * 40)
    assert embedded.state() == before


def test_a_server_that_is_down_is_explained_and_a_later_call_mends_it(
    embedded: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(TrackingUnavailable, match=r"round-000 .*127\.0\.0\.1:9.* safe in git and DVC"):
            embedded.log(0)
    embedded.log(0)
    assert set(embedded.state()["runs"]) == {"demo", "round-000"}


def test_a_damaged_database_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(b"no database at all, but long enough to be read as one" * 100)
    with pytest.raises(TrackingUnavailable, match=r"mlflow\.db"):
        log_round(tmp_path, make_record(tmp_path, 0))


def test_a_moved_project_goes_on_and_finds_its_figures(embedded: Store, tmp_path: Path) -> None:
    first = embedded.log(0)
    old, new = tmp_path / "old", tmp_path / "new place"
    old.mkdir()
    new.mkdir()
    for name in ("mlflow.db", "mlartifacts"):
        (tmp_path / name).rename(new / name)
    moved = Store(new, embedded.protein)
    second = moved.log(1)
    assert second.campaign == first.campaign
    for ids in (first, second):
        assert "figures/training/loss.png" in list_files(moved.client, ids.round)
    assert not (tmp_path / "mlartifacts").exists()


def test_figures_go_on_where_a_server_began_to_keep_them(
    served: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One project, told of through its server and without it by turns: in the page all figures are there."""
    both, ids = Store(served, "by-turns"), []
    for k, address in enumerate((server, "", server)):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        ids.append(both.log(k))
    for each in ids:
        assert {"figures/training/loss.png", "metrics.json"} < set(list_files(both.client, each.round))


def test_a_later_round_is_logged_in_under_a_second(embedded: Store) -> None:
    """CPU time of this process, since the machine may be busy: five times what `make bench` finds."""
    embedded.log(0)
    record = make_record(embedded.root, 1, embedded.protein)
    before = time.process_time()
    log_round(embedded.root, record)
    assert time.process_time() - before < 0.6


def log_and_die(root: Path, protein: str, calls: int) -> None:
    """Log a round and be killed by the kernel right after the n-th call that changes the store."""
    from mlflow import MlflowClient
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    left = calls
    inside = False

    def mortal(method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left, inside
            if inside:
                return method(*args, **kwargs)
            inside = True
            result = method(*args, **kwargs)
            inside = False
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for kind in (MlflowClient, LocalArtifactRepository):
        for name in dir(kind):
            if name.startswith(("create_", "log_", "set_")):
                setattr(kind, name, mortal(getattr(kind, name)))
    log_round(root, make_record(root, 0, protein))


def test_killed_after_any_write_and_told_again_ends_as_if_never_killed(
    embedded: Store, empty_database: Path, tmp_path: Path
) -> None:
    """A real process, killed by SIGKILL after each of its writes in turn, until it gets through alive."""
    embedded.log(0)
    undisturbed = embedded.state()
    processes = get_context("forkserver")
    processes.set_forkserver_preload(["mlflow.store.tracking.sqlalchemy_store", "tests.test_tracking"])
    killed = 0
    while True:
        root = tmp_path / f"killed-{killed + 1}"
        root.mkdir()
        copyfile(empty_database, root / "mlflow.db")
        process = processes.Process(target=log_and_die, args=(root, embedded.protein, killed + 1))
        process.start()
        process.join(120)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        killed += 1
        store = Store(root, embedded.protein)
        store.log(0)
        assert store.state() == undisturbed, f"killed after write {killed}"
    assert killed > 10
