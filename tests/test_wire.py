"""Rows become bytes that any JSON reader understands, and nothing Clerk chokes on is among them."""

import json
import math
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.protocol.feeds import FEEDS, REQUIRED, FeedName
from app.protocol.request import Format
from app.protocol.wire import FRAMING, MEDIA_TYPES, Invalid, ItemEncoder, nameable

FORMATS: tuple[Format, ...] = ("ndjson", "json")

quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def decoded(body: bytes, format: Format) -> list[dict[str, Any]]:
    """The items as the standard library reads them."""
    if format == "json":
        items: list[dict[str, Any]] = json.loads(b"[" + body + b"]")
        return items
    assert not body or body.endswith(b"\n")
    return [json.loads(line) for line in body.split(b"\n")[:-1]]


def served(encoder: ItemEncoder, rows: list[tuple[Any, ...]], format: Format) -> list[dict[str, Any]]:
    return decoded(encoder.encode(encoder.items(rows).valid, format), format)


def expected_of(names: list[str], row: tuple[Any, ...]) -> dict[str, Any]:
    """The item Clerk should get: what is not there or has no place in JSON is left out."""
    values = row[1:] if row[0] else [without_gaps(value) for value in row[1:]]
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def without_gaps(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [kept for kept in map(without_gaps, value) if kept is not None]
    return value


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_broken_text = st.text('a"\\\n\r\u2028\u2029\x85\x0b\x0c\x1c\x1e\t\x00\x7f😀', max_size=10)
_finite = st.floats(allow_nan=False, allow_infinity=False)
_plain_scalars = _text | _broken_text | st.integers() | _finite | st.booleans()
_scalars = _plain_scalars | st.none() | st.sampled_from([math.nan, math.inf, -math.inf])
_plain_values = _plain_scalars | st.lists(_plain_scalars | st.lists(_plain_scalars, max_size=3), max_size=4)
_values = _scalars | st.lists(_scalars | st.lists(_scalars, max_size=3), max_size=4)
_names = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), min_size=1, max_size=8)
    | st.sampled_from(["plain", "a0", "a1", "class", "self", "__dict__", "__slots__", "None", "Ærø", "navn på vare"]),
    unique=True,
    max_size=5,
).map(lambda names: ["id", *(name for name in names if name != "id")])


@st.composite
def sources(draw: st.DrawFn) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Columns, and rows as PostgreSQL sends them: the flag is only set where nothing needs to be left out."""
    names = draw(_names)
    optional = [st.none() | _plain_values] * (len(names) - 1)
    anything = [_values] * (len(names) - 1)
    plain = st.tuples(st.just(True), st.integers() | _text, *optional)
    other = st.tuples(st.just(False), st.integers() | _text, *anything)
    return names, draw(st.lists(plain, max_size=4) | st.lists(plain | other, max_size=4))


@pytest.mark.parametrize("format", FORMATS)
@quick
@given(source=sources())
@example(source=(["id", "plain", "a0"], [(True, 1, False, "x"), (False, 2, math.nan, [None, math.inf, [None]])]))
def test_the_standard_library_reads_back_what_was_in_the_rows(
    format: Format, source: tuple[list[str], list[tuple[Any, ...]]]
) -> None:
    names, rows = source
    items = served(ItemEncoder(names, ["id"]), rows, format)
    assert items == [expected_of(names, row) for row in rows]
    assert [list(item) for item in items] == [list(expected_of(names, row)) for row in rows]


@pytest.mark.parametrize("name", ['say "hi"', "back\\slash", "line\nbreak", "tab\there", "\x1f"])
def test_a_name_that_json_would_escape_is_told_apart(name: str) -> None:
    assert not nameable(name)
    with pytest.raises(ValueError, match="Renamed field"):
        ItemEncoder(["id", name], ["id"])


@pytest.mark.parametrize("plain", [True, False])
def test_a_null_leaves_its_attribute_out(plain: bool) -> None:
    encoder = ItemEncoder(["id", "name", "stock"], ["id"])
    assert served(encoder, [(plain, 1, None, 0), (plain, 2, "", None)], "ndjson") == [
        {"id": 1, "stock": 0},
        {"id": 2, "name": ""},
    ]


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("value", [False, 0, 0.0, "", []])
def test_what_is_merely_empty_is_served(plain: bool, value: object) -> None:
    encoder = ItemEncoder(["id", "x"], ["id", "x"])
    items = encoder.items([(plain, 1, value)])
    assert decoded(encoder.encode(items.valid, "ndjson"), "ndjson") == [{"id": 1, "x": value}]
    assert items.invalid == []


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ([None], []),
        ([1, None, 2], [1, 2]),
        ([math.nan, 4.8, math.inf, -math.inf], [4.8]),
        ([[1, None], [None], []], [[1], [], []]),
        ([[[None, "x"]]], [[["x"]]]),
        ([msgspec.Raw(b"1.50"), msgspec.Raw(b"NaN"), msgspec.Raw(b"-Infinity")], [1.5]),
        ([True, None, False], [True, False]),
    ],
)
def test_nulls_and_numbers_json_has_not_leave_an_array(value: object, kept: object) -> None:
    encoder = ItemEncoder(["id", "x"], ["id"])
    assert served(encoder, [(False, 1, value)], "ndjson") == [{"id": 1, "x": kept}]


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, msgspec.Raw(b"NaN"), msgspec.Raw(b"Infinity"), msgspec.Raw(b"-Infinity")],
)
def test_a_number_json_has_not_leaves_its_attribute_out(value: object) -> None:
    encoder = ItemEncoder(["id", "x"], ["id"])
    assert encoder.encode(encoder.items([(False, 1, value)]).valid, "ndjson") == b'{"id":1}\n'


def test_a_text_that_reads_nan_stays_a_text() -> None:
    encoder = ItemEncoder(["id", "x"], ["id"])
    assert served(encoder, [(False, 1, "NaN")], "json") == [{"id": 1, "x": "NaN"}]


@quick
@given(
    st.lists(st.tuples(st.booleans(), _broken_text | _text, st.lists(_broken_text, max_size=2)), min_size=1, max_size=5)
)
def test_ndjson_is_one_whole_line_an_item_whatever_the_texts_hold(rows: list[tuple[bool, str, list[str]]]) -> None:
    encoder = ItemEncoder(["id", "name", "tags"], ["id"])
    numbered = [(plain, number, name, tags) for number, (plain, name, tags) in enumerate(rows)]
    body = encoder.encode(encoder.items(numbered).valid, "ndjson")
    assert body.endswith(b"\n")
    assert body.count(b"\n") == len(rows)
    lines = body.splitlines()  # for bytes that is \n, \r and \r\n
    assert [json.loads(line)["id"] for line in lines] == list(range(len(rows)))
    assert [json.loads(line)["name"] for line in lines] == [name for _, name, _ in rows]


@pytest.mark.parametrize("format", FORMATS)
def test_no_items_are_no_bytes(format: Format) -> None:
    encoder = ItemEncoder(["id"], ["id"])
    assert encoder.encode([], format) == b""
    assert encoder.items([]).valid == []


@pytest.mark.parametrize("format", FORMATS)
@quick
@given(sizes=st.lists(st.integers(1, 4), max_size=5))
def test_chunks_in_their_framing_are_one_document(format: Format, sizes: list[int]) -> None:
    encoder = ItemEncoder(["id", "name"], ["id"])
    framing = FRAMING[format]
    chunks: list[bytes] = []
    count = 0
    for size in sizes:
        rows = [(True, count + number, "a,b]") for number in range(size)]
        count += size
        chunks.append(encoder.encode(encoder.items(rows).valid, format))
    body = framing.opening + framing.separator.join(chunks) + framing.closing
    items = json.loads(body) if format == "json" else [json.loads(line) for line in body.split(b"\n")[:-1]]
    assert items == [{"id": number, "name": "a,b]"} for number in range(count)]


@pytest.mark.parametrize("format", FORMATS)
def test_items_may_come_from_any_iterable(format: Format) -> None:
    encoder = ItemEncoder(["id"], ["id"])
    valid = encoder.items([(True, 1), (True, 2)]).valid
    assert encoder.encode(iter(valid), format) == encoder.encode(valid, format)


def test_media_types_are_those_clerk_reads() -> None:
    assert MEDIA_TYPES == {"ndjson": b"application/x-ndjson", "json": b"application/json"}


# Digits


@pytest.mark.parametrize(
    "digits", ["99999999999999.95", "1.10", "0.00", "-0.000", "10", "1" * 60, "0." + "3" * 40, "1e3", "4.8"]
)
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("format", FORMATS)
def test_a_numeric_is_served_digit_for_digit(digits: str, plain: bool, format: Format) -> None:
    encoder = ItemEncoder(["id", "price", "prices"], ["id", "price"])
    raw = msgspec.Raw(digits.encode())
    body = encoder.encode(encoder.items([(plain, 1, raw, [raw, raw])]).valid, format)
    assert body.rstrip(b"\n") == b'{"id":1,"price":%b,"prices":[%b,%b]}' % ((digits.encode(),) * 3)


@quick
@given(st.decimals(allow_nan=False, allow_infinity=False), st.booleans())
def test_any_numeric_survives(number: Decimal, plain: bool) -> None:
    encoder = ItemEncoder(["id", "price"], ["id"])
    body = encoder.encode(encoder.items([(plain, 1, msgspec.Raw(f"{number:f}".encode()))]).valid, "ndjson")
    assert json.loads(body, parse_float=Decimal, parse_int=Decimal)["price"] == number


@quick
@given(_finite, st.booleans())
def test_any_float_survives(number: float, plain: bool) -> None:
    encoder = ItemEncoder(["id", "x"], ["id"])
    assert served(encoder, [(plain, 1, number)], "ndjson")[0]["x"] == number


@pytest.mark.parametrize("number", [0, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63)])
def test_integers_of_every_size_survive(number: int) -> None:
    encoder = ItemEncoder(["id", "x"], ["id"])
    assert served(encoder, [(True, number, number)], "ndjson") == [{"id": number, "x": number}]


def test_json_of_the_shop_is_passed_on_untouched() -> None:
    document = '{"b": 1.10, "a": [null, {"x":  "é"}]}'.encode()
    encoder = ItemEncoder(["id", "extra"], ["id"])
    for plain in (True, False):
        body = encoder.encode(encoder.items([(plain, 1, msgspec.Raw(document))]).valid, "ndjson")
        assert body == b'{"id":1,"extra":' + document + b"}\n"


# Invalid items


def test_an_invalid_item_is_left_out_and_named_with_what_it_lacks() -> None:
    encoder = ItemEncoder(["id", "name", "price", "color"], ["id", "name", "price"])
    items = encoder.items(
        [
            (True, 1, "Chair", 10, None),
            (False, 2, None, 10, "red"),
            (False, "x-3", None, math.nan, "red"),
            (False, 4, "Sofa", 10, None),
            (False, None, "Table", 10, None),
            (False, 6, "Lamp", msgspec.Raw(b"NaN"), None),
        ]
    )
    assert decoded(encoder.encode(items.valid, "ndjson"), "ndjson") == [
        {"id": 1, "name": "Chair", "price": 10},
        {"id": 4, "name": "Sofa", "price": 10},
    ]
    assert items.invalid == [
        Invalid(2, ("name",)),
        Invalid("x-3", ("name", "price")),
        Invalid(None, ("id",)),
        Invalid(6, ("price",)),
    ]
    assert items.invalid_places == [1, 2, 4, 5]


@pytest.mark.parametrize("feed", FEEDS)
def test_each_required_attribute_of_each_feed_is_missed_by_name(feed: FeedName) -> None:
    names = [*REQUIRED[feed], "extra"]
    encoder = ItemEncoder(names, REQUIRED[feed])
    for missing in REQUIRED[feed]:
        row = (False, *(None if name in (missing, "extra") else "x" for name in names))
        items = encoder.items([row])
        assert items.valid == []
        assert [found.missing for found in items.invalid] == [(missing,)]


def test_required_attributes_are_found_wherever_their_column_stands() -> None:
    encoder = ItemEncoder(["id", "color", "name", "size"], ["id", "name"])
    items = encoder.items([(False, 1, None, "Chair", None), (False, 2, "red", None, "L")])
    assert decoded(encoder.encode(items.valid, "json"), "json") == [{"id": 1, "name": "Chair"}]
    assert items.invalid == [Invalid(2, ("name",))]


def test_two_sources_do_not_mix_their_columns() -> None:
    first, second = ItemEncoder(["id", "name"], ["id"]), ItemEncoder(["id", "email"], ["id"])
    assert served(first, [(True, 1, "x")], "json") == [{"id": 1, "name": "x"}]
    assert served(second, [(True, 1, "x")], "json") == [{"id": 1, "email": "x"}]


# Cutting a page


def _consumed(validity: list[bool], count: int) -> int:
    """How many rows one has read once `count` valid ones are found, reading one at a time."""
    found = 0
    for place, valid in enumerate(validity):
        if found == count:
            return place
        found += valid
    return len(validity)


@quick
@given(st.lists(st.booleans(), max_size=12), st.integers(0, 14))
@example([False, True, False, False, True, False], 2)
@example([False, False], 1)
@example([True, False], 1)
@example([True, True, True], 2)
def test_a_page_is_cut_right_behind_its_last_valid_item(validity: list[bool], count: int) -> None:
    encoder = ItemEncoder(["id", "name"], ["id", "name"])
    items = encoder.items([(valid, place, "x" if valid else None) for place, valid in enumerate(validity)])
    rows = _consumed(validity, count)
    cut = items.first(count)
    ids = [item["id"] for item in decoded(encoder.encode(cut.valid, "ndjson"), "ndjson")]
    assert ids == [place for place in range(rows) if validity[place]]
    assert [found.id for found in cut.invalid] == [place for place in range(rows) if not validity[place]]
    assert cut.invalid_places == [place for place in range(rows) if not validity[place]]
    if count <= sum(validity):
        assert items.rows_of(count) == rows
