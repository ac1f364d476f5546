"""Rows become bytes.

A source's rows arrive as sequences: first a flag, then one value an attribute, in the order of the source's
attributes. The flag is PostgreSQL's word that the row is plain: nothing required is missing and nothing in it must
be left out of an array or a number. Plain rows go straight into a generated msgspec Struct, whose omitted defaults
leave NULL attributes out; the few others are looked at one by one.

Several attributes may come as one value, the last: the JSON of the first, and behind it the others with their names,
as in `1.5,"stock":3`. Where required ones among them are missing it is their names instead: `!price,categories`.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import starmap
from operator import itemgetter
from typing import Any, cast

import msgspec

from app.protocol.request import Format

Row = Sequence[Any]

MEDIA_TYPES: dict[Format, bytes] = {
    "ndjson": b"application/x-ndjson",
    "json": b"application/json",
}

_is_plain = itemgetter(0)


def nameable(name: str) -> bool:
    """Whether an attribute can have this name: msgspec writes names as they are, without escaping."""
    return not re.search(r'["\\\x00-\x1f]', name)


class Invalid(msgspec.Struct, frozen=True):
    """An item that was left out, and the required attributes it lacks."""

    id: str | int | None
    missing: tuple[str, ...]


class Items(msgspec.Struct, frozen=True):
    """The valid items of some rows, ready to encode, and those left out."""

    valid: list[Any]
    invalid: list[Invalid]
    invalid_places: list[int]
    """Which of the rows the invalid ones were, ascending."""

    def rows_of(self, count: int) -> int:
        """How many rows hold the first `count` valid items."""
        last = count - 1
        for place in self.invalid_places:
            if place > last:
                break
            last += 1
        return last + 1

    def first(self, count: int) -> "Items":
        """The first `count` valid items, and the invalid ones among and before them."""
        invalid = sum(place < self.rows_of(count) for place in self.invalid_places)
        return Items(self.valid[:count], self.invalid[:invalid], self.invalid_places[:invalid])


class Lines(msgspec.Struct, frozen=True):
    """Some items that stand ready as JSON, a line each."""

    body: bytes
    count: int

    def __len__(self) -> int:
        return self.count

    @classmethod
    def of(cls, docs: list[bytes]) -> "Lines":
        return cls(b"\n".join([*docs, b""]), len(docs))


class ItemEncoder:
    """Encodes the rows of one source. Built once when the source is described."""

    def __init__(self, attributes: Sequence[str], required: Sequence[str], joined: Sequence[str] = ()) -> None:
        """`attributes` in the order of the rows, after the flag, but for those that are `joined` to one value.

        Raises ValueError for a name that JSON would have to escape, see `nameable`.
        """
        self.joined = tuple(joined)
        self._attributes = (*attributes, *self.joined[:1])
        self._required = tuple(required)
        self._places = {name: self._attributes.index(name) + 1 for name in required if name not in self.joined}
        fields: list[tuple[str, Any, Any]] = [("plain", bool, True)]
        fields += [(f"a{number}", object, None) for number in range(len(self._attributes))]
        self._item = msgspec.defstruct(
            "Item",
            fields,
            omit_defaults=True,
            gc=False,
            rename={f"a{number}": name for number, name in enumerate(self._attributes)} | {"plain": ""},
        )
        # A constant sequence of digits is exact; Decimal would go out as a string.
        self._encoder = msgspec.json.Encoder()

    def items(self, rows: Sequence[Row]) -> Items:
        """Split rows into items to send and items to report."""
        if all(map(_is_plain, rows)):
            return Items(list(starmap(self._item, rows)), [], [])
        valid: list[Any] = []
        invalid: list[Invalid] = []
        places: list[int] = []
        for place, row in enumerate(rows):
            values = row if row[0] else (True, *map(_cleaned, row[1:]))
            missing = () if row[0] else self._missing(values)
            if missing:
                invalid.append(Invalid(values[1], missing))
                places.append(place)
            else:
                valid.append(self._item(*values))
        return Items(valid, invalid, places)

    def _missing(self, values: Sequence[Any]) -> tuple[str, ...]:
        """The required attributes that a row lacks."""
        missing = {name for name, place in self._places.items() if values[place] is None}
        if self.joined and (told := bytes(values[-1])).startswith(b"!"):
            missing.update(told[1:].decode().split(","))
        return tuple(name for name in self._required if name in missing)

    def values(self, item: Any) -> Iterator[tuple[str, bytes]]:
        """An item's attributes, each with its JSON, to find one that can't be read."""
        apart = self._attributes[: -1 if self.joined else None]
        for number, name in enumerate(apart):
            yield name, self._encoder.encode(getattr(item, f"a{number}"))
        if not self.joined:
            return
        text = self._encoder.encode(getattr(item, f"a{len(apart)}")).decode()
        joined, place = self.joined[0], 0
        while True:
            end = _SCANNER.raw_decode(text, place)[1]
            yield joined, text[place:end].encode()
            if end == len(text):
                break
            joined, place = _SCANNER.raw_decode(text, end + 1)
            place += 1

    def encode(self, items: Iterable[Any] | Lines, format: Format) -> bytes:
        """One chunk: lines in NDJSON; in JSON the inside of an array, without its brackets."""
        batch = items if isinstance(items, list) else list(cast("Iterable[Any]", items))
        if format == "ndjson":
            return self._encoder.encode_lines(batch)
        return self._encoder.encode(batch)[1:-1]


class LineEncoder:
    """Sends items that stand ready as JSON, without looking at them. Rows are a flag, the id and the line."""

    def items(self, rows: Sequence[Row]) -> Items:
        return Items([row[2] for row in rows], [], [])

    def encode(self, items: Iterable[Any] | Lines, format: Format) -> bytes:
        """One chunk, like ItemEncoder's."""
        if isinstance(items, Lines):
            # No item has a raw line break in it.
            return items.body if format == "ndjson" else items.body[:-1].replace(b"\n", b",")
        if format == "ndjson":
            return b"".join(piece for line in items for piece in (line, b"\n"))
        return b",".join(items)


def _cleaned(value: Any) -> Any:
    """The value without what JSON or Clerk has no place for; None where nothing is left of it."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    if type(value) is list:
        return [kept for kept in map(_cleaned, value) if kept is not None]
    if type(value) is msgspec.Raw and bytes(value) in _NOT_NUMBERS:
        return None
    return value


_SCANNER = json.JSONDecoder(parse_int=str, parse_float=str)
"""Finds where a value ends; the numbers may be too large for anyone."""

_NOT_NUMBERS = {b"NaN", b"Infinity", b"-Infinity"}


class Framing(msgspec.Struct, frozen=True):
    """What stands around and between the chunks of an answer."""

    opening: bytes
    separator: bytes
    closing: bytes


FRAMING: dict[Format, Framing] = {
    "ndjson": Framing(b"", b"", b""),
    "json": Framing(b"[", b",", b"]"),
}
