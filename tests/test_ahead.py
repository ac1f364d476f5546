"""Pages read ahead: handed over while they are young, and only to whoever began before they were read."""

import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from app.catalog import ahead
from app.catalog.bookmarks import Bookmarks
from app.protocol.request import FeedRequest
from tests.conftest import Database, Loop, eventually
from tests.model import World


class LargePages(Bookmarks):
    """Bookmarks whose pages are not small ones, which are never read ahead."""


@pytest.fixture(scope="module")
def world(create_database: Callable[[], Database], loop: Loop) -> Iterator[World]:
    running = World(loop, create_database())
    yield running
    running.close()


@pytest.fixture
def patient(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world of nine customers where pages read ahead are kept for as long as a test may take."""
    monkeypatch.setattr(ahead, "KEPT_SECONDS", 600)
    world.begin(LargePages)
    world.database.execute("insert into ints.customers select i, 'old', 1 from generate_series(1, 9) as i")
    return world


def emails(world: World, offset: int, process: int = 0) -> list[str]:
    """The e-mail addresses of the page of three at an offset."""
    wanted = FeedRequest(format="ndjson", limit=3, offset=offset)
    body = world.loop.run(world.processes[process].page(world.stores["ints"], wanted))
    return [msgspec.json.decode(line)["email"] for line in body.splitlines()]


def change(world: World) -> None:
    world.database.execute("update ints.customers set email = 'new'")


def test_the_next_page_is_read_while_the_importer_takes_the_one_before(patient: World) -> None:
    emails(patient, 0)  # the first page of all is read carefully: nobody knows how large items are
    assert emails(patient, 0) == ["old"] * 3
    change(patient)
    assert emails(patient, 3) == ["old"] * 3
    patient.database.execute("update ints.customers set email = 'newer'")
    assert emails(patient, 6) == ["new"] * 3


def test_a_page_read_ahead_is_no_good_for_a_walk_that_began_after_it(patient: World) -> None:
    for _ in range(2):
        emails(patient, 0)
    change(patient)
    assert emails(patient, 0, process=1) == ["new"] * 3
    assert emails(patient, 3) == ["new"] * 3


def test_a_page_asked_for_again_is_read_again(patient: World) -> None:
    for _ in range(2):
        emails(patient, 0)
    assert emails(patient, 3) == ["old"] * 3
    change(patient)
    assert emails(patient, 3) == ["new"] * 3


def test_a_page_of_another_length_or_of_changes_is_not_taken_from_it(patient: World) -> None:
    for _ in range(2):
        emails(patient, 0)
    change(patient)
    store = patient.stores["ints"]
    for wanted in (
        FeedRequest(format="ndjson", limit=2, offset=3),
        FeedRequest(format="json", limit=3, offset=3),
        FeedRequest(format="ndjson", limit=3, offset=3, modified_after=1.0),
        FeedRequest(format="ndjson", limit=3, after="3"),
    ):
        body = patient.loop.run(patient.processes[0].page(store, wanted))
        assert b'"old"' not in body
        assert b'"new"' in body


def test_a_page_nobody_asks_for_is_forgotten(patient: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "KEPT_SECONDS", 0.01)
    for _ in range(2):
        emails(patient, 0)
    change(patient)
    began = time.monotonic()
    eventually(lambda: time.monotonic() > began + 0.2)
    assert emails(patient, 3) == ["new"] * 3


def test_a_row_that_makes_the_view_fail_is_met_when_its_page_is_asked_for(patient: World) -> None:
    patient.database.execute("create view ints.risky as select id, email, 1 / (9 - id) as part from ints.customers")
    store = patient.stores["ints"]
    feeds = {name: msgspec.structs.replace(feed, source="ints.risky") for name, feed in store.feeds.items()}
    store = msgspec.structs.replace(store, name="risky", feeds=feeds)
    try:
        process = patient.processes[0]
        for offset in (0, 0, 3):
            wanted = FeedRequest(format="ndjson", limit=3, offset=offset)
            assert patient.loop.run(process.page(store, wanted)).count(b"\n") == 3
        with pytest.raises(Exception, match="SQLSTATE 22012"):
            patient.loop.run(process.page(store, FeedRequest(format="ndjson", limit=3, offset=6)))
    finally:
        patient.database.execute("drop view ints.risky")
