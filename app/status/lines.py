"""Events become the lines of a log: sentences for people, JSON for machines."""

import json
from collections.abc import Callable, Iterator, MutableMapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson
import structlog
from structlog.dev import BRIGHT, CYAN, DIM, RED, RESET_ALL, YELLOW, Column, ConsoleRenderer, KeyValueColumnFormatter

from app.status import events
from app.status.events import Event

_PIPE_BYTES = 4096
"""Linux writes so many bytes into a pipe without those of another process between them (PIPE_BUF)."""

_Fields = MutableMapping[str, Any]


class Lines:
    """The lines of one writing."""

    def __init__(self, *, human: bool, colors: bool) -> None:
        renderer = _console(colors=colors) if human else _JSON
        self._lines = _Kept()
        self._logger = structlog.wrap_logger(
            self._lines,
            processors=[_sentence if human else _fields, renderer],
            wrapper_class=structlog.BoundLogger,
            context_class=dict,
            cache_logger_on_first_use=False,
        ).bind()

    def add(self, moment: float, request: str | None, event: Event) -> None:
        """Render an event. `moment` is unix seconds."""
        getattr(self._logger, event.level)(type(event).__name__, it=event, moment=moment, request=request)

    def take(self) -> Iterator[str]:
        """The lines, in pieces that go into a pipe as one: several processes write into it."""
        piece, size = "", 0
        for line in self._lines.take():
            length = len(line.encode(errors="replace")) + 1
            if size + length > _PIPE_BYTES and piece:
                yield piece
                piece, size = "", 0
            piece += f"{line}\n"
            size += length
        if piece:
            yield piece


class _Kept:
    """What structlog writes into."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def msg(self, line: str) -> None:
        self._lines.append(line)

    info = warning = error = msg

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


def _fields(logger: object, level: str, fields: _Fields) -> _Fields:
    """A line for machines: the event's fields, all of them."""
    event: Event = fields["it"]
    line = {"time": datetime.fromtimestamp(fields["moment"], UTC), "level": level, "event": fields["event"]}
    if fields["request"] is not None:
        line["request"] = fields["request"]
    line |= msgspec.structs.asdict(event)
    if isinstance(event, events.ItemsInvalid):
        line["items"] = [{"id": id, "missing": list(missing)} for id, missing in event.items]
    return line


def _dumped(fields: _Fields, **_: object) -> str:
    # A log line must not fail over a value nobody expected: default=str takes most, but not 2**70 or half a surrogate.
    try:
        return orjson.dumps(fields, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:
        return json.dumps(fields, default=str)


_JSON = structlog.processors.JSONRenderer(serializer=_dumped)


def _sentence(logger: object, level: str, fields: _Fields) -> _Fields:
    """A line for people: when, what happened in a sentence, and the request it belongs to."""
    event: Event = fields["it"]
    render = _RENDERED.get(type(event))
    moment = datetime.fromtimestamp(fields["moment"], UTC).astimezone()
    line: _Fields = {
        "time": moment.strftime("%H:%M:%S"),
        level: render(event) if render else _plain(event),
    }
    if fields["request"] is not None:
        line["request"] = fields["request"]
    return line


def _console(*, colors: bool) -> ConsoleRenderer:
    """One column a level, so that the sentence itself has the level's colour."""

    def column(style: str) -> KeyValueColumnFormatter:
        used, reset = (style, RESET_ALL) if colors else ("", "")
        return KeyValueColumnFormatter(key_style=None, value_style=used, reset_style=reset, value_repr=str)

    return ConsoleRenderer(
        columns=[
            Column("time", column(DIM)),
            Column("info", column("")),
            Column("warning", column(YELLOW)),
            Column("error", column(RED + BRIGHT)),
            Column("request", column(DIM + CYAN)),
            Column("", column("")),
        ]
    )


def _plain(event: Event) -> str:
    fields = " ".join(f"{name}={value!r}" for name, value in msgspec.structs.asdict(event).items())
    return f"{type(event).__name__} {fields}"


def _served(event: events.FeedServed) -> str:
    page = "whole feed" if event.limit is None else f"limit {event.limit} offset {event.offset}"
    delta = ", changes only" if event.incremental else ""
    left_out = f", {event.invalid} left out" if event.invalid else ""
    return (
        f"{event.method} {event.store}/{event.feed} {page}{delta}: {event.items} items{left_out},"
        f" {event.bytes / 1e6:.2f} MB in {event.seconds * 1e3:.0f} ms"
        f" (gate {event.gate * 1e3:.0f}, bookmark {event.bookmark * 1e3:.0f}, database {event.database * 1e3:.0f},"
        f" encode {event.encode * 1e3:.0f})"
    )


def _ended(event: events.WalkEnded) -> str:
    walk = "whole feed" if event.whole else f"walk {event.walk} of {event.pages} pages"
    delta = ", changes only" if event.incremental else ""
    left_out = f", {event.invalid} left out" if event.invalid else ""
    repeated = f" ({event.sent - event.items} sent again)" if event.sent > event.items else ""
    return (
        f"{event.store}/{event.feed}: {walk}{delta} ended with {event.items} items{repeated}{left_out}"
        f" after {event.seconds:.1f} s"
    )


def _invalid(event: events.ItemsInvalid) -> str:
    shown = ", ".join(f"{id!r} lacks {' and '.join(missing)}" for id, missing in event.items[:3])
    more = f", and {len(event.items) - 3} more" if len(event.items) > 3 else ""
    return f"{event.store}/{event.feed}: {len(event.items)} items left out: {shown}{more}"


def _printable(path: str) -> str:
    """A path without line breaks and escape sequences: whoever asks may not write into the terminal of who reads."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in path)


def _repeated(event: events.IdsRepeated) -> str:
    shown = ", ".join(map(repr, event.examples))
    more = f" and {event.count - len(event.examples)} more" if event.count > len(event.examples) else ""
    skipped = f"; rows of {event.examples[0]!r} behind the edge of a page are not sent" if event.skipped else ""
    return f"{event.store}/{event.feed}: ids must be unique, but several rows have id {shown}{more}{skipped}"


def _missing(event: events.IdsMissing) -> str:
    count = f"{event.count} rows or more" if event.count == 1000 else f"{event.count} rows"
    example = f", such as the one with {event.example}" if event.example else ""
    return (
        f"{event.store}/{event.feed}: {count} of {event.relation} have no id and are not served{example};"
        " see them with: where id is null"
    )


_RENDERED: dict[type[Event], Callable[..., str]] = {
    events.FeedServed: _served,
    events.ItemsInvalid: _invalid,
    events.Started: lambda e: f"Serving on {', '.join(e.urls)}",
    events.Stopping: lambda e: f"Stopping; answers under way get {e.seconds:g} s",
    events.DatabaseAwaited: lambda e: f"The database does not answer ({e.cause}); waiting up to {e.seconds:g} s",
    events.TokenVerified: lambda e: (
        f"{e.store}: Clerk {'knows' if e.good else 'rejected'} the token ({e.seconds * 1000:.0f} ms)"
    ),
    events.ClerkUnreachable: lambda e: (
        f"{e.store}: Clerk could not be asked about a token: {e.cause}"
        + ("; it was good a moment ago and stays so for now" if e.grace else "")
    ),
    events.SourceChanged: lambda e: f"{e.store}/{e.feed}: the relation has changed ({e.cause}); described anew",
    events.SourceFailed: lambda e: (
        f"{e.store}/{e.feed}: PostgreSQL refused to read on"
        f" {'from the start' if e.after is None else f'after id {e.after!r}'}: {e.message} (SQLSTATE {e.sqlstate})"
    ),
    events.StandbyBehind: lambda e: (
        f"Within {e.waited:g} s no standby has shown walk {e.walk} as the primary had it {e.lag:g} s ago"
    ),
    events.IdsRepeated: _repeated,
    events.IdsMissing: _missing,
    events.ItemsLarge: lambda e: (
        f"{e.store}/{e.feed}: the items after id {e.after!r} are very large; {e.rows_per_fetch} at a time are fetched"
    ),
    events.Resumed: lambda e: f"{e.store}/{e.feed}: the database went away ({e.cause}); reading goes on",
    events.PoolExhausted: lambda e: f"All {e.size} database connections were in use for {e.waited:g} s",
    events.WalkEnded: _ended,
    events.WalkHeldBack: lambda e: (
        f"{e.store}/{e.feed}: walk {e.walk} held back: {e.items} items, {e.last} the last time;"
        f" if that is right: clerk-feed accept-shrink --store {e.store} --feed {e.feed} --items {e.items}"
    ),
    events.Refreshed: lambda e: (
        f"{e.store}/{e.feed}: refreshed in {e.seconds:.1f} s: {e.added} new, {e.changed} changed,"
        f" {e.unchanged} unchanged, {e.vanished} vanished, {e.invalid} invalid"
    ),
    events.RefreshHeldBack: lambda e: (
        f"{e.store}/{e.feed}: refresh held back: {e.items} items, {e.most} before"
        f"{f', {e.vanished} of them gone' if e.vanished else ''};"
        f" if that is right: clerk-feed refresh --store {e.store} --feed {e.feed} --accept-shrink --items {e.items}"
    ),
    events.DeletionsPushed: lambda e: (
        f"{e.store}/{e.feed}: {e.deleted} items deleted at Clerk" + (f", {e.refused} refused" if e.refused else "")
    ),
    events.DeletionsFailed: lambda e: f"{e.store}/{e.feed}: deletions wait: {e.cause}",
    events.RefreshFailed: lambda e: f"{e.store}/{e.feed}: not refreshed: {e.cause}",
    events.CutOff: lambda e: f"{e.store}/{e.feed}: cut off after {e.bytes / 1e6:.2f} MB: {e.cause}",
    events.Refused: lambda e: f"{e.status} {e.method} {_printable(e.path)} from {e.address}: {e.detail}",
    events.NoModifiedAt: lambda e: (
        f"{e.store}/{e.feed}: modified_after was asked, but the source has no modified_at: everything is served"
    ),
    events.DeltaOfAll: lambda e: (
        f"{e.store}/{e.feed}: modified_after lies before the database failed over, was restored or set back:"
        " everything is served"
    ),
    events.OffsetUnknown: lambda e: (
        f"{e.store}/{e.feed}: offset {e.offset} belongs to no walk; answered by counting rows"
    ),
    events.Logged: lambda e: f"{e.logger}: {e.message}",
    events.LinesDropped: lambda e: f"({e.count} lines were dropped: nobody reads this log fast enough)",
    events.Failed: lambda e: f"defect at {_printable(e.path)}: {e.error}\n{e.traceback}",
}
