"""The bench's catalog: N products in an embedded PostgreSQL of its own, built once and kept."""

import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import asyncpg

from app.catalog.embedded import Embedded

_SCRIPT = Path(__file__).with_name("catalog.sql")


async def prepare(server: Embedded, items: int, say: Callable[[str], None]) -> str:
    """A database with the catalog, read once so that it lies in memory; answers its DSN.

    One database for each size, so that a quick run with few items does not cost the next one its million. Bookmarks
    of earlier runs are dropped: every run starts alike.
    """
    name = f"bench_{items}"
    admin = await asyncpg.connect(server.dsn)
    try:
        if not await admin.fetchval("select true from pg_database where datname = $1", name):
            await admin.execute(f"create database {name}")
    finally:
        await admin.close()
    dsn = server.dsn.replace("/postgres?", f"/{name}?")
    connection = await asyncpg.connect(dsn)
    try:
        await _build(connection, items, say)
        await connection.execute("drop schema if exists clerk_feed cascade")
        await connection.fetchval("select sum(length(description)) from bench.item")
        # What building left to write must not be written while something is measured.
        await connection.execute("checkpoint")
    finally:
        await connection.close()
    return dsn


async def _build(connection: asyncpg.Connection, items: int, say: Callable[[str], None]) -> None:
    script = _SCRIPT.read_text(encoding="utf-8").replace(":items", str(items))
    digest = sha256(script.encode()).hexdigest()
    there = await connection.fetchval("select obj_description(to_regnamespace('bench'), 'pg_namespace')")
    if there == digest:
        return
    say(f"Building a catalog of {items:,} products; it is kept for the next run …")
    started = time.perf_counter()
    async with connection.transaction():
        await connection.execute("drop schema if exists bench cascade")
        await connection.execute(script)
    await connection.execute("vacuum analyze")
    # Last: a catalog whose making was interrupted is made anew.
    await connection.execute(f"comment on schema bench is '{digest}'")
    say(f"Built in {time.perf_counter() - started:.0f} s.")
