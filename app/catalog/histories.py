"""How far a delta must reach back beside what it names: what Clerk was told otherwise since is no change of the shop.

A database that failed over, or was made anew from a dump, has gone its own way since: what that undid (an item deleted
since the dump, a change that the former primary had not passed on) has an old modified_at. So a delta that reaches back
to before then is of everything. And a full sync deletes at its end what it lacks, also what came while it was under
way and a delta has brought meanwhile. So a delta that reaches back to before such an end goes back to the sync's
beginning.
"""

import math
from typing import Any

import msgspec

from app.protocol.feeds import FeedName


class Reach(msgspec.Struct, frozen=True):
    """What a delta must know of before, in unix seconds."""

    history: float = -math.inf
    """Since when the database has gone its own way; -inf where it was so from the start."""
    walk: float = math.inf
    """When the first of the full walks began that may have ended since; inf where none did."""


async def reach(connection: Any, store: str, feed: FeedName, since: float) -> Reach:
    """What a delta of a feed must know that reads what changed since a moment, in unix seconds."""
    row = await connection.fetchrow(_REACH, store, feed, since)
    return Reach(row["history"], math.inf if row["walk"] is None else row["walk"])


async def seen(connection: Any) -> float:
    """Since when this database's history has been known to us, in unix seconds; -inf where it was there from the start.

    Notes it where it was not.
    """
    moment: float = await connection.fetchval(_SEEN)
    return moment


async def forget(connection: Any) -> None:
    """Let the history begin now: the database was set back to an earlier state, which nothing in it shows."""
    async with connection.transaction(isolation="read_committed"):
        await connection.execute(_FORGET)
        await connection.execute("update clerk_feed.refresh set timeline = 'set back'")


# One that was there from the start and is not the only one has had a dump brought into it.
_NOTED = """
with known as materialized (
  select case when seen > '-infinity' or not exists (select from clerk_feed.history as o where o.timeline <> h.timeline)
    then seen end as seen
  from clerk_feed.history as h
  where timeline = (select clerk_feed.timeline())
), noted as (
  insert into clerk_feed.history (timeline)
  select clerk_feed.timeline()
  where not exists (select from known where seen is not null)
  on conflict (timeline) do update set seen = greatest(history.seen, excluded.seen)
)
"""

_HISTORY = "extract(epoch from coalesce((select seen from known), now()))::float8"

_SEEN = f"{_NOTED} select {_HISTORY}"

# Where importers met, pages of one walk may be booked on the row of another, which then ends in its stead.
_REACH = f"""
{_NOTED.rstrip()}, lately as (
  select started, ended from clerk_feed.walk
  where store = $1 and feed = $2 and not incremental and last_page > to_timestamp($3::float8)
)
select
  {_HISTORY} as history,
  (
    select extract(epoch from min(started))::float8
    from lately
    where exists (select from lately where ended = 'finished')
  ) as walk
"""  # noqa: S608 (our own)

_FORGET = """
insert into clerk_feed.history (timeline)
select clerk_feed.timeline()
on conflict (timeline) do update set seen = now()
"""
