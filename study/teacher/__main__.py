"""`python -m study.teacher`."""

import typer

from study.teacher.records import main

typer.run(main)
