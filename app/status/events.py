"""Everything worth knowing at run time, each as one typed event.

A call site says once what happened; the log, the metrics and the record for the status page read it. No event holds
a token, a password or a key of Clerk's.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened."""

    level: ClassVar[Literal["info", "warning", "error"]] = "info"


class Started(Event, frozen=True):
    """The service answers."""

    urls: tuple[str, ...]
    version: str
    database: str


class DatabaseAwaited(Event, frozen=True):
    """The database did not answer at the start; it is asked again for up to this long."""

    level = "warning"

    cause: str
    seconds: float


class Stopping(Event, frozen=True):
    """The service was told to stop; streams get up to this long."""

    seconds: float


class WorkerLost(Event, frozen=True):
    """A worker process ended unasked; another is started after this long. A negative status is a signal's number."""

    level = "warning"

    pid: int
    status: int
    seconds: float


class WorkerUnable(Event, frozen=True):
    """A worker that was to replace a lost one could not start; it is tried again after this long."""

    level = "error"

    reason: str
    seconds: float


class WorkerReplaced(Event, frozen=True):
    """A new worker answers in the place of a lost one."""

    pid: int


class Reloaded(Event, frozen=True):
    """New workers run by what feed.toml now says; the old ones finish their answers."""

    urls: tuple[str, ...]
    workers: int


class ReloadRefused(Event, frozen=True):
    """The service was asked to reload and could not; it goes on as before."""

    level = "error"

    reason: str


class FeedServed(Event, frozen=True):
    """A page, or a whole feed where limit is None, reached the socket."""

    store: str
    feed: str
    method: str
    address: str
    limit: int | None
    offset: int | None
    incremental: bool
    walk: int | None
    items: int
    invalid: int
    bytes: int
    seconds: float
    gate: float = 0.0
    """Seconds until the request was let in; those below are for the bookmark, rows, and bytes."""
    bookmark: float = 0.0
    database: float = 0.0
    encode: float = 0.0
    found: str | None = None
    """How the offset was found: by a current, old or past bookmark, or counted; None at offset 0 and without one."""


class WalkEnded(Event, frozen=True):
    """An importer read a feed to its end; `items` counts by offset, as the importer does, `sent` repeated ones too."""

    store: str
    feed: str
    walk: int | None
    incremental: bool
    whole: bool
    items: int
    sent: int
    invalid: int
    pages: int
    seconds: float


class WalkHeldBack(Event, frozen=True):
    """A full walk was not let end, because it has far fewer items than the last one that finished."""

    level = "error"

    store: str
    feed: str
    walk: int | None
    items: int
    last: int | None


class Refreshed(Event, frozen=True):
    """A rendered feed was brought up to date."""

    store: str
    feed: str
    items: int
    added: int
    changed: int
    unchanged: int
    vanished: int
    invalid: int
    seconds: float


class RefreshHeldBack(Event, frozen=True):
    """A refresh would have left far fewer items than the most there were in 24 hours; nothing was changed."""

    level = "error"

    store: str
    feed: str
    items: int
    most: int | None
    vanished: int = 0
    """Where it is for another reason: so many of the items before would be gone, and others come."""


class DeletionsPushed(Event, frozen=True):
    """Clerk was told what vanished from a rendered feed."""

    store: str
    feed: str
    deleted: int
    refused: int
    """Ids Clerk refused one by one."""


class DeletionsFailed(Event, frozen=True):
    """Deletions could not be sent; they are tried again later."""

    level = "warning"

    store: str
    feed: str
    cause: str


class RefreshFailed(Event, frozen=True):
    """A refresh did not happen; what was rendered last is served."""

    level = "error"

    store: str
    feed: str
    cause: str


class CutOff(Event, frozen=True):
    """An answer ended before its end, visibly for the client: it left, would not read, or the database failed."""

    level = "warning"

    store: str
    feed: str
    method: str
    address: str
    limit: int | None
    offset: int | None
    items: int
    bytes: int
    seconds: float
    cause: str


class ItemsInvalid(Event, frozen=True):
    """Items were left out because they lack required attributes."""

    level = "warning"

    store: str
    feed: str
    items: tuple[tuple[str | int | None, tuple[str, ...]], ...]


class IdsRepeated(Event, frozen=True):
    """Several rows of a source have the same id, which must be unique."""

    level = "warning"

    store: str
    feed: str
    count: int
    """Ids that occur more than once in this page."""
    examples: tuple[str | int, ...]
    skipped: bool
    """Whether rows with the first of them lie behind the edge of the page and are not sent in this walk."""


class IdsMissing(Event, frozen=True):
    """Rows of a source have no id; they are not served. Counted at the end of a full walk, up to 1000."""

    level = "warning"

    store: str
    feed: str
    count: int
    relation: str
    example: str | None
    """An attribute of such a row, where the feed has one that tells nothing of a person."""


class ItemsLarge(Event, frozen=True):
    """Items turned out so much larger than those before that their batch was given up; fewer are fetched at once."""

    level = "warning"

    store: str
    feed: str
    after: str | None
    rows_per_fetch: int


class StandbyBehind(Event, frozen=True):
    """No standby showed the beginning of a walk in time, or a state of the primary that is young enough."""

    walk: int
    lag: float
    """How many seconds one might have been behind."""
    waited: float


class Resumed(Event, frozen=True):
    """The database went away while reading; reading goes on after the last key."""

    level = "warning"

    store: str
    feed: str
    cause: str
    attempt: int


class SourceFailed(Event, frozen=True):
    """PostgreSQL refused a statement on a source."""

    level = "error"

    store: str
    feed: str
    after: str | None
    sqlstate: str | None
    message: str


class StateFailed(Event, frozen=True):
    """PostgreSQL refused a statement on our own schema `clerk_feed`."""

    level = "error"

    sqlstate: str | None
    message: str


class SourceChanged(Event, frozen=True):
    """A relation was replaced while it was served; it has been described anew."""

    level = "warning"

    store: str
    feed: str
    cause: str


class OffsetUnknown(Event, frozen=True):
    """A page at an offset no walk has reached: answered by counting rows, and part of no walk."""

    level = "warning"

    store: str
    feed: str
    offset: int


class NoModifiedAt(Event, frozen=True):
    """modified_after was asked of a source without modified_at: everything is served."""

    level = "warning"

    store: str
    feed: str


class DeltaOfAll(Event, frozen=True):
    """A delta reached back to before the database failed over, or was made anew from a dump: everything is served."""

    store: str
    feed: str
    seen: float
    """Since when it has been known to go its own way, in unix seconds."""


class PoolExhausted(Event, frozen=True):
    """No database connection became free in time."""

    level = "warning"

    waited: float
    size: int


class Refused(Event, frozen=True):
    """A request was answered with a problem."""

    level = "warning"

    store: str
    """Empty where the path names no store that is configured; so is `feed`."""
    feed: str
    method: str
    path: str
    address: str
    status: int
    code: str
    detail: str


class ClerkUnreachable(Event, frozen=True):
    """Clerk could not be asked whether a token is good."""

    level = "warning"

    store: str
    cause: str
    seconds: float
    grace: bool
    """Whether a token verified before stayed good meanwhile."""


class TokenVerified(Event, frozen=True):
    """Clerk answered whether a token is good."""

    store: str
    good: bool
    seconds: float


class Failed(Event, frozen=True):
    """A defect of ours: an exception nobody expected."""

    level = "error"

    path: str
    error: str
    traceback: str


class BookmarksSwept(Event, frozen=True):
    """Bookmarks older than a day were deleted."""

    count: int


class Logged(Event, frozen=True):
    """A library had something to say."""

    level = "warning"

    logger: str
    message: str


class LinesDropped(Event, frozen=True):
    """Lines of the log found no place, because nobody read it fast enough."""

    level = "warning"

    count: int


Emit = Callable[[Event], None]


class Events:
    """Hands every event to every reader. A reader must not raise and must not wait."""

    def __init__(self, *readers: Emit) -> None:
        self._readers = list(readers)

    def add(self, reader: Emit) -> None:
        """One more reader, of what happens from now on."""
        self._readers.append(reader)

    def __call__(self, event: Event) -> None:
        for reader in self._readers:
            reader(event)
