"""The small files in git that name a round's bytes in DVC."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cgal.errors import VersioningError
from flows.workspace import JOINT_STAGES as JOINT

__all__ = [
    "JOINT",
    "SHARED_POINTER",
    "RoundFiles",
    "data_md5",
    "data_pointer",
    "data_pointers",
    "has_newer_inputs",
    "is_stage_of",
    "model_md5",
    "pointers_of",
    "proteins_of",
]

SHARED_POINTER = "data.dvc"
"""Names the bundled protein's data; in projects of version 0.1, all of `data/`."""


@dataclass(frozen=True)
class RoundFiles:
    """What restores a round: which data (contents of their DVC files by path), which outputs, which numbers."""

    data: Mapping[str, bytes]
    lock: bytes
    params: bytes

    @property
    def by_path(self) -> dict[str, bytes]:
        """Contents by the path of the file in a working copy."""
        return {**self.data, "dvc.lock": self.lock, "params.yaml": self.params}

    @property
    def restored_by(self) -> str:
        """Paths, with spaces between, that git brings back beside `dvc.lock` and `params.yaml`.

        They are the DVC files of the data, and of several proteins the `dvc.yaml` that knows all of them.
        """
        return " ".join([*self.data, *(["dvc.yaml"] if len(proteins_of(self.params)) > 1 else [])])

    @property
    def data_md5(self) -> str:
        """DVC hash of the dataset; of several, in order of the proteins, with spaces between."""
        return " ".join(data_md5(content) for content in self.data.values())

    @property
    def outputs(self) -> dict[str, str]:
        """DVC hash of the dataset and of each stage's outputs, by path; that of a folder ends in `.dir`."""
        try:
            data = {
                str(Path(pointer).parent / out["path"]): str(out["md5"])  # DVC gives paths from where its file lies
                for pointer, content in self.data.items()
                for out in _parse(content)["outs"]
            }
            proteins = proteins_of(self.params)
            stages = [entry for name, entry in _parse(self.lock)["stages"].items() if is_stage_of(name, proteins)]
            return data | {str(out["path"]): str(out["md5"]) for stage in stages for out in stage.get("outs", ())}
        except (KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise VersioningError(f"{', '.join(self.data)} or dvc.lock is not as DVC writes them: {error!r}") from error


def data_pointer(root: Path, protein: str) -> str:
    """DVC file of the data of a protein in a working copy.

    It is `data.dvc` where that names the protein's folder or all of `data/`, and `data/<protein>.dvc` else.
    """
    return data_pointers(root, [protein])[0]


def data_pointers(root: Path, proteins: Sequence[str] | None = None) -> tuple[str, ...]:
    """DVC files of the data of proteins (those of params.yaml by default) in a working copy, each once."""
    shared = root / SHARED_POINTER
    proteins = proteins or proteins_of((root / "params.yaml").read_bytes())
    return pointers_of(shared.read_bytes() if shared.is_file() else None, proteins)


def pointers_of(data_dvc: bytes | None, proteins: Iterable[str]) -> tuple[str, ...]:
    """DVC files of the data of proteins, by what `data.dvc` says, if there is one; each once."""
    return tuple(dict.fromkeys(_pointer_of(data_dvc, protein) for protein in proteins))


def _pointer_of(data_dvc: bytes | None, protein: str) -> str:
    try:
        folders = {out.get("path") for out in _parse(data_dvc)["outs"]} if data_dvc else set()
    except (KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise VersioningError(f"{SHARED_POINTER} is not as DVC writes it: {error!r}") from error
    return SHARED_POINTER if folders & {"data", f"data/{protein}"} else f"data/{protein}.dvc"


def proteins_of(params_yaml: bytes) -> tuple[str, ...]:
    """Names of the proteins in a `params.yaml`; raises VersioningError when it has none."""
    try:
        named = _parse(params_yaml)["protein"]
        return tuple(map(str, named)) if isinstance(named, list) else (str(named),)
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise VersioningError(f"params.yaml names no protein: {error!r}") from error


def is_stage_of(name: str, proteins: Sequence[str]) -> bool:
    """Whether a stage of a `dvc.lock` is one of a campaign on these proteins: DVC keeps those of earlier ones there.

    >>> [is_stage_of(name, ["a", "b"]) for name in ("train", "simulate", "simulate@a", "simulate@c")]
    [True, False, True, False]
    >>> [is_stage_of(name, ["a"]) for name in ("train", "simulate", "simulate@a")]
    [True, True, False]
    """
    _, at, protein = name.partition("@")
    several = len(proteins) > 1
    return name in JOINT or (several and protein in proteins if at else not several)


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
