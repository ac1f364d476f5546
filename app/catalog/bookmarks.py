"""Bookmarks: where the page at an offset begins.

Clerk pages by offset and names no session, so a walk is recognised by the offset it asks for. Each page leaves a
bookmark there. It is current for two hours, or until its importer is known to have gone on: then it is past. A page
begins from the smallest key among the current ones, or else the older ones, or else the past ones. Sending an item
twice is harmless (Clerk upserts); leaving one out deletes it from the shop.

So nothing is left out as long as an importer's own bookmark is current when it asks. It is: who has gone on is told by
trails. Where all current bookmarks at an offset are of one trail, and all older ones that are not past, so is whoever
asks, because its own is among them. Its next bookmark has the same trail, and what its page before began from, on that
trail, is past. Where several trails meet, whoever asks can't be told from the others: it begins a trail of its own, and
nothing becomes past. Whatever else was asked, and in which order, does not matter. Nothing of this is kept in the
process: another one may have served the page before. See trails.py.

The last bookmark of a sync is past a while after the answer was made from it that ends the sync. The pages of one delta
name the same moment (`modified_after`), so where there are bookmarks of that one, no others are looked at.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import asyncpg
import msgspec

from app.catalog import histories
from app.catalog.asked import ASKED, LED, LOST, NOTE, NOTE_FAILOVER
from app.catalog.pool import LOST as LOST_CONNECTION
from app.catalog.pool import Patience, Pool, state_unavailable
from app.catalog.reader import key_changed
from app.catalog.source import Source
from app.catalog.standbys import Mark
from app.catalog.statements import Position, overlap_statement
from app.catalog.trails import CURRENT, ENDED, GONE_ON, HELD_ITEMS, OF_ITS_DELTA, PAST, PATIENT
from app.protocol.problems import WALK_LOST, Refusal
from app.status.events import Emit

T = TypeVar("T")

KEPT_HOURS = 24
WALKS_KEPT_DAYS = 30
_COUNT_MILLISECONDS = 2000


class Bookmark(msgspec.Struct, frozen=True):
    """A bookmark that was found. `position` is None for an end mark."""

    id: int
    walk: int
    """That of the bookmark at its offset that was begun last. Of equal keys the one that was used before is chosen, and
    belongs to an earlier sync: its row would grow, and that of this sync would never end."""
    position: Position | None
    ambiguous: bool
    """Whether it was the smallest of several keys, or a page before it had such a choice: then items may have been sent
    twice."""
    newest: int = 0
    """The id of the bookmark at its offset that was begun last."""
    rank: str = "current"
    """How good a choice it was: current (of the last two hours), old, or past."""
    repeated: bool = False
    """Whether a page before it held an id twice."""
    trail: int | None = None
    """Whose it is, where that can be told: that of all bookmarks at its offset that an importer may be at."""
    led: bool = True
    """Whether the pages before have led whoever asks here, from offset 0 on."""
    began: float | None = None
    """When the delta that led to it may have begun, in unix seconds; None where that was not noted."""
    settled: str | None = None
    """From when on its items come by their ids, as a timestamptz in text; None where that was not noted."""
    holds: int | None = None
    """How many items whoever asks has been sent at least, up to where the page begins; None where that is not known.
    Where items were sent twice it is fewer than the offset says."""


class Page(msgspec.Struct, frozen=True):
    """What a page came to, for the record of its walk."""

    offset: int
    limit: int
    items: int
    invalid: int
    reached: Position | None
    """The last item's place; None at the end of the feed."""
    final_items: int | None = None
    """How many items the feed has, at its end."""
    caller: str = ""
    seconds: float = 0.0
    """How long ago it was asked for, when it had been made."""
    incremental: bool = False
    """Whether only what changed was read, which modified_after alone does not say."""
    repeated: bool = False
    """Whether it holds an id twice."""
    since: float | None = None
    """The modified_after of a delta, in unix seconds."""
    began: float | None = None
    """When the delta began, in unix seconds, by the clock of who served its first page."""
    settled: str | None = None
    """From when on the delta's items come by their ids, as a timestamptz in text."""


class Walk(msgspec.Struct, frozen=True):
    """What a walk has come to. `items` counts those sent twice too."""

    whole: bool
    pages: int
    items: int
    invalid: int
    seconds: float


class Bookmarks:
    """Finds and writes bookmarks in `clerk_feed`, durably, and waits for a database that is away."""

    def __init__(self, pool: Pool, resume_seconds: float, emit: Emit) -> None:
        self._pool = pool
        self._resume_seconds = resume_seconds
        self._emit = emit

    async def reach(self, source: Source, since: float) -> histories.Reach:
        """How far a delta must reach back beside what it names, see histories.reach. Raises Refusal."""
        return await self._patiently(lambda connection: histories.reach(connection, source.store, source.feed, since))

    async def find(self, source: Source, offset: int, limit: int, *, since: float | None) -> Bookmark | None:
        """The bookmark a page at this offset starts from; `since`: the modified_after of a delta, in unix seconds.

        Raises Refusal when the database stays away, and where the walk can't go on.
        """
        incremental = since is not None
        order = source.order_of(incremental=incremental)
        place = (source.store, source.feed, incremental, offset, order)
        find = _FIND.format(key=ordered_key(source))
        row = await self._patiently(lambda connection: connection.fetchrow(find, *place, limit, since))
        if row is None:
            row = await self._patiently(lambda connection: connection.fetchrow(_OTHER, *place, since))
            if row["failed_over"]:
                raise await self._walk_lost(source, incremental=incremental)
            if row["other_order"] is not None:
                # A page found by counting in the new order would leave out what the walk has not yet sent.
                raise key_changed(source, row["other_order"], order)
            return None
        if row["walks_lost"]:
            raise await self._walk_lost(source, incremental=incremental)
        if row["other_order"] is not None:
            # Whoever asks may have had the page before in that order: what we hold is of a walk before it.
            raise key_changed(source, row["other_order"], order)
        position = None if row["is_end"] else Position(row["key"], row["modified_at"])
        # The guard is for what is read in full.
        holds = None if incremental and source.has_modified_at else await self._held(source, row)
        return Bookmark(
            row["id"],
            row["walk"],
            position,
            row["ambiguous"],
            row["newest"],
            row["rank"],
            row["repeated"],
            row["trail"],
            row["led"],
            row["began"],
            row["settled"],
            holds,
        )

    async def _walk_lost(self, source: Source, *, incremental: bool) -> Refusal:
        feed = (source.store, source.feed, incremental)
        await self._patiently(lambda connection: connection.execute(NOTE_FAILOVER, *feed))
        return Refusal(
            WALK_LOST,
            f"Walks of {source.feed} of {source.store} may have been under way before that.",
            fix=WALK_LOST.fix.replace("STORE", source.store).replace("FEED", source.feed),
        )

    async def _held(self, source: Source, row: Any) -> int | None:
        """What whoever asks has been sent up to where its page begins, by the newest bookmark that may be its own.

        That of an importer that is alone is its own. Nobody is refused for it, whatever happens.
        """
        holds: int | None = row["own_holds"]
        if holds is None or row["own_key"] == row["key"]:
            return holds
        sql, arguments = overlap_statement(source, row["key"], row["own_key"])
        with suppress(*LOST_CONNECTION, asyncpg.PostgresError, Refusal):
            async with self._pool.connection() as connection, connection.transaction(readonly=True):
                await connection.execute(f"set local statement_timeout = {_COUNT_MILLISECONDS}")
                sent_again: int = await connection.fetchval(sql, *arguments)
                return max(holds - sent_again, 0)
        return None

    async def newest_walk(self, source: Source) -> Mark | None:
        """The row of the full walk that began last: never older than that of whoever asks now.

        The bookmark a page starts from may be an older walk's, and a server that shows that one need not show what
        was there when the asker began. Raises Refusal when the database stays away.
        """
        row = await self._patiently(lambda connection: connection.fetchrow(_NEWEST_WALK, source.store, source.feed))
        return None if row is None else Mark(row["id"], row["started"])

    async def begin(self, source: Source, *, whole: bool, caller: str) -> Mark:
        """Write the row of a full walk before its first page is read. Durable on return."""
        row = await self._patiently(
            lambda connection: connection.fetchrow(_BEGIN, source.store, source.feed, whole, caller)
        )
        return Mark(row["id"], row["started"])

    async def turn(
        self, source: Source, page: Page, *, incremental: bool, start: Bookmark | None, begun: Mark | None = None
    ) -> tuple[int, int]:
        """Record that a page was made from `start` (None at offset 0), and where the next one begins.

        Durable on return. Answers the walk's number and the new bookmark's id. Raises Refusal when the database stays
        away.
        """
        reached = page.reached
        made = time.perf_counter()

        def statement(connection: Any) -> Awaitable[Any]:
            # A connection, or the database, may have been waited for.
            seconds = page.seconds + time.perf_counter() - made
            return connection.fetchrow(  # type: ignore[no-any-return]
                _TURN,
                source.store,
                source.feed,
                incremental,
                page.offset,
                page.offset + page.limit,
                reached.key if reached else None,
                source.order_of(incremental=incremental),
                reached.modified_at if reached else None,
                start.trail if start else None,
                start.walk if start else begun.walk if begun else None,
                page.items,
                page.invalid,
                start is not None and start.ambiguous,
                None if reached else "finished",
                page.final_items,
                page.caller,
                page.incremental,
                page.repeated or (start is not None and start.repeated),
                start is None or start.led,
                seconds,
                page.began,
                page.settled,
                page.since,
                _holds(start, page),
            )

        row = await self._patiently(statement)
        return row["walk"], row["id"]

    async def finish(self, source: Source, page: Page, *, incremental: bool, start: Bookmark) -> None:
        """Record that an empty answer was made from `start`: the walk is over, and nobody asks for the next page."""

        async def mark(connection: Any) -> None:
            async with connection.transaction():
                feed = (source.store, source.feed, incremental)
                await connection.execute(
                    _NOTE_END, *feed, page.offset, page.offset + page.limit, start.trail, page.since
                )
                await connection.execute(_FINISH, start.walk, page.invalid, page.final_items)

        await self._patiently(mark)

    async def ended_at_once(
        self, source: Source, page: Page, *, whole: bool, begun: Mark | None = None, ends: bool = True
    ) -> int:
        """Record a walk of one answer, which leaves no bookmark: a whole feed, or an empty first page.

        Answers the walk's number. One that is not to end with it ends by `end`.
        """
        ended = "finished" if ends else None
        if begun is not None:
            ending = (begun.walk, page.items, page.invalid, page.final_items, ended)
            await self._patiently(lambda connection: connection.execute(_ENDED_BEGUN, *ending))
            return begun.walk
        made = time.perf_counter()
        walk: int = await self._patiently(
            lambda connection: connection.fetchval(
                _ENDED_AT_ONCE,
                source.store,
                source.feed,
                page.incremental,
                whole,
                page.items,
                page.invalid,
                page.final_items,
                page.caller,
                page.seconds + time.perf_counter() - made,
                ended,
            )
        )
        return walk

    async def end(self, walks: Sequence[int]) -> None:
        """Note that the last bytes of walks leave now. Raises Refusal."""
        sql = "update clerk_feed.walk set ended = 'finished', last_page = clock_timestamp() where id = any($1)"
        await self._patiently(lambda connection: connection.execute(sql, walks))

    async def walk(self, id: int) -> Walk | None:
        """What a walk has come to; None where there is none of this number. Raises Refusal, and waits for nothing."""
        try:
            row = await self._pool.patiently(lambda connection: connection.fetchrow(_WALK, id), Patience(0))
        except asyncpg.PostgresError as error:
            raise state_unavailable(error, self._emit) from error
        return None if row is None else Walk(*row)

    async def sweep(self) -> int:
        """Delete what is older than a day; how many bookmarks that were."""
        result: str = await self._patiently(lambda connection: connection.execute(_SWEEP))
        return int(result.rsplit(maxsplit=1)[-1])

    async def _patiently(self, work: Callable[[Any], Awaitable[T]]) -> T:
        try:
            # Twice is harmless: it is what a retried page does.
            return await self._pool.patiently(work, Patience(self._resume_seconds))
        except asyncpg.PostgresError as error:
            raise state_unavailable(error, self._emit) from error


def _holds(start: Bookmark | None, page: Page) -> int | None:
    """How many items whoever is sent a page holds then at least."""
    if page.repeated or (start is not None and start.holds is None):
        return None
    return page.items + ((start.holds or 0) if start else 0)


async def end_walks(connection: Any, stores: list[str], feeds: list[str]) -> list[tuple[str, str]]:
    """Say that no importer is in the middle of these feeds; the stores and feeds where one was waited for.

    An importer that is there all the same must begin anew: its next page is refused, unless another one has come as
    far by then. Then it is taken for that one, and may lose items.
    """
    async with connection.transaction(isolation="read_committed"):
        # First, as pages do.
        await connection.execute(_LOCK_ASKED, stores, feeds)
        rows = await connection.fetch(_END_WALKS, stores, feeds)
    return [(row["store"], row["feed"]) for row in rows]


CANDIDATES = f"""
  select *, case
      when current and since is distinct from {{since}} and bool_or(current and since = {{since}}) over () then 1
      when current then 0
      when is_past then 3
      else 2
    end as standing
  from (
    select b.*, {PAST.format(of="b")} as is_past,
      {CURRENT.format(of="b")} or {OF_ITS_DELTA.format(of="b", since="{since}")} as current
    from clerk_feed.bookmark as b
    where {{where}} and b.written > now() - interval '{KEPT_HOURS} hours'
      and b.timeline = (select clerk_feed.timeline())
  ) as b
"""  # noqa: S608 (our own)
"""SQL for the bookmarks b at an offset. Their standing, of which the lowest goes first: 0 current, 1 current of another
delta, 2 old, 3 past."""

RANK = "case when c.standing < 2 then 'current' when c.standing = 2 then 'old' else 'past' end"
"""SQL for the rank of a chosen bookmark c."""

FIRST = "b.standing, b.is_end, b.modified_at nulls first, {key}, b.id"
"""How the bookmarks b are ordered to choose the first; `key` orders them as the source's own column does."""

TRAIL = """(
    select min(b.trail) filter (where b.standing = 0)
    from b
    where b.standing in (0, 2)
    having min(b.trail) = max(b.trail)
  )"""
"""SQL for the trail of whoever asks, where it can be told. Where an importer may have paused for longer than it should,
it can't: nothing is promised to that one, but it must not be taken for another."""

OTHER_ORDER = f"""
      o.key_family <> {{family}} and o.timeline = (select clerk_feed.timeline())
      and o.written > now() - interval '{KEPT_HOURS} hours'
      and (not {PAST.format(of="o")} or {OF_ITS_DELTA.format(of="o", since="{since}")})
"""
"""SQL for the bookmarks o that lead nowhere any more, because they go by other ids, and that an importer may be at."""

OTHER_IS_NEARER = f"""(
      {CURRENT.format(of="o")} or {OF_ITS_DELTA.format(of="o", since="{since}")} or o.id > (select max(id) from b)
    )"""  # noqa: S608 (our own)
"""Whether such an o may be what whoever asks had, and not one of the bookmarks to choose from."""


def ordered_key(source: Source) -> str:
    """SQL that orders bookmarks b by their keys as the source's own column does."""
    return f"b.key::{source.key.family}{source.key.order}"


_BEGIN = """
insert into clerk_feed.walk (store, feed, incremental, whole, caller)
values ($1, $2, false, $3, $4)
returning id, started::text as started
"""

_ENDED_BEGUN = """
update clerk_feed.walk
set pages = 1, items = $2, invalid = $3, ended = $5, final_items = $4, last_page = clock_timestamp()
where id = $1
"""

_OTHER = f"""
select
  (
    select o.key_family
    from clerk_feed.bookmark as o
    where o.store = $1 and o.feed = $2 and o.incremental = $3 and o.at = $4
      and {OTHER_ORDER.format(family="$5", since="$6::float8")}
    order by o.id desc
    limit 1
  ) as other_order,
  exists (
    select
    from clerk_feed.bookmark as b
    where b.store = $1 and b.feed = $2 and b.incremental = $3 and b.timeline <> (select clerk_feed.timeline())
      and b.written > now() - interval '{KEPT_HOURS} hours'
  ) as failed_over
"""  # noqa: S608 (a number of ours)

# As a failover leaves them: they lead nowhere.
_LOCK_ASKED = """
select from clerk_feed.asked where store = any($1) and feed = any($2) order by store, feed, incremental for update
"""

_END_WALKS = f"""
with waited_for as (
  select distinct b.store, b.feed
  from clerk_feed.bookmark as b
  where b.store = any($1) and b.feed = any($2) and b.written > now() - interval '{KEPT_HOURS} hours'
    and not {PAST.format(of="b")}
), forgotten as (
  update clerk_feed.asked
  set failed_over = null
  where store = any($1) and feed = any($2)
), ended as (
  update clerk_feed.bookmark
  set past = true, timeline = 'ended'
  where store = any($1) and feed = any($2)
)
select store, feed from waited_for order by store, feed
"""  # noqa: S608 (our own)

_NEWEST_WALK = """
select id, started::text as started
from clerk_feed.walk
where store = $1 and feed = $2 and not incremental
order by id desc
limit 1
"""

_FIND = f"""
with asked as materialized ({ASKED.format(incremental="$3", offset="$4")}), b as materialized (
  {
    CANDIDATES.format(
        where="b.store = $1 and b.feed = $2 and b.incremental = $3 and b.at = $4 and b.key_family = $5",
        since="$7::float8",
    )
}
), chosen as (
  select * from b order by {FIRST} limit 1
)
select c.id, (select b.walk from b order by b.id desc limit 1) as walk,
  c.is_end, c.key, c.modified_at::text as modified_at, exists (
  select from b
  where b.standing = c.standing
    and (b.ambiguous or (b.key, b.modified_at) is distinct from (c.key, c.modified_at))
) as ambiguous, exists (
  select from b where b.standing = c.standing and b.repeated
) as repeated, (select max(id) from b) as newest, {RANK} as rank, {TRAIL} as trail,
  {LED.format(limit="$6::int8")} as led,
  (select b.key from b where b.standing = c.standing order by b.id desc limit 1) as own_key,
  (select b.holds from b where b.standing = c.standing order by b.id desc limit 1) as own_holds,
  (select extract(epoch from min(b.began))::float8 from b where b.standing = c.standing) as began,
  (
    select case when bool_and(b.settled is not null) then min(b.settled) end::text from b where b.standing = c.standing
  ) as settled,
  case
    when (select failed_over from asked) then exists ({LOST.format(incremental="$3", offset="$4", since="$7::float8")})
  end as walks_lost,
  (
    select o.key_family
    from clerk_feed.bookmark as o
    where o.store = $1 and o.feed = $2 and o.incremental = $3 and o.at = $4
      and {OTHER_ORDER.format(family="$5", since="$7::float8")} and {OTHER_IS_NEARER.format(since="$7::float8")}
    order by o.id desc
    limit 1
  ) as other_order
from chosen as c
"""  # noqa: S608 (a number of ours)


# A delta ends with a short page. Behind that of a full sync an empty one is asked for.
_ENDS = "($3 and $6::text is null)"

# One statement, so that a page costs one round trip and one commit beside its rows.
_TURN = f"""
with {
    NOTE.format(incremental="$3", offset="$4::int8", limit="($5::int8 - $4)", where="true", led="$19::boolean")
}, past as (
  {GONE_ON.format(incremental="$3", offset="$4", trail="$9")}
), not_the_end as (
  {HELD_ITEMS.format(incremental="$3", offset=f"case when not {_ENDS} then $4 end", led="$19::boolean")}
), the_end as (
  {
    ENDED.format(
        incremental="$3",
        offset=f"case when {_ENDS} then $4 end",
        limit="($5::int8 - $4)",
        since="$23::float8",
        trail="$9",
    )
}
), gone_on as (
  -- A walk that has finished stays what it was: the guard measures by it. Whoever ends one anew gets a row of his own,
  -- and so does who goes on with a delta: what it brings is counted by when it comes.
  update clerk_feed.walk as w
  set pages = pages + 1, items = items + $11, invalid = invalid + $12, ambiguous = ambiguous or $13,
    ended = coalesce($14::text, ended), final_items = coalesce($15::int8, final_items),
    last_page = case when w.ended = 'finished' then w.last_page else clock_timestamp() end
  where id = $10 and (w.ended is distinct from 'finished' or $14::text is null and not w.incremental) and {PATIENT}
  returning id
), begun as (
  -- It is under way since its first page was asked for, or that of the one it goes on with: what is deleted at Clerk
  -- meanwhile may be on it.
  insert into clerk_feed.walk
    (store, feed, incremental, pages, items, invalid, ended, final_items, caller, ambiguous, started)
  select
    $1, $2, $17, 1, $11, $12, $14::text, $15::int8, $16, $13,
    coalesce((select w.started from clerk_feed.walk as w where w.id = $10), now() - make_interval(secs => $20::float8))
  where not exists (select from gone_on)
  returning id
)
insert into clerk_feed.bookmark
  (walk, store, feed, incremental, written_by, at, key, key_family, modified_at,
    is_end, ambiguous, repeated, led, trail, began, settled, since, ended, holds)
select
  coalesce((select id from gone_on), (select id from begun)),
  $1, $2, $3, $4, $5, $6::text, $7, $8::text::timestamptz, $6::text is null, $13, $18, $19,
  coalesce($9::int8, nextval('clerk_feed.trail')), to_timestamp($21::float8), $22::text::timestamptz, $23,
  case when {_ENDS} then now() end, $24
returning walk, id
"""  # noqa: S608 (only our own text is put in)

_NOTE_END = f"""
with {NOTE.format(incremental="$3", offset="$4::int8", limit="($5::int8 - $4)", where="true", led="true")}, past as (
  {GONE_ON.format(incremental="$3", offset="$4", trail="$6::int8")}
)
{ENDED.format(incremental="$3", offset="$4", limit="($5::int8 - $4)", since="$7::float8", trail="$6::int8")}
"""

_FINISH = """
with gone_on as (
  update clerk_feed.walk as w
  set pages = pages + 1, invalid = invalid + $2, ended = 'finished', final_items = coalesce($3, final_items),
    last_page = case when w.ended = 'finished' then w.last_page else clock_timestamp() end
  where id = $1 and (w.ended is distinct from 'finished') = ($3::int8 is not null)
  returning id
)
insert into clerk_feed.walk (store, feed, incremental, pages, invalid, ended, final_items, started)
select w.store, w.feed, w.incremental, 1, $2, 'finished', $3, w.started
from clerk_feed.walk as w
where w.id = $1 and $3::int8 is not null and not exists (select from gone_on)
"""

_ENDED_AT_ONCE = """
insert into clerk_feed.walk
  (store, feed, incremental, whole, pages, items, invalid, ended, final_items, caller, started)
values ($1, $2, $3, $4, 1, $5, $6, $10, $7, $8, now() - make_interval(secs => $9::float8))
returning id
"""

_WALK = """
select whole, pages, items, invalid, extract(epoch from last_page - started)::float8
from clerk_feed.walk
where id = $1
"""

_SWEEP = f"""
with last as (
  select distinct on (store, feed) id, store, feed, started, last_page
  from clerk_feed.walk
  where ended = 'finished' and not incremental
  order by store, feed, last_page desc, id desc
), walks as (
  delete from clerk_feed.walk as w
  where started < now() - interval '{WALKS_KEPT_DAYS} days'
    -- The guard measures by the last full walk that finished, however long ago that was, and by what deltas brought
    -- since then; or by those that did not, where none has.
    and id not in (select id from last)
    and not (
      not incremental and feed_items is not null
      and not exists (select from last where last.store = w.store and last.feed = w.feed)
    )
    and not (
      incremental and items > 0
      and exists (select from last where last.store = w.store and last.feed = w.feed and last.started < w.last_page)
    )
), sizes as (
  delete from clerk_feed.feed_size as s
  where counted < now() - interval '{WALKS_KEPT_DAYS} days'
    and (
      exists (select from last where last.store = s.store and last.feed = s.feed and last.last_page > s.counted)
      or exists (
        select from clerk_feed.accepted_shrink as a
        where a.store = s.store and a.feed = s.feed and a.accepted > s.counted
      )
    )
)
delete from clerk_feed.bookmark where written < now() - interval '{KEPT_HOURS} hours'
"""  # noqa: S608 (a number of ours)
