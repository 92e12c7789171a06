"""What `cgal serve` keeps between its lives, and how its Prefect server writes."""

import asyncio
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa
from prefect.server.database.configurations import AioSqliteConfiguration

from flows.serving import serve
from flows.serving.one_writer import OneWriter
from flows.workspace import Workspace


def test_a_log_is_appended_to_and_a_large_one_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "LARGE_LOG_BYTES", 60)
    path = tmp_path / "worker.log"
    for life in range(6):
        with serve.open_log(path) as log:
            log.write(f"life {life}\n".encode())
    lives = [[line for line in (tmp_path / name).read_text().splitlines() if line.startswith("life")]
             for name in ("worker.log.2", "worker.log.1", "worker.log")]  # fmt: skip
    assert lives == [["life 0", "life 1"], ["life 2", "life 3"], ["life 4", "life 5"]]


def test_scratch_of_a_published_round_is_removed_but_for_its_failed_labels(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[1] / "params.yaml", tmp_path)
    workspace = Workspace(tmp_path)
    for name in ("train", "committee-0", "label-r000", "label-r001"):
        workspace.scratch(name).mkdir(parents=True)
        (workspace.scratch(name) / "state.pt").touch()
    workspace.prune_scratch(keep="label-r001")
    assert [folder.name for folder in (tmp_path / ".cgal" / "work").iterdir()] == ["label-r001"]


@pytest.mark.parametrize("configuration", [AioSqliteConfiguration, OneWriter])
def test_of_two_that_read_and_then_write_the_later_waits(
    configuration: type[AioSqliteConfiguration], tmp_path: Path
) -> None:
    """What Prefect's own configuration refuses at once: the first has read, the second writes, the first writes too."""

    async def read_then_write(
        database: AioSqliteConfiguration, has_read: asyncio.Event, may_write: asyncio.Event
    ) -> None:
        session = await database.session(await database.engine())
        async with session, database.begin_transaction(session):
            await session.execute(sa.text("SELECT count(*) FROM written"))
            has_read.set()
            await may_write.wait()
            await session.execute(sa.text("INSERT INTO written VALUES (1)"))

    async def both() -> int:
        database = configuration(connection_url=f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}")
        engine = await database.engine()
        async with engine.begin() as connection:
            await connection.execute(sa.text("CREATE TABLE written (number INTEGER)"))
        first_has_read, first_may_write, second_has_read = asyncio.Event(), asyncio.Event(), asyncio.Event()
        at_once = asyncio.Event()
        at_once.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(read_then_write(database, first_has_read, first_may_write))
            await first_has_read.wait()
            second = group.create_task(read_then_write(database, second_has_read, at_once))
            await asyncio.wait([second], timeout=1.0)
            first_may_write.set()
        async with engine.connect() as connection:
            return int((await connection.execute(sa.text("SELECT count(*) FROM written"))).scalar_one())

    if configuration is OneWriter:
        assert asyncio.run(both()) == 2
    else:
        with pytest.raises(ExceptionGroup) as refused:
            asyncio.run(both())
        assert refused.group_contains(sa.exc.OperationalError, match="database is locked")
