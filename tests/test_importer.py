"""The importer asks as Clerk's does, retries as a well-behaved client does, and reports what it saw."""

import base64
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import msgspec
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.clerk.importer import Importer, ImportFailedError, Report, decoded
from app.protocol.redaction import redacted
from tests.conftest import Hosted

PAGED = "?limit={{limit}}&offset={{offset}}"
PASSWORD, TOKEN = "hunter2", "secret-token"

quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def ndjson(items: list[dict[str, Any]]) -> Response:
    body = b"".join(orjson.dumps(item) + b"\n" for item in items)
    return Response(body, media_type="application/x-ndjson")


@dataclass
class FakeFeed:
    """A feed over HTTP that serves `items` by limit and offset, after the answers it was given as `first`."""

    items: list[dict[str, Any]] = field(default_factory=list)
    first: list[Response] = field(default_factory=list)
    render: Callable[[list[dict[str, Any]]], Response] = ndjson
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    async def answer(self, request: Request) -> Response:
        self.requests.append(request)
        if self.first:
            return self.first.pop(0)
        query = parse_qs(request.url.query)
        if "offset" not in query:
            return self.render(self.items)
        offset, limit = int(query["offset"][0]), int(query["limit"][0])
        return self.render(self.items[offset : offset + limit])

    @property
    def queries(self) -> list[str]:
        return [request.url.query for request in self.requests]

    def received(self, header: str) -> list[str | None]:
        return [request.headers.get(header) for request in self.requests]

    def with_credentials(self, userinfo: str) -> str:
        return self.url.replace("//", f"//{userinfo}@")


@pytest.fixture
def feed(hosted: Hosted) -> FakeFeed:
    """An empty feed at /dk/products of its own server."""
    fake = FakeFeed()
    fake.url = hosted(Starlette(routes=[Route("/{path:path}", fake.answer)])) + "/dk/products"
    return fake


@dataclass
class Pauses:
    """Notes how long it was asked to pause, and does not."""

    seconds: list[float] = field(default_factory=list)

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


Make = Callable[..., Importer]


@pytest.fixture
def importer(pauses: Pauses) -> Iterator[Make]:
    """Makes importers that pause for no time."""
    made: list[Importer] = []

    def make(url: str, **options: Any) -> Importer:
        made.append(Importer(url, **{"pause": pauses, "timeout_seconds": 20.0, **options}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"id": number} for number in range(count)]


def failure_of(importer: Importer) -> ImportFailedError:
    with pytest.raises(ImportFailedError) as caught:
        importer.run()
    return caught.value


@dataclass
class Cutting:
    """A server that sends bytes as they are, a connection each, and hangs up. The last of them repeat."""

    answers: list[bytes]
    url: str = ""
    asked: int = 0

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                received = b""
                while b"\r\n\r\n" not in received and (chunk := connection.recv(65_536)):
                    received += chunk
                if not received:
                    continue
                connection.sendall(self.answers[min(self.asked, len(self.answers) - 1)])
                self.asked += 1


@pytest.fixture
def cutting() -> Iterator[Callable[..., Cutting]]:
    """Starts servers that hang up where they are told to."""
    running: list[tuple[socket.socket, threading.Thread]] = []

    def start(*answers: bytes) -> Cutting:
        listener = socket.create_server(("127.0.0.1", 0))
        server = Cutting(list(answers), f"http://127.0.0.1:{listener.getsockname()[1]}/dk/products")
        thread = threading.Thread(target=server.serve, args=(listener,), daemon=True)
        thread.start()
        running.append((listener, thread))
        return server

    yield start
    for listener, thread in running:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        listener.close()


WHOLE = b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{"id": 1}'
CUT_LENGTH = b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"id": 1}\n'
CUT_CHUNKS = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n{"id": 1}\n\r\n'
CUT_IN_CHUNK = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"id": 1}\n'
CUT_HEADERS = b"HTTP/1.1 200 OK\r\nContent-Le"
NOTHING = b""
CUTS = [CUT_LENGTH, CUT_CHUNKS, CUT_IN_CHUNK]


# Asking as Clerk does


def test_placeholders_are_replaced_and_the_offset_is_raised_by_limit(feed: FakeFeed, importer: Make) -> None:
    feed.items = numbered(5)
    walk = importer(feed.url + PAGED + "&modified_after={{modified_after}}", limit=2)
    pages = list(walk.pages())
    assert feed.queries == [f"limit=2&offset={offset}&modified_after=" for offset in (0, 2, 4, 6)]
    assert [page.items for page in pages] == [numbered(5)[0:2], numbered(5)[2:4], numbered(5)[4:], []]
    assert [(page.number, page.offset) for page in pages] == [(0, 0), (1, 2), (2, 4), (3, 6)]
    assert {request.url.path for request in feed.requests} == {"/dk/products"}


def test_placeholders_may_be_spaced_repeated_and_part_of_the_path(feed: FakeFeed, importer: Make) -> None:
    importer(feed.url + "/{{ offset }}?a={{limit }}&b={{limit}}&c={{offset}}", limit=7).page(14)
    assert str(feed.requests[0].url).endswith("/dk/products/14?a=7&b=7&c=14")


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("24", "24"),
        ("", ""),
        ("2026-01-31T10:00:00+02:00", "2026-01-31T10%3A00%3A00%2B02%3A00"),
        ("a&b=c", "a%26b%3Dc"),
    ],
)
def test_modified_after_is_sent_percent_encoded(feed: FakeFeed, importer: Make, value: str, sent: str) -> None:
    importer(feed.url + PAGED + "&modified_after={{modified_after}}", limit=1, modified_after=value).page(0)
    assert feed.queries == [f"limit=1&offset=0&modified_after={sent}"]


def test_ndjson_is_preferred_and_json_accepted(feed: FakeFeed, importer: Make) -> None:
    importer(feed.url).run()
    assert feed.received("accept") == ["application/x-ndjson, application/json;q=0.9"]


@pytest.mark.parametrize("empty", [Response(b""), Response(b"[]"), Response(b" [ ]\n"), Response(b"\n")])
def test_an_empty_answer_ends_the_walk(feed: FakeFeed, importer: Make, empty: Response) -> None:
    feed.first = [ndjson(numbered(1)), empty]
    feed.items = numbered(1000)
    report = importer(feed.url + PAGED, limit=10).run()
    assert (report.items, report.pages, len(feed.requests)) == (1, 2, 2)


def test_a_page_that_is_not_full_does_not_end_the_walk(feed: FakeFeed, importer: Make) -> None:
    feed.first = [ndjson([{"id": 1}]), ndjson([{"id": 2}]), ndjson([{"id": 3}])]
    report = importer(feed.url + PAGED, limit=10).run()
    assert report.ids == {1, 2, 3}
    assert [parse_qs(query)["offset"] for query in feed.queries] == [["0"], ["10"], ["20"], ["30"]]


def test_json_arrays_are_read_like_ndjson(feed: FakeFeed, importer: Make) -> None:
    feed.items, feed.render = numbered(5), JSONResponse
    assert importer(feed.url + PAGED, limit=2).run().ids == {0, 1, 2, 3, 4}


def test_a_url_without_placeholders_is_asked_once(feed: FakeFeed, importer: Make) -> None:
    feed.items = numbered(3000)
    report = importer(feed.url, limit=1000).run()
    assert feed.queries == [""]
    assert (report.items, report.pages) == (3000, 1)


def test_a_url_that_only_names_modified_after_is_asked_once(feed: FakeFeed, importer: Make) -> None:
    """Its answer is the whole feed every time: an importer that waits for an empty one would never end."""
    feed.items = numbered(3)
    pages = importer(feed.url + "?modified_after={{modified_after}}").pages()
    next(pages)
    assert next(pages, None) is None


def test_the_pages_of_a_walk_share_one_connection(feed: FakeFeed, importer: Make) -> None:
    feed.items = numbered(5)
    importer(feed.url + PAGED, limit=1).run()
    assert len({request.scope["client"] for request in feed.requests}) == 1


def test_the_address_to_call_from_can_be_chosen(feed: FakeFeed, importer: Make) -> None:
    importer(feed.url, address="127.0.0.2").run()
    assert feed.requests[0].scope["client"][0] == "127.0.0.2"


# Credentials


def test_the_token_is_sent_with_every_request(feed: FakeFeed, importer: Make) -> None:
    feed.items = numbered(2)
    feed.first = [Response(status_code=503)]
    importer(feed.url + PAGED, limit=1, token=TOKEN).run()
    assert feed.received("x-clerk-authorization") == [f"Bearer {TOKEN}"] * 4


def test_a_function_gives_a_fresh_token_for_every_request_retries_included(feed: FakeFeed, importer: Make) -> None:
    feed.items = numbered(2)
    feed.first = [Response(status_code=503)]
    tokens = iter("abcdef")
    importer(feed.url + PAGED, limit=1, token=lambda: next(tokens)).run()
    assert feed.received("x-clerk-authorization") == ["Bearer a", "Bearer b", "Bearer c", "Bearer d"]


def test_without_credentials_none_are_sent(feed: FakeFeed, importer: Make) -> None:
    importer(feed.url).run()
    assert feed.received("x-clerk-authorization") == [None]
    assert feed.received("authorization") == [None]


@pytest.mark.parametrize(
    ("userinfo", "pair"),
    [
        ("clerk:pw", "clerk:pw"),
        ("clerk:", "clerk:"),
        ("clerk", "clerk:"),
        ("cl%40erk:p%3Aa%2Fs%40s%25", "cl@erk:p:a/s@s%"),
        ("s%C3%B8ren:%C3%A6%C3%B8%C3%A5", "søren:æøå"),
        ("clerk:a:b", "clerk:a:b"),
        ("clerk:a+b", "clerk:a+b"),
    ],
)
def test_user_and_password_of_the_url_are_sent_with_every_request(
    feed: FakeFeed, importer: Make, userinfo: str, pair: str
) -> None:
    feed.items = numbered(1)
    feed.first = [Response(status_code=429)]
    importer(feed.with_credentials(userinfo) + PAGED, limit=1, token=TOKEN).run()
    sent = "Basic " + base64.b64encode(pair.encode()).decode()
    assert feed.received("authorization") == [sent] * 3
    assert feed.received("x-clerk-authorization") == [f"Bearer {TOKEN}"] * 3


def test_credentials_are_nowhere_but_in_their_headers(feed: FakeFeed, importer: Make) -> None:
    importer(feed.with_credentials(f"clerk:{PASSWORD}") + PAGED, token=TOKEN).run()
    for request in feed.requests:
        assert PASSWORD not in str(request.scope)
        assert TOKEN not in str(request.url)
        holders = [name for name, value in request.headers.items() if TOKEN in value]
        assert holders == ["x-clerk-authorization"]


# Retries


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_obeyed(feed: FakeFeed, importer: Make, pauses: Pauses, status: int) -> None:
    feed.items = numbered(3)
    feed.first = [
        ndjson(numbered(2)),
        Response(status_code=status, headers={"Retry-After": "7"}),
        Response(status_code=status, headers={"Retry-After": "0"}),
    ]
    report = importer(feed.url + PAGED, limit=2).run()
    assert pauses.seconds == [7, 0]
    assert [parse_qs(query)["offset"] for query in feed.queries] == [["0"], ["2"], ["2"], ["2"], ["4"]]
    assert (report.items, report.retries, report.duplicates) == (3, 2, [])


@pytest.mark.parametrize("retry_after", ["Sat, 31 Jan 2026 08:00:00 GMT", "", "-1", "1.5", "soon", "²", None])
def test_a_retry_after_that_is_no_number_gives_a_short_growing_pause(
    feed: FakeFeed, importer: Make, pauses: Pauses, retry_after: str | None
) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    feed.first = [Response(status_code=503, headers=headers) for _ in range(3)]
    importer(feed.url).run()
    assert pauses.seconds == sorted(pauses.seconds)
    assert 0 < pauses.seconds[0] < pauses.seconds[2] < 10


@pytest.mark.parametrize("retry_after", ["61", "86400", "9" * 400])
def test_no_pause_is_longer_than_a_minute(feed: FakeFeed, importer: Make, pauses: Pauses, retry_after: str) -> None:
    feed.first = [Response(status_code=503, headers={"Retry-After": retry_after})]
    importer(feed.url).run()
    assert pauses.seconds == [60]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_failure_that_lasts_is_reported_with_its_status_and_body(
    feed: FakeFeed, importer: Make, pauses: Pauses, status: int
) -> None:
    feed.first = [Response(b"still busy" * 1000, status) for _ in range(9)]
    failure = failure_of(importer(feed.url, attempts=3))
    assert str(failure) == f"HTTP status {status}"
    assert failure.status == status
    assert failure.body == b"still busy" * 400
    assert len(feed.requests) == 3
    assert len(pauses.seconds) == 2


@pytest.mark.parametrize("status", [204, 301, 302, 400, 401, 403, 404, 405, 410, 501, 505])
def test_a_refusal_is_reported_at_once(feed: FakeFeed, importer: Make, pauses: Pauses, status: int) -> None:
    body = b"" if status == 204 else b"the reason"
    feed.first = [Response(body, status, {"Retry-After": "1", "Location": "/elsewhere"})]
    failure = failure_of(importer(feed.url + PAGED))
    assert (failure.status, failure.body) == (status, body)
    assert len(feed.requests) == 1
    assert pauses.seconds == []


def test_pages_before_a_failure_are_not_lost(feed: FakeFeed, importer: Make) -> None:
    feed.first = [ndjson(numbered(2)), Response(status_code=401)]
    pages = importer(feed.url + PAGED, limit=2).pages()
    assert next(pages).items == numbered(2)
    with pytest.raises(ImportFailedError):
        next(pages)


@pytest.mark.parametrize("cut", [*CUTS, CUT_HEADERS, NOTHING])
def test_a_cut_off_answer_is_asked_for_again(
    cutting: Callable[..., Cutting], importer: Make, pauses: Pauses, cut: bytes
) -> None:
    server = cutting(cut, cut, WHOLE)
    report = importer(server.url).run()
    assert (report.ids, report.retries, report.duplicates) == ({1}, 2, [])
    assert len(pauses.seconds) == 2
    assert all(0 < seconds <= 2 for seconds in pauses.seconds)


@pytest.mark.parametrize("cut", CUTS)
def test_an_answer_that_is_cut_off_every_time_is_reported_as_such(
    cutting: Callable[..., Cutting], importer: Make, cut: bytes
) -> None:
    server = cutting(cut)
    failure = failure_of(importer(server.url, attempts=3))
    assert "cut off" in str(failure)
    assert failure.status is None
    assert server.asked == 3


def test_a_server_that_only_hangs_up_is_reported(cutting: Callable[..., Cutting], importer: Make) -> None:
    server = cutting(NOTHING)
    failure = failure_of(importer(server.url, attempts=2))
    assert "no answer" in str(failure)
    assert failure.status is None
    assert server.asked == 2


def test_a_server_that_is_not_there_is_reported(importer: Make, pauses: Pauses) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    failure = failure_of(importer(f"http://127.0.0.1:{port}/", attempts=4))
    assert "no answer" in str(failure)
    assert len(pauses.seconds) == 3
    assert pauses.seconds == sorted(pauses.seconds)


def test_a_server_that_stays_silent_is_given_up_on(importer: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent = importer(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout_seconds=0.05, attempts=2)
        assert "TimeoutError" in str(failure_of(silent))


def test_an_importer_goes_on_after_a_lost_connection(cutting: Callable[..., Cutting], importer: Make) -> None:
    server = cutting(CUT_LENGTH, WHOLE, WHOLE)
    walk = importer(server.url)
    assert [walk.page(0).retries, walk.page(0).retries] == [1, 0]


# What comes back


@pytest.mark.parametrize(
    "body", [b"<html>Login</html>", b'{"id": 1', b'{"id": 1}\n{"id"', b"OK", b'{"id": NaN}', b"\xff"]
)
def test_what_is_not_json_is_reported_with_its_start(
    feed: FakeFeed, importer: Make, pauses: Pauses, body: bytes
) -> None:
    feed.first = [Response(body)]
    failure = failure_of(importer(feed.url))
    assert "not JSON" in str(failure)
    assert (failure.status, failure.body) == (200, body)
    assert len(feed.requests) == 1
    assert pauses.seconds == []


@pytest.mark.parametrize("body", [b"[1]", b'["a"]', b"[null]", b"[[]]", b"1", b'{"id": 1}\n2\n', b"null"])
def test_what_is_not_an_object_is_no_item(feed: FakeFeed, importer: Make, body: bytes) -> None:
    feed.first = [Response(body)]
    assert "not an object" in str(failure_of(importer(feed.url)))


@pytest.mark.parametrize("item", [{}, {"name": "x"}, {"id": None}, {"id": 1.5}, {"id": [1]}, {"id": {}}, {"id": True}])
def test_an_item_without_a_usable_id_is_reported_with_its_page(
    feed: FakeFeed, importer: Make, item: dict[str, Any]
) -> None:
    feed.first = [ndjson(numbered(2)), ndjson([{"id": 7}, item])]
    failure = failure_of(importer(feed.url + PAGED, limit=2))
    assert "offset 2" in str(failure)
    assert "no id" in str(failure)


def test_an_error_with_status_200_is_no_item(feed: FakeFeed, importer: Make) -> None:
    feed.first = [JSONResponse({"status": "error", "message": "busy"})]
    assert "no id" in str(failure_of(importer(feed.url)))


def test_items_that_came_twice_and_items_that_did_not_come_are_reported(feed: FakeFeed, importer: Make) -> None:
    feed.items = [{"id": id} for id in (1, 2, 2, 3, "3", "x", 1, 2)]
    report = importer(feed.url + PAGED, limit=3).run(expected={1, 2, 3, 4, "3", "y"})
    assert report.duplicates == [2, 1, 2]
    assert report.missing == [4, "y"]
    assert report.ids == {1, 2, 3, "3", "x"}
    assert report.items == 8


def test_nothing_is_missing_where_nothing_was_expected(feed: FakeFeed, importer: Make) -> None:
    feed.items = numbered(3)
    assert importer(feed.url).run().missing == []
    assert importer(feed.url).run(expected={0, 1, 2}).missing == []


def test_a_report_counts_pages_items_bytes_and_time(feed: FakeFeed, importer: Make) -> None:
    feed.items = numbered(5)
    seen: list[tuple[int, int]] = []

    def progress(report: Report) -> None:
        seen.append((report.pages, report.items))

    report = importer(feed.url + PAGED, limit=2).run("dk/products", progress=progress)
    assert report.feed == "dk/products"
    assert (report.pages, report.items, report.bytes) == (4, 5, len('{"id":0}\n') * 5)
    assert seen == [(1, 2), (2, 4), (3, 5), (4, 5)]
    assert 0 < report.first_seconds <= report.slowest_seconds <= report.seconds
    assert 0 < report.last_seconds <= report.slowest_seconds
    assert report.slowest_offset in (0, 2, 4, 6)
    assert report.items_per_second == pytest.approx(5 / report.seconds)


def test_a_report_is_named_by_the_path_of_the_url_and_holds_no_credentials(feed: FakeFeed, importer: Make) -> None:
    report = importer(feed.with_credentials(f"u:{PASSWORD}") + PAGED, token=TOKEN).run()
    assert report.feed == "/dk/products"
    assert PASSWORD not in repr(report)
    assert TOKEN not in repr(report)
    assert report.items_per_second == 0


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10) | st.text(
    "\n\r\u2028\u2029\x85\x0b\x0c\x1c,[]{}", max_size=8
)
_items = st.lists(st.dictionaries(_texts, _texts | st.integers(-(2**53), 2**53) | st.booleans()), max_size=6)


@quick
@given(_items, st.sampled_from([b"\n", b"\r\n"]))
def test_items_are_decoded_whatever_line_breaks_their_texts_hold(items: list[dict[str, Any]], end: bytes) -> None:
    lines = [msgspec.json.encode(item) for item in items]
    assert decoded(b"".join(line + end for line in lines)) == items
    assert decoded(end.join(lines)) == items
    assert decoded(b"[" + b",".join(lines) + b"]") == items
    assert decoded(end + orjson.dumps(items, option=orjson.OPT_INDENT_2) + end) == items


@quick
@given(st.binary(max_size=30) | st.text('{}[]",:1\n ', max_size=15).map(str.encode))
def test_any_answer_is_a_list_of_objects_or_a_reported_failure(body: bytes) -> None:
    try:
        items = decoded(body)
    except ImportFailedError as failure:
        items = []
        status = failure.status
    else:
        status = 200
    assert status == 200
    assert all(type(item) is dict for item in items)


# Secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://feeds.shop.dk/dk/products", "https://feeds.shop.dk/dk/products"),
        ("https://clerk:hunter2@feeds.shop.dk/dk/products", "https://…@feeds.shop.dk/dk/products"),
        ("https://clerk@feeds.shop.dk/", "https://…@feeds.shop.dk/"),
        ("https://clerk:p%40ss@feeds.shop.dk/?limit={{limit}}", "https://…@feeds.shop.dk/?limit={{limit}}"),
        ("https://feeds.shop.dk/a@b?c=d@e", "https://feeds.shop.dk/a@b?c=d@e"),
        ("https://feeds.shop.dk:8443/dk/products", "https://feeds.shop.dk:8443/dk/products"),
    ],
)
def test_a_url_is_shown_without_its_user_and_password(url: str, shown: str) -> None:
    assert redacted(url) == shown


_CARELESS = [
    "https://clerk:x@hunter2@feeds.shop.dk/",
    "https://clerk:hunter2@x@feeds.shop.dk/",
    "https://clerk@shop.dk:hunter2@feeds.shop.dk/",
    "clerk:hunter2@feeds.shop.dk/dk/products",
    "//clerk:hunter2@feeds.shop.dk/dk/products",
    "https://clerk:12/hunter2@feeds.shop.dk/dk/products",
    "https://clerk:hun/hunter2@feeds.shop.dk/dk/products",
    "https://clerk:1?hunter2@feeds.shop.dk/dk/products",
    "https://clerk:1#hunter2@feeds.shop.dk/dk/products",
]


@pytest.mark.parametrize("url", _CARELESS)
def test_a_url_typed_carelessly_is_shown_without_its_password_too(url: str) -> None:
    assert "hunter2" not in redacted(url)


@pytest.mark.parametrize(
    "url",
    [
        "clerk:hunter2@feeds.shop.dk/dk/products",
        "ftp://clerk:hunter2@feeds.shop.dk/",
        "https://clerk:hunter2@/dk/products",
        "https://clerk:hunter2@feeds.shop.dk:port/",
        "https://clerk:hunter2/x@feeds.shop.dk/",
        "https://clerk:hunter2#x@feeds.shop.dk/",
        "https://clerk:hunter2?x@feeds.shop.dk/",
        "https://clerk:hunter2@[feeds/",
        "ftp://clerk:x@hunter2@feeds.shop.dk/",
    ],
)
def test_a_url_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Importer(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("answer", [Response(b"", 401), Response(b"", 503), Response(b"<html>"), Response(b"[1]")])
def test_no_failure_tells_a_password_or_token(feed: FakeFeed, importer: Make, answer: Response) -> None:
    feed.first = [answer]
    failure = failure_of(importer(feed.with_credentials(f"u:{PASSWORD}"), token=TOKEN, attempts=1))
    assert PASSWORD not in str(failure)
    assert TOKEN not in str(failure)


def test_no_lost_connection_tells_a_password_or_token(cutting: Callable[..., Cutting], importer: Make) -> None:
    for answer in (*CUTS, NOTHING, b"nonsense\r\n\r\n"):
        url = cutting(answer).url.replace("//", f"//u:{PASSWORD}@")
        failure = failure_of(importer(url, token=TOKEN, attempts=1))
        assert PASSWORD not in str(failure)
        assert TOKEN not in str(failure)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\x00", "…"])
def test_a_token_that_fits_no_header_is_not_told_by_the_failure(feed: FakeFeed, importer: Make, ending: str) -> None:
    """One read from a file often ends in a line break."""
    with pytest.raises((ImportFailedError, ValueError)) as caught:
        importer(feed.url, token=TOKEN + ending).run()
    assert TOKEN not in str(caught.value)
