"""`python -m flows.serving.prefect_server server start`: Prefect's command, with writers that wait for one another."""

from prefect.cli import app

from flows.serving.one_writer import waiting_writers


def main() -> None:
    """Do what `prefect` does with the same arguments."""
    with waiting_writers():
        app()


if __name__ == "__main__":
    main()
