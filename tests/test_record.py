"""The record of what happened: right with several processes, bounded, and in nobody's way."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import pytest

from app.catalog.schema import migrate
from app.status import events
from app.status.record import Activity, Record, connection_for_record
from tests.conftest import Database, Loop


def refused(code: str = "token-rejected", detail: str = "Seen.", store: str = "dk") -> events.Refused:
    return events.Refused(
        store=store, feed="products", method="GET", path="/", address="::1", status=401, code=code, detail=detail
    )


@pytest.fixture
def make(database: Database, loop: Loop) -> Iterator[Callable[[], Record]]:
    """Makes records of processes."""
    made: list[Record] = []

    async def prepare() -> None:
        connection = await connection_for_record(database.dsn)
        await migrate(connection)
        await connection.close()

    def record() -> Record:
        made.append(Record("1.0", lambda: Activity(tokens=2), lambda: connection_for_record(database.dsn)))
        return made[-1]

    loop.run(prepare())
    yield record
    for each in made:
        loop.run(each.close())


def written(loop: Loop, *records: Record) -> None:
    """Let records write, at the same time."""

    async def write() -> None:
        await asyncio.gather(*(each.write() for each in records))

    loop.run(write())


def rows(database: Database) -> list[tuple[Any, ...]]:
    return [
        tuple(row)
        for row in database.fetch(
            "select kind, store, feed, code, count, detail from clerk_feed.occurrence order by kind, store, code"
        )
    ]


def test_processes_add_up(database: Database, loop: Loop, make: Callable[[], Record]) -> None:
    records = [make() for _ in range(5)]
    for each in records:
        for store in ("dk", "de", "se"):
            each(refused(store=store))
            each(refused(store=store))
    written(loop, *records)
    assert rows(database) == [("refused", s, "products", "token-rejected", 10, "Seen.") for s in ("de", "dk", "se")]
    assert database.value("select count(*) from clerk_feed.process where tokens = 2 and version = '1.0'") == 5
    written(loop, *records)
    assert [row[4] for row in rows(database)] == [10, 10, 10], "what was written is not written again"


def test_a_process_that_stops_is_gone(database: Database, loop: Loop, make: Callable[[], Record]) -> None:
    stopping = make()
    stopping(refused())
    written(loop, stopping, make())
    loop.run(stopping.close())
    assert database.value("select count(*) from clerk_feed.process") == 1
    assert len(rows(database)) == 1


def test_what_can_not_be_written_waits(
    database: Database, loop: Loop, make: Callable[[], Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make()

    async def away() -> None:
        raise asyncpg.CannotConnectNowError("starting up")

    with monkeypatch.context() as patch:
        patch.setattr(one, "_connect", away)
        one(refused(detail="First."))
        written(loop, one)
    one(refused(detail="Second."))
    written(loop, one)
    assert rows(database) == [("refused", "dk", "products", "token-rejected", 2, "Second.")]


def test_what_waits_is_bounded(database: Database, loop: Loop, make: Callable[[], Record]) -> None:
    one = make()
    for number in range(20_000):
        one(refused(code=f"code-{number}"))
    one(refused(code="code-1"))
    written(loop, one)
    assert database.value("select count(*) from clerk_feed.occurrence") == 10_000
    assert database.value("select count from clerk_feed.occurrence where code = 'code-1'") == 2


@pytest.mark.parametrize("detail", ["x" * 10_000, "a\0b", "\ud800", "é" * 400, ""])
def test_a_detail_may_be_anything(database: Database, loop: Loop, make: Callable[[], Record], detail: str) -> None:
    one = make()
    one(refused(detail=detail))
    one(refused("other"))
    written(loop, one)
    assert [row[3] for row in rows(database)] == ["other", "token-rejected"]


def test_each_attribute_that_is_missing_is_counted(database: Database, loop: Loop, make: Callable[[], Record]) -> None:
    one = make()
    one(events.ItemsInvalid(store="dk", feed="products", items=((1, ("price", "url")), ("b", ("price",)))))
    written(loop, one)
    assert rows(database) == [
        ("invalid", "dk", "products", "price", 2, "id b"),
        ("invalid", "dk", "products", "url", 1, "id 1"),
    ]


def test_verify_is_told_with_how_long_it_took(database: Database, loop: Loop, make: Callable[[], Record]) -> None:
    one = make()
    one(events.TokenVerified(store="dk", good=True, seconds=0.5))
    one(events.TokenVerified(store="dk", good=True, seconds=0.25))
    one(events.ClerkUnreachable(store="dk", cause="no answer within 5 s", seconds=5, grace=False))
    written(loop, one)
    found = database.fetch("select code, count, seconds, detail from clerk_feed.occurrence order by code")
    assert [tuple(row) for row in found] == [("good", 2, 0.75, ""), ("unreachable", 1, 5.0, "no answer within 5 s")]


def test_what_is_old_is_swept(database: Database, loop: Loop, make: Callable[[], Record]) -> None:
    one = make()
    one(refused())
    written(loop, one)
    database.execute("update clerk_feed.occurrence set hour = now() - interval '8 days'")
    database.execute("update clerk_feed.process set seen = now() - interval '2 days'")
    loop.run(one.sweep())
    assert rows(database) == []
    assert database.value("select count(*) from clerk_feed.process") == 0


def test_a_connection_that_was_lost_is_made_anew(database: Database, loop: Loop, make: Callable[[], Record]) -> None:
    one = make()
    one(refused())
    written(loop, one)
    database.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = 'clerk-feed record' and datname = current_database()"
    )
    one(refused())
    written(loop, one)
    written(loop, one)
    assert [row[4] for row in rows(database)] == [2]
