"""Metrics for Prometheus, right with any number of processes.

Each process adds up in plain numbers and writes them once a second into files that every process of the machine
shares (prometheus_client's multiprocess mode): a write there costs 10 to 20 us, and one request would need six. Whoever
has the folder can answer a scrape; what lies in the database is asked at the scrape.
"""

import asyncio
from bisect import bisect_left
from collections import Counter as Numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from app.status import events
from app.status.events import Event
from app.status.metrics_folder import inherited_folder
from app.status.record import Activity

FLUSH_SECONDS = 1.0
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histograms."""

Labels = tuple[str, ...]


class _Durations:
    """Durations added up: how many fell under each bound, and their sum."""

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds


class _Served:
    """What was served of one feed since the last writing."""

    def __init__(self) -> None:
        self.requests = self.items = self.bytes = self.invalid = 0
        self.gate = self.bookmark = self.database = self.encode = 0.0
        self.pages = _Durations()
        self.wholes = _Durations()


class Metrics:
    """Reads events. `activity` is asked once a second what the process is doing."""

    def __init__(self, activity: Callable[[], Activity]) -> None:
        self._activity = activity
        self._last = Activity()
        self._served: dict[tuple[str, str], _Served] = {}
        self._numbers: Numbers[tuple[str, Labels]] = Numbers()
        self._verified: dict[Labels, _Durations] = {}
        self._readers: dict[type[Event], Callable[[Any], None]] = {
            events.FeedServed: self._feed_served,
            events.Refused: self._refused,
            events.CutOff: lambda e: self._count("cut_off", e.store, e.feed),
            events.ItemsInvalid: lambda e: self._count("invalid_items", e.store, e.feed, by=len(e.items)),
            events.Resumed: lambda e: self._count("resumed", e.store, e.feed),
            events.WalkEnded: lambda e: self._count("walks", e.store, e.feed, _kind(e), "finished"),
            events.WalkHeldBack: lambda e: self._count("walks", e.store, e.feed, "full", "held back"),
            events.TokenVerified: lambda e: self._verify(e.store, "good" if e.good else "rejected", e.seconds),
            events.ClerkUnreachable: lambda e: self._verify(e.store, "unreachable", e.seconds),
            events.PoolExhausted: lambda e: self._count("pool_exhausted"),
            events.IdsRepeated: lambda e: self._count("repeated_ids", e.store, e.feed, by=e.count),
            events.IdsMissing: lambda e: self._count("missing_ids", e.store, e.feed, by=e.count),
            events.Refreshed: lambda e: self._count("refreshes", e.store, e.feed, "done"),
            events.RefreshHeldBack: lambda e: self._count("refreshes", e.store, e.feed, "held back"),
            events.RefreshFailed: lambda e: self._count("refreshes", e.store, e.feed, "failed"),
            events.DeletionsPushed: self._deleted,
            events.DeletionsFailed: lambda e: self._count("deletion_calls_failed", e.store, e.feed),
            events.SourceFailed: lambda e: self._count("source_failed", e.store, e.feed),
            events.Failed: lambda e: self._count("defects"),
            events.LinesDropped: lambda e: self._count("log_lines_dropped", by=e.count),
        }
        self._files = _Files()

    def __call__(self, event: Event) -> None:
        reader = self._readers.get(type(event))
        if reader is not None:
            reader(event)

    async def run(self) -> None:
        """Write once a second, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            self.flush()

    def flush(self) -> None:
        """Write what has added up. A disk that is full costs metrics, not requests."""
        served, self._served = self._served, {}
        numbers, self._numbers = self._numbers, Numbers()
        verified, self._verified = self._verified, {}
        now = self._activity()
        with suppress(OSError):
            for place, feed in served.items():
                self._files.add_served(place, feed)
            for (name, labels), number in numbers.items():
                self._files.counter(name, labels).inc(number)
            for labels, durations in verified.items():
                self._files.durations("verify_seconds", labels, durations)
            self._files.show(now, self._last)
        self._last = now

    def _feed_served(self, event: events.FeedServed) -> None:
        place = (event.store, event.feed)
        feed = self._served.get(place)
        if feed is None:
            feed = self._served[place] = _Served()
        feed.requests += 1
        feed.items += event.items
        feed.bytes += event.bytes
        feed.gate += event.gate
        feed.bookmark += event.bookmark
        feed.database += event.database
        feed.encode += event.encode
        if event.found is not None:
            self._count("offsets", event.store, event.feed, event.found)
        (feed.wholes if event.limit is None else feed.pages).add(event.seconds)

    def _refused(self, event: events.Refused) -> None:
        self._count("requests", event.store, event.feed, str(event.status))
        self._count("refusals", event.store, event.feed, str(event.status), event.code)

    def _deleted(self, event: events.DeletionsPushed) -> None:
        self._count("deletions", event.store, event.feed, "deleted", by=event.deleted)
        self._count("deletions", event.store, event.feed, "refused", by=event.refused)

    def _count(self, name: str, *labels: str, by: int = 1) -> None:
        self._numbers[name, labels] += by

    def _verify(self, store: str, outcome: str, seconds: float) -> None:
        self._verified.setdefault((store, outcome), _Durations()).add(seconds)


def _kind(event: events.WalkEnded) -> str:
    return "incremental" if event.incremental else "full"


_FEED = ("store", "feed")
_COUNTERS: Mapping[str, tuple[str, Labels]] = {
    "requests": ("Requests answered, refused ones too; 200 has reached the socket.", (*_FEED, "status")),
    "items": ("Items sent.", _FEED),
    "bytes": ("Bytes of bodies sent, compressed where they were.", _FEED),
    "invalid_items": ("Items left out because they lack required attributes; again with every walk.", _FEED),
    "part_seconds": ("Where the time of answers went: gate, bookmark, database, encode.", (*_FEED, "part")),
    "cut_off": ("Answers that ended before their end, visibly for the client.", _FEED),
    "resumed": ("Readings that went on after the database had gone away.", _FEED),
    "offsets": (
        "Pages by how their offset was found: a current, old (over two hours) or past bookmark, or counted rows.",
        (*_FEED, "found"),
    ),
    "walks": ("Walks that came to their end.", (*_FEED, "kind", "outcome")),
    "repeated_ids": ("Ids that several rows of a source have; again with every walk.", _FEED),
    "missing_ids": ("Rows of a source without an id; again with every walk.", _FEED),
    "refreshes": ("Refreshes of rendered feeds.", (*_FEED, "outcome")),
    "deletions": ("Items deleted at Clerk, or refused by it.", (*_FEED, "outcome")),
    "deletion_calls_failed": ("Times that deletions could not be sent to Clerk.", _FEED),
    "refusals": ("Requests answered with a problem, by its code.", (*_FEED, "status", "code")),
    "source_failed": ("Statements on a source that PostgreSQL refused.", _FEED),
    "known_tokens": ("Requests whose token was known, so that Clerk was not asked.", ()),
    "pool_exhausted": ("Requests that found no database connection in time.", ()),
    "defects": ("Exceptions nobody expected.", ()),
    "log_lines_dropped": ("Lines of the log that found no place.", ()),
}
_HISTOGRAMS: Mapping[str, tuple[str, Labels]] = {
    "page_seconds": ("How long a page took, from its request to its last byte's way into the socket.", _FEED),
    "whole_feed_seconds": ("How long a whole feed in one answer took.", _FEED),
    "verify_seconds": ("How long Clerk took to say whether a token is good.", ("store", "outcome")),
}
_GAUGES: Mapping[str, str] = {
    "pool_connections": "Database connections open.",
    "pool_in_use": "Database connections in use.",
    "pool_waiting": "Requests that wait for a database connection.",
    "tokens": "Verified tokens remembered.",
}


class _Files:
    """The metrics of prometheus_client, which are files here."""

    def __init__(self) -> None:
        # Not at the top: the client decides when it is imported whether it keeps its numbers in files.
        from prometheus_client import Counter, Gauge, Histogram  # noqa: PLC0415

        inherited_folder()  # where the client's files go by themselves
        self._counters = {
            name: Counter(f"clerk_feed_{name}", text, labels, registry=None)
            for name, (text, labels) in _COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(f"clerk_feed_{name}", text, labels, buckets=SECONDS, registry=None)
            for name, (text, labels) in _HISTOGRAMS.items()
        }
        self._gauges = {
            name: Gauge(f"clerk_feed_{name}", text, registry=None, multiprocess_mode="livesum")
            for name, text in _GAUGES.items()
        }

    def counter(self, name: str, labels: Labels) -> Any:
        return self._counters[name].labels(*labels) if labels else self._counters[name]

    def add_served(self, place: Labels, feed: _Served) -> None:
        requests = sum(feed.pages.counts) + sum(feed.wholes.counts)
        self.counter("requests", (*place, "200")).inc(requests)
        self.counter("items", place).inc(feed.items)
        self.counter("bytes", place).inc(feed.bytes)
        for part in ("gate", "bookmark", "database", "encode"):
            self.counter("part_seconds", (*place, part)).inc(getattr(feed, part))
        self.durations("page_seconds", place, feed.pages)
        self.durations("whole_feed_seconds", place, feed.wholes)

    def durations(self, name: str, labels: Labels, durations: _Durations) -> None:
        """Add many durations at once, which the client has no public way for (seen with prometheus_client 0.26)."""
        if not any(durations.counts):
            return
        histogram: Any = self._histograms[name].labels(*labels)
        histogram._sum.inc(durations.sum)  # noqa: SLF001
        for bucket, count in zip(histogram._buckets, durations.counts, strict=True):  # noqa: SLF001
            if count:
                bucket.inc(count)

    def show(self, now: Activity, before: Activity) -> None:
        self._gauges["pool_connections"].set(now.connections)
        self._gauges["pool_in_use"].set(now.in_use)
        self._gauges["pool_waiting"].set(now.waiting)
        self._gauges["tokens"].set(now.tokens)
        self._counters["known_tokens"].inc(now.known_tokens_total - before.known_tokens_total)


class Gauge(msgspec.Struct, frozen=True):
    """A metric that is asked for at the scrape: what the database knows."""

    name: str
    text: str
    labels: Labels
    values: Sequence[tuple[Labels, float]]


def exposition(folder: Path, asked: Sequence[Gauge]) -> tuple[bytes, str]:
    """The answer to a scrape, and its media type. Reads files: call it from a thread."""
    from prometheus_client import CollectorRegistry, generate_latest, multiprocess  # noqa: PLC0415
    from prometheus_client.exposition import CONTENT_TYPE_LATEST  # noqa: PLC0415

    _forget_the_dead(folder)
    registry: CollectorRegistry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    registry.register(_Asked(asked))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Asked:
    """A collector of what was asked of the database."""

    def __init__(self, asked: Sequence[Gauge]) -> None:
        self._asked = asked

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415

        for gauge in self._asked:
            family = GaugeMetricFamily(f"clerk_feed_{gauge.name}", gauge.text, labels=gauge.labels)
            for labels, value in gauge.values:
                family.add_metric(labels, value)
            yield family


def _forget_the_dead(folder: Path) -> None:
    """Drop the gauges of processes that are gone: what they had in use is free. Their counts stay."""
    for path in folder.glob("gauge_live*.db"):
        pid = path.stem.rpartition("_")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            with suppress(FileNotFoundError):
                path.unlink()
