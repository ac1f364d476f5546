"""Deletions: what vanished reaches Clerk, whatever happens on the way, and nothing else does."""

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import msgspec
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from app.catalog.rendered import OUTBOX_LOCK, connection_for_refresh, leave_behind
from app.clerk.api import ClerkApi
from app.clerk.deletions import Deletions, Pushed, PushError, Retries
from app.protocol.feeds import FeedName
from app.settings import FeedSettings, Secret, Store, replace
from app.status.events import DeletionsFailed, DeletionsPushed, Event
from tests.clerk import FakeClerk, error
from tests.conftest import PRODUCTS, TOKEN, Database, Hosted, Loop, Serve, base_config, eventually
from tests.rendered import RenderedShop, bare, rendered, rendered_service
from tests.test_refresh import command

__all__ = ["bare", "rendered", "rendered_service"]

OK = JSONResponse({"status": "ok"})
Deletes = Callable[[str, list[Any]], Awaitable[Response]]


class Outbox:
    """Deletions of a shop, sent to a Clerk of its own."""

    def __init__(self, shop: RenderedShop, clerk: FakeClerk) -> None:
        self.shop = shop
        self.clerk = clerk
        self.events: list[Event] = []
        self.call_seconds = 20.0
        """How long Clerk's answer is waited for: longer than any test takes, but where it never comes."""

    def store(self) -> Store:
        return replace(self.shop.store(), private_key=Secret(f"private-{self.shop.public_key}"))

    def push(self, feed: FeedName = "products", *, store: Store | None = None, **options: Any) -> Pushed:
        async def work() -> Pushed:
            api = ClerkApi(self.clerk.verify_url, self.call_seconds)
            try:
                deletions = Deletions(
                    lambda: connection_for_refresh(self.shop.database.dsn),
                    api,
                    self.clerk.api_url,
                    self.events.append,
                    Retries(attempts=4, first_seconds=0.01, longest_seconds=0.05, all_seconds=20),
                )
                return await deletions.push(store or self.store(), feed, **options)
            finally:
                await api.close()

        return self.shop.loop.run(work())

    @property
    def deleted(self) -> list[Any]:
        return [id for _, ids in self.clerk.deletions for id in ids]

    def lose(self, *ids: int) -> None:
        """Items vanish from the source, and a refresh finds it."""
        self.shop.execute("delete from {s}.products where id = any($1::int[])", list(ids))
        assert self.shop.refresh(accept_shrink=True).vanished == len(ids)

    def to_send(self) -> int:
        return int(self.shop.state()["deletions_waiting"])

    def answers(self, *answers: Response | None, then: Response = OK) -> list[list[Any]]:
        """Answer some calls in turn, None never; the ids of each call."""
        left, calls = list(answers), []
        if None in answers:
            self.call_seconds = 1.0

        async def deletes(feed: str, ids: list[Any]) -> Response:
            calls.append(ids)
            if not left:
                return then
            answer = left.pop(0)
            if answer is None:
                await asyncio.sleep(5)
            return answer or OK

        self.clerk.deletes = deletes
        return calls


@pytest.fixture
def outbox(rendered: RenderedShop, hosted: Hosted) -> Outbox:
    fake = FakeClerk()
    fake.url = hosted(fake.app)
    return Outbox(rendered, fake)


def test_what_vanished_is_deleted_once(outbox: Outbox) -> None:
    assert outbox.push() == Pushed()
    outbox.lose(3, 5)
    assert outbox.push() == Pushed(deleted=2)
    assert outbox.clerk.deletions == [("products", [3, 5])]
    assert outbox.push() == Pushed()
    assert outbox.to_send() == 0
    assert outbox.events == [DeletionsPushed(store=outbox.shop.name, feed="products", deleted=2, refused=0)]


def test_ids_of_text_are_sent_as_json(bare: RenderedShop, hosted: Hosted) -> None:
    fake = FakeClerk()
    fake.url = hosted(fake.app)
    outbox = Outbox(bare, fake)
    bare.execute("""create table {s}.pages as select id, 't' as type, 'u' as url, 'l' as title, 'x' as text
        from unnest(array['a "b",c', 'æ&?=#%', '17', 'stays']) as id""")
    bare.refresh("pages")
    bare.execute("delete from {s}.pages where id <> 'stays'")
    bare.refresh("pages", accept_shrink=True)
    assert outbox.push("pages").deleted == 3
    assert sorted(outbox.deleted) == sorted(['a "b",c', "æ&?=#%", "17"])


def test_batches_keep_the_url_short(bare: RenderedShop, hosted: Hosted) -> None:
    fake = FakeClerk()
    fake.url = hosted(fake.app)
    bare.execute("""create table {s}.pages as select 'æøå ' || repeat('x', n % 90) || n as id, 't' as type, 'u' as url,
        'l' as title, 'x' as text from generate_series(1, 300) as n""")
    bare.refresh("pages")
    bare.execute("delete from {s}.pages")
    bare.refresh("pages", accept_shrink=True)
    lengths = []

    async def deletes(feed: str, ids: list[Any]) -> Response:
        from urllib.parse import quote  # noqa: PLC0415

        lengths.append(len(quote(json.dumps(ids, ensure_ascii=False), safe="")))
        return OK

    fake.deletes = deletes
    outbox = Outbox(bare, fake)
    assert outbox.push("pages").deleted == 300
    assert len(lengths) > 5
    assert max(lengths) < 5000
    assert len(set(outbox.deleted)) == 300


def test_an_item_that_came_back_before_the_push_is_not_deleted(outbox: Outbox) -> None:
    outbox.lose(3, 5)
    outbox.shop.execute("insert into {s}.products (id) values (3)")
    outbox.shop.refresh()
    assert outbox.push().deleted == 1
    assert outbox.deleted == [5]
    # It vanishes again, and comes back after Clerk was told.
    outbox.lose(3)
    assert outbox.push().deleted == 1
    outbox.shop.execute("insert into {s}.products (id) values (3)")
    outbox.shop.refresh()
    assert outbox.push() == Pushed()
    outbox.lose(3)
    assert outbox.push().deleted == 1
    assert outbox.deleted == [5, 3, 3]


def test_an_item_that_comes_back_during_the_call_shows_after_clerks_answer(outbox: Outbox) -> None:
    """Otherwise an importer could fetch it and then have it deleted."""
    outbox.lose(3)
    called, answer = threading.Event(), threading.Event()

    async def deletes(feed: str, ids: list[Any]) -> Response:
        called.set()
        await asyncio.to_thread(answer.wait, 10)
        return OK

    outbox.clerk.deletes = deletes
    pusher = threading.Thread(target=outbox.push)
    pusher.start()
    assert called.wait(10)
    outbox.shop.execute("insert into {s}.products (id) values (3)")
    refresher = threading.Thread(target=outbox.shop.refresh)
    refresher.start()
    eventually(lambda: bool(outbox.shop.database.value(
        "select count(*) from pg_locks where locktype = 'advisory' and not granted and database ="
        " (select oid from pg_database where datname = current_database())")))  # fmt: skip
    assert len(outbox.shop.items("products")) == 99
    answer.set()
    pusher.join(20)
    refresher.join(20)
    assert len(outbox.shop.items("products")) == 100


def test_old_tombstones_of_an_item_are_swept_while_it_is_deleted_again(outbox: Outbox) -> None:
    """A refresh that holds them and waits for whoever sends, and is waited for by him, would be a deadlock."""
    outbox.lose(3)
    outbox.shop.execute(
        "insert into clerk_feed.tombstone (store, feed, item, json_id, vanished, pushed, pushed_last)"
        " select store, feed, item, json_id, now() - interval '31 days', now() - interval '30 days', now()"
        " - interval '30 days' from clerk_feed.tombstone where store = $1",
        outbox.shop.name,
    )
    called, answer = threading.Event(), threading.Event()

    async def deletes(feed: str, ids: list[Any]) -> Response:
        called.set()
        await asyncio.to_thread(answer.wait, 10)
        return OK

    outbox.clerk.deletes = deletes
    with ThreadPoolExecutor(2) as threads:
        pushed = threads.submit(outbox.push)
        assert called.wait(10)
        refreshed = threads.submit(outbox.shop.refresh)
        eventually(lambda: bool(outbox.shop.database.value(
            "select count(*) from pg_locks where locktype = 'advisory' and not granted and database ="
            " (select oid from pg_database where datname = current_database())")))  # fmt: skip
        answer.set()
        assert pushed.result().deleted == 1
        assert refreshed.result().items == 99
    graves = "select count(*) from clerk_feed.tombstone where store = $1"
    assert outbox.shop.database.value(graves, outbox.shop.name) == 1


@pytest.mark.parametrize(
    "trouble",
    [
        PlainTextResponse("busy", 503),
        PlainTextResponse("<html>", 200),
        JSONResponse({"status": "yes"}, 502),
        JSONResponse(["ok"]),
        PlainTextResponse("slow down", 429, {"Retry-After": "0"}),
        error("InternalError"),
        None,
    ],
    ids=["503", "html", "no ok", "no object", "429", "InternalError", "timeout"],
)
def test_a_passing_trouble_is_tried_again(outbox: Outbox, trouble: Response | None) -> None:
    calls = outbox.answers(trouble, trouble)
    outbox.lose(3, 5)
    assert outbox.push().deleted == 2
    assert calls == [[3, 5]] * 3


def test_a_lasting_trouble_leaves_everything_for_later(outbox: Outbox) -> None:
    outbox.lose(3, 5)
    calls = outbox.answers(then=PlainTextResponse("busy", 503))
    with pytest.raises(PushError, match="Clerk could not be asked: HTTP status 503"):
        outbox.push()
    assert len(calls) == 4
    assert outbox.to_send() == 2
    assert [type(event) for event in outbox.events] == [DeletionsFailed]
    outbox.answers()
    assert outbox.push().deleted == 2


def test_clerk_is_left_alone_as_long_as_it_asks(outbox: Outbox) -> None:
    outbox.lose(3)
    calls = outbox.answers(PlainTextResponse("", 429, {"Retry-After": "1"}))
    loop = asyncio.new_event_loop()
    started = loop.time()
    assert outbox.push().deleted == 1
    assert loop.time() - started >= 1
    loop.close()
    assert len(calls) == 2
    outbox.lose(4)
    calls = outbox.answers(PlainTextResponse("", 429, {"Retry-After": "3600"}))
    with pytest.raises(PushError, match="429"):
        outbox.push()
    assert len(calls) == 1


def test_keys_that_clerk_does_not_accept_end_the_push_without_being_shown(outbox: Outbox) -> None:
    outbox.lose(3, 5)
    with pytest.raises(PushError, match="does not accept public_key and private_key together") as failure:
        outbox.push(store=replace(outbox.store(), private_key=Secret("top-secret")))
    assert "top-secret" not in str(failure.value) + repr(outbox.events)
    assert outbox.to_send() == 2


def test_a_batch_that_is_refused_is_narrowed_down_to_the_id_at_fault(outbox: Outbox) -> None:
    outbox.lose(*range(1, 17))

    async def deletes(feed: str, ids: list[Any]) -> Response:
        return error("LogicalError") if 11 in ids else OK

    outbox.clerk.deletes = deletes
    assert outbox.push() == Pushed(deleted=15, refused=1)
    assert sorted(outbox.deleted) == [id for id in range(1, 17) if id != 11]
    row = outbox.shop.database.fetch(
        "select item, refusals, refused from clerk_feed.tombstone where store = $1 and pushed is null", outbox.shop.name
    )
    assert [tuple(r) for r in row] == [("11", 1, "Clerk answered with an error of LogicalError")]
    for _ in range(6):
        outbox.push()
    assert outbox.push() == Pushed()  # but once a day
    outbox.shop.execute("update clerk_feed.tombstone set refused_at = refused_at - interval '25 hours'")
    assert outbox.push() == Pushed(refused=1)
    assert outbox.push() == Pushed()
    outbox.clerk.deletes = None
    assert outbox.push(refused_too=True).deleted == 1


UNWELL = {
    "an error within": error("InternalError"),
    "too busy": JSONResponse({"status": "error", "type": "ServiceUnavailable"}, 503),
}


@pytest.mark.parametrize("unwell", UNWELL)
@pytest.mark.parametrize("again", [False, True], ids=["first", "due again"])
def test_a_clerk_that_is_unwell_is_asked_until_it_says_ok(outbox: Outbox, unwell: str, again: bool) -> None:
    """However often: nothing tells that an id is at fault."""
    assert not again or outbox.shop.get("products?limit=60&offset=0").status == 200
    outbox.lose(3)
    if again:
        assert outbox.push().deleted == 1
        outbox.shop.get("products?limit=60&offset=60")  # the sync has put it back
    outbox.answers(then=UNWELL[unwell])
    for _ in range(7):
        with pytest.raises(PushError, match="it has accepted nothing else"):
            outbox.push()
    outbox.answers()
    assert outbox.push() == Pushed(deleted=1)


def test_an_id_that_clerk_breaks_at_holds_up_no_other(outbox: Outbox) -> None:
    outbox.lose(*range(1, 9))

    async def deletes(feed: str, ids: list[Any]) -> Response:
        return error("InternalError") if 2 in ids else OK

    outbox.clerk.deletes = deletes
    assert outbox.push() == Pushed(deleted=7, refused=1)
    with pytest.raises(PushError, match="InternalError, and it has accepted nothing else"):
        outbox.push()


def test_several_ids_that_clerk_breaks_at_hold_up_no_other(outbox: Outbox) -> None:
    """Though they are the first: the next push begins with others, and then it is known who is at fault."""
    outbox.lose(1, 2, 3, 4, 5)

    async def deletes(feed: str, ids: list[Any]) -> Response:
        return error("InternalError") if set(ids) & {1, 2, 3, 4, 5} else OK

    outbox.clerk.deletes = deletes
    for lost in (set(), {6, 7, 8, 9}, {50}):
        if lost:
            outbox.lose(*lost)
        with pytest.raises(PushError, match="InternalError, whatever the id"):
            outbox.push()
        assert lost <= set(outbox.deleted)


@pytest.mark.parametrize("status", [400, 403, 500])
def test_an_id_that_something_before_clerk_breaks_at_holds_up_no_other(outbox: Outbox, status: int) -> None:
    outbox.lose(*range(1, 9))

    async def deletes(feed: str, ids: list[Any]) -> Response:
        return PlainTextResponse("<html>blocked", status) if 8 in ids else OK

    outbox.clerk.deletes = deletes
    assert outbox.push() == Pushed(deleted=7, refused=1)


def test_a_second_call_that_clerk_refuses_is_seen_to_wait(outbox: Outbox) -> None:
    assert outbox.shop.get("products?limit=60&offset=0").status == 200
    outbox.lose(3)
    assert outbox.push().deleted == 1
    outbox.shop.get("products?limit=60&offset=60")
    outbox.answers(then=error("LogicalError"))
    assert outbox.push() == Pushed(refused=1)
    assert outbox.to_send() == 1


def test_a_deletion_that_clerk_does_not_know_of_is_not_forgotten(outbox: Outbox) -> None:
    """Neither by a call nor by a sync: the private key was wrong for a month."""
    shop = outbox.shop
    ago = "vanished = vanished - interval '31 days'"
    outbox.lose(3)
    shop.execute(f"update clerk_feed.tombstone set {ago} where store = '{{s}}'")
    shop.refresh()
    assert outbox.to_send() == 1
    assert len(shop.items("products")) == 99
    shop.refresh()
    assert outbox.to_send() == 0


def test_a_sync_is_under_way_from_its_first_request_on(outbox: Outbox) -> None:
    shop = outbox.shop
    shop.execute("update {s}.products set description = repeat('x', 1000000) where id <= 60")
    shop.refresh()
    shop.items("products")  # now their sizes are known
    url = urlsplit(shop.service.url)
    with closing(http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)) as connection:
        target = f"/{shop.name}/products?limit=55&offset=0"
        connection.request("GET", target, headers={"X-Clerk-Authorization": f"Bearer {TOKEN}"})
        answer = connection.getresponse()
        assert b'"id":3,' in answer.read(4_000_000)
        outbox.lose(3)
        assert outbox.push().deleted == 1
        assert answer.read()
    assert len(shop.get("products?limit=55&offset=55").lines) == 45
    assert outbox.push().deleted == 1


def test_a_request_too_long_for_a_proxy_is_halved(outbox: Outbox) -> None:
    outbox.lose(*range(1, 9))

    async def deletes(feed: str, ids: list[Any]) -> Response:
        return PlainTextResponse("<html>too long", 414) if len(ids) > 3 else OK

    outbox.clerk.deletes = deletes
    assert outbox.push().deleted == 8


def test_a_clerk_that_refuses_every_id_is_not_asked_for_each(outbox: Outbox) -> None:
    outbox.lose(*range(1, 65))
    calls = outbox.answers(then=error("LogicalError"))
    with pytest.raises(PushError, match="LogicalError, whatever the id"):
        outbox.push()
    assert len(calls) < 30


def test_what_was_sent_while_a_walk_was_open_is_sent_again_when_it_has_ended(outbox: Outbox) -> None:
    shop = outbox.shop
    assert shop.get("products?limit=60&offset=0").status == 200
    outbox.lose(3)
    assert outbox.push().deleted == 1
    assert outbox.push() == Pushed()
    shop.get("products?limit=60&offset=60")  # 39 items: the walk has ended
    assert outbox.push().deleted == 1
    assert outbox.push() == Pushed()
    assert outbox.deleted == [3, 3]
    # A walk that began after Clerk was told can't bring it back.
    shop.walk("products", 45)
    assert outbox.push() == Pushed()


@pytest.mark.parametrize("delta", ["", "&modified_after=48"], ids=["full", "delta"])
@pytest.mark.parametrize("limit", [30, 120], ids=["small pages", "larger pages"])
def test_so_it_is_in_each_of_several_syncs(outbox: Outbox, delta: str, limit: int) -> None:
    """Pages of a sync may begin from equal bookmarks of the one before."""
    shop = outbox.shop
    shop.execute("insert into {s}.products (id) select generate_series(101, 300)")
    shop.refresh()
    for gone in (1, 2, 3):
        for offset in range(0, 301, limit):
            assert shop.get(f"products?limit={limit}&offset={offset}{delta}").status == 200
            if not offset:
                outbox.lose(gone)
                assert outbox.push().deleted == 1
        assert outbox.push().deleted == 1, f"sync {gone}"
    assert outbox.push() == Pushed()


def test_so_it_is_where_another_importer_begins_meanwhile(outbox: Outbox) -> None:
    """The pages behind may be booked on either walk."""
    shop = outbox.shop
    assert shop.get("products?limit=30&offset=0").status == 200
    outbox.lose(3)
    assert outbox.push().deleted == 1
    assert shop.get("products?limit=30&offset=0").status == 200
    for offset in (30, 60, 90):
        assert outbox.push() == Pushed()
        assert shop.get(f"products?limit=30&offset={offset}").status == 200
    assert outbox.push().deleted == 1
    assert outbox.push() == Pushed()


@pytest.mark.parametrize("delta", ["", "&modified_after=48"], ids=["full", "delta"])
@pytest.mark.parametrize("limit", [60, 33], ids=["short last page", "empty last page"])
def test_so_it_is_when_a_last_page_that_was_lost_is_asked_for_again(outbox: Outbox, delta: str, limit: int) -> None:
    """Only then has the importer's sync ended."""
    shop = outbox.shop
    for offset in range(0, 99, limit):
        assert shop.get(f"products?limit={limit}&offset={offset}{delta}").status == 200
        if not offset:
            outbox.lose(100)
            outbox.lose(3)
            assert outbox.push().deleted == 2
    last = 60 if limit == 60 else 99
    for _ in range(2):
        assert shop.get(f"products?limit={limit}&offset={last}{delta}").status == 200
        assert outbox.push().deleted == 2


def test_what_came_back_meanwhile_is_not_sent_again(outbox: Outbox) -> None:
    shop = outbox.shop
    assert shop.get("products?limit=60&offset=0").status == 200
    outbox.lose(3)
    assert outbox.push().deleted == 1
    shop.execute("insert into {s}.products (id) values (3)")
    shop.refresh()
    shop.get("products?limit=60&offset=60")
    assert outbox.push() == Pushed()


def test_a_whole_feed_that_was_on_its_way_counts_as_a_walk(outbox: Outbox) -> None:
    outbox.lose(3)
    assert outbox.push().deleted == 1
    outbox.shop.execute(
        "insert into clerk_feed.walk (store, feed, incremental, whole, pages, ended, started, last_page)"
        " values ('{s}', 'products', false, true, 1, 'finished', now() - interval '1 minute', clock_timestamp())"
    )
    assert outbox.push().deleted == 1
    assert outbox.push() == Pushed()


def test_an_abandoned_walk_counts_as_ended_after_a_day(outbox: Outbox) -> None:
    shop = outbox.shop
    assert shop.get("products?limit=60&offset=0").status == 200
    outbox.lose(3)
    assert outbox.push().deleted == 1
    shop.execute("update clerk_feed.walk set started = started - interval '25 hours',"
                 " last_page = last_page - interval '25 hours' where store = '{s}'")  # fmt: skip
    shop.execute("update clerk_feed.tombstone set pushed = pushed - interval '25 hours',"
                 " pushed_last = pushed_last - interval '25 hours' where store = '{s}'")  # fmt: skip
    assert outbox.push().deleted == 1
    assert outbox.push() == Pushed()


_DIES = """
import asyncio, os, signal, sys

from app.catalog.rendered import connection_for_refresh
from app.clerk.api import ClerkApi
from app.clerk.deletions import Deletions
from app.settings import FeedSettings, Secret, Store

dsn, name, url, left = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])

class Dying(ClerkApi):
    async def delete(self, *arguments, **more):
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        await super().delete(*arguments, **more)
        os.kill(os.getpid(), signal.SIGKILL)

store = Store(public_key="key-" + name, private_key=Secret("private-key-" + name), schema=name, name=name,
              feeds={"products": FeedSettings(rendered=True)})
asyncio.run(Deletions(lambda: connection_for_refresh(dsn), Dying(url, 5), url, print).push(store, "products"))
"""


def test_a_process_that_dies_around_the_call_leads_to_at_least_one_deletion(outbox: Outbox) -> None:
    outbox.lose(3)
    for left in (0, 1):
        died = subprocess.run(
            [sys.executable, "-c", _DIES, outbox.shop.database.dsn, outbox.shop.name, outbox.clerk.api_url, str(left)],
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert outbox.to_send() == 1
    assert outbox.deleted == [3]
    assert outbox.push().deleted == 1
    assert outbox.deleted == [3, 3]


def test_ids_of_a_key_of_another_type_are_sent_as_they_were(outbox: Outbox) -> None:
    outbox.lose(3)
    outbox.shop.execute("alter table {s}.products alter id type uuid using md5(id::text)::uuid")
    outbox.shop.refresh(accept_shrink=True)
    assert outbox.push().deleted == 100
    assert sorted(outbox.deleted) == list(range(1, 101))


# The commands and serve


def own_config(shop: RenderedShop, clerk: FakeClerk, tmp_path: Path, *, key: bool = True, orders: str = "") -> Path:
    path = tmp_path / "feed.toml"
    private = f'private_key = "private-{shop.public_key}"\n' if key else ""
    path.write_text(
        base_config(shop.database.dsn, clerk.verify_url)
        + f'[clerk]\napi_url = "{clerk.api_url}"\n[stores.{shop.name}]\npublic_key = "{shop.public_key}"\n{private}'
        f"feeds.products.rendered = true\n{orders}"
    )
    return path


def test_the_commands_list_and_push(outbox: Outbox, tmp_path: Path) -> None:
    config = own_config(outbox.shop, outbox.clerk, tmp_path)
    outbox.lose(3, 5)
    listed = command(config, "deletions", "list")
    assert listed.returncode == 2
    listed = sub(config, "list")
    assert listed.returncode == 0, listed.stderr
    head, *rows = sorted(listed.stdout.splitlines(), key=lambda line: line.startswith(" "))
    assert head == f"{outbox.shop.name}/products: 2 to send"
    assert [row.split()[:2] for row in sorted(rows)] == [["3", "vanished"], ["5", "vanished"]]
    assert all(row.endswith("not sent") for row in rows)
    sent = sub(config, "push")
    assert (sent.returncode, sent.stdout) == (0, f"{outbox.shop.name}/products: 2 items deleted at Clerk\n")
    assert sub(config, "list").stdout == f"{outbox.shop.name}/products: 0 to send\n"


def sub(config: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "app", "deletions", words[0], "--config", str(config), *words[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        check=False,
    )


def test_without_the_private_key_nothing_is_sent_and_it_says_so(outbox: Outbox, tmp_path: Path) -> None:
    config = own_config(outbox.shop, outbox.clerk, tmp_path, key=False)
    outbox.lose(3)
    assert f"To tell Clerk, set private_key of [stores.{outbox.shop.name}]" in sub(config, "list").stdout
    sent = sub(config, "push")
    assert sent.returncode == 1
    assert "nothing was sent. To tell Clerk, set private_key" in sent.stderr
    assert outbox.deleted == []


def test_orders_are_deleted_only_where_the_shop_says_so(outbox: Outbox, tmp_path: Path) -> None:
    shop = outbox.shop
    shop.execute("create table {s}.orders as select id, '[]'::json as products, now() as time"
                 " from generate_series(1, 3) as id")  # fmt: skip
    shop.refresh("orders")
    shop.execute("delete from {s}.orders where id = 2")
    shop.refresh("orders", accept_shrink=True)
    config = own_config(shop, outbox.clerk, tmp_path, orders="feeds.orders.rendered = true\n")
    sent = sub(config, "push", "--feed", "orders")
    assert sent.returncode == 1
    assert "set delete_orders = true" in sent.stderr
    assert command(config, "refresh").returncode == 0
    assert outbox.deleted == []
    config = own_config(
        shop, outbox.clerk, tmp_path, orders="feeds.orders.rendered = true\nfeeds.orders.delete_orders = true\n"
    )
    assert sub(config, "push", "--feed", "orders").returncode == 0
    assert outbox.clerk.deletions == [("orders", [2])]


def test_the_refresh_command_pushes_what_vanished(outbox: Outbox, tmp_path: Path) -> None:
    outbox.shop.execute("delete from {s}.products where id = 3")
    done = command(own_config(outbox.shop, outbox.clerk, tmp_path), "refresh")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{outbox.shop.name}/products: 1 items deleted at Clerk\n")
    assert outbox.deleted == [3]


def _refreshing(database: Database, clerk: FakeClerk) -> str:
    """The settings of a store whose rendered products are refreshed every second."""
    return base_config(database.dsn, clerk.verify_url) + (
        f'[clerk]\napi_url = "{clerk.api_url}"\n[stores.dk]\npublic_key = "key-dk"\n'
        'private_key = "private-key-dk"\n[stores.dk.feeds.products]\nrendered = true\nrefresh_every = "1s"\n'
    )


def test_serve_pushes_after_its_own_refreshes(database: Database, hosted: Hosted, serve: Serve) -> None:
    clerk = FakeClerk()
    clerk.url = hosted(clerk.app)
    database.execute("create schema dk")
    database.execute(PRODUCTS.replace("{s}", "dk"))
    database.execute("insert into dk.products (id) select generate_series(1, 100)")
    services = [serve(_refreshing(database, clerk)) for _ in range(2)]
    eventually(lambda: services[0].get("/dk/products").status == 200)
    database.execute("delete from dk.products where id in (3, 5)")
    eventually(lambda: sorted(id for _, ids in clerk.deletions for id in ids) == [3, 5])
    eventually(lambda: any(service.events("DeletionsPushed") for service in services))
    for service in services:
        assert "private-key-dk" not in service.log.read_text()


def test_a_single_file_is_under_way_until_its_last_byte(
    database: Database, hosted: Hosted, serve: Serve, loop: Loop
) -> None:
    """What is deleted at Clerk while its later feeds are read may be in its first one."""
    clerk = FakeClerk()
    clerk.url = hosted(clerk.app)
    database.execute("create schema dk")
    database.execute(PRODUCTS.replace("{s}", "dk"))
    database.execute("insert into dk.products (id) select generate_series(1, 100)")
    database.execute("create table dk.customers (id bigint primary key, email text)")
    service = serve(_refreshing(database, clerk))
    eventually(lambda: service.get("/dk/products").status == 200)
    read = "select count(*) from clerk_feed.walk where feed = 'products'"
    before = database.value(read)
    holding = loop.run(asyncpg.connect(database.dsn))
    with ThreadPoolExecutor(1) as threads:
        loop.run(holding.execute("begin; lock table dk.customers"))
        asked = threads.submit(service.get, "/dk/feed.json")
        try:
            eventually(lambda: database.value(read) > before)
            database.execute("delete from dk.products where id = 3")
            eventually(lambda: bool(clerk.deletions))
            assert not asked.done()
        finally:
            loop.run(holding.close())
        assert 3 in [product["id"] for product in asked.result().json["products"]]
    eventually(lambda: [ids for _, ids in clerk.deletions] == [[3], [3]])


def test_a_store_of_the_settings_deletes_only_what_it_may() -> None:
    from app.upkeep import deletes  # noqa: PLC0415

    feeds: dict[FeedName, FeedSettings] = {
        "products": FeedSettings(rendered=True),
        "orders": FeedSettings(rendered=True),
        "pages": FeedSettings(),
    }
    store = Store(public_key="k", private_key=Secret("p"), feeds=feeds)
    assert [deletes(store, feed) for feed in feeds] == [True, False, False]
    assert not deletes(replace(store, private_key=Secret("")), "products")


def test_what_came_back_while_the_feed_was_served_unrendered_is_not_deleted(outbox: Outbox) -> None:
    outbox.lose(3)  # it vanished, and Clerk was not told yet
    unrendered = msgspec.structs.replace(outbox.shop.store(), feeds={})

    async def leave() -> None:
        connection = await connection_for_refresh(outbox.shop.database.dsn)
        try:
            await leave_behind(connection, [unrendered])
        finally:
            connection.terminate()

    outbox.shop.loop.run(leave())
    outbox.shop.execute("insert into {s}.products (id) values (3)")
    outbox.push()
    assert outbox.deleted == []


def test_a_push_sees_what_a_refresh_committed_while_both_waited(outbox: Outbox) -> None:
    """Also where transactions of the database are repeatable read by default."""
    shop = outbox.shop
    outbox.lose(3)
    shop.execute("insert into {s}.products (id) values (3)")
    name = shop.database.value("select quote_ident(current_database())")
    shop.database.execute(f"alter database {name} set default_transaction_isolation = 'repeatable read'")
    id = shop.database.value("select id from clerk_feed.rendered where store = $1 and feed = 'products'", shop.name)
    waits = "select count(*) from pg_locks where not granted and locktype = 'advisory' and objid = $1"
    beside = Loop()
    try:
        with closing(Database(shop.loop, shop.database.dsn)) as other, ThreadPoolExecutor(2) as threads:
            other.execute("select pg_advisory_lock($1, $2)", OUTBOX_LOCK, id)
            refreshing = partial(shop.refresher().refresh, shop.store(), "products")
            refreshed = threads.submit(lambda: beside.run(refreshing()))
            eventually(lambda: shop.database.value(waits, id) == 1)
            pushed = threads.submit(outbox.push)
            eventually(lambda: shop.database.value(waits, id) == 2)
            other.execute("select pg_advisory_unlock($1, $2)", OUTBOX_LOCK, id)
            refreshed.result(60)
            pushed.result(60)
    finally:
        shop.database.execute(f"alter database {name} reset default_transaction_isolation")
        beside.stop()
    assert outbox.deleted == []


def test_a_process_that_serves_unrendered_waits_for_a_deletion_under_way(outbox: Outbox) -> None:
    """What is being deleted may be in the source again, and be sent by it."""
    shop = outbox.shop
    outbox.lose(3)
    unrendered = msgspec.structs.replace(shop.store(), feeds={})
    waited: list[bool] = []

    async def deletes(feed: str, asked: list[Any]) -> Response:
        connection = await connection_for_refresh(shop.database.dsn)
        try:
            await asyncio.wait_for(leave_behind(connection, [unrendered]), 2)
            waited.append(False)
        except TimeoutError:
            waited.append(True)
        finally:
            connection.terminate()
        return JSONResponse({"status": "ok"})

    outbox.clerk.deletes = deletes
    outbox.push()
    assert waited == [True]
