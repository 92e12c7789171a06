"""The command line: `cgal ...`. Heavy packages are imported inside the commands, so that `cgal --help` is instant."""

import errno
import sys

import typer

from cgal.errors import CgalError
from flows.cli import campaign, exchange, production, project, protein, serving, study

__all__ = ["app", "main"]

OF_THE_MACHINE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Whoever runs the command mends these: rights, and room on the disk."""

app = typer.Typer(
    help="Active learning for coarse-grained machine-learned molecular dynamics.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help pages take as long to import as all the rest
    context_settings={"max_content_width": 120},
)
app.command("init")(project.init)
app.command("run")(campaign.run)
app.command("stage")(campaign.stage)
app.command("rounds")(exchange.rounds)
app.command("checkout")(exchange.checkout)
app.command("push")(exchange.push)
app.command("production")(production.production)
app.command("report")(campaign.report)
app.command("export")(campaign.export)
app.command("params")(campaign.params)
app.command("structure")(protein.structure)
app.command("import")(protein.import_)
app.command("seed")(protein.seed)
app.command("reference")(protein.reference)
app.command("doctor")(protein.doctor)
app.command("compare")(study.compare)
app.command("burn-in")(study.burn_in)
app.command("serve")(serving.serve)
app.command("worker")(serving.worker)


def main() -> None:
    """Run the command line; an error that the user can mend is one message and exit code 1."""
    try:
        app()
    except CgalError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        sys.exit(f"error: {error.filename or 'disk'}: {error.strerror}; see who may write there, and what room is left")


if __name__ == "__main__":
    main()
