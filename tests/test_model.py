"""Walks against a model: hypothesis looks for an order of events that loses an item. See tests/model.py.

MODEL_EXAMPLES says how many orders are tried, 100 unless given.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from hypothesis.errors import FlakyFailure

from app.catalog import ahead, reader
from app.catalog.bookmarks import Bookmark, Bookmarks, Page
from app.catalog.source import Key, Source
from app.catalog.standbys import Mark
from app.protocol.problems import Refusal
from app.protocol.request import parse
from app.settings import Duration, FeedSettings, Store
from tests.conftest import Database, Loop
from tests.model import (
    FEED,
    PROCESSES,
    Alone,
    AloneWithRetries,
    Disturbances,
    Endless,
    Importer,
    Lost,
    Malformed,
    Moved,
    Operations,
    Repeated,
    Unseen,
    Violation,
    Walks,
    World,
    run,
)

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "100"))


@pytest.fixture(scope="module")
def world(create_database: Callable[[], Database], loop: Loop) -> Iterator[World]:
    # Sequential scans give bookmarks in the harder order.
    running = World(loop, create_database(), sequential=True)
    yield running
    running.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine finds what an idle one does: pages read ahead are kept as long as an example takes."""
    monkeypatch.setattr(ahead, "KEPT_SECONDS", 3600)


class LargePages(Bookmarks):
    """The same bookmarks, found, read and turned in steps: as large pages are, and those that are read ahead."""


def test_no_order_of_events_loses_an_item(world: World) -> None:
    run(Disturbances, world, examples=EXAMPLES)


def test_no_order_of_events_loses_an_item_of_pages_read_ahead(world: World) -> None:
    run(Disturbances, world, LargePages, examples=EXAMPLES)


def test_no_order_of_events_loses_an_item_where_nobody_sees_that_importers_meet(world: World) -> None:
    run(Unseen, world, examples=EXAMPLES)


def test_no_order_of_events_loses_an_item_of_large_pages_where_nobody_sees_that_importers_meet(world: World) -> None:
    run(Unseen, world, LargePages, examples=EXAMPLES)


def test_no_failover_and_no_change_of_ids_loses_an_item(world: World) -> None:
    run(Operations, world, examples=EXAMPLES)


def test_no_failover_and_no_change_of_ids_loses_an_item_of_large_pages(world: World) -> None:
    run(Operations, world, LargePages, examples=EXAMPLES)


def test_an_importer_that_is_alone_is_sent_no_item_twice(world: World) -> None:
    run(Alone, world, examples=EXAMPLES // 4)


def test_a_page_asked_for_again_starts_where_it_started(world: World) -> None:
    run(AloneWithRetries, world, examples=EXAMPLES // 4)


# That the machines find what they are for: rules that look as good, and are not


class NoBookmarks(Bookmarks):
    """Plain OFFSET, as every feed by hand does it."""

    ends_by_counting = True

    async def find(self, source: Source, offset: int, limit: int, *, since: float | None) -> Bookmark | None:
        return None


class Remembered(Bookmarks):
    """A bookmark is read once in each process."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._known: dict[tuple[bool, int], Bookmark | None] = {}

    async def find(self, source: Source, offset: int, limit: int, *, since: float | None) -> Bookmark | None:
        place = (since is not None, offset)
        if self._known.get(place) is None:
            self._known[place] = await super().find(source, offset, limit, since=since)
        return self._known[place]


class Downwards(Key, frozen=True):
    """The same keys, sorted the other way round."""

    @property
    def kind(self) -> str:
        return super().kind.removesuffix(" desc")


class HighestKey(Bookmarks):
    """Of several bookmarks at an offset the one that is furthest on: no item would be sent twice."""

    async def find(self, source: Source, offset: int, limit: int, *, since: float | None) -> Bookmark | None:
        downwards = Downwards(source.key.family, f"{source.key.order} desc")
        return await super().find(msgspec.structs.replace(source, key=downwards), offset, limit, since=since)


class Hasty(Bookmarks):
    """Whoever asks is taken for the one whose bookmark its page begins from, although others may be there."""

    async def find(self, source: Source, offset: int, limit: int, *, since: float | None) -> Bookmark | None:
        found = await super().find(source, offset, limit, since=since)
        if found is None:
            return None
        async with self._pool.connection() as connection:
            trail = await connection.fetchval("select trail from clerk_feed.bookmark where id = $1", found.id)
        return msgspec.structs.replace(found, trail=trail)


class NeverPast(Bookmarks):
    """Every bookmark of the last hour is one an importer may still be at."""

    async def turn(
        self, source: Source, page: Page, *, incremental: bool, start: Bookmark | None, begun: Mark | None = None
    ) -> tuple[int, int]:
        turned = await super().turn(source, page, incremental=incremental, start=start, begun=begun)
        await self._forget_what_is_past()
        return turned

    async def finish(self, source: Source, page: Page, *, incremental: bool, start: Bookmark) -> None:
        await super().finish(source, page, incremental=incremental, start=start)
        await self._forget_what_is_past()

    async def _forget_what_is_past(self) -> None:
        async with self._pool.connection() as connection:
            await connection.execute("update clerk_feed.bookmark set past = false, ended = null")


class SettledLast(Bookmarks):
    """Of several deltas at an offset the one that began last says what had settled."""

    async def find(self, source: Source, offset: int, limit: int, *, since: float | None) -> Bookmark | None:
        found = await super().find(source, offset, limit, since=since)
        if found is None or since is None:
            return found
        async with self._pool.connection() as connection:
            settled = await connection.fetchval(
                "select max(settled)::text from clerk_feed.bookmark where incremental and at = $1 and not past", offset
            )
        return msgspec.structs.replace(found, settled=settled or found.settled)


class AllSettled(Bookmarks):
    """Each page of a delta takes what has changed up to now for what had settled when the delta began."""

    async def find(self, source: Source, offset: int, limit: int, *, since: float | None) -> Bookmark | None:
        found = await super().find(source, offset, limit, since=since)
        return found and msgspec.structs.replace(found, settled="infinity")


class Unnumbered(Bookmarks):
    """A page that was read ahead is good for whoever starts where it starts."""

    async def find(self, source: Source, offset: int, limit: int, *, since: float | None) -> Bookmark | None:
        found = await super().find(source, offset, limit, since=since)
        return found and msgspec.structs.replace(found, newest=0)

    async def turn(
        self, source: Source, page: Page, *, incremental: bool, start: Bookmark | None, begun: Mark | None = None
    ) -> tuple[int, int]:
        walk, _ = await super().turn(source, page, incremental=incremental, start=start, begun=begun)
        return walk, 0


class Unwarned(Bookmarks):
    """Nobody notices a failover."""

    async def find(self, source: Source, offset: int, limit: int, *, since: float | None) -> Bookmark | None:
        async with self._pool.connection() as connection:
            for table in ("bookmark", "asked"):
                await connection.execute(f"update clerk_feed.{table} set timeline = clerk_feed.timeline()")
        return await super().find(source, offset, limit, since=since)


class CountedDisturbances(Disturbances):
    counted_pages_are_wrong = False


@contextmanager
def finds(*promises: type[Violation]) -> Iterator[None]:
    """A search that must come to a broken promise; where requests meet, the same steps may not break it once more."""
    with pytest.raises((*promises, FlakyFailure)) as failed:
        yield
    assert not isinstance(failed.value, FlakyFailure) or failed.group_contains(promises)


@pytest.mark.parametrize(
    ("machine", "bookmarks"),
    [
        (CountedDisturbances, NoBookmarks),
        (Disturbances, Remembered),
        (Disturbances, HighestKey),
        (Disturbances, Hasty),
        (Disturbances, SettledLast),
        (Disturbances, AllSettled),
    ],
)
def test_items_are_lost(world: World, machine: type[Walks], bookmarks: type[Bookmarks]) -> None:
    with finds(Lost, Moved):
        run(machine, world, bookmarks, examples=1000, derandomize=True, shrink=False)


def test_items_of_before_the_walk_are_served_where_a_page_read_ahead_is_good_for_anyone(world: World) -> None:
    with finds(Lost, Malformed):
        run(Disturbances, world, Unnumbered, examples=1000, derandomize=True, shrink=False)


def test_items_are_sent_twice_where_bookmarks_never_become_past(world: World) -> None:
    """It loses nothing. But an importer that is alone, asks for nothing twice and finishes every walk gets items of
    the walk before again, and the guard's number, offset + items of the last page, is higher than what it was sent."""
    with finds(Repeated):
        run(Alone, world, NeverPast, examples=1000, derandomize=True, shrink=False)


# What the machines leave out


class Scene(Disturbances):
    """A machine driven by hand, where others may ask between a lost answer and the request that repeats it."""

    def sent_by(self, importer: Importer) -> list[int]:
        """What the next page holds."""
        before = len(importer.sent) if importer.walking else 0
        self.receive(importer, 0)
        return importer.sent[before:]


@pytest.fixture
def scene(world: World) -> Scene:
    """Twenty items, 5 to 24, and importers that ask for three at a time."""
    played = Scene(world)
    played.shop("ints", first=5, count=20, step=1, undated=False)
    return played


def test_an_importer_that_paused_for_hours_goes_on_where_it_was(scene: Scene) -> None:
    paused = scene.importers[0]
    scene.receive(paused, 0)
    scene.let_pass("3 hours")
    scene.drop([5, 6])
    assert scene.sent_by(paused) == [8, 9, 10]


def test_an_importer_that_paused_for_two_hours_is_taken_for_a_younger_one_at_its_offset(scene: Scene) -> None:
    """The price of not sending abandoned walks' items again and again for a day."""
    paused, younger, _ = scene.importers
    scene.receive(paused, 0)
    scene.let_pass("2 hours")
    scene.drop([5, 6, 7])
    scene.receive(younger, 0)
    assert scene.sent_by(paused) == [11, 12, 13]


def test_an_importer_that_paused_for_less_than_two_hours_is_not(scene: Scene) -> None:
    paused, younger, _ = scene.importers
    scene.receive(paused, 0)
    scene.let_pass("119 minutes")
    scene.drop([5, 6, 7])
    scene.receive(younger, 0)
    assert scene.sent_by(paused) == [8, 9, 10]


@pytest.mark.parametrize("bookmarks", [Bookmarks, LargePages])
@pytest.mark.parametrize("failed_over", [False, True])
@pytest.mark.parametrize("gone", [[], [5]], ids=["equal keys", "different keys"])
def test_a_place_that_another_has_come_by_is_kept(
    world: World, bookmarks: type[Bookmarks], failed_over: bool, gone: list[int]
) -> None:
    scene = Scene(world, bookmarks)
    scene.shop("ints", first=5, count=20, step=1, undated=False)
    first, slow, _ = scene.importers
    scene.receive(first, 0)
    scene.let_pass("110 minutes")
    scene.drop(gone)
    scene.receive(slow, 0)
    reached = slow.sent[-1]
    scene.let_pass("5 minutes")
    scene.finish(first, 0)
    scene.let_pass("10 minutes")
    if failed_over:
        scene.world.fail_over()
    scene.drop(range(reached + 1))
    scene.receive(first, 0)
    if failed_over:
        with pytest.raises(Refusal, match="may have been under way before"):
            scene.receive(slow, 0)
    else:
        assert scene.sent_by(slow) == [reached + 1, reached + 2, reached + 3]


@pytest.mark.parametrize("bookmarks", [Bookmarks, LargePages])
def test_importers_that_take_each_others_place_for_hours_lose_nothing(world: World, bookmarks: type[Bookmarks]) -> None:
    """Each is at one place for less than two hours; at the end `one` is for 22 minutes."""
    scene = Scene(world, bookmarks)
    scene.shop("ints", first=5, count=20, step=1, undated=False)
    one, two, _ = scene.importers
    scene.receive(one, 0)
    scene.let_pass("110 minutes")
    scene.receive(two, 0)
    scene.let_pass("5 minutes")
    scene.finish(one, 0)
    scene.let_pass("105 minutes")
    scene.receive(one, 0)
    scene.let_pass("1 minute")
    scene.finish(two, 0)
    scene.let_pass("21 minutes")
    scene.drop([5, 6, 7])
    scene.receive(two, 0)
    assert scene.sent_by(one) == [8, 9, 10]


@pytest.mark.parametrize("bookmarks", [Bookmarks, LargePages])
def test_an_empty_answer_asked_for_again_is_no_second_arrival(world: World, bookmarks: type[Bookmarks]) -> None:
    """A walk that was given up hours ago has left a bookmark there too."""
    scene = Scene(world, bookmarks)
    scene.shop("ints", first=2, count=9, step=1, undated=False)
    first, slow, _ = scene.importers
    for _ in range(2):
        scene.receive(first, 0)
    scene.abandon(first)
    scene.let_pass("3 hours")
    scene.drop([2, 3, 4])
    scene.receive(first, 0)
    scene.receive(slow, 0)
    scene.receive(first, 0)
    scene.lose(first, 0)
    scene.finish(first, 0)
    scene.drop([5])
    scene.receive(first, 0)
    assert scene.sent_by(slow) == [8, 9, 10]


# Importers that meet


def test_an_importer_with_another_limit_takes_nothing_away(scene: Scene) -> None:
    slow, other, _ = scene.importers
    other.limit = 6
    scene.receive(slow, 0)
    scene.lose(slow, 0)  # leaves a bookmark at 6, written by 3
    scene.receive(other, 0)
    scene.receive(other, 0)  # starts from it, and `slow` has yet to ask again
    scene.abandon(other)
    other.limit = 3
    scene.drop([5, 6, 7])
    scene.receive(other, 0)
    assert scene.sent_by(slow) == [8, 9, 10]


def test_two_attempts_with_a_smaller_key_between_them(scene: Scene) -> None:
    """What `slow` loses lies before what `other` has come to, and `other` asks for its page again."""
    slow, other, _ = scene.importers
    scene.drop([8])
    scene.receive(slow, 0)
    scene.receive(other, 0)
    scene.receive(other, 0)
    scene.lose(other, 0)
    scene.put([8])
    scene.lose(slow, 0)  # leaves a smaller key at 6
    scene.receive(other, 0)
    scene.abandon(other)
    scene.drop([5, 6, 7])
    scene.receive(other, 0)
    assert scene.sent_by(slow) == [8, 9, 10]


def test_a_retry_where_different_limits_meet(scene: Scene) -> None:
    """What `other` asks for again starts from the smaller key that `slow` has left there meanwhile."""
    slow, other, _ = scene.importers
    scene.shop("ints", first=7, count=9, step=1, undated=False)
    other.limit = 6
    scene.receive(slow, 0)
    scene.drop([9, 10, 11])
    scene.receive(other, 0)
    scene.lose(other, 0)  # an empty answer
    scene.receive(slow, 0)
    scene.receive(other, 0)  # once more, from what `slow` wrote
    scene.receive(other, 0)
    scene.lose(other, 0)
    scene.receive(slow, 0)


def test_items_are_lost_where_whoever_asks_is_taken_for_another(world: World) -> None:
    scene = Scene(world, Hasty)
    scene.shop("ints", first=5, count=20, step=1, undated=False)
    slow, other, _ = scene.importers
    scene.receive(slow, 0)
    scene.drop([5])
    for _ in range(3):
        scene.receive(other, 0)
    with pytest.raises(Lost):
        scene.finish(slow, 0)


class Unordered(Bookmarks):
    """A key is a key, whatever type the ids are of."""

    async def find(self, source: Source, offset: int, limit: int, *, since: float | None) -> Bookmark | None:
        async with self._pool.connection() as connection:
            await connection.execute(
                "update clerk_feed.bookmark set key_family = replace(key_family, $1, $2)",
                "text" if source.key.family == "int8" else "int8",
                source.key.family,
            )
        return await super().find(source, offset, limit, since=since)


def test_items_are_lost_where_the_order_of_a_key_does_not_matter(world: World) -> None:
    class Operated(Scene, Operations):
        pass

    scene = Operated(world, Unordered)
    scene.shop("ints", first=5, count=20, step=1, undated=False)
    (importer, *_) = scene.importers
    scene.order_the_ids_otherwise()
    while not importer.sent:
        scene.receive(importer, 0)
    scene.order_the_ids_otherwise()
    for process in range(PROCESSES):  # each is told that the type is another one by a page that fails
        scene.receive(importer, process)
    with pytest.raises(Lost):
        scene.finish(importer, 0)


def test_after_a_failover_nobody_goes_on_from_the_bookmark_of_another(scene: Scene) -> None:
    """At 0 both are taken for one, which ends its walk: nothing says that `slow` is under way but its bookmark."""
    slow, other, _ = scene.importers
    scene.receive(slow, 0)
    scene.finish(other, 0)
    scene.world.fail_over()
    scene.drop([5, 6, 7])
    scene.receive(other, 0)
    with pytest.raises(Refusal, match="may have been under way before"):
        scene.receive(slow, 0)


def test_items_are_lost_where_nobody_notices_a_failover(world: World) -> None:
    scene = Scene(world, Unwarned)
    scene.shop("ints", first=5, count=20, step=1, undated=False)
    slow, other, _ = scene.importers
    scene.finish(other, 0)
    scene.let_pass("16 minutes")
    scene.world.let_the_standby_follow()
    scene.receive(slow, 0)
    scene.world.fail_over()
    scene.drop([5, 6, 7])
    scene.receive(other, 0)
    with pytest.raises(Lost):
        scene.finish(slow, 0)


def test_after_a_failover_nobody_is_told_in_anothers_place(scene: Scene) -> None:
    """Of one that was refused none knows whether it heard of it, nor whether it was the one whose place it is."""
    slow, other, _ = scene.importers
    scene.receive(slow, 0)
    for _ in range(3):
        scene.receive(other, 0)
    scene.world.fail_over()
    scene.drop([5, 6, 7])
    for _ in range(2):
        for _ in range(2):
            with pytest.raises(Refusal, match="may have been under way before"):
                scene.receive(other, 0)
        scene.abandon(other)
        scene.receive(other, 0)
    with pytest.raises(Refusal, match="may have been under way before"):
        scene.receive(slow, 0)


def test_after_a_failover_walks_pass_again_when_nobody_can_be_there_any_more(scene: Scene) -> None:
    importer, *_ = scene.importers
    for _ in range(4):
        scene.receive(importer, 0)
    scene.world.fail_over()
    scene.drop([5])
    for hours in (0, 1):
        scene.let_pass(f"{hours} hours")
        with pytest.raises(Refusal, match="may have been under way before"):
            scene.finish(importer, 0)
        scene.abandon(importer)
    scene.let_pass("1 hour")
    scene.finish(importer, 0)


@pytest.mark.parametrize("noticed", [False, True])
@pytest.mark.parametrize(("known", "unknown"), [("61 minutes", "61 minutes"), ("119 minutes", "2 minutes")])
def test_a_place_that_the_standby_does_not_know_is_kept_too(
    scene: Scene, known: str, unknown: str, noticed: bool
) -> None:
    """As long as one may be there that was at the place before when the standby was told of it."""
    slow, other, third = scene.importers
    third.limit = 4
    for _ in range(2):
        scene.receive(slow, 0)
    scene.let_pass(known)
    if noticed:
        scene.finish(third, 0)
    scene.world.let_the_standby_follow()
    scene.receive(slow, 0)
    scene.world.fail_over()
    if noticed:
        scene.receive(third, 0)
    scene.let_pass(unknown)
    scene.drop([5, 6, 7])
    scene.receive(other, 0)
    for importer in (other, slow):
        with pytest.raises(Refusal, match="may have been under way before"):
            scene.receive(importer, 0)


def test_who_is_refused_after_a_failover_notes_it(scene: Scene) -> None:
    """The next sync is let past two hours later, and not two hours after it began."""
    importer, *_ = scene.importers
    for _ in range(3):
        scene.receive(importer, 0)
    scene.world.fail_over()
    with pytest.raises(Refusal, match="may have been under way before"):
        scene.receive(importer, 0)
    scene.abandon(importer)
    scene.let_pass("2 hours")
    scene.finish(importer, 0)


def test_a_failover_shows_where_the_first_page_after_it_could_not_note_it(scene: Scene) -> None:
    slow, other, _ = scene.importers
    scene.receive(slow, 0)
    scene.world.fail_over()
    scene.drop([5, 6, 7])
    scene.world.database.execute("begin; select from clerk_feed.asked for update")
    try:
        scene.receive(other, 0)
        with pytest.raises(Refusal, match="may have been under way before"):
            scene.receive(slow, 0)
    finally:
        scene.world.database.execute("rollback")


def test_a_database_made_anew_from_a_dump_knows_no_walk_that_began_since(
    create_database: Callable[[], Database], loop: Loop
) -> None:
    """What the walk before has left behind is in it, and must not be taken for this one's."""
    world = World(loop, create_database())
    try:
        scene = Scene(world)
        scene.shop("ints", first=5, count=20, step=1, undated=False)
        (importer, *_) = scene.importers
        scene.finish(importer, 0)
        scene.let_pass("20 minutes")
        scene.drop([5, 6])
        scene.put([0, 1, 2])
        world.let_the_standby_follow()
        scene.receive(importer, 0)
        world.database.execute(
            """
            drop table clerk_feed.bookmark;
            create table clerk_feed.bookmark (like standby.bookmark including all);
            alter table clerk_feed.bookmark
              alter id set not null, alter id add generated always as identity (start 1000),
              alter timeline set default clerk_feed.timeline(), alter written set default clock_timestamp(),
              alter past set default false, alter closed set default false,
              alter trail set default nextval('clerk_feed.trail');
            insert into clerk_feed.bookmark overriding system value table standby.bookmark
            """
        )
        with pytest.raises(Refusal, match="may have been under way before"):
            scene.receive(importer, 0)
    finally:
        world.close()


@pytest.mark.parametrize(("limit", "other_limit"), [(3, 6), (2, 6), (6, 3), (3, 4)])
def test_who_ends_closes_no_way_of_pages_of_another_length(scene: Scene, limit: int, other_limit: int) -> None:
    """Of a slow importer beside a quick one that syncs again and again: every night it comes to its end."""
    scene.shop("ints", first=5, count=24, step=1, undated=False)
    slow, quick, _ = scene.importers
    slow.limit, quick.limit = limit, other_limit
    for _ in range(2):
        slow.synced = 0
        for _ in range(24 // limit + 1):
            scene.receive(slow, 0)
            scene.finish(quick, 0)
            scene.receive(quick, 0)
            scene.let_pass("11 minutes")
        assert slow.synced
        scene.finish(quick, 0)
        scene.let_pass("20 hours")


def test_what_a_lost_answer_leaves_behind_does_not_stay_young(scene: Scene) -> None:
    """Deltas reach back to it for two hours at most, not to the end of the day."""
    (alone, *_) = scene.importers
    alone.incremental = True
    scene.finish(alone, 0)
    scene.put([5, 6, 7, 8])
    scene.lose(alone, 0)
    alone.sent = []
    scene.finish(alone, 0)
    for number in range(30):
        scene.let_pass("10 minutes")
        scene.put([number])
        scene.finish(alone, 0)
    assert len(alone.sent) <= 12


@pytest.mark.parametrize("minutes", [180, 60])
def test_what_a_lost_answer_leaves_behind_is_forgotten_although_every_walk_meets_it(scene: Scene, minutes: int) -> None:
    """The catalog stays as it is, so that each walk has a bookmark of equal key there."""
    (alone, *_) = scene.importers
    for _ in range(6):
        scene.receive(alone, 0)
    scene.lose(alone, 0)
    scene.finish(alone, 0)
    for _ in range(6):
        scene.let_pass(f"{minutes} minutes")
        scene.finish(alone, 0)
    scene.let_pass("16 minutes")
    is_waited_for = "not past and ended is null and written > now() - interval '30 minutes'"
    assert scene.world.database.value(f"select count(*) from clerk_feed.bookmark where {is_waited_for}") == 0


def test_a_short_page_found_by_counting_is_no_end(world: World) -> None:
    """The bookmarks went with a database that was replaced, and an item went meanwhile."""

    class Counted(Scene):
        counted_pages_are_wrong = False
        importers_count = 1

    scene = Counted(world)
    scene.shop("ints", first=5, count=20, step=1, undated=False)
    (importer, *_) = scene.importers
    importer.stops_short = True
    for _ in range(5):
        scene.receive(importer, 0)
    world.database.execute("truncate clerk_feed.bookmark")
    scene.drop([5])
    scene.receive(importer, 0)
    with pytest.raises(Refusal, match="No more than 1 of customers of ints lies at offset 18"):
        scene.receive(importer, 0)


def test_after_a_failover_between_walks_the_next_one_is_served(scene: Scene) -> None:
    importer, *_ = scene.importers
    scene.finish(importer, 0)
    scene.let_pass("16 minutes")
    scene.world.fail_over()
    scene.finish(importer, 0)


def test_one_that_paused_for_two_hours_takes_nothing_from_another(scene: Scene) -> None:
    paused, slow, _ = scene.importers
    scene.receive(paused, 0)
    scene.receive(paused, 0)
    scene.let_pass("121 minutes")
    scene.receive(slow, 0)
    scene.lose(slow, 0)
    paused.must = set()  # nothing is promised to the one that paused
    scene.finish(paused, 0)
    scene.drop([5, 6, 7])
    scene.receive(paused, 0)
    assert scene.sent_by(slow) == [8, 9, 10]


def test_walks_that_are_older_than_another_take_nothing_from_it(world: World) -> None:
    scene = Scene(world)
    scene.shop("ints", first=5, count=16, step=2, undated=False)
    first, second, slow = scene.importers
    for importer in (first, second, first, second):
        scene.receive(importer, 0)
    scene.finish(second, 0)
    scene.let_pass("50 minutes")
    scene.put([12])
    scene.receive(slow, 0)
    scene.lose(slow, 0)
    scene.finish(first, 0)
    scene.drop([5, 7, 9])
    scene.receive(second, 0)
    scene.let_pass("11 minutes")
    assert scene.sent_by(slow)[0] == 11


def test_pages_asked_for_twice_and_a_new_start_take_nothing_from_another(
    create_database: Callable[[], Database], loop: Loop
) -> None:
    """`other` asks for two pages twice each, at once, and starts over; `slow` just takes its time."""
    world = World(loop, create_database(), sequential=True)
    try:
        scene = Scene(world)
        scene.shop("ints", first=5, count=20, step=1, undated=False)
        slow, other, _ = scene.importers
        scene.receive(slow, 0)
        scene.receive(other, 0)
        scene.lose(other, 0)
        scene.receive(other, 0)
        scene.lose(other, 0)
        scene.receive(other, 0)
        scene.abandon(other)
        scene.drop([5, 6, 7])
        scene.receive(other, 0)
        assert scene.sent_by(slow) == [8, 9, 10]
    finally:
        world.close()


def test_an_empty_answer_asked_for_again_is_empty_again(scene: Scene) -> None:
    class Exact(Scene):
        importers_count = 1
        ends_are_exact = True

    alone = Exact(scene.world)
    alone.shop("ints", first=0, count=10, step=1, undated=False)
    (importer,) = alone.importers
    alone.finish(importer, 0)
    alone.let_pass("16 minutes")
    alone.drop([0])
    for _ in range(3):
        alone.receive(importer, 0)
    alone.lose(importer, 0)
    alone.receive(importer, 0)


def has_lost_its_end(world: World, bookmarks: type[Bookmarks], *, incremental: bool = False) -> Scene:
    """Twelve items, which the first importer has; the empty answer behind them got lost."""
    scene = Scene(world, bookmarks)
    for importer in scene.importers:
        importer.incremental = incremental
    scene.shop("ints", first=5, count=12, step=1, undated=False)
    (first, *_) = scene.importers
    for _ in range(4):
        scene.receive(first, 0)
    scene.lose(first, 0)
    return scene


@pytest.mark.parametrize("bookmarks", [Bookmarks, LargePages])
def test_an_empty_answer_asked_for_again_is_not_the_arrival_of_another_page(
    world: World, bookmarks: type[Bookmarks]
) -> None:
    """`other` has begun where the walk before had ended, and lost the page that leads to that end."""
    scene = has_lost_its_end(world, bookmarks)
    first, other, third = scene.importers
    for _ in range(3):
        scene.receive(other, 0)
    scene.lose(other, 0)
    scene.receive(first, 0)
    scene.drop([5])
    for _ in range(3):
        scene.receive(third, 0)
    scene.finish(other, 0)


@pytest.mark.parametrize("bookmarks", [Bookmarks, LargePages])
def test_an_empty_answer_that_holds_items_when_asked_for_again_is_one_arrival(
    world: World, bookmarks: type[Bookmarks]
) -> None:
    scene = has_lost_its_end(world, bookmarks)
    first, other, _ = scene.importers
    scene.put(list(range(17, 27)))
    for _ in range(4):
        scene.receive(other, 0)
    scene.finish(first, 0)
    scene.drop([5, 6, 7])
    for _ in range(4):
        scene.receive(first, 0)
    scene.finish(other, 0)


@pytest.mark.parametrize("minutes", [1, 30])
@pytest.mark.parametrize("bookmarks", [Bookmarks, LargePages])
def test_who_begins_behind_a_lost_empty_answer_may_take_his_time(
    world: World, bookmarks: type[Bookmarks], minutes: int
) -> None:
    """The first importer asks for it again behind him, and goes on, because the feed has grown."""
    scene = has_lost_its_end(world, bookmarks)
    first, slow, _ = scene.importers
    scene.put(list(range(17, 27)))
    for _ in range(4):
        scene.receive(slow, 0)
    scene.finish(first, 0)
    scene.let_pass(f"{minutes} minutes")
    scene.drop([5, 6, 7])
    for _ in range(4):
        scene.receive(first, 0)
    scene.finish(slow, 0)


@pytest.mark.parametrize("bookmarks", [Bookmarks, LargePages])
def test_an_empty_answer_that_is_lost_twice_is_the_arrival_of_nobody(world: World, bookmarks: type[Bookmarks]) -> None:
    scene = Scene(world, bookmarks)
    scene.shop("ints", first=1, count=6, step=1, undated=False)
    first, slow, third = scene.importers

    def receive(importer: Importer, pages: int) -> None:
        for _ in range(pages):
            scene.receive(importer, 0)

    receive(first, 2)
    scene.lose(first, 0)
    receive(slow, 2)
    scene.lose(first, 0)
    scene.drop([6])
    scene.put([0])
    receive(third, 2)
    receive(first, 1)
    scene.let_pass("9 minutes")
    scene.put([7, 8, 9, 10, 11, 12])
    scene.finish(third, 0)
    receive(first, 2)
    scene.finish(slow, 0)
    scene.drop([3, 4, 5])
    receive(third, 2)
    scene.finish(first, 0)


@pytest.mark.parametrize("bookmarks", [Bookmarks, LargePages])
def test_an_end_that_holds_items_and_is_lost_again_is_the_arrival_of_nobody(
    world: World, bookmarks: type[Bookmarks]
) -> None:
    scene = Scene(world, bookmarks)
    scene.shop("ints", first=1, count=6, step=1, undated=False)
    first, slow, _ = scene.importers
    for _ in range(2):
        scene.receive(first, 0)
    scene.lose(first, 0)
    scene.put([7, 8, 9, 10, 11, 12])
    scene.receive(slow, 0)
    scene.lose(slow, 0)
    scene.let_pass("7 minutes")
    scene.lose(first, 0)
    scene.let_pass("2 minutes")
    scene.finish(first, 0)
    scene.drop([1, 2, 3])
    scene.receive(first, 0)
    scene.finish(slow, 0)


@pytest.mark.parametrize("bookmarks", [Bookmarks, LargePages])
def test_importers_side_by_side_of_which_one_loses_its_end(world: World, bookmarks: type[Bookmarks]) -> None:
    """Each page of the second looks like the first one's, asked for again."""
    scene = Scene(world, bookmarks)
    scene.shop("ints", first=1, count=12, step=1, undated=False)
    first, second, _ = scene.importers
    for _ in range(4):
        scene.receive(first, 0)
        scene.receive(second, 0)
    scene.lose(first, 0)
    scene.put([13, 14, 15, 16, 17, 18])
    scene.let_pass("1 minute")
    scene.finish(first, 0)
    scene.let_pass("16 minutes")
    for _ in range(4):
        scene.receive(first, 0)
    scene.finish(second, 0)
    scene.let_pass("16 minutes")
    scene.drop([10, 11, 12])
    for _ in range(4):
        scene.receive(second, 0)
    scene.finish(first, 0)


@pytest.mark.parametrize("bookmarks", [Bookmarks, LargePages])
def test_two_slow_pages_of_one_take_nothing_from_another(world: World, bookmarks: type[Bookmarks]) -> None:
    scene = Scene(world, bookmarks)
    scene.shop("ints", first=1, count=18, step=1, undated=False)
    slow, other, _ = scene.importers
    scene.receive(slow, 0)
    scene.drop([1])
    scene.finish(other, 0)
    scene.let_pass("101 minutes")
    scene.receive(other, 0)
    scene.receive(slow, 0)
    scene.let_pass("67 minutes")
    scene.finish(slow, 0)
    scene.let_pass("16 minutes")
    scene.drop([2, 3, 4])
    scene.receive(slow, 0)
    scene.finish(other, 0)


@pytest.mark.parametrize("bookmarks", [Bookmarks, LargePages])
def test_importers_that_pause_in_turns_lose_nothing(world: World, bookmarks: type[Bookmarks]) -> None:
    scene = Scene(world, bookmarks)
    scene.shop("ints", first=1, count=18, step=1, undated=False)
    first, slow, _ = scene.importers
    scene.finish(first, 0)
    scene.let_pass("16 minutes")
    scene.drop([1])
    scene.receive(first, 0)
    scene.let_pass("4 minutes")
    scene.finish(slow, 0)
    scene.let_pass("40 minutes")
    scene.drop([2])
    scene.receive(slow, 0)
    scene.let_pass("2 minutes")
    scene.receive(first, 0)
    scene.let_pass("83 minutes")
    scene.finish(first, 0)
    scene.let_pass("17 minutes")
    scene.drop([3, 4, 5])
    scene.receive(first, 0)
    scene.let_pass("1 minute")
    scene.finish(slow, 0)


@pytest.mark.parametrize("bookmarks", [Bookmarks, LargePages])
def test_deltas_in_each_others_way_lose_nothing(world: World, bookmarks: type[Bookmarks]) -> None:
    """Deltas may begin at once behind the end of another, and its empty answer may be asked for again."""
    scene = has_lost_its_end(world, bookmarks, incremental=True)
    first, slow, _ = scene.importers
    scene.put(list(range(17, 27)))
    for _ in range(4):
        scene.receive(slow, 0)
    scene.finish(first, 0)
    scene.drop([5, 6, 7])
    for _ in range(4):
        scene.receive(first, 0)
    scene.finish(slow, 0)


@pytest.mark.parametrize("bookmarks", [Bookmarks, LargePages])
@pytest.mark.parametrize("meanwhile", ["nothing", "a failover", "other ids"])
def test_a_delta_that_goes_on_behind_its_short_page_may_take_its_time(
    world: World, bookmarks: type[Bookmarks], meanwhile: str
) -> None:
    """Nobody has asked for what lies behind it: that is no end that may be asked for again."""

    class Operated(Scene):
        refusals = Operations.refusals

    scene = Operated(world, bookmarks)
    scene.shop("ints", first=5, count=0, step=1, undated=False)
    for rank in range(5, 25):
        scene.put([rank])
    late, slow, third = scene.importers
    for importer, since in ((late, 22), (slow, 3), (third, 13)):
        importer.incremental, importer.synced = True, since
        importer.index = {rank: item.changed for rank, item in scene.catalog.items.items() if item.changed < since}
    scene.receive(late, 0)
    scene.let_pass("11 minutes")
    if meanwhile == "a failover":
        scene.world.fail_over()
    elif meanwhile == "other ids":
        scene.catalog.order_otherwise()
        for process in world.processes:
            process.describe_anew()
            process.begin(bookmarks)
    scene.receive(slow, 0)
    scene.receive(late, 0)
    if late.walking:
        scene.receive(late, 0)
    scene.receive(third, 0)
    scene.finish(slow, 0)


class Momentless(Bookmarks):
    """Deltas are told from each other by nothing."""

    async def find(self, source: Source, offset: int, limit: int, *, since: float | None) -> Bookmark | None:
        return await super().find(source, offset, limit, since=None if since is None else since + 1e-3)


@pytest.mark.parametrize(
    "bookmarks", [Bookmarks, pytest.param(Momentless, marks=pytest.mark.xfail(raises=AssertionError, strict=True))]
)
def test_a_delta_is_known_by_the_moment_it_names(world: World, bookmarks: type[Bookmarks]) -> None:
    """Each begins a few minutes behind the end of the one before, and is sent nothing of that one."""
    scene = Scene(world, bookmarks)
    scene.shop("ints", first=5, count=12, step=1, undated=False)
    (importer, *_) = scene.importers
    importer.incremental = importer.stops_short = True
    for number in range(10):
        changed = list(range(number, number + 7))
        scene.put(changed)
        scene.let_pass("5 minutes")
        scene.finish(importer, 0)
        assert number == 0 or sorted(importer.sent) == changed


@pytest.mark.parametrize(
    "bookmarks",
    [Bookmarks, pytest.param(AllSettled, marks=pytest.mark.xfail(raises=Endless, strict=True))],
)
def test_a_delta_ends_although_everything_is_touched_between_its_pages(
    world: World, bookmarks: type[Bookmarks], monkeypatch: pytest.MonkeyPatch
) -> None:
    # That the item of a place moves would be noticed.
    monkeypatch.setattr(reader, "moved_statement", lambda source, part: None)
    scene = Scene(world, bookmarks)
    scene.shop("ints", first=5, count=20, step=1, undated=False)
    importer = scene.importers[0]
    importer.incremental = True
    while scene.receive(importer, 0) and importer.walking:
        scene.touch_everything()
        if len(importer.sent) > 2 * 20:
            raise Endless(f"sent {importer.sent}")


class Waiting(Bookmarks):
    """All connections are in use for a while when the first page's bookmark is to be written."""

    async def turn(self, *arguments: Any, **keywords: Any) -> tuple[int, int]:
        if keywords["start"] is None:
            taken = [await self._pool.take() for _ in range(4)]
            self._given_back = asyncio.create_task(self._give_back(taken))
        return await super().turn(*arguments, **keywords)

    async def _give_back(self, taken: list[Any]) -> None:
        await asyncio.sleep(3)
        for connection in taken:
            await self._pool.give_back(connection)


@pytest.mark.parametrize("bookmarks", [Bookmarks, Waiting])
def test_hours_back_are_reckoned_from_when_the_first_page_was_asked_for(
    world: World, bookmarks: type[Bookmarks]
) -> None:
    """However long the page before then waited for a connection: what changed in that time is sent."""
    world.begin(bookmarks)
    settings = FeedSettings(shrink_limit=1.0)
    store = Store(public_key="key", name="ints", schema="ints", incremental_overlap=Duration(0), feeds={FEED: settings})
    world.database.execute(
        "insert into ints.customers select id, 'e', 1, case when id = 4 then now() - interval '59 min 57.5 s' end"
        " from generate_series(1, 4) as id"
    )
    items = []
    for offset in (0, 3):
        query = f"limit=3&offset={offset}&modified_after=1"
        request = parse(query, suffix=None, accept="", now=time.time(), unit="hours")
        page = world.loop.run(world.processes[0].page(store, request))
        items += [json.loads(line)["id"] for line in page.splitlines()]
    assert items == [1, 2, 3, 4]


def test_a_walk_of_an_empty_feed_leaves_nothing_behind(world: World) -> None:
    class Exact(Scene):
        importers_count = 1
        repeats_are_wrong = True

    alone = Exact(world)
    alone.shop("ints", first=0, count=0, step=1, undated=False)
    (importer,) = alone.importers
    alone.finish(importer, 0)
    alone.put([0, 1, 2, 3])
    alone.finish(importer, 0)
    alone.let_pass("16 minutes")
    alone.drop([0])
    alone.finish(importer, 0)
