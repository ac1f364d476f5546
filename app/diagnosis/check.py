"""The check before going live: settings, certificate, database, then each feed of each store.

Nothing is written anywhere. What can't be looked at is a finding, and the rest is looked at all the same.
"""

from collections.abc import Awaitable, Callable
from difflib import get_close_matches
from typing import Any

import asyncpg
import msgspec

from app.catalog.pool import LOST, Pool
from app.catalog.reader import Reader
from app.catalog.source import Source, Sources, build, columns_of, quoted, relation_of
from app.diagnosis.certificates import Certificates
from app.diagnosis.columns import column_findings
from app.diagnosis.database import Server, server, server_findings, state_findings, unreachable
from app.diagnosis.findings import Finding, by_severity, error, note, placed, warning
from app.diagnosis.items import Attribute
from app.diagnosis.keys import key_findings
from app.diagnosis.moments import moment_findings, own_zone
from app.diagnosis.plans import estimated_rows, plan_findings
from app.diagnosis.refreshes import refresh_findings
from app.diagnosis.scan import SAMPLE_ITEMS, Scan
from app.protocol.feeds import FEEDS, FeedName
from app.protocol.problems import FEED_MISSING, Refusal
from app.settings import Settings, Store, replace
from app.status.events import Event, SourceFailed


class Feed(msgspec.Struct):
    """A feed of a store as it was found."""

    store: str
    feed: FeedName
    relation: str
    exists: bool = False
    usable: bool = False
    rendered: bool = False
    key: str | None = None
    """The type of the id."""
    has_modified_at: bool = False
    rows_estimated: int | None = None
    items: int | None = None
    """Valid ones that were looked at."""
    invalid: int | None = None
    is_whole: bool = False
    """Whether all items were looked at."""
    is_multilingual: bool = False
    seconds: float | None = None
    attributes: list[Attribute] = msgspec.field(default_factory=list)
    findings: list[Finding] = msgspec.field(default_factory=list)


class Report(msgspec.Struct):
    """What a check came to."""

    certificate_ends: str | None = None
    """The day on which TLS here ends; None where it is not offered here."""
    server: Server | None = None
    feeds: list[Feed] = msgspec.field(default_factory=list)
    general: list[Finding] = msgspec.field(default_factory=list)

    @property
    def findings(self) -> list[Finding]:
        """All of them: what concerns everything first, then by feed, errors first."""
        return by_severity(self.general) + [finding for feed in self.feeds for finding in by_severity(feed.findings)]


class Progress:
    """Told what is being looked at. The check's own does nothing."""

    def begin(self, feed: Feed) -> None:
        """A feed's items are looked at from now on."""

    def advance(self, items: int) -> None:
        """So many of them were looked at."""


class Check:
    """Checks all stores of some settings, or the ones named."""

    def __init__(
        self, settings: Settings, dsn: str, *, stores: list[str], scan: bool, progress: Progress | None = None
    ) -> None:
        self._settings = settings
        self._dsn = dsn
        self._stores = [settings.stores[name] for name in stores]
        self._scan = scan
        self._progress = progress or Progress()
        self._failure = ""
        self.report = Report()

    async def run(self) -> Report:
        """Look at everything."""
        report = self.report
        certificates = Certificates(self._settings.server)
        report.general += certificates.findings()
        report.certificate_ends = certificates.end
        try:
            pool = await Pool.open(self._dsn, replace(self._settings.database, pool_size=2), self._emit)
        except (asyncpg.PostgresError, ValueError, *LOST) as fault:
            report.general.append(unreachable(fault, "database.dsn"))
            return report
        try:
            await self._look_at_server(pool)
            for store in self._stores:
                await self._look_at_store(pool, store)
        except LOST as fault:
            report.general.append(unreachable(fault, "database.dsn"))
        finally:
            await pool.close()
        return report

    def _emit(self, event: Event) -> None:
        if isinstance(event, SourceFailed):
            self._failure = event.message

    async def _look_at_server(self, pool: Pool) -> None:
        async with pool.connection() as connection:
            facts = self.report.server = await server(connection)
        embedded = self._settings.database.dsn is None
        names = [store.name for store in self._stores]
        self.report.general += server_findings(facts, stores=names, embedded=embedded)
        self.report.general += await self._state_findings(facts)

    async def _state_findings(self, facts: Server) -> list[Finding]:
        """Whether bookmarks can be kept: where they are kept elsewhere, there."""
        database = self._settings.database
        if not database.state_dsn:
            return state_findings(facts)
        try:
            pool = await Pool.open(database.state_dsn.reveal(), replace(database, pool_size=1), self._emit)
        except (asyncpg.PostgresError, ValueError, *LOST) as fault:
            return [unreachable(fault, "database.state_dsn")]
        try:
            async with pool.connection() as connection:
                return state_findings(await server(connection))
        except LOST as fault:
            return [unreachable(fault, "database.state_dsn")]
        finally:
            await pool.close()

    async def _look_at_store(self, pool: Pool, store: Store) -> None:
        plain = _as_columns(store)
        sources: dict[FeedName, Source] = {}
        feeds = []
        for name in FEEDS:
            feed = Feed(store.name, name, str(relation_of(store, name)), rendered=store.feed(name).rendered)
            feeds.append(feed)
            self.report.feeds.append(feed)
            source = await self._source(pool, plain, feed)
            if source is not None:
                sources[name] = source
        await self._look_for_missing(pool, store, feeds)
        reader = Reader(pool, Sources(pool, 0), self._settings.database, self._emit)
        scan = Scan(pool, reader, plain, sources, whole=self._scan, last_error=lambda: self._failure)
        for feed in feeds:
            if feed.feed in sources:
                await self._look_at_feed(pool, scan, feed, sources[feed.feed])
        self.report.general += placed(_languages(feeds), store=store.name)
        for feed in feeds:
            feed.findings = placed(feed.findings, store=store.name, feed=feed.feed)

    async def _source(self, pool: Pool, store: Store, feed: Feed) -> Source | None:
        """Describe a feed's relation, and say what is wrong with its columns."""
        try:
            async with pool.connection() as connection:
                relation, columns = await columns_of(connection, store, feed.feed)
        except Refusal as refusal:
            if refusal.problem is not FEED_MISSING:
                feed.exists = True
                feed.findings.append(error("source-unreadable", refusal.detail, refusal.fix))
            return None
        feed.exists = True
        feed.findings += column_findings(feed.feed, relation, columns)
        feed.key = next((column.shown_type for column in columns if column.name == "id"), None)
        try:
            source = build(store.name, feed.feed, relation, columns)
        except Refusal:
            return None  # what is wrong is said
        feed.usable, feed.has_modified_at = True, source.has_modified_at
        return source

    async def _look_for_missing(self, pool: Pool, store: Store, feeds: list[Feed]) -> None:
        """Feeds that have no relation: left out on purpose, or misspelled?"""
        absent = [feed for feed in feeds if not feed.exists]
        if not absent:
            return
        async with pool.connection() as connection:
            names = [row["name"] for row in await connection.fetch(_RELATIONS, store.schema)]
        if len(absent) == len(feeds) and not names:
            self.report.general.append(
                error(
                    "store-empty",
                    f"The schema {quoted(store.schema)} of the store holds no view or table, or does not exist.",
                    f'Draft the views of its feeds: clerk-feed init --store {store.name} --dsn "$DATABASE_URL"',
                    store=store.name,
                )
            )
            return
        for feed in absent:
            close = get_close_matches(feed.feed, [name for name in names if name not in FEEDS], n=1, cutoff=0.75)
            hint = f" There is {quoted(store.schema)}.{quoted(close[0])}: did you mean that?" if close else ""
            what = f"There is no view or table {feed.relation}.{hint}"
            if feed.feed in store.feeds:
                cure = "Create it, or remove its table from feed.toml: what is named there must be servable."
                feed.findings.append(error("source-missing", what, cure))
            elif close:
                place = f"[stores.{store.name}.feeds.{feed.feed}]"
                cure = f'Rename it, or set source = "{store.schema}.{close[0]}" for {place}.'
                feed.findings.append(warning("source-misspelled", what, cure))
            elif feed.feed == "products":
                cure = "Create it, unless this store has no products."
                feed.findings.append(warning("source-missing", what, cure))

    async def _look_at_feed(self, pool: Pool, scan: Scan, feed: Feed, source: Source) -> None:
        """Key, plans and items of a feed that can be described."""

        async def estimate(connection: Any) -> list[Finding]:
            feed.rows_estimated = await estimated_rows(connection, source)
            return []

        async def moments(connection: Any) -> list[Finding]:
            return await moment_findings(connection, source, await own_zone(self._dsn), thorough=self._scan)

        feed.findings += await self._asked(pool, estimate)
        feed.findings += await self._asked(pool, lambda c: key_findings(c, source, thorough=self._scan))
        if source.has_modified_at:
            feed.findings += await self._asked(pool, moments)
        if feed.rendered:
            store = self._settings.stores[feed.store]
            feed.findings += await self._asked(pool, lambda c: refresh_findings(c, store, feed.feed))
        else:
            feed.findings += await self._asked(pool, lambda c: plan_findings(c, source, feed.rows_estimated or 0))
            feed.findings += _deltas(feed)
        self._progress.begin(feed)
        self._failure = ""
        seen = await scan.look(feed.feed, lambda _, items: self._progress.advance(items))
        feed.items, feed.invalid, feed.seconds = seen.items, seen.invalid, seen.seconds
        feed.is_whole = seen.is_whole or (not self._scan and seen.items + seen.invalid < SAMPLE_ITEMS)
        feed.attributes, feed.is_multilingual = seen.attributes, seen.is_multilingual
        feed.findings += seen.findings

    async def _asked(self, pool: Pool, ask: Callable[[Any], Awaitable[list[Finding]]]) -> list[Finding]:
        """Findings from the database; where it refuses to look, that is one."""
        try:
            async with pool.connection() as connection:
                return await ask(connection)
        except asyncpg.PostgresError as fault:
            return [
                error(
                    "source-failed",
                    f"PostgreSQL reports an error for this feed: {fault} (SQLSTATE {fault.sqlstate}).",
                    "Often one row makes an expression of the view fail: a cast, or a division by zero.",
                )
            ]


def _as_columns(store: Store) -> Store:
    """The store with feeds that read their relations themselves and stop at no item, whatever is served from them."""
    feeds = {name: replace(feed, rendered=False, strict=False) for name, feed in store.feeds.items()}
    return replace(store, feeds=feeds)


def _deltas(feed: Feed) -> list[Finding]:
    """What a sync of changes can't know."""
    if not feed.has_modified_at:
        return [
            note(
                "full-only",
                "There is no modified_at: every sync is a full one.",
                "Fine for a small feed. For a large one pass the table's time of change through as modified_at.",
            )
        ]
    if feed.feed == "orders":
        return []  # Clerk keeps orders anyway
    return [
        note(
            "deltas-without-deletions",
            "A sync of what changed can't tell Clerk what is gone.",
            "Let a full sync run now and then, or set rendered = true for the feed.",
        )
    ]


def _languages(feeds: list[Feed]) -> list[Finding]:
    """A store with several languages, and what Clerk does not support in it."""
    translated = [feed.feed for feed in feeds if feed.is_multilingual]
    if not translated or not any(feed.feed == "pages" and feed.usable for feed in feeds):
        return []
    return [
        warning(
            "pages-multilingual",
            f"{' and '.join(translated)} have several languages, and Clerk does not import pages in such a store.",
            "Make one Clerk store for each language, or leave the pages out.",
            feed="pages",
        )
    ]


_RELATIONS = """
select c.relname::text as name
from pg_class as c
join pg_namespace as n on n.oid = c.relnamespace
where n.nspname = $1 and c.relkind in ('r', 'v', 'm', 'p', 'f')
order by 1
"""
