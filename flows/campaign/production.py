"""A long simulation of a published round, in a folder of its own: its model, its numbers, its benchmark.

The folder is laid out as a working copy is (`params.yaml`, `data/<protein>`, `round/`), so that the stages of a round
run in it; nothing of the workspace or of the round is changed.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml
from filelock import FileLock, Timeout

from cgal.errors import BadParams, CampaignLocked, CgalError
from cgal.files import read_json, write_json, write_text
from cgal.params import Params, SimulationParams, check_params, load_params, merged
from flows.versioning import Repository
from flows.versioning.published_files import MODEL, bring_files
from flows.workspace import Workspace

__all__ = ["Wish", "open_production"]

FRAMES = 100_000
"""Frames of all replicas that a production saves by default, at most: more make a benchmark slow, not better."""

INPUTS = ("manifest.json", "reference.h5", "shards", "structure.pdb")
"""What of a protein's data the stages `simulate` and `benchmark` read (see `dvc.yaml`)."""

PS_PER_NS = 1000.0


@dataclass(frozen=True)
class Wish:
    """What a production is asked for, `ns` for each replica; the rest is as it was begun, or as the round's own."""

    ns: float
    replicas: int | None = None
    frame_ps: float | None = None
    device: str | None = None


@contextmanager
def open_production(repository: Repository, tag: str, wish: Wish, folder: Path) -> Iterator[Workspace]:
    """Make or find the folder of a production, and hold it against other processes.

    Raises VersioningError when there is no such round or no good copy of its files, CgalError when the folder belongs
    to another round, BadParams when the wish is out of bounds or does not fit what was begun, CampaignLocked when
    another process is at work there.
    """
    published = repository.round(tag)
    source = {"round": published.tag, "commit": published.commit}
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder):
        note = folder / "production.json"
        if note.is_file() and (found := read_json(note)) != source:
            raise CgalError(f"{folder}: belongs to {found.get('round')}, not to {tag}; name another folder with --out")
        numbers = repository.read_round_file(tag, "params.yaml")
        params = _plan(check_params(yaml.safe_load(numbers), Path(f"params.yaml of {tag}")), wish, folder)
        write_json(note, source)
        write_text(folder / "params.yaml", yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False))
        bring_files(repository, tag, folder, lambda path: path == MODEL or _is_input(path, params.protein))
        yield Workspace(folder)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise CampaignLocked(
            f"{folder}: another process is at work there; wait for it, or name another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _is_input(path: str, protein: str) -> bool:
    parts = PurePosixPath(path).parts
    return parts[:2] == ("data", protein) and parts[2:3] != () and parts[2] in INPUTS


def _plan(params: Params, wish: Wish, folder: Path) -> Params:
    """The round's numbers with the simulation that is wished for."""
    if not all(math.isfinite(value) for value in (wish.ns, wish.frame_ps or 0.0)):
        raise BadParams("--ns and --frame-ps must be finite")
    own, path = params.simulation, folder / "params.yaml"
    begun = load_params(path).simulation if path.is_file() else None
    replicas = _settled("--replicas", wish.replicas, begun.replicas if begun else None, own.replicas, folder)
    asked = None if wish.frame_ps is None else max(1, round(wish.frame_ps / own.timestep_ps))
    stride = _settled("--frame-ps", asked, begun.stride if begun else None, _thinned(own, replicas, wish.ns), folder)
    steps = round(wish.ns * PS_PER_NS / own.timestep_ps) // stride * stride
    if steps < stride:
        raise BadParams(f"--ns {wish.ns:g}: no frame would be saved, as they are {stride * own.timestep_ps:g} ps apart")
    device = wish.device or (begun or own).device
    simulation = {"replicas": replicas, "steps": steps, "stride": stride, "device": device}
    return check_params(merged(params.model_dump(mode="json"), {"simulation": simulation}), path)


def _settled(option: str, asked: int | None, begun: int | None, own: int, folder: Path) -> int:
    if begun is not None and asked not in (None, begun):
        raise BadParams(
            f"{option}: {folder} holds a run that was begun with another; leave it out, or name another --out"
        )
    return begun or asked or own


def _thinned(own: SimulationParams, replicas: int, ns: float) -> int:
    """Steps between frames: the round's own, or the least multiple of it that saves no more than FRAMES."""
    frames = replicas * ns * PS_PER_NS / own.timestep_ps / own.stride
    return own.stride * max(1, math.ceil(frames / FRAMES))
