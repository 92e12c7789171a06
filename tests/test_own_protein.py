"""The recipe of docs/how-to/own-protein.md, line by line, and what `cgal doctor` says on the way.

On four residues instead of Trp-cage's twenty: a swarm of those goes to and fro between its states within seconds.
"""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.protein.doctor import costs, look
from flows.versioning import Repository
from flows.workspace import Workspace

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "own-protein.md").read_text()
SHORT: dict[str, dict[str, Any]] = {
    "campaign": {"rounds": 1},
    "network": {"features": 16, "blocks": 1, "radial_functions": 12},
    "training": {"epochs": 2, "validation_block_frames": 10, "preflight": False},
    "simulation": {"replicas": 8, "steps": 400, "stride": 20},
    "selection": {"frames": 2, "novel_nm": 0.02, "distinct_nm": 0.01},
    "oracle": {"burn_in_steps": 20, "average_steps": 96},
    "benchmark": {"bootstrap": 20, "tica_lag_ps": 0.4},
    "reference": {
        "hot_trajectories": 2, "hot_ps": 4.0, "hot_spacing_ps": 0.4, "equilibration_ps": 0.4, "trajectories": 2,
        "trajectory_ns": 0.04, "segment_ps": 20.0, "spacing_ps": 0.2, "tica_lag_ps": 0.4, "tica_dimensions": 2,
        "states": 4, "lag_ps": 0.4, "samples": 5, "bootstrap": 10, "splits": 2, "frames": 400,
    },
}  # fmt: skip
OPTIONS = {"cgal seed": " --runs 4 --length-ps 4 --equilibration-ps 0.4 --spacing-ps 0.2"}


@pytest.mark.usefixtures("git_identity")
def test_each_line_of_the_recipe_runs(tmp_path: Path) -> None:
    (block,) = re.findall(r"<!-- recipe -->\n```\n(.*?)```", PAGE, flags=re.DOTALL)
    init, into, *lines = block.replace("NLYIQWLKDGGPSSGRPPPS", "GASP").splitlines()
    said = {init: command(init, tmp_path)}
    root = tmp_path / into.removeprefix("cd ")
    params = yaml.safe_load((root / "params.yaml").read_text())
    for section, values in SHORT.items():
        params[section] |= values
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    assert "cgal seed trpcage" in command("cgal run", root, fails=True)

    for line in lines:
        said[line] = command(line + OPTIONS.get(line, ""), root)

    assert "next: cgal seed trpcage" in said["cgal doctor"]
    assert "4 residues" in said["cgal doctor"]
    assert "next: cgal run" in command("cgal doctor", root)
    assert [entry.tag for entry in Repository(root).published("first")] == ["first/round-000", "first/round-001"]
    assert "data/trpcage.dvc" in said["cgal rounds"]
    workspace = Workspace(root)
    assert all(piece.found for piece in look(workspace))
    (labels,) = costs(workspace)
    assert labels.steps == 2 * (500 + 100 + 20 + 96), "minimisation, warm-up, burn-in and the run of each pick"


def test_labels_are_forecast_up_to_the_last_cut(make_project: Callable[..., Path]) -> None:
    root = make_project(campaign={"name": "small", "rounds": 2, "cut_steps": [100, 300]})
    assert costs(Workspace(root))[-1].steps == 300


def command(line: str, root: Path, *, fails: bool = False) -> str:
    done = subprocess.run(
        shlex.split(line), cwd=root, env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_data_that_travel_with_the_repository_are_nothing_to_make(tmp_path: Path) -> None:
    """As in a fresh clone, whose first `cgal run` fetches them; a folder that is there is the user's own."""
    for name in ("params.yaml", "data.dvc"):
        shutil.copy(Path(__file__).parents[1] / "flows" / "protein" / "template" / name, tmp_path)
    assert {piece.make for piece in look(Workspace(tmp_path))} == {"cgal run"}
    Workspace(tmp_path).data.mkdir(parents=True)
    assert [piece.make for piece in look(Workspace(tmp_path))][1] == "cgal seed chignolin"
