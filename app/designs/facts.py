"""What the items of a feed have: which attributes, of which types, in how many items. Counted, never guessed."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

import msgspec

Kind = Literal["text", "number", "bool", "array", "object"]

_MOST_MEMBERS = 500
"""Names counted in one object: one that is a dictionary of ids would have as many as there are items."""
_DEEPEST = 6


class Fact(msgspec.Struct):
    """What was seen at one place: of an attribute, of a member of an object, or of the elements of an array."""

    seen: int = 0
    kinds: Counter[Kind] = msgspec.field(default_factory=Counter)
    blank: int = 0
    """How many are there and yet nothing: 0, empty text, an empty array."""
    members: dict[str, "Fact"] = msgspec.field(default_factory=dict)
    elements: "Fact | None" = None

    def count(self, value: object, depth: int = 0) -> None:
        """Count a value in."""
        self.seen += 1
        kind = kind_of(value)
        self.kinds[kind] += 1
        self.blank += kind != "bool" and value in (0, "", [])
        if depth > _DEEPEST:
            return
        if isinstance(value, dict):
            for name, inner in value.items():
                if inner is not None and (name in self.members or len(self.members) < _MOST_MEMBERS):
                    self.members.setdefault(name, Fact()).count(inner, depth + 1)
        elif isinstance(value, list):
            self.elements = self.elements or Fact()
            for inner in value:
                if inner is not None:
                    self.elements.count(inner, depth + 1)

    @property
    def shown_kind(self) -> str:
        """Its types, the most frequent first."""
        return " or ".join(kind for kind, _ in self.kinds.most_common())


class Facts(msgspec.Struct):
    """The items of one feed that were looked at."""

    feed: str
    attributes: tuple[str, ...]
    """What the feed can serve, whether or not an item has it."""
    items: Fact = msgspec.field(default_factory=Fact)
    total: int = 0
    """How many rows there are, looked at or not."""

    def count(self, items: Iterable[dict[str, object]]) -> None:
        for item in items:
            self.items.count(item)

    @property
    def is_sample(self) -> bool:
        return self.items.seen < self.total


def kind_of(value: object) -> Kind:
    match value:
        case bool():
            return "bool"
        case int() | float():
            return "number"
        case list():
            return "array"
        case dict():
            return "object"
    return "text"
