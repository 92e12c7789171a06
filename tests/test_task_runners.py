"""Real frames and trajectories on threads and on Dask's clusters: the bytes are those of processes, come what may."""

import os
import signal
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from distributed import LocalCluster
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import StateType

from cgal.all_atom.structures import structure_from_sequence
from cgal.all_atom.workers import Outcome, run_in_processes
from cgal.dataset import load_manifest, load_shards, prepare
from cgal.errors import BadFile, BadParams
from cgal.frames import CGTrajectory
from cgal.progress import Progress, silent
from cgal.reference.sampling import SwarmRecipe, explore, relax, swarm
from cgal.selection import measure_pool, select
from flows.campaign.opening import change_params
from flows.campaign.stages import label
from flows.serving.task_runners import CLUSTER_FILE, ClusterUnreachable, fanning_out, task_runner
from flows.workspace import Workspace
from tests.conftest import REPOSITORY, make_copy
from tests.test_reference import FORCE_FIELD, TINY, contents
from tests.test_workers import work

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("prefect_server")]

EXAMPLE = REPOSITORY / "docs" / "cluster.yaml"
FRAMES = 4


@pytest.fixture(scope="module")
def labelling(tmp_path_factory: pytest.TempPathFactory, bundled_data: Path, git_identity: None) -> Path:
    """A project whose next stage is the labelling of four frames, some two seconds each."""
    changes = {"oracle": {"burn_in_steps": 200, "average_steps": 1000}}
    root = make_copy(tmp_path_factory.mktemp("runners") / "project", bundled_data, changes)
    workspace = Workspace(root)
    prepare(workspace.data, workspace.params)
    known = load_shards(workspace.data)[0].positions
    frames = CGTrajectory.from_positions(
        load_manifest(workspace.data).sequence, known[:40], np.arange(40.0), np.zeros(40, dtype=np.int64)
    )
    picked = select(measure_pool(frames, known, known[0], workspace.params.selection), FRAMES, seed=1)
    picked.save(workspace.round / "selection.h5")
    return root


@pytest.fixture(scope="module")
def expected(labelling: Path) -> bytes:
    """What processes make of it."""
    return labelled(labelling, "processes")


def labelled(root: Path, runner: str, progress: Progress = silent) -> bytes:
    """Bytes of the stage's output, made from nothing in a flow."""
    change_params(root / "params.yaml", {"execution": {"task_runner": runner}})
    for made in (*(root / ".cgal").glob("work/label-*/*.h5"), root / "round" / "oracle.h5"):
        made.unlink(missing_ok=True)

    @flow(name="labelling")
    def run() -> None:
        summary = label(Workspace(root), progress)
        assert (summary["labelled"], summary["failed"]) == (FRAMES, 0)

    run()
    assert not list((root / ".cgal").glob("seen-*"))
    return (root / "round" / "oracle.h5").read_bytes()


def spawned() -> set[int]:
    """Processes that multiprocessing has spawned here, as Dask does; an earlier test may have left others at work."""
    return {child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())}


def test_threads_give_the_bytes_of_processes(labelling: Path, expected: bytes) -> None:
    assert labelled(labelling, "threads") == expected


def test_a_killed_dask_worker_changes_no_byte_and_leaves_no_run_behind(labelling: Path, expected: bytes) -> None:
    """One of two workers is killed when the first frame is done: both are at a frame then."""
    others = spawned()
    killed: list[int] = []

    def strike(done: int, total: int, note: str = "") -> None:
        if done == 1 and not killed:
            workers = spawned() - others
            require_loopback(workers)
            killed.append(workers.pop())
            os.kill(killed[0], signal.SIGKILL)

    assert labelled(labelling, "dask", strike) == expected
    assert killed
    assert spawned() <= others
    with get_client(sync_client=True) as client:
        mine = FlowFilter(name=FlowFilterName(any_=["labelling"]))
        runs = client.read_task_runs(flow_filter=mine)
        states = {run.name: run.state_type for run in runs if run.name.startswith("label")}
    assert set(states.values()) == {StateType.COMPLETED}


def require_loopback(workers: set[int]) -> None:
    listening = [
        connection.laddr.ip
        for pid in (os.getpid(), *workers)
        for connection in psutil.Process(pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1"}, listening


def run_tasks(root: Path, work: Any, tasks: list[str]) -> dict[str, tuple[str, str | None]]:
    """Stage and reason of each task, done by the runner that the project's params name."""

    @flow(name="tasks")
    def run() -> dict[str, tuple[str, str | None]]:
        with fanning_out(Workspace(root), 2) as fan_out:
            return {tasks[o.index]: (o.stage, o.reason) for o in fan_out(work, tasks, workers=2)}

    return run()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text("execution: {task_runner: threads}\n")
    (tmp_path / "tries").mkdir()
    return tmp_path


def test_tasks_that_fail_are_tried_as_often_as_by_processes(project: Path) -> None:
    tries = project / "tries"
    found = run_tasks(project, partial(work, folder=tries), ["good", "fails", "permanent"])
    assert found == {
        "good": ("at work", None),
        "fails": ("at work", "ValueError: this cannot be"),
        "permanent": ("at work", "whatever the seed"),
    }
    names = sorted(path.name.rpartition("-")[0] for path in tries.iterdir())
    assert names == ["fails-0", "fails-1", "good-0", "permanent-0"]
    with pytest.raises(BadFile, match="disk full"):
        run_tasks(project, partial(work, folder=tries), ["disk"])


def test_outside_of_a_flow_processes_do_it(project: Path) -> None:
    with fanning_out(Workspace(project), 2) as fan_out:
        assert fan_out is run_in_processes


# ------------------------------------------------------------------------------------- a scheduler's address


def one_after_another(work: Any, tasks: Sequence[Any], *, workers: int) -> Iterator[Outcome]:
    """The simplest way to do tasks: here."""
    for index, task in enumerate(tasks):
        work(task, 0, lambda stage: None)
        yield Outcome(index, "done")


def test_reference_trajectories_on_a_dask_scheduler_have_the_same_bytes(tmp_path: Path) -> None:
    structure = structure_from_sequence("GASP", FORCE_FIELD, temperature_K=350.0, seed=1)
    here, there = (SwarmRecipe(structure, FORCE_FIELD, TINY, 350.0, 1, tmp_path / name) for name in ("here", "there"))

    @flow(name="sampling")
    def run() -> None:
        with fanning_out(Workspace(tmp_path), 2) as fan_out:
            for make in (explore, relax, swarm):
                assert make(there, workers=2, fan_out=fan_out) == ()

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        choose(tmp_path, "dask_address", {"address": cluster.scheduler_address})
        run()
    for make in (explore, relax, swarm):
        make(here, workers=1, fan_out=one_after_another)
    assert len(contents(there.folder)) == 2 + 2 + 4
    assert contents(there.folder) == contents(here.folder)


def test_a_scheduler_that_does_not_answer_is_worth_another_try(project: Path) -> None:
    choose(project, "dask_address", {"address": "tcp://127.0.0.1:9", "client_kwargs": {"timeout": 0.5}})
    with pytest.raises(ClusterUnreachable, match=r"no Dask scheduler at tcp://127.0.0.1:9"):
        run_tasks(project, partial(work, folder=project / "tries"), ["good"])


def choose(root: Path, name: str, options: Any) -> None:
    (root / "params.yaml").write_text(yaml.safe_dump({"execution": {"task_runner": name}}))
    (root / CLUSTER_FILE).write_text(yaml.safe_dump({name: options}))


# ------------------------------------------------------------------------------------- SLURM


def test_the_slurm_example_makes_the_job_that_it_says(project: Path) -> None:
    (project / CLUSTER_FILE).write_text(EXAMPLE.read_text())
    runner = task_runner("dask_slurm", 16, project)
    assert runner.adapt_kwargs == {"minimum": 16, "maximum": 64}
    options = runner.cluster_kwargs | {"interface": "lo"}
    (project / ".cgal").mkdir()
    with runner.resolved_cluster_class(**options) as cluster:
        script = cluster.job_script()
    for line in (
        "#SBATCH -p cpu",
        "#SBATCH -A my-group",
        "#SBATCH --cpus-per-task=16",
        "#SBATCH --mem=30G",
        "#SBATCH -t 04:00:00",
        "#SBATCH --nice=100",
        "export OMP_NUM_THREADS=1",
        f"{sys.executable} -m distributed.cli.dask_worker tls://127.0.0.1:",
        "--nthreads 1 ",
        "--nworkers 16 ",
        "--lifetime 225m --lifetime-stagger 5m",
        f"--tls-ca-file {project / '.cgal'}",
    ):
        assert line in script


SBATCH = """#!/bin/sh
job=$(mktemp {log}.XXXXXX) && cp "$1" "$job"  # as SLURM does: the script is deleted when this returns
setsid sh "$job" > {log} 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
kill -- -"$1"
"""


def test_tasks_run_in_jobs_of_slurm(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an `sbatch` that runs the job here and now: everything but the queue is real."""
    commands = {"sbatch": SBATCH.format(log=project / "job.log"), "scancel": SCANCEL}
    for name, text in commands.items():
        path = project / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{project / 'bin'}{os.pathsep}{os.environ['PATH']}")
    choose(project, "dask_slurm", {"cores": 1, "processes": 1, "memory": "8GB", "interface": "lo",
                                   "local_directory": str(project)})  # fmt: skip
    tries = project / "tries"
    found = run_tasks(project, partial(work, folder=tries), ["good", "better"])
    assert found == {"good": ("at work", None), "better": ("at work", None)}
    assert "Starting established connection to tls://127.0.0.1" in (project / "job.log").read_text()
    wait_for_no_job(project)


def wait_for_no_job(project: Path) -> None:
    end = time.monotonic() + 30
    while any(str(project) in " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < end, "a job was left behind"
        time.sleep(0.2)


# ------------------------------------------------------------------------------------- what the user must mend


def test_without_sbatch_or_a_section_it_is_said_what_to_do(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadFile, match=r"no section dask_slurm, which execution.task_runner names; docs/cluster.yaml"):
        task_runner("dask_slurm", 2, project)
    choose(project, "dask_slurm", {"cores": 1, "memory": "1GB"})
    with pytest.raises(BadParams, match="no sbatch on the PATH"):
        run_tasks(project, partial(work, folder=project / "tries"), ["good"])


def test_a_wrong_cluster_file_is_named(project: Path) -> None:
    path = project / CLUSTER_FILE
    for text, reason in (
        ("dask_slurm: [", "not valid YAML"),
        ("slurm: {}", "must be a mapping with the sections dask, dask_slurm, dask_address"),
        ("dask_slurm: 3", "dask_slurm: must be a mapping"),
        ("dask_address: {port: 1}", "dask_address: no address"),
    ):
        path.write_text(text)
        with pytest.raises(BadFile, match=reason):
            task_runner("dask_address" if "address" in text else "dask_slurm", 2, project)
    choose(project, "dask", {"quene": "cpu"})
    with pytest.raises(BadFile, match=r"cluster.yaml: .*quene"):
        run_tasks(project, partial(work, folder=project / "tries"), ["good"])


@pytest.mark.parametrize(("package", "runner"), [("prefect_dask", "dask"), ("dask_jobqueue", "dask_slurm")])
def test_a_missing_package_is_named_with_the_command(
    package: str, runner: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadParams, match=rf"{package.replace('_', '-')}.*pip install -e '.\[cluster\]'"):
        task_runner(runner, 2, project)


def test_a_worker_that_does_not_see_the_project_ends_the_batch(project: Path) -> None:
    @flow(name="blind")
    def run() -> None:
        with fanning_out(Workspace(project), 2) as fan_out:
            for mark in (project / ".cgal").glob("seen-*"):
                mark.unlink()
            list(fan_out(partial(work, folder=project / "tries"), ["good"], workers=2))

    with pytest.raises(BadFile, match=r"not seen by .*; let Dask's workers see that folder"):
        run()
