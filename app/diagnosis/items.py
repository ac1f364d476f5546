"""Items as Clerk meets them: what is wrong with them, by attribute and reason, with examples.

Looks at decoded items one by one and keeps counts, so memory does not grow with the feed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import orjson

from app.diagnosis.findings import Finding, Severity, by_severity
from app.protocol.attributes import ATTRIBUTES, TRANSLATED, WORDS, Kind, known_to_clerk
from app.protocol.feeds import REQUIRED, FeedName

_EXAMPLES = 3
_MOST_ATTRIBUTES = 2000
"""Names are counted up to here: a feed may use them for data."""
_MILLISECONDS = 10**11
_DAY_SECONDS = 86_400

_TYPE_WORDS: dict[type, str] = {
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


class Attribute(msgspec.Struct, frozen=True):
    """What was seen of an attribute. `absent` are items without it or with null."""

    name: str
    present: int
    absent: int
    types: tuple[str, ...]


class _Reason(msgspec.Struct, frozen=True):
    severity: Severity
    what: str
    """{name} is the attribute's."""
    cure: str


_REASONS: dict[str, _Reason] = {
    "attribute-missing": _Reason(
        "error",
        "{name} is missing, and Clerk needs it of every item.",
        "Give every item {name}, or leave the items without it out on purpose.",
    ),
    "null": _Reason(
        "error",
        "{name} is null, which Clerk calls a sure way for errors.",
        "Leave the attribute out where it has no value.",
    ),
    "null-nested": _Reason(
        "warning",
        "{name} holds a null inside.",
        "Leave out what has no value inside it too, in PostgreSQL with json_strip_nulls, or array_remove(x, null).",
    ),
    "type": _Reason("error", "{name} is not {wanted}.", "Send {name} as {wanted}."),
    "type-optional": _Reason("warning", "{name} is not {wanted}.", "Send {name} as {wanted}, or leave it out."),
    "lines": _Reason(
        "error",
        "{name} holds something that is no object with id, quantity (a whole number) and price (a number).",
        "Send each line as {{id, quantity, price}}, and nothing in place of a line.",
    ),
    "object": _Reason(
        "error",
        "{name} is an object, but not one of language and text.",
        'Send text, or one text a language: {{"danish": "…", "german": "…"}}.',
    ),
    "object-unsupported": _Reason(
        "warning",
        "{name} is an object, which Clerk does not read in this feed.",
        "Send its parts as attributes of their own.",
    ),
    "address-relative": _Reason(
        "warning",
        "{name} is no full URL.",
        "Send the whole address, https:// included: Clerk puts it into the shop's pages as it is.",
    ),
    "address-insecure": _Reason(
        "warning", "{name} begins with http://.", "Send https:// addresses: browsers block others in a secure page."
    ),
    "time-milliseconds": _Reason(
        "warning", "{name} is in milliseconds; Clerk reads seconds.", "Divide it by 1000: unix seconds have ten digits."
    ),
    "time-future": _Reason(
        "warning", "{name} lies in the future.", "Check the clock and the time zone of what writes it."
    ),
    "name": _Reason(
        "warning",
        "the name {name} has other characters than letters, digits and underscore: Clerk ignores it.",
        "Rename the attribute.",
    ),
    "languages-within": _Reason(
        "warning",
        "{name} has other languages than the item's other attributes.",
        "Give every translated attribute of an item the same languages; Clerk's index breaks easily where they differ.",
    ),
    "languages-across": _Reason(
        "warning",
        "{name} has other languages than in most items.",
        "Give every item the same languages; Clerk's index breaks easily where they differ.",
    ),
    "languages-mixed": _Reason(
        "warning",
        "{name} is one text here and one text a language in other items.",
        "Send an object of language and text in every item, or in none.",
    ),
    "languages-unsupported": _Reason(
        "error",
        "{name} has one text a language, but Clerk reads no such {feed}.",
        "Send plain text; for several languages, make one Clerk store for each.",
    ),
    "id-types": _Reason(
        "warning",
        "the ids are numbers in some items and text in others.",
        'Send all of them as one or the other: to Clerk 12 and "12" are two items.',
    ),
    "types-mixed": _Reason("note", "{name} is {types}.", "One type for all items is easier to filter and sort by."),
}


class _Seen:
    """A count and the first few examples."""

    __slots__ = ("count", "examples")

    def __init__(self) -> None:
        self.count = 0
        self.examples: list[str] = []

    def add(self, example: str) -> None:
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(example)


class Inspection:
    """Looks at the items of one feed, in any number of portions. `now` is unix seconds."""

    def __init__(self, feed: FeedName, now: float) -> None:
        self.feed: FeedName = feed
        self.items = 0
        self._latest = now + _DAY_SECONDS
        self._types: dict[str, Counter[type]] = {}
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._languages: dict[tuple[str, frozenset[str]], _Seen] = {}
        self._plain: dict[str, _Seen] = {}
        self._required = REQUIRED[feed]
        self._kinds = ATTRIBUTES[feed]
        self._translated = TRANSLATED[feed]

    def look(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Take a portion of items into account."""
        types, kinds = self._types, self._kinds
        for item in items:
            self.items += 1
            for name, value in item.items():
                kind = type(value)
                counts = types.get(name)
                if counts is None:
                    counts = self._first(name, item)
                counts[kind] += 1
                wanted = kinds.get(name)
                if wanted is not None:
                    self._check(name, wanted, value, item)
                elif kind is dict or kind is list:
                    self._check_nested(name, value, item)
                elif value is None:
                    self._note("null", name, item)
            for name in self._required:
                if name not in item:
                    self._note("attribute-missing", name, item)
            if self._translated:
                self._check_languages(item)

    def missing(self, id: str | int | None, names: Iterable[str]) -> None:
        """Take an item into account that was left out because it lacks these attributes."""
        self.items += 1
        for name in names:
            self._note("attribute-missing", name, {"id": id})

    @property
    def is_multilingual(self) -> bool:
        """Whether an attribute came as an object of language and text."""
        return bool(self._languages)

    @property
    def attributes(self) -> list[Attribute]:
        """What was seen of every attribute, the required ones first."""
        found = []
        names = dict.fromkeys([*(name for name in self._required if name in self._types), *self._types])
        for name in names:
            counts = self._types[name]
            present = counts.total() - counts[type(None)]
            words = tuple(dict.fromkeys(_TYPE_WORDS[kind] for kind in counts if kind is not type(None)))
            found.append(Attribute(name, present, self.items - present, words))
        return found

    def findings(self) -> list[Finding]:
        """What is wrong with the items seen so far, errors first."""
        found = [self._finding(code, name, seen) for (code, name), seen in self._seen.items()]
        found += self._languages_findings()
        found += self._types_findings()
        return by_severity(found)

    def _finding(self, code: str, name: str, seen: _Seen, **words: str) -> Finding:
        optional = code == "type" and name not in self._required
        reason = _REASONS["type-optional" if optional else code]
        if name in self._kinds:
            words["wanted"] = WORDS[self._kinds[name]]
        return Finding(
            severity=reason.severity,
            code="item-" + code,
            what=reason.what.format(name=name, feed=self.feed, **words),
            cure=reason.cure.format(name=name, feed=self.feed, **words),
            feed=self.feed,
            attribute=name,
            count=seen.count,
            of=self.items,
            examples=tuple(seen.examples),
        )

    def _first(self, name: str, item: Mapping[str, Any]) -> Counter[type]:
        if not known_to_clerk(name):
            self._note("name", name[:80], item)
        counts: Counter[type] = Counter()
        if len(self._types) < _MOST_ATTRIBUTES:
            self._types[name] = counts
        return counts

    def _note(self, code: str, name: str, item: Mapping[str, Any], value: object = None) -> None:
        seen = self._seen.get((code, name))
        if seen is None:
            seen = self._seen[code, name] = _Seen()
        if len(seen.examples) < _EXAMPLES:
            example = f"id {_shown(item.get('id'))}"
            if value is not None:
                example += f": {_shown(value)}"
            seen.add(example)
        else:
            seen.count += 1

    def _check(self, name: str, wanted: Kind, value: Any, item: Mapping[str, Any]) -> None:
        """Hold an attribute that Clerk knows against what it expects."""
        kind = type(value)
        if kind is str and wanted == "address":
            self._check_address(name, value, item)
        elif kind is _SIMPLE.get(wanted) or (kind is float and wanted == "number"):
            return
        elif value is None:
            self._note("null", name, item)
        elif wanted == "time" and (kind is int or kind is float):
            if value >= _MILLISECONDS:
                self._note("time-milliseconds", name, item, value)
            elif value > self._latest:
                self._note("time-future", name, item, value)
        elif wanted == "id" and kind is int:
            return
        elif kind is list and wanted in ("ids", "lines"):
            self._check_array(name, wanted, value, item)
        elif kind is dict and wanted in ("text", "address"):
            self._check_translations(name, wanted, value, item)
        else:
            self._note("type", name, item, value)

    def _check_address(self, name: str, value: str, item: Mapping[str, Any]) -> None:
        if value.startswith("https://"):
            return
        self._note("address-insecure" if value.startswith("http://") else "address-relative", name, item, value)

    def _check_array(self, name: str, wanted: Kind, value: list[Any], item: Mapping[str, Any]) -> None:
        if wanted == "lines":
            for line in value:
                if not _is_line(line):
                    self._note("lines", name, item, line)
                    return
            return
        for one in value:
            if type(one) is not int and type(one) is not str:
                self._note("null-nested" if one is None else "type", name, item, value)
                return

    def _check_translations(self, name: str, wanted: Kind, value: dict[str, Any], item: Mapping[str, Any]) -> None:
        if self.feed == "pages":
            self._note("languages-unsupported", name, item, value)
        elif name not in self._translated or not value or not all(type(text) is str for text in value.values()):
            if any(text is None for text in value.values()):
                self._note("null-nested", name, item, value)
            else:
                self._note("object", name, item, value)
        elif wanted == "address":
            for text in value.values():
                if not text.startswith("https://"):
                    self._check_address(name, text, item)
                    return

    def _check_nested(self, name: str, value: Any, item: Mapping[str, Any]) -> None:
        """An attribute that Clerk leaves to the shop, an array or an object."""
        if _has_null(value):
            self._note("null-nested", name, item, value)
        if type(value) is dict and self.feed != "products":
            self._note("object-unsupported", name, item, value)

    def _check_languages(self, item: Mapping[str, Any]) -> None:
        """Compare the languages of an item's translated attributes."""
        first: frozenset[str] | None = None
        for name in self._translated:
            value = item.get(name)
            if type(value) is str:
                plain = self._plain.get(name)
                if plain is None:
                    plain = self._plain[name] = _Seen()
                if len(plain.examples) < _EXAMPLES:
                    plain.add(f"id {_shown(item.get('id'))}")
                else:
                    plain.count += 1
            elif type(value) is dict and value and all(type(text) is str for text in value.values()):
                languages = frozenset(value)
                if (name, languages) not in self._languages:
                    if len(self._languages) >= _MOST_ATTRIBUTES:
                        continue
                    self._languages[name, languages] = _Seen()
                self._languages[name, languages].add(f"id {_shown(item.get('id'))}: {', '.join(sorted(languages))}")
                if first is None:
                    first = languages
                elif languages != first:
                    self._note("languages-within", name, item, sorted(languages))

    def _languages_findings(self) -> list[Finding]:
        found = []
        for name in self._translated:
            sets = {languages: seen for (of, languages), seen in self._languages.items() if of == name}
            if not sets:
                continue
            usual = max(sets, key=lambda languages: sets[languages].count)
            others = _Seen()
            for languages, seen in sets.items():
                if languages != usual:
                    others.count += seen.count
                    others.examples += seen.examples[: _EXAMPLES - len(others.examples)]
            if others.count:
                found.append(self._finding("languages-across", name, others))
            if (plain := self._plain.get(name)) is not None:
                found.append(self._finding("languages-mixed", name, plain))
        return found

    def _types_findings(self) -> list[Finding]:
        found = []
        for name, counts in self._types.items():
            words = Counter[str]()
            for kind, count in counts.items():
                if kind is not type(None):
                    words[_TYPE_WORDS[kind]] += count
            if len(words) < 2 or name in self._translated:
                continue
            rare = _Seen()
            rare.count = words.total() - words.most_common(1)[0][1]
            if name == "id":
                found.append(self._finding("id-types", name, rare))
            elif name not in self._kinds:
                types = " and ".join(f"{word} in {count:,} items" for word, count in words.most_common())
                found.append(self._finding("types-mixed", name, rare, types=types))
        return found


_IDS = (int, str)
_NUMBERS = (int, float)
_SIMPLE: dict[Kind, type] = {"id": str, "text": str, "number": int, "flag": bool}


def _has_null(value: Any) -> bool:
    """Whether a null stands anywhere inside. Without recursion: json may be nested as deep as memory allows."""
    pending = [value]
    while pending:
        for one in pending.pop() if type(pending[-1]) is list else list(pending.pop().values()):
            if one is None:
                return True
            if type(one) is list or type(one) is dict:
                pending.append(one)
    return False


def _is_line(line: Any) -> bool:
    """Whether an element of an order's products is one. 2.0 is a whole number too, however it is written."""
    if type(line) is not dict:
        return False
    quantity = line.get("quantity")
    whole = type(quantity) is int or (type(quantity) is float and quantity.is_integer())
    return whole and type(line.get("id")) in _IDS and type(line.get("price")) in _NUMBERS


def _shown(value: object) -> str:
    """A value as an example shows it: JSON on one line, short."""
    try:
        text = orjson.dumps(value).decode()
    except (TypeError, UnicodeEncodeError, orjson.JSONEncodeError):
        text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
