"""What an importer may ask for, and how everything else is refused."""

import math
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.protocol.problems import PARAMETER_INVALID, Refusal
from app.protocol.request import FeedRequest, Format, HourUnit, format_of, parse, parse_modified_after

NOW = 1_769_900_000.0  # 2026-01-31T22:53:20Z
MOMENT = datetime(2026, 1, 31, 8, tzinfo=UTC).timestamp()
MAX_OFFSET = 9_223_372_036_854_775_807

quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(query: str, *, suffix: Format | None = None, accept: str = "", unit: HourUnit = "hours") -> FeedRequest:
    return parse(query, suffix=suffix, accept=accept, now=NOW, unit=unit)


def since(value: str, unit: HourUnit = "hours") -> float | None:
    """modified_after as it is read when the importer sends `value` percent-encoded."""
    return read("offset=0&modified_after=" + quote(value, safe=""), unit=unit).modified_after


def refusal_of(query: str) -> str:
    """The detail of the refusal, which is a 400 every time."""
    with pytest.raises(Refusal) as caught:
        read(query)
    assert caught.value.problem is PARAMETER_INVALID
    assert caught.value.problem.status == 400
    return caught.value.detail


# Defaults


def test_no_parameters_ask_for_the_whole_feed_as_ndjson() -> None:
    assert read("") == FeedRequest(format="ndjson", limit=None, offset=None, after=None, modified_after=None)


def test_offset_alone_asks_for_25_items() -> None:
    assert read("offset=0") == FeedRequest(limit=25, offset=0)
    assert read("offset=1000") == FeedRequest(limit=25, offset=1000)


def test_after_alone_asks_for_25_items() -> None:
    assert read("after=x") == FeedRequest(limit=25, after="x")


def test_modified_after_alone_asks_for_everything_that_changed() -> None:
    assert read("modified_after=1769846400") == FeedRequest(modified_after=MOMENT)


@pytest.mark.parametrize("limit", [1, 25, 999, 1000])
def test_limits_from_1_to_1000_are_taken_as_they_are(limit: int) -> None:
    assert read(f"limit={limit}&offset=0").limit == limit


@pytest.mark.parametrize("offset", [0, 1, 900_000, MAX_OFFSET])
def test_offsets_up_to_the_largest_bigint_are_taken_as_they_are(offset: int) -> None:
    assert read(f"limit=1000&offset={offset}").offset == offset


def test_parameters_come_in_any_order() -> None:
    assert read("modified_after=&offset=3&limit=2") == read("limit=2&offset=3&modified_after=")


@pytest.mark.parametrize("key", ["42", "00ab", "a b/c&d=é", "", "-1", "{{limit}}"])
def test_after_takes_any_key_as_text(key: str) -> None:
    assert read(urlencode({"limit": 10, "after": key})) == FeedRequest(limit=10, after=key)


# modified_after


@pytest.mark.parametrize(
    "text", ["", " ", "0", "00", "0.0", "0.000", "null", "NULL", "Null", "none", "None", " null ", " 0 "]
)
def test_a_modified_after_that_is_not_set_means_a_full_sync(text: str) -> None:
    assert since(text) is None
    assert read(f"limit=2&offset=0&modified_after={quote(text)}") == FeedRequest(limit=2, offset=0)


@pytest.mark.parametrize(
    "text",
    [
        "1769846400",
        "1769846400.0",
        "1769846400000",
        "1769846400000.0",
        "2026-01-31T08:00:00Z",
        "2026-01-31T08:00:00.000Z",
        "2026-01-31T08:00:00+00:00",
        "2026-01-31T08:00:00-00:00",
        "2026-01-31T10:00:00+02:00",
        "2026-01-31T10:00:00+0200",
        "2026-01-31T10:00:00+02",
        "2026-01-31T10:00+02:00",
        "2026-01-31 10:00:00+02:00",
        "2026-01-31T04:30:00-03:30",
        "2026-01-31T10:00:00 02:00",
        "2026-01-31T10:00:00 0200",
        "2026-01-31T10:00:00 02",
        "2026-01-31T10:00 02:00",
        "2026-01-31 10:00:00 02:00",
        "2026-01-31T10:00:00.000 02:00",
        "20260131T080000Z",
        " 1769846400 ",
        " 2026-01-31T08:00:00Z ",
    ],
)
def test_one_moment_is_understood_in_every_plausible_spelling(text: str) -> None:
    assert since(text) == MOMENT


def test_a_plus_that_nobody_encoded_is_still_a_plus() -> None:
    assert read("offset=0&modified_after=2026-01-31T10:00:00+02:00").modified_after == MOMENT


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31T22:00:00",
        "2026-01-31T22:00",
        "2026-01-31 22:00:00",
        "2026-01-31 22:00",
        "2026-01-31T22:00:00.000000",
    ],
)
def test_a_time_without_zone_is_the_earliest_it_may_be(text: str) -> None:
    """A shop's own time, read as UTC, would be hours too late, and a delta would lack what changed in them."""
    assert since(text) == MOMENT


def test_a_date_alone_is_its_first_midnight_anywhere() -> None:
    assert since("2026-01-31") == datetime(2026, 1, 30, 10, tzinfo=UTC).timestamp()


def test_a_time_without_zone_is_the_same_wherever_the_service_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert since("2026-01-31T22:00:00") == MOMENT
    finally:
        monkeypatch.undo()
        time.tzset()


def test_fractions_of_a_second_are_kept() -> None:
    assert since("1769846400.5") == MOMENT + 0.5
    assert since("1769846400500") == MOMENT + 0.5
    assert since("2026-01-31T08:00:00.5Z") == MOMENT + 0.5


@pytest.mark.parametrize(
    ("text", "unit", "seconds_back"),
    [
        ("1", "hours", 3_600),
        ("1.5", "hours", 5_400),
        ("24", "hours", 86_400),
        ("024", "hours", 86_400),
        ("87600", "hours", 87_600 * 3_600),
        ("1", "days", 86_400),
        ("30", "days", 30 * 86_400),
    ],
)
def test_a_small_number_counts_hours_or_days_back_from_now(text: str, unit: HourUnit, seconds_back: int) -> None:
    assert since(text, unit) == NOW - seconds_back


@pytest.mark.parametrize("unit", ["hours", "days"])
def test_the_unit_of_small_numbers_touches_no_timestamp(unit: HourUnit) -> None:
    assert since("1769846400", unit) == MOMENT
    assert since("1769846400000", unit) == MOMENT


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("100000000", 1e8), ("100000000000", 1e8), ("1769900000", NOW), ("1769900000000", NOW)],
)
def test_numbers_are_seconds_from_1e8_and_milliseconds_from_1e11(text: str, seconds: float) -> None:
    assert since(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "87601",
        "99999999",
        "99999999.9",
        "0.5",
        "0.999999999",
        "99999999999",
        "253402300800000",
        "20260131080000",
        "2026-02-01T22:53:21Z",
        "9999-12-31",
        "9" * 30,
        "-1",
        "-24",
        "-1769846400",
        "1e9",
        "0x10",
        "1_000",
        "1,5",
        ".5",
        "5.",
        "inf",
        "nan",
        "٢٤",
        "२४",
        "²",
        "yesterday",
        "undefined",
        "false",
        "31-01-2026",
        "31/01/2026",
        "2026-13-01",
        "2026-02-30",
        "2026-01-31T25:00:00Z",
        "2026-01-31T08:00:00 Europe/Copenhagen",
        "2026-01-31T08:00:00+25:00",
        "2026-01-31\x00",
        "Sat, 31 Jan 2026 08:00:00 GMT",
        "{}",
    ],
)
def test_a_modified_after_nobody_can_read_is_refused_never_guessed(text: str) -> None:
    assert refusal_of("offset=0&modified_after=" + quote(text)).startswith(f"modified_after={text!r}: ")


@pytest.mark.parametrize("text", ["1" * 31, "10000101" * 4])
def test_a_number_too_long_to_be_one_is_not_taken_for_a_date(text: str) -> None:
    refusal_of(f"offset=0&modified_after={text}")


def test_a_very_long_modified_after_costs_no_time() -> None:
    """Hypercorn lets 16 KB of query through, and one worker serves all shops."""
    started = time.thread_time()
    refusal_of("offset=0&modified_after=x" + "0" * 16_000)
    assert time.thread_time() - started < 0.5


# Refusals


@pytest.mark.parametrize(
    ("query", "start", "rule"),
    [
        ("limit=0&offset=0", "limit='0': ", "a whole number from 1 to 1000"),
        ("limit=1001&offset=0", "limit='1001': ", "a whole number from 1 to 1000"),
        ("limit=5000&offset=0", "limit='5000': ", "a whole number from 1 to 1000"),
        ("limit=-1&offset=0", "limit='-1': ", "a whole number from 1 to 1000"),
        ("limit=abc&offset=0", "limit='abc': ", "a whole number from 1 to 1000"),
        ("limit=&offset=0", "limit='': ", "a whole number from 1 to 1000"),
        ("limit&offset=0", "limit='': ", "a whole number from 1 to 1000"),
        ("limit=10.0&offset=0", "limit='10.0': ", "a whole number from 1 to 1000"),
        ("limit=1e2&offset=0", "limit='1e2': ", "a whole number from 1 to 1000"),
        ("limit=1_0&offset=0", "limit='1_0': ", "a whole number from 1 to 1000"),
        ("limit=+25&offset=0", "limit=' 25': ", "a whole number from 1 to 1000"),
        ("limit=%2B25&offset=0", "limit='+25': ", "a whole number from 1 to 1000"),
        ("limit=25%0A&offset=0", "limit='25\\n': ", "a whole number from 1 to 1000"),
        ("limit=%D9%A2%D9%A5&offset=0", "limit='٢٥': ", "a whole number from 1 to 1000"),
        ("limit=%C2%B2&offset=0", "limit='²': ", "a whole number from 1 to 1000"),
        ("limit=%FF&offset=0", "limit='�': ", "a whole number from 1 to 1000"),
        ("limit=25&offset=-1", "offset='-1': ", f"a whole number from 0 to {MAX_OFFSET}"),
        ("limit=25&offset=-0", "offset='-0': ", f"a whole number from 0 to {MAX_OFFSET}"),
        ("limit=25&offset=", "offset='': ", f"a whole number from 0 to {MAX_OFFSET}"),
        ("limit=25&offset=x", "offset='x': ", f"a whole number from 0 to {MAX_OFFSET}"),
        ("limit=25&offset=1.5", "offset='1.5': ", f"a whole number from 0 to {MAX_OFFSET}"),
        ("limit=25&offset=%D9%A0", "offset='٠': ", f"a whole number from 0 to {MAX_OFFSET}"),
        (f"limit=25&offset={2**63}", f"offset='{2**63}': ", f"a whole number from 0 to {MAX_OFFSET}"),
        (f"offset={10**40}", f"offset='{10**40}': ", f"a whole number from 0 to {MAX_OFFSET}"),
        ("limit=25&offset=" + "9" * 5000, "offset='" + "9" * 60, f"a whole number from 0 to {MAX_OFFSET}"),
        ("limit=25", "limit='25': ", "together with offset"),
        ("limit=25&modified_after=24", "limit='25': ", "together with offset"),
        ("limit=25&limit=25&offset=0", "limit='25': ", "given twice"),
        ("offset=0&offset=25", "offset='25': ", "given twice"),
        ("offset=0&modified_after=&modified_after=24", "modified_after='24': ", "given twice"),
        ("after=a&after=b", "after='b': ", "given twice"),
        ("after=k&offset=0", "after='k': ", "does not go with offset"),
        ("after=k&offset=0&limit=5", "after='k': ", "does not go with offset"),
        ("after=k&modified_after=24", "after='k': ", "does not go with modified_after"),
        ("after=a%00b", "after='a\\x00b': ", "NUL"),
        ("page=2", "'page': ", "the parameters are limit, offset, modified_after, after"),
        ("limit=25&offset=0&debug", "'debug': ", "the parameters are limit, offset, modified_after, after"),
        ("Limit=25&offset=0", "'Limit': ", "the parameters are limit, offset, modified_after, after"),
        ("limit=25;offset=0", "limit='25;offset=0': ", "a whole number from 1 to 1000"),
        ("limit={{limit}}&offset=0", "limit='{{limit}}': ", "placeholder"),
        ("limit=%7B%7Blimit%7D%7D&offset=0", "limit='{{limit}}': ", "placeholder"),
        ("limit=25&offset={{+offset+}}", "offset='{{ offset }}': ", "placeholder"),
        ("offset=0&modified_after={{modified_after}}", "modified_after='{{modified_after}}': ", "placeholder"),
    ],
)
def test_a_refusal_names_the_parameter_its_value_and_the_rule(query: str, start: str, rule: str) -> None:
    detail = refusal_of(query)
    assert detail.startswith(start)
    assert rule in detail


def test_a_refusal_shows_only_the_start_of_a_long_name_or_value() -> None:
    assert "n" * 60 in refusal_of("n" * 5000)
    assert len(refusal_of("n" * 5000)) < 250
    assert "9" * 60 in refusal_of(f"limit={'9' * 5000}&offset=0")
    assert len(refusal_of(f"limit={'9' * 5000}&offset=0")) < 250


@pytest.mark.parametrize("name", ["token", "key", "private_key", "X-Clerk-Authorization"])
def test_the_value_of_an_unknown_parameter_is_not_repeated_for_it_may_be_a_secret(name: str) -> None:
    detail = refusal_of(f"limit=25&offset=0&{name}=hunter2")
    assert name in detail
    assert "hunter2" not in detail


# Format


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "ndjson"),
        ("*/*", "ndjson"),
        ("application/*", "ndjson"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "ndjson"),
        ("application/x-ndjson", "ndjson"),
        ("application/json", "json"),
        ("Application/JSON", "json"),
        ("application/json; charset=utf-8", "json"),
        ("application/json, text/plain, */*", "json"),
        ("application/json, application/x-ndjson", "ndjson"),
        ("application/x-ndjson, application/json", "ndjson"),
        ("application/x-ndjson, application/json;q=0.9", "ndjson"),
        ("application/x-ndjson;q=0.5, application/json", "json"),
        ("application/x-ndjson;q=0.5,application/json;q=0.501", "json"),
        ("application/x-ndjson ; q = 0.5 , application/json ; q = 0.6", "json"),
        ("application/x-ndjson;q=0, application/json;q=0.001", "json"),
        ("application/json;q=0", "ndjson"),
        ("application/json;q=0.000, */*", "ndjson"),
        (",;,=;q", "ndjson"),
    ],
)
def test_accept_chooses_the_format_and_ndjson_wins_a_tie(accept: str, expected: Format) -> None:
    assert read("", accept=accept).format == expected


@pytest.mark.parametrize("accept", ["", "application/json", "application/x-ndjson", "application/json;q=0"])
@pytest.mark.parametrize("suffix", ["json", "ndjson"])
def test_the_suffix_of_the_path_beats_accept(suffix: Format, accept: str) -> None:
    assert read("offset=0", suffix=suffix, accept=accept).format == suffix


@quick
@given(st.text(max_size=20) | st.text("aplictonx-djs/*;,=q01. "))
def test_any_accept_header_is_read_as_one_of_two_formats(accept: str) -> None:
    assert format_of(accept) in ("json", "ndjson")


# Whatever arrives

_names = st.sampled_from(["limit", "offset", "modified_after", "after", "Limit", ""]) | st.text(max_size=5)
_values = (
    st.integers(-10, 1100).map(str)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.datetimes().map(lambda moment: moment.isoformat())
    | st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:?[0-9]{2}.{0,12}", fullmatch=True)
    | st.sampled_from(["", "null", "{{limit}}", "%00", "%ff", "٣", "²", "+02:00"])
    | st.text(max_size=20)
)
_queries = st.text() | st.lists(st.tuples(_names, _values), max_size=4).map(
    lambda pairs: "&".join(f"{name}={value}" for name, value in pairs)
)


@settings(quick, max_examples=200)
@given(_queries)
@example("offset=0&modified_after=\ud800")
@example("after=\ud800")
@example("offset=%F0%9F%98")
@example("offset=0&modified_after=9999-12-31T23:59:59.999999-23:59")
@example("offset=0&modified_after=0001-01-01T00:00:00%2B23:59")
def test_any_query_string_is_a_sound_request_or_a_400(query: str) -> None:
    try:
        wanted = read(query)
    except Refusal as refused:
        status = refused.problem.status
    else:
        status = 200
        assert_sound(wanted)
    assert status in (200, 400)


def assert_sound(wanted: FeedRequest) -> None:
    assert wanted.format == "ndjson"
    assert wanted.limit is None or (type(wanted.limit) is int and 1 <= wanted.limit <= 1000)
    assert wanted.offset is None or (type(wanted.offset) is int and 0 <= wanted.offset <= MAX_OFFSET)
    assert (wanted.limit is None) == (wanted.offset is None and wanted.after is None)
    assert wanted.after is None or (wanted.offset is None and wanted.modified_after is None)
    assert wanted.after is None or "\x00" not in wanted.after
    assert wanted.modified_after is None or math.isfinite(wanted.modified_after)


_limits = st.integers(1, 1000)
_offsets = st.integers(0, MAX_OFFSET)
_MOST = NOW + 3600
"""What lies after it lies in the future, by whatever clock."""
_zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
_moments = st.datetimes(timezones=_zones).filter(lambda moment: moment.timestamp() <= _MOST)
_written = (
    _moments.map(lambda moment: (moment.isoformat(), min(moment.timestamp(), NOW)))
    | st.datetimes(max_value=datetime(2026, 2, 1)).map(  # noqa: DTZ001 (hypothesis wants none)
        lambda moment: (moment.isoformat(), moment.replace(tzinfo=UTC).timestamp() - 14 * 3600)
    )
    | st.integers(10**8, int(_MOST)).map(lambda seconds: (str(seconds), min(float(seconds), NOW)))
    | st.integers(10**11, int(_MOST) * 1000).map(
        lambda milliseconds: (str(milliseconds), min(milliseconds / 1000, NOW))
    )
    | st.integers(1, 87_600).map(lambda hours: (str(hours), NOW - hours * 3600))
    | st.sampled_from([("", None), ("0", None), ("null", None)])
)


def _page(
    limit: int | None, offset: int, written: tuple[str, float | None] | None
) -> tuple[dict[str, Any], FeedRequest]:
    values: dict[str, Any] = {"offset": offset}
    if limit is not None:
        values["limit"] = limit
    if written is not None:
        values["modified_after"] = written[0]
    expected = FeedRequest(
        limit=25 if limit is None else limit, offset=offset, modified_after=written[1] if written else None
    )
    return values, expected


def _cursor(limit: int | None, after: str) -> tuple[dict[str, Any], FeedRequest]:
    values: dict[str, Any] = {"after": after} if limit is None else {"limit": limit, "after": after}
    return values, FeedRequest(limit=25 if limit is None else limit, after=after)


_keys = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))


@quick
@given(
    st.builds(_page, st.none() | _limits, _offsets, st.none() | _written)
    | st.builds(_cursor, st.none() | _limits, _keys)
)
def test_valid_values_that_a_client_encodes_are_read_back(case: tuple[dict[str, Any], FeedRequest]) -> None:
    values, expected = case
    assert read(urlencode(values)) == expected


@quick
@given(_moments)
def test_any_time_with_a_zone_survives_the_loss_of_its_plus(moment: datetime) -> None:
    spaced = moment.isoformat().replace("+", " ")
    assert parse_modified_after(spaced, now=NOW, unit="hours") == min(moment.timestamp(), NOW)


def _meaning(number: int) -> float | type[Refusal] | None:
    """What a whole number stands for, by the rule of the design."""
    if number == 0:
        return None
    if number <= 87_600:
        return NOW - number * 3600
    if number < 10**8:
        return Refusal
    seconds = float(number) if number < 10**11 else number / 1000
    return min(seconds, NOW) if seconds <= _MOST else Refusal


@quick
@given(st.integers(0, 200_000) | st.integers(0, 2 * 10**12) | st.integers(0, 10**30 - 1))
@example(87_600)
@example(87_601)
@example(10**8 - 1)
@example(10**8)
@example(10**11 - 1)
@example(10**11)
def test_any_whole_number_has_one_meaning_or_is_refused(number: int) -> None:
    expected = _meaning(number)
    if expected is Refusal:
        refusal_of(f"offset=0&modified_after={number}")
    else:
        assert since(str(number)) == expected
