"""What commands share: the project's folder, the table of a campaign's rounds."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from cgal.errors import CgalError

__all__ = ["HERE", "Root", "full_tag", "init", "open_project", "print_rounds"]

Root = Annotated[Path, typer.Option("--root", help="The project's folder.", file_okay=False)]
HERE = Path()


def open_project(root: Path) -> Path:
    """Set the environment of Prefect, DVC and MLflow for the project, and give its absolute path."""
    from flows.settings import use_project_settings

    root = root.resolve()
    if missing := [name for name in ("params.yaml", "dvc.yaml") if not (root / name).is_file()]:
        raise CgalError(
            f"{root}: no project here, for want of {' and '.join(missing)}; make one with 'cgal init FOLDER', or name "
            "the folder of yours with --root"
        )
    try:
        use_project_settings(root)
    except OSError as error:
        raise CgalError(
            f"{error.filename}: cannot be written ({error.strerror}); work in a copy that you may write"
        ) from None
    return root


def full_tag(root: Path, tag: str) -> str:
    """Tag of a round, which may be given as its number in the campaign of params.yaml."""
    from flows.versioning.rounds import round_tag
    from flows.workspace import Workspace

    return round_tag(Workspace(root).params.campaign.name, int(tag)) if tag.isdecimal() else tag


def init(
    folder: Annotated[Path, typer.Argument(help="A new folder, or an empty one.", file_okay=False)],
    demo: Annotated[bool, typer.Option("--demo", help="Bring the bundled chignolin.")] = False,
    protein: Annotated[str | None, typer.Option(help="Name of the protein's folder in data/.")] = None,
    sequence: Annotated[str | None, typer.Option(help="One-letter sequence: an extended chain is built.")] = None,
    pdb: Annotated[Path | None, typer.Option(help="A PDB file to complete.")] = None,
    pdb_id: Annotated[str | None, typer.Option(help="A PDB id to fetch (online).")] = None,
) -> None:
    """Make a project of your own: a folder under git and DVC, with the pipeline and a protein to start with."""
    from flows.settings import use_quiet_tools

    use_quiet_tools()
    from flows.protein.init import Start, init_project

    print(init_project(folder, Start(demo, protein, sequence, pdb, pdb_id), note=print))


def print_rounds(root: Path, campaign: str, *, but: Collection[str] = ()) -> None:
    """Print the table of a campaign's published rounds but some, by their tags, and what a person would type next."""
    from flows.campaign.records import campaign_rounds, differing_halves, made_by_others
    from flows.terminal import campaign_table, console, next_lines
    from flows.versioning import Repository

    repository = Repository(root)
    rounds = campaign_rounds(repository, campaign, but=but)
    if not rounds:
        raise CgalError(
            f"campaign {campaign} has no published round yet; 'cgal run' makes the first{repository.shallow}"
        )
    console.print(campaign_table(campaign, rounds))
    others = made_by_others({entry["tag"]: entry["version"] for entry in rounds})
    for note in filter(None, (others, differing_halves(rounds))):
        console.print(f"[yellow]![/yellow] {note}")
    console.print(next_lines(root, rounds))
