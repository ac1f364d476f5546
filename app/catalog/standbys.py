"""Reading from standbys, which may lag, without losing what was there when a walk began, or what a delta has brought.

A full walk begins by writing its row on the primary, and each of its pages is read from a server that shows this row:
so it shows as well whatever was committed before. An item that is there throughout the walk is then in every page's
view, however the pages are spread over standbys and however these lag. That one page sees a later state than the next
does no harm in the order of the id, which never changes; in the order of modified_at it would, so deltas are read from
the primary, and so is whatever belongs to no walk.

A page that is older than what deltas have brought meanwhile would undo it at Clerk, and no later delta would reach back
to it. So no page is older than half of the store's incremental_overlap: the row of the walk is beaten on the primary,
and a server must show a beat that is young enough. The other half is for transactions that were long open.

The row is looked for as data, not by a position in the log: that needs no rights, works whatever replicates, and a
server that went its own way after a failover never shows it.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec

from app.catalog.pool import Patience, Pool, state_unavailable
from app.protocol.problems import STANDBY_BEHIND, Refusal
from app.status.events import Emit, StandbyBehind

CATCH_UP_SECONDS = 10.0
"""How long a page waits for a server that shows its walk, and is young enough."""
_ONE_SERVER_SECONDS = 1.0
"""How long it waits for one of them, before another connection is made, perhaps to another server."""
_POLL_SECONDS = 0.005


class Mark(msgspec.Struct, frozen=True):
    """The row of a walk, as the primary wrote it. The moment tells it from one of the same number elsewhere."""

    walk: int
    started: str
    """As PostgreSQL writes a timestamptz, microseconds included."""


class Primary:
    """The server that standbys are standbys of, as far as they are held against it."""

    def __init__(self, pool: Pool, resume_seconds: float, emit: Emit) -> None:
        self._pool = pool
        self._resume_seconds = resume_seconds
        self._emit = emit

    async def beat(self, mark: Mark, lag_seconds: float) -> str:
        """Have the row of a walk show how late it is; the oldest beat of a server that lags no more. Raises Refusal."""
        try:
            return str(
                await self._pool.patiently(
                    lambda connection: connection.fetchval(_BEAT, mark.walk, lag_seconds),
                    Patience(self._resume_seconds),
                )
            )
        except asyncpg.PostgresError as error:
            raise state_unavailable(error, self._emit) from error


class Showing(Pool):
    """A pool of standbys as one walk uses it: every connection it gives shows the walk's row, beaten not long ago."""

    def __init__(self, standbys: Pool, primary: "Primary", mark: Mark, overlap_seconds: float, emit: Emit) -> None:
        self._standbys = standbys
        self._primary = primary
        self._mark = mark
        # A server may lag by one quarter, and how far it may is asked of the primary once in another one.
        self._lag_seconds = overlap_seconds / 4
        self._least_beat = ""
        self._asked = self._shown = -math.inf
        """When the least beat was asked for, and when a server has last shown it, by the loop's clock."""
        self._emit = emit
        self.begin = standbys.begin
        self.transactions = standbys.transactions
        self.local_settings = standbys.local_settings

    async def take(self) -> Any:
        """A connection to a server that has caught up. Raises Refusal(STANDBY_BEHIND) when none does in time."""
        now = asyncio.get_running_loop().time
        if not self.transactions:
            await self._ask_least_beat()
        deadline = now() + CATCH_UP_SECONDS
        while True:
            connection = await self._standbys.take()
            if self.transactions:
                return connection  # the next transaction may be another server's: require_current looks there
            shown = False
            try:
                shown = await self._soon_shows(connection, min(deadline, now() + _ONE_SERVER_SECONDS))
            finally:
                if not shown:
                    await self._standbys.give_back(connection, broken=True)
            if shown:
                return connection
            if now() >= deadline:
                raise self._behind()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection for a block; behind PgBouncer the row is looked for in the very transaction that reads."""
        if not self.transactions:
            async with super().connection() as connection:
                yield connection
            return
        await self._ask_least_beat()
        deadline = asyncio.get_running_loop().time() + CATCH_UP_SECONDS
        while True:
            async with self._standbys.connection() as connection:
                if await self._shows(connection):
                    yield connection
                    return
            if asyncio.get_running_loop().time() >= deadline:
                raise self._behind()
            await asyncio.sleep(_POLL_SECONDS)

    async def require_current(self, connection: Any) -> None:
        """Return where a cursor's transaction reads a server that shows the walk. Raises asyncpg.InterfaceError.

        Behind PgBouncer each transaction may be another server's.
        """
        if not self.transactions:
            return
        await self._ask_least_beat()
        now = asyncio.get_running_loop().time()
        if await self._soon_shows(connection, now + _ONE_SERVER_SECONDS):
            return
        if now > self._asked + CATCH_UP_SECONDS:
            raise self._behind()
        raise asyncpg.InterfaceError("the transaction is on a server that lags")

    async def _ask_least_beat(self) -> None:
        # Not before the last one was shown: a server that lags more than it may would be behind each of them.
        now = asyncio.get_running_loop().time()
        if self._asked <= self._shown and now > self._asked + self._lag_seconds:
            self._least_beat = await self._primary.beat(self._mark, self._lag_seconds)
            self._asked = now

    def _behind(self) -> Refusal:
        self._emit(StandbyBehind(walk=self._mark.walk, lag=self._lag_seconds, waited=CATCH_UP_SECONDS))
        return Refusal(
            STANDBY_BEHIND,
            f"Within {CATCH_UP_SECONDS:g} s no standby has shown walk {self._mark.walk} as the primary had it"
            f" {self._lag_seconds:g} s ago.",
            headers={"Retry-After": "10"},
        )

    async def _shows(self, connection: Any) -> bool:
        shown = bool(await connection.fetchval(_SHOWS, self._mark.walk, self._mark.started, self._least_beat))
        if shown:
            self._shown = asyncio.get_running_loop().time()
        return shown

    async def _soon_shows(self, connection: Any, deadline: float) -> bool:
        pause = _POLL_SECONDS
        while True:
            if await self._shows(connection):
                return True
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.1)

    def lend(self, recall: Callable[[], None]) -> None:
        self._standbys.lend(recall)

    def keep(self, recall: Callable[[], None]) -> None:
        self._standbys.keep(recall)

    async def give_back(self, connection: Any, *, broken: bool = False) -> None:
        await self._standbys.give_back(connection, broken=broken)


async def shows_our_schema(connection: Any, seconds: float) -> bool:
    """Whether a server shows our schema, as it must where it is a standby of the primary; waits so long for it."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not await connection.fetchval("select to_regclass('clerk_feed.walk') is not null"):
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.1)
    return True


# As json, for one that is behind the migration that added the beat shows none.
_SHOWS = """
select exists (
  select
  from clerk_feed.walk as w
  where id = $1 and started = $2::text::timestamptz and (to_jsonb(w) ->> 'beat')::timestamptz >= $3::text::timestamptz
)
"""

# The oldest that will do is reckoned from before the beat, so that this one always does. One of a moment to come was
# made before a clock was set back.
_BEAT = """
with beaten as (
  update clerk_feed.walk
  set beat = clock_timestamp()
  where id = $1 and (beat is null or beat not between now() - make_interval(secs => $2 / 2) and clock_timestamp())
)
select (now() - make_interval(secs => $2))::text
"""
