"""What goes over the wire: lengths, pieces, connections kept and connections cut."""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from tests.clerk import FakeClerk, problem
from tests.conftest import PRODUCTS, TOKEN, Answer, Database, Running, Shop, base_config, eventually, start_service

ROWS = 30_000
"""Of the large feed, at 1.2 KB each: more than the socket buffers on the way take in."""


class Large:
    """A service with a large feed, a short send_timeout, and cursors that no lease would close in time."""

    def __init__(self, service: Running, database: Database) -> None:
        self.service = service
        self.database = database

    def cut_off(self) -> int:
        return len(self.service.events("CutOff"))

    def in_transaction(self) -> int:
        """How many of the service's connections stand in a transaction without working in it."""
        count: int = self.database.value("""
            select count(*) from pg_stat_activity
            where datname = current_database() and application_name = 'clerk-feed'
              and state in ('idle in transaction', 'idle in transaction (aborted)')
        """)
        return count


@pytest.fixture(scope="module")
def large(
    create_database: Callable[[], Database], clerk: FakeClerk, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Large]:
    database = create_database()
    database.execute("create schema shop")
    database.execute(PRODUCTS.replace("{s}", "shop"))
    database.execute(
        "insert into shop.products (id, description) select i, repeat('x', 1000) from generate_series(1, $1) i", ROWS
    )
    database.execute("analyze shop.products")
    config = base_config(database.dsn, clerk.verify_url, server='send_timeout = "1s"', database='cursor_lease = "60s"')
    service = start_service(tmp_path_factory.mktemp("large"), f'{config}\n[stores.shop]\npublic_key = "key-shop"\n')
    yield Large(service, database)
    service.stop()


def connect(service: Running, *, receive_bytes: int | None = None) -> socket.socket:
    parts = urlsplit(service.url)
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(30)
    connection.connect((parts.hostname, parts.port))
    return connection


def request(path: str, *, version: str = "1.1", method: str = "GET", more: str = "") -> bytes:
    return (
        f"{method} {path} HTTP/{version}\r\nHost: feeds.shop.example\r\n"
        f"X-Clerk-Authorization: Bearer {TOKEN}\r\n{more}\r\n"
    ).encode()


def to_the_end(connection: socket.socket) -> bytes:
    """Everything until the service closes the connection."""
    received = bytearray()
    while piece := connection.recv(1 << 16):
        received += piece
    return bytes(received)


def exchange(service: Running, sent: bytes) -> tuple[bytes, bytes]:
    """Head and body, byte for byte, of the one answer after which the service closes the connection."""
    with closing(connect(service)) as connection:
        connection.sendall(sent)
        head, _, body = to_the_end(connection).partition(b"\r\n\r\n")
    return head, body


def read(head: bytes, body: bytes) -> Answer:
    """Head and body as an answer."""
    status_line, _, fields = head.partition(b"\r\n")
    headers = http.client.HTTPMessage()
    for line in fields.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(": ")
        headers[name] = value
    return Answer(int(status_line.split()[1]), headers, body)


def dechunked(body: bytes) -> tuple[bytes, bool]:
    """The content of a chunked body, and whether it came to its end."""
    content, place = bytearray(), 0
    while (line_end := body.find(b"\r\n", place)) >= 0:
        length, start = int(body[place:line_end], 16), line_end + 2
        content += body[start : start + length]
        place = start + length + 2
        if body[place - 2 : place] != b"\r\n":
            break
        if length == 0:
            return bytes(content), place == len(body)
    return bytes(content), False


def test_a_page_over_http_1_0_carries_its_length(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 30)")
    path = f"/{catalog.name}/products?limit=20&offset=0"
    answer = read(*exchange(catalog.service, request(path, version="1.0")))
    assert answer.status == 200
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    assert answer.headers.keys()[0].lower() == "content-length", (
        "cut before it, an answer would be an empty page to some"
    )
    assert "Transfer-Encoding" not in answer.headers
    assert [item["id"] for item in answer.lines] == list(range(1, 21))


def test_a_walk_over_http_1_0_delivers_every_item(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 30)")
    found = []
    for offset in range(0, 40, 10):
        path = f"/{catalog.name}/products?limit=10&offset={offset}"
        found += [item["id"] for item in read(*exchange(catalog.service, request(path, version="1.0"))).lines]
    assert found == list(range(1, 31))


def test_a_stream_over_http_1_0_is_refused_for_a_cut_would_not_show(large: Large) -> None:
    answer = read(*exchange(large.service, request("/shop/products", version="1.0")))
    said = problem(answer, 505, "http-version")
    assert "proxy_http_version 1.1" in said["fix"]
    assert b"xxx" not in answer.body
    eventually(lambda: large.in_transaction() == 0, 10)


def test_a_feed_of_a_few_items_goes_over_http_1_0_from_the_first_time_on(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 30)")
    statuses = [
        read(*exchange(catalog.service, request(f"/{catalog.name}/products", version="1.0"))).status for _ in range(3)
    ]
    assert statuses == [200] * 3


def http_2(service: Running, path: str) -> Answer:
    """An answer to HTTP/2 with prior knowledge, which comes over HTTP/1.1."""
    client = H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    fields = [
        (":method", "GET"),
        (":path", path),
        (":scheme", "http"),
        (":authority", "feeds.shop.example"),
        ("x-clerk-authorization", f"Bearer {TOKEN}"),
    ]
    client.send_headers(1, fields, end_stream=True)
    return refused_at_once(service, client.data_to_send())


def refused_at_once(service: Running, sent: bytes) -> Answer:
    """The first answer over HTTP/1.1 to what may be no request at all, after which the connection is closed."""
    with closing(connect(service)) as connection:
        connection.sendall(sent)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        found = Answer(answer.status, answer.headers, answer.read())
        to_the_end(connection)
    return found


def test_http_2_is_refused_whatever_is_asked(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) values (1)")
    for path in (f"/{catalog.name}/products?limit=20&offset=0", f"/{catalog.name}/products", "/-/healthz", "/nothing"):
        said = problem(http_2(catalog.service, path), 505, "http-version")
        assert "HTTP/2" in said["detail"]


def test_a_connection_that_begins_with_http_2_and_asks_nothing_is_not_held_open(catalog: Shop) -> None:
    client = H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    problem(refused_at_once(catalog.service, client.data_to_send()), 505, "http-version")


def test_an_upgrade_to_http_2_is_not_taken_up(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) values (1)")
    upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    with closing(connect(catalog.service)) as connection:
        connection.sendall(request(f"/{catalog.name}/products?limit=20&offset=0", more=upgrade))
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.version) == (200, 11)
        assert [json.loads(line)["id"] for line in answer.read().splitlines()] == [1]


def test_head_of_a_page_has_its_length_and_leaves_no_bookmark(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 30)")
    path = f"/{catalog.name}/products?limit=20&offset=0"
    head, body = exchange(catalog.service, request(path, method="HEAD", more="Connection: close\r\n"))
    asked = read(head, b"")
    assert (asked.status, body) == (200, b"")
    bookmarks = "select count(*) from clerk_feed.bookmark where store = $1"
    walks = "select count(*) from clerk_feed.walk where store = $1"
    assert catalog.database.value(bookmarks, catalog.name) == 0
    assert catalog.database.value(walks, catalog.name) == 0

    got = catalog.get("products?limit=20&offset=0")
    for name in ("Content-Length", "Content-Type", "Cache-Control"):
        assert asked.headers[name] == got.headers[name]
    assert catalog.database.value(bookmarks, catalog.name) == 1


def test_head_in_the_middle_and_at_the_end_of_a_walk_uses_no_bookmark_up(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 30)")
    catalog.get("products?limit=20&offset=0")
    state = "select at, past, ended, closed from clerk_feed.bookmark where store = $1 order by id"
    before = catalog.database.fetch(state, catalog.name)
    asked = catalog.get("products?limit=20&offset=20", method="HEAD")
    assert catalog.database.fetch(state, catalog.name) == before
    got = catalog.get("products?limit=20&offset=20")
    assert asked.headers["Content-Length"] == got.headers["Content-Length"]

    before = catalog.database.fetch(state, catalog.name)
    asked = catalog.get("products?limit=20&offset=40", method="HEAD")
    assert (asked.status, asked.headers["Content-Length"]) == (200, "0")
    assert catalog.database.fetch(state, catalog.name) == before


def test_head_of_a_whole_feed_reads_little_of_it_and_says_that_it_comes_in_pieces(large: Large) -> None:
    started = time.monotonic()
    head, body = exchange(large.service, request("/shop/products", method="HEAD", more="Connection: close\r\n"))
    assert time.monotonic() - started < 20
    asked = read(head, b"")
    assert (asked.status, body) == (200, b"")
    assert "Content-Length" not in asked.headers
    eventually(lambda: large.in_transaction() == 0, 10)


def test_several_requests_go_over_one_connection(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 30)")
    connection = http.client.HTTPConnection(catalog.service.url.removeprefix("http://"), timeout=30)
    found, sockets = [], set()
    headers = {"X-Clerk-Authorization": f"Bearer {TOKEN}"}
    with closing(connection):
        for offset in (0, 10, 20, 30):
            connection.request("GET", f"/{catalog.name}/products?limit=10&offset={offset}", headers=headers)
            sockets.add(connection.sock)
            response = connection.getresponse()
            found += [json.loads(line)["id"] for line in response.read().splitlines()]
    assert found == list(range(1, 31))
    assert len(sockets) == 1


def test_a_connection_goes_on_after_refusals_and_whole_feeds(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 30)")
    connection = http.client.HTTPConnection(catalog.service.url.removeprefix("http://"), timeout=30)
    statuses, sockets = [], set()
    headers = {"X-Clerk-Authorization": f"Bearer {TOKEN}"}
    with closing(connection):
        for method, path in [("GET", "products?page=1"), ("GET", "products"), ("HEAD", "products"), ("GET", "pages")]:
            connection.request(method, f"/{catalog.name}/{path}", headers=headers)
            sockets.add(connection.sock)
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
    assert statuses == [400, 200, 200, 404]
    assert len(sockets) == 1


def test_requests_sent_ahead_are_answered_in_order(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 20)")
    pages = [f"/{catalog.name}/products?limit=1&after={after}" for after in range(5)]
    ahead = b"".join(request(path) for path in pages[:-1]) + request(pages[-1], more="Connection: close\r\n")
    with closing(connect(catalog.service)) as connection:
        connection.sendall(ahead)
        received = to_the_end(connection)
    found = [json.loads(line)["id"] for line in received.splitlines() if line.startswith(b"{")]
    assert found == [1, 2, 3, 4, 5]


def test_a_whole_feed_comes_in_chunks_and_ends_cleanly(large: Large) -> None:
    head, body = exchange(large.service, request("/shop/products", more="Connection: close\r\n"))
    answer = read(head, b"")
    assert answer.status == 200
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert "Content-Length" not in answer.headers
    content, ended = dechunked(body)
    assert ended
    lines = content.splitlines()
    assert [json.loads(lines[number])["id"] for number in (0, 999, 1000, -1)] == [1, 1000, 1001, ROWS]
    assert len(lines) == ROWS


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(large: Large) -> None:
    before = large.cut_off()
    with closing(connect(large.service, receive_bytes=65_536)) as connection:
        connection.sendall(request("/shop/products"))
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    eventually(lambda: large.cut_off() > before)
    # Sooner than any lease or timeout of the database would see to it.
    eventually(lambda: large.in_transaction() == 0, 10)
    [event] = large.service.events("CutOff")[before:]
    assert (event["store"], event["feed"]) == ("shop", "products")
    assert event["bytes"] < ROWS * 1000
    assert len(large.service.get("/shop/products?limit=1000&offset=0").lines) == 1000


def test_many_clients_that_leave_in_the_middle_use_up_no_connections(large: Large) -> None:
    before = large.cut_off()
    for _ in range(12):  # the pool holds 8
        with closing(connect(large.service, receive_bytes=65_536)) as connection:
            connection.sendall(request("/shop/products"))
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    eventually(lambda: large.cut_off() >= before + 12)
    eventually(lambda: large.in_transaction() == 0, 10)
    assert large.service.get("/shop/products?limit=10&offset=0").status == 200
    assert large.service.events("Failed") == []


def test_a_client_that_never_reads_is_dropped_after_send_timeout(large: Large) -> None:
    before = large.cut_off()
    with closing(connect(large.service, receive_bytes=4096)) as connection:
        connection.sendall(request("/shop/products"))
        eventually(lambda: large.cut_off() > before)
        eventually(lambda: large.in_transaction() == 0, 10)
        _, ended = dechunked(rest_of(connection).partition(b"\r\n\r\n")[2])
    assert not ended
    assert large.service.get("/shop/products?limit=10&offset=0").status == 200


def rest_of(connection: socket.socket) -> bytes:
    """What is still to be read of a connection that was cut."""
    received = bytearray()
    try:
        while piece := connection.recv(1 << 16):
            received += piece
    except ConnectionError:
        pass
    return bytes(received)


def test_a_feed_that_fails_in_the_middle_is_cut_off_and_not_ended(large: Large) -> None:
    large.database.execute("""
        create or replace view shop.customers as
        select id, (10 / (case when id = 20000 then 0 else 1 end))::text || description as email from shop.products
    """)
    before = large.cut_off()
    with closing(connect(large.service)) as connection:
        connection.sendall(request("/shop/customers"))
        head, _, body = rest_of(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    content, ended = dechunked(body)
    assert not ended
    assert 0 < content.count(b"\n") < 20_000
    assert not content.endswith((b"\n", b"}"))  # a proxy that takes a cut for the end passes on what can't be read
    [event] = large.service.events("CutOff")[before:]
    assert event["cause"] == "source-failed"
