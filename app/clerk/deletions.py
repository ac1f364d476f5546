"""Deletions: what vanished from rendered feeds, told to Clerk.

Clerk only ever asks for what exists. The tombstones of a feed are an outbox: an id is done when Clerk has said ok, and
is sent again once a walk that was open then has ended, because that walk may have put the item back. A crash between
Clerk's word and our note of it sends an id twice, which is harmless.

An item that is in the feed again is not deleted: each call holds the lock that a refresh takes to commit, so what
comes back does so before the look at it, or after Clerk's answer.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from app.catalog.pool import NO_DEADLINE
from app.catalog.rendered import OUTBOX_LOCK
from app.catalog.source import items_relation, key_of_items
from app.clerk.api import ClerkApi, ClerkDeniedError, ClerkRefusedError, ClerkUnreachableError, json_ids
from app.protocol.feeds import FeedName
from app.settings import Store
from app.status.events import DeletionsFailed, DeletionsPushed, Emit

_BATCH_BYTES = 4000
"""Of the ids in a URL; servers commonly take 8000 for all of it."""
_BATCH_IDS = 500
_AT_ONCE = 10_000
_LONGEST_WAIT = 60.0
"""Whoever asks us to wait longer is asked again another time."""
_REFUSED_IN_A_ROW = 5
"""So many ids refused one by one, and none accepted between them: it is not the ids."""
_ANY_REFUSALS = 2**31 - 1
_REFUSALS = 5
"""Pushes in which Clerk refused an id by itself, before it is only sent once a day, or by hand."""

Connect = Callable[[], Awaitable[Any]]


class PushError(Exception):
    """Deletions could not be sent. The message says why and holds no secret."""


class Retries(msgspec.Struct, frozen=True):
    """How a call is repeated."""

    attempts: int = 6
    first_seconds: float = 0.5
    longest_seconds: float = 20.0
    all_seconds: float = 180.0


class Pushed(msgspec.Struct):
    """What a push came to, in ids."""

    deleted: int = 0
    refused: int = 0


class Waiting(msgspec.Struct, frozen=True):
    """A deletion that is not done."""

    store: str
    feed: FeedName
    item: str
    vanished: str
    pushed: str | None
    refusals: int
    refused: str | None


class Deletions:
    """Sends the deletions of one installation."""

    def __init__(
        self, connect: Connect, clerk: ClerkApi, api_url: str, emit: Emit, retries: Retries | None = None
    ) -> None:
        """`connect` opens a connection that has no deadline on statements."""
        self._connect = connect
        self._clerk = clerk
        self._api_url = api_url
        self._emit = emit
        self._retries = retries or Retries()

    async def push(self, store: Store, feed: FeedName, *, refused_too: bool = False) -> Pushed:
        """Send what is due. Raises PushError, and what asyncpg raises where the database is away."""
        connection = await self._connect()
        done = Pushed()
        try:
            async with connection.transaction():
                state = await connection.fetchrow(_STATE, store.name, feed)
            if state is None or state["items_table"] is None:
                return done
            push = _Push(self._clerk, self._api_url, self._retries, connection, store, feed, state, done)
            while due := await push.due(_ANY_REFUSALS if refused_too else _REFUSALS):
                before = done.deleted + done.refused
                for batch in _batches(due):
                    await push.send(batch)
                if len(due) < _AT_ONCE or done.deleted + done.refused == before:
                    break
            await push.require_no_doubt()
        except PushError as error:
            self._emit(DeletionsFailed(store=store.name, feed=feed, cause=str(error)))
            raise
        finally:
            connection.terminate()
            if done.deleted or done.refused:
                self._emit(DeletionsPushed(store=store.name, feed=feed, deleted=done.deleted, refused=done.refused))
        return done


class _Push:
    """One push of a feed."""

    def __init__(
        self,
        clerk: ClerkApi,
        api_url: str,
        retries: Retries,
        connection: Any,
        store: Store,
        feed: FeedName,
        state: Any,
        done: Pushed,
    ) -> None:
        self._clerk = clerk
        self._api_url = api_url
        self._retries = retries
        self._connection = connection
        self._store = store
        self._feed = feed
        self._id: int = state["id"]
        self._done = done
        self._refused_in_a_row = 0
        self._is_well = False
        """Whether Clerk has accepted something in this push, or refused it for good."""
        self._doubted: list[tuple[list[str], str]] = []
        """Ids that were refused, and why, where it may be Clerk's own trouble."""

    async def due(self, refusals: int) -> list[str]:
        """Some ids that are due, but for those refused so many times."""
        async with self._connection.transaction():
            rows = await self._connection.fetch(_DUE, self._store.name, self._feed, refusals, _AT_ONCE)
        return [row["item"] for row in rows]

    async def send(self, items: list[str]) -> None:
        """Send a batch, halved where Clerk refuses it, down to the ids at fault."""
        try:
            await self._patiently(items)
            await self._note_refused()
        except ClerkRefusedError as refusal:
            if len(items) > 1:
                middle = len(items) // 2
                await self.send(items[:middle])
                await self.send(items[middle:])
                return
            self._doubted.append((items, str(refusal)))
            if not refusal.passing:
                self._is_well = True
            await self._note_refused()
            self._refused_in_a_row += 1
            if self._refused_in_a_row >= _REFUSED_IN_A_ROW:
                await self._put_off()
                raise PushError(f"{refusal}, whatever the id; the rest waits") from refusal
        except ClerkDeniedError as error:
            raise PushError(f"{error}; check both in feed.toml") from error
        except ClerkUnreachableError as error:
            raise PushError(f"Clerk could not be asked: {error}") from error

    async def _note_refused(self) -> None:
        """Count what was refused, once it is known that it is not Clerk which is unwell."""
        while self._is_well and self._doubted:
            items, refusal = self._doubted[0]
            async with self._connection.transaction():
                await self._connection.execute(_REFUSED, self._store.name, self._feed, items, refusal)
            del self._doubted[0]
            self._done.refused += 1

    async def _put_off(self) -> None:
        """Have the next push begin with other ids: whether Clerk accepts one of them tells who is at fault."""
        items = [item for items, _ in self._doubted for item in items]
        async with self._connection.transaction():
            await self._connection.execute(_PUT_OFF, self._store.name, self._feed, items)

    async def require_no_doubt(self) -> None:
        """Raises PushError where it can't be told whether Clerk is unwell or an id is at fault."""
        if self._doubted:
            await self._put_off()
            raise PushError(f"{self._doubted[0][1]}, and it has accepted nothing else; it will be tried again")

    async def _patiently(self, items: list[str]) -> None:
        import stamina  # noqa: PLC0415 (most services delete nothing, and are ready sooner)

        # It would log every retry, with an error's text; ours are events.
        stamina.instrumentation.set_on_retry_hooks([])
        retries = self._retries
        async for attempt in stamina.retry_context(
            on=_wait,
            attempts=retries.attempts,
            timeout=retries.all_seconds,
            wait_initial=retries.first_seconds,
            wait_max=retries.longest_seconds,
            wait_jitter=retries.first_seconds,
        ):
            with attempt:
                await self._attempt(items)

    async def _attempt(self, items: list[str]) -> None:
        """One call, with the feed's items held as they are from the look at them until Clerk's answer."""
        connection, place = self._connection, (self._store.name, self._feed)
        # What a refresh commits while the lock is waited for must be seen then.
        await connection.execute("begin isolation level read committed")
        try:
            await connection.execute(
                "set local lock_timeout = '60s'; set local idle_in_transaction_session_timeout = 0"
            )
            # The lock ends with the session, and Clerk's answer may take longer than a transaction may.
            await connection.execute(NO_DEADLINE.format(local="true"))
            await connection.execute("select pg_advisory_xact_lock($1, $2)", OUTBOX_LOCK, self._id)
            await self._forget_returned(items)
            due = await connection.fetch(_STILL_DUE, *place, items)
            if due:
                # A walk that ends during the call may have the item, too.
                began = await connection.fetchval("select clock_timestamp()::text")
                ids = [msgspec.json.decode(row["json_id"]) for row in due]
                keys = {"public_key": self._store.public_key, "private_key": self._store.private_key.reveal()}
                await self._clerk.delete(self._api_url, self._feed, ids, **keys)
                await connection.execute(_PUSHED, *place, [row["item"] for row in due], began)
                self._refused_in_a_row = 0
                self._is_well = True
            await connection.execute("commit")
        except BaseException:
            if not connection.is_closed():
                await connection.execute("rollback")
            raise
        self._done.deleted += len(due)

    async def _forget_returned(self, items: list[str]) -> None:
        """Forget the tombstones of items that are in the feed again."""
        table = await self._connection.fetchval(_TABLE, self._id)
        key = await key_of_items(self._connection, table)
        if key is None:
            raise PushError("the table of the feed's items is gone; refresh it first")
        possible = [item for item in items if _fits(item, key.family)]
        await self._connection.execute(
            _RETURNED.format(table=items_relation(table), family=key.family), self._store.name, self._feed, possible
        )


def _wait(error: Exception) -> bool | float:
    """Whether to try again, or after how many seconds."""
    if isinstance(error, ClerkUnreachableError):
        if error.wait_seconds is None:
            return True
        return error.wait_seconds if error.wait_seconds <= _LONGEST_WAIT else False
    return isinstance(error, ClerkRefusedError) and error.passing


def _fits(item: str, family: str) -> bool:
    """Whether an id could be one of this type: a feed's key may have had another one when the item vanished."""
    if family == "int8":
        digits = item.removeprefix("-")
        return digits.isascii() and digits.isdigit() and len(digits) < 20 and -(2**63) <= int(item) < 2**63
    if family == "uuid":
        return len(item) == 36 and all(c in "0123456789abcdef-" for c in item)
    return True


def _batches(items: Sequence[str]) -> list[list[str]]:
    """Ids in lists that fit into a URL. An id too long for it goes alone."""
    batches: list[list[str]] = []
    size = 0
    for item in items:
        length = len(quote(json_ids([item]), safe="")) + 3
        if not batches or size + length > _BATCH_BYTES or len(batches[-1]) >= _BATCH_IDS:
            batches.append([])
            size = 0
        batches[-1].append(item)
        size += length
    return batches


async def waiting(connection: Any, store: str, feed: FeedName, most: int) -> tuple[int, int, list[Waiting]]:
    """How many deletions wait, how many were sent and wait for walks to end, and the first of both."""
    counts = await connection.fetchrow(_COUNTS, store, feed)
    rows = await connection.fetch(_LIST, store, feed, most)
    return counts["waiting"], counts["again"], [Waiting(**row) for row in rows]


# What was left behind by serving unrendered says nothing of what is gone; its next refresh does.
_STATE = """
select r.id, r.items_table
from clerk_feed.rendered as r
where r.store = $1 and r.feed = $2
  and not exists (select from clerk_feed.unrendered as u where u.store = r.store and u.feed = r.feed)
"""

_TABLE = "select items_table from clerk_feed.rendered where id = $1"

# Never sent; or sent while a walk was open that has ended since: it may have put the item back. One that has not ended
# may have gone on as another one, where importers met, so whichever ends counts; an abandoned one ends a day after its
# last page, like its bookmarks. What lies ahead of its last page began before the clock was set back.
_IS_DUE = """(
  t.pushed is null
  or exists (
    select
    from clerk_feed.walk as w
    where w.store = t.store and w.feed = t.feed and (w.started <= t.pushed or w.started > w.last_page)
      and case
        when w.ended is not null then w.last_page >= t.pushed_last
        else w.last_page >= t.pushed_last - interval '24 hours' and (
          w.last_page < now() - interval '24 hours' or exists (
            select
            from clerk_feed.walk as e
            where e.store = t.store and e.feed = t.feed and e.ended is not null and e.last_page >= t.pushed_last
          )
        )
      end
  )
)"""

_DUE = f"""
select t.item
from clerk_feed.tombstone as t
where t.store = $1 and t.feed = $2 and (t.refusals < $3 or t.refused_at < now() - interval '1 day') and {_IS_DUE}
group by t.item
order by max(t.refused_at) nulls first, min(t.id)
limit $4
"""  # noqa: S608 (our own text)

_STILL_DUE = f"""
select distinct on (t.item) t.item, t.json_id::text as json_id
from clerk_feed.tombstone as t
where t.store = $1 and t.feed = $2 and t.item = any($3::text[]) and {_IS_DUE}
  and not exists (select from clerk_feed.unrendered as u where u.store = $1 and u.feed = $2)
"""  # noqa: S608 (our own text)

_RETURNED = """
delete from clerk_feed.tombstone as t
using {table} as i
where t.store = $1 and t.feed = $2 and t.item = any($3::text[]) and i.id = any($3::text[]::{family}[])
  and i.id::text = t.item and i.doc is not null
"""

_PUSHED = """
update clerk_feed.tombstone
set
  pushed = coalesce(pushed, clock_timestamp()),
  pushed_last = $4::text::timestamptz,
  refused = null,
  refusals = 0
where store = $1 and feed = $2 and item = any($3::text[])
"""

_REFUSED = """
update clerk_feed.tombstone set refusals = refusals + 1, refused = $4, refused_at = clock_timestamp()
where store = $1 and feed = $2 and item = any($3::text[])
"""

_PUT_OFF = """
update clerk_feed.tombstone set refused_at = clock_timestamp() where store = $1 and feed = $2 and item = any($3::text[])
"""

# A walk that was open when an id was sent, and still is.
_AGAIN = """(
  t.pushed is not null and exists (
    select
    from clerk_feed.walk as w
    where w.store = t.store and w.feed = t.feed and w.started <= t.pushed and w.ended is null
      and w.last_page > t.pushed_last - interval '24 hours'
  )
)"""

_COUNTS = f"""
select
  count(*) filter (where {_IS_DUE}) as waiting,
  count(*) filter (where {_AGAIN}) as again
from clerk_feed.tombstone as t
where t.store = $1 and t.feed = $2
"""  # noqa: S608 (our own text)

_LIST = f"""
select
  t.store, t.feed, t.item, to_char(t.vanished at time zone 'UTC', 'YYYY-MM-DD HH24:MI') as vanished,
  to_char(t.pushed_last at time zone 'UTC', 'YYYY-MM-DD HH24:MI') as pushed, t.refusals, t.refused
from clerk_feed.tombstone as t
where t.store = $1 and t.feed = $2 and ({_IS_DUE} or {_AGAIN})
order by t.id
limit $3
"""  # noqa: S608 (our own text)
