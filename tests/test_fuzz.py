"""Nonsense over real sockets: whatever is sent, the service neither fails nor serves, and goes on.

FUZZ_EXAMPLES sets how much; by default it takes some seconds.
"""

import os
import socket
from contextlib import closing, suppress
from urllib.parse import urlsplit

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.conftest import Shop

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))

fuzzing = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

_PIECES = st.sampled_from(
    [
        "/",
        "//",
        "/..",
        "/.",
        "%2e%2e",
        "%2f",
        "%5c",
        "\\",
        "%00",
        "%0d%0a",
        "%ff",
        "%",
        "%u0041",
        ";",
        "?",
        "#",
        "*",
        "@",
        ":",
        "-",
        "healthz",
        "metrics",
        "status",
        "products",
        "feed.json",
        ".ndjson",
        "http://x",
        "{store}",
        "{{limit}}",
        "limit=1",
        "\xe9",
    ]
)
_TARGETS = st.lists(_PIECES | st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=8), max_size=8).map(
    "".join
)
_NAMES = st.sampled_from(
    [
        "X-Clerk-Authorization",
        "Authorization",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "CF-Connecting-IP",
        "CF-Ray",
        "Forwarded",
        "Host",
        "Accept",
        "Accept-Encoding",
        "Connection",
        "Upgrade",
        "Expect",
        "Range",
        "Cookie",
        "X-HTTP-Method-Override",
        "Content-Length",
        "Transfer-Encoding",
    ]
)
_VALUES = st.text(st.characters(max_codepoint=255, blacklist_characters="\r\n\x00"), max_size=60) | st.sampled_from(
    ["Bearer ", "Bearer x", "Basic ", "Basic Og==", "Basic ////", "close", "keep-alive", "h2c", "websocket", "0", "-1"]
)
_HEADERS = st.lists(st.tuples(_NAMES, _VALUES), max_size=5)
_METHODS = st.sampled_from(["GET", "HEAD", "POST", "OPTIONS", "TRACE", "CONNECT", "PRI", "get", "G\xc9T", "G T"])
_VERSIONS = st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTTP", ""])


def exchanged(shop: Shop, sent: bytes) -> bytes:
    """The answer to some bytes, as far as there is one."""
    parts = urlsplit(shop.service.url)
    received = b""
    # Who asks nothing more is let go after 10 s: that is not waited for.
    connected = closing(socket.create_connection((parts.hostname, parts.port), timeout=0.3))
    with connected as connection, suppress(ConnectionError, TimeoutError):
        connection.sendall(sent)
        while piece := connection.recv(65_536):
            received += piece
    return received


def statuses_of(received: bytes) -> list[int]:
    return [int(line[9:12]) for line in received.splitlines() if line.startswith(b"HTTP/1.1 ")]


def all_is_well(shop: Shop) -> None:
    """Nothing has failed, and who may read still does."""
    assert shop.get("products?limit=5&offset=0").status == 200
    assert shop.service.events("Failed") == []


@fuzzing
@given(method=_METHODS, target=_TARGETS, version=_VERSIONS, headers=_HEADERS)
@example(method="GET", target="/s0/products", version="HTTP/1.1", headers=[("X-Clerk-Authorization", "Bearer x")])
@example(method="GET", target="http://x/s0/products", version="HTTP/1.1", headers=[])
@example(method="GET", target="/-/../s0/products", version="HTTP/1.1", headers=[("Host", "")])
def _requests(shop: Shop, method: str, target: str, version: str, headers: list[tuple[str, str]]) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    sent = f"{method} {target} {version}\r\nHost: x\r\nConnection: close\r\n{lines}\r\n".encode("latin-1")
    received = exchanged(shop, sent)
    for status in statuses_of(received):
        assert status in (101, 100, 200, 400, 401, 403, 404, 405, 413, 426, 429, 431, 501, 503, 505), received
        if status == 200:
            # What is open to everyone: health and the page of problems. Never an item.
            assert b'"status":' in received or b"text/html" in received or method in ("HEAD", "OPTIONS"), received
    assert b"Chair" not in received


@fuzzing
@given(
    sent=st.binary(max_size=400)
    | st.lists(
        st.sampled_from(
            [
                b"GET ",
                b"/",
                b"\r\n",
                b"\n",
                b":",
                b"\x00",
                b"HTTP/1.1",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"Content-Length: 5",
                b"Transfer-Encoding: chunked",
                b"\xff",
                b"\x16\x03\x01\x02\x00\x01",
            ]
        ),
        max_size=12,
    ).map(b"".join)
)
def _bytes(shop: Shop, sent: bytes) -> None:
    received = exchanged(shop, sent)
    assert all(status not in {200, 500} for status in statuses_of(received)), received
    assert b"Chair" not in received


def test_no_request_line_and_no_headers_open_a_feed_or_break_the_service(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) values (1)")
    _requests(catalog)
    all_is_well(catalog)


def test_no_bytes_at_all_break_the_service(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) values (1)")
    _bytes(catalog)
    all_is_well(catalog)
