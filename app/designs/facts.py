"""What the items of a feed have: which attributes, of which types, in how many items. Counted, never guessed."""

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
    kinds: dict[Kind, int] = {}
    blank: int = 0
    """How many are there and yet nothing: 0, empty text, an empty array."""
    members: dict[str, "Fact"] = {}
    elements: "Fact | None" = None

    def count(self, value: object, depth: int = 0) -> None:
        """Count a value in."""
        self.seen += 1
        kind = kind_of(value)
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if not value and kind not in ("bool", "object"):
            self.blank += 1
        if depth > _DEEPEST:
            return
        if isinstance(value, dict):
            members = self.members
            for name, inner in value.items():
                if inner is None:
                    continue
                known = members.get(name)
                if known is None:
                    if len(members) >= _MOST_MEMBERS:
                        continue
                    known = members[name] = Fact()
                known.count(inner, depth + 1)
        elif isinstance(value, list):
            elements = self.elements = self.elements or Fact()
            for inner in value:
                if inner is not None:
                    elements.count(inner, depth + 1)

    @property
    def shown_kind(self) -> str:
        """Its types, the most frequent first."""
        frequent = sorted(self.kinds.items(), key=lambda pair: pair[1], reverse=True)
        return " or ".join(kind for kind, _ in frequent)


class Facts(msgspec.Struct):
    """The items of one feed that were looked at."""

    feed: str
    attributes: tuple[str, ...]
    """What the feed can serve, whether or not an item has it."""
    items: Fact = msgspec.field(default_factory=Fact)
    total: int = 0
    """How many rows there are, items or not."""
    is_sample: bool = False
    """Whether the items were drawn at random, rather than all looked at."""

    def count(self, items: Iterable[dict[str, object]]) -> None:
        for item in items:
            self.items.count(item)


_KINDS: dict[type, Kind] = {
    bool: "bool",
    int: "number",
    float: "number",
    str: "text",
    list: "array",
    dict: "object",
}


def kind_of(value: object) -> Kind:
    """The type of a value that came out of JSON."""
    return _KINDS[type(value)]
