"""Items as Clerk meets them: what is wrong with them, by attribute and reason, with examples.

Looks at decoded items one by one and keeps counts, so memory does not grow with the feed.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
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


_Check = Callable[[str, Any, Mapping[str, Any]], None]


class _Kind:
    """An attribute of one type: how often it came, and what must be looked at in its values."""

    __slots__ = ("check", "count")

    def __init__(self, check: _Check | None) -> None:
        self.check = check
        self.count = 0


class Inspection:
    """Looks at the items of one feed, in any number of portions. `now` is unix seconds."""

    def __init__(self, feed: FeedName, now: float) -> None:
        self.feed: FeedName = feed
        self.items = 0
        self._latest = now + _DAY_SECONDS
        self._kinds_seen: dict[tuple[str, type], _Kind] = {}
        self._names: dict[str, None] = {}
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._languages: dict[tuple[str, frozenset[str]], _Seen] = {}
        self._plain: dict[str, list[str]] = {}
        self._translations: list[tuple[str, frozenset[str]]] = []
        self._required = REQUIRED[feed]
        self._kinds = ATTRIBUTES[feed]
        self._translated = TRANSLATED[feed]

    def look(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Take a portion of items into account."""
        # Most values are of a type that says all of them; what must be looked at has a check of its own.
        kinds, required = self._kinds_seen, frozenset(self._required)
        for item in items:
            self.items += 1
            for name, value in item.items():
                kind = kinds.get((name, type(value)))
                if kind is None:
                    kind = self._first(name, value, item)
                kind.count += 1
                if kind.check is not None:
                    kind.check(name, value, item)
            if not required <= item.keys():
                for name in self._required:
                    if name not in item:
                        self._note("attribute-missing", name, item)
            if self._translations:
                self._compare_languages(item)

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
        names = dict.fromkeys([*(name for name in self._required if name in self._names), *self._names])
        for name in names:
            counts = self._types(name)
            present = counts.total() - counts["null"]
            words = tuple(word for word in counts if word != "null")
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

    def _first(self, name: str, value: Any, item: Mapping[str, Any]) -> "_Kind":
        """An attribute is of this type for the first time: find out whether its values must be looked at."""
        kind = type(value)
        if name not in self._names:
            if not known_to_clerk(name):
                self._note("name", name[:80], item)
            if len(self._names) >= _MOST_ATTRIBUTES:
                return _Kind(None)
            self._names[name] = None
        found = self._kinds_seen[name, kind] = _Kind(self._check_for(name, kind))
        return found

    def _check_for(self, name: str, kind: type) -> "_Check | None":
        wanted = self._kinds.get(name)
        if kind is type(None):
            return self._check_null
        if wanted is None:
            return self._check_nested if kind is dict or kind is list else None
        if kind is str and name in self._translated:
            return self._check_plain
        if kind is str and wanted == "address":
            return self._check_address
        if kind in _FITTING[wanted]:
            return None
        if wanted == "time" and (kind is int or kind is float):
            return self._check_time
        if kind is list and wanted in ("ids", "lines"):
            return self._check_lines if wanted == "lines" else self._check_ids
        if kind is dict and wanted in ("text", "address"):
            return self._check_translations
        return self._refuse_type

    def _types(self, name: str) -> Counter[str]:
        """How often an attribute was of which type, in words."""
        words = Counter[str]()
        for (of, kind), seen in self._kinds_seen.items():
            if of == name:
                words[_TYPE_WORDS[kind]] += seen.count
        return words

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

    def _check_null(self, name: str, value: Any, item: Mapping[str, Any]) -> None:
        self._note("null", name, item)

    def _refuse_type(self, name: str, value: Any, item: Mapping[str, Any]) -> None:
        self._note("type", name, item, value)

    def _check_time(self, name: str, value: Any, item: Mapping[str, Any]) -> None:
        if value >= _MILLISECONDS:
            self._note("time-milliseconds", name, item, value)
        elif value > self._latest:
            self._note("time-future", name, item, value)

    def _check_plain(self, name: str, value: str, item: Mapping[str, Any]) -> None:
        """Text where other items may have one a language: examples of such items are kept."""
        examples = self._plain.setdefault(name, [])
        if len(examples) < _EXAMPLES:
            examples.append(f"id {_shown(item.get('id'))}")
        elif self._kinds[name] != "address":
            self._kinds_seen[name, str].check = None
        if self._kinds[name] == "address":
            self._check_address(name, value, item)

    def _check_address(self, name: str, value: str, item: Mapping[str, Any]) -> None:
        if not value.startswith("https://"):
            self._note("address-insecure" if value.startswith("http://") else "address-relative", name, item, value)

    def _check_ids(self, name: str, value: list[Any], item: Mapping[str, Any]) -> None:
        for one in value:
            if type(one) is not int and type(one) is not str:
                self._note("null-nested" if one is None else "type", name, item, value)
                return

    def _check_lines(self, name: str, value: list[Any], item: Mapping[str, Any]) -> None:
        for line in value:
            if not _is_line(line):
                self._note("lines", name, item, line)
                return

    def _check_translations(self, name: str, value: dict[str, Any], item: Mapping[str, Any]) -> None:
        if self.feed == "pages":
            self._note("languages-unsupported", name, item, value)
        elif any(text is None for text in value.values()):
            self._note("null-nested", name, item, value)
        elif name not in self._translated or not value or not all(type(text) is str for text in value.values()):
            self._note("object", name, item, value)
        else:
            self._translations.append((name, frozenset(value)))
            if self._kinds[name] == "address":
                text = next((text for text in value.values() if not text.startswith("https://")), None)
                if text is not None:
                    self._check_address(name, text, item)

    def _check_nested(self, name: str, value: Any, item: Mapping[str, Any]) -> None:
        """An attribute that Clerk leaves to the shop, an array or an object."""
        if _has_null(value):
            self._note("null-nested", name, item, value)
        if type(value) is dict and self.feed != "products":
            self._note("object-unsupported", name, item, value)

    def _compare_languages(self, item: Mapping[str, Any]) -> None:
        """Compare the languages of an item's translated attributes."""
        first = self._translations[0][1]
        for name, languages in self._translations:
            seen = self._languages.get((name, languages))
            if seen is None and len(self._languages) < _MOST_ATTRIBUTES:
                seen = self._languages[name, languages] = _Seen()
            if seen is not None and len(seen.examples) < _EXAMPLES:
                seen.add(f"id {_shown(item.get('id'))}: {', '.join(sorted(languages))}")
            elif seen is not None:
                seen.count += 1
            if languages != first:
                self._note("languages-within", name, item, sorted(languages))
        self._translations.clear()

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
            if name in self._plain:
                plain = _Seen()
                plain.count, plain.examples = self._kinds_seen[name, str].count, self._plain[name]
                found.append(self._finding("languages-mixed", name, plain))
        return found

    def _types_findings(self) -> list[Finding]:
        found = []
        for name in self._names:
            words = self._types(name)
            del words["null"]
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
_FITTING: dict[Kind, tuple[type, ...]] = {
    "id": (int, str),
    "text": (str,),
    "address": (),
    "number": (int, float),
    "time": (),
    "ids": (),
    "lines": (),
    "flag": (bool,),
}


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
