"""Pages read ahead: made while the importer still takes the page before them.

An importer asks for one page at a time, and while it works nothing else does. So once a page of a full walk is sent,
the next one is read and encoded, to be handed over if it is asked for soon. It is used only where that loses nothing:
the page starts where the bookmark says, and no bookmark was written at its offset since the one that this reading
followed. Whoever asks then began before the reading did, so that whatever was there when he began was there to be read.
"""

import asyncio
from contextlib import aclosing, suppress

import asyncpg
import msgspec

from app.catalog.pool import LOST, Pool
from app.catalog.reader import CHUNK_BYTES, Reader
from app.catalog.source import Source
from app.catalog.statements import Position, Span
from app.protocol.problems import Refusal
from app.protocol.request import Format
from app.protocol.wire import FRAMING
from app.settings import Store

KEPT_SECONDS = 2.0
"""How long a page waits to be asked for. It is that much older than it could be, and memory meanwhile."""

MOST_PAGES = 8
"""Kept at once. More importers at the same time keep the database busy anyway."""


class Place(msgspec.Struct, frozen=True):
    """Which page: of a feed, at an offset, so long, in a format."""

    store: str
    feed: str
    offset: int
    limit: int
    format: Format


class PageAhead(msgspec.Struct, frozen=True):
    """A page that is ready: its bytes without the framing, and what it holds."""

    body: bytes
    items: int
    invalid: int
    reached: Position | None
    """The last item's place; None at the end of the feed."""


class _Reading(msgspec.Struct, frozen=True):
    source: Source
    after: Position
    bookmark: int
    task: "asyncio.Task[PageAhead | None]"
    end: asyncio.TimerHandle


class Ahead:
    """Reads the next pages of full walks, as long as connections are plenty.

    Pages of fewer than `least_rows` are left to who reads them in one statement with their bookmarks.
    """

    def __init__(self, reader: Reader, pool: Pool, *, least_rows: int) -> None:
        self.least_rows = least_rows
        self._reader = reader
        self._pool = pool
        self._readings: dict[Place, _Reading] = {}
        self._ending: set[asyncio.Task[PageAhead | None]] = set()

    def read(self, store: Store, source: Source, place: Place, *, after: Position, bookmark: int) -> None:
        """Begin to read a page: the one behind `after`, whose `bookmark` has just been written."""
        self._forget(place)
        size, in_use, waiting = self._pool.usage()
        # Whoever was asked goes first: what is read ahead takes only what others leave.
        if waiting or 2 * in_use > size or len(self._readings) >= MOST_PAGES:
            return
        # Standbys are read by a walk that knows its beginning; there are more of them than of the primary.
        if self._reader.reads_standbys or not self._reader.is_small(source, 2 * place.limit):
            return
        task = asyncio.create_task(self._page(store, source, place, after))
        end = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._forget, place)
        self._readings[place] = _Reading(source, after, bookmark, task, end)

    async def take(self, source: Source, place: Place, *, after: Position, bookmark: int) -> PageAhead | None:
        """The page, where it was read ahead and nothing speaks against it; `bookmark` is the newest at its offset."""
        reading = self._readings.get(place)
        if reading is None:
            return None
        if reading.source is not source or (reading.after, reading.bookmark) != (after, bookmark):
            self._forget(place)
            return None
        del self._readings[place]
        reading.end.cancel()
        try:
            return await reading.task
        finally:
            self._let_end(reading.task)

    async def settled(self) -> None:
        """Wait until what is being read has been."""
        if tasks := [reading.task for reading in self._readings.values()]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """End what is being read."""
        for place in list(self._readings):
            self._forget(place)
        if self._ending:
            await asyncio.wait(self._ending)

    def _forget(self, place: Place) -> None:
        reading = self._readings.pop(place, None)
        if reading is not None:
            reading.end.cancel()
            self._let_end(reading.task)

    def _let_end(self, task: "asyncio.Task[PageAhead | None]") -> None:
        if not task.done():
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _page(self, store: Store, source: Source, place: Place, after: Position) -> PageAhead | None:
        """The page; None where it is too large, or where the common way should meet whatever stood in the way."""
        pieces: list[bytes] = []
        separator = FRAMING[place.format].separator
        size = items = invalid = 0
        reached: Position | None = None
        with suppress(Refusal, asyncpg.PostgresError, *LOST):
            async with aclosing(self._reader.batches(store, source, Span(after), place.limit)) as batches:
                async for batch in batches:
                    if batch.source is not source or batch.repeated:
                        return None
                    invalid += len(batch.invalid)
                    if not batch.items:
                        continue
                    if pieces:
                        pieces.append(separator)
                    items += len(batch.items)
                    pieces.append(source.encoder.encode(batch.items, place.format))
                    size += len(pieces[-1])
                    self._reader.seen(source, len(batch.items), len(pieces[-1]))
                    if size > CHUNK_BYTES:
                        return None
                    if items == place.limit:
                        reached = batch.position
            return PageAhead(b"".join(pieces), items, invalid, reached)
        return None
