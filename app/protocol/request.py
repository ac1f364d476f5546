"""What an importer asks for: the query string and Accept header, read strictly.

Clerk's guide: `limit` is 25 unless given and at most 1000, goes with `offset`, and `modified_after` makes a sync
incremental. The format of `modified_after` is not documented, so every plausible one is read. What can't be read is
refused by name: a silent default would make a sync lose items.
"""

import re
from datetime import datetime, timedelta, timezone
from typing import Annotated, Literal
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta

from app.protocol.problems import PARAMETER_INVALID, Refusal

Format = Literal["ndjson", "json"]
HourUnit = Literal["hours", "days"]

DEFAULT_LIMIT = 25
MAX_LIMIT = 1000
MAX_OFFSET = 2**63 - 1

_MAX_UNITS_BACK = 87_600
_FIRST_SECONDS = 10**8
_FIRST_MILLISECONDS = 10**11
_MOST_SECONDS_AHEAD = 3600.0
"""Clerk's clock may be ahead of ours."""
_EASTERNMOST = timezone(timedelta(hours=14))
"""Where a day begins first: a time whose zone is not named was there at the earliest."""
_MAX_DATE_LENGTH = 64
_SPACE_WAS_PLUS = re.compile(r"^(.+\d\d:?\d\d\S*) (\d\d(?::?\d\d)?)$")


class FeedQuery(msgspec.Struct, frozen=True):
    """The query string of a feed as a client may write it. `parse` reads it, and says which go together."""

    limit: Annotated[
        int, Meta(ge=1, le=MAX_LIMIT, description="Items of a page; goes with offset, or with after. Without: all.")
    ]
    offset: Annotated[
        int, Meta(ge=0, le=MAX_OFFSET, description="Where the page begins: raised by limit until a page is empty.")
    ]
    modified_after: Annotated[
        str,
        Meta(
            description="Only what changed after it: unix seconds or milliseconds, ISO 8601 (UTC+14 where it names no"
            " zone), or a small number of hours back. Empty, 0 and null mean everything."
        ),
    ]
    after: Annotated[
        str, Meta(description="For clients other than Clerk: the page behind the item with this id, instead of offset.")
    ]
    order: Annotated[
        str, Meta(description="Goes with after, as the Link of the page before has it: what the ids are sorted by.")
    ]


_KNOWN = tuple(field.name for field in msgspec.structs.fields(FeedQuery))


class FeedRequest(msgspec.Struct, frozen=True):
    """One request for a feed, every value checked.

    `limit` is None for the whole feed in one answer. `after` is a key as text, for clients other than Clerk; `order`
    tells what they were sorted by when they came by it.
    `modified_after` is in unix seconds, as asked for: the overlap is the store's business.
    """

    format: Format = "ndjson"
    limit: int | None = None
    offset: int | None = None
    after: str | None = None
    modified_after: float | None = None
    order: str | None = None


def parse(query: str, *, suffix: Format | None, accept: str, now: float, unit: HourUnit = "hours") -> FeedRequest:
    """Read a query string.

    `suffix` is the format named by the path, which beats `accept`. `now` is unix seconds, for "hours back".
    Raises Refusal(PARAMETER_INVALID) naming the parameter, its value and the rule.
    """
    values: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _KNOWN:
            # Its value may be anything, a key of Clerk's in the wrong place too.
            raise Refusal(PARAMETER_INVALID, f"{name[:60]!r}: the parameters are {', '.join(_KNOWN)}.")
        if name in values:
            raise _refusal(name, value, "it was given twice")
        if name != "after" and "{{" in value:
            raise _refusal(name, value, "the placeholder arrived as it is; Clerk's Data Sync replaces it")
        values[name] = value

    limit = _whole(values, "limit", 1, MAX_LIMIT)
    offset = _whole(values, "offset", 0, MAX_OFFSET)
    after = values.get("after")
    modified_after = None
    if "modified_after" in values:
        modified_after = parse_modified_after(values["modified_after"], now=now, unit=unit)

    if after is not None:
        if offset is not None:
            raise _refusal("after", after, "it does not go with offset: use one of the two")
        if modified_after is not None:
            raise _refusal("after", after, "it does not go with modified_after")
        if "\x00" in after:
            raise _refusal("after", after, "a key holds no NUL character")
        limit = DEFAULT_LIMIT if limit is None else limit
    elif "order" in values:
        raise _refusal("order", values["order"], "it goes together with after, as the Link of a page has it")
    elif limit is not None and offset is None:
        raise _refusal("limit", str(limit), "it goes together with offset: add offset=0 for the first page")
    elif offset is not None and limit is None:
        limit = DEFAULT_LIMIT
    return FeedRequest(
        format=suffix or format_of(accept),
        limit=limit,
        offset=offset,
        after=after,
        modified_after=modified_after,
        order=values.get("order"),
    )


def require_no_parameters(query: str) -> None:
    """Return if a query string is empty. Raises Refusal(PARAMETER_INVALID): a single file can't be paged."""
    for name, _ in parse_qsl(query, keep_blank_values=True):
        rule = "the single file feed.json takes no parameters, it is always whole"
        raise Refusal(PARAMETER_INVALID, f"{name[:60]!r}: {rule}.")


def parse_modified_after(text: str, *, now: float, unit: HourUnit) -> float | None:
    """Unix seconds, or None where the text means that Clerk's Incremental Time is not set.

    Read: unix seconds (from 1e8), unix milliseconds (from 1e11), ISO 8601, and 1 to 87600 as hours or days back from
    `now`. A time that names no zone is taken for the earliest moment it may be, that of UTC+14: taken for a later one,
    changes would be left out. Empty, 0 and null mean a full sync: "0 hours back" would let Clerk delete the whole
    catalog. What is ahead of `now` by no more than an hour is `now`.
    """
    value = text.strip()
    if value.lower() in ("", "null", "none"):
        return None
    if re.fullmatch(r"[0-9]{1,30}(\.[0-9]{1,9})?", value, re.ASCII):
        return _from_number(float(value), text, now, unit)
    try:
        if len(value) > _MAX_DATE_LENGTH or re.fullmatch(r"[0-9.]+", value):
            raise ValueError(value)
        moment = datetime.fromisoformat(_SPACE_WAS_PLUS.sub(r"\1+\2", value))
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=_EASTERNMOST)).timestamp()
    except (ValueError, OverflowError):
        rule = "use unix seconds, ISO 8601 such as 2026-01-31T08:00:00Z, or a small number of hours back"
        raise _refusal("modified_after", text, rule) from None
    return _not_ahead(seconds, text, now)


def _from_number(number: float, text: str, now: float, unit: HourUnit) -> float | None:
    if number == 0:
        return None
    if number >= _FIRST_MILLISECONDS:
        number /= 1000
    elif number < _FIRST_SECONDS:
        if number > _MAX_UNITS_BACK or number < 1:
            rule = f"a small number means {unit} back, from 1 to {_MAX_UNITS_BACK}; unix seconds start at 100000000"
            raise _refusal("modified_after", text, rule)
        return now - number * (3600 if unit == "hours" else 86_400)
    return _not_ahead(number, text, now)


def _not_ahead(seconds: float, text: str, now: float) -> float:
    """The moment, which a clock may have ahead of ours. 20260131080000 looks like a date, and would be one of 2612."""
    if seconds > now + _MOST_SECONDS_AHEAD:
        raise _refusal("modified_after", text, "it lies in the future, and a delta since then would lack all changes")
    return seconds


def format_of(accept: str) -> Format:
    """The format an Accept header prefers; NDJSON where it says nothing that tells them apart."""
    asked = qualities(accept)
    json, ndjson = asked.get("application/json", -1.0), asked.get("application/x-ndjson", -1.0)
    return "json" if json > 0 and json > ndjson else "ndjson"


def qualities(header: str) -> dict[str, float]:
    """The values of an Accept header of any kind, with how much each is wanted (RFC 9110, section 12.4.2)."""
    found: dict[str, float] = {}
    for part in header.lower().split(","):
        value, *parameters = (piece.strip() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, text = parameter.partition("=")
            if name.strip() == "q" and re.fullmatch(r"[01](\.[0-9]{0,3})?", text.strip(), re.ASCII):
                quality = min(float(text), 1.0)
        if value:
            found[value] = quality
    return found


def _whole(values: dict[str, str], name: str, least: int, most: int) -> int | None:
    text = values.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII) or not least <= int(text) <= most:
        raise _refusal(name, text, f"it must be a whole number from {least} to {most}")
    return int(text)


def _refusal(name: str, value: str, rule: str) -> Refusal:
    shown = value if len(value) <= 60 else value[:60] + "…"
    return Refusal(PARAMETER_INVALID, f"{name[:60]}={shown!r}: {rule}.")
