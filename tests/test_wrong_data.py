"""Data as shops have it: strange, huge, broken. It is served as it is, left out, or said, and a walk always ends."""

import json
import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from loadtests.memory import memory_of
from tests.clerk import FakeClerk, problem
from tests.conftest import Database, Running, Serve, Shop, base_config, eventually, ids


def customers(shop: Shop, columns: str, rows: str) -> None:
    """A feed of customers with some columns beside the required ones, filled by a SELECT of id and these."""
    shop.execute(f"create table {{s}}.customers (id bigint, email text default 'a@shop.example', {columns})")
    names = ", ".join(re.findall(r"(?:^|,)\s*(\w+)", columns))
    shop.execute(f"insert into {{s}}.customers (id, {names}) {rows}")


def line_of(shop: Shop, id: int) -> bytes:
    """One item's line as it goes over the wire."""
    body = shop.get("customers?limit=100&offset=0").body
    [line] = [line for line in body.splitlines() if line.startswith(b'{"id":%d,' % id)]
    return line


ESCAPES = {
    "NUL": r'{"a":"x\u0000y"}',
    "a leading surrogate alone": r'{"a":"\ud800"}',
    "a trailing surrogate alone": r'{"a":"\udc00 b"}',
    "surrogates in reverse": r'["\udc00\ud800"]',
    "a surrogate as a name": r'{"\ud83d":1}',
    "a pair": r'{"a":"\ud83d\ude00"}',
}


@pytest.mark.parametrize("name", ESCAPES)
def test_an_escape_that_some_parsers_refuse_is_served_as_the_shop_wrote_it(shop: Shop, name: str) -> None:
    value = ESCAPES[name].replace("'", "''")
    customers(
        shop, "extra json", f"select i, case i when 2 then '{value}' else '1' end::json from generate_series(1, 3) i"
    )
    assert line_of(shop, 2).endswith(b'"extra":' + ESCAPES[name].encode() + b"}")
    assert [ids(shop.items(f"customers?limit=1&offset={offset}")) for offset in range(4)] == [[1], [2], [3], []]
    whole = shop.get("customers.json")
    assert ids(json.loads(whole.body)) == [1, 2, 3]


def test_a_text_with_every_control_character_and_every_plane_is_escaped(shop: Shop) -> None:
    characters = "".join(map(chr, range(1, 0x100))) + "\u2028\u2029\ufeff\ufffe\uffff\ufffd\U0001f600\U0010ffff"
    customers(shop, "extra text", "select i, '' from generate_series(1, 3) i")
    shop.execute("update {s}.customers set extra = $1 where id = 2", characters)
    assert shop.walk("customers", 2)[1]["extra"] == characters
    assert shop.get("customers.json").json[1]["extra"] == characters


def test_jsonb_nested_a_thousand_deep_is_served_as_it_is(shop: Shop) -> None:
    deep = "[" * 1000 + "]" * 1000
    customers(shop, "extra jsonb", "select i, '1' from generate_series(1, 3) i")
    shop.execute("update {s}.customers set extra = $1::text::jsonb where id = 2", deep)
    assert line_of(shop, 2).endswith(b'"extra":' + deep.encode() + b"}")


def test_the_importer_walks_past_jsonb_nested_a_thousand_deep(shop: Shop) -> None:
    customers(shop, "extra jsonb", "select i, '1' from generate_series(1, 3) i")
    shop.execute("update {s}.customers set extra = $1::text::jsonb where id = 2", "[" * 1000 + "]" * 1000)
    assert ids(shop.walk("customers", 1)) == [1, 2, 3]


def test_jsonb_nested_deeper_than_a_parser_would_follow_does_not_disturb_the_service(shop: Shop) -> None:
    deep = '{"a":' * 4000 + "1" + "}" * 4000
    customers(shop, "extra json", "select i, '1' from generate_series(1, 3) i")
    shop.execute("update {s}.customers set extra = $1::text::json where id = 2", deep)
    for path in ("customers?limit=10&offset=0", "customers"):
        answer = shop.get(path)
        assert answer.status == 200
        assert deep.encode() in answer.body
        assert answer.body.count(b"\n") == 3


def test_a_view_with_1600_columns_is_served(shop: Shop) -> None:
    shop.execute("create table {s}.person (id bigint primary key, modified_at timestamptz default now())")
    shop.execute("insert into {s}.person (id) select generate_series(1, 250)")
    values = "id::smallint", "true", "'v' || id", "date '1970-01-02'", "id::numeric(6, 3)"
    columns = ", ".join(f"{values[number % 5]} as c{number}" for number in range(1597))
    shop.execute(
        f"create view {{s}}.customers as select id, 'a@shop.example' as email, modified_at, {columns} from {{s}}.person"
    )
    walked = shop.walk("customers", 100)
    assert ids(walked) == list(range(1, 251))
    assert {len(item) for item in walked} == {1599}
    assert [walked[249][f"c{number}"] for number in range(5)] == [250, True, "v250", 86400, 250.0]
    assert ids(shop.walk("customers", 100, modified_after="24")) == list(range(1, 251))


def test_numbers_without_end_or_sense_are_left_out_and_huge_ones_are_exact(shop: Shop) -> None:
    customers(shop, "extra numeric, float float8", "select i, 1.5, 1.5 from generate_series(1, 7) i")
    values = {1: "NaN", 2: "Infinity", 3: "-Infinity", 4: "1e400", 5: "-1e-400", 6: "99999999999999999999.95", 7: None}
    for id, value in values.items():
        shop.execute("update {s}.customers set extra = $2::text::numeric where id = $1", id, value)
    for id, value in ((1, "NaN"), (2, "Infinity"), (3, "-Infinity"), (4, "1e308"), (5, "-5e-324"), (7, "-0")):
        shop.execute("update {s}.customers set float = $2::text::float8 where id = $1", id, value)
    lines = shop.get("customers?limit=10&offset=0").body.splitlines()
    found = {item["id"]: item for item in (json.loads(line, parse_float=str, parse_int=str) for line in lines)}
    assert list(found) == [str(id) for id in range(1, 8)]
    assert {id: item.get("extra") for id, item in found.items()} == {
        "1": None,
        "2": None,
        "3": None,
        "4": "1" + "0" * 400,
        "5": "-0." + "0" * 399 + "1",
        "6": "99999999999999999999.95",
        "7": None,
    }
    assert [id for id, item in found.items() if "float" not in item] == ["1", "2", "3"]
    assert (float(found["4"]["float"]), float(found["5"]["float"])) == (1e308, -5e-324)
    for path in ("customers?limit=3&offset=0", "customers", "customers.json"):
        assert not re.search(rb"NaN|Infinity|null", shop.get(path).body)


def test_times_out_of_the_ordinary_are_unix_seconds_or_left_out(shop: Shop) -> None:
    times = {
        "infinity": None,
        "-infinity": None,
        "1969-12-31 23:59:59.5+00": -1,
        "1900-01-01 00:00:00+00": -2208988800,
        "0001-01-01 00:00:00+00": -62135596800,
        "4714-11-24 00:00:00+00 BC": -210866803200,
        "9999-12-31 23:59:59+00": 253402300799,
        "10000-01-01 00:00:00+00": 253402300800,
        "294276-12-31 00:00:00+00": 9224318016000 - 86400,
    }
    customers(shop, "at timestamptz, plain timestamp", "select i, now(), now() from generate_series(1, 9) i")
    for id, text in enumerate(times, 1):
        shop.execute("update {s}.customers set at = $2::text::timestamptz where id = $1", id, text)
        shop.execute("update {s}.customers set plain = at at time zone 'UTC' where id = $1", id)
    walked = shop.walk("customers", 4)
    assert ids(walked) == list(range(1, 10))
    assert [item.get("at") for item in walked] == list(times.values())
    assert [item.get("plain") for item in walked] == list(times.values())


def test_dates_out_of_the_ordinary_are_unix_seconds_or_left_out(shop: Shop) -> None:
    dates = {
        "infinity": None,
        "-infinity": None,
        "1969-12-31": -86400,
        "0001-01-01": -62135596800,
        "4714-11-24 BC": -210866803200,
        "10000-01-01": 253402300800,
        "5874897-12-31": 185_331_720_297_600,
    }
    customers(shop, "at date", "select i, now() from generate_series(1, 7) i")
    for id, text in enumerate(dates, 1):
        shop.execute("update {s}.customers set at = $2::text::date where id = $1", id, text)
    days = shop.database.value("select date '5874897-12-31' - date '1970-01-01'")
    assert [item.get("at") for item in shop.walk("customers", 4)] == [*list(dates.values())[:-1], days * 86400]


def test_a_required_time_that_is_infinite_makes_its_item_invalid_and_the_others_are_served(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 30)")
    catalog.execute("update {s}.products set created_at = 'infinity' where id % 7 = 0")
    assert ids(catalog.walk("products", 10)) == [id for id in range(1, 31) if id % 7]


@pytest.mark.parametrize("limit", [1, 2, 5, 7, 100])
def test_duplicate_ids_are_each_served_and_the_walk_ends(shop: Shop, limit: int) -> None:
    """The id must be unique. Where it is not, no page goes round in circles and no id is left out."""
    customers(shop, "extra int", "select i / 5, i from generate_series(1, 100) i")
    walked = ids(shop.walk("customers", limit))
    assert sorted(set(walked)) == list(range(21))
    assert walked == sorted(walked)
    assert ids(shop.items("customers")) == sorted(i // 5 for i in range(1, 101))


def test_a_feed_of_nothing_but_one_id_ends(shop: Shop) -> None:
    customers(shop, "extra int", "select 7, i from generate_series(1, 3000) i")
    assert set(ids(shop.walk("customers", 100))) == {7}
    assert set(ids(shop.items("customers"))) == {7}


@pytest.mark.parametrize("type", ["bigint", "text", "uuid"])
def test_null_ids_are_not_served_and_the_walk_ends(shop: Shop, type: str) -> None:
    shop.execute(f"create table {{s}}.customers (id {type}, email text default 'a@shop.example')")
    shop.execute("insert into {s}.customers (id) select null from generate_series(1, 50)")
    assert shop.walk("customers", 10) == []
    value = "md5(i::text)::uuid" if type == "uuid" else f"i::{type}"
    shop.execute(f"insert into {{s}}.customers (id) select {value} from generate_series(1, 25) i")
    assert len(set(ids(shop.walk("customers", 10)))) == 25
    assert len(shop.items("customers")) == 25


def test_null_ids_of_a_delta_are_not_served_and_the_walk_ends(shop: Shop) -> None:
    customers(
        shop,
        "modified_at timestamptz",
        "select case when i % 3 > 0 then i end, case when i % 2 > 0 then now() end from generate_series(1, 60) i",
    )
    walked = ids(shop.walk("customers", 7, modified_after="24"))
    assert sorted(walked) == [i for i in range(1, 61) if i % 3]


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("type", ["text", "varchar(10)", "char(3)"])
def test_the_empty_text_is_an_id_like_any_other(shop: Shop, type: str, limit: int) -> None:
    shop.execute(f"create table {{s}}.customers (id {type} primary key, email text default 'e')")
    shop.execute("insert into {s}.customers values (''), ('a'), ('b'), ('c'), ('d')")
    assert ids(shop.walk("customers", limit)) == ["", "a", "b", "c", "d"]
    assert ids(shop.items("customers")) == ["", "a", "b", "c", "d"]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_links_lead_past_the_empty_text(shop: Shop, limit: int) -> None:
    shop.execute("create table {s}.customers (id text primary key, email text default 'e')")
    shop.execute("insert into {s}.customers values (''), ('a'), ('b'), ('c'), ('d')")
    found: list[Any] = []
    found += ids(shop.items(f"customers?limit={limit}&offset=0"))
    target: str | None = f"/{shop.name}/customers?limit={limit}&after={found[-1]}"
    while target:
        answer = shop.service.get(target)
        assert answer.status == 200, answer.body
        found += ids(answer.lines)
        link = re.match(r'<(.+)>; rel="next"', answer.headers["Link"] or "")
        target = link[1] if link else None
    assert found == ["", "a", "b", "c", "d"]


WORDS = ["", "a", "A", "b", "B", "e\u0301", "\u00e9", "e", "Z", "z", "-z", " z", "10", "9", "æ", "ß", "ss", "İ", "i"]


@pytest.mark.parametrize(
    "collation", ["C", "POSIX", "ucs_basic", "pg_c_utf8", "pg_unicode_fast", "en_US.utf8", "da_DK.utf8"]
)
def test_text_ids_are_walked_in_whatever_order_their_column_has(shop: Shop, collation: str) -> None:
    known = shop.database.value("select count(*) from pg_collation where collname = $1", collation)
    if not known:
        pytest.skip(f"this PostgreSQL has no collation {collation}")
    shop.execute(f"create table {{s}}.people (id text collate \"{collation}\" primary key, email text default 'e')")
    shop.execute("insert into {s}.people select unnest($1::text[])", WORDS)
    shop.execute("create view {s}.customers as select id, email from {s}.people")
    walked = ids(shop.walk("customers", 3))
    assert sorted(walked) == sorted(WORDS)
    assert walked == ids(shop.items("customers"))


@pytest.mark.parametrize("since", ["", "&modified_after=5"])
@pytest.mark.parametrize("limit", [4, 200])
def test_a_collation_that_changes_in_mid_walk_is_no_end(shop: Shop, limit: int, since: str) -> None:
    """No statement fails: the last id in one order has others behind it in another."""
    if not shop.database.value("select count(*) from pg_collation where collname = 'en_US.utf8'"):
        pytest.skip("this PostgreSQL has no collation en_US.utf8")
    shop.execute(
        "create table {s}.customers (id text collate \"en_US.utf8\" primary key, email text default 'e',"
        " modified_at timestamptz default now())"
    )
    shop.execute(
        "insert into {s}.customers select 'a' || lpad(n::text, 5, '0') from generate_series(2, $1) as n", limit
    )
    shop.execute("insert into {s}.customers values ('z'), ('Z')")
    query = f"customers?limit={limit}{since}&offset="
    assert ids(shop.items(f"{query}0"))[-1] == "z"
    # A view changes in no time, and its description is up to two seconds old.
    shop.execute("alter table {s}.customers rename to people")
    shop.execute('create view {s}.customers as select id collate "C" as id, email, modified_at from {s}.people')
    answer = shop.get(f"{query}{limit}")
    assert answer.status == 500 or ids(answer.lines) == ["Z"]


@pytest.mark.parametrize("type", ["int", "text"])
def test_rows_without_an_id_stop_no_delta(shop: Shop, type: str) -> None:
    shop.execute(f"create table {{s}}.customers (id {type}, email text default 'e', modified_at timestamptz)")
    moments = "now() - 100 * interval '1 s' + n * interval '1 s'"
    shop.execute(f"insert into {{s}}.customers select n, 'e', {moments} from generate_series(1, 9) as n")
    shop.execute(f"insert into {{s}}.customers select null, 'e', {moments} from generate_series(4, 9) as n")
    found = [ids(shop.items(f"customers?limit=3&modified_after=5&offset={offset}")) for offset in (0, 3, 6, 9)]
    assert [[int(id) for id in page] for page in found] == [[1, 2, 3], [4, 5, 6], [7, 8, 9], []]


def test_a_collation_made_anew_under_its_name_in_mid_walk_is_no_end(shop: Shop) -> None:
    if not shop.database.value("select count(*) from pg_collation where collname = 'en_US.utf8'"):
        pytest.skip("this PostgreSQL has no collation en_US.utf8")
    shop.execute("create collation {s}.own (locale = 'en_US.utf8')")
    shop.execute("create table {s}.customers (id text collate {s}.own primary key, email text default 'e')")
    shop.execute("insert into {s}.customers values ('a'), ('B'), ('c'), ('D')")
    assert len(shop.items("customers?limit=1&offset=0")) == 1
    shop.execute("alter collation {s}.own rename to former")
    shop.execute("create collation {s}.own (locale = 'C')")
    shop.execute("alter table {s}.customers alter id type text collate {s}.own")
    eventually(lambda: shop.get("customers?limit=1&offset=1", method="HEAD").status != 200)
    problem(shop.get("customers?limit=1&offset=1"), 500, "key-changed")


def test_an_order_turned_round_by_the_column_is_walked(shop: Shop) -> None:
    """A descending index, and a view with an order of its own, change nothing."""
    customers(shop, "extra int", "select i, i from generate_series(1, 100) i")
    shop.execute("alter table {s}.customers rename to people")
    shop.execute("create index on {s}.people (id desc nulls first)")
    shop.execute("create view {s}.customers as select * from {s}.people order by extra desc")
    assert ids(shop.walk("customers", 7)) == list(range(1, 101))


HUGE = 10_000_000
"""Characters of a text no shop should have."""


@pytest.fixture
def huge(database: Database, clerk: FakeClerk, serve: Serve) -> tuple[Running, Database]:
    """A service of its own, warmed up by a walk of small items, and a feed of texts of 10 MB each to come."""
    database.execute("create schema shop")
    database.execute("create table shop.pages (id int primary key, type text, url text, title text, text text)")
    database.execute(
        "create table shop.customers as select i as id, 'a@shop.example' as email from generate_series(1, 5000) i"
    )
    store = '[stores.shop]\npublic_key = "key-shop"\n[stores.shop.feeds.pages]\nshrink_limit = 1.0\n'
    service = serve(f"{base_config(database.dsn, clerk.verify_url)}\n{store}")
    assert len(service.get("/shop/customers").lines) == 5000
    return service, database


def add_huge(database: Database, first: int, count: int) -> None:
    database.execute(
        "insert into shop.pages select i, 'text', 'https://shop.example', 'T', repeat('x', $3::int)"
        " from generate_series($1::int, $2::int) i",
        first,
        first + count - 1,
        HUGE,
    )


@pytest.mark.slow
@pytest.mark.parametrize("query", ["?limit=20&offset=0", "", "?limit=1000&after={}"])
def test_texts_of_10_mb_are_served_in_bounded_memory(huge: tuple[Running, Database], query: str) -> None:
    service, database = huge
    add_huge(database, 1, 20)
    before = memory_of(service.process.pid).peak
    found: list[tuple[int, int]] = []
    link: str | None = ""
    while link is not None:
        answer = service.get(f"/shop/pages{query.format(found[-1][0] if found else 0)}")
        assert answer.status == 200
        found += [(item["id"], len(item["text"])) for item in map(orjson.loads, answer.body.splitlines())]
        link = answer.headers.get("Link")
    assert found == [(id, HUGE) for id in range(1, 21)]
    grown = memory_of(service.process.pid).peak - before
    print(f"{grown:.0f} MB grown")
    assert grown < 150


@pytest.mark.slow
def test_a_walk_over_texts_of_10_mb_delivers_them_in_bounded_memory(huge: tuple[Running, Database]) -> None:
    service, database = huge
    add_huge(database, 1, 20)
    before = memory_of(service.process.pid).peak
    found = []
    for offset in range(0, 25, 5):
        found += ids(service.get(f"/shop/pages?limit=5&offset={offset}").lines)
    assert found == list(range(1, 21))
    grown = memory_of(service.process.pid).peak - before
    print(f"{grown:.0f} MB grown")
    assert grown < 150


@pytest.mark.slow
@pytest.mark.parametrize("query", ["?limit=100&offset=1000", ""])
def test_sizes_that_jump_from_1_kb_to_10_mb_stay_in_bounded_memory(huge: tuple[Running, Database], query: str) -> None:
    """As many rows are fetched as the sizes seen allow, and the first thousand of them are small."""
    service, database = huge
    database.execute(
        "insert into shop.pages select i, 'text', 'https://shop.example', 'T', repeat('x', 1000)"
        " from generate_series(1, 1990) i"
    )
    assert len(service.get("/shop/pages?limit=1000&offset=0").lines) == 1000
    first = 1001 if "offset=1000" in query else 501
    database.execute("delete from shop.pages where id >= $1", first)
    add_huge(database, first, 40)
    before = memory_of(service.process.pid).peak
    answer = service.get(f"/shop/pages{query}")
    assert answer.status == 200
    start = 1000 if "offset=1000" in query else 0
    assert ids([orjson.loads(line) for line in answer.body.splitlines()]) == list(range(start + 1, first + 40))
    grown = memory_of(service.process.pid).peak - before
    print(f"{grown:.0f} MB grown")
    assert grown < 350
    assert service.events("ItemsLarge") != []


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_of_another_encoding_is_served_in_utf_8(
    create_database: Callable[..., Database], clerk: FakeClerk, serve: Serve, encoding: str
) -> None:
    database = create_database(f"template template0 encoding '{encoding}' locale 'C'")
    words = ["ø", "a", "é", "z", "å"]
    database.execute("create schema shop; create table shop.customers (id text primary key, email text)")
    database.execute("insert into shop.customers select k, k || '@shop.example' from unnest($1::text[]) as k", words)
    service = serve(base_config(database.dsn, clerk.verify_url) + '[stores.shop]\npublic_key = "key-shop"\n')
    pages = [service.get(f"/shop/customers?limit=2&offset={offset}").lines for offset in (0, 2, 4, 6)]
    found = [item["id"] for page in pages for item in page]
    assert found == sorted(words)
    assert pages[-1] == []
