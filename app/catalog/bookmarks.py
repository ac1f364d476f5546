"""Bookmarks: where the page at an offset begins.

Clerk pages by offset and names no session, so a walk is recognised by the offset it asks for. Of several bookmarks
at that offset: those not past before those that are, those of the last two hours before older ones, and of these the
smallest key. Sending an item twice is harmless (Clerk upserts); leaving one out deletes it from the shop.

A bookmark becomes past when its page is known to have arrived: the first answer that starts from a bookmark makes
one past at the offset of the page that wrote it, the one with the largest key, but none where there are several to
begin from; an empty answer, which ends a walk, makes one past at its own offset as well. Of equal keys that are not
past one that was used is chosen first and becomes past last, so that asking again counts as no second arrival. Those
that stay are as young then as the one that went, but for old ones of another key; and one that a page begins from is as
young as that page, until it has arrived. Nothing of this is kept in the process: another one may have served the page
before.

What has arrived can be told as long as each page asked for is the one behind the page before, to the end. Anything else
may be a second importer or an answer that got lost, and the feed is shared for two hours: nothing becomes past, and
what is past is chosen like the rest. Items may be sent twice then; none is left out. See asked.py. The pages of one
delta name the same moment (`modified_after`), so for whoever names it what is past is chosen like the rest.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import asyncpg
import msgspec

from app.catalog.asked import (
    AGE,
    ARRIVED_AT,
    ASKED,
    BEGUN_FROM_OLD,
    CLASH,
    LED,
    LOST,
    NOTE,
    NOTED,
    SHARED,
    STARTED,
    YOUNG,
)
from app.catalog.pool import Patience, Pool, state_unavailable
from app.catalog.reader import key_changed
from app.catalog.source import Source
from app.catalog.standbys import Mark
from app.catalog.statements import Position
from app.protocol.problems import WALK_LOST, Refusal
from app.status.events import Emit

T = TypeVar("T")

KEPT_HOURS = 24
WALKS_KEPT_DAYS = 30


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
    pages: int | None = None
    """How many pages of the feed had been turned when it was found; None where it is not known."""
    led: bool = True
    """Whether the pages before have led whoever asks here, from offset 0 on."""
    seconds: float = 0.0
    """How long ago the delta that led to it may have begun."""


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
    """How long ago it was asked for."""
    incremental: bool = False
    """Whether only what changed was read, which modified_after alone does not say."""
    repeated: bool = False
    """Whether it holds an id twice."""
    since: float | None = None
    """The modified_after of a delta, in unix seconds."""


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

    async def find(self, source: Source, offset: int, limit: int, *, since: float | None) -> Bookmark | None:
        """The bookmark a page at this offset starts from; `since`: the modified_after of a delta, in unix seconds.

        Raises Refusal when the database stays away, and where the walk can't go on.
        """
        incremental = since is not None
        order = source.order_of(incremental=incremental)
        place = (source.store, source.feed, incremental, offset, order, limit)
        find = _FIND.format(key=ordered_key(source))
        row = await self._patiently(lambda connection: connection.fetchrow(find, *place, since))
        if row is None:
            row = await self._patiently(lambda connection: connection.fetchrow(_OTHER, *place))
            if row["failed_over"]:
                raise _walk_lost(source)
            if row["other_order"] is not None:
                # A page found by counting in the new order would leave out what the walk has not yet sent.
                raise key_changed(source, row["other_order"], order)
            return None
        if row["walks_lost"]:
            raise _walk_lost(source)
        if row["other_order"] is not None:
            # Whoever asks may have had the page before in that order: what we hold is of a walk before it.
            raise key_changed(source, row["other_order"], order)
        position = None if row["is_end"] else Position(row["key"], row["modified_at"])
        return Bookmark(
            row["id"],
            row["walk"],
            position,
            row["ambiguous"],
            row["newest"],
            row["rank"],
            row["repeated"],
            row["pages"],
            row["led"],
            row["seconds"] or 0.0,
        )

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
        row = await self._patiently(
            lambda connection: connection.fetchrow(
                _TURN.format(key=ordered_key(source, " desc")),
                source.store,
                source.feed,
                incremental,
                page.offset,
                page.offset + page.limit,
                reached.key if reached else None,
                source.order_of(incremental=incremental),
                reached.modified_at if reached else None,
                start.id if start else None,
                start.walk if start else begun.walk if begun else None,
                page.items,
                page.invalid,
                start is not None and start.ambiguous,
                None if reached else "finished",
                page.final_items,
                page.caller,
                start.pages if start else None,
                page.incremental,
                page.repeated or (start is not None and start.repeated),
                start is None or start.led,
                page.seconds,
                page.seconds + (start.seconds if start else 0.0) if incremental else None,
                page.since,
            )
        )
        return row["walk"], row["id"]

    async def finish(self, source: Source, page: Page, *, incremental: bool, start: Bookmark) -> None:
        """Record that an empty answer was made from `start`: the walk is over, and nobody asks for the next page."""

        async def mark(connection: Any) -> None:
            async with connection.transaction():
                feed, order = (source.store, source.feed, incremental), source.order_of(incremental=incremental)
                ended = (page.offset, page.offset + page.limit, start.pages)
                shared = await connection.fetchval(_NOTE_END, *feed, *ended)
                used = await connection.fetchrow(_USE, *feed, start.id, shared)
                # A retry was counted the first time.
                if used is not None and not shared:
                    arrived = _ARRIVED.format(key=ordered_key(source, " desc"))
                    if used["written_by"] is not None:
                        await connection.execute(arrived, *feed, used["written_by"], order)
                    await connection.execute(arrived, *feed, page.offset, order)
                await connection.execute(_FINISH, start.walk, page.invalid, page.final_items)

        await self._patiently(mark)

    async def ended_at_once(self, source: Source, page: Page, *, whole: bool, begun: Mark | None = None) -> int:
        """Record a walk of one answer, which leaves no bookmark: a whole feed, or an empty first page.

        Answers the walk's number.
        """
        if begun is not None:
            ending = (begun.walk, page.items, page.invalid, page.final_items)
            await self._patiently(lambda connection: connection.execute(_ENDED_BEGUN, *ending))
            return begun.walk
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
                page.seconds,
            )
        )
        return walk

    async def sent_until_now(self, walks: Sequence[int]) -> None:
        """Note that the last bytes of walks that have ended leave only now. Raises Refusal."""
        sql = "update clerk_feed.walk set last_page = clock_timestamp() where id = any($1)"
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


def _walk_lost(source: Source) -> Refusal:
    return Refusal(
        WALK_LOST,
        f"Walks of {source.feed} of {source.store} may have been under way before that.",
        fix=WALK_LOST.fix.replace("STORE", source.store).replace("FEED", source.feed),
    )


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


RANK = "case when c.over then 'past' when c.late then 'old' else 'current' end"
"""SQL for the rank of a chosen bookmark c."""

CANDIDATES = f"""
  select *, past and (old or not (shared or same_delta)) as over,
    old or past and (shared or same_delta) and not bool_or(not past and not old) over () as late
  from (
    select b.*, {AGE.format(of="b")} < now() - {YOUNG} as old,
      coalesce((select shared from asked), true) as shared, coalesce(b.since = {{since}}, false) as same_delta
    from clerk_feed.bookmark as b
    where {{where}} and b.written > now() - interval '{KEPT_HOURS} hours' and b.timeline = clerk_feed.timeline()
  ) as b
"""  # noqa: S608 (our own)
"""SQL for the bookmarks to choose from, as a page of asked finds them: over goes last, and late behind what is not.

In a shared feed what became past within two hours is as good as what would be chosen without it. So is what belongs to
the delta `since` the same moment: it may be whose bookmark that is who asks again.
"""

_RENEWED = f"greatest({AGE.format(of='b')}, {AGE.format(of='gone')})"

ARRIVED = f"""
  update clerk_feed.bookmark as b
  set past = b.past or b.id = gone.id, renewed = case
    when b.id = gone.id then b.renewed
    when b.incremental then least({_RENEWED}, b.written + {YOUNG})
    else {_RENEWED}
  end
  from (
    select b.* from clerk_feed.bookmark as b
"""  # noqa: S608 (our own)
"""SQL that makes a bookmark past, the first of those selected behind it, with ARRIVED_OF_SEVERAL at its end."""

ARRIVED_OF_SEVERAL = f"""
    limit 1
  ) as gone
  where b.store = gone.store and b.feed = gone.feed and b.incremental = gone.incremental and b.at = gone.at
    and b.key_family = gone.key_family and not b.past
    and (
      {AGE.format(of="b")} > now() - {YOUNG}
      or (b.is_end, b.key, b.modified_at) is not distinct from (gone.is_end, gone.key, gone.modified_at)
    )
"""
"""One that stays does so for another importer, who may have come to it by the one that goes. So it is as young as that
one. In deltas it is so for two hours at most: each of them would renew what an answer lost long ago has left behind,
and reach back to it."""

OTHER_ORDER = f"""
      o.key_family <> {{family}} and o.timeline = clerk_feed.timeline()
      and o.written > now() - interval '{KEPT_HOURS} hours'
      and (not o.past or {AGE.format(of="o")} > now() - {YOUNG} and coalesce((select shared from asked), true))
"""  # noqa: S608 (our own)
"""SQL for the bookmarks o that lead nowhere any more, because they go by other ids, and that an importer may be at."""

OTHER_IS_NEARER = f"({AGE.format(of='o')} > now() - {YOUNG} or o.id > (select max(id) from b))"  # noqa: S608 (our own)
"""Whether such an o may be what whoever asks had, and not one of the bookmarks to choose from."""


def ordered_key(source: Source, direction: str = "") -> str:
    """SQL that orders bookmarks b by their keys as the source's own column does."""
    return f"b.key::{source.key.family}{source.key.order}{direction}"


_BEGIN = """
insert into clerk_feed.walk (store, feed, incremental, whole, caller)
values ($1, $2, false, $3, $4)
returning id, started::text as started
"""

_ENDED_BEGUN = """
update clerk_feed.walk
set pages = 1, items = $2, invalid = $3, ended = 'finished', final_items = $4, last_page = clock_timestamp()
where id = $1
"""

_OTHER = f"""
with asked as materialized ({ASKED.format(incremental="$3", offset="$4", limit="$6::int8")})
select
  (
    select o.key_family
    from clerk_feed.bookmark as o
    where o.store = $1 and o.feed = $2 and o.incremental = $3 and o.at = $4 and {OTHER_ORDER.format(family="$5")}
    order by o.id desc
    limit 1
  ) as other_order,
  exists (
    select
    from clerk_feed.bookmark as b
    where b.store = $1 and b.feed = $2 and b.incremental = $3 and b.timeline <> clerk_feed.timeline()
      and b.written > now() - interval '{KEPT_HOURS} hours'
  ) as failed_over
"""  # noqa: S608 (a number of ours)

# As a failover leaves them: they lead nowhere.
_LOCK_ASKED = """
select from clerk_feed.asked where store = any($1) and feed = any($2) order by store, feed, incremental for update
"""

_END_WALKS = """
with waited_for as (
  select distinct store, feed from clerk_feed.bookmark where store = any($1) and feed = any($2) and not past
), alone as (
  update clerk_feed.asked
  set ended = true, shared_until = '-infinity', failed_over = null
  where store = any($1) and feed = any($2)
), ended as (
  update clerk_feed.bookmark
  set past = true, clash = false, timeline = 'ended'
  where store = any($1) and feed = any($2)
)
select store, feed from waited_for order by store, feed
"""

_NEWEST_WALK = """
select id, started::text as started
from clerk_feed.walk
where store = $1 and feed = $2 and not incremental
order by id desc
limit 1
"""

_FIND = f"""
with asked as materialized ({ASKED.format(incremental="$3", offset="$4", limit="$6::int8")}), b as materialized (
  {
    CANDIDATES.format(
        where="b.store = $1 and b.feed = $2 and b.incremental = $3 and b.at = $4 and b.key_family = $5",
        since="$7::float8",
    )
}
), chosen as (
  select * from b
  order by b.over, b.late, b.is_end, b.modified_at nulls first, {{key}}, b.past, b.used desc, b.id
  limit 1
)
select c.id, (select b.walk from b order by b.id desc limit 1) as walk,
  c.is_end, c.key, c.modified_at::text as modified_at, exists (
  select from b
  where b.over = c.over and b.late = c.late
    and (b.ambiguous or (b.key, b.modified_at) is distinct from (c.key, c.modified_at))
) as ambiguous, exists (
  select from b where b.over = c.over and b.late = c.late and b.repeated
) as repeated, (select max(id) from b) as newest, {RANK} as rank, (select pages from asked) as pages,
  {LED.format(limit="$6::int8")} as led,
  (
    -- What finished deltas have left behind would hand on when they began, from one to the next, for ever.
    -- The clock may have been set back.
    select greatest(extract(epoch from now() - greatest(
      case
        when bool_or(b.shared) then min(b.began)
        else coalesce(min(b.began) filter (where w.id is null), min(b.began))
      end,
      now() - interval '{KEPT_HOURS} hours'
    )), 0)::float8
    from b
    left join clerk_feed.walk as w on w.id = b.walk and w.ended = 'finished'
    where b.over = c.over and b.late = c.late
  ) as seconds,
  case
    when (select failed_over from asked) then exists ({LOST.format(incremental="$3", offset="$4")})
  end as walks_lost,
  (
    select o.key_family
    from clerk_feed.bookmark as o
    where o.store = $1 and o.feed = $2 and o.incremental = $3 and o.at = $4
      and {OTHER_ORDER.format(family="$5")} and {OTHER_IS_NEARER}
    order by o.id desc
    limit 1
  ) as other_order
from chosen as c
"""  # noqa: S608 (a number of ours)


_ARRIVED = f"""
{ARRIVED}
    where b.store = $1 and b.feed = $2 and b.incremental = $3 and b.at = $4 and b.key_family = $5 and not b.past
    order by b.is_end desc, b.modified_at desc nulls last, {{key}}, b.used, b.id desc
    {ARRIVED_OF_SEVERAL}
"""

_USE = f"""
with started as ({STARTED.format(start="$4")})
select ({ARRIVED_AT.format(incremental="$3", shared="$5::boolean")}) as written_by
from started
where not again
"""  # noqa: S608 (only our own text is put in)

# One statement, so that a page costs one round trip and one commit beside its rows. Behind a short page an empty one is
# asked for, or has been lost: a full sync ends with that.
_TURN = f"""
with {
    NOTE.format(
        incremental="$3",
        offset="$4::int8",
        limit="($5::int8 - $4)",
        ended="($6::text is null and $3)",
        where="true",
        pages="$17",
        led="$20::boolean",
    )
}, started as ({STARTED.format(start="$9")}), arrived as (
  {
    _ARRIVED.replace("$4", f"({ARRIVED_AT.format(incremental='$3', shared=SHARED.format(incremental='$3'))})").replace(
        "$5", "$7"
    )
}
), gone_on as (
  -- A walk that has finished stays what it was: the guard measures by it. Whoever ends one anew gets a row of his own,
  -- and so does who goes on with a delta: what it brings is counted by when it comes.
  update clerk_feed.walk as w
  set pages = pages + 1, items = items + $11, invalid = invalid + $12, ambiguous = ambiguous or $13,
    ended = coalesce($14::text, ended), final_items = coalesce($15::int8, final_items),
    last_page = case when w.ended = 'finished' then w.last_page else clock_timestamp() end
  where id = $10 and (w.ended is distinct from 'finished' or $14::text is null and not w.incremental) and {NOTED}
  returning id
), begun as (
  -- It is under way since its first page was asked for, or that of the one it goes on with: what is deleted at Clerk
  -- meanwhile may be on it.
  insert into clerk_feed.walk
    (store, feed, incremental, pages, items, invalid, ended, final_items, caller, ambiguous, started)
  select
    $1, $2, $18, 1, $11, $12, $14::text, $15::int8, $16, $13,
    coalesce((select w.started from clerk_feed.walk as w where w.id = $10), now() - make_interval(secs => $21::float8))
  where not exists (select from gone_on)
  returning id
)
insert into clerk_feed.bookmark
  (walk, store, feed, incremental, written_by, at, key, key_family, modified_at,
    is_end, clash, ambiguous, repeated, led, used, began, since)
select
  coalesce((select id from gone_on), (select id from begun)),
  $1, $2, $3, $4, $5, $6::text, $7, $8::text::timestamptz, $6::text is null, {CLASH}, $13, $19, $20, {BEGUN_FROM_OLD},
  now() - make_interval(secs => $22::float8), $23
returning walk, id
"""  # noqa: S608 (only our own text is put in)

_NOTE_END = f"""
with {
    NOTE.format(
        incremental="$3",
        offset="$4::int8",
        limit="($5::int8 - $4)",
        ended="true",
        where="true",
        pages="$6::int8",
        led="true",
    )
}
select {SHARED.format(incremental="$3")} as shared
"""

_FINISH = """
with gone_on as (
  update clerk_feed.walk as w
  set pages = pages + 1, invalid = invalid + $2, ended = 'finished', final_items = coalesce($3, final_items),
    last_page = case when w.ended = 'finished' then w.last_page else clock_timestamp() end
  where id = $1 and (w.ended is distinct from 'finished' or $3::int8 is null)
  returning id
)
insert into clerk_feed.walk (store, feed, incremental, pages, invalid, ended, final_items, started)
select w.store, w.feed, w.incremental, 1, $2, 'finished', $3, w.started
from clerk_feed.walk as w
where w.id = $1 and not exists (select from gone_on)
"""

_ENDED_AT_ONCE = """
insert into clerk_feed.walk
  (store, feed, incremental, whole, pages, items, invalid, ended, final_items, caller, started)
values ($1, $2, $3, $4, 1, $5, $6, 'finished', $7, $8, now() - make_interval(secs => $9::float8))
returning id
"""

_WALK = """
select whole, pages, items, invalid, extract(epoch from last_page - started)::float8
from clerk_feed.walk
where id = $1
"""

_SWEEP = f"""
with last as (
  select distinct on (store, feed) id, store, feed, last_page
  from clerk_feed.walk
  where ended = 'finished' and not incremental
  order by store, feed, last_page desc, id desc
), walks as (
  delete from clerk_feed.walk as w
  where started < now() - interval '{WALKS_KEPT_DAYS} days'
    -- The guard measures by the last full walk that finished, however long ago that was, and by what deltas brought
    -- since then.
    and id not in (select id from last)
    and not (
      incremental and items > 0
      and exists (select from last where last.store = w.store and last.feed = w.feed and last.last_page < w.last_page)
    )
)
delete from clerk_feed.bookmark where written < now() - interval '{KEPT_HOURS} hours'
"""  # noqa: S608 (a number of ours)
