"""Opening a campaign: what exists, what continues, and what a new one starts from."""

from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from cgal.errors import BadFile, BadParams, VersioningError
from cgal.files import atomic_write
from cgal.params import Params
from flows.versioning import Repository
from flows.workspace import Workspace

__all__ = ["CampaignState", "campaign_state", "continue_campaign", "fetch_data", "new_campaign"]


@dataclass(frozen=True)
class CampaignState:
    """How far a campaign has got: its last published round (None before the first), and which is the closing one."""

    name: str
    last_published: int | None
    closing: int

    @property
    def complete(self) -> bool:
        """Whether the closing round has been published."""
        return self.last_published is not None and self.last_published >= self.closing


def campaign_state(workspace: Workspace, repository: Repository) -> CampaignState:
    """Read how far the campaign named in `params.yaml` has got."""
    campaign = workspace.params.campaign
    rounds = [published.round_index for published in repository.published(campaign.name)]
    return CampaignState(campaign.name, max(rounds, default=None), campaign.rounds)


def fetch_data(workspace: Workspace, repository: Repository) -> None:
    """Make sure that the protein's data is there, from the bundled seed if need be; raises BadFile otherwise."""
    if not workspace.data.is_dir():
        repository.pull_bundled()
    for name in ("structure.pdb", "seed.h5", "reference.h5"):
        if not (workspace.data / name).is_file():
            raise BadFile(
                f"{workspace.data / name}: no such file; 'dvc pull data.dvc' fetches the bundled protein, "
                "'cgal import' sets up your own"
            )


def new_campaign(workspace: Workspace, repository: Repository, name: str) -> Workspace:
    """Give the campaign a new name in `params.yaml` and take the dataset back to the seed.

    Shards of another campaign leave the workspace; their published rounds keep them in the DVC cache. Raises
    VersioningError when the name is taken.
    """
    from cgal.dataset import reset  # seconds of imports, and 'cgal run' on a complete campaign only looks

    Params.model_validate(
        workspace.params.model_dump() | {"campaign": workspace.params.campaign.model_dump() | {"name": name}}
    )
    if repository.published(name):
        raise VersioningError(
            f"campaign {name} exists already; 'cgal rounds --campaign {name}' shows it: choose another name"
        )
    reset(workspace.data)
    _write_name(workspace.root / "params.yaml", name)
    return Workspace(workspace.root)


def continue_campaign(workspace: Workspace, repository: Repository, state: CampaignState) -> None:
    """Bring the workspace to where the campaign stands: its last published round, or the seed before the first.

    Raises BadParams when the dataset belongs to another campaign and this one has no published round to go back to.
    """
    from cgal.dataset import load_manifest, round_index

    manifest_path = workspace.data / "manifest.json"
    if not manifest_path.is_file():
        return
    manifest = load_manifest(workspace.data)
    owner = manifest.campaign
    if state.last_published is None:
        if round_index(manifest) > 0 and owner != state.name:
            raise BadParams(
                f"data/{workspace.params.protein} belongs to campaign {owner!r}, params.yaml names {state.name!r}: "
                f"start it with 'cgal run --new {state.name}', or set campaign.name back"
            )
        return
    if owner != state.name or round_index(manifest) < state.last_published:
        repository.checkout_round(f"{state.name}/round-{state.last_published:03d}")


def _write_name(path: Path, name: str) -> None:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
    content = yaml.load(path.read_text())
    content.setdefault("campaign", {})["name"] = name
    with atomic_write(path) as temporary:
        yaml.dump(content, temporary)
