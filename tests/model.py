"""Importers and a catalog that changes, against the real service parts and a real PostgreSQL.

`Walks` is a machine that hypothesis drives: it lets importers walk, lose answers, start over and get in each other's
way while items come, change and go, in any order, and knows what each importer must have been sent. A step names
places by number, so that what is drawn never depends on what was answered.

Keys are spoken of by rank: their place in the order PostgreSQL gives all keys of an example.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import islice, pairwise
from math import inf
from typing import Any, ClassVar, cast

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from app.catalog.ahead import Ahead
from app.catalog.bookmarks import Bookmarks, end_walks
from app.catalog.guard import Guard
from app.catalog.pool import Pool
from app.catalog.reader import Reader
from app.catalog.schema import migrate
from app.catalog.small_pages import SmallPages
from app.catalog.source import Source, Sources
from app.endpoint import Answer, Catalog
from app.protocol.feeds import FeedName
from app.protocol.problems import KEY_CHANGED, OFFSET_LOST, WALK_LOST, Problem, Refusal
from app.protocol.request import FeedRequest, Format
from app.response import Tally
from app.settings import Database as DatabaseSettings
from app.settings import Duration, FeedSettings, Store
from app.status.events import Event, OffsetUnknown
from tests.conftest import Database, Loop

FEED: FeedName = "customers"
PROCESSES = 3
IMPORTERS = 3
KEYS = 48
_EPOCH = 1_767_225_600.0  # 2026-01-01: the instant 0 of the machine's clock
_TICK = 0.25  # seconds; exact in binary
_LIMITS = (3, 2, 4, 6, 9)
_SKEWS = (0, -2, 2)
"""How many ticks the clock of each process is ahead."""

INTEGERS: list[int | str] = [-(2**63), -(2**31) - 1, -1, *range(KEYS - 5), 2**31, 2**63 - 1]
_ODD = [
    "", " ", " a", "a", "a ", "a b", "A", "aa", "ab", "b", "B", "Z", "z", "'", "''", '"', "\\", "\\n", "\n", "\t", "%",
    "_", "%s", "$1", "{{offset}}", "&limit=1", "a/b", "10", "9", "-1", "0", "null", "NULL", "æ", "Ø", "å", "é",
    "e\u0301", "🛋", "\u200b", "\u2028", "ß", "ss", "\x01", "\x7f", "﷽", "日本", "x" * 300,
]  # fmt: skip
TEXTS: list[int | str] = list(_ODD)
assert len(set(INTEGERS)) == len(set(TEXTS)) == KEYS


class Violation(AssertionError):
    """A promise about walks was broken."""


class Lost(Violation):
    """An item that was there throughout a walk was not sent in it, or an old version of it was left standing."""


class Repeated(Violation):
    """An importer that was alone, asked for nothing twice and finished what it began was sent an item twice.

    The guard at the end of a walk counts offset + items of the last page, so it would see too many.
    """


class Moved(Violation):
    """A page asked for again did not start where it started before."""


class Malformed(Violation):
    """A page holds what it must not, or is no whole NDJSON or JSON."""


class Endless(Violation):
    """A walk has come further than there ever were places to be at."""


class Uncounted(Violation):
    """A page of a walk had no bookmark and was answered by counting rows."""


class Process:
    """The parts of one service process, wired as app.service wires them. The only place that builds them."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.events: list[Event] = []
        self._guard = Guard(pool, _RESUME_SECONDS, self.events.append)
        self.describe_anew()
        self.begin(Bookmarks)

    @classmethod
    async def open(cls, dsn: str) -> "Process":
        pool = await Pool.open(dsn, _DATABASE, lambda event: None)
        try:
            return cls(pool)
        except BaseException:
            await pool.close()  # an open pool would keep the loop from closing
            raise

    def describe_anew(self) -> None:
        """Forget what the sources looked like."""
        self.sources = Sources(self.pool, _RESUME_SECONDS)
        self._reader = Reader(self.pool, self.sources, _DATABASE, self.events.append)

    def begin(self, bookmarks: type[Bookmarks]) -> None:
        """Begin an example, with bookmarks of this class."""
        self.events.clear()
        self._ends_by_counting = getattr(bookmarks, "ends_by_counting", False)
        found = bookmarks(self.pool, _RESUME_SECONDS, self.events.append)
        # Small pages find their bookmarks themselves, so they would hide what another class does.
        kind = SmallPages if bookmarks is Bookmarks else _NoSmallPages
        small_pages = kind(self.pool, _RESUME_SECONDS, self.events.append)
        # Without small pages every page but the first of a walk may have been read ahead.
        self._ahead = Ahead(self._reader, self.pool, least_rows=1)
        self._catalog = Catalog(self.sources, self._reader, found, small_pages, self._ahead, self._guard)

    async def page(self, store: Store, wanted: FeedRequest) -> bytes:
        """The answer to what is asked for now."""
        return (await self.page_of_walk(store, wanted, asked=time.time()))[0]

    async def page_of_walk(self, store: Store, wanted: FeedRequest, *, asked: float) -> tuple[bytes, str]:
        """The same, and from when on its walk goes by the id, as far as the process knows."""
        tally = Tally()
        source = await self.sources.of(store, FEED)
        answer = Answer(store, source, wanted, self._catalog, self.events.append, tally, asked=asked)
        try:
            page = b"".join([chunk async for chunk in answer.chunks()])
        except Refusal as refusal:
            if refusal.problem is not OFFSET_LOST or not self._ends_by_counting:
                raise
            return b"[]" if wanted.format == "json" else b"", answer.settled
        answer.sent()
        # What is read ahead is as old as it can be when it is asked for.
        await self._ahead.settled()
        return page, answer.settled

    async def close(self) -> None:
        await self._ahead.close()
        await self.pool.close()


class _NoSmallPages(SmallPages):
    async def read(self, source: Source, *, offset: int, limit: int) -> None:
        return None


_STATE = ("bookmark", "asked", "walk")
_RESUME_SECONDS = 5.0
_DATABASE = DatabaseSettings(pool_size=4)


def _store(name: str) -> Store:
    # No overlap: nothing but the order of the walk may keep an item from being missed. No guard: tables shrink here.
    guardless: dict[FeedName, FeedSettings] = {FEED: FeedSettings(shrink_limit=1.0)}
    return Store(public_key="key", name=name, schema=name, incremental_overlap=Duration(0), feeds=guardless)


class World:
    """A database with two stores, ints and texts, and the processes that serve them."""

    def __init__(self, loop: Loop, database: Database, *, sequential: bool = False) -> None:
        """`sequential`: PostgreSQL reads tables from their start, as it does where they are small and analyzed. Then
        a row that was updated comes after others of its kind."""
        self.loop = loop
        self.database = database
        # Nothing crashes here, so nothing need be on disk.
        name = database.value("select quote_ident(current_database())")
        database.execute(f"alter database {name} set synchronous_commit = off")
        database.execute("set synchronous_commit = off")
        for way in ("indexscan", "indexonlyscan", "bitmapscan") if sequential else ():
            database.execute(f"alter database {name} set enable_{way} = off")
        loop.run(_migrate(database.dsn))
        self.stores: dict[str, Store] = {}
        self.keys: dict[str, list[int | str]] = {}
        for name, type, keys in (("ints", "bigint", INTEGERS), ("texts", "text", TEXTS)):
            database.execute(f"create schema {name}")
            database.execute(
                f"create table {name}.customers"
                f" (id {type} primary key, email text, version int not null, modified_at timestamptz)"
            )
            database.execute(f"create index on {name}.customers (modified_at, id)")
            self.stores[name] = _store(name)
            ordered = database.fetch(f"select k from unnest($1::{type}[]) as k order by k", keys)
            self.keys[name] = [row["k"] for row in ordered]
        self.processes = [loop.run(Process.open(database.dsn)) for _ in range(PROCESSES)]

    def begin(self, bookmarks: type[Bookmarks]) -> None:
        if self.order_keys("ints", "bigint"):
            for process in self.processes:
                process.describe_anew()
        self.database.execute("drop schema if exists standby cascade")  # of an example that failed
        self.database.execute(
            "truncate ints.customers, texts.customers, clerk_feed.bookmark, clerk_feed.walk, clerk_feed.asked"
        )
        # Where no walk has finished yet, one that finds invalid rows only is held back.
        self.database.execute(
            f"""
            insert into clerk_feed.walk (store, feed, incremental, ended, final_items)
            values ('ints', '{FEED}', false, 'finished', 0), ('texts', '{FEED}', false, 'finished', 0)
            """
        )
        for process in self.processes:
            process.begin(bookmarks)

    def let_pass(self, interval: str) -> None:
        self.database.execute(
            f"update clerk_feed.bookmark set written = written - interval '{interval}',"
            f" ended = ended - interval '{interval}'"
        )
        self.database.execute(
            f"update clerk_feed.asked set asked = asked - interval '{interval}',"
            f" failed_over = failed_over - interval '{interval}'"
        )

    def order_keys(self, name: str, type: str) -> bool:
        """Let the ids of a store be of a type, and so be in its order; whether they were of another one."""
        now = self.database.value(
            "select format_type(atttypid, null) from pg_attribute"
            f" where attrelid = '{name}.customers'::regclass and attname = 'id'"
        )
        if now != type:
            self.database.execute(f"alter table {name}.customers alter column id type {type} using id::{type}")
        return bool(now != type)

    def let_the_standby_follow(self) -> None:
        """It knows what is known now, and nothing of what comes."""
        self.database.execute("drop schema if exists standby cascade; create schema standby")
        for table in _STATE:
            self.database.execute(f"create table standby.{table} as table clerk_feed.{table}")

    def fail_over(self) -> None:
        """To the standby, where one follows."""
        if self.database.value("select to_regnamespace('standby') is not null"):
            self.database.execute(f"truncate {', '.join(f'clerk_feed.{table}' for table in _STATE)}")
            for table in _STATE:
                self.database.execute(f"insert into clerk_feed.{table} overriding system value table standby.{table}")
            self.database.execute("drop schema standby cascade")
        for table in ("bookmark", "asked"):
            self.database.execute(
                f"update clerk_feed.{table} set timeline = 'before' where timeline = clerk_feed.timeline()"
            )

    def close(self) -> None:
        for process in self.processes:
            self.loop.run(process.close())


async def _migrate(dsn: str) -> None:
    pool = await Pool.open(dsn, _DATABASE, lambda event: None)
    async with pool.connection() as connection:
        await migrate(connection)
    await pool.close()


@dataclass(frozen=True)
class Item:
    """What the catalog holds under a rank."""

    changed: int
    """When, by the machine's clock; also the version an importer is sent."""
    dated: bool
    valid: bool


class Table:
    """The table of an example, and what is in it."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name
        self._database = world.database
        self._table = f"{name}.customers"
        self._type = self._type_now = "bigint" if name == "ints" else "text"
        self.keys = world.keys[name]
        self.rank_of = {key: rank for rank, key in enumerate(self.keys)}
        self.rank_of |= {str(key): rank for rank, key in enumerate(self.keys)}
        self._position = list(range(KEYS))
        self.reordered = -1
        """When the ids came in another order for the last time."""
        self.items: dict[int, Item] = {}
        self.until: dict[tuple[int, int], int] = {}
        """When a valid version of an item was replaced or deleted."""
        self.clock = 0
        self.places = 0
        """How many (modified_at, id) there ever were."""

    def put(self, ranks: list[int], *, dated: bool = True, valid: bool = True) -> None:
        """Insert items, or change them."""
        self.clock += 1
        self._end(ranks)
        self.places += len(ranks)
        self.items |= dict.fromkeys(ranks, Item(self.clock, dated, valid))
        self._database.execute(
            f"""
            insert into {self._table} (id, email, version, modified_at)
            select k, $2, $3, timestamptz '2026-01-01 00:00:00+00' + $4::int * interval '250 ms'
            from unnest($1::{self._type}[]::{self._type_now}[]) as k
            on conflict (id) do update
            set email = excluded.email, version = excluded.version, modified_at = excluded.modified_at
            """,
            [self.keys[rank] for rank in ranks],
            "e" if valid else None,
            self.clock,
            self.clock if dated else None,
        )

    def drop(self, ranks: Iterable[int]) -> None:
        gone = [rank for rank in ranks if rank in self.items]
        self.clock += 1
        self._end(gone)
        for rank in gone:
            del self.items[rank]
        self._database.execute(
            f"delete from {self._table} where id = any($1::{self._type}[]::{self._type_now}[])",
            [self.keys[rank] for rank in gone],
        )

    def order_otherwise(self) -> None:
        """Let ids that are numbers be texts, or numbers again."""
        if self._type == "text":
            return
        self.clock += 1
        self.reordered = self.clock
        self._type_now = "bigint" if self._type_now == "text" else "text"
        self._world.order_keys(self._name, self._type_now)
        ordered = self._database.fetch(
            f"select k from unnest($1::bigint[]) as k order by k::{self._type_now}", self.keys
        )
        for position, row in enumerate(ordered):
            self._position[self.rank_of[row["k"]]] = position

    def _end(self, ranks: Iterable[int]) -> None:
        for rank in ranks:
            item = self.items.get(rank)
            if item is not None and item.valid:
                self.until[rank, item.changed] = self.clock

    def holds(self, rank: int, version: int, *, since: int) -> bool:
        """Whether the table holds an item in a version, or has at some time since then."""
        item = self.items.get(rank)
        if item is not None and item.valid and item.changed == version:
            return True
        return self.until.get((rank, version), -1) >= since

    def place(self, rank: int, *, settled: float | None) -> tuple[float, int]:
        """Where an item comes in a full walk, or in an incremental one that goes by the id from then on."""
        item = self.items.get(rank)
        if settled is None or item is None or not item.dated:
            return (0, self._position[rank])
        return (item.changed if _moment(item.changed) < settled else inf, self._position[rank])


def _seconds(moment: str) -> float:
    return inf if moment == "infinity" else datetime.fromisoformat(moment).timestamp()


def _moment(clock: float) -> float:
    """What the machine's clock says, in unix seconds."""
    return _EPOCH + clock * _TICK


@dataclass
class Page:
    """The answer to one request, and what was asked."""

    offset: int
    ranks: list[int]
    clock: int
    versions: dict[int, int]


@dataclass
class Importer:
    """An importer: how it asks, where it is, and what it must have been sent when its walk ends."""

    limit: int = _LIMITS[0]
    format: Format = "ndjson"
    incremental: bool = False
    stops_short: bool = False
    """Whether a page that is not full is the end to it, without asking for the empty one."""
    walking: bool = False
    walk: int = 0
    """Which of its walks this is."""
    minutes: int = 0
    """How long it has been at this offset."""
    offset: int = 0
    began: int = 0
    since: int = 0
    must: set[int] = field(default_factory=set)
    sent: list[int] = field(default_factory=list)
    asked: Page | None = None
    """The answer at this same offset that was lost."""
    edges: list[int] = field(default_factory=list)
    synced: int = 0
    """When its last finished walk began: what the next incremental one asks to be sent from."""
    index: dict[int, int] = field(default_factory=dict)
    """The versions it holds by rank: what would be in the shop's search."""


class Walks(RuleBasedStateMachine):
    """Importers and a changing catalog. Subclasses say what may happen."""

    importers_count: ClassVar[int] = IMPORTERS
    counted_pages_are_wrong: ClassVar[bool] = True
    repeats_are_wrong: ClassVar[bool] = False
    starts_are_exact: ClassVar[bool] = False
    """Whether a page asked for again must start exactly where it did; otherwise there or before."""
    ends_are_exact: ClassVar[bool] = False
    """Whether an empty answer asked for again must be empty again, but for what came meanwhile."""
    refusals: ClassVar[frozenset[Problem]] = frozenset()
    """What an importer may be told instead of an answer."""

    def __init__(self, world: World, bookmarks: type[Bookmarks] = Bookmarks) -> None:
        super().__init__()
        self.world = world
        self.bookmarks = bookmarks
        self.importers = [Importer() for _ in range(self.importers_count)]
        self.broken = False

    # What happens

    @initialize(
        name=st.sampled_from(("ints", "texts")),
        first=st.integers(0, KEYS // 2),
        count=st.integers(0, KEYS // 2),
        step=st.integers(1, 2),
        undated=st.booleans(),
    )
    def shop(self, name: str, first: int, count: int, step: int, undated: bool) -> None:
        self.world.begin(self.bookmarks)
        self.store = self.world.stores[name]
        self.catalog = Table(self.world, name)
        ranks = list(range(first, KEYS, step))[:count]
        self.catalog.put(ranks[::2], dated=not undated)
        self.catalog.put(ranks[1::2])

    @rule(i=st.integers(0, IMPORTERS - 1), process=st.integers(0, PROCESSES - 1), pages=st.integers(1, 4))
    def walk_on(self, i: int, process: int, pages: int) -> None:
        for number in range(pages):
            self.receive(self._importer(i), process + number)

    @rule(i=st.integers(0, IMPORTERS - 1), process=st.integers(0, PROCESSES - 1))
    def walk_to_the_end(self, i: int, process: int) -> None:
        self.finish(self._importer(i), process)

    @rule(i=st.integers(0, IMPORTERS - 1), limit=st.sampled_from(_LIMITS))
    def go_on_with_another_limit(self, i: int, limit: int) -> None:
        importer = self._importer(i)
        if importer.asked is None:
            importer.limit = limit

    @rule(i=st.integers(0, IMPORTERS - 1), incremental=st.booleans(), json=st.booleans(), short=st.booleans())
    def walk_otherwise_from_now_on(self, i: int, incremental: bool, json: bool, short: bool) -> None:
        """Between walks: what the next one is like."""
        importer = self._importer(i)
        if not importer.walking:
            importer.incremental = incremental
            importer.format = "json" if json else "ndjson"
            importer.stops_short = short

    @rule(rank=st.integers(0, KEYS - 1), count=st.integers(1, 6), step=st.integers(1, 2), undated=st.booleans())
    def insert_or_update(self, rank: int, count: int, step: int, undated: bool) -> None:
        self.put(list(range(rank, KEYS, step))[:count], dated=not undated)

    @rule()
    def touch_everything(self) -> None:
        self.put(list(self.catalog.items))

    @rule(rank=st.integers(0, KEYS - 1), count=st.integers(1, 6))
    def delete(self, rank: int, count: int) -> None:
        self.drop(range(rank, rank + count))

    @rule(rank=st.integers(0, KEYS - 1), count=st.integers(1, 4))
    def make_invalid(self, rank: int, count: int) -> None:
        self.put([r for r in range(rank, rank + count) if r in self.catalog.items], valid=False)

    @rule(rank=st.integers(0, KEYS - 1), count=st.integers(1, 4))
    def make_valid(self, rank: int, count: int) -> None:
        self.put([r for r in range(rank, rank + count) if r in self.catalog.items])

    @rule(
        i=st.integers(0, IMPORTERS - 1),
        beside=st.sampled_from((-1, 0, 1)),
        last=st.booleans(),
        what=st.sampled_from(("delete", "put", "invalid", "undate")),
    )
    def change_an_edge(self, i: int, beside: int, last: bool, what: str) -> None:
        """Delete, insert or change the first or last item of an importer's page, or a neighbour."""
        edges = self._importer(i).edges
        if not edges or not 0 <= (rank := edges[-1 if last else 0] + beside) < KEYS:
            return
        if what == "delete":
            self.drop([rank])
        else:
            self.put([rank], valid=what != "invalid", dated=what != "undate")

    @rule(i=st.integers(0, IMPORTERS - 1), last=st.booleans())
    def delete_up_to_an_edge(self, i: int, last: bool) -> None:
        if edges := self._importer(i).edges:
            self.drop(range(edges[-1 if last else 0] + 1))

    @rule(i=st.integers(0, IMPORTERS - 1), count=st.integers(1, 6))
    def insert_before_an_edge(self, i: int, count: int) -> None:
        if edges := self._importer(i).edges:
            absent = (rank for rank in range(edges[0], -1, -1) if rank not in self.catalog.items)
            self.put(list(islice(absent, count)))

    def teardown(self) -> None:
        """Every walk ends, and one incremental walk more brings everyone up to date."""
        if self.broken or not hasattr(self, "catalog"):
            return
        for number, importer in enumerate(self.importers):
            if importer.walking:
                self.finish(importer, number)
                self.abandon(importer)
        for number, importer in enumerate(self.importers):
            importer.incremental = not importer.incremental
            self.finish(importer, number)

    # What the importers do

    def _importer(self, i: int) -> Importer:
        return self.importers[i % len(self.importers)]

    def _wanted(self, importer: Importer) -> FeedRequest:
        """What an importer asks for next. A walk begins here."""
        if not importer.walking:
            importer.walking = True
            importer.offset = 0
            importer.minutes = 0
            importer.sent = []
            importer.asked = None
        if importer.offset == 0:
            importer.walk += 1
            importer.began = self.catalog.clock + 1
            importer.since = importer.synced
            importer.must = {
                rank
                for rank, item in self.catalog.items.items()
                if item.valid and not (importer.incremental and item.dated and item.changed < importer.since)
            }
        return FeedRequest(
            format=importer.format,
            limit=importer.limit,
            offset=importer.offset,
            modified_after=_moment(importer.since) if importer.incremental else None,
        )

    def receive(self, importer: Importer, process: int) -> bool:
        """Whether it was answered."""
        page = self._asked(importer, process)
        if page is not None:
            self._take(importer, page)
        return page is not None

    def lose(self, importer: Importer, process: int) -> None:
        """The page was made, and its answer got lost on the way."""
        page = self._asked(importer, process)
        if page is not None:
            importer.asked = page if importer.offset else None  # a walk whose first answer is lost simply begins anew

    def _receive_together(self, importers: list[Importer], process: int) -> None:
        async def all_of_them() -> list[tuple[bytes, str] | None]:
            asking = (self._ask(importer, process + number) for number, importer in enumerate(importers))
            return await asyncio.gather(*asking)

        answers = self.world.loop.run(all_of_them())
        for importer, answer in zip(importers, answers, strict=True):
            if answer is not None:
                self._take(importer, self._checked(importer, *answer))

    def finish(self, importer: Importer, process: int) -> None:
        """To the end of a walk, or until one page of it is refused."""
        answered = self.receive(importer, process)
        while answered and importer.walking:
            process += 1
            answered = self.receive(importer, process)

    def abandon(self, importer: Importer) -> None:
        importer.walking = False
        importer.asked = None

    async def _ask(self, importer: Importer, process: int) -> tuple[bytes, str] | None:
        number = process % PROCESSES
        # Later than all that has changed, and earlier than what will: but for the clocks.
        asked = _moment(self.catalog.clock + 0.5 + _SKEWS[number])
        try:
            return await self.world.processes[number].page_of_walk(self.store, self._wanted(importer), asked=asked)
        except Refusal as refusal:
            # Of several, one whose own page can't be told from theirs is refused its end: with another limit, or when
            # it asks for an empty page again. Nothing is lost by it.
            if refusal.problem is OFFSET_LOST and self.importers_count > 1:
                self.abandon(importer)
                for one in self.world.processes:
                    one.events[:] = [event for event in one.events if not isinstance(event, OffsetUnknown)]
            elif refusal.problem not in self.refusals:
                raise
            return None

    def _asked(self, importer: Importer, process: int) -> Page | None:
        answer = self.world.loop.run(self._ask(importer, process))
        return None if answer is None else self._checked(importer, *answer)

    def _take(self, importer: Importer, page: Page) -> None:
        """An answer arrived."""
        importer.asked = None
        importer.minutes = 0
        importer.sent += page.ranks
        importer.index |= page.versions
        full = len(page.ranks) == importer.limit
        if not full:
            self._check_end(importer, page)
        if not page.ranks or (importer.stops_short and not full):
            importer.walking = False
            importer.synced = importer.began
        else:
            importer.offset += importer.limit

    def put(self, ranks: list[int], *, dated: bool = True, valid: bool = True) -> None:
        # An item that is dated no more may pass behind the place that a delta has come to. What is touched does not.
        undated = [rank for rank in ranks if not dated and (item := self.catalog.items.get(rank)) and item.dated]
        self.catalog.put(ranks, dated=dated, valid=valid)
        for importer in self.importers:
            if not valid:
                importer.must.difference_update(ranks)
            elif importer.incremental:
                importer.must.difference_update(undated)

    def drop(self, ranks: Iterable[int]) -> None:
        gone = list(ranks)
        self.catalog.drop(gone)
        for importer in self.importers:
            importer.must.difference_update(gone)

    # What is promised

    def _checked(self, importer: Importer, body: bytes, settled: str) -> Page:
        """The page of a body, which is what it must be; `settled`: from when on its walk goes by the id."""
        items = self._items(importer.format, body)
        ranks = [self.catalog.rank_of[item["id"]] for item in items]
        where = f"offset {importer.offset}, limit {importer.limit}: {ranks}"
        if len(ranks) > importer.limit:
            self._violated(Malformed, f"{where}: longer than its limit")
        for item, rank in zip(items, ranks, strict=True):
            # A page of a full walk may have been read ahead, but never before its walk began.
            since = self.catalog.clock + 1 if importer.incremental else importer.began
            if not self.catalog.holds(rank, item["version"], since=since):
                held = self.catalog.items.get(rank)
                self._violated(Malformed, f"{where}: {item} is not what the catalog holds, {held}")
        versions = {rank: item["version"] for item, rank in zip(items, ranks, strict=True)}
        place = partial(self.catalog.place, settled=_seconds(settled) if importer.incremental else None)
        places = [place(rank) for rank in ranks]
        # A page may have been read ahead, in the order of before.
        if importer.began > self.catalog.reordered and any(one >= next for one, next in pairwise(places)):
            self._violated(Malformed, f"{where}: out of order, {places}")
        # What a bookmark at offset K points behind is the Kth place at least, so no walk comes beyond all places. In an
        # incremental one each item has one more, for when it changes after that began.
        most = self.catalog.places + KEYS if importer.incremental else KEYS
        if ranks and importer.offset + len(ranks) > most:
            self._violated(Endless, f"{where}: there were {most} places only")
        if self.counted_pages_are_wrong:
            for process in self.world.processes:
                if any(isinstance(event, OffsetUnknown) for event in process.events):
                    self._violated(Uncounted, where)
        if importer.asked is not None:
            self._check_start(importer, importer.asked, ranks, place)
        importer.edges = ranks or importer.edges
        return Page(importer.offset, ranks, self.catalog.clock, versions)

    def _items(self, format: Format, body: bytes) -> list[dict[str, Any]]:
        try:
            if format == "json":
                items = json.loads(body)
                assert isinstance(items, list)
                return items
            assert not body or body.endswith(b"\n")
            return [json.loads(line) for line in body.split(b"\n")[:-1]]
        except (ValueError, AssertionError):
            self._violated(Malformed, f"no whole {format}: {body!r}")
            raise

    def _check_start(
        self, importer: Importer, lost: Page, ranks: list[int], place: Callable[[int], tuple[float, int]]
    ) -> None:
        """A page asked for again starts where the lost answer did, as what both hold must show.

        What came since the walk began may be missing: another process may have read the page ahead, before that.
        """
        known = lost.clock if importer.incremental else importer.began - 1

        def is_old(rank: int) -> bool:
            item = self.catalog.items.get(rank)
            if item is None or not item.valid or item.changed > known:
                return False
            # What it did not ask for may be on the page of one process, and by the clock of another it is not.
            return not (importer.incremental and item.dated and item.changed < importer.since)

        def is_there(rank: int) -> bool:
            return rank in importer.sent and importer.index.get(rank) == self.catalog.items[rank].changed

        kept = [place(rank) for rank in lost.ranks if is_old(rank)]
        # The lost answer may have begun at a bookmark that has become old since, and held what was sent before.
        due = [place(rank) for rank in lost.ranks if is_old(rank) and not is_there(rank)]
        old = [place(rank) for rank in ranks if is_old(rank)]
        told = f"offset {importer.offset}: {lost.ranks} at first, {ranks} when asked again"
        if due and (not ranks or place(ranks[0]) > due[0]):
            self._violated(Moved, told)
        if self.starts_are_exact and kept and old and old[0] < kept[0]:
            self._violated(Moved, told)
        if self.ends_are_exact and not lost.ranks and old:
            self._violated(Moved, told)

    def _check_end(self, importer: Importer, page: Page) -> None:
        """The page was not full: nothing is left that this importer should have been sent."""
        if missing := importer.must - set(importer.sent):
            told = f"{sorted(missing)} of offset {page.offset}, sent {importer.sent}"
            self._violated(Lost, told)
        stale = [
            rank
            for rank, item in self.catalog.items.items()
            if item.valid and item.changed < importer.began and importer.index.get(rank) != item.changed
        ]
        if stale:
            self._violated(Lost, f"old versions of {stale} were left standing")
        if self.repeats_are_wrong and not importer.incremental and page.ranks:
            counted = page.offset + len(page.ranks)
            if counted != len(set(importer.sent)):
                self._violated(Repeated, f"counted {counted}, sent {importer.sent}")

    def _violated(self, promise: type[Violation], told: str) -> None:
        self.broken = True
        raise promise(told)


class Disturbances(Walks):
    """Importers in each other's way: abandoned walks, pages asked for twice, pages at the same moment, pauses.

    Who lost an answer asks again whenever it likes.
    """

    @rule(i=st.integers(0, IMPORTERS - 1), incremental=st.booleans(), limit=st.sampled_from(_LIMITS))
    def start_over(self, i: int, incremental: bool, limit: int) -> None:
        importer = self._importer(i)
        self.abandon(importer)
        importer.incremental = incremental
        importer.limit = limit

    @rule(i=st.integers(0, IMPORTERS - 1), process=st.integers(0, PROCESSES - 1))
    def lose_an_answer(self, i: int, process: int) -> None:
        self.lose(self._importer(i), process)

    @rule(process=st.integers(0, PROCESSES - 1), count=st.integers(2, IMPORTERS))
    def walk_on_at_the_same_moment(self, process: int, count: int) -> None:
        self._receive_together(self.importers[:count], process)

    @rule(minutes=st.sampled_from((1, 7, 16, 30, 61, 119, 120)))
    def let_minutes_pass(self, minutes: int) -> None:
        """No importer is at one place for two hours: what was under way is abandoned by then, and within 10 minutes
        where only the answer is missing that ends it."""
        for importer in self.importers:
            importer.minutes += minutes
            lost = importer.asked
            short = importer.limit if importer.incremental else 1
            has_lost_its_end = lost is not None and len(lost.ranks) < short
            if importer.minutes >= (10 if has_lost_its_end else 120):
                self.abandon(importer)
        self.let_pass(f"{minutes} minutes")

    def let_pass(self, interval: str) -> None:
        self.world.let_pass(interval)


class Unseen(Disturbances):
    """Importers that meet without a sign of it: each asks only for what one that is alone might ask for.

    Among all orders of events these are rare, and what they show is not seen in the others.
    """

    def __init__(self, world: World, bookmarks: type[Bookmarks] = Bookmarks) -> None:
        super().__init__(world, bookmarks)
        self._asked_last: dict[bool, tuple[int, int, bool]] = {}
        """By kind of walk: the offset and limit, and whether that was the end."""

    def _asked(self, importer: Importer, process: int) -> Page | None:
        if not importer.walking:
            importer.limit = _LIMITS[1]
        offset = importer.offset if importer.walking else 0
        if not self._is_in_turn(importer, offset):
            return None
        page = super()._asked(importer, process)
        if page is not None:
            end = importer.limit if importer.incremental else 1
            self._asked_last[importer.incremental] = (offset, importer.limit, len(page.ranks) < end)
        return page

    def _receive_together(self, importers: list[Importer], process: int) -> None:
        for importer in importers:
            self.receive(importer, process)

    def _is_in_turn(self, importer: Importer, offset: int) -> bool:
        if importer.incremental not in self._asked_last:
            return True
        last, limit, ended = self._asked_last[importer.incremental]
        if offset == 0:
            return ended or last == 0
        return offset in (last, last + limit) and importer.limit == limit


class Operations(Disturbances):
    """What operators and shops do besides: failovers, ids of another type, `end-walks`.

    Whoever is refused asks again, or begins anew, whenever it likes.
    """

    refusals = frozenset({KEY_CHANGED, WALK_LOST})

    @rule(late=st.lists(st.integers(0, IMPORTERS - 1), max_size=4), process=st.integers(0, PROCESSES - 1))
    def fail_over(self, late: list[int], process: int) -> None:
        """To a standby that does not know of the last pages. Nothing is promised to a walk it knows nothing of."""
        self.world.let_the_standby_follow()
        known = [(importer, importer.walk) for importer in self.importers if importer.offset]
        for i in late:
            self.receive(self.importers[i], process)
        self.world.fail_over()
        for importer in self.importers:
            if (importer, importer.walk) not in known:
                self.abandon(importer)

    @rule()
    def order_the_ids_otherwise(self) -> None:
        self.catalog.order_otherwise()

    @rule()
    def end_walks(self) -> None:
        """By an operator who knows that none is under way."""
        for importer in self.importers:
            self.abandon(importer)

        async def said() -> None:
            async with self.world.processes[0].pool.connection() as connection:
                await end_walks(connection, [self.store.name], [FEED])

        self.world.loop.run(said())


class Alone(Walks):
    """One importer that asks for no page twice and finishes every walk: it is sent no item twice.

    It begins no walk of an empty feed: that leaves an end mark behind which nobody asks for. Its limit changes
    between walks only, and they lie so far apart that nobody asks for the end of the one before any more.
    """

    importers_count = 1
    repeats_are_wrong = True
    limit = _LIMITS[0]

    @rule(limit=st.sampled_from(_LIMITS))
    def go_on_with_another_limit(self, limit: int) -> None:
        self.limit = limit

    def receive(self, importer: Importer, process: int) -> bool:
        importer.stops_short = False
        if not importer.walking:
            importer.limit = self.limit
            self.world.let_pass("16 minutes")
        if importer.walking or any(item.valid for item in self.catalog.items.values()):
            return super().receive(importer, process)
        return False


class AloneWithRetries(Walks):
    """One importer whose answers get lost now and then: pages start exactly where they started."""

    importers_count = 1
    starts_are_exact = True
    ends_are_exact = True

    @rule(process=st.integers(0, PROCESSES - 1))
    def lose_an_answer(self, process: int) -> None:
        self.lose(self.importers[0], process)


def run(
    machine: type[Walks],
    world: World,
    bookmarks: type[Bookmarks] = Bookmarks,
    *,
    examples: int,
    shrink: bool = True,
    derandomize: bool = False,
    steps: int = 30,
) -> None:
    """Drive a machine. Raises the Violation found."""
    # Typed as a class, it is called without arguments and nothing else.
    factory = cast("type[RuleBasedStateMachine]", partial(machine, world, bookmarks))
    run_state_machine_as_test(
        factory,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=derandomize,
            report_multiple_bugs=False,
            phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
