"""Items of a feed as they are served, for designs to be held against: counted, or picked to be shown."""

import random
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, get_args

import asyncpg
import msgspec

from app.catalog.pool import Pool
from app.catalog.source import Source, quoted
from app.designs.facts import Facts

Pick = Literal["random", "first", "newest", "missing"]
PICKS: tuple[Pick, ...] = get_args(Pick)

_ROWS = 100
"""Rows of one fetch: items may be large."""

Item = dict[str, object]


async def facts(pool: Pool, source: Source, most: int | None) -> Facts:
    """Count what a feed's items have: of all of them, or of about `most` drawn at random.

    Raises what asyncpg raises.
    """
    async with pool.connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        total = await _total(connection, source)
        found = Facts(source.feed, source.attributes, total=total)
        if most is None or total <= most:
            async for items in _items(connection, source, ""):
                found.count(items)
        else:
            found.is_sample = True
            async for items in _items(connection, source, "where random() < $1", most / total):
                found.count(items)
        return found


async def pick(pool: Pool, source: Source, how: Pick, count: int, attributes: Sequence[str] = ()) -> list[Item]:
    """Some items: drawn at random, the first by id, the newest, or those that lack most of `attributes`.

    Raises what asyncpg raises.
    """
    async with pool.connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        if how == "random":
            total = await _total(connection, source)
            # Four times as many as wanted, so that chance hardly ever brings fewer.
            share = min(1.0, 4 * (count + 5) / max(total, 1))
            drawn = await _first(connection, source, "where random() < $1", (count + 5) * 10, share)
            random.shuffle(drawn)
            return drawn[:count]
        for order in _orders(source, how, attributes):
            try:
                async with connection.transaction():
                    return await _first(connection, source, f"order by {order}", count)
            except asyncpg.UndefinedFunctionError:
                continue  # json has no order
        return []


def _orders(source: Source, how: Pick, attributes: Sequence[str]) -> list[str]:
    by_id = 's."id"'
    if how == "newest":
        known = {*source.attributes, *(["modified_at"] if source.has_modified_at else [])}
        dates = [name for name in ("created_at", "time", "modified_at") if name in known]
        return [*(f"s.{quoted(name)} desc nulls last, {by_id} desc" for name in dates), f"{by_id} desc"]
    if how == "missing":
        there = ", ".join(f"s.{quoted(name)}" for name in attributes if name in source.attributes)
        return [f"num_nulls({there}) desc, {by_id}" if there else by_id]
    return [by_id]


async def _total(connection: Any, source: Source) -> int:
    total: int = await connection.fetchval(f"select count(*) from {source.relation}")  # noqa: S608  (quoted)
    return total


async def _first(connection: Any, source: Source, how: str, count: int, *arguments: object) -> list[Item]:
    found: list[Item] = []
    async for items in _items(connection, source, how, *arguments):
        found += items
        if len(found) >= count:
            break
    return found[:count]


async def _items(connection: Any, source: Source, how: str, *arguments: object) -> AsyncIterator[list[Item]]:
    """The valid items of a statement, as Clerk gets them."""
    cursor = await connection.cursor(f"{source.select}\nfrom {source.origin}\n{how}", *arguments)
    while rows := await cursor.fetch(_ROWS):
        valid = source.encoder.items(rows).valid
        yield msgspec.json.decode(b"[" + source.encoder.encode(valid, "json") + b"]", type=list[Item])
