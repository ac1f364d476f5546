"""Columns of a relation as PostgreSQL describes them, and the SQL that reads one as it is served."""

import msgspec

from app.protocol.problems import SOURCE_UNUSABLE, Refusal
from app.protocol.wire import nameable

INTEGERS = {"int2", "int4", "int8"}
FLOATS = {"float4", "float8", "numeric"}
TIMES = {"timestamptz", "timestamp", "date"}
TEXTS = {"text", "varchar", "bpchar", "name", "uuid"}
JSONS = {"json", "jsonb"}
_SERVED = INTEGERS | FLOATS | TIMES | TEXTS | JSONS | {"bool"}


class Column(msgspec.Struct, frozen=True):
    """A column of a source: its name and its type, domains resolved to what they are based on."""

    name: str
    type: str
    """Name of the base type in pg_type, without brackets: int4, text, my_enum."""
    shown_type: str
    type_schema: str
    kind: str
    """pg_type.typtype of the base type: b(ase), e(num), c(omposite), r(ange)."""
    is_array: bool
    is_domain: bool
    collation: str | None
    """Quoted name of the collation, None where the type has none or it is the default."""


class Relation(msgspec.Struct, frozen=True):
    """The schema and the name of a relation, as PostgreSQL spells them."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"


def quoted(identifier: str) -> str:
    """An identifier as SQL spells it, whatever is in it."""
    return '"' + identifier.replace('"', '""') + '"'


def is_citext(column: Column) -> bool:
    """Whether it is the extension's type, which may be in any schema, and that schema in no search_path of ours."""
    return column.type == "citext" and column.kind == "b"


def attributes_of(columns: list[Column]) -> list[Column]:
    """The columns that are served, id first.

    Clerk ignores attributes named otherwise than with letters, digits and underscore. Most are served all the same, so
    that nothing seems lost; the few that can't be named are left out.
    """
    others = [column for column in columns if column.name not in ("id", "modified_at") and nameable(column.name)]
    return [column for column in columns if column.name == "id"] + others


def expression(relation: Relation, column: Column) -> str:
    """How a column is selected so that its value arrives as it is served."""
    name = f"s.{quoted(column.name)}"
    brackets = "[]" if column.is_array else ""
    if column.kind == "e" or column.type in ("uuid", "bpchar") or is_citext(column):
        return f"{name}::text{brackets}"
    if column.type not in _SERVED or column.type_schema != "pg_catalog":
        raise unusable(
            f"The column {quoted(column.name)} of {relation} is of type {column.shown_type}, which has no JSON form.",
            f"Cast it in the view, e.g. {quoted(column.name)}::text, or leave it out.",
        )
    if column.type == "date" and not column.is_array:
        # Not through timestamp, which ends long before date does.
        return f"case when isfinite({name}) then ({name} - date '1970-01-01')::int8 * 86400 end"
    if column.type in TIMES and not column.is_array:
        # As a double, which is exact to the second far beyond any calendar, and much cheaper than extract's numeric.
        return f"case when isfinite({name}) then floor(date_part('epoch', {name}))::int8 end"
    # A domain's array keeps the domain's elements, whose codecs asyncpg does not know.
    return f"{name}::{column.type}{brackets}" if column.is_domain else name


def valid_conditions(columns: list[Column], required: tuple[str, ...]) -> list[str]:
    """What must hold of a row so that no required attribute is left out of its item."""
    conditions = []
    for column in columns:
        if column.name not in required:
            continue
        name = f"s.{quoted(column.name)}"
        conditions.append(f"{name} is not null")
        if column.is_array:
            continue
        if column.type in JSONS:
            conditions.append(f"{column.type}_typeof({name}) <> 'null'")
        elif column.type in FLOATS:
            conditions.append(finite(name))
        elif column.type in TIMES:
            conditions.append(f"isfinite({name})")
    return conditions


def finite(name: str) -> str:
    # To PostgreSQL NaN is the largest number. Comparing costs less than the arithmetic that would tell as well.
    return f"({name} > '-Infinity' and {name} < 'Infinity') is not false"


def unusable(detail: str, fix: str) -> Refusal:
    return Refusal(SOURCE_UNUSABLE, detail, fix=fix)
