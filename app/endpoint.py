"""The main path: from an importer's request to the bytes of a feed.

Gate, request, bookmark, reader, wire, the guard at the end, response, in this order. Every refusal is a Refusal
raised on the way.
"""

import asyncio
import math
import re
import time
from contextlib import AsyncExitStack, aclosing, suppress
from datetime import UTC, datetime
from hashlib import blake2b
from typing import cast
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from app.access.client import address_of
from app.access.gate import Gate
from app.catalog.ahead import Ahead, Place
from app.catalog.bookmarks import KEPT_HOURS, Bookmark, Bookmarks, Page
from app.catalog.guard import Ending, Guard
from app.catalog.histories import Reach
from app.catalog.reader import BATCH_ROWS, CHUNK_BYTES, Reader
from app.catalog.small_pages import MOST_ROWS as SMALL_ROWS
from app.catalog.small_pages import SmallPages
from app.catalog.source import Source, Sources
from app.catalog.standbys import Mark
from app.catalog.statements import Position, Span
from app.protocol import request as protocol
from app.protocol.coding import Coding, coded, coding_of
from app.protocol.feeds import FEEDS, SINGLE_FILE, SINGLE_FILE_KEYS, FeedName
from app.protocol.problems import NOT_FOUND, OFFSET_LOST, PARAMETER_INVALID, Refusal
from app.protocol.request import FeedRequest, Format
from app.protocol.wire import FRAMING, MEDIA_TYPES
from app.response import Chunks, FeedResponse, Tally
from app.settings import Store
from app.status.events import CutOff, DeltaOfAll, Emit, FeedServed, NoModifiedAt, OffsetUnknown, WalkEnded
from app.status.record import Stream


class Catalog(msgspec.Struct, frozen=True):
    """The parts that items come from."""

    sources: Sources
    reader: Reader
    bookmarks: Bookmarks
    small_pages: SmallPages
    ahead: Ahead
    guard: Guard


class FeedEndpoint:
    """Serves `/{store}/{feed}`: one page of a walk, or the whole feed; and `/{store}/feed.json`, all feeds in one."""

    def __init__(self, gate: Gate, catalog: Catalog, send_seconds: float, emit: Emit) -> None:
        self._gate = gate
        self._catalog = catalog
        self._send_seconds = send_seconds
        self._emit = emit
        self._wholes: set[Answer | SingleFile] = set()

    def streams(self) -> tuple[Stream, ...]:
        """The whole feeds on their way now."""
        return tuple(answer.stream() for answer in self._wholes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        tally = Tally()
        async with self._gate.admitted(request) as store:
            tally.gate = tally.seconds()
            answer = await self._answer(request, store, tally)
            if answer.is_whole:
                self._wholes.add(answer)
            try:
                response = await self._response(request, answer)
                await response(scope, receive, send)
            finally:
                self._wholes.discard(answer)

    async def _answer(self, request: Request, store: Store, tally: Tally) -> "Answer | SingleFile":
        query = request.scope["query_string"].decode("latin-1")
        writes = request.method != "HEAD"
        caller = _caller(request)
        if request.path_params["feed"] == SINGLE_FILE:
            protocol.require_no_parameters(query)
            sources, absent = await self._catalog.sources.all_of(store)
            for feed in absent:
                await self._catalog.guard.check_absent(store, feed, writes=writes)
            answers = [
                Answer(store, source, _WHOLE_FILE, self._catalog, self._emit, Tally(), caller) for source in sources
            ]
            for answer in answers:
                answer.writes = writes
                answer.ends = False
            return SingleFile(store, answers, self._catalog.bookmarks, tally, created=int(time.time()))
        feed, suffix = _named(request.path_params["feed"])
        asked = time.time()
        accept = request.headers.get("accept", "")
        wanted = protocol.parse(query, suffix=suffix, accept=accept, now=asked, unit=store.modified_after_unit)
        source = await self._catalog.sources.of(store, feed)
        answer = Answer(store, source, wanted, self._catalog, self._emit, tally, caller, asked)
        answer.writes = writes
        return answer

    async def _response(self, request: Request, answer: "Answer | SingleFile") -> FeedResponse:
        coding = coding_of(request.headers.get("accept-encoding", ""))
        chunks = coded(answer.chunks(), coding) if coding else answer.chunks()

        def served() -> None:
            self._emit(answer.record(request.method, address_of(request)))
            answer.sent()

        def cut_off(cause: str) -> None:
            self._emit(answer.cut_off(request.method, address_of(request), cause))

        return await FeedResponse.begin(
            chunks,
            http_version=request.scope["http_version"],
            headers=lambda: answer.headers(request.scope["path"], coding),
            with_body=request.method != "HEAD",
            tally=answer.tally,
            send_seconds=self._send_seconds,
            served=served,
            cut_off=cut_off,
        )


class Answer:
    """One answer in the making: where it starts, what it holds, and the bookmark it leaves behind."""

    def __init__(
        self,
        store: Store,
        source: Source,
        wanted: FeedRequest,
        catalog: Catalog,
        emit: Emit,
        tally: Tally | None = None,
        caller: str = "",
        asked: float | None = None,
    ) -> None:
        """`asked`: when it was asked for, in unix seconds, as `wanted` was reckoned by; now unless given."""
        self.store = store
        self._source = source
        self._wanted = wanted
        self._catalog = catalog
        self._emit = emit
        self._caller = caller
        self._incremental = wanted.modified_after is not None
        """Which bookmarks it goes by: what was asked for. Where nothing says what changed, it is read in full."""
        self._asked = time.time() if asked is None else asked
        self._began = self._asked
        """When the walk began that it is a page of, where that is a delta."""
        self.settled = self._settled_by(self._began)
        """Of such a delta: from when on its items come by the id, as a timestamptz in text."""
        self._reach = Reach()
        """How far it must go back where it is a delta, beside what it names."""
        self._since = self._changed_since()
        self._repeated = False
        self._next: str | None = None
        self._left: tuple[Position, int] | None = None
        self._walk: Mark | None = None
        """The walk that this answer began, where standbys read it."""
        self._mark = 0.0
        self.writes = True
        self.ends = True
        """Whether its walk is over with it, where it is whole."""
        self.tally = tally or Tally()

    async def chunks(self) -> Chunks:
        """The answer's bytes. A page's bookmark is durable before its last chunk leaves here."""
        limit, framing = self._wanted.limit, FRAMING[self._wanted.format]
        self._mark = time.perf_counter()
        if (body := await self._small_page()) is not None:
            yield framing.opening + body + framing.closing
            return
        span, start, of_walk = await self._start()
        self.tally.bookmark += self._lap()
        if span is None:
            await self._turn(start, None, of_walk=of_walk)
            self.tally.bookmark += self._lap()
            yield framing.opening + framing.closing
            return
        if (body := await self._read_ahead(start)) is not None:
            yield framing.opening + body + framing.closing
            return
        pieces, size, pending = [framing.opening], 0, 0
        turning: asyncio.Task[None] | None = None
        async with (
            AsyncExitStack() as stack,
            aclosing(self._catalog.reader.batches(self.store, self._source, span, limit)) as batches,
        ):
            async for batch in batches:
                self.tally.database += self._lap()
                if size >= CHUNK_BYTES or (limit is None and pending >= BATCH_ROWS):
                    last = pieces.pop()
                    yield b"".join((*pieces, memoryview(last)[:-_HELD_BACK]))
                    pieces, size, pending = [last[-_HELD_BACK:]], 0, 0
                    self._lap()  # the client's own time
                self._source, self.settled = batch.source, batch.settled
                self.tally.invalid += len(batch.invalid)
                self._repeated = self._repeated or batch.repeated
                if not batch.items:
                    continue
                if self.tally.items:
                    pieces.append(framing.separator)
                self.tally.items += len(batch.items)
                if self.tally.items == limit:
                    # PostgreSQL makes the bookmark durable while we encode.
                    turning = asyncio.create_task(self._turn(start, batch.position, of_walk=of_walk))
                    stack.push_async_callback(_settled, turning)
                    await asyncio.sleep(0)
                body = self._source.encoder.encode(batch.items, self._wanted.format)
                self._catalog.reader.seen(self._source, len(batch.items), len(body))
                pieces.append(body)
                size += len(body)
                pending += len(batch.items)
                self.tally.encode += self._lap()
                if self._wanted.after is not None and size >= CHUNK_BYTES and turning is None:
                    # Its Link is a header, to which nothing can be added later: it leads on from here.
                    turning = asyncio.create_task(self._turn(start, batch.position, of_walk=of_walk))
                    stack.push_async_callback(_settled, turning)
                    break
            await (turning or self._turn(start, None, of_walk=of_walk))
            self.tally.bookmark += self._lap()
        pieces.append(framing.closing)
        yield b"".join(filter(None, pieces))

    def _lap(self) -> float:
        """Seconds since the last one."""
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        return seconds

    async def _small_page(self) -> bytes | None:
        """The inside of a page that one statement could find, read and turn; None for the common way."""
        wanted, source = self._wanted, self._source
        if not wanted.offset or wanted.limit is None or wanted.limit > SMALL_ROWS or not self.writes:
            return None
        reader = self._catalog.reader
        if self._incremental or reader.reads_standbys or not reader.is_small(source, wanted.limit):
            return None
        if source.looks_late:
            return None  # its rows are looked at twice before the page is turned
        found = await self._catalog.small_pages.read(source, offset=wanted.offset, limit=wanted.limit)
        if found is None:
            return None
        self.tally.database += self._lap()
        self.tally.walk, self.tally.found = found.walk, found.rank
        items = source.encoder.items(found.rows).valid
        self.tally.items = len(items)
        body = source.encoder.encode(items, wanted.format)
        self._catalog.reader.seen(source, len(items), len(body))
        self.tally.encode += self._lap()
        return body

    async def _read_ahead(self, start: Bookmark | None) -> bytes | None:
        """The inside of a page that was read before it was asked for, its bookmark durable; None where none was."""
        place = self._place(self._wanted.offset)
        if place is None or start is None or start.position is None:
            return None
        page = await self._catalog.ahead.take(self._source, place, after=start.position, bookmark=start.newest)
        if page is None:
            return None
        self.tally.database += self._lap()
        self.tally.items, self.tally.invalid = page.items, page.invalid
        await self._turn(start, page.reached, of_walk=True)
        self.tally.bookmark += self._lap()
        return page.body

    def sent(self) -> None:
        """The answer has left: read the page that is likely to be asked for next."""
        if self._left is None or self._wanted.offset is None or self._wanted.limit is None:
            return
        place = self._place(self._wanted.offset + self._wanted.limit)
        if place is not None:
            after, bookmark = self._left
            self._catalog.ahead.read(self.store, self._source, place, after=after, bookmark=bookmark)

    def _place(self, offset: int | None) -> Place | None:
        """The page at an offset, where it may be read ahead: of a full walk, and of more than a few items."""
        limit = self._wanted.limit
        if not offset or limit is None or limit < self._catalog.ahead.least_rows:
            return None
        if self._incremental or not self.writes:
            return None
        return Place(self.store.name, self._source.feed, offset, limit, self._wanted.format)

    async def _start(self) -> tuple[Span | None, Bookmark | None, bool]:
        """What to read, None at the end of a walk; the bookmark it starts from; whether it is a page of a walk."""
        wanted, source = self._wanted, self._source
        if wanted.after is not None:
            if wanted.order not in (None, source.order_digest):
                rule = "the ids have another type, order or relation since that Link was written; begin anew"
                raise Refusal(PARAMETER_INVALID, f"order={wanted.order[:60]!r}: {rule}.")
            _require_key(source, wanted.after)
            return Span(Position(wanted.after), from_client=True), None, False
        if self._since is not None and self.writes:
            self._reach = await self._catalog.bookmarks.reach(source, self._since)
            self._since = self._changed_since()
        if not wanted.offset:
            if not self._incremental and self._catalog.reader.reads_standbys and self.writes:
                # Before the first row is read: what was committed by now is what the walk must show.
                whole = wanted.limit is None
                self._walk = await self._catalog.bookmarks.begin(source, whole=whole, caller=self._caller)
                self.tally.walk = self._walk.walk
            return Span(since=self._since, settled=self.settled, mark=self._walk), None, True
        since, limit = wanted.modified_after, wanted.limit or 0
        start = await self._catalog.bookmarks.find(source, wanted.offset, limit, since=since)
        if start is None:
            if self._since is None:
                await self._catalog.guard.require_none_held_back(self.store, source)
            self._emit(OffsetUnknown(store=source.store, feed=source.feed, offset=wanted.offset))
            self.tally.found = "counted"
            return Span(since=self._since, skip=wanted.offset), None, False
        self.tally.walk, self.tally.found = start.walk, start.rank
        if start.position is None:
            return None, start, True
        # Where that was not noted: begun too early, it only sends more.
        self._began = self._asked - _MOST_SECONDS if start.began is None else start.began
        self.settled = start.settled or self._settled_by(self._began)
        # "Hours back" are reckoned from each page's own now: what was to come when the delta began still is.
        since = self._changed_since(self._asked - self._began)
        mark = None
        if not self._incremental and self._catalog.reader.reads_standbys:
            mark = await self._catalog.bookmarks.newest_walk(source)
        return Span(start.position, since, self.settled, mark=mark), start, True

    async def _turn(self, start: Bookmark | None, reached: Position | None, *, of_walk: bool) -> None:
        """Guard the end of a walk, leave the bookmark of the next page, and remember the key for the Link header."""
        wanted, tally = self._wanted, self.tally
        if wanted.after is not None:
            self._next = reached.key if reached else None
            if reached is None:
                await self._catalog.guard.check_now(self.store, self._source, writes=self.writes)
            return
        if not of_walk:
            if reached is None:
                # Whoever steps farther than his pages are long, or lost his bookmarks, would take it for the end.
                found = f"No more than {tally.items}" if tally.items else "Nothing"
                raise Refusal(
                    OFFSET_LOST, f"{found} of {self.feed} of {self.store.name} lies at offset {wanted.offset}."
                )
            return
        offset, incremental = wanted.offset or 0, self._incremental
        again = start is not None and start.position is None
        items = offset + tally.items
        if reached is None and self._since is None and again:
            # The end of an earlier walk must not stand in for the end of one that is held back.
            await self._catalog.guard.require_none_held_back(self.store, self._source)
        elif reached is None and self._since is None:
            ambiguous = start is not None and start.ambiguous
            repeated = self._repeated or (start is not None and start.repeated)
            holds = None if repeated or start is None or start.holds is None else start.holds + tally.items
            in_parts = offset > 0 or wanted.limit is None
            ending = Ending(tally.walk, items, tally.invalid, ambiguous, repeated, in_parts=in_parts, holds=holds)
            items = await self._catalog.guard.check(self.store, self._source, ending, writes=self.writes)
        if reached is None and start is not None and not start.led:
            # As above, but an earlier sync has left bookmarks at these offsets, and perhaps its end.
            detail = f"{self.feed} of {self.store.name} ends here, and no page of this sync led to offset {offset}."
            raise Refusal(OFFSET_LOST, detail)
        if self.writes:
            final_items = items if reached is None and not again else None
            page = Page(
                offset,
                wanted.limit or 0,
                tally.items,
                tally.invalid,
                reached,
                final_items,
                self._caller,
                tally.seconds(),
                self._since is not None,
                self._repeated,
                wanted.modified_after,
                self._began if incremental else None,
                self.settled if incremental else None,
            )
            await self._record(start, page, incremental=incremental)
        if self._since is not None and not again and self.writes:
            ends = reached is None
            await self._catalog.guard.learn_growth(self.store, self._source, ends=ends)
        if reached is None and not again and self.writes:
            await self._ended(items, incremental=self._since is not None)
            if self._since is None:
                await self._catalog.reader.report_missing_ids(self._source)

    async def _ended(self, items: int, *, incremental: bool) -> None:
        """Tell of a walk that came to its end. What it came to is asked of its row: other processes had pages too."""
        row = None
        if self.tally.walk is not None:
            with suppress(Refusal):  # the page itself is made, and needs no more of the database
                row = await self._catalog.bookmarks.walk(self.tally.walk)
        if row is None:
            return
        self._emit(
            WalkEnded(
                store=self.store.name,
                feed=self.feed,
                walk=self.tally.walk,
                incremental=incremental,
                whole=row.whole,
                items=items,
                sent=row.items,
                invalid=row.invalid,
                pages=row.pages,
                seconds=row.seconds,
            )
        )

    async def _record(self, start: Bookmark | None, page: Page, *, incremental: bool) -> None:
        source = self._source
        whole = self._wanted.limit is None
        if whole or (start is None and not page.items):
            self.tally.walk = await self._catalog.bookmarks.ended_at_once(
                source, page, whole=whole, begun=self._walk, ends=self.ends
            )
        elif start is not None and not page.items:
            await self._catalog.bookmarks.finish(source, page, incremental=incremental, start=start)
        else:
            turned = await self._catalog.bookmarks.turn(
                source, page, incremental=incremental, start=start, begun=self._walk
            )
            self.tally.walk, bookmark = turned
            self._left = (page.reached, bookmark) if page.reached else None

    def _settled_by(self, began: float) -> str:
        """Up to when items had changed for good when a delta began: nothing is committed with an older moment."""
        moment = max(began - self.store.incremental_overlap.seconds, 0.0)
        return datetime.fromtimestamp(moment, UTC).isoformat()

    def _changed_since(self, seconds_ago: float = 0.0) -> float | None:
        """From when on items count as changed, in unix seconds; None for a full read. It was asked so long ago.

        Moved back by the store's overlap: a transaction that was open across the last sync commits with an older
        timestamp.
        """
        since = self._wanted.modified_after
        if since is None:
            return None
        if not self._source.has_modified_at:
            if not self._wanted.offset:
                self._emit(NoModifiedAt(store=self.store.name, feed=self._source.feed))
            return None
        # Clocks differ, and are set.
        seconds_ago = min(max(seconds_ago, 0.0), _MOST_SECONDS)
        # It is kept as it was asked for: the pages of a delta are known by it.
        since = min(since, self._asked) - self.store.incremental_overlap.seconds - seconds_ago
        # Each refresh knows its own history.
        if since <= self._reach.history and not self._source.rendered:
            if not self._wanted.offset:
                self._emit(DeltaOfAll(store=self.store.name, feed=self._source.feed, seen=self._reach.history))
            return -math.inf
        # What a full walk that ended since may have missed; see the overlap.
        since = min(since, self._reach.walk - self.store.incremental_overlap.seconds)
        until = self._source.rendered_until
        if until is not None and since <= until.left_behind:
            return min(since, max(until.last_before(since) - self.store.incremental_overlap.seconds, 0.0))
        return since

    @property
    def is_whole(self) -> bool:
        return self._wanted.limit is None

    def stream(self) -> Stream:
        """How far it is, where it is a whole feed."""
        return _stream(self.store, self.name, self.tally)

    @property
    def feed(self) -> FeedName:
        return self._source.feed

    @property
    def name(self) -> str:
        return self.feed

    def headers(self, path: str, coding: Coding | None) -> list[tuple[bytes, bytes]]:
        """The headers of the answer, but for its length."""
        headers = _headers(self._wanted.format, coding, self.tally)
        if self._next is not None:
            after = f"after={quote(self._next, safe='')}&order={self._source.order_digest}"
            target = f"{quote(path)}?limit={self._wanted.limit}&{after}"
            headers.append((b"link", f'<{target}>; rel="next"'.encode()))
        return headers

    def record(self, method: str, address: str) -> FeedServed:
        incremental = self._since is not None
        return _served(self.store, self.feed, self._wanted, self.tally, method, address, incremental=incremental)

    def cut_off(self, method: str, address: str, cause: str) -> CutOff:
        return _cut_off(self.store, self.feed, self._wanted, self.tally, method, address, cause)


class SingleFile:
    """The older feed: one JSON object with a list for every feed the store has.

    Each feed is read, guarded and recorded as a walk of its own; one that may not end cuts the whole off.
    """

    name = SINGLE_FILE
    is_whole = True

    def __init__(self, store: Store, answers: list[Answer], bookmarks: Bookmarks, tally: Tally, created: int) -> None:
        self.store = store
        self._bookmarks = bookmarks
        self.tally = tally
        self._answers = answers
        self._created = created

    def stream(self) -> Stream:
        """How far it is."""
        return _stream(self.store, self.name, self._add_up())

    async def chunks(self) -> Chunks:
        """The object's bytes. What is small is sent in one piece, with its length."""
        pieces, size = [b"{"], 0
        for answer in self._answers:
            pieces.append(b'"%s":' % SINGLE_FILE_KEYS[answer.feed].encode())
            async with aclosing(answer.chunks()) as chunks:
                async for chunk in chunks:
                    pieces.append(chunk)
                    size += len(chunk)
                    if size >= _PIECE_BYTES:
                        yield b"".join(pieces)
                        pieces, size = [], 0
            pieces.append(b",")
        # Until now each of its feeds was under way: what was deleted at Clerk meanwhile may be in it. And none comes to
        # its end where another one is refused.
        walks = [answer.tally.walk for answer in self._answers if answer.tally.walk is not None]
        if walks:
            await self._bookmarks.end(walks)
        pieces.append(b'"created":%d,"strict":false}' % self._created)
        yield b"".join(pieces)

    def sent(self) -> None:
        """The answer has left, and nothing is likely to be asked for next."""

    def headers(self, path: str, coding: Coding | None) -> list[tuple[bytes, bytes]]:
        self._add_up()
        return _headers("json", coding, self.tally)

    def record(self, method: str, address: str) -> FeedServed:
        return _served(self.store, self.name, _WHOLE_FILE, self._add_up(), method, address)

    def cut_off(self, method: str, address: str, cause: str) -> CutOff:
        return _cut_off(self.store, self.name, _WHOLE_FILE, self._add_up(), method, address, cause)

    def _add_up(self) -> Tally:
        for name in ("items", "invalid", "bookmark", "database", "encode"):
            setattr(self.tally, name, sum(getattr(answer.tally, name) for answer in self._answers))
        return self.tally


_PIECE_BYTES = 1_000_000
_HELD_BACK = len(b"}\n")
"""Bytes of a chunk that go out with the next one. A proxy that speaks HTTP/1.0 to the proxy before us takes a cut for
the end; so whatever is cut off ends within an item, and can't be read."""
_WHOLE_FILE = FeedRequest(format="json")
_MOST_SECONDS = KEPT_HOURS * 3600
"""The age of a delta whose bookmarks are still there."""


def _stream(store: Store, feed: str, tally: Tally) -> Stream:
    return Stream(store.name, feed, time.time() - tally.seconds(), tally.items, tally.bytes)


def _served(
    store: Store, feed: str, wanted: FeedRequest, tally: Tally, method: str, address: str, *, incremental: bool = False
) -> FeedServed:
    return FeedServed(
        store=store.name,
        feed=feed,
        method=method,
        address=address,
        limit=wanted.limit,
        offset=wanted.offset,
        incremental=incremental,
        walk=tally.walk,
        items=tally.items,
        invalid=tally.invalid,
        bytes=tally.bytes,
        seconds=tally.seconds(),
        gate=tally.gate,
        bookmark=tally.bookmark,
        database=tally.database,
        encode=tally.encode,
        found=tally.found,
    )


def _cut_off(
    store: Store, feed: str, wanted: FeedRequest, tally: Tally, method: str, address: str, cause: str
) -> CutOff:
    return CutOff(
        store=store.name,
        feed=feed,
        method=method,
        address=address,
        limit=wanted.limit,
        offset=wanted.offset,
        items=tally.items,
        bytes=tally.bytes,
        seconds=tally.seconds(),
        cause=cause,
    )


def _headers(format: Format, coding: Coding | None, tally: Tally) -> list[tuple[bytes, bytes]]:
    """The headers of every answer."""
    # A cache-everything rule on the way would hand customers to anyone.
    headers = [(b"content-type", MEDIA_TYPES[format]), (b"cache-control", b"no-store")]
    headers.append((b"vary", b"accept, accept-encoding"))
    # Of a stream it is what was known when it began.
    headers.append((b"server-timing", tally.timing().encode()))
    if coding is not None:
        headers.append((b"content-encoding", coding.encode()))
    return headers


def _caller(request: Request) -> str:
    """A digest of the caller's address, for the record of a walk."""
    return blake2b(address_of(request).encode(), digest_size=8).hexdigest()


async def _settled(task: "asyncio.Task[None]") -> None:
    """See a task to its end, whatever it is: its connection is in use until then."""
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # looked at, so that asyncio does not complain where nobody waited for it


def _named(name: str) -> tuple[FeedName, Format | None]:
    """The feed and the format that the last part of a path names."""
    feed, _, suffix = name.partition(".")
    for known in FEEDS:
        if feed == known and (suffix in ("json", "ndjson") or name == known):
            return known, cast("Format", suffix) if suffix else None
    raise Refusal(NOT_FOUND, f"There is no feed {name[:63]!r}; the feeds are {', '.join(FEEDS)}, and {SINGLE_FILE}.")


def _require_key(source: Source, after: str) -> None:
    if source.key.family != "int8":
        return
    if not re.fullmatch(r"-?[0-9]{1,19}", after, re.ASCII) or not -(2**63) <= int(after) < 2**63:
        raise Refusal(PARAMETER_INVALID, f"after={after[:60]!r}: the ids of this feed are whole numbers of 64 bits.")
