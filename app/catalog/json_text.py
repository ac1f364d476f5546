"""A column's value as text of JSON, made by PostgreSQL.

What it yields equals what Python makes of the column (source.py and protocol/wire.py), value for value and digit for
digit: a JSON null, NaN or infinite is left out, NULL elements leave arrays, timestamps are rounded down, line breaks
between the tokens of the shop's own json become spaces.
"""

import json

from app.catalog.columns import FLOATS, INTEGERS, JSONS, TIMES, Column, Relation, expression, finite

_MOST_ARGUMENTS = 90
"""PostgreSQL's functions take 100."""


def name_text(name: str) -> str:
    """An attribute's name and its colon, as JSON has them."""
    return json.dumps(name, ensure_ascii=False) + ":"


def value_text(relation: Relation, column: Column, *, required: bool) -> str:
    """A column's value as text of JSON; NULL where the attribute is left out."""
    value = expression(relation, column)
    if column.is_array:
        return _list(column, value)
    if column.type in JSONS:
        text = f"({value})::text"
        if column.type == "json":
            text = f"replace(replace({text}, E'\\n', ' '), E'\\r', ' ')"
        return text if required else f"case when {column.type}_typeof({value}) <> 'null' then {text} end"
    if column.type == "bool":
        return f"case when {value} then 'true' when not {value} then 'false' end"
    if column.type in FLOATS:
        # The sign makes it an error where the column is of another type by now, which PostgreSQL would not mind.
        return f"(+ {value})::text" if required else f"case when {finite(value)} then (+ {value})::text end"
    if column.type in INTEGERS:
        return f"(+ {value})::text"
    if column.type in TIMES:
        return f"({value})::text"
    return f"to_json({value})::text"


def _list(column: Column, value: str) -> str:
    depth = f"array_ndims({value})"
    if column.type in JSONS:
        return _pruned(f"array_to_json({value})", value, "json")
    if column.type in TIMES:
        kind = "date" if column.type == "date" else "time"
        return _pruned(f"array_to_json({value}::text[])", value, kind)
    element = "text" if value.endswith("::text[]") else column.type
    kept, kind = f"array_remove({value}, null::{element})", "other"
    if column.type in FLOATS:
        kind = "number"
        for none in ("NaN", "Infinity", "-Infinity"):
            kept = f"array_remove({kept}, '{none}')"
    # array_remove refuses arrays of several dimensions.
    return (
        f"case when {depth} > 1 then clerk_feed.pruned(array_to_json({value}), {depth}, '{kind}')"
        f" else array_to_json({kept})::text end"
    )


def _pruned(list: str, value: str, kind: str) -> str:
    # An empty array has no dimensions at all.
    pruned = f"clerk_feed.pruned({list}, array_ndims({value}), '{kind}')"
    return f"case when cardinality({value}) = 0 then '[]' else {pruned} end"


def concatenated(arguments: list[str]) -> str:
    """The pieces as one text; those that are NULL are passed over."""
    while len(arguments) > _MOST_ARGUMENTS:
        first, arguments = arguments[:_MOST_ARGUMENTS], arguments[_MOST_ARGUMENTS:]
        arguments.insert(0, concatenated(first))
    return f"concat({', '.join(arguments)})"


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
