"""What is measured of rendered feeds, beside what PostgreSQL itself can send."""

import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import asyncpg
import msgspec

from app.catalog.embedded import Embedded
from app.catalog.rendered import Refresher, connection_for_refresh
from app.catalog.schema import migrate
from app.clerk.importer import ImportFailedError
from app.settings import FeedSettings, Store
from loadtests import measure
from loadtests.measure import PAGE_ITEMS, Pages, Stream
from loadtests.memory import Memory
from loadtests.processes import PUBLIC_KEY, Target, clerk_feed

OF_STORE = "feeds.products.rendered = true"
_STORE = Store(public_key=PUBLIC_KEY, schema="bench", name="bench", feeds={"products": FeedSettings(rendered=True)})
_TIMES = 3


class RenderedWalk(msgspec.Struct, frozen=True):
    """All items of the rendered feed by a client that does next to nothing: a socket, no JSON."""

    pages: Pages
    first_pages_ms: float
    """Median of the first 20, the very first left out: it is two statements."""
    last_pages_ms: float
    before: Memory
    after: Memory

    @property
    def growth(self) -> float:
        return self.after.peak - self.before.peak


class Refreshing(msgspec.Struct, frozen=True):
    """Refreshes of the feed, in seconds, beside COPY (SELECT row_to_json …) of its source."""

    first_seconds: float
    changed: int
    changed_seconds: float
    unchanged_seconds: tuple[float, ...]
    copy_seconds: float
    bytes_before: int
    """Of the table of items with its indexes, after the change and a vacuum."""
    bytes_after: int
    """The same after the refreshes without a change."""


class Rendered(msgspec.Struct, frozen=True):
    """The rendered feed."""

    items: int
    copy_seconds: float
    """psql -c "COPY (SELECT doc …) TO STDOUT", the best of three: what PostgreSQL can send, without any HTTP."""
    refreshing: Refreshing
    walk: RenderedWalk
    importer: measure.Walk | None
    stream: Stream | None

    @property
    def copy_items_per_second(self) -> float:
        return self.items / self.copy_seconds


async def refresh(
    dsn: str, items: int, say: Callable[[str], None], server: Embedded, *, times: int = _TIMES
) -> Refreshing:
    """Render the feed, change 1 % of its source, and refresh it; then again without a change, so many times."""
    connection = await asyncpg.connect(dsn)
    try:
        await migrate(connection)
        # What was measured before gave up its walks, and an importer that might still be there would be waited for.
        await connection.execute("delete from clerk_feed.bookmark")
        refresher = Refresher(lambda: connection_for_refresh(dsn), lambda event: None)
        say(f"Rendering {items:,} items …")
        first = await refresher.refresh(_STORE, "products")
        assert first is not None  # noqa: S101 (for mypy)
        say("Refreshing with 1 % changed, and without a change …")
        await connection.execute("update bench.item set price = price + 1 where id % 100 = 7")
        await connection.execute("vacuum analyze bench.item")
        copies = [copy(server, dsn, "select row_to_json(p) from bench.products as p") for _ in range(times)]
        changed = await refresher.refresh(_STORE, "products")
        assert changed is not None  # noqa: S101
        table = await connection.fetchval("select 'clerk_feed.' || items_table from clerk_feed.rendered")
        await connection.execute(f"vacuum analyze {table}")
        size = f"select pg_total_relation_size('{table}')"
        before = await connection.fetchval(size)
        unchanged = []
        for _ in range(times):
            summary = await refresher.refresh(_STORE, "products")
            assert summary is not None  # noqa: S101
            unchanged.append(summary.seconds)
        await connection.execute("checkpoint")
        return Refreshing(
            first_seconds=first.seconds,
            changed=changed.changed,
            changed_seconds=changed.seconds,
            unchanged_seconds=tuple(unchanged),
            copy_seconds=min(copies),
            bytes_before=before,
            bytes_after=await connection.fetchval(size),
        )
    finally:
        await connection.close()


async def items_table(dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        return str(await connection.fetchval("select 'clerk_feed.' || items_table from clerk_feed.rendered"))
    finally:
        await connection.close()


def copy(server: Embedded, dsn: str, query: str) -> float:
    """Seconds that psql takes to COPY a query's rows to nowhere."""
    started = time.perf_counter()
    subprocess.run(
        [server.programs / "psql", "-X", "-q", "-d", dsn, "-c", f"copy ({query}) to stdout"],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - started


def walk(target: Target, items: int, seconds: float) -> RenderedWalk:
    """A walk by the bare client; all items must come."""
    with closing(measure.BareClient(target.feed(), PAGE_ITEMS)) as client:
        for _ in range(3):
            client.page(0)
        before = target.memory()
        timed = []
        started = time.perf_counter()
        for page in client.walk():
            timed.append(page)
            if time.perf_counter() - started > seconds:
                break
    full = [page for page in timed if page.items]
    there = sum(page.items for page in full)
    if not timed[-1].items and there != items:
        raise ImportFailedError(f"the walk of the rendered feed brought {there} items of {items}")
    times = [page.answer_seconds * 1000 for page in full]
    return RenderedWalk(
        pages=measure.summed(timed, 0),
        first_pages_ms=measure.middle(times[1:21]),
        last_pages_ms=measure.middle(times[-21:-1]),
        before=before,
        after=target.memory(),
    )


def rendered(
    server: Embedded, dsn: str, url: str, folder: Path, items: int, refreshing: Refreshing, table: str, seconds: float
) -> Rendered:
    """Walks and the stream of the rendered feed, and COPY of the same items between them."""
    query = f"select doc from {table} where doc is not null"
    copies = [copy(server, dsn, query)]
    with clerk_feed(dsn, url, folder, of_store=OF_STORE) as target:
        bare = walk(target, items, seconds)
    copies.append(copy(server, dsn, query))
    with clerk_feed(dsn, url, folder, of_store=OF_STORE) as target:
        importer = measure.walk(target, items, 50, seconds)
    with clerk_feed(dsn, url, folder, of_store=OF_STORE) as target:
        stream = measure.stream(target, items, seconds)
    copies.append(copy(server, dsn, query))
    return Rendered(items, min(copies), refreshing, bare, importer, stream)
