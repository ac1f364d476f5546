"""Beyond one machine: replicas of the service, standbys of the database, a failover. Nothing is lost, or it shows."""

import http.client
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from app.catalog.pool import of_primary, shuffled
from app.catalog.schema import SchemaError, migrate, migrations
from loadtests.postgres import Postgres
from tests.clerk import FakeClerk, problem
from tests.conftest import PRODUCTS, TOKEN, Database, Loop, Running, Serve, base_config, eventually, ids


def configured(dsn: str, clerk: FakeClerk, *, database: str = "") -> str:
    config = base_config(dsn, clerk.verify_url, database=database)
    return f'{config}\n[stores.shop]\npublic_key = "key-shop"\n'


def fill(database: Database, count: int) -> None:
    database.execute("create schema shop")
    database.execute(PRODUCTS.replace("{s}", "shop"))
    database.execute("insert into shop.products (id) select generate_series(1, $1::int)", count)


def page(service: Running, limit: int, offset: int) -> list[int]:
    answer = service.get(f"/shop/products?limit={limit}&offset={offset}")
    assert answer.status == 200, answer.body
    return ids(answer.lines)


def test_pages_of_one_walk_may_be_asked_of_any_replica_and_one_may_die(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, 1000)
    replicas = [serve(configured(database.dsn, clerk)) for _ in range(3)]
    choose = random.Random(7)  # noqa: S311 (a choice that repeats)
    found: list[int] = []
    for offset in range(0, 1050, 50):
        if offset == 300:
            replicas.pop().process.kill()
        database.execute("delete from shop.products where id = $1", choose.choice(found) if found else 0)
        found += page(choose.choice(replicas), 50, offset)
    there = {row["id"] for row in database.fetch("select id from shop.products")}
    assert there <= set(found)
    assert len(found) == len(set(found))


def test_hosts_are_asked_in_any_order_and_the_rest_of_a_dsn_stays() -> None:
    dsn = "postgresql://me:p,w%40@a,b:5433,[::1]:5434/shop?target_session_attrs=standby"
    seen = {shuffled(dsn) for _ in range(200)}
    assert len(seen) == 6
    assert all(one.startswith("postgresql://me:p,w%40@") for one in seen)
    assert all(one.endswith("/shop?target_session_attrs=standby") for one in seen)
    for one in ("postgresql:///postgres?host=/tmp/a,b", "postgresql://me:p,w@a/shop"):
        assert shuffled(one) == one


@pytest.mark.parametrize(
    ("dsn", "primary"),
    [
        ("postgresql://a/shop", ""),
        ("postgresql://me:p,w@a:5432/shop?x=1", ""),
        ("postgresql://me:p@a,b:5433/shop", "?target_session_attrs=read-write"),
        ("postgresql://a,b/shop?x=1", "&target_session_attrs=read-write"),
        ("postgresql:///shop?host=/tmp/a,/tmp/b", "&target_session_attrs=read-write"),
        ("postgresql://a,b/shop?target_session_attrs=any", ""),
    ],
)
def test_of_several_hosts_the_one_that_takes_writes_is_meant(dsn: str, primary: str) -> None:
    assert of_primary(dsn) == dsn + primary


class Pair:
    """A primary, its standby, and a way to both."""

    def __init__(self, folder: Path, loop: Loop) -> None:
        self._loop = loop
        for name in ("p", "s"):
            (folder / name).mkdir()
            (folder / name).chmod(0o755)
        self.primary = Postgres(folder / "p", durable=False)
        self.database = Database(loop, self.primary.dsn)
        # The wheel's servers may allow no replication over their socket.
        self.database.execute("alter system set wal_receiver_status_interval = '100ms'")
        self.standby = self.primary.standby(folder / "s")
        self._folder, self._others = folder, ExitStack()

    def another_standby(self) -> Postgres:
        (self._folder / "t").mkdir()
        (self._folder / "t").chmod(0o755)
        standby = self.primary.standby(self._folder / "t")
        self._others.callback(standby.discard)
        return standby

    def discard(self) -> None:
        self.database.close()
        self._others.close()
        self.standby.discard()
        self.primary.discard()

    def lag(self, *, paused: bool) -> None:
        """Let the standby replay nothing more, or everything again."""
        with closing(Database(self._loop, self.standby.dsn)) as standby:
            standby.value(f"select pg_wal_replay_{'pause' if paused else 'resume'}()")
            if paused:
                eventually(lambda: standby.value("select pg_get_wal_replay_pause_state()") == "paused")

    def catch_up(self) -> None:
        position = self.database.value("select pg_current_wal_insert_lsn()::text")
        with closing(Database(self._loop, self.standby.dsn)) as standby:
            eventually(lambda: bool(standby.value("select pg_last_wal_replay_lsn() >= $1::text::pg_lsn", position)))

    def config(self, clerk: FakeClerk, more: str = "") -> str:
        return configured(self.standby.dsn, clerk, database=f'state_dsn = "{self.primary.dsn}"\n{more}')


@pytest.fixture
def pair(loop: Loop) -> Iterator[Pair]:
    # A socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="cf-", dir="/tmp"))
    folder.chmod(0o755)
    made = Pair(folder, loop)
    yield made
    made.discard()
    shutil.rmtree(folder, ignore_errors=True)


def reads(database: Database) -> int:
    """How many rows of the products were ever read on a server."""
    database.execute("select pg_stat_force_next_flush()")
    return int(
        database.value("select seq_tup_read + idx_tup_fetch from pg_stat_user_tables where relname = 'products'") or 0
    )


@pytest.mark.slow
def test_full_walks_are_read_from_a_standby_that_lags_and_nothing_is_lost(
    pair: Pair, loop: Loop, clerk: FakeClerk, serve: Serve
) -> None:
    fill(pair.database, 300)
    service = serve(pair.config(clerk))
    with closing(Database(loop, pair.standby.dsn)) as standby:
        first = page(service, 100, 0)
        assert first == list(range(1, 101))

        # Once its walk is shown, a page needs no more of the standby.
        pair.catch_up()
        pair.lag(paused=True)
        pair.database.execute("insert into shop.products (id) values (301)")
        pair.database.execute("delete from shop.products where id <= 20")
        assert page(service, 100, 100) == list(range(101, 201))

        # A walk that begins now must show item 301, and the standby does not yet.
        said = problem(service.get("/shop/products?limit=100&offset=0"), 503, "standby-behind")
        assert "pg_stat_replication" in said["fix"]
        problem(service.get("/shop/products"), 503, "standby-behind")
        assert service.events("StandbyBehind") != []

        # A delta is read where it is current.
        changed = service.get("/shop/products?limit=1000&offset=0&modified_after=2020-01-01")
        assert ids(changed.lines) == list(range(21, 302))
        pair.lag(paused=False)

        assert page(service, 100, 200) == list(range(201, 301))
        assert set(page(service, 100, 300)) <= {301}
        found = [id for offset in range(0, 500, 100) for id in page(service, 100, offset)]
        assert set(found) == set(range(21, 302))
        assert ids(service.get("/shop/products").lines) == list(range(21, 302))
        before = reads(standby)
        page(service, 100, 0)
        eventually(lambda: reads(standby) > before)
        assert standby.value("select pg_is_in_recovery()")
    ended = pair.database.fetch("select whole, items from clerk_feed.walk where ended = 'finished' order by id")
    assert (True, 281) in {(row["whole"], row["items"]) for row in ended}


@pytest.mark.slow
def test_a_failover_during_a_walk_is_said_and_the_next_walk_is_whole(
    pair: Pair, loop: Loop, clerk: FakeClerk, serve: Serve
) -> None:
    fill(pair.database, 300)
    service = serve(pair.config(clerk))
    page(service, 100, 0)
    pair.catch_up()
    # The last bookmark never reaches the standby.
    pair.lag(paused=True)
    pair.database.execute("delete from shop.products where id = 1")
    page(service, 100, 100)
    pair.database.close()
    pair.primary.stop("immediate")
    pair.lag(paused=False)
    pair.standby.promote()
    # What an operator does where no name leads to the primary, whichever it is.
    service.stop()
    after = serve(configured(pair.standby.dsn, clerk))
    for offset in (100, 200):
        said = problem(after.get(f"/shop/products?limit=100&offset={offset}"), 503, "walk-lost")
        assert "failed over" in said["title"]
    pair.database = Database(loop, pair.standby.dsn)
    # The next one is let past where this one was when it can't be there any more, or when an operator says so.
    pair.database.execute("update clerk_feed.bookmark set written = written - interval '2 hours'")
    pair.database.execute("update clerk_feed.asked set failed_over = failed_over - interval '2 hours'")
    whole = [id for offset in range(0, 400, 100) for id in page(after, 100, offset)]
    with closing(Database(loop, pair.standby.dsn)) as promoted:
        assert whole == [row["id"] for row in promoted.fetch("select id from shop.products order by id")]


def test_a_server_that_is_no_standby_of_the_primary_stops_the_start(
    database: Database, create_database: Any, clerk: FakeClerk, tmp_path: Path, serve: Serve
) -> None:
    other = create_database()
    with pytest.raises(AssertionError, match="Both must name the same database"):
        serve(
            configured(other.dsn, clerk, database=f'state_dsn = "{database.dsn}"\nresume_for = "500ms"'),
        )


def test_a_primary_that_does_not_answer_is_named_by_its_key(database: Database, clerk: FakeClerk, serve: Serve) -> None:
    with pytest.raises(AssertionError, match=r"database\.state_dsn in feed\.toml names it"):
        serve(
            configured(
                database.dsn,
                clerk,
                database='state_dsn = "postgresql://me@127.0.0.1:1/shop"\nresume_for = "200ms"',
            )
        )


@pytest.mark.slow
def test_a_walk_that_was_abandoned_vouches_for_no_standby(pair: Pair, clerk: FakeClerk, serve: Serve) -> None:
    """A page may start from a bookmark of an older walk. A standby that shows that one may lag behind this one."""
    fill(pair.database, 300)
    direct = serve(configured(pair.primary.dsn, clerk))
    lagging = serve(pair.config(clerk))
    assert page(lagging, 100, 0) == list(range(1, 101))  # and nothing more of this walk
    pair.catch_up()
    pair.lag(paused=True)
    try:
        pair.database.execute("insert into shop.products (id) select generate_series(301, 310)")
        found = page(direct, 100, 0)
        problem(lagging.get("/shop/products?limit=100&offset=100"), 503, "standby-behind")
    finally:
        pair.lag(paused=False)
    for offset in (100, 200, 300, 400):
        found += page(lagging, 100, offset)
    assert found == list(range(1, 311))


OVERLAP_SECONDS = 2


def serve_customers(pair: Pair, clerk: FakeClerk, serve: Serve, *, count: int, length: int) -> Running:
    """A feed of customers whose standby may soon lag by more than the overlap."""
    pair.database.execute(
        "create schema shop; create table shop.customers (id int primary key, email text, modified_at timestamptz)"
    )
    pair.database.execute(
        "insert into shop.customers select i, repeat('o', $1), now() - interval '1 day'"
        " from generate_series(1, $2::int) as i",
        length,
        count,
    )
    config = pair.config(clerk, 'cursor_lease = "100ms"\nresume_for = "500ms"')
    service = serve(f'{config}incremental_overlap = "{OVERLAP_SECONDS}s"\n')
    pair.catch_up()
    return service


def change_and_sync(pair: Pair, service: Running, id: int) -> None:
    """Deltas bring a change, and go on until none reaches back to it any more."""
    since = time.time()
    pair.database.execute("update shop.customers set email = 'new', modified_at = clock_timestamp() where id = $1", id)
    brought: list[list[int]] = []
    while not brought or brought[-1]:
        began = time.time()
        answer = service.get(f"/shop/customers?limit=100&offset=0&modified_after={since:.3f}")
        assert answer.status == 200, answer.body
        brought.append(ids(answer.lines))
        since = began
        time.sleep(0.5)
    assert brought[0] == [id]


@pytest.mark.slow
def test_what_deltas_brought_is_not_undone_by_a_standby_that_lags(pair: Pair, clerk: FakeClerk, serve: Serve) -> None:
    service = serve_customers(pair, clerk, serve, count=30, length=3)
    assert len(service.get("/shop/customers?limit=10&offset=0").lines) == 10
    pair.catch_up()
    pair.lag(paused=True)
    try:
        change_and_sync(pair, service, 15)
        said = problem(service.get("/shop/customers?limit=10&offset=10"), 503, "standby-behind")
        assert "0.5 s ago" in said["detail"]
    finally:
        pair.lag(paused=False)
    found = [item for offset in (10, 20, 30) for item in service.get(f"/shop/customers?limit=10&offset={offset}").lines]
    assert [item["id"] for item in found] == list(range(11, 31))
    assert found[4]["email"] == "new"


@pytest.mark.slow
@pytest.mark.parametrize("pgbouncer", ["true", "false"])
def test_a_standby_may_lag_a_little_although_deltas_do_not_reach_back(
    pair: Pair, loop: Loop, clerk: FakeClerk, serve: Serve, pgbouncer: str
) -> None:
    fill(pair.database, 3000)
    with closing(Database(loop, pair.standby.dsn)) as standby:
        standby.execute("alter system set recovery_min_apply_delay = '200ms'")
        standby.execute("select pg_reload_conf()")
    config = pair.config(clerk, f"pgbouncer = {pgbouncer}")
    service = serve(f'{config}incremental_overlap = "0s"\n')
    for _ in range(2):
        assert ids(service.get("/shop/products").lines) == list(range(1, 3001))
        assert page(service, 1000, 0) == list(range(1, 1001))
        assert page(service, 1000, 1000) == list(range(1001, 2001))


@pytest.mark.slow
def test_a_stream_does_not_go_on_from_a_standby_that_lags(pair: Pair, clerk: FakeClerk, serve: Serve) -> None:
    # More than lies in sockets, so that much is still to be read when the first items have come.
    service = serve_customers(pair, clerk, serve, count=3000, length=20_000)
    parts = urlsplit(service.url)
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)) as connection:
        connection.request("GET", "/shop/customers", headers={"X-Clerk-Authorization": f"Bearer {TOKEN}"})
        response = connection.getresponse()
        assert response.readline()
        pair.lag(paused=True)
        try:
            change_and_sync(pair, service, 2900)
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                response.read()
        finally:
            pair.lag(paused=False)
    [cut] = service.events("CutOff")
    assert "standby-behind" in str(cut) or "no standby has shown" in str(cut)


@pytest.mark.slow
def test_what_a_standby_that_lags_does_not_read_is_not_the_end_because_another_one_would(
    pair: Pair, loop: Loop, clerk: FakeClerk, serve: Serve
) -> None:
    """The primary describes the source, one standby is behind it, and the other one is not."""
    stores = [f"s{number}" for number in range(6)]
    database, over, stop = pair.database, time.monotonic() + 15, threading.Event()
    database.execute("create schema raw")
    database.execute(PRODUCTS.replace("{s}", "raw"))
    database.execute("insert into raw.products (id) select generate_series(1, 2000)")
    database.execute("create schema shop; create materialized view shop.products as select * from raw.products")
    database.execute("create unique index on shop.products (id)")
    far = pair.another_standby()
    with closing(Database(loop, far.dsn)) as lagging:
        lagging.execute("alter system set recovery_min_apply_delay = '900ms'")
        lagging.execute("select pg_reload_conf()")
    hosts = ",".join(server.sockets.replace("/", "%2F") for server in (pair.standby, far))
    dsn = f"postgresql://postgres@{hosts}/postgres"
    config = base_config(dsn, clerk.verify_url, database=f'state_dsn = "{pair.primary.dsn}"\npool_size = 8')
    for store in stores:
        config += f'[stores.{store}]\npublic_key = "key-{store}"\n'
        config += f'[stores.{store}.feeds.products]\nsource = "shop.products"\n'
    service = serve(config)

    def refresh() -> None:
        with closing(Database(loop, pair.primary.dsn)) as other:
            while not stop.is_set():
                other.execute("refresh materialized view shop.products")
                stop.wait(1.2)

    def walks(store: str) -> list[int]:
        """How many items each walk had that came to its end."""
        counts: list[int] = []
        while time.monotonic() < over:
            found: list[int] = []
            while (answer := service.get(f"/{store}/products?limit=200&offset={len(found)}")).status == 200:
                found += ids(answer.lines)
                if not answer.lines:
                    counts.append(len(set(found)))
                    break
                time.sleep(random.uniform(0.02, 0.15))  # noqa: S311 (no secret)
        return counts

    with ThreadPoolExecutor(len(stores) + 1) as threads:
        refreshing = threads.submit(refresh)
        counts = [count for found in threads.map(walks, stores) for count in found]
        stop.set()
        refreshing.result(30)
    assert counts
    assert set(counts) == {2000}


def test_databases_made_anew_from_dumps_have_histories_of_their_own(
    database: Database, clerk: FakeClerk, serve: Serve, loop: Loop
) -> None:
    """Fresh servers are on the same timeline, and number what is restored alike."""
    fill(database, 10)
    serve(configured(database.dsn, clerk)).stop()  # our schema is there
    histories = [database.value("select clerk_feed.timeline()")]
    folder = Path(tempfile.mkdtemp(prefix="cf-", dir="/tmp"))
    folder.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for name in ("a", "b"):
            (folder / name).mkdir()
            (folder / name).chmod(0o755)
            server = Postgres(folder / name, durable=False)
            stack.callback(server.discard)
            dump = [str(server.programs / "pg_dump"), "-d", database.dsn]
            dumped = subprocess.run(dump, check=True, capture_output=True).stdout
            restore = [str(server.programs / "psql"), "-q", "-v", "ON_ERROR_STOP=1", "-d", server.dsn]
            subprocess.run(restore, input=dumped, check=True, capture_output=True)
            with closing(Database(loop, server.dsn)) as restored:
                histories.append(restored.value("select clerk_feed.timeline()"))
    assert len(set(histories)) == 3
    assert len({history.rpartition(" ")[0] for history in histories[1:]}) == 1, "the cluster alone tells them apart"


def test_a_database_made_from_a_template_has_a_history_of_its_own(
    create_database: Callable[..., Database], loop: Loop
) -> None:
    """A sync that began in the one does not go on in the other, which takes its name."""
    made_of = create_database()
    loop.run(migrated(made_of.dsn, 10**6))
    history = made_of.value("select clerk_feed.timeline()")
    name = made_of.value("select current_database()")
    made_of.close()  # a template is in use by nobody
    copy = create_database(f"template {name}")
    assert copy.value("select clerk_feed.timeline()") != history


async def migrated(dsn: str, to: int, *, attempts: int = 30) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        wanted = [migration for migration in migrations() if migration.number <= to]
        await migrate(connection, wanted, attempts=attempts)
    finally:
        await connection.close()


def test_bookmarks_of_before_are_of_the_same_history_once_it_is_told_by_the_cluster(
    database: Database, loop: Loop
) -> None:
    """Also what a service of the former version is just writing."""
    bookmark = (
        "insert into clerk_feed.bookmark (walk, store, feed, incremental, written_by, at, key, key_family, is_end)"
        " select id, 'shop', 'products', false, 0, 100, '100', 'int8', false from clerk_feed.walk"
    )
    loop.run(migrated(database.dsn, 19))
    database.execute("insert into clerk_feed.walk (store, feed, incremental) values ('shop', 'products', false)")
    database.execute(bookmark)
    with closing(Database(loop, database.dsn)) as former:
        former.execute("begin")
        former.execute(bookmark)
        with pytest.raises(SchemaError, match="another transaction holds its tables"):
            loop.run(migrated(database.dsn, 20, attempts=1))
        former.execute("commit")
    loop.run(migrated(database.dsn, 20))
    assert database.value("select count(*) from clerk_feed.bookmark where timeline = clerk_feed.timeline()") == 2
    before = database.value("select clerk_feed.timeline()")
    loop.run(migrated(database.dsn, 22))
    assert database.value("select clerk_feed.timeline()") != before
    assert database.value("select count(*) from clerk_feed.bookmark where timeline = clerk_feed.timeline()") == 2


def test_a_server_that_does_not_show_its_cluster_is_told_by_what_it_shows(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    """To which a dump was brought from one that does."""
    fill(database, 10)
    name = database.value("select current_database()")
    database.execute(f"create role {name} login")
    database.execute(f"grant create on database {name} to {name}; grant usage on schema shop to {name}")
    database.execute(f"grant select on all tables in schema shop to {name}")
    config = configured(database.dsn.replace("postgres:@", f"{name}:@"), clerk)
    try:
        service = serve(config)
        assert page(service, 10, 0) == list(range(1, 11))
        before = database.value("select clerk_feed.timeline()")
        service.stop()
        database.execute("revoke execute on function pg_control_system() from public")
        service = serve(config)
        assert page(service, 10, 0) == list(range(1, 11))
        assert database.value("select clerk_feed.timeline()") == before.rpartition(" ")[0]
        service.stop()
    finally:
        database.execute(f"drop owned by {name}; drop role {name}")
