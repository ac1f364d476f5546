"""The baseline that pages by key, as we do: the same items in a SQLite file, to be served by Datasette.

Datasette knows neither Clerk's paging nor its tokens: its pages are asked for with the last key (`_next`), which no
importer of Clerk's does. It shows what a general tool reaches once nobody asks for an offset.
"""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import asyncpg

_COLUMNS = (
    "id, sku, name, description, price::float8 as price, list_price::float8 as list_price, image, url, categories,"
    " brand, color_names, stock, on_sale, reviews_amount, reviews_avg, extract(epoch from created_at)::bigint as"
    " created_at"
)
QUERY = "_shape=array&_json=categories&_json=color_names&_nocount=1&_size={{limit}}&_next={{offset}}"
"""The ids of the bench's catalog are 1, 2, 3 …: behind the offset K lies the key K."""


async def build(dsn: str, items: int, folder: Path) -> Path:
    """The file with the bench's products; made once for each size."""
    path = folder / f"bench_{items}" / "bench.db"
    if path.exists():
        return path
    path.parent.mkdir(exist_ok=True)
    growing = path.with_suffix(".part")
    growing.unlink(missing_ok=True)
    connection = await asyncpg.connect(dsn)
    try:
        with closing(sqlite3.connect(growing)) as file:
            first = await connection.fetchrow(f"select {_COLUMNS} from bench.products limit 1")
            names = list(first.keys())
            file.execute(f"create table products (id integer primary key, {', '.join(names[1:])})")
            holes = ", ".join("?" * len(names))
            async with connection.transaction():
                rows = await connection.cursor(f"select {_COLUMNS} from bench.products order by id")
                while batch := await rows.fetch(10_000):
                    file.executemany(
                        f"insert into products values ({holes})",
                        [[json.dumps(v) if isinstance(v, list) else v for v in row.values()] for row in batch],
                    )
            file.commit()
    finally:
        await connection.close()
    return growing.rename(path)
