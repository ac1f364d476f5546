"""Ids that are not what they must be: repeated, or NULL.

Neither stops a walk. Rows without an id are not served, and of rows with the same id those behind the edge of a page
are skipped, since a walk goes on behind an id. Both are said, so that the shop can mend its view.
"""

from collections.abc import Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any

import asyncpg

from app.catalog.pool import LOST, Pool
from app.catalog.source import Source
from app.protocol.feeds import FeedName
from app.protocol.problems import Refusal
from app.status.events import Emit, IdsMissing, IdsRepeated

_SHOWN = 5
_COUNTED = 1000
"""So many rows without an id are counted, and no more."""
_COUNT_MILLISECONDS = 2000
"""A source without an index on its id is not read to its end for this."""

_EXAMPLE: dict[FeedName, str] = {
    "products": "url",
    "categories": "url",
    "orders": "time",
    "pages": "url",
}
"""What tells a row without an id, in a feed whose attributes are no person's."""

_id_of = itemgetter(1)


def report_repeated(emit: Emit, source: Source, rows: Sequence[Any], beyond: Any = None) -> bool:
    """Say so where an id occurs twice in the rows of a page, or again in the row beyond it; whether in the page."""
    skipped = beyond is not None and _id_of(beyond) == _id_of(rows[-1])
    # 0.04 ms for 1000 rows; the rest is for sources that are broken.
    twice = len(set(map(_id_of, rows))) < len(rows)
    if not (skipped or twice):
        return False
    seen: set[Any] = set()
    repeated: dict[Any, None] = {}
    for row in rows:
        if _id_of(row) in seen:
            repeated[_id_of(row)] = None
        seen.add(_id_of(row))
    if skipped:
        repeated = {_id_of(rows[-1]): None} | repeated
    emit(
        IdsRepeated(
            store=source.store,
            feed=source.feed,
            count=len(repeated),
            examples=tuple(repeated)[:_SHOWN],
            skipped=skipped,
        )
    )
    return twice


async def report_missing(emit: Emit, pool: Pool, source: Source) -> None:
    """Say so where rows of a source have no id. Asked once a walk, at its end; a failure is nobody's loss."""
    if source.rendered:
        return  # our own table, whose ids are keys; the refresh sees those of its source
    column = _EXAMPLE.get(source.feed)
    example = f'left(s."{column}"::text, 200)' if column else "null::text"
    missing = f'select {example} as example from {source.relation} as s where s."id" is null'  # noqa: S608 (quoted)
    counted = f"select count(*)::int as count, min(n.example) as example from ({missing} limit {_COUNTED}) as n"  # noqa: S608
    with suppress(*LOST, asyncpg.PostgresError, Refusal):
        async with pool.connection() as connection, connection.transaction(readonly=True):
            await connection.execute(f"set local statement_timeout = {_COUNT_MILLISECONDS}")
            found = await connection.fetchrow(counted)
        if found["count"]:
            emit(
                IdsMissing(
                    store=source.store,
                    feed=source.feed,
                    count=found["count"],
                    relation=str(source.relation),
                    example=f"{column} {found['example']}" if found["example"] is not None else None,
                )
            )
