"""Work pools: what is set up for them in Prefect, and a worker that first closes what its last life left behind."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import yaml
from filelock import FileLock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectAlreadyExists

from cgal.errors import CgalError
from cgal.files import write_text
from flows.serving.health import worker_name
from flows.serving.orphans import close_lost_tasks, close_run, long_ended

__all__ = [
    "CAMPAIGN_TAG",
    "GPU_LIMIT",
    "POOLS",
    "become_worker",
    "provision",
    "worker_is_up",
]

POOLS = {
    "cgal-cpu": "Campaigns: their rounds, benchmark, selection and all-atom labels on CPUs",
    "cgal-gpu": "Stages that a GPU speeds up: train, simulate, and label when force_field.platform is CUDA",
}
"""Work pools, with what runs in them."""

GPU_LIMIT = "gpu"
"""Global concurrency limit: so many stages are at work in the pool `cgal-gpu` at a time."""

RESUMED = ("active-learning", "reference")
"""Deployments whose interrupted runs are started again: they go on where they were."""

CAMPAIGN_TAG = "campaign:"
"""Begins the tag of a run that says which campaign it is at; a second run gets it from the first."""

ALIVE = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
INTERRUPTED = (StateType.PENDING, StateType.RUNNING, StateType.CRASHED)

WORKER_DEFAULTS = {"PREFECT_WORKER_QUERY_SECONDS": "2"}

LAST_WORDS_S = 10.0
"""A worker that was told to end has ended by then."""


def provision(root: Path) -> None:
    """Create the pools, the concurrency limit (unless they are there) and the deployments of `prefect.yaml`.

    Deployments are made again when `prefect.yaml` or the forms have changed; schedules of those that are there stay as
    they are. Raises CgalError when Prefect refuses.
    """
    lock = FileLock(root / ".cgal" / "prefect.lock")  # both workers of a machine may start at once
    with lock, get_client(sync_client=True) as client:
        for pool, description in POOLS.items():
            with suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=pool, type="process", description=description))
        if GPU_LIMIT not in {limit.name for limit in client.read_global_concurrency_limits(limit=200)}:
            client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, 1)
        deployed = {each.name: each.version for each in client.read_deployments() if each.work_pool_name in POOLS}
        described = _described(root)
        if any(deployed.get(each["name"]) != each["version"] for each in described["deployments"]):
            _deploy(root, described, deployed)


def _described(root: Path) -> dict[str, Any]:
    """What `prefect.yaml` says; the version of its deployments is the hash of all that they are made from."""
    sources = [root / "prefect.yaml", *(Path(__file__).parent / name for name in ("deployed.py", "form.py"))]
    sources.append(Path(sys.modules["cgal"].__path__[0]) / "params.py")
    try:
        texts = [source.read_bytes() for source in sources]
        described: dict[str, Any] = yaml.safe_load(texts[0])
        for deployment in described["deployments"]:
            deployment["version"] = sha256(b"".join(texts)).hexdigest()
    except (FileNotFoundError, yaml.YAMLError, KeyError, TypeError) as error:
        raise CgalError(f"{sources[0]}: {error}; 'git checkout prefect.yaml' brings it back") from None
    return described


def _deploy(root: Path, described: dict[str, Any], deployed: Collection[str]) -> None:
    for deployment in described["deployments"]:
        if deployment["name"] in deployed:
            deployment.pop("schedules", None)  # those in Prefect stay, which a page may have changed
    file, log = root / ".cgal" / "prefect" / "deployments.yaml", root / ".cgal" / "logs" / "deploy.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, yaml.safe_dump(described))
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    with log.open("wb") as output:
        done = subprocess.run(command, cwd=root, stdout=output, stderr=output, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise CgalError(f"prefect deploy --all failed with exit code {done.returncode}; see {log}")


def worker_is_up(pool: str, since: datetime) -> bool:
    """Whether this machine's worker of a pool has reported to the server since a moment."""
    with get_client(sync_client=True) as client:
        workers = client.read_workers_for_work_pool(pool)
    heard = [worker.last_heartbeat_time for worker in workers if worker.name == worker_name(pool)]
    return any(moment is not None and moment > since for moment in heard)


def become_worker(root: Path, pool: str) -> None:
    """Close the runs that this machine's last worker of the pool left, then turn this process into `prefect worker`.

    Pools and deployments are made first where they are missing (`provision`). Runs of a worker end with it
    (`flows.serving.deployed`), so what still says "Running" under its name is dead. A campaign is started again and
    goes on where it was; a stage is asked for again by its campaign. Raises CgalError when that worker is at work.
    """
    hold_lock(root, pool)
    provision(root)
    take_over(pool)
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        "CGAL_ROOT": str(root),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",  # a terminal of its own, or a log
        "PATH": os.pathsep.join([bin_folder, os.environ.get("PATH", os.defpath)]),  # a run's command is 'python -m ...'
    }
    options = ["--pool", pool, "--type", "process", "--name", worker_name(pool), "--install-policy", "never"]
    command = [sys.executable, "-m", "prefect", "worker", "start", *options]
    os.execve(sys.executable, command, WORKER_DEFAULTS | os.environ | environment)  # noqa: S606 - no shell is meant


def hold_lock(root: Path, pool: str) -> None:
    """Hold the lock of this machine's worker of a pool until this process ends, through `exec`; its runs do not.

    Raises CgalError when another process has it.
    """
    path = root / ".cgal" / f"{worker_name(pool)}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    os.set_inheritable(descriptor, True)
    deadline = monotonic() + LAST_WORDS_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if monotonic() > deadline:
                raise CgalError(
                    f"{worker_name(pool)}: a worker of this pool is at work for {root} on this machine already; one "
                    "is enough ('cgal serve' starts it)"
                ) from None
            sleep(0.2)


def take_over(pool: str) -> None:
    """Set the dead runs of this machine's worker to "Crashed", and start the interrupted campaign again."""
    with get_client(sync_client=True) as client:
        for deployment in RESUMED:
            _hand_on(client, _interrupted(client, pool, deployment))
        alive = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[*ALIVE])))
        for run in _mine(client.read_flow_runs(work_pool_filter=_named(pool), flow_run_filter=alive), pool):
            close_run(client, run, f"its worker {worker_name(pool)} was stopped or killed")
        ended = client.read_flow_runs(
            work_pool_filter=_named(pool), flow_run_filter=long_ended(), sort=FlowRunSort.END_TIME_DESC
        )
        close_lost_tasks(client, _mine(ended, pool))


def _interrupted(client: SyncPrefectClient, pool: str, deployment: str) -> FlowRun | None:
    """Newest run of this machine's worker that was interrupted, whatever was refused, failed or ended since."""
    runs = client.read_flow_runs(
        work_pool_filter=_named(pool),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[deployment])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[*INTERRUPTED]))),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
    )
    return next(iter(_mine(runs, pool)), None)


def _hand_on(client: SyncPrefectClient, run: FlowRun | None) -> None:
    """Start an interrupted run again, once: a second life that exists already is left as it is."""
    if run and run.deployment_id:
        client.create_flow_run_from_deployment(
            run.deployment_id,
            parameters=run.parameters,
            name=run.name,
            tags=[tag for tag in run.tags if tag.startswith(CAMPAIGN_TAG)],
            idempotency_key=f"after-{run.id}",
        )


def _mine(runs: Iterable[FlowRun], pool: str) -> list[FlowRun]:
    return [run for run in runs if run.labels.get("prefect.worker.name") == worker_name(pool)]


def _named(pool: str) -> WorkPoolFilter:
    return WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
