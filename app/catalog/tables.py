"""The tables of a database, as the catalog of PostgreSQL describes them: columns, keys, references, indexes."""

from typing import Any

import msgspec


class Column(msgspec.Struct, frozen=True):
    """A column of a table. `type` is the name of its base type in pg_type, domains resolved."""

    name: str
    type: str
    is_array: bool = False
    not_null: bool = False


class ForeignKey(msgspec.Struct, frozen=True):
    """A declared reference: columns here, and the table and columns they refer to."""

    columns: tuple[str, ...]
    schema: str
    table: str
    target_columns: tuple[str, ...]


class Table(msgspec.Struct, frozen=True):
    """A table of the shop as the catalog describes it."""

    schema: str
    name: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    indexes: tuple[tuple[str, ...], ...] = ()
    """The columns of every index that serves all rows, in order."""
    rows: float = -1
    """PostgreSQL's estimate; -1 where it has none yet."""

    def __str__(self) -> str:
        return f"{identifier(self.schema)}.{identifier(self.name)}"

    @property
    def place(self) -> tuple[str, str]:
        return self.schema, self.name

    @property
    def key(self) -> Column | None:
        """The one column that identifies a row."""
        return self.column(self.primary_key[0]) if len(self.primary_key) == 1 else None

    def column(self, name: str) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)


def identifier(name: str) -> str:
    """An identifier as SQL spells it, in quotes only where it needs them."""
    if name and name not in _RESERVED and not name[0].isdigit() and set(name) <= _PLAIN_LETTERS:
        return name
    return '"' + name.replace('"', '""') + '"'


def shown(text: str) -> str:
    """A name from the database as it may stand in a comment or on a terminal: on one line, nothing hidden."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


async def read_tables(connection: Any, schema: str | None, views_schema: str) -> tuple[Table, ...]:
    """The tables of the shop, or of one schema of it, from the catalog. Runs in one read-only transaction."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        rows = await connection.fetch(_TABLES, schema, views_schema)
    return tuple(msgspec.convert(msgspec.json.decode(row["described"]), Table) for row in rows)


async def schemas(connection: Any) -> list[str]:
    """The schemas that hold tables of the shop."""
    return [row["name"] for row in await connection.fetch(_SCHEMAS)]


async def taken_names(connection: Any, schema: str) -> list[str]:
    """The tables that stand in a schema where only views should."""
    return [row["name"] for row in await connection.fetch(_TAKEN, schema)]


_PLAIN_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")

# PostgreSQL 18's reserved words, and those that can't name a function or a type (pg_get_keywords, catcode R, T, C).
_RESERVED_WORDS = """
    all analyse analyze and any array as asc asymmetric authorization between bigint binary bit boolean both
    case cast char character check coalesce collate collation column concurrently constraint create cross
    current_catalog current_date current_role current_schema current_time current_timestamp current_user dec
    decimal default deferrable desc distinct do else end except exists extract false fetch float for foreign
    freeze from full grant greatest group grouping having ilike in initially inner inout int integer intersect
    interval into is isnull join json json_array json_arrayagg json_exists json_object json_objectagg json_query
    json_scalar json_serialize json_table json_value lateral leading least left like limit localtime
    localtimestamp merge_action national natural nchar none normalize not notnull null nullif numeric offset on
    only or order out outer overlaps overlay placing position precision primary real references returning right
    row select session_user setof similar smallint some substring symmetric system_user table tablesample then
    time timestamp to trailing treat trim true union unique user using values varchar variadic verbose when
    where window with xmlattributes xmlconcat xmlelement xmlexists xmlforest xmlnamespaces xmlparse xmlpi
    xmlroot xmlserialize xmltable
"""
_RESERVED = frozenset(_RESERVED_WORDS.split())

_SHOP_SCHEMA = """
  n.nspname not in ('pg_catalog', 'information_schema', 'clerk_feed')
  and n.nspname !~ '^pg_'
"""

_SCHEMAS = f"""
select n.nspname::text as name
from pg_namespace as n
where {_SHOP_SCHEMA}
  and exists (select from pg_class as c where c.relnamespace = n.oid and c.relkind in ('r', 'p', 'f', 'm'))
order by n.nspname
"""  # noqa: S608 (a constant condition)

_TAKEN = """
select c.relname::text as name
from pg_class as c
join pg_namespace as n on n.oid = c.relnamespace
where n.nspname = $1 and c.relkind in ('r', 'p', 'f', 'm')
order by c.relname
"""

# Partitions stand behind their parent, and tables of extensions (postgis and the like) are none of the shop's.
# An index counts where it serves every row in the order of its columns: a valid btree, not partial.
_TABLES = f"""
with tables as (
  select c.oid, n.nspname::text as schema, c.relname::text as name, c.reltuples as rows
  from pg_class as c
  join pg_namespace as n on n.oid = c.relnamespace
  where c.relkind in ('r', 'p', 'f', 'm')
    and not c.relispartition
    and {_SHOP_SCHEMA}
    and ($1::text is null or n.nspname = $1)
    and n.nspname <> $2
    and not exists (
      select from pg_depend as d
      where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'
    )
), base as (
  with recursive climb as (
    select oid as type, oid as base from pg_type
    union all
    select climb.type, t.typbasetype
    from climb
    join pg_type as t on t.oid = climb.base
    where t.typtype = 'd'
  )
  select climb.type, coalesce(element.typname, t.typname)::text as name, element.oid is not null as is_array
  from climb
  join pg_type as t on t.oid = climb.base and t.typtype <> 'd'
  left join pg_type as element on element.oid = t.typelem and t.typcategory = 'A'
)
select json_build_object(
  'schema', tables.schema,
  'name', tables.name,
  'rows', tables.rows,
  'columns', (
    select coalesce(
      json_agg(
        json_build_object(
          'name', a.attname, 'type', base.name, 'is_array', base.is_array, 'not_null', a.attnotnull
        )
        order by a.attnum
      ),
      '[]'
    )
    from pg_attribute as a
    join base on base.type = a.atttypid
    where a.attrelid = tables.oid and a.attnum > 0 and not a.attisdropped
  ),
  'primary_key', (
    select coalesce(json_agg(a.attname order by k.position), '[]')
    from pg_constraint as p
    cross join unnest(p.conkey) with ordinality as k(attnum, position)
    join pg_attribute as a on a.attrelid = p.conrelid and a.attnum = k.attnum
    where p.conrelid = tables.oid and p.contype = 'p'
  ),
  'foreign_keys', (
    select coalesce(
      json_agg(
        json_build_object(
          'columns', (
            select json_agg(a.attname order by k.position)
            from unnest(f.conkey) with ordinality as k(attnum, position)
            join pg_attribute as a on a.attrelid = f.conrelid and a.attnum = k.attnum
          ),
          'schema', tn.nspname,
          'table', t.relname,
          'target_columns', (
            select json_agg(a.attname order by k.position)
            from unnest(f.confkey) with ordinality as k(attnum, position)
            join pg_attribute as a on a.attrelid = f.confrelid and a.attnum = k.attnum
          )
        )
        order by f.conname
      ),
      '[]'
    )
    from pg_constraint as f
    join pg_class as t on t.oid = f.confrelid
    join pg_namespace as tn on tn.oid = t.relnamespace
    where f.conrelid = tables.oid and f.contype = 'f' and f.conparentid = 0
  ),
  'indexes', (
    select coalesce(
      json_agg(
        (
          select json_agg(coalesce(a.attname, '') order by k.position)
          from unnest(i.indkey::int2[]) with ordinality as k(attnum, position)
          left join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = k.attnum
          where k.position <= i.indnkeyatts
        )
      ),
      '[]'
    )
    from pg_index as i
    join pg_class as ic on ic.oid = i.indexrelid
    join pg_am as am on am.oid = ic.relam
    where i.indrelid = tables.oid and i.indisvalid and i.indpred is null and am.amname = 'btree'
  )
)::text as described
from tables
order by tables.schema, tables.name
"""  # noqa: S608 (a constant condition)
