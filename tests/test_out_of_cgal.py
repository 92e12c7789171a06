"""A published round leaves cgal: its model, a long simulation of it, trajectories for other programs."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import cgal
from cgal.errors import VersioningError
from cgal.potential.checkpoint import load_checkpoint
from cgal.progress import silent
from flows.campaign.stages import STAGES, run_stage
from flows.versioning import Repository
from flows.workspace import Workspace
from tests.beads import real_beads
from tests.conftest import make_copy
from tests.test_versioning import contents

ROUND = "small/round-000"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, bundled_data: Path, git_identity: None) -> Path:
    """A project whose campaign is one closing round, published; every stage has really run."""
    changes = {"campaign": {"name": "small", "rounds": 0}, "training": {"warm_start": False}}
    root = make_copy(tmp_path_factory.mktemp("published") / "project", bundled_data, changes)
    repository = Repository(root)
    for stage in STAGES:
        run_stage(stage, Workspace(root), silent)
        repository.dvc.record_stage(stage)
    repository.publish("small", 0)
    return root


@pytest.fixture
def project(published: Path, tmp_path: Path) -> Path:
    """A copy of that project."""
    return Path(shutil.copytree(published, tmp_path / "project"))


def test_the_model_of_a_round_is_loaded_whatever_lies_in_the_workspace(project: Path) -> None:
    expected, metadata = load_checkpoint(project / "round" / "model.pt")
    (project / "round" / "model.pt").write_bytes(b"that of a later round")
    (project / "params.yaml").write_text("half edited")
    before = contents(project)
    model = cgal.load(ROUND, root=project)
    assert model.metadata == metadata
    assert str(model.potential.state_dict()) == str(expected.state_dict())
    after = contents(project)
    assert {name: after.get(name) for name in before if not name.startswith(".dvc/tmp")} == {
        name: digest for name, digest in before.items() if not name.startswith(".dvc/tmp")
    }
    assert np.isfinite(model.energy_and_forces(real_beads())[1]).all()


def test_a_round_that_is_not_there_or_damaged_is_said(project: Path) -> None:
    with pytest.raises(VersioningError, match="small/round-007: no such round; 'cgal rounds' lists"):
        cgal.load("small/round-007", root=project)
    (project / "round" / "model.pt").unlink()
    shutil.rmtree(project / ".dvc" / "cache")
    with pytest.raises(VersioningError, match=r"round/model\.pt of small/round-000: missing from DVC's cache"):
        cgal.load(ROUND, root=project)
