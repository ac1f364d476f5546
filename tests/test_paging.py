"""Paging: a walk delivers every item, whatever happens meanwhile; deltas and whole feeds too."""

import http.client
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.clerk import FakeClerk, problem
from tests.conftest import CITEXT, TOKEN, Database, Loop, Serve, Shop, base_config, eventually, ids

NOW = 1_800_000_000


def page(shop: Shop, limit: int, offset: int, more: str = "") -> list[Any]:
    return ids(shop.items(f"products?limit={limit}&offset={offset}{more}"))


def flat(pages: Iterable[list[Any]]) -> list[Any]:
    return [id for page in pages for id in page]


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 200, 250])
def test_a_walk_delivers_every_item_once_in_order(catalog: Shop, count: int) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, $1::int)", count)
    assert ids(catalog.walk("products", 100)) == list(range(1, count + 1))


def test_negative_and_large_keys_are_walked(catalog: Shop) -> None:
    keys = [-(2**63), -7, 0, 1, 2**31, 2**63 - 1]
    catalog.execute("insert into {s}.products (id) select unnest($1::bigint[])", keys)
    assert ids(catalog.walk("products", 2)) == keys


@pytest.mark.parametrize("type", ["smallint", "integer", "bigint"])
def test_every_integer_type_is_a_key(shop: Shop, type: str) -> None:
    shop.execute(f"create table {{s}}.customers (id {type} primary key, email text default 'e')")
    shop.execute("insert into {s}.customers select generate_series(-3, 3)")
    assert ids(shop.walk("customers", 3)) == [-3, -2, -1, 0, 1, 2, 3]


HOSTILE_KEYS = [
    "'", "''", '"', "a b", " a", "a ", "A", "a", "Z", "z",
    "æ", "Ø", "å", "é", "e\u0301", "🛋", "\\", "%", "&limit=1", "a/b",
    "10", "9", "-1", "null", "", "\t", "\n", "{{offset}}", "x" * 300,
]  # fmt: skip


@pytest.mark.parametrize("type", ["text", "varchar(400)", 'text collate "C"'])
def test_text_keys_are_walked_whatever_is_in_them(shop: Shop, type: str) -> None:
    shop.execute(f"create table {{s}}.customers (id {type} primary key, email text default 'e')")
    shop.execute("insert into {s}.customers select unnest($1::text[])", HOSTILE_KEYS)
    walked = ids(shop.walk("customers", 4))
    assert len(walked) == len(HOSTILE_KEYS)
    assert set(walked) == set(HOSTILE_KEYS)


def test_text_keys_are_walked_in_a_linguistic_order(shop: Shop) -> None:
    """There 'a' < 'B' < 'b ' < 'Z': neither Python's order nor that of a bytewise comparison."""
    found = shop.database.value(
        "select quote_ident(collname) from pg_collation where collname ~* '^(en_US|da_DK|de_DE)' limit 1"
    )
    if found is None:
        pytest.skip("no linguistic locale on this machine (Debian: apt-get install locales-all before initdb)")
    keys = [f"{a}{b}" for a in "aAbBzZ-_ æå" for b in "aAbBzZ-_ 1"]
    shop.execute(f"create table {{s}}.customers (id text collate {found} primary key, email text default 'e')")
    shop.execute("insert into {s}.customers select unnest($1::text[])", keys)
    walked = ids(shop.walk("customers", 7))
    assert sorted(walked) == sorted(keys)
    assert walked != sorted(keys)


def test_char_keys_are_walked_and_served_without_padding(shop: Shop) -> None:
    shop.execute("create table {s}.customers (id char(5) primary key, email text default 'e')")
    shop.execute("insert into {s}.customers values ('ALFKI'), ('B'), ('ANA'), ('ANATR'), ('Z')")
    assert ids(shop.walk("customers", 2)) == ["ALFKI", "ANA", "ANATR", "B", "Z"]


def test_uuid_keys_are_walked_and_served_as_text(shop: Shop) -> None:
    shop.execute("create table {s}.customers (id uuid primary key, email text default 'e')")
    shop.execute("insert into {s}.customers select md5(g::text)::uuid from generate_series(1, 50) g")
    walked = ids(shop.walk("customers", 7))
    assert walked == sorted(walked)
    assert len(set(walked)) == 50
    assert all(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", id) for id in walked)


def test_domain_keys_are_walked(shop: Shop) -> None:
    shop.execute("create domain {s}.sku as varchar(10) check (value <> '')")
    shop.execute("create table {s}.customers (id {s}.sku primary key, email text default 'e')")
    shop.execute("insert into {s}.customers select 'SKU-' || g from generate_series(10, 30) g")
    assert ids(shop.walk("customers", 4)) == [f"SKU-{g}" for g in range(10, 31)]


def test_an_item_present_throughout_is_served_although_earlier_ones_vanish(catalog: Shop) -> None:
    """The loss of every OFFSET feed: a deleted row shifts the rest."""
    catalog.execute("insert into {s}.products (id) select generate_series(1, 100)")
    walked: list[Any] = []
    for offset in range(0, 110, 10):
        walked += page(catalog, 10, offset)
        catalog.execute("delete from {s}.products where id in (select min(id) from {s}.products)")
    assert set(walked) >= set(range(16, 101))


def test_an_item_present_throughout_is_served_once_although_others_appear_before_it(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1000, 1099)")
    walked: list[Any] = []
    for offset in range(0, 110, 10):
        walked += page(catalog, 10, offset)
        catalog.execute("insert into {s}.products (id) values ($1)", offset + 1)
    assert [id for id in walked if id >= 1000] == list(range(1000, 1100))


def test_a_retried_page_starts_where_it_started(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 50)")
    page(catalog, 10, 0)
    first = page(catalog, 10, 10)
    catalog.execute("delete from {s}.products where id < 5")
    assert page(catalog, 10, 10) == first
    assert page(catalog, 10, 20) == list(range(21, 31))


def test_a_restarted_walk_does_not_disturb_one_under_way(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 30)")
    page(catalog, 10, 0)
    catalog.execute("delete from {s}.products where id <= 10")
    page(catalog, 10, 0)  # another importer begins, and is further on at the same offset
    assert 11 in page(catalog, 10, 10)


def test_a_walk_after_another_sees_what_came_and_went(catalog: Shop) -> None:
    """The bookmarks of the walk before are past: they neither repeat items nor lose any."""
    catalog.execute("insert into {s}.products (id) select generate_series(1, 30)")
    assert len(catalog.walk("products", 10)) == 30
    catalog.let_the_sync_be_over()
    catalog.execute("delete from {s}.products where id <= 20")
    catalog.execute("insert into {s}.products (id) select generate_series(101, 120)")
    assert ids(catalog.walk("products", 10)) == [*range(21, 31), *range(101, 121)]


def test_a_page_not_full_ends_the_walk_although_items_are_added(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 15)")
    page(catalog, 10, 0)
    assert len(page(catalog, 10, 10)) == 5
    catalog.execute("insert into {s}.products (id) select generate_series(16, 60)")
    assert page(catalog, 10, 20) == []
    assert page(catalog, 10, 20) == []


def test_a_walk_may_change_its_limit(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 60)")
    walked = page(catalog, 10, 0) + page(catalog, 25, 10) + page(catalog, 20, 35) + page(catalog, 10, 55)
    assert walked == list(range(1, 61))


def test_a_page_is_filled_with_valid_items_however_many_invalid_ones_lie_between(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id, name) select g, case when g % 1500 = 0 then 'x' end"
                    " from generate_series(1, 9000) g")  # fmt: skip
    assert page(catalog, 4, 0) == [1500, 3000, 4500, 6000]
    assert page(catalog, 4, 4) == [7500, 9000]
    assert page(catalog, 4, 8) == []


def test_pages_with_some_invalid_items_lose_no_valid_one(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id, url) select g, case when g % 3 > 0 then 'x' end"
                    " from generate_series(1, 100) g")  # fmt: skip
    pages = [page(catalog, 10, offset) for offset in range(0, 80, 10)]
    assert [len(p) for p in pages] == [10, 10, 10, 10, 10, 10, 7, 0]
    assert flat(pages) == [g for g in range(1, 101) if g % 3]


def test_an_offset_no_walk_has_reached_is_answered_by_counting(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 50)")
    assert page(catalog, 10, 33) == list(range(34, 44))
    problem(catalog.get("products?limit=10&offset=1000"), 409, "offset-lost")
    assert not catalog.database.value("select count(*) from clerk_feed.bookmark where store = $1", catalog.name)
    seen = [e["offset"] for e in catalog.service.events("OffsetUnknown") if e["store"] == catalog.name]
    assert seen == [33, 1000]


@pytest.mark.parametrize("more", ["", "&modified_after=2020-01-01"])
def test_who_steps_farther_than_his_pages_meets_no_end(catalog: Shop, more: str) -> None:
    """The URL has no limit, and Clerk's Page Size is not 25: of every 100 items 75 are left out."""
    catalog.execute("insert into {s}.products (id) select generate_series(1, 250)")
    statuses = [catalog.get(f"products?offset={offset}{more}").status for offset in range(0, 500, 100)]
    assert statuses == [200, 200, 200, 409, 409]


def test_null_ids_are_not_served_and_do_not_end_a_walk(shop: Shop) -> None:
    shop.execute("create table {s}.customers (id int, email text default 'e')")
    shop.execute("insert into {s}.customers select nullif(g % 5, 0) * 100 + g from generate_series(1, 40) g")
    walked = ids(shop.walk("customers", 5))
    assert len(walked) == 32
    assert None not in walked
    assert len(ids(shop.items("customers"))) == 32


def test_a_bookmark_older_than_a_day_is_not_used(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 30)")
    page(catalog, 10, 0)
    catalog.execute("delete from {s}.products where id <= 5")
    catalog.execute(
        "update clerk_feed.bookmark set written = now() - interval '25 hours' where store = $1",
        catalog.name,
    )
    assert page(catalog, 10, 10) == list(range(16, 26))


def test_an_abandoned_walk_of_hours_ago_does_not_pull_a_new_one_back(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 30)")
    page(catalog, 10, 0)
    catalog.execute(
        "update clerk_feed.bookmark set written = now() - interval '2 hours' where store = $1",
        catalog.name,
    )
    catalog.execute("delete from {s}.products where id <= 10")
    page(catalog, 10, 0)
    assert page(catalog, 10, 10) == list(range(21, 31))


def test_bookmarks_of_another_key_type_are_not_used(shop: Shop) -> None:
    shop.execute("create table {s}.customers (id int primary key, email text default 'e')")
    shop.execute("insert into {s}.customers select generate_series(1, 30)")
    assert ids(shop.items("customers?limit=10&offset=0")) == list(range(1, 11))
    shop.execute("alter table {s}.customers alter id type text using 'k' || lpad(id::text, 3, '0')")
    eventually(lambda: shop.get("customers?limit=10&offset=10", method="HEAD").status == 500)
    problem(shop.get("customers?limit=10&offset=10"), 500, "key-changed")
    nobody_is_under_way(shop)
    walked = ids(shop.walk("customers", 10))
    assert walked == [f"k{n:03}" for n in range(1, 31)]
    assert ids(shop.items("customers?limit=10&offset=10")) == walked[10:20]


def test_two_processes_share_one_walk(database: Database, clerk: FakeClerk, serve: Serve, loop: Loop) -> None:
    database.execute("create schema dk")
    database.execute("create table dk.customers (id text primary key, email text default 'e')")
    database.execute("insert into dk.customers select 'c' || g from generate_series(1, 95) g")
    config = base_config(database.dsn, clerk.verify_url) + '[stores.dk]\npublic_key = "key-dk"\n'
    services = [serve(config), serve(config)]
    walked: list[Any] = []
    for number in range(11):
        answer = services[number % 2].get(f"/dk/customers?limit=10&offset={number * 10}")
        walked += ids(answer.lines)
        database.execute("delete from dk.customers where id = $1", f"c{number + 1}")
    assert len(set(walked)) == len(walked)
    assert {f"c{n}" for n in range(12, 96)} <= set(walked)


def test_stores_and_kinds_of_walk_have_bookmarks_of_their_own(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    for name, first in (("dk", 1), ("se", 501)):
        database.execute(f"create schema {name}")
        database.execute(f"create table {name}.customers (id int primary key, email text default 'e')")
        database.execute(f"insert into {name}.customers select generate_series({first}, {first + 29})")
    config = base_config(database.dsn, clerk.verify_url)
    config += '[stores.dk]\npublic_key = "key-dk"\n[stores.se]\npublic_key = "key-se"\n'
    service = serve(config)
    for offset in range(0, 40, 10):
        for name, first in (("dk", 1), ("se", 501)):
            got = ids(service.get(f"/{name}/customers?limit=10&offset={offset}").lines)
            assert got == [n for n in range(first + offset, first + offset + 10) if n < first + 30]


# Deltas


@pytest.fixture
def dated(catalog: Shop) -> Shop:
    """100 products, one changed a day: id n at day n of an endless January of 1970."""
    catalog.execute(
        "insert into {s}.products (id, modified_at) select g, to_timestamp(86400.0 * g) from generate_series(1, 100) g"
    )
    return catalog


def since(day: float) -> str:
    # Milliseconds, because seconds of these days would be read as hours back; an hour more against the overlap.
    return f"&modified_after={_iso(86400 * day + 3600)}"


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def test_modified_after_serves_what_changed_since(dated: Shop) -> None:
    assert page(dated, 100, 0, since(95)) == [95, 96, 97, 98, 99, 100]


def test_modified_after_reaches_back_by_the_overlap(dated: Shop) -> None:
    assert page(dated, 100, 0, f"&modified_after={_iso(86400 * 95 + 3599)}")[0] == 95
    assert page(dated, 100, 0, f"&modified_after={_iso(86400 * 95 + 3601)}")[0] == 96


def test_an_incremental_walk_delivers_the_delta_page_by_page(dated: Shop) -> None:
    walked = [page(dated, 10, offset, since(60)) for offset in range(0, 60, 10)]
    assert flat(walked) == list(range(60, 101))
    assert walked[-1] == []


def test_an_undated_item_is_part_of_every_delta_and_comes_first(dated: Shop) -> None:
    dated.execute("update {s}.products set modified_at = null where id % 30 = 0")
    walked = flat(page(dated, 3, offset, since(96)) for offset in range(0, 12, 3))
    assert walked == [30, 60, 90, 96, 97, 98, 99, 100]


def test_an_item_changed_in_mid_walk_comes_again_instead_of_being_missed(dated: Shop) -> None:
    dated.execute("update {s}.products set modified_at = null where id in (10, 50)")
    walked = page(dated, 2, 0, since(95))
    dated.execute("update {s}.products set modified_at = to_timestamp(86400.0 * 101) where id in (10, 97)")
    for offset in range(2, 12, 2):
        walked += page(dated, 2, offset, since(95))
    assert walked == [10, 50, 95, 96, 98, 99, 100, 10, 97]


def test_items_of_one_instant_are_told_apart_by_id(dated: Shop) -> None:
    dated.execute("update {s}.products set modified_at = '2020-01-01 00:00:00.123456+00'")
    walked = flat(page(dated, 7, offset, since(1)) for offset in range(0, 112, 7))
    assert walked == list(range(1, 101))


def test_microseconds_are_kept_between_pages(dated: Shop) -> None:
    dated.execute(
        "update {s}.products"
        " set modified_at = '2020-01-01 00:00:00+00'::timestamptz + (101 - id) * interval '1 microsecond'"
    )
    walked = flat(page(dated, 7, offset, since(1)) for offset in range(0, 112, 7))
    assert walked == list(range(100, 0, -1))


def test_infinite_timestamps_are_part_of_the_order(dated: Shop) -> None:
    dated.execute("update {s}.products set modified_at = 'infinity' where id in (1, 2, 3)")
    walked = flat(page(dated, 2, offset, since(98)) for offset in range(0, 8, 2))
    assert walked == [98, 99, 100, 1, 2, 3]


def test_a_timestamp_without_zone_is_utc(shop: Shop) -> None:
    shop.execute("create table {s}.customers (id int primary key, email text default 'e', modified_at timestamp)")
    shop.execute(
        "insert into {s}.customers (id, modified_at)"
        " select g, timestamp '2026-01-01' + g * interval '1 day' from generate_series(0, 9) g"
    )
    assert ids(shop.walk("customers", 2, modified_after="2026-01-08T01:00:00Z")) == [7, 8, 9]


@pytest.mark.parametrize("another", [False, True], ids=["alone", "another one begins"])
def test_hours_back_are_reckoned_from_the_beginning_of_a_walk(catalog: Shop, another: bool) -> None:
    """Items without a modified_at come first, however long that takes."""
    catalog.execute("insert into {s}.products (id, modified_at) select generate_series(1, 20), null")
    catalog.execute("insert into {s}.products (id, modified_at) values (99, now() - interval '150 minutes')")
    assert len(page(catalog, 10, 0, "&modified_after=1")) == 10
    # As if that page had been asked for two hours ago: the overlap of an hour does not reach so far.
    catalog.execute("update clerk_feed.bookmark set began = began - interval '2 hours' where store = '{s}'")
    if another:
        assert len(page(catalog, 10, 0, "&modified_after=1")) == 10
    assert len(page(catalog, 10, 10, "&modified_after=1")) == 10
    assert page(catalog, 10, 20, "&modified_after=1") == [99]
    if another:
        assert len(page(catalog, 10, 0, "&modified_after=1")) == 10
        assert len(page(catalog, 10, 10, "&modified_after=1")) == 10
    assert page(catalog, 10, 20, "&modified_after=1") == [99]  # once more: the short page got lost


def test_a_moment_ahead_of_our_clock_is_the_same_for_all_pages(catalog: Shop) -> None:
    """Another importer names it when the clock has passed it."""
    catalog.execute("insert into {s}.products (id, modified_at) select generate_series(1, 9), null")
    since = f"&modified_after={time.time() + 2:.3f}"
    assert page(catalog, 3, 0, since) == [1, 2, 3]
    catalog.execute("delete from {s}.products where id = 1")
    time.sleep(2.5)  # until our clock has passed it
    assert page(catalog, 3, 0, since) == [2, 3, 4]
    assert page(catalog, 3, 3, since) == [4, 5, 6]


def test_deltas_do_not_grow_from_one_to_the_next(catalog: Shop) -> None:
    """Each meets what those before have left behind; a quarter of an hour lies between two."""
    catalog.execute("insert into {s}.products (id, modified_at) select generate_series(1, 205), null")
    catalog.execute(
        "insert into {s}.products (id, modified_at)"
        " select 1000 + g, now() - interval '30 minutes' - g * interval '1 hour' from generate_series(0, 50) as g"
    )
    earlier = {
        "bookmark": ("written", "ended", "began"),
        "walk": ("started", "last_page"),
        "asked": ("asked", "failed_over"),
    }
    for _ in range(8):
        found: list[int] = []
        for offset in range(0, 210, 10):  # it stops at the short last page
            found += page(catalog, 10, offset, "&modified_after=1")
        assert [id for id in found if id >= 1000] == [1001, 1000]
        for table, columns in earlier.items():
            moved = ", ".join(f"{column} = {column} - interval '15 minutes'" for column in columns)
            catalog.execute(f"update clerk_feed.{table} set {moved} where store = '{{s}}'")


def test_modified_after_that_means_none_is_a_full_walk(dated: Shop) -> None:
    for value in ("", "0", "null"):
        assert len(dated.items(f"products?limit=1000&offset=0&modified_after={value}")) == 100


def test_hours_back_are_counted_from_now(catalog: Shop) -> None:
    catalog.execute(
        "insert into {s}.products (id, modified_at)"
        " select g, now() - g * interval '1 hour' from generate_series(0, 9) g"
    )
    assert sorted(page(catalog, 100, 0, "&modified_after=3")) == [0, 1, 2, 3]


def test_full_and_incremental_walks_do_not_meet(dated: Shop) -> None:
    page(dated, 10, 0)
    assert page(dated, 10, 0, since(80)) == list(range(80, 90))
    assert page(dated, 10, 10) == list(range(11, 21))
    assert page(dated, 10, 10, since(80)) == list(range(90, 100))


def test_a_source_without_modified_at_serves_everything_and_says_so(shop: Shop) -> None:
    shop.execute("create table {s}.customers (id int primary key, email text default 'e')")
    shop.execute("insert into {s}.customers select generate_series(1, 25)")
    assert ids(shop.walk("customers", 10, modified_after="5")) == list(range(1, 26))
    assert [e for e in shop.service.events("NoModifiedAt") if e["store"] == shop.name]


def nobody_is_under_way(shop: Shop) -> None:
    shop.execute(
        "update clerk_feed.bookmark set written = written - interval '2 hours' where store = $1",
        shop.name,
    )


def test_a_delta_does_not_go_on_where_modified_at_loses_its_zone(catalog: Shop) -> None:
    """All that is left of it then lies hours before the place it has come to."""
    catalog.execute(
        "insert into {s}.products (id, modified_at) select g, now() - interval '1 hour' + g * interval '1 second'"
        " from generate_series(1, 300) g"
    )
    assert len(page(catalog, 100, 0, "&modified_after=3")) == 100
    catalog.execute("set timezone = 'America/New_York'")
    catalog.execute("alter table {s}.products alter modified_at type timestamp")
    catalog.execute("reset timezone")
    eventually(lambda: catalog.get("products?limit=100&offset=100&modified_after=3", method="HEAD").status != 200)
    problem(catalog.get("products?limit=100&offset=100&modified_after=3"), 500, "key-changed")


@pytest.mark.parametrize("appears", [False, True])
def test_a_delta_does_not_go_on_where_modified_at_appears_or_vanishes(shop: Shop, appears: bool) -> None:
    """Its order is another one then: what changed may lie before the place it has come to."""
    columns = "id, 'e' as email"
    dated = f"{columns}, moment as modified_at"
    shop.execute("create table {s}.people as select i as id, now() as moment from generate_series(1, 20) as i")
    shop.execute(f"create view {{s}}.customers as select {columns if appears else dated} from {{s}}.people")
    query = "customers?limit=8&modified_after=5&offset="
    assert len(shop.items(f"{query}0")) == 8
    shop.execute("drop view {s}.customers")
    shop.execute(f"create view {{s}}.customers as select {dated if appears else columns} from {{s}}.people")
    eventually(lambda: shop.get(f"{query}8", method="HEAD").status == 500)
    said = problem(shop.get(f"{query}8"), 500, "key-changed")
    assert "without modified_at" in said["detail"]
    nobody_is_under_way(shop)
    assert [len(shop.items(f"{query}{offset}")) for offset in (0, 8, 16, 24)] == [8, 8, 4, 0]


@pytest.mark.parametrize("limit", [10, 200])
def test_an_importer_at_the_old_ids_is_not_taken_for_one_at_the_new_ones(shop: Shop, limit: int) -> None:
    shop.execute("create table {s}.customers (id int primary key, email text default 'e')")
    shop.execute("insert into {s}.customers select generate_series(1, 500)")
    first, second, third = (f"customers?limit={limit}&offset={limit * number}" for number in range(3))
    assert len(shop.items(first)) == limit
    shop.execute("alter table {s}.customers alter id type text")
    eventually(lambda: shop.get(second, method="HEAD").status == 500)
    shop.execute("delete from {s}.customers where id < '3'")
    # Another importer goes by the new ids. Who asks for the second page can't be told.
    assert len(shop.items(first)) == limit
    for _ in range(3):
        assert "up to two hours" in problem(shop.get(second), 500, "key-changed")["fix"]
    nobody_is_under_way(shop)
    sent = [*shop.items(first), *shop.items(second), *shop.items(third)]
    assert len(ids(sent)) == len(set(ids(sent))) == min(3 * limit, len(sent))


def test_a_counted_page_of_a_delta_counts_undated_items_too(dated: Shop) -> None:
    dated.execute("update {s}.products set modified_at = null where id in (7, 9)")
    assert page(dated, 3, 1, since(98)) == [9, 98, 99]


# Whole feeds and the cursor for other clients


def test_without_placeholders_the_whole_feed_comes_in_one_answer(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 12345)")
    assert ids(catalog.items("products")) == list(range(1, 12346))
    assert ids(catalog.items("products?modified_after=")) == list(range(1, 12346))
    assert not catalog.database.value("select count(*) from clerk_feed.bookmark where store = $1", catalog.name)


def test_a_whole_delta_streams_in_order(dated: Shop) -> None:
    dated.execute("update {s}.products set modified_at = null where id = 4")
    assert ids(dated.items("products?" + since(97)[1:])) == [4, 97, 98, 99, 100]


def test_offset_alone_is_a_page_of_25(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 60)")
    assert ids(catalog.items("products?offset=0")) == list(range(1, 26))
    assert ids(catalog.items("products?offset=25")) == list(range(26, 51))


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("limit=0&offset=0", "limit"),
        ("limit=1001&offset=0", "limit"),
        ("limit=ten&offset=0", "limit"),
        ("limit=10", "limit"),
        ("limit=10&offset=-1", "offset"),
        ("limit=10&offset=9223372036854775808", "offset"),
        ("limit=10&offset=0&offset=0", "offset"),
        ("limit=10&offset=0&page=2", "page"),
        ("limit=10&offset=0&modified_after=yesterday", "modified_after"),
        ("limit={{limit}}&offset=0", "limit"),
    ],
)
def test_a_parameter_that_is_not_understood_is_refused_by_name(catalog: Shop, query: str, named: str) -> None:
    answer = catalog.get(f"products?{query}")
    assert answer.status == 400
    assert answer.json["detail"].startswith((f"{named}=", f"'{named}': "))


def test_after_and_link_lead_through_a_feed(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(-5, 18)")
    answer = catalog.get("products?limit=10&after=-9223372036854775808")
    walked = ids(answer.lines)
    while link := answer.headers.get("Link"):
        target = re.fullmatch(r'<(/[^>]+)>; rel="next"', link)
        assert target
        answer = catalog.service.get(target[1])
        walked += ids(answer.lines)
    assert walked == list(range(-5, 19))
    assert not catalog.database.value("select count(*) from clerk_feed.bookmark where store = $1", catalog.name)


@pytest.mark.parametrize("kilobytes", [4, 40, 400])
def test_links_lead_through_items_of_any_size(catalog: Shop, kilobytes: int) -> None:
    catalog.execute(
        "insert into {s}.products (id, description) select i, repeat('x', $1::int) from generate_series(1, 300) i",
        kilobytes * 1000,
    )
    walked: list[int] = []
    target: str | None = f"/{catalog.name}/products?limit=250&after=0"
    while target:
        answer = catalog.service.get(target)
        assert len(answer.body) < 20_000_000
        walked += ids(answer.lines)
        link = answer.headers.get("Link")
        target = link[1 : link.index(">")] if link else None
    assert walked == list(range(1, 301))


def test_a_link_does_not_lead_on_in_another_order(shop: Shop) -> None:
    """What lies behind the number 90 is not what lies behind the text."""
    shop.execute("create table {s}.customers (id int primary key, email text default 'e')")
    shop.execute("insert into {s}.customers select generate_series(1, 200)")
    link = shop.get("customers?limit=90&after=0").headers["Link"] or ""
    target = link[1 : link.index(">")]
    assert ids(shop.service.get(target).lines) == list(range(91, 181))
    shop.execute("alter table {s}.customers alter id type text")
    eventually(lambda: shop.service.get(target, method="HEAD").status != 200)
    refused = problem(shop.service.get(target), 400, "parameter-invalid")
    assert "another type, order or relation" in refused["detail"]


def test_a_feed_that_broke_does_not_end_for_who_pages_with_after(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 200)")
    assert len(catalog.items("products")) == 200
    catalog.execute("delete from {s}.products where id > 130")
    assert len(catalog.items("products?limit=90&after=0")) == 90
    refused = problem(catalog.get("products?limit=90&after=90"), 503, "feed-shrunk")
    assert "has 130 items now" in refused["detail"]
    catalog.execute("insert into {s}.products (id) select generate_series(131, 170)")
    assert len(catalog.items("products?limit=90&after=90")) == 80


@pytest.mark.parametrize("limit", [1, 3, 50])
def test_links_quote_whatever_a_key_holds(shop: Shop, limit: int) -> None:
    shop.execute("create table {s}.customers (id text primary key, email text default 'e')")
    keys = [key for key in HOSTILE_KEYS if key]
    shop.execute("insert into {s}.customers select unnest($1::text[])", keys)
    answer = shop.get(f"customers?limit={limit}&after=")
    walked = ids(answer.lines)
    while link := answer.headers.get("Link"):
        answer = shop.service.get(link[1 : link.index(">")])
        walked += ids(answer.lines)
    assert len(walked) == len(keys)
    assert set(walked) == set(keys)


def test_after_that_is_no_key_is_refused(catalog: Shop, database_uuid: Callable[[], Shop]) -> None:
    catalog.execute("insert into {s}.products (id) values (1)")
    for value in ("abc", "9223372036854775808", "1.5", ""):
        answer = catalog.get(f"products?after={value}&limit=5")
        assert (answer.status, answer.json["detail"][:6]) == (400, "after="), value
    answer = database_uuid().get("customers?after=nonsense")
    assert (answer.status, answer.json["detail"][:6]) == (400, "after=")


@pytest.fixture
def database_uuid(shop: Shop) -> Callable[[], Shop]:
    def create() -> Shop:
        shop.execute("create table {s}.customers (id uuid primary key, email text)")
        return shop

    return create


def test_a_cursor_that_outlives_its_lease_goes_on_after_the_last_key(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    database.execute("create schema dk")
    database.execute("create table dk.customers (id int primary key, email text default 'e')")
    database.execute("insert into dk.customers select generate_series(1, 60000)")
    config = base_config(database.dsn, clerk.verify_url, database='cursor_lease = "1ms"')
    service = serve(config + '[stores.dk]\npublic_key = "key-dk"\n')
    assert ids(service.get("/dk/customers").lines) == list(range(1, 60001))


def test_a_stream_does_not_go_on_in_another_order(database: Database, clerk: FakeClerk, serve: Serve) -> None:
    """PostgreSQL compares the new type with the old one without a word."""
    database.execute("create schema dk")
    database.execute(CITEXT.replace("{s}", "dk"))
    database.execute('create table dk.customers (id text collate "C" primary key, email text)')
    database.execute(
        "insert into dk.customers select letter || lpad(i::text, 5, '0'), repeat('e', 300)"
        " from generate_series(1, 30000) i, unnest('{U,a}'::text[]) letter"
    )
    config = base_config(database.dsn, clerk.verify_url, database='cursor_lease = "100ms"')
    service = serve(config + '[stores.dk]\npublic_key = "key-dk"\n')
    parts = urlsplit(service.url)
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)) as connection:
        connection.request("GET", "/dk/customers", headers={"X-Clerk-Authorization": f"Bearer {TOKEN}"})
        response = connection.getresponse()
        assert response.read(100_000)
        database.execute("alter table dk.customers alter id type dk.citext using id::dk.citext")
        time.sleep(2.1)  # longer than a description is believed
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
    [cut] = service.events("CutOff")
    assert "key-changed" in str(cut) or "went by the id" in str(cut)


def test_hours_back_are_reckoned_from_when_a_page_was_asked_for(
    database: Database, loop: Loop, clerk: FakeClerk, serve: Serve
) -> None:
    """The database is locked for seconds while the source is described for the first one."""
    database.execute("create schema shop")
    database.execute("create table shop.customers (id bigint primary key, email text, modified_at timestamptz)")
    config = base_config(database.dsn, clerk.verify_url)
    service = serve(f'{config}\n[stores.shop]\npublic_key = "key-shop"\nincremental_overlap = "0s"\n')
    page = "/shop/customers?limit=3&offset={}&modified_after=1"
    with closing(Database(loop, database.dsn)) as other, ThreadPoolExecutor(1) as executor:
        other.execute("begin")
        other.execute("lock table pg_catalog.pg_inherits in access exclusive mode")
        database.execute(
            "insert into shop.customers select id, 'e', case when id = 4 then now() - interval '59 min 57.5 s' end"
            " from generate_series(1, 4) as id"
        )
        asked = executor.submit(lambda: service.get(page.format(0)))
        time.sleep(3.5)
        other.execute("rollback")
        first = asked.result(30)
    assert ids(first.lines) + ids(service.get(page.format(3)).lines) == [1, 2, 3, 4]
