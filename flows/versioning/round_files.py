"""The small files in git that name a round's bytes in DVC."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cgal.errors import VersioningError

__all__ = ["RoundFiles", "data_md5", "data_pointer", "has_newer_inputs", "model_md5", "pointer_of", "protein_of"]

SHARED_POINTER = "data.dvc"
"""Names the bundled protein's data; in projects of version 0.1, all of `data/`."""


@dataclass(frozen=True)
class RoundFiles:
    """What restores a round: which data (`pointer` is the path of their DVC file), which outputs, which numbers."""

    pointer: str
    data: bytes
    lock: bytes
    params: bytes

    @property
    def by_path(self) -> dict[str, bytes]:
        """Contents by the path of the file in a working copy."""
        return {self.pointer: self.data, "dvc.lock": self.lock, "params.yaml": self.params}

    @property
    def outputs(self) -> dict[str, str]:
        """DVC hash of the dataset and of each stage's outputs, by path; that of a folder ends in `.dir`."""
        folder = Path(self.pointer).parent  # DVC gives paths from where its file lies
        try:
            data = {str(folder / out["path"]): str(out["md5"]) for out in _parse(self.data)["outs"]}
            stages = _parse(self.lock)["stages"].values()
            return data | {str(out["path"]): str(out["md5"]) for stage in stages for out in stage.get("outs", ())}
        except (KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise VersioningError(f"{self.pointer} or dvc.lock is not as DVC writes them: {error!r}") from error


def data_pointer(root: Path, protein: str | None = None) -> str:
    """DVC file of the data of a protein (that of params.yaml by default) in a working copy.

    It is `data.dvc` where that names the protein's folder or all of `data/`, and `data/<protein>.dvc` else.
    """
    shared = root / SHARED_POINTER
    protein = protein or protein_of((root / "params.yaml").read_bytes())
    return pointer_of(shared.read_bytes() if shared.is_file() else None, protein)


def pointer_of(data_dvc: bytes | None, protein: str) -> str:
    """DVC file of a protein's data, by what `data.dvc` says, if there is one."""
    try:
        folders = {out.get("path") for out in _parse(data_dvc)["outs"]} if data_dvc else set()
    except (KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise VersioningError(f"{SHARED_POINTER} is not as DVC writes it: {error!r}") from error
    return SHARED_POINTER if folders & {"data", f"data/{protein}"} else f"data/{protein}.dvc"


def protein_of(params_yaml: bytes) -> str:
    """Name of the protein in a `params.yaml`; raises VersioningError when it has none."""
    try:
        return str(_parse(params_yaml)["protein"])
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise VersioningError(f"params.yaml names no protein: {error!r}") from error


def data_md5(pointer: bytes) -> str:
    """DVC hash of the dataset that a DVC file names."""
    return str(_parse(pointer)["outs"][0]["md5"])


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


def _parse(content: bytes) -> Any:
    """Parse by libyaml where it is there: ten times faster, which counts once a campaign has many rounds."""
    return yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
