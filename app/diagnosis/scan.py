"""A scan: the items of every feed of a store as they are served, looked at one by one.

They stream through in batches, by the reader and the encoder that serve them, so memory does not grow with the feed
and what is looked at is what Clerk would get.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import asyncpg
import msgspec
import orjson

from app.catalog.pool import LOST, Pool
from app.catalog.reader import Reader
from app.catalog.source import Source
from app.catalog.statements import Span
from app.diagnosis.findings import Finding, error, warning
from app.diagnosis.items import Attribute, Inspection
from app.diagnosis.references import CategoryTree, References, categories_in, products_in, subcategories_in
from app.protocol.feeds import FeedName
from app.protocol.problems import Refusal
from app.settings import Store

SAMPLE_ITEMS = 200


class Seen(msgspec.Struct):
    """What was seen of a feed's items."""

    items: int = 0
    invalid: int = 0
    seconds: float = 0.0
    is_whole: bool = False
    is_multilingual: bool = False
    attributes: list[Attribute] = msgspec.field(default_factory=list)
    findings: list[Finding] = msgspec.field(default_factory=list)


Progress = Callable[[FeedName, int], None]


class Scan:
    """Looks at the items of one store, feed by feed."""

    def __init__(
        self,
        pool: Pool,
        reader: Reader,
        store: Store,
        sources: dict[FeedName, Source],
        *,
        whole: bool,
        last_error: Callable[[], str],
    ) -> None:
        """A sample of each feed unless `whole`. `last_error` is what PostgreSQL said last."""
        self._pool = pool
        self._reader = reader
        self._store = store
        self._sources = sources
        self._whole = whole
        self._last_error = last_error

    async def look(self, feed: FeedName, progress: Progress) -> Seen:
        """Look at the items of one feed. What stops the reading is a finding too."""
        source = self._sources[feed]
        seen, inspection = Seen(), Inspection(feed, time.time())
        references = self._references(feed) if self._whole else []
        tree = CategoryTree() if feed == "categories" and self._whole else None
        unreadable: dict[str, list[str]] = {}
        started = time.perf_counter()
        try:
            limit = None if self._whole else SAMPLE_ITEMS
            async for batch in self._reader.batches(self._store, source, Span(), limit):
                body = b"[" + batch.source.encoder.encode(batch.items, "json") + b"]"
                self._reader.seen(batch.source, len(batch.items), len(body))
                items = _decoded(batch.source, cast("list[Any]", batch.items), body, unreadable)
                inspection.look(items)
                for invalid in batch.invalid:
                    inspection.missing(invalid.id, invalid.missing)
                seen.items += len(batch.items)
                seen.invalid += len(batch.invalid)
                if tree is not None:
                    tree.look(items)
                for reference in references:
                    reference.look(items)
                    if reference.is_full:
                        await self._ask(reference)
                progress(feed, seen.items + seen.invalid)
            for reference in references:
                await self._ask(reference)
            seen.is_whole = self._whole
        except Refusal as refusal:
            said = self._last_error()
            what = refusal.detail + (f" PostgreSQL says: {said}" if said else "")
            seen.findings.append(error("source-failed", what, refusal.fix))
        except (asyncpg.PostgresError, *LOST) as fault:
            what = f"Looking up the ids that {feed} name failed ({type(fault).__name__}: {fault})."
            seen.findings.append(warning("references-unknown", what, "Run the check again when the database is calm."))
        seen.seconds = time.perf_counter() - started
        seen.findings += [_unreadable(attribute, ids) for attribute, ids in unreadable.items()]
        # A column of such a name is a finding already.
        seen.findings += [finding for finding in inspection.findings() if finding.code != "item-name"]
        seen.findings += tree.findings() if tree is not None else []
        for reference in references:
            seen.findings += reference.findings(feed)
        seen.attributes = inspection.attributes
        seen.is_multilingual = inspection.is_multilingual
        if not seen.items and not seen.invalid and not seen.findings:
            deleted = (
                "Clerk keeps the orders it has" if feed == "orders" else "after a full sync, Clerk has none either"
            )
            seen.findings.append(
                warning("empty", f"There is no row: {deleted}.", "Look at the view, and at the tables it reads.")
            )
        if not seen.items and seen.invalid:
            seen.findings.append(
                error(
                    "all-invalid",
                    f"None of {seen.invalid:,} rows is valid: the feed is empty.",
                    "Give the items the attributes named above.",
                )
            )
        return seen

    def _references(self, feed: FeedName) -> list[References]:
        named: dict[FeedName, tuple[FeedName, str, Callable[[Any], Iterator[Any]]]] = {
            "products": ("categories", "categories", categories_in),
            "categories": ("categories", "subcategories", subcategories_in),
            "orders": ("products", "products", products_in),
        }
        if feed not in named:
            return []
        target, attribute, named_in = named[feed]
        source = self._sources.get(target)
        return [References(source, target, attribute, named_in)] if source is not None else []

    async def _ask(self, reference: References) -> None:
        async with self._pool.connection() as connection:
            await reference.ask(connection)


def _decoded(source: Source, items: list[Any], body: bytes, unreadable: dict[str, list[str]]) -> list[dict[str, Any]]:
    """The items as a client decodes them from `body`."""
    try:
        found: list[dict[str, Any]] = orjson.loads(body)
    except orjson.JSONDecodeError:
        # The shop's own json passes through as it is, and not all of it can be read by everyone.
        found = []
        for item in items:
            try:
                found += orjson.loads(b"[" + source.encoder.encode([item], "json") + b"]")
            except orjson.JSONDecodeError:
                for attribute in _unreadable_in(source, item):
                    unreadable.setdefault(attribute, []).append(str(item.a0))
    return found


def _unreadable_in(source: Source, item: Any) -> Iterator[str]:
    """The attributes of an item that can't be decoded."""
    for number, attribute in enumerate(source.attributes):
        try:
            orjson.loads(msgspec.json.encode(getattr(item, f"a{number}")))
        except orjson.JSONDecodeError:
            yield attribute


def _unreadable(attribute: str, ids: list[str]) -> Finding:
    return error(
        "item-unreadable",
        f"{attribute} holds what strict readers of JSON refuse: half of a surrogate pair such as \\ud83d, a number"
        " beyond measure, or nesting. A page with such an item may fail as a whole.",
        "Mend the value in these rows; PostgreSQL itself refuses halves of pairs in jsonb.",
        attribute=attribute,
        count=len(ids),
        examples=[f"id {id}" for id in ids[:3]],
    )
