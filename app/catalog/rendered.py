"""Rendered feeds: their items stand ready as JSON in a table of ours, and a refresh brings them up to date.

A refresh is one transaction: readers see all of it or nothing, and a process that dies in it leaves the last good
state. Changed items get the refresh's stamp as modified_at. The moment at which the stamp was seen to be visible is
written afterwards, and a delta since T holds what was stamped after the last refresh visible before T: so no change
lies before a moment a reader has already been past, however long the refresh took.

One statement renders the source, compares and writes, in the order of the key, so that it is a merge of two indexes
and needs no memory. Rows that are not valid are kept in the same table: with the last valid version of their item, or
with none.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

import asyncpg
import msgspec

from app.catalog.guard import ACCEPT, shrunk
from app.catalog.pool import LOST, NO_DEADLINE
from app.catalog.rendering import Rendering, rendering
from app.catalog.source import columns_of, items_relation, key_of_items, shape_of
from app.protocol.feeds import FEEDS, FeedName
from app.protocol.problems import Refusal
from app.settings import Store
from app.status.events import Emit, Refreshed, RefreshFailed, RefreshHeldBack

REFRESH_LOCK = 0x636C6601
"""First half of the advisory lock that a refresh holds; the second is the feed's number in clerk_feed.rendered."""
OUTBOX_LOCK = 0x636C6602
"""The same of the lock under which deletions are sent: no item comes back into the feed while Clerk deletes it."""

KEPT_DAYS = 30
_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 120_000}
"""Seconds, and milliseconds for the last; see tcp(7)."""
_CONFLICTS = 5
_LOOKS = 5
"""So many times what vanished is looked for, while the tables that it may be in change."""
_MERGE_SINCE = 170_000
"""PostgreSQL 17 brought MERGE … WHEN NOT MATCHED BY SOURCE and its RETURNING."""

Connect = Callable[[], Awaitable[Any]]
Watch = Callable[[int, int | None], None]
"""Is told how many rows have been rendered, and of how many."""


class Summary(msgspec.Struct, frozen=True):
    """What a refresh came to."""

    store: str
    feed: FeedName
    items: int
    added: int
    changed: int
    unchanged: int
    vanished: int
    invalid: int
    seconds: float


class RefreshError(Exception):
    """A refresh did not happen; what is served stays as it was. The message says why and what to do."""


class RefreshBusyError(RefreshError):
    """Another process refreshes this feed right now."""


class RefreshHeldBackError(RefreshError):
    """The refresh would leave far fewer items than there were, or far fewer of them."""

    def __init__(
        self, store: str, feed: FeedName, items: int, most: int | None, *, vanished: int, replaced: bool = False
    ) -> None:
        """`vanished`: how many would be gone; `replaced`: it is for them, although others come."""
        self.items = items
        self.most = most
        self.vanished = vanished
        self.replaced = replaced
        had = f"the most in 24 hours were {most:,}" if most is not None else "all of its rows lack required attributes"
        if replaced:
            had = f"{vanished:,} of the {most:,} there are would be gone, and Clerk would be told to delete them"
        super().__init__(
            f"{feed} of {store} would have {items:,} items; {had}. What was rendered last goes on being served."
            f" If that is right: clerk-feed refresh --store {store} --feed {feed} --accept-shrink"
            f" --items {items}"
        )


class _State(msgspec.Struct, frozen=True):
    """A feed's row of clerk_feed.rendered."""

    id: int
    items_table: str | None
    items: int
    invalid: int


class _Counts(msgspec.Struct, frozen=True):
    """What was written."""

    inserted: int = 0
    """Rows, valid or not."""
    deleted: int = 0
    stamped: int = 0
    """Rows whose doc is new or another one."""
    vanished: int = 0


class _Accepted(msgspec.Struct, frozen=True):
    """What an operator says is right: so many items, and so many gone."""

    items: int
    vanished: int


class Refresher:
    """Refreshes rendered feeds, each on a connection of its own."""

    def __init__(self, connect: Connect, emit: Emit) -> None:
        """`connect` opens a connection that has no deadline on statements."""
        self._connect = connect
        self._emit = emit

    async def refresh(
        self,
        store: Store,
        feed: FeedName,
        *,
        accept_shrink: bool = False,
        accepted_items: int | None = None,
        unless_tried_within: float | None = None,
        watch: Watch | None = None,
    ) -> Summary | None:
        """Bring a feed's items up to date. None where it was tried within so many seconds.

        `accept_shrink`: an operator says that it is right to leave `accepted_items`, or without a number as many as
        the refresh that was held back last. Far fewer are held back all the same.

        Raises RefreshError, and what asyncpg raises where no connection can be had.
        """
        connection = await self._connect()
        watching: asyncio.Task[None] | None = None
        try:
            async with connection.transaction():
                id = await _registered(connection, store.name, feed)
            if watch:
                watching = asyncio.create_task(self._watch(id, watch))
            return await self._recorded(
                connection,
                id,
                store,
                feed,
                accept_shrink=accept_shrink,
                accepted_items=accepted_items,
                unless_tried_within=unless_tried_within,
            )
        finally:
            if watching:
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
            # A statement may still run, and whoever waits for it must not: the server ends it when nobody listens.
            connection.terminate()

    async def preview(self, store: Store, feed: FeedName) -> Summary:
        """What a refresh would come to; nothing is written. Raises RefreshError like refresh."""
        connection = await self._connect()
        started = time.monotonic()
        try:
            await connection.execute("begin isolation level read committed read only")
            await connection.execute(_SETTINGS)
            row = await connection.fetchrow(_STATE, store.name, feed)
            state = msgspec.convert(dict(row), _State) if row else _State(0, None, 0, 0)
            how = rendering(store.name, feed, *await columns_of(connection, store, feed))
            return await _previewed(connection, state, how, store.name, feed, started)
        except Refusal as refusal:
            raise RefreshError(f"{refusal.detail} {refusal.fix}") from refusal
        except asyncpg.PostgresError as error:
            raise RefreshError(f"PostgreSQL refused: {error} (SQLSTATE {error.sqlstate})") from error
        finally:
            connection.terminate()

    async def _recorded(
        self,
        connection: Any,
        id: int,
        store: Store,
        feed: FeedName,
        *,
        accept_shrink: bool,
        accepted_items: int | None,
        unless_tried_within: float | None,
    ) -> Summary | None:
        """The refresh, with its outcome on record and told, whatever it is."""
        started = time.monotonic()
        async with connection.transaction():
            began = await connection.fetchval("select clock_timestamp()::text")
        try:
            summary = await _refreshed(
                connection,
                id,
                store,
                feed,
                accept_shrink=accept_shrink,
                accepted_items=accepted_items,
                unless_tried_within=unless_tried_within,
            )
        except RefreshHeldBackError as held:
            await _note(connection, id, began, "held back", str(held), held)
            gone = held.vanished if held.replaced else 0
            self._emit(RefreshHeldBack(store=store.name, feed=feed, items=held.items, most=held.most, vanished=gone))
            raise
        except RefreshBusyError:
            raise
        except (RefreshError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            told = error if isinstance(error, RefreshError) else await _explained(connection, store, feed, error)
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await _note(connection, id, began, "failed", str(told))
            self._emit(RefreshFailed(store=store.name, feed=feed, cause=str(told)))
            raise told from error
        if summary is not None:
            seconds = time.monotonic() - started
            summary = msgspec.structs.replace(summary, seconds=seconds)
            self._emit(Refreshed(**msgspec.structs.asdict(summary)))
        return summary

    async def _watch(self, id: int, watch: Watch) -> None:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            connection = await self._connect()
            try:
                while True:
                    await asyncio.sleep(0.5)
                    async with connection.transaction():
                        done = await connection.fetchval(f"select last_value from {_sequence(id)}")  # noqa: S608
                        expected = await connection.fetchval(
                            "select items + invalid from clerk_feed.rendered where id = $1", id
                        )
                    watch(done, expected or None)
            finally:
                connection.terminate()


async def _refreshed(
    connection: Any,
    id: int,
    store: Store,
    feed: FeedName,
    *,
    accept_shrink: bool,
    accepted_items: int | None,
    unless_tried_within: float | None,
) -> Summary | None:
    """One refresh, again where another one has just ended in between."""
    for _ in range(_CONFLICTS):
        # A process that died after its commit has left this undone.
        async with connection.transaction():
            await connection.execute(_VISIBLE, id)
        # The source is read by one statement, of one state; see Pool.begin for why not repeatable read.
        await connection.execute("begin isolation level read committed")
        try:
            await connection.execute(_SETTINGS)
            if not await connection.fetchval("select pg_try_advisory_xact_lock($1, $2)", REFRESH_LOCK, id):
                raise RefreshBusyError(f"{feed} of {store.name} is being refreshed by another process.")
            # With the lock held, and so as the last refresh has left it.
            row = await connection.fetchrow(_STATE + " for update", store.name, feed)
            if row is None:
                raise RefreshError(f"{feed} of {store.name} has lost its row in clerk_feed.rendered; try again.")
            if unless_tried_within is not None and await connection.fetchval(_TRIED, id, unless_tried_within):
                await connection.execute("rollback")
                return None
            state = msgspec.convert(dict(row), _State)
            accepted = await _accepted(connection, store, feed, state, accepted_items) if accept_shrink else None
            summary = await _Run(connection, store, feed, state, accepted).run()
            await connection.execute("commit")
        except asyncpg.SerializationError:
            await connection.execute("rollback")
            continue
        except BaseException:
            if not connection.is_closed():
                with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    await connection.execute("rollback")
            raise
        async with connection.transaction():
            await connection.execute(_VISIBLE, id)
        await _drop_old(connection, id)
        return summary
    raise RefreshBusyError(f"{feed} of {store.name} is refreshed by other processes all the time.")


async def _accepted(connection: Any, store: Store, feed: FeedName, state: _State, items: int | None) -> _Accepted:
    """What an operator accepts who says so many items, or none. Raises RefreshError where it can't be told."""
    held = await connection.fetchrow(_HELD_BACK, state.id)
    if items is None:
        if held is None:
            raise RefreshError(
                f"No refresh of {feed} of {store.name} is held back: there is nothing to accept. Run it without"
                " --accept-shrink, or say with --items how many items are right."
            )
        if not held["items"]:
            raise RefreshError(
                f"The last refresh of {feed} of {store.name} found no items at all. If that is right: --items 0"
            )
        items = held["items"]
    known = (held["vanished"] or 0) if held else 0
    return _Accepted(items, max(known, state.items - items))


class _Run:
    """The statements of one refresh, inside its transaction."""

    def __init__(
        self,
        connection: Any,
        store: Store,
        feed: FeedName,
        state: _State,
        accepted: "_Accepted | None",
    ) -> None:
        self._connection = connection
        self._store = store
        self._feed = feed
        self._state = state
        self._accepted = accepted

    async def run(self) -> Summary:
        connection, store, feed, state = self._connection, self._store.name, self._feed, self._state
        how = await self._rendering()
        most = await connection.fetchval(_MOST, state.id)
        kept = state.items_table and await key_of_items(connection, state.items_table)
        if kept == how.key and self._accepted is None and await connection.fetchrow(_HELD_BACK, state.id):
            # It was held back before, and most probably is again: look first, instead of writing and undoing.
            preview = await _previewed(connection, state, how, store, feed, 0)
            self._require_enough(preview.items, preview.invalid, most, preview.vanished)
        began, stamp = await connection.fetchrow(_STAMP, state.id)
        await connection.fetchval(f"select setval('{_sequence(state.id)}', 1, false)")
        # A delta of rendered items must hold what was changed, served unrendered, and changed back.
        left_behind = await connection.fetchrow(_WAS_LEFT_BEHIND, store, feed)
        if kept == how.key and state.items_table and left_behind is None:
            table = state.items_table
            counts, items = await self._merged(how, table, stamp)
            among = (
                _VANISHED.format(family=f"{how.key.family}{how.key.order}", equal=how.key.compared("="))
                if counts.vanished
                else None
            )
        else:
            table = _next_table(state)
            counts, items = await self._filled(how, table, stamp, old=state.items_table if kept else None)
            among = "true"
        if among is not None:
            counts, items = await self._taken_back(how, table, stamp, among, counts, items)
        invalid = await self._note_faults(table, stamp)
        self._require_enough(items, invalid, most, counts.vanished)
        added = items - state.items + counts.vanished if kept else items
        changed = counts.stamped - added if kept == how.key else 0
        summary = Summary(store, feed, items, added, changed, items - added - changed, counts.vanished, invalid, 0)
        await connection.execute(
            _RECORD, state.id, began, stamp, items, added, changed, summary.unchanged, counts.vanished, invalid,
            self._accepted is not None,
        )  # fmt: skip
        told = (state.items_table, state.items, state.invalid)
        if (table, items, invalid) != told or counts.stamped:
            await connection.execute(_UPDATE_STATE, state.id, table, items, invalid)
        if left_behind is not None and left_behind["quiet"]:
            await connection.execute(_IS_RENDERED, store, feed)
        if self._accepted is not None:
            await connection.execute(ACCEPT, store, feed, items, None)
        # Last, and for a moment: what is being deleted at Clerk right now must not come back meanwhile. Whoever sends
        # deletions writes in tombstones once Clerk has answered.
        await connection.execute("select pg_advisory_xact_lock($1, $2)", OUTBOX_LOCK, state.id)
        await connection.execute(_SWEEP, state.id, store, feed)
        return summary

    async def _rendering(self) -> Rendering:
        try:
            relation, columns = await columns_of(self._connection, self._store, self._feed)
            return rendering(self._store.name, self._feed, relation, columns)
        except Refusal as refusal:
            raise RefreshError(f"{refusal.detail} {refusal.fix}") from refusal

    def _require_enough(self, items: int, invalid: int, most: int | None, vanished: int) -> None:
        """Hold back what would drain the shop, be it that other items take the place of those that are deleted."""
        store, settings, before = self._store.name, self._store.feed(self._feed), self._state.items
        accepted = self._accepted
        if shrunk(items, invalid, most if accepted is None else accepted.items, settings):
            raise RefreshHeldBackError(store, self._feed, items, most, vanished=vanished)
        more = vanished - (accepted.vanished if accepted else 0)
        if more > settings.shrink_floor and more > before * settings.shrink_limit:
            raise RefreshHeldBackError(store, self._feed, items, before, vanished=vanished, replaced=True)

    async def _taken_back(
        self, how: Rendering, table: str, stamp: str, among: str, counts: _Counts, items: int
    ) -> tuple[_Counts, int]:
        """Take in what the source has after all, and was without when its statement began; see `Source.looks_late`.

        `among`: SQL for the rows to look at. Answers what was written, and how many items there are then.
        """
        sql = _TAKE_BACK.format(table=items_relation(table), among=among, **_parts(how))
        for _ in range(_LOOKS):
            before = await shape_of(self._connection, how.relation)
            row = await self._connection.fetchrow(sql, stamp, self._store.name, self._feed)
            taken, unburied = row["taken"], row["unburied"]
            counts = msgspec.structs.replace(
                counts,
                inserted=counts.inserted + taken,
                stamped=counts.stamped + taken,
                vanished=counts.vanished - unburied,
            )
            items += taken
            if before == await shape_of(self._connection, how.relation):
                return counts, items
        raise RefreshError(
            f"The tables of {self._feed} of {self._store.name} were split, swapped or attached again and again while"
            " they were read. What was rendered last goes on being served; the next refresh tries again."
        )

    async def _merged(self, how: Rendering, table: str, stamp: str) -> tuple[_Counts, int]:
        """Write what differs. Answers what was written, and how many items there are then."""
        connection, state = self._connection, self._state
        never_valid = await connection.fetchval(_NEVER_VALID.format(table=items_relation(table)))
        version = await connection.fetchval("select current_setting('server_version_num')::int")
        write = _MERGE if version >= _MERGE_SINCE else _WRITE
        row = await connection.fetchrow(_statement(write, how, table, state.id), stamp, self._store.name, self._feed)
        counts = _Counts(**row)
        rows = state.items + never_valid + counts.inserted - counts.deleted
        return counts, rows - await connection.fetchval(_NEVER_VALID.format(table=items_relation(table)))

    async def _filled(self, how: Rendering, table: str, stamp: str, *, old: str | None) -> tuple[_Counts, int]:
        """Make the table of items anew. What the old one had under another type of key is gone if its text is."""
        connection = self._connection
        await connection.execute(f"drop table if exists {items_relation(table)}")
        for sql in _CREATE.format(table=items_relation(table), id=f"{how.key.family}{how.key.order}").split(";"):
            await connection.execute(sql)
        await connection.execute(_statement(_FILL, how, table, self._state.id), stamp)
        for sql in _INDEX.format(table=items_relation(table)).split(";"):
            await connection.execute(sql)
        items = await connection.fetchval(f"select count(*) from {items_relation(table)} where doc is not null")  # noqa: S608
        vanished = 0
        if old is not None:
            before = await key_of_items(connection, old)
            json_id = "o.id::text" if before and before.family == "int8" else "to_json(o.id::text)::text"
            parts = {"old": items_relation(old), "table": items_relation(table), "json_id": json_id}
            # What is not valid now keeps its last valid version.
            items += await connection.fetchval(_KEPT.format(**parts, new_json_id=how.json_id), stamp)
            vanished = await connection.fetchval(_BURY_OLD.format(**parts), stamp, self._store.name, self._feed)
        return _Counts(inserted=items, stamped=items, vanished=vanished), items

    async def _note_faults(self, table: str, stamp: str) -> int:
        """Bring clerk_feed.invalid up to date; how many rows have faults."""
        connection, place = self._connection, (self._store.name, self._feed)
        relation = items_relation(table)
        invalid: int = await connection.fetchval(f"select count(*) from {relation} where faults is not null")  # noqa: S608
        if invalid or await connection.fetchval(_HAS_INVALID, *place):
            await connection.execute(_FORGET_FAULTS.format(table=relation), *place)
            await connection.execute(_NOTE_FAULTS.format(table=relation), *place, stamp)
        if invalid and self._store.feed(self._feed).strict:
            first = await connection.fetchrow(_FIRST_INVALID, *place)
            raise RefreshError(
                f"The item with id {first['id']} of {self._feed}: {first['attribute']} {first['reason']}, and the feed"
                " is strict. Give the item the attribute, leave it out in the view, or set strict = false."
            )
        return invalid


async def leave_behind(connection: Any, stores: Iterable[Store]) -> str:
    """Note which feeds are served from their sources now: what was rendered of them before is old from here on.

    Whoever turns rendering on again would otherwise serve the items of then, and Clerk would delete what came since.
    Waits for deletions that are on their way to Clerk: what they name may be served again from here on.
    Answers when this was by the database's clock.
    """
    async with connection.transaction(isolation="read_committed"):
        await connection.execute("set local lock_timeout = '60s'")
        feeds = _from_sources(stores)
        await connection.execute(_LEAVE_BEHIND, *feeds)
        await connection.execute(_AWAIT_OUTBOX, *feeds, OUTBOX_LOCK)
        await connection.execute(_LEFT_BEHIND, *feeds)
        now: str = await connection.fetchval("select now()::text")
        return now


async def note_still_served(connection: Any, stores: Iterable[Store], *, ended: str | None = None) -> str:
    """Note that feeds are still served from their sources; when this was, by the database's clock.

    At the end of a process `ended` is when it noted so last: whoever did later goes on.
    """
    now: str = await connection.fetchval(_STILL_SERVED, *_from_sources(stores), ended)
    return now


def _from_sources(stores: Iterable[Store]) -> tuple[list[str], list[str]]:
    """The feeds that are served from their sources: the store of each, and its name."""
    found = [(store.name, feed) for store in stores for feed in FEEDS if not store.feed(feed).rendered]
    return [store for store, _ in found], [feed for _, feed in found]


async def _registered(connection: Any, store: str, feed: FeedName) -> int:
    """The feed's number, with its counter of rows in place."""
    row = await connection.fetchrow(_STATE, store, feed)
    if row is None:
        await connection.execute(
            "insert into clerk_feed.rendered (store, feed) values ($1, $2) on conflict do nothing", store, feed
        )
        row = await connection.fetchrow(_STATE, store, feed)
    id: int = row["id"]
    # A sequence is what another session can look at while a statement runs; in steps of 1000 it costs next to nothing.
    if await connection.fetchval("select to_regclass($1) is null", _sequence(id)):
        with suppress(asyncpg.UniqueViolationError, asyncpg.DuplicateTableError):  # another process was faster
            await connection.execute(f"create sequence if not exists {_sequence(id)} cache 1000")
    return id


def _sequence(id: int) -> str:
    return f"clerk_feed.rendered_rows_{id}"


def _next_table(state: _State) -> str:
    number = int(state.items_table.rpartition("_")[2]) + 1 if state.items_table else 1
    return f"items_{state.id}_{number}"


async def _drop_old(connection: Any, id: int) -> None:
    """Drop tables of an earlier type of key, if nobody reads them just now; the next refresh tries again."""
    async with connection.transaction():
        old = [row["relname"] for row in await connection.fetch(_OLD_TABLES, id)]
    for table in old:
        with suppress(asyncpg.PostgresError):
            await connection.execute("begin")
            try:
                await connection.execute("set local lock_timeout = '1s'")
                await connection.execute(f"drop table if exists {items_relation(table)}")
            finally:
                await connection.execute("commit")


async def _note(
    connection: Any, id: int, began: str, outcome: str, detail: str, held: RefreshHeldBackError | None = None
) -> None:
    numbers = (held.items, held.most, held.vanished) if held else (None, None, None)
    async with connection.transaction():
        await connection.execute(_NOTE, id, began, outcome, detail[:2000], *numbers)


async def _explained(connection: Any, store: Store, feed: FeedName, error: Exception) -> RefreshError:
    """What went wrong, for people. Two rows with one id show as one of two errors."""
    if isinstance(error, asyncpg.CardinalityViolationError | asyncpg.UniqueViolationError):
        with suppress(Refusal, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            async with connection.transaction():
                relation, _ = await columns_of(connection, store, feed)
                twice = await connection.fetchval(
                    f'select s."id"::text from {relation} as s group by s."id" having count(*) > 1 limit 1'  # noqa: S608
                )
            if twice is not None:
                return RefreshError(
                    f"{relation} has more than one row with the id {twice}; the id of an item must be its own."
                )
    if isinstance(error, asyncpg.PostgresError) and not isinstance(error, LOST):
        return RefreshError(f"PostgreSQL refused: {error} (SQLSTATE {error.sqlstate})")
    return RefreshError(f"The database went away ({type(error).__name__}).")


async def _previewed(
    connection: Any, state: _State, how: Rendering, store: str, feed: FeedName, started: float
) -> Summary:
    """The counts of a refresh, by reading only."""
    key = await key_of_items(connection, state.items_table) if state.items_table else None
    if state.items_table is None or key != how.key:
        row = await connection.fetchrow(
            f"select count(*) filter (where {how.valid}) as added, count(*) as all from {how.relation} as s"  # noqa: S608
            ' where s."id" is not null'
        )
        seconds = time.monotonic() - started
        return Summary(store, feed, row["added"], row["added"], 0, 0, 0, row["all"] - row["added"], seconds)
    row = await connection.fetchrow(_PREVIEW.format(table=items_relation(state.items_table), **_parts(how)))
    items = state.items + row["added"] - row["vanished"]
    unchanged = items - row["added"] - row["changed"]
    seconds = time.monotonic() - started
    return Summary(
        store, feed, items, row["added"], row["changed"], unchanged, row["vanished"], row["invalid"], seconds
    )


def _parts(how: Rendering) -> dict[str, str]:
    return {
        "doc": how.doc,
        "faults": how.faults,
        "source": str(how.relation),
        "json_id": how.json_id,
        "equal": how.key.compared("="),
    }


def _statement(template: str, how: Rendering, table: str, id: int) -> str:
    return template.format(table=items_relation(table), tick=f"nextval('{_sequence(id)}')", **_parts(how))


_SETTINGS = f"""
{NO_DEADLINE.format(local="true")};
set local statement_timeout = 0;
set local idle_in_transaction_session_timeout = '60s';
set local lock_timeout = '60s';
set local timezone = 'UTC';
set local datestyle = 'ISO';
set local extra_float_digits = 1;
set local jit = off;
set local synchronous_commit = local
"""

_STATE = "select id, items_table, items, invalid from clerk_feed.rendered where store = $1 and feed = $2"

_UPDATE_STATE = """
update clerk_feed.rendered set items_table = $2, items = $3, invalid = $4 where id = $1
"""

# In the order in which other processes do so, or they would wait for each other.
_UNRENDERED = """
  from clerk_feed.rendered as r
  join unnest($1::text[], $2::text[]) as f (store, feed) using (store, feed)
  order by store, feed
"""

_LEAVE_BEHIND = f"""
insert into clerk_feed.unrendered (store, feed)
select store, feed {_UNRENDERED}
on conflict (store, feed) do update set since = now(), served = now()
"""

_AWAIT_OUTBOX = f"select pg_advisory_xact_lock($3, id) from (select r.id {_UNRENDERED}) as r"  # noqa: S608 (our own text)

# Until now others served what was rendered, and for as long as descriptions of sources are kept.
_LEFT_BEHIND = """
update clerk_feed.unrendered as u
set since = clock_timestamp() + interval '2 seconds'
from unnest($1::text[], $2::text[]) as f (store, feed)
where u.store = f.store and u.feed = f.feed
"""

_QUIET = "coalesce({of}.served <= now() - interval '60 seconds', true)"
"""Whether nobody serves a feed unrendered any more: one that ended said so, one that died has been silent."""

# What was changed after a refresh began, and served unrendered, is missing from what it renders. So it must be quiet
# when the refresh begins, which is now() in all of it, and nobody may have come since.
_WAS_LEFT_BEHIND = f"""
select {_QUIET.format(of="u")} as quiet from clerk_feed.unrendered as u where u.store = $1 and u.feed = $2
"""  # noqa: S608 (our own text)

_IS_RENDERED = f"""
delete from clerk_feed.unrendered as u where u.store = $1 and u.feed = $2 and {_QUIET.format(of="u")}
"""  # noqa: S608 (our own text)

# A refresh may have struck the note out meanwhile, or been the first one. Who ends leaves the moment behind.
_STILL_SERVED = f"""
with noted as (
  insert into clerk_feed.unrendered as u (store, feed, served)
  select store, feed, case when $3::text is null then now() else now() - interval '60 seconds' end {_UNRENDERED}
  on conflict (store, feed) do update
  set served = case
    when $3::text is null then now()
    when u.served > $3::text::timestamptz then u.served
    else now() - interval '60 seconds'
  end
)
select now()::text
"""  # noqa: S608 (our own text)

_TRIED = f"""
select exists (
  select from clerk_feed.refresh as f
  where f.rendered = $1 and f.finished > clock_timestamp() - $2::float8 * interval '1 second'
    -- What lies ahead was noted before the clock was set back.
    and f.finished <= clock_timestamp()
    and not exists (
      -- Who served the feed unrendered ended after it began: what was sent last may be missing.
      select
      from clerk_feed.unrendered as u
      join clerk_feed.rendered as r on r.store = u.store and r.feed = u.feed
      where r.id = $1 and {_QUIET.format(of="u")} and f.started <= u.served + interval '60 seconds'
    )
)
"""  # noqa: S608 (our own text)

_VISIBLE = """
update clerk_feed.refresh set visible = clock_timestamp() where rendered = $1 and stamp is not null and visible is null
"""

# The measure of a shrink: what there was in 24 hours, and at their beginning. A size that an operator accepted voids
# what there was before it.
_MOST = """
with done as (
  select id, items, finished
  from clerk_feed.refresh
  where rendered = $1 and outcome = 'done'
    and id >= coalesce((select max(id) from clerk_feed.refresh where rendered = $1 and accepted), 0)
)
select max(items)
from done
where finished > now() - interval '24 hours'
  or id = (select max(id) from done where finished <= now() - interval '24 hours')
"""

_HELD_BACK = """
select items, vanished
from (
  select items, vanished, outcome
  from clerk_feed.refresh
  where rendered = $1 and outcome <> 'failed'
  order by id desc
  limit 1
) as last
where outcome = 'held back'
"""

# Later than every stamp before, whatever the clock does.
_STAMP = """
select
  now()::text as began,
  greatest(
    clock_timestamp(),
    (select max(stamp) from clerk_feed.refresh where rendered = $1) + interval '1 microsecond'
  )::text as stamp
"""

_RECORD = """
insert into clerk_feed.refresh
  (rendered, started, outcome, stamp, items, added, changed, unchanged, vanished, invalid, accepted)
values ($1, $2::text::timestamptz, 'done', $3::text::timestamptz, $4, $5, $6, $7, $8, $9, $10)
"""

_NOTE = """
insert into clerk_feed.refresh (rendered, started, outcome, detail, items, most, vanished)
values ($1, $2::text::timestamptz, $3, $4, $5, $6, $7)
"""

# What no measure, no delta and no walk needs any more. A deletion is needed until Clerk knows of it.
_SWEEP = f"""
with refreshes as (
  delete from clerk_feed.refresh
  where rendered = $1 and finished < now() - interval '{KEPT_DAYS} days'
    and id < (select max(id) from clerk_feed.refresh where rendered = $1 and outcome = 'done')
)
delete from clerk_feed.tombstone as t
where t.store = $2 and t.feed = $3 and t.vanished < now() - interval '{KEPT_DAYS} days'
  and (
    t.pushed is not null
    or exists (
      -- Clerk has seen for itself that they are gone.
      select
      from clerk_feed.walk as w
      where w.store = $2 and w.feed = $3 and not w.incremental and w.ended = 'finished' and w.started > t.vanished
    )
  )
"""  # noqa: S608 (a number of ours)

_OLD_TABLES = """
select c.relname::text
from pg_class as c
join clerk_feed.rendered as r on r.id = $1
where c.relnamespace = 'clerk_feed'::regnamespace and c.relkind = 'r'
  and c.relname ~ ('^items_' || r.id || '_[0-9]+$') and c.relname is distinct from r.items_table
"""

_NEVER_VALID = "select count(*) from {table} where faults is not null and doc is null"

# Docs lie in the row itself up to a page's size, uncompressed: reading them costs no look-up and no unpacking.
_CREATE = """
create table {table} (id {id} not null, doc json, modified_at timestamptz, faults jsonb)
  with (fillfactor = 90, toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.05);
alter table {table} alter column doc set storage external
"""

_INDEX = """
alter table {table} add primary key (id);
create index on {table} (modified_at, id) where doc is not null;
create index on {table} (id) where faults is not null;
analyze {table}
"""

# OFFSET 0 fences the rendering off: unfenced, PostgreSQL would render a row once for each mention of its doc. In the
# order of the key both sides come from their indexes and are merged, instead of hashing a catalog.
_RENDERED = """
    select s."id", {doc} as doc, {faults} as faults, {tick}
    from {source} as s
    where s."id" is not null
    order by s."id"
    offset 0
"""

_FILL = f"""
insert into {{table}} (id, doc, modified_at, faults)
select s."id", s.doc::json, case when s.doc is not null then $1::text::timestamptz end, s.faults
from ({_RENDERED}) as s
"""  # noqa: S608 (our own text)

# Its id is written as that of another type may be; it comes first.
_KEPT = """
with kept as (
  update {table} as t
  set doc = case
      when starts_with(o.doc::text, '{{"id":' || {json_id})
      then '{{"id":' || {new_json_id} || substr(o.doc::text, length('{{"id":' || {json_id}) + 1)
      else o.doc::text
    end::json,
    modified_at = $1::text::timestamptz
  from {old} as o
  where t.id::text collate "C" = o.id::text collate "C" and t.doc is null and o.doc is not null
  returning 1
)
select count(*) from kept
"""

# In a statement of its own, which sees what the one before may have missed: rows of a partition that was attached with
# them, or those that a function let through when its table was filled again.
_TAKE_BACK = """
with taken as (
  insert into {table} (id, doc, modified_at)
  select s."id", s.doc::json, $1::text::timestamptz
  from (
    select s."id", {doc} as doc
    from {source} as s
    where s."id" is not null and {among} and not exists (select from {table} as known where known.id {equal} s."id")
    offset 0
  ) as s
  where s.doc is not null
  returning id::text as item
), unburied as (
  delete from clerk_feed.tombstone as t
  using taken
  where t.store = $2 and t.feed = $3 and t.item = taken.item and t.vanished = $1::text::timestamptz
  returning 1
)
select (select count(*) from taken) as taken, (select count(*) from unburied) as unburied
"""

_VANISHED = """s."id" {equal} any (
      select t.item::{family}
      from clerk_feed.tombstone as t
      where t.store = $2 and t.feed = $3 and t.vanished = $1::text::timestamptz
    )"""

_BURY_OLD = """
with buried as (
  insert into clerk_feed.tombstone (store, feed, item, json_id, vanished)
  select $2, $3, o.id::text, ({json_id})::json, $1::text::timestamptz
  from {old} as o
  where o.doc is not null
    and not exists (select from {table} as t where t.id::text collate "C" = o.id::text collate "C")
  returning 1
)
select count(*) from buried
"""

_COUNTED = """, buried as (
  insert into clerk_feed.tombstone (store, feed, item, json_id, vanished)
  select $2, $3, done.item, done.json_id::json, $1::text::timestamptz
  from done
  where done.action = 'DELETE' and done.has_doc
)
select
  count(*) filter (where action = 'INSERT') as inserted,
  count(*) filter (where action = 'DELETE') as deleted,
  count(*) filter (where action <> 'DELETE' and is_stamped) as stamped,
  count(*) filter (where action = 'DELETE' and has_doc) as vanished
from done
"""

_DONE = """t.id::text as item, {json_id} as json_id, t.doc is not null as has_doc,
    coalesce(t.modified_at = $1::text::timestamptz, false) as is_stamped"""

_MERGE = f"""
with done as (
  merge into {{table}} as t
  using ({_RENDERED}) as s
  on t.id {{equal}} s."id"
  when matched and s.doc is not null and t.doc::text is distinct from s.doc then
    update set id = s."id", doc = s.doc::json, modified_at = $1::text::timestamptz, faults = null
  when matched and s.faults is distinct from t.faults then
    update set faults = s.faults
  when not matched then
    insert (id, doc, modified_at, faults)
    values (s."id", s.doc::json, case when s.doc is not null then $1::text::timestamptz end, s.faults)
  when not matched by source then
    delete
  returning merge_action() as action, {_DONE}
){_COUNTED}"""  # noqa: S608 (our own text)

# The same before PostgreSQL 17. All three see the table as it was.
_WRITE = f"""
with updated as (
  update {{table}} as t
  set
    id = s."id",
    doc = case when s.doc is null then t.doc else s.doc::json end,
    modified_at = case
      when s.doc is null or t.doc::text is not distinct from s.doc then t.modified_at else $1::text::timestamptz
    end,
    faults = s.faults
  from ({_RENDERED}) as s
  where t.id {{equal}} s."id"
    and (s.doc is not null and t.doc::text is distinct from s.doc or s.faults is distinct from t.faults)
  returning 'UPDATE' as action, {_DONE}
), inserted as (
  insert into {{table}} as t (id, doc, modified_at, faults)
  select s."id", s.doc::json, case when s.doc is not null then $1::text::timestamptz end, s.faults
  from (
    select s."id", {{doc}} as doc, {{faults}} as faults
    from {{source}} as s
    where s."id" is not null and not exists (select from {{table}} as known where known.id {{equal}} s."id")
    offset 0
  ) as s
  returning 'INSERT' as action, {_DONE}
), deleted as (
  delete from {{table}} as t
  where not exists (select from {{source}} as s where s."id" {{equal}} t.id)
  returning 'DELETE' as action, {_DONE}
), done as (
  select * from updated
  union all
  select * from inserted
  union all
  select * from deleted
){_COUNTED}"""  # noqa: S608 (our own text)

_PREVIEW = """
select
  count(*) filter (where s.doc is not null and t.doc is null) as added,
  count(*) filter (where s.doc is not null and t.doc is not null and t.doc::text <> s.doc) as changed,
  count(*) filter (where s."id" is null and t.doc is not null) as vanished,
  count(*) filter (where s.faults is not null) as invalid
from (
  select s."id", {doc} as doc, {faults} as faults
  from {source} as s
  where s."id" is not null
  order by s."id"
  offset 0
) as s
full join {table} as t on t.id {equal} s."id"
"""

_HAS_INVALID = "select exists (select from clerk_feed.invalid where store = $1 and feed = $2)"

_FORGET_FAULTS = """
delete from clerk_feed.invalid as i
where i.store = $1 and i.feed = $2
  and not exists (
    select
    from {table} as t, jsonb_object_keys(t.faults) as f (attribute)
    where t.faults is not null and t.id::text = i.id and f.attribute = i.attribute
  )
"""

_NOTE_FAULTS = """
insert into clerk_feed.invalid (store, feed, id, attribute, reason, since)
select $1, $2, t.id::text, f.attribute, f.reason, $3::text::timestamptz
from {table} as t, jsonb_each_text(t.faults) as f (attribute, reason)
where t.faults is not null
on conflict (store, feed, id, attribute) do update
set reason = excluded.reason
where invalid.reason <> excluded.reason
"""

_FIRST_INVALID = """
select id, attribute, reason from clerk_feed.invalid where store = $1 and feed = $2 order by since, id limit 1
"""


def _keep_alive(connection: Any) -> None:
    """Have the system notice within two minutes that the server's machine is gone: no answer would ever come."""
    # asyncpg has no setting for it.
    line = connection._transport.get_extra_info("socket")  # noqa: SLF001
    if line is None or line.family == socket.AF_UNIX:
        return
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):  # not on every system
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def connection_for_refresh(dsn: str) -> Any:
    """A connection without a deadline, which the server gives up within seconds when nobody holds it any more.

    Every statement on it stands in a transaction, so that PgBouncer may lend another server for the next one.
    """
    connection = await asyncpg.connect(dsn, timeout=10, command_timeout=None, statement_cache_size=0)
    _keep_alive(connection)
    with suppress(asyncpg.PostgresError):  # not on every system
        await connection.execute("set client_connection_check_interval = '2s'")
    return connection
