"""Commands that serve the project: both servers with their workers, or one worker."""

from typing import Annotated

import typer

from flows.cli.project import HERE, Root, open_project

__all__ = ["serve", "worker"]


def serve(
    root: Root = HERE,
    prefect_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Prefect's server.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of MLflow's server.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback want passwords.")] = "127.0.0.1",
) -> None:
    """Run Prefect and MLflow servers and a worker for each pool, until Ctrl-C; only this machine reaches them."""
    root = open_project(root)
    from flows.serving.serve import serve as serve_project
    from flows.tracking.runs import experiment_name
    from flows.workspace import Workspace

    serve_project(root, experiment_name(Workspace(root).campaign_proteins), prefect_port, mlflow_port, host)


def worker(
    pool: Annotated[str, typer.Argument(help="cgal-cpu or cgal-gpu.")],
    root: Root = HERE,
    check: Annotated[
        bool, typer.Option("--check", help="Only tell by the exit code whether this machine's worker is at work.")
    ] = False,
) -> None:
    """Run a worker of a pool, for the Prefect server that PREFECT_API_URL names; 'cgal serve' starts its own."""
    root = open_project(root)
    if check:
        from flows.serving.health import require_worker

        require_worker(pool)
        return
    from flows.serving.pools import POOLS, become_worker

    if pool not in POOLS:
        raise typer.BadParameter(f"no pool {pool!r}; the pools are {', '.join(POOLS)}")
    become_worker(root, pool)
