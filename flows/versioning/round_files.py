"""The small files in git that name a round's bytes in DVC."""

from typing import Any

import yaml

from cgal.errors import VersioningError

__all__ = ["ROUND_FILES", "data_md5", "has_newer_inputs", "model_md5", "outputs"]

ROUND_FILES = ("data.dvc", "dvc.lock", "params.yaml")
"""What restores a round: which data, which outputs, which numbers."""


def data_md5(data_dvc: bytes) -> str:
    """DVC hash of the dataset that a `data.dvc` names."""
    return str(_parse(data_dvc)["outs"][0]["md5"])


def model_md5(dvc_lock: bytes) -> str:
    """DVC hash of the checkpoint that a `dvc.lock` names."""
    outputs = _parse(dvc_lock)["stages"]["train"]["outs"]
    return str(next(output["md5"] for output in outputs if output["path"] == "round/model.pt"))


def has_newer_inputs(dvc_lock: bytes, stage: str) -> bool:
    """Whether a stage ran on what another stage has made anew since, by what a `dvc.lock` says of both."""
    try:
        stages = _parse(dvc_lock)["stages"]
        made = {out["path"]: out["md5"] for entry in stages.values() for out in entry.get("outs", ())}
        return any(made.get(used["path"], used["md5"]) != used["md5"] for used in stages[stage].get("deps", ()))
    except (KeyError, TypeError, AttributeError, yaml.YAMLError):
        return False


def outputs(data_dvc: bytes, dvc_lock: bytes) -> dict[str, str]:
    """DVC hash of the dataset and of each stage's outputs, by path; that of a folder ends in `.dir`."""
    try:
        stages = _parse(dvc_lock)["stages"].values()
        listed = [*_parse(data_dvc)["outs"], *(output for stage in stages for output in stage.get("outs", ()))]
        return {str(output["path"]): str(output["md5"]) for output in listed}
    except (KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise VersioningError(f"data.dvc or dvc.lock is not as DVC writes them: {error!r}") from error


def _parse(content: bytes) -> Any:
    """Parse by libyaml where it is there: ten times faster, which counts once a campaign has many rounds."""
    return yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
