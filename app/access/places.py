"""Places: how many answers of one store are on their way at once.

This is what protects the database and the memory: a slow reader holds one place, and its own store's only.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.protocol.problems import STREAMS_FULL, Refusal
from app.settings import Store

_WAITING_PER_PLACE = 16
"""How long the line before the places may get, in this many times their number."""


class Places:
    """A store has `most` places; who finds none waits up to `max_wait_seconds`, first come, first served."""

    def __init__(self, most: int, max_wait_seconds: float) -> None:
        self._most = most
        self._max_wait_seconds = max_wait_seconds
        self._places: dict[str, asyncio.Semaphore] = {}
        self._waiting: dict[str, int] = {}

    @asynccontextmanager
    async def one(self, store: Store) -> AsyncIterator[None]:
        """Hold a place of the store. Raises Refusal(STREAMS_FULL)."""
        places = self._places.get(store.name)
        if places is None:
            places = self._places[store.name] = asyncio.Semaphore(self._most)
        if places.locked():
            await self._wait(store, places)
        else:
            await places.acquire()
        try:
            yield
        finally:
            places.release()

    async def _wait(self, store: Store, places: asyncio.Semaphore) -> None:
        waiting = self._waiting.get(store.name, 0)
        if waiting >= self._most * _WAITING_PER_PLACE:
            raise self._full(store, f"and {waiting} more wait")
        self._waiting[store.name] = waiting + 1
        try:
            async with asyncio.timeout(self._max_wait_seconds):
                await places.acquire()
        except TimeoutError:
            raise self._full(store, f"and none ended within {self._max_wait_seconds:g} s") from None
        finally:
            self._waiting[store.name] -= 1

    def _full(self, store: Store, more: str) -> Refusal:
        detail = f"{self._most} answers of the store {store.name} are on their way already, {more}."
        return Refusal(STREAMS_FULL, detail, headers={"Retry-After": "10"})
