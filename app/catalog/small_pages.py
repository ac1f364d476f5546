"""Small pages: found, read and turned in one statement.

Clerk's default page holds 25 items, and then round trips cost more than rows do. So a page of a full walk that is
small, full and has nothing in it that Python must look at takes one round trip and one commit. Any other page changes
nothing here and goes the common way.
"""

from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec

from app.catalog.asked import ASKED, LED, LOST, NOTE
from app.catalog.bookmarks import CANDIDATES, FIRST, OTHER_IS_NEARER, OTHER_ORDER, RANK, TRAIL, ordered_key
from app.catalog.ids import report_repeated
from app.catalog.memory import BatchTooLargeError, bounded
from app.catalog.pool import Patience, Pool, state_unavailable
from app.catalog.source import Source
from app.catalog.trails import GONE_ON, HELD_ITEMS, PATIENT
from app.status.events import Emit

MOST_ROWS = 100
"""Above this, keeping the page in memory on the server costs more than a round trip."""


class SmallPage(msgspec.Struct, frozen=True):
    """The rows of a page, its walk, and the rank of the bookmark it began at."""

    rows: Sequence[Any]
    walk: int
    rank: str


class SmallPages:
    """Reads the small pages of full walks."""

    def __init__(self, pool: Pool, resume_seconds: float, emit: Emit) -> None:
        self._pool = pool
        self._resume_seconds = resume_seconds
        self._emit = emit

    async def read(self, source: Source, *, offset: int, limit: int) -> SmallPage | None:
        """A page, with the next one's bookmark durable; None for the common way.

        Raises Refusal when the database stays away.
        """
        sql = _statement(source, limit)
        arguments = (source.store, source.feed, offset, source.order)
        try:
            rows = await self._pool.patiently(
                lambda connection: bounded(connection, connection.fetch(sql, *arguments)),
                Patience(self._resume_seconds),
            )
        except asyncpg.LockNotAvailableError as error:
            raise state_unavailable(error, self._emit) from error
        except (asyncpg.PostgresError, BatchTooLargeError):
            return None  # the common way meets it too, and knows what to say
        if not rows or rows[0][-1] is None:
            return None  # it was not turned
        report_repeated(self._emit, source, rows[:limit], rows[limit] if len(rows) > limit else None)
        walk, rank = rows[0][-2:]
        return SmallPage([row[:-3] for row in rows[:limit]], walk, rank)


def _statement(source: Source, limit: int) -> str:
    """The columns go by number: their names may be anything. One row more is read, to see a repeated id at the edge."""
    family, order = source.key.family, source.key.order
    count = len(source.attributes) + 1
    columns = ", ".join(f"c{number}" for number in range(count))
    behind = f"(select key::{family} from chosen where not is_end)"  # noqa: S608 (our own)
    asked = ASKED.format(incremental="false", offset="$3")
    candidates = CANDIDATES.format(
        where="b.store = $1 and b.feed = $2 and not b.incremental and b.at = $3 and b.key_family = $4",
        since="null::float8",
    )
    lost = LOST.format(incremental="false", offset="$3", since="null::float8")
    noted = NOTE.format(
        incremental="false",
        offset="$3",
        limit=limit,
        where="exists (select from full_page)",
        led="(select led from way)",
    )
    gone_on = GONE_ON.format(incremental="false", offset="$3", trail="(select way.trail from way, full_page)")
    held_items = HELD_ITEMS.format(
        incremental="false", offset="(select $3::int8 from full_page)", led="(select led from way)"
    )
    id = source.key.column
    which = f"where {id} {source.key.compared('>')} {behind} order by {id} limit {limit + 1}"
    # Of the same moment as the page, but the plan is older; see SecondLook.
    same_partitions = f" and ({source.partitions}) = '{source.partitions_seen}'" if source.partitions else ""
    return f"""
with asked as materialized ({asked}), b as materialized ({candidates}), chosen as materialized (
  select * from b
  where not exists (
    select
    from clerk_feed.bookmark as o
    where o.store = $1 and o.feed = $2 and not o.incremental and o.at = $3
      and {OTHER_ORDER.format(family="$4", since="null::float8")} and {OTHER_IS_NEARER.format(since="null::float8")}
  ) and case when (select failed_over from asked) then not exists ({lost}) else true end
  order by {FIRST.format(key=ordered_key(source))}
  limit 1
), newest as materialized (
  select walk from b order by id desc limit 1
), own as materialized (
  -- That of an importer that is alone.
  select b.key, b.holds from b, chosen where b.standing = chosen.standing order by b.id desc limit 1
), page ({columns}, key) as materialized (
  {source.rows(source.select_key, which, id)}
), full_page as materialized (
  select page.key::text as key
  from page
  where (select count(*) >= {limit} and bool_and(c0) from page){same_partitions}
    -- What lies between two places is counted.
    and not exists (select from own, chosen where own.key is distinct from chosen.key)
  order by page.key{order}
  limit 1
  offset {limit - 1}
), way as materialized (
  select {LED.format(limit=limit)} as led, {TRAIL} as trail
), {noted}, past as (
  {gone_on}
), not_the_end as (
  {held_items}
), inexact as materialized (
  select
    exists (
      select
      from b, chosen
      where b.standing = chosen.standing and (b.ambiguous or b.key is distinct from chosen.key)
    ) as ambiguous,
    exists (select from b, chosen where b.standing = chosen.standing and b.repeated)
      or (select count(distinct key) from (select key from page order by key{order} limit {limit}) as page) < {limit}
      as repeated
), walked as (
  update clerk_feed.walk
  set pages = pages + 1, items = items + {limit},
    last_page = case when ended = 'finished' then last_page else clock_timestamp() end,
    ambiguous = ambiguous or (select inexact.ambiguous from inexact)
  where id = (select newest.walk from newest, full_page) and {PATIENT}
), turned as (
  insert into clerk_feed.bookmark
    (walk, store, feed, incremental, written_by, at, key, key_family, is_end, ambiguous, repeated, led, trail, holds)
  select
    newest.walk, $1, $2, false, $3, $3 + {limit}, full_page.key, $4, false, inexact.ambiguous,
    inexact.repeated, way.led, coalesce(way.trail, nextval('clerk_feed.trail')),
    case when not inexact.repeated then own.holds + {limit} end
  from chosen, newest, own, full_page, inexact, way
)
select {columns}, key, (select walk from newest), (select {RANK} from chosen as c, full_page)
from page
order by key{order}
"""  # noqa: S608 (the relation's names are quoted, the rest is ours)
