"""What all commands share: the project's folder."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["HERE", "Root", "open_project"]

Root = Annotated[Path, typer.Option("--root", help="The project's folder.", file_okay=False)]
HERE = Path()


def open_project(root: Path) -> Path:
    """Set the environment of Prefect, DVC and MLflow for the project, and give its absolute path."""
    from flows.settings import use_project_settings

    root = root.resolve()
    use_project_settings(root)
    return root
