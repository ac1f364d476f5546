"""Clients that misbehave: they leave, they dawdle, they flood. The importer beside them notices nothing."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.access.pace import AT_ONCE
from app.clerk.importer import Importer
from app.settings import Access
from loadtests.memory import memory_of
from tests.clerk import FakeClerk, problem
from tests.conftest import PRODUCTS, TOKEN, Database, Running, base_config, eventually, start_service
from tests.test_http import connect, dechunked, request, rest_of

LARGE = 30_000
"""Items of the dawdlers' feed, at 1.2 KB each: more than the socket buffers on the way take in."""
SMALL = 5_000
"""Items of the well-behaved importer's feed."""
CHUNK_BYTES = 1_300_000
"""What a thousand of the large feed's items come to."""


class Crowd:
    """A service with two stores: `slow` with a large feed for dawdlers, `good` with an importer that behaves."""

    def __init__(self, service: Running, database: Database, clerk: FakeClerk) -> None:
        self.service = service
        self.database = database
        self.clerk = clerk

    def sessions(self, state: str = "%") -> int:
        """The service's connections in a state."""
        count: int = self.database.value(
            """
            select count(*) from pg_stat_activity
            where datname = current_database() and application_name = 'clerk-feed' and state like $1
            """,
            state,
        )
        return count

    def cut_off(self) -> int:
        return len(self.service.events("CutOff"))

    def importer(self, token: str = TOKEN) -> Importer:
        url = f"{self.service.url}/good/products?limit={{{{limit}}}}&offset={{{{offset}}}}"
        return Importer(url, token=token, limit=100)

    def walk(self) -> tuple[list[object], int, float]:
        """The ids of a whole walk of the good store, the retries it took, and the seconds."""
        started = time.monotonic()
        with closing(self.importer()) as importer:
            pages = list(importer.pages())
        ids = [item["id"] for page in pages for item in page.items]
        return ids, sum(page.retries for page in pages), time.monotonic() - started

    def still_serves(self) -> bool:
        """Whether all is as it was: a page comes, no session stands in a transaction, no defect was met."""
        answer = self.service.get("/good/products?limit=10&offset=0")
        assert [item["id"] for item in answer.lines] == list(range(1, 11))
        eventually(lambda: self.sessions("idle in transaction%") == 0, 10)
        return self.service.events("Failed") == []


Crowded = Callable[[str], Crowd]


@pytest.fixture(scope="module")
def crowded(
    create_database: Callable[[], Database], clerk: FakeClerk, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Crowded]:
    """Makes services with settings of their own over one database."""
    database = create_database()
    for schema, count in (("slow", LARGE), ("good", SMALL)):
        database.execute(f"create schema {schema}")
        database.execute(PRODUCTS.replace("{s}", schema))
        database.execute(
            f"insert into {schema}.products (id, description) select i, repeat('x', 1000)"
            " from generate_series(1, $1::int) i",
            count,
        )
        database.execute(f"analyze {schema}.products")
    running: list[Running] = []

    def start(server: str) -> Crowd:
        config = base_config(database.dsn, clerk.verify_url, server=server)
        config += '\n[stores.slow]\npublic_key = "key-slow"\n[stores.good]\npublic_key = "key-good"\n'
        running.append(start_service(tmp_path_factory.mktemp("crowd"), config))
        return Crowd(running[-1], database, clerk)

    with ExitStack() as stack:
        yield start
        for service in running:
            stack.callback(service.stop)


@pytest.fixture(scope="module")
def impatient(crowded: Crowded) -> Crowd:
    """A service that drops after a second who takes nothing."""
    return crowded('send_timeout = "1s"')


def connections_from(service: Running, client: int) -> list[str]:
    """The states of the sockets at the service's port whose other end is a client's port, as the kernel has them.

    06 (TIME_WAIT) is left out: both ends have closed, and the kernel alone remembers it for a minute. Which end it
    stays at depends on who closed first.
    """
    port = urlsplit(service.url).port
    states = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        here, there = int(local.split(":")[1], 16), int(remote.split(":")[1], 16)
        if (here, there) == (port, client) and state != "06":
            states.append(state)
    return states


def port_of(connection: socket.socket) -> int:
    port: int = connection.getsockname()[1]
    return port


def test_a_client_that_leaves_stops_the_reader_within_a_chunk_and_gives_its_session_back(impatient: Crowd) -> None:
    assert impatient.still_serves()
    sessions, before = impatient.sessions(), impatient.cut_off()
    with closing(connect(impatient.service, receive_bytes=65_536)) as connection:
        connection.sendall(request("/slow/products"))
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        client = port_of(connection)
    eventually(lambda: impatient.cut_off() > before)
    eventually(lambda: impatient.sessions("idle in transaction%") == 0, 10)
    eventually(lambda: impatient.sessions("active") == 0, 10)
    assert impatient.sessions() <= max(sessions, 1)
    assert connections_from(impatient.service, client) == []
    [event] = impatient.service.events("CutOff")[before:]
    assert event["cause"] == "the client left"
    # What the sockets took in on the way, the chunk under way, and one more.
    assert event["bytes"] < 12_000_000
    assert impatient.still_serves()


def test_a_client_that_leaves_before_its_answer_begins_leaves_nothing_behind(impatient: Crowd) -> None:
    sessions = impatient.sessions()
    for path in ("/slow/products", "/slow/products?limit=1000&offset=0"):
        for _ in range(10):
            with closing(connect(impatient.service)) as connection:
                connection.sendall(request(path))
    eventually(lambda: impatient.sessions("idle in transaction%") + impatient.sessions("active") == 0, 10)
    eventually(lambda: impatient.sessions() <= max(sessions, 8), 10)
    assert impatient.still_serves()


@pytest.mark.parametrize("bytes_a_second", [0, 1])
def test_a_client_that_hardly_reads_is_dropped_with_its_socket(impatient: Crowd, bytes_a_second: int) -> None:
    before = impatient.cut_off()
    with closing(connect(impatient.service, receive_bytes=4096)) as connection:
        connection.sendall(request("/slow/products"))
        client = port_of(connection)
        eventually(lambda: connections_from(impatient.service, client) != [])
        reader = Dripping(connection, bytes_a_second)
        eventually(lambda: impatient.cut_off() > before)
        eventually(lambda: connections_from(impatient.service, client) == [])
        reader.stop()
        _, ended = dechunked(rest_of(connection).partition(b"\r\n\r\n")[2])
    assert not ended
    assert impatient.still_serves()


def test_a_client_that_does_not_take_its_page_is_dropped_with_its_socket(impatient: Crowd) -> None:
    """Of a page the service keeps no more than what it was about to send."""
    with closing(connect(impatient.service, receive_bytes=4096)) as connection:
        ahead = b"".join(request(f"/slow/products?limit=1000&after={after}") for after in range(0, 20_000, 1000))
        connection.sendall(ahead)
        client = port_of(connection)
        eventually(lambda: connections_from(impatient.service, client) != [])
        eventually(lambda: connections_from(impatient.service, client) == [])
    assert impatient.still_serves()


class Dripping:
    """Reads so many bytes a second from a connection, beside the test."""

    def __init__(self, connection: socket.socket, bytes_a_second: int) -> None:
        self._connection = connection
        self._bytes = bytes_a_second
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._stopped.wait(1):
            with suppress(OSError):
                if self._bytes:
                    self._connection.recv(self._bytes)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


class Dawdlers:
    """Many clients that read the large feed slowly but steadily, from one thread, until stopped."""

    def __init__(self, service: Running, count: int, *, piece: int, pause: float) -> None:
        self._stack = ExitStack()
        self._connections = []
        for _ in range(count):
            connection = self._stack.enter_context(closing(connect(service, receive_bytes=16_384)))
            connection.sendall(request("/slow/products"))
            connection.setblocking(False)
            self._connections.append(connection)
        self._piece = piece
        self._pause = pause
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self.received = [0] * count
        self.refused = 0
        """Clients that were asked to come again."""
        self.left = 0
        """Clients that were cut off."""
        self._thread.start()

    def _read(self) -> None:
        gone: set[int] = set()
        while not self._stopped.wait(self._pause):
            for number, connection in enumerate(self._connections):
                try:
                    piece = connection.recv(self._piece)
                except BlockingIOError:
                    continue
                except OSError:
                    piece = b""
                size = len(piece)
                self.refused += piece.startswith(b"HTTP/1.1 503") and not self.received[number]
                self.received[number] += size
                if not size:
                    gone.add(number)
            self.left = len(gone)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._stack.close()


@pytest.mark.slow
def test_an_importer_gets_all_its_pages_beside_forty_slow_readers_of_another_store(
    crowded: Crowded,
) -> None:
    crowd = crowded("")
    expected = list(range(1, SMALL + 1))
    ids, retries, alone = crowd.walk()
    assert (ids, retries) == (expected, 0)
    before = memory_of(crowd.service.process.pid).now
    dawdlers = Dawdlers(crowd.service, 40, piece=16_384, pause=0.1)
    try:
        eventually(lambda: all(dawdlers.received), 60)
        ids, retries, beside = crowd.walk()
    finally:
        dawdlers.stop()
    assert ids == expected
    assert dawdlers.left == 0
    grown = memory_of(crowd.service.process.pid).peak - before
    print(f"{alone:.2f} s alone, {beside:.2f} s beside with {retries} retries; {grown:.0f} MB grown")
    print(f"{dawdlers.refused} of 40 refused at first, {sum(dawdlers.received) / 1e6:.0f} MB read by the others")
    # Of each: two chunks read ahead, one on its way, one in the buffers of the socket, and the rows of one.
    assert grown < (40 * 5 * CHUNK_BYTES + 50_000_000) / 1e6
    eventually(lambda: crowd.cut_off() == 40 - dawdlers.refused)
    assert crowd.still_serves()


MALFORMED = {
    "a thousand headers": request("/good/products", more="".join(f"X-{i}: {'a' * 100}\r\n" for i in range(1000))),
    "a header of 1 MB": request("/good/products", more=f"X-Large: {'a' * 1_000_000}\r\n"),
    "a header of 1 MB that does not end": request("/good/products")[:-2] + b"X-Large: " + b"a" * 1_000_000,
    "a token of 1 MB": request("/good/products").replace(TOKEN.encode(), b"a" * 1_000_000),
    "a path of 1 MB": request("/" + "a" * 1_000_000),
    "a query of 1 MB": request("/good/products?limit=" + "1" * 1_000_000),
    "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "nothing but line breaks": b"\r\n" * 50_000,
    "no version": b"GET /good/products\r\n\r\n",
    "an unknown version": b"GET /good/products HTTP/9.9\r\nHost: h\r\n\r\n",
    "no host": b"GET /good/products HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /good/products HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a header without a colon": request("/good/products", more="nothing\r\n"),
    "a space in a header's name": request("/good/products", more="X Y: z\r\n"),
    "a NUL in a header": request("/good/products", more="X-Nul: a\0b\r\n"),
    "a NUL in the path": b"GET /good/\0products HTTP/1.1\r\nHost: h\r\n\r\n",
    "two lengths": request("/good/products", more="Content-Length: 1\r\nContent-Length: 2\r\n"),
    "a negative length": request("/good/products", more="Content-Length: -1\r\n"),
    "an unknown transfer encoding": request("/good/products", more="Transfer-Encoding: brotli\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_flood_or_a_malformed_request_is_refused_or_closed(impatient: Crowd, name: str) -> None:
    received = b""
    with closing(connect(impatient.service)) as connection:
        # The service may have closed before everything is sent.
        with suppress(OSError):
            connection.sendall(MALFORMED[name])
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            received = connection.recv(1 << 16)
    assert received == b"" or re.match(rb"HTTP/1\.[01] (4\d\d|501|505) ", received), received[:200]
    assert impatient.still_serves()


@pytest.mark.parametrize("token", [TOKEN, "wrong-with-a-body"])
def test_a_body_sent_with_a_request_is_not_kept_and_leaves_nothing_behind(crowded: Crowded, token: str) -> None:
    """Nothing reads it: the connection ends, or the body is thrown away."""
    crowd = crowded('send_timeout = "1s"')
    before = memory_of(crowd.service.process.pid).peak
    head = request("/good/products?limit=10&offset=0", more="Content-Length: 100000000\r\n")
    with closing(connect(crowd.service)) as connection:
        connection.settimeout(3)
        client = port_of(connection)
        with suppress(ConnectionError, TimeoutError):
            connection.sendall(head.replace(TOKEN.encode(), token.encode()))
            for _ in range(100):
                connection.sendall(bytes(1_000_000))
    assert memory_of(crowd.service.process.pid).peak - before < 30
    eventually(lambda: connections_from(crowd.service, client) == [])
    assert crowd.still_serves()
    # What still waited for something would be given 30 s to finish.
    assert crowd.service.stop(timeout=15) == 0


@pytest.mark.slow
def test_a_client_that_closes_a_connection_it_kept_leaves_no_socket_behind(impatient: Crowd) -> None:
    """One a request, as a monitor does, they would use the descriptors up."""
    with ExitStack() as stack:
        clients = []
        for _ in range(50):
            connection = stack.enter_context(closing(connect(impatient.service)))
            connection.sendall(request("/good/products?limit=1&offset=0"))
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
            clients.append(port_of(connection))
    eventually(lambda: all(connections_from(impatient.service, client) == [] for client in clients))
    assert impatient.still_serves()


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.mark.parametrize("more", [b"", b"\0\0\0\4\0\0\0\0\0", b"garbage" * 1000, PREFACE], ids=range(4))
def test_an_http_2_preface_is_closed_or_goes_unanswered(impatient: Crowd, more: bytes) -> None:
    with closing(connect(impatient.service)) as connection:
        with suppress(OSError):
            connection.sendall(PREFACE + more)
            connection.shutdown(socket.SHUT_WR)
        client = port_of(connection)
        with suppress(ConnectionError, TimeoutError):
            assert b'"id"' not in connection.recv(1 << 16)
        eventually(lambda: connections_from(impatient.service, client) == [])
    assert impatient.still_serves()


def test_connections_that_say_nothing_do_not_keep_others_out(impatient: Crowd) -> None:
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(closing(connect(impatient.service)))
        ids, retries, _ = impatient.walk()
        assert (ids, retries) == (list(range(1, SMALL + 1)), 0)
    assert impatient.still_serves()


def test_a_thousand_wrong_tokens_cost_few_questions_and_the_importer_nothing(impatient: Crowd) -> None:
    wrong = [f"wrong-{number % 100}" for number in range(1000)]
    assert impatient.service.get("/slow/products?limit=10&offset=0").status == 200
    before = len(impatient.clerk.calls_for("key-slow"))

    def ask(token: str) -> int:
        return impatient.service.get("/slow/products?limit=10&offset=0", token=token).status

    with ThreadPoolExecutor(8) as executor:
        answers = executor.map(ask, wrong)
        ids, retries, _ = impatient.walk()
        statuses = list(answers)
        assert set(statuses) == {401, 429}
        assert statuses.count(401) <= Access().refusal_rate.count + AT_ONCE
    assert (ids, retries) == (list(range(1, SMALL + 1)), 0)
    assert len(impatient.clerk.calls_for("key-slow")[before:]) <= Access().refusal_rate.count + AT_ONCE
    problem(impatient.service.get("/slow/products?limit=10&offset=0", token=wrong[0]), 429, "refused-too-often")
    assert impatient.service.get("/slow/products?limit=10&offset=0").status == 200
    assert impatient.still_serves()
