"""Shared fixtures; shapes and types of `cgal` are checked on every call of every test."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from jaxtyping import install_import_hook

from flows.settings import NO_TELEMETRY

os.environ.update(NO_TELEMETRY)  # before anything imports Prefect
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `dvc repro` calls `cgal`
install_import_hook("cgal", "beartype.beartype")

REPOSITORY = Path(__file__).parents[1]
SMALL: dict[str, dict[str, Any]] = {
    "campaign": {"name": "small"},
    "mapping": {"force_map": "optimal"},
    "network": {"features": 16, "blocks": 1, "radial_functions": 12},
    "training": {
        "epochs": 6,
        "learning_rate": 1e-2,
        "checkpoint_epochs": 2,
        "batch_size": 16,
        "bond_weight": 1.0,
        "validation_block_frames": 10,
        "warm_start": True,
    },
    "simulation": {"replicas": 8, "steps": 400, "stride": 20},
    "selection": {"strategy": "rmsd_histogram", "frames": 4},
    "oracle": {"mode": "mean_force", "burn_in_steps": 20, "average_steps": 60, "free_stride": 100},
    "benchmark": {"bootstrap": 20, "maximum_frames": 200},
    "execution": {"torch_threads": 1, "retries": 0},
}
"""A campaign that is real in every part and takes seconds a round; each pick gets one mean force, so that labels are
easily counted. `tests/test_campaign.py` runs one by the methods of `params.yaml`."""

DEAR = (
    "test_faults", "test_served", "test_killed", "test_compare", "test_faults_workers", "test_init",
    "test_linear_populations", "test_campaign", "test_reference", "test_own_protein", "test_backends", "test_transport",
)  # fmt: skip
"""Files that take minutes: they come first, so that no worker is left with one of them when the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: DEAR.index(item.path.stem) if item.path.stem in DEAR else len(DEAR))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Path:
    """A folder for all tests of a run, whichever of its processes they are in; the first that wants it makes it."""
    folder = factory.getbasetemp()
    root = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / name
    with FileLock(f"{root}.lock"):
        if not (made := root.with_suffix(".made")).exists():
            make(root)
            made.touch()
    return root


@pytest.fixture(scope="session")
def bundled_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled chignolin, as `cgal init --demo` has it; a campaign in this working copy may have grown its own."""
    return made_once(tmp_path_factory, "template", _make_template) / "data" / "chignolin"


def _make_template(root: Path) -> None:
    """What is the same in all working copies of `make_copy`."""
    template = REPOSITORY / "flows" / "protein" / "template"
    (out,) = yaml.safe_load((template / "data.dvc").read_text())["outs"]
    for entry in json.loads(_stored(template, out["md5"]).read_text()):
        path = root / "data" / "chignolin" / entry["relpath"]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_stored(template, entry["md5"]), path)
    (root / ".dvc").mkdir()
    for file in ("dvc.yaml", ".gitignore", "prefect.yaml", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(REPOSITORY / file, root / file)
    (root / "data.dvc").write_text("outs:\n- path: data/chignolin\n")
    for command in ("git init --quiet --initial-branch main", "dvc commit --quiet --force data.dvc"):
        subprocess.run(command.split(), cwd=root, check=True)
    shutil.rmtree(root / ".dvc" / "tmp")


def _stored(template: Path, md5: str) -> Path:
    return template / "bundled" / "files" / "md5" / md5[:2] / md5[2:]


@pytest.fixture(scope="session")
def git_identity() -> Iterator[None]:
    """Commits of the tests have an author, whatever the machine's git knows."""
    names = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in
             (("NAME", "cgal tests"), ("EMAIL", "tests@example.invalid"))}  # fmt: skip
    before = dict(os.environ)
    os.environ.update(names)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def make_project(tmp_path: Path, bundled_data: Path, git_identity: None) -> Callable[..., Path]:
    """Make a working copy with the bundled data and a small campaign: `make_project(name, **changed_sections)`."""

    def make(name: str = "project", **changes: Any) -> Path:
        return make_copy(tmp_path / name, bundled_data, changes)

    return make


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with stand-ins for all files, before its first round; tests copy it."""
    from tests.test_versioning import new_repository

    return made_once(tmp_path_factory, "seeded", new_repository)


@pytest.fixture(scope="session")
def two_rounds(seeded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That project with rounds 0 and 1 published; tests copy it."""
    from tests.test_versioning import publish_two_rounds

    return made_once(tmp_path_factory, "rounds", lambda root: publish_two_rounds(Path(shutil.copytree(seeded, root))))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables made, which takes seconds; tests copy it."""

    def make(root: Path) -> None:
        from mlflow import MlflowClient

        root.mkdir()
        MlflowClient(f"sqlite:///{root}/mlflow.db").search_experiments()

    return made_once(tmp_path_factory, "mlflow", make) / "mlflow.db"


@pytest.fixture(scope="session")
def empty_prefect(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Prefect database with its tables made, which takes seconds; tests copy it."""
    code = (
        "import asyncio\nfrom prefect.server.database.dependencies import provide_database_interface\n"
        "asyncio.run(provide_database_interface().create_db())"
    )

    def make(root: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        subprocess.run([sys.executable, "-c", code], env=kept | {"PREFECT_HOME": str(root)}, check=True)

    return made_once(tmp_path_factory, "prefect", make) / "prefect.db"


@pytest.fixture(scope="session")
def with_databases(empty_database: Path, empty_prefect: Path) -> Callable[[Path], Path]:
    """Put both into a project, whose first process would have to make them."""

    def add(root: Path) -> Path:
        (root / ".cgal" / "prefect").mkdir(parents=True)
        shutil.copyfile(empty_prefect, root / ".cgal" / "prefect" / "prefect.db")
        shutil.copyfile(empty_database, root / "mlflow.db")
        return root

    return add


@pytest.fixture(scope="session")
def prefect_address(empty_prefect: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of an embedded server as `cgal run` starts it, one for all tests of a process that need no other."""
    from flows.serving.startup import start_prefect

    home = tmp_path_factory.mktemp("home")
    shutil.copyfile(empty_prefect, home / "prefect.db")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PREFECT_API_URL", "PREFECT_PROFILE"):
            patch.setenv(name, "")  # so that it is what it was in the end, also if it was not there
            patch.delenv(name)
        patch.setenv("PREFECT_HOME", str(home))
        server = start_prefect()
    server.wait()
    return server.address  # it is stopped at the process' exit, when Prefect has sent its last log lines


@pytest.fixture(scope="module")
def prefect_server(prefect_address: str) -> Iterator[None]:
    """Flows that tests run in this process are known to that server; programs that they start know nothing of it."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_address}):
        yield


def cgal_fails(*arguments: str) -> str:
    """What `cgal ARGUMENTS` says when it ends with exit code 1: run in this process, which has imported the science."""
    from flows.cli import main

    before = sys.argv, dict(os.environ)
    sys.argv = ["cgal", *arguments]
    try:
        with pytest.raises(SystemExit) as ended:
            main.main()
    finally:
        sys.argv = before[0]
        os.environ.clear()
        os.environ.update(before[1])
    assert isinstance(ended.value.code, str), "Python prints it, and exits with 1"
    return ended.value.code


ONE_ROUND = {"name": "small", "rounds": 1}


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory,
    bundled_data: Path,
    with_databases: Callable[[Path], Path],
    git_identity: None,
) -> Path:
    """A working copy with the small campaign of `ONE_ROUND`, run once for all tests that must end with its bytes."""

    def make(root: Path) -> None:
        with_databases(make_copy(root, bundled_data, {"campaign": ONE_ROUND}))
        subprocess.run([sys.executable, "-m", "flows.cli", "run", "--root", str(root)], check=True)
        epochs = [line.split(",") for line in (root / "round" / "training.csv").read_text().splitlines()[1:]]
        assert min(epochs, key=lambda epoch: float(epoch[2])) == epochs[-1], "weights that do not need each epoch"

    return made_once(tmp_path_factory, "undisturbed", make)


def make_copy(root: Path, data: Path, changes: dict[str, Any]) -> Path:
    """Make a working copy of the project in a new folder, with the params of `SMALL` and these changes of theirs.

    `data` is that of the fixture `bundled_data`.
    """
    shutil.copytree(data.parents[1], root)
    (root / "params.yaml").write_text(yaml.safe_dump(_small_params(changes)))
    for command in ("git add --all", "git commit --quiet --message start"):
        subprocess.run(command.split(), cwd=root, check=True)
    return root


def _small_params(changes: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    for source in (SMALL, changes):
        for key, value in source.items():
            content[key] = content.get(key, {}) | value if isinstance(value, dict) else value
    return content
