"""Real parts for the tests: the embedded PostgreSQL, services as processes, a stand-in for Clerk's verify endpoint.

One server, one database and one service are shared by all tests of a worker; each test gets a store of its own, with
a schema of its own. Tests that break things start their own service or database.
"""

import asyncio
import http.client
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg
import pytest
import uvloop
from starlette.types import ASGIApp

from app.catalog.embedded import Embedded
from app.clerk.importer import Importer
from app.hosting import host
from app.settings import Server
from app.sockets import listen, url_of
from tests.browser import browser, chromium
from tests.clerk import FakeClerk

__all__ = ["browser", "chromium"]

T = TypeVar("T")

_numbers = itertools.count()

TOKEN = "good-token"


class Loop:
    """An event loop in a thread, so that tests stay plain functions."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout: float = 60) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


class Database:
    """A database of the embedded server."""

    def __init__(self, loop: Loop, dsn: str) -> None:
        self._loop = loop
        self.dsn = dsn
        self._connection = loop.run(asyncpg.connect(dsn))

    def execute(self, sql: str, *values: object) -> None:
        self._loop.run(self._connection.execute(sql, *values))

    def fetch(self, sql: str, *values: object) -> list[Any]:
        rows: list[Any] = self._loop.run(self._connection.fetch(sql, *values))
        return rows

    def value(self, sql: str, *values: object) -> Any:
        return self._loop.run(self._connection.fetchval(sql, *values))

    def close(self) -> None:
        self._loop.run(self._connection.close())


@dataclass
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The items of an NDJSON body, which must end in a whole line."""
        assert not self.body or self.body.endswith(b"\n")
        return [json.loads(line) for line in self.body.splitlines()]


def ids(items: list[dict[str, Any]]) -> list[Any]:
    return [item["id"] for item in items]


@dataclass
class Running:
    """A service process and how to talk to it."""

    process: "subprocess.Popen[bytes]"
    url: str
    admin_url: str
    log: Path

    def get(
        self,
        path: str,
        *,
        token: str | None = TOKEN,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        admin: bool = False,
        source: str = "",
    ) -> Answer:
        """Ask. `source` is the address to ask from, any of 127.0.0.0/8: only 127.0.0.1 is a trusted proxy."""
        parts = urlsplit(self.admin_url if admin else self.url)
        origin = (source, 0) if source else None
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60, source_address=origin)
        try:
            sent = dict(headers or {})
            if token is not None:
                sent["X-Clerk-Authorization"] = f"Bearer {token}"
            connection.request(method, path, headers=sent)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The events so far. The log is written by a thread, in order: one more event shows that it has caught up.

        A service that is stopping takes no request any more; then these are the lines written until now.
        """
        if self.process.poll() is None:
            mark = f"/-/mark-{next(_numbers)}"
            with suppress(ConnectionError, http.client.HTTPException):
                self.get(mark, token=None)
                eventually(lambda: mark in self.log.read_text())
        return [line for line in self.logged() if kind is None or line["event"] == kind]

    def logged(self) -> list[dict[str, Any]]:
        """The events written until now. A last line that is only half written is left out."""
        lines = self.log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    def stop(self, number: int = signal.SIGTERM, timeout: float = 20) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@dataclass
class Shop:
    """A store of the shared service with a schema of its own."""

    name: str
    database: Database
    service: Running
    clerk: FakeClerk
    public_key: str = field(init=False)

    def __post_init__(self) -> None:
        self.public_key = f"key-{self.name}"

    def let_the_sync_be_over(self) -> None:
        """Let it be too late to ask for its empty answer again."""
        sql = "update clerk_feed.bookmark set ended = ended - interval '16 minutes' where store = $1"
        self.database.execute(sql, self.name)

    def execute(self, sql: str, *values: object) -> None:
        """Run SQL with {s} standing for the store's schema."""
        self.database.execute(sql.replace("{s}", self.name), *values)

    def get(self, path: str, **options: Any) -> Answer:
        """Ask for /STORE/path."""
        return self.service.get(f"/{self.name}/{path}", **options)

    def items(self, path: str) -> list[dict[str, Any]]:
        answer = self.get(path)
        assert answer.status == 200, answer.body
        return answer.lines

    def importer(self, feed: str, limit: int = 1000, **options: Any) -> Importer:
        query = "?limit={{limit}}&offset={{offset}}"
        if "modified_after" in options:
            query += "&modified_after={{modified_after}}"
        return Importer(f"{self.service.url}/{self.name}/{feed}{query}", token=TOKEN, limit=limit, **options)

    def walk(self, feed: str, limit: int = 1000, **options: Any) -> list[dict[str, Any]]:
        """The items of a whole walk, page by page."""
        importer = self.importer(feed, limit, **options)
        try:
            return [item for page in importer.pages() for item in page.items]
        finally:
            importer.close()


def eventually(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Return once it holds; fail where it does not within a time that only a defect exceeds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold in time"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    running = Loop()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[Embedded]:
    """The embedded server; all workers of a run share it, and the last one stops it."""
    run = getattr(request.config, "workerinput", {}).get("testrunuid", str(os.getpid()))
    # Not below pytest's folder: another run of root makes that unreadable for the user PostgreSQL runs as.
    folder = Path(tempfile.gettempdir()) / f"clerk-feed-test-{run}"
    server = Embedded.start(folder)
    yield server
    server.stop()
    if not (folder / "postgres" / "postmaster.pid").exists():
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def create_database(postgres: Embedded, loop: Loop, worker_id: str) -> Iterator[Callable[..., Database]]:
    """Makes fresh databases of the embedded server; an argument says with what options."""
    made: list[Database] = []
    admin = Database(loop, postgres.dsn)
    # A test's process may be killed, its machine is not: no need to wait for the disk.
    admin.execute("alter system set fsync = off")
    admin.execute("select pg_reload_conf()")

    def create(options: str = "") -> Database:
        name = f"test_{worker_id}_{next(_numbers)}"
        admin.execute(f"create database {name} {options}")
        database = Database(loop, postgres.dsn.replace("/postgres?", f"/{name}?"))
        made.append(database)
        return database

    yield create
    for database in made:
        database.close()
    admin.close()


@pytest.fixture(scope="session")
def worker_id(request: pytest.FixtureRequest) -> str:
    return str(getattr(request.config, "workerinput", {}).get("workerid", "main"))


@pytest.fixture(scope="session")
def shared_database(create_database: Callable[[], Database]) -> Database:
    return create_database()


@pytest.fixture
def database(create_database: Callable[[], Database]) -> Iterator[Database]:
    """A fresh database of the test's own."""
    made = create_database()
    yield made
    made.close()  # the server has 100 connections for all tests


Hosted = Callable[[ASGIApp], str]


@pytest.fixture(scope="session")
def hosted(loop: Loop) -> Iterator[Hosted]:
    """Serves an application on a free loopback port by a real Hypercorn; answers its URL."""
    running: list[tuple[asyncio.Event, Any]] = []

    def serve(app: ASGIApp) -> str:
        listener = listen("127.0.0.1:0", user_timeout_seconds=30)
        url = url_of(listener)
        stop = asyncio.Event()
        quick = Server()
        task = asyncio.run_coroutine_threadsafe(host(app, [listener], quick, stop), loop.loop)
        running.append((stop, task))
        return url

    yield serve
    for stop, _ in running:
        loop.loop.call_soon_threadsafe(stop.set)
    for _, task in running:
        task.result(40)


@pytest.fixture(scope="session")
def clerk(hosted: Hosted) -> FakeClerk:
    """The stand-in for Clerk that the shared service asks. TOKEN is good for every key that starts with key-."""
    fake = FakeClerk()
    fake.url = hosted(fake.app)
    return fake


Serve = Callable[..., Running]


def start_service(
    folder: Path,
    config: str,
    *,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = (sys.executable, "-m", "app"),
) -> Running:
    """Start `clerk-feed serve` on a feed.toml and wait until it answers. `program` is another clerk-feed than ours."""
    folder.mkdir(parents=True, exist_ok=True)
    path, log = folder / "feed.toml", folder / "serve.log"
    path.write_text(config)
    # What one that is killed leaves behind lies in the test's folder.
    ours = {"PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": "1", "TMPDIR": str(folder)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*program, "serve", "--config", str(path)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ours, **(environment or {})},
        )
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        text = log.read_text()
        if '"event":"Started"' in text:
            urls = {
                words[0]: words[1].rstrip(",")
                for line in text.splitlines()
                if len(words := line.split()) >= 2 and "://" in words[1]
            }
            return Running(process, urls["feeds"], urls["admin"], log)
        if process.poll() is not None:
            break
        time.sleep(0.02)
    process.kill()
    process.wait()
    raise AssertionError(f"the service did not start:\n{log.read_text()}")


def base_config(dsn: str, verify_url: str, *, database: str = "", server: str = "", access: str = "") -> str:
    """The common part of a feed.toml, on free ports."""
    return f"""
[database]
dsn = {json.dumps(dsn)}
{database}
[server]
bind = ["127.0.0.1:0"]
admin_bind = "127.0.0.1:0"
{server}
[access]
verify_url = {json.dumps(verify_url)}
{access}
"""


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts services of the test's own."""
    numbers = itertools.count()
    with ExitStack() as running:

        def start(config: str, **options: Any) -> Running:
            service = start_service(tmp_path / f"service{next(numbers)}", config, **options)
            running.callback(service.stop)
            return service

        yield start


STORES = 500


@pytest.fixture(scope="session")
def shared_service(
    shared_database: Database, clerk: FakeClerk, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """One service for all tests of a worker, with many stores s0, s1, … each on a schema of its name."""
    config = base_config(shared_database.dsn, clerk.verify_url, database="pool_size = 16")
    for number in range(STORES):
        config += f'[stores.s{number}]\npublic_key = "key-s{number}"\n'
        if number % 2:
            config += f"[stores.s{number}.feeds.customers]\nstrict = true\n"
    running = start_service(tmp_path_factory.mktemp("shared"), config)
    yield running
    running.stop()


_stores = itertools.count()


@pytest.fixture
def shop(shared_service: Running, shared_database: Database, clerk: FakeClerk) -> Shop:
    """A store of the test's own. In odd stores the customers feed is strict."""
    name = f"s{next(_stores)}"
    shared_database.execute(f"create schema {name}")
    return Shop(name, shared_database, shared_service, clerk)


@pytest.fixture
def catalog(shop: Shop) -> Shop:
    """A shop with a table of products with int keys, empty, that fills every required attribute by default."""
    shop.execute(PRODUCTS)
    return shop


PRODUCTS = """
create table {s}.products (
  id bigint primary key,
  name text default 'Chair',
  description text default 'A chair',
  price numeric default 10.5,
  image text default 'https://images.shop.example/chair.jpg',
  url text default 'https://shop.example/chair',
  categories int[] default '{1,2}',
  created_at timestamptz default '2026-01-01',
  modified_at timestamptz default '2026-01-01'
);
create index on {s}.products (modified_at, id)
"""


CITEXT = """
create type {s}.citext;
create function {s}.citextin(cstring) returns {s}.citext language internal immutable strict as 'textin';
create function {s}.citextout({s}.citext) returns cstring language internal immutable strict as 'textout';
create type {s}.citext (input = {s}.citextin, output = {s}.citextout, like = text, category = 'S', collatable = true);
create cast ({s}.citext as text) without function as implicit;
create cast (text as {s}.citext) without function as assignment;
create function {s}.citext_cmp({s}.citext, {s}.citext) returns int language sql immutable strict as
  $$ select bttextcmp(lower($1::text), lower($2::text)) $$;
create function {s}.citext_lt({s}.citext, {s}.citext) returns bool language sql immutable strict as
  $$ select lower($1::text) < lower($2::text) $$;
create function {s}.citext_le({s}.citext, {s}.citext) returns bool language sql immutable strict as
  $$ select lower($1::text) <= lower($2::text) $$;
create function {s}.citext_eq({s}.citext, {s}.citext) returns bool language sql immutable strict as
  $$ select lower($1::text) = lower($2::text) $$;
create function {s}.citext_ge({s}.citext, {s}.citext) returns bool language sql immutable strict as
  $$ select lower($1::text) >= lower($2::text) $$;
create function {s}.citext_gt({s}.citext, {s}.citext) returns bool language sql immutable strict as
  $$ select lower($1::text) > lower($2::text) $$;
create operator {s}.< (leftarg = {s}.citext, rightarg = {s}.citext, function = {s}.citext_lt);
create operator {s}.<= (leftarg = {s}.citext, rightarg = {s}.citext, function = {s}.citext_le);
create operator {s}.= (leftarg = {s}.citext, rightarg = {s}.citext, function = {s}.citext_eq, merges);
create operator {s}.>= (leftarg = {s}.citext, rightarg = {s}.citext, function = {s}.citext_ge);
create operator {s}.> (leftarg = {s}.citext, rightarg = {s}.citext, function = {s}.citext_gt);
create operator class {s}.citext_ops default for type {s}.citext using btree as
  operator 1 {s}.<, operator 2 {s}.<=, operator 3 {s}.=, operator 4 {s}.>=, operator 5 {s}.>,
  function 1 {s}.citext_cmp({s}.citext, {s}.citext);
"""
"""A type of that name, and like it, where the extension may be: in a schema that no search_path names."""


@contextmanager
def reloaded(
    loop: Loop, database: Database, table: str, *, hold: float = 0
) -> Iterator[Callable[[Callable[[], T]], T]]:
    """A table that is emptied and filled again in one transaction.

    It ends once what is done meanwhile has waited for it for `hold` seconds.
    """
    with changed(loop, database, hold=hold) as (other, meanwhile):
        other.execute(f"create temp table kept as select * from {table}")
        other.execute("begin")
        other.execute(f"truncate {table}")
        other.execute(f"insert into {table} select * from kept")
        yield meanwhile


@contextmanager
def partition_attached(
    loop: Loop, database: Database, table: str, first: int, end: int, *, before: str = "", hold: float = 0
) -> Iterator[Callable[[Callable[[], T]], T]]:
    """Rows of the default partition that get one of their own, in one transaction; it ends like `reloaded`.

    `before`: SQL at the beginning of the transaction.
    """
    with changed(loop, database, hold=hold) as (other, meanwhile):
        other.execute("begin")
        if before:
            other.execute(before)
        other.execute(f"create table {table}_{first} (like {table} including all)")
        other.execute(
            f"with moved as (delete from {table}_default where id >= {first} and id < {end} returning *)"
            f" insert into {table}_{first} select * from moved"
        )
        other.execute(f"alter table {table} attach partition {table}_{first} for values from ({first}) to ({end})")
        yield meanwhile


@contextmanager
def changed(
    loop: Loop, database: Database, *, hold: float = 0
) -> Iterator[tuple[Database, Callable[[Callable[[], T]], T]]]:
    """Another session with a transaction, and how to do what waits for it, `hold` seconds at least, until it ends."""
    with closing(Database(loop, database.dsn)) as other, ThreadPoolExecutor(1) as threads:
        waiting = (
            "select count(*) from pg_locks"
            " where not granted and database = (select oid from pg_database where datname = current_database())"
        )

        def meanwhile(work: Callable[[], T]) -> T:
            done = threads.submit(work)
            eventually(lambda: database.value(waiting) > 0)
            time.sleep(hold)
            other.execute("commit")
            return done.result(60)

        yield other, meanwhile
