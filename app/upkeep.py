"""What `serve` does by itself beside answering: refreshing rendered feeds that say how often.

Every process of a service tries, and the lock of a refresh lets one through; the others find that it was done. So it
goes on as long as one process lives.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine

import asyncpg
import msgspec

from app.catalog.pool import LOST, Pool
from app.catalog.rendered import Refresher, RefreshError
from app.protocol.feeds import FEEDS, FeedName
from app.settings import Settings, Store
from app.status.events import Emit, RefreshFailed

_AT_ONCE = 2
"""Refreshes of one process at a time: the database has importers to answer."""
_FIRST_SECONDS = 5.0
_JITTER = 0.05
DEGRADED_AFTER = 3
"""So many intervals without a refresh that was done are too many."""


def upkeep(settings: Settings, refresher: Refresher, emit: Emit) -> list[Callable[[], Coroutine[None, None, None]]]:
    """What to run beside the service, each until it is cancelled."""
    places = asyncio.Semaphore(_AT_ONCE)
    return [
        lambda store=store, feed=feed, seconds=seconds: _refresh(refresher, store, feed, seconds, places, emit)  # type: ignore[misc]
        for store in settings.stores.values()
        for feed in FEEDS
        if (seconds := store.feed(feed).refresh_seconds) is not None
    ]


async def _refresh(
    refresher: Refresher, store: Store, feed: FeedName, seconds: float, places: asyncio.Semaphore, emit: Emit
) -> None:
    # Processes that start together must not ask together.
    await asyncio.sleep(random.uniform(0, min(_FIRST_SECONDS, seconds * _JITTER)))  # noqa: S311 (jitter)
    while True:
        async with places:
            try:
                await refresher.refresh(store, feed, unless_tried_within=seconds * (1 - 2 * _JITTER))
            except RefreshError:
                pass  # told by the refresher; another process may be at it
            except (asyncpg.PostgresError, *LOST) as error:
                cause = f"the database could not be reached ({type(error).__name__})"
                emit(RefreshFailed(store=store.name, feed=feed, cause=cause))
        await asyncio.sleep(seconds * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311 (jitter)


class _Stands(msgspec.Struct, frozen=True):
    store: str
    feed: FeedName
    age: float | None
    last_outcome: str | None
    last_detail: str | None


async def worries(settings: Settings, pool: Pool) -> list[str]:
    """What an operator should look at although everything is served, for people. Raises what asyncpg raises."""
    rendered = {
        (store.name, feed): store.feed(feed)
        for store in settings.stores.values()
        for feed in FEEDS
        if store.feed(feed).rendered
    }
    if not rendered:
        return []
    async with pool.connection() as connection:
        rows = await connection.fetch(_STANDS)
    found = []
    for row in rows:
        stands = msgspec.convert(dict(row), _Stands)
        feed = rendered.get((stands.store, stands.feed))
        if feed is None:
            continue
        every = feed.refresh_seconds
        if stands.last_outcome == "held back" or (stands.last_outcome == "failed" and every is None):
            found.append(stands.last_detail or "")
        elif every is not None and stands.age is not None and stands.age > DEGRADED_AFTER * every:
            why = f" {stands.last_detail}" if stands.last_outcome == "failed" and stands.last_detail else ""
            found.append(
                f"{stands.feed} of {stands.store} was last refreshed {stands.age:,.0f} s ago,"
                f" and should be every {feed.refresh_every}.{why}"
            )
    return found


_STANDS = """
select
  store,
  feed,
  extract(epoch from clock_timestamp() - refreshed)::float8 as age,
  last_outcome,
  last_detail
from clerk_feed.rendered_state
order by store, feed
"""
