"""Compressed answers: the same bytes, readable as they come, and visibly cut off when they are."""

import gzip
import http.client
import json
import zlib

import pytest
from backports import zstd

from app.protocol.coding import coding_of
from tests.conftest import TOKEN, Shop


@pytest.fixture
def full(catalog: Shop) -> Shop:
    catalog.execute(
        "insert into {s}.products (id, name) select g, 'Stol nr. ' || g || ' æøå' from generate_series(1, 3500) g"
    )
    return catalog


def uncompressed(body: bytes, coding: str) -> bytes:
    return gzip.decompress(body) if coding == "gzip" else zstd.decompress(body)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize(
    "path", ["products", "products.json", "products?limit=1000&offset=0", "products?limit=5&offset=2000"]
)
def test_a_compressed_answer_holds_the_same_bytes(full: Shop, coding: str, path: str) -> None:
    plain = full.get(path)
    answer = full.get(path, headers={"Accept-Encoding": coding})
    assert answer.headers["Content-Encoding"] == coding
    assert "accept-encoding" in answer.headers["Vary"]
    assert uncompressed(answer.body, coding) == plain.body
    if "limit=1000" in path:
        assert len(answer.body) < len(plain.body) / 3
        assert answer.headers["Content-Length"] == str(len(answer.body))


def test_what_was_sent_can_be_read_before_the_end(full: Shop) -> None:
    connection = http.client.HTTPConnection(full.service.url.removeprefix("http://"))
    headers = {"X-Clerk-Authorization": f"Bearer {TOKEN}", "Accept-Encoding": "gzip"}
    connection.request("GET", f"/{full.name}/products", headers=headers)
    response = connection.getresponse()
    # One chunk of the transfer is one flushed piece of the stream: lines come out of the first, all but the end of one.
    size = int(response.fp.readline(), 16)
    first = zlib.decompressobj(31).decompress(response.fp.read(size))
    connection.close()
    *lines, last = first.split(b"\n")
    assert len(lines) >= 1
    assert json.loads(last + b"}")


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("", None),
        ("identity", None),
        ("br", None),
        ("gzip", "gzip"),
        ("gzip, deflate", "gzip"),
        ("gzip, br, zstd", "zstd"),
        ("GZIP;q=1.0, zstd;q=0.5", "gzip"),
        ("zstd;q=0, gzip;q=0", None),
        ("*", "zstd"),
        ("*;q=0.1, zstd;q=0", "gzip"),
        ("gzip;q=nonsense", "gzip"),
    ],
)
def test_the_coding_is_the_one_preferred(header: str, coding: str | None) -> None:
    assert coding_of(header) == coding
