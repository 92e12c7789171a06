"""`python -m flows.cli` is `cgal`."""

from flows.cli.main import main

main()
