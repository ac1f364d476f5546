"""Plans: whether an index serves a page, as PostgreSQL would run it.

EXPLAIN with sequential scans and sorts discouraged shows what is possible at all: what is sorted or read in full then
has no index to do without. Asked plainly, a small or new table would be sorted too, and mean nothing.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from app.catalog.source import Source, quoted
from app.catalog.statements import Position, statement_behind
from app.catalog.tables import identifier
from app.diagnosis.findings import Finding, note, warning

_LARGE_BYTES = 1_000_000
"""A smaller table is read in full as fast as through an index."""
_FIRST_KEYS = {"int8": "0", "uuid": "00000000-0000-0000-0000-000000000000"}
_PAGE_ITEMS = 1000
_COLUMN = re.compile(r'^\(*([a-z_][\w$]*|"(?:[^"]|"")+")\.([a-z_][\w$]*|"(?:[^"]|"")+")\)*$')
_REFERENCE = re.compile(r'(?<![\w.$"])([a-z_][\w$]*|"(?:[^"]|"")+")\.(?=[a-z_"])')
_EQUALS = re.compile(
    r'\(*([a-z_][\w$]*|"(?:[^"]|"")+")\.([a-z_][\w$]*|"(?:[^"]|"")+")\)*(?:::[\w ]+)?\)*'
    r' = \(*([a-z_][\w$]*|"(?:[^"]|"")+")\.([a-z_][\w$]*|"(?:[^"]|"")+")'
)

Node = dict[str, Any]


async def plan_findings(connection: Any, source: Source, rows: int) -> list[Finding]:
    """Whether an index serves the pages of full and of incremental walks. Raises what asyncpg raises.

    Of a source with so few `rows` that they fit one page it is a note: sorting them costs nothing.
    """
    make = warning if rows > _PAGE_ITEMS else note
    key = _FIRST_KEYS.get(source.key.family, "a")
    full = await _plan(connection, source, Position(key))
    found = await _sorted(connection, "full", source, full, make)
    plans = [full]
    if source.has_modified_at:
        dated = await _plan(connection, source, Position(key, "2020-01-01"), since=0.0)
        found += await _sorted(connection, "incremental", source, dated, make)
        plans.append(dated)
    return found + await _joined(connection, source, plans)


async def estimated_rows(connection: Any, source: Source) -> int:
    """PostgreSQL's estimate of how many rows a source has."""
    text = await connection.fetchval(f'explain (format json) select s."id" from {source.relation} as s')  # noqa: S608
    return int(_decoded(text)[0]["Plan"]["Plan Rows"])


async def _plan(connection: Any, source: Source, after: Position, since: float | None = None) -> Node:
    sql, arguments = statement_behind(source, after, since, _PAGE_ITEMS)
    async with connection.transaction(readonly=True):
        for setting in ("enable_seqscan", "enable_sort", "enable_incremental_sort", "enable_bitmapscan"):
            if setting != "enable_incremental_sort" or connection.get_server_version()[0] >= 13:
                await connection.execute(f"set local {setting} = off")
        text = await connection.fetchval(f"explain (format json, verbose, costs off) {sql}", *arguments)
    plan: Node = _decoded(text)[0]["Plan"]
    return plan


def _decoded(text: Any) -> Any:
    return orjson.loads(text if isinstance(text, str) else bytes(text))


async def _sorted(
    connection: Any, kind: str, source: Source, plan: Node, make: Callable[..., Finding]
) -> list[Finding]:
    """The finding that every page of a walk sorts all rows."""
    sort = next((node for node in _main_path(plan) if node["Node Type"] in ("Sort", "Incremental Sort")), None)
    if sort is None:
        return []
    columns = "id" if kind == "full" else "(modified_at, id)"
    index = _index_for(sort) or await _index_for_partitions(connection, sort)
    rendered = f"rendered = true for [stores.{source.store}.feeds.{source.feed}]"
    return [
        make(
            f"index-{kind}",
            f"No index serves {kind} walks: every page of {source.relation} sorts all rows by {columns}.",
            f"Run: {index} Or set {rendered}."
            if index
            else f"{columns} is computed, or put together of several tables, and no index can serve that: pass columns"
            f" of one table straight through and index them, or set {rendered}.",
        )
    ]


def _main_path(node: Node) -> Iterator[Node]:
    """The nodes that pass the rows of a page on: not what is looked up for each row."""
    yield node
    for child in node.get("Plans", []):
        if child.get("Parent Relationship") in ("Outer", "Member", "Subquery"):
            yield from _main_path(child)


def _everything(node: Node, above: tuple[Node, ...] = ()) -> Iterator[tuple[Node, tuple[Node, ...]]]:
    yield node, above
    for child in node.get("Plans", []):
        yield from _everything(child, (*above, node))


def _index_for(sort: Node) -> str | None:
    """The CREATE INDEX by which a sort would not be needed; None where no index on one table can do it."""
    below = [node for node, _ in _everything(sort)]
    if any(node["Node Type"] in ("Append", "Merge Append") for node in below):
        return None
    tables = {node["Alias"]: node for node in below if "Relation Name" in node}
    keys = [re.sub(r" (DESC|NULLS (FIRST|LAST))", "", key) for key in sort["Sort Key"]]
    aliases = {_unquoted(alias) for key in keys for alias in _REFERENCE.findall(key)}
    if len(aliases) != 1:
        return None
    [alias] = aliases
    table = tables.get(alias)
    if table is None or table["Node Type"] == "Foreign Scan" or any("(max(" in k or "(min(" in k for k in keys):
        return None
    expressions = [_REFERENCE.sub("", key) if not _COLUMN.match(key) else _COLUMN.sub(r"\2", key) for key in keys]
    return _create_index(table, expressions)


async def _index_for_partitions(connection: Any, sort: Node) -> str | None:
    """The CREATE INDEX on a partitioned table, where all that is sorted are its partitions; else None."""
    below = [node for node, _ in _everything(sort) if "Relation Name" in node]
    keys = [_COLUMN.match(re.sub(r" (DESC|NULLS (FIRST|LAST))", "", key)) for key in sort["Sort Key"]]
    roots = await connection.fetch(
        _ROOTS, [node["Schema"] for node in below], [node["Relation Name"] for node in below]
    )
    if len(roots) != 1 or roots[0]["name"] is None or not all(keys):
        return None
    columns = ", ".join(key[2] for key in keys if key)
    return f"create index on {identifier(roots[0]['schema'])}.{identifier(roots[0]['name'])} ({columns});"


_ROOTS = """
select distinct n.nspname::text as schema, r.relname::text as name
from unnest($1::text[], $2::text[]) as part (schema, name)
join pg_namespace as pn on pn.nspname = part.schema
join pg_class as p on p.relnamespace = pn.oid and p.relname = part.name
left join pg_class as r on r.oid = pg_partition_root(p.oid)
left join pg_namespace as n on n.oid = r.relnamespace
"""


def _create_index(table: Node, expressions: list[str]) -> str:
    relation = f"{identifier(table['Schema'])}.{identifier(table['Relation Name'])}"
    return f"create index concurrently on {relation} ({', '.join(expressions)});"


async def _joined(connection: Any, source: Source, plans: list[Node]) -> list[Finding]:
    """Tables that are read in full beside the one that is walked, because no index leads into them."""
    found: dict[tuple[str, str], Finding] = {}
    for plan in plans:
        whole = orjson.dumps(plan).decode()
        for node, above in _everything(plan):
            if node["Node Type"] != "Seq Scan" or _is_read_once(above, whole):
                continue
            place = (node["Schema"], node["Relation Name"])
            index = _index_into(node, above)
            if place in found or index is None:
                continue
            size = await connection.fetchval(
                "select pg_relation_size(c.oid) from pg_class as c join pg_namespace as n on n.oid = c.relnamespace"
                " where n.nspname = $1 and c.relname = $2",
                *place,
            )
            if size and size > _LARGE_BYTES:
                relation = f"{quoted(place[0])}.{quoted(place[1])}"
                found[place] = warning(
                    "index-join",
                    f"Every page of {source.relation}, or every item, reads all of {relation}, {size / 1e6:,.0f} MB:"
                    " no index leads from an item to its rows.",
                    f"Run: {index}",
                )
    return list(found.values())


def _is_read_once(above: tuple[Node, ...], whole: str) -> bool:
    """Whether a node is below what runs once a statement, whatever it costs."""
    for node in above:
        if node.get("Parent Relationship") == "InitPlan" or f"hashed {node.get('Subplan Name')}" in whole:
            return True
    return False


def _index_into(node: Node, above: tuple[Node, ...]) -> str | None:
    """The CREATE INDEX by which a table need not be read in full, from the condition that leads into it."""
    alias = node["Alias"]
    for place in (node, *reversed(above)):
        for condition in ("Filter", "Join Filter", "Hash Cond", "Merge Cond"):
            for match in _EQUALS.finditer(place.get(condition, "")):
                sides = [(_unquoted(match[1]), match[2]), (_unquoted(match[3]), match[4])]
                if sides[0][0] != sides[1][0]:
                    for side, column in sides:
                        if side == alias:
                            return _create_index(node, [column])
    return None


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
