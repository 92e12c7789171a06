"""A campaign on two peptides: one network, and for each its own prior, simulation, share of the picks and benchmark.

The third peptide, which the model has not seen, is simulated with it and measured.
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import cgal
from cgal.all_atom.oracle import run_md
from cgal.all_atom.structures import structure_from_sequence
from cgal.dataset import load_manifest
from cgal.errors import BadParams, CgalError, DatasetChanged
from cgal.files import read_json, sha256, write_json, write_text
from cgal.frames import CGTrajectory, alpha_carbons, read_pdb_text
from cgal.params import check_params
from cgal.progress import silent
from cgal.selection.closing import joint_reason, shares
from flows.campaign.active_learning import active_learning
from flows.campaign.opening import change_params
from flows.campaign.preflight import require_runnable
from flows.campaign.production import Wish, open_production
from flows.campaign.records import campaign_rounds, draw_campaign
from flows.campaign.stages import run_stage
from flows.campaign.steps import append_task
from flows.cli.project import print_rounds
from flows.protein.init import Start, init_project
from flows.protein.seed import save_seed
from flows.serving.transport import hash_inputs, read_outputs
from flows.versioning import Repository
from flows.versioning.pipeline import TITLE, fit_pipeline
from flows.workspace import Workspace
from tests.conftest import SMALL

SEQUENCES = {"first": "KEAYDG", "second": "GWTKLEP", "third": "DPETGTWY"}
BOTH = ["first", "second"]
PARAMS = SMALL | {
    "mapping": {"force_map": "local_frames"},
    "campaign": {"name": "both", "rounds": 1, "stop_below": 0.0},
    "training": {"epochs": 4, "batch_size": 16, "warm_start": True, "validation_block_frames": 10, "preflight": False},
    "selection": {"strategy": "coverage", "frames": 3, "novel_nm": 0.03, "distinct_nm": 0.01},
    "oracle": {"mode": "free", "burn_in_steps": 20, "average_steps": 80, "free_stride": 20},
    "benchmark": {"bootstrap": 10, "tica_lag_ps": 0.4, "maximum_frames": 100},
}
"""An acquisition round and a closing one."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, git_identity: None) -> Path:
    """A project of three peptides with short seeds and references, two of them in `params.yaml`."""
    root = tmp_path_factory.mktemp("several") / "project"
    init_project(root, Start(protein="first"))
    set_params(root, {"protein": BOTH})
    for name in SEQUENCES:
        make_protein(Workspace(root, name))
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "--quiet", "--message", "two peptides")
    return root


@pytest.fixture(scope="module")
def campaign(project: Path, prefect_server: None) -> Path:
    assert active_learning(project, "both") == 1
    return project


def set_params(root: Path, changes: dict[str, Any]) -> None:
    content = yaml.safe_load((root / "params.yaml").read_text())
    for source in (PARAMS, changes):
        for key, value in source.items():
            content[key] = content.get(key, {}) | value if isinstance(value, dict) else value
    (root / "params.yaml").write_text(yaml.safe_dump(content))


def make_protein(workspace: Workspace) -> None:
    """Structure, and seven short runs from it: five become the seed, two the reference."""
    params, name = workspace.params, workspace.data.name
    structure = structure_from_sequence(
        SEQUENCES[name], params.force_field, temperature_K=params.temperature_K, seed=1, relax_ps=0.3
    )
    write_text(workspace.data / "structure.pdb", structure)
    frames = run_md(
        structure,
        np.repeat(read_pdb_text(structure).xyz, 7, axis=0),
        steps=1000,
        stride=25,
        equilibration_steps=200,
        force_field=params.force_field,
        temperature_K=params.temperature_K,
        seeds=[*range(1, 8)],
        workers=1,
        scratch=workspace.scratch("runs"),
    ).labelled
    save_seed(workspace, workspace.data, frames.take(frames.trajectory < 5), mean_force=False)
    rest = frames.take(frames.trajectory >= 5)
    beads = np.ascontiguousarray(rest.positions[:, alpha_carbons(rest.topology)])
    CGTrajectory.from_positions(SEQUENCES[name], beads, rest.time_ps, rest.trajectory).save(
        workspace.data / "reference.h5"
    )
    Repository(workspace.root).dvc.record_data(name)


def run(root: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_rounds_train_one_network_on_both(campaign: Path) -> None:
    rounds = campaign_rounds(Repository(campaign), "both")
    assert [entry["tag"] for entry in rounds] == [f"both/round-{k:03d}" for k in range(2)]
    manifests = {name: load_manifest(campaign / "data" / name) for name in BOTH}
    assert [len(manifest.shards) for manifest in manifests.values()] == [2, 2]
    assert manifests["first"].prepared_from.trained_beside == ("second",)
    for entry in rounds:
        own = entry["proteins"]
        assert list(own) == BOTH
        assert entry["frames"] == sum(each["frames"] for each in own.values())
        assert entry["w1"]["tica"]["value"] == pytest.approx(
            np.mean([each["w1"]["tica"]["value"] for each in own.values()])
        )
    for name in BOTH:
        assert cgal.load("both/round-001", sequence=SEQUENCES[name], root=campaign).sequence == SEQUENCES[name]
        assert CGTrajectory.load(campaign / "round" / name / "trajectory.h5").sequence == SEQUENCES[name]


def test_proteins_share_the_picks_of_a_round(campaign: Path) -> None:
    repository = Repository(campaign)
    first, closing = (
        json.loads(content)
        for content in repository.read_round_files(["both/round-000", "both/round-001"], "round/selection.json")
    )
    assert set(first["picked"]) == set(BOTH)
    assert all(first["picked"].values())
    assert sum(first["picked"].values()) <= PARAMS["selection"]["frames"]
    assert closing["closing"].startswith("rounds: all 1")


def test_dvc_knows_each_stage_and_replays_none(campaign: Path) -> None:
    assert (campaign / "dvc.yaml").read_text().startswith(TITLE)
    stages = set(yaml.safe_load((campaign / "dvc.lock").read_text())["stages"])
    each = {f"{stage}@{name}" for stage in ("simulate", "benchmark", "label") for name in BOTH}
    assert stages == {"train", "select"} | each
    Repository(campaign).checkout_round("both/round-000")
    said = run(campaign, "dvc", "repro")
    assert "Running stage" not in said
    assert said.count("didn't change") >= len(stages)
    Repository(campaign).checkout_round("both/round-001")


def test_a_worker_gets_the_files_of_one_protein(campaign: Path) -> None:
    parts = [Workspace(campaign, name) for name in BOTH]
    assert [[*read_outputs(part, "simulate")] for part in parts] == [[f"round/{name}/trajectory.h5"] for name in BOTH]
    assert len({hash_inputs(part, "simulate") for part in parts}) == 2


def test_mlflow_shows_the_mean_and_each(campaign: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{campaign / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("first+second")
    runs = client.search_runs([experiment.experiment_id], "tags.`cgal.kind` = 'round'")
    assert len(runs) == 2
    for one in runs:
        metrics = one.data.metrics
        own = [metrics[f"w1/tica/{name}"] for name in BOTH]
        assert metrics["w1/tica"] == pytest.approx(np.mean(own))
        assert metrics["w1/tica/low"] < metrics["w1/tica"] < metrics["w1/tica/high"]
        assert {each.dataset.name for each in one.inputs.dataset_inputs} == set(BOTH)
    figures = {artifact.path for artifact in client.list_artifacts(runs[0].info.run_id, "figures/first")}
    assert figures == {"figures/first/benchmark", "figures/first/selection"}


def test_tables_and_figures_show_each(campaign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_rounds(campaign, "both")
    said = capsys.readouterr().out
    assert "git checkout both/round-001 -- data/first.dvc data/second.dvc dvc.yaml dvc.lock params.yaml" in said
    draw_campaign(Repository(campaign), "both", campaign / "report")
    assert all((campaign / "report" / name / "w1_rounds.png").is_file() for name in BOTH)


def test_a_kill_between_two_appends_is_made_good(campaign: Path, tmp_path: Path) -> None:
    Repository(campaign).checkout_round("both/round-000")
    workspace, second = Workspace(campaign), campaign / "data" / "second"
    shutil.copytree(second, tmp_path / "second")
    append_task(0, workspace)(campaign)
    grown = {name: sha256(campaign / "data" / name / "manifest.json") for name in BOTH}
    shutil.rmtree(second)
    shutil.copytree(tmp_path / "second", second)
    assert workspace.round_index == 0
    with pytest.raises(DatasetChanged, match=r"data/first of round 1, .*data/second of round 0: one has grown alone"):
        run_stage("train", workspace, silent)
    append_task(0, workspace)(campaign)
    assert workspace.round_index == 1
    assert {name: sha256(campaign / "data" / name / "manifest.json") for name in BOTH} == grown
    Repository(campaign).checkout_round("both/round-001")


def test_a_third_protein_is_simulated_with_the_network_of_two(
    campaign: Path, record_property: Callable[..., None]
) -> None:
    repository, wish = Repository(campaign), Wish(ns=0.005, replicas=4, protein="third")
    folder = wish.folder(campaign, repository.round("both/round-001"))
    assert folder == campaign / "production" / "both/round-001" / "third"
    note = campaign / "data" / "third" / "reference.json"
    write_json(note, {"temperature_K": 250.0})
    with pytest.raises(BadParams, match=r"third/reference\.h5: sampled at 250 K"):
        open_production(repository, "both/round-001", wish, folder).__enter__()
    note.unlink()
    with open_production(repository, "both/round-001", wish, folder) as workspace:
        for stage in ("production", "benchmark"):
            run_stage(stage, workspace, silent)
    found, of_both = cgal.load(folder / "round" / "model.pt"), cgal.load("both/round-001", root=campaign)
    assert found.sequence == SEQUENCES["third"]
    weights, expected = (model.potential.network.state_dict() for model in (found, of_both))
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)
    scores = read_json(folder / "round" / "metrics.json")["w1"]
    record_property("w1", {name: score["value"] for name, score in scores.items()})
    assert all(np.isfinite(score["value"]) for score in scores.values())
    alone = Wish(ns=0.005, replicas=4, protein="third", prior_alone=True)
    beside = alone.folder(campaign, repository.round("both/round-001"))
    with pytest.raises(CgalError, match="belongs to both/round-001 for third, not to both/round-001 for third without"):
        open_production(repository, "both/round-001", alone, folder).__enter__()
    with open_production(repository, "both/round-001", alone, beside) as workspace:
        potential = cgal.load(workspace.model).potential
    start = torch.from_numpy(CGTrajectory.load(workspace.data / "reference.h5").positions[:1])
    assert potential.energy(start) == potential.prior.energy(start)
    with pytest.raises(BadParams, match="first, second: say which with --protein"):
        Wish(ns=0.005).protein_of(repository.round("both/round-001"))


def test_a_project_goes_back_to_one_protein(campaign: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(campaign, root, symlinks=True)
    change_params(root / "params.yaml", {"protein": "first", "campaign": {"name": "alone"}})
    Repository(root).dvc.record_data()
    assert "foreach" not in (root / "dvc.yaml").read_text()
    assert "@" not in (root / "dvc.lock").read_text()
    assert not (root / "round" / "first" / "trajectory.h5").exists(), "in DVC's cache, and no output of this campaign"
    run(root, "git", "commit", "--quiet", "--all", "--message", "one peptide")
    run(root, "cgal", "checkout", "both/round-000")
    assert (root / "dvc.yaml").read_text().startswith(TITLE)
    assert Workspace(root).campaign_proteins == ("first", "second")
    assert len(load_manifest(root / "data" / "second").shards) == 1
    assert (root / "round" / "first" / "trajectory.h5").is_file()


def test_a_lock_that_leads_out_of_the_round_takes_nothing_away(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(project, root, symlinks=True)
    change_params(root / "params.yaml", {"protein": "first"})
    kept = [root / "params.yaml", tmp_path / "kept"]
    kept[1].write_text("kept")
    outs = [{"path": path, "md5": "0" * 32} for path in ("round/../params.yaml", "round/../../kept", str(kept[1]))]
    for content in (yaml.safe_dump({"schema": "2.0", "stages": {"simulate@first": {"outs": outs}}}), "[", "stages: 1"):
        (root / "dvc.lock").write_text(content)
        (root / "dvc.yaml").write_text(TITLE)
        fit_pipeline(root)
        assert all(path.is_file() for path in kept)
    assert (root / "dvc.lock").read_text() == "stages: 1", "damaged: DVC says so"


def test_a_grown_campaign_keeps_its_proteins(campaign: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(campaign, root, symlinks=True)
    set_params(root, {"protein": [*BOTH, "third"]})
    from cgal.dataset import prepare

    part = Workspace(root).of("first")
    with pytest.raises(BadParams, match="trained_beside changed, but they are fixed for a campaign"):
        prepare(part.data, part.params, beside=part.beside)


def test_what_cannot_train_one_network_is_refused(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(project, root, symlinks=True)
    shutil.copytree(root / "data" / "first", root / "data" / "twin")
    set_params(root, {"protein": ["first", "twin"]})
    with pytest.raises(BadParams, match=f"first and twin are both {SEQUENCES['first']}"):
        require_runnable(Workspace(root))
    with pytest.raises(BadParams, match="say which of first, twin"):
        _ = Workspace(root).data
    for changes, message in (
        ({"protein": ["first"]}, "two proteins or more"),
        ({"protein": ["first", "first"]}, "first is named twice"),
        ({"protein": BOTH, "training": {"objective": "relative_entropy"}}, "relative_entropy is for one protein"),
    ):
        with pytest.raises(BadParams, match=message):
            check_params(changes, Path("params.yaml"))


def test_picks_are_shared_by_what_is_uncovered() -> None:
    assert shares(7, [0.3]) == [7]
    assert shares(10, [0.5, 0.5]) == [5, 5]
    assert shares(10, [0.9, 0.001]) == [9, 1], "whoever has any gets one"
    assert shares(1, [0.1, 0.9]) == [0, 1]
    assert shares(0, [0.1, 0.9]) == [0, 0]
    assert shares(3, [0.0, 0.2]) == [0, 3]
    assert joint_reason(["converged: a", "converged: b"]) == "converged: a; converged: b"
    assert joint_reason(["converged: a", ""]) == ""
