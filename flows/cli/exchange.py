"""Commands around published rounds: look at them, restore one, send them to others."""

import json
from typing import Annotated, Any

import typer

from cgal.errors import CgalError
from flows.cli.project import HERE, Root, full_tag, open_project, print_rounds

__all__ = ["checkout", "push", "rounds"]


def rounds(
    root: Root = HERE,
    campaign: Annotated[str | None, typer.Option(help="Another campaign than that of params.yaml.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Machine-readable, with each round's tag and commit.")
    ] = False,
) -> None:
    """Show every published round: each W1 with its interval, frames, all-atom steps, lost replicas.

    Rounds that a DVC remote lacks are named, and tags that were moved.
    """
    root = open_project(root)
    from flows.versioning import Repository
    from flows.workspace import Workspace

    name = campaign or Workspace(root).params.campaign.name
    repository = Repository(root)
    moved = repository.moved_tags(name)
    deliveries = repository.compare_remotes(name)
    if as_json:
        print(json.dumps(_described(repository, name, moved, deliveries), indent=2))
        return
    from flows.terminal import console

    try:
        print_rounds(root, name, but=moved)
    finally:
        for warning in (*moved.values(), *(delivery.warning for delivery in deliveries if delivery.warning)):
            console.print(f"[yellow]![/yellow] {warning}")


def _described(repository: Any, campaign: str, moved: dict[str, str], deliveries: list[Any]) -> list[dict[str, Any]]:
    """All rounds as records; one whose tag was moved has what is wrong with it instead of figures.

    `lacking_in` names DVC remotes that do not have a round in full, and is None where one did not answer.
    """
    from flows.campaign.records import campaign_rounds

    unknown = any(delivery.error for delivery in deliveries)
    entries = campaign_rounds(repository, campaign, but=moved)
    for entry in entries:
        lacking = [delivery.remote for delivery in deliveries if entry["tag"] in delivery.lacking]
        entry["lacking_in"] = None if unknown else lacking
    entries += [{"round": int(tag.rpartition("-")[2]), "tag": tag, "moved": why} for tag, why in moved.items()]
    return sorted(entries, key=lambda entry: entry["round"])


def checkout(
    tag: Annotated[str, typer.Argument(help="A round's number, or its tag such as demo/round-001.")], root: Root = HERE
) -> None:
    """Restore the bytes of a published round: dataset, checkpoint, params and all stage outputs.

    Each file is held against its hash; one that is missing or damaged here is fetched from the DVC remotes.
    """
    root = open_project(root)
    from flows.campaign.records import made_by_others
    from flows.terminal import console
    from flows.versioning import CampaignLock, Repository
    from flows.workspace import Workspace

    name = Workspace(root).params.campaign.name
    tag = full_tag(root, tag)
    with CampaignLock(root, name):
        repository = Repository(root)
        repository.checkout_round(tag)
        note = made_by_others({tag: repository.round(tag).version})
    console.print(f"{tag} is restored; 'dvc repro' replays it.")
    if note:
        console.print(f"[yellow]![/yellow] {note}")


def push(root: Root = HERE) -> None:
    """Send all published rounds to others: their bytes to the DVC remotes, their branches and tags to git's remote."""
    root = open_project(root)
    from flows.terminal import console
    from flows.versioning import Repository

    repository = Repository(root)
    deliveries = repository.send()
    for delivery in deliveries:
        if not delivery.warning:
            console.print(f"DVC remote {delivery.remote} has all rounds; {delivery.sent} files were sent")
    if remote := repository.send_history():
        console.print(f"git remote {remote} has their branches and tags")
    missing = []
    if not deliveries:
        missing.append("no DVC remote of your own takes bytes: 'dvc remote add --local --default lab URL'")
    if not remote:
        missing.append("no git remote takes branches and tags: 'git remote add origin URL'")
    problems = [delivery.warning for delivery in deliveries if delivery.warning]
    problems += repository.moved_tags("*").values()
    if problems or not (deliveries or remote):
        raise CgalError("; ".join([*problems, *missing]))
    for line in missing:
        console.print(line)
