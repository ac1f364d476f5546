"""The log, the id of a request, and what an answer says of its time."""

import inspect
import io
import json
import logging
import re
import time
from datetime import datetime
from typing import Any

import msgspec
import pytest

from app.status import events, requests
from app.status.events import Event, FeedServed, ItemsInvalid, WalkEnded, WalkHeldBack
from app.status.log import ForeignLines, Log
from tests.clerk import FakeClerk
from tests.conftest import Serve, Shop, base_config

SERVED = FeedServed(
    store="dk",
    feed="products",
    method="GET",
    address="127.0.0.1",
    limit=25,
    offset=50,
    incremental=False,
    walk=3,
    items=25,
    invalid=1,
    bytes=20_000,
    seconds=0.0042,
    gate=0.0002,
    bookmark=0.001,
    database=0.002,
    encode=0.001,
)


def written(*happened: Event, human: bool) -> list[str]:
    stream = io.StringIO()
    log = Log(stream, human=human)
    for event in happened:
        log(event)
    log.close()
    return stream.getvalue().splitlines()


def test_a_request_is_one_line_of_json_with_all_it_came_to() -> None:
    requests.begin("8f1c-CPH")
    before = time.time()
    [line] = written(SERVED, human=False)
    said = json.loads(line)
    assert said | msgspec.structs.asdict(SERVED) == said
    assert (said["event"], said["level"], said["request"]) == ("FeedServed", "info", "8f1c-CPH")
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00$", said["time"])
    assert before <= events_time(said) <= time.time()


def events_time(said: dict[str, Any]) -> float:
    return datetime.fromisoformat(said["time"]).timestamp()


class Pieces(io.StringIO):
    """A stream that remembers what was written at once."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return len(text)


def test_lines_go_into_a_pipe_whole_however_many_processes_share_it() -> None:
    stream = Pieces()
    log = Log(stream, human=False)
    for number in range(200):
        log(events.Logged(logger="x", message="æ" * number))
    log(events.Logged(logger="x", message="long" * 2000))
    log.close()
    assert len(stream.pieces) < 150
    assert all(piece.endswith("\n") for piece in stream.pieces)
    assert all(len(piece.encode()) <= 4096 for piece in stream.pieces[:-1])
    lines = [json.loads(line) for piece in stream.pieces for line in piece.splitlines()]
    assert [line["message"] for line in lines] == ["æ" * number for number in range(200)] + ["long" * 2000]


def test_a_line_for_people_is_a_sentence() -> None:
    requests.begin("8f1c-CPH")
    [line] = written(SERVED, human=True)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d GET dk/products limit 25 offset 50: 25 items, 1 left out, 0.02 MB in 4 ms"
        r" \(gate 0, bookmark 1, database 2, encode 1\) 8f1c-CPH",
        line,
    )


def test_a_walk_is_one_line_that_says_what_it_came_to() -> None:
    ended = WalkEnded(
        store="dk",
        feed="products",
        walk=7,
        incremental=False,
        whole=False,
        items=1000,
        sent=1025,
        invalid=2,
        pages=42,
        seconds=12.34,
    )
    [line] = written(ended, human=True)
    assert "dk/products: walk 7 of 42 pages ended with 1000 items (25 sent again), 2 left out after 12.3 s" in line
    held = WalkHeldBack(store="dk", feed="products", walk=8, items=10, last=1000)
    assert json.loads(written(held, human=False)[0])["level"] == "error"


def all_kinds() -> list[type[Event]]:
    return [kind for _, kind in inspect.getmembers(events, inspect.isclass) if issubclass(kind, Event)]


@pytest.mark.parametrize("kind", [kind for kind in all_kinds() if kind is not Event])
def test_every_kind_of_event_can_be_written_both_ways(kind: type[Event]) -> None:
    values = {field.name: sample(field.type) for field in msgspec.structs.fields(kind)}
    event = kind(**values)
    assert json.loads(written(event, human=False)[0])["event"] == kind.__name__
    assert len(written(event, human=True)) >= 1


def sample(kind: object) -> object:
    if kind is str or kind == str | None:
        return "text"
    if kind in (int, float, int | None):
        return 3
    if kind is bool:
        return True
    if kind == tuple[str, ...]:
        return ("text",)
    return ((1, ("price",)),)


def test_a_value_nobody_expected_costs_no_line() -> None:
    lines = written(ItemsInvalid(store="dk", feed="products", items=((2**70, ("price",)),)), human=False)
    assert len(lines) == 1


def test_lines_of_libraries_are_lines_of_ours() -> None:
    happened: list[Event] = []
    logger = logging.Logger("library")
    logger.addHandler(ForeignLines(happened.append))
    logger.warning("It is %s", "late")
    logger.info("not worth a line")
    logger.warning("%d", "not a number")
    assert happened == [events.Logged(logger="library", message="It is late")]


def test_an_answer_and_its_lines_carry_the_ray_of_cloudflare(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) values (1)")
    answer = catalog.get("products", headers={"CF-Ray": "8f1c2d3e4f5a6b7c-CPH"})
    assert answer.headers["X-Request-Id"] == "8f1c2d3e4f5a6b7c-CPH"
    mine = [e for e in catalog.service.events() if e.get("request") == "8f1c2d3e4f5a6b7c-CPH"]
    assert {"FeedServed", "WalkEnded"} <= {e["event"] for e in mine}
    assert {e["store"] for e in mine} == {catalog.name}


@pytest.mark.parametrize("ray", [None, "", "a b", "x" * 65, "<script>", "æ"])
def test_a_request_without_a_ray_that_can_be_one_is_given_an_id(catalog: Shop, ray: str | None) -> None:
    answer = catalog.get("products", headers={} if ray is None else {"CF-Ray": ray.encode().decode("latin-1")})
    assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["X-Request-Id"])
    again = catalog.get("products")
    assert again.headers["X-Request-Id"] != answer.headers["X-Request-Id"]


def test_a_refusal_carries_its_id_too(shop: Shop) -> None:
    answer = shop.get("products", headers={"CF-Ray": "refused-1"})
    assert (answer.status, answer.headers["X-Request-Id"]) == (404, "refused-1")
    [line] = [e for e in shop.service.events("Refused") if e["request"] == "refused-1"]
    assert (line["store"], line["feed"], line["method"]) == (shop.name, "products", "GET")
    assert line["level"] == "warning"


@pytest.mark.parametrize("path", ["/no-such-store/products", "/s0/no-such-feed"])
def test_what_a_path_claims_is_no_store_and_no_feed(shop: Shop, path: str) -> None:
    shop.service.get(path, headers={"CF-Ray": f"claims{path.replace('/', '-')}"})
    [line] = [e for e in shop.service.events("Refused") if e["request"] == f"claims{path.replace('/', '-')}"]
    assert (line["store"], line["feed"]) in {("", "products"), ("s0", "")}


def timing(header: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"(\w+);dur=([0-9.]+)", header)}


@pytest.mark.parametrize("query", ["?limit=25&offset=0", "?limit=25&offset=25", "?limit=1000&offset=0", ""])
def test_an_answer_says_where_its_time_went(catalog: Shop, query: str) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 3000)")
    catalog.get("products?limit=25&offset=0")
    answer = catalog.get(f"products{query}")
    said = timing(answer.headers["Server-Timing"])
    assert list(said) == ["gate", "bookmark", "database", "encode"]
    assert said["database"] > 0
    assert said["encode"] > 0
    if "limit=1000" in query:
        assert said["bookmark"] > 0
    line = [e for e in catalog.service.events("FeedServed") if e["store"] == catalog.name][-1]
    assert line["gate"] + line["bookmark"] + line["database"] + line["encode"] <= line["seconds"]


def test_the_single_file_says_where_its_time_went(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 30)")
    said = timing(catalog.get("feed.json").headers["Server-Timing"])
    assert said["database"] > 0


def test_the_log_of_a_walk_counts_pages_items_and_what_was_left_out(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 60)")
    catalog.execute("update {s}.products set price = null where id = 7")
    catalog.walk("products", limit=25)
    [line] = [e for e in catalog.service.events("WalkEnded") if e["store"] == catalog.name]
    assert (line["pages"], line["items"], line["sent"], line["invalid"], line["whole"]) == (3, 59, 59, 1, False)
    assert line["seconds"] >= 0


def test_no_secret_reaches_the_log(serve: Serve, clerk: FakeClerk, catalog: Shop) -> None:
    config = base_config(catalog.database.dsn, clerk.verify_url)
    config += f"[stores.{catalog.name}]\npublic_key = 'key-a'\nbasic = {{ username = 'u', password = 'pass-of-u' }}\n"
    service = serve(config)
    service.get(f"/{catalog.name}/products", headers={"Authorization": "Basic dTpwYXNzLW9mLXU="})
    service.get(f"/{catalog.name}/products", headers={"Authorization": "Basic dTp3cm9uZy1wYXNz"}, token="bad-token")
    service.get(f"/{catalog.name}/products", headers={"Authorization": "Basic dTpwYXNzLW9mLXU="}, token="bad-token")
    assert {e["event"] for e in service.events()} >= {"TokenVerified", "Refused"}
    text = service.log.read_text()
    for secret in ("good-token", "bad-token", "pass-of-u", "wrong-pass", "key-a", "dTp"):
        assert secret not in text
