"""`python -m flows.serving.prefect_server server start`: Prefect's command, with writers that wait for one another.

Prefect begins a transaction on SQLite without the lock for writing and asks for it at the first write. When another
connection has written in between, SQLite says "database is locked" at once, whatever the time-out: the server answers
503, which a worker tries again some times and a click on the page does not. Here the lock is taken when the transaction
begins, so that SQLite's time-out of a minute applies; reading is not held up. PostgreSQL is left as it is.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import temporary_database_config
from prefect.server.utilities.database import get_dialect
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

__all__ = ["OneWriter"]


class OneWriter(AioSqliteConfiguration):
    """SQLite whose transactions begin with the lock for writing (`BEGIN IMMEDIATE`)."""

    @asynccontextmanager
    async def begin_transaction(
        self, session: AsyncSession, with_for_update: bool = False
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        """Begin a transaction as one that writes, whether the caller says so or not."""
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            yield transaction


def main() -> None:
    """Do what `prefect` does with the same arguments."""
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    one_writer = OneWriter(connection_url=url) if get_dialect(url).name == "sqlite" else None
    with temporary_database_config(one_writer):
        app()


if __name__ == "__main__":
    main()
