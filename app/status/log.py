"""The log: one line an event, for people on a terminal, JSON otherwise.

Written by a thread, which renders too: the event loop must never wait for a pipe that nobody reads. What finds no place
is dropped and counted.
"""

import logging
import os
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from app.status import events, requests
from app.status.events import Event

if TYPE_CHECKING:
    from app.status.lines import Lines

_LINES_WAITING = 10_000
_LINES_AT_ONCE = 500
_PAUSE_SECONDS = 0.02
"""What happens in so short a time is written at once: waking a thread costs more than rendering a line."""


class Log:
    """Writes one line an event to a stream, standard error unless given."""

    def __init__(self, stream: TextIO | None = None, *, human: bool | None = None) -> None:
        self._stream = stream or sys.stderr
        self._human = self._stream.isatty() if human is None else human
        self._waiting: deque[tuple[float, str | None, Event]] = deque()
        self._dropped = 0
        self._awake = threading.Event()
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self._writer.start()

    def __call__(self, event: Event) -> None:
        if len(self._waiting) >= _LINES_WAITING:
            self._dropped += 1
            return
        self._waiting.append((time.time(), requests.current(), event))
        if not self._awake.is_set():
            self._awake.set()

    def close(self) -> None:
        """Write what waits, for a second at most: who does not read now will not."""
        self._closing.set()
        self._awake.set()
        self._writer.join(1)

    def _write(self) -> None:
        self._awake.wait()
        if not self._waiting:
            return
        # Not at the top: what renders takes a good part of a start to import, and a start need not wait for it.
        from app.status.lines import Lines  # noqa: PLC0415

        lines = Lines(human=self._human, colors=self._stream.isatty() and "NO_COLOR" not in os.environ)
        while not self._closing.is_set() or self._waiting:
            self._awake.wait()
            self._closing.wait(_PAUSE_SECONDS)
            self._awake.clear()
            while self._waiting:
                self._write_some(lines)

    def _write_some(self, lines: "Lines") -> None:
        for _ in range(min(len(self._waiting), _LINES_AT_ONCE)):
            lines.add(*self._waiting.popleft())
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            lines.add(time.time(), None, events.LinesDropped(count=dropped))
        with suppress(OSError, ValueError):
            for piece in lines.take():
                self._stream.write(piece)
                self._stream.flush()


class ForeignLines(logging.Handler):
    """Hands the lines of libraries that use Python's own logging to our events."""

    def __init__(self, emit: events.Emit) -> None:
        super().__init__(logging.WARNING)
        self._emit = emit

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(Exception):  # a line that can't be put together is not worth more
            self._emit(events.Logged(logger=record.name, message=self.format(record)[:4000]))
