"""The status page: what an operator sees, in a real browser and in the words it is told."""

import base64
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from app.status import plot, say, view
from app.status.history import Occurrence, Process, Rendered, Walk
from app.status.record import Stream
from tests.browser import complaints
from tests.clerk import FakeClerk, problem
from tests.conftest import PRODUCTS, TOKEN, Database, Running, Serve, Shop, base_config, eventually, start_service

NOW = 1_800_000_000.0


class Site:
    """A service of two stores, one with history and trouble."""

    def __init__(self, service: Running, database: Database, clerk: FakeClerk) -> None:
        self.service = service
        self.database = database
        self.danish = Shop("danish", database, service, clerk)
        self.german = Shop("german", database, service, clerk)

    def page(self, path: str = "") -> str:
        answer = self.service.get(f"/-/status{path}", token=None, admin=True)
        assert answer.status == 200, answer.body
        return answer.body.decode()

    def says(self, text: str, path: str = "") -> bool:
        return text in shown(self.page(path))


def on_status(service: Running) -> str:
    return shown(service.get("/-/status", admin=True).body.decode())


def shown(page: str) -> str:
    """The text of a page, white space made one."""
    text = re.sub(r"<[^>]+>", " ", page.replace("&#39;", "'").replace("&#34;", '"'))
    return re.sub(r"\s+", " ", text.replace("\u202f", " ").replace("\u00a0", " "))


@pytest.fixture(scope="module")
def site(
    create_database: Callable[[], Database], clerk: FakeClerk, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    database = create_database()
    config = base_config(database.dsn, clerk.verify_url)
    for store in ("danish", "german"):
        database.execute(f"create schema {store}")
        database.execute(PRODUCTS.replace("{s}", store))
        database.execute(f"insert into {store}.products (id) select generate_series(1, 100)")
        config += f'[stores.{store}]\npublic_key = "key-{store}"\n'
    service = start_service(tmp_path_factory.mktemp("site"), config)
    made = Site(service, database, clerk)
    past(made, "german", days=30)
    yield made
    service.stop()


def past(site: Site, store: str, days: int) -> None:
    """A history of full syncs and of changes, with each way a sync can end."""
    site.database.execute(
        """
        insert into clerk_feed.walk
          (store, feed, incremental, started, last_page, pages, items, invalid, ended, final_items)
        select
          $1, 'products', n % 2 = 0, t, t + interval '40 seconds', 10, 100 + n, n % 3,
          case n when 3 then 'held back' when 5 then null else 'finished' end, case when n <> 5 then 100 + n end
        from generate_series(1, $2::int) as n
        cross join lateral (select now() - (n || ' days')::interval as t) as at
        """,
        store,
        days,
    )


def violations(browser: Chrome) -> list[str]:
    """What axe-core has to say of the page."""
    script = (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
    browser.execute_script(script)
    found: list[dict[str, Any]] = browser.execute_async_script(
        "const done = arguments[arguments.length - 1]; axe.run().then((results) => done(results.violations))"
    )
    return [f"{v['id']}: {v['help']}: {[node['html'][:120] for node in v['nodes']]}" for v in found]


def show(browser: Chrome, *, width: int, scheme: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.fixture
def seen(browser: Chrome) -> Iterator[Chrome]:
    """A browser whose size and colours a test may change."""
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("path", ["", "/german/products"], ids=["overview", "feed"])
def test_a_page_is_whole_readable_and_without_a_complaint(
    site: Site, seen: Chrome, path: str, width: int, scheme: str
) -> None:
    show(seen, width=width, scheme=scheme)
    seen.get(f"{site.service.admin_url}/-/status{path}")
    assert violations(seen) == []
    assert seen.execute_script("return document.documentElement.scrollWidth") <= width
    assert complaints(seen) == []


def text_of(browser: Chrome, selector: str) -> str:
    return str(browser.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector))


def test_the_page_follows_a_sync(site: Site, browser: Chrome) -> None:
    site.danish.walk("products", limit=25)
    browser.get(f"{site.service.admin_url}/-/status")
    card = "#feed-danish-products"
    eventually(lambda: "in order" in text_of(browser, card))
    site.danish.get("products?limit=25&offset=0")
    site.danish.get("products?limit=25&offset=25")
    eventually(lambda: "syncing" in text_of(browser, card))
    assert "50 of about 100 items, 50\u00a0%" in re.sub(r"\s*\n\s*", " ", text_of(browser, card))
    [bar] = browser.find_elements(By.CSS_SELECTOR, f"{card} progress")
    assert bar.get_attribute("value") == "50"
    assert "sync is under way" in text_of(browser, "#headline")
    for offset in (50, 75, 100):
        site.danish.get(f"products?limit=25&offset={offset}")
    eventually(lambda: "in order" in text_of(browser, card))
    assert complaints(browser) == []


def test_a_whole_feed_on_its_way_is_shown(site: Site) -> None:
    site.database.execute(
        "insert into danish.products (id, description) select i, repeat('x', 2000) from generate_series(101, 20000) i"
    )
    importer = site.danish.importer("products")
    importer.close()
    connection = open_slowly(site.service, "/danish/products")
    try:
        eventually(lambda: site.says("Whole feed in one answer"))
    finally:
        connection.close()
    eventually(lambda: not site.says("Whole feed in one answer"))
    site.database.execute("delete from danish.products where id > 100")


def open_slowly(service: Running, path: str) -> Any:
    """A request for an answer that nobody reads."""
    parts = urlsplit(service.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((parts.hostname, parts.port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Clerk-Authorization: Bearer {TOKEN}\r\n\r\n".encode())
    return connection


def test_updates_can_be_paused_with_the_keyboard_and_keep_the_focus(site: Site, browser: Chrome) -> None:
    browser.get(f"{site.service.admin_url}/-/status")
    keys = ActionChains(browser)
    keys.send_keys(Keys.TAB).perform()
    assert focused(browser).text == "To the content"
    keys.send_keys(Keys.TAB).perform()
    assert focused(browser).get_attribute("id") == "pause"
    keys.send_keys(Keys.SPACE).perform()
    assert focused(browser).get_attribute("aria-pressed") == "true"
    age = text_of(browser, "#age")
    keys.send_keys(Keys.ENTER).perform()
    eventually(lambda: text_of(browser, "#age") != age)
    link = browser.find_element(By.LINK_TEXT, "products")
    browser.execute_script("arguments[0].focus()", link)
    age = text_of(browser, "#age")
    site.danish.get("products?limit=25&offset=0")
    eventually(lambda: "syncing" in text_of(browser, "#feed-danish-products"))
    assert focused(browser).text == "products"
    for offset in (25, 50, 75, 100):
        site.danish.get(f"products?limit=25&offset={offset}")


def focused(browser: Chrome) -> WebElement:
    return browser.switch_to.active_element


def test_a_page_that_lost_its_service_says_so(site: Site, clerk: FakeClerk, serve: Serve, browser: Chrome) -> None:
    service = serve(base_config(site.database.dsn, clerk.verify_url) + '[stores.danish]\npublic_key = "key-danish"\n')
    browser.get(f"{service.admin_url}/-/status")
    service.stop()
    eventually(lambda: "does not answer" in text_of(browser, "#lost"))
    assert browser.find_element(By.ID, "lost").is_displayed()


def test_without_its_script_the_page_is_whole(site: Site) -> None:
    page = site.page()
    assert "<style" not in page
    assert " style=" not in page
    assert not re.search(r"<script(?! src=)", page)
    assert 'href="">Read again' in page


def test_nothing_but_the_page_itself_may_run(site: Site) -> None:
    policy = site.service.get("/-/status", admin=True).headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for name in ("status.css", "status.js", "status.svg"):
        answer = site.service.get(f"/-/{name}", admin=True, token=None)
        assert (answer.status, answer.headers["X-Content-Type-Options"]) == (200, "nosniff")


def test_the_page_is_the_operators_alone(site: Site) -> None:
    for path in ("/-/status", "/-/status/danish/products", "/-/status.js"):
        problem(site.service.get(path), 404, "not-found")


@pytest.mark.parametrize("path", ["/danish/nothing", "/nobody/products", "/danish", "/danish/products/x"])
def test_a_page_of_nothing_is_a_404(site: Site, path: str) -> None:
    problem(site.service.get(f"/-/status{path}", admin=True), 404, "not-found")


def test_no_secret_is_on_the_page(site: Site) -> None:
    site.danish.get("products", token="secret-token-of-somebody")
    eventually(lambda: site.says("Clerk does not know this token"))
    pages = site.page() + site.page("/danish/products")
    for secret in ("secret-token-of-somebody", TOKEN, "key-danish", site.database.dsn):
        assert secret not in pages


def test_a_refusal_is_told_with_its_cause_and_cure(site: Site) -> None:
    site.german.get("categories")
    eventually(lambda: site.says("404: The store has no relation for this feed."))
    assert site.says('The database has no view or table "german"."categories".')
    assert site.says("Create the view named in the detail")


def test_items_left_out_are_told_by_attribute(site: Site) -> None:
    site.database.execute("update danish.products set price = null where id in (7, 8)")
    site.danish.walk("products", limit=25)
    eventually(lambda: site.says("price is missing", "/danish/products"))
    assert site.says("Left out 2 times in 24 hours, last the item with id 8.")
    eventually(lambda: site.says("2 items of 100 lack a required attribute"))
    site.database.execute("update danish.products set price = 1 where price is null")
    site.danish.walk("products", limit=25)
    eventually(lambda: not site.says("2 items of 100 lack a required attribute"))


def test_a_sync_that_was_held_back_is_told_with_the_command(site: Site) -> None:
    site.danish.walk("products", limit=25)
    site.database.execute("delete from danish.products where id > 10")
    assert site.danish.get("products?limit=25&offset=0").status == 503
    eventually(lambda: site.says("A full sync was held back"))
    assert site.says("clerk-feed accept-shrink --store danish --feed products")
    site.database.execute("insert into danish.products (id) select generate_series(11, 100)")
    site.danish.walk("products", limit=25)
    eventually(lambda: not site.says("A full sync was held back"))


def workers(site: Site) -> set[int]:
    """The numbers of the processes that say they serve feeds."""
    return {row["pid"] for row in site.database.fetch("select pid from clerk_feed.process")}


def another(site: Site, clerk: FakeClerk, serve: Serve) -> tuple[Running, int]:
    """One more service on the same database, and the number of its process."""
    before = workers(site)
    service = serve(base_config(site.database.dsn, clerk.verify_url) + '[stores.danish]\npublic_key = "key-danish"\n')
    eventually(lambda: len(workers(site) - before) == 1)
    [pid] = workers(site) - before
    return service, pid


def test_every_process_is_on_the_page_of_each(site: Site, clerk: FakeClerk, serve: Serve) -> None:
    site.danish.walk("products", limit=25)
    other, pid = another(site, clerk, serve)
    for offset in (0, 25):
        other.get(f"/danish/products?limit=25&offset={offset}")
    for service in (site.service, other):
        eventually(lambda service=service: f", {pid} " in on_status(service))  # type: ignore[misc]
    eventually(lambda: site.says("50 of about 100 items"))
    for offset in (50, 75, 100):
        site.danish.get(f"products?limit=25&offset={offset}")
    eventually(lambda: re.search(r"[1-9]\d* verified tokens? remembered", shown(site.page())) is not None)
    other.stop()
    eventually(lambda: f", {pid} " not in shown(site.page()))


def test_a_process_that_was_killed_is_soon_forgotten(site: Site, clerk: FakeClerk, serve: Serve) -> None:
    other, pid = another(site, clerk, serve)
    eventually(lambda: f", {pid} " in shown(site.page()))
    other.process.kill()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    other.process.wait()
    eventually(lambda: f", {pid} " not in shown(site.page()), seconds=40)


def test_operators_without_a_name_see_nothing(site: Site, clerk: FakeClerk, serve: Serve) -> None:
    config = base_config(site.database.dsn, clerk.verify_url, access='admin = { username = "op", password = "pw" }')
    service = serve(config + '[stores.danish]\npublic_key = "key-danish"\n')
    problem(service.get("/-/status", admin=True), 401, "admin-required")
    header = {"Authorization": "Basic " + base64.b64encode(b"op:pw").decode()}
    assert service.get("/-/status", admin=True, headers=header).status == 200


# What follows is judged without a database.


def walk(number: int = 1, **changes: Any) -> Walk:
    values: dict[str, Any] = {
        "id": number,
        "store": "dk",
        "feed": "products",
        "incremental": False,
        "whole": False,
        "started": NOW - 1000 * (100 - number),
        "last_page": NOW - 1000 * (100 - number) + 60,
        "pages": 10,
        "items": 1000,
        "invalid": 0,
        "ended": "finished",
        "final_items": 1000,
    }
    return Walk(**(values | changes))


def rendered(**changes: Any) -> Rendered:
    values: dict[str, Any] = {
        "store": "dk",
        "feed": "products",
        "served": True,
        "items": 1000,
        "invalid": 0,
        "refreshed": NOW - 60,
        "took": 2.0,
        "added": 1,
        "changed": 2,
        "vanished": 3,
        "last_outcome": "done",
        "last_tried": NOW - 60,
        "last_detail": None,
        "deletions_waiting": 3,
        "last_items": 1000,
    }
    return Rendered(**(values | changes))


PROCESS = Process("web", 1, "1.2.3", NOW - 100, NOW - 1, 2, 8, 1, 0, ())


def happened(kind: str, code: str, ago: float = 60, **changes: Any) -> Occurrence:
    values: dict[str, Any] = {"store": "dk", "feed": "products", "count": 3, "seconds": 0.3, "detail": "Seen."}
    return Occurrence(kind=kind, code=code, last=NOW - ago, **(values | changes))


def judged(*walks: Walk, **facts: Any) -> view.Overview:
    return view.overview(["dk"], view.Facts(now=NOW, walks=list(walks), **({"processes": [PROCESS]} | facts)))


def feed_of(page: view.Overview) -> view.Feed:
    [feed] = page.stores["dk"]
    return feed


def test_a_feed_that_finished_is_in_order() -> None:
    page = judged(walk())
    assert (page.mood, feed_of(page).state, page.headline) == (
        "good",
        "in order",
        "Nothing needs a look, no sync is under way.",
    )
    assert page.unread["dk"] == ("categories", "orders", "customers", "pages")


def test_a_walk_nobody_goes_on_with_waits_and_is_given_up_after_an_hour() -> None:
    unfinished: dict[str, Any] = {"ended": None, "final_items": None, "started": NOW - 8000}
    assert feed_of(judged(walk(last_page=NOW - 5, **unfinished))).state == "syncing"
    assert feed_of(judged(walk(last_page=NOW - 300, **unfinished))).state == "waiting for Clerk"
    page = judged(walk(last_page=NOW - 3700, **unfinished))
    assert (feed_of(page).state, page.mood) == ("given up", "warn")


def test_a_walk_that_was_started_over_does_not_look_as_if_it_went_on() -> None:
    unfinished: dict[str, Any] = {"ended": None, "final_items": None}
    page = judged(
        walk(3, started=NOW - 30, last_page=NOW - 1, **unfinished),
        walk(2, started=NOW - 900, last_page=NOW - 600, **unfinished),
        walk(1),
    )
    [running] = feed_of(page).running
    assert (running.items, running.expected, running.percent) == (1000, 1000, 99)


def test_how_long_a_walk_still_takes_follows_its_rate() -> None:
    current = walk(2, started=NOW - 100, last_page=NOW, items=250, ended=None, final_items=None)
    [running] = feed_of(judged(current, walk(1))).running
    assert (running.percent, running.rate, running.left_seconds) == (25, 2.5, 300.0)


def test_a_refresh_that_failed_is_told_with_its_reason() -> None:
    page = judged(walk(), rendered=[rendered(last_outcome="failed", last_detail="division by zero")])
    [trouble] = page.troubles
    assert (page.mood, trouble.title, trouble.cause) == ("bad", "A refresh failed", "division by zero")


def test_a_refusal_that_a_page_came_after_is_no_trouble_any_more() -> None:
    refusal = happened("refused", "token-rejected", ago=120)
    before, after = walk(last_page=NOW - 300), walk(last_page=NOW - 60)
    assert [t.code for t in judged(before, occurrences=[refusal]).troubles] == ["token-rejected"]
    page = judged(after, occurrences=[refusal])
    assert page.troubles == ()
    assert [t.code for t in page.happened] == ["token-rejected"]


def test_clerk_that_can_not_be_asked_is_trouble_until_it_answers() -> None:
    lost = happened("verified", "unreachable", ago=60, feed="", detail="no answer within 5 s")
    [trouble] = judged(walk(), occurrences=[lost]).troubles
    assert trouble.cause == "no answer within 5 s."
    assert judged(walk(), occurrences=[happened("verified", "good", ago=10, feed=""), lost]).troubles == ()


def test_the_health_of_verify_adds_up_stores() -> None:
    page = judged(
        occurrences=[
            happened("verified", "good", feed="", count=2, seconds=0.2),
            happened("verified", "good", feed="", store="de", count=2, seconds=0.6),
        ]
    )
    [good] = page.verify
    assert good.count == 4
    assert good.mean_seconds == pytest.approx(0.2)


def test_no_process_is_trouble() -> None:
    assert judged(walk(), processes=[]).troubles[0].title == "No process serves feeds"


KINDS = ["refused", "cut off", "resumed", "source failed", "state failed", "changed", "counted", "no modified_at"]


KINDS += ["deletions failed", "deletions refused", "pool exhausted", "defect"]


@pytest.mark.parametrize("kind", [*KINDS, "something new"])
def test_everything_that_happens_has_words(kind: str) -> None:
    [told] = judged(occurrences=[happened(kind, "busy" if kind == "refused" else "x")]).happened
    assert told.title
    assert told.cure or kind == "something new"


@pytest.mark.parametrize("kind", ["ids repeated", "ids missing"])
def test_rows_that_their_ids_keep_out_are_among_the_items_left_out(kind: str) -> None:
    page = judged(occurrences=[happened(kind, "", detail="3 rows of shop.products")])
    [told] = page.invalid
    assert told.cause == "3 rows of shop.products."
    assert told.cure
    assert page.happened == ()


def test_deletions_that_can_not_be_sent_are_trouble_while_any_wait() -> None:
    failed = happened("deletions failed", "", ago=5)
    assert len(judged(walk(), occurrences=[failed], rendered=[rendered()]).troubles) == 1
    assert judged(walk(), occurrences=[failed], rendered=[rendered(deletions_waiting=0)]).troubles == ()


def test_a_stream_of_a_process_is_a_sync_under_way() -> None:
    stream = Stream("dk", "feed.json", NOW - 10, 500, 1_000_000)
    page = judged(processes=[Process("web", 1, "1", NOW - 99, NOW, 0, 1, 1, 0, (stream,))])
    assert (feed_of(page).feed, feed_of(page).running[0].rate) == ("feed.json", 50.0)


def test_a_plot_escapes_what_it_is_given() -> None:
    point = plot.Point(NOW, 1.0, "good", "<b>&")
    drawn = plot.plot([point, plot.Point(NOW + 9, 2.0, "bad", "x")], label='"><script>', ticks=plot.counts)
    assert "<script>" not in drawn
    assert "&lt;b&gt;&amp;" in drawn


@pytest.mark.parametrize("most", [0.0, 0.0004, 0.02, 1.0, 3.0, 7.0, 59.0, 61.0, 3599.0, 3700.0, 90_000.0])
def test_an_axis_of_durations_reaches_its_greatest_value_in_few_round_steps(most: float) -> None:
    marks = plot.durations(most)
    assert marks[0][0] == 0
    assert marks[-1][0] >= most * 0.999
    assert 2 <= len(marks) <= 7
    assert len({text for _, text in marks}) == len(marks)


@pytest.mark.parametrize("most", [0, 1, 3, 7, 99, 1000, 1_063_207, 2_000_000_000])
def test_an_axis_of_numbers_reaches_its_greatest_value_in_few_round_steps(most: int) -> None:
    marks = plot.counts(most)
    assert marks[-1][0] >= most
    assert 2 <= len(marks) <= 7
    assert len({text for _, text in marks}) == len(marks)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0123, "12 ms"),
        (1.25, "1.2 s"),
        (42, "42 s"),
        (316, "5 min 16 s"),
        (3600, "1 h"),
        (7290, "2 h 1 min"),
        (93_600, "1 d 2 h"),
    ],
)
def test_durations_are_said_in_the_units_that_matter(seconds: float, said: str) -> None:
    assert say.duration(seconds) == said


def test_numbers_have_their_thousands_apart() -> None:
    assert say.number(1_063_207) == "1\u202f063\u202f207"
    assert (say.plural(1, "item"), say.plural(2, "item")) == ("1 item", "2 items")
    assert [say.ago(seconds) for seconds in (3, 90, 7300, 200_000)] == ["just now", "1 min ago", "2 h ago", "2 d ago"]
