"""Metrics: what Prometheus reads on the admin address."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.admin import create_admin
from app.catalog.pool import Pool
from app.settings import Settings
from app.status.gauges import gauges
from app.status.metrics import _COUNTERS, _GAUGES, _HISTOGRAMS, exposition
from app.status.metrics_folder import metrics_folder
from tests.clerk import FakeClerk, problem
from tests.conftest import TOKEN, Hosted, Running, Serve, Shop, base_config, eventually

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    return {
        (sample.name.removeprefix("clerk_feed_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(service: Running) -> Samples:
    answer = service.get("/-/metrics", token=None, admin=True)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return parsed(answer.body.decode())


def value(service: Running, name: str, **labels: str) -> float:
    return scraped(service).get((name, frozenset(labels.items())), 0.0)


@pytest.fixture
def read(catalog: Shop) -> Shop:
    """A shop of 60 products, one of them invalid, that has been walked once."""
    catalog.execute("insert into {s}.products (id) select generate_series(1, 60)")
    catalog.execute("update {s}.products set price = null where id = 7")
    catalog.walk("products", limit=25)
    eventually(lambda: value(catalog.service, "requests_total", **feed(catalog), status="200") == 4)
    return catalog


def feed(shop: Shop) -> dict[str, str]:
    return {"store": shop.name, "feed": "products"}


def test_what_was_served_is_counted(read: Shop) -> None:
    samples = scraped(read.service)

    def of(name: str, **more: str) -> float:
        return samples[name, frozenset({**feed(read), **more}.items())]

    assert of("items_total") == 59
    assert of("bytes_total") > 59 * 100
    assert of("invalid_items_total") == 1
    assert of("page_seconds_count") == 4
    assert of("page_seconds_bucket", le="+Inf") == 4
    assert 0 < of("page_seconds_sum") < 60
    assert of("part_seconds_total", part="database") > 0
    assert of("walks_total", kind="full", outcome="finished") == 1
    assert of("last_walk_items", kind="full") == 59
    assert of("last_walk_invalid_items", kind="full") == 1
    assert of("held_back") == 0


def test_buckets_of_a_duration_hold_what_they_say(read: Shop) -> None:
    samples = scraped(read.service)
    buckets = [
        (float(dict(labels)["le"]), number)
        for (name, labels), number in samples.items()
        if name == "page_seconds_bucket" and feed(read).items() <= dict(labels).items()
    ]
    numbers = [number for _, number in sorted(buckets)]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 4


def test_refusals_are_counted_by_their_kind(shop: Shop) -> None:
    shop.get("products")
    shop.get("products", token=None)
    labels = {**feed(shop), "status": "404", "code": "feed-missing"}
    eventually(lambda: value(shop.service, "refusals_total", **labels) == 1)
    assert value(shop.service, "requests_total", **feed(shop), status="401") == 1


def test_a_path_makes_no_metric_of_its_own(shop: Shop) -> None:
    shop.service.get("/made-up-store/made-up-feed")
    labels = {"store": "", "feed": "", "status": "404", "code": "store-unknown"}
    eventually(lambda: value(shop.service, "refusals_total", **labels) >= 1)
    assert "made-up" not in shop.service.get("/-/metrics", admin=True).body.decode()


def test_calls_of_clerk_and_tokens_that_were_known_are_counted(read: Shop) -> None:
    def verified(outcome: str) -> float:
        return value(read.service, "verify_seconds_count", store=read.name, outcome=outcome)

    assert verified("good") == 1
    known = value(read.service, "known_tokens_total")
    read.get("products", token="bad")
    read.get("products")
    eventually(lambda: verified("rejected") == 1)
    eventually(lambda: value(read.service, "known_tokens_total") > known)
    assert value(read.service, "tokens") >= 1


def test_a_walk_that_is_under_way_shows_how_far_it_is(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 100)")
    catalog.get("products?limit=25&offset=0")
    catalog.get("products?limit=25&offset=25")
    assert value(catalog.service, "walk_items", **feed(catalog), kind="full") == 50


def test_a_walk_that_was_held_back_shows(read: Shop) -> None:
    read.execute("delete from {s}.products where id > 10")
    assert read.get("products?limit=25&offset=0").status == 503
    assert value(read.service, "held_back", **feed(read)) == 1


@pytest.mark.parametrize("limit", [10, 150])
@pytest.mark.parametrize("found", ["current", "old", "past", "counted"])
def test_pages_are_counted_by_how_their_offset_was_found(catalog: Shop, found: str, limit: int) -> None:
    """A small page is one statement with its bookmark, a large one is not."""
    catalog.execute("insert into {s}.products (id) select generate_series(1, 400)")
    catalog.get(f"products?limit={limit}&offset=0")
    changes = {"old": "written = now() - interval '2 hours'", "past": "past = true"}
    if found in changes:
        catalog.execute(f"update clerk_feed.bookmark set {changes[found]} where store = '{catalog.name}'")
    catalog.get(f"products?limit={limit}&offset={13 if found == 'counted' else limit}")
    eventually(lambda: value(catalog.service, "offsets_total", **feed(catalog), found=found) == 1)
    counts = {labels: count for (name, labels), count in scraped(catalog.service).items() if name == "offsets_total"}
    assert sum(count for labels, count in counts.items() if ("store", catalog.name) in labels) == 1


def test_a_whole_feed_has_a_histogram_of_its_own(read: Shop) -> None:
    read.get("products")
    eventually(lambda: value(read.service, "whole_feed_seconds_count", **feed(read)) == 1)
    assert value(read.service, "page_seconds_count", **feed(read)) == 4


def test_connections_are_shown(read: Shop) -> None:
    eventually(lambda: value(read.service, "pool_connections") >= 1)
    assert (value(read.service, "database_up"), value(read.service, "pool_waiting")) == (1, 0)


def test_metrics_are_not_served_on_the_public_address(shop: Shop) -> None:
    problem(shop.service.get("/-/metrics"), 404, "not-found")


def test_no_secret_is_in_the_metrics(read: Shop) -> None:
    text = read.service.get("/-/metrics", admin=True).body.decode()
    for secret in (TOKEN, read.public_key):
        assert secret not in text


WRITE = """
import sys
from app.status.events import FeedServed
from app.status.metrics import Metrics
from app.status.record import Activity
metrics = Metrics(lambda: Activity(connections=3))
for number in range(int(sys.argv[1])):
    metrics(FeedServed(store="dk", feed="products", method="GET", address="", limit=25, offset=0, incremental=False,
        walk=1, items=25, invalid=0, bytes=1000, seconds=0.003 * (number + 1)))
metrics.flush()
print("written", flush=True)
sys.stdin.readline()
"""


def test_several_processes_add_up_and_one_that_died_holds_no_connections() -> None:
    with metrics_folder() as folder:
        processes = [
            subprocess.Popen([sys.executable, "-c", WRITE, count], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for count in ("2", "3")
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"written\n"
        both = parsed(exposition(folder, [])[0].decode())
        processes[0].kill()
        processes[0].wait()
        one = parsed(exposition(folder, [])[0].decode())
        processes[1].communicate(b"\n", timeout=20)
        assert processes[0].stdin is not None
        processes[0].stdin.close()
        processes[0].stdout.close()  # type: ignore[union-attr]
    place = {"store": "dk", "feed": "products"}
    assert both["requests_total", frozenset({**place, "status": "200"}.items())] == 5
    assert both["page_seconds_bucket", frozenset({**place, "le": "0.005"}.items())] == 2
    assert both["page_seconds_bucket", frozenset({**place, "le": "0.01"}.items())] == 5
    assert both["page_seconds_sum", frozenset(place.items())] == pytest.approx(0.027)
    assert both["pool_connections", frozenset()] == 6
    assert one["pool_connections", frozenset()] == 3
    assert one["requests_total", frozenset({**place, "status": "200"}.items())] == 5
    assert not folder.exists()


class Away:
    """A pool whose database is away."""

    def connection(self) -> Any:
        raise ConnectionRefusedError


def test_without_the_database_the_metrics_of_the_processes_are_still_there(hosted: Hosted, tmp_path: Path) -> None:
    url = hosted(create_admin(Settings(), cast("Pool", Away()), tmp_path, lambda event: None))
    service = Running(cast("Any", None), url, url, tmp_path / "log")
    assert scraped(service) == {("database_up", frozenset()): 0}


@pytest.fixture
def guarded(serve: Serve, clerk: FakeClerk, catalog: Shop) -> Running:
    """A service whose operators must say who they are."""
    config = base_config(
        catalog.database.dsn,
        clerk.verify_url,
        access='admin = { username = "op", password = "pass-of-op" }\nrefusal_rate = "5/minute"',
    )
    return serve(f'{config}[stores.{catalog.name}]\npublic_key = "key-a"\n')


def basic(text: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize("path", ["/-/metrics", "/-/problems", "/-/nothing", "/"])
def test_operators_say_who_they_are(guarded: Running, path: str) -> None:
    answer = guarded.get(path, token=None, admin=True)
    problem(answer, 401, "admin-required")
    assert re.match(r'Basic realm="[^"]+"', answer.headers["WWW-Authenticate"])
    problem(guarded.get(path, token=None, admin=True, headers=basic("op:wrong")), 401, "admin-required")
    assert guarded.get(path, token=None, admin=True, headers=basic("op:pass-of-op")).status in (200, 404)
    assert "pass-of-op" not in guarded.log.read_text()


@pytest.mark.parametrize("host", ["rebound.example", "rebound.example:80", "localhost.example", "10.0.0.1", "[", ""])
def test_without_a_password_operators_pages_answer_to_no_name_of_others(shop: Shop, host: str) -> None:
    """A page elsewhere whose name leads to 127.0.0.1 could have an operator's browser read ours for it."""
    answer = shop.service.get("/-/status", token=None, admin=True, headers={"Host": host})
    problem(answer, 421, "admin-name")
    assert shop.service.get("/-/healthz", token=None, admin=True, headers={"Host": host}).status == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1:1", "127.8.8.8", "[::1]:80", "LOCALHOST"])
def test_without_a_password_operators_pages_answer_to_names_of_this_machine(shop: Shop, host: str) -> None:
    assert shop.service.get("/-/status", token=None, admin=True, headers={"Host": host}).status == 200


@pytest.mark.parametrize("path", ["/-/healthz", "/-/readyz"])
def test_health_needs_no_name(guarded: Running, path: str) -> None:
    assert guarded.get(path, token=None, admin=True).status == 200


def test_a_password_cannot_be_guessed_for_long(guarded: Running) -> None:
    for _ in range(5):
        problem(guarded.get("/-/metrics", admin=True, headers=basic("op:guess")), 401, "admin-required")
    assert guarded.get("/-/metrics", admin=True, headers=basic("op:pass-of-op")).status == 429


DEPLOY = Path(__file__).parent.parent / "deploy"


def known_names() -> set[str]:
    counters = {f"clerk_feed_{name}_total" for name in _COUNTERS}
    histograms = {f"clerk_feed_{name}_{part}" for name in _HISTOGRAMS for part in ("bucket", "count", "sum")}
    asked = {f"clerk_feed_{gauge.name}" for gauge in gauges([], [], 0)}
    return counters | histograms | asked | {f"clerk_feed_{name}" for name in _GAUGES}


def expressions() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    rules = [
        rule for group in yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
    ]
    assert all(rule["annotations"]["summary"] and rule["annotations"]["description"] for rule in rules)
    return found + [rule["expr"] for rule in rules]


def test_the_dashboard_and_the_alerts_name_metrics_that_exist() -> None:
    named = {name for expression in expressions() for name in re.findall(r"clerk_feed_\w+", expression)}
    assert named <= known_names(), named - known_names()
    assert len(named) > 20


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    cells = [
        (x, y)
        for panel in panels
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in panels}) == len(panels)
