"""Shared fixtures; shapes and types of `cgal` are checked on every call of every test."""

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
        "checkpoint_epochs": 2,
        "batch_size": 16,
        "bond_weight": 1.0,
        "validation_block_frames": 10,
        "warm_start": True,
    },
    "simulation": {"replicas": 8, "steps": 400, "stride": 20},
    "selection": {"strategy": "rmsd_histogram", "frames": 4},
    "oracle": {"mode": "mean_force", "burn_in_steps": 20, "average_steps": 60, "free_stride": 100},
    "benchmark": {"bootstrap": 20},
    "execution": {"torch_threads": 1, "retries": 0},
}
"""A campaign that is real in every part and takes seconds a round; each pick gets one mean force, so that labels are
easily counted. `tests/test_campaign.py` runs one by the methods of `params.yaml`."""


@pytest.fixture(scope="session")
def bundled_data() -> Path:
    """The repository's own chignolin data, fetched from the bundled DVC remote if need be."""
    folder = REPOSITORY / "data" / "chignolin"
    if not folder.is_dir():
        subprocess.run(["dvc", "pull", "--quiet", "--remote", "bundled", "data.dvc"], cwd=REPOSITORY, check=True)
    return folder


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


ONE_ROUND = {"name": "small", "rounds": 1}


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, bundled_data: Path, git_identity: None) -> Path:
    """A working copy with the small campaign of `ONE_ROUND`, run once for all tests that must end with its bytes."""
    folder = tmp_path_factory.getbasetemp()
    root = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "undisturbed"
    with FileLock(f"{root}.lock"):
        if not root.is_dir():
            make_copy(root, bundled_data, {"campaign": ONE_ROUND})
            subprocess.run([sys.executable, "-m", "flows.cli", "run", "--root", str(root)], check=True)
    return root


def make_copy(root: Path, data: Path, changes: dict[str, Any]) -> Path:
    """Make a working copy of the project in a new folder, with the params of `SMALL` and these changes of theirs."""
    (root / ".dvc").mkdir(parents=True)
    shutil.copytree(data, root / "data" / data.name)
    for file in ("dvc.yaml", ".gitignore", "prefect.yaml"):
        shutil.copy(REPOSITORY / file, root)
    for file in ("config", ".gitignore"):
        shutil.copy(REPOSITORY / ".dvc" / file, root / ".dvc")
    (root / "params.yaml").write_text(yaml.safe_dump(_small_params(changes)))
    (root / "data.dvc").write_text(f"outs:\n- path: data/{data.name}\n")
    for command in ("git init --quiet --initial-branch main", "dvc commit --quiet --force data.dvc",
                    "git add --all", "git commit --quiet --message start"):  # fmt: skip
        subprocess.run(command.split(), cwd=root, check=True)
    return root


def _small_params(changes: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    for source in (SMALL, changes):
        for key, value in source.items():
            content[key] = content.get(key, {}) | value if isinstance(value, dict) else value
    return content
