"""What a failover or a restored dump undid comes with the next delta, and so does what an operator set back."""

import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from tests.clerk import FakeClerk, problem
from tests.conftest import Database, Loop, Running, Serve, eventually
from tests.test_refresh import command
from tests.test_standbys import Pair, configured, fill, page, pair

__all__ = ["pair"]

DELETED = "delete from shop.products where id = 7"
CHANGED = "update shop.products set name = 'new', modified_at = now() where id = 7"


class Index:
    """What Clerk holds of a shop's products, by full syncs and by deltas that begin where the last sync did."""

    def __init__(self, service: Running) -> None:
        self.service = service
        self.held: dict[int, Any] = {}
        self.synced = 0.0

    def full_sync(self) -> None:
        self.held, self.synced = {}, time.time()
        self._walk("")

    def delta(self) -> int:
        """Take one in; how many items it had."""
        since, self.synced = self.synced, time.time()
        return self._walk(f"&modified_after={since:.3f}")

    def _walk(self, more: str) -> int:
        offset, count = 0, 0
        while True:
            answer = self.service.get(f"/shop/products?limit=100&offset={offset}{more}")
            assert answer.status == 200, answer.body
            self.held |= {item["id"]: item["name"] for item in answer.lines}
            count += len(answer.lines)
            if not answer.lines:
                return count
            offset += 100


def shop_of_old_products(database: Database) -> None:
    fill(database, 250)
    database.execute("update shop.products set name = 'old', modified_at = now() - interval '5 days'")


def shown(database: Database) -> dict[int, str]:
    return {row["id"]: row["name"] for row in database.fetch("select id, name from shop.products")}


def configured_with(dsn: str, clerk: FakeClerk, overlap: str) -> str:
    return configured(dsn, clerk) + f'incremental_overlap = "{overlap}"\n'


def set_back(service: Running, *options: str) -> "subprocess.CompletedProcess[str]":
    return command(service.log.parent / "feed.toml", "end-walks", "--set-back", *options)


@pytest.mark.parametrize("what", [DELETED, CHANGED])
def test_what_a_restored_dump_undid_comes_with_the_next_delta_and_then_deltas_are_of_changes_again(
    create_database: Callable[..., Database], loop: Loop, clerk: FakeClerk, serve: Serve, what: str
) -> None:
    before = create_database()
    shop_of_old_products(before)
    serve(configured(before.dsn, clerk)).stop()
    dsn, name = before.dsn, before.value("select current_database()")
    before.close()  # a template is in use by nobody
    restored = create_database(f"template {name}")
    before = Database(loop, dsn)
    with closing(before):
        service = serve(configured_with(dsn, clerk, "1s"))
        before.execute(what)
        index = Index(service)
        index.full_sync()
        assert index.held == shown(before)
        assert index.delta() == 0 or what == CHANGED
        service.stop()
    index.service = serve(configured_with(restored.dsn, clerk, "1s"))
    assert index.delta() == 250
    assert index.held == shown(restored)
    [told] = index.service.events("DeltaOfAll")
    assert (told["store"], told["feed"]) == ("shop", "products")
    eventually(lambda: time.time() - told["seen"] > 1.1)
    index.delta()
    assert index.delta() == 0


@pytest.mark.slow
@pytest.mark.parametrize("what", [DELETED, CHANGED])
def test_what_a_failover_undid_comes_with_the_next_delta(
    pair: Pair, loop: Loop, clerk: FakeClerk, serve: Serve, what: str
) -> None:
    shop_of_old_products(pair.database)
    service = serve(configured(pair.primary.dsn, clerk))
    pair.catch_up()
    # What comes now never reaches the standby.
    pair.primary.freeze(pair.database.value("select pid from pg_stat_replication"))
    pair.database.execute(what)
    index = Index(service)
    index.full_sync()
    assert index.held == shown(pair.database)
    pair.database.close()
    pair.primary.stop("immediate")
    pair.standby.promote()
    service.stop()
    index.service = serve(configured(pair.standby.dsn, clerk))
    index.delta()
    pair.database = Database(loop, pair.standby.dsn)
    assert index.held == shown(pair.database)


def test_a_new_database_begins_with_deltas_of_changes(database: Database, clerk: FakeClerk, serve: Serve) -> None:
    shop_of_old_products(database)
    index = Index(serve(configured(database.dsn, clerk)))
    index.full_sync()
    database.execute(CHANGED)
    assert index.delta() == 1
    assert not index.service.events("DeltaOfAll")


@pytest.mark.parametrize("what", [DELETED, CHANGED])
def test_what_was_restored_by_hand_comes_once_an_operator_says_so(
    database: Database, clerk: FakeClerk, serve: Serve, what: str
) -> None:
    """Tables of the shop from a backup: nothing shows that they are older than what Clerk was told."""
    shop_of_old_products(database)
    service = serve(configured(database.dsn, clerk))
    database.execute("create table public.backup as select * from shop.products")
    database.execute(what)
    index = Index(service)
    index.full_sync()
    database.execute("truncate shop.products; insert into shop.products select * from public.backup")
    index.delta()
    assert index.held != shown(database)
    done = set_back(service)
    assert done.returncode == 0, done.stderr
    assert "deltas bring everything" in done.stdout
    assert index.delta() == 250
    assert index.held == shown(database)


def test_an_operator_who_says_it_of_one_store_is_told_that_it_is_of_all(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, 1)
    done = set_back(serve(configured(database.dsn, clerk)), "--store", "shop")
    assert done.returncode == 2
    assert "all stores and feeds" in done.stderr


def test_a_sync_that_began_in_another_database_does_not_go_on_in_one_moved_back_to(
    create_database: Callable[..., Database], clerk: FakeClerk, serve: Serve
) -> None:
    here, there = create_database(), create_database()
    for one in (here, there):
        fill(one, 400)
        one.execute("delete from shop.products where id <= 50")
    service = serve(configured(here.dsn, clerk))
    for offset in (0, 100):
        page(service, 100, offset)
    service.stop()
    # The shop moves, and its importer begins anew there; in both, items are shown again.
    for one in (here, there):
        one.execute("insert into shop.products (id) select generate_series(1, 50)")
    moved = serve(configured(there.dsn, clerk))
    found = [id for offset in (0, 100) for id in page(moved, 100, offset)]
    assert found == list(range(1, 201))
    moved.stop()
    back = serve(configured(here.dsn, clerk))
    assert set_back(back).returncode == 0
    said = back.get("/shop/products?limit=100&offset=200")
    problem(said, 503, "walk-lost")
    assert [id for offset in range(0, 500, 100) for id in page(back, 100, offset)] == list(range(1, 401))


def test_deltas_of_a_rendered_feed_are_of_everything_once_an_operator_says_that_it_was_set_back(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    fill(database, 250)
    config = configured_with(database.dsn, clerk, "0s")
    config += '[stores.shop.feeds.products]\nrendered = true\nrefresh_every = "1h"\n'
    index = Index(serve(config))
    eventually(lambda: index.service.get("/shop/products?limit=100&offset=0").status == 200)
    index.full_sync()
    assert index.delta() == 0
    assert set_back(index.service).returncode == 0
    assert index.delta() == 250


def test_what_a_delta_brought_while_a_full_sync_was_under_way_comes_again(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    """Clerk deletes it at the end of that sync, which had passed its place; the overlap may be over by then."""
    shop_of_old_products(database)
    database.execute("delete from shop.products where id = 7")
    index = Index(serve(configured_with(database.dsn, clerk, "0s")))
    index.full_sync()
    full = {item["id"]: item["name"] for item in index.service.get("/shop/products?limit=100&offset=0").lines}
    database.execute("insert into shop.products (id, name, modified_at) values (7, 'new', now())")
    assert index.delta() == 1
    for offset in (100, 200, 300):
        answer = index.service.get(f"/shop/products?limit=100&offset={offset}")
        full |= {item["id"]: item["name"] for item in answer.lines}
    assert answer.status == 200
    assert not answer.lines
    index.held = full
    assert 7 not in index.held
    assert index.delta() == 1
    assert index.held == shown(database)
    assert index.delta() == 0


def test_a_dump_brought_into_a_schema_that_a_service_has_just_made_is_seen(
    create_database: Callable[..., Database], loop: Loop, clerk: FakeClerk, serve: Serve
) -> None:
    database = create_database()
    shop_of_old_products(database)
    service = serve(configured_with(database.dsn, clerk, "0s"))
    # A service was faster than pg_restore: of our tables the dump's rows are added.
    database.execute("insert into clerk_feed.history (timeline, seen) values ('of the dump', '-infinity')")
    index = Index(service)
    index.synced = time.time() - 60
    assert index.delta() == 250
    index.delta()
    assert index.delta() == 0
