"""The source contract: what a column becomes in the feed."""

import asyncio
import json
from typing import Any

import asyncpg
import pytest

from app.catalog.pool import Pool
from app.catalog.source import Source, Sources
from app.settings import Database as DatabaseSettings
from app.settings import Store
from tests.clerk import problem
from tests.conftest import CITEXT, PRODUCTS, Loop, Shop, eventually, ids

GUIDE_PRODUCTS = r"""
[
  {
    "id": 135,
    "name": {"english":"Lightsaber","spanish":"Sable de luz", "italian":"Spada laser"},
    "description": {"english":"Antique Rebel Lightsaber","spanish":"Sable de luz rebelde antiguo"},
    "price": 99995.95,
    "image": {"english":"https://galactic-empire-merch.com/images/a-r-lightsaber.jpg"},
    "url": {"english":"https://galactic-empire-merch.com/antique-rebel-lightsaber"},
    "brand": "Je'daii",
    "categories": [987, 654],
    "created_at": 1199145600,
    "color_names": ["Green","Red"],
    "color_codes": ["#7CFC00","#FF3131"],
    "reviews_amount": 164,
    "reviews_avg": 4.8
  },
  {
    "id": 261,
    "name": {"english":"Death Star Deluxe","spanish":"Estrella de la Muerte de lujo"},
    "description": {"english":"Death Star - Guaranteed idiot proof"},
    "price": 99999999999999.95,
    "image": {"english":"https://galactic-empire-merch.com/images/death-star.jpg"},
    "url": {"english":"https://galactic-empire-merch.com/death-star"},
    "brand": "Imperial Inc.",
    "categories": [345678],
    "created_at": 1197565600
  }
]
"""


def test_the_guides_products_are_served_value_for_value(shop: Shop) -> None:
    shop.execute(
        """
        create table {s}.products (
          id int primary key, name json, description jsonb, price numeric(20, 2), image json, url jsonb, brand text,
          categories int[], created_at timestamptz, color_names text[], color_codes varchar[], reviews_amount int,
          reviews_avg real
        );
        """
    )
    for item in json.loads(GUIDE_PRODUCTS, parse_float=str):
        shop.execute(
            """
            insert into {s}.products values ($1, $2::text::json, $3::text::jsonb, $4::text::numeric, $5::text::json,
              $6::text::jsonb, $7, $8, to_timestamp($9::float8), $10, $11, $12, $13::float8)
            """,
            item["id"],
            *(json.dumps(item[name]) for name in ("name", "description")),
            item["price"],
            *(json.dumps(item[name]) for name in ("image", "url")),
            item["brand"],
            item["categories"],
            item["created_at"],
            item.get("color_names"),
            item.get("color_codes"),
            item.get("reviews_amount"),
            float(item["reviews_avg"]) if "reviews_avg" in item else None,
        )
    answer = shop.get("products.json")
    assert json.loads(answer.body, parse_float=str) == json.loads(GUIDE_PRODUCTS, parse_float=str)
    assert b'"price":99999999999999.95' in answer.body


def test_the_guides_orders_customers_and_pages_are_served_value_for_value(shop: Shop) -> None:
    shop.execute(
        """
        create view {s}.orders as select * from (values
          (123458, '789', 'vader@the-death-star.com',
            '[{"id":456,"quantity":1,"price":200.00}, {"id":789,"quantity":2,"price":120.00}]'::json,
            to_timestamp(1389871120)),
          (123457, '', null, '[{"id":789,"quantity":2,"price":120.00}]', to_timestamp(1389871090))
        ) as o (id, customer, email, products, time);
        create view {s}.customers as select * from (values
          (135, 'Luke Skywalker', 'luke@rebels.org', true, 'male', '1134', null::int, null::text[], 'false'::json),
          (165, 'Darth Vader', 'vader@empire.com', false, 'male', null, 45, '{lightsaber,force}', 'true')
        ) as c (id, name, email, subscribed, gender, zip, age, interests, is_b2b);
        create view {s}.pages as select * from (values
          (135, 'cms', 'https://galactic-empire-merch.com/tatooine', 'Open Hours', 'The main text …', null::text[]),
          (1354, 'blog', 'https://galactic-empire-merch.com/tatooine', 'New Blog Post', 'Text …', '{blog,post,new}')
        ) as p (id, type, url, title, text, keywords)
        """
    )
    assert shop.items("orders") == [
        {
            "id": 123457,
            "customer": "",
            "products": [{"id": 789, "quantity": 2, "price": 120.0}],
            "time": 1389871090,
        },
        {
            "id": 123458,
            "customer": "789",
            "email": "vader@the-death-star.com",
            "products": [{"id": 456, "quantity": 1, "price": 200.0}, {"id": 789, "quantity": 2, "price": 120.0}],
            "time": 1389871120,
        },
    ]
    assert shop.items("customers")[1] == {
        "id": 165,
        "name": "Darth Vader",
        "email": "vader@empire.com",
        "subscribed": False,
        "gender": "male",
        "age": 45,
        "interests": ["lightsaber", "force"],
        "is_b2b": True,
    }
    assert [page.get("keywords") for page in shop.items("pages")] == [None, ["blog", "post", "new"]]


TYPES: dict[str, tuple[str, str]] = {
    # column name: SQL expression, JSON it becomes; "" leaves the attribute out
    "small": ("'-7'::smallint", "-7"),
    "whole": ("2147483647::int", "2147483647"),
    "big": ("9223372036854775807::bigint", "9223372036854775807"),
    "single": ("4.8::real", "4.8"),
    "double_": ("0.1::float8", "0.1"),
    "double_nan": ("'NaN'::float8", ""),
    "double_inf": ("'-Infinity'::float8", ""),
    "single_inf": ("'Infinity'::real", ""),
    "exact": ("123456789012345678901234567890.123456789::numeric", "123456789012345678901234567890.123456789"),
    "exact_tail": ("120.00::numeric", "120.00"),
    "exact_negative": ("-0.5::numeric", "-0.5"),
    "exact_nan": ("'NaN'::numeric", ""),
    "exact_inf": ("'Infinity'::numeric", ""),
    "words": ("E'say \"hi\"\\\\ \\t\\n æøå 🛋 </p>'::text", json.dumps('say "hi"\\ \t\n æøå 🛋 </p>')),
    "separators": ("E'a\\u2028b\\u0085c\\rd'::text", json.dumps("a\u2028b\x85c\rd")),
    "varchar_": ("'short'::varchar(20)", '"short"'),
    "padded": ("'AB'::char(5)", '"AB"'),
    "yes": ("true", "true"),
    "no": ("false", "false"),
    "nothing": ("null::int", ""),
    "empty_text": ("''::text", '""'),
    "ints": ("array[1, null, 3]::bigint[]", "[1,3]"),
    "smalls": ("array[1, 2]::smallint[]", "[1,2]"),
    "texts": ("array['a', null, 'b\"c']::text[]", json.dumps(["a", 'b"c'])),
    "paddeds": ("array['A', 'BC']::char(3)[]", '["A","BC"]'),
    "bools": ("array[true, null, false]", "[true,false]"),
    "doubles": ("array[0.5, 'NaN', 'Infinity', null]::float8[]", "[0.5]"),
    "singles": ("array[4.8, null]::real[]", "[4.8]"),
    "exacts": ("array[1.10, null, 'NaN', 99999999999999.95]::numeric[]", "[1.10,99999999999999.95]"),
    "empty_array": ("'{}'::int[]", "[]"),
    "only_nulls": ("array[null, null]::int[]", "[]"),
    "null_array": ("null::text[]", ""),
    "nested": ("array[array[1, null], array[3, 4]]::int[]", "[[1],[3,4]]"),
    "moment": ("'2026-01-31 08:00:00.9+01'::timestamptz", "1769842800"),
    "local": ("'2026-01-31 08:00:00.9'::timestamp", "1769846400"),
    "day": ("'2026-01-31'::date", "1769817600"),
    "before_1970": ("'1969-12-31 23:59:58.5+00'::timestamptz", "-2"),
    "after_9999": ("'20000-01-01+00'::timestamptz", "568971820800"),
    "far_day": ("'4713-01-01 BC'::date", "-210863520000"),
    "forever": ("'infinity'::timestamptz", ""),
    "never": ("'-infinity'::date", ""),
    "moments": ("array['2026-01-31 07:00:00+00', null, 'infinity']::timestamptz[]", "[1769842800]"),
    "days": ("array['2026-01-31']::date[]", "[1769817600]"),
    "uuid_": ("'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'::uuid", '"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"'),
    "uuids": ("array['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11']::uuid[]", '["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]'),
    "mood": ("'happy'::{s}.mood", '"happy"'),
    "moods": ("array['happy', null]::{s}.mood[]", '["happy"]'),
    "amount": ("12.30::{s}.amount", "12.30"),
    "deep_amount": ("7::{s}.deep_amount", "7"),
    "amounts": ("array[1.5, 2]::{s}.amount[]", "[1.5,2]"),
    "tags": ("array['x', null]::{s}.tags", '["x"]'),
    "as_json": ('\'{"b":1.50, "a":null,\n "t":"\\n"}\'::json', '{"b":1.50, "a":null,  "t":"\\n"}'),
    "as_jsonb": ('\'{"b": 1.50, "a": [null, 1e400]}\'::jsonb', None or ""),
    "json_null": ("' null '::json", ""),
    "jsonb_null": ("'null'::jsonb", ""),
    "jsons": ("array['{\"a\": 1}', null, 'null']::json[]", '[{"a": 1}]'),
    "jsonbs": ("array['{\"a\": 1}', null, 'null']::jsonb[]", '[{"a": 1}]'),
}
del TYPES["as_jsonb"]


@pytest.fixture
def typed(shop: Shop) -> Shop:
    shop.execute("""
        create type {s}.mood as enum ('sad', 'happy');
        create domain {s}.amount as numeric check (value >= 0);
        create domain {s}.deep_amount as {s}.amount;
        create domain {s}.tags as text[];
    """)
    return shop


def test_every_type_of_the_contract_becomes_what_it_says(typed: Shop) -> None:
    columns = ",\n".join(f'{expression} as "{name}"' for name, (expression, _) in TYPES.items())
    typed.execute("create view {s}.customers as select 1 as id, 'a@b.dk' as email,\n" + columns)
    body = typed.get("customers").body.decode()
    assert body.endswith("\n")
    assert len(body.splitlines(keepends=False)) >= 1
    got: dict[str, Any] = json.loads(body, parse_float=str, parse_int=str)
    wanted = {name: json.loads(text, parse_float=str, parse_int=str) for name, (_, text) in TYPES.items() if text}
    assert got == {"id": "1", "email": "a@b.dk", **wanted}


@pytest.mark.parametrize("name", TYPES)
def test_a_type_is_served_from_a_table_too(typed: Shop, name: str) -> None:
    """A view resolves domains differently from a table's own columns."""
    expression, text = TYPES[name]
    typed.execute(f"create table {{s}}.customers as select 1 as id, 'a@b.dk' as email, {expression} as \"{name}\"")
    body = typed.get("customers").body.decode()
    got = json.loads(body, parse_float=str, parse_int=str)
    assert got.get(name, "") == (json.loads(text, parse_float=str, parse_int=str) if text else "")
    assert body.count("\n") == 1


def test_json_is_not_re_encoded(typed: Shop) -> None:
    typed.execute("""create view {s}.customers as select 1 as id, 'a' as email, '{"z":1.50, "a":1E5}'::json as j""")
    assert typed.get("customers").body == b'{"id":1,"email":"a","j":{"z":1.50, "a":1E5}}\n'


def test_citext_in_a_schema_of_its_own_is_a_key_and_is_served_as_text(shop: Shop) -> None:
    shop.execute(CITEXT)
    shop.execute("create table {s}.customers (id {s}.citext, email {s}.citext, also {s}.citext[])")
    shop.execute("insert into {s}.customers values ('b', 'X@Y', '{p,Q}'), ('a', 'z', null), ('c', 'z', null)")
    assert shop.walk("customers", 1) == [
        {"id": "a", "email": "z"},
        {"id": "b", "email": "X@Y", "also": ["p", "Q"]},
        {"id": "c", "email": "z"},
    ]
    assert shop.items("customers?limit=9&after=a") == shop.walk("customers", 2)[1:]


@pytest.mark.parametrize("limit", [1, 2, 3, 150])
@pytest.mark.parametrize("more", ["", "&modified_after=2"])
def test_citext_sorts_and_is_compared_alike(shop: Shop, limit: int, more: str) -> None:
    """Compared as text, as PostgreSQL does where the type's operators are not in sight, items would be lost."""
    shop.execute(CITEXT)
    shop.execute(
        "create table {s}.customers (id {s}.citext primary key, email text default 'e',"
        " modified_at timestamptz default '2200-01-01')"
    )
    keys = [f"{letter}{number}" for number in range(10) for letter in "BaCdEf"]
    shop.execute("insert into {s}.customers select k::text::{s}.citext from unnest($1::text[]) k", keys)
    found: list[str] = []
    for offset in range(0, len(keys) + limit, limit):
        found += ids(shop.items(f"customers?limit={limit}&offset={offset}{more}"))
    assert sorted(found) == sorted(keys)


def test_a_type_of_the_shop_that_is_named_like_one_of_postgresql_is_not_taken_for_it(shop: Shop) -> None:
    shop.execute("create type {s}.text as (a int)")
    shop.execute("create view {s}.customers as select 1 as id, 'e' as email, row(1)::{s}.text as extra")
    assert problem(shop.get("customers"), 500, "source-unusable")["detail"].startswith('The column "extra"')


def test_column_names_are_quoted_whatever_is_in_them(shop: Shop) -> None:
    """Clerk ignores all but letters, digits and underscore; a name that JSON would escape is left out."""
    names = ["select", "Upper", "æøå", "a.b", "two words", "plain", "$1", "{key}", "a0", "%s"]
    hostile = ['with "quotes"', "back\\slash", "line\nbreak"]
    columns = ", ".join(f"""'v' as "{name.replace('"', '""')}\"""" for name in names + hostile)
    shop.execute("create view {s}.customers as select 1 as id, 'e' as email, " + columns)
    assert shop.items("customers") == [{"id": 1, "email": "e", **dict.fromkeys(names, "v")}]


def test_modified_at_is_not_served(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) values (1)")
    assert "modified_at" not in catalog.items("products")[0]


def test_an_invalid_item_is_left_out_and_reported(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 5)")
    catalog.execute("update {s}.products set name = null, price = 'NaN' where id = 3")
    assert [item["id"] for item in catalog.items("products")] == [1, 2, 4, 5]
    reported = [e for e in catalog.service.events("ItemsInvalid") if e["store"] == catalog.name]
    assert reported[0]["items"] == [{"id": 3, "missing": ["name", "price"]}]


def test_a_json_null_where_an_attribute_is_required_makes_the_item_invalid(shop: Shop) -> None:
    shop.execute("""
        create view {s}.orders as select * from (values
          (1, '[]'::jsonb, now()), (2, 'null', now()), (3, '[]', 'infinity'), (4, '[]', null)
        ) as o (id, products, time)
    """)
    assert [item["id"] for item in shop.items("orders")] == [1]


def test_an_invalid_item_of_a_strict_feed_is_a_500_that_names_it(shop: Shop) -> None:
    shop.execute("create table {s}.customers (id text primary key, email text)")
    shop.execute("insert into {s}.customers values ('ok', 'a@b'), ('bad', null)")
    answer = shop.get("customers?limit=10&offset=0")
    if int(shop.name[1:]) % 2:
        assert answer.status == 500
        assert answer.json["type"].endswith("#item-invalid")
        assert "'bad'" in answer.json["detail"]
        assert "email" in answer.json["detail"]
    else:
        assert [item["id"] for item in answer.lines] == ["ok"]


@pytest.fixture
def another_store(shop: Shop) -> Shop:
    """Taken so that a test and its twin meet a strict and a lenient store, whatever ran before."""
    return shop


def test_both_kinds_of_store_treat_the_invalid_item_as_configured(another_store: Shop) -> None:
    test_an_invalid_item_of_a_strict_feed_is_a_500_that_names_it(another_store)


def test_a_replaced_view_is_served_with_its_new_columns(shop: Shop) -> None:
    shop.execute("create table {s}.t (id int primary key, email text, a text, b int)")
    shop.execute("insert into {s}.t select g, 'e', 'a', g from generate_series(1, 6) g")
    shop.execute("create view {s}.customers as select id, email, a from {s}.t")
    first = shop.get("customers?limit=2&offset=0").lines
    shop.execute("drop view {s}.customers; create view {s}.customers as select id, b, email from {s}.t")
    second = shop.get("customers?limit=2&offset=2").lines
    shop.execute("drop view {s}.customers; create view {s}.customers as select id, b::text, email from {s}.t")
    third = shop.get("customers?limit=2&offset=4").lines
    assert first == [{"id": n, "email": "e", "a": "a"} for n in (1, 2)]
    assert second == [{"id": n, "email": "e", "b": n} for n in (3, 4)]
    assert third == [{"id": n, "email": "e", "b": str(n)} for n in (5, 6)]


def test_an_added_column_is_served_with_a_walk_that_begins_later(shop: Shop) -> None:
    shop.execute("create table {s}.customers (id int primary key, email text)")
    shop.execute("insert into {s}.customers values (1, 'e')")
    assert shop.items("customers") == [{"id": 1, "email": "e"}]
    shop.execute("alter table {s}.customers add zip text default '8000'")
    eventually(lambda: shop.items("customers") == [{"id": 1, "email": "e", "zip": "8000"}])


def test_an_empty_feed_is_an_empty_body_and_an_empty_array(catalog: Shop) -> None:
    for path in ("products", "products?limit=10&offset=0", "products.ndjson"):
        answer = catalog.get(path)
        assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, b"", "application/x-ndjson")
        assert answer.headers["Content-Length"] == "0"
    for path in ("products.json", "products.json?limit=10&offset=0"):
        answer = catalog.get(path)
        assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, b"[]", "application/json")


def test_the_format_follows_suffix_then_accept(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) values (1), (2)")
    assert catalog.get("products").headers["Content-Type"] == "application/x-ndjson"
    by_accept = catalog.get("products", headers={"Accept": "application/json"})
    assert by_accept.headers["Content-Type"] == "application/json"
    assert [item["id"] for item in by_accept.json] == [1, 2]
    assert catalog.get("products.ndjson", headers={"Accept": "application/json"}).lines[1]["id"] == 2
    assert [item["id"] for item in catalog.get("products.json?limit=1&offset=0").json] == [1]


def test_a_large_feed_in_json_is_one_valid_array(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 3500)")
    answer = catalog.get("products.json")
    assert [item["id"] for item in answer.json] == list(range(1, 3501))
    assert [item["id"] for item in catalog.get("products").lines] == list(range(1, 3501))


def test_every_answer_forbids_caching(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) values (1)")
    for answer in (catalog.get("products"), catalog.get("products?limit=1"), catalog.get("nonsense")):
        assert answer.headers["Cache-Control"] == "no-store"


def test_a_feed_of_pages_larger_than_a_chunk_streams_and_arrives_whole(catalog: Shop) -> None:
    catalog.execute(
        "insert into {s}.products (id, description) select g, repeat('x', 100000) from generate_series(1, 250) g"
    )
    answer = catalog.get("products?limit=250&offset=0")
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert [item["id"] for item in answer.lines] == list(range(1, 251))
    assert catalog.get("products?limit=250&offset=250").body == b""


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [
        ("int", "text using 'a\"b'", 'a"b'),
        ("int", "bigint using 5000000000", 5_000_000_000),
        ("int", "numeric using 1.5", 1.5),
        ("numeric", "text using 'NaN'", "NaN"),
        ("numeric", "jsonb using '{}'", {}),
        ("bool", "int using 7", 7),
        ("int[]", "text[] using '{a}'", ["a"]),
        ("int[]", "text using '{a}'", "{a}"),
        ("real", "text using 'Infinity'", "Infinity"),
        ("timestamptz", "text using 'later'", "later"),
    ],
)
def test_a_column_that_becomes_another_type_is_served_as_that_at_once(
    catalog: Shop, before: str, after: str, value: object
) -> None:
    """Not only when the table is described anew."""
    catalog.execute(f"alter table {{s}}.products add column x {before}")
    catalog.execute("insert into {s}.products (id) select generate_series(1, 5)")
    assert len(catalog.items("products?limit=5&offset=0")) == 5
    catalog.execute(f"alter table {{s}}.products alter column x type {after}")
    assert [item["x"] for item in catalog.items("products?limit=5&offset=0")] == [value] * 5


def test_a_description_is_as_old_as_its_beginning(shop: Shop, loop: Loop) -> None:
    """Whoever asks while one takes seconds is not told what there was before."""
    shop.execute(PRODUCTS)
    store = Store(public_key="key", name=shop.name, schema=shop.name)

    async def described() -> tuple[Source, Source]:
        other = await asyncpg.connect(shop.database.dsn)
        pool = await Pool.open(shop.database.dsn, DatabaseSettings(pool_size=2), lambda event: None)
        try:
            sources = Sources(pool, 5)
            await sources.of(store, "products")
            await asyncio.sleep(2.1)
            await other.execute("begin; lock table clerk_feed.unrendered in access exclusive mode")
            stalled = asyncio.create_task(sources.of(store, "products"))
            await asyncio.sleep(2.1)
            # That has read the columns before.
            await other.execute(f"alter table {shop.name}.products add column colour text")
            asked = asyncio.create_task(sources.of(store, "products"))
            await asyncio.sleep(0.1)
            await other.execute("commit")
            return await stalled, await asked
        finally:
            await other.close()
            await pool.close()

    before, now = loop.run(described())
    assert "colour" not in before.attributes
    assert "colour" in now.attributes
