"""Rendered feeds: what is served equals the source, a refresh is all or nothing, and a delta misses no change."""

import json
import math
import threading
import time
from contextlib import closing
from decimal import Decimal
from typing import Any

import pytest

from app.catalog.rendered import RefreshError, RefreshHeldBackError, Summary
from app.clerk.importer import Importer
from tests.clerk import problem
from tests.conftest import CITEXT, PRODUCTS, TOKEN, Answer, Database, Loop, reloaded
from tests.rendered import RenderedShop, bare, rendered, rendered_service
from tests.test_feeds import TYPES

__all__ = ["bare", "rendered", "rendered_service"]

MORE_TYPES: dict[str, str] = {
    "cube": "array[array[array[1, null], array[null, 4]]]::int[]",
    "texts_nested": "array[array['null', null], array[',\"a\":null', '[]']]::text[]",
    "doubles_nested": "array[array['NaN', 1.5], array['-Infinity', null]]::float8[]",
    "exacts_nested": "array[array['NaN', 1.50], array[0, 99999999999999.95]]::numeric[]",
    "moments_nested": "array[array['2026-01-31 07:00:00.9+00', 'infinity']]::timestamptz[]",
    "locals_": "array['1969-12-31 23:59:58.5', null, '-infinity']::timestamp[]",
    "days_nested": "array[array['2026-01-31', null], array['infinity', '0044-03-15 BC']]::date[]",
    "no_days": "'{}'::date[]",
    "null_days": "null::date[]",
    "only_forever": "array['infinity']::timestamptz[]",
    "jsons_nested": "array[array['[1, null]', 'null'], array[E'{\"a\":\\n null}', null]]::json[]",
    "no_jsons": "'{}'::json[]",
    "object_with_nulls": '\'{"a": null, "whole": null, "b": [null, {"nothing": null}]}\'::json',
    "object_in_jsonb": '\'{"a": null, "b": [null, 1.50], "c": "x,\\"nothing\\":null"}\'::jsonb',
    "carriage": "E'{\"a\":\\r\\n1}'::json",
    "controls": "E'\\u0001\\u001f\\u007f\\b\\f \\\\u0041 \\\\ \"'::text",
    "sly": "',\"nothing\":null'::text",
    "percent": "'%s {doc} $1 \\ '::text",
    "tiny": "1e-300::float8",
    "huge": "1.7976931348623157e308::float8",
    "minus_zero": "'-0'::float8",
    "round": "10::float8",
    "single_tiny": "1e-30::real",
    "single_round": "1e20::real",
    "single_third": "(1::real / 3)",
    "third": "(1::float8 / 3)",
    "long_exact": "1e-20::numeric",
    "name_": "'catalog'::name",
    "chars": "array['a', null]::varchar(3)[]",
    "first_day": "'-infinity'::timestamp",
    "yes_nested": "array[array[true, null]]",
    "offset_bounds": "'[0:1]={1,2}'::int[]",
}


def values(body: bytes) -> list[Any]:
    """Items with every number as it was written, but for how a double may be written."""
    return [json.loads(line, parse_float=Decimal, parse_int=Decimal) for line in body.splitlines()]


def test_every_type_of_the_contract_is_rendered_as_the_column_path_serves_it(bare: RenderedShop) -> None:
    bare.execute("""
        create type {s}.mood as enum ('sad', 'happy');
        create domain {s}.amount as numeric check (value >= 0);
        create domain {s}.deep_amount as {s}.amount;
        create domain {s}.tags as text[];
    """)
    columns = {name: expression for name, (expression, _) in TYPES.items()} | MORE_TYPES
    chosen = ",\n".join(f'{expression} as "{name}"' for name, expression in columns.items())
    bare.execute(
        "create view {s}.pages as select 1 as id, 't' as type, 'u' as url, 'l' as title, 'x' as text,\n" + chosen
    )
    assert bare.refresh("pages").items == 1
    rendered, served = bare.get("pages"), bare.columns.get("pages")
    assert rendered.status == served.status == 200, rendered.body + served.body
    assert rendered.body.count(b"\n") == 1
    assert values(rendered.body) == values(served.body)
    for exact in (b"123456789012345678901234567890.123456789", b'"single":4.8,', b"99999999999999.95", b"120.00"):
        assert exact in rendered.body
    assert math.copysign(1, values(rendered.body)[0]["minus_zero"]) == -1


def test_each_type_is_rendered_alone_and_from_a_table_of_its_own(bare: RenderedShop) -> None:
    """NULL in every second row, so that each attribute is left out too."""
    bare.execute("create type {s}.mood as enum ('sad', 'happy'); create domain {s}.amount as numeric;"
                 " create domain {s}.deep_amount as {s}.amount; create domain {s}.tags as text[]")  # fmt: skip
    columns = {name: expression for name, (expression, _) in TYPES.items()} | MORE_TYPES
    chosen = ",\n".join(f'case when id % 2 = 0 then {e} end as "{name}"' for name, e in columns.items())
    bare.execute(
        "create table {s}.pages as select id, 't' as type, 'u' as url, 'l' as title, 'x' as text,\n"
        + chosen
        + "\nfrom generate_series(1, 4) as id"
    )
    bare.refresh("pages")
    assert values(bare.get("pages").body) == values(bare.columns.get("pages").body)
    assert len(values(bare.get("pages").body)[0]) == 5


def test_required_attributes_of_every_kind_are_rendered(bare: RenderedShop) -> None:
    bare.execute("""
        create table {s}.products as select
          id::text as id, '{"en": "Chair"}'::json as name, '{"en": 1}'::jsonb as description, 4.8::real as price,
          'i' as image, 'u' as url, array[1, null]::int[] as categories, now()::timestamp as created_at
        from generate_series(1, 3) as id;
        create table {s}.orders as select id, array['{"id": 1}', 'null']::json[] as products, current_date as time
        from generate_series(1, 3) as id;
    """)
    for feed in ("products", "orders"):
        bare.refresh(feed)
        assert len(values(bare.get(feed).body)) == 3
        assert values(bare.get(feed).body) == values(bare.columns.get(feed).body)


def test_names_are_rendered_whatever_is_in_them(bare: RenderedShop) -> None:
    names = [
        "select",
        "Upper",
        "æøå",
        "two words",
        "$1",
        "{key}",
        "{doc}",
        "%s",
        "it's",
        'with "quotes"',
        "line\nbreak",
    ]
    columns = ", ".join(f"""'v' as "{name.replace('"', '""')}\"""" for name in names)
    many = ", ".join(f"{number} as n{number}" for number in range(250))
    bare.execute(
        "create view {s}.pages as select 1 as id, 't' as type, 'u' as url, 'l' as title, 'x' as text, "
        f"{columns}, {many}"
    )
    bare.refresh("pages")
    assert values(bare.get("pages").body) == values(bare.columns.get("pages").body)
    assert len(values(bare.get("pages").body)[0]) == 5 + len(names) - 2 + 250


@pytest.mark.parametrize(
    ("type", "ids"),
    [
        ("smallint", "select generate_series(1, 30)"),
        ("int", "select generate_series(-15, 14)"),
        ("text", "select chr(64 + n) || n || chr(96 + n) from generate_series(1, 26) as n"),
        ('text collate "C"', "select chr(64 + n) || n || chr(96 + n) from generate_series(1, 26) as n"),
        ("varchar(20)", "select 'æ' || n from generate_series(1, 30) as n"),
        ("char(4)", "select n::text from generate_series(1, 30) as n"),
        ("uuid", "select md5(n::text)::uuid from generate_series(1, 30) as n"),
    ],
)
@pytest.mark.parametrize("limit", [7, 1000])
def test_walks_go_by_the_keys_own_type(bare: RenderedShop, type: str, ids: str, limit: int) -> None:
    bare.execute(f"create table {{s}}.products (id {type} primary key)")
    bare.execute("""alter table {s}.products add name text default 'n', add description text default 'd',
        add price numeric default 1, add image text default 'i', add url text default 'u',
        add categories int[] default '{}', add created_at timestamptz default '2026-01-01'""")
    bare.execute(f"insert into {{s}}.products (id) {ids}")
    bare.refresh()
    served = bare.columns.walk("products", limit)
    assert len(served) > 20
    assert bare.walk("products", limit) == served
    assert {item["id"] for item in bare.walk("products", limit, modified_after="1")} == {item["id"] for item in served}
    bare.execute("delete from {s}.products where id = (select max(id) from {s}.products)") if type != "uuid" else None
    assert bare.refresh().vanished == (1 if type != "uuid" else 0)
    assert bare.walk("products", limit) == bare.columns.walk("products", limit)


def test_a_feed_never_yet_refreshed_is_a_503_that_names_the_command(bare: RenderedShop) -> None:
    said = problem(bare.get("products"), 503, "feed-not-rendered")
    assert f"clerk-feed refresh --store {bare.name} --feed products" in said["fix"]


def test_changes_show_with_the_refresh_and_not_before(rendered: RenderedShop) -> None:
    rendered.execute("update {s}.products set name = 'Table' where id = 7; delete from {s}.products where id = 9")
    rendered.execute("insert into {s}.products (id) values (101)")
    assert [item["name"] for item in rendered.items("products")] == ["Chair"] * 100
    summary = rendered.refresh()
    assert (summary.items, summary.added, summary.changed) == (100, 1, 1)
    assert (summary.unchanged, summary.vanished, summary.invalid) == (98, 1, 0)
    items = {item["id"]: item["name"] for item in rendered.items("products")}
    assert items == {id: "Table" if id == 7 else "Chair" for id in range(1, 102) if id != 9}
    assert rendered.state()["items"] == 100
    assert rendered.state()["deletions_waiting"] == 1
    again = rendered.refresh()
    assert (again.items, again.added, again.changed, again.vanished) == (100, 0, 0, 0)


@pytest.mark.parametrize("limit", [7, 25, 100, 1000])
@pytest.mark.parametrize("query", ["", "&modified_after=1"])
def test_a_walk_brings_each_item_once(rendered: RenderedShop, limit: int, query: str) -> None:
    importer = Importer(
        f"{rendered.service.url}/{rendered.name}/products?limit={{{{limit}}}}&offset={{{{offset}}}}{query}",
        token=TOKEN,
        limit=limit,
    )
    ids = [id for page in importer.pages() for id in page.ids]
    importer.close()
    assert sorted(ids) == list(range(1, 101))


@pytest.mark.parametrize(
    "path", ["products", "products.json", "products?limit=50&offset=0", "products?limit=9&after=4"]
)
@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_both_formats_hold_the_docs_as_they_were_rendered(rendered: RenderedShop, path: str, accept: str) -> None:
    served = rendered.columns.get(path, headers={"Accept": accept})
    answer = rendered.get(path, headers={"Accept": accept})
    assert answer.status == served.status == 200
    assert answer.headers["Content-Type"] == served.headers["Content-Type"]
    if answer.headers["Content-Type"] == "application/json":
        assert answer.json == served.json
    else:
        assert answer.lines == served.lines


def test_a_client_with_after_follows_the_links(rendered: RenderedShop) -> None:
    first = rendered.get("products?limit=60&after=0")
    assert [item["id"] for item in first.lines] == list(range(1, 61))
    assert "&after=60&order=" in first.headers["Link"]
    assert rendered.get("products?limit=60&after=60").headers["Link"] is None


def test_a_page_out_of_the_blue_is_found_by_counting(rendered: RenderedShop) -> None:
    assert [item["id"] for item in rendered.items("products?limit=5&offset=42")] == [43, 44, 45, 46, 47]


def test_a_source_that_fails_changes_nothing_and_says_why(rendered: RenderedShop) -> None:
    rendered.execute("alter table {s}.products rename to was")
    rendered.execute("create view {s}.products as select *, 1 / (id - 50) as boom from {s}.was")
    with pytest.raises(RefreshError, match=r"division by zero \(SQLSTATE 22012\)"):
        rendered.refresh()
    assert len(rendered.items("products")) == 100
    assert rendered.state()["last_outcome"] == "failed"


def test_two_rows_with_one_id_are_named(bare: RenderedShop) -> None:
    bare.execute("create table {s}.pages as select id, 't' as type, 'u' as url, 'l' as title, 'x' as text"
                 " from unnest(array[1, 2, 42]) as id")  # fmt: skip
    bare.execute("insert into {s}.pages select 42, 't', 'u', 'l', 'another'")
    with pytest.raises(RefreshError, match="more than one row with the id 42"):
        bare.refresh("pages")
    problem(bare.get("pages"), 503, "feed-not-rendered")
    bare.execute("delete from {s}.pages where text = 'another'")
    bare.refresh("pages")
    bare.execute("insert into {s}.pages select 42, 't', 'u', 'l', 'another'")
    bare.execute("update {s}.pages set text = 'changed'")
    with pytest.raises(RefreshError, match="more than one row with the id 42"):
        bare.refresh("pages")
    assert [item["text"] for item in bare.items("pages")] == ["x"] * 3


def test_another_type_of_key_makes_the_feed_anew(rendered: RenderedShop) -> None:
    before = rendered.items_table()
    assert rendered.get("products?limit=10&offset=0").status == 200
    rendered.execute("alter table {s}.products alter id type text")
    rendered.execute("delete from {s}.products where id = '5'")
    summary = rendered.refresh()
    assert (summary.items, summary.vanished) == (99, 1)
    assert {item["id"] for item in rendered.items("products")} == {str(id) for id in range(1, 101) if id != 5}
    # The ids that only changed their type are the same items to whoever compares their text.
    assert [row["item"] for row in tombstones(rendered)] == ["5"]
    assert rendered.items_table() != before
    rendered.refresh()
    assert rendered.database.value("select to_regclass($1)", before) is None


@pytest.mark.parametrize("query", ["", "?limit=1000&offset=0", "?limit=50&offset=0"])
def test_items_under_the_type_of_key_before_are_not_taken_for_the_feed(
    rendered: RenderedShop, loop: Loop, query: str
) -> None:
    """A dump keeps their table from being dropped, and the description of the feed is some moments old."""
    with closing(Database(loop, rendered.database.dsn)) as dump:
        dump.execute("begin")
        dump.execute(f"lock table {rendered.items_table()} in access share mode")
        rendered.execute("alter table {s}.products alter column id type text using id::text")
        rendered.execute("insert into {s}.products (id) values ('0')")
        asked: list[Answer] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                asked.append(rendered.get(f"products{query}"))

        thread = threading.Thread(target=ask)
        thread.start()
        rendered.refresh()
        seen = len(asked) + 1  # the one that is under way began before
        time.sleep(2.5)
        stop.set()
        thread.join()
        dump.execute("rollback")
    whole = [answer for answer in asked[seen:] if answer.status == 200]
    assert whole
    assert all(b'"id":"0"' in answer.body for answer in whole)


@pytest.mark.parametrize("types", [("bigint", "text"), ("text", "bigint"), ("text", "char(8)")])
def test_an_item_that_is_not_valid_keeps_its_last_version_under_another_type_of_key(
    rendered: RenderedShop, types: tuple[str, str]
) -> None:
    before, after = types
    rendered.execute(f"alter table {{s}}.products alter id type {before} using id::{before}")
    rendered.refresh()
    rendered.execute("update {s}.products set image = null where id in ('1', '100')")
    rendered.refresh()
    rendered.execute(f"alter table {{s}}.products alter id type {after} using id::{after}")
    summary = rendered.refresh()
    assert (summary.items, summary.vanished, summary.invalid) == (100, 0, 2)
    assert tombstones(rendered) == []
    sent = {item["id"]: item for item in rendered.walk("products")}
    assert sent.keys() == {id if after == "bigint" else str(id) for id in range(1, 101)}
    assert all(item["image"] for item in sent.values())


def tombstones(shop: RenderedShop) -> list[Any]:
    return shop.database.fetch("select * from clerk_feed.tombstone where store = $1 order by id", shop.name)


def test_a_vanished_item_leaves_a_tombstone_with_its_id_as_json(bare: RenderedShop) -> None:
    bare.execute("create table {s}.pages as select id, 't' as type, 'u' as url, 'l' as title, 'x' as text"
                 " from unnest(array['a \"b\"', 'c']) as id")  # fmt: skip
    bare.refresh("pages")
    bare.execute("""delete from {s}.pages where id like 'a%'""")
    bare.refresh("pages", accept_shrink=True)
    assert [(row["item"], json.loads(row["json_id"])) for row in tombstones(bare)] == [('a "b"', 'a "b"')]


# Shrink


def test_a_refresh_that_would_leave_far_fewer_items_is_held_back(rendered: RenderedShop) -> None:
    rendered.execute("delete from {s}.products where id > 50")
    for _ in range(2):  # the second looks before it writes
        with pytest.raises(RefreshHeldBackError, match="would have 50 items; the most in 24 hours were 100"):
            rendered.refresh()
        assert len(rendered.items("products")) == 100
    state = rendered.state()
    assert state["last_outcome"] == "held back"
    said = f"clerk-feed refresh --store {rendered.name} --feed products --accept-shrink --items 50"
    assert said in state["last_detail"]
    assert {type(event).__name__ for event in rendered.events} == {"Refreshed", "RefreshHeldBack"}
    assert tombstones(rendered) == []


def test_an_accepted_shrink_is_accepted_at_the_walks_end_too(rendered: RenderedShop) -> None:
    assert len(rendered.walk("products", 30)) == 100
    rendered.execute("delete from {s}.products where id > 50")
    assert rendered.refresh(accept_shrink=True).vanished == 50
    assert len(rendered.walk("products", 30)) == 50
    # It is the new measure.
    rendered.execute("delete from {s}.products where id > 5")
    with pytest.raises(RefreshHeldBackError, match="would have 5 items; the most in 24 hours were 50"):
        rendered.refresh()


def test_a_shop_is_not_drained_little_by_little(rendered: RenderedShop) -> None:
    """Each step is below the limit of 20 %."""
    settings = {"shrink_floor": 1}
    rendered.execute("delete from {s}.products where id > 85")
    assert rendered.refresh(settings=settings).items == 85
    rendered.execute("delete from {s}.products where id > 75")
    with pytest.raises(RefreshHeldBackError, match="the most in 24 hours were 100"):
        rendered.refresh(settings=settings)
    # Two days later, 85 have been the most for long.
    rendered.execute("""update clerk_feed.refresh set finished = finished - interval '2 days'
        where rendered = (select id from clerk_feed.rendered where store = '{s}' and feed = 'products')""")
    assert rendered.refresh(settings=settings).items == 75


def test_items_that_take_the_place_of_all_others_are_held_back(rendered: RenderedShop) -> None:
    """There are as many as before, and Clerk would be told to delete each one it has."""
    rendered.execute("alter table {s}.products rename to things")
    rendered.execute(
        "create view {s}.products as select id + case when id > 70 then 0 else 1000 end as id, name, description,"
        " price, image, url, categories, created_at from {s}.things"
    )
    for _ in range(2):  # the second looks before it writes
        with pytest.raises(RefreshHeldBackError, match="would have 100 items; 70 of the 100 there are would be gone"):
            rendered.refresh()
    assert tombstones(rendered) == []
    assert rendered.events[-1].vanished == 70  # type: ignore[attr-defined]
    assert rendered.refresh(accept_shrink=True, accepted_items=None).vanished == 70


def test_what_was_accepted_is_not_what_the_feed_is_meanwhile(rendered: RenderedShop) -> None:
    """An operator reads of 70 items; before he says that they are right, the table is emptied to be filled again."""

    def accept(items: int | None) -> Summary:
        return rendered.refresh(accept_shrink=True, accepted_items=items)

    with pytest.raises(RefreshError, match="there is nothing to accept"):
        accept(None)
    rendered.execute("delete from {s}.products where id > 70")
    with pytest.raises(RefreshHeldBackError, match="would have 70 items"):
        rendered.refresh()
    rendered.execute("truncate {s}.products")
    for items in (None, 70):
        with pytest.raises(RefreshHeldBackError, match="would have 0 items"):
            accept(items)
    with pytest.raises(RefreshError, match="found no items at all"):
        accept(None)
    assert tombstones(rendered) == []
    assert accept(0).vanished == 100


def test_other_items_than_those_that_were_accepted_are_held_back(rendered: RenderedShop) -> None:
    rendered.execute("delete from {s}.products where id > 70")
    with pytest.raises(RefreshHeldBackError, match="would have 70 items"):
        rendered.refresh()
    rendered.execute("update {s}.products set id = id + 1000")
    with pytest.raises(RefreshHeldBackError, match="100 of the 100 there are would be gone"):
        rendered.refresh(accept_shrink=True, accepted_items=70)


@pytest.mark.parametrize("merge", [True, False])
def test_ids_of_citext_are_compared_as_they_sort(
    bare: RenderedShop, monkeypatch: pytest.MonkeyPatch, merge: bool
) -> None:
    """Wherever its operators are: an id that changes its case is the same item, and not one more."""
    monkeypatch.setattr("app.catalog.rendered._MERGE_SINCE", 0 if merge else 1_000_000)
    bare.execute(CITEXT)
    bare.execute(PRODUCTS.replace("id bigint", "id {s}.citext"))
    bare.execute("insert into {s}.products (id) select ('a' || i)::text::{s}.citext from generate_series(1, 50) as i")
    assert bare.refresh().items == 50
    bare.execute("update {s}.products set id = upper(id::text)::{s}.citext where id::text like '%7'")
    summary = bare.refresh()
    assert (summary.items, summary.added, summary.vanished) == (50, 0, 0)
    assert len(bare.walk("products", 7)) == 50


@pytest.mark.parametrize(("before", "after"), [("C", "POSIX"), ("default", "C"), ("C", "default")])
def test_the_collation_of_the_id_changes_between_refreshes(bare: RenderedShop, before: str, after: str) -> None:
    bare.execute(PRODUCTS.replace("id bigint", f'id text collate "{before}"'))
    bare.execute("insert into {s}.products (id) select 'a' || i from generate_series(1, 50) as i")
    bare.refresh()
    bare.execute(f'alter table {{s}}.products alter column id type text collate "{after}"')
    bare.execute("insert into {s}.products (id) values ('new')")
    summary = bare.refresh()
    assert (summary.items, summary.vanished) == (51, 0)


def test_a_table_filled_anew_during_a_refresh_loses_nothing(bare: RenderedShop, loop: Loop) -> None:
    for name in ("chairs", "lamps"):
        bare.execute(PRODUCTS.replace("{s}.products", f"{{s}}.{name}"))
    bare.execute("insert into {s}.chairs (id) select generate_series(1, 170)")
    bare.execute("insert into {s}.lamps (id) select generate_series(201, 230)")
    bare.execute("create view {s}.products as select * from {s}.chairs union all select * from {s}.lamps")
    assert bare.refresh().items == 200
    with reloaded(loop, bare.database, f"{bare.name}.lamps") as meanwhile:
        assert meanwhile(bare.refresh).vanished == 0
    assert tombstones(bare) == []


def test_a_refresh_may_last_longer_than_the_database_lets_a_transaction(bare: RenderedShop) -> None:
    if bare.database.value("select current_setting('transaction_timeout', true)") is None:
        pytest.skip("this PostgreSQL has no transaction_timeout")
    name = bare.database.value("select quote_ident(current_database())")
    bare.execute(PRODUCTS.replace("{s}.products", "{s}.chairs"))
    bare.execute("insert into {s}.chairs (id) select generate_series(1, 6)")
    bare.execute("create view {s}.products as select c.* from {s}.chairs as c, lateral pg_sleep(0.1 + 0 * c.id)")
    bare.database.execute(f"alter database {name} set transaction_timeout = '300ms'")
    try:
        assert bare.refresh().items == 6
    finally:
        bare.database.execute(f"alter database {name} reset transaction_timeout")


def test_a_feed_whose_rows_are_all_invalid_does_not_begin_empty(bare: RenderedShop) -> None:
    bare.execute("create table {s}.orders as select 1 as id, null::json as products, now() as time")
    with pytest.raises(RefreshHeldBackError, match="all of its rows lack required attributes"):
        bare.refresh("orders")


# Rows that are not valid


def faults(shop: RenderedShop) -> dict[tuple[str, str], str]:
    rows = shop.database.fetch("select * from clerk_feed.invalid where store = $1", shop.name)
    return {(row["id"], row["attribute"]): row["reason"] for row in rows}


def test_an_item_that_turns_invalid_keeps_its_last_valid_version_and_is_on_record(rendered: RenderedShop) -> None:
    rendered.execute("update {s}.products set price = 'NaN', name = null where id = 3")
    rendered.execute("update {s}.products set created_at = 'infinity' where id = 4")
    rendered.execute("insert into {s}.products (id, url) values (500, null)")
    summary = rendered.refresh()
    assert (summary.items, summary.added, summary.changed, summary.vanished, summary.invalid) == (100, 0, 0, 0, 3)
    assert {item["id"]: item.get("name") for item in rendered.items("products")}[3] == "Chair"
    assert len(rendered.items("products")) == 100
    assert faults(rendered) == {
        ("3", "name"): "is NULL",
        ("3", "price"): "is not a finite number",
        ("4", "created_at"): "is not a finite moment",
        ("500", "url"): "is NULL",
    }
    since = rendered.database.value("select min(since) from clerk_feed.invalid where store = $1", rendered.name)
    rendered.execute("update {s}.products set name = 'Stool' where id = 3")
    assert rendered.refresh().invalid == 3
    assert ("3", "name") not in faults(rendered)
    assert since == rendered.database.value(
        "select min(since) from clerk_feed.invalid where store = $1 and id = '3'", rendered.name
    )
    rendered.execute("update {s}.products set price = 10.5 where id = 3; delete from {s}.products where id = 4")
    rendered.execute("update {s}.products set url = 'u' where id = 500")
    summary = rendered.refresh()
    assert (summary.items, summary.added, summary.changed, summary.vanished, summary.invalid) == (100, 1, 1, 1, 0)
    assert faults(rendered) == {}
    assert {item["id"]: item["name"] for item in rendered.items("products")}[3] == "Stool"


def test_an_item_that_is_valid_again_and_unchanged_is_no_change(rendered: RenderedShop) -> None:
    rendered.execute("update {s}.products set name = null where id = 3")
    rendered.refresh()
    rendered.execute("update {s}.products set name = 'Chair' where id = 3")
    summary = rendered.refresh()
    assert (summary.unchanged, summary.changed, summary.invalid) == (100, 0, 0)


def test_a_strict_feed_is_not_refreshed_while_an_item_is_invalid(rendered: RenderedShop) -> None:
    rendered.execute("update {s}.products set name = null where id = 3")
    with pytest.raises(RefreshError, match="The item with id 3 of products: name is NULL, and the feed is strict"):
        rendered.refresh(settings={"strict": True})
    assert faults(rendered) == {}


def test_a_preview_says_the_same_and_writes_nothing(rendered: RenderedShop) -> None:
    rendered.execute("update {s}.products set name = 'Table' where id = 7; delete from {s}.products where id = 9")
    rendered.execute("insert into {s}.products (id, name) values (101, 'x'), (102, null)")
    before = rendered.state()
    preview = rendered.loop.run(rendered.refresher().preview(rendered.store(), "products"))
    assert rendered.state() == before
    done = rendered.refresh()
    for name in ("items", "added", "changed", "unchanged", "vanished", "invalid"):
        assert getattr(preview, name) == getattr(done, name)
    assert (done.added, done.changed, done.unchanged, done.vanished, done.invalid) == (1, 1, 98, 1, 1)


def test_a_preview_of_a_feed_never_rendered(bare: RenderedShop) -> None:
    bare.execute("create table {s}.orders as select 1 as id, '[]'::json as products, now() as time")
    preview = bare.loop.run(bare.refresher().preview(bare.store(), "orders"))
    assert (preview.items, preview.added) == (1, 1)
    problem(bare.get("orders"), 503, "feed-not-rendered")


def test_refreshes_without_change_do_not_grow_the_tables(rendered: RenderedShop) -> None:
    table = rendered.items_table()
    rendered.refresh()
    before = rendered.database.value("select pg_total_relation_size($1::text::regclass)", table)
    for _ in range(100):
        assert rendered.refresh().unchanged == 100
    assert rendered.database.value("select pg_total_relation_size($1::text::regclass)", table) == before


def test_before_postgresql_17_the_same_is_written_without_merge(
    rendered: RenderedShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.catalog.rendered._MERGE_SINCE", 10**9)
    test_changes_show_with_the_refresh_and_not_before(rendered)
    rendered.execute("insert into {s}.products (id) values (9)")
    rendered.execute("delete from {s}.products where id = 101; update {s}.products set name = 'Chair' where id = 7")
    rendered.refresh()
    test_an_item_that_turns_invalid_keeps_its_last_valid_version_and_is_on_record(rendered)
