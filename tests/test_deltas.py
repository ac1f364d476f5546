"""Deltas of a shop that changes all the time: each ends, and brings every item that changed before it began."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.catalog.bookmarks import Bookmarks
from app.protocol.request import FeedRequest
from tests.conftest import Database, Loop, Shop, ids
from tests.model import World
from tests.rendered import RenderedShop, bare, rendered, rendered_service

__all__ = ["bare", "rendered", "rendered_service"]

PAGES = 40
"""More than any of these deltas may have."""


@pytest.fixture
def touched(catalog: Shop) -> Shop:
    """Twenty products, every fifth of them undated; the others changed one after the other, an hour ago."""
    catalog.execute(
        "insert into {s}.products (id, modified_at)"
        " select g, case when g % 5 > 0 then now() - interval '1 hour' - g * interval '1 s' end"
        " from generate_series(1, 20) as g"
    )
    return catalog


def pages_of(shop: Shop, limit: int, *, meanwhile: Callable[[], Any]) -> Iterator[list[int]]:
    """The ids of a delta's pages, by two hours back, with something happening between every two of them."""
    for number in range(PAGES):
        page = ids(shop.items(f"products?limit={limit}&offset={number * limit}&modified_after=2"))
        yield page
        if not page:
            return
        meanwhile()
    pytest.fail(f"no end after {PAGES} pages")


def flat(pages: Iterator[list[int]]) -> list[int]:
    return [id for page in pages for id in page]


def test_a_delta_ends_and_holds_everything_although_everything_changes_between_its_pages(touched: Shop) -> None:
    sent = flat(pages_of(touched, 3, meanwhile=lambda: touched.execute("update {s}.products set modified_at = now()")))
    # Undated; then, of those touched after the first page, all by their ids.
    assert sent == [5, 10, 15, *range(1, 21)]


def test_what_changes_behind_the_place_of_a_delta_is_the_next_ones(touched: Shop) -> None:
    touched.execute("update {s}.products set modified_at = now() - interval '90 minutes'")
    sent: list[int] = []

    def change() -> None:
        id = {2: 20, 4: 19, 6: 1, 8: 7}.get(len(sent))
        touched.execute("update {s}.products set modified_at = now() where id = $1", id)

    for page in pages_of(touched, 2, meanwhile=change):
        # 20 and 19 came to lie behind all others, and 1 and 7 were sent before: they come again with them.
        sent += page
    assert sent == [*range(1, 19), 1, 7, 19, 20]
    moment = touched.database.value("select extract(epoch from now())::int8")
    assert ids(touched.items(f"products?limit=100&offset=0&modified_after={moment}")) == [1, 7, 19, 20]


@pytest.mark.parametrize("limit", [2, 5, 1000])
def test_items_that_are_always_new_come_once_and_hold_nobody_up(touched: Shop, limit: int) -> None:
    touched.execute("alter table {s}.products rename to table_of_products")
    touched.execute(
        "create view {s}.products as"
        " select id, name, description, price, image, url, categories, created_at,"
        " coalesce(modified_at, now()) as modified_at from {s}.table_of_products"
    )
    dated = [id for id in range(20, 0, -1) if id % 5]
    assert flat(pages_of(touched, limit, meanwhile=lambda: None)) == [*dated, 5, 10, 15, 20]
    assert ids(touched.items("products?modified_after=2")) == [*dated, 5, 10, 15, 20]


@pytest.mark.parametrize("limit", [3, 19, 1000, None])
@pytest.mark.parametrize(
    "moment",
    [
        "now() - interval '1 minute'",
        "clock_timestamp() - interval '5 seconds'",
        "greatest(modified_at, now() - interval '30 minutes')",
        "now() - interval '90 minutes'",
        "coalesce(modified_at, clock_timestamp() - interval '100 minutes')",
        "case when id > 3 then now() - interval '90 minutes' else modified_at end",
    ],
)
def test_a_delta_of_moments_that_move_ends(touched: Shop, moment: str, limit: int | None) -> None:
    """It has settled up to an hour ago by then; and one that moves all the same is noticed by coming back."""
    touched.execute("alter table {s}.products rename to table_of_products")
    touched.execute(
        "create view {s}.products as select id, name, description, price, image, url, categories, created_at,"
        f" {moment} as modified_at from {{s}}.table_of_products"
    )
    if limit is None:
        sent = ids(touched.items("products?modified_after=2"))
    else:
        sent = flat(pages_of(touched, limit, meanwhile=lambda: None))
    assert set(sent) == set(range(1, 21))
    assert len(sent) <= 3 * 20


@pytest.mark.parametrize(
    "query",
    ["limit=5&offset={}", "limit=1000&offset={}", ""],
    ids=["small pages", "pages of several statements", "all"],
)
def test_a_delta_of_large_items_and_of_moments_that_move_by_steps_ends(catalog: Shop, query: str) -> None:
    """Where the next rows are not those that came before."""
    size, count, step = (10_000, 1500, "microseconds") if "1000" in query or not query else (10, 200, "second")
    catalog.execute("alter table {s}.products rename to table_of_products")
    catalog.execute(
        "insert into {s}.table_of_products (id, description)"
        " select g, repeat('x', $2) from generate_series(1, $1::int) as g",
        count,
        size,
    )
    catalog.execute(
        "create view {s}.products as select id, name, description, price, image, url, categories, created_at,"
        f" date_trunc('{step}', now()) - interval '1 day' as modified_at from {{s}}.table_of_products"
    )
    sent: list[int] = []
    for number in range(2 * count // 5 + 3):
        page = ids(catalog.items(f"products?{query.format(len(sent))}&modified_after=48"))
        sent += page
        if len(page) < (1000 if "1000" in query else 5) or not query:
            break
        time.sleep(0.03 if size == 10 else 0)  # the moments move once a second, in the middle of the walk
        assert number <= 2 * count // 5
    assert set(sent) == set(range(1, count + 1))
    assert len(sent) <= 3 * count


@pytest.mark.parametrize("lag", ["0 s", "30 s", "10 minutes", "59 minutes"])
def test_a_delta_ends_although_everything_changes_by_a_clock_that_is_behind(touched: Shop, lag: str) -> None:
    """Or in transactions that long."""
    sql = f"update {{s}}.products set modified_at = clock_timestamp() - interval '{lag}'"
    sent = flat(pages_of(touched, 3, meanwhile=lambda: touched.execute(sql)))
    assert sent == [5, 10, 15, *range(1, 21)]


def test_items_of_a_time_to_come_come_last_by_their_ids(touched: Shop) -> None:
    touched.execute("update {s}.products set modified_at = now() + interval '1 year' where id = 3")
    touched.execute("update {s}.products set modified_at = 'infinity' where id = 1")
    touched.execute("update {s}.products set modified_at = now() + interval '1 day' where id = 7")
    for limit in (1, 2, 19, 20, 21):
        assert flat(pages_of(touched, limit, meanwhile=lambda: None))[-4:] == [2, 1, 3, 7]


def test_rows_of_a_time_to_come_that_share_an_id_come_as_in_a_full_walk(shop: Shop) -> None:
    shop.execute("create table {s}.customers (id int, email text default 'e', modified_at timestamptz)")
    shop.execute(
        "insert into {s}.customers select g / 2, 'e', now() + (10 - g) * interval '1 day' from generate_series(2, 9) g"
    )
    assert ids(shop.walk("customers", 3, modified_after="1")) == ids(shop.walk("customers", 3)) == [1, 1, 2, 3, 3, 4]


def test_invalid_items_of_a_time_to_come_do_not_end_a_delta(catalog: Shop) -> None:
    catalog.execute(
        "insert into {s}.products (id, name, modified_at)"
        " select g, case when g % 7 = 0 then 'Chair' end, now() + interval '1 day' from generate_series(1, 70) as g"
    )
    assert flat(pages_of(catalog, 3, meanwhile=lambda: None)) == list(range(7, 71, 7))


def test_a_rendered_delta_ends_and_holds_everything_although_a_refresh_changes_everything_between_its_pages(
    rendered: RenderedShop,
) -> None:
    prices = iter(range(1000))

    def change() -> None:
        rendered.execute("update {s}.products set price = $1", next(prices))
        assert rendered.refresh().changed == 100

    change()
    sent = flat(pages_of(rendered, 30, meanwhile=change))
    assert sent == [*range(1, 31), *range(1, 101)]


# When it began is known to the microsecond, by every page.


@pytest.fixture(scope="module")
def world(create_database: Callable[[], Database], loop: Loop) -> Iterator[World]:
    running = World(loop, create_database())
    yield running
    running.close()


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_what_changed_in_the_moment_a_delta_begins_comes_once(world: World, limit: int) -> None:
    world.begin(Bookmarks)
    world.database.execute(
        "insert into ints.customers select i, 'e', 1, timestamptz '2026-11-30 12:00:00.123456+00' + (3 - i) * interval"
        " '1 microsecond' from generate_series(1, 9) as i"
    )
    asked = 1_796_040_000.123456
    sent: list[bytes] = []
    for number in range(PAGES):
        wanted = FeedRequest(format="ndjson", limit=limit, offset=number * limit, modified_after=asked - 3600)
        # Each page is asked for later than the one before, of another process.
        process = world.processes[number % len(world.processes)]
        body, _ = world.loop.run(process.page_of_walk(world.stores["ints"], wanted, asked=asked + number * 0.1234567))
        if not body:
            break
        sent += body.splitlines()
    # 4 to 9 changed before that moment; 3 in it, and 1 and 2 a microsecond or two later.
    assert [int(line.split(b":")[1].split(b",")[0]) for line in sent] == [9, 8, 7, 6, 5, 4, 1, 2, 3]


def test_a_bookmark_that_does_not_say_when_its_delta_began_loses_nothing(world: World) -> None:
    """As one of a former version."""
    world.begin(Bookmarks)
    world.database.execute(
        "insert into ints.customers select i, 'e', 1, now() - i * interval '1 hour' from generate_series(1, 9) as i"
    )
    sent: list[bytes] = []
    for offset in range(0, 30, 3):
        wanted = FeedRequest(format="ndjson", limit=3, offset=offset, modified_after=time.time() - 86400)
        body = world.loop.run(world.processes[0].page(world.stores["ints"], wanted))
        if not body:
            break
        sent += body.splitlines()
        world.database.execute("update clerk_feed.bookmark set began = null")
    assert {int(line.split(b":")[1].split(b",")[0]) for line in sent} == set(range(1, 10))
