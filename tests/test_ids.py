"""Ids that are repeated or NULL are reported, and cost no other item its place."""

from typing import Any

import pytest

from tests.conftest import Shop, ids


def people(shop: Shop, ids: str, *, indexed: bool = True, more: str = "") -> None:
    """A feed of customers with these ids, given as a query of one column."""
    shop.execute(f"create table {{s}}.people as select i as id, 'a@shop.example' as email {more} from ({ids}) as n (i)")
    if indexed:
        shop.execute("create index on {s}.people (id)")
    shop.execute("create view {s}.customers as select * from {s}.people")


def reported(shop: Shop, kind: str) -> list[dict[str, Any]]:
    return [event for event in shop.service.events(kind) if event["store"] == shop.name]


@pytest.mark.parametrize("limit", [5, 1000])
def test_unique_ids_are_not_reported(shop: Shop, limit: int) -> None:
    people(shop, "select generate_series(1, 30)", more=", now() as modified_at")
    assert ids(shop.walk("customers", limit)) == list(range(1, 31))
    assert ids(shop.items("customers")) == list(range(1, 31))
    assert ids(shop.walk("customers", limit, modified_after="24")) == list(range(1, 31))
    assert reported(shop, "IdsRepeated") == []
    assert reported(shop, "IdsMissing") == []


@pytest.mark.parametrize("limit", [150, 20], ids=["common way", "small pages"])
@pytest.mark.parametrize("type", ["bigint", "text", "uuid"])
def test_a_repeated_id_within_a_page_is_reported_and_served_as_often(shop: Shop, limit: int, type: str) -> None:
    value = "md5(i::text)::uuid" if type == "uuid" else f"(1000 + i)::{type}"
    people(shop, f"select {value} from (select generate_series(1, 200) union all select 7) as n (i)")
    [twice] = [row["i"] for row in shop.database.fetch(f"select ({value})::text as i from (select 7) as n (i)")]
    shop.walk("customers", limit)  # small pages are for sources whose sizes are known
    before = len(reported(shop, "IdsRepeated"))
    walked = ids(shop.walk("customers", limit))
    assert walked.count(int(twice) if type == "bigint" else twice) == 2
    assert len(walked) == 201
    [event] = reported(shop, "IdsRepeated")[before:]
    assert (event["feed"], event["count"], event["skipped"]) == ("customers", 1, False)
    assert [str(id) for id in event["examples"]] == [twice]


@pytest.mark.parametrize("limit", [150, 20], ids=["common way", "small pages"])
def test_a_repeated_id_across_the_edge_of_a_page_is_reported_and_no_other_is_lost(shop: Shop, limit: int) -> None:
    people(shop, f"select generate_series(1, 400) union all select {limit}")
    shop.walk("customers", limit)
    before = len(reported(shop, "IdsRepeated"))
    assert ids(shop.walk("customers", limit)) == list(range(1, 401))
    [event] = reported(shop, "IdsRepeated")[before:]
    assert (event["examples"], event["count"], event["skipped"]) == ([limit], 1, True)


def test_a_repeated_id_across_an_edge_among_invalid_rows_is_reported(shop: Shop) -> None:
    """There the row beyond the edge is not read anyway."""
    people(shop, "select generate_series(1, 12) union all select 11")
    shop.execute("update {s}.people set email = null where id = 3")
    shop.execute(
        "create view {s}.pages as select id, email as type, 'u' as url, 't' as title, 't' as text from {s}.people"
    )
    assert ids(shop.walk("pages", 10)) == [1, 2, *range(4, 13)]
    [event] = reported(shop, "IdsRepeated")
    assert (event["examples"], event["skipped"]) == ([11], True)


def priced(shop: Shop, ids: str, *prices: float | None) -> None:
    """A feed of products joined with their prices: a row for each of both."""
    shop.execute(
        f"create table {{s}}.joined as select i as id, p as price from ({ids}) as n (i), unnest($1::float8[]) as p",
        list(prices),
    )
    shop.execute("create index on {s}.joined (id)")
    shop.execute(
        "create view {s}.products as select *, 'n' as name, 'd' as description, 'i' as image, 'u' as url,"
        " array[1] as categories, now() as created_at, timestamptz '2200-01-01' as modified_at from {s}.joined"
    )


@pytest.mark.parametrize("more", [{}, {"modified_after": "24"}], ids=["full", "delta"])
@pytest.mark.parametrize("limit", [10, 150], ids=["small pages", "common way"])
@pytest.mark.parametrize("others", [[], [3], [2, 3]], ids=["alone", "beside one", "beside two"])
def test_a_valid_row_behind_an_invalid_one_of_its_id_is_served(
    shop: Shop, others: list[int], limit: int, more: dict[str, str]
) -> None:
    """One of its two prices is missing, where a page or a statement ends."""
    priced(shop, "select generate_series(1, 400)", 1)
    shop.execute("update {s}.joined set price = null where id = any($1::int[])", [limit + 1, *others])
    shop.execute("insert into {s}.joined values ($1, 1)", limit + 1)
    assert len(shop.items("products")) == 400 - len(others)
    assert ids(shop.walk("products", limit, **more)) == [id for id in range(1, 401) if id not in others]


@pytest.mark.parametrize("rows", [30, 5000], ids=["more than a page", "more than a batch"])
def test_invalid_rows_of_one_id_are_passed_by_however_many_they_are(shop: Shop, rows: int) -> None:
    priced(shop, "values (1), (3)", 1)
    shop.execute("insert into {s}.joined select 2, null from generate_series(1, $1::int)", rows)
    assert ids(shop.items("products")) == [1, 3]
    assert ids(shop.walk("products", 2)) == [1, 3]
    shop.execute("insert into {s}.joined values (2, 1)")
    assert ids(shop.items("products")) == [1, 2, 3]
    assert ids(shop.walk("products", 2)) == [1, 2, 3]


@pytest.mark.parametrize("other", [0, 1])
@pytest.mark.parametrize("year", [2026, 2100])
def test_a_repeated_id_across_the_edge_of_a_delta(shop: Shop, year: int, other: int) -> None:
    """It is reported, and passed by, where the order is that of the ids. It is served twice where it is dated otherwise
    in an order that goes by that."""
    people(
        shop, "select generate_series(1, 20) union all select 10", more=f", timestamptz '{year}-01-01' as modified_at"
    )
    shop.execute(
        "update {s}.people set modified_at = modified_at + $1 * interval '1 day'"
        " where ctid = (select max(ctid) from {s}.people)",
        other,
    )
    again = [10] if year == 2026 and other else []
    assert ids(shop.walk("customers", 10, modified_after="80000")) == [*range(1, 21), *again]
    found = [(event["examples"], event["skipped"]) for event in reported(shop, "IdsRepeated")]
    assert found == ([] if again else [([10], True)])


def test_repeated_ids_where_a_whole_feed_is_read_on_are_reported(shop: Shop) -> None:
    """A whole feed is read in runs of 50 000 rows."""
    people(shop, "select generate_series(1, 60000) union all select 50000")
    assert ids(shop.items("customers")) == list(range(1, 60_001))
    [event] = reported(shop, "IdsRepeated")
    assert (event["examples"], event["skipped"]) == ([50_000], True)


@pytest.mark.parametrize("type", ["bigint", "text"])
def test_null_ids_are_reported_at_the_end_of_a_full_walk(shop: Shop, type: str) -> None:
    shop.execute(
        f"create table {{s}}.pages (id {type}, type text default 't', url text, title text default 't', text text"
        " default 't')"
    )
    shop.execute(
        f"insert into {{s}}.pages (id, url) select i::{type}, 'https://shop.example/' from generate_series(1, 30) as i"
    )
    shop.execute(
        "insert into {s}.pages (id, url) select null, 'https://shop.example/lost' from generate_series(1, 3) as i"
    )
    assert len(shop.walk("pages", 20)) == 30
    [event] = reported(shop, "IdsMissing")
    assert (event["feed"], event["count"], event["example"]) == ("pages", 3, "url https://shop.example/lost")
    assert event["relation"] == f'"{shop.name}"."pages"'


def test_null_ids_of_customers_are_reported_without_naming_anyone(shop: Shop) -> None:
    people(shop, "select 1 union all select null")
    assert len(shop.items("customers")) == 1
    [event] = reported(shop, "IdsMissing")
    assert (event["count"], event["example"]) == (1, None)
    assert "a@shop.example" not in shop.service.log.read_text()
