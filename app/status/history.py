"""What the tables of `clerk_feed` tell of walks, refreshes and processes, for the status page and the metrics.

Everything is read from the database, so any process shows the same, however many serve the feeds. Times are unix
seconds.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from app.status.record import SILENT_SECONDS, Stream

GIVEN_UP_SECONDS = 3600.0
"""A walk that nobody went on with for so long is taken for given up."""

_STARTED_OVER_SECONDS = 10.0

Outcome = Literal["running", "finished", "held back", "given up"]


class Walk(msgspec.Struct, frozen=True):
    """One walk, or a whole feed in one answer. `items` counts those sent twice too."""

    id: int
    store: str
    feed: str
    incremental: bool
    whole: bool
    started: float
    last_page: float
    pages: int
    items: int
    invalid: int
    ended: str | None
    final_items: int | None

    @property
    def seconds(self) -> float:
        return self.last_page - self.started

    def outcome(self, now: float, *, newest: bool = True) -> Outcome:
        """What became of it. `newest`: none of its feed and kind had a page after it.

        Pages of a sync that was started over may belong to the walk before, see Bookmarks: then that one goes on.
        """
        if self.ended is not None:
            return "held back" if self.ended == "held back" else "finished"
        patience = GIVEN_UP_SECONDS if newest else _STARTED_OVER_SECONDS
        return "running" if now - self.last_page < patience else "given up"


class Process(msgspec.Struct, frozen=True):
    """A process that serves feeds."""

    host: str
    pid: int
    version: str
    started: float
    seen: float
    tokens: int
    connections: int
    in_use: int
    waiting: int
    streams: tuple[Stream, ...]


class Occurrence(msgspec.Struct, frozen=True):
    """What happened, added up over the last day."""

    kind: str
    store: str
    feed: str
    code: str
    count: int
    seconds: float
    last: float
    detail: str


class Rendered(msgspec.Struct, frozen=True):
    """How a rendered feed stands."""

    store: str
    feed: str
    served: bool
    items: int
    invalid: int
    refreshed: float | None
    took: float | None
    added: int | None
    changed: int | None
    vanished: int | None
    last_outcome: str | None
    last_tried: float | None
    last_detail: str | None
    deletions_waiting: int
    last_items: int | None


class InvalidItems(msgspec.Struct, frozen=True):
    """Invalid rows of a rendered feed, by attribute and reason, with a few ids."""

    store: str
    feed: str
    attribute: str
    reason: str
    count: int
    since: float
    ids: tuple[str, ...]


def outcomes(walks: Sequence[Walk], now: float) -> list[tuple[Walk, Outcome]]:
    """What became of each walk, that with the newest page first."""
    seen: set[tuple[str, str, bool]] = set()
    judged: list[tuple[Walk, Outcome]] = []
    for walk in sorted(walks, key=lambda walk: -walk.last_page):
        kind = (walk.store, walk.feed, walk.incremental)
        judged.append((walk, walk.outcome(now, newest=kind not in seen)))
        seen.add(kind)
    return judged


async def walks(connection: Any, places: Sequence[tuple[str, str]], *, full: int, delta: int) -> list[Walk]:
    """The last walks of some feeds: so many full ones and so many of changes, of each."""
    stores, feeds = [store for store, _ in places], [feed for _, feed in places]
    return [Walk(**row) for row in await connection.fetch(_WALKS, stores, feeds, full, delta)]


async def processes(connection: Any) -> list[Process]:
    """The processes that have written lately."""
    rows = await connection.fetch(_PROCESSES, SILENT_SECONDS)
    return [Process(**{**row, "streams": msgspec.json.decode(row["streams"], type=tuple[Stream, ...])}) for row in rows]


async def occurrences(connection: Any) -> list[Occurrence]:
    """What happened in the last 24 hours, most recent first."""
    return [Occurrence(**row) for row in await connection.fetch(_OCCURRENCES)]


async def rendered(connection: Any) -> list[Rendered]:
    """How the rendered feeds stand."""
    return [Rendered(**row) for row in await connection.fetch(_RENDERED)]


async def invalid_items(connection: Any, store: str | None = None) -> list[InvalidItems]:
    """Invalid rows of rendered feeds, of one store or all."""
    rows = await connection.fetch(_INVALID, store)
    return [InvalidItems(**{**row, "ids": tuple(row["ids"])}) for row in rows]


_WALKS = """
select
  w.id, w.store, w.feed, w.incremental, w.whole, extract(epoch from w.started)::float8 as started,
  extract(epoch from w.last_page)::float8 as last_page, w.pages, w.items, w.invalid, w.ended, w.final_items
from unnest($1::text[], $2::text[]) as p (store, feed)
cross join (values (false, $3::int8), (true, $4::int8)) as k (incremental, most)
cross join lateral (
  select *
  from clerk_feed.walk as w
  where w.store = p.store and w.feed = p.feed and w.incremental = k.incremental
  order by w.id desc
  limit k.most
) as w
"""

_PROCESSES = """
select
  host, pid, version, extract(epoch from started)::float8 as started, extract(epoch from seen)::float8 as seen, tokens,
  connections, in_use, waiting, streams::text as streams
from clerk_feed.process
where seen > now() - make_interval(secs => $1::float8)
order by host, started
"""

_OCCURRENCES = """
select
  kind, store, feed, code, sum(count)::int8 as count, sum(seconds) as seconds,
  extract(epoch from max(last))::float8 as last, (array_agg(detail order by last desc))[1] as detail
from clerk_feed.occurrence
where hour > now() - interval '25 hours' and last > now() - interval '24 hours'
group by kind, store, feed, code
order by max(last) desc
"""

_RENDERED = """
select
  store, feed, served, items, invalid, extract(epoch from refreshed)::float8 as refreshed,
  extract(epoch from took)::float8 as took, added, changed, vanished, last_outcome,
  extract(epoch from last_tried)::float8 as last_tried, last_detail, deletions_waiting, last_items
from clerk_feed.rendered_state
order by store, feed
"""

_INVALID = """
select
  store, feed, attribute, reason, count(*) as count, extract(epoch from min(since))::float8 as since,
  (array_agg(id order by since desc, id))[:5] as ids
from clerk_feed.invalid
where $1::text is null or store = $1
group by store, feed, attribute, reason
order by store, feed, count(*) desc
"""
