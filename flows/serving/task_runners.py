"""Who does the all-atom runs of a stage (frames to label, trajectories of a reference): `execution.task_runner`.

    processes      processes of this machine (`cgal.all_atom.workers`), the default: a frame that crashes harms no other
    threads        threads of this process, by Prefect's task runner: no process to start, but a crash ends all
    dask           a Dask cluster on this machine, by Prefect's task runner, as the next two
    dask_slurm     Dask workers in SLURM's jobs, by dask-jobqueue
    dask_address   a Dask scheduler that runs already

Options of the last three are in `cluster.yaml` of the project, a section each: what they hold (lines of a job script,
addresses) must not come from a form. Every run is a Prefect task, and writes its own file: Dask's workers must see the
project's folder. Seeds and order do not depend on who runs what, so the bytes are the same.
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from queue import Empty, SimpleQueue
from shutil import which
from typing import Any
from uuid import uuid4

from cgal.all_atom.workers import FanOut, Job, Outcome, Work, attempt_task, run_in_processes
from cgal.errors import BadFile, BadParams
from cgal.files import read_yaml, write_text
from flows.workspace import Workspace

__all__ = ["ClusterUnreachable", "cluster_options", "fanning_out", "task_runner"]

CLUSTER_FILE = "cluster.yaml"
RUNNERS = {"dask": "prefect_dask", "dask_slurm": "dask_jobqueue", "dask_address": "prefect_dask"}
"""Sections of `cluster.yaml`, and the package that each needs."""

POLL_S = 0.5


class ClusterUnreachable(Exception):
    """No Dask scheduler answers; another attempt may succeed."""


@contextmanager
def fanning_out(workspace: Workspace, workers: int) -> Iterator[FanOut]:
    """Give the function that does tasks where `execution.task_runner` says; a cluster stays up until the end.

    Outside of a Prefect flow (`cgal stage`, hence `dvc repro`) that is always processes of this machine.

    Raises BadParams when a package is missing, BadFile when `cluster.yaml` is missing or wrong.
    """
    name = workspace.params.execution.task_runner
    if name == "processes" or not _in_flow():
        yield run_in_processes
        return
    with _mark(workspace.root) as mark, task_runner(name, workers, workspace.root) as runner:
        yield partial(_spread, runner, mark)


def task_runner(name: str, workers: int, root: Path) -> Any:
    """Prefect's task runner of a name, not yet started; raises BadParams or BadFile (see `fanning_out`)."""
    if name == "threads":
        from prefect.task_runners import ThreadPoolTaskRunner

        return ThreadPoolTaskRunner(max_workers=workers)
    for package in ("prefect_dask", RUNNERS[name]):
        _require(package, name)
    from prefect_dask.task_runners import DaskTaskRunner

    options = cluster_options(root, name)
    if name == "dask_address":
        return DaskTaskRunner(**options)
    if name == "dask":
        return DaskTaskRunner(cluster_kwargs=LOCAL | {"n_workers": workers} | options)
    adapt = {"minimum": workers, "maximum": workers} | options.pop("adapt", {})
    cluster = import_module("dask_jobqueue").SLURMCluster
    keys = {"shared_temp_directory": str(root / ".cgal")}
    return DaskTaskRunner(cluster_class=cluster, cluster_kwargs=SLURM | keys | options, adapt_kwargs=adapt)


LOCAL = {"threads_per_worker": 1, "dashboard_address": None}
"""One run at a time in a process; no page of Dask's own, which would listen on every interface."""

SLURM = {"security": True}
"""Scheduler and workers speak TLS, with keys made for the occasion: who else reaches the port could run anything."""


def cluster_options(root: Path, name: str) -> dict[str, Any]:
    """One section of `cluster.yaml`; raises BadFile when it is wrong, or missing where it is needed."""
    path = root / CLUSTER_FILE
    content = _read(path) if path.is_file() else {}
    options = content.get(name) or {}
    if not isinstance(options, dict):
        raise BadFile(f"{path}: {name}: must be a mapping; docs/cluster.yaml is an example")
    if not options and name != "dask":
        raise BadFile(f"{path}: no section {name}, which execution.task_runner names; docs/cluster.yaml is an example")
    if name == "dask_address" and "address" not in options:
        raise BadFile(f"{path}: dask_address: no address, such as tcp://HOST:8786")
    return dict(options)


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path) or {}
    if not isinstance(content, dict) or set(content) - set(RUNNERS):
        raise BadFile(f"{path}: must be a mapping with the sections {', '.join(RUNNERS)}, or some of them")
    return content


def _require(package: str, name: str) -> None:
    try:
        import_module(package)
    except ImportError as error:
        raise BadParams(
            f"execution.task_runner {name} needs {package.replace('_', '-')} ({error}); "
            "install it with: pip install -e '.[cluster]'"
        ) from None


def _in_flow() -> bool:
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


@contextmanager
def _mark(root: Path) -> Iterator[Path]:
    """Put a file into the project by which a worker knows that it sees the same folder."""
    mark = root / ".cgal" / f"seen-{uuid4().hex}"
    write_text(mark, "")
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def _spread(runner: Any, mark: Path, work: Work[Any], tasks: Sequence[Any], *, workers: int) -> Iterator[Outcome]:
    """Do tasks as `run_in_processes` does, as tasks of a Prefect runner that is started."""
    if not tasks:
        return
    _connect(runner, mark.parents[1])
    ended: SimpleQueue[tuple[Job, Any]] = SimpleQueue()

    def submit(job: Job) -> None:
        attempt = partial(_attempt, work, job.failures, tasks[job.index], mark)
        future = _submit(runner, attempt, f"{_title(work)} {job.index}")
        future.add_done_callback(lambda future: ended.put((job, future)))

    for index in range(len(tasks)):
        submit(Job(index))
    left = len(tasks)
    while left:
        job, future = _next(ended)
        outcome = _outcome(job, future)
        if outcome.reason is not None and job.retry(outcome):
            submit(job)
        else:
            left -= 1
            yield outcome


def _connect(runner: Any, root: Path) -> None:
    """Start a Dask runner's cluster, or find it."""
    if not hasattr(runner, "cluster_class"):
        return
    jobs = getattr(runner.cluster_class, "job_cls", None)
    if jobs and not which(jobs.submit_command):
        raise BadParams(f"no {jobs.submit_command} on the PATH; run the worker of cgal-cpu where jobs can be submitted")
    try:
        _ = runner.client
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        reason = _root(error)
        if isinstance(reason, TypeError | ValueError):
            raise BadFile(f"{root / CLUSTER_FILE}: {reason}; docs/cluster.yaml is an example") from error
        raise ClusterUnreachable(f"no Dask scheduler at {runner.address or 'hand'}: {reason}") from error


def _root(error: BaseException) -> BaseException:
    return _root(error.__cause__) if error.__cause__ else error


def _submit(runner: Any, attempt: Callable[[], tuple[str, str, str]], title: str) -> Any:
    from prefect import task
    from prefect.cache_policies import NO_CACHE
    from prefect.context import TagsContext

    # Without tags the server is not asked for concurrency slots, which takes it seconds.
    with TagsContext(current_tags=set()):
        piece = task(name="all-atom run", task_run_name=title, cache_policy=NO_CACHE)(_call)
        return runner.submit(piece, {"attempt": attempt})


def _title(work: Work[Any]) -> str:
    function = work.func if isinstance(work, partial) else work
    return str(getattr(function, "__name__", "task")).strip("_").replace("_", " ")


def _next(ended: SimpleQueue[tuple[Job, Any]]) -> tuple[Job, Any]:
    while True:
        try:
            return ended.get(timeout=POLL_S)  # not for ever: a stage's timeout must be able to interrupt
        except Empty:
            continue


def _outcome(job: Job, future: Any) -> Outcome:
    try:
        stage, kind, text = future.result()
    except Exception as error:  # not the run's own fault, which it returns; Dask has tried it on four workers by now
        return replace(job.crash(f"its worker died ({type(error).__name__}: {error})"), permanent=True)
    job.stage = stage
    return job.outcome(kind, text)


# ------------------------------------------------------------------------------------- on a worker


def _call(attempt: Callable[[], tuple[str, str, str]]) -> tuple[str, str, str]:
    return attempt()


def _attempt(work: Work[Any], attempt: int, task: Any, mark: Path) -> tuple[str, str, str]:
    """Do one task once: the last stage that it announced, how it ended, and why."""
    if not mark.is_file():
        root = mark.parents[1]
        return "start", "no file", f"{root}: not seen by {socket.gethostname()}; let Dask's workers see that folder"
    stages = ["start"]
    kind, text = attempt_task(work, attempt, task, stages.append)
    return stages[-1], kind, text
