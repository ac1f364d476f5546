"""A walk through a feed, page by page as Clerk's importer does it, and what it shows.

What a sync would lose or break on shows only in how pages follow each other: an offset that is ignored, pages
shorter than asked for, an empty page before the end, rows in no fixed order. So after the walk some pages are asked
for again, and behind its end.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import msgspec

from app.clerk.importer import Importer, ImportFailedError, ItemId, Page, decoded
from app.diagnosis.answers import explained
from app.diagnosis.findings import Finding, by_severity, error, note, warning
from app.diagnosis.items import Attribute, Inspection
from app.diagnosis.urls import feed_like, feed_named, misspelled, remarks
from app.protocol.feeds import FeedName
from app.protocol.wire import MEDIA_TYPES

HOURLY_SECONDS = 600.0
DAILY_SECONDS = 3600.0
"""Clerk's marks: a sync under the first may run every hour, one over the second once a day."""

_PAGES_BEHIND = 3
"""How many pages to ask for behind the first empty one."""
_SLOW_SECONDS = 30.0
_GROWTH = 3.0
_GROWTH_SECONDS = 0.1
_GROWTH_PAGES = 9
_EXAMPLES = 5
_PORTION_BYTES = 4_000_000
_SAME_SHARE = 0.9
_DAY = 86_400.0
"""Two pages with this share of ids in common are the same page."""


class Walk(msgspec.Struct):
    """What a walk came to."""

    url: str
    feed: FeedName | None
    limit: int
    paged: bool
    items: int = 0
    pages: int = 0
    bytes: int = 0
    wire_bytes: int = 0
    coding: str = ""
    seconds: float = 0.0
    """Spent waiting for answers; looking at them is not counted."""
    first_seconds: float = 0.0
    slowest_seconds: float = 0.0
    slowest_offset: int = 0
    retries: int = 0
    complete: bool = False
    """Whether the end was reached."""
    findings: list[Finding] = msgspec.field(default_factory=list)
    attributes: list[Attribute] = msgspec.field(default_factory=list)

    @property
    def items_per_second(self) -> float:
        return self.items / self.seconds if self.seconds else 0.0


class Probe:
    """Walks one feed and diagnoses it. Used once."""

    def __init__(
        self,
        importer: Importer,
        *,
        feed: FeedName | None = None,
        modified_after: str = "",
        most_pages: int | None = None,
        progress: Callable[[str, Walk], None] = lambda step, walk: None,
    ) -> None:
        """`feed` is told from the URL or the items where it is None. `progress` is told what is being done."""
        self._importer = importer
        self._modified_after = modified_after
        self._most_pages = most_pages
        self._progress = progress
        self.walk = Walk(importer.url, feed or feed_named(importer.url), importer.limit, importer.paged)
        self._found: list[Finding] = []
        self._inspection: Inspection | None = None
        self._seen: dict[ItemId, int] = {}
        self._repeated: dict[ItemId, tuple[int, int]] = {}
        self._repeats = 0
        self._twice_in_page: list[ItemId] = []
        self._twice_count = 0
        self._timings: list[tuple[int, float]] = []
        self._short: Page | None = None
        self._short_pages = 0
        self._sampled: list[Page] = []

    def run(self) -> Walk:
        """Walk to the end, look again, and say what was found. Raises nothing that a feed can cause."""
        found, walk = self._found, self.walk
        found += misspelled(walk.url)
        if found:
            walk.findings = found
            return walk
        found += remarks(walk.url, walk.limit)
        try:
            self._read()
            if walk.pages:
                self._look_again()
        except ImportFailedError as failure:
            where = f"after {walk.items:,} items, at offset {self._offset:,}" if walk.pages else "at the first page"
            found.append(explained(failure, where, sends_token=self._importer.sends_token))
        self._judge()
        return walk

    def _read(self) -> None:
        """The walk itself."""
        walk = self.walk
        before: Page | None = None
        self._offset = 0
        self._progress("asking for the first page", walk)
        for page in self._importer.pages():
            self._offset = page.offset + walk.limit
            self._count(page)
            self._look_at(page, before)
            self._progress(f"offset {page.offset:,}", walk)
            if before is not None and _same_page(page, before):
                self._found.append(_offset_ignored(page, before))
                return
            before = page
            if self._most_pages is not None and walk.pages >= self._most_pages and page.ids and walk.paged:
                return
        walk.complete = True

    def _count(self, page: Page) -> None:
        walk = self.walk
        if not walk.pages:
            walk.first_seconds = page.seconds
        walk.pages += 1
        walk.items += len(page.ids)
        walk.bytes += len(page.body)
        walk.wire_bytes += page.wire_bytes
        walk.coding = page.coding or walk.coding
        walk.seconds += page.seconds
        walk.retries += page.retries
        if page.seconds > walk.slowest_seconds:
            walk.slowest_seconds, walk.slowest_offset = page.seconds, page.offset

    def _look_at(self, page: Page, before: Page | None) -> None:
        """One page by itself, and beside the one before."""
        walk = self.walk
        if not walk.paged:
            self._inspect(page)
            self._find_repeats(page)
            self._look_at_headers(page)
            return
        if page.number == 0 or (len(page.ids) >= walk.limit and page.number & (page.number - 1) == 0):
            # The first page and a full one from the second half, the last of 1, 2, 4, 8, …, are asked for again: a
            # server may refuse to end a feed for who comes out of turn.
            self._sampled = [*self._sampled[:1], page]
        if page.number == 0:
            self._look_at_headers(page)
            if len(page.ids) > walk.limit:
                self._found.append(_limit_exceeded(page, walk.limit))
        if before is not None and page.ids and len(before.ids) < walk.limit:
            self._short = self._short or before
            self._short_pages += 1
        if len(page.ids) >= walk.limit:
            self._timings.append((page.offset, page.seconds))
        self._find_repeats(page)
        self._inspect(page)

    def _look_at_headers(self, page: Page) -> None:
        known = [media_type.decode() for media_type in MEDIA_TYPES.values()]
        is_array = page.body.lstrip()[:1] == b"["
        if page.media_type not in known:
            named = f"Content-Type {page.media_type}" if page.media_type else "no Content-Type"
            self._found.append(
                error(
                    "content-type",
                    f"The answer has {named}; Clerk supports application/x-ndjson and application/json.",
                    f"Send {'application/json' if is_array else 'application/x-ndjson'} for this answer.",
                )
            )
        elif page.body.strip() and is_array != (page.media_type == "application/json"):
            kind = "a JSON array" if is_array else "one object a line, which is NDJSON"
            self._found.append(
                error(
                    "content-type",
                    f"The answer says {page.media_type}, but holds {kind}.",
                    f"Send {'application/json' if is_array else 'application/x-ndjson'} with it.",
                )
            )
        if not page.has_end:
            self._found.append(
                warning(
                    "end-untold",
                    "The answer has neither Content-Length nor chunks: one that was cut off looks like a whole one.",
                    "Let the server, and every proxy before it, answer over HTTP/1.1 with either of them.",
                )
            )

    def _inspect(self, page: Page) -> None:
        for items in _portions(page):
            if self._inspection is None:
                if self.walk.feed is None:
                    self.walk.feed = feed_like(items[:100])
                if self.walk.feed is None:
                    return
                self._inspection = Inspection(self.walk.feed, time.time())
            self._inspection.look(items)

    def _find_repeats(self, page: Page) -> None:
        seen, number = self._seen, page.number
        fresh = dict.fromkeys(page.ids, number)
        if len(fresh) < len(page.ids):
            self._twice_count += len(page.ids) - len(fresh)
            if len(self._twice_in_page) < _EXAMPLES:
                once: set[ItemId] = set()
                self._twice_in_page += [id for id in page.ids if id in once or once.add(id)][:_EXAMPLES]  # type: ignore[func-returns-value]
        if not seen.keys().isdisjoint(fresh):
            for id in fresh:
                earlier = seen.get(id)
                if earlier is not None:
                    self._repeats += 1
                    if len(self._repeated) < _EXAMPLES:
                        self._repeated[id] = (earlier * self.walk.limit, page.offset)
        seen.update(fresh)

    def _look_again(self) -> None:
        """Ask for what a walk alone does not show."""
        walk = self.walk
        if not walk.paged or any(finding.code == "offset-ignored" for finding in self._found):
            return
        if walk.complete:
            self._look_behind_the_end()
        if self._short is not None:
            self._look_behind(self._short)
        for sampled in self._sampled:
            if sampled.ids and not self._is_steady(sampled):
                break
        if self._importer.is_incremental and not self._modified_after:
            self._look_at_deltas(self._sampled[0])

    def _ask(self, offset: int, step: str, **options: Any) -> Page:
        self._offset = offset
        self._progress(step, self.walk)
        return self._importer.page(offset, **options)

    def _ids_at(self, offset: int, step: str) -> list[Any]:
        """What lies at an offset that no sync asks for: nothing, where the server won't say."""
        try:
            return self._ask(offset, step).ids
        except ImportFailedError as failure:
            if failure.failure == "refused" and 400 <= (failure.status or 0) < 500:
                return []
            raise

    def _look_behind_the_end(self) -> None:
        end = self._offset
        for number in range(_PAGES_BEHIND):
            offset = end + number * self.walk.limit
            found = self._ids_at(offset, f"looking behind the end, offset {offset:,}")
            if found:
                lost = [id for id in found if id not in self._seen]
                self._found.append(
                    error(
                        "empty-page",
                        f"The page at offset {end - self.walk.limit:,} is empty, but at {offset:,} there are"
                        f" {len(found):,} items again. Clerk stops at the first empty page.",
                        "Fill each page up to its limit, also where rows are filtered out after they were counted.",
                        examples=[f"id {id}" for id in lost[:3]],
                    )
                )
                return

    def _look_behind(self, short: Page) -> None:
        """A page was shorter than asked for, and not the last: was anything left out behind it?"""
        limit, got = self.walk.limit, len(short.ids)
        found = self._ids_at(short.offset + got, f"looking behind a short page, offset {short.offset + got:,}")
        lost = [id for id in found if id not in self._seen]
        if lost:
            self._found.append(
                error(
                    "limit-clamped",
                    f"Asked for {limit:,} items at offset {short.offset:,}, the server sent {got:,}; the ones behind"
                    f" them came in no page, because Clerk goes on by {limit:,}.",
                    f"Let the server send as many as it is asked for, up to 1000, or set Page Size to {got:,}.",
                    examples=[f"id {id}" for id in lost[:3]],
                )
            )
        else:
            self._found.append(
                warning(
                    "page-short",
                    f"{self._short_pages:,} pages before the end hold fewer items than the limit, such as {got:,} of"
                    f" {limit:,} at offset {short.offset:,}. Nothing was lost, but a page that happens to be empty"
                    " would end the sync.",
                    "Filter rows before they are counted off, so that pages are full.",
                )
            )

    def _is_steady(self, page: Page) -> bool:
        """Ask for a page again: the same items in the same order, or the order is not fixed."""
        again = self._ask(page.offset, f"asking for offset {page.offset:,} again")
        if again.ids == page.ids:
            return True
        both = set(page.ids) & set(again.ids)
        reordered = [id for id in page.ids if id in both] != [id for id in again.ids if id in both]
        if not reordered:
            third = self._ask(page.offset, f"asking for offset {page.offset:,} a third time")
            if third.ids == again.ids:
                self._found.append(
                    note("changed", f"The page at offset {page.offset:,} changed while it was looked at.")
                )
                return True
            reordered = len(set(third.ids) & both) < _SAME_SHARE * len(page.ids)
        if reordered:
            self._found.append(
                error(
                    "order-unstable",
                    f"The page at offset {page.offset:,}, asked for twice, came with other items or in another order:"
                    " rows move between pages, so that some come twice and others never.",
                    "Sort by something unique that does not change, such as ORDER BY id, in the query itself.",
                    examples=[f"then {page.ids[:3]}, now {again.ids[:3]}"],
                )
            )
        return not reordered

    def _look_at_deltas(self, first: Page) -> None:
        """Ask for what changed after a time to come: hardly anything may come."""
        if not first.ids:
            self._look_without_modified_after()
            return
        now = time.time()
        refused: ImportFailedError | None = None
        form = ""
        for form, to_come in ((_unix(now), _unix(now + _DAY)), (_iso(now), _iso(now + _DAY)), ("1", "1")):
            try:
                ids = self._ids_after(to_come, form)
            except ImportFailedError as failure:
                refused = failure
                continue
            if ids is None or set(ids) != set(first.ids):
                if refused is not None:
                    self._found.append(
                        note(
                            "modified-after-form",
                            f"modified_after={form} is understood, other forms of a time are refused.",
                            "Clerk does not document the form it sends: unix seconds, ISO 8601 and hours back are"
                            " best understood all.",
                        )
                    )
                return
            refused = None
        if refused is not None:
            finding = explained(refused, f"with modified_after={form}", sends_token=self._importer.sends_token)
            self._found.append(
                warning("modified-after-refused", f"modified_after is refused. {finding.what}", finding.cure)
            )
            return
        self._found.append(
            warning(
                "modified-after-ignored",
                "modified_after is ignored: what changed after now is the whole feed. Syncs are as long as full ones,"
                " and Clerk deletes nothing in them.",
                "Let the feed filter by it (a view of clerk-feed: pass modified_at through), or take {{modified_after}}"
                " out of the URL, so that full syncs delete what is gone.",
            )
        )

    def _ids_after(self, to_come: str, form: str) -> list[ItemId] | None:
        """What changed after a time to come; None where it is refused, as it may be, and the same form is read."""
        try:
            return self._ask(0, f"asking for what changed after {to_come}", modified_after=to_come).ids
        except ImportFailedError:
            self._ask(0, f"asking for what changed after {form}", modified_after=form)
            return None

    def _look_without_modified_after(self) -> None:
        page = self._ask(0, "asking for what changed within a year", modified_after="8760")
        if page.ids:
            self._found.append(
                error(
                    "modified-after-empty",
                    "An empty modified_after is answered with no items, though the feed has some: Clerk sends it in"
                    " full syncs, and would delete everything.",
                    "Read an empty modified_after as none at all.",
                )
            )

    def _judge(self) -> None:
        """Draw the conclusions that need the whole walk."""
        walk, found = self.walk, self._found
        found += self._repeats_findings()
        if self._inspection is not None:
            found += self._inspection.findings()
            walk.attributes = self._inspection.attributes
        elif walk.items:
            found.append(
                note(
                    "feed-unknown",
                    "Which feed it is can't be told, so items were not looked at.",
                    "Say it with --feed.",
                )
            )
        found += self._time_findings()
        if walk.complete and not walk.items:
            found.append(_empty(walk, incremental=bool(self._modified_after)))
        walk.findings = by_severity(found)

    def _repeats_findings(self) -> list[Finding]:
        if any(finding.code in ("offset-ignored", "limit-ignored") for finding in self._found):
            return []  # said already, and why
        found = []
        if self._twice_count:
            found.append(
                error(
                    "ids-repeated",
                    f"{self._twice_count:,} ids came more than once in one page: they are not unique, and Clerk keeps"
                    " one item of each.",
                    "Send one item an id: often a join with images, prices or categories repeats a product.",
                    count=self._twice_count,
                    examples=[f"id {id}" for id in self._twice_in_page[:3]],
                )
            )
        if self._repeats:
            examples = [f"id {id} at offset {a:,} and {b:,}" for id, (a, b) in self._repeated.items()]
            if self._modified_after:
                found.append(
                    note(
                        "ids-again",
                        f"{self._repeats:,} ids came again in a later page, as items do that change during a sync.",
                        examples=examples[:3],
                    )
                )
            else:
                found.append(
                    error(
                        "ids-again",
                        f"{self._repeats:,} ids came again in a later page: they are not unique, or rows moved between"
                        " pages, and then as many may never have come.",
                        "Sort by a unique key that does not change, and page by it. If another importer was reading"
                        " this feed meanwhile, probe again.",
                        count=self._repeats,
                        examples=examples[:3],
                    )
                )
        return found

    def _time_findings(self) -> list[Finding]:
        walk, found = self.walk, []
        if walk.slowest_seconds > _SLOW_SECONDS and walk.paged:
            found.append(
                warning(
                    "page-slow",
                    f"The page at offset {walk.slowest_offset:,} took {walk.slowest_seconds:,.0f} s.",
                    "Clerk, or a proxy on the way, may give up on it: look at its query, or make Page Size smaller.",
                )
            )
        found += growth(self._timings)
        if walk.complete:
            found += pace(walk.seconds)
        return found


def growth(timings: list[tuple[int, float]]) -> list[Finding]:
    """Whether full pages cost more the further back they are: (offset, seconds) of each."""
    if len(timings) < _GROWTH_PAGES:
        return []
    third = len(timings) // 3
    first = median(seconds for _, seconds in timings[:third])
    last = median(seconds for _, seconds in timings[-third:])
    if last < _GROWTH * first or last - first < _GROWTH_SECONDS:
        return []
    distance = median(offset for offset, _ in timings[-third:]) - median(offset for offset, _ in timings[:third])
    times = last / max(first, 0.001)
    return [
        warning(
            "cost-grows",
            f"Pages near the end take {times:,.0f} times as long as the first ones, {last * 1e3:,.0f} ms instead of"
            f" {first * 1e3:,.0f}: the server counts off all rows before the offset. At offset 1,000,000 a page would"
            f" take about {first + (last - first) * 1e6 / max(distance, 1):,.0f} s.",
            "Page by key instead of OFFSET, or make Page Size 1000, so that there are fewer pages.",
        )
    ]


def pace(seconds: float) -> list[Finding]:
    """How often Clerk may run a sync that takes so long."""
    if seconds > DAILY_SECONDS:
        return [
            warning(
                "pace",
                f"Reading took {seconds / 60:,.0f} minutes: over 60, and Clerk may run such a sync once a day only.",
                "Make Page Size 1000, find what makes pages slow, or sync what changed with {{modified_after}}.",
            )
        ]
    if seconds > HOURLY_SECONDS:
        return [
            warning(
                "pace",
                f"Reading took {seconds / 60:,.0f} minutes: over 10, too long for a sync every hour.",
                "Make Page Size 1000, find what makes pages slow, or sync what changed with {{modified_after}}.",
            )
        ]
    return []


def _unix(seconds: float) -> str:
    return str(int(seconds))


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _portions(page: Page) -> Iterator[list[dict[str, object]]]:
    """The items of a page, of a large one by lines in portions: decoded, a whole feed takes ten times its size."""
    body = page.body.strip()
    if body.startswith(b"[") or len(body) <= _PORTION_BYTES:
        if page.ids:
            yield page.items
        return
    start = 0
    while start < len(body):
        end = body.find(b"\n", start + _PORTION_BYTES)
        end = len(body) if end < 0 else end
        yield decoded(body[start:end])
        start = end + 1


def _same_page(page: Page, before: Page) -> bool:
    if not page.ids or not before.ids:
        return False
    if len(page.ids) != len(before.ids):
        return False
    return len(set(page.ids) & set(before.ids)) >= _SAME_SHARE * len(before.ids)


def _offset_ignored(page: Page, before: Page) -> Finding:
    return error(
        "offset-ignored",
        f"The pages at offset {before.offset:,} and {page.offset:,} hold the same items: the offset is ignored, and a"
        " sync would never end.",
        "Let the server skip as many items as {{offset}} says, and answer with an empty array behind the last one. If"
        " a cache answers, exempt this URL: its query is part of the address.",
        examples=[f"id {id}" for id in page.ids[:3]],
    )


def _limit_exceeded(page: Page, limit: int) -> Finding:
    return error(
        "limit-ignored",
        f"Asked for {limit:,} items, the server sent {len(page.ids):,}: the limit is ignored.",
        "Let the server send at most as many as {{limit}} says, or take limit and offset out of the URL, if one answer"
        " holds the whole feed.",
    )


def _empty(walk: Walk, *, incremental: bool) -> Finding:
    if incremental:
        return note("empty", "Nothing came: nothing changed in that time.")
    if walk.feed == "orders":
        return warning("empty", "The feed is empty. Clerk keeps the orders it has.", "Look at its source.")
    return error(
        "empty",
        "The feed is empty: after a full sync, Clerk would have deleted everything.",
        "Look at what the feed is made from; take the URL out of Data Sync if there is nothing to send.",
    )
