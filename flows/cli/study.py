"""Commands of the study: arms side by side, and the length of the burn-in."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cgal.errors import CgalError
from flows.cli.project import HERE, Root, open_project

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

__all__ = ["burn_in", "compare"]


def compare(
    name: Annotated[str, typer.Option(help="Of the comparison; the same name goes on with it.")],
    root: Root = HERE,
    arms: Annotated[str | None, typer.Option(help="Arms of the design, separated by commas; else all of them.")] = None,
    budget: Annotated[
        int | None,
        typer.Option(min=1, help="All-atom steps that each campaign may spend on labels; else the design's."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Each arm runs with the seeds 1 to this; else the design's.")
    ] = None,
    design: Annotated[
        Path | None, typer.Option(help="What each arm changes in params.yaml; else docs/results/NAME.yaml.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Campaigns at a time, one core each.")] = 2,
) -> None:
    """Run arms side by side at equal oracle cost, and write what they found to docs/results/NAME.csv.

    All campaigns begin from the last commit. A design is a file such as:
    arms: {base: {campaign: {rounds: 0}}, coverage: {}, random: {selection: {strategy: random}}}
    """
    root = open_project(root)
    from flows.serving.startup import start_prefect
    from flows.terminal import console
    from study.comparison import Comparison, to_run
    from study.design import load_design

    comparison, plan = Comparison(root, name), load_design(design or root / "docs" / "results" / f"{name}.yaml")
    chosen = arms.split(",") if arms else list(plan.arms)
    plans = to_run(comparison, plan, plan.campaigns(chosen, seeds or plan.seeds, plan.steps(budget)))
    if not plans:
        console.print(f"comparison {name}: all campaigns are in {comparison.records}")
        return
    server = start_prefect()
    with console.status("starting Prefect"):
        from study.compare import forecast, run_compare

        server.wait()
    for line in forecast(root, name, plan, chosen, seeds or plan.seeds):
        console.print(line)
    failed = run_compare(comparison, plan, plans, workers)
    console.print(f"records: {comparison.records}")
    if failed:
        raise CgalError(f"{failed} campaigns failed, see above; the same command tries them again")


def burn_in(
    root: Root = HERE,
    frames: Annotated[int, typer.Option(min=2, help="Frames of the seed that are labelled.")] = 20,
) -> None:
    """Measure whether oracle.burn_in_steps suffices, by labels of seed frames, rebuilt and as they are."""
    root = open_project(root)
    from cgal.frames import AtomFrames
    from flows.terminal import console, stage_bar
    from flows.versioning import CampaignLock
    from flows.workspace import Workspace
    from study.burn_in import RECORDS, write_burn_in

    workspace, path = Workspace(root), root / "docs" / "results" / RECORDS
    seed, scratch = AtomFrames.load(workspace.data / "seed.h5"), workspace.scratch("burn-in")
    with CampaignLock(root, "burn-in"), stage_bar("burn-in") as progress:
        found = write_burn_in(path, seed, frames, workspace.params, scratch=scratch, progress=progress)
    console.print(_burn_in_table(found))
    console.print(f"records: {path}")


def _burn_in_table(found: "pd.DataFrame") -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape("labels from each start [kJ/mol/nm]"), box=SIMPLE_HEAD)
    for heading in ("start", "burn-in [steps]", "two labels differ by", "off the long average by", "steps", "failed"):
        table.add_column(escape(heading), justify="right")
    for row in found.itertuples():
        between = f"{row.between:.0f} [{row.between_low:.0f}, {row.between_high:.0f}]"
        error = f"{row.error:.0f} [{row.error_low:.0f}, {row.error_high:.0f}]"
        table.add_row(row.start, str(row.burn_in_steps), between, error, f"{row.steps:.0f}", str(row.failed))
    return table
