"""What the status page says: the tables' rows, judged and put into words."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec
from markupsafe import Markup

from app.protocol.feeds import FEEDS
from app.protocol.problems import ALL
from app.status import plot, say
from app.status.history import InvalidItems, Occurrence, Process, Rendered, Walk, outcomes
from app.status.record import Stream

Mood = Literal["good", "busy", "warn", "bad", "none"]

CLERK_HOURLY_SECONDS = 600.0
CLERK_DAILY_SECONDS = 3600.0
"""Clerk's marks: a sync below the first may run hourly, one above the second once a day."""

_STALLED_SECONDS = 60.0
_RECENT_SECONDS = 3600.0
_PROBLEMS = {problem.code: problem for problem in ALL}


class Trouble(msgspec.Struct, frozen=True):
    """Something that somebody should look at, or that happened: what, where, why, and the cure."""

    mood: Mood
    title: str
    where: str
    cause: str
    cure: str
    command: str = ""
    count: int = 0
    last: float | None = None
    code: str = ""


class Running(msgspec.Struct, frozen=True):
    """A walk, or a whole feed, that is on its way."""

    title: str
    items: int
    expected: int | None
    seconds: float
    pages: int | None
    silent_seconds: float

    @property
    def percent(self) -> int | None:
        if not self.expected:
            return None
        return min(99, int(100 * self.items / self.expected))

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.items / self.seconds if self.seconds > 0.5 else 0.0

    @property
    def left_seconds(self) -> float | None:
        if not self.expected or self.rate <= 0 or self.items >= self.expected:
            return None
        return (self.expected - self.items) / self.rate

    @property
    def stalled(self) -> bool:
        return self.silent_seconds > _STALLED_SECONDS


class Past(msgspec.Struct, frozen=True):
    """A walk of the history."""

    walk: Walk
    kind: str
    outcome: str
    mood: Mood
    count: int
    """Items the feed had, where the walk ended; items sent, where it did not."""
    seconds: float | None


class Feed(msgspec.Struct, frozen=True):
    """How one feed stands."""

    store: str
    feed: str
    mood: Mood
    state: str
    running: tuple[Running, ...]
    full: Past | None
    """The last full sync, however it ended; `known` is the last that finished."""
    known: Past | None
    delta: Past | None
    past: tuple[Past, ...]
    rendered: Rendered | None
    spark: Markup
    troubles: tuple[Trouble, ...]

    @property
    def path(self) -> str:
        return f"/-/status/{self.store}/{self.feed}"


class Verify(msgspec.Struct, frozen=True):
    """Calls of Clerk's verify endpoint with one outcome, over a day."""

    outcome: str
    count: int
    mean_seconds: float
    last: float
    detail: str


class Facts(msgspec.Struct, frozen=True):
    """What was read of the database, at one moment."""

    now: float
    walks: Sequence[Walk]
    rendered: Sequence[Rendered] = ()
    occurrences: Sequence[Occurrence] = ()
    processes: Sequence[Process] = ()
    invalid: Sequence[InvalidItems] = ()


class Overview(msgspec.Struct, frozen=True):
    """The whole page."""

    now: float
    mood: Mood
    headline: str
    troubles: tuple[Trouble, ...]
    stores: Mapping[str, tuple[Feed, ...]]
    unread: Mapping[str, tuple[str, ...]]
    """Feeds that nobody has read yet, by store."""
    happened: tuple[Trouble, ...]
    invalid: tuple[Trouble, ...]
    verify: tuple[Verify, ...]
    tokens: int
    processes: tuple[Process, ...]
    versions: tuple[str, ...]


def overview(stores: Iterable[str], facts: Facts) -> Overview:
    """The page of everything."""
    read: dict[str, tuple[Feed, ...]] = {}
    unread: dict[str, tuple[str, ...]] = {}
    grouped = _by_feed(facts)
    for store in stores:
        feeds = tuple(_feed(store, name, facts, grouped) for name in (*FEEDS, "feed.json"))
        read[store] = tuple(f for f in feeds if f.mood != "none")
        unread[store] = tuple(f.feed for f in feeds if f.mood == "none" and f.feed != "feed.json")
    troubles = [trouble for feeds in read.values() for feed in feeds for trouble in feed.troubles]
    troubles += _general(facts)
    troubles.sort(key=lambda trouble: trouble.mood != "bad")
    bad, running = len(troubles), sum(len(feed.running) for feeds in read.values() for feed in feeds)
    mood: Mood = "bad" if any(t.mood == "bad" for t in troubles) else "warn" if bad else "busy" if running else "good"
    words = [say.plural(bad, "thing needs a look", "things need a look") if bad else "Nothing needs a look"]
    words.append(say.plural(running, "sync is under way", "syncs are under way") if running else "no sync is under way")
    return Overview(
        now=facts.now,
        mood=mood,
        headline=", ".join(words) + ".",
        troubles=tuple(troubles),
        stores=read,
        unread=unread,
        happened=tuple(_happened(o) for o in facts.occurrences if o.kind not in _ELSEWHERE),
        invalid=_invalid(facts),
        verify=tuple(
            Verify(o.code, o.count, o.seconds / max(o.count, 1), o.last, f"{o.store}: {o.detail}" if o.detail else "")
            for o in _verify_by_outcome(facts.occurrences)
        ),
        tokens=sum(process.tokens for process in facts.processes),
        processes=tuple(facts.processes),
        versions=tuple(sorted({process.version for process in facts.processes})),
    )


class Detail(msgspec.Struct, frozen=True):
    """The page of one feed."""

    now: float
    feed: Feed
    plots: tuple[tuple[str, Markup], ...]
    happened: tuple[Trouble, ...]
    invalid: tuple[Trouble, ...]


def detail(store: str, name: str, facts: Facts) -> Detail:
    """The page of one feed."""
    feed = _feed(store, name, facts, _by_feed(facts))
    return Detail(
        now=facts.now,
        feed=feed,
        plots=tuple(_plots(feed.past)),
        happened=tuple(
            _happened(o) for o in facts.occurrences if o.kind not in _ELSEWHERE and (o.store, o.feed) == (store, name)
        ),
        invalid=tuple(t for t in _invalid(facts) if t.where == f"{store}/{name}"),
    )


class _Grouped(msgspec.Struct, frozen=True):
    walks: Mapping[tuple[str, str], list[Walk]]
    streams: Mapping[tuple[str, str], list[Stream]]
    rendered: Mapping[tuple[str, str], Rendered]
    occurrences: Mapping[tuple[str, str], list[Occurrence]]


def _by_feed(facts: Facts) -> _Grouped:
    walks: dict[tuple[str, str], list[Walk]] = defaultdict(list)
    for walk in facts.walks:
        walks[walk.store, walk.feed].append(walk)
    streams: dict[tuple[str, str], list[Stream]] = defaultdict(list)
    for process in facts.processes:
        for stream in process.streams:
            streams[stream.store, stream.feed].append(stream)
    occurrences: dict[tuple[str, str], list[Occurrence]] = defaultdict(list)
    for occurrence in facts.occurrences:
        occurrences[occurrence.store, occurrence.feed].append(occurrence)
    return _Grouped(walks, streams, {(r.store, r.feed): r for r in facts.rendered}, occurrences)


def _feed(store: str, name: str, facts: Facts, grouped: _Grouped) -> Feed:
    now = facts.now
    walks = outcomes(grouped.walks.get((store, name), []), now)
    rendered = grouped.rendered.get((store, name))
    past: list[Past] = []
    running: list[Running] = []
    expected = next((w.final_items for w, _ in walks if w.ended == "finished" and not w.incremental), None)
    for walk, outcome in walks:
        if outcome == "running":
            title = "Changes" if walk.incremental else "Full sync"
            goal = None if walk.incremental else expected
            silent = now - walk.last_page
            running.append(Running(title, walk.items, goal, walk.seconds, walk.pages, silent))
        else:
            past.append(_past(walk, outcome))
    for stream in grouped.streams.get((store, name), []):
        goal = expected if name != "feed.json" else None
        running.append(Running("Whole feed in one answer", stream.items, goal, now - stream.started, None, 0.0))
    full = next((p for p in past if not p.walk.incremental), None)
    delta = next((p for p in past if p.walk.incremental), None)
    troubles = tuple(_troubles((store, name), grouped, full, now, is_running=bool(running)))
    mood: Mood = (
        "bad"
        if any(t.mood == "bad" for t in troubles)
        else "busy"
        if running
        else "warn"
        if troubles
        else "good"
        if past or rendered
        else "none"
    )
    return Feed(
        store=store,
        feed=name,
        mood=mood,
        state=_state(mood, full, running, troubles),
        running=tuple(running),
        full=full,
        known=next((p for p in past if not p.walk.incremental and p.outcome == "finished"), None),
        delta=delta,
        past=tuple(past),
        rendered=rendered,
        spark=_spark(past),
        troubles=troubles,
    )


def _state(mood: Mood, full: Past | None, running: Sequence[Running], troubles: Sequence[Trouble]) -> str:
    if mood == "bad":
        return "held back" if full and full.outcome == "held back" else "failing"
    if running:
        return "waiting for Clerk" if all(r.stalled for r in running) else "syncing"
    if mood == "warn":
        return "given up" if full and full.outcome == "given up" else "needs a look"
    return {"good": "in order", "none": "never read"}.get(mood, "in order")


def _past(walk: Walk, outcome: str) -> Past:
    kind = "changes" if walk.incremental else "whole feed" if walk.whole else "full"
    mood: Mood = {"finished": "good", "held back": "bad"}.get(outcome, "warn")  # type: ignore[assignment]
    count = walk.final_items if walk.final_items is not None and outcome != "given up" else walk.items
    seconds = walk.seconds if walk.seconds > 0 else None
    return Past(walk, kind, outcome, mood, count, seconds)


def _troubles(
    place: tuple[str, str], grouped: "_Grouped", full: Past | None, now: float, *, is_running: bool
) -> Iterable[Trouble]:
    """What somebody should look at, of one feed."""
    store, name = place
    where = f"{store}/{name}"
    rendered = grouped.rendered.get(place)
    walks, occurrences = grouped.walks.get(place, []), grouped.occurrences.get(place, [])
    if full and full.outcome == "held back":
        problem = _PROBLEMS["feed-shrunk"]
        yield Trouble(
            "bad",
            "A full sync was held back",
            where,
            f"It would have ended with {say.plural(full.count, 'item')}, far fewer than the one before.",
            problem.fix.partition(" If the shrink is right")[0] + " If the shrink is right, say so:",
            f"clerk-feed accept-shrink --store {store} --feed {name} --items {full.count}",
            last=full.walk.last_page,
        )
    if full and full.outcome == "given up" and not is_running:
        yield Trouble(
            "warn",
            "The last full sync was given up",
            where,
            f"Clerk asked for nothing after {say.plural(full.count, 'item')}. Nothing was deleted by it.",
            "Look at the sync log in my.clerk.io. If it says that the sync took too long, raise Page Size to 1000.",
            last=full.walk.last_page,
        )
    if full and full.outcome == "finished" and full.walk.invalid:
        yield Trouble(
            "warn",
            "The last full sync left items out",
            where,
            f"{say.plural(full.walk.invalid, 'item')} of {say.number(full.count + full.walk.invalid)} lack a required"
            " attribute, and Clerk deletes what a full sync leaves out.",
            "The attributes are below, under items left out.",
            last=full.walk.last_page,
        )
    if rendered and rendered.last_outcome not in (None, "done"):
        yield Trouble(
            "bad",
            "A refresh was held back" if rendered.last_outcome == "held back" else "A refresh failed",
            where,
            rendered.last_detail or "",
            "The feed serves what the last good refresh found. Mend the view; the next refresh goes on by itself."
            + (" If the shrink is right, say so:" if rendered.last_outcome == "held back" else ""),
            f"clerk-feed refresh --store {store} --feed {name} --accept-shrink --items {rendered.last_items}"
            if rendered.last_outcome == "held back"
            else "",
            last=rendered.last_tried,
        )
    # A page that was served since means that it is over.
    since = max((walk.last_page for walk in walks), default=0.0)
    for occurrence in occurrences:
        fails = occurrence.last > since and _fails_a_sync(occurrence)
        waits = occurrence.kind == "deletions failed" and rendered is not None and rendered.deletions_waiting > 0
        if (fails or waits) and _is_recent(occurrence, now):
            yield _happened(occurrence)


def _fails_a_sync(occurrence: Occurrence) -> bool:
    """Whether it means that a sync fails, and nothing else tells of it."""
    problem = _PROBLEMS.get(occurrence.code)
    if occurrence.kind != "refused" or problem is None or problem.code == "feed-shrunk":
        return False
    return problem.status >= 500 or problem.status in (401, 403, 429)


def _is_recent(occurrence: Occurrence, now: float) -> bool:
    return now - occurrence.last < _RECENT_SECONDS


def _general(facts: Facts) -> Iterable[Trouble]:
    """What somebody should look at, of the service as a whole."""
    if not facts.processes:
        yield Trouble(
            "bad",
            "No process serves feeds",
            "",
            "None has written into clerk_feed.process for a quarter of a minute.",
            "Look at the log of the service. Where only this page is up, the processes that serve can't start.",
        )
    outcomes = {o.code: o for o in _verify_by_outcome(facts.occurrences)}
    lost, good = outcomes.get("unreachable"), outcomes.get("good")
    if lost and _is_recent(lost, facts.now) and (good is None or good.last < lost.last):
        problem = _PROBLEMS["clerk-unreachable"]
        yield Trouble("bad", problem.title, "", f"{lost.detail}.", problem.fix, count=lost.count, last=lost.last)
    for occurrence in facts.occurrences:
        if occurrence.kind in ("defect", "pool exhausted", "state failed") and _is_recent(occurrence, facts.now):
            yield _happened(occurrence)


def _verify_by_outcome(occurrences: Sequence[Occurrence]) -> list[Occurrence]:
    """Calls of Clerk's verify endpoint of all stores together, by outcome."""
    found: dict[str, Occurrence] = {}
    for o in occurrences:
        if o.kind != "verified":
            continue
        known = found.get(o.code)
        if known is None:
            found[o.code] = o
            continue
        latest = max(known, o, key=lambda each: each.last)
        found[o.code] = msgspec.structs.replace(latest, count=known.count + o.count, seconds=known.seconds + o.seconds)
    return [found[code] for code in ("good", "rejected", "unreachable") if code in found]


_KINDS: Mapping[str, tuple[Mood, str, str]] = {
    "resumed": (
        "none",
        "The database went away while a feed was read",
        "Nothing was lost: reading went on after the last item. If it lasts, look at PostgreSQL's log.",
    ),
    "source failed": (
        "bad",
        "PostgreSQL refused to read a feed",
        "Often one row makes an expression of the view fail: a cast, or a division by zero.",
    ),
    "state failed": ("bad", "PostgreSQL refused a statement on clerk_feed", _PROBLEMS["state-unavailable"].fix),
    "changed": (
        "none",
        "A relation was changed while it was served",
        "Nothing to do: it was described anew, and the walk went on.",
    ),
    "counted": (
        "none",
        "A page was asked for at an offset no walk had reached",
        "Somebody who looks by hand, or a client that starts in the middle: such a page is part of no sync.",
    ),
    "no modified_at": (
        "none",
        "Changes were asked of a source without modified_at",
        "Everything was served. Give the view a modified_at, or render the feed, and syncs become small.",
    ),
    "deletions failed": (
        "warn",
        "Deletions could not be sent to Clerk",
        "They are tried again by themselves. If it lasts, check private_key of the store and the way to api.clerk.io.",
    ),
    "deletions refused": (
        "warn",
        "Clerk refused to delete items",
        "clerk-feed deletions list shows which, and why.",
    ),
    "pool exhausted": ("warn", _PROBLEMS["busy"].title, _PROBLEMS["busy"].fix),
    "defect": (
        "bad",
        "The service met an exception it did not expect",
        "The log has it, with its traceback. It is worth a report.",
    ),
}

_IDS: Mapping[str, tuple[str, str]] = {
    "ids repeated": (
        "Several rows have the same id",
        "Ids must be unique: Clerk keeps one of the rows. Group them in the view, or mend the join that repeats them.",
    ),
    "ids missing": ("Rows without an id are not served", "Give them one in the view, or leave them out there."),
}

_ELSEWHERE = {"verified", "invalid", *_IDS}
"""Kinds that have a place of their own on the page."""

_CUTS: Mapping[str, tuple[str, str]] = {
    "the client left": (
        "The importer left before the answer was whole",
        "It, or a proxy on the way, gave up waiting: look at the proxy's timeouts. Clerk asks again by itself.",
    ),
    "the service was stopped": (
        "An answer was cut off because the service stopped",
        "Clerk asks again by itself. Raise shutdown_timeout if whole feeds take longer.",
    ),
}


def _happened(o: Occurrence) -> Trouble:
    """What happened, in words."""
    where = "/".join(filter(None, (o.store, o.feed)))
    mood: Mood = "warn"
    code = ""
    if o.kind == "refused" and o.code in _PROBLEMS:
        problem = _PROBLEMS[o.code]
        mood = "bad" if problem.status >= 500 else "warn"
        title = f"{problem.status}: {problem.title}"
        cure = problem.fix.replace("STORE", o.store or "STORE").replace("FEED", o.feed or "FEED")
        code = problem.code
    elif o.kind == "cut off":
        title, cure = _CUTS.get(
            o.code,
            (
                f"An answer was cut off: {_PROBLEMS[o.code].title if o.code in _PROBLEMS else o.code}",
                _PROBLEMS[o.code].fix if o.code in _PROBLEMS else "Clerk asks again by itself.",
            ),
        )
    elif o.kind in _KINDS:
        mood, title, cure = _KINDS[o.kind]
        title = f"{title} ({o.code})" if o.code else title
    else:
        title, cure = f"{o.kind} {o.code}", ""
    return Trouble(mood, title, where, o.detail, cure, count=o.count, last=o.last, code=code)


def _invalid(facts: Facts) -> tuple[Trouble, ...]:
    """Items left out, by attribute: those of rendered feeds as they stand, those of others as syncs met them."""
    found = [
        Trouble(
            "warn",
            f"{i.attribute}: {i.reason}",
            f"{i.store}/{i.feed}",
            f"{say.plural(i.count, 'item')}, such as {', '.join(i.ids)}; the first since {say.moment(i.since)}.",
            "",
            count=i.count,
        )
        for i in facts.invalid
    ]
    rendered = {(r.store, r.feed) for r in facts.rendered}
    for o in facts.occurrences:
        if o.kind == "invalid" and (o.store, o.feed) not in rendered:
            cause = f"Left out {say.plural(o.count, 'time')} in 24 hours, last the item with {o.detail}."
            found.append(
                Trouble("warn", f"{o.code} is missing", f"{o.store}/{o.feed}", cause, "", count=o.count, last=o.last)
            )
        elif o.kind in _IDS:
            title, cure = _IDS[o.kind]
            found.append(Trouble("warn", title, f"{o.store}/{o.feed}", f"{o.detail}.", cure, last=o.last))
    return tuple(found)


def _spark(past: Sequence[Past]) -> Markup:
    full = [p.count for p in reversed(past) if not p.walk.incremental and p.outcome == "finished"][-30:]
    if len(full) < 2:
        return Markup("")
    return plot.sparkline(
        full, f"Items of the last {len(full)} full syncs: from {say.number(full[0])} to {say.number(full[-1])}"
    )


_SHAPES: Mapping[str, plot.Shape] = {"finished": "good", "held back": "bad", "given up": "open"}


def _plots(past: Sequence[Past]) -> Iterable[tuple[str, Markup]]:
    dated = sorted(past, key=lambda p: p.walk.started)
    full = [p for p in dated if not p.walk.incremental]
    delta = [p for p in dated if p.walk.incremental]
    for title, walks in (("full syncs", full), ("syncs of changes", delta)):
        timed = [p for p in walks if p.seconds is not None]
        if walks:
            yield (
                f"Items of {title}",
                _drawn(walks, [float(p.count) for p in walks], f"Items of {title}", is_time=False),
            )
        if timed:
            values = [p.seconds or 0.0 for p in timed]
            yield f"Duration of {title}", _drawn(timed, values, f"Duration of {title}", is_time=True)


def _drawn(walks: Sequence[Past], values: Sequence[float], title: str, *, is_time: bool) -> Markup:
    told = say.duration if is_time else say.number
    points = [
        plot.Point(p.walk.started, value, _SHAPES[p.outcome], _told(p)) for p, value in zip(walks, values, strict=True)
    ]
    finished = [v for p, v in zip(walks, values, strict=True) if p.outcome == "finished"]
    summary = f"{title}: {len(walks)} since {say.clock(walks[0].walk.started)} UTC"
    if finished:
        summary += f", from {told(min(finished))} to {told(max(finished))}, {told(finished[-1])} the last time"
    guides = (
        (
            plot.Guide(CLERK_HOURLY_SECONDS, "10 min: below it Clerk may sync hourly"),
            plot.Guide(CLERK_DAILY_SECONDS, "60 min: above it once a day"),
        )
        if is_time
        else ()
    )
    return plot.plot(points, label=summary, ticks=plot.durations if is_time else plot.counts, guides=guides)


def _told(p: Past) -> str:
    took = f" in {say.duration(p.seconds)}" if p.seconds is not None else ""
    return f"{say.moment(p.walk.started)}: {p.outcome}, {say.plural(p.count, 'item')}{took}"
