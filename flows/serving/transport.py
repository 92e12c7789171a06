"""Which files a stage reads and writes, and how they get to a worker that sees another folder, and back.

With `execution.transport: shared` campaign and worker see one folder, and hashes alone cross. With `dvc` they are
clones with DVC caches of their own: the files travel through the DVC remote that both name, by their hash, so that what
is there already is not sent again. The worker runs the stage in a folder of its own below `.cgal/transport/`: nothing
that its clone versions is touched. What comes from the other side is held against its hashes before it takes a file's
place.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from filelock import FileLock

from cgal.errors import BadFile
from cgal.files import sha256
from cgal.params import Params
from flows.versioning.exchange import Exchange
from flows.workspace import Workspace

__all__ = [
    "Output",
    "hash_inputs",
    "is_there",
    "read_outputs",
    "received",
    "send_inputs",
    "send_outputs",
    "take_outputs",
]

SETTINGS = ("params.yaml", "dvc.yaml")
"""What a stage reads beside the inputs that `dvc.yaml` names."""

MD5 = re.compile(r"[0-9a-f]{32}")
LOCK_WAIT_S = 60.0
"""A killed run of the same stage ends within a second of its worker."""


@dataclass(frozen=True)
class Output:
    """A file that a stage has written: its hash, and its DVC hash when it went to the remote ("" if it did not)."""

    sha256: str
    md5: str = ""

    def __str__(self) -> str:
        """Give both, as they are shown on the page of the stage's run."""
        return f"sha256 {self.sha256}" + (f" md5 {self.md5}" if self.md5 else "")

    @classmethod
    def parse(cls, text: str) -> "Output":
        """Read what `str` gives."""
        words = text.split()
        return cls(words[1], words[3] if len(words) > 3 else "")


# ------------------------------------------------------------------------------------- what a stage reads and writes


def hash_inputs(workspace: Workspace, stage: str) -> str:
    """One hash of the files and params that `dvc.yaml` names as a stage's inputs.

    Folders are left out: the manifest, an input too, holds the hashes of the shards.
    """
    described = _stage(workspace, stage)
    files = [path for path in _paths(workspace, described["deps"]) if path.is_file()]
    content = {
        "files": {str(path.relative_to(workspace.root)): sha256(path) for path in sorted(files)},
        "params": {key: _value(workspace.params, key) for key in described["params"]},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_outputs(workspace: Workspace, stage: str) -> dict[str, Output]:
    """Each file that lies where a stage writes, by its path in the project."""
    files = _files(_outputs(workspace, stage))
    return {file.relative_to(workspace.root).as_posix(): Output(sha256(file)) for file in files}


def is_there(workspace: Workspace, stage: str, outputs: Mapping[str, Output]) -> bool:
    """Whether what lies where a stage writes is what a worker on the same folder says that it wrote."""
    return dict(outputs) == read_outputs(workspace, stage)


def _stage(workspace: Workspace, stage: str) -> dict[str, Any]:
    pipeline = yaml.safe_load((workspace.root / "dvc.yaml").read_text())
    written: dict[str, Any] = pipeline["stages"][stage]
    described: dict[str, Any] = written.get("do", written)  # of several proteins: in a loop
    return described


def _outputs(workspace: Workspace, stage: str) -> list[Path]:
    described = _stage(workspace, stage)
    return [*_paths(workspace, [*described.get("outs", []), *described.get("metrics", [])])]


def _paths(workspace: Workspace, names: list[str]) -> Iterator[Path]:
    for name in names:
        for variable in ("${protein}", "${item}"):
            if variable in name:
                name = name.replace(variable, workspace.data.name)
        yield workspace.root / name


def _files(paths: Iterable[Path]) -> list[Path]:
    found: set[Path] = set()
    for path in paths:
        found.update([path] if path.is_file() else (file for file in path.rglob("*") if file.is_file()))
    return sorted(found)


def _value(params: Params, key: str) -> Any:
    value: Any = params.model_dump(mode="json")
    for name in key.split("."):
        value = value[name]
    return value


# ------------------------------------------------------------------------------------- the campaign's side


def send_inputs(workspace: Workspace, stage: str) -> dict[str, str]:
    """Push what a stage reads to the DVC remote; give the DVC hash of each file by its path.

    Raises VersioningError when it is not clear which remote, RemoteUnreachable when it does not answer.
    """
    deps = _paths(workspace, _stage(workspace, stage)["deps"])
    settings = [workspace.root / name for name in SETTINGS]
    files = _files([*deps, *settings, *_stored_atoms(workspace, stage), *_given_starts(workspace, stage)])
    return _send(Exchange(workspace.root), workspace.root, files)


def _stored_atoms(workspace: Workspace, stage: str) -> list[Path]:
    """All-atom frames that a label may start from, which the manifest vouches for."""
    if stage != "label" or not workspace.params.backmapping.steer_within_nm:
        return []
    return [workspace.data / "seed.h5", *sorted((workspace.data / "shards").glob("*.atoms.h5"))]


def _given_starts(workspace: Workspace, stage: str) -> list[Path]:
    """The file of frames that a simulation begins at, if params.yaml names one."""
    name = workspace.params.simulation.starts_file
    return [workspace.data / name] if stage == "simulate" and name else []


def take_outputs(workspace: Workspace, stage: str, outputs: Mapping[str, Output]) -> None:
    """Fetch what a worker wrote from the DVC remote to where the stage writes.

    All are fetched and held against their hashes before the first takes its place. Raises BadFile for a path that is
    none of the stage's, an output that is missing, or a wrong hash; VersioningError or RemoteUnreachable when one
    cannot be had.
    """
    targets = {name: _inside(workspace.root, name) for name in outputs}
    _require_outputs(workspace, stage, targets)
    arrived = _folder(workspace.root, f"arrived-{stage}")
    shutil.rmtree(arrived, ignore_errors=True)
    try:
        _receive(Exchange(workspace.root), arrived, {name: output.md5 for name, output in outputs.items()})
        for name, output in outputs.items():
            if sha256(arrived / name) != output.sha256:
                raise BadFile(f"{name}: what came from the DVC remote is not what the worker wrote; it is not taken")
        for name, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            (arrived / name).replace(target)
    finally:
        shutil.rmtree(arrived, ignore_errors=True)


def _require_outputs(workspace: Workspace, stage: str, targets: Mapping[str, Path]) -> None:
    own = set(_outputs(workspace, stage))
    belongs = {name: own & {target, *target.parents} for name, target in targets.items()}
    for name, owner in belongs.items():
        if not owner:
            raise BadFile(f"{name}: is no output of {stage}, and the worker says that it wrote it; it is not taken")
    for path in sorted(own - set().union(*belongs.values())):
        raise BadFile(f"{path.relative_to(workspace.root)}: the worker did not say that {stage} wrote it")


# ------------------------------------------------------------------------------------- the worker's side


@contextmanager
def received(
    root: Path, stage: str, inputs: str, files: Mapping[str, str], protein: str | None = None
) -> Iterator[Workspace]:
    """Give a workspace in a clone's `.cgal/transport/` with a stage's inputs; it is removed when all went well.

    It is the view of `protein`, if the project has several.

    After a kill or a failure it stays: the next attempt at the same inputs goes on with what the stage left in its
    scratch folder. Raises BadFile for a path outside of it or for what is no hash; else as `take_outputs`.
    """
    folder = _folder(root, f"{stage}-{inputs[:16]}")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock"), timeout=LOCK_WAIT_S):
        for name in ("data", "round"):
            shutil.rmtree(folder / name, ignore_errors=True)
        _receive(Exchange(root), folder, files)
        yield Workspace(folder, protein)
        shutil.rmtree(folder)
        folder.with_suffix(".lock").unlink(missing_ok=True)


def send_outputs(root: Path, workspace: Workspace, stage: str) -> dict[str, Output]:
    """Push what a stage wrote to the DVC remote of a clone, and say what that is."""
    outputs = read_outputs(workspace, stage)
    hashes = _send(Exchange(root), workspace.root, [workspace.root / name for name in outputs])
    return {name: Output(output.sha256, hashes[name]) for name, output in outputs.items()}


# ------------------------------------------------------------------------------------- both sides


def _send(exchange: Exchange, root: Path, files: list[Path]) -> dict[str, str]:
    hashes = exchange.keep(files)
    exchange.push(hashes)
    return {file.relative_to(root).as_posix(): digest for file, digest in zip(files, hashes, strict=True)}


def _receive(exchange: Exchange, folder: Path, files: Mapping[str, str]) -> None:
    for name, digest in files.items():
        _inside(folder, name)
        if not MD5.fullmatch(digest):
            raise BadFile(f"{name}: {digest!r} is no hash of DVC's")
    exchange.fetch(sorted(set(files.values())))
    for name, digest in files.items():
        exchange.place(digest, _inside(folder, name))


def _inside(folder: Path, name: str) -> Path:
    """Path of a file below a folder; raises BadFile when the name, or a link on the way, leads out of it."""
    path = PurePosixPath(name)
    found = folder.joinpath(*path.parts)
    leads_out = path.is_absolute() or ".." in path.parts or not found.resolve().is_relative_to(folder.resolve())
    if leads_out or path.parts[:1] not in {("data",), ("round",), *((setting,) for setting in SETTINGS)}:
        raise BadFile(f"{name}: not a file of a stage, so it is neither read nor written")
    return found


def _folder(root: Path, name: str) -> Path:
    return root / ".cgal" / "transport" / name
