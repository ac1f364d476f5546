"""Behind PgBouncer in transaction mode: server connections change with every transaction; nothing depends on one."""

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from app.catalog.rendered import connection_for_refresh
from tests.clerk import FakeClerk
from tests.conftest import PRODUCTS, Database, Hosted, Loop, Running, Serve, base_config, eventually
from tests.test_guard import accept, held_back

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
if PROGRAM is None:
    pytest.skip("there is no pgbouncer here; on Debian: apt-get install pgbouncer", allow_module_level=True)


@pytest.fixture
def bouncer(database: Database) -> Iterator[str]:
    """The DSN of the test's database by way of a PgBouncer with two server connections."""
    folder = Path(tempfile.mkdtemp(prefix="cf-"))
    folder.chmod(0o777)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    parts = urlsplit(database.dsn)
    name = parts.path.strip("/")
    [sockets] = parse_qs(parts.query)["host"]
    (folder / "users.txt").write_text('"postgres" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n{name} = host={sockets} dbname={name} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = any\nauth_file = {folder}/users.txt\npool_mode = transaction\ndefault_pool_size = 2\n"
        f"max_client_conn = 100\nlogfile = {folder}/log\n"
    )
    user = ["-u", Path(sockets).owner()] if os.geteuid() == 0 else []
    process = subprocess.Popen(
        [str(PROGRAM), "-q", *user, str(folder / "pgbouncer.ini")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.05)
    yield f"postgresql://postgres@127.0.0.1:{port}/{name}"
    process.terminate()
    process.wait(10)
    shutil.rmtree(folder, ignore_errors=True)


def shop(dsn: str, clerk: FakeClerk, serve: Serve, more: str = "") -> Running:
    config = base_config(dsn, clerk.verify_url, database=f"pgbouncer = true\npool_size = 6\n{more}")
    return serve(f'{config}\n[stores.shop]\npublic_key = "key-shop"\n')


def walk(service: Running, limit: int, more: str = "") -> list[Any]:
    found: list[Any] = []
    for offset in itertools.count(0, limit):
        answer = service.get(f"/shop/products?limit={limit}&offset={offset}{more}")
        assert answer.status == 200, answer.body
        if not answer.lines:
            break
        found += [item["id"] for item in answer.lines]
    return found


def test_walks_streams_and_deltas_at_once_over_two_server_connections(
    database: Database, bouncer: str, clerk: FakeClerk, serve: Serve
) -> None:
    database.execute("create schema shop")
    database.execute(PRODUCTS.replace("{s}", "shop"))
    database.execute("create type shop.colour as enum ('red', 'blue')")
    database.execute("alter table shop.products add column colours shop.colour[] default '{red,blue}'")
    database.execute("insert into shop.products (id) select generate_series(1, 3000)")
    service = shop(bouncer, clerk, serve)
    everything = list(range(1, 3001))
    with ThreadPoolExecutor(6) as threads:
        walks = [threads.submit(walk, service, limit) for limit in (1000, 300, 100, 60)]
        deltas = threads.submit(walk, service, 500, "&modified_after=2020-01-01")
        whole = threads.submit(lambda: [item["id"] for item in service.get("/shop/products").lines])
        assert all(sorted(set(done.result(120))) == everything for done in walks)
        assert sorted(set(deltas.result(120))) == everything
        assert whole.result(120) == everything
    assert service.get("/shop/products?limit=1&offset=0").lines[0]["colours"] == ["red", "blue"]
    assert service.events("Failed") == []
    assert service.events("Resumed") == []


def test_rendered_feeds_are_refreshed_served_and_their_deletions_sent(
    database: Database, bouncer: str, hosted: Hosted, serve: Serve
) -> None:
    clerk = FakeClerk()
    clerk.url = hosted(clerk.app)
    database.execute("create schema shop")
    database.execute(PRODUCTS.replace("{s}", "shop"))
    database.execute("insert into shop.products (id) select generate_series(1, 500)")
    config = base_config(bouncer, clerk.verify_url, database="pgbouncer = true\npool_size = 6")
    service = serve(
        f'{config}\n[clerk]\napi_url = "{clerk.api_url}"\n[stores.shop]\npublic_key = "key-shop"\n'
        'private_key = "private-key-shop"\n[stores.shop.feeds.products]\nrendered = true\nrefresh_every = "1s"\n'
    )
    eventually(lambda: service.get("/shop/products").status == 200)
    with ThreadPoolExecutor(4) as threads:
        walks = [threads.submit(walk, service, limit) for limit in (100, 60, 100, 60)]
        assert all(sorted(set(done.result(60))) == list(range(1, 501)) for done in walks)
    database.execute("delete from shop.products where id = 7; update shop.products set name = 'Table' where id = 8")
    eventually(lambda: [7] in [ids for _, ids in clerk.deletions])
    assert {item["id"]: item["name"] for item in service.get("/shop/products").lines}[8] == "Table"
    assert service.events("Failed") == []
    assert service.events("RefreshFailed") == []


def test_standbys_may_be_behind_it_too(database: Database, bouncer: str, clerk: FakeClerk, serve: Serve) -> None:
    """What is read elsewhere than it is written may be the same server."""
    database.execute("create schema shop")
    database.execute(PRODUCTS.replace("{s}", "shop"))
    database.execute("insert into shop.products (id) select generate_series(1, 500)")
    service = shop(bouncer, clerk, serve, f'state_dsn = "{bouncer}"')
    assert walk(service, 100) == list(range(1, 501))
    assert [item["id"] for item in service.get("/shop/products").lines] == list(range(1, 501))
    assert service.events("Failed") == []


def test_a_sync_that_is_held_back_can_be_accepted(
    database: Database, bouncer: str, clerk: FakeClerk, serve: Serve, tmp_path: Path
) -> None:
    """What is noted of it before its answer is refused stays noted."""
    database.execute("create schema dk; create table dk.customers (id int primary key, email text default 'e')")
    database.execute("insert into dk.customers select generate_series(1, 500)")
    config = base_config(bouncer, clerk.verify_url, database="pgbouncer = true")
    config += '[stores.dk]\npublic_key = "key-dk"\n'
    path = tmp_path / "accept.toml"
    path.write_text(config)
    service = serve(config)
    assert len(service.get("/dk/customers").lines) == 500
    for left in (300, 150, 60):
        database.execute("delete from dk.customers where id > $1", left)
        assert held_back(service.get("/dk/customers"))
        done = accept(path, "dk", "customers")
        assert done.returncode == 0, done.stderr
        assert len(service.get("/dk/customers").lines) == left


def test_settings_are_those_of_a_transaction_and_do_not_leak(
    database: Database, bouncer: str, clerk: FakeClerk, serve: Serve
) -> None:
    database.execute("create schema shop")
    database.execute(PRODUCTS.replace("{s}", "shop").replace("'2026-01-01'", "now()"))
    database.execute("""
        create view shop.customers as
        select 1 as id, current_setting('jit') as email, current_setting('statement_timeout') as timeout,
          current_setting('timezone') as zone
    """)
    service = shop(bouncer, clerk, serve)
    [item] = service.get("/shop/customers?limit=10&offset=0").lines
    assert item == {"id": 1, "email": "off", "timeout": "1min", "zone": "UTC"}
    held = database.fetch(
        "select count(*) as count from pg_locks join pg_database as d on d.oid = database"
        " where locktype = 'advisory' and granted and datname = current_database()"
    )
    assert held[0]["count"] == 0


def test_other_clients_of_it_find_the_settings_of_the_database(
    database: Database, bouncer: str, loop: Loop, clerk: FakeClerk, serve: Serve
) -> None:
    name = database.value("select current_database()")
    database.execute(f'alter database "{name}" set synchronous_commit = off')
    database.execute("create schema shop")
    database.execute(PRODUCTS.replace("{s}", "shop"))
    service = shop(bouncer, clerk, serve)
    assert walk(service, 10) == []

    async def look() -> set[str]:
        connections = [await asyncpg.connect(bouncer, statement_cache_size=0) for _ in range(2)]
        try:
            for connection in connections:
                await connection.execute("begin")  # both of its servers are in use now
            return {await connection.fetchval("show synchronous_commit") for connection in connections}
        finally:
            for connection in connections:
                connection.terminate()

    assert loop.run(look()) == {"off"}


def test_a_refresh_notices_that_the_other_machine_is_gone(bouncer: str, loop: Loop) -> None:
    """The only connection without a deadline; asyncpg keeps none alive by itself."""

    async def kept_alive() -> bool:
        connection = await connection_for_refresh(bouncer)
        try:
            line = connection._transport.get_extra_info("socket")  # noqa: SLF001
            return bool(line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        finally:
            connection.terminate()

    assert loop.run(kept_alive())


def test_a_delta_whose_feed_can_not_be_counted_is_noted(
    database: Database, bouncer: str, clerk: FakeClerk, serve: Serve
) -> None:
    """A count fails within the transaction that notes another one."""
    database.execute("create schema shop")
    database.execute(PRODUCTS.replace("{s}.products", "shop.things"))
    columns = "id, name, description, (10 / id)::numeric as price, image, url, categories, created_at, modified_at"
    database.execute(f"create view shop.products as select {columns} from shop.things")
    database.execute("insert into shop.things (id, modified_at) select i, now() from generate_series(1, 500) as i")
    database.execute("insert into shop.things (id, modified_at) values (0, '2020-01-01')")
    service = shop(bouncer, clerk, serve)
    assert len(service.get("/shop/products?modified_after=2026-06-01").lines) == 500
    assert database.value("select items from clerk_feed.feed_size") == 500
