"""Shops whose feeds are rendered, and how to refresh them, for the tests."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from app.catalog.rendered import Refresher, Summary, connection_for_refresh
from app.protocol.feeds import FeedName
from app.settings import FeedSettings, Store
from app.status.events import Event
from tests.clerk import FakeClerk
from tests.conftest import PRODUCTS, Database, Loop, Running, Shop, base_config, start_service

STORES = 150
FEEDS: tuple[FeedName, ...] = ("products", "orders", "pages")
_stores = itertools.count()


@dataclass
class RenderedShop(Shop):
    """A store r… whose feeds are rendered, and c…, the same without rendering."""

    loop: Loop

    def __post_init__(self) -> None:
        super().__post_init__()
        self.events: list[Event] = []
        self.columns = Shop(f"c{self.name[1:]}", self.database, self.service, self.clerk)

    def store(self, **settings: Any) -> Store:
        feeds: dict[FeedName, FeedSettings] = {feed: FeedSettings(rendered=True, **settings) for feed in FEEDS}
        return Store(public_key=self.public_key, schema=self.name, feeds=feeds, name=self.name)

    def refresher(self) -> Refresher:
        return Refresher(lambda: connection_for_refresh(self.database.dsn), self.events.append)

    def refresh(
        self, feed: FeedName = "products", *, settings: dict[str, Any] | None = None, **options: Any
    ) -> Summary:
        """Refresh a feed; `accept_shrink` alone accepts whatever it comes to."""
        if options.get("accept_shrink"):
            options.setdefault("accepted_items", 0)
        summary = self.loop.run(self.refresher().refresh(self.store(**(settings or {})), feed, **options))
        assert summary is not None
        return summary

    def state(self, feed: FeedName = "products") -> dict[str, Any]:
        sql = "select * from clerk_feed.rendered_state where store = $1 and feed = $2"
        return dict(self.database.fetch(sql, self.name, feed)[0])

    def items_table(self, feed: FeedName = "products") -> str:
        sql = "select 'clerk_feed.' || items_table from clerk_feed.rendered where store = $1 and feed = $2"
        return str(self.database.value(sql, self.name, feed))

    def delta(self, since: float) -> list[Any]:
        """The ids of the items changed since, by unix seconds; these stores have no overlap."""
        return [item["id"] for item in self.items(f"products?modified_after={int(since)}")]


@pytest.fixture(scope="module")
def rendered_service(
    shared_database: Database, clerk: FakeClerk, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    config = base_config(shared_database.dsn, clerk.verify_url)
    for number in range(STORES):
        config += f'[stores.r{number}]\npublic_key = "key-r{number}"\nincremental_overlap = "0s"\n'
        for feed in FEEDS:
            config += f"[stores.r{number}.feeds.{feed}]\nrendered = true\n"
        config += f'[stores.c{number}]\npublic_key = "key-c{number}"\nschema = "r{number}"\n'
    running = start_service(tmp_path_factory.mktemp("rendered"), config)
    yield running
    running.stop()


@pytest.fixture
def bare(rendered_service: Running, shared_database: Database, clerk: FakeClerk, loop: Loop) -> RenderedShop:
    """A store whose feeds are rendered, with an empty schema."""
    name = f"r{next(_stores)}"
    shared_database.execute(f"create schema {name}")
    return RenderedShop(name, shared_database, rendered_service, clerk, loop)


@pytest.fixture
def rendered(bare: RenderedShop) -> RenderedShop:
    """The same with a table of 100 products, refreshed once."""
    bare.execute(PRODUCTS)
    bare.execute("insert into {s}.products (id) select generate_series(1, 100)")
    assert bare.refresh().added == 100
    return bare
