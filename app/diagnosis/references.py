"""Ids that one feed names of another: categories of products, products of orders, subcategories of categories.

What is asked of the database is which of many ids it does not have, so memory does not grow with the feeds.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from app.catalog.source import Source
from app.diagnosis.findings import Finding, warning
from app.protocol.feeds import FeedName

Id = int | str
NamedIn = Callable[[Mapping[str, Any]], Iterator[Any]]

_PENDING = 50_000
"""So many ids are asked about at once."""
_REMEMBERED = 500_000
_EXAMPLES = 3
_MOST_EDGES = 2_000_000


class References:
    """The ids that the items of one feed name of another, and which of them are not there."""

    def __init__(self, source: Source, target: FeedName, attribute: str, named_in: NamedIn) -> None:
        """`source` is of the feed that is named; `named_in` yields the ids that an item names."""
        self._source = source
        self._target = target
        self._attribute = attribute
        self._named_in = named_in
        self._known: set[Id] = set()
        self._unknown: set[Id] = set()
        self._pending: dict[Id, Id] = {}
        self._examples: dict[Id, Id] = {}
        self._mistyped = 0
        self._mistyped_examples: list[str] = []

    def look(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Take a portion of items into account."""
        whole = self._source.key.family == "int8"
        for item in items:
            for id in self._named_in(item):
                kind = type(id)
                if kind is not int and kind is not str:
                    continue
                if (kind is int) != whole:
                    self._mistyped += 1
                    if len(self._mistyped_examples) < _EXAMPLES:
                        self._mistyped_examples.append(f"id {item.get('id')}: {id!r}")
                if id not in self._known and id not in self._unknown:
                    self._pending.setdefault(id, item.get("id"))  # type: ignore[arg-type]

    @property
    def is_full(self) -> bool:
        """Whether it is time to ask."""
        return len(self._pending) >= _PENDING

    async def ask(self, connection: Any) -> None:
        """Ask the database about the ids that are pending. Raises what asyncpg raises."""
        pending, self._pending = self._pending, {}
        texts: dict[str | None, list[Id]] = {}
        for id in pending:
            texts.setdefault(_as_key(id, self._source), []).append(id)
        absent = set(texts.pop(None, ()))
        family = self._source.key.family
        # A uuid that is none would stop the statement.
        match = 's."id"::text = wanted.id' if family == "uuid" else f's."id" = wanted.id::{family}'
        sql = _ABSENT.format(relation=self._source.relation, match=match)
        for row in await connection.fetch(sql, list(texts)) if texts else []:
            absent.update(texts[row["id"]])
        for id, item in pending.items():
            if id in absent:
                if len(self._unknown) < _REMEMBERED:
                    self._unknown.add(id)
                if len(self._examples) < _EXAMPLES:
                    self._examples[id] = item
            elif len(self._known) < _REMEMBERED:
                self._known.add(id)

    def findings(self, feed: FeedName) -> list[Finding]:
        found = []
        if self._unknown:
            examples = [f"{id!r} in id {item}" for id, item in self._examples.items()]
            found.append(
                warning(
                    "reference-unknown",
                    f"{feed} name {len(self._unknown):,} ids in {self._attribute} that {self._target} do not have.",
                    f"Serve these {self._target} too, or do not name them.",
                    feed=feed,
                    attribute=self._attribute,
                    examples=examples,
                )
            )
        if self._mistyped:
            is_number = self._source.key.family == "int8"
            found.append(
                warning(
                    "reference-type",
                    f"{feed} name {self._target} {'as text' if is_number else 'by numbers'} in {self._attribute}, but"
                    f" the ids of {self._target} are {'numbers' if is_number else 'text'}.",
                    'Use one type for an id everywhere: to Clerk 12 and "12" are two ids.',
                    feed=feed,
                    attribute=self._attribute,
                    examples=self._mistyped_examples,
                )
            )
        return found


class CategoryTree:
    """Which category is below which: for cycles."""

    def __init__(self) -> None:
        self._below: dict[Id, tuple[Id, ...]] = {}
        self._edges = 0

    def look(self, items: Iterable[Mapping[str, Any]]) -> None:
        for item in items:
            below = tuple(id for id in subcategories_in(item) if type(id) is int or type(id) is str)
            self._edges += len(below)
            id = item.get("id")
            if below and self._edges <= _MOST_EDGES and (type(id) is int or type(id) is str):
                self._below[id] = below

    def findings(self) -> list[Finding]:
        """A cycle, where there is one. Without recursion: a tree may be deep."""
        done: set[Id] = set()
        for start in self._below:
            path: list[Id] = []
            on_path: set[Id] = set()
            pending: list[tuple[Id, bool]] = [(start, False)]
            while pending:
                id, is_left = pending.pop()
                if is_left:
                    on_path.remove(path.pop())
                    done.add(id)
                elif id in on_path:
                    return [_cycle([*path[path.index(id) :], id])]
                elif id not in done:
                    path.append(id)
                    on_path.add(id)
                    pending.append((id, True))
                    pending += [(below, False) for below in self._below.get(id, ())]
        return []


def _cycle(path: list[Id]) -> Finding:
    shown = " → ".join(map(str, path if len(path) <= 8 else [*path[:4], "…", *path[-3:]]))
    return warning(
        "category-cycle",
        f"Categories are below themselves: {shown}.",
        "Mend the parent of one of them: a shop's menu, and whatever follows it, would go round in circles.",
        feed="categories",
        attribute="subcategories",
    )


def categories_in(item: Mapping[str, Any]) -> Iterator[Any]:
    return _elements(item.get("categories"))


def subcategories_in(item: Mapping[str, Any]) -> Iterator[Any]:
    return _elements(item.get("subcategories"))


def products_in(item: Mapping[str, Any]) -> Iterator[Any]:
    return (line.get("id") for line in _elements(item.get("products")) if type(line) is dict)


def _elements(value: Any) -> Iterator[Any]:
    return iter(value) if type(value) is list else iter(())


def _as_key(id: Id, source: Source) -> str | None:
    """An id as the text that PostgreSQL casts to the key; None where it can be none."""
    text = str(id)
    if "\x00" in text or not _is_unicode(text):
        return None
    if source.key.family == "int8":
        fits = re.fullmatch(r"-?[0-9]{1,19}", text, re.ASCII) and -(2**63) <= int(text) < 2**63
        return text if fits else None
    return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_ABSENT = """
select wanted.id
from unnest($1::text[]) as wanted (id)
where not exists (select from {relation} as s where {match})
"""
