"""The guard at the end of a walk: a feed that broke must not empty a shop.

Clerk deletes what a full feed no longer holds. So a full walk that is about to end with far fewer items than the last
ones that finished is held back: its last page is a 503, and the shop keeps its index until the feed is mended or an
operator says that the shrink is right. The measure is the largest of those that finished in 24 hours, or the last one:
several answers that nobody received, each a little smaller, must not drain a shop. What deltas have brought since then
is part of it, and so is what syncs were sent that never came to their end: Clerk has it.
"""

import math
import time
from contextlib import suppress
from typing import Any

import asyncpg
import msgspec

from app.catalog.pool import LOST, Patience, Pool, state_unavailable
from app.catalog.source import Source
from app.catalog.statements import any_statement
from app.protocol.feeds import FeedName
from app.protocol.problems import FEED_SHRUNK, SOURCE_FAILED, Refusal
from app.settings import FeedSettings, Store
from app.status.events import Emit, WalkHeldBack

_COUNT_SECONDS = 5.0
"""How long the importer of a delta waits for a count, of which one may follow another. Where counting takes less, no
delta ends without it."""
_COUNTED_SLOWLY = (
    "The items are counted because some were sent twice, or may have been. Make the relation quicker (what its required"
    " attributes are worked out from is read for each row), let it hold each id once, or raise statement_timeout in"
    " feed.toml."
)
_PAUSE = 20
"""After a look at what deltas have brought, so many times as long as counting took."""
_LOOK_SECONDS = 0.01
"""What a look counts for that found no database."""


class Ending(msgspec.Struct, frozen=True):
    """A walk as its end sees it. `items` is its offset plus what the last page holds."""

    walk: int | None
    items: int
    invalid: int
    ambiguous: bool
    repeated: bool = False
    """Whether one of its pages holds an id twice."""
    in_parts: bool = False
    """Whether several statements may have read it."""
    holds: int | None = None
    """How many items its importer has been sent at least; None where that is not known."""


class Guard:
    """Decides whether a full walk may end."""

    def __init__(self, pool: Pool, resume_seconds: float, emit: Emit) -> None:
        self._pool = pool
        self._resume_seconds = resume_seconds
        self._emit = emit
        self._looked: dict[tuple[str, FeedName], tuple[float, float]] = {}
        """When this process last looked at what deltas have brought to a feed, and how long that took, in seconds."""

    async def check(self, store: Store, source: Source, ending: Ending, *, writes: bool) -> int:
        """How many items the feed has. Raises Refusal(FEED_SHRUNK) where the walk must not end, and records it."""
        try:
            return await self._pool.patiently(
                lambda connection: self._check(connection, store, source, ending, writes=writes),
                Patience(self._resume_seconds),
            )
        except asyncpg.PostgresError as error:
            raise state_unavailable(error, self._emit) from error

    async def _check(self, connection: Any, store: Store, source: Source, ending: Ending, *, writes: bool) -> int:
        known = await connection.fetchrow(_KNOWN, store.name, source.feed, ending.walk, ending.items)
        settings = store.feed(source.feed)
        finished, measure = _finished(known), _measure(known)
        invalid = ending.invalid + (known["invalid"] or 0)
        items = sent = ending.items
        inexact = ending.repeated or ending.ambiguous or known["ambiguous"]
        broken = False
        if not inexact and ending.in_parts and _grown(items, finished, settings):
            # Others may have taken the place of items that were sent, of all of them at most. Where more is gone, the
            # feed has broken, unless so few were accepted: perhaps behind its last page, perhaps before it.
            with suppress(Refusal):
                counted = await self._counted_soon(connection, source, most=items)
                if counted is None:
                    counted = await self._counted(connection, source, source.count_rows)
                allowed = items if known["accepted"] is None else known["accepted"]
                broken = counted < items / 2 and shrunk(counted, 0, allowed, settings)
                items = min(items, counted)
        if inexact and not shrunk(items, invalid, measure, settings):
            # Items may have been sent twice, and then offsets overstate: count them. The feed may have been filled
            # again since the page was read, so it is never more than was sent.
            counting = source.count_ids if ending.repeated else source.count
            counted = await self._counted(connection, source, counting)
            broken = counted == 0 and known["accepted"] is None and shrunk(0, 0, items, settings)
            items = sent = min(items, counted)
            if ending.holds is not None and shrunk(ending.holds, invalid, measure, settings):
                # The feed is as large as it was now, but was not while it was sent.
                items = sent = min(sent, ending.holds)
            if ending.holds is not None and ending.holds < ending.items:
                # What the row of this walk holds beyond that is another importer's.
                known = await connection.fetchrow(_KNOWN, store.name, source.feed, ending.walk, ending.holds)
                measure = _measure(known)
        if not inexact and ending.in_parts and items and not broken and await self._is_empty(connection, source):
            # Truncated behind a page, and perhaps to be filled again: what was sent is not all there will be.
            broken = shrunk(0, 0, items if known["accepted"] is None else known["accepted"], settings)
            items = 0 if broken else items
        # Clerk deletes nothing of what both this walk and one that did not end were sent, whatever became of it.
        small = shrunk(items, invalid, finished, settings) or shrunk(sent, invalid, measure, settings)
        if not broken and not small:
            return items
        if broken:
            detail = f"{source.feed} of {store.name} has {items} items now, far fewer than this walk has sent."
        elif measure is None:
            detail = f"{source.feed} of {store.name}: all {invalid} rows lack required attributes."
        else:
            detail = f"{source.feed} of {store.name} would end with {items} items; {_before(known)}."
        if writes:
            await connection.execute(_HELD_BACK, store.name, source.feed, ending.walk, items, ending.invalid)
        self._emit(WalkHeldBack(store=store.name, feed=source.feed, walk=ending.walk, items=items, last=_had(known)))
        raise _held_back(store, source.feed, items, detail)

    async def check_absent(self, store: Store, feed: FeedName, *, writes: bool) -> None:
        """Return where the single file may do without a feed that has no relation: it never had items, or few.

        Raises Refusal(FEED_SHRUNK) where the feed has had some, and records it: the view may just be made anew.
        """
        try:
            await self._pool.patiently(
                lambda connection: self._check_absent(connection, store, feed, writes=writes),
                Patience(self._resume_seconds),
            )
        except asyncpg.PostgresError as error:
            raise state_unavailable(error, self._emit) from error

    async def learn_growth(self, store: Store, source: Source, *, ends: bool) -> None:
        """Count the feed behind a page of a delta, where those since the last count may have added some items.

        At its end it may have broken, so it is counted on the way too, for a twentieth of that time at most. Nobody is
        refused for it, whatever happens.
        """
        place = (store.name, source.feed)
        looked, took = self._looked.get(place, (0.0, 0.0))
        if time.perf_counter() - looked < _PAUSE * took and not (ends and took < _COUNT_SECONDS):
            return

        async def learn(connection: Any) -> float:
            began = time.perf_counter()
            limit = store.feed(source.feed).shrink_limit
            measure = _finished(await connection.fetchrow(_KNOWN, store.name, source.feed, None, 0)) or 0
            brought = await connection.fetchval(_BROUGHT, store.name, source.feed, math.ceil(measure * (1 - limit / 4)))
            # What is not counted is not missed either, so that little may stay uncounted.
            least = measure
            last = await connection.fetchrow(_LAST_END, store.name, source.feed)
            if last is not None and last["ended"] == "held back":
                # Once that shrink is accepted, what came after it is the measure.
                least = min(measure, last["final_items"])
            if brought > least * limit / 4:
                # What comes while it is counted may not be in it.
                now = await connection.fetchval("select clock_timestamp()::text")
                items = await self._counted_soon(connection, source, most=measure + brought)
                if items is not None and not shrunk(items, 0, least, store.feed(source.feed)):
                    await connection.execute(_LEARNT, store.name, source.feed, now, items)
            return time.perf_counter() - began

        took = _LOOK_SECONDS
        began = time.perf_counter()
        try:
            took = await self._pool.patiently(learn, Patience(self._resume_seconds))
        except asyncpg.PostgresError as error:
            state_unavailable(error, self._emit)  # told of, and not raised
            took = time.perf_counter() - began
        except Refusal:
            pass  # the page itself is made, and the next one looks again
        self._looked[place] = (time.perf_counter(), took)

    async def remember(self) -> None:
        """Keep what walks were sent that did not end: their bookmarks are swept after a day. Raises Refusal."""
        try:
            await self._pool.patiently(lambda connection: connection.execute(_REMEMBER), Patience(self._resume_seconds))
        except asyncpg.PostgresError as error:
            raise state_unavailable(error, self._emit) from error

    async def check_now(self, store: Store, source: Source, *, writes: bool) -> None:
        """Return where the feed, as it is now, has not shrunk: for ends of walks that no offset tells the size of.

        Raises Refusal(FEED_SHRUNK) otherwise, and records it.
        """

        async def check(connection: Any) -> None:
            known = await connection.fetchrow(_KNOWN, store.name, source.feed, None, 0)
            if _measure(known) is None:
                return
            items = await self._counted(connection, source, source.count_ids)
            await self._require_enough(
                connection, store, source.feed, known, items, f"has {items} items now", writes=writes
            )

        try:
            await self._pool.patiently(check, Patience(self._resume_seconds))
        except asyncpg.PostgresError as error:
            raise state_unavailable(error, self._emit) from error

    async def _check_absent(self, connection: Any, store: Store, feed: FeedName, *, writes: bool) -> None:
        known = await connection.fetchrow(_KNOWN, store.name, feed, None, 0)
        await self._require_enough(connection, store, feed, known, 0, "has no relation any more", writes=writes)

    async def _require_enough(
        self, connection: Any, store: Store, feed: FeedName, known: Any, items: int, what: str, *, writes: bool
    ) -> None:
        if not shrunk(items, 0, _measure(known), store.feed(feed)):
            return
        if writes:
            await connection.execute(_HELD_BACK, store.name, feed, None, items, 0)
        self._emit(WalkHeldBack(store=store.name, feed=feed, walk=None, items=items, last=_had(known)))
        raise _held_back(store, feed, items, f"{feed} of {store.name} {what}; {_before(known)}.")

    async def _counted(self, connection: Any, source: Source, counting: str) -> int:
        try:
            # A failure may be borne, also within a transaction.
            async with connection.transaction():
                return int(await connection.fetchval(counting))
        except asyncpg.QueryCanceledError as error:
            raise Refusal(
                SOURCE_FAILED,
                f"Counting {source.feed} of {source.store} at the end of a walk was cancelled with SQLSTATE"
                f" {error.sqlstate}: it takes longer than statement_timeout, perhaps.",
                fix=_COUNTED_SLOWLY,
            ) from error
        except asyncpg.PostgresError as error:
            raise Refusal(
                SOURCE_FAILED,
                f"Counting {source.feed} of {source.store} at the end of a walk failed with SQLSTATE {error.sqlstate}.",
            ) from error

    async def _counted_soon(self, connection: Any, source: Source, *, most: int) -> int | None:
        """How many items the feed has, while an importer waits; None where counting takes too long.

        Where an item fails it is the rows, and `most` at most: some may be invalid. No full sync ends before it is
        mended.
        """
        for counting in (source.count_ids, source.count_rows):
            try:
                async with connection.transaction():
                    await connection.execute(f"set local statement_timeout = '{_COUNT_SECONDS:g}s'")
                    items: int = await connection.fetchval(counting)
            except asyncpg.QueryCanceledError:
                return None
            except asyncpg.PostgresError:
                continue
            return items if counting == source.count_ids else min(items, most)
        return None

    async def _is_empty(self, connection: Any, source: Source) -> bool:
        """Whether the feed has no valid item at all; not where that takes too long to find out, or an item fails."""
        try:
            async with connection.transaction():
                await connection.execute(f"set local statement_timeout = '{_COUNT_SECONDS:g}s'")
                return not await connection.fetchval(any_statement(source))
        except LOST:
            raise
        except asyncpg.PostgresError:
            return False

    async def require_none_held_back(self, store: Store, source: Source) -> None:
        """Return unless the last full walk to end was held back. Raises Refusal(FEED_SHRUNK).

        For pages that belong to no walk: behind a refused last page the next offset must not look like an end.
        """
        try:
            last = await self._pool.patiently(
                lambda connection: connection.fetchrow(_LAST_END, store.name, source.feed),
                Patience(self._resume_seconds),
            )
        except asyncpg.PostgresError as error:
            raise state_unavailable(error, self._emit) from error
        if last is not None and last["ended"] == "held back":
            detail = (
                f"The last full walk of {source.feed} of {store.name} was not let end, and this page belongs to none."
            )
            raise _held_back(store, source.feed, last["final_items"], detail)


def _held_back(store: Store, feed: FeedName, items: int, detail: str) -> Refusal:
    return Refusal(
        FEED_SHRUNK,
        detail,
        fix=FEED_SHRUNK.fix.replace("STORE", store.name).replace("FEED", feed).replace("ITEMS", str(items)),
        headers={"Retry-After": "300"},
    )


def _most(*numbers: int | None) -> int | None:
    return max((number for number in numbers if number is not None), default=None)


def _finished(known: Any) -> int | None:
    """How many items the feed had by what finished; `accepted` is None once a walk has finished after it."""
    last = known["last"] if known["accepted"] is None else known["accepted"]
    return _most(last, known["most"])


def _measure(known: Any) -> int | None:
    """How many items a walk that ends now is held against."""
    return _most(_finished(known), known["unended"])


def _had(known: Any) -> int | None:
    """How many items the feed had, for the record: before a size was accepted, where none has finished since."""
    return _most(known["most"] or known["last"], known["unended"])


def _before(known: Any) -> str:
    last, most, accepted = known["last"], known["most"], known["accepted"]
    if _measure(known) != _finished(known):
        return f"a sync that did not end, or somebody who looked, was sent {known['unended']}"
    if accepted is not None:
        return (
            f"it had {most} since {accepted} were accepted" if (most or 0) > accepted else f"{accepted} were accepted"
        )
    if most is None or (last is not None and most <= last):
        return f"the last full walk that finished had {last or 0}"
    return f"within 24 hours, or since the last full walk, it had {most}"


def shrunk(items: int, invalid: int, measure: int | None, settings: FeedSettings) -> bool:
    """Whether a feed that had `measure` items when it last ended is too small now."""
    if measure is None:
        return items == 0 and invalid > 0
    # A feed that is empty all at once is never small change, however small it was.
    large = measure - items > settings.shrink_floor or items == 0
    return large and items < measure * (1 - settings.shrink_limit)


def _grown(items: int, measure: int | None, settings: FeedSettings) -> bool:
    """Whether a feed would be so much larger that its size, if it is not true, holds the next walks back."""
    if measure is None:
        return items > settings.shrink_floor
    return items - measure > settings.shrink_floor and items > measure * (1 + settings.shrink_limit)


class AcceptError(Exception):
    """There is nothing to accept, or it must be said how much. The message says it."""


async def accept_shrink(connection: Any, store: str, feed: str, items: int | None) -> tuple[int, int | None]:
    """Say that a walk held back was right: (the items accepted, those of the last finished walk).

    Without a number, what the walk held back last had: it may be another one than an operator has read of, so that
    none at all must be said. Raises AcceptError.
    """
    held = await connection.fetchrow(_HELD, store, feed, items)
    if held is None:
        raise AcceptError(f"no walk of {feed} of {store} is held back: there is nothing to accept")
    if items is None and not held["items"]:
        raise AcceptError(
            f"the walk of {feed} of {store} that was held back last found no items at all: Clerk would delete all there"
            " are. If that is right, say --items 0"
        )
    accepted: int = held["items"] if items is None else items
    # What came since then was not spoken of.
    await connection.execute(ACCEPT, store, feed, accepted, held["last_page"])
    return accepted, held["last"]


_LAST = """
  select final_items, last_page, started
  from clerk_feed.walk
  where store = $1 and feed = $2 and not incremental and ended = 'finished'
  order by last_page desc, id desc
  limit 1
"""

_UNENDED = "not w.incremental and w.ended is distinct from 'finished'"

_DELIVERED = (
    "b.led and not b.is_end and not b.ambiguous and not b.repeated and not w.incremental"
    " and (w.ended is distinct from 'finished' or b.written > w.last_page)"
)
"""Whether the offset of a bookmark b is how many items of the feed a walk w was sent that has not ended."""

# What there was before a size was accepted measures nothing any more.
_KNOWN = f"""
with last as ({_LAST}), allowed as (
  select a.items, a.accepted from clerk_feed.accepted_shrink as a where a.store = $1 and a.feed = $2
), lately as (
  -- A sync that never ended may have been sent items of which none is left: it is no measure for ever beside one that
  -- ended.
  select coalesce(
    (select greatest(least(now() - interval '24 hours', last_page), now() - interval '7 days') from last), '-infinity'
  ) as since
), beyond as (
  -- A walk's own bookmarks are of what was sent in it.
  select greatest(
    coalesce(
      (select items from allowed where accepted > coalesce((select last_page from last), '-infinity')),
      (select final_items from last)
    ),
    case when not exists (
      select
      from clerk_feed.walk as w
      where w.store = $1 and w.feed = $2 and {_UNENDED} and w.last_page > (select since from lately)
        and w.id is distinct from $3
    ) then $4::int8 end,
    0
  ) as items
)
select
  (select final_items from last) as last,
  greatest(
    (
      select max(w.final_items)
      from clerk_feed.walk as w
      where w.store = $1 and w.feed = $2 and not w.incremental and w.ended = 'finished'
        and w.last_page > now() - interval '24 hours'
        and w.last_page > coalesce((select accepted from allowed), '-infinity')
    ),
    (
      select max(s.items)
      from clerk_feed.feed_size as s
      where s.store = $1 and s.feed = $2
        and (
          s.counted > now() - interval '24 hours'
          or s.counted > coalesce((select last_page from last), '-infinity')
        )
        and s.counted > coalesce((select accepted from allowed), '-infinity')
    )
  ) as most,
  greatest(
    (
      -- Each page but a last one is full, so a bookmark's offset is what was delivered before it. From the largest on,
      -- one by one: another plan would read all bookmarks of a large feed.
      select max(most.at)
      from (values (false), (true)) as kind (incremental), lateral (
        select b.at
        from clerk_feed.bookmark as b
        join clerk_feed.walk as w on w.id = b.walk
        where b.store = $1 and b.feed = $2 and b.incremental = kind.incremental
          and b.at > (select items from beyond)
          and {_DELIVERED}
          and greatest(w.last_page, b.written) > (select since from lately)
          and b.written > coalesce((select accepted from allowed), '-infinity')
          and (w.id is distinct from $3 or b.at > $4)
        order by b.at desc
        limit 1
      ) as most
    ),
    (
      select max(w.feed_items)
      from clerk_feed.walk as w
      where w.store = $1 and w.feed = $2 and not w.incremental
        and w.last_page >= (select since from lately)
        and w.last_page > coalesce((select accepted from allowed), '-infinity')
        and (w.id is distinct from $3 or w.feed_items > $4)
    )
  ) as unended,
  (select items from allowed where accepted > coalesce((select last_page from last), '-infinity')) as accepted,
  (select w.invalid from clerk_feed.walk as w where w.id = $3) as invalid,
  coalesce((select w.ambiguous from clerk_feed.walk as w where w.id = $3), false) as ambiguous
"""  # noqa: S608 (only our own text is put in)

_BROUGHT = f"""
with last as ({_LAST}), counted as (
  select greatest(
    -- One that had less, when some items were away, does not have what deltas brought.
    (select max(s.counted) from clerk_feed.feed_size as s where s.store = $1 and s.feed = $2 and s.items >= $3),
    -- What came while it was read may not be in it.
    (select started from last)
  ) as at
)
select coalesce(sum(w.items), 0)::int8
from clerk_feed.walk as w, counted
where w.store = $1 and w.feed = $2 and w.incremental and w.last_page > coalesce(counted.at, '-infinity')
"""  # noqa: S608 (only our own text is put in)

# A smaller one of before measures nothing that this one does not.
_LEARNT = """
with smaller as (
  delete from clerk_feed.feed_size where store = $1 and feed = $2 and counted < $3::text::timestamptz and items <= $4
)
insert into clerk_feed.feed_size (store, feed, counted, items)
values ($1, $2, $3::text::timestamptz, $4)
on conflict (store, feed, counted) do update set items = greatest(feed_size.items, excluded.items)
"""

# An hour before they are swept.
_REMEMBER = f"""
with sent as (
  select w.id, max(b.at) as items
  from clerk_feed.bookmark as b
  join clerk_feed.walk as w on w.id = b.walk
  left join clerk_feed.accepted_shrink as a on a.store = b.store and a.feed = b.feed
  where b.written < now() - interval '23 hours' and {_DELIVERED}
    and b.written > coalesce(a.accepted, '-infinity')
  group by w.id
)
update clerk_feed.walk as w
set feed_items = sent.items
from sent
where w.id = sent.id and coalesce(w.feed_items, 0) < sent.items
"""  # noqa: S608 (only our own text is put in)

_LAST_END = """
select ended, final_items
from clerk_feed.walk
where store = $1 and feed = $2 and not incremental and ended is not null
order by last_page desc
limit 1
"""

# A walk's pages may have gone on from a bookmark of one that has finished: that one stays the measure.
_HELD_BACK = """
with known as (
  update clerk_feed.walk
  set ended = 'held back', final_items = $4, last_page = clock_timestamp()
  where id = $3 and ended is distinct from 'finished'
  returning id
)
insert into clerk_feed.walk (store, feed, incremental, whole, items, invalid, ended, final_items, last_page)
select $1, $2, false, true, $4, $5, 'held back', $4, clock_timestamp()
where not exists (select from known)
"""

_HELD = f"""
with last as ({_LAST})
select w.final_items as items, w.last_page::text as last_page, (select final_items from last) as last
from clerk_feed.walk as w
where w.store = $1 and w.feed = $2 and not w.incremental and w.ended = 'held back'
  and w.last_page > coalesce((select last_page from last), '-infinity')
-- Of several that were held back, the one that an operator has read of.
order by w.final_items is distinct from coalesce($3::int8, w.final_items), w.last_page desc
limit 1
"""  # noqa: S608 (only our own text is put in)

ACCEPT = """
insert into clerk_feed.accepted_shrink (store, feed, items, accepted)
values ($1, $2, $3, coalesce($4::text::timestamptz, clock_timestamp()))
on conflict (store, feed) do update set items = excluded.items, accepted = excluded.accepted
"""
