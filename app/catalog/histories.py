"""Histories: a database that failed over, or was made anew from a dump, has gone its own way since.

What that undid (an item deleted since the dump, a change that the former primary had not passed on) has an old
modified_at, and Clerk has been told otherwise. So a delta that reaches back to before then is of everything.
"""

from typing import Any


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


_SEEN = """
with noted as (
  insert into clerk_feed.history (timeline)
  select clerk_feed.timeline()
  where not exists (select from clerk_feed.history where timeline = (select clerk_feed.timeline()))
  on conflict do nothing
)
select extract(
  epoch from coalesce((select seen from clerk_feed.history where timeline = (select clerk_feed.timeline())), now())
)::float8
"""

_FORGET = """
insert into clerk_feed.history (timeline)
select clerk_feed.timeline()
on conflict (timeline) do update set seen = now()
"""
