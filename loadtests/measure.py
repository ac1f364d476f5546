"""What is measured, as one client sees it: the importer of app/clerk over one connection, one request at a time."""

import http.client
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from itertools import islice
from statistics import median
from urllib.parse import urlsplit

import msgspec
from isal import isal_zlib

from app.clerk.importer import Importer, ImportFailedError, Page
from app.protocol.coding import Coding
from loadtests.memory import Memory
from loadtests.processes import TOKEN, Target

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CODINGS: tuple[Coding, ...] = ("gzip", "zstd")

PAGE_ITEMS = 1000
SMALL_ITEMS = 25
_ENDS = 20
"""So many first and last pages of a walk are compared: one alone is luck."""
_AT_A_POINT = 3
_BLOCK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 120.0


class Pages(msgspec.Struct, frozen=True):
    """A run of pages from one offset on."""

    offset: int
    pages: int
    items: int
    megabytes: float
    seconds: float
    """From the first request to the last item decoded: the service and the importer take turns."""
    answer_seconds: float
    """Of these the time from a request to its answer's last byte: the service alone."""
    p50_ms: float
    p99_ms: float

    @property
    def items_per_second(self) -> float:
        return self.items / self.seconds if self.seconds else 0.0

    @property
    def answered_items_per_second(self) -> float:
        return self.items / self.answer_seconds if self.answer_seconds else 0.0

    @property
    def megabytes_per_second(self) -> float:
        return self.megabytes / self.seconds if self.seconds else 0.0

    @property
    def pages_per_second(self) -> float:
        return self.pages / self.seconds if self.seconds else 0.0


class Point(msgspec.Struct, frozen=True):
    """Pages at an offset: the median of their milliseconds."""

    offset: int
    ms: float


class Walk(msgspec.Struct, frozen=True):
    """All items, page by page."""

    whole: Pages
    start: Pages
    """Its first pages, as many as the baseline is asked for."""
    far: Pages
    """Its pages from 0.9 N on, as many as of the start."""
    complete: bool
    first_page_ms: float
    last_page_ms: float
    first_pages_ms: float
    """Median of the first 20."""
    last_pages_ms: float
    """Median of the last 20."""
    points: tuple[Point, ...]
    """Along the walk."""
    prefixes: tuple[tuple[int, float], ...]
    """How many items had come after so many seconds: what a walk of a smaller catalog takes."""
    before: Memory
    after: Memory


class Baseline(msgspec.Struct, frozen=True):
    """Some pages of the baseline; all of them would take hours."""

    start: Pages
    far: Pages
    same_items: bool
    """Whether its first page held what clerk-feed's did."""
    points: tuple[Point, ...]
    prefixes: tuple[tuple[int, float], ...]
    """Of the pages from offset 0 on."""
    before: Memory
    after: Memory


class Stream(msgspec.Struct, frozen=True):
    """All items in one answer, read without being decoded; `megabytes` are those on the wire."""

    coding: Coding | None
    items: int
    megabytes: float
    seconds: float
    complete: bool
    before: Memory
    after: Memory

    @property
    def items_per_second(self) -> float:
        return self.items / self.seconds if self.seconds else 0.0

    @property
    def megabytes_per_second(self) -> float:
        return self.megabytes / self.seconds if self.seconds else 0.0

    @property
    def growth(self) -> float:
        """MB by which the peak rose."""
        return self.after.peak - self.before.peak


class Small(msgspec.Struct, frozen=True):
    """Pages of 25 items over one connection."""

    importer: Pages
    bare: Pages
    """The same by a client that does next to nothing: a socket, no JSON."""


class _Timed(msgspec.Struct, frozen=True):
    """A page as it was timed: until its last byte, and until it was decoded too."""

    offset: int
    items: int
    bytes: int
    answer_seconds: float
    seconds: float


def walk(target: Target, items: int, compared_pages: int, seconds: float) -> Walk:
    """All items of clerk-feed, which must come once each and in order, or as many as the time allows."""
    with closing(_importer(target)) as importer:
        _warm_up(importer)
        before = target.memory()
        timed = list(_timed(importer.pages(), seconds))
        after = target.memory()
    full = [page for page in timed if page.items]
    times = [page.answer_seconds * 1000 for page in full]
    there = sum(page.items for page in full)
    complete = not timed[-1].items
    if complete and there != items:
        raise ImportFailedError(f"the walk brought {there} items of {items}")
    far = far_offset(items)
    return Walk(
        whole=summed(timed, 0),
        start=summed(full[:compared_pages], 0),
        far=summed([page for page in full if page.offset >= far][:compared_pages], far),
        complete=complete,
        first_page_ms=times[0],
        last_page_ms=times[-1],
        first_pages_ms=median(times[:_ENDS]),
        last_pages_ms=median(times[-_ENDS:]),
        points=_points([[page for page in full if page.offset >= offset][:_AT_A_POINT] for offset in _tenths(items)]),
        prefixes=_prefixes(full),
        before=before,
        after=after,
    )


def baseline(target: Target, reference: Page, items: int, pages: int, far_pages: int, seconds: float) -> Baseline:
    """Some pages of the baseline from its start, and some from 0.9 N on."""
    with closing(_importer(target)) as importer:
        first = _warm_up(importer)
        before = target.memory()
        far = far_offset(items)
        start = list(_timed(_pages(importer, 0, pages), seconds))
        behind = list(_timed(_pages(importer, far, far_pages), seconds))
        began = time.perf_counter()
        along = [
            list(_timed(_pages(importer, offset, _AT_A_POINT), seconds))
            for offset in _tenths(items)
            if time.perf_counter() - began < seconds
        ]
    return Baseline(
        start=summed(start, 0),
        far=summed(behind, far),
        same_items=list(map(_comparable, first.items)) == list(map(_comparable, reference.items)),
        points=_points(along),
        prefixes=_prefixes(start),
        before=before,
        after=target.memory(),
    )


def first_page(target: Target) -> Page:
    with closing(_importer(target)) as importer:
        return importer.page(0)


def stream(target: Target, items: int, seconds: float, coding: Coding | None = None) -> Stream:
    """The whole feed in one answer. A gigabyte of JSON decoded at once would measure this process, so lines are
    counted instead."""
    decompress = _decompressor(coding)
    with closing(_importer(target)) as importer:
        _warm_up(importer)
    parts = urlsplit(target.feed(paged=False))
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_SECONDS)
    with closing(connection):
        before = target.memory()
        started = time.perf_counter()
        connection.request("GET", parts.path, headers={**_headers(), "Accept-Encoding": coding or "identity"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ImportFailedError(f"HTTP status {answer.status}", status=answer.status, body=answer.read())
        block = bytearray(_BLOCK_BYTES)
        lines = size = 0
        complete = False
        while time.perf_counter() - started < seconds:
            count = answer.readinto(block)
            if not count:
                complete = True
                break
            lines += decompress(memoryview(block)[:count]).count(b"\n")
            size += count
        taken = time.perf_counter() - started
        after = target.memory()
    if complete and lines != items:
        raise ImportFailedError(f"the stream brought {lines} items of {items}")
    return Stream(coding, lines, size / 1e6, taken, complete, before, after)


def _decompressor(coding: Coding | None) -> Callable[[memoryview], bytes]:
    if coding == "gzip":
        gzip = isal_zlib.decompressobj(31)
        return gzip.decompress
    if coding == "zstd":
        zstandard = zstd.ZstdDecompressor()
        return zstandard.decompress
    return bytes


def small(target: Target, pages: int, seconds: float) -> Small:
    """Small pages by the importer and by the bare client, each from offset 0 on, and at the end from there again."""
    warm = max(1, pages // 10)
    with closing(_importer(target, SMALL_ITEMS)) as importer:
        list(islice(_around(importer), warm))
        importer_pages = list(_timed(islice(_around(importer), pages), seconds))
    with closing(BareClient(target.feed(), SMALL_ITEMS)) as bare:
        list(islice(bare.around(), warm))
        started = time.perf_counter()
        bare_pages = []
        for page in islice(bare.around(), pages):
            bare_pages.append(page)
            if time.perf_counter() - started > seconds:
                break
    return Small(summed(importer_pages, 0), summed(bare_pages, 0))


class Start(msgspec.Struct, frozen=True):
    """From the start of the process to the first answer that says it is ready, in seconds."""

    best: float
    median: float
    times: int


def start(launch: Callable[[], AbstractContextManager[Target]], times: int) -> Start:
    """Starts against a database that runs. One before them fills caches, Python's compiled modules among them."""
    taken = []
    for _ in range(times + 1):
        began = time.perf_counter()
        with launch() as target:
            while not _ready(target):
                time.sleep(0.005)
            taken.append(time.perf_counter() - began)
    return Start(min(taken[1:]), median(taken[1:]), times)


def _ready(target: Target) -> bool:
    with closing(http.client.HTTPConnection(urlsplit(target.url).netloc, timeout=_TIMEOUT_SECONDS)) as connection:
        connection.request("GET", "/-/readyz")
        return connection.getresponse().status == 200


def _tenths(items: int) -> list[int]:
    """Offsets from the beginning to nine tenths, each at the beginning of a page."""
    return sorted({items * tenth // 10 // PAGE_ITEMS * PAGE_ITEMS for tenth in range(10)})


def _points(pages: Sequence[Sequence[_Timed]]) -> tuple[Point, ...]:
    return tuple(
        Point(some[0].offset, median(page.answer_seconds * 1000 for page in some if page.items))
        for some in pages
        if some and some[0].items
    )


def _prefixes(pages: Sequence[_Timed]) -> tuple[tuple[int, float], ...]:
    found, items, seconds = [], 0, 0.0
    for page in pages:
        items, seconds = items + page.items, seconds + page.seconds
        found.append((items, seconds))
    return tuple(found)


def far_offset(items: int) -> int:
    """Where nine tenths of the items lie behind, at the beginning of a page."""
    return items * 9 // 10 // PAGE_ITEMS * PAGE_ITEMS


class BareClient:
    """A walk over one socket: a request is one send, an answer is its length and as many bytes."""

    def __init__(self, url: str, limit: int) -> None:
        parts = urlsplit(url)
        self._limit = limit
        self._address = (parts.hostname, parts.port)
        self._socket = self._connected()
        headers = {"Host": parts.netloc, **_headers()}
        self._rest = " HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        self._target = parts.path
        # The answer as a whole lies in it.
        self._buffer = bytearray(4 * _BLOCK_BYTES)

    def walk(self) -> Iterator[_Timed]:
        """Pages of one walk, the empty one at its end included."""
        offset = 0
        while True:
            page = self.page(offset)
            yield page
            if not page.items:
                return
            offset += self._limit

    def around(self) -> Iterator[_Timed]:
        """Pages of walk after walk; the empty ones at their ends are pages too."""
        offset = 0
        while True:
            page = self.page(offset)
            yield page
            offset = offset + self._limit if page.items else 0

    def page(self, offset: int) -> _Timed:
        request = f"GET {self._target}?limit={self._limit}&offset={offset}{self._rest}".encode()
        started = time.perf_counter()
        self._socket.sendall(request)
        buffer, size, end = self._buffer, 0, -1
        while end < 0:
            size += self._received(size)
            end = buffer.find(b"\r\n\r\n", 0, size)
        head = bytes(buffer[:end]).lower()
        if not head.startswith(b"http/1.1 200 "):
            raise ImportFailedError("no page", body=bytes(buffer[:size]))
        length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        while size < end + 4 + length:
            size += self._received(size)
        if b"\r\nconnection: close" in head:  # a server may close after so many requests
            self._socket.close()
            self._socket = self._connected()
        seconds = time.perf_counter() - started
        return _Timed(offset, buffer.count(b"\n", end + 4, size), length, seconds, seconds)

    def _connected(self) -> socket.socket:
        connected = socket.create_connection(self._address, _TIMEOUT_SECONDS)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected

    def _received(self, at: int) -> int:
        with memoryview(self._buffer) as view:
            count = self._socket.recv_into(view[at:])
        if not count:
            raise ImportFailedError("the answer was cut off before its end")
        return count

    def close(self) -> None:
        self._socket.close()


def _importer(target: Target, limit: int = PAGE_ITEMS) -> Importer:
    return Importer(target.feed(), token=TOKEN, limit=limit, timeout_seconds=_TIMEOUT_SECONDS, attempts=1)


def _headers() -> dict[str, str]:
    return {"X-Clerk-Authorization": f"Bearer {TOKEN}", "Accept": "application/x-ndjson"}


def _warm_up(importer: Importer) -> Page:
    """The first page, twice: a token verified, a plan made, code and data in their caches."""
    importer.page(0)
    return importer.page(0)


def _pages(importer: Importer, offset: int, count: int) -> Iterator[Page]:
    for number in range(count):
        page = importer.page(offset + number * importer.limit, number)
        if not page.ids:
            return
        yield page


def _around(importer: Importer) -> Iterator[Page]:
    while True:
        yield from importer.pages()


def _timed(pages: Iterator[Page], seconds: float) -> Iterator[_Timed]:
    """Times of pages, whose items must follow each other by id, until they or the time end."""
    began = last = time.perf_counter()
    for page in pages:
        now = time.perf_counter()
        expected = range(page.offset + 1, page.offset + len(page.ids) + 1)
        if page.ids != list(expected):
            raise ImportFailedError(f"the page at offset {page.offset} holds other items than those it should")
        yield _Timed(page.offset, len(page.ids), len(page.body), page.seconds, now - last)
        last = time.perf_counter()
        if last - began > seconds:
            return


def summed(pages: Sequence[_Timed], offset: int) -> Pages:
    times = sorted(page.answer_seconds * 1000 for page in pages if page.items)
    return Pages(
        offset=offset,
        pages=len(pages),
        items=sum(page.items for page in pages),
        megabytes=sum(page.bytes for page in pages) / 1e6,
        seconds=sum(page.seconds for page in pages),
        answer_seconds=sum(page.answer_seconds for page in pages),
        p50_ms=median(times) if times else 0.0,
        p99_ms=times[min(len(times) - 1, len(times) * 99 // 100)] if times else 0.0,
    )


def middle(times: Sequence[float]) -> float:
    return median(times) if times else 0.0


def _comparable(item: dict[str, object]) -> dict[str, object]:
    """An item with its fractions rounded and without nulls.

    A baseline's driver widens a real 4.8 to 4.800000190734863, and Datasette serves what is NULL as null.
    """
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in item.items()
        if value is not None
    }
