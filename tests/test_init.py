"""`cgal init`, and the wheel: a project and an installed tool, with the source tree away."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cgal.errors import BadParams, BadStructure
from cgal.selection.pool import chain_cutoff_nm
from flows.campaign.records import made_by_others
from flows.protein.init import Start, init_project
from flows.versioning import Repository
from tests.conftest import cgal_fails

REPOSITORY = Path(__file__).parents[1]
TINY: dict[str, dict[str, Any]] = {
    "campaign": {"name": "tiny", "rounds": 1},
    "network": {"features": 16, "blocks": 1, "radial_functions": 12},
    "training": {"epochs": 2, "preflight": False},
    "simulation": {"replicas": 8, "steps": 400, "stride": 20},
    "selection": {"frames": 2},
    "oracle": {"burn_in_steps": 20, "average_steps": 96},
    "benchmark": {"bootstrap": 20},
}

pytestmark = pytest.mark.usefixtures("git_identity")


def run(command: list[str], root: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, by way of the source distribution, from a copy of the source that is gone afterwards."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("cgal", "flows", ".dvc/bundled"):
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in run(["git", "ls-files", "--", ":(glob)*"], REPOSITORY).splitlines():
        shutil.copy(REPOSITORY / name, source)
    run(["uv", "build", "--quiet", "--no-build-isolation", "--out-dir", str(folder / "dist"), str(source)], folder)
    shutil.rmtree(source)
    return next((folder / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment that was empty before the wheel came, in the versions of the lock.

    Machine code that this repository has compiled is put beside the same sources, where it is as good.
    """
    environment = tmp_path_factory.mktemp("environment") / "venv"
    run(["uv", "venv", "--quiet", "--python", sys.executable, str(environment)], REPOSITORY)
    lock = REPOSITORY / "requirements.lock"
    python = environment / "bin" / "python"
    run(["uv", "pip", "install", "--quiet", "--python", str(python), "--constraint", str(lock), str(wheel)], REPOSITORY)
    (packages,) = environment.glob("lib/python*/site-packages")
    for code in (REPOSITORY / "cgal").rglob("__pycache__/*.nb?"):
        folder = packages / code.parent.relative_to(REPOSITORY)
        folder.mkdir(exist_ok=True)
        shutil.copy(code, folder)
    return environment / "bin"


def test_the_wheel_runs_a_campaign_in_a_project_of_its_own(installed: Path, tmp_path: Path) -> None:
    cgal = str(installed / "cgal")
    variables = {"PATH": f"{installed}{os.pathsep}/usr/bin{os.pathsep}/bin", "OMP_NUM_THREADS": "1"}
    assert "site-packages" in run([str(installed / "python"), "-c", "import flows; print(flows.__file__)"], tmp_path)
    assert "cgal run" in run([cgal, "init", "mine", "--demo"], tmp_path, **variables)
    project = tmp_path / "mine"
    params = yaml.safe_load((project / "params.yaml").read_text())
    for section, values in TINY.items():
        params[section] |= values
    (project / "params.yaml").write_text(yaml.safe_dump(params))

    run([cgal, "run"], project, **variables)

    assert [entry.tag for entry in Repository(project).published("tiny")] == ["tiny/round-000", "tiny/round-001"]
    assert "didn't change" in run([str(installed / "dvc"), "repro"], project, **variables)
    message = run(["git", "log", "-1", "--format=%B", "tiny/round-001"], project)
    assert f"Tool: cgal {Repository(project).round('tiny/round-001').version}" in message
    assert "(installed)" in message


def test_rounds_of_another_version_are_named() -> None:
    assert made_by_others({"demo/round-000": ""}) == ""
    assert "demo/round-001 by 0.0.9" in made_by_others({"demo/round-000": "", "demo/round-001": "0.0.9"})


def test_a_project_of_ones_own_protein(tmp_path: Path) -> None:
    lines = init_project(tmp_path / "own", Start(sequence="GYDPETGTWG", protein="mine"))
    root = tmp_path / "own"
    assert "cgal seed" in lines
    assert (root / "data" / "mine" / "structure.pdb").is_file()
    assert run(["git", "status", "--porcelain"], root) == ""
    assert run(["git", "ls-files", "data"], root).split() == ["data/mine.dvc"]
    params = yaml.safe_load((root / "params.yaml").read_text())
    assert params["protein"] == "mine"
    assert params["selection"]["cutoff_nm"] == chain_cutoff_nm(10)
    assert "chignolin" not in (root / "params.yaml").read_text().partition("campaign:")[0]


def test_the_demo_is_the_bundled_project(tmp_path: Path, bundled_data: Path) -> None:
    init_project(tmp_path / "demo", Start(demo=True))
    held = {path.name: path.read_bytes() for path in (tmp_path / "demo" / "data" / "chignolin").glob("*.h5")}
    assert held == {path.name: path.read_bytes() for path in bundled_data.glob("*.h5")}
    assert (tmp_path / "demo" / "params.yaml").read_bytes() == (REPOSITORY / "params.yaml").read_bytes()


def test_a_project_needs_no_git_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gitconfig").write_text("[user]\n    useConfigOnly = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in [name for name in os.environ if name.startswith(("GIT_AUTHOR_", "GIT_COMMITTER_"))]:
        monkeypatch.delenv(name)
    init_project(tmp_path / "own", Start())
    assert run(["git", "log", "--format=%an <%ae>"], tmp_path / "own") == "cgal <cgal@localhost>\n"


def test_a_start_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(BadStructure):
        init_project(tmp_path / "own", Start(sequence="GXB"))
    with pytest.raises(BadParams, match="one of --demo"):
        init_project(tmp_path / "own", Start(demo=True, sequence="GG"))
    with pytest.raises(BadParams, match="protein"):
        init_project(tmp_path / "own", Start(protein="../x"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(BadParams, match="not empty"):
        init_project(tmp_path, Start(demo=True))
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


@pytest.mark.parametrize(
    "command",
    ["run", "rounds", "checkout 1", "seed", "reference", "serve", "report", "export x.xtc", "push", "burn-in",
     "import --topology a --trajectory b", "structure x.pdb --sequence GG", "stage train", "worker cgal-cpu",
     "compare --name mine --arms base --budget 100000"],
)  # fmt: skip
def test_a_folder_that_is_no_project_stays_empty(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "cgal init" in cgal_fails(*command.split())
    assert list(tmp_path.iterdir()) == []
