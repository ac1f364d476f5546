"""Reading a source from a position on, in batches, by key.

Memory is bounded: a batch is at most 1000 rows or about 8 MB, by the sizes seen so far, and one that turns out much
larger is given up and read in smaller ones. A slow reader of ours holds no connection: a cursor is closed when its
lease is over and reopened after the last key. So it is when the database goes away in the middle.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from functools import partial
from itertools import takewhile
from typing import Any

import asyncpg
import msgspec

from app.catalog.ids import report_missing, report_repeated
from app.catalog.memory import BatchTooLargeError, bounded
from app.catalog.pool import LOST, Patience, Pool
from app.catalog.second_look import Around, SecondLook, partitions_of
from app.catalog.source import CHANGED, NotAsDescribedError, RelationChangedError, Source, Sources
from app.catalog.standbys import Primary, Showing
from app.catalog.statements import LATE, Part, Position, Span, edge_statement, moved_statement, parts_of, statement
from app.protocol.problems import ITEM_INVALID, KEY_CHANGED, PARAMETER_INVALID, SOURCE_FAILED, Refusal
from app.protocol.wire import Invalid, Lines
from app.settings import Database, Store
from app.status.events import Emit, ItemsInvalid, ItemsLarge, Resumed, SourceChanged, SourceFailed

CHUNK_BYTES = 8_000_000
BATCH_ROWS = 1000
_RUN_ROWS: int | None = 50_000
"""Rows of one statement of a whole feed. Asked for all, the planner would rather sort a large table than walk its
index, and nothing would come for seconds."""
_SORTED_SECONDS = 0.5
"""A first row later than this comes from a sort that no LIMIT avoids: then the rest is asked for at once."""
_STREAM_BATCHES = 2
"""Of ready items a stream takes larger chunks: each costs a statement, and a turn of the server's loop."""
_FIRST_ROWS = 1
"""Rows of the very first fetch of a source, whose sizes nobody has seen yet."""
_FEWER = 16
"""A batch that was too large is asked for again in so many parts."""


class Batch(msgspec.Struct, frozen=True):
    """Some items, and how far they reach."""

    items: list[Any] | Lines
    invalid: list[Invalid]
    position: Position
    source: Source
    beyond: bool
    """Whether the row behind the last one was read too."""
    repeated: bool = False
    """Whether an id occurs twice."""
    settled: str = LATE
    """Of an incremental walk: what is left of it that changed then or later comes by the id."""


class _MovedError(Exception):
    """The item that a part has come to lies behind its place once more, with a later moment that has settled too."""


class Reader:
    """Reads sources. One for the whole service."""

    def __init__(
        self, pool: Pool, sources: Sources, settings: Database, emit: Emit, standbys: Pool | None = None
    ) -> None:
        self._pool = pool
        self._standbys = standbys
        self._sources = sources
        self._settings = settings
        self._emit = emit
        self._row_bytes: dict[tuple[str, str], float] = {}

    @property
    def reads_standbys(self) -> bool:
        """Whether full walks are read elsewhere than deltas are."""
        return self._standbys is not None

    def _pool_for(self, store: Store, span: Span) -> Pool:
        if self._standbys is None or span.mark is None:
            return self._pool
        primary = Primary(self._pool, self._settings.resume_for.seconds, self._emit)
        return Showing(self._standbys, primary, span.mark, store.incremental_overlap.seconds, self._emit)

    def seen(self, source: Source, items: int, size: int) -> None:
        """Learn how large a source's items are: `size` bytes for `items` of them."""
        if items:
            place = (source.store, source.feed)
            # Large ones are remembered, and forgotten slowly: a batch of them must not come as a surprise.
            self._row_bytes[place] = max(size / items, self._row_bytes.get(place, 0.0) * 0.9)

    def is_small(self, source: Source, limit: int) -> bool:
        """Whether so many items are known to fit into one batch."""
        row_bytes = self._row_bytes.get((source.store, source.feed))
        return row_bytes is not None and limit * row_bytes < CHUNK_BYTES

    async def report_missing_ids(self, source: Source) -> None:
        """Say so where rows of a source have no id."""
        await report_missing(self._emit, self._pool, source)

    async def batches(self, store: Store, source: Source, span: Span, limit: int | None) -> AsyncGenerator[Batch, None]:
        """The valid items of a span in order, up to `limit` of them, however many invalid ones lie between.

        Resumes after the last item when the database goes away, for as long as resume_for. Raises Refusal.
        """
        patience = Patience(self._settings.resume_for.seconds)
        described_again = interrupted = False
        left = limit
        parts, pool = parts_of(span, all_dated=source.rendered), self._pool_for(store, span)
        while parts:
            try:
                batches = self._batches(pool, store, source, parts[0], left, interrupted=interrupted)
                async with aclosing(batches) as found:
                    async for batch, rest in found:
                        parts[0] = rest
                        patience.reset()
                        described_again = interrupted = False
                        if left is not None:
                            left -= len(batch.items)
                        yield batch
                        if left == 0:
                            if not batch.beyond:
                                await self._look_at_edge(pool, source, parts[0])
                            return
                parts.pop(0)
            except _MovedError:
                parts = [parts[0].late()]
            except BatchTooLargeError:
                self._row_bytes[source.store, source.feed] = CHUNK_BYTES * _FEWER / self._rows_per_fetch(source)
                after = parts[0].after.key if parts[0].after else None
                self._emit(
                    ItemsLarge(
                        store=source.store, feed=source.feed, after=after, rows_per_fetch=self._rows_per_fetch(source)
                    )
                )
            except CHANGED as error:
                if described_again:
                    passes = isinstance(error, asyncpg.InvalidCachedStatementError | NotAsDescribedError)
                    if not passes and pool is self._pool:
                        raise self._failed(source, parts[0], error) from error
                    # Every connection may have it prepared from before the change; each goes with its statement. And
                    # another server may be behind the one that described it.
                    await patience.wait(error)
                described_again = True
                source = await self._described_again(store, source, span, parts[0], error)
            except LOST as error:
                await patience.wait(error)
                interrupted = True
                self._emit(
                    Resumed(
                        store=store.name,
                        feed=source.feed,
                        cause=type(error).__name__,
                        attempt=patience.attempts,
                    )
                )
            except asyncpg.PostgresError as error:
                raise self._failed(source, parts[0], error) from error

    async def _described_again(
        self, store: Store, source: Source, span: Span, part: Part, error: BaseException
    ) -> Source:
        """The source as it is now. Raises Refusal where the span can't be gone on with."""
        self._emit(SourceChanged(store=store.name, feed=source.feed, cause=type(error).__name__))
        found = await self._sources.again(store, source.feed)
        if part.after is not None and (found.key != source.key or (part.dated_key and found.zoned != source.zoned)):
            # The order is another one: whatever lies before this place there would be lost.
            before, now = (one.order_of(incremental=part.dated_key) for one in (source, found))
            raise key_changed(found, before, now) from error
        if span.since is not None and not found.has_modified_at:
            raise self._failed(found, part, error) from error
        return found

    async def _batches(
        self, pool: Pool, store: Store, source: Source, part: Part, left: int | None, *, interrupted: bool
    ) -> AsyncGenerator[tuple[Batch, Part], None]:
        """The batches of a part, each with what is left of the part after it."""
        if source.rendered and part.order in ("key", "dated", "late"):
            async with aclosing(self._lines(pool, source, part, left)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        async with aclosing(self._rows(pool, store, source, part, left, interrupted=interrupted)) as found:
            async for rows in found:
                batch, part = self._sorted(store, source, rows, part, left)
                if left is not None:
                    left -= len(batch.items)
                yield batch, part

    async def _lines(
        self, pool: Pool, source: Source, part: Part, left: int | None
    ) -> AsyncGenerator[tuple[Batch, Part], None]:
        """The same where items stand ready as JSON.

        While some are sent, the next are read. No cursor is held: each statement goes on by the key. (Joined in
        PostgreSQL, so that one value arrives, they cost it 2.5 times as much: a megabyte grows by being copied.)
        """
        reading: asyncio.Task[Batch | None] | None = None
        try:
            while left is None or left > 0:
                batch = await (reading or self._line(pool, source, part, left))
                reading = None
                if batch is None:
                    return
                part = msgspec.structs.replace(part, after=batch.position, skip=0)
                if left is None or left > len(batch.items):
                    left = None if left is None else left - len(batch.items)
                    reading = asyncio.create_task(self._line(pool, source, part, left))
                else:
                    left = 0
                yield batch, part
        finally:
            if reading is not None:
                # Its connection is in use until then.
                await asyncio.wait({reading})
                if not reading.cancelled():
                    reading.exception()

    async def _line(self, pool: Pool, source: Source, part: Part, left: int | None) -> Batch | None:
        """The next items of a part in one statement; None at its end."""
        # A page is one statement, and so one state of the feed, unless it is known to be larger than a batch may be.
        known = (source.store, source.feed) in self._row_bytes
        limit = min(self._rows_per_fetch(source) if known else BATCH_ROWS, left or sys.maxsize)
        if left is None and known:
            limit *= _STREAM_BATCHES
        sql, arguments = statement(source, part, limit)
        async with pool.connection() as connection:
            rows = await bounded(connection, connection.fetch(sql, *arguments))
            if not rows:
                rows = await _confirmed(connection, source, sql, arguments)
        if not rows:
            return None
        lines = Lines.of([row[0] for row in rows])
        self.seen(source, len(rows), len(lines.body))
        return Batch(lines, [], part.position(rows), source, beyond=True, settled=part.settled)  # its ids are unique

    def _sorted(
        self, store: Store, source: Source, rows: Sequence[Any], part: Part, left: int | None
    ) -> tuple[Batch, Part]:
        """The batch of some rows, cut where the page is full, and what is left of the part after it."""
        if isinstance(rows[-1][1], int) != (source.key.family == "int8"):
            # PostgreSQL plans anew by itself when a column's type changes; a key's type is our business.
            raise RelationChangedError(f"the type of {source.relation}'s id")
        items = source.encoder.items(rows if not part.dated_key else [row[:-1] for row in rows])
        beyond = None
        if left is not None and len(items.valid) >= left:
            # Behind the last one that is sent: an invalid row there may share its id with a valid one.
            end = items.rows_of(left)
            rows, beyond = rows[:end], rows[end] if end < len(rows) else None
            items = items.first(left)
        # Of one id dated differently each is behind the other's edge: none is skipped.
        at_edge = beyond is not None and (part.by_id or beyond[-1] == rows[-1][-1])
        repeated = report_repeated(self._emit, source, rows, beyond if at_edge else None)
        if items.invalid:
            found = tuple((item.id, item.missing) for item in items.invalid)
            self._emit(ItemsInvalid(store=store.name, feed=source.feed, items=found))
            if store.feed(source.feed).strict:
                first = items.invalid[0]
                raise Refusal(
                    ITEM_INVALID,
                    f"The item with id {first.id!r} of {source.feed} lacks {', '.join(first.missing)}.",
                )
        # A batch goes on in the middle of an id as well, where rows have it by the thousand.
        repeated = repeated or part.position(rows[:1]) == part.after
        position = part.position(rows)
        batch = Batch(items.valid, items.invalid, position, source, beyond is not None, repeated, part.settled)
        return batch, _behind(source, part, rows)

    async def _look_at_edge(self, pool: Pool, source: Source, part: Part | None) -> None:
        """Report the last id where another row has it: reading goes on behind it. A failure is nobody's loss."""
        if part is None or part.after is None:
            return
        sql, arguments = edge_statement(source, part)
        with suppress(*LOST, asyncpg.PostgresError, Refusal):
            async with pool.connection() as connection:
                rows = await connection.fetch(sql, *arguments)
            if len(rows) > 1:
                report_repeated(self._emit, source, [(True, *rows[0])], (True, *rows[1]))

    async def _rows(
        self, pool: Pool, store: Store, source: Source, part: Part, left: int | None, *, interrupted: bool
    ) -> AsyncGenerator[Sequence[Any], None]:
        """The rows of a part from its position on, in non-empty lists, until there are no more.

        Whoever has enough stops asking: rows beyond `left` are read only to replace invalid ones, and one to see
        whether the last id is repeated.
        """
        limit, run = left, _RUN_ROWS
        looked_again = False
        second, was_late = SecondLook(source), False
        while True:
            await self._require_unchanged(store, source)
            await self._require_settled(pool, source, part)
            await self._look_at_edge(pool, source, part if interrupted and not looked_again else None)
            interrupted = True
            count = 0
            per_fetch = self._rows_per_fetch(source)
            # One row at a time is as large as it is: a cursor takes it without a bound.
            if limit is not None and limit <= per_fetch and per_fetch > 1:
                page, around, ended = await self._at_once(pool, source, part, limit, confirms=looked_again)
                if await second.lacks(part, page, partial(_fetched, pool), around=around):
                    continue
                if page:
                    count = len(page)
                    part = _behind(source, part, page)
                    yield page
            else:
                sql, arguments = statement(source, part, run if limit is None else limit + 1)
                seconds = self._settings.cursor_lease.seconds
                cursor = LeasedCursor(pool, source, sql, arguments, seconds, confirms=looked_again)
                # In the cursor's own transaction another server shows what it showed before.
                ask = partial(_fetched_soon, pool, cursor) if source.is_elsewhere else cursor.ask
                try:
                    while (rows := await cursor.fetch(self._rows_per_fetch(source))) is not None:
                        # What comes late was sorted first, or has waited for a lock: asked again, it tells which.
                        doubted, was_late = cursor.is_late and not was_late and second.looks, cursor.is_late
                        around = None if count else cursor.around
                        if doubted or await second.lacks(part, rows, ask, around=around, is_sorted=cursor.is_late):
                            rows = None
                            break
                        if not rows:
                            break
                        count += len(rows)
                        part = _behind(source, part, rows)
                        yield rows
                    ended = rows is not None and (count <= limit if limit is not None else run is None or count < run)
                finally:
                    await cursor.close()
                run = None if cursor.is_late else run
            if ended:
                # A function or a foreign table in a view looks at a table only after its statement has begun, and one
                # that is emptied and filled meanwhile is empty to it. So nothing ends by the first word.
                if looked_again and not count:
                    return
                looked_again = True
            if limit is not None:
                limit = max(limit - count, 0) or BATCH_ROWS

    async def _require_unchanged(self, store: Store, source: Source) -> None:
        """Raise RelationChangedError where statements would go on in another order, and none of them would fail."""
        now = await self._sources.of(store, source.feed)
        if now is not source and _way_of(now) != _way_of(source):
            raise RelationChangedError(str(source.relation))

    async def _require_settled(self, pool: Pool, source: Source, part: Part) -> None:
        """Raise _MovedError where the item at a part's place has moved behind it, and may for ever."""
        asked = moved_statement(source, part)
        if asked is None:
            return
        async with pool.connection() as connection:
            if await connection.fetchval(asked[0], *asked[1]):
                raise _MovedError

    async def _at_once(
        self, pool: Pool, source: Source, part: Part, limit: int, *, confirms: bool
    ) -> tuple[Sequence[Any], Around | None, bool]:
        """The rows of a page and one more, the partitions around them, and whether they are the last."""
        try:
            rows, around = await _fetched_around(pool, source, *statement(source, part, limit + 1), confirms=confirms)
        except asyncpg.DataError:
            # Perhaps it is the row behind the page that fails: that is the next page's matter.
            rows, around = await _fetched_around(pool, source, *statement(source, part, limit), confirms=confirms)
            return rows, around, len(rows) < limit
        return rows, around, len(rows) <= limit

    def _rows_per_fetch(self, source: Source) -> int:
        row_bytes = self._row_bytes.get((source.store, source.feed))
        if row_bytes is None:
            return _FIRST_ROWS
        return max(1, min(BATCH_ROWS, int(CHUNK_BYTES / max(row_bytes, 1))))

    def _failed(self, source: Source, part: Part, error: BaseException) -> Refusal:
        after = part.after.key if part.after else None
        no_key = (asyncpg.InvalidTextRepresentationError, asyncpg.CharacterNotInRepertoireError)
        if isinstance(error, no_key) and part.from_client:
            return Refusal(PARAMETER_INVALID, f"after={after!r}: it is not a key of this feed.")
        self._emit(
            SourceFailed(
                store=source.store,
                feed=source.feed,
                after=after,
                sqlstate=getattr(error, "sqlstate", None),
                message=str(error),
            )
        )
        behind = f"after the item with id {after!r}" if after is not None else "from the first item on"
        return Refusal(
            SOURCE_FAILED,
            f"Reading {source.feed} of {source.store} {behind} failed with SQLSTATE"
            f" {getattr(error, 'sqlstate', None)}.",
        )


def _behind(source: Source, part: Part, rows: Sequence[Any]) -> Part:
    """What is left of a part after these rows. Where the last one is invalid, another one of its id may be valid."""
    rest, last = part.behind(rows), rows[-1]
    if last[0] or rest.after == part.after:  # looked for once, those of an id are passed by
        return rest
    alike = [row[:-1] if part.dated_key else row for row in takewhile(lambda row: row[1] == last[1], reversed(rows))]
    return rest if source.encoder.items(alike).valid else msgspec.structs.replace(rest, with_ties=True)


def _way_of(source: Source) -> tuple[Any, ...]:
    """What decides how a source is read."""
    return source.key, source.zoned, source.has_modified_at, source.partitions, source.looks_late


async def _fetched_soon(pool: Pool, cursor: "LeasedCursor", sql: str, arguments: Sequence[Any]) -> Sequence[Any]:
    """The same beside a cursor, whose locks may be in the way by way of somebody who waits for them: then without."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_SORTED_SECONDS):
            return await _fetched(pool, sql, arguments)
    await cursor.close()
    return await _fetched(pool, sql, arguments)


async def _fetched(pool: Pool, sql: str, arguments: Sequence[Any]) -> Sequence[Any]:
    async with pool.connection() as connection:
        rows: Sequence[Any] = await bounded(connection, connection.fetch(sql, *arguments))
        return rows


async def _fetched_around(
    pool: Pool, source: Source, sql: str, arguments: Sequence[Any], *, confirms: bool
) -> tuple[Sequence[Any], Around | None]:
    async with pool.connection() as connection:
        before = await partitions_of(connection, source)
        # A server that lags must not prepare a policy as it was, in the text that stands for what it is.
        if confirms or source.has_policies:
            rows = await _confirmed(connection, source, sql, arguments)
        else:
            rows = await bounded(connection, connection.fetch(sql, *arguments))
        return rows, Around(before, await partitions_of(connection, source)) if source.partitions else None


async def _confirmed(connection: Any, source: Source, sql: str, arguments: Sequence[Any]) -> Sequence[Any]:
    """The rows of a statement; none only where there are none of the relation that was described.

    Asked before it and behind it, and of the server that reads: one that lags behind the description may catch up, and
    one that does not never comes back to it. Raises NotAsDescribedError.
    """
    await _require_as_described(connection, source)
    rows: Sequence[Any] = await bounded(connection, connection.fetch(sql, *arguments))
    if not rows:
        await _require_as_described(connection, source)
    return rows


async def _require_as_described(connection: Any, source: Source) -> None:
    """Raise NotAsDescribedError where the relation is not the one described: then a statement reads nothing."""
    if source.is_current != "true" and not await connection.fetchval(f"select {source.is_current}"):
        raise NotAsDescribedError(str(source.relation))


def key_changed(source: Source, before: str, now: str) -> Refusal:
    return Refusal(
        KEY_CHANGED,
        f"The walk of {source.feed} went by the id as {before}; now it is {now}.",
        fix=KEY_CHANGED.fix.replace("STORE", source.store).replace("FEED", source.feed),
    )


class LeasedCursor:
    """A server-side cursor that gives its connection back when its lease is over, whoever is slow."""

    def __init__(
        self,
        pool: Pool,
        source: Source,
        sql: str,
        arguments: Sequence[Any],
        lease_seconds: float,
        *,
        confirms: bool,
    ) -> None:
        """`confirms`: whether something ends where there are no rows, so that it is asked whether that is why."""
        self._confirms = confirms or source.has_policies
        self._pool = pool
        self._source = source
        self._sql = sql
        self._arguments = arguments
        self._lease_seconds = lease_seconds
        self._lock = asyncio.Lock()
        self._connection: Any = None
        self._cursor: Any = None
        self._lease: asyncio.Task[None] | None = None
        self._over = False
        self.first_row_seconds = 0.0
        self.around: Around | None = None
        """Of the first rows, where the source has partitions."""

    @property
    def is_late(self) -> bool:
        """Whether the first row took so long that the statement has sorted all of them first, or waited."""
        return self.first_row_seconds > _SORTED_SECONDS

    async def fetch(self, count: int) -> Sequence[Any] | None:
        """The next rows, at most `count`, fewer only at the end; None when the lease is over."""
        async with self._lock:
            if self._over:
                return None
            self._pool.keep(self._recall)
            try:
                if self._connection is None:
                    # The wait for a connection says nothing of how long the first row takes.
                    self._connection = await self._pool.take()
                started = asyncio.get_running_loop().time()
                if self._cursor is None:
                    await self._open()
                rows: Sequence[Any] = await self._fetch(count)
                if self._lease is None and self._confirms and not rows:
                    await _require_as_described(self._connection, self._source)
                if self._lease is None and self.around is not None:
                    partitions = await partitions_of(self._connection, self._source)
                    self.around = Around(self.around.before, partitions)
            except BaseException:
                await self._release(broken=True)
                raise
            if self._lease is None:
                # A statement that sorts everything first must not be started over all the time.
                self.first_row_seconds = asyncio.get_running_loop().time() - started
                seconds = max(self._lease_seconds, 4 * self.first_row_seconds)
                self._lease = asyncio.create_task(self._expire(seconds))
            if not self.is_late:
                self._pool.lend(self._recall)
            return rows

    async def ask(self, sql: str, arguments: Sequence[Any]) -> Sequence[Any]:
        """The rows of another statement: on the cursor's connection, whose locks it may need, unless that is gone."""
        async with self._lock:
            if self._connection is not None:
                rows: Sequence[Any] = await self._connection.fetch(sql, *arguments)
                return rows
        return await _fetched(self._pool, sql, arguments)

    def _recall(self) -> None:
        """Somebody waits for a connection, and whoever reads from this cursor is slow."""
        if not self._over and self._lease is not None:
            self._lease.cancel()
            self._lease = asyncio.create_task(self._expire(0))

    async def close(self) -> None:
        # The lock first: a lease that is just ending must not be cancelled in the middle.
        async with self._lock:
            if self._lease is not None:
                self._lease.cancel()
            await self._release()

    async def _fetch(self, count: int) -> Sequence[Any]:
        # A single row is as large as it is.
        rows: Sequence[Any] = await (
            bounded(self._connection, self._cursor.fetch(count)) if count > 1 else self._cursor.fetch(count)
        )
        return rows

    async def _open(self) -> None:
        # One round trip instead of the two that asyncpg's transaction() takes to begin and to say how.
        await self._connection.execute(self._pool.begin)
        await self._pool.require_current(self._connection)
        if self._source.partitions:
            self.around = Around(await partitions_of(self._connection, self._source), None)
        if self._confirms:
            await _require_as_described(self._connection, self._source)
        self._cursor = await self._connection.cursor(self._sql, *self._arguments)

    async def _expire(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        async with self._lock:
            self._over = True
            await self._release()

    async def _release(self, *, broken: bool = False) -> None:
        self._over = True
        self._pool.keep(self._recall)
        connection, self._connection, self._cursor = self._connection, None, None
        if connection is None:
            return
        clean = False
        try:
            if not broken:
                with suppress(*LOST, asyncpg.PostgresError):
                    await connection.execute("rollback")
                    clean = True
        finally:
            await self._pool.give_back(connection, broken=not clean)
