"""What a served campaign decides before it computes: which of a series is next, with which seed, and who is refused."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.states import Failed

from cgal.errors import CgalError
from flows.serving import deployed, dispatch
from flows.versioning import Repository
from flows.workspace import Workspace

FORM: dict[str, Any] = {"protein": "chignolin", "campaign": {"rounds": 0, "budget_steps": 0}}


def publish(root: Path, tag: str, seed: int, closing: str) -> None:
    """A round of somebody's, as far as the next of a series looks at it."""
    files = {
        "dvc.lock": yaml.safe_dump({"stages": {"train": {"outs": [{"path": "round/model.pt", "md5": "0" * 32}]}}}),
        "params.yaml": yaml.safe_dump(yaml.safe_load((root / "params.yaml").read_text()) | {"seed": seed}),
        "round/selection.json": json.dumps({"closing": closing}),
    }
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(content)
    for command in (
        ["git", "add", "--force", *files],
        ["git", "commit", "--quiet", "--message", f"{tag}\n\nRound: {tag}"],
        ["git", "tag", tag],
        ["git", "reset", "--quiet", "--hard", "HEAD~1"],
    ):
        subprocess.run(command, cwd=root, check=True)


def test_the_next_of_a_series_gets_the_next_name_and_seed(make_project: Callable[..., Path]) -> None:
    """Counted from the first campaign's seed, whatever params.yaml and the form say now."""
    root = make_project(seed=500)
    repository = Repository(root)
    assert deployed._next_of_series(repository, "weekly") == "weekly"
    publish(root, "weekly/round-000", 7, "rounds: all are done")
    publish(root, "weekly2/round-000", 8, "rounds: all are done")
    publish(root, "other/round-000", 100, "rounds: all are done")
    assert deployed._next_of_series(repository, "weekly") == "weekly3"

    deployed._open_campaign(root, "weekly", "weekly3", FORM | {"seed": 40})

    params = Workspace(root).params
    assert (params.campaign.name, params.seed, params.campaign.rounds) == ("weekly3", 9, 0)


def test_a_campaign_that_has_not_closed_is_gone_on_with(make_project: Callable[..., Path]) -> None:
    root = make_project()
    publish(root, "weekly/round-000", 7, "")
    assert deployed._next_of_series(Repository(root), "weekly") == "weekly"


def test_a_series_begins_with_the_forms_seed(make_project: Callable[..., Path]) -> None:
    root = make_project(seed=500)
    deployed._open_campaign(root, "weekly", "weekly", FORM | {"seed": 40})
    assert Workspace(root).params.seed == 40


@pytest.mark.parametrize(("state", "error"), [(dispatch.REFUSED, CgalError), ("Failed", dispatch.StageLost)])
def test_what_a_worker_refuses_is_not_tried_again(tmp_path: Path, state: str, error: type[Exception]) -> None:
    """A fault that the user must mend ends the campaign with the worker's words; any other is worth another try."""
    run = FlowRun(flow_id="00000000-0000-0000-0000-000000000000", state=Failed(name=state, message="wrong folder"))
    with pytest.raises(error, match="wrong folder"):
        dispatch._result(Mock(), run, Workspace(tmp_path), "train")
