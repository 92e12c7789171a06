"""Machine code kept on disk is that of the sources as they are now, whichever file they are in."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FILES = {
    "__init__.py": "",
    "constants.py": "FACTOR = 2\n",
    "far/__init__.py": "from ..constants import FACTOR\n",
    "far/helper.py": """
from cgal.compiled import inlined
from small import far

FACTOR = far.FACTOR

@inlined
def scale(x: int) -> int:
    return x * FACTOR
""",
    "front.py": """
from cgal.compiled import compiled
from small.far.helper import scale

@compiled
def scaled_successor(x: int) -> int:
    return scale(x) + 1
""",
}
PROGRAM = """
from small.front import scaled_successor
print(scaled_successor(10), *scaled_successor.stats.cache_hits.values())
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package whose compiled function is made of three files."""
    for name, source in FILES.items():
        path = tmp_path / "small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return tmp_path / "small"


@pytest.fixture
def run(package: Path) -> Callable[[], str]:
    """Call the function in a fresh process; give its result, and a 1 if its machine code came from disk."""
    paths = os.pathsep.join([str(package.parent), str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", PROGRAM]

    def call() -> str:
        environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
        environment |= {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    return call


def test_an_edit_of_any_source_that_a_function_is_made_of_is_seen(package: Path, run: Callable[[], str]) -> None:
    assert [run(), run()] == ["21", "21 1"]
    helper = package / "far" / "helper.py"
    helper.write_text(helper.read_text().replace("x * FACTOR", "x * FACTOR + 100"))
    assert [run(), run()] == ["121", "121 1"]
    (package / "constants.py").write_text("FACTOR = 3\n")
    assert [run(), run()] == ["131", "131 1"]


def test_an_edit_of_another_source_compiles_nothing(package: Path, run: Callable[[], str]) -> None:
    assert run() == "21"
    (package / "stranger.py").write_text("FACTOR = 5\n")
    (package / "__init__.py").write_text("from small import stranger\n")
    assert run() == "21 1"


def test_where_the_package_cannot_be_written_the_cache_lies_in_the_users_folder(
    package: Path, run: Callable[[], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file in place of `__pycache__` stands for a read-only folder: root may write anywhere."""
    (package / "__pycache__").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert [run(), run()] == ["21", "21 1"]
    assert list((tmp_path / "user").rglob("*.nbc"))
