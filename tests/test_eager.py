"""Importers at their most eager against default settings, for seconds; `make eager` plays them at full size."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.clerk.standin import running
from app.protocol.feeds import FEEDS
from loadtests import eager
from tests.conftest import Database, Running, base_config, start_service

ITEMS = 250
GOOD, BAD = ("shop0", "shop1"), "misconfigured"


@pytest.fixture(scope="module")
def defaults(create_database: Callable[[], Database], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with default settings but for its ports. Clerk knows the tokens of the good stores only."""
    database = create_database()
    database.execute(eager.schema(ITEMS))
    with running(eager.good_tokens(GOOD)) as verify_url:
        config = base_config(database.dsn, verify_url) + eager.settings([*GOOD, BAD])
        service = start_service(tmp_path_factory.mktemp("defaults"), config)
        yield service
        service.stop()


@pytest.mark.parametrize("is_fresh", [False, True], ids=["the same token", "a fresh token with every request"])
def test_good_importers_are_refused_nothing_beside_a_misconfigured_one(
    defaults: Running, is_fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "MOST_REFUSALS", 200)
    with ThreadPoolExecutor(20) as threads:
        # Each until it has been refused often enough.
        wrong = [threads.submit(eager.walk, defaults.url, BAD, feed, is_fresh=is_fresh) for feed in FEEDS]
        outcome = eager.read_all(defaults.url, GOOD, is_fresh=is_fresh, pool=threads)
        refused = eager.Outcome()
        for done in wrong:
            refused.add(done.result())
    assert outcome.refusals == 0
    assert outcome.items == ITEMS * len(FEEDS) * len(GOOD)
    assert set(refused.statuses) <= {401, 429}
    asked = [event for event in defaults.events("TokenVerified") if event["store"] == BAD]
    assert len(asked) <= 2 * (60 + 16)  # refusal_rate, and what was being looked at meanwhile


def test_a_caller_without_a_token_is_held_to_the_rate_and_the_importer_beside_it_is_not(defaults: Running) -> None:
    done = threading.Event()
    with ThreadPoolExecutor(10) as threads:
        before = eager.walk(defaults.url, GOOD[0], "pages", is_fresh=False)
        knocking = [threads.submit(eager.knock, defaults.url, GOOD[0], done) for _ in range(3)]
        outcome = eager.read_all(defaults.url, GOOD[:1], is_fresh=False, pool=threads)
        done.set()
        without = eager.Outcome()
        for knocked in knocking:
            without.add(knocked.result())
    assert before.refusals == outcome.refusals == 0
    assert set(without.statuses) <= {401, 429}
    assert without.statuses[401] <= 60
    assert without.statuses[429] > 0
