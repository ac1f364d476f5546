"""What the database knows, as metrics: how far walks are, how old refreshes, what waits to be deleted."""

from collections.abc import Sequence

from app.status.history import Rendered, Walk, outcomes
from app.status.metrics import Gauge

_FEED = ("store", "feed")
_KIND = (*_FEED, "kind")


def gauges(walks: Sequence[Walk] | None, rendered: Sequence[Rendered], now: float) -> list[Gauge]:
    """The gauges of the last walks and of rendered feeds. `walks` is None while the database is away."""
    up = Gauge("database_up", "Whether the database answered this scrape.", (), [((), float(walks is not None))])
    if walks is None:
        return [up]
    judged = outcomes(walks, now)
    judged.reverse()  # of several the newest stays
    running = {(w.store, w.feed, _kind(w)): w for w, outcome in judged if outcome == "running"}
    finished = {(w.store, w.feed, _kind(w)): w for w, outcome in judged if outcome == "finished"}
    last_full = {(w.store, w.feed): w for w, _ in judged if w.ended is not None and not w.incremental}
    refreshed = [r for r in rendered if r.refreshed is not None]
    return [
        up,
        Gauge(
            "walk_items",
            "Items sent so far in the walk that is under way.",
            _KIND,
            [(key, walk.items) for key, walk in running.items()],
        ),
        Gauge(
            "last_walk_items",
            "Items of the last walk that finished.",
            _KIND,
            [(key, walk.final_items or 0) for key, walk in finished.items()],
        ),
        Gauge(
            "last_walk_invalid_items",
            "Items the last walk that finished left out.",
            _KIND,
            [(key, walk.invalid) for key, walk in finished.items()],
        ),
        Gauge(
            "last_walk_seconds",
            "How long the last walk that finished took, from its first page to its last.",
            _KIND,
            [(key, walk.seconds) for key, walk in finished.items() if not walk.whole],
        ),
        Gauge(
            "last_walk_finished_timestamp_seconds",
            "When the last walk that finished did.",
            _KIND,
            [(key, walk.last_page) for key, walk in finished.items()],
        ),
        Gauge(
            "held_back",
            "1 where the last full walk was not let end, because it had far fewer items than the one before.",
            _FEED,
            [(place, float(walk.ended == "held back")) for place, walk in last_full.items()],
        ),
        Gauge(
            "refresh_age_seconds",
            "Since when the items of a rendered feed stand.",
            _FEED,
            [((r.store, r.feed), now - (r.refreshed or now)) for r in refreshed],
        ),
        Gauge(
            "refresh_failed",
            "1 where the last refresh of a rendered feed failed or was held back.",
            _FEED,
            [((r.store, r.feed), float(r.last_outcome not in (None, "done"))) for r in rendered],
        ),
        Gauge(
            "rendered_invalid_items",
            "Rows of a rendered feed that lack a required attribute.",
            _FEED,
            [((r.store, r.feed), r.invalid) for r in rendered],
        ),
        Gauge(
            "deletions_waiting",
            "Items that vanished from a rendered feed and that Clerk has not been told of yet.",
            _FEED,
            [((r.store, r.feed), r.deletions_waiting) for r in rendered],
        ),
    ]


def _kind(walk: Walk) -> str:
    return "incremental" if walk.incremental else "full"
