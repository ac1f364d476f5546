"""The id of a source as a key: unique, and there."""

from typing import Any

import asyncpg

from app.catalog.source import Source
from app.diagnosis.findings import Finding, error, note, warning

_QUICK_SECONDS = 5
_DAY_SECONDS = 86_400


async def key_findings(connection: Any, source: Source, *, thorough: bool) -> list[Finding]:
    """Whether ids repeat or are missing. Takes 5 s at most, unless `thorough`. Raises what asyncpg raises."""
    relation = source.relation
    proven = await connection.fetchrow(_PROVEN, relation.schema, relation.name)
    found: list[Finding] = []
    try:
        if not proven["not_null"]:
            count = await _counted(connection, _MISSING.format(relation=relation), thorough=thorough)
            found += _missing(source, count[0])
        if not proven["is_unique"]:
            count = await _counted(connection, _REPEATED.format(relation=relation), thorough=thorough)
            found += _repeated(source, *count)
    except (asyncpg.QueryCanceledError, TimeoutError):
        found.append(
            note(
                "key-unproven",
                f"Whether the ids of {relation} are unique is not known: looking took longer than {_QUICK_SECONDS} s.",
                "Look as long as it takes: --scan",
                attribute="id",
            )
        )
    return found


async def _counted(connection: Any, sql: str, *, thorough: bool) -> Any:
    async with connection.transaction(readonly=True):
        await connection.execute(f"set local statement_timeout = {0 if thorough else _QUICK_SECONDS * 1000}")
        return await connection.fetchrow(sql, timeout=_DAY_SECONDS if thorough else _QUICK_SECONDS + 5)


def _missing(source: Source, count: int) -> list[Finding]:
    if not count:
        return []
    return [
        warning(
            "key-null",
            f"{count:,} rows of {source.relation} have no id: they are not served.",
            "Give them one, or leave them out in the view on purpose: where … is not null",
            attribute="id",
            count=count,
        )
    ]


def _repeated(source: Source, count: int, examples: list[str]) -> list[Finding]:
    if not count:
        return []
    return [
        error(
            "key-repeated",
            f"{count:,} ids of {source.relation} occur more than once: Clerk keeps one item of each, and pages skip"
            " rows.",
            "Make the view yield one row an id: often a join with images, prices or categories repeats a product.",
            attribute="id",
            count=count,
            examples=[f"id {id}" for id in examples],
        )
    ]


# A view tells nothing: its joins may repeat rows.
_PROVEN = """
select
  a.attnotnull and c.relkind in ('r', 'p') as not_null,
  exists (
    select
    from pg_index as i
    where i.indrelid = c.oid and i.indisunique and i.indisvalid and i.indimmediate
      and i.indnkeyatts = 1 and i.indkey[0] = a.attnum and i.indpred is null
      -- An index knows nothing of tables that inherit.
      and (c.relkind = 'p' or not c.relhassubclass)
  ) as is_unique
from pg_class as c
join pg_namespace as n on n.oid = c.relnamespace
join pg_attribute as a on a.attrelid = c.oid and a.attname = 'id' and not a.attisdropped
where n.nspname = $1 and c.relname = $2
"""

_MISSING = """
select count(*) from {relation} as s where s."id" is null
"""

_REPEATED = """
with repeated as (
  select min(s."id"::text) as id, count(*) as times
  from {relation} as s
  where s."id" is not null
  group by s."id"
  having count(*) > 1
)
select
  (select count(*) from repeated),
  array(select id from repeated order by times desc, id limit 3)
"""
