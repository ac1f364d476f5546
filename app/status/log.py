"""Log lines from events: for people on a terminal, JSON otherwise."""

import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TextIO

import msgspec
import orjson

from app.status import events
from app.status.events import Event

_LINES_WAITING = 10_000


class Log:
    """Writes one line an event to a stream, standard error unless given.

    From a thread: a pipe that nobody reads must not stop the service. What finds no place is dropped and counted.
    """

    def __init__(self, stream: TextIO | None = None, *, human: bool | None = None) -> None:
        self._stream = stream or sys.stderr
        self._human = self._stream.isatty() if human is None else human
        self._waiting: queue.Queue[str | None] = queue.Queue(_LINES_WAITING)
        self._dropped = 0
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self._writer.start()

    def __call__(self, event: Event) -> None:
        line = self._line(event) if self._human else _json(event)
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what waits, for a second at most: who does not read now will not."""
        with suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._writer.join(1)

    def _write(self) -> None:
        while (line := self._waiting.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            if dropped:
                line = f"{line}\n{self._line_of_dropped(dropped)}"
            with suppress(OSError, ValueError):
                self._stream.write(line + "\n")
                self._stream.flush()

    def _line_of_dropped(self, count: int) -> str:
        if self._human:
            return f"({count} lines were dropped: nobody reads this log fast enough)"
        return orjson.dumps({"time": datetime.now(UTC), "event": "LinesDropped", "count": count}).decode()

    def _line(self, event: Event) -> str:
        now = datetime.now(UTC).strftime("%H:%M:%S")
        render = _RENDERED.get(type(event))
        return f"{now}  {render(event) if render else _plain(event)}"


def _json(event: Event) -> str:
    fields = {"time": datetime.now(UTC), "event": type(event).__name__, **msgspec.structs.asdict(event)}
    if isinstance(event, events.ItemsInvalid):
        fields["items"] = [{"id": id, "missing": list(missing)} for id, missing in event.items]
    # default=str: a log line must not fail over a value nobody expected.
    return orjson.dumps(fields, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


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
    )


def _invalid(event: events.ItemsInvalid) -> str:
    shown = ", ".join(f"{id!r} lacks {' and '.join(missing)}" for id, missing in event.items[:3])
    more = f", and {len(event.items) - 3} more" if len(event.items) > 3 else ""
    return f"{event.store}/{event.feed}: {len(event.items)} items left out: {shown}{more}"


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
    events.Resumed: lambda e: f"{e.store}/{e.feed}: the database went away ({e.cause}); reading goes on",
    events.PoolExhausted: lambda e: f"All {e.size} database connections were in use for {e.waited:g} s",
    events.WalkEnded: lambda e: f"{e.store}/{e.feed}: walk {e.walk} ended with {e.items} items",
    events.WalkHeldBack: lambda e: (
        f"{e.store}/{e.feed}: walk {e.walk} held back: {e.items} items, {e.last} the last time;"
        f" if that is right: clerk-feed accept-shrink --store {e.store} --feed {e.feed}"
    ),
    events.CutOff: lambda e: f"{e.store}/{e.feed}: cut off after {e.bytes / 1e6:.2f} MB: {e.cause}",
    events.Refused: lambda e: f"{e.status} {e.path} from {e.address}: {e.detail}",
    events.NoModifiedAt: lambda e: (
        f"{e.store}/{e.feed}: modified_after was asked, but the source has no modified_at: everything is served"
    ),
    events.OffsetUnknown: lambda e: (
        f"{e.store}/{e.feed}: offset {e.offset} belongs to no walk; answered by counting rows"
    ),
    events.Failed: lambda e: f"defect at {e.path}: {e.error}\n{e.traceback}",
}
