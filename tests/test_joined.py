"""Attributes that PostgreSQL joins to one text: the same items, also while a column becomes another one."""

import msgspec
import pytest

from app.catalog.pool import Pool
from app.catalog.source import Source, build, columns_of
from app.protocol.wire import ItemEncoder
from app.settings import Database as DatabaseSettings
from app.settings import Store
from tests.conftest import Loop, Shop
from tests.test_feeds import TYPES
from tests.test_rendered import MORE_TYPES, values


def test_lists_are_the_same_whoever_makes_them(shop: Shop, loop: Loop) -> None:
    """PostgreSQL with a function of ours, or Python where that function is not there."""
    shop.execute("create type {s}.mood as enum ('sad', 'happy'); create domain {s}.amount as numeric;"
                 " create domain {s}.deep_amount as {s}.amount; create domain {s}.tags as text[]")  # fmt: skip
    columns = {name: expression for name, (expression, _) in TYPES.items()} | MORE_TYPES
    chosen = ",\n".join(f'case when id % 2 = 0 then {e} end as "{name}"' for name, e in columns.items())
    shop.execute(
        "create view {s}.pages as select id, 't' as type, 'u' as url, 'l' as title, 'x' as text,\n"
        + chosen
        + "\nfrom generate_series(1, 4) as id"
    )
    store = Store(public_key="key", name=shop.name, schema=shop.name)

    async def served(*, lists: bool) -> tuple[Source, bytes]:
        pool = await Pool.open(shop.database.dsn, DatabaseSettings(pool_size=1), lambda event: None)
        try:
            async with pool.connection() as connection:
                source = build(shop.name, "pages", *await columns_of(connection, store, "pages"), lists=lists)
                rows = await connection.fetch(source.rows(source.select, "", 's."id"'))
        finally:
            await pool.close()
        return source, source.encoder.encode(source.encoder.items(rows).valid, "ndjson")

    made_by_postgresql, there = loop.run(served(lists=True))
    made_by_python, here = loop.run(served(lists=False))
    assert made_by_postgresql.width < made_by_python.width
    assert len(values(there)) == 4
    assert values(there) == values(here)


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [
        ("int", "text using 'a\"b'", 'a"b'),
        ("int", "bigint using 5000000000", 5_000_000_000),
        ("int", "numeric using 1.5", 1.5),
        ("numeric", "text using 'NaN'", "NaN"),
        ("numeric", "jsonb using '{}'", {}),
        ("bool", "text using 'true'", "true"),
        ("bool", "int using 7", 7),
        ("int[]", "text[] using '{a}'", ["a"]),
        ("int[]", "text using '{a}'", "{a}"),
        ("text[]", "int[] using '{1}'", [1]),
        ("real", "text using 'Infinity'", "Infinity"),
        ("timestamptz", "text using 'later'", "later"),
    ],
)
def test_a_column_that_becomes_another_type_is_served_as_that(
    catalog: Shop, before: str, after: str, value: object
) -> None:
    """At once, and not only when the table is described anew."""
    catalog.execute(f"alter table {{s}}.products add column x {before}, add column y int default 3")
    catalog.execute("insert into {s}.products (id) select generate_series(1, 5)")
    assert len(catalog.items("products?limit=5&offset=0")) == 5
    catalog.execute(f"alter table {{s}}.products alter column x type {after}")
    found = catalog.items("products?limit=5&offset=0")
    assert [(item["x"], item["y"]) for item in found] == [(value, 3)] * 5


def test_what_is_missing_is_named_wherever_it_is(catalog: Shop) -> None:
    catalog.execute("alter table {s}.products add column stock int default 1")
    catalog.execute("insert into {s}.products (id) select generate_series(1, 4)")
    catalog.execute("update {s}.products set price = null where id in (1, 3)")
    catalog.execute("update {s}.products set name = null, categories = null where id in (2, 3)")
    assert [item["id"] for item in catalog.items("products")] == [4]
    told = [e["items"] for e in catalog.service.events("ItemsInvalid") if e["store"] == catalog.name]
    assert [item for items in told for item in items] == [
        {"id": 1, "missing": ["price"]},
        {"id": 2, "missing": ["name", "categories"]},
        {"id": 3, "missing": ["name", "price", "categories"]},
    ]


def test_each_attribute_of_a_joined_text_can_be_looked_at() -> None:
    encoder = ItemEncoder(["id", "name"], ["id", "name", "price"], ["price", "tags", "on_sale"])
    texts = [b'1.50,"tags":["a,\\"b"],"on_sale":true', b'1e400,"on_sale":false', b"12"]
    rows = [(True, 1, 'n"', msgspec.Raw(text)) for text in texts]
    items = encoder.items(rows).valid
    assert [dict(encoder.values(item)) for item in items] == [
        {"id": b"1", "name": b'"n\\""', "price": b"1.50", "tags": b'["a,\\"b"]', "on_sale": b"true"},
        {"id": b"1", "name": b'"n\\""', "price": b"1e400", "on_sale": b"false"},
        {"id": b"1", "name": b'"n\\""', "price": b"12"},
    ]
