"""Commands that take a published round further."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli.project import HERE, Root, full_tag, open_project

__all__ = ["production"]


def production(
    tag: Annotated[str, typer.Argument(metavar="ROUND", help="A round's number, or its tag such as demo/round-002.")],
    ns: Annotated[float, typer.Option(help="Simulated time of each replica.")],
    replicas: Annotated[int | None, typer.Option(min=1, help="As many as the round's own by default.")] = None,
    frame_ps: Annotated[
        float | None,
        typer.Option(min=0, help="Time between frames; by default the round's own, or more to save at most 100,000."),
    ] = None,
    protein: Annotated[
        str | None,
        typer.Option(
            help="Protein to simulate: one of the round's, or another one in data/ (the round's network, with a prior "
            "fitted to that protein's seed)."
        ),
    ] = None,
    prior_alone: Annotated[
        bool, typer.Option("--prior-alone", help="Leave the network out, to see what it adds to the prior.")
    ] = False,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None, typer.Option(help="By default as params.yaml of the round says.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder; production/ROUND by default, in it one for each of several.", file_okay=False),
    ] = None,
    root: Root = HERE,
) -> None:
    """Simulate a published round for long, and benchmark that: trajectory, W1 and figures in a folder of its own.

    The workspace stays as it is. A run that was stopped or killed goes on, to the same bytes; more --ns make it longer.
    """
    root = open_project(root)
    from flows.campaign.production import Wish, open_production
    from flows.campaign.stages import run_stage
    from flows.terminal import console, describe, stage_bar
    from flows.versioning import Repository

    tag = full_tag(root, tag)
    wish, repository = Wish(ns, replicas, frame_ps, device, protein, prior_alone), Repository(root)
    folder = (out or wish.folder(root, repository.round(tag))).resolve()
    with open_production(repository, tag, wish, folder) as workspace:
        for stage in ("production", "benchmark"):
            with stage_bar(stage) as progress:
                summary = run_stage(stage, workspace, progress)
            console.print(f"{stage}: {describe(summary)}")
        console.print(f"trajectory, metrics and figures: {workspace.round}")
