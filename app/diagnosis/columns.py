"""A source's columns: names and types, before any row is read."""

import msgspec

from app.catalog.source import Column, Relation, build
from app.diagnosis.findings import Finding, error, warning
from app.protocol.attributes import ATTRIBUTES, TRANSLATED, WORDS, Kind, known_to_clerk
from app.protocol.feeds import REQUIRED, FeedName
from app.protocol.problems import Refusal

_TEXTS = {"text", "varchar", "bpchar", "citext", "name", "uuid"}
_NUMBERS = {"int2", "int4", "int8", "float4", "float8", "numeric"}
_TIMES = {"timestamptz", "timestamp", "date"}
_JSONS = {"json", "jsonb"}

_CASTS: dict[Kind, str] = {
    "text": "{name}::text",
    "address": "'https://…' || {name}",
    "number": "{name}::numeric",
    "time": "to_timestamp({name}), or a cast to timestamptz",
    "ids": "array[{name}], or array_agg(…) of a join table",
    "lines": "json_agg(json_build_object('id', …, 'quantity', …, 'price', …))",
    "flag": "{name}::bool",
}


def column_findings(feed: FeedName, relation: Relation, columns: list[Column]) -> list[Finding]:
    """What is wrong with the columns, each by itself."""
    names = {column.name for column in columns}
    found = [
        error(
            "column-missing",
            f'{relation} has no column "{name}", which every item of {feed} must have.',
            f'Add the column "{name}" to {relation}.',
            attribute=name,
        )
        for name in REQUIRED[feed]
        if name not in names
    ]
    for column in columns:
        found += _of_column(feed, relation, column)
    return found


def _of_column(feed: FeedName, relation: Relation, column: Column) -> list[Finding]:
    if column.name != "modified_at" and not known_to_clerk(column.name):
        return [
            error(
                "column-name",
                f'The column "{column.name}" of {relation} has other characters than letters, digits and underscore:'
                " Clerk ignores it.",
                "Rename it in the view, or leave it out.",
                attribute=column.name,
            )
        ]
    # By itself beside the required ones as text, so that what is refused is this column and no other.
    others = [_text(name) for name in REQUIRED[feed] if name != column.name]
    try:
        build("", feed, relation, [*others, column])
    except Refusal as refusal:
        return [error("column-type", refusal.detail, refusal.fix, attribute=column.name)]
    wanted = ATTRIBUTES[feed].get(column.name)
    if wanted is None or wanted == "id" or _fits(feed, column, wanted):
        return []
    make = error if column.name in REQUIRED[feed] else warning
    return [
        make(
            "column-type",
            f'The column "{column.name}" of {relation} is of type {column.shown_type}; Clerk reads {WORDS[wanted]}.',
            f'In the view, e.g. {_CASTS[wanted].format(name=column.name)} as "{column.name}".',
            attribute=column.name,
        )
    ]


def _fits(feed: FeedName, column: Column, wanted: Kind) -> bool:
    """Whether a column's type can hold what Clerk expects. Of json only its values can tell."""
    if column.is_array:
        return wanted in ("ids", "lines") and (column.type in _JSONS or wanted == "ids")
    if wanted in ("ids", "lines"):
        return column.type in _JSONS
    if wanted in ("text", "address"):
        translated = column.name in TRANSLATED[feed] and column.type in _JSONS
        return translated or column.kind == "e" or column.type in _TEXTS
    if wanted == "time":
        return column.type in _TIMES | _NUMBERS
    if wanted == "flag":
        return column.type == "bool"
    return column.type in _NUMBERS


def _text(name: str) -> Column:
    described = {
        "name": name,
        "type": "text",
        "shown_type": "text",
        "type_schema": "pg_catalog",
        "kind": "b",
        "is_array": False,
        "is_domain": False,
        "collation": None,
    }
    return msgspec.convert(described, Column)
