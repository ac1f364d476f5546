"""Rates: how often a store may be read, and how often a caller may be refused.

Windows move, and go by the monotonic clock: a clock that is set back must not lock the importer out. Each process
counts for itself, so N processes allow N times as much.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction

import msgspec
from cachetools import LRUCache
from limits import RateLimitItem, RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from app.access.client import Client
from app.protocol.problems import REFUSED_TOO_OFTEN, TOO_FAST, Refusal
from app.settings import Rate, Store

MOST_CALLERS = 65_536
"""Whose refusals are remembered at once. Beyond, who was refused longest ago is forgotten first."""

AT_ONCE = 16
"""Unproven callers of one address and store whose credentials are looked at together; more wait."""

MOST_WAITING = 256


class SteadyStorage(MemoryStorage):
    """limits' own storage in memory, by the monotonic clock and without a thread that expires entries."""

    def __init__(self) -> None:
        super().__init__()
        self._windows: LRUCache[str, deque[float]] = LRUCache(MOST_CALLERS)

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        window = self._window(key, expiry)
        if len(window) + amount > limit:
            return False
        window.extend([time.monotonic()] * amount)
        return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """When the oldest entry in the window was made, by the monotonic clock, and how many there are."""
        window = self._window(key, expiry)
        return (window[0] if window else time.monotonic()), len(window)

    def _window(self, key: str, expiry: int) -> deque[float]:
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = deque()
        oldest = time.monotonic() - expiry
        while window and window[0] <= oldest:
            window.popleft()
        return window


class Pace:
    """How often each store is read: who is too fast waits for a turn, and is refused only after `max_wait`."""

    def __init__(self, rate: Rate, max_wait_seconds: float) -> None:
        self._limiter = MovingWindowRateLimiter(SteadyStorage())
        # 600/minute as 10/second: a caller over it waits a moment, not the rest of a minute.
        even = Fraction(rate.count, rate.seconds)
        self._item = RateLimitItemPerSecond(even.numerator, even.denominator)
        self._max_wait_seconds = max_wait_seconds
        self._lines: dict[str, asyncio.Lock] = {}
        # Who stands behind so many would not be served within max_wait anyway.
        self._most_waiting = max(1, math.ceil(even * Fraction(max_wait_seconds)))
        self._waiting: dict[str, int] = {}

    async def take(self, store: Store) -> float:
        """Wait for the store's turn; answers the seconds waited. Raises Refusal(TOO_FAST)."""
        line = self._lines.setdefault(store.name, asyncio.Lock())
        if not line.locked() and self._limiter.hit(self._item, store.name):
            return 0.0
        started = time.monotonic()
        waiting = self._waiting.get(store.name, 0)
        if waiting >= self._most_waiting:
            raise self._refusal(store, f"and {waiting} requests wait already")
        self._waiting[store.name] = waiting + 1
        try:
            async with asyncio.timeout(self._max_wait_seconds):
                async with line:  # first come, first served
                    while not self._limiter.hit(self._item, store.name):  # noqa: ASYNC110 - time frees a turn
                        await asyncio.sleep(self._seconds_to_turn(store))
        except TimeoutError:
            raise self._refusal(store, f"and no turn came within {self._max_wait_seconds:g} s") from None
        finally:
            self._waiting[store.name] -= 1
        return time.monotonic() - started

    def _refusal(self, store: Store, more: str) -> Refusal:
        seconds = max(1, math.ceil(self._seconds_to_turn(store)))
        detail = f"The store {store.name} was asked faster than {self._item}, {more}."
        return Refusal(TOO_FAST, detail, headers={"Retry-After": str(seconds)})

    def _seconds_to_turn(self, store: Store) -> float:
        return max(0.001, self._limiter.get_window_stats(self._item, store.name).reset_time - time.monotonic())


class _Line(msgspec.Struct):
    """Who waits to have credentials looked at, of one address and store."""

    places: asyncio.Semaphore
    inside: int = 0


class Refusals:
    """How often callers brought no or wrong credentials, by address and store.

    All shops share the importer's address, so one with a wrong key must not shut out the others.
    """

    def __init__(self, rate: Rate) -> None:
        self._limiter = MovingWindowRateLimiter(SteadyStorage())
        self._item: RateLimitItem = RateLimitItemPerSecond(rate.count, rate.seconds)
        self._rate = rate
        self._lines: dict[tuple[str, str], _Line] = {}

    @asynccontextmanager
    async def turn(self, store: Store, client: Client) -> AsyncIterator[None]:
        """A turn to have credentials looked at. Raises Refusal(REFUSED_TOO_OFTEN).

        Few at once: of thousands of guesses sent together only so many are asked of Clerk before the count stops
        the rest.
        """
        self._require_few(store, client)
        key = (store.name, client.block)
        line = self._lines.setdefault(key, _Line(asyncio.Semaphore(AT_ONCE)))
        if line.inside >= AT_ONCE + MOST_WAITING:
            raise self._refusal(store, client, 1)
        line.inside += 1
        try:
            async with line.places:
                self._require_few(store, client)
                yield
        finally:
            line.inside -= 1
            if not line.inside:
                self._lines.pop(key, None)

    def count(self, store: Store, client: Client) -> None:
        """Remember a refusal."""
        self._limiter.hit(self._item, store.name, client.block)

    def _require_few(self, store: Store, client: Client) -> None:
        if self._limiter.test(self._item, store.name, client.block):
            return
        reset = self._limiter.get_window_stats(self._item, store.name, client.block).reset_time
        raise self._refusal(store, client, reset - time.monotonic())

    def _refusal(self, store: Store, client: Client, seconds: float) -> Refusal:
        return Refusal(
            REFUSED_TOO_OFTEN,
            f"{client.address} brought missing or wrong credentials for the store {store.name} too often"
            f" (refusal_rate: {self._rate.count} in {self._rate.seconds} s).",
            headers={"Retry-After": str(max(1, math.ceil(seconds)))},
        )
