"""Rows become bytes.

A source's rows arrive as sequences: first a flag, then one value an attribute, in the order of the source's
attributes. The flag is PostgreSQL's word that the row is plain: nothing required is missing and nothing in it must
be left out of an array or a number. Plain rows go straight into a generated msgspec Struct, whose omitted defaults
leave NULL attributes out; the few others are looked at one by one.
"""

import math
import re
from collections.abc import Iterable, Sequence
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

    def __init__(self, attributes: Sequence[str], required: Sequence[str]) -> None:
        """`attributes` in the order of the rows, after the flag.

        Raises ValueError for a name that JSON would have to escape, see `nameable`.
        """
        self._attributes = tuple(attributes)
        self._required = tuple((name, self._attributes.index(name) + 1) for name in required)
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
            missing = () if row[0] else tuple(n for n, at in self._required if values[at] is None)
            if missing:
                invalid.append(Invalid(values[1], missing))
                places.append(place)
            else:
                valid.append(self._item(*values))
        return Items(valid, invalid, places)

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
