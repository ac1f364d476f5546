"""The memory of a batch that turns out larger than any before it.

How many rows are fetched at once follows the sizes seen, and a feed of 1 KB items may have 10 MB ones behind them:
asyncpg takes in whatever a statement sends. So a fetch that lasts is watched, and given up when the process has grown
too far meanwhile. To ask PostgreSQL for the sizes instead, row by row, made a page of ten texts 15 to 50 % dearer;
this costs a normal page nothing.
"""

import asyncio
import resource
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

MOST_BYTES = 100_000_000
"""Growth of the process during one fetch. Other answers of the moment count as well: then one of them is read anew."""
_FIRST_LOOK_SECONDS = 0.01
"""Longer than most pages take: until then nothing is looked at, and a socket brings in some 20 MB at most."""
_LOOK_SECONDS = 0.005
_STATUS = Path("/proc/self/statm")
_PAGE_BYTES = resource.getpagesize()


class BatchTooLargeError(Exception):
    """A fetch was given up; its connection is gone."""


async def bounded(connection: Any, fetch: Awaitable[T]) -> T:
    """What a fetch on a connection comes to. Raises BatchTooLargeError where memory grew too far, else what it does."""
    watch = _Watch(connection)
    try:
        return await fetch
    except Exception as error:
        if watch.over:
            raise BatchTooLargeError from error
        raise
    finally:
        watch.stop()


class _Watch:
    """Looks at the process's memory while a fetch lasts, and ends the connection where it grows too far."""

    def __init__(self, connection: Any) -> None:
        self.over = False
        self._connection = connection
        self._before: int | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_FIRST_LOOK_SECONDS, self._look)

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = _resident_bytes()
        self._before = now if self._before is None else self._before
        if now - self._before > MOST_BYTES:
            self.over = True
            self._connection.terminate()
            return
        self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)


def _resident_bytes() -> int:
    try:
        return int(_STATUS.read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    except OSError:
        # Without /proc: the most there ever was, which grows as well, if later.
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
