"""A source of a hundred native partitions: a page costs the same wherever it begins, counted in blocks, not in time."""

import json
from typing import Any

import pytest

from app.catalog.pool import Pool
from app.catalog.source import describe
from app.catalog.statements import Position, statement_behind
from app.settings import Database as DatabaseSettings
from app.settings import Store
from tests.conftest import Database, Loop

PARTITIONS = 100
ITEMS = 50_000

KINDS = {
    "range": ("range (id)", "for values from ({first}) to ({next})", "id"),
    "hash": ("hash (id)", "with (modulus 100, remainder {number})", "id"),
    "list": ("list (region)", "in ({number})", "region, id"),
}


def partitioned(database: Database, kind: str) -> None:
    by, values, key = KINDS[kind]
    database.execute("create schema shop")
    database.execute(
        "create table shop.customers (id bigint not null, region int not null, email text, modified_at timestamptz,"
        f" primary key ({key})) partition by {by}"
    )
    database.execute("create index on shop.customers (modified_at, id)")
    if kind == "list":
        database.execute("create index on shop.customers (id)")
    size = ITEMS // PARTITIONS
    for number in range(PARTITIONS):
        clause = values.format(number=number, first=number * size, next=(number + 1) * size)
        clause = f"for values {clause}" if not clause.startswith("for") else clause
        database.execute(f"create table shop.customers_{number} partition of shop.customers {clause}")
    database.execute(
        "insert into shop.customers select i, i % $2, 'a@shop.example', timestamptz '2026-01-01' + i * interval '1s'"
        " from generate_series(0, $1 - 1) as i",
        ITEMS,
        PARTITIONS,
    )
    database.execute("vacuum analyze shop.customers")


async def plans(dsn: str, places: list[tuple[Position, float | None]]) -> list[dict[str, Any]]:
    """How PostgreSQL reads the 500 rows behind some places, and what it touches."""
    pool = await Pool.open(dsn, DatabaseSettings(), lambda event: None)
    store = Store(public_key="key", name="shop", schema="shop")
    found = []
    try:
        async with pool.connection() as connection:
            source = await describe(connection, store, "customers")
            for after, since in places:
                sql, arguments = statement_behind(source, after, since, 500)
                for _ in range(2):  # the second finds everything in memory
                    text = await connection.fetchval(f"explain (analyze, buffers, format json) {sql}", *arguments)
                found.append(json.loads(bytes(text))[0]["Plan"])
    finally:
        await pool.close()
    return found


def blocks(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def nodes(plan: dict[str, Any]) -> list[str]:
    return [plan["Node Type"]] + [name for child in plan.get("Plans", ()) for name in nodes(child)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_of_a_hundred_partitions_costs_the_same_everywhere(database: Database, loop: Loop, kind: str) -> None:
    partitioned(database, kind)
    keys = [10, ITEMS // 2, ITEMS - 1000]
    read = loop.run(plans(database.dsn, [(Position(str(key)), None) for key in keys]), 120)
    counts = [blocks(plan) for plan in read]
    print(f"{kind}: {counts} blocks")
    assert max(counts) <= 1.5 * min(counts) + 20, counts
    for plan in read:
        assert plan["Actual Rows"] == 500
        assert not {"Sort", "Incremental Sort", "Seq Scan"} & set(nodes(plan)), nodes(plan)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_of_a_delta_of_a_hundred_partitions_costs_the_same_everywhere(
    database: Database, loop: Loop, kind: str
) -> None:
    partitioned(database, kind)
    moments = [
        database.value("select ('2026-01-01'::timestamptz + $1 * interval '1s')::text", at) for at in (10, 40_000)
    ]
    places: list[tuple[Position, float | None]] = [(Position("0", moment), 0.0) for moment in moments]
    read = loop.run(plans(database.dsn, places), 120)
    counts = [blocks(plan) for plan in read]
    print(f"{kind}: {counts} blocks")
    assert max(counts) <= 1.5 * min(counts) + 20, counts
    assert all("Sort" not in nodes(plan) for plan in read)
