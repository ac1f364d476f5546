"""The older single-file feed: all feeds in one JSON object."""

import gzip
import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

import pytest

from app.protocol.feeds import FEEDS
from loadtests.memory import memory_of
from tests.clerk import problem
from tests.conftest import TOKEN, Shop, eventually

OTHERS = """
create view {s}.categories as select 7 as id, 'Chairs' as name, 'https://shop.example/chairs' as url,
  '{}'::int[] as subcategories;
create view {s}.orders as select 1 as id, '[{"id": 1, "quantity": 2, "price": 10.50}]'::json as products,
  timestamptz '2026-01-02' as time;
create view {s}.customers as select 'a' as id, 'a@shop.example' as email;
create view {s}.pages as select 1 as id, 'cms' as type, 'https://shop.example/about' as url, 'About' as title,
  'Us' as text
"""


def add_products(shop: Shop, count: int, *, size: int = 10) -> None:
    shop.execute(
        "insert into {s}.products (id, description) select i, repeat('x', $2) from generate_series(1, $1::int) i",
        count,
        size,
    )


def strict_constants(name: str) -> object:
    raise AssertionError(f"{name} is not JSON")


def parsed(body: bytes) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(body, parse_constant=strict_constants)
    return result


def test_all_five_feeds_stand_in_one_object_with_orders_as_sales(catalog: Shop) -> None:
    add_products(catalog, 3)
    catalog.execute(OTHERS)
    before = int(time.time())
    answer = catalog.get("feed.json")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    whole = parsed(answer.body)
    assert list(whole) == ["products", "categories", "sales", "customers", "pages", "created", "strict"]
    assert before <= whole.pop("created") <= time.time()
    assert whole.pop("strict") is False
    for feed in FEEDS:
        assert whole["sales" if feed == "orders" else feed] == catalog.get(f"{feed}.json").json
    assert [item["id"] for item in whole["products"]] == [1, 2, 3]


def test_a_feed_without_a_relation_leaves_its_key_out(catalog: Shop) -> None:
    add_products(catalog, 2)
    assert set(parsed(catalog.get("feed.json").body)) == {"products", "created", "strict"}


def test_an_empty_relation_is_an_empty_list(catalog: Shop) -> None:
    assert parsed(catalog.get("feed.json").body)["products"] == []


def test_a_store_without_any_relation_is_a_404_that_names_the_first(shop: Shop) -> None:
    said = problem(shop.get("feed.json"), 404, "feed-missing")
    assert f'"{shop.name}"."products"' in said["detail"]


def test_a_relation_that_cannot_be_served_is_an_error_and_no_missing_key(catalog: Shop) -> None:
    add_products(catalog, 2)
    catalog.execute("create view {s}.categories as select 1 as id, 'Chairs' as name")
    assert '"url"' in problem(catalog.get("feed.json"), 500, "source-unusable")["detail"]


@pytest.mark.parametrize("query", ["limit=10&offset=0", "modified_after=1767225600", "x=1"])
def test_a_parameter_is_refused_by_name(catalog: Shop, query: str) -> None:
    said = problem(catalog.get(f"feed.json?{query}"), 400, "parameter-invalid")
    assert query.split("=", maxsplit=1)[0] in said["detail"]


def test_without_a_token_nothing_is_served(catalog: Shop) -> None:
    problem(catalog.get("feed.json", token=None), 401, "token-missing")


def test_a_feed_that_shrank_holds_the_single_file_back(catalog: Shop) -> None:
    add_products(catalog, 100)
    catalog.execute(OTHERS)
    assert catalog.get("feed.json").status == 200
    catalog.execute("delete from {s}.products where id > 50")
    problem(catalog.get("feed.json"), 503, "feed-shrunk")


def test_a_feed_whose_view_is_gone_holds_the_single_file_back(catalog: Shop) -> None:
    """A view that is dropped and made anew is gone for a moment, and Clerk would delete what is not there."""
    add_products(catalog, 3)
    catalog.execute(OTHERS)
    assert catalog.get("feed.json").status == 200
    catalog.execute("alter view {s}.pages rename to pages_elsewhere")
    eventually(lambda: catalog.get("feed.json").status == 503)
    said = problem(catalog.get("feed.json"), 503, "feed-shrunk")
    assert f"pages of {catalog.name} has no relation any more" in said["detail"]
    assert f"accept-shrink --store {catalog.name} --feed pages" in said["fix"]
    catalog.execute("insert into clerk_feed.accepted_shrink (store, feed, items) values ($1, 'pages', 0)", catalog.name)
    assert "pages" not in parsed(catalog.get("feed.json").body)
    catalog.execute("alter view {s}.pages_elsewhere rename to pages")
    eventually(lambda: "pages" in parsed(catalog.get("feed.json").body))


def test_a_large_file_is_streamed_whole_in_bounded_memory(catalog: Shop) -> None:
    add_products(catalog, 60_000, size=1500)
    catalog.execute(OTHERS)
    catalog.get("products?limit=1000&offset=0")
    before = memory_of(catalog.service.process.pid).peak
    answer = catalog.get("feed.json")
    assert answer.headers["Transfer-Encoding"] == "chunked"
    whole = parsed(answer.body)
    assert [item["id"] for item in whole["products"]] == list(range(1, 60_001))
    assert len(whole["sales"]) == 1
    assert len(answer.body) > 100_000_000
    assert memory_of(catalog.service.process.pid).peak - before < 60


def test_a_feed_that_fails_in_the_middle_cuts_the_file_off_visibly(catalog: Shop) -> None:
    add_products(catalog, 5000, size=1000)
    catalog.execute(
        "create view {s}.categories as select i as id, 'Chairs' as name, '{}'::int[] as subcategories,"
        " 'https://shop.example/' || (1 / (3 - i)) as url from generate_series(1, 5) i"
    )
    parts = urlsplit(catalog.service.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    connection.request("GET", f"/{catalog.name}/feed.json", headers={"X-Clerk-Authorization": f"Bearer {TOKEN}"})
    response = connection.getresponse()
    assert response.status == 200
    with pytest.raises(http.client.IncompleteRead):
        response.read()
    connection.close()
    [cut] = [e for e in catalog.service.events("CutOff") if e["store"] == catalog.name]
    assert (cut["feed"], cut["cause"]) == ("feed.json", "source-failed")


def test_head_says_what_get_would_and_writes_no_walk(catalog: Shop) -> None:
    add_products(catalog, 3)
    answer = catalog.get("feed.json", method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Length"] == catalog.get("feed.json").headers["Content-Length"]
    walks = catalog.database.value("select count(*) from clerk_feed.walk where store = $1", catalog.name)
    assert walks == 1
    served = [e for e in catalog.service.events("FeedServed") if e["store"] == catalog.name]
    assert [(e["method"], e["feed"], e["items"]) for e in served] == [("HEAD", "feed.json", 3), ("GET", "feed.json", 3)]


def test_compressed_it_is_the_same(catalog: Shop) -> None:
    add_products(catalog, 3)
    answer = catalog.get("feed.json", headers={"Accept-Encoding": "gzip"})
    assert [item["id"] for item in parsed(gzip.decompress(answer.body))["products"]] == [1, 2, 3]


def test_no_feed_comes_to_its_end_where_another_one_is_refused(catalog: Shop) -> None:
    """Night after night a feed loses some items, and another one is broken. Clerk receives none of it."""
    add_products(catalog, 1000)
    catalog.execute(
        "create table {s}.customers as select i as id, 'a@shop.example' as email from generate_series(1, 50) i"
    )
    assert len(parsed(catalog.get("feed.json").body)["products"]) == 1000
    catalog.execute("alter table {s}.customers rename to people")
    catalog.execute("create view {s}.customers as select * from {s}.people where id < 10")
    for size in (850, 720, 610):
        catalog.execute(
            "update clerk_feed.walk set last_page = last_page - interval '25 hours' where store = $1", catalog.name
        )
        catalog.execute("delete from {s}.products where id > $1::int", size)
        problem(catalog.get("feed.json"), 503, "feed-shrunk")
    catalog.execute("create or replace view {s}.customers as select * from {s}.people")
    problem(catalog.get("feed.json"), 503, "feed-shrunk")
