"""A long simulation of a published round, in a folder of its own: its model, its numbers, its benchmark.

The folder is laid out as a working copy with one protein is (`params.yaml`, `data/<protein>`, `round/`), so that the
stages of a round run in it; nothing of the workspace or of the round is changed. A protein that the round was not
trained on is simulated with its network and a prior of its own (`cgal.Model.transfer`).
"""

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from cgal.dataset import load_manifest
from cgal.errors import BadFile, BadParams, CgalError
from cgal.files import atomic_write, read_json, write_json, write_text
from cgal.params import Params, SimulationParams, check_params, load_params, merged
from cgal.potential.architectures import initial_potential
from cgal.potential.checkpoint import load_checkpoint, save_checkpoint
from flows.campaign.preflight import require_own_reference
from flows.versioning import PublishedRound, Repository
from flows.versioning.lock import held
from flows.versioning.published_files import MODEL, bring_files, find_model
from flows.workspace import Workspace

__all__ = ["Wish", "open_production"]

FRAMES = 100_000
"""Frames of all replicas that a production saves by default, at most: more make a benchmark slow, not better."""

INPUTS = ("manifest.json", "reference.h5", "shards", "structure.pdb")
"""What of a protein's data the stages `simulate` and `benchmark` read (`dvc.yaml`), beside `simulation.starts_file`."""

NOTE = "reference.json"
"""What the reference was made with, if it is known."""

PS_PER_NS = 1000.0


@dataclass(frozen=True)
class Wish:
    """What a production is asked for, `ns` for each replica; the rest is as it was begun, or as the round's own.

    `protein` is of the round, or one of the project's that the model is carried to. With `prior_alone` the network is
    left out: what it adds is the difference.
    """

    ns: float
    replicas: int | None = None
    frame_ps: float | None = None
    device: str | None = None
    protein: str | None = None
    prior_alone: bool = False

    def protein_of(self, published: PublishedRound) -> str:
        """What is simulated; raises BadParams where the round is of several and none is named."""
        if self.protein is None and len(published.proteins) > 1:
            raise BadParams(f"{published.tag} is of {', '.join(published.proteins)}: say which with --protein")
        return self.protein or published.proteins[0]

    def folder(self, root: Path, published: PublishedRound) -> Path:
        """Where it goes if nothing else is said: a protein has a folder of its own unless the round is of it alone."""
        protein = self.protein_of(published)
        own = root / "production" / published.tag
        placed = own if published.proteins == (protein,) else own / protein
        return placed.with_name(f"{placed.name}-prior") if self.prior_alone else placed

    def source(self, published: PublishedRound) -> dict[str, str | bool]:
        """What a folder notes of where its model is from."""
        source: dict[str, str | bool] = {"round": published.tag, "commit": published.commit}
        if (protein := self.protein_of(published)) not in published.proteins:
            source["transferred_to"] = protein
        return source | ({"prior_alone": True} if self.prior_alone else {})


@contextmanager
def open_production(repository: Repository, tag: str, wish: Wish, folder: Path) -> Iterator[Workspace]:
    """Make or find the folder of a production, and hold it against other processes.

    Raises VersioningError when there is no such round or no good copy of its files, CgalError when the folder belongs
    to another round, BadParams when the wish is out of bounds, does not fit what was begun or leaves out a network
    that the linear rung was moved beneath, CampaignLocked when another process is at work there, BadFile when a protein
    that the model is carried to lacks seed or reference.
    """
    published = repository.round(tag)
    protein = wish.protein_of(published)
    source = wish.source(published)
    if wish.prior_alone and protein in published.proteins:
        _require_rung_as_fitted(repository, tag)
    with held(folder / ".lock", f"{folder}: another process is at work there; wait for it, or name another --out"):
        note = folder / "production.json"
        if note.is_file() and (found := read_json(note)) != source:
            raise CgalError(f"{folder}: belongs to {_said(found)}, not to {_said(source)}; name another with --out")
        numbers = repository.read_round_file(tag, "params.yaml")
        numbered = merged(yaml.safe_load(numbers), {"protein": protein})
        params = _plan(check_params(numbered, Path(f"params.yaml of {tag}")), wish, folder)
        write_json(note, source)
        write_text(folder / "params.yaml", yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False))
        inputs = tuple(filter(None, (*INPUTS, params.simulation.starts_file)))
        bring_files(repository, tag, folder, lambda path: path == MODEL or _is_input(path, protein, (*inputs, NOTE)))
        workspace = Workspace(folder)
        if protein not in published.proteins:
            _transfer(Workspace(repository.root, protein), workspace, inputs)
        if wish.prior_alone:
            _take_network_away(workspace)
        yield workspace


def _require_rung_as_fitted(repository: Repository, tag: str) -> None:
    """Raise BadParams when the linear rung of a round was moved beneath its network: alone it fits nothing."""
    if load_checkpoint(find_model(repository.root, tag))[1].get("refit_moved"):
        raise BadParams(
            f"{tag}: --prior-alone would leave a linear rung that was moved to fit beneath the network (refit_moved), "
            "and fits nothing without it; leave --prior-alone out, or compare with a round of "
            "training.linear_rung: false"
        )


def _said(source: Mapping[str, Any]) -> str:
    """What a folder notes of where its model is from, in words."""
    protein, alone = source.get("transferred_to"), source.get("prior_alone")
    return f"{source.get('round')}{f' for {protein}' if protein else ''}{' without its network' if alone else ''}"


def _transfer(source: Workspace, workspace: Workspace, inputs: tuple[str, ...]) -> None:
    """Bring a protein of the project that the round was not trained on, and fit its prior to the frames of its seed.

    Raises BadFile when its seed, its reference or its frames to start from are missing, BadParams when seed or
    reference are of another temperature.
    """
    from cgal.interfaces.model import load
    from cgal.training.proteins import load_training_set

    require_own_reference(source.data, workspace.params.temperature_K)
    for name in (*inputs, *([NOTE] if (source.data / NOTE).is_file() else [])):
        _copy(source.data / name, workspace.data / name)
    params = workspace.params
    manifest, own = load_manifest(workspace.data), load_training_set([workspace.data], params.prior, params.training)
    if manifest.temperature_K != params.temperature_K:
        raise BadParams(
            f"{source.data}: a seed of {manifest.temperature_K:g} K, and the model is for {params.temperature_K:g} K; "
            "set temperature_K and make it again ('cgal seed', 'cgal reference')"
        )
    model, frames = load(workspace.model), len(own.positions(manifest.sequence))
    origin = {"transferred_from": model.sequence, "prior_frames": frames}
    potential = model.potential.with_prior(own.priors[manifest.sequence])
    save_checkpoint(workspace.model, potential, model.metadata | origin)


def _take_network_away(workspace: Workspace) -> None:
    potential, metadata = load_checkpoint(workspace.model, sequence=load_manifest(workspace.data).sequence)
    prior = initial_potential(potential.prior, potential.network.params, seed=0)
    save_checkpoint(workspace.model, prior, metadata | {"prior_alone": True})


def _copy(source: Path, target: Path) -> None:
    if not source.exists():
        protein = source.parent.name
        needed = (
            "a protein that a model is carried to needs a seed (for its prior) and a reference: "
            f"'cgal seed {protein}', 'cgal reference {protein}'"
            if source.name in INPUTS
            else f"the round's simulation.starts is 'given': put frames of {protein} to start from there"
        )
        raise BadFile(f"{source}: no such file, and {needed}")
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
        return
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)


def _is_input(path: str, protein: str, inputs: tuple[str, ...]) -> bool:
    parts = PurePosixPath(path).parts
    return parts[:2] == ("data", protein) and parts[2:3] != () and parts[2] in inputs


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
