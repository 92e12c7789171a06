"""What commands share: the project's folder, the table of a campaign's rounds."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from cgal.errors import CgalError

__all__ = ["HERE", "Root", "open_project", "print_rounds"]

Root = Annotated[Path, typer.Option("--root", help="The project's folder.", file_okay=False)]
HERE = Path()


def open_project(root: Path) -> Path:
    """Set the environment of Prefect, DVC and MLflow for the project, and give its absolute path."""
    from flows.settings import use_project_settings

    root = root.resolve()
    try:
        use_project_settings(root)
    except OSError as error:
        raise CgalError(
            f"{error.filename}: cannot be written ({error.strerror}); work in a copy that you may write"
        ) from None
    return root


def print_rounds(root: Path, campaign: str, *, but: Collection[str] = ()) -> None:
    """Print the table of a campaign's published rounds but some, by their tags, and what a person would type next."""
    from flows.campaign.records import campaign_rounds, made_by_others
    from flows.terminal import campaign_table, console, next_lines
    from flows.versioning import Repository

    repository = Repository(root)
    rounds = campaign_rounds(repository, campaign, but=but)
    if not rounds:
        raise CgalError(
            f"campaign {campaign} has no published round yet; 'cgal run' makes the first{repository.shallow}"
        )
    console.print(campaign_table(campaign, rounds))
    if note := made_by_others({entry["tag"]: entry["version"] for entry in rounds}):
        console.print(f"[yellow]![/yellow] {note}")
    console.print(next_lines(campaign, rounds))
