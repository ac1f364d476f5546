"""Several workers under one parent: lost ones are replaced, rolls refuse nobody, and all end together."""

import asyncio
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from app import hosting
from app.clerk.importer import Importer, ImportFailedError
from app.settings import Server
from tests.clerk import FakeClerk, problem
from tests.conftest import PRODUCTS, TOKEN, Database, Loop, Running, Serve, base_config, eventually

STORE = '[stores.shop]\npublic_key = "key-shop"\n'


def fill(database: Database, count: int) -> None:
    database.execute("create schema shop")
    database.execute(PRODUCTS.replace("{s}", "shop"))
    database.execute(f"insert into shop.products (id) select generate_series(1, {count})")


def config(database: Database, clerk: FakeClerk, *, server: str = "", more: str = "") -> str:
    return base_config(database.dsn, clerk.verify_url, server=server) + STORE + more


def workers(service: Running) -> set[int]:
    """The processes that serve, those that finish their answers included."""
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text()
    return set(map(int, children.split()))


def reconfigure(service: Running, text: str) -> None:
    """Write another feed.toml and ask the service to go by it."""
    (service.log.parent / "feed.toml").write_text(text)
    service.process.send_signal(signal.SIGHUP)


def said(service: Running, kind: str, count: int = 1) -> list[dict[str, object]]:
    """The events of a kind, waited for until there are so many."""
    found: list[dict[str, object]] = []

    def there() -> bool:
        found[:] = [line for line in service.logged() if line["event"] == kind]
        return len(found) >= count

    eventually(there)
    return found


def test_several_workers_serve_pages_of_one_walk(database: Database, clerk: FakeClerk, serve: Serve) -> None:
    fill(database, 500)
    service = serve(config(database, clerk, server="workers = 3"))
    assert len(workers(service)) == 3
    found: list[int] = []
    for offset in range(0, 501, 10):  # a connection each: any worker may answer
        found += [item["id"] for item in service.get(f"/shop/products?limit=10&offset={offset}").lines]
    assert found == list(range(1, 501))
    assert database.value("select count(*) from clerk_feed.walk where ended is not null") == 1
    assert service.stop() == 0


def test_a_worker_that_is_killed_is_replaced_and_the_others_serve_meanwhile(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, 10)
    service = serve(config(database, clerk, server="workers = 2"))
    victim, other = workers(service)
    os.kill(victim, signal.SIGKILL)
    [lost] = said(service, "WorkerLost")
    assert (lost["pid"], lost["status"]) == (victim, -signal.SIGKILL)
    assert len(service.get("/shop/products?limit=10&offset=0").lines) == 10
    said(service, "WorkerReplaced")
    now = workers(service)
    assert len(now) == 2
    assert other in now
    assert victim not in now


def test_workers_that_die_again_and_again_are_started_ever_more_slowly(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    service = serve(config(database, clerk))
    for count in (1, 2, 3):
        [worker] = workers(service)
        os.kill(worker, signal.SIGKILL)
        said(service, "WorkerReplaced", count)
    assert [lost["seconds"] for lost in said(service, "WorkerLost", 3)] == [0, 0.5, 1]


def test_a_worker_that_cant_start_is_tried_again_until_it_can(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, 10)
    service = serve(config(database, clerk))
    [worker] = workers(service)
    database.execute("alter schema clerk_feed rename to hidden")
    database.execute("create schema clerk_feed")
    database.execute("create table clerk_feed.migration (wrong int)")
    os.kill(worker, signal.SIGKILL)
    [unable] = said(service, "WorkerUnable")
    assert unable["reason"]
    database.execute("drop schema clerk_feed cascade")
    database.execute("alter schema hidden rename to clerk_feed")
    said(service, "WorkerReplaced")
    assert len(service.get("/shop/products?limit=10&offset=0").lines) == 10


def test_a_reload_takes_new_stores_and_keeps_the_old_addresses(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, 10)
    service = serve(config(database, clerk))
    assert service.get("/other/products").status == 404
    before = workers(service)
    more = '[stores.other]\npublic_key = "key-other"\nschema = "shop"\n'
    reconfigure(service, config(database, clerk, server="workers = 2", more=more))
    [reloaded] = said(service, "Reloaded")
    assert reloaded["urls"] == [service.url]
    assert reloaded["workers"] == 2
    eventually(lambda: not before & workers(service))
    assert len(service.get("/other/products").lines) == 10
    assert service.get("/-/healthz", admin=True, token=None).status == 200


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not toml", "not valid TOML"),
        ("[server]\nworkers = 0\n", "from 1 to 256"),
        ('[server]\ncertfile = "none.pem"\nkeyfile = "none.key"\n' + STORE, "none.pem"),
    ],
)
def test_a_bad_feed_toml_keeps_the_old_settings_and_says_so(
    database: Database, clerk: FakeClerk, serve: Serve, text: str, reason: str
) -> None:
    fill(database, 10)
    service = serve(config(database, clerk))
    before = workers(service)
    reconfigure(service, text)
    [refused] = said(service, "ReloadRefused")
    assert reason in str(refused["reason"])
    assert workers(service) == before
    assert len(service.get("/shop/products").lines) == 10


def test_settings_no_worker_can_start_under_change_nothing(database: Database, clerk: FakeClerk, serve: Serve) -> None:
    fill(database, 10)
    service = serve(config(database, clerk))
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        text = config(database, clerk).replace('bind = ["127.0.0.1:0"]', f'bind = ["127.0.0.1:0", "127.0.0.1:{port}"]')
        reconfigure(service, text)
        said(service, "ReloadRefused")
    missing = database.dsn.replace("/test_", "/no_such_")
    reconfigure(service, config(database, clerk).replace(database.dsn, missing))
    refused = said(service, "ReloadRefused", 2)
    assert "another program listens there" in str(refused[0]["reason"])
    assert "does not exist" in str(refused[1]["reason"])
    assert len(service.get("/shop/products").lines) == 10
    assert len(workers(service)) == 1


def test_an_address_can_be_added_and_taken_away_by_a_reload(database: Database, clerk: FakeClerk, serve: Serve) -> None:
    service = serve(config(database, clerk))
    first = config(database, clerk)
    reconfigure(service, first.replace('bind = ["127.0.0.1:0"]', 'bind = ["127.0.0.1:0", "127.0.0.2:0"]'))
    [reloaded] = said(service, "Reloaded")
    urls = reloaded["urls"]
    assert isinstance(urls, list)
    assert urls[0] == service.url
    host, port = urlsplit(urls[1]).hostname, urlsplit(urls[1]).port
    with closing(socket.create_connection((host or "", port or 0))):
        pass
    reconfigure(service, first)
    said(service, "Reloaded", 2)

    def refused() -> bool:
        with closing(socket.socket()) as connection:
            return connection.connect_ex((host, port)) != 0

    eventually(refused)
    assert service.get("/-/healthz", token=None).status == 200


def test_a_reload_takes_a_renewed_certificate(
    database: Database, clerk: FakeClerk, serve: Serve, tmp_path: Path
) -> None:
    authority = trustme.CA()
    folder = tmp_path / "service0"
    folder.mkdir()

    def issue() -> int:
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(folder / "server.key")
        (folder / "server.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        return len(issued.cert_chain_pems)

    def serial(service: Running) -> object:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        parts = urlsplit(service.url)
        address = (parts.hostname or "", parts.port or 0)
        with socket.create_connection(address) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as tls:
            found = tls.getpeercert()
        assert found
        return found["serialNumber"]

    issue()
    service = serve(config(database, clerk, server='certfile = "server.pem"\nkeyfile = "server.key"'))
    first = serial(service)
    issue()
    assert serial(service) == first
    service.process.send_signal(signal.SIGHUP)
    said(service, "Reloaded")
    eventually(lambda: serial(service) != first)
    (folder / "server.key").write_text("-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n")
    service.process.send_signal(signal.SIGHUP)
    [refused] = said(service, "ReloadRefused")
    assert "keyfile" in str(refused["reason"])
    assert serial(service) != first


def test_workers_end_when_their_parent_is_killed(database: Database, clerk: FakeClerk, serve: Serve) -> None:
    service = serve(config(database, clerk, server="workers = 2"))
    orphans = workers(service)
    service.process.kill()
    service.process.wait()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans))
    parts = urlsplit(service.url)
    with closing(socket.create_server((parts.hostname or "", parts.port or 0))):
        pass  # the address is free again


def test_sigterm_while_the_database_is_awaited_ends_all_processes(
    serve: Serve, clerk: FakeClerk, tmp_path: Path
) -> None:
    path = tmp_path / "feed.toml"
    path.write_text(base_config("postgresql://nobody@127.0.0.1:1/none", clerk.verify_url) + STORE)
    command = [sys.executable, "-m", "app", "serve", "--config", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout
        for line in process.stdout:
            if b"DatabaseAwaited" in line:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.fixture
def walking(database: Database, clerk: FakeClerk, serve: Serve) -> Running:
    fill(database, 20_000)
    return serve(config(database, clerk, server='workers = 2\nshutdown_timeout = "10s"'))


def test_ten_rolls_under_walks_and_new_connections_lose_and_refuse_nothing(walking: Running) -> None:
    """Continuous walks, and 50 new connections a second, while the workers are replaced ten times."""
    done = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        walks = [pool.submit(_walk_until, done, walking) for _ in range(2)]
        probes = pool.submit(_probe_until, done, walking)
        try:
            for count in range(1, 11):
                walking.process.send_signal(signal.SIGHUP)
                said(walking, "Reloaded", count)
        finally:
            done.set()
        for walk in walks:
            whole, retries = walk.result(60)
            print(f"{whole} walks, {retries} retries")
            assert whole >= 1
        answered, failed = probes.result(60)
        print(f"{answered} new connections, {failed} failed")
        assert answered > 50
        assert failed == 0


def _walk_until(done: threading.Event, service: Running) -> tuple[int, int]:
    """Walk the feed again and again; how many walks were whole, and how many pages had to be asked for twice."""
    walks = retries = 0
    while not done.is_set() or not walks:
        found: list[object] = []
        url = f"{service.url}/shop/products?limit={{{{limit}}}}&offset={{{{offset}}}}"
        with closing(Importer(url, token=TOKEN, limit=500)) as importer:
            offset = 0
            while True:
                page, tries = _page(importer, offset)
                retries += tries
                if not page:
                    break
                found += page
                offset += 500
        assert found == list(range(1, 20_001))
        walks += 1
    return walks, retries


def _page(importer: Importer, offset: int) -> tuple[list[object], int]:
    try:
        return [item["id"] for item in importer.page(offset).items], 0
    except (ImportFailedError, OSError, http.client.HTTPException):
        return [item["id"] for item in importer.page(offset).items], 1


def _probe_until(done: threading.Event, service: Running) -> tuple[int, int]:
    answered = failed = 0
    while not done.is_set():
        try:
            assert service.get("/-/healthz", token=None).status == 200
            answered += 1
        except OSError:
            failed += 1
        time.sleep(0.02)
    return answered, failed


LIKE_SYSTEMD = """
import os, sys
from fcntl import F_DUPFD, fcntl
given, names, *command = sys.argv[1:]
spare = [fcntl(int(number), F_DUPFD, 100) for number in given.split(",")]
for place, number in enumerate(spare, start=3):
    os.dup2(number, place)
os.closerange(100, 200)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(spare)), LISTEN_FDNAMES=names)
os.execv(sys.executable, [sys.executable, *command])
"""
"""What systemd does before it starts a service that it listens for (sd_listen_fds(3))."""


def test_sockets_of_systemd_are_served_through_a_roll(database: Database, clerk: FakeClerk, tmp_path: Path) -> None:
    fill(database, 10)
    path, log = tmp_path / "feed.toml", tmp_path / "serve.log"
    path.write_text(config(database, clerk))
    with (
        socket.create_server(("127.0.0.1", 0)) as public,
        socket.create_server(("127.0.0.1", 0)) as admin,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
        log.open("wb") as output,
    ):
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(40)
        given = f"{public.fileno()},{admin.fileno()}"
        process = subprocess.Popen(
            [sys.executable, "-c", LIKE_SYSTEMD, given, "feeds:admin", "-m", "app", "serve", "--config", str(path)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
            pass_fds=(public.fileno(), admin.fileno()),
        )
        service = Running(
            process,
            f"http://127.0.0.1:{public.getsockname()[1]}",
            f"http://127.0.0.1:{admin.getsockname()[1]}",
            log,
        )
        try:
            assert notified.recv(100) == b"READY=1"
            assert len(service.get("/shop/products").lines) == 10
            assert service.get("/-/healthz", admin=True, token=None).status == 200
            process.send_signal(signal.SIGHUP)
            assert notified.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert notified.recv(100) == b"READY=1"
            assert len(service.get("/shop/products").lines) == 10
            assert service.stop() == 0
            assert notified.recv(100) == b"STOPPING=1"
        finally:
            service.stop()


def test_a_walk_that_meets_another_source_and_back_again_ends_visibly(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    """At its offset lies an old bookmark of the source of now, whose walk was another one's."""
    fill(database, 0)
    database.execute("insert into shop.products (id) select generate_series(1001, 1250)")
    database.execute("create view shop.viewed as select * from shop.products")
    plain = config(database, clerk)
    viewed = config(database, clerk, more='[stores.shop.feeds.products]\nsource = "shop.viewed"\n')
    service = serve(viewed)
    for offset in range(0, 300, 50):
        assert service.get(f"/shop/products?limit=50&offset={offset}").status == 200
    before = workers(service)
    reconfigure(service, plain)
    eventually(lambda: not before & workers(service))
    database.execute("insert into shop.products (id) select generate_series(1, 40)")
    assert [item["id"] for item in service.get("/shop/products?limit=50&offset=0").lines][:40] == list(range(1, 41))
    before = workers(service)
    reconfigure(service, viewed)
    eventually(lambda: not before & workers(service))
    problem(service.get("/shop/products?limit=50&offset=50"), 500, "key-changed")
    database.execute("update clerk_feed.bookmark set written = written - interval '2 hours'")
    found: list[int] = []
    for offset in range(0, 350, 50):  # begun anew it is whole
        found += [item["id"] for item in service.get(f"/shop/products?limit=50&offset={offset}").lines]
    assert found == [*range(1, 41), *range(1001, 1251)]


async def one_word(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers a word to everything."""
    if scope["type"] == "http":
        await PlainTextResponse("word")(scope, receive, send)


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_request_on_its_way_when_told_to_stop_is_answered(
    monkeypatch: pytest.MonkeyPatch, loop: Loop, asked_before: bool
) -> None:
    monkeypatch.setattr(hosting, "_ON_ITS_WAY_SECONDS", 30)
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

    async def exchange() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        address, stop = listener.getsockname(), asyncio.Event()
        hosted = asyncio.create_task(hosting.host(one_word, [listener], Server(), stop))
        reader, writer = await asyncio.open_connection(*address)
        if asked_before:
            writer.write(request)
            assert (await reader.readuntil(b"word")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.2)  # it is accepted
        stop.set()
        await asyncio.sleep(0.2)  # the server has been told
        writer.write(request)
        assert (await reader.readuntil(b"word")).startswith(b"HTTP/1.1 200")
        assert await reader.read() == b""
        writer.close()
        await hosted

    loop.run(exchange())
