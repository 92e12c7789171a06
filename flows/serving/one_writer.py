"""Prefect on SQLite with writers that wait for one another.

Prefect begins a transaction on SQLite without the lock for writing and asks for it at the first write. When another
connection has written in between, SQLite says "database is locked" at once, whatever the time-out: the server answers
503, which a client tries again after two seconds, then four, and a click on the page does not. Here the lock is taken
when the transaction begins, so that SQLite's time-out of a minute applies; reading is not held up.
"""

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager

from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import temporary_database_config
from prefect.server.utilities.database import get_dialect
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


class OneWriter(AioSqliteConfiguration):
    """SQLite whose transactions begin with the lock for writing (`BEGIN IMMEDIATE`)."""

    @asynccontextmanager
    async def begin_transaction(
        self, session: AsyncSession, with_for_update: bool = False
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        """Begin a transaction as one that writes, whether the caller says so or not."""
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            yield transaction


def waiting_writers() -> AbstractContextManager[None]:
    """Let the server of this process use `OneWriter` on SQLite; PostgreSQL is left as it is."""
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    return temporary_database_config(OneWriter(connection_url=url) if get_dialect(url).name == "sqlite" else None)
