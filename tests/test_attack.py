"""What attackers try over real sockets, beside an importer of another store that must notice nothing of it."""

import asyncio
import http.client
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.responses import Response

from app.clerk.importer import Importer, Report
from tests.clerk import FakeClerk, accepted, problem, rejected, silent
from tests.conftest import (
    PRODUCTS,
    Answer,
    Database,
    Hosted,
    Loop,
    Running,
    base_config,
    eventually,
    start_service,
)

ITEMS = 5_000
PAGE = "products?limit=25&offset=0"


class Besieged:
    """A service with default settings but for token_cache: a large store `victim`, and one whose importer is good."""

    def __init__(self, service: Running, clerk: FakeClerk, database: Database) -> None:
        self.service = service
        self.clerk = clerk
        self.database = database

    def get(self, token: str | None, store: str = "victim", **options: Any) -> Answer:
        return self.service.get(f"/{store}/{PAGE}", token=token, **options)

    def connect(self, sent: bytes, *, receive_bytes: int | None = None) -> socket.socket:
        parts = urlsplit(self.service.url)
        connection = socket.socket()
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(40)
        connection.connect((parts.hostname, parts.port))
        connection.sendall(sent)
        return connection

    def imported(self) -> Report:
        """What the well-behaved importer gets; a page that is refused once is an error."""
        url = f"{self.service.url}/good/products?limit={{{{limit}}}}&offset={{{{offset}}}}"
        with closing(Importer(url, token="good-importer", limit=100, attempts=1)) as importer:
            return importer.run()

    def asked(self, start: str) -> int:
        """How often Clerk was asked about tokens that start so."""
        return sum(token.startswith(start) for token, _ in list(self.clerk.calls))


@pytest.fixture(scope="module")
def besieged_service(
    create_database: Callable[[], Database], hosted: Hosted, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Besieged]:
    database = create_database()
    for schema, rows, size in (("good", ITEMS, 10), ("victim", 30_000, 1_200)):
        database.execute(f"create schema {schema}")
        database.execute(PRODUCTS.replace("{s}", schema))
        database.execute(
            f"insert into {schema}.products (id, name) select i, repeat('x', {size}) from generate_series(1, {rows}) i"
        )
        database.execute(f"analyze {schema}.products")
    clerk = FakeClerk()
    clerk.url = hosted(clerk.app)
    config = base_config(database.dsn, clerk.verify_url, access="token_cache = 256")
    config += '[stores.good]\npublic_key = "key-good"\n[stores.victim]\npublic_key = "key-victim"\n'
    service = start_service(tmp_path_factory.mktemp("besieged"), config)
    yield Besieged(service, clerk, database)
    service.stop()


@pytest.fixture
def besieged(besieged_service: Besieged) -> Besieged:
    async def knows(token: str, key: str) -> Response:
        return accepted() if token.startswith("good") else rejected()

    besieged_service.clerk.behaviour = knows
    return besieged_service


def test_two_hundred_slow_readers_of_one_store_leave_the_others_alone(besieged: Besieged) -> None:
    """They have good tokens, ask for everything, and read nothing."""
    assert besieged.get("good-reader").status == 200
    head = b"GET /victim/products HTTP/1.1\r\nHost: x\r\nX-Clerk-Authorization: Bearer good-reader\r\n\r\n"
    with ExitStack() as stack:
        readers = [stack.enter_context(closing(besieged.connect(head, receive_bytes=4096))) for _ in range(200)]
        report = besieged.imported()
        assert (report.items, report.retries, report.duplicates) == (ITEMS, 0, [])
        statuses = Counter(reader.recv(12) for reader in readers)
    # max_streams = 8 of them are served; the others have waited for a place, and none came free.
    assert statuses == {b"HTTP/1.1 200": 8, b"HTTP/1.1 503": 192}
    eventually(lambda: len(besieged.service.events("CutOff")) >= 8)
    assert besieged.get("good-reader").status == 200
    in_transaction = """
        select count(*) from pg_stat_activity
        where datname = current_database() and application_name = 'clerk-feed' and state like 'idle in transaction%'
    """
    eventually(lambda: besieged.database.value(in_transaction) == 0)


def test_ten_thousand_wrong_tokens_from_one_address_cost_a_few_questions_to_clerk(
    besieged: Besieged, loop: Loop
) -> None:
    with ThreadPoolExecutor(1) as thread:
        importing = thread.submit(besieged.imported)
        statuses = loop.run(flood(besieged.service.url, 10_000), timeout=300)
        report = importing.result()
    assert (report.items, report.retries) == (ITEMS, 0)
    assert set(statuses) == {401, 429}
    assert sum(statuses.values()) == 10_000
    minutes = 5  # refusal_rate is by the minute, and the machine may be slow
    assert besieged.asked("wrong-") <= minutes * (60 + 16)
    assert besieged.get("good-reader", source="127.0.0.1").status in (200, 429)


async def flood(url: str, requests: int, connections: int = 20) -> Counter[int]:
    """So many requests, each with a wrong token of its own, over a few connections at once."""
    parts = urlsplit(url)
    statuses: Counter[int] = Counter()

    async def attacker(number: int) -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        for request in range(requests // connections):
            token = f"wrong-{number}-{request}"
            head = f"GET /victim/{PAGE} HTTP/1.1\r\nHost: x\r\nX-Clerk-Authorization: Bearer {token}\r\n\r\n"
            writer.write(head.encode())
            answer = await reader.readuntil(b"\r\n\r\n")
            statuses[int(answer[9:12])] += 1
            length = answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(attacker(number) for number in range(connections)))
    return statuses


def test_clerk_streaming_without_end_is_cut_short(
    besieged: Besieged, serve: Callable[..., Running], create_database: Callable[[], Database]
) -> None:
    """Of an answer of a hundred megabytes little more than socket buffers hold is taken."""
    sent = 0

    def stream(listener: socket.socket) -> None:
        nonlocal sent
        connection, _ = listener.accept()
        with closing(connection):
            connection.recv(65_536)
            connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"status": "ok", "x": "')
            with suppress(OSError):
                for _ in range(1_600):
                    connection.sendall(b"x" * 65_536)
                    sent += 65_536

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        streaming = thread.submit(stream, listener)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        service = serve(f'{base_config(create_database().dsn, url)}[stores.good]\npublic_key = "key-good"\n')
        problem(service.get(f"/good/{PAGE}"), 503, "clerk-unreachable")
        streaming.result(60)
    assert 65_536 <= sent < 30_000_000


def test_clerk_that_hangs_holds_nobody_who_is_known(besieged: Besieged) -> None:
    assert besieged.imported().items == ITEMS

    async def hangs(token: str, key: str) -> Response:
        return await silent(token, key) if token.startswith("unknown") else accepted()

    besieged.clerk.behaviour = hangs
    with ThreadPoolExecutor(30) as threads:
        unknown = [threads.submit(besieged.get, f"unknown-{n}", "good", source="127.0.0.9") for n in range(30)]
        assert besieged.imported().items == ITEMS
        statuses = Counter(asked.result().status for asked in unknown)
    assert statuses == {503: 30}


def test_a_verdict_of_one_store_says_nothing_of_another_though_both_ask_at_once(besieged: Besieged) -> None:
    """The same token, asked of two stores in the same moment: one knows it, the other does not."""

    async def by_key(token: str, key: str) -> Response:
        await asyncio.sleep(0.05)
        return accepted() if key == "key-good" else rejected()

    besieged.clerk.behaviour = by_key
    with ThreadPoolExecutor(20) as threads:
        for number in range(5):
            stores = ["good", "victim"] * 10
            asked = threads.map(
                lambda store, n=number: (store, besieged.get(f"both-{n}", store, source=f"127.0.2.{n + 1}").status),
                stores,
            )
            assert Counter(asked) == {("good", 200): 10, ("victim", 401): 10}


def test_more_good_tokens_than_are_kept_push_each_other_out_and_each_passes(besieged: Besieged, loop: Loop) -> None:
    """More than token_cache holds: one that was pushed out is asked about again, and takes no other's verdict."""
    before = len(besieged.clerk.calls)

    def ask(numbers: range) -> Counter[int]:
        statuses: Counter[int] = Counter()
        parts = urlsplit(besieged.service.url)
        with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)) as connection:
            for number in numbers:
                headers = {"X-Clerk-Authorization": f"Bearer good-of-many-{number}"}
                connection.request("GET", "/good/nothing", headers=headers)
                answer = connection.getresponse()
                answer.read()
                statuses[answer.status] += 1
        return statuses

    with ThreadPoolExecutor(4) as threads:
        asked = threads.map(ask, [range(n * 100, n * 100 + 100) for n in range(4)])
        assert sum(asked, Counter()) == {404: 400}  # past the gate, where there is no such feed
    assert len(besieged.clerk.calls) - before == 400
    assert besieged.get("good-of-many-0", "good").status == 200
    assert besieged.asked("good-of-many-0") >= 2


@pytest.mark.parametrize("size", [8_193, 12_000, 60_000, 1_000_000])
def test_a_huge_token_is_refused_without_asking_clerk(besieged: Besieged, size: int) -> None:
    before = len(besieged.clerk.calls)
    head = f"GET /victim/{PAGE} HTTP/1.1\r\nHost: x\r\nX-Clerk-Authorization: Bearer {'x' * size}\r\n\r\n"
    status = b""
    with closing(besieged.connect(b"")) as connection:
        try:
            connection.sendall(head.encode())
            status = connection.recv(12)
        except ConnectionError:
            pass  # the service had seen enough
    assert status in (b"HTTP/1.1 401", b"HTTP/1.1 429", b"HTTP/1.1 431", b"HTTP/1.1 400", b"")
    assert len(besieged.clerk.calls) == before
    assert besieged.imported().items == ITEMS


SLEEPERS = {
    "says nothing": b"",
    "half a request": b"GET /victim/products HTTP/1.1\r\nHost: x\r\nX-Clerk-Autho",
    "http/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "a body that never comes": b"POST /victim/products HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
    "a websocket": b"GET /victim/products HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "asked and went to sleep": b"GET /-/healthz HTTP/1.1\r\nHost: x\r\n\r\n",
}


def test_a_connection_that_asks_nothing_more_is_closed(besieged: Besieged) -> None:
    with ExitStack() as stack:
        sleepers = {name: stack.enter_context(closing(besieged.connect(sent))) for name, sent in SLEEPERS.items()}
        for name, connection in sleepers.items():
            received = b""
            try:
                while piece := connection.recv(65_536):
                    received += piece
            except TimeoutError:
                pytest.fail(f"{name}: it is still open")
            except ConnectionError:
                pass
            assert b" 200 " not in received or name == "asked and went to sleep"


def test_a_repeated_header_is_read_one_way(besieged: Besieged) -> None:
    """The first counts, for every question the gate asks: a second one changes nothing."""
    for first, second, status in (("good-first", "wrong-second", 200), ("wrong-first", "good-second", 401)):
        head = (
            f"GET /good/{PAGE} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Clerk-Authorization: Bearer {first}\r\n"
            f"X-Clerk-Authorization: Bearer {second}\r\n\r\n"
        )
        with closing(besieged.connect(head.encode())) as connection:
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            body = answer.read()
        assert answer.status == status, json.loads(body)
