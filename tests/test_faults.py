"""What breaks under a walk: sessions, the database, a view, the service itself. Nothing is lost, or it shows.

An advisory lock that a view waits for holds a page exactly where a test wants it.
"""

import asyncio
import http.client
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg
import pytest

from app.catalog.pool import Patience, Pool
from app.catalog.source import Source, describe
from app.clerk.importer import Importer
from app.settings import Database as DatabaseSettings
from app.settings import Store
from loadtests.postgres import Postgres, StopMode
from tests.clerk import FakeClerk, problem
from tests.conftest import (
    PRODUCTS,
    TOKEN,
    Answer,
    Database,
    Loop,
    Running,
    Serve,
    Shop,
    base_config,
    eventually,
    ids,
    reloaded,
)
from tests.test_http import connect, dechunked, request

T = TypeVar("T")

LARGE = 30_000
"""Items of a feed at 1.2 KB each: more than the socket buffers on the way take in."""

GATE = 7
"""The advisory lock that a held view waits for."""


@pytest.fixture(scope="module")
def own_server() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="clerk-feed-faults-"))
    folder.chmod(0o755)  # the user PostgreSQL runs as goes through it
    server = Postgres(folder, durable=False)
    yield server
    server.discard()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def own(own_server: Postgres, loop: Loop) -> Iterator[Postgres]:
    """The server of our own, running, with an empty schema `shop`."""
    own_server.ensure_running()
    with visit(own_server, loop) as database:
        database.execute("drop schema if exists shop cascade")
        database.execute("drop schema if exists clerk_feed cascade")
        database.execute("create schema shop")
    yield own_server
    own_server.ensure_running()


@contextmanager
def visit(server: Postgres, loop: Loop) -> Iterator[Database]:
    """A connection that does not outlive a restart."""
    database = Database(loop, server.dsn)
    try:
        yield database
    finally:
        database.close()


def one_store(dsn: str, clerk: FakeClerk, *, database: str = "", server: str = "") -> str:
    config = base_config(dsn, clerk.verify_url, database=database, server=server)
    return f'{config}\n[stores.shop]\npublic_key = "key-shop"\n'


def fill(database: Database, count: int, *, held_at: int | None = None, description: str = "A chair") -> None:
    """A feed of products; the one held at an id waits there for the gate. Other feeds: customers, two of them."""
    database.execute("create schema if not exists shop")
    table = "products" if held_at is None else "chairs"
    database.execute(PRODUCTS.replace("{s}.products", f"shop.{table}"))
    database.execute(
        f"insert into shop.{table} (id, description) select i, $2 from generate_series(1, $1::int) i",
        count,
        description,
    )
    database.execute(f"analyze shop.{table}")
    if held_at is not None:
        # Stable, or the planner would compute the names of all items before it sorts them.
        database.execute(f"""
            create function shop.waits(id bigint) returns text stable language plpgsql as
            $$ begin if id = {held_at} then perform pg_advisory_xact_lock_shared({GATE}); end if; return ''; end $$
        """)
        database.execute("""
            create view shop.products as
            select id, description, price, image, url, categories, created_at, modified_at,
              name || shop.waits(id) as name
            from shop.chairs
        """)
    database.execute(
        "create view shop.customers as select i as id, 'a@shop.example' as email from generate_series(1, 2) i"
    )


def shut_gate(database: Database) -> None:
    database.execute(f"select pg_advisory_lock({GATE})")


def open_gate(database: Database) -> None:
    database.execute(f"select pg_advisory_unlock({GATE})")


def held(database: Database) -> list[int]:
    """The service's sessions that wait at the gate."""
    rows = database.fetch("""
        select pid from pg_stat_activity
        where datname = current_database() and application_name = 'clerk-feed' and wait_event = 'advisory'
    """)
    return [row["pid"] for row in rows]


def held_one(database: Database, but: Iterable[int] = ()) -> int:
    """The one session that waits at the gate, once it does."""
    eventually(lambda: bool(set(held(database)) - set(but)))
    [pid] = set(held(database)) - set(but)
    return pid


@contextmanager
def meanwhile(work: Callable[[], Answer]) -> Iterator["Future[Answer]"]:
    """Something done beside the test, which does not end before it."""
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(work)


def importer(service: Running, limit: int, feed: str = "products") -> Importer:
    return Importer(f"{service.url}/shop/{feed}?limit={{{{limit}}}}&offset={{{{offset}}}}", token=TOKEN, limit=limit)


class Streaming:
    """A whole feed, asked for and read as far as its first bytes."""

    def __init__(self, service: Running, path: str = "/shop/products") -> None:
        self._socket = connect(service, receive_bytes=65_536)
        self._socket.sendall(request(path))
        self._received = self._socket.recv(4096)
        assert self._received.startswith(b"HTTP/1.1 200")

    def rest(self) -> tuple[list[int], bool]:
        """The ids that came in whole lines, and whether the answer came to its end."""
        received = bytearray(self._received)
        self._socket.settimeout(60)
        with suppress(ConnectionError):
            while not received.endswith(b"\r\n0\r\n\r\n") and (piece := self._socket.recv(1 << 20)):
                received += piece
        content, ended = dechunked(bytes(received).partition(b"\r\n\r\n")[2])
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        return [int(line.split(b":", 1)[1].split(b",", 1)[0]) for line in lines], ended

    def close(self) -> None:
        self._socket.close()


def in_cursor(database: Database) -> list[int]:
    """The service's sessions that stand in the transaction of a cursor."""
    rows = database.fetch("""
        select pid from pg_stat_activity
        where datname = current_database() and application_name = 'clerk-feed' and state = 'idle in transaction'
    """)
    return [row["pid"] for row in rows]


def cursor_of(database: Database) -> int:
    """The session of the one cursor, once it waits for the client to read."""
    pids: list[int] = []

    def waits() -> bool:
        pids[:] = in_cursor(database)
        return len(pids) == 1

    eventually(waits)
    return pids[0]


def test_a_page_whose_session_is_terminated_arrives_whole(database: Database, clerk: FakeClerk, serve: Serve) -> None:
    fill(database, 100, held_at=30)
    service = serve(one_store(database.dsn, clerk))
    shut_gate(database)
    with meanwhile(lambda: service.get("/shop/products?limit=60&offset=0")) as page:
        terminated: list[int] = []
        for _ in range(3):
            terminated.append(held_one(database, but=terminated))
            database.execute("select pg_terminate_backend($1::int)", terminated[-1])
        open_gate(database)
        assert ids(page.result(30).lines) == list(range(1, 61))
    assert ids(service.get("/shop/products?limit=60&offset=60").lines) == list(range(61, 101))
    assert len(service.events("Resumed")) == 3


def test_a_stream_whose_cursor_is_terminated_goes_on_without_loss_or_repetition(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, LARGE, description="x" * 1000)
    service = serve(one_store(database.dsn, clerk, database='cursor_lease = "60s"'))
    with closing(Streaming(service)) as stream:
        database.execute("select pg_terminate_backend($1::int)", cursor_of(database))
        eventually(lambda: in_cursor(database) == [])
        found, ended = stream.rest()
    assert ended
    assert found == list(range(1, LARGE + 1))
    assert service.events("Resumed") != []


def test_a_stream_terminated_in_the_middle_of_a_statement_goes_on_without_loss_or_repetition(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, 10_000, held_at=7000)
    service = serve(one_store(database.dsn, clerk))
    shut_gate(database)
    with meanwhile(lambda: service.get("/shop/products")) as stream:
        terminated: list[int] = []
        for _ in range(3):
            terminated.append(held_one(database, but=terminated))
            database.execute("select pg_terminate_backend($1::int)", terminated[-1])
        open_gate(database)
        assert ids(stream.result(30).lines) == list(range(1, 10_001))
    assert len(service.events("Resumed")) == 3


def test_a_cursor_that_the_database_ends_for_idling_is_opened_again(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    """idle_in_transaction_session_timeout is the statement_timeout, and a lease may be longer than that."""
    fill(database, LARGE, description="x" * 1000)
    service = serve(one_store(database.dsn, clerk, database='cursor_lease = "60s"\nstatement_timeout = "1s"'))
    with closing(Streaming(service)) as stream:
        cursor_of(database)
        eventually(lambda: in_cursor(database) == [])
        found, ended = stream.rest()
    assert ended
    assert found == list(range(1, LARGE + 1))


def test_a_stream_may_last_longer_than_the_database_lets_a_transaction(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, LARGE, description="x" * 1000)
    name = database.value("select quote_ident(current_database())")
    if database.value("select current_setting('transaction_timeout', true)") is None:
        pytest.skip("this PostgreSQL has no transaction_timeout")
    database.execute(f"alter database {name} set transaction_timeout = '300ms'")
    service = serve(one_store(database.dsn, clerk))
    with closing(Streaming(service)) as stream:
        backend = cursor_of(database)
        time.sleep(0.6)  # twice as long as it is let
        assert in_cursor(database) == [backend]
        found, ended = stream.rest()
    assert ended
    assert found == list(range(1, LARGE + 1))


def test_a_column_of_another_type_is_read_although_every_connection_knows_the_old_statement(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, LARGE, description="x" * 1000)
    service = serve(one_store(database.dsn, clerk, database="pool_size = 4"))
    with ExitStack() as at_once:
        streams = [at_once.enter_context(closing(Streaming(service))) for _ in range(4)]
        assert all(stream.rest()[1] for stream in streams)
    database.execute("alter table shop.products alter description type varchar(2000)")
    with closing(Streaming(service)) as stream:
        found, ended = stream.rest()
    assert ended
    assert found == list(range(1, LARGE + 1))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate", "kill -9"])
def test_a_walk_survives_restarts_of_the_database(
    own: Postgres, loop: Loop, clerk: FakeClerk, serve: Serve, mode: StopMode
) -> None:
    with visit(own, loop) as database:
        fill(database, 1000, held_at=450)
    service = serve(one_store(own.dsn, clerk))
    walking = importer(service, 50)
    found: list[Any] = []
    with closing(walking), ThreadPoolExecutor(1) as beside:
        for number in range(21):
            if number == 4:  # between two pages; the next one is asked for while the database is away
                own.stop(mode)
                starting = beside.submit(own.start)
                page = walking.page(number * 50)
                starting.result(60)
            elif number == 8:  # in the middle of a page: item 450 is on it
                page = restarted_in(own, loop, mode, lambda at=number * 50: walking.page(at), beside)  # type: ignore[misc]
            else:
                page = walking.page(number * 50)
            found += ids(page.items)
    assert sorted(set(found)) == list(range(1, 1001))
    assert service.events("Failed") == []


def restarted_in(
    server: Postgres, loop: Loop, mode: StopMode, work: Callable[[], Any], beside: ThreadPoolExecutor
) -> Any:
    """What `work` came to, with the server restarted while a session of its was held at the gate."""
    database = Database(loop, server.dsn)
    try:
        shut_gate(database)
        working = beside.submit(work)
        held_one(database)
        server.stop(mode)  # opens the gate as well: the lock goes with the session
        server.start()
    finally:
        with suppress(Exception):
            database.close()
    return working.result(90)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate", "kill -9"])
def test_a_stream_survives_a_restart_of_the_database_without_repetition(
    own: Postgres, loop: Loop, clerk: FakeClerk, serve: Serve, mode: StopMode
) -> None:
    with visit(own, loop) as database:
        fill(database, 10_000, held_at=7000)
    service = serve(one_store(own.dsn, clerk))
    with ThreadPoolExecutor(1) as beside:
        answer = restarted_in(own, loop, mode, lambda: service.get("/shop/products"), beside)
    assert ids(answer.lines) == list(range(1, 10_001))


@pytest.mark.slow
def test_a_database_away_for_longer_than_resume_for_is_said_and_a_stream_is_cut_off_visibly(
    own: Postgres, loop: Loop, clerk: FakeClerk, serve: Serve
) -> None:
    with visit(own, loop) as database:
        fill(database, LARGE, description="x" * 1000)
        service = serve(one_store(own.dsn, clerk, database='cursor_lease = "60s"\nresume_for = "1s"'))
        assert service.get("/shop/products?limit=10&offset=0").status == 200
        connection = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=60)
        connection.connect()
        assert isinstance(connection.sock, socket.socket)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.request("GET", "/shop/products", headers={"X-Clerk-Authorization": f"Bearer {TOKEN}"})
        response = connection.getresponse()
        assert response.read(1000)
        cursor_of(database)
    own.stop()
    with closing(connection), pytest.raises(http.client.IncompleteRead):
        response.read()
    [event] = service.events("CutOff")
    assert event["cause"] == "database-unavailable"

    for path in ("products?limit=10&offset=0", "products?limit=10&offset=10", "products"):
        answer = service.get(f"/shop/{path}")
        problem(answer, 503, "database-unavailable")
        assert int(answer.headers["Retry-After"]) > 0
    assert service.get("/-/healthz", token=None).status == 200

    own.start()
    assert ids(service.get("/shop/products?limit=10&offset=10").lines) == list(range(11, 21))


CLOSED = {
    "a database closed for maintenance": (
        'alter database "{name}" allow_connections false',
        'alter database "{name}" allow_connections true',
        "55000",
    ),
    "a role that may not log in": ("alter role {role} nologin", "alter role {role} login", "28000"),
}


@pytest.mark.parametrize("why", CLOSED)
def test_a_refused_connection_is_a_503_that_says_so_and_the_walk_goes_on_later(
    database: Database, create_database: Callable[[], Database], clerk: FakeClerk, serve: Serve, why: str
) -> None:
    fill(database, 100)
    name = database.value("select current_database()")
    role = f"feed_of_{name}"
    database.execute(f"create role {role} login superuser")
    service = serve(
        one_store(database.dsn.replace("//postgres:", f"//{role}:"), clerk, database='resume_for = "500ms"')
    )
    assert len(service.get("/shop/products?limit=10&offset=0").lines) == 10
    outside = create_database()
    shut, reopen, sqlstate = CLOSED[why]
    outside.execute(shut.format(name=name, role=role))
    try:
        outside.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = $1 and application_name = 'clerk-feed'",
            name,
        )
        for path in ("products?limit=10&offset=10", "products?limit=10&offset=0", "customers"):
            answer = service.get(f"/shop/{path}")
            said = problem(answer, 503, "database-unavailable")
            assert f"SQLSTATE {sqlstate}" in said["detail"]
            assert int(answer.headers["Retry-After"]) > 0
        assert service.get("/-/readyz", token=None).status == 503
        assert service.events("Failed") == []
    finally:
        outside.execute(reopen.format(name=name, role=role))
    assert ids(service.get("/shop/products?limit=10&offset=10").lines) == list(range(11, 21))


def test_a_feed_that_reads_another_relation_does_not_go_on_with_the_walk(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    """An id of one relation says nothing of what is behind it in another."""
    fill(database, 100)
    database.execute("create view shop.other as select id - 1000 as id, 'a@shop.example' as email from shop.products")
    config = one_store(database.dsn, clerk)
    service = serve(config)
    assert ids(service.get("/shop/customers?limit=1&offset=0").lines) == [1]
    service.stop()
    service = serve(f'{config}\n[stores.shop.feeds.customers]\nsource = "shop.other"\n')
    said = problem(service.get("/shop/customers?limit=1&offset=1"), 500, "key-changed")
    assert '"shop"."other"' in said["detail"]
    assert len(service.get("/shop/customers?limit=60&offset=0").lines) == 60
    assert len(service.get("/shop/customers?limit=60&offset=60").lines) == 40


@pytest.mark.slow
def test_a_frozen_session_delays_its_own_page_only(own: Postgres, loop: Loop, clerk: FakeClerk, serve: Serve) -> None:
    with visit(own, loop) as database:
        fill(database, 100, held_at=30)
        service = serve(one_store(own.dsn, clerk, database='statement_timeout = "1s"'))
        shut_gate(database)
        with meanwhile(lambda: service.get("/shop/products?limit=60&offset=0")) as page:
            own.freeze(held_one(database))
            open_gate(database)
            for _ in range(20):
                assert ids(service.get("/shop/customers?limit=2&offset=0").lines) == [1, 2]
            assert not page.done()
            assert ids(page.result(30).lines) == list(range(1, 61))
        assert ids(service.get("/shop/products?limit=60&offset=60").lines) == list(range(61, 101))


@pytest.mark.slow
def test_a_frozen_session_does_not_hold_up_the_end_of_the_service(
    own: Postgres, loop: Loop, clerk: FakeClerk, serve: Serve
) -> None:
    with visit(own, loop) as database:
        fill(database, 100, held_at=30)
        service = serve(one_store(own.dsn, clerk, server='shutdown_timeout = "1s"'))
        shut_gate(database)
        with ThreadPoolExecutor(1) as beside:
            page = beside.submit(service.get, "/shop/products?limit=60&offset=0")
            own.freeze(held_one(database))
            assert service.stop() == 0
            with suppress(http.client.HTTPException, ConnectionError):
                assert page.result(30).status >= 500


def test_a_statement_that_takes_too_long_is_a_500_that_names_the_timeout(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, 10_000, held_at=7000)
    service = serve(one_store(database.dsn, clerk, database='statement_timeout = "500ms"'))
    assert ids(service.get("/shop/products?limit=1000&offset=0").lines) == list(range(1, 1001))
    shut_gate(database)
    said = problem(service.get("/shop/products?limit=500&after=6800"), 500, "source-failed")
    assert "57014" in said["detail"]
    assert "6800" in said["detail"]
    assert [event["sqlstate"] for event in service.events("SourceFailed")] == ["57014"]
    assert ids(service.get("/shop/products?limit=1000&offset=1000").lines) == list(range(1001, 2001))


def test_a_stream_stopped_by_the_statement_timeout_is_cut_off_visibly(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, 10_000, held_at=7000)
    service = serve(one_store(database.dsn, clerk, database='statement_timeout = "500ms"'))
    shut_gate(database)
    with pytest.raises(http.client.IncompleteRead):
        service.get("/shop/products")
    assert [event["cause"] for event in service.events("CutOff")] == ["source-failed"]


@pytest.mark.slow
def test_a_pool_in_use_is_waited_for_and_then_said(database: Database, clerk: FakeClerk, serve: Serve) -> None:
    fill(database, 100, held_at=30)
    service = serve(one_store(database.dsn, clerk, database="pool_size = 1"))
    shut_gate(database)
    with meanwhile(lambda: service.get("/shop/products?limit=60&offset=0")) as page:
        held_one(database)
        answer = service.get("/shop/customers?limit=10&offset=0")
        problem(answer, 503, "busy")
        assert int(answer.headers["Retry-After"]) > 0
        assert not page.done()
        open_gate(database)
        assert ids(page.result(30).lines) == list(range(1, 61))
    assert ids(service.get("/shop/customers?limit=2&offset=0").lines) == [1, 2]
    [event] = service.events("PoolExhausted")
    assert event["size"] == 1


OTHERWISE = """
drop view shop.products;
create view shop.products as
select 'made of oak' as material, id::int as id, array['a', null] as description, name::varchar(20) as name,
  price::text as price, now() as image, json_build_object('at', 1) as url, 'Chairs' as categories,
  created_at::date as created_at
from shop.chairs;
"""
"""Another relation of the same items: other columns, in another order, of other types."""


def test_a_view_replaced_by_one_of_other_columns_and_types_loses_no_item_of_a_walk(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, 1000, held_at=0)
    service = serve(one_store(database.dsn, clerk))
    walking = importer(service, 100)
    found: list[dict[str, Any]] = []
    with closing(walking):
        for page in walking.pages():
            found += page.items
            if page.number == 4:
                database.execute(OTHERWISE)
    assert ids(found) == list(range(1, 1001))
    assert "material" not in found[499]
    assert (found[500]["material"], found[500]["price"], found[500]["description"]) == ("made of oak", "10.5", ["a"])


@pytest.mark.parametrize("lease", ["60s", "10ms"])
def test_a_view_replaced_by_one_of_other_columns_and_types_loses_no_item_of_a_stream(
    database: Database, clerk: FakeClerk, serve: Serve, lease: str
) -> None:
    fill(database, 120_000, held_at=7000, description="x" * 200)
    service = serve(one_store(database.dsn, clerk, database=f'cursor_lease = "{lease}"'))
    with closing(Streaming(service)) as stream:
        replacing = Replacing(database)
        found, ended = stream.rest()
        replacing.done()
    assert ended
    assert found == list(range(1, 120_001))


class ReplacedMeanwhile:
    """A connection behind whose first answer the view is replaced."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._replaced = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def fetchrow(self, sql: str, *arguments: object) -> Any:
        row = await self._connection.fetchrow(sql, *arguments)
        if not self._replaced:
            self._replaced = True
            await self._connection.execute(OTHERWISE)
        return row


def test_a_view_that_is_replaced_while_it_is_described_is_described_as_it_is_then(
    database: Database, loop: Loop
) -> None:
    fill(database, 1, held_at=0)

    async def described() -> Source:
        connection = await asyncpg.connect(database.dsn)
        try:
            store = Store(public_key="key", name="shop", schema="shop")
            return await describe(ReplacedMeanwhile(connection), store, "products")
        finally:
            await connection.close()

    assert "material" in loop.run(described()).attributes


class Replacing:
    """The view is replaced as soon as the cursor that reads it lets go of it."""

    def __init__(self, database: Database, sql: str = OTHERWISE) -> None:
        self._executor = ThreadPoolExecutor(1)
        self._task = self._executor.submit(database.execute, sql)

    def done(self) -> None:
        self._task.result(60)
        self._executor.shutdown()


KEYS_OTHERWISE = {
    "number to text": ("i", "i::text"),
    "text to number": ("i::text", "i"),
    "text to uuid": ("i::text", "md5(i::text)::uuid"),
}


def customers_by(database: Database, key: str) -> None:
    database.execute(f"""
        drop view if exists shop.customers;
        create view shop.customers as
        select {key} as id, i as number, repeat('x', 600) as email from generate_series(1, 60000) as i;
    """)


@pytest.mark.parametrize("change", KEYS_OTHERWISE)
def test_a_walk_whose_keys_change_their_type_fails_visibly_or_loses_nothing(
    database: Database, clerk: FakeClerk, serve: Serve, change: str
) -> None:
    database.execute("create schema shop")
    before, after = KEYS_OTHERWISE[change]
    keys = "create view shop.customers as select {} as id, i as number, 'a@shop.example' as email from {}"
    database.execute(keys.format(before, "generate_series(1, 1200) as i"))
    service = serve(one_store(database.dsn, clerk))
    found: list[Any] = []
    for offset in range(0, 1300, 100):
        if offset == 300:
            database.execute("drop view shop.customers")
            database.execute(keys.format(after, "generate_series(1, 1200) as i"))
        answer = service.get(f"/shop/customers?limit=100&offset={offset}")
        if answer.status != 200:
            answer = service.get(f"/shop/customers?limit=100&offset={offset}")  # nor is it guessed when asked again
            break
        found += [item["number"] for item in answer.lines]
    assert answer.status in (500, 503) or set(found) == set(range(1, 1201))
    assert service.events("Failed") == []


@pytest.mark.parametrize("change", KEYS_OTHERWISE)
def test_a_stream_whose_keys_change_their_type_is_cut_off_or_loses_nothing(
    database: Database, clerk: FakeClerk, serve: Serve, change: str
) -> None:
    database.execute("create schema shop")
    before, after = KEYS_OTHERWISE[change]
    # A lease so short that the view can be replaced between two reads.
    service = serve(one_store(database.dsn, clerk, database='cursor_lease = "10ms"'))
    customers_by(database, before)
    with closing(connect(service, receive_bytes=65_536)) as connection:
        connection.sendall(request("/shop/customers"))
        received = connection.recv(4096)
        customers_by(database, after)
        connection.settimeout(60)
        received += until_end(connection)
    content, ended = dechunked(received.partition(b"\r\n\r\n")[2])
    numbers = {int(line.split(b'"number":')[1].split(b",")[0]) for line in content.splitlines() if b'"number":' in line}
    assert not ended or numbers == set(range(1, 60_001))
    assert not ended or service.events("CutOff") == []


def until_end(connection: socket.socket) -> bytes:
    """What is still to be read of a chunked answer, to its last chunk or to where it was cut off."""
    received = bytearray()
    with suppress(ConnectionError):
        while not received.endswith(b"\r\n0\r\n\r\n") and (piece := connection.recv(1 << 20)):
            received += piece
    return bytes(received)


def people(shop: Shop, count: int, email: str) -> None:
    """A feed of customers over a table with an index, so that a page computes its own items only.

    Of a hundred rows or fewer PostgreSQL would rather sort all.
    """
    shop.execute("create table {s}.people as select i as id from generate_series(1, $1::int) as i", count)
    shop.execute("alter table {s}.people add primary key (id)")
    shop.execute("analyze {s}.people")
    shop.execute(f"create view {{s}}.customers as select id, {email} as email from {{s}}.people")


def test_a_page_that_one_row_fails_names_the_feed_and_the_item_before_it(shop: Shop) -> None:
    people(shop, 1000, "(100 / (id - 37))::text")
    for offset in (0, 10, 20):
        assert len(shop.items(f"customers?limit=10&offset={offset}")) == 10
    said = problem(shop.get("customers?limit=10&offset=30"), 500, "source-failed")
    assert "customers" in said["detail"]
    assert "'30'" in said["detail"]
    [event] = [event for event in shop.service.events("SourceFailed") if event["store"] == shop.name]
    assert (event["feed"], event["after"], event["sqlstate"]) == ("customers", "30", "22012")

    shop.execute("create or replace view {s}.customers as select id, id::text as email from {s}.people")
    assert ids(shop.items("customers?limit=10&offset=30")) == list(range(31, 41))


def test_a_stream_that_one_row_fails_names_an_item_not_far_before_it(shop: Shop) -> None:
    people(shop, 20_000, "(100 / (id - 8123))::text")
    with pytest.raises(http.client.IncompleteRead):
        shop.get("customers")
    [event] = [event for event in shop.service.events("SourceFailed") if event["store"] == shop.name]
    assert event["sqlstate"] == "22012"
    assert 7000 <= int(event["after"]) < 8123


def test_a_walk_goes_on_at_a_second_service_where_the_first_was_killed(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, 1000, held_at=450)
    first = serve(one_store(database.dsn, clerk))
    second = serve(one_store(database.dsn, clerk))
    found: list[Any] = []
    walking = importer(first, 50)
    with closing(walking):
        for number in range(8):
            found += ids(walking.page(number * 50).items)
    shut_gate(database)
    with ThreadPoolExecutor(1) as beside:
        page = beside.submit(first.get, "/shop/products?limit=50&offset=400")
        held_one(database)
        first.stop(signal.SIGKILL)
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            page.result(30)
    open_gate(database)
    walking = importer(second, 50)
    with closing(walking):
        for number in range(8, 21):
            found += ids(walking.page(number * 50).items)
    assert found == list(range(1, 1001))


def test_a_stream_under_way_at_sigterm_is_finished_and_new_connections_are_refused(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, 10_000, held_at=7000)
    service = serve(one_store(database.dsn, clerk))
    shut_gate(database)
    with meanwhile(lambda: service.get("/shop/products")) as stream:
        held_one(database)
        service.process.send_signal(signal.SIGTERM)
        eventually(lambda: refuses(service))
        assert not stream.done()
        open_gate(database)
        assert ids(stream.result(30).lines) == list(range(1, 10_001))
    assert service.process.wait(20) == 0


def refuses(service: Running) -> bool:
    parts = urlsplit(service.url)
    with closing(socket.socket()) as connection:
        return connection.connect_ex((parts.hostname, parts.port)) != 0


def test_a_page_under_way_at_sigterm_is_finished_and_its_bookmark_kept(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, 100, held_at=30)
    service = serve(one_store(database.dsn, clerk))
    shut_gate(database)
    with meanwhile(lambda: service.get("/shop/products?limit=60&offset=0")) as page:
        held_one(database)
        service.process.send_signal(signal.SIGTERM)
        eventually(lambda: service.events("Stopping") != [])
        open_gate(database)
        assert ids(page.result(30).lines) == list(range(1, 61))
    assert service.process.wait(20) == 0
    assert database.value("select key from clerk_feed.bookmark where at = 60") == "60"


def test_a_stream_that_outlasts_shutdown_timeout_is_cut_off_visibly(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, LARGE, description="x" * 1000)
    service = serve(one_store(database.dsn, clerk, server='shutdown_timeout = "1s"'))
    with closing(Streaming(service)) as stream:
        assert service.stop() == 0
        found, ended = stream.rest()
    assert not ended
    assert found == list(range(1, len(found) + 1))
    assert len(found) < LARGE
    assert service.events("Failed") == []


@pytest.mark.parametrize("limit", [10, 200])
@pytest.mark.parametrize(("table", "status"), [("asked", 200), ("walk", 503)])
def test_a_row_that_a_frozen_session_holds_stops_no_other_store(
    database: Database, clerk: FakeClerk, serve: Serve, table: str, status: int, limit: int
) -> None:
    """What was asked of a feed is noted without a wait; a walk's record waits for a moment, and holds no connection."""
    text = base_config(database.dsn, clerk.verify_url, database="pool_size = 4")
    for store in ("dk", "se"):
        database.execute(f"create schema {store}")
        database.execute(PRODUCTS.replace("{s}", store))
        database.execute(f"insert into {store}.products (id) select generate_series(1, 1000)")
        text += f'[stores.{store}]\npublic_key = "key-{store}"\n'
    service = serve(text)
    for store in ("dk", "se"):
        for offset in (0, limit):
            assert service.get(f"/{store}/products?limit={limit}&offset={offset}").status == 200
    database.execute(f"begin; select from clerk_feed.{table} where store = 'dk' for update")
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(service.get, f"/dk/products?limit={limit}&offset={2 * limit}") for _ in range(4)]
        assert service.get(f"/se/products?limit={limit}&offset={2 * limit}").status == 200
        assert {one.result().status for one in asked} == {status}
    database.execute("rollback")
    assert ids(service.get(f"/dk/products?limit={limit}&offset={2 * limit}").lines)[0] == 2 * limit + 1


@contextmanager
def away(database: Database, by: str) -> Iterator[None]:
    """The table of bookmarks can't be used for a while."""
    if by == "renamed":
        database.execute("alter table clerk_feed.bookmark rename to bookmark_away")
        yield
        database.execute("alter table clerk_feed.bookmark_away rename to bookmark")
    elif by == "locked":
        database.execute("begin; lock table clerk_feed.bookmark in access exclusive mode")
        yield
        database.execute("rollback")
    else:  # it can be read, but the bookmarks of the first two pages can't be written
        database.execute("alter table clerk_feed.bookmark add constraint none check (at > 20) not valid")
        yield
        database.execute("alter table clerk_feed.bookmark drop constraint none")


@pytest.mark.parametrize("by", ["renamed", "locked", "refusing"])
def test_a_bookmark_that_cannot_be_written_is_a_503_and_the_walk_goes_on_once_it_can(
    database: Database, clerk: FakeClerk, serve: Serve, by: str
) -> None:
    fill(database, 30)
    service = serve(one_store(database.dsn, clerk, database='statement_timeout = "500ms"\nresume_for = "1s"'))
    for offset in (0, 10):
        with away(database, by):
            answer = service.get(f"/shop/products?limit=10&offset={offset}")
        problem(answer, 503, "state-unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        assert ids(service.get(f"/shop/products?limit=10&offset={offset}").lines) == list(
            range(offset + 1, offset + 11)
        )
    assert ids(service.get("/shop/products?limit=10&offset=20").lines) == list(range(21, 31))
    assert service.get("/shop/products?limit=10&offset=30").lines == []


@pytest.mark.parametrize("by", ["renamed", "locked"])
def test_a_bookmark_that_cannot_be_read_is_a_503_and_never_a_guess(
    database: Database, clerk: FakeClerk, serve: Serve, by: str
) -> None:
    fill(database, 30)
    service = serve(one_store(database.dsn, clerk, database='statement_timeout = "500ms"\nresume_for = "1s"'))
    assert ids(service.get("/shop/products?limit=10&offset=0").lines) == list(range(1, 11))
    database.execute("delete from shop.products where id <= 5")
    for method in ("GET", "HEAD"):
        with away(database, by):
            answer = service.get("/shop/products?limit=10&offset=10", method=method)
        assert (answer.status, answer.headers["Content-Type"]) == (503, "application/problem+json")
        assert int(answer.headers["Retry-After"]) > 0
    assert ids(service.get("/shop/products?limit=10&offset=10").lines) == list(range(11, 21))


def test_an_answer_that_needs_no_bookmark_comes_while_bookmarks_cannot_be_used(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, 30)
    service = serve(one_store(database.dsn, clerk))
    with away(database, "renamed"):
        assert ids(service.get("/shop/products?limit=10&after=5").lines) == list(range(6, 16))


@pytest.mark.parametrize("limit", [1000, 50])
def test_a_table_that_a_function_reads_is_filled_anew_at_the_end_of_a_walk(
    database: Database, clerk: FakeClerk, serve: Serve, loop: Loop, limit: int
) -> None:
    """The function looks at it only after the statement has begun, and to that it is empty."""
    fill(database, 2 * limit + 30)
    database.execute("create table shop.listed as select id from shop.products")
    database.execute("alter table shop.products rename to chairs")
    database.execute(
        "create function shop.is_listed(bigint) returns boolean stable language plpgsql as"
        " $$ begin return exists (select from shop.listed as l where l.id = $1); end $$"
    )
    database.execute("create view shop.products as select * from shop.chairs where shop.is_listed(id)")
    service = serve(one_store(database.dsn, clerk))
    for offset in (0, limit):
        assert len(service.get(f"/shop/products?limit={limit}&offset={offset}").lines) == limit
    eventually(lambda: database.value("select count(*) from pg_stat_activity where state = 'active'") == 1)
    time.sleep(2.5)  # what was read ahead is given up
    with reloaded(loop, database, "shop.listed") as meanwhile:
        answer = meanwhile(partial(service.get, f"/shop/products?limit={limit}&offset={2 * limit}"))
    assert len(answer.lines) == 30


@pytest.mark.parametrize("size", [7, 9000])
def test_a_page_read_while_its_table_is_filled_anew_is_whole(
    database: Database, clerk: FakeClerk, serve: Serve, loop: Loop, size: int
) -> None:
    """TRUNCATE empties a table for snapshots that are older. Large items, and the first of a process, go by cursor."""
    fill(database, 3000, description="x" * size)
    walked = serve(one_store(database.dsn, clerk))
    fresh = serve(one_store(database.dsn, clerk))
    for offset in (0, 1000):
        assert len(walked.get(f"/shop/products?limit=1000&offset={offset}").lines) == 1000
    for service in (walked, fresh):
        with reloaded(loop, database, "shop.products") as meanwhile:
            answer = meanwhile(partial(service.get, "/shop/products?limit=1000&offset=2000"))
        assert ids(answer.lines) == list(range(2001, 3001))


def test_a_whole_feed_read_while_its_table_is_filled_anew_is_whole(
    database: Database, clerk: FakeClerk, serve: Serve, loop: Loop
) -> None:
    fill(database, 3000)
    service = serve(one_store(database.dsn, clerk))
    with reloaded(loop, database, "shop.products") as meanwhile:
        answer = meanwhile(lambda: service.get("/shop/products"))
    assert len(answer.lines) == 3000


def test_an_invalid_item_before_a_page_whose_first_row_fails_ends_no_walk(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    """Then the page comes out short, though the feed goes on."""
    database.execute("create schema shop")
    database.execute(
        "create table shop.people as select i as id, '1' as number, 'e' as email from generate_series(1, 1000) i"
    )
    database.execute("alter table shop.people add primary key (id)")
    database.execute("analyze shop.people")
    database.execute("create view shop.customers as select id, email, number::int as number from shop.people")
    service = serve(one_store(database.dsn, clerk))
    for offset in (0, 10):
        assert len(service.get(f"/shop/customers?limit=10&offset={offset}").lines) == 10
    database.execute("update shop.people set email = null where id = 25")
    database.execute("update shop.people set number = '12a' where id = 31")
    problem(service.get("/shop/customers?limit=10&offset=20"), 500, "source-failed")
    assert database.value("select count(*) from clerk_feed.walk where ended is not null") == 0


def test_of_two_that_wait_for_each_other_the_one_that_is_given_up_does_its_work_again(
    create_database: Callable[[], Database], loop: Loop
) -> None:
    """As two pages may that change the same bookmarks."""
    database = create_database()
    database.execute(
        "create table pair (id int primary key, changes int not null); insert into pair values (1, 0), (2, 0)"
    )

    async def change_both() -> None:
        pool = await Pool.open(database.dsn, DatabaseSettings(), lambda event: None)
        met = asyncio.Barrier(2)
        attempts = 0

        async def change(connection: Any, ids: tuple[int, int]) -> None:
            nonlocal attempts
            attempts += 1
            again = attempts > 2
            async with connection.transaction():
                for id in ids:
                    await connection.execute("update pair set changes = changes + 1 where id = $1", id)
                    if id == ids[0] and not again:
                        await met.wait()

        try:
            await asyncio.gather(*(pool.patiently(partial(change, ids=ids), Patience(10)) for ids in ((1, 2), (2, 1))))
        finally:
            await pool.close()
        assert attempts == 3

    loop.run(change_both())
    assert [row["changes"] for row in database.fetch("select changes from pair")] == [2, 2]
