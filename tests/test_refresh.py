"""Refreshing among many: writers, importers, several processes, and processes that die."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from app.catalog.rendered import (
    OUTBOX_LOCK,
    REFRESH_LOCK,
    RefreshBusyError,
    Refresher,
    Summary,
    connection_for_refresh,
    leave_behind,
    note_still_served,
)
from app.protocol.feeds import FeedName
from tests.clerk import FakeClerk, problem
from tests.conftest import (
    PRODUCTS,
    Database,
    Loop,
    Running,
    Serve,
    Shop,
    base_config,
    eventually,
    ids,
    partition_attached,
    reloaded,
)
from tests.rendered import RenderedShop, bare, rendered, rendered_service
from tests.test_faults import fill, one_store, open_gate, shut_gate

__all__ = ["bare", "rendered", "rendered_service"]


def now(shop: Shop) -> float:
    return float(shop.database.value("select extract(epoch from clock_timestamp())::float8"))


# Deltas


def test_a_delta_holds_what_changed_whatever_the_source_says(rendered: RenderedShop) -> None:
    """A joined price changes: modified_at of the row does not."""
    rendered.execute("alter table {s}.products rename to base; create table {s}.prices as select id, 5 as amount"
                     " from {s}.base")  # fmt: skip
    rendered.execute("""create view {s}.products as select b.id, name, description, p.amount as price, image, url,
        categories, created_at, modified_at from {s}.base as b join {s}.prices as p on p.id = b.id""")
    rendered.refresh()
    before = wait_a_second(rendered)
    rendered.execute("update {s}.prices set amount = 6 where id in (17, 42)")
    rendered.refresh()
    assert rendered.delta(before) == [17, 42]
    assert rendered.delta(wait_a_second(rendered)) == []


def wait_a_second(shop: RenderedShop) -> float:
    """modified_after has whole seconds: a moment that lies in a second of its own."""
    moment = int(now(shop)) + 1
    eventually(lambda: now(shop) > moment)
    return moment


def test_a_refresh_is_in_the_delta_of_whoever_asked_before_it_could_be_seen(rendered: RenderedShop) -> None:
    """However long it took: its stamp is older than the importer's last sync."""
    rendered.execute("update {s}.products set name = 'Table' where id = 7")
    rendered.execute("alter table {s}.products rename to base")
    rendered.execute("""create view {s}.products as select id, name, description, price, image, url, categories,
        created_at + case when id = 50 then pg_sleep(3)::text::interval else '0' end as created_at
        from {s}.base""".replace("pg_sleep(3)::text::interval", "{s}.slow()").replace(
        "create view", "create function {s}.slow() returns interval language plpgsql as"
        " $$ begin perform pg_sleep(2.5); return '0'; end $$; create view"))  # fmt: skip
    thread = threading.Thread(target=rendered.refresh)
    thread.start()
    eventually(lambda: locks(rendered) == 1)
    asked = wait_a_second(rendered)
    assert thread.is_alive()
    assert rendered.delta(asked) == []
    thread.join()
    stamp, visible = rendered.database.fetch(
        "select extract(epoch from stamp)::float8, extract(epoch from visible)::float8 from clerk_feed.refresh"
        " order by id desc limit 1"
    )[0]
    assert stamp < asked < visible
    assert rendered.delta(asked) == [7]


def locks(shop: RenderedShop) -> int:
    return int(
        shop.database.value(
            "select count(*) from pg_locks where locktype = 'advisory' and classid = $1 and objid ="
            " (select id from clerk_feed.rendered where store = $2 and feed = 'products') and granted",
            REFRESH_LOCK,
            shop.name,
        )
    )


def test_a_refresh_whose_visibility_was_never_noted_is_in_every_delta_until_the_next(rendered: RenderedShop) -> None:
    rendered.execute("update {s}.products set name = 'Table' where id = 7")
    rendered.refresh()
    mine = "rendered = (select id from clerk_feed.rendered where store = '{s}' and feed = 'products')"
    rendered.execute("update clerk_feed.refresh set visible = null where id ="
                     f" (select max(id) from clerk_feed.refresh where {mine})")  # fmt: skip
    late = wait_a_second(rendered)
    assert rendered.delta(late) == [7]
    rendered.refresh()
    assert rendered.delta(late) == [7]
    assert rendered.delta(wait_a_second(rendered)) == []


def test_no_change_falls_between_deltas_while_a_writer_a_refresher_and_an_importer_work(
    rendered: RenderedShop,
) -> None:
    """An importer keeps a copy by deltas alone, without any overlap; in the end it equals the source.

    The writer commits some transactions long after they wrote, and refreshes take a while.
    """
    stop = threading.Event()
    failures: list[BaseException] = []

    def guarded(work: Any) -> threading.Thread:
        def run() -> None:
            try:
                while not stop.is_set():
                    work()
            except BaseException as error:  # noqa: BLE001 (a thread's failure is the test's)
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    count = 0

    def write() -> None:
        nonlocal count
        count += 1
        work = rendered.loop.run(
            writes(rendered.database.dsn, rendered.name, count, 0.3 if count % 5 == 0 else 0.0), timeout=30
        )
        assert work is None

    copy: dict[int, str] = {}
    last = 1.0

    def sync() -> None:
        nonlocal last
        # Clerk notes when it began, by its own clock in whole seconds, and asks from there the next time.
        began = float(int(now(rendered)))
        for item in rendered.walk("products", 40, modified_after=str(int(last) if last > 1e8 else 100_000_001)):
            copy[item["id"]] = item["name"]
        last = began

    threads = [guarded(write), guarded(rendered.refresh), guarded(sync)]
    eventually(lambda: count > 60 or bool(failures), 60)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert failures == []
    rendered.refresh()
    sync()
    source = {
        row["id"]: row["name"] for row in rendered.database.fetch(f"select id, name from {rendered.name}.products")
    }
    assert {id: copy.get(id) for id in source} == source


async def writes(dsn: str, schema: str, number: int, pause: float) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute(f"update {schema}.products set name = 'n{number}' where id % 37 = {number % 37}")
            await connection.execute(f"insert into {schema}.products (id, name) values ({1000 + number}, 'new')")
            await asyncio.sleep(pause)
    finally:
        await connection.close()


# Readers


def test_readers_are_not_blocked_and_a_page_never_mixes_old_and_new(rendered: RenderedShop) -> None:
    rendered.execute("update {s}.products set name = '0'")
    rendered.refresh()
    stop = threading.Event()

    def refresh() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            rendered.execute("update {s}.products set name = $1", str(number))
            rendered.refresh()

    thread = threading.Thread(target=refresh)
    thread.start()
    try:
        seen: set[str] = set()
        deadline = time.monotonic() + 20
        while len(seen) < 6 and time.monotonic() < deadline:
            names = {item["name"] for item in rendered.items("products?limit=100&offset=0")}
            assert len(names) == 1
            seen |= names
    finally:
        stop.set()
        thread.join()
    assert len(seen) >= 6


def test_a_reader_in_the_middle_of_the_old_items_does_not_stop_a_refresh(rendered: RenderedShop) -> None:
    async def both() -> None:
        reader = await asyncpg.connect(rendered.database.dsn)
        try:
            async with reader.transaction(isolation="repeatable_read"):
                await reader.fetch(f"select * from {table}")
                await asyncio.wait_for(rendered.refresher().refresh(rendered.store(), "products"), 30)
        finally:
            await reader.close()

    table = rendered.items_table()
    rendered.execute("update {s}.products set name = 'Table'")
    rendered.loop.run(both())
    assert {item["name"] for item in rendered.items("products")} == {"Table"}


# Several processes


def test_only_one_refresh_of_a_feed_at_a_time(rendered: RenderedShop) -> None:
    id = rendered.database.value(
        "select id from clerk_feed.rendered where store = $1 and feed = 'products'", rendered.name
    )
    rendered.database.execute("select pg_advisory_lock($1, $2)", REFRESH_LOCK, id)
    try:
        with pytest.raises(RefreshBusyError, match="is being refreshed by another process"):
            rendered.refresh()
    finally:
        rendered.database.execute("select pg_advisory_unlock($1, $2)", REFRESH_LOCK, id)
    assert rendered.refresh().unchanged == 100


def test_refreshes_that_are_started_together_all_end_well(rendered: RenderedShop) -> None:
    async def many() -> list[Any]:
        tries = (rendered.refresher().refresh(rendered.store(), "products") for _ in range(6))
        return await asyncio.gather(*tries, return_exceptions=True)

    for number in range(5):
        rendered.execute("update {s}.products set name = $1", f"name {number}")
        outcomes = rendered.loop.run(many())
        assert all(not isinstance(o, BaseException) or isinstance(o, RefreshBusyError) for o in outcomes), outcomes
        assert {item["name"] for item in rendered.items("products")} == {f"name {number}"}


def test_several_services_refresh_a_feed_once_an_interval_and_go_on_when_one_dies(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    database.execute("create schema dk")
    database.execute(PRODUCTS.replace("{s}", "dk"))
    database.execute("insert into dk.products (id) select generate_series(1, 10)")
    config = base_config(database.dsn, clerk.verify_url) + (
        '[stores.dk]\npublic_key = "key-dk"\n[stores.dk.feeds.products]\nrendered = true\nrefresh_every = "2s"\n'
    )
    services = [serve(config) for _ in range(3)]
    done = "select count(*) from clerk_feed.refresh where outcome = 'done'"
    eventually(lambda: database.value(done) >= 3)
    assert services[1].get("/dk/products").status == 200
    gaps = database.fetch(
        "select extract(epoch from started - lag(finished) over (order by id)) as gap from clerk_feed.refresh"
    )
    # Nine tenths of the interval, whichever process it was.
    assert all(row["gap"] is None or row["gap"] > 1.7 for row in gaps), gaps
    services[0].stop(signal.SIGKILL)
    services[1].stop()
    there = database.value(done)
    database.execute("update dk.products set name = 'Table' where id = 3")
    eventually(lambda: database.value(done) >= there + 2)
    names = {item["id"]: item["name"] for item in services[2].get("/dk/products").lines}
    assert names[3] == "Table"
    assert [e for s in services for e in s.events("Refreshed")]


def test_after_the_clock_was_set_back_refreshes_go_on(rendered: RenderedShop) -> None:
    rendered.execute(
        "update clerk_feed.refresh as f set finished = f.finished + interval '1 hour'"
        " from clerk_feed.rendered as r where r.id = f.rendered and r.store = $1",
        rendered.name,
    )
    assert rendered.refresh(unless_tried_within=60).unchanged == 100
    again = rendered.loop.run(rendered.refresher().refresh(rendered.store(), "products", unless_tried_within=60))
    assert again is None


def test_what_was_rendered_before_a_feed_was_served_unrendered_is_not_served_again(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    database.execute("create schema dk")
    database.execute(PRODUCTS.replace("{s}", "dk"))
    database.execute("insert into dk.products (id) select generate_series(1, 30)")
    plain = base_config(database.dsn, clerk.verify_url) + '[stores.dk]\npublic_key = "key-dk"\n'
    on = plain + "[stores.dk.feeds.products]\nrendered = true\n"
    service = serve(on)
    config = service.log.parent / "feed.toml"
    refresh = ("refresh", "--store", "dk", "--feed", "products")
    assert command(config, *refresh).returncode == 0
    assert len(service.get("/dk/products").lines) == 30
    service.stop()
    service = serve(plain)
    database.execute("insert into dk.products (id) select generate_series(31, 60)")
    assert len(service.get("/dk/products").lines) == 60
    service.stop()
    service = serve(on)
    said = problem(service.get("/dk/products"), 503, "feed-not-rendered")
    assert "not been rendered yet since it was served unrendered" in said["detail"]
    assert command(service.log.parent / "feed.toml", *refresh).returncode == 0
    eventually(lambda: service.get("/dk/products").status == 200)
    assert len(service.get("/dk/products").lines) == 60


def test_a_process_that_is_about_to_end_does_not_bring_back_what_its_successor_left_behind(
    rendered: RenderedShop,
) -> None:
    unrendered = msgspec.structs.replace(rendered.store(), feeds={})

    async def settings_changed(connection: Any) -> str:
        return await leave_behind(connection, [unrendered])

    async def refreshed() -> None:
        refresher = Refresher(lambda: connection_for_refresh(rendered.database.dsn), lambda event: None)
        await refresher.refresh(rendered.store(), "products")

    async def ended(connection: Any) -> str:
        return await note_still_served(connection, [unrendered], ended=began)

    def is_left_behind() -> bool:
        rows = "select count(*) from clerk_feed.unrendered where store = $1"
        return bool(rendered.database.value(rows, rendered.name))

    began = rendered.loop.run(with_connection(rendered.database.dsn, settings_changed))
    assert is_left_behind()
    rendered.loop.run(refreshed())
    assert is_left_behind()
    assert rendered.store().feed("orders").rendered  # never refreshed, so nothing of it was left
    rendered.loop.run(with_connection(rendered.database.dsn, ended))
    assert is_left_behind()
    rendered.loop.run(refreshed())
    assert not is_left_behind()


async def with_connection(dsn: str, work: Callable[[Any], Awaitable[str]]) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        return await work(connection)
    finally:
        await connection.close()


@dataclass
class Toggled:
    """A shop of 50 products, rendered four hours ago, and a service that renders it, or does not."""

    database: Database
    serve: Serve
    rendered: str
    plain: str
    folder: Path

    def start(self, config: str) -> Running:
        return self.serve(config)

    def refresh(self) -> None:
        config = self.folder / "refresh.toml"
        config.write_text(self.rendered)
        assert command(config, "refresh", "--store", "dk", "--feed", "products").returncode == 0

    def hours_pass(self, hours: int) -> None:
        ago = f"- interval '{hours} hours'"
        moments = ("started", "finished", "stamp", "visible")
        self.database.execute("update clerk_feed.refresh set " + ", ".join(f"{m} = {m} {ago}" for m in moments))
        table = self.database.value("select items_table from clerk_feed.rendered")
        self.database.execute(f"update clerk_feed.{table} set modified_at = modified_at {ago}")
        self.database.execute(f"update dk.products set modified_at = modified_at {ago}")


@pytest.fixture
def toggled(database: Database, clerk: FakeClerk, serve: Serve, tmp_path: Path) -> Toggled:
    database.execute("create schema dk")
    database.execute(PRODUCTS.replace("{s}", "dk"))
    database.execute(
        "insert into dk.products (id, name, modified_at)"
        " select i, 'old', now() - interval '1 day' from generate_series(1, 50) as i"
    )
    plain = base_config(database.dsn, clerk.verify_url) + '[stores.dk]\npublic_key = "key-dk"\n'
    return Toggled(database, serve, plain + "[stores.dk.feeds.products]\nrendered = true\n", plain, tmp_path)


def names_since(service: Running, since: float) -> dict[int, str]:
    return {item["id"]: item["name"] for item in service.get(f"/dk/products?modified_after={int(since)}").lines}


def test_what_another_history_has_told_clerk_is_told_anew(toggled: Toggled) -> None:
    """An item was deleted, at Clerk too; then a standby took over, or a dump, that knows nothing of it."""
    service = toggled.start(toggled.rendered)
    toggled.refresh()
    toggled.hours_pass(12)
    synced = time.time()
    assert set(names_since(service, synced - 7200)) == set()
    toggled.database.execute("update clerk_feed.refresh set timeline = 'another'")
    everything = set(range(1, 51))
    assert set(names_since(service, synced)) == everything
    toggled.refresh()
    assert set(names_since(service, synced)) == everything
    toggled.hours_pass(2)
    assert set(names_since(service, time.time())) == set()


def test_what_was_changed_and_changed_back_while_unrendered_is_in_the_next_delta(toggled: Toggled) -> None:
    service = toggled.start(toggled.rendered)
    toggled.refresh()
    service.stop()
    toggled.hours_pass(4)
    service = toggled.start(toggled.plain)
    toggled.database.execute("update dk.products set name = 'new', modified_at = now() where id = 7")
    synced = time.time()
    assert names_since(service, synced - 10)[7] == "new"
    service.stop()
    toggled.database.execute("update dk.products set name = 'old', modified_at = now() where id = 7")
    service = toggled.start(toggled.rendered)
    toggled.refresh()
    eventually(lambda: service.get("/dk/products").status == 200)
    assert names_since(service, synced)[7] == "old"


def test_a_transaction_open_across_the_last_refresh_is_in_a_delta_served_unrendered(toggled: Toggled) -> None:
    service = toggled.start(toggled.rendered)
    toggled.database.execute("begin")
    toggled.database.execute("update dk.products set name = 'new', modified_at = now() - interval '30 s' where id = 7")
    toggled.refresh()
    toggled.database.execute("commit")
    toggled.hours_pass(4)
    synced = time.time() - 900
    assert names_since(service, synced) == {}
    service.stop()
    assert names_since(toggled.start(toggled.plain), synced) == {7: "new"}


def assert_rendered_anew(toggled: Toggled, service: Running) -> None:
    """What a service sends from the source is in the feed that is rendered after it."""
    toggled.database.execute("insert into dk.products (id) select generate_series(51, 60)")
    assert len(service.get("/dk/products").lines) == 60
    service.stop()
    service = toggled.start(toggled.rendered)
    problem(service.get("/dk/products"), 503, "feed-not-rendered")
    toggled.refresh()
    eventually(lambda: service.get("/dk/products").status == 200)
    assert len(service.get("/dk/products").lines) == 60


def test_a_first_refresh_by_hand_while_the_feed_is_served_unrendered_is_not_served(toggled: Toggled) -> None:
    """Prepared, so that nobody meets a 503; but what is served until then would be missing from it."""
    service = toggled.start(toggled.plain)
    toggled.refresh()
    assert_rendered_anew(toggled, service)


def test_a_feed_is_refreshed_again_soon_when_who_served_it_unrendered_has_ended(toggled: Toggled) -> None:
    """As after a roll whose old worker still had an answer to send."""
    old = toggled.start(toggled.plain)
    new = toggled.start(toggled.rendered + 'refresh_every = "1h"\n')
    eventually(lambda: new.events("Refreshed") != [])
    toggled.database.execute("insert into dk.products (id) select generate_series(51, 60)")
    assert len(old.get("/dk/products").lines) == 60
    old.stop()
    problem(new.get("/dk/products"), 503, "feed-not-rendered")
    eventually(lambda: new.get("/dk/products").status == 200, 30)
    assert len(new.get("/dk/products").lines) == 60


def test_who_served_a_feed_unrendered_ends_while_its_first_refresh_runs(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, 200, held_at=200)
    database.execute("delete from shop.chairs where id = 150")
    plain = one_store(database.dsn, clerk)
    old = serve(plain)
    shut_gate(database)
    new = serve(plain + '[stores.shop.feeds.products]\nrendered = true\nrefresh_every = "1h"\n')
    eventually(lambda: database.value("select count(*) from pg_stat_activity where wait_event = 'advisory'") > 0)
    database.execute("insert into shop.chairs (id) values (150)")
    assert 150 in ids(old.get("/shop/products?limit=160&offset=0").lines)
    old.stop()
    open_gate(database)
    eventually(lambda: new.get("/shop/products").status == 200, 60)
    assert 150 in ids(new.get("/shop/products").lines)


def test_one_of_two_processes_that_serve_unrendered_ends(toggled: Toggled) -> None:
    service = toggled.start(toggled.rendered)
    toggled.refresh()
    service.stop()
    one, two = toggled.start(toggled.plain), toggled.start(toggled.plain)
    one.stop()
    toggled.refresh()
    toggled.database.execute("insert into dk.products (id) select generate_series(51, 60)")
    assert len(two.get("/dk/products").lines) == 60
    two.stop()
    service = toggled.start(toggled.rendered)
    problem(service.get("/dk/products"), 503, "feed-not-rendered")


def test_what_is_filled_anew_keeps_the_last_valid_versions(rendered: RenderedShop) -> None:
    rendered.execute("update {s}.products set price = null where id <= 10")
    rendered.refresh()
    rendered.execute(
        "insert into clerk_feed.unrendered (store, feed, served) values ($1, 'products', null)", rendered.name
    )
    assert rendered.refresh().items == 100
    assert len(rendered.items("products")) == 100


def test_an_item_that_is_not_valid_keeps_its_last_version_in_another_order(bare: RenderedShop) -> None:
    bare.execute("create table {s}.pages as select 'p' || i as id, 'cms' as type, 'https://shop.example/' || i as url,"
                 " 'Page' as title, 'Text' as text from generate_series(1, 50) as i")  # fmt: skip
    bare.refresh("pages")
    bare.execute("update {s}.pages set title = null where id = 'p7'")
    bare.refresh("pages")
    bare.execute('alter table {s}.pages alter id type text collate "C"')
    summary = bare.refresh("pages")
    assert (summary.items, summary.vanished) == (50, 0)
    assert len(bare.walk("pages")) == 50


@pytest.mark.parametrize("first", [False, True])
def test_a_refresh_looks_again_for_what_was_not_there(rendered: RenderedShop, first: bool) -> None:
    """A function looks at a table only after the statement has begun, to which one that was refilled is empty."""
    rendered.execute("create table {s}.listed as select id from {s}.products where id > 85")
    rendered.execute("alter table {s}.products rename to chairs")
    rendered.execute(
        "create function {s}.is_listed(bigint) returns boolean stable language plpgsql as"
        " $$ begin return exists (select from {s}.listed as l where l.id = $1); end $$"
    )
    rendered.execute("create view {s}.products as select * from {s}.chairs where id <= 85 or {s}.is_listed(id)")
    if first:
        rendered.database.execute("delete from clerk_feed.rendered where store = $1", rendered.name)
    else:
        assert rendered.refresh().vanished == 0
    summary = refreshed_while(rendered, partial(reloaded, rendered.loop, rendered.database, f"{rendered.name}.listed"))
    assert (summary.items, summary.vanished) == (100, 0)
    assert len(rendered.walk("products")) == 100


def test_a_refresh_that_meets_a_partition_attached_with_its_rows_buries_none_of_them(bare: RenderedShop) -> None:
    """Others vanish at the same time, and rightly."""
    bare.execute("create table {s}.parts (id bigint primary key) partition by range (id)")
    bare.execute("create table {s}.parts_default partition of {s}.parts default")
    bare.execute("insert into {s}.parts (id) select generate_series(1, 1000)")
    bare.execute(
        "create view {s}.pages as select id, 'article' as type, 'https://shop.example' as url, 't' as title,"
        " 'x' as text from {s}.parts"
    )
    assert bare.refresh("pages").items == 1000
    table = f"{bare.name}.parts"
    deleted = f"delete from {table} where id <= 60"
    attached = partial(partition_attached, bare.loop, bare.database, table, 500, 550, before=deleted)
    summary = refreshed_while(bare, attached, "pages")
    assert (summary.items, summary.vanished) == (940, 60)
    assert sorted(ids(bare.walk("pages"))) == list(range(61, 1001))
    buried = bare.database.fetch("select item from clerk_feed.tombstone where store = $1", bare.name)
    assert sorted(int(row["item"]) for row in buried) == list(range(1, 61))


def refreshed_while(
    shop: RenderedShop,
    change: Callable[[], AbstractContextManager[Callable[[Callable[[], Summary | None]], Summary | None]]],
    feed: FeedName = "products",
) -> Summary:
    """What a refresh comes to that waits for a transaction of somebody else."""
    beside = Loop()
    try:
        with change() as meanwhile:
            summary = meanwhile(lambda: beside.run(shop.refresher().refresh(shop.store(), feed)))
    finally:
        beside.stop()
    assert summary is not None
    return summary


def test_a_refresh_by_hand_while_the_feed_is_served_unrendered_is_not_the_last_one_needed(toggled: Toggled) -> None:
    service = toggled.start(toggled.rendered)
    toggled.refresh()
    toggled.hours_pass(4)
    toggled.database.execute(
        "update dk.products set name = 'new', modified_at = now() - interval '3 hours' where id = 7"
    )
    synced = time.time() - 900
    assert names_since(service, synced) == {}
    service.stop()
    service = toggled.start(toggled.plain)
    toggled.refresh()
    assert names_since(service, synced) == {7: "new"}
    assert_rendered_anew(toggled, service)


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("hours", [2, 6])
def test_what_the_last_refresh_holds_but_no_delta_yet_is_in_one_served_unrendered(
    toggled: Toggled, hours: int, restarted: bool
) -> None:
    """A refresh, a change, a delta, a refresh; and rendering is turned off before the next delta."""
    service = toggled.start(toggled.rendered)
    toggled.refresh()
    toggled.hours_pass(hours)
    toggled.database.execute(
        "update dk.products set name = 'new', modified_at = now() - make_interval(hours => $1, mins => -5)"
        " where id = 7",
        hours,
    )
    synced = time.time()
    assert names_since(service, synced) == {}  # it is not rendered yet
    toggled.refresh()
    for _ in range(2 if restarted else 1):
        service.stop()
        service = toggled.start(toggled.plain)
    assert names_since(service, synced) == {7: "new"}


def test_a_delta_rendered_while_the_next_process_waits_for_a_deletion_misses_nothing(toggled: Toggled) -> None:
    overlap = 'public_key = "key-dk"\nincremental_overlap = "1s"\n'
    toggled.rendered = toggled.rendered.replace('public_key = "key-dk"\n', overlap)
    toggled.plain = toggled.plain.replace('public_key = "key-dk"\n', overlap)
    old = toggled.start(toggled.rendered)
    toggled.refresh()
    loop = Loop()
    with closing(Database(loop, toggled.database.dsn)) as pushing, ThreadPoolExecutor(1) as threads:
        id = toggled.database.value("select id from clerk_feed.rendered")
        pushing.execute("select pg_advisory_lock($1, $2)", OUTBOX_LOCK, id)  # a deletion is on its way to Clerk
        starting = threads.submit(toggled.start, toggled.plain)
        waiting = "select count(*) from pg_locks where not granted and locktype = 'advisory'"
        eventually(lambda: toggled.database.value(waiting) == 1)
        toggled.database.execute("update dk.products set name = 'new', modified_at = now() where id = 7")
        time.sleep(3)  # more than the overlap
        synced = time.time()
        assert names_since(old, synced) == {}  # of rendered items, rightly so
        pushing.execute("select pg_advisory_unlock($1, $2)", OUTBOX_LOCK, id)
        service = starting.result(60)
    loop.stop()
    old.stop()
    assert names_since(service, synced) == {7: "new"}


def test_a_roll_that_fails_leaves_a_rendered_feed_as_it_is(
    toggled: Toggled, database: Database, create_database: Callable[[], Database]
) -> None:
    service = toggled.start(toggled.rendered)
    toggled.refresh()
    assert service.get("/dk/products").status == 200
    elsewhere = f'dsn = "{create_database().dsn}"\nstate_dsn = "{database.dsn}"\nresume_for = "1s"'
    broken = toggled.plain.replace(f'dsn = "{database.dsn}"', elsewhere)
    (service.log.parent / "feed.toml").write_text(broken)
    service.process.send_signal(signal.SIGHUP)
    eventually(lambda: service.events("ReloadRefused") != [], 60)
    assert database.fetch("select * from clerk_feed.unrendered") == []
    time.sleep(2.5)  # as long as descriptions of sources are kept
    assert service.get("/dk/products").status == 200


def test_a_delta_across_the_end_of_rendering_misses_nothing(database: Database, clerk: FakeClerk, serve: Serve) -> None:
    """What changed since the last refresh was in no delta of rendered items."""
    database.execute("create schema dk")
    database.execute(PRODUCTS.replace("{s}", "dk"))
    database.execute(
        "insert into dk.products (id, modified_at) select i, now() - interval '1 day' from generate_series(1, 50) as i"
    )
    plain = base_config(database.dsn, clerk.verify_url) + '[stores.dk]\npublic_key = "key-dk"\n'
    service = serve(plain + "[stores.dk.feeds.products]\nrendered = true\n")
    assert command(service.log.parent / "feed.toml", "refresh", "--store", "dk", "--feed", "products").returncode == 0
    database.execute(
        "update clerk_feed.refresh set "
        + ", ".join(
            f"{moment} = {moment} - interval '4 hours'" for moment in ("started", "finished", "stamp", "visible")
        )
    )
    table = database.value("select items_table from clerk_feed.rendered")
    database.execute(f"update clerk_feed.{table} set modified_at = modified_at - interval '4 hours'")
    database.execute("update dk.products set name = 'new', modified_at = now() - interval '3 hours' where id = 7")
    synced = int(time.time()) - 900
    assert service.get(f"/dk/products?modified_after={synced}").lines == []
    service.stop()
    service = serve(plain)
    assert [item["id"] for item in service.get(f"/dk/products?modified_after={synced}").lines] == [7]


def test_a_delta_reaches_across_the_end_of_rendering_by_the_moment_it_began(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    """Hours back, reckoned from the page that comes to the dated items, would not."""
    database.execute("create schema dk")
    database.execute(PRODUCTS.replace("{s}", "dk"))
    database.execute("insert into dk.products (id, modified_at) select generate_series(1, 20), null")
    plain = base_config(database.dsn, clerk.verify_url) + '[stores.dk]\npublic_key = "key-dk"\n'
    service = serve(plain + "[stores.dk.feeds.products]\nrendered = true\n")
    assert command(service.log.parent / "feed.toml", "refresh", "--store", "dk", "--feed", "products").returncode == 0
    moments = ", ".join(f"{name} = {name} - interval '4 hours'" for name in ("started", "finished", "stamp", "visible"))
    database.execute(f"update clerk_feed.refresh set {moments}")
    # Changed after the last refresh, an hour before rendering was turned off, which is two and a half hours ago.
    database.execute("insert into dk.products (id, modified_at) values (99, now() - interval '210 minutes')")
    service.stop()
    service = serve(plain)
    database.execute("update clerk_feed.unrendered set since = since - interval '150 minutes'")
    delta = "/dk/products?modified_after=1"
    eventually(lambda: 99 not in ids(service.get(delta).lines))
    assert len(service.get(f"{delta}&limit=20&offset=0").lines) == 20
    database.execute("update clerk_feed.bookmark set began = began - interval '1 hour'")
    assert ids(service.get(f"{delta}&limit=20&offset=20").lines) == [99]


def test_readyz_is_degraded_while_a_refresh_is_held_back_or_late_and_serves(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    database.execute("create schema dk")
    database.execute(PRODUCTS.replace("{s}", "dk"))
    database.execute("insert into dk.products (id) select generate_series(1, 100)")
    service = serve(
        base_config(database.dsn, clerk.verify_url)
        + '[stores.dk]\npublic_key = "key-dk"\n[stores.dk.feeds.products]\nrendered = true\nrefresh_every = "1s"\n'
    )
    eventually(lambda: service.get("/-/readyz", token=None).json == {"status": "ok"})
    database.execute("delete from dk.products where id > 20")
    eventually(lambda: service.get("/-/readyz", token=None).json == {"status": "degraded"})
    answer = service.get("/-/readyz", token=None, admin=True)
    assert answer.status == 200
    (reason,) = answer.json["reasons"]
    assert "would have 20 items; the most in 24 hours were 100" in reason
    assert "clerk-feed refresh --store dk --feed products --accept-shrink" in reason
    assert len(service.get("/dk/products").lines) == 100
    held = service.events("RefreshHeldBack")[0]
    assert (held["store"], held["feed"], held["items"], held["most"]) == ("dk", "products", 20, 100)
    config = service.log.parent / "feed.toml"

    def accepted() -> bool:
        done = command(config, "refresh", "--store", "dk", "--feed", "products", "--accept-shrink")
        assert done.returncode == 0 or "is being refreshed by another process" in done.stderr, done.stderr
        return "dk/products: 20 items: 0 new, 0 changed, 20 unchanged, 80 vanished, 0 invalid" in done.stdout

    eventually(accepted)  # once the service is not at a refresh of its own
    eventually(lambda: service.get("/-/readyz", token=None).json == {"status": "ok"})
    assert len(service.get("/dk/products").lines) == 20
    # The source is gone: what was rendered is served, and after three intervals it is too old.
    database.execute("alter table dk.products rename to elsewhere")
    eventually(lambda: service.get("/-/readyz", token=None).json == {"status": "degraded"})
    (reason,) = service.get("/-/readyz", token=None, admin=True).json["reasons"]
    assert "products of dk was last refreshed" in reason
    assert "has no view or table" in reason
    assert len(service.get("/dk/products").lines) == 20


def command(config: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "app", words[0], "--config", str(config), *words[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        check=False,
    )


# The command


@pytest.fixture
def config(rendered: RenderedShop, tmp_path: Path) -> Path:
    path = tmp_path / "feed.toml"
    path.write_text(f"""
[database]
dsn = {json.dumps(rendered.database.dsn)}
[stores.{rendered.name}]
public_key = "pk"
feeds.products.rendered = true
""")
    return path


def test_the_command_says_what_a_refresh_came_to(rendered: RenderedShop, config: Path) -> None:
    rendered.execute("update {s}.products set name = 'Table' where id = 7")
    would = command(config, "refresh", "--dry-run")
    assert would.returncode == 0, would.stderr
    counts = f"{rendered.name}/products: 100 items: 0 new, 1 changed, 99 unchanged, 0 vanished, 0 invalid"
    assert would.stdout.startswith(counts)
    assert "nothing was written" in would.stdout
    done = command(config, "refresh")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(counts)
    assert command(config, "refresh").stdout.startswith(counts.replace("1 changed, 99", "0 changed, 100"))


def test_the_command_exits_non_zero_where_a_refresh_is_held_back(rendered: RenderedShop, config: Path) -> None:
    rendered.execute("delete from {s}.products where id > 10")
    done = command(config, "refresh")
    assert done.returncode == 1
    assert "products of" in done.stderr
    assert "would have 10 items; the most in 24 hours were 100" in done.stderr
    assert "--accept-shrink" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--store", "nowhere"], "there is no store 'nowhere'"),
        (["--feed", "orders"], "no feed that is meant is rendered; set rendered = true in"),
        (["--accept-shrink"], "--accept-shrink needs --store and --feed"),
        (["--items", "5"], "--items belongs to --accept-shrink"),
    ],
)
def test_the_command_names_what_is_wrong(config: Path, rendered: RenderedShop, words: list[str], said: str) -> None:
    done = command(config, "refresh", *words)
    assert done.returncode == 1
    assert said in done.stderr


# Dying

_DIES = """
import asyncio, os, signal, sys

import asyncpg

from app.catalog import rendered
from app.settings import FeedSettings, Store

dsn, name, left, when = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]

class Dying:
    def __init__(self, connection):
        self._connection = connection

    def __getattr__(self, name):
        found = getattr(self._connection, name)
        if name not in ("execute", "fetch", "fetchval", "fetchrow"):
            return found
        async def counted(*arguments):
            global left
            if left == 0 and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            answer = await found(*arguments)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return answer
        return counted

async def connect():
    return Dying(await rendered.connection_for_refresh(dsn))

store = Store(public_key="pk", schema=name, name=name, feeds={"products": FeedSettings(rendered=True)})
asyncio.run(rendered.Refresher(connect, lambda event: None).refresh(store, "products"))
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("first", [True, False], ids=["the first refresh", "a later one"])
def test_a_process_killed_at_any_step_leaves_the_last_good_state(bare: RenderedShop, first: bool, when: str) -> None:
    bare.execute(PRODUCTS)
    bare.execute("insert into {s}.products (id, name) select n, 'old' from generate_series(1, 100) as n")
    if not first:
        bare.refresh()
        bare.execute("update {s}.products set name = 'new'; delete from {s}.products where id = 1")
        bare.execute("insert into {s}.products (id, name) values (101, 'new'), (102, null)")
    committed = step = 0
    while True:
        process = subprocess.run(
            [sys.executable, "-c", _DIES, bare.database.dsn, bare.name, str(step), when],
            capture_output=True,
            timeout=60,
            check=False,
        )
        step += 1
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, process.stderr
        eventually(lambda: not bare.database.value(
            "select count(*) from pg_locks where locktype = 'advisory' and classid = $1 and database ="
            " (select oid from pg_database where datname = current_database())", REFRESH_LOCK))  # fmt: skip
        answer = bare.get("products")
        if answer.status == 503:
            assert first
            assert not committed
            continue
        names = {item["name"] for item in answer.lines}
        assert len(answer.lines) == 100
        assert len(names) == 1
        if first or names == {"new"}:
            committed += 1
            if not first:
                assert bare.delta(now(bare) - 1) != [] or bare.state()["refreshed"] is not None
        else:
            assert not committed
    assert step > 10
    assert committed
    summary = bare.refresh()
    assert (summary.items, summary.added, summary.changed, summary.vanished) == (100, 0, 0, 0)
    graves = bare.database.value("select count(*) from clerk_feed.tombstone where store = $1", bare.name)
    assert graves == (0 if first else 1)


def test_a_backend_that_is_terminated_in_the_middle_leaves_the_last_good_state(rendered: RenderedShop) -> None:
    rendered.execute("alter table {s}.products rename to base")
    rendered.execute("""create function {s}.slow() returns text language plpgsql as
        $$ begin perform pg_sleep(20); return 'slow'; end $$""")
    rendered.execute("""create view {s}.products as select id, case when id = 50 then {s}.slow() else 'new' end as name,
        description, price, image, url, categories, created_at from {s}.base""")
    failed: list[BaseException] = []

    def refresh() -> None:
        try:
            rendered.refresh()
        except Exception as error:  # noqa: BLE001 (looked at below)
            failed.append(error)

    thread = threading.Thread(target=refresh)
    thread.start()
    eventually(lambda: locks(rendered) == 1)
    assert {item["name"] for item in rendered.items("products")} == {"Chair"}
    rendered.database.execute(
        "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and classid = $1"
        " and objid = (select id from clerk_feed.rendered where store = $2 and feed = 'products')",
        REFRESH_LOCK,
        rendered.name,
    )
    thread.join(20)
    assert "The database went away" in str(failed[0])
    assert {item["name"] for item in rendered.items("products")} == {"Chair"}
    rendered.execute("drop view {s}.products; alter table {s}.base rename to products")
    assert rendered.refresh().unchanged == 100
