"""Connections to the shop's database.

Values arrive the way they are served: numeric, json and jsonb as the text PostgreSQL sent (msgspec.Raw), timestamps
and dates as unix seconds. So no row is touched by Python between the socket and the encoder.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import asyncpg
import msgspec

from app.protocol.problems import BUSY, DATABASE_UNAVAILABLE, STATE_UNAVAILABLE, Refusal
from app.settings import Database
from app.status.events import Emit, PoolExhausted, StateFailed

T = TypeVar("T")


class ConnectRefusedError(Exception):
    """PostgreSQL answered a new connection with an error: a wrong password, a database closed for maintenance."""


LOST = (
    ConnectRefusedError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    # A standby cancels what is in the way of its replay.
    asyncpg.SerializationError,
    # Two pages change the same bookmarks; one of them is given up, for the other to go on.
    asyncpg.DeadlockDetectedError,
    # The primary has become a standby.
    asyncpg.ReadOnlySQLTransactionError,
    OSError,
)
"""What a lost, refused or restarting database raises (seen with asyncpg 0.32; OSError includes TimeoutError)."""

_ACQUIRE_SECONDS = 10.0
_CONNECT_SECONDS = 10.0
_EPOCH_SECONDS = 946_684_800  # PostgreSQL counts from 2000-01-01
_EPOCH_DAYS = 10_957
_INFINITE_TIME = (2**63 - 1, -(2**63))
_INFINITE_DATE = (2**31 - 1, -(2**31))


class Pool:
    """A bounded pool. Waiting for a place in it is bounded too."""

    transactions = False
    """Whether every piece of work is a transaction of its own that brings its settings along: behind PgBouncer."""
    begin = "begin isolation level read committed read only"
    """SQL that begins the transaction of a cursor.

    A cursor is one statement, and so one state of the feed. In repeatable read its state would be that of before it has
    waited for a lock: a table that is truncated and filled again in one transaction, then, is empty to it.
    """

    def __init__(self, pool: asyncpg.Pool, emit: Emit, local_settings: str = "") -> None:
        """`local_settings`: SQL for the beginning of each transaction, where a session is not ours to keep."""
        self._pool = pool
        self._emit = emit
        self.local_settings = local_settings
        if local_settings:
            self.transactions = True
            self.begin = f"{self.begin}; {local_settings}"
        self._waiting = 0
        self._lent: dict[Callable[[], None], None] = {}

    @classmethod
    async def open(cls, dsn: str, settings: Database, emit: Emit) -> "Pool":
        """Connect. Raises what asyncpg raises when the database refuses or can't be reached."""
        statement_ms = int(settings.statement_timeout.seconds * 1000)
        session = {
            "statement_timeout": str(statement_ms),
            "idle_in_transaction_session_timeout": str(statement_ms),
            "timezone": "UTC",
            "datestyle": "ISO",
            # Compiling a page's plan takes longer than running it.
            "jit": "off",
            # A real's digits are its own, whatever the shop's default.
            "extra_float_digits": "1",
            "default_transaction_isolation": "read committed",
        }
        local_settings = ""
        if settings.pgbouncer:
            # Its server connections belong to a transaction at a time, and it refuses settings it does not know.
            del session["default_transaction_isolation"]
            local_settings = "; ".join(f"set local {name} = '{value}'" for name, value in session.items())
            local_settings += f"; {_DURABLE.replace('false', 'true')}; {NO_DEADLINE.format(local='true')}"
            session = {}
        pool = await asyncpg.create_pool(
            dsn,
            connect=_connect,
            min_size=1,
            max_size=settings.pool_size,
            init=_prepare_locally if settings.pgbouncer else _prepare,
            statement_cache_size=0 if settings.pgbouncer else 100,
            reset=_keep,
            timeout=_CONNECT_SECONDS,
            # A frozen backend enforces no statement_timeout: ours is the last resort.
            command_timeout=settings.statement_timeout.seconds + 5,
            max_cached_statement_lifetime=0,
            server_settings={"application_name": "clerk-feed", **session},
        )
        return cls(pool, emit, local_settings)

    async def take(self) -> Any:
        """A connection, to be given back. Raises Refusal(BUSY) when none becomes free in time."""
        self._waiting += 1
        try:
            if not self._pool.get_idle_size() and self._pool.get_size() == self._pool.get_max_size() and self._lent:
                recall = next(iter(self._lent))
                del self._lent[recall]
                recall()
            return await self._pool.acquire(timeout=_ACQUIRE_SECONDS)
        except TimeoutError:
            size = self._pool.get_max_size()
            if self._pool.get_idle_size() > 0 or self._pool.get_size() < size:
                raise  # there was a place, but PostgreSQL did not answer
            self._emit(PoolExhausted(waited=_ACQUIRE_SECONDS, size=size))
            raise Refusal(
                BUSY,
                f"All {size} database connections were in use for {_ACQUIRE_SECONDS:g} s.",
                headers={"Retry-After": "5"},
            ) from None
        except LOST:
            raise
        except asyncpg.PostgresError as error:
            raise ConnectRefusedError(f"PostgreSQL refuses connections with SQLSTATE {error.sqlstate}") from error
        finally:
            self._waiting -= 1

    def usage(self) -> tuple[int, int, int]:
        """Connections open, those in use, and callers that wait for one."""
        size = self._pool.get_size()
        return size, size - self._pool.get_idle_size(), self._waiting

    def lend(self, recall: Callable[[], None]) -> None:
        """A connection that is held, but idle: `recall` is called when somebody waits for one."""
        if self._waiting:
            recall()
        else:
            self._lent[recall] = None

    def keep(self, recall: Callable[[], None]) -> None:
        """The connection is in use again, or given back."""
        self._lent.pop(recall, None)

    async def give_back(self, connection: Any, *, broken: bool = False) -> None:
        """Return a connection. A broken one is thrown away: waiting for a frozen backend would hang."""
        if broken or connection.is_closed() or connection.is_in_transaction():
            with suppress(asyncpg.InterfaceError):  # terminated before, and so no longer ours
                connection.terminate()
        await self._pool.release(connection)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection for a block. After an error that may have left it in mid-talk it is thrown away."""
        connection = await self.take()
        broken = True
        try:
            if self.transactions:
                refused = None
                async with connection.transaction(isolation="read_committed"):
                    await connection.execute(self.local_settings)
                    try:
                        yield connection
                    except Refusal as refusal:
                        refused = refusal  # what was noted before it stays noted
                if refused is not None:
                    raise refused
            else:
                yield connection
            broken = False
        except (asyncpg.SerializationError, asyncpg.ReadOnlySQLTransactionError):
            raise  # perhaps another server does it
        except (asyncpg.PostgresError, Refusal):
            broken = False
            raise
        finally:
            await self.give_back(connection, broken=broken)

    async def require_current(self, connection: Any) -> None:
        """Return where a cursor's transaction may be read from: always, where there is one server."""

    async def patiently(self, work: Callable[[Any], Awaitable[T]], patience: "Patience") -> T:
        """Do some work on a connection, again when the database goes away. Raises Refusal when patience is over.

        The work may be done twice: its answer can be lost after it was committed.
        """
        while True:
            try:
                async with self.connection() as connection:
                    return await work(connection)
            except LOST as error:
                await patience.wait(error)

    async def close(self) -> None:
        """Close gracefully, or after a few seconds in any case."""
        try:
            await asyncio.wait_for(self._pool.close(), 5)
        except (TimeoutError, *LOST):
            self._pool.terminate()


def unavailable(error: BaseException) -> Refusal:
    """The refusal for a database that is not there. The error's text may name hosts, so it stays in the log."""
    cause = str(error) if isinstance(error, ConnectRefusedError) else type(error).__name__
    return Refusal(
        DATABASE_UNAVAILABLE,
        f"The database could not be reached ({cause}).",
        headers={"Retry-After": "10"},
    )


def state_unavailable(error: asyncpg.PostgresError, emit: Emit) -> Refusal:
    """The refusal for bookmarks that can't be read or written. Without one a page would be a guess."""
    emit(StateFailed(sqlstate=error.sqlstate, message=str(error)))
    return Refusal(
        STATE_UNAVAILABLE,
        f"PostgreSQL refused with SQLSTATE {error.sqlstate}.",
        headers={"Retry-After": "10"},
    )


class Patience:
    """How long to go on trying while the database is away: bounded, with growing pauses."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.reset()

    def reset(self) -> None:
        """Something worked: the next failure starts a new count."""
        self._since: float | None = None
        self.attempts = 0

    async def wait(self, error: BaseException) -> None:
        """Pause before the next attempt. Raises the refusal for a missing database when patience is over."""
        if isinstance(error, ValueError):
            raise error  # asyncpg says so, as an InterfaceError, of what it was given: waiting mends nothing
        now = asyncio.get_running_loop().time()
        self._since = now if self._since is None else self._since
        pause = min(0.05 * 2**self.attempts, 2.0) * random.uniform(0.8, 1.2)  # noqa: S311 (jitter)
        if now + pause > self._since + self._seconds:
            raise unavailable(error) from error
        self.attempts += 1
        await asyncio.sleep(pause)


async def _keep(connection: Any) -> None:
    """Nothing to reset: we set no session state, and asyncpg's own reset costs a round trip a page."""


async def _connect(dsn: str, **options: Any) -> Any:
    return await asyncpg.connect(shuffled(dsn), **options)


_HOSTS = r"(\w+://(?:[^@/?]*@)?)([^@/?]*,[^@/?]*)((?:[/?].*)?)"
"""A URL with several hosts: what stands before them, they, and the rest."""


def of_primary(dsn: str) -> str:
    """The DSN of the server that takes writes: of several hosts not any, unless it says which (as libpq spells it).

    Some of what we read must not lag behind what we write.
    """
    several = re.fullmatch(_HOSTS, dsn, re.DOTALL) or re.search(r"[?&]host=[^&]*,", dsn)
    if not several or "target_session_attrs=" in dsn:
        return dsn
    return f"{dsn}{'&' if '?' in dsn else '?'}target_session_attrs=read-write"


def shuffled(dsn: str) -> str:
    """The DSN with its hosts in another order: asyncpg takes the first that will do, and none shall bear it all."""
    named = re.fullmatch(_HOSTS, dsn, re.DOTALL)
    if named is None:
        return dsn
    hosts = named[2].split(",")
    random.shuffle(hosts)
    return f"{named[1]}{','.join(hosts)}{named[3]}"


_DURABLE = """
select set_config('synchronous_commit', coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'local'), false)
"""
"""A bookmark is durable before its page is sent, though the shop's own commits may not be."""

NO_DEADLINE = """
select set_config('transaction_timeout', '0', {local}) where current_setting('server_version_num')::int >= 170000
"""
"""SQL that lifts the shop's own bound on transactions, since PostgreSQL 17: ours are bounded otherwise."""


async def _prepare(connection: Any) -> None:
    await connection.execute(f"{_DURABLE}; {NO_DEADLINE.format(local='false')}")
    await _prepare_codecs(connection)


async def _prepare_locally(connection: Any) -> None:
    # asyncpg asks for types by statements that it prepares and then runs: one transaction, or two servers.
    async with connection.transaction():
        await _prepare_codecs(connection)


async def _prepare_codecs(connection: Any) -> None:
    def codec(name: str, decoder: Callable[[Any], Any], wire: str) -> Any:
        return connection.set_type_codec(name, schema="pg_catalog", decoder=decoder, encoder=_refuse, format=wire)

    # As text a real 4.8 is not 4.800000190734863, and a numeric keeps its digits.
    await codec("float4", msgspec.Raw, "text")
    await codec("numeric", msgspec.Raw, "text")
    await codec("json", _json, "binary")
    await codec("jsonb", _jsonb, "binary")
    await codec("timestamptz", _seconds, "tuple")
    await codec("timestamp", _seconds, "tuple")
    await codec("date", _day_seconds, "tuple")


def _refuse(value: object) -> object:
    raise TypeError(f"no parameter is ever of this type: {type(value).__name__}")


def _seconds(value: tuple[int]) -> int | None:
    microseconds = value[0]
    if microseconds in _INFINITE_TIME:
        return None
    return microseconds // 1_000_000 + _EPOCH_SECONDS


def _day_seconds(value: tuple[int]) -> int | None:
    days = value[0]
    return None if days in _INFINITE_DATE else (days + _EPOCH_DAYS) * 86_400


def _json(value: bytes) -> msgspec.Raw | None:
    # Inside a JSON string a line break is always escaped, so a raw one stands between tokens.
    if b"\n" in value or b"\r" in value:
        value = value.replace(b"\n", b" ").replace(b"\r", b" ")
    return None if value.strip() == b"null" else msgspec.Raw(value)


def _jsonb(value: bytes) -> msgspec.Raw | None:
    # One version byte precedes the text; PostgreSQL writes jsonb without line breaks.
    return None if value[1:] == b"null" else msgspec.Raw(value[1:])
