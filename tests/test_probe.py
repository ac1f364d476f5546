"""`clerk-feed probe`: what a person learns of a feed, good or bad.

Each diagnosis has a feed on loopback that is broken in that way, and no healthy feed raises an alarm.
"""

import asyncio
import gzip
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from app.cli import main
from app.diagnosis.walk import growth, pace
from tests.conftest import TOKEN, Hosted, Shop

PAGED = "?limit={{limit}}&offset={{offset}}"
INCREMENTAL = PAGED + "&modified_after={{modified_after}}"


def product(id: int | str, **changes: Any) -> dict[str, Any]:
    item = {
        "id": id,
        "name": "Chair",
        "description": "A chair",
        "price": 10.5,
        "image": "https://images.shop.example/chair.jpg",
        "url": "https://shop.example/chair",
        "categories": [1, 2],
        "created_at": 1_767_225_600,
    }
    return {name: value for name, value in {**item, **changes}.items() if value is not ...}


def ndjson(items: list[dict[str, Any]]) -> Response:
    return Response(b"".join(orjson.dumps(item) + b"\n" for item in items), media_type="application/x-ndjson")


Items = list[dict[str, Any]]


@dataclass
class Feed:
    """A feed over HTTP, healthy until told otherwise. `page` cuts the items, `answer` makes the response."""

    items: Items = field(default_factory=lambda: [product(number) for number in range(1, 26)])
    page: Callable[[Items, int, int], Items] = lambda items, offset, limit: items[offset : offset + limit]
    answer: Callable[[Items], Response] = ndjson
    changed: Callable[[str], bool] = lambda since: True
    """Whether everything is sent for a modified_after that is not empty."""
    url: str = ""
    asked: list[str] = field(default_factory=list)

    async def __call__(self, request: Request) -> Response:
        self.asked.append(request.url.query)
        query = request.query_params
        items = self.items
        if (since := query.get("modified_after")) and not self.changed(since):
            items = []
        if "offset" not in query:
            return self.answer(items)
        return self.answer(self.page(items, int(query["offset"]), int(query.get("limit", 25))))


Served = Callable[..., Feed]


@pytest.fixture
def served(hosted: Hosted) -> Served:
    """Serves a feed at /dk/products of its own server."""

    def serve(**how: Any) -> Feed:
        feed = Feed(**how)
        feed.url = hosted(Starlette(routes=[Route("/{path:path}", feed.__call__)])) + "/dk/products"
        return feed

    return serve


def probe(url: str, *options: str) -> Result:
    """The command, run in this process; its output is what a person reads."""
    return CliRunner().invoke(main, ["probe", url, *options], catch_exceptions=False)


def found(url: str, *options: str) -> dict[str, dict[str, Any]]:
    """The findings by their codes. The text and the JSON agree on the exit status."""
    done = probe(url, "--json", *options)
    report = json.loads(done.stdout)
    assert done.exit_code == (1 if any(f["severity"] == "error" for f in report["findings"]) else 0)
    assert report["ok"] == (done.exit_code == 0)
    return {finding["code"]: finding for finding in report["findings"]}


def alarms(url: str, *options: str) -> list[str]:
    return [code for code, finding in found(url, *options).items() if finding["severity"] != "note"]


# Healthy feeds


@pytest.mark.parametrize("answer", [ndjson, JSONResponse])
@pytest.mark.parametrize("limit", ["4", "5", "25", "1000"])
def test_a_healthy_feed_raises_no_alarm(served: Served, answer: Any, limit: str) -> None:
    feed = served(answer=answer, changed=lambda since: False)
    assert alarms(feed.url + INCREMENTAL, "--limit", limit) == []
    assert alarms(feed.url + PAGED, "--limit", limit) == []
    assert alarms(feed.url) == []


def test_clerks_own_examples_raise_no_alarm(hosted: Hosted) -> None:
    examples: dict[str, Items] = {
        "products": [
            product(135, brand="Je'daii", color_names=["Green", "Red"], reviews_amount=164, reviews_avg=4.8),
            product(261, price=99999999999999.95, gender="unisex", on_sale=True, stock=0),
        ],
        "categories": [
            {"id": 1, "name": "Sabers", "url": "https://empire.example/sabers", "subcategories": [2]},
            {"id": 2, "name": "Sale", "url": "https://empire.example/sale", "subcategories": []},
        ],
        "orders": [
            {
                "id": 123458,
                "customer": 789,
                "email": "vader@empire.example",
                "products": [{"id": 456, "quantity": 1, "price": 200.00}, {"id": 789, "quantity": 2, "price": 120.00}],
                "time": 1389871120,
            },
            {
                "id": 123457,
                "customer": "",
                "products": [{"id": 789, "quantity": 2, "price": 120.00}],
                "time": 1389871090,
            },
        ],
        "customers": [
            {"id": 135, "name": "Luke", "email": "luke@rebels.example", "subscribed": True, "is_b2b": "false"},
            {"id": 165, "email": "vader@empire.example", "age": 45, "interests": ["saber"], "is_b2b": True},
        ],
        "pages": [
            {"id": 135, "type": "cms", "url": "https://e.example/a", "title": "Open Hours", "text": "…"},
            {"id": 1354, "type": "blog", "url": "https://e.example/b", "title": "New", "text": "…", "keywords": ["x"]},
        ],
    }

    async def serve(request: Request) -> Response:
        offset = int(request.query_params["offset"])
        return JSONResponse(examples[request.path_params["feed"]][offset:])

    url = hosted(Starlette(routes=[Route("/{feed}", serve)]))
    for feed in examples:
        assert alarms(f"{url}/{feed}{PAGED}") == []


def test_a_consistent_multi_language_feed_raises_no_alarm(served: Served) -> None:
    texts = {"danish": "Stol", "german": "Stuhl"}
    addresses = {"danish": "https://shop.example/da", "german": "https://shop.example/de"}
    items = [product(id, name=texts, description=texts, image=addresses, url=addresses) for id in range(30)]
    assert alarms(served(items=items).url + PAGED, "--limit", "10") == []


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_our_own_service_raises_no_alarm(catalog: Shop, compression: str) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 250)")
    for suffix in ("", ".json"):
        url = f"{catalog.service.url}/{catalog.name}/products{suffix}{INCREMENTAL}"
        options = ("--token", TOKEN, "--limit", "100", "--compression", compression)
        report = json.loads(probe(url, "--json", *options).stdout)
        assert report["findings"] == []
        assert (report["items"], report["pages"], report["complete"]) == (250, 4, True)
        assert report["compression"] == (None if compression == "none" else compression)
        assert report["bytes_received"] < report["bytes"] or compression == "none"


def test_a_delta_of_our_own_service_raises_no_alarm(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id, modified_at) select n, now() from generate_series(1, 50) as n")
    url = f"{catalog.service.url}/{catalog.name}/products{INCREMENTAL}"
    assert alarms(url, "--token", TOKEN, "--limit", "20", "--modified-after", "2") == []


def test_a_feed_that_changes_while_it_is_looked_at_raises_no_alarm(served: Served) -> None:
    feed = served()

    def page(items: Items, offset: int, limit: int) -> Items:
        if len(feed.asked) == 5:  # after the walk
            items.insert(0, product(1000))
        return items[offset : offset + limit]

    feed.page = page
    assert alarms(feed.url + PAGED, "--limit", "10") == []


# What a person reads


def test_probe_reads_a_feed_to_its_end_and_says_how_it_went(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 250)")
    url = f"{catalog.service.url}/{catalog.name}/products{PAGED}"
    command = [sys.executable, "-m", "app", "probe", url, "--token", TOKEN, "--limit", "100"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("items         250", "pages         4", "kB as gzip", "slowest page", "items/s", " ms"):
        assert words in done.stdout
    verdict = done.stdout.splitlines()[-1]
    assert verdict.startswith("Verdict: a sync goes through.")
    assert "under 10 minutes" in verdict


def test_a_part_of_a_feed_is_judged_as_a_part(served: Served) -> None:
    done = probe(served().url + PAGED, "--limit", "10", "--pages", "2")
    assert done.exit_code == 0
    assert done.output.splitlines()[-1].startswith("Verdict: nothing in the first 2 pages breaks a sync; the rest")


def test_json_keeps_letters_as_they_are_and_progress_out_of_it(served: Served) -> None:
    done = probe(served(items=[product("Bücherregal-é-椅子", name=None)]).url + PAGED, "--json")
    assert "Bücherregal-é-椅子" in done.stdout
    assert json.loads(done.stdout)["findings"]


def test_a_finding_names_the_attribute_the_count_the_items_and_the_cure(served: Served) -> None:
    items = [product(id, price="10,50" if id % 5 == 0 else 10.5) for id in range(1, 101)]
    done = probe(served(items=items).url + PAGED)
    assert 'price is not a number. In 20 of 100 items (20 %), such as id 5: "10,50"; id 10: "10,50"' in done.output
    assert "→ Send price as a number." in done.output
    assert done.output.splitlines()[-1] == "Verdict: a sync would lose items or break. 1 error, see above."


# Refusals


def test_probe_tells_the_problem_and_its_cure(catalog: Shop) -> None:
    done = probe(f"{catalog.service.url}/{catalog.name}/products{PAGED}", "--token", "wrong-token")
    assert done.exit_code == 1
    assert "HTTP status 401" in done.output
    assert "public_key" in done.output
    assert "wrong-token" not in done.output


@pytest.mark.parametrize(
    ("status", "cause", "cure"),
    [
        (401, "HTTP authentication or Clerk's token is missing or wrong", "USER:PASS"),
        (403, "blocks the importer", "Cloudflare"),
        (404, "no feed at this URL", "caches"),
        (418, "did not understand", "Read the body"),
        (429, "asking too often", "raise Page Size"),
        (500, "one item with an invalid attribute", "server's log"),
        (503, "too busy", "check the server's load"),
        (504, "too busy", "check the server's load"),
    ],
)
def test_a_status_is_told_with_clerks_cause_and_cure(
    served: Served, monkeypatch: pytest.MonkeyPatch, status: int, cause: str, cure: str
) -> None:
    monkeypatch.setattr("app.clerk.importer._MAX_PAUSE_SECONDS", 0.01)
    feed = served(answer=lambda items: Response("oh no", status))
    done = probe(feed.url.replace("//", "//user:s3cret@") + PAGED)
    assert done.exit_code == 1
    assert f"HTTP status {status}" in done.output
    assert cause in done.output
    assert cure in done.output
    assert "s3cret" not in done.output
    assert f"status-{status}" in found(feed.url + PAGED)


def test_a_redirect_is_told_with_its_address(served: Served) -> None:
    feed = served(answer=lambda items: Response(b"", 301, {"Location": "https://u:s3cret@shop.example/feed"}))
    done = probe(feed.url + PAGED)
    assert "https://…@shop.example/feed" in done.output
    assert done.exit_code == 1


def test_a_failure_in_the_middle_says_where_and_keeps_what_was_seen(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.clerk.importer._MAX_PAUSE_SECONDS", 0.01)

    def answer(items: Items) -> Response:
        return Response("Error in product 11", 500) if items[0]["id"] == 11 else ndjson(items)

    feed = served(answer=answer, items=[product(id, name=...) for id in range(1, 26)])
    findings = found(feed.url + PAGED, "--limit", "10")
    assert "after 10 items, at offset 10" in findings["status-500"]["what"]
    assert "Error in product 11" in findings["status-500"]["cure"]
    assert findings["item-attribute-missing"]["count"] == 10


def test_nothing_listening_an_unknown_host_and_silence_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        silent = found(f"http://127.0.0.1:{port}/products{PAGED}", "--timeout", "1")
        assert "takes too long" in silent["unreachable"]["cure"]
        not_tls = found(f"https://127.0.0.1:{port}/products{PAGED}", "--timeout", "1")
        assert "unreachable" in not_tls
    assert "Nothing listens" in found(f"http://127.0.0.1:{port}/products{PAGED}")["unreachable"]["cure"]


# Answers that are no feed


@pytest.mark.parametrize(
    ("body", "cause", "cure"),
    [
        ("<!doctype html><title>Just a moment…</title>", "check for bots", "Cloudflare"),
        ('<form><input type="password"></form>', "page to log in", "USER:PASS"),
        ("<br />\n<b>Warning</b>: Undefined index in feed.php\n[]", "error message of PHP", "display_errors"),
        ("<html><h1>Down for maintenance</h1></html>", "about maintenance", "503"),
        ("<html><h1>Welcome to our shop</h1></html>", "Welcome to our shop", "Check the URL"),
    ],
)
def test_html_in_place_of_json_is_told_for_what_it_is(served: Served, body: str, cause: str, cure: str) -> None:
    html = found(served(answer=lambda items: HTMLResponse(body)).url + PAGED)["html"]
    assert cause in html["what"]
    assert cure in html["cure"]


def as_json(body: bytes, **headers: str) -> Callable[[Items], Response]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda items: Response(body, headers=named, media_type="application/json")


GOOD = orjson.dumps([product(1)])


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (as_json(gzip.compress(GOOD * 50)[:-30], content_encoding="gzip"), "compression-broken", "ends before its end"),
        (as_json(GOOD, content_encoding="gzip"), "compression-broken", "not the gzip that its header says"),
        (as_json(GOOD, content_encoding="br"), "compression-broken", "'br', which nobody asked for"),
        (as_json(gzip.compress(GOOD)), "compression-unnamed", "no Content-Encoding"),
        (as_json(b"\xef\xbb\xbf" + GOOD), "byte-order-mark", "byte order mark"),
        (as_json(b'{"products": ' + GOOD + b"}"), "wrapped", "under 'products'"),
        (as_json(b'{"data": {"items": []}}'), "wrapped", "under 'data'"),
        (as_json(GOOD[:-40]), "not-json", "begins with: [{"),
        (as_json(b'[{"id": 1, "price": NaN}]'), "not-json", "NaN and Infinity are no JSON"),
        (as_json('[{"id": 1, "name": "Smørrebrød"}]'.encode("latin-1")), "not-json", "Send it as UTF-8"),
        (as_json(b'[{"id": null}]'), "id-missing", "no id"),
        (as_json(b'[{"name": "Chair", "categories": [1]}]'), "id-missing", "no id"),
        (as_json(b"[1, 2]"), "not-json", "not an object"),
        (as_json(b"null"), "not-json", "not an object"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_answer_that_is_no_feed_is_told_for_what_it_is(served: Served, answer: Any, code: str, said: str) -> None:
    finding = found(served(answer=answer).url + PAGED)[code]
    assert said in finding["what"] + finding["cure"]
    assert finding["severity"] == "error"


@pytest.mark.parametrize(
    ("media_type", "render", "said"),
    [
        ("text/html", ndjson, "text/html"),
        ("text/plain", JSONResponse, "text/plain"),
        ("application/json", ndjson, "which is NDJSON"),
        ("application/x-ndjson", JSONResponse, "a JSON array"),
    ],
)
def test_a_wrong_content_type_is_told(served: Served, media_type: str, render: Any, said: str) -> None:
    feed = served(answer=lambda items: Response(render(items).body, media_type=media_type))
    assert said in found(feed.url + PAGED)["content-type"]["what"]


@contextmanager
def raw_server(answer: bytes) -> Iterator[str]:
    """Sends these bytes to every request and closes the connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/products"
    stop.set()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


def test_an_answer_cut_off_is_told() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
    with raw_server(head + GOOD) as url:
        assert "before its end" in found(url)["cut-off"]["what"]


def test_an_answer_whose_end_http_does_not_tell_is_a_warning() -> None:
    with raw_server(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + GOOD) as url:
        assert alarms(url) == ["end-untold"]


# Pages in a row


def test_a_limit_that_is_ignored_is_told(served: Served) -> None:
    feed = served(page=lambda items, offset, limit: items[offset:])
    assert alarms(feed.url + PAGED, "--limit", "10") == ["limit-ignored"]


def test_a_limit_that_is_clamped_is_told_with_what_is_lost(served: Served) -> None:
    feed = served(page=lambda items, offset, limit: items[offset : offset + min(limit, 5)])
    findings = found(feed.url + PAGED, "--limit", "10")
    assert findings["limit-clamped"]["examples"] == ["id 6", "id 7", "id 8"]
    assert "set Page Size to 5" in findings["limit-clamped"]["cure"]


def test_pages_that_are_short_but_lose_nothing_are_a_warning(served: Served) -> None:
    def page(items: Items, offset: int, limit: int) -> Items:
        return [item for item in items[offset : offset + limit] if item["id"] % 7]

    assert alarms(served(page=page).url + PAGED, "--limit", "10") == ["page-short"]


@pytest.mark.parametrize("limit", ["10", "1000"])
def test_an_offset_that_is_ignored_is_told_and_ends_the_walk(served: Served, limit: str) -> None:
    feed = served(page=lambda items, offset, limit: items[:limit])
    assert alarms(feed.url + PAGED, "--limit", limit) == ["offset-ignored"]
    assert len(feed.asked) == 2


def test_an_order_that_is_not_fixed_is_told(served: Served) -> None:
    feed = served(items=[product(id) for id in range(100)])

    def page(items: Items, offset: int, limit: int) -> Items:
        turned = len(feed.asked) * 37 % 100
        return (items[turned:] + items[:turned])[offset : offset + limit]

    feed.page = page
    assert "order-unstable" in alarms(feed.url + PAGED, "--limit", "20")


def test_the_same_items_in_another_order_are_told(served: Served) -> None:
    feed = served()
    feed.page = lambda items, offset, limit: items[offset : offset + limit][:: 1 if len(feed.asked) % 2 else -1]
    assert alarms(feed.url + PAGED) == ["order-unstable"]


def test_ids_that_come_again_are_told_with_their_places(served: Served) -> None:
    items = [product(id) for id in [*range(1, 11), 3, *range(11, 20)]]
    findings = found(served(items=items).url + PAGED, "--limit", "10")
    assert findings["ids-again"]["examples"] == ["id 3 at offset 0 and 10"]


def test_ids_that_are_not_unique_are_told(served: Served) -> None:
    findings = found(served(items=[product(id) for id in (1, 1, 1, 2)]).url + PAGED)
    assert findings["ids-repeated"]["count"] == 2
    assert "join" in findings["ids-repeated"]["cure"]


def test_an_empty_page_before_the_end_is_told(served: Served) -> None:
    def page(items: Items, offset: int, limit: int) -> Items:
        return [item for item in items[offset : offset + limit] if not 10 < item["id"] <= 20]

    findings = found(served(page=page).url + PAGED, "--limit", "10")
    assert "at offset 10 is empty, but at 20 there are 5 items" in findings["empty-page"]["what"]
    assert findings["empty-page"]["examples"] == ["id 21", "id 22", "id 23"]


@pytest.mark.parametrize(("path", "severity"), [("products", "error"), ("orders", "warning"), ("pages", "error")])
def test_an_empty_feed_is_told_by_what_clerk_would_delete(served: Served, path: str, severity: str) -> None:
    feed = served(items=[])
    assert found(feed.url.replace("products", path) + PAGED)["empty"]["severity"] == severity


def test_an_empty_delta_is_fine(served: Served) -> None:
    assert alarms(served(items=[]).url + INCREMENTAL, "--modified-after", "1") == []


def test_pages_that_cost_more_the_further_back_they_are_are_told(hosted: Hosted) -> None:
    items = [product(id) for id in range(120)]

    async def serve(request: Request) -> Response:
        offset, limit = int(request.query_params["offset"]), int(request.query_params["limit"])
        await asyncio.sleep(offset / 300)
        return ndjson(items[offset : offset + limit])

    url = hosted(Starlette(routes=[Route("/products", serve)])) + "/products"
    finding = found(url + PAGED, "--limit", "10")["cost-grows"]
    assert "At offset 1,000,000" in finding["what"]


def test_the_cost_of_pages_is_judged_by_many_of_them() -> None:
    even = [(offset, 0.01) for offset in range(0, 30_000, 1000)]
    assert growth(even) == []
    assert growth([*even[:-1], (29_000, 5.0)]) == []  # one slow page is no trend
    assert growth([(offset, 0.001 + offset / 1e6) for offset in range(0, 30_000, 1000)]) == []  # nobody would notice
    assert growth([(0, 0.01), (1000, 9.0)]) == []
    [finding] = growth([(offset, 0.01 + offset / 1e5) for offset in range(0, 90_000, 1000)])
    assert "10 s" in finding.what


def test_clerks_marks_of_10_and_60_minutes() -> None:
    assert pace(599) == []
    assert "over 10, too long for a sync every hour" in pace(700)[0].what
    assert "over 60, and Clerk may run such a sync once a day only" in pace(3700)[0].what


# modified_after


def test_modified_after_that_is_ignored_is_told(served: Served) -> None:
    assert alarms(served().url + INCREMENTAL) == ["modified-after-ignored"]


def test_modified_after_that_is_refused_is_told(served: Served, hosted: Hosted) -> None:
    feed = served()

    async def serve(request: Request) -> Response:
        if request.query_params.get("modified_after"):
            return Response("what?", 400)
        return await feed(request)

    url = hosted(Starlette(routes=[Route("/products", serve)])) + "/products"
    assert alarms(url + INCREMENTAL) == ["modified-after-refused"]


def test_modified_after_in_one_form_only_is_a_note(hosted: Hosted) -> None:
    async def serve(request: Request) -> Response:
        since = request.query_params["modified_after"]
        if since and "T" not in since:
            return Response("what?", 400)
        return ndjson([] if since or request.query_params["offset"] != "0" else [product(1)])

    url = hosted(Starlette(routes=[Route("/products", serve)])) + "/products"
    assert found(url + INCREMENTAL)["modified-after-form"]["severity"] == "note"


def test_an_empty_modified_after_read_as_now_is_told(hosted: Hosted) -> None:
    async def serve(request: Request) -> Response:
        query = request.query_params
        return ndjson([product(1)] if query["modified_after"] and query["offset"] == "0" else [])

    url = hosted(Starlette(routes=[Route("/products", serve)])) + "/products"
    assert "modified-after-empty" in found(url + INCREMENTAL)


# Items

MILLISECONDS = 1_767_225_600_000
TEXTS = {"danish": "Stol", "german": "Stuhl"}


@pytest.mark.parametrize(
    ("item", "code", "severity"),
    [
        (product(7, price=...), "attribute-missing", "error"),
        (product(7, name=None), "null", "error"),
        (product(7, color=None), "null", "error"),
        (product(7, colors=["red", None]), "null-nested", "warning"),
        (product(7, size={"width": {"cm": [1, {"x": None}]}}), "null-nested", "warning"),
        (product(7, price="10.50"), "type", "error"),
        (product(7, price=True), "type", "error"),
        (product(7, name=12), "type", "error"),
        (product(7, categories=12), "type", "error"),
        (product(7, categories=[{"id": 12}]), "type", "error"),
        (product(7, categories=[1, None]), "null-nested", "warning"),
        (product(7, created_at="2026-01-01"), "type", "error"),
        (product(7, list_price="12"), "type", "warning"),
        (product(7, name={}), "object", "error"),
        (product(7, name={"text": ["Chair"]}), "object", "error"),
        (product(7, image="/chair.jpg"), "address-relative", "warning"),
        (product(7, image="//images.shop.example/chair.jpg"), "address-relative", "warning"),
        (product(7, url="http://shop.example/chair"), "address-insecure", "warning"),
        (product(7, created_at=MILLISECONDS), "time-milliseconds", "warning"),
        (product(7, created_at=4_000_000_000), "time-future", "warning"),
        (product(7, **{"primary-color": "red"}), "name", "warning"),
        (product(7, name=TEXTS, description={"danish": "En stol"}), "languages-within", "warning"),
        (product(7, name=TEXTS, url={"danish": "/stol", "german": "/stuhl"}), "address-relative", "warning"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_item_that_clerk_can_not_read_is_told(served: Served, item: Any, code: str, severity: str) -> None:
    others = [product(id) for id in range(10, 30)]
    if "languages" in code or code == "address-relative":
        others = []
    findings = found(served(items=[*others, item]).url + PAGED)
    assert findings["item-" + code]["severity"] == severity
    assert findings["item-" + code]["count"] == 1
    assert findings["item-" + code]["examples"][0].startswith("id 7")


def test_languages_that_differ_between_items_are_told(served: Served) -> None:
    items = [product(id, name=TEXTS) for id in range(10)]
    items += [product(10, name={"danish": "Stol"}), product(11, name="Chair")]
    findings = found(served(items=items).url + PAGED)
    assert findings["item-languages-across"]["examples"] == ["id 10: danish"]
    assert findings["item-languages-mixed"]["examples"] == ["id 11"]


def test_ids_of_two_types_are_told(served: Served) -> None:
    assert alarms(served(items=[product(1), product("2")]).url + PAGED) == ["item-id-types"]


def test_lines_of_orders_are_looked_at(served: Served) -> None:
    good = {"id": 1, "quantity": 2, "price": 10}
    lines = [[good], [good, {**good, "quantity": 2.0}], [good, {"id": 1}], [None], [{**good, "price": "10"}], ["1"], []]
    items = [{"id": id, "products": line, "time": 1_767_225_600} for id, line in enumerate(lines)]
    feed = served(items=items)
    assert found(feed.url.replace("products", "orders") + PAGED)["item-lines"]["count"] == 4


def test_translated_pages_are_told(served: Served) -> None:
    page = {"id": 1, "type": "cms", "url": "https://shop.example/a", "title": TEXTS, "text": "…"}
    feed = served(items=[page])
    assert alarms(feed.url.replace("products", "pages") + PAGED) == ["item-languages-unsupported"]


def test_a_feed_is_known_by_its_items_where_its_url_does_not_tell(served: Served) -> None:
    feed = served(items=[product(1, price="1")])
    assert "item-type" in found(feed.url.replace("products", "export.php") + PAGED)


def test_a_feed_that_nothing_tells_can_be_named(served: Served) -> None:
    url = served(items=[{"id": 1, "x": 2}]).url.replace("products", "export.php") + PAGED
    assert list(found(url)) == ["full-only", "feed-unknown"]
    assert "item-attribute-missing" in found(url, "--feed", "customers")


# The URL


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("?limit={{limit}}&offset={{ofset}}", "Did you mean {{offset}}?"),
        ("?limit={{Limit}}&offset={{offset}}", "Did you mean {{limit}}?"),
        ("?limit={limit}&offset={{offset}}", "Write it with two braces on each side, as they are: {{limit}}."),
        ("?limit=%7B%7Blimit%7D%7D&offset={{offset}}", "as they are: {{limit}}."),
        ("?limit={{limit}}&offset={{offset}}&modified_after={{modified}}", "Did you mean {{modified_after}}?"),
        ("?limit={{limit}}&page={{page}}", "{{limit}}, {{offset}} and {{modified_after}}, and nothing else."),
    ],
)
def test_a_placeholder_that_clerk_does_not_know_is_told_and_nothing_is_asked(
    served: Served, query: str, said: str
) -> None:
    feed = served()
    assert found(feed.url + query)["placeholder-unknown"]["cure"].endswith(said)
    assert feed.asked == []


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("?limit={{limit}}", "offset-missing"),
        ("?limit=10", "offset-missing"),
        ("?limit={{limit}}&offset=0", "offset-missing"),
        ("?offset={{offset}}", "limit-missing"),
        ("?limit=500&offset={{offset}}", "limit-fixed"),
    ],
)
def test_a_placeholder_that_is_missing_is_told(served: Served, query: str, code: str) -> None:
    assert alarms(served(items=[product(1)]).url + query) == [code]


def test_probe_refuses_what_is_no_url() -> None:
    done = probe("feeds.shop.dk/products")
    assert done.exit_code == 2
    assert "not a feed URL" in done.output
