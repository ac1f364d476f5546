"""The record: what the status page shows that no walk tells, right with any number of processes and replicas.

Each process adds up what happens and writes it into `clerk_feed` every few seconds, on a connection of its own: nothing
of a request waits for it, and it takes none of theirs. What can't be written stays for the next time; how much that may
be is bounded by the kinds of things that happen.
"""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncpg
import msgspec

from app.catalog.pool import LOST
from app.status import events
from app.status.events import Event

WRITE_SECONDS = 3.0
SILENT_SECONDS = 15.0
"""A process that has not written for so long is taken for gone."""

_STATEMENT_SECONDS = 10.0
_CLOSE_SECONDS = 2.0
_SWEEP_EVERY = 200
"""In writings, about ten minutes."""

_KEPT_DAYS = 7
_MOST_KINDS = 10_000
_MOST_DETAIL = 500


class Stream(msgspec.Struct, frozen=True):
    """A whole feed on its way. `started` is unix seconds."""

    store: str
    feed: str
    started: float
    items: int
    bytes: int


class Activity(msgspec.Struct, frozen=True):
    """What a process is doing at a moment."""

    tokens: int = 0
    connections: int = 0
    in_use: int = 0
    waiting: int = 0
    known_tokens_total: int = 0
    """Requests since the start whose token was known."""
    streams: tuple[Stream, ...] = ()


class _Occurrence(msgspec.Struct):
    count: int = 0
    seconds: float = 0.0
    last: float = 0.0
    detail: str = ""


_Key = tuple[str, str, str, str]
"""Kind, store, feed, code."""


class Record:
    """Reads events, and writes what they add up to."""

    def __init__(self, version: str, activity: Callable[[], Activity], connect: Callable[[], Awaitable[Any]]) -> None:
        self._version = version
        self._activity = activity
        self._connect = connect
        self._connection: Any = None
        self._id = secrets.token_hex(8)
        self._started = time.time()
        self._happened: dict[_Key, _Occurrence] = {}
        self._readers: dict[type[Event], Callable[[Any], None]] = {
            events.Refused: lambda e: self._add("refused", e.store, e.feed, e.code, e.detail),
            events.CutOff: lambda e: self._add("cut off", e.store, e.feed, e.cause, _after(e.items)),
            events.ItemsInvalid: self._invalid,
            events.IdsRepeated: lambda e: self._add("ids repeated", e.store, e.feed, "", _examples(e)),
            events.IdsMissing: lambda e: self._add("ids missing", e.store, e.feed, "", _rows(e)),
            events.DeletionsFailed: lambda e: self._add("deletions failed", e.store, e.feed, "", e.cause),
            events.DeletionsPushed: self._pushed,
            events.TokenVerified: lambda e: self._add(
                "verified", e.store, "", "good" if e.good else "rejected", "", seconds=e.seconds
            ),
            events.ClerkUnreachable: lambda e: self._add(
                "verified", e.store, "", "unreachable", e.cause, seconds=e.seconds
            ),
            events.Resumed: lambda e: self._add("resumed", e.store, e.feed, e.cause, ""),
            events.SourceFailed: lambda e: self._add(
                "source failed", e.store, e.feed, e.sqlstate or "", _where(e.after) + e.message
            ),
            events.StateFailed: lambda e: self._add("state failed", "", "", e.sqlstate or "", e.message),
            events.SourceChanged: lambda e: self._add("changed", e.store, e.feed, e.cause, ""),
            events.OffsetUnknown: lambda e: self._add("counted", e.store, e.feed, "", f"offset {e.offset}"),
            events.NoModifiedAt: lambda e: self._add("no modified_at", e.store, e.feed, "", ""),
            events.PoolExhausted: lambda e: self._add("pool exhausted", "", "", "", f"waited {e.waited:g} s"),
            events.Failed: lambda e: self._add("defect", "", "", e.error, e.path),
        }

    def __call__(self, event: Event) -> None:
        reader = self._readers.get(type(event))
        if reader is not None:
            reader(event)

    async def run(self) -> None:
        """Write every few seconds, until cancelled."""
        while True:
            for _ in range(_SWEEP_EVERY):
                await self.write()
                await asyncio.sleep(WRITE_SECONDS)
            await self.sweep()

    async def write(self) -> None:
        """Write what has added up, and that this process is there. What can't be written waits for the next time."""
        happened, self._happened = self._happened, {}
        if not await self._does(lambda connection: self._write(connection, happened)):
            for key, occurrence in happened.items():
                self._merge(key, occurrence)

    async def sweep(self) -> None:
        """Delete what is too old to be shown."""
        await self._does(lambda connection: connection.execute(_SWEEP))

    async def close(self) -> None:
        """Write what is left, and that this process is gone; not for long, where the database does not answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.write()
                gone = "delete from clerk_feed.process where id = $1"
                await self._does(lambda connection: connection.execute(gone, self._id))
        if self._connection is not None:
            self._connection.terminate()

    async def _does(self, work: Callable[[Any], Awaitable[object]]) -> bool:
        """Whether some work could be done."""
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._connect()
            await work(self._connection)
        except (asyncpg.PostgresError, *LOST):
            if self._connection is not None:
                self._connection.terminate()
                self._connection = None
            return False
        return True

    async def _write(self, connection: Any, happened: dict[_Key, _Occurrence]) -> None:
        now = self._activity()
        await connection.execute(
            _PROCESS,
            self._id,
            socket.gethostname(),
            os.getpid(),
            self._version,
            self._started,
            now.tokens,
            now.connections,
            now.in_use,
            now.waiting,
            msgspec.json.encode(now.streams).decode(),
        )
        if happened:
            # In one order, or two processes could wait for each other.
            rows = [(*key, o.count, o.seconds, o.last, o.detail) for key, o in sorted(happened.items())]
            await connection.execute(_OCCURRENCE, *map(list, zip(*rows, strict=True)))

    def _invalid(self, event: events.ItemsInvalid) -> None:
        for id, missing in event.items:
            for attribute in missing:
                self._add("invalid", event.store, event.feed, attribute, f"id {str(id)[:100]}")

    def _pushed(self, event: events.DeletionsPushed) -> None:
        if event.refused:
            self._add("deletions refused", event.store, event.feed, "", f"{event.refused} ids at once")

    def _add(self, kind: str, store: str, feed: str, code: str, detail: str, *, seconds: float = 0.0) -> None:
        new = _Occurrence(1, seconds, time.time(), _storable(detail, _MOST_DETAIL))
        self._merge((kind, store, feed, _storable(code, 100)), new)

    def _merge(self, key: _Key, new: _Occurrence) -> None:
        known = self._happened.get(key)
        if known is None:
            if len(self._happened) < _MOST_KINDS:
                self._happened[key] = new
            return
        known.count += new.count
        known.seconds += new.seconds
        if new.last >= known.last:
            known.last, known.detail = new.last, new.detail


async def connection_for_record(dsn: str) -> Any:
    """A connection for the record. Raises what asyncpg raises."""
    settings = {"application_name": "clerk-feed record", "timezone": "UTC"}
    return await asyncpg.connect(
        dsn,
        timeout=_STATEMENT_SECONDS,
        command_timeout=_STATEMENT_SECONDS,
        statement_cache_size=0,
        server_settings=settings,
    )


def _storable(text: str, most: int) -> str:
    """A text as PostgreSQL takes it: without NUL and halves of surrogates."""
    return text[:most].replace("\0", "").encode(errors="replace").decode()


def _after(items: int) -> str:
    return f"after {items} items"


def _examples(event: events.IdsRepeated) -> str:
    shown = ", ".join(str(id)[:60] for id in event.examples[:5])
    skipped = "; rows behind the edge of a page were not sent" if event.skipped else ""
    return f"{event.count} ids of a page, such as {shown}{skipped}"


def _rows(event: events.IdsMissing) -> str:
    example = f", such as the one with {event.example[:100]}" if event.example else ""
    return f"{event.count} rows of {event.relation}{example}"


def _where(after: str | None) -> str:
    return "" if after is None else f"after id {after[:60]!r}: "


_PROCESS = """
insert into clerk_feed.process as p
  (id, host, pid, version, started, tokens, connections, in_use, waiting, streams)
values ($1, $2, $3, $4, to_timestamp($5::float8), $6, $7, $8, $9, $10::text::json)
on conflict (id) do update set
  seen = clock_timestamp(), tokens = excluded.tokens, connections = excluded.connections, in_use = excluded.in_use,
  waiting = excluded.waiting, streams = excluded.streams
"""

_OCCURRENCE = """
insert into clerk_feed.occurrence as o (kind, store, feed, code, hour, count, seconds, last, detail)
select
  n.kind, n.store, n.feed, n.code, date_trunc('hour', to_timestamp(n.last)), n.count, n.seconds, to_timestamp(n.last),
  n.detail
from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::int8[], $6::float8[], $7::float8[], $8::text[])
  as n (kind, store, feed, code, count, seconds, last, detail)
on conflict (kind, store, feed, code, hour) do update set
  count = o.count + excluded.count,
  seconds = o.seconds + excluded.seconds,
  last = greatest(o.last, excluded.last),
  detail = case when excluded.last >= o.last then excluded.detail else o.detail end
"""

_SWEEP = f"""
with processes as (
  delete from clerk_feed.process where seen < now() - interval '1 day'
)
delete from clerk_feed.occurrence where hour < now() - interval '{_KEPT_DAYS} days'
"""  # noqa: S608 (a number of ours)
