"""`clerk-feed serve` as a process: how it starts, what stops it from starting, and how it ends."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import asyncpg
import pytest

from app import __version__
from app.catalog.embedded import Embedded
from app.catalog.schema import Migration, SchemaError, migrate, migrations
from app.service import cancelled
from tests.conftest import PRODUCTS, Database, Loop, Serve, base_config, eventually, start_service

VERIFY_URL = "http://127.0.0.1:9/v2/token/verify"
STORE = '[stores.dk]\npublic_key = "key-dk"\n'


def run(*arguments: str, timeout: float = 40) -> "subprocess.CompletedProcess[str]":
    """The command, run to its end; its output in one."""
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error", "COLUMNS": "100"},
    )


def refused(folder: Path, config: str) -> str:
    """What `serve` says when it does not start on a feed.toml: calmly, with exit status 1."""
    path = folder / "feed.toml"
    path.write_text(config)
    ended = run("serve", "--config", str(path))
    assert ended.returncode == 1, ended.stdout
    said = [line for line in ended.stdout.splitlines() if '"event":"DatabaseAwaited"' not in line]
    assert said[0].startswith("Error: "), ended.stdout
    assert "Traceback" not in ended.stdout
    return ended.stdout


def closed_port() -> tuple[socket.socket, int]:
    """A port that refuses connections for as long as the socket is kept."""
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    return holder, holder.getsockname()[1]


def create_role(database: Database) -> tuple[str, str]:
    """A fresh role that may connect and nothing more, and the DSN that connects as it."""
    role = "feed_of_" + database.value("select current_database()")
    database.execute(f"create role {role} login password 's3cret-password'")
    return role, database.dsn.replace("//postgres:@", f"//{role}:s3cret-password@")


@pytest.mark.parametrize("command", [(), ("serve",)])
def test_help_says_how_it_is_used(command: tuple[str, ...]) -> None:
    ended = run(*command, "--help")
    assert ended.returncode == 0
    assert ended.stdout.startswith("Usage: ")
    for word in ("--config", "feed.toml", "SIGTERM") if command else ("serve", "demo", "feed.toml", "--version"):
        assert word in ended.stdout
    assert all(len(line) <= 100 for line in ended.stdout.splitlines())


def test_the_installed_command_is_clerk_feed() -> None:
    command = Path(sys.executable).parent / "clerk-feed"
    ended = subprocess.run([command, "serve", "--help"], capture_output=True, text=True, timeout=40, check=False)
    assert ended.returncode == 0
    assert ended.stdout.startswith("Usage: clerk-feed serve [OPTIONS]")
    assert "--config PATH" in ended.stdout


def test_the_version_is_told() -> None:
    assert __version__ in run("--version").stdout


def test_a_missing_config_is_one_line_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "feed.toml"
    ended = run("serve", "--config", str(path))
    assert ended.returncode == 1
    [line] = ended.stdout.splitlines()
    assert str(path) in line
    assert "--config" in line


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("", "stores"),
        ("[stores.dk", "not valid TOML"),
        ("[stores.dk]\n", "stores.dk.public_key"),
        (f"[server]\nbnd = []\n{STORE}", "server.bnd"),
        (f'[server]\nsend_timeout = "soon"\n{STORE}', "server.send_timeout"),
        (f'[database]\ndsn = "${{NO_SUCH_NAME_IN_THE_ENVIRONMENT}}"\n{STORE}', "NO_SUCH_NAME_IN_THE_ENVIRONMENT"),
        (f"[database]\npool_size = 0\n{STORE}", "database.pool_size = 0"),
        (f'[access]\nverify_url = "http://clerk.example/verify"\n{STORE}', "access.verify_url"),
        (f'[database]\ndsn = "mysql://shop:s3cret-password@db/shop"\n{STORE}', "database.dsn"),
    ],
    ids=lambda value: value.splitlines()[0] if "\n" in value else value or "empty",
)
def test_an_invalid_config_is_one_line_that_names_the_key(tmp_path: Path, config: str, said: str) -> None:
    output = refused(tmp_path, config)
    [line] = output.splitlines()
    assert str(tmp_path / "feed.toml") in line
    assert said in line
    assert "s3cret" not in output


@pytest.mark.parametrize("key", ["server.bind[0]", "server.bind[1]", "server.admin_bind"])
def test_a_port_that_is_taken_is_named_with_its_key(tmp_path: Path, database: Database, key: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        free = "127.0.0.1:0"
        bind = [taken if key == f"server.bind[{number}]" else free for number in range(2)]
        admin = taken if key == "server.admin_bind" else free
        output = refused(
            tmp_path,
            f'[database]\ndsn = "{database.dsn}"\n[server]\nbind = {json.dumps(bind)}\nadmin_bind = "{admin}"\n{STORE}',
        )
    assert f'{key} = "{taken}"' in output
    assert "another program" in output


def test_an_address_of_another_machine_is_named_with_its_key(tmp_path: Path, database: Database) -> None:
    config = f'[database]\ndsn = "{database.dsn}"\n[server]\nbind = ["203.0.113.5:8000"]\nadmin_bind = "127.0.0.1:0"\n'
    assert 'server.bind[0] = "203.0.113.5:8000"' in refused(tmp_path, config + STORE)


def test_a_database_that_does_not_answer_is_waited_for_and_then_named_without_its_password(tmp_path: Path) -> None:
    holder, port = closed_port()
    with closing(holder):
        dsn = f"postgresql://shop:s3cret-password@127.0.0.1:{port}/shop"
        output = refused(tmp_path, base_config(dsn, VERIFY_URL, database='resume_for = "1s"') + STORE)
    awaited, line = output.splitlines()
    assert '"event":"DatabaseAwaited"' in awaited
    assert "does not answer" in line
    assert "database.dsn" in line
    assert "s3cret" not in output


def test_a_database_that_starts_late_is_waited_for(database: Database, serve: Serve, tmp_path: Path) -> None:
    """As when both start with the machine."""
    folder = tmp_path / "s"
    folder.mkdir()
    [socket_path] = Path(database.dsn.partition("?host=")[2]).glob(".s.PGSQL.????")
    dsn = f"{database.dsn.partition('?')[0]}?host={folder}"
    with ThreadPoolExecutor(1) as thread:
        starting = thread.submit(serve, base_config(dsn, VERIFY_URL) + STORE)
        eventually((tmp_path / "service0" / "serve.log").exists)
        (folder / socket_path.name).symlink_to(socket_path)
        assert starting.result(40).get("/-/readyz", token=None).status == 200


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("/test_", "/no_such_"), "does not exist"),
        (("//postgres:@", "//no_such_role:s3cret-password@"), "no_such_role"),
    ],
    ids=["database", "role"],
)
def test_a_refusal_of_postgresql_is_told_at_once(
    tmp_path: Path, database: Database, change: tuple[str, str], said: str
) -> None:
    output = refused(tmp_path, base_config(database.dsn.replace(*change), VERIFY_URL) + STORE)
    assert said in output
    assert "database.dsn" in output
    assert "s3cret" not in output


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://shop:s3cret/password@127.0.0.1:5432/shop",
        "postgresql://shop:s3cret?password@127.0.0.1:5432/shop",
        "postgresql://shop:s3cret#password@127.0.0.1:5432/shop",
        "postgresql://shop:s3cret-password@127.0.0.1:543210/shop",
        "postgresql://shop:s3cret-password@127.0.0.1:port/shop",
        "postgresql://shop:s3cret-password@127.0.0.1:5432/shop?sslmode=nonsense",
        "postgresql://shop:s3cret-password@[::1/shop",
    ],
    ids=["slash", "question mark", "hash", "port too large", "port no number", "sslmode", "bracket"],
)
def test_a_dsn_that_is_not_one_is_an_error_that_shows_nothing_of_the_password(tmp_path: Path, dsn: str) -> None:
    output = refused(tmp_path, base_config(dsn, VERIFY_URL, database='resume_for = "100ms"') + STORE)
    assert "database.dsn" in output
    assert "s3cret" not in output
    assert "password@" not in output


def test_a_role_without_rights_is_told_the_sql_that_lets_it_start(
    tmp_path: Path, database: Database, serve: Serve
) -> None:
    role, dsn = create_role(database)
    database.execute("create schema dk")
    database.execute(PRODUCTS.replace("{s}", "dk"))
    config = base_config(dsn, VERIFY_URL) + STORE
    output = refused(tmp_path, config)
    [sql] = re.findall(r"create schema .*;", output)
    assert f'authorization "{role}"' in sql
    assert database.value("select current_database()") in output
    assert "s3cret" not in output

    database.execute(sql)
    service = serve(config)
    assert service.get("/-/healthz", token=None).status == 200
    owner = "select pg_get_userbyid(relowner) from pg_class where oid = 'clerk_feed.bookmark'::regclass"
    assert database.value(owner) == role
    eventually(lambda: "{{limit}}" in service.log.read_text())
    greeting = service.log.read_text()
    assert f'grant select on "dk"."products" to "{role}"' in greeting
    assert "s3cret" not in greeting


def applied(database: Database) -> list[int]:
    rows = database.fetch("select number from clerk_feed.migration order by number")
    return [row["number"] for row in rows]


def test_two_services_that_start_at_the_same_time_apply_each_migration_once(database: Database, tmp_path: Path) -> None:
    config = base_config(database.dsn, VERIFY_URL) + STORE
    with ThreadPoolExecutor(2) as threads:
        services = list(threads.map(lambda name: start_service(tmp_path / name, config), ["one", "two"]))
    try:
        assert [service.get("/-/readyz", token=None).status for service in services] == [200, 200]
        assert applied(database) == [migration.number for migration in migrations()]
    finally:
        ends = [service.stop() for service in services]
    assert ends == [0, 0]


def test_migrations_are_applied_once_however_many_come_at_the_same_time(database: Database, loop: Loop) -> None:
    async def one() -> list[int]:
        connection = await asyncpg.connect(database.dsn)
        try:
            return [migration.number for migration in await migrate(connection)]
        finally:
            await connection.close()

    async def many() -> list[list[int]]:
        return list(await asyncio.gather(*(one() for _ in range(6))))

    wanted = [migration.number for migration in migrations()]
    results = loop.run(many())
    assert sorted(results) == sorted([wanted] + [[]] * 5)
    assert applied(database) == wanted


def test_who_holds_a_table_is_waited_for_without_being_in_the_way_of_pages(database: Database, loop: Loop) -> None:
    """A backup, while an old process still serves."""
    # The last of these adds a column.
    first, last = migrations()[:17], migrations()[:18]

    async def applied_in_the_end() -> list[Migration]:
        changing, holding = [await asyncpg.connect(database.dsn) for _ in range(2)]
        try:
            await migrate(changing, first)
            await holding.execute("begin; lock table clerk_feed.bookmark in access share mode")
            with pytest.raises(SchemaError, match="another transaction holds its tables"):
                await migrate(changing, last, attempts=1)
            await holding.execute("rollback")
            return await migrate(changing, last)
        finally:
            await changing.close()
            await holding.close()

    assert loop.run(applied_in_the_end()) == last[-1:]


def test_a_migration_may_take_longer_than_other_statements(database: Database, loop: Loop) -> None:
    """And so may whoever waits for another one that migrates."""

    async def one() -> list[Migration]:
        settings = {"statement_timeout": "1s"}
        connection = await asyncpg.connect(database.dsn, command_timeout=1, server_settings=settings)
        try:
            return await migrate(connection, [Migration(1, "slow", "select pg_sleep(1.5)")])
        finally:
            await connection.close()

    async def both() -> list[list[Migration]]:
        return list(await asyncio.gather(one(), one()))

    assert sorted(len(applied) for applied in loop.run(both())) == [0, 1]


def test_a_second_start_finds_the_schema_and_keeps_what_is_in_it(database: Database, serve: Serve) -> None:
    config = base_config(database.dsn, VERIFY_URL) + STORE
    serve(config).stop()
    database.execute("insert into clerk_feed.walk (store, feed, incremental) values ('dk', 'products', false)")
    serve(config)
    assert applied(database) == [migration.number for migration in migrations()]
    assert database.value("select count(*) from clerk_feed.walk") == 1


def test_a_schema_of_a_newer_version_is_refused(tmp_path: Path, database: Database, loop: Loop) -> None:
    async def prepare() -> None:
        connection = await asyncpg.connect(database.dsn)
        await migrate(connection)
        await connection.close()

    loop.run(prepare())
    database.execute("insert into clerk_feed.migration (number, name) values (999, 'from_the_future')")
    output = refused(tmp_path, base_config(database.dsn, VERIFY_URL) + STORE)
    assert "999" in output
    assert "newer version" in output


def test_a_schema_from_a_dump_without_its_data_is_refused(tmp_path: Path, database: Database, serve: Serve) -> None:
    config = base_config(database.dsn, VERIFY_URL) + STORE
    serve(config).stop()
    database.execute("truncate clerk_feed.migration")
    output = refused(tmp_path, config)
    assert "drop schema clerk_feed cascade" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_with_status_0(database: Database, serve: Serve, number: signal.Signals) -> None:
    service = serve(base_config(database.dsn, VERIFY_URL) + STORE)
    assert service.get("/-/healthz", token=None).status == 200
    assert service.stop(number) == 0
    assert [event["event"] for event in service.events()] == ["Started", "Stopping"]
    connections = """
        select count(*) from pg_stat_activity
        where application_name = 'clerk-feed' and datname = current_database()
    """
    eventually(lambda: database.value(connections) == 0)


def test_work_that_swallows_a_cancellation_is_ended_all_the_same(loop: Loop) -> None:
    """As asyncio.wait_for does before Python 3.12, where what it waited for came at the same moment."""

    async def work() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        await asyncio.sleep(3600)

    async def ended() -> bool:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        await cancelled(task, seconds=0.05)
        return task.cancelled()

    assert loop.run(ended())


def test_a_signal_while_it_waits_for_the_database_ends_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "feed.toml"
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        mute.settimeout(20)
        dsn = f"postgresql://shop@127.0.0.1:{mute.getsockname()[1]}/shop"
        path.write_text(base_config(dsn, VERIFY_URL) + STORE)
        log = tmp_path / "serve.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve", "--config", str(path)], stdout=output, stderr=output
            )
        try:
            asked, _ = mute.accept()
            with closing(asked):
                process.send_signal(signal.SIGTERM)
                assert process.wait(5) == 0
        finally:
            process.kill()
            process.wait()
    assert "Traceback" not in log.read_text()


def test_the_greeting_lists_stores_with_the_feeds_found_and_missing(database: Database, serve: Serve) -> None:
    for schema in ("dk", "nordic"):
        database.execute(f"create schema {schema}")
    database.execute(PRODUCTS.replace("{s}", "dk"))
    database.execute("create table dk.customers (id bigint, email text)")
    database.execute("create table dk.pages (id bigint)")
    stores = f'{STORE}[stores.se]\npublic_key = "key-se"\nschema = "nordic"\n[stores.no]\npublic_key = "key-no"\n'
    service = serve(base_config(database.dsn, VERIFY_URL) + stores)
    eventually(lambda: "{{limit}}" in service.log.read_text())
    greeting = service.log.read_text()
    lines = {line.split()[0]: line for line in greeting.splitlines() if line.strip().startswith("http")}

    assert f"clerk-feed {__version__} on PostgreSQL 18" in greeting
    assert [line.split()[1] for line in greeting.splitlines() if line.startswith("  store ")] == ["dk", "se", "no"]
    assert lines[f"{service.url}/dk/products"].endswith('"dk"."products"')
    assert "no modified_at" in lines[f"{service.url}/dk/customers"]
    assert 'no view or table "dk"."orders"' in lines[f"{service.url}/dk/orders"]
    assert 'has no column "type"' in lines[f"{service.url}/dk/pages"]
    assert 'no view or table "nordic"."products"' in lines[f"{service.url}/se/products"]
    assert 'no schema "no"' in lines[f"{service.url}/no/products"]
    assert "{{limit}}" in greeting
    assert "{{offset}}" in greeting
    assert "key-dk" not in greeting


def test_without_a_dsn_the_embedded_postgresql_runs_in_data_dir_as_long_as_the_service(
    serve: Serve, tmp_path: Path
) -> None:
    config = f'[server]\nbind = ["127.0.0.1:0"]\nadmin_bind = "127.0.0.1:0"\n{STORE}'
    service = serve(config)
    assert service.get("/-/readyz", token=None).status == 200
    assert "on PostgreSQL 18" in service.log.read_text()
    folder = tmp_path / "service0" / ".clerk-feed" / "postgres"
    assert (folder / "PG_VERSION").read_text().strip() == "18"
    assert (folder / "postmaster.pid").exists()
    assert service.stop() == 0
    assert not (folder / "postmaster.pid").exists()


def test_a_data_dir_of_ones_own_keeps_the_catalog_from_start_to_start(serve: Serve, tmp_path: Path, loop: Loop) -> None:
    data = tmp_path / "data"
    config = (
        f'[database]\ndata_dir = "{data}"\n'
        f'[server]\nbind = ["127.0.0.1:0"]\nadmin_bind = "127.0.0.1:0"\n{STORE}[stores.dk.feeds.products]\n'
    )
    first = serve(config)
    assert first.get("/-/readyz", token=None).status == 503
    server = Embedded.start(data)
    database = Database(loop, server.dsn)
    database.execute("create schema dk")
    database.execute(PRODUCTS.replace("{s}", "dk"))
    database.close()
    server.stop()
    assert first.stop() == 0
    assert serve(config).get("/-/readyz", token=None).status == 200
