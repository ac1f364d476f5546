"""What the shop's database is set to must not change what the service promises."""

import asyncio
import io
import threading
from typing import Any

import pytest

from app.catalog.pool import Pool
from app.catalog.source import Sources
from app.settings import Database as DatabaseSettings
from app.settings import Duration, Store
from app.status.events import Stopping
from app.status.log import Log
from tests.conftest import Database, Loop


def setting(loop: Loop, database: Database, name: str) -> Any:
    async def ask() -> Any:
        pool = await Pool.open(database.dsn, DatabaseSettings(pool_size=1), lambda event: None)
        try:
            async with pool.connection() as connection:
                return await connection.fetchval(f"show {name}")
        finally:
            await pool.close()

    return loop.run(ask())


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("synchronous_commit", "off", "local"),
        ("synchronous_commit", "on", "on"),
        ("extra_float_digits", "0", "1"),
        ("default_transaction_isolation", "'serializable'", "read committed"),
        ("timezone", "'Asia/Tokyo'", "UTC"),
        ("jit", "on", "off"),
    ],
)
def test_a_default_of_the_database_is_not_ours(
    loop: Loop, database: Database, name: str, theirs: str, ours: str
) -> None:
    current = database.value("select current_database()")
    database.execute(f"alter database {current} set {name} = {theirs}")
    assert setting(loop, database, name) == ours


def test_bookmarks_stay_durable_when_the_server_is_set_otherwise_later(loop: Loop, database: Database) -> None:
    """A reload changes what sessions have not set themselves."""

    async def ask() -> Any:
        pool = await Pool.open(database.dsn, DatabaseSettings(pool_size=1), lambda event: None)
        try:
            async with pool.connection() as connection:
                sql = "select source from pg_settings where name = 'synchronous_commit'"
                return await connection.fetchval(sql)
        finally:
            await pool.close()

    assert loop.run(ask()) == "session"


def test_callers_of_one_feed_wait_together_while_the_database_is_away(loop: Loop, database: Database) -> None:
    """Not one after another, each with a patience of its own."""
    attempts = 0

    class Away(Pool):
        async def take(self) -> Any:
            nonlocal attempts
            attempts += 1
            raise ConnectionRefusedError

    async def ask() -> int:
        pool = await Pool.open(database.dsn, DatabaseSettings(pool_size=1, resume_for=Duration(0.3)), lambda e: None)
        away = Away(pool._pool, lambda event: None)  # noqa: SLF001
        sources = Sources(away, 0.3)
        store = Store(public_key="k", schema="dk", name="dk")
        results = await asyncio.gather(*(sources.of(store, "products") for _ in range(10)), return_exceptions=True)
        await pool.close()
        return sum(isinstance(result, Exception) for result in results)

    assert loop.run(ask()) == 10
    assert attempts < 10, "each of the callers asked on its own"


class Stuck(io.StringIO):
    """A pipe whose reader does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.freed = threading.Event()

    def write(self, text: str) -> int:
        self.freed.wait()
        return len(text)


def test_a_log_that_nobody_reads_stops_nobody() -> None:
    stream = Stuck()
    log = Log(stream, human=False)
    done = threading.Event()

    def emit() -> None:
        for _ in range(20_000):
            log(Stopping(seconds=1))
        done.set()

    threading.Thread(target=emit, daemon=True).start()
    assert done.wait(30), "the log made its writer wait"
    stream.freed.set()
    log.close()
