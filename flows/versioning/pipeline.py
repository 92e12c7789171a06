"""`dvc.yaml` of a project with several proteins, from that of a project with one.

DVC has no file that serves both: `foreach` names its stages `simulate@a`, and there is no loop over dependencies. So a
project with one protein keeps the file that it came with, and where `params.yaml` names a list it is written here.
"""

import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from cgal.errors import VersioningError
from cgal.files import write_bytes, write_text
from flows.versioning.round_files import JOINT, is_stage_of, proteins_of

__all__ = ["fit_pipeline", "pipeline_of"]

TITLE = "# One round of active learning on several proteins; written by cgal from the list in params.yaml.\n"

SHARED = ("round/model.pt", "round/training.csv", "round/plots/training")
"""Outputs that are of all proteins."""

PROTEIN = "${protein}"


def fit_pipeline(root: Path) -> None:
    """Write the `dvc.yaml` that the proteins of `params.yaml` ask for, if it is not there.

    That of one protein is left alone, whatever is in it, unless it was written for several. A file that would be lost
    is kept in `.cgal/saved/`. What stages of other proteins have left in `round/` and in `dvc.lock` goes: it is in the
    DVC cache, and no output of this campaign. Without a `params.yaml` that can be read nothing is done.
    """
    path = root / "dvc.yaml"
    try:
        proteins, present = proteins_of((root / "params.yaml").read_bytes()), path.read_text()
    except (VersioningError, FileNotFoundError):
        return
    if len(proteins) > 1:
        wanted = pipeline_of(_of_one(), proteins)
    elif present.startswith(TITLE):
        wanted = _of_one()
    else:
        return
    if present != wanted:
        if not present.startswith(TITLE) and present != _of_one():
            write_bytes(root / ".cgal" / "saved" / "dvc.yaml", path.read_bytes())
        write_text(path, wanted)
        _forget_other_stages(root, proteins)


def _forget_other_stages(root: Path, proteins: Sequence[str]) -> None:
    """Take stages of other proteins out of `dvc.lock`, and their files out of `round/`; a damaged file is for DVC."""
    lock = root / "dvc.lock"
    try:
        content = yaml.safe_load(lock.read_text())
        others = {name: stage for name, stage in content["stages"].items() if not is_stage_of(name, proteins)}
        left = [str(out["path"]) for stage in others.values() for out in stage.get("outs", ())]
    except (FileNotFoundError, yaml.YAMLError, AttributeError, KeyError, TypeError):
        return
    own = root.resolve() / "round"
    for place in ((root / path).resolve() for path in left):
        if own in place.parents:  # a lock may be someone else's, and names in it lead anywhere
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
    content["stages"] = {name: stage for name, stage in content["stages"].items() if name not in others}
    write_text(lock, yaml.safe_dump(content, sort_keys=False))


def pipeline_of(single: str, proteins: Sequence[str]) -> str:
    """Turn a `dvc.yaml` of one protein into one of several.

    `train` and `select` run once and depend on the files of all, every other stage is one for each, with its outputs in
    `round/<protein>/`.
    """
    content = yaml.safe_load(single)
    stages = {
        name: _joint(stage, proteins)
        if name in JOINT
        else {"foreach": PROTEIN, "do": _place(stage, "${item}") | {"cmd": f"{stage['cmd']} ${{item}}"}}
        for name, stage in content["stages"].items()
    }
    stages["select"]["metrics"] = ["round/selection.json", *stages["select"]["metrics"]]
    plots = [plot for plot in content["plots"] if not isinstance(plot, str) or plot in SHARED]
    plots += [_placed(plot, name) for plot in content["plots"] if plot not in plots for name in proteins]
    return TITLE + yaml.safe_dump({"stages": stages, "plots": plots}, sort_keys=False, width=120)


def _of_one() -> str:
    return (files("flows.protein") / "template" / "dvc.yaml").read_text()


def _joint(stage: dict[str, Any], proteins: Sequence[str]) -> dict[str, Any]:
    """A stage that runs once, with the paths of all proteins, each once."""
    each = [_place(stage, name) for name in proteins]
    paths = {key: list(dict.fromkeys(path for one in each for path in one[key])) for key in _path_lists(stage)}
    return stage | paths


def _place(stage: dict[str, Any], protein: str) -> dict[str, Any]:
    """A stage with the paths of one protein."""
    return stage | {key: [_placed(path, protein) for path in stage[key]] for key in _path_lists(stage)}


def _path_lists(stage: dict[str, Any]) -> list[str]:
    return [key for key in ("deps", "metrics", "outs") if key in stage]


def _placed(path: str, protein: str) -> str:
    in_round = path.startswith("round/") and path not in SHARED
    return f"round/{protein}/{path.removeprefix('round/')}" if in_round else path.replace(PROTEIN, protein)
