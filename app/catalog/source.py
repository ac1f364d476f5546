"""Sources: a relation that serves a feed, as PostgreSQL describes it.

Described from the catalog of PostgreSQL, never guessed: every column with its type, and from them the SELECT list.
The description is made anew every few seconds and when a statement fails because the relation changed.
"""

import asyncio
import hashlib
import time
from typing import Any

import asyncpg
import msgspec

from app.catalog.pool import Patience, Pool
from app.protocol.feeds import FEEDS, REQUIRED, FeedName
from app.protocol.problems import FEED_MISSING, FEED_NOT_RENDERED, SOURCE_UNUSABLE, Refusal
from app.protocol.wire import ItemEncoder, LineEncoder, nameable
from app.settings import Store, relation_parts

_LOOKS = 3
"""So many times a relation is looked for that has no columns."""
_FRESH_SECONDS = 2.0
_REFRESHES_KNOWN = 200
"""Of a feed that is no longer rendered. A delta that reaches back farther is read from the beginning."""


class RelationChangedError(Exception):
    """A relation is no longer the one described, and only its values show it."""


class NotAsDescribedError(RelationChangedError):
    """The same of a server that a statement ran on: another one, which was asked what it looks like, may be ahead."""


CHANGED = (
    RelationChangedError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedFunctionError,
    asyncpg.AmbiguousFunctionError,
    asyncpg.DatatypeMismatchError,
    asyncpg.InvalidTextRepresentationError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)
"""What a statement raises when its relation is no longer the one described."""


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
    collation_version: str = ""
    """What tells it from another one of that name, and from itself with another library."""


class Relation(msgspec.Struct, frozen=True):
    """The schema and the name of a relation, as PostgreSQL spells them."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"


_DEFAULT_ORDER = ' collate "default"'


class Key(msgspec.Struct, frozen=True):
    """The id column as the key that pages walk by."""

    family: str
    """int8, text, bpchar, uuid or citext with its schema: what a key given as text is cast to."""
    order: str
    """What to put behind an expression of the family so that it sorts as the column does."""
    version: str = ""
    """Which of the orders of this name it is."""

    @property
    def column(self) -> str:
        """The id in SQL, to be compared and sorted by as it was described.

        A statement does not fail when a collation changes, and what lies behind a key in one order is not what lies
        behind it in another. So the collation is said, the default one too; where it is the column's own still, it
        costs nothing, and the column's indexes serve it. The type is not said: a cast would hide that it changed.
        """
        return 's."id"' if self.family in ("int8", "uuid") else f's."id"{self.order or _DEFAULT_ORDER}'

    def compared(self, operator: str) -> str:
        """An operator, as SQL spells it, that compares keys in the order they sort by.

        An extension's own is not found where its schema is in no search_path: then PostgreSQL would compare as text,
        without a word, what it sorts otherwise.
        """
        schema, is_citext, _ = self.family.rpartition(".citext")
        return f"operator({schema}.{operator})" if is_citext else operator

    @property
    def kind(self) -> str:
        """The whole order of the keys."""
        return f"{self.family}{self.order}{self.version}"


class RenderedUntil(msgspec.Struct, frozen=True):
    """Until when a feed was rendered, in unix seconds, and its last refreshes, the newest first."""

    left_behind: float
    refreshes: tuple[tuple[float, float], ...]
    """When each was seen to be visible, and when it began."""

    def last_before(self, since: float) -> float:
        """When the last refresh began that could be seen before a moment; 0 where none is known.

        What changed after it may be in no delta yet: one of rendered items knows a change by its refresh.
        """
        return next((started for visible, started in self.refreshes if visible < since), 0.0)


class Source(msgspec.Struct, frozen=True):
    """A relation that serves a feed: how to read it and how to encode it."""

    store: str
    feed: FeedName
    relation: Relation
    key: Key
    attributes: tuple[str, ...]
    origin: str
    """What stands behind FROM; its alias is s."""
    columns: str
    """The columns of s that are read; empty where items stand ready."""
    select: str
    """SELECT list: the plain flag comes first, then the attributes, id first."""
    select_key: str
    """The same with the id once more at the end, untouched, for the server to compare."""
    select_dated: str
    """The same with modified_at as text at the end; empty where the source has no modified_at."""
    count: str
    """SQL that counts the rows of valid items."""
    count_rows: str
    """SQL that counts all rows with an id, which works out none of a view's other columns."""
    count_ids: str
    """SQL that counts the valid items, however often they are repeated."""
    encoder: ItemEncoder | LineEncoder
    valid: str = "true"
    """SQL for what holds of the rows of valid items."""
    is_current: str = "true"
    """SQL for whether its relation is still the one that was described, and all beneath it."""
    partitions: str = ""
    """SQL that tells which partitions and inheriting tables there are, as text; empty where there are none."""
    partitions_seen: str = ""
    """What it told before."""
    looks_late: bool = False
    """Whether a function or another server may look for some of its rows after a statement has begun."""
    has_policies: bool = False
    """Whether row level security decides on some of its rows."""
    is_elsewhere: bool = False
    """Whether another server has some of its rows, and may show a transaction one state of them to its end."""
    zoned: bool = True
    """Whether its modified_at has a time zone; one without is taken for UTC."""
    changed_since: str = 's."modified_at" >= {since}'
    """SQL for what changed since a moment, which stands in for {since}."""
    lines: str = ""
    """Where items stand ready as JSON: the doc's bytes and the id; empty elsewhere."""
    lines_dated: str = ""
    """The same with modified_at as text at the end."""
    rendered_until: RenderedUntil | None = None
    """Where the feed was rendered before."""

    @property
    def rendered(self) -> bool:
        """Whether its rows are a flag, the id and the item's JSON, ready to be sent."""
        return bool(self.lines)

    @property
    def still(self) -> str:
        """A WHERE by which nothing is read of a relation that is not the one described; empty where none is needed."""
        return "" if self.rendered or self.is_current == "true" else f"where {self.is_current}\n"

    @property
    def order(self) -> str:
        """What its walks go by. Where it is another one, bookmarks lead nowhere."""
        return f"{self.key.kind} of {self.relation}"

    def order_of(self, *, incremental: bool) -> str:
        """The same of either kind: an incremental walk goes by modified_at as it is, or without one by the id alone."""
        if not incremental or (self.has_modified_at and self.zoned):
            return self.order
        return (
            f"{self.order}, modified_at without a zone" if self.has_modified_at else f"{self.order} without modified_at"
        )

    @property
    def order_digest(self) -> str:
        """That of full walks, short, for who carries it along."""
        return hashlib.blake2s(self.order.encode(), digest_size=4).hexdigest()

    @property
    def has_modified_at(self) -> bool:
        return bool(self.select_dated)

    def rows(self, select: str, which: str, order: str) -> str:
        """The SQL for some rows in an order; `which` is its WHERE, ORDER BY and LIMIT.

        The rows are picked first, and what is selected is worked out from them: where a view's column is a subquery,
        PostgreSQL would otherwise run it at each of its places in the list, of which there are up to three. And
        whether the relation is the one described is asked once, not in each branch of a union.
        """
        if not self.columns:
            return f"{select}\nfrom {self.origin}\n{which}"
        picked = f"select {self.columns}\n  from {self.origin}\n  {which}"  # noqa: S608 (names are quoted)
        return f"{select}\nfrom (\n  {picked}\n) as s\n{self.still}order by {order}"


class Sources:
    """Describes sources, and remembers the descriptions."""

    def __init__(self, pool: Pool, resume_seconds: float) -> None:
        self._pool = pool
        self._resume_seconds = resume_seconds
        self._described: dict[tuple[str, FeedName], tuple[float, Source]] = {}
        self._describing: dict[tuple[str, FeedName], tuple[float, asyncio.Task[Source]]] = {}

    async def of(self, store: Store, feed: FeedName) -> Source:
        """The source of a feed, by a description that is at most 2 s old.

        A statement does not fail when a column's type or collation changes: PostgreSQL plans anew, and asyncpg
        prepares anew, without a word.

        Raises Refusal: FEED_MISSING where the relation does not exist, SOURCE_UNUSABLE where it can't be served,
        DATABASE_UNAVAILABLE when the database stays away.
        """
        place = (store.name, feed)
        known = self._described.get(place)
        if known and time.monotonic() - known[0] < _FRESH_SECONDS:
            return known[1]
        under_way = self._describing.get(place)
        if under_way is not None and time.monotonic() - under_way[0] >= _FRESH_SECONDS:
            # What it tells may be as old. What it fails by is of now.
            await asyncio.shield(under_way[1])
        return await self._once(store, feed)

    async def all_of(self, store: Store) -> tuple[list[Source], list[FeedName]]:
        """The sources of all feeds the store has, and the feeds that have none.

        Raises Refusal as `of` does; FEED_MISSING where no feed has one.
        """
        found: list[Source] = []
        absent: list[FeedName] = []
        missing: Refusal | None = None
        for feed in FEEDS:
            try:
                found.append(await self.of(store, feed))
            except Refusal as refusal:
                if refusal.problem is not FEED_MISSING:
                    raise
                missing = missing or refusal
                absent.append(feed)
        if missing is not None and not found:
            raise missing
        return found, absent

    async def answer(self) -> None:
        """Return if the database answers. Raises what asyncpg raises, or Refusal(BUSY)."""
        async with self._pool.connection() as connection:
            await connection.fetchval("select 1")

    async def again(self, store: Store, feed: FeedName) -> Source:
        """Describe anew, whatever is known: a statement has failed."""
        under_way = self._describing.get((store.name, feed))
        if under_way is not None:
            # It may have begun before the change.
            await asyncio.wait({under_way[1]})
        return await self._once(store, feed)

    async def _once(self, store: Store, feed: FeedName) -> Source:
        """Describe; callers at the same time wait for the same description, and for the same failure."""
        place = (store.name, feed)
        if place not in self._describing:
            began = time.monotonic()
            task = asyncio.create_task(self._describe(store, feed, began))
            self._describing[place] = began, task
            task.add_done_callback(lambda done: self._done(place, done))
        return await asyncio.shield(self._describing[place][1])

    def _done(self, place: tuple[str, FeedName], done: "asyncio.Task[Source]") -> None:
        del self._describing[place]
        if not done.cancelled():
            done.exception()  # looked at, so that asyncio does not complain when every caller has left

    async def _describe(self, store: Store, feed: FeedName, began: float) -> Source:
        source = await self._pool.patiently(
            lambda connection: describe(connection, store, feed), Patience(self._resume_seconds)
        )
        self._described[store.name, feed] = (began, source)
        return source


def relation_of(store: Store, feed: FeedName) -> Relation:
    """Where a feed's items come from, by the settings."""
    configured = store.feed(feed).source
    return Relation(*relation_parts(configured)) if configured else Relation(store.schema, feed)


async def describe(connection: Any, store: Store, feed: FeedName) -> Source:
    """The source of a feed as it is served: its relation, or the items rendered from it.

    Raises Refusal, see Sources.of.
    """
    if store.feed(feed).rendered:
        return await _describe_rendered(connection, store, feed)
    relation, _ = await columns_of(connection, store, feed)
    beneath = await connection.fetchrow(_BENEATH, relation.schema, relation.name)
    # Behind that, so that no statement passes for what was changed before they were read.
    relation, columns = await columns_of(connection, store, feed)
    if beneath["is_foreign"]:
        columns = [_compared_here(column) if column.name == "id" else column for column in columns]
    # PostgreSQL keeps a policy in a prepared statement as it held then, whoever has become a member of which role.
    source = build(store.name, feed, relation, columns, note=beneath["seen"] if beneath["has_policies"] else "")
    seen = _SEEN.format(
        relation=literal(str(relation)),
        oids=",".join(map(str, beneath["oids"] or [0])),
        roles=_ROLES if beneath["has_policies"] else "null",
    )
    is_current = f"(select {seen}) = {literal(beneath['seen'])}"
    source = msgspec.structs.replace(source, is_current=is_current, has_policies=bool(beneath["has_policies"]))
    if beneath["parents"]:
        partitions = _PARTITIONS.format(parents=",".join(map(str, beneath["parents"])))
        seen = await connection.fetchval(partitions)
        source = msgspec.structs.replace(source, partitions=partitions, partitions_seen=seen)
    if beneath["looks_late"]:
        source = msgspec.structs.replace(source, looks_late=True, is_elsewhere=beneath["is_elsewhere"])
    if not await connection.fetchval(_HAS_NOTES):
        return source
    before = await connection.fetchrow(_RENDERED_UNTIL, store.name, feed)
    if before is None:
        return source
    until = RenderedUntil(before["left_behind"], tuple(zip(before["visible"], before["started"], strict=True)))
    return msgspec.structs.replace(source, rendered_until=until)


async def columns_of(connection: Any, store: Store, feed: FeedName) -> tuple[Relation, list[Column]]:
    """The relation that a feed's items come from and its columns. Raises Refusal, see Sources.of."""
    relation = relation_of(store, feed)
    columns: list[Column] = []
    for _ in range(_LOOKS):
        found = await connection.fetchrow(_RELATION, relation.schema, relation.name)
        if found is None or not found["is_relation"]:
            raise await _missing(connection, relation, feed)
        if not found["readable"]:
            role = await connection.fetchval("select current_user::text")
            raise _unusable(
                f"The role {role} may not read {relation}.",
                f"grant usage on schema {quoted(relation.schema)} to {quoted(role)};"
                f" grant select on {relation} to {quoted(role)};",
            )
        columns = [Column(**row) for row in await connection.fetch(_COLUMNS, found["oid"])]
        if columns:
            break
        # It has been replaced by another one of its name.
    return relation, columns


async def shape_of(connection: Any, relation: Relation) -> str:
    """What a relation is made of, partitions included: equal before and after a statement that missed none of it."""
    beneath = await connection.fetchrow(_BENEATH, relation.schema, relation.name)
    parents = beneath["parents"] or [0]
    return f"{beneath['seen']} {await connection.fetchval(_PARTITIONS.format(parents=','.join(map(str, parents))))}"


def _compared_here(id: Column) -> Column:
    """An id in an order that another server is never asked for.

    Its default order may be another one than ours: what it compares and we sort would be in two orders, and what is
    behind a key in one of them only would never be sent. postgres_fdw asks for no collation that is not the column's.
    """
    if id.is_array or id.collation or id.type not in TEXTS:
        return id
    return msgspec.structs.replace(id, collation='pg_catalog."C"')


def build(store: str, feed: FeedName, relation: Relation, columns: list[Column], *, note: str = "") -> Source:
    """The source of described columns; with a note in the SQL, statements are prepared for each anew.

    Raises Refusal(SOURCE_UNUSABLE) naming the column and its cure.
    """
    by_name = {column.name: column for column in columns}
    for name in REQUIRED[feed]:
        if name not in by_name:
            raise _unusable(
                f"{relation} has no column {quoted(name)}, which every item of {feed} must have.",
                f"Add the column {quoted(name)} to {relation}.",
            )
    served = attributes_of(columns)
    expressions = [f"{expression(relation, column)} as {quoted(column.name)}" for column in served]
    flag = " and ".join(_plain_conditions(served, REQUIRED[feed]))
    select = f"select ({flag}) as plain,\n  " + ",\n  ".join(expressions)
    origin = f"{relation} as s /* {note} */" if note else f"{relation} as s"
    dated = ""
    read = [column.name for column in served]
    if (modified_at := by_name.get("modified_at")) is not None:
        if modified_at.is_array or modified_at.type not in ("timestamptz", "timestamp"):
            raise _unusable(
                f'The column "modified_at" of {relation} is of type {modified_at.shown_type}; it must be timestamptz.',
                'Cast it in the view, e.g. to_timestamp(x) as "modified_at", or leave it out.',
            )
        dated = f'{select},\n  s."modified_at"::timestamptz::text as modified_at_key'
        read.append("modified_at")
    attributes = tuple(column.name for column in served)
    key = key_of(relation, by_name["id"])
    valid = " and ".join(valid_conditions(served, REQUIRED[feed]))
    return Source(
        store=store,
        feed=feed,
        relation=relation,
        key=key,
        attributes=attributes,
        origin=origin,
        columns=", ".join(f"s.{quoted(name)}" for name in read),
        select=select,
        select_key=f"{select},\n  {key.column} as key",
        select_dated=dated,
        count=f"select count(*) from {origin} where {valid}",  # noqa: S608 (quoted)
        count_rows=f'select count(s."id") from {origin}',  # noqa: S608 (quoted)
        count_ids=f'select count(distinct s."id") from {origin} where {valid}',  # noqa: S608 (quoted)
        encoder=ItemEncoder(attributes, REQUIRED[feed]),
        valid=valid,
        zoned=modified_at is None or modified_at.type == "timestamptz",
    )


def attributes_of(columns: list[Column]) -> list[Column]:
    """The columns that are served, id first.

    Clerk ignores attributes named otherwise than with letters, digits and underscore. Most are served all the same, so
    that nothing seems lost; the few that can't be named are left out.
    """
    others = [column for column in columns if column.name not in ("id", "modified_at") and nameable(column.name)]
    return [column for column in columns if column.name == "id"] + others


def items_relation(table: str) -> str:
    """The table that holds a rendered feed's items, as SQL spells it."""
    return f"clerk_feed.{quoted(table)}"


async def key_of_items(connection: Any, table: str) -> Key | None:
    """The key of a rendered feed's items; None where their table is gone."""
    found = await connection.fetchrow(_RELATION, "clerk_feed", table)
    if found is None:
        return None
    columns = [Column(**row) for row in await connection.fetch(_COLUMNS, found["oid"])]
    return key_of(Relation("clerk_feed", table), columns[0])


async def _describe_rendered(connection: Any, store: Store, feed: FeedName) -> Source:
    state = await connection.fetchrow(_ITEMS, store.name, feed)
    key = await key_of_items(connection, state["items_table"]) if state and state["items_table"] else None
    if key is None or state["unrendered"]:
        since = "" if key is None else " since it was served unrendered"
        raise Refusal(
            FEED_NOT_RENDERED,
            f"{feed} of {store.name} has not been rendered yet{since}.",
            fix=FEED_NOT_RENDERED.fix.replace("STORE", store.name).replace("FEED", feed),
            headers={"Retry-After": "60"},
        )
    return build_rendered(store.name, feed, Relation("clerk_feed", state["items_table"]), key, state["id"])


def build_rendered(store: str, feed: FeedName, relation: Relation, key: Key, number: int) -> Source:
    """The source of a rendered feed: docs as they stand in its table of items."""
    id = 's."id"' if key.family in ("int8", "text") else 's."id"::text'
    select = f'select true as plain, {id} as id, s."doc"'
    # Where ids have another type since, the items are in another table, and this one may still be there.
    is_current = f"(select items_table from clerk_feed.rendered where id = {number}) = '{relation.name}'"  # noqa: S608
    origin = f"(select * from {relation} where doc is not null and {is_current}) as s"  # noqa: S608
    return Source(
        store=store,
        feed=feed,
        relation=relation,
        key=key,
        attributes=("id", "doc"),
        origin=origin,
        columns="",
        select=select,
        select_key=f'{select}, s."id" as key',
        select_dated=f'{select}, s."modified_at"::text as modified_at_key',
        count=f"select count(*) from {origin}",  # noqa: S608 (quoted)
        count_rows=f'select count(s."id") from {origin}',  # noqa: S608 (quoted)
        count_ids=f"select count(*) from {origin}",  # noqa: S608 (quoted)
        encoder=LineEncoder(),
        is_current=is_current,
        # What was stamped after the last refresh that could be seen before then.
        changed_since=_CHANGED_SINCE.replace("{number}", str(number)),
        # As bytea nothing is decoded on the way, and no codec is called.
        lines=f'select json_send(s."doc") as doc, {id} as id',
        lines_dated=f'select json_send(s."doc") as doc, {id} as id, s."modified_at"::text as modified_at_key',
    )


def literal(text: str) -> str:
    """A text as SQL spells it, whatever is in it."""
    return "'" + text.replace("'", "''") + "'"


def quoted(identifier: str) -> str:
    """An identifier as SQL spells it, whatever is in it."""
    return '"' + identifier.replace('"', '""') + '"'


INTEGERS = {"int2", "int4", "int8"}
FLOATS = {"float4", "float8", "numeric"}
TIMES = {"timestamptz", "timestamp", "date"}
TEXTS = {"text", "varchar", "bpchar", "name", "uuid"}
JSONS = {"json", "jsonb"}
_SERVED = INTEGERS | FLOATS | TIMES | TEXTS | JSONS | {"bool"}


def is_citext(column: Column) -> bool:
    """Whether it is the extension's type, which may be in any schema, and that schema in no search_path of ours."""
    return column.type == "citext" and column.kind == "b"


def key_of(relation: Relation, column: Column) -> Key:
    if column.is_array or (column.type not in INTEGERS | TEXTS - {"name"} and not is_citext(column)):
        raise _unusable(
            f'The column "id" of {relation} is of type {column.shown_type}; it must be of an integer or text type.',
            'Cast it in the view, e.g. x::text as "id", and see that an index serves the cast.',
        )
    if column.type in INTEGERS:
        return Key("int8", "")
    if column.type == "uuid":
        return Key("uuid", "")
    family = "bpchar" if column.type == "bpchar" else "text"
    if is_citext(column):
        family = f"{quoted(column.type_schema)}.citext"
    if not column.collation:
        return Key(family, "")
    return Key(family, f" collate {column.collation}", f" ({column.collation_version})")


def expression(relation: Relation, column: Column) -> str:
    """How a column is selected so that its value arrives as it is served."""
    name = f"s.{quoted(column.name)}"
    brackets = "[]" if column.is_array else ""
    if column.kind == "e" or column.type in ("uuid", "bpchar") or is_citext(column):
        return f"{name}::text{brackets}"
    if column.type not in _SERVED or column.type_schema != "pg_catalog":
        raise _unusable(
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


def _plain_conditions(columns: list[Column], required: tuple[str, ...]) -> list[str]:
    """What must hold of a row so that Python needs to look at nothing in it."""
    conditions = valid_conditions(columns, required)
    for column in columns:
        name = f"s.{quoted(column.name)}"
        if column.is_array:
            conditions.append(_plain_array(column, name))
        elif column.type in FLOATS and column.name not in required:
            conditions.append(finite(name))
    return conditions


def finite(name: str) -> str:
    # To PostgreSQL NaN is the largest number. Comparing costs less than the arithmetic that would tell as well.
    return f"({name} > '-Infinity' and {name} < 'Infinity') is not false"


def _plain_array(column: Column, name: str) -> str:
    if column.type in FLOATS | TIMES | JSONS:
        return f"{name} is null"
    # array_position refuses arrays of several dimensions, so they are sorted out first.
    return f"case when array_ndims({name}) > 1 then false else array_position({name}, null) is null end"


def _unusable(detail: str, fix: str) -> Refusal:
    return Refusal(SOURCE_UNUSABLE, detail, fix=fix)


async def _missing(connection: Any, relation: Relation, feed: FeedName) -> Refusal:
    columns = ", ".join(REQUIRED[feed])
    if not await connection.fetchval("select exists (select from pg_namespace where nspname = $1)", relation.schema):
        detail = f"The database has no schema {quoted(relation.schema)}, so no relation {relation}."
        return Refusal(
            FEED_MISSING,
            detail,
            fix=f"create schema {quoted(relation.schema)}; then create view {relation} with the columns {columns}.",
        )
    return Refusal(
        FEED_MISSING,
        f"The database has no view or table {relation}.",
        fix=f"Create view {relation} with the columns {columns}. Or remove the URL from Clerk's Data Sync.",
    )


_CHANGED_SINCE = """s."modified_at" > coalesce(
  (
    select max(f.stamp)
    from clerk_feed.refresh as f
    where f.rendered = {number} and f.visible < {since} and f.timeline = (select clerk_feed.timeline())
  ),
  '-infinity'
)"""

_ITEMS = """
select
  r.id,
  r.items_table,
  exists (select from clerk_feed.unrendered as u where u.store = r.store and u.feed = r.feed) as unrendered
from clerk_feed.rendered as r
where r.store = $1 and r.feed = $2
"""

# `check` may look at a database that nothing has been served from, or as a role that may not.
_HAS_NOTES = """
select coalesce(has_table_privilege(to_regclass('clerk_feed.unrendered'), 'select'), false)
  and coalesce(has_table_privilege(to_regclass('clerk_feed.refresh'), 'select'), false)
"""

_RENDERED_UNTIL = f"""
with refreshes as (
  select f.id, extract(epoch from f.visible)::float8 as visible, extract(epoch from f.started)::float8 as started
  from clerk_feed.refresh as f
  join clerk_feed.rendered as r on r.id = f.rendered
  where r.store = $1 and r.feed = $2 and f.outcome = 'done' and f.visible is not null
    and f.timeline = (select clerk_feed.timeline())
  order by f.id desc
  limit {_REFRESHES_KNOWN}
)
select
  extract(epoch from u.since)::float8 as left_behind,
  array(select visible from refreshes order by id desc) as visible,
  array(select started from refreshes order by id desc) as started
from clerk_feed.unrendered as u
where u.store = $1 and u.feed = $2
  and exists (select from clerk_feed.rendered as r where r.store = $1 and r.feed = $2 and r.items_table is not null)
"""  # noqa: S608 (a number of ours)

_RELATION = """
select
  c.oid,
  c.relkind in ('r', 'v', 'm', 'p', 'f') as is_relation,
  has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select') as readable
from pg_class as c
join pg_namespace as n on n.oid = c.relnamespace
where n.nspname = $1 and c.relname = $2
"""

# What `SecondLook` needs to know of the relations that a source is made of.
# In a scalar subquery it is run once, before the first row, by the state that the statement reads: that of the moment
# in which it has its locks. Each change writes a row anew, by a transaction of its own, so that nothing is ever again
# what it was before: who reads nothing, and asks afterwards, is not told that all is well.
_SEEN = """concat_ws(
    ' ',
    to_regclass({relation})::oid,
    (
      select sum(a.xmin::text::int8)
      from pg_catalog.pg_attribute as a
      where a.attrelid = to_regclass({relation}) and a.attname in ('id', 'modified_at')
    ),
    (select sum(r.xmin::text::int8) from pg_catalog.pg_rewrite as r where r.ev_class in ({oids})),
    (select sum(c.xmin::text::int8) from pg_catalog.pg_class as c where c.oid in ({oids})),
    {roles}
  )"""

_ROLES = """(select sum(m.xmin::text::int8) from pg_catalog.pg_auth_members as m),
    (
      select string_agg(concat(r.oid, r.rolsuper, r.rolbypassrls, r.rolinherit), ' ' order by r.oid)
      from pg_catalog.pg_roles as r
      where r.rolsuper or r.rolbypassrls or not r.rolinherit
    )"""
"""Who row level security is for."""

_SEEN_NOW = _SEEN.format(
    relation="format('%I.%I', $1::text, $2::text)",
    oids="select oid from kept",
    roles=f"case when (select bool_or(relrowsecurity) from relation) then concat_ws(' ', {_ROLES}) end",  # noqa: S608 (ours)
)

_BENEATH = f"""
with recursive beneath (oid) as (
  select to_regclass(format('%I.%I', $1::text, $2::text))::oid
  union
  select below.oid
  from beneath
  join pg_class as c on c.oid = beneath.oid
  cross join lateral (
    select d.refobjid as oid
    from pg_rewrite as r
    join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
    where c.relkind = 'v' and r.ev_class = c.oid and d.refclassid = 'pg_class'::regclass
    union all
    select d.refobjid
    from pg_policy as p
    join pg_depend as d on d.classid = 'pg_policy'::regclass and d.objid = p.oid
    where p.polrelid = c.oid and d.refclassid = 'pg_class'::regclass
    union all
    select i.inhrelid from pg_inherits as i where i.inhparent = c.oid
  ) as below
), relation as (
  select c.oid, c.relkind, c.relhassubclass, c.relispartition, c.relrowsecurity
  from beneath
  join pg_class as c on c.oid = beneath.oid
), named as (
  select d.refclassid, d.refobjid
  from relation
  join pg_rewrite as r on r.ev_class = relation.oid
  join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
  where relation.relkind = 'v'
  union all
  select d.refclassid, d.refobjid
  from relation
  join pg_policy as p on p.polrelid = relation.oid
  join pg_depend as d on d.classid = 'pg_policy'::regclass and d.objid = p.oid
), called as (
  select refobjid as oid from named where refclassid = 'pg_proc'::regclass
  union all
  select o.oprcode::oid
  from named
  join pg_operator as o on o.oid = named.refobjid
  where named.refclassid = 'pg_operator'::regclass
  union all
  select unnest(array[aggtransfn, aggfinalfn, aggcombinefn, aggmtransfn, aggminvtransfn, aggmfinalfn]::oid[])
  from named
  join pg_aggregate as a on a.aggfnoid = named.refobjid
  where named.refclassid = 'pg_proc'::regclass
), kept as (
  -- No table can inherit from a partition: one that nothing names is looked for by its parents.
  select oid
  from relation
  where relkind = 'p' or not relispartition or oid = to_regclass(format('%I.%I', $1::text, $2::text))::oid
    or oid in (select refobjid from named where refclassid = 'pg_class'::regclass)
)
select
  (select array_agg(oid::int8 order by oid) from kept) as oids,
  {_SEEN_NOW} as seen,
  (select bool_or(relrowsecurity) from relation) as has_policies,
  (select array_agg(oid::int8 order by oid) from relation where relkind = 'p' or relhassubclass) as parents,
  exists (select from relation where relkind = 'f') as is_foreign,
  -- What a function reads is hidden in its text.
  exists (select from relation where relkind = 'f')
    or (exists (select from called) and exists (select from pg_class where relkind = 'f')) as is_elsewhere,
  exists (select from relation where relkind = 'f')
    or exists (select from called join pg_proc as p on p.oid = called.oid where p.provolatile <> 'i') as looks_late
"""  # noqa: S608 (our own)

# Its row's transaction tells one that was detached and attached again.
_PARTITIONS = """
with recursive inherits (child, parent, written) as (
  select i.inhrelid, i.inhparent, i.xmin::text::int8 from pg_inherits as i where i.inhparent in ({parents})
  union
  select i.inhrelid, i.inhparent, i.xmin::text::int8
  from pg_inherits as i
  join inherits on inherits.child = i.inhparent
)
select concat_ws(' ', count(*), sum(child::int8), sum(written)) from inherits
"""

# Domains may stand on domains, and an array's elements may be of a domain: two climbs to the base.
_COLUMNS = """
with recursive columns as (
  select
    a.attnum,
    a.attname::text as name,
    a.atttypid,
    a.attcollation,
    format_type(a.atttypid, a.atttypmod) as shown_type
  from pg_attribute as a
  where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped
), climb as (
  select attnum, atttypid as type, false as is_array, false as is_domain from columns
  union all
  select
    climb.attnum,
    case when t.typtype = 'd' then t.typbasetype else t.typelem end,
    climb.is_array or t.typtype <> 'd',
    climb.is_domain or t.typtype = 'd'
  from climb
  join pg_type as t on t.oid = climb.type
  where t.typtype = 'd' or t.typcategory = 'A'
)
select
  columns.name,
  t.typname::text as type,
  tn.nspname::text as type_schema,
  columns.shown_type,
  t.typtype::text as kind,
  climb.is_array,
  climb.is_domain,
  case
    when l.collname is null or l.collname = 'default' then null
    else quote_ident(ln.nspname) || '.' || quote_ident(l.collname)
  end as collation,
  coalesce(concat_ws(' ', l.oid, pg_collation_actual_version(l.oid)), '') as collation_version
from columns
join climb on climb.attnum = columns.attnum
join pg_type as t on t.oid = climb.type and t.typtype <> 'd' and t.typcategory <> 'A'
join pg_namespace as tn on tn.oid = t.typnamespace
left join pg_collation as l on l.oid = columns.attcollation
left join pg_namespace as ln on ln.oid = l.collnamespace
order by columns.attnum
"""
