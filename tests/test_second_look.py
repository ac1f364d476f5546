"""Rows that a statement misses although they exist all the time: partitions, inheritance, functions, foreign tables."""

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.catalog.pool import Pool
from app.catalog.reader import Reader
from app.catalog.source import Source, Sources, describe
from app.catalog.statements import Position, Span
from app.settings import Database as DatabaseSettings
from app.settings import Store
from tests.clerk import FakeClerk, problem
from tests.conftest import Database, Loop, Serve, changed, eventually, ids, partition_attached, reloaded
from tests.test_faults import fill, one_store

DEFINITIONS = {
    "a table": ("create table shop.customers (id bigint, email text)", False, False),
    "a view of a view": (
        (
            "create table shop.people (id bigint, email text); create view shop.all as select * from shop.people;"
            " create view shop.customers as select id, lower(email) as email from shop.all"
        ),
        False,
        False,
    ),
    "an immutable function": (
        (
            "create function shop.shown(text) returns text immutable language plpgsql as $$ begin return $1; end $$;"
            " create table shop.people (id bigint, email text);"
            " create view shop.customers as select id, shop.shown(email) as email from shop.people"
        ),
        False,
        False,
    ),
    "a stable function in a view of a view": (
        (
            "create function shop.shown(text) returns text stable language plpgsql as $$ begin return $1; end $$;"
            " create table shop.people (id bigint, email text);"
            " create view shop.all as select id, shop.shown(email) as email from shop.people;"
            " create view shop.customers as select * from shop.all"
        ),
        True,
        False,
    ),
    "what a materialized view was made with": (
        (
            "create function shop.shown(text) returns text stable language plpgsql as $$ begin return $1; end $$;"
            " create table shop.people (id bigint, email text);"
            " create materialized view shop.customers as select id, shop.shown(email) as email from shop.people"
        ),
        False,
        False,
    ),
    "a policy that looks into partitions": (
        (
            "create table shop.seen (id bigint) partition by list (id);"
            " create table shop.customers (id bigint, email text);"
            " alter table shop.customers enable row level security;"
            " create policy known on shop.customers using (id in (select s.id from shop.seen as s))"
        ),
        False,
        True,
    ),
    "a policy that calls a function": (
        (
            "create function shop.shown(text) returns boolean stable language plpgsql as $$ begin return true; end $$;"
            " create table shop.customers (id bigint, email text);"
            " alter table shop.customers enable row level security;"
            " create policy seen on shop.customers using (shop.shown(email))"
        ),
        True,
        False,
    ),
    "a stable function behind an operator": (
        (
            "create function shop.seen(text, text) returns boolean stable language plpgsql as"
            " $$ begin return true; end $$;"
            " create operator shop.=== (leftarg = text, rightarg = text, function = shop.seen);"
            " create table shop.people (id bigint, email text);"
            " create view shop.customers as select * from shop.people where email operator(shop.===) 'x'"
        ),
        True,
        False,
    ),
    "a stable function behind an aggregate": (
        (
            "create function shop.add(bigint, text) returns bigint stable language plpgsql as"
            " $$ begin return $1 + 1; end $$;"
            " create aggregate shop.how_many(text) (sfunc = shop.add, stype = bigint, initcond = '0');"
            " create table shop.people (id bigint, email text);"
            " create view shop.customers as select id, shop.how_many(email)::text as email from shop.people group by id"
        ),
        True,
        False,
    ),
    "an aggregate of PostgreSQL's own": (
        (
            "create table shop.people (id bigint, email text);"
            " create view shop.customers as select id, string_agg(email, ' ') as email from shop.people group by id"
        ),
        False,
        False,
    ),
    "a foreign table": (
        (
            "create foreign data wrapper none_at_all; create server other foreign data wrapper none_at_all;"
            " create foreign table shop.customers (id bigint, email text) server other"
        ),
        True,
        False,
    ),
    "partitions in a view": (
        (
            "create table shop.people (id bigint, email text) partition by list (id);"
            " create view shop.customers as select * from shop.people"
        ),
        False,
        True,
    ),
    "a partition on another server": (
        (
            "create foreign data wrapper none_at_all; create server other foreign data wrapper none_at_all;"
            " create table shop.customers (id bigint, email text) partition by list (id);"
            " create foreign table shop.first partition of shop.customers for values in (1) server other"
        ),
        True,
        True,
    ),
    "tables that inherit": (
        "create table shop.customers (id bigint, email text); create table shop.some () inherits (shop.customers)",
        False,
        True,
    ),
}


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_which_sources_are_looked_at_twice(database: Database, loop: Loop, kind: str) -> None:
    sql, looks_late, has_partitions = DEFINITIONS[kind]
    database.execute("create schema shop")
    database.execute(sql)
    source = loop.run(described(database.dsn))
    assert (source.looks_late, bool(source.partitions)) == (looks_late, has_partitions)


async def described(dsn: str) -> Source:
    pool = await Pool.open(dsn, DatabaseSettings(), lambda event: None)
    try:
        async with pool.connection() as connection:
            return await describe(connection, Store(public_key="key", name="shop", schema="shop"), "customers")
    finally:
        await pool.close()


@pytest.mark.parametrize("limit", [50, 150, 1000])
@pytest.mark.parametrize("size", [7, 9000])
def test_a_page_let_through_in_part_by_a_function_whose_table_is_filled_anew_is_whole(
    database: Database, clerk: FakeClerk, serve: Serve, loop: Loop, limit: int, size: int
) -> None:
    """What is let through otherwise lies behind what is not, so that the page is full."""
    fill(database, 3 * limit, description="x" * size)
    database.execute("create table shop.stock as select id from shop.products")
    database.execute("alter table shop.stock add primary key (id)")
    database.execute("alter table shop.products rename to chairs")
    database.execute(
        "create function shop.in_stock(bigint) returns boolean stable language plpgsql as"
        " $$ begin return exists (select from shop.stock as l where l.id = $1); end $$"
    )
    database.execute("create view shop.products as select * from shop.chairs where id % 2 = 0 or shop.in_stock(id)")
    service = serve(one_store(database.dsn, clerk))
    found = ids(service.get(f"/shop/products?limit={limit}&offset=0").lines)
    time.sleep(2.5)  # what was read ahead is given up
    with reloaded(loop, database, "shop.stock") as meanwhile:
        found += ids(meanwhile(partial(service.get, f"/shop/products?limit={limit}&offset={limit}")).lines)
    found += ids(service.get(f"/shop/products?limit={limit}&offset={2 * limit}").lines)
    assert found == list(range(1, 3 * limit + 1))


def test_items_that_lack_something_while_a_table_is_filled_anew_are_not_left_out(
    database: Database, clerk: FakeClerk, serve: Serve, loop: Loop
) -> None:
    """A function that looks up a required attribute finds nothing in it."""
    fill(database, 300)
    database.execute("create table shop.prices as select id, price from shop.products")
    database.execute("alter table shop.prices add primary key (id)")
    database.execute("alter table shop.products rename to chairs")
    database.execute(
        "create function shop.price_of(bigint) returns numeric stable language plpgsql as"
        " $$ begin return (select p.price from shop.prices as p where p.id = $1); end $$"
    )
    database.execute(
        "create view shop.products as select id, name, description, shop.price_of(id) as price, image, url, categories,"
        " created_at, modified_at from shop.chairs"
    )
    service = serve(one_store(database.dsn, clerk))
    found = ids(service.get("/shop/products?limit=100&offset=0").lines)
    time.sleep(2.5)  # what was read ahead is given up
    with reloaded(loop, database, "shop.prices") as meanwhile:
        found += ids(meanwhile(partial(service.get, "/shop/products?limit=100&offset=100")).lines)
    found += ids(service.get("/shop/products?limit=100&offset=200").lines)
    assert found == list(range(1, 301))


@pytest.mark.parametrize("place", ["limit=50", "limit=150", "limit=1000", "modified_after=1700000000", "all"])
def test_rows_that_get_a_partition_of_their_own_are_not_left_out(
    database: Database, clerk: FakeClerk, serve: Serve, loop: Loop, place: str
) -> None:
    """PostgreSQL lists the partitions before it waits for the one that loses them."""
    database.execute("create schema shop")
    database.execute(
        "create table shop.customers (id bigint primary key, email text default 'e', modified_at timestamptz)"
        " partition by range (id)"
    )
    database.execute("create table shop.customers_default partition of shop.customers default")
    database.execute(
        "insert into shop.customers select i, 'e', timestamptz '2026-01-01' + i * interval '1s'"
        " from generate_series(1, 3000) as i"
    )
    database.execute("analyze")
    service = serve(one_store(database.dsn, clerk))
    attached = partial(partition_attached, loop, database, "shop.customers")
    if not place.startswith("limit"):
        with attached(2001, 2501) as meanwhile:
            query = "" if place == "all" else f"?{place}"
            answer = meanwhile(partial(service.get, f"/shop/customers{query}"))
        assert sorted(ids(answer.lines)) == list(range(1, 3001))
        return
    limit = int(place.partition("=")[2])
    found = []
    for offset in (0, limit):
        found += ids(service.get(f"/shop/customers?limit={limit}&offset={offset}").lines)
    time.sleep(2.5)  # what was read ahead is given up
    with attached(2 * limit + 11, 2 * limit + 31) as meanwhile:
        found += ids(meanwhile(partial(service.get, f"/shop/customers?limit={limit}&offset={2 * limit}")).lines)
    assert found == list(range(1, 3 * limit + 1))


def test_a_table_that_inherits_is_replaced_by_another_one(
    database: Database, clerk: FakeClerk, serve: Serve, loop: Loop
) -> None:
    database.execute("create schema shop")
    database.execute("create table shop.customers (id bigint primary key, email text)")
    for name, first in (("a", 1), ("b", 1001)):
        database.execute(f"create table shop.{name} (like shop.customers including all) inherits (shop.customers)")
        database.execute(f"insert into shop.{name} select i, 'e' from generate_series({first}, {first + 999}) as i")
    database.execute("analyze")
    service = serve(one_store(database.dsn, clerk))
    with changed(loop, database) as (other, meanwhile):
        other.execute("create table shop.a_new (like shop.customers including all)")
        other.execute("insert into shop.a_new select * from shop.a")
        other.execute("begin")
        other.execute("alter table shop.a_new inherit shop.customers")
        other.execute("drop table shop.a")
        answer = meanwhile(partial(service.get, "/shop/customers"))
    assert sorted(ids(answer.lines)) == list(range(1, 2001))


@pytest.mark.parametrize("place", ["limit=50&offset=0", "limit=1000&offset=0", "modified_after=1700000000", ""])
@pytest.mark.parametrize("size", [7, 9000])
def test_whoever_waits_for_a_lock_is_not_taken_for_one_that_sorts(
    database: Database, clerk: FakeClerk, serve: Serve, loop: Loop, place: str, size: int
) -> None:
    """The first page of a process goes by cursor, as large ones do; its first row comes after a second."""
    fill(database, 1000, description="x" * size)
    database.execute("create table shop.stock as select id from shop.products")
    database.execute("alter table shop.stock add primary key (id)")
    database.execute("alter table shop.products rename to chairs")
    database.execute(
        "create function shop.in_stock(bigint) returns boolean stable language plpgsql as"
        " $$ begin return exists (select from shop.stock as l where l.id = $1); end $$"
    )
    database.execute("create view shop.products as select * from shop.chairs where id % 2 = 0 or shop.in_stock(id)")
    service = serve(one_store(database.dsn, clerk))
    with reloaded(loop, database, "shop.stock", hold=1) as meanwhile:
        answer = meanwhile(partial(service.get, f"/shop/products?{place}"))
    assert sorted(ids(answer.lines)) == list(range(1, 51 if "limit=50&" in place else 1001))


class InTurns(Pool):
    """A pool whose connections lead to one server and to another in turns."""

    def __init__(self, *pools: Pool) -> None:
        self._next = itertools.cycle(pools)
        self._of: dict[Any, Pool] = {}

    async def take(self) -> Any:
        pool = next(self._next)
        connection = await pool.take()
        self._of[connection] = pool
        return connection

    async def give_back(self, connection: Any, *, broken: bool = False) -> None:
        await self._of.pop(connection).give_back(connection, broken=broken)


def test_a_partition_is_looked_for_where_the_page_was_read(
    create_database: Callable[..., Database], loop: Loop
) -> None:
    """Another standby may lag behind that one: it shows the partitions of before."""
    here = create_database()
    here.execute("create schema shop")
    here.execute("create table shop.customers (id bigint primary key, email text default 'e') partition by range (id)")
    here.execute("create table shop.customers_default partition of shop.customers default")
    here.execute("insert into shop.customers select generate_series(1, 300)")
    here.close()  # a template is in use by nobody
    lagging = create_database(f"template {here.dsn.partition('?')[0].rpartition('/')[2]}")
    here = Database(loop, here.dsn)
    store = Store(public_key="key", name="shop", schema="shop")

    async def read() -> list[Any]:
        pools = [await Pool.open(one.dsn, DatabaseSettings(), lambda event: None) for one in (here, lagging)]
        try:
            sources = Sources(pools[0], 5)
            source = await sources.of(store, "customers")
            reader = Reader(InTurns(*pools), sources, DatabaseSettings(), lambda event: None)
            reader.seen(source, 1, 100)  # of a size that a page is one statement
            async with aclosing(reader.batches(store, source, Span(Position("10", None)), 100)) as batches:
                pieces = [source.encoder.encode(batch.items, "ndjson") async for batch in batches]
                return [json.loads(line)["id"] for piece in pieces for line in piece.splitlines()]
        finally:
            for pool in pools:
                await pool.close()

    with closing(here), partition_attached(loop, here, "shop.customers", 21, 41) as meanwhile:
        assert meanwhile(lambda: loop.run(read())) == list(range(11, 111))


@pytest.mark.parametrize("place", ["limit=1000&offset=0", ""])
def test_a_partition_that_is_waited_for_long_is_not_left_out(
    database: Database, clerk: FakeClerk, serve: Serve, loop: Loop, place: str
) -> None:
    database.execute("create schema shop")
    database.execute(
        "create table shop.customers (id bigint primary key, email text default 'e') partition by range (id)"
    )
    database.execute("create table shop.customers_default partition of shop.customers default")
    database.execute("insert into shop.customers select generate_series(1, 3000)")
    database.execute("analyze")
    service = serve(one_store(database.dsn, clerk))
    with partition_attached(loop, database, "shop.customers", 501, 601, hold=1) as meanwhile:
        answer = meanwhile(partial(service.get, f"/shop/customers?{place}"))
    assert sorted(ids(answer.lines)) == list(range(1, 1001 if place else 3001))


WAITING = """
select count(*)
from pg_locks
where not granted and database = (select oid from pg_database where datname = current_database())
"""


def settled(watching: Database, answer: Future[Any], waiting: int = 1) -> None:
    """Until so many wait for a lock, or the answer is there."""
    with suppress(AssertionError):
        eventually(lambda: watching.value(WAITING) >= waiting or answer.done(), 3)


@pytest.mark.parametrize("place", ["limit=50", "limit=1000", "all"])
@pytest.mark.parametrize("times", [4, 12])
def test_a_table_that_is_split_again_and_again_loses_no_row(
    database: Database, clerk: FakeClerk, serve: Serve, loop: Loop, place: str, times: int
) -> None:
    """Somewhere it is enough, and the page is refused, to be asked for again."""
    database.execute("create schema shop")
    database.execute(
        "create table shop.customers (id bigint primary key, email text default 'e') partition by range (id)"
    )
    database.execute("create table shop.customers_default partition of shop.customers default")
    database.execute("insert into shop.customers select generate_series(1, 1500)")
    database.execute("analyze")
    service = serve(one_store(database.dsn, clerk))
    query = "" if place == "all" else f"?{place}&offset=0"
    assert service.get(f"/shop/customers{query}").lines  # it is known how large items are
    step = 50 // times if place == "limit=50" else 100
    lock = "begin; lock table shop.customers_default in access exclusive mode"
    with (
        closing(Database(loop, database.dsn)) as first_of_two,
        closing(Database(loop, database.dsn)) as second_of_two,
        ThreadPoolExecutor(2) as threads,
    ):
        one, other = first_of_two, second_of_two
        one.execute(lock)
        asked = threads.submit(service.get, f"/shop/customers{query}")
        for number in range(times):
            first, end = 1 + number * step, 1 + (number + 1) * step
            one.execute(f"create table shop.c{number} (like shop.customers including all)")
            one.execute(
                f"with moved as (delete from shop.customers_default where id >= {first} and id < {end} returning *)"
                f" insert into shop.c{number} select * from moved"
            )
            one.execute(
                f"alter table shop.customers attach partition shop.c{number} for values from ({first}) to ({end})"
            )
            settled(database, asked)
            # The next one is in the queue behind the page, and before what the page asks for again.
            locked = threads.submit(other.execute, lock)
            settled(database, asked, waiting=2)
            one.execute("commit")
            locked.result(60)
            one, other = other, one
        one.execute("rollback")
        answer = asked.result(60)
    if answer.status == 503:
        assert times > 5
        problem(answer, 503, "source-changing")
        answer = service.get(f"/shop/customers{query}")
    assert ids(answer.lines) == list(range(1, {"limit=50": 51, "limit=1000": 1001}.get(place, 1501)))


SWAP = """
lock table shop.p2 in access exclusive mode;
create table shop.fresh (like shop.p2 including all);
insert into shop.fresh select * from shop.p2;
drop table shop.p2;
alter table shop.fresh rename to p2;
alter table shop.p2 inherit shop.customers
"""


@pytest.mark.parametrize("rendered", [False, True])
@pytest.mark.parametrize("swaps", [1, 2, 3])
def test_what_inherits_is_swapped_again_and_again(
    database: Database, clerk: FakeClerk, serve: Serve, loop: Loop, tmp_path: Path, swaps: int, rendered: bool
) -> None:
    """The last page is not the end by it, and no item is taken for one that is gone."""
    database.execute("create schema shop; create table shop.customers (id bigint primary key, email text)")
    for name, first, last in (("p1", 1, 1000), ("p2", 1001, 1020)):
        database.execute(f"create table shop.{name} (like shop.customers including all) inherits (shop.customers)")
        database.execute(f"insert into shop.{name} select i, 'e' from generate_series({first}, {last}) as i")
    config = one_store(database.dsn, clerk)
    if rendered:
        config += "[stores.shop.feeds.customers]\nrendered = true\n"
    (tmp_path / "feed.toml").write_text(config)
    refresh = [sys.executable, "-m", "app", "refresh", "--config", str(tmp_path / "feed.toml")]
    service = None if rendered else serve(config)

    def read() -> Any:
        if service is None:
            return subprocess.run(refresh, capture_output=True, text=True, timeout=60, check=True)
        return ids(service.get("/shop/customers?limit=1000&offset=1000").lines)

    if service is None:
        read()
    else:
        assert len(service.get("/shop/customers?limit=1000&offset=0").lines) == 1000
        time.sleep(2.5)  # what was read ahead is given up
    with closing(Database(loop, database.dsn)) as other, ThreadPoolExecutor(1) as threads:
        for number in range(swaps):
            other.execute(f"begin; {SWAP}")
            if not number:
                asked = threads.submit(read)
            settled(database, asked)
            other.execute("commit")
        found = asked.result(60)
    if rendered:
        assert database.value("select count(*) from clerk_feed.tombstone") == 0, found.stdout
    else:
        assert found == list(range(1001, 1021))


@pytest.mark.parametrize("limit", [50, 500])
@pytest.mark.parametrize("kind", ["a view of another table", "a first table that inherits", "the same at once"])
def test_what_was_described_a_moment_ago_is_another_thing(
    database: Database, clerk: FakeClerk, serve: Serve, loop: Loop, kind: str, limit: int
) -> None:
    """It gets partitions, and one of them rows of another, within the two seconds in which it is not described anew."""
    database.execute("create schema shop")
    if kind == "a view of another table":
        database.execute(
            "create table shop.old as select i as id, 'e' as email from generate_series(1, 3000::bigint) as i;"
            " alter table shop.old add primary key (id);"
            " create table shop.people (id bigint primary key, email text) partition by range (id);"
            " create table shop.a partition of shop.people default; insert into shop.people select * from shop.old;"
            " create view shop.customers as select * from shop.old"
        )
        change = "create or replace view shop.customers as select * from shop.people"
        parent, added = "shop.people", "alter table shop.people attach partition shop.b for values from ({}) to ({})"
    else:
        database.execute(
            "create table shop.customers as select i as id, 'e' as email from generate_series(1, 3000::bigint) as i;"
            " alter table shop.customers add primary key (id)"
        )
        change = "select"
        parent, added = "shop.customers", "alter table shop.b inherit shop.customers"
        if kind == "a first table that inherits":
            change = (
                "create table shop.a (like shop.customers including all) inherits (shop.customers);"
                " with moved as (delete from only shop.customers returning *) insert into shop.a select * from moved"
            )
    service = serve(one_store(database.dsn, clerk))

    def page(offset: int) -> list[Any]:
        return ids(service.get(f"/shop/customers?limit={limit}&offset={offset}").lines)

    found = page(0) + page(limit)
    time.sleep(2.5)  # what was read ahead is given up
    found += page(2 * limit)  # and it is described now
    first, end = 4 * limit + 11, 4 * limit + 21
    with closing(Database(loop, database.dsn)) as other, ThreadPoolExecutor(1) as threads:
        other.execute(change)
        taken_from = "shop.customers" if kind == "the same at once" else "shop.a"
        other.execute(f"begin; lock table {taken_from} in access exclusive mode")
        other.execute(f"create table shop.b (like {parent} including all)")
        other.execute(
            f"with moved as (delete from {taken_from} where id >= {first} and id < {end} returning *)"
            " insert into shop.b select * from moved"
        )
        other.execute(added.format(first, end))
        asked = threads.submit(lambda: page(3 * limit) + page(4 * limit))
        settled(database, asked)
        other.execute("commit")
        found += asked.result(60)
    assert found == list(range(1, 5 * limit + 1))


def test_row_security_that_comes_and_goes_ends_no_walk(
    database: Database, clerk: FakeClerk, serve: Serve, loop: Loop
) -> None:
    """It hides nothing from the table's owner; but a statement in that moment reads what was not described."""
    database.execute("create schema shop; create table shop.customers (id bigint primary key, email text default 'e')")
    database.execute("insert into shop.customers select generate_series(1, 205)")
    service = serve(one_store(database.dsn, clerk))
    stop = threading.Event()

    def is_served(path: str) -> bool:
        return service.get(path).status == 200

    def come_and_go(other: Database) -> None:
        while not stop.is_set():
            for way in ("enable", "disable"):
                other.execute(f"alter table shop.customers {way} row level security")
                time.sleep(0.05)

    with closing(Database(loop, database.dsn)) as other, ThreadPoolExecutor(1) as threads:
        changing = threads.submit(come_and_go, other)
        try:
            for offset in (0, 100):
                path = f"/shop/customers?limit=100&offset={offset}"
                eventually(partial(is_served, path))
            for _ in range(40):
                answer = service.get("/shop/customers?limit=100&offset=200")
                assert answer.status == 503 or ids(answer.lines) == [201, 202, 203, 204, 205]
                answer = service.get("/shop/customers")
                assert answer.status == 503 or len(answer.lines) == 205
        finally:
            stop.set()
            changing.result(30)


def test_a_role_that_is_taken_away_for_a_moment_blinds_no_statement_for_good(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    """PostgreSQL puts a policy into a statement when it is prepared, and whom it was for then."""
    name = database.value("select current_database()")
    feed, readers = f"feed_{name}", f"readers_{name}"
    database.execute(f"create role {feed} login; create role {readers}; grant create on database {name} to {feed}")
    database.execute("create schema shop; create table shop.customers (id bigint primary key, email text default 'e')")
    database.execute("insert into shop.customers select generate_series(1, 250)")
    database.execute(f"grant usage on schema shop to {feed}; grant select on shop.customers to {feed}")
    database.execute("alter table shop.customers enable row level security")
    database.execute(f"create policy p on shop.customers to {readers} using (true)")
    database.execute(f"grant {readers} to {feed}")
    config = one_store(database.dsn.replace("postgres:@", f"{feed}:@"), clerk, database="pool_size = 1")
    service = serve(config)
    paths = [f"/shop/customers?limit={limit}&offset={{}}" for limit in (50, 150)]
    try:
        # Last night's sync, by which a feed that broke is known.
        for offset in range(0, 350, 50):
            service.get(paths[0].format(offset))
        service.stop()
        service = serve(config)
        database.execute(f"revoke {readers} from {feed}")
        for path in paths:
            service.get(path.format(0))
        database.execute(f"grant {readers} to {feed}")
        found = [id for offset in range(0, 300, 50) for id in ids(service.get(paths[0].format(offset)).lines)]
        assert found == list(range(1, 251))
        found = [id for offset in (0, 150) for id in ids(service.get(paths[1].format(offset)).lines)]
        assert found == list(range(1, 251))
    finally:
        service.stop()
        database.execute(
            f"drop owned by {feed} cascade; drop role {feed}; drop owned by {readers}; drop role {readers}"
        )


def test_a_partition_that_was_just_attached_is_split_itself(
    database: Database, clerk: FakeClerk, serve: Serve, loop: Loop
) -> None:
    database.execute(
        "create schema shop; create table shop.customers (id bigint primary key, email text) partition by range (id);"
        " create table shop.d partition of shop.customers default;"
        " insert into shop.customers select i, 'e' from generate_series(1, 1500) as i"
    )
    service = serve(one_store(database.dsn, clerk))
    assert len(service.get("/shop/customers?limit=1000&offset=0").lines) == 1000
    time.sleep(2.5)  # what was read ahead is given up
    with (
        closing(Database(loop, database.dsn)) as other,
        ThreadPoolExecutor(1) as threads,
    ):
        service.get("/shop/customers?limit=10&offset=0")  # it is described now
        other.execute("begin; lock table shop.d in access exclusive mode")
        other.execute("create table shop.b (like shop.customers including all) partition by range (id)")
        other.execute("create table shop.bd partition of shop.b default")
        other.execute(
            "with moved as (delete from shop.d where id >= 1100 and id < 1200 returning *)"
            " insert into shop.b select * from moved"
        )
        other.execute("alter table shop.customers attach partition shop.b for values from (1100) to (1200)")
        asked = threads.submit(service.get, "/shop/customers?limit=1000&offset=1000")
        settled(database, asked)
        other.execute("commit; begin; lock table shop.bd in access exclusive mode")
        settled(database, asked)
        other.execute("create table shop.q (like shop.b including all)")
        other.execute(
            "with moved as (delete from shop.bd where id < 1110 returning *) insert into shop.q select * from moved"
        )
        other.execute("alter table shop.b attach partition shop.q for values from (1100) to (1110)")
        other.execute("commit")
        answer = asked.result(60)
    assert answer.status == 503 or ids(answer.lines) == list(range(1001, 1501))


def test_a_partition_that_a_view_reads_is_detached_and_gets_tables_that_inherit(
    database: Database, clerk: FakeClerk, serve: Serve, loop: Loop
) -> None:
    database.execute(
        "create schema shop; create table shop.everybody (id bigint primary key, email text) partition by range (id);"
        " create table shop.leaf partition of shop.everybody default;"
        " insert into shop.leaf select i, 'e' from generate_series(1, 1500) as i;"
        " create view shop.customers as select * from shop.leaf"
    )
    service = serve(one_store(database.dsn, clerk))
    assert len(service.get("/shop/customers?limit=1000&offset=0").lines) == 1000
    time.sleep(2.5)  # what was read ahead is given up
    with closing(Database(loop, database.dsn)) as other, ThreadPoolExecutor(1) as threads:
        service.get("/shop/customers?limit=10&offset=0")  # it is described now
        other.execute(
            "begin; alter table shop.everybody detach partition shop.leaf;"
            " create table shop.a (like shop.leaf including all) inherits (shop.leaf);"
            " with moved as (delete from only shop.leaf returning *) insert into shop.a select * from moved; commit"
        )
        other.execute(
            "begin; lock table shop.a in access exclusive mode; create table shop.b (like shop.leaf including all);"
            " with moved as (delete from shop.a where id between 1006 and 1012 returning *)"
            " insert into shop.b select * from moved; alter table shop.b inherit shop.leaf"
        )
        asked = threads.submit(service.get, "/shop/customers?limit=1000&offset=1000")
        settled(database, asked)
        other.execute("commit")
        assert ids(asked.result(60).lines) == list(range(1001, 1501))
