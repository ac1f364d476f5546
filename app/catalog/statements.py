"""The SQL that reads parts of a source, in order, behind a place."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from app.catalog.source import Source, literal
from app.catalog.standbys import Mark

LATE = "infinity"
"""The moment of a place among the items that changed late."""


class Position(msgspec.Struct, frozen=True):
    """A place in the order of a walk: behind the item with this key.

    Incremental walks go by (modified_at, id), with items without a modified_at first, and by the id alone where they
    come to those that changed late: these have no moment but the last.
    """

    key: str
    modified_at: str | None = None
    """As PostgreSQL writes a timestamptz, microseconds included; None in full walks and for undated items."""

    @property
    def is_late(self) -> bool:
        """Whether it lies among the items that changed late."""
        return self.modified_at == LATE


class Span(msgspec.Struct, frozen=True):
    """What to read of a source."""

    after: Position | None = None
    since: float | None = None
    """Unix seconds; makes the read incremental."""
    settled: str = LATE
    """Of an incremental walk: what changed then or later comes at its end, by the id. A timestamptz as text."""
    skip: int = 0
    """Rows to count off first: the plain OFFSET of a page that belongs to no walk."""
    from_client: bool = False
    """Whether `after` is what a client wrote, so that it may be no key at all."""
    mark: Mark | None = None
    """The beginning of the walk, where standbys may read it."""


class Part(msgspec.Struct, frozen=True):
    """A run of rows in one order.

    A full walk is one part. An incremental one is three: the undated items; the dated ones that had settled when it
    began, by (modified_at, id); and the later ones, by the id. An index on (modified_at, id) serves the first two, and
    finds the third. Each is finite, whatever changes meanwhile: what is touched before its turn comes later, in the
    third, and what is touched there keeps its place. A page found by counting takes all at once: it sorts anyway.
    """

    order: Literal["key", "undated", "dated", "late", "counted"]
    after: Position | None = None
    since: float | None = None
    settled: str = LATE
    skip: int = 0
    from_client: bool = False
    with_ties: bool = False
    """Whether valid rows that share the place `after` are to come as well: the one read there was none."""

    @property
    def dated_key(self) -> bool:
        return self.order != "key"

    @property
    def by_id(self) -> bool:
        """Whether its order is that of the ids, whatever their moments are."""
        return self.order in ("key", "late")

    def late(self) -> "Part":
        """What is left of a walk by the id alone, where this is its place."""
        assert self.after is not None  # noqa: S101 (for mypy: a place has been reached)
        return Part("late", settled=self.after.modified_at or LATE)

    def behind(self, rows: Sequence[Any]) -> "Part":
        """What is left of the part after these rows."""
        return msgspec.structs.replace(self, after=self.position(rows), skip=0, with_ties=False)

    def position(self, rows: Sequence[Any]) -> Position:
        """Behind the last of these rows."""
        last = rows[-1]
        if self.order == "late":
            return Position(str(last[1]), LATE)
        return Position(str(last[1]), last[-1] if self.dated_key else None)


def parts_of(span: Span, *, all_dated: bool = False) -> list[Part]:
    """The parts of a span; in a rendered feed each item is dated: some refresh has stamped it."""
    after = span.after
    if span.since is None:
        return [Part("key", after, skip=span.skip, from_client=span.from_client)]
    if span.skip:
        return [Part("counted", since=span.since, skip=span.skip)]
    late = Part("late", settled=span.settled)
    if after is not None and after.is_late:
        return [msgspec.structs.replace(late, after=after)]
    if after is not None and after.modified_at is not None:
        # It may lie behind `settled` by the bookmark of another walk: then nothing is left of the dated ones.
        return [Part("dated", after, span.since, span.settled), late]
    dated = Part("dated", since=span.since, settled=span.settled)
    return [dated, late] if all_dated else [Part("undated", after, settled=span.settled), dated, late]


def statement_behind(source: Source, after: Position, since: float | None, limit: int) -> tuple[str, list[Any]]:
    """The SQL that reads a page behind a position, and its arguments: for who wants to see its plan.

    Without the question whether the source is still the one described, which is no part of that.
    """
    source = msgspec.structs.replace(source, is_current="true")
    return statement(source, parts_of(Span(after, since))[0], limit)


def statement(source: Source, part: Part, limit: int | None) -> tuple[str, list[Any]]:
    """The SQL that reads a part, and its arguments.

    LIMIT is written out, because as a parameter the planner would take it for a tenth of the table; and so is the
    moment up to which items had settled, for of an unknown one the planner takes a third of the table to be later.
    """
    which = _Which(source, part)
    select = source.select if part.order == "key" else source.select_dated
    if source.lines and part.order in ("key", "dated", "late"):
        select = source.lines_dated if part.dated_key else source.lines
    sql = f"where {which.where}\norder by {which.order}"
    if limit is not None:
        sql += f"\nlimit {int(limit)}"
    if part.skip:
        sql += f"\noffset {which.argument(part.skip)}::int8"
    return source.rows(select, sql, which.order), which.arguments


def ids_statement(source: Source, part: Part, last: Position) -> tuple[str, list[Any]]:
    """The SQL for the ids of a part's valid items up to a place, and its arguments. Not for parts found by counting."""
    which = _Which(source, part)
    end = which.beside("<=", last)
    sql = f"select {_shown_id(source)} as id\nfrom {source.origin}\nwhere {which.where} and {end}"
    return f"{sql} and {source.valid}", which.arguments


class _Which:
    """Which rows a part has, in SQL, with the arguments that it needs.

    The bare name in ORDER BY would mean the output column: id::text sorts otherwise, so every name is qualified.
    """

    def __init__(self, source: Source, part: Part) -> None:
        self.arguments: list[Any] = []
        self._source = source
        after, id = part.after, source.key.column
        self.order = id if part.by_id else f's."modified_at", {id}'
        present = 's."id" is not null'
        if part.order == "key":
            self.where = self._behind(part, after) if after else present
        elif part.order == "undated":
            self.where = 's."modified_at" is null and ' + (self._behind(part, after) if after else present)
        elif part.order == "dated":
            self.where = self._behind(part, after) if after else self._recent(part.since)
            if part.settled != LATE:
                self.where += f' and s."modified_at" < {_moment(part.settled)}'
            self.where += f" and {present}"
        elif part.order == "late":
            self.where = f's."modified_at" >= {_moment(part.settled)} and '
            self.where += self._behind(part, after) if after else present
        else:
            undated = 's."modified_at" is null' + (f" and {self._behind(part, after)}" if after else "")
            self.where = f"({undated} or {self._recent(part.since)}) and {present}"
            self.order = f's."modified_at" nulls first, {id}'

    def argument(self, value: Any) -> str:
        """A value as SQL refers to it."""
        self.arguments.append(value)
        return f"${len(self.arguments)}"

    def _behind(self, part: Part, after: Position) -> str:
        behind = self.beside(">", after)
        # The first condition is for the index.
        return f"({self.beside('>=', after)} and ({behind} or {self._source.valid}))" if part.with_ties else behind

    def beside(self, operator: Literal[">", ">=", "<="], of: Position) -> str:
        """The rows on one side of a place."""
        id, compared = self._source.key.column, self._source.key.compared(operator)
        key = f"{self.argument(_key_argument(self._source, of.key))}::{_key_cast(self._source)}"
        if of.modified_at is None or of.is_late:
            return f"{id} {compared} {key}"
        moment = f"{self.argument(of.modified_at)}::text::timestamptz"
        if compared == operator:
            return f'(s."modified_at", {id}) {operator} ({moment}, {key})'
        # Of rows PostgreSQL finds the operators by search_path alone.
        first = f's."modified_at" {operator[0]}= {moment}'
        return f'({first} and (s."modified_at" {operator[0]} {moment} or {id} {compared} {key}))'

    def _recent(self, since: float | None) -> str:
        return self._source.changed_since.format(since=f"to_timestamp({self.argument(since)}::float8)")


def moved_statement(source: Source, part: Part) -> tuple[str, list[Any]] | None:
    """The SQL that tells whether the item at a part's place moves, although it had settled; None where none can.

    A moment like that of now() less a day is behind every place, and so may be those of all items.
    """
    after = part.after
    if part.order != "dated" or after is None:
        return None
    of_the_id = f'select from {source.relation} as s where s."id" = $1::{_key_cast(source)} and s."modified_at"'
    moment = "$2::text::timestamptz"
    moved = f'exists ({of_the_id} > {moment} and s."modified_at" < {_moment(part.settled)})'
    return f"select {moved} and not exists ({of_the_id} = {moment})", [
        _key_argument(source, after.key),
        after.modified_at,
    ]


def any_statement(source: Source) -> str:
    """The SQL that tells whether there is a valid item."""
    return f"select exists (select from {source.origin} where {source.valid})"  # noqa: S608 (quoted)


def overlap_statement(source: Source, after: str, until: str | None) -> tuple[str, list[Any]]:
    """The SQL that counts the valid items behind a key, up to another one, None for the end; and its arguments."""
    id, compared, cast = source.key.column, source.key.compared, _key_cast(source)
    which = f"{id} {compared('>')} $1::{cast}"
    arguments = [_key_argument(source, after)]
    if until is not None:
        which += f" and {id} {compared('<=')} $2::{cast}"
        arguments.append(_key_argument(source, until))
    return f"select count(*) from {source.origin} where {which} and {source.valid}", arguments  # noqa: S608 (quoted)


def edge_statement(source: Source, part: Part) -> tuple[str, list[Any]]:
    """The SQL for the ids of the rows at the place that a part has come to: two at most."""
    after = part.after
    assert after is not None  # noqa: S101 (for mypy: there is no edge before the first row)
    sql = f'select {_shown_id(source)} from {source.relation} as s\nwhere s."id" = $1::{_key_cast(source)}'  # noqa: S608
    arguments = [_key_argument(source, after.key)]
    if not part.by_id:
        sql += ' and s."modified_at" is not distinct from $2::text::timestamptz'
        arguments.append(after.modified_at)
    return sql + "\nlimit 2", arguments


def _moment(text: str) -> str:
    return f"{literal(text)}::timestamptz"


def _shown_id(source: Source) -> str:
    return f's."id"::{"int8" if source.key.family == "int8" else "text"}'


def _key_argument(source: Source, key: str) -> Any:
    return int(key) if source.key.family == "int8" else key


def _key_cast(source: Source) -> str:
    return "int8" if source.key.family == "int8" else f"text::{source.key.family}"
