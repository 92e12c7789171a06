"""Opening a campaign: what exists, what continues, and what a new one starts from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from cgal.errors import BadFile, BadParams, Refusals, VersioningError
from cgal.files import atomic_write, settle_folder
from cgal.params import check_params, merged
from flows.campaign.records import made_by_others
from flows.terminal import console
from flows.versioning import Repository
from flows.versioning.objects import wrong_files
from flows.versioning.published_files import hashes_of
from flows.workspace import Workspace

__all__ = [
    "CampaignState",
    "campaign_closing",
    "campaign_state",
    "change_params",
    "continue_campaign",
    "fetch_data",
    "move_device",
    "new_campaign",
]


MADE_BY = {
    "structure.pdb": "cgal structure data/{protein}/structure.pdb --sequence SEQUENCE",
    "seed.h5": "cgal seed {protein}",
    "reference.h5": "cgal reference {protein}",
}
"""What a campaign needs of a protein, in the order in which it is made, and what makes it."""


@dataclass(frozen=True)
class CampaignState:
    """How far a campaign has got: its last published round (None before the first), and why that is the closing one.

    `closing` is empty while the campaign can go on; `rounds` is how many acquisition rounds it may have.
    """

    name: str
    rounds: int
    last_published: int | None
    closing: str

    @property
    def complete(self) -> bool:
        """Whether the closing round has been published."""
        return bool(self.closing)


def campaign_state(workspace: Workspace, repository: Repository) -> CampaignState:
    """Read how far the campaign named in `params.yaml` has got."""
    campaign = workspace.params.campaign
    rounds = [published.round_index for published in repository.published(campaign.name)]
    closing = campaign_closing(repository, campaign.name)
    return CampaignState(campaign.name, campaign.rounds, max(rounds, default=None), closing)


def campaign_closing(repository: Repository, name: str) -> str:
    """Why the last published round of a campaign is its closing one; "" when it is not, or none is published."""
    published = repository.published(name)
    if not published:
        return ""
    closing: str = json.loads(repository.read_round_file(published[-1].tag, "round/selection.json"))["closing"]
    return closing


def fetch_data(workspace: Workspace, repository: Repository) -> None:
    """Make sure that each protein's data is there, from the bundled seed or the campaign's last round if need be.

    Raises BadFile when it is not.
    """
    refusals = Refusals()
    for part in workspace.parts:
        with refusals.gathered():
            _fetch_data(part, repository)
    refusals.tell()


def _fetch_data(workspace: Workspace, repository: Repository) -> None:
    settle_folder(workspace.data)
    protein = workspace.data.name
    if not workspace.data.is_dir():
        if repository.dvc.is_bundled(protein):
            repository.dvc.pull_bundled(protein)
        else:
            rounds = repository.published(workspace.params.campaign.name)
            if rounds and protein in rounds[-1].proteins:
                repository.checkout_round(rounds[-1].tag)
    for name, command in MADE_BY.items():
        if not (workspace.data / name).is_file():
            raise BadFile(
                f"data/{protein}/{name}: no such file; make it with '{command.format(protein=protein)}', or all of a "
                "protein's data from a trajectory of your own with 'cgal import'"
            )


def new_campaign(workspace: Workspace, repository: Repository, name: str) -> Workspace:
    """Give the campaign a new name in `params.yaml` and take the dataset back to the seed.

    Shards of another campaign leave the workspace; their published rounds keep them in the DVC cache. Raises
    VersioningError when the name is taken.
    """
    from cgal.dataset import reset  # seconds of imports, and 'cgal run' on a complete campaign only looks

    if repository.published(name):
        raise VersioningError(
            f"campaign {name} exists already; 'cgal rounds --campaign {name}' shows it: choose another name"
        )
    change_params(workspace.root / "params.yaml", {"campaign": {"name": name}})
    for part in workspace.parts:
        reset(part.data)
    return Workspace(workspace.root)


def continue_campaign(workspace: Workspace, repository: Repository, state: CampaignState) -> None:
    """Bring the workspace to where the campaign stands: its last published round, or the seed before the first.

    Raises BadParams when the dataset belongs to another campaign and this one has no published round to go back to, or
    when the protein's data were replaced after its rounds.
    """
    _go_to_last_round(workspace, repository, state)
    if note := made_by_others({entry.tag: entry.version for entry in repository.published(state.name)}):
        console.print(f"[yellow]![/yellow] {note}")
    if move_device(workspace.root / "params.yaml"):
        console.print("[yellow]![/yellow] params.yaml: execution.device is now simulation.device, which rounds record")


def _go_to_last_round(workspace: Workspace, repository: Repository, state: CampaignState) -> None:
    from cgal.dataset import load_manifest, round_index

    prepared = [part for part in workspace.parts if (part.data / "manifest.json").is_file()]
    manifests = {part.data.name: load_manifest(part.data) for part in prepared}
    if state.last_published is None:
        for protein, manifest in manifests.items():
            if round_index(manifest) > 0 and manifest.campaign != state.name:
                raise BadParams(
                    f"data/{protein} belongs to campaign {manifest.campaign!r}, params.yaml names {state.name!r}: "
                    f"start it with 'cgal run --new {state.name}', or set campaign.name back"
                )
        return
    tag = f"{state.name}/round-{state.last_published:03d}"
    for part in workspace.parts:
        if part.data.name not in manifests:
            _require_own_data(part, repository, tag)
    if not prepared or any(
        manifest.campaign != state.name or round_index(manifest) < state.last_published
        for manifest in manifests.values()
    ):
        repository.checkout_round(tag)


def _require_own_data(workspace: Workspace, repository: Repository, tag: str) -> None:
    """Raise BadParams when a dataset without rounds is not the one that a round began with."""
    own = {f"data/{workspace.data.name}/{name}" for name in ("structure.pdb", "seed.h5")}
    hashes = {path: digest for path, digest in hashes_of(repository, tag, "data").items() if path in own}
    if replaced := wrong_files(workspace.root, hashes):
        raise BadParams(
            f"{', '.join(replaced)}: not what campaign {tag.split('/')[0]} began with; 'cgal run --new NAME' begins a "
            f"campaign on it, 'cgal checkout {tag}' brings back that campaign's data (these stay in DVC's cache)"
        )


def change_params(path: Path, changes: Mapping[str, Any], text: str | None = None) -> None:
    """Change values of a `params.yaml`, or of another `text` that takes its place, comments kept.

    A file whose place is taken and that is in no commit is kept in `.cgal/saved/`. Raises BadParams, and leaves the
    file as it was, when a value is wrong.
    """
    content = _round_trip().load(path.read_text() if text is None else text)
    check_params(merged(content, changes), path)
    _assign(content, changes)
    if text is not None and path.is_file() and (saved := Repository(path.parent).keep_unsaved(path.name)):
        console.print(f"[yellow]![/yellow] {path} had changes that are in no commit: they are kept in {saved}")
    with atomic_write(path) as temporary:
        _round_trip().dump(content, temporary)


def _round_trip() -> YAML:
    """Give a reader and writer that keeps comments and quotes."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
    return yaml


def move_device(path: Path) -> bool:
    """Write `execution.device` of a `params.yaml` of version 0.1 as `simulation.device`; say whether it was there.

    It is read from either place, but DVC records the file's own sections, of which `execution` is none.
    """
    content = _round_trip().load(path.read_text())
    if "device" not in (content.get("execution") or {}):
        return False
    device = content["execution"].pop("device")
    content.setdefault("simulation", {}).setdefault("device", device)
    with atomic_write(path) as temporary:
        _round_trip().dump(content, temporary)
    return True


def _assign(content: Any, changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping):
            _assign(content.setdefault(key, {}), value)
        else:
            content[key] = value
