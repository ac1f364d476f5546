"""What modified_at says, and by which clock: one that is hours off makes deltas that lack changes, and one that moves
makes them send what has not changed."""

from typing import Any

import asyncpg

from app.catalog.source import Source
from app.diagnosis.findings import Finding, warning

_SAMPLE_ROWS = 1000
_UTC = {"UTC", "Etc/UTC", "UCT", "Etc/UCT", "GMT", "Etc/GMT", "Zulu", "Universal", "Etc/Universal"}


async def own_zone(dsn: str) -> str:
    """The time zone that sessions of the database have by themselves. Raises what asyncpg raises."""
    connection = await asyncpg.connect(dsn, statement_cache_size=0, timeout=10)
    try:
        return str(await connection.fetchval("show timezone"))
    finally:
        await connection.close(timeout=5)


async def moment_findings(connection: Any, source: Source, zone: str, *, thorough: bool) -> list[Finding]:
    """What is wrong with the moments of a source that has modified_at. `zone` is the one that the shop's sessions have.

    Raises asyncpg.PostgresError where the source can't be read.
    """
    rows = "" if thorough else f"limit {_SAMPLE_ROWS}"
    sample = f'(select s."id"::text as id, s."modified_at" from {source.relation} as s {rows}) as s'  # noqa: S608 (quoted)
    found = []
    moving = await _moving(connection, sample)
    if moving:
        found.append(
            warning(
                "modified-at-moving",
                "The modified_at of some items is reckoned from the moment of asking, as by now(): they may be part of"
                " every delta, changed or not, and no index finds them.",
                "In the view let it be what the table holds, e.g. coalesce(updated_at, created_at).",
                attribute="modified_at",
                count=len(moving),
                examples=tuple(moving[:3]),
            )
        )
    async with connection.transaction(readonly=True):
        if zone in _UTC:
            return found
        if not source.zoned:
            found.append(
                warning(
                    "modified-at-zone",
                    f"The modified_at of {source.relation} has no time zone and is read as UTC, but the zone of this"
                    f" database is {zone}: what its sessions write there by now() is the time of {zone}.",
                    f"If so, say it in the view: … at time zone '{zone}' as modified_at.",
                    attribute="modified_at",
                )
            )
        elif await _depends_on_zone(connection, sample, zone):
            found.append(
                warning(
                    "modified-at-zone",
                    f"The modified_at of {source.relation} depends on the zone of the session: it is another moment"
                    f" here, in UTC, than in a session of the database's own zone, {zone}. A cast to timestamptz does"
                    " that.",
                    f"Say the zone in the view: … at time zone '{zone}' as modified_at, in place of the cast.",
                    attribute="modified_at",
                )
            )
    return found


async def _moving(connection: Any, sample: str) -> list[str]:
    """The ids of the items whose modified_at is as far from now in one transaction as in another, or later than its."""
    sql = (
        "select id, (modified_at::timestamptz - now())::text as distance,"  # noqa: S608 (quoted)
        f" modified_at::timestamptz between now() and clock_timestamp() as is_now from {sample}"
        " where modified_at is not null and isfinite(modified_at)"
    )
    distances: list[dict[str, str]] = []
    for _ in range(2):
        async with connection.transaction(readonly=True):
            rows = await connection.fetch(sql)
        distances.append({row["id"]: row["distance"] for row in rows})
        now = [row["id"] for row in rows if row["is_now"]]
    first, second = distances
    return sorted({*now, *(id for id, distance in second.items() if first.get(id) == distance)})


async def _depends_on_zone(connection: Any, sample: str, zone: str) -> bool:
    sql = f"select id, extract(epoch from modified_at)::float8 as moment from {sample} where modified_at is not null"  # noqa: S608 (quoted)
    sql += f" limit {_SAMPLE_ROWS}"
    here = {row["id"]: row["moment"] for row in await connection.fetch(sql)}
    await connection.execute("select set_config('timezone', $1, true)", zone)
    return any(here.get(row["id"], row["moment"]) != row["moment"] for row in await connection.fetch(sql))
