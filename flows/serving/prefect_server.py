"""`python -m flows.serving.prefect_server server start`: Prefect's command, set up for what `cgal` asks of its server.

Writers wait for one another (`flows.serving.one_writer`), and leases of concurrency slots lie in files below
`PREFECT_HOME`: Prefect would keep them in memory, so that a slot taken before a restart were never given back.
"""

import os

LEASES = "prefect.server.concurrency.lease_storage.filesystem"


def main() -> None:
    """Do what `prefect` does with the same arguments."""
    os.environ.setdefault("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", LEASES)  # before Prefect reads its settings
    from prefect.cli import app

    from flows.serving.one_writer import waiting_writers

    with waiting_writers():
        app()


if __name__ == "__main__":
    main()
