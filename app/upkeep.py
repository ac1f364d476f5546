"""What `serve` does by itself beside answering: refreshing rendered feeds that say how often, and telling Clerk what
vanished from them.

Every process of a service tries, and locks let one through; the others find that it was done. So it goes on as long as
one process lives.
"""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial

import asyncpg
import msgspec

from app.catalog.pool import LOST, Pool
from app.catalog.rendered import Refresher, RefreshError
from app.clerk.deletions import Deletions, PushError
from app.protocol.feeds import FEEDS, FeedName
from app.settings import Settings, Store
from app.status.events import DeletionsFailed, Emit, RefreshFailed

_AT_ONCE = 2
"""Refreshes of one process at a time: the database has importers to answer."""
_FIRST_SECONDS = 5.0
_HANDOVER_SECONDS = 300.0
_LOOK_SECONDS = 10.0
"""After a roll that turns rendering on, old workers may serve the feed unrendered for as long as their answers last. So
whoever has refreshed it looks so often at first whether it must be refreshed again."""
_JITTER = 0.05
DEGRADED_AFTER = 3
"""So many intervals without a refresh that was done are too many."""


_PUSH_SECONDS = 30.0
"""How often to look for deletions to send: some are due when a walk ends, some when Clerk can be asked again."""

Work = Callable[[], Coroutine[None, None, None]]


class Upkeep:
    """What runs beside a service."""

    def __init__(self, settings: Settings, refresher: Refresher, deletions: Deletions, emit: Emit) -> None:
        self._settings = settings
        self._refresher = refresher
        self._deletions = deletions
        self._emit = emit
        self._places = asyncio.Semaphore(_AT_ONCE)

    def works(self) -> list[Work]:
        """What to run, each until it is cancelled."""
        found: list[Work] = []
        for store in self._settings.stores.values():
            for feed in FEEDS:
                refreshed = asyncio.Event()
                seconds = store.feed(feed).refresh_seconds
                if seconds is not None:
                    found.append(partial(self._refresh, store, feed, seconds, refreshed))
                if deletes(store, feed):
                    found.append(partial(self._push, store, feed, refreshed))
        return found

    async def _refresh(self, store: Store, feed: FeedName, seconds: float, refreshed: asyncio.Event) -> None:
        # Processes that start together must not ask together.
        await asyncio.sleep(random.uniform(0, min(_FIRST_SECONDS, seconds * _JITTER)))  # noqa: S311 (jitter)
        began, ours = time.monotonic(), False
        while True:
            async with self._places:
                try:
                    within = seconds * (1 - 2 * _JITTER)
                    done = await self._refresher.refresh(store, feed, unless_tried_within=within)
                    ours = ours or done is not None
                    refreshed.set()
                except RefreshError:
                    pass  # told by the refresher; another process may be at it
                except (asyncpg.PostgresError, *LOST) as error:
                    self._emit(RefreshFailed(store=store.name, feed=feed, cause=_away(error)))
            rest = seconds
            if ours and time.monotonic() - began < _HANDOVER_SECONDS:
                rest = min(rest, _LOOK_SECONDS)
            await asyncio.sleep(rest * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311 (jitter)

    async def _push(self, store: Store, feed: FeedName, refreshed: asyncio.Event) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PUSH_SECONDS * random.uniform(0.5, 1.5)):  # noqa: S311 (jitter)
                    await refreshed.wait()
            refreshed.clear()
            try:
                await self._deletions.push(store, feed)
            except PushError:
                pass  # told already
            except (asyncpg.PostgresError, *LOST) as error:
                self._emit(DeletionsFailed(store=store.name, feed=feed, cause=_away(error)))


def _away(error: Exception) -> str:
    return f"the database could not be reached ({type(error).__name__})"


def deletes(store: Store, feed: FeedName) -> bool:
    """Whether deletions of a feed are sent to Clerk. Orders are kept there unless the shop says otherwise."""
    settings = store.feed(feed)
    return bool(store.private_key) and settings.rendered and (feed != "orders" or settings.delete_orders)


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
