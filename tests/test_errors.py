"""Every refusal: what Clerk's log and a person with curl get to see, and that the cure it names is one."""

import http.client
import json
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from starlette.requests import Request

from app.access.client import Clients
from app.admin import create_admin
from app.catalog.pool import Pool
from app.protocol.feeds import FEEDS, REQUIRED, FeedName
from app.protocol.problems import ALL, Problem, Refusal
from app.settings import Database as DatabaseSettings
from app.settings import Settings
from app.status.events import Event, PoolExhausted
from tests.clerk import FakeClerk, problem
from tests.conftest import (
    PRODUCTS,
    TOKEN,
    Database,
    Hosted,
    Loop,
    Running,
    Serve,
    Shop,
    base_config,
    eventually,
)

PAGE = "products?limit=10&offset=0"

TYPES = {
    "id": "bigint",
    "price": "numeric",
    "categories": "int[]",
    "subcategories": "int[]",
    "products": "jsonb",
    "created_at": "timestamptz",
    "time": "timestamptz",
}
"""Of required columns; the others are text."""


def columns(feed: FeedName) -> dict[str, str]:
    return {name: TYPES.get(name, "text") for name in REQUIRED[feed]}


def create(shop: Shop, feed: FeedName, kinds: dict[str, str]) -> None:
    """A relation of a feed with columns of some types, empty."""
    listed = ", ".join(f'"{name}" {kind}' for name, kind in kinds.items())
    shop.execute(f'create table {{s}}."{feed}" ({listed})')


def one_store(dsn: str, clerk: FakeClerk, more: str = "", *, database: str = "") -> str:
    """The feed.toml of a store named shop on a schema of its name."""
    config = base_config(dsn, clerk.verify_url, database=database)
    return f'{config}\n[stores.shop]\npublic_key = "key-shop"\n{more}\n'


def prepare(database: Database) -> None:
    database.execute("create schema shop")
    database.execute(PRODUCTS.replace("{s}", "shop"))
    database.execute("insert into shop.products (id) select generate_series(1, 3)")


def as_role(database: Database, role: str) -> str:
    """A DSN that connects as a fresh role, which has no rights but to connect."""
    database.execute(f"create role {role} login")
    return database.dsn.replace("//postgres:@", f"//{role}@")


@pytest.mark.parametrize(
    "path",
    ["/", "/a", "/a/b/c", "/a/products/", "//products", "/-/", "/-/healthz/", "/favicon.ico"],
)
def test_an_address_that_is_nothing_is_a_404(shared_service: Running, path: str) -> None:
    said = problem(shared_service.get(path), 404, "not-found")
    assert "/STORE/products" in said["fix"]


@pytest.mark.parametrize("name", ["nonsense", "products.xml", "products.", "Products", ".json", "products.json.json"])
def test_a_feed_that_clerk_does_not_have_is_a_404_that_names_those_it_has(shared_service: Running, name: str) -> None:
    said = problem(shared_service.get(f"/s0/{name}"), 404, "not-found")
    assert name in said["detail"]
    assert all(feed in said["detail"] for feed in FEEDS)


@pytest.mark.parametrize("token", [TOKEN, None])
def test_an_unknown_store_is_a_404_that_says_where_stores_are_named(shared_service: Running, token: str | None) -> None:
    said = problem(shared_service.get("/no-such-shop/products", token=token), 404, "store-unknown")
    assert "'no-such-shop'" in said["detail"]
    assert "[stores.<name>]" in said["fix"]


def test_a_long_path_is_not_repeated_at_length(shared_service: Running) -> None:
    answer = shared_service.get(f"/{'x' * 3000}/products")
    problem(answer, 404, "store-unknown")
    assert len(answer.body) < 1000


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/s0/products", "/-/healthz", "/-/readyz", "/-/problems"])
def test_other_methods_are_refused_and_told_which_are_allowed(shared_service: Running, method: str, path: str) -> None:
    answer = shared_service.get(path, method=method)
    problem(answer, 405, "method-not-allowed")
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD"}


def test_a_refusal_of_head_has_the_headers_and_no_body(shop: Shop) -> None:
    refused, asked = shop.get("products"), shop.get("products", method="HEAD")
    assert (asked.status, asked.body) == (404, b"")
    for name in ("Content-Type", "Cache-Control", "Content-Length"):
        assert asked.headers[name] == refused.headers[name]


@pytest.mark.parametrize("known", ALL, ids=lambda known: known.code)
@pytest.mark.parametrize("admin", [False, True], ids=["public", "admin"])
def test_every_problem_is_explained_on_the_page_its_type_points_to(
    shared_service: Running, known: Problem, admin: bool
) -> None:
    path, _, anchor = str(Refusal(known, "detail").body()["type"]).partition("#")
    page = shared_service.get(path, token=None, admin=admin)
    assert page.status == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert f'id="{anchor}"' in page.body.decode()


def test_problems_have_codes_and_cures_of_their_own() -> None:
    assert len({known.code for known in ALL}) == len(ALL)
    assert len({known.fix for known in ALL}) == len(ALL)


def test_a_feed_without_a_relation_is_a_404_that_says_what_to_create(shop: Shop) -> None:
    for feed in FEEDS:
        said = problem(shop.get(f"{feed}?limit=10&offset=0"), 404, "feed-missing")
        assert f'"{shop.name}"."{feed}"' in said["detail"]
        assert f'"{shop.name}"."{feed}"' in said["fix"]
        assert all(name in said["fix"] for name in REQUIRED[feed])


def test_a_store_without_a_schema_is_a_404_that_says_to_create_it(shop: Shop) -> None:
    shop.execute("drop schema {s}")
    said = problem(shop.get(PAGE), 404, "feed-missing")
    assert f'create schema "{shop.name}"' in said["fix"]


def test_a_sequence_of_the_name_of_a_feed_is_no_relation(shop: Shop) -> None:
    shop.execute("create sequence {s}.products")
    problem(shop.get(PAGE), 404, "feed-missing")


def test_a_missing_required_column_is_named_whichever_it_is(shop: Shop) -> None:
    for feed in FEEDS:
        for name in REQUIRED[feed]:
            kinds = columns(feed)
            del kinds[name]
            create(shop, feed, kinds)
            said = problem(shop.get(f"{feed}?limit=10&offset=0"), 500, "source-unusable")
            assert f'"{name}"' in said["detail"]
            assert f'"{name}"' in said["fix"]
            shop.execute(f'drop table {{s}}."{feed}"')


ODD_TYPES = {
    "interval": "interval",
    "bytea": "bytea",
    "point": "point",
    "time": "time without time zone",
    "int4range": "int4range",
    "inet[]": "inet[]",
    "xml": "xml",
}


def test_a_column_of_a_type_without_json_form_is_named_with_the_cast_that_cures_it(shop: Shop) -> None:
    for kind, shown in ODD_TYPES.items():
        create(shop, "products", columns("products") | {"odd": kind})
        said = problem(shop.get(PAGE), 500, "source-unusable")
        assert '"odd"' in said["detail"]
        assert shown in said["detail"]
        assert '"odd"::text' in said["fix"]
        shop.execute("drop table {s}.products")


def test_an_id_that_pages_cannot_walk_by_is_named_with_its_type_and_a_cast(shop: Shop) -> None:
    for kind in ("double precision", "numeric", "real", "boolean", "timestamp with time zone", "integer[]", "jsonb"):
        create(shop, "products", columns("products") | {"id": kind})
        said = problem(shop.get(PAGE), 500, "source-unusable")
        assert '"id"' in said["detail"]
        assert kind in said["detail"]
        assert '::text as "id"' in said["fix"]
        shop.execute("drop table {s}.products")


def test_a_modified_at_that_is_no_timestamp_is_named_with_a_cast(shop: Shop) -> None:
    for kind in ("date", "bigint", "text", "time", "timestamptz[]"):
        create(shop, "products", columns("products") | {"modified_at": kind})
        said = problem(shop.get(PAGE), 500, "source-unusable")
        assert '"modified_at"' in said["detail"]
        assert "timestamptz" in said["detail"]
        assert "to_timestamp" in said["fix"]
        shop.execute("drop table {s}.products")


def test_a_source_that_was_mended_is_served_without_a_restart(shop: Shop) -> None:
    create(shop, "customers", {"id": "bigint"})
    problem(shop.get("customers?limit=10&offset=0"), 500, "source-unusable")
    shop.execute("alter table {s}.customers add email text")
    shop.execute("insert into {s}.customers values (1, 'a@shop.example')")
    assert shop.items("customers?limit=10&offset=0") == [{"id": 1, "email": "a@shop.example"}]


def test_a_role_that_may_not_read_is_told_the_grant_that_lets_it(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    prepare(database)
    name = database.value("select current_database()")
    role = f"reader_{name}"
    dsn = as_role(database, role)
    database.execute(f"create schema clerk_feed authorization {role}")
    service = serve(one_store(dsn, clerk))

    said = problem(service.get(f"/shop/{PAGE}"), 500, "source-unusable")
    assert role in said["detail"]
    assert f'grant select on "shop"."products" to "{role}"' in said["fix"]
    database.execute(said["fix"])
    assert [item["id"] for item in service.get(f"/shop/{PAGE}").lines] == [1, 2, 3]


def test_a_view_that_fails_for_one_row_is_a_500_and_its_sqlstate_is_logged(shop: Shop) -> None:
    shop.execute("create table {s}.all_products as select generate_series(1, 30) as id")
    shop.execute("""
        create view {s}.products as
        select id, 'Chair' as name, 'A chair' as description, 10 / (id - 17) as price, 'i' as image, 'u' as url,
          '{1}'::int[] as categories, now() as created_at
        from {s}.all_products
    """)
    create(shop, "customers", columns("customers"))
    shop.execute("insert into {s}.customers values (1, 'a@shop.example')")

    for path in ("products?limit=100&offset=0", "products?limit=10&offset=10", "products"):
        said = problem(shop.get(path), 500, "source-failed")
        assert "22012" in said["detail"]
    failed = [event for event in shop.service.events("SourceFailed") if event["store"] == shop.name]
    assert {(event["feed"], event["sqlstate"]) for event in failed} == {("products", "22012")}
    assert all("division by zero" in event["message"] for event in failed)

    assert [item["id"] for item in shop.items("customers?limit=10&offset=0")] == [1]


def test_the_failed_statement_is_not_shown_to_the_caller(shop: Shop) -> None:
    shop.execute("""
        create view {s}.customers as
        select id, ('secret-' || id)::int::text as email from generate_series(1, 3) as id
    """)
    answer = shop.get("customers?limit=10&offset=0")
    problem(answer, 500, "source-failed")
    assert "secret-" not in answer.body.decode()


@pytest.mark.parametrize(
    ("query", "name"),
    [("limit=0&offset=0", "limit"), ("limit=5", "limit"), ("offset=x&limit=5", "offset"), ("page=2", "page")],
)
def test_a_parameter_that_is_not_understood_is_named(shared_service: Running, query: str, name: str) -> None:
    said = problem(shared_service.get(f"/s0/products?{query}"), 400, "parameter-invalid")
    assert name in said["detail"]


def test_an_invalid_item_of_a_strict_feed_is_named(database: Database, clerk: FakeClerk, serve: Serve) -> None:
    prepare(database)
    database.execute("insert into shop.products (id, price, url) values (77, null, null)")
    service = serve(one_store(database.dsn, clerk, "[stores.shop.feeds.products]\nstrict = true"))
    said = problem(service.get(f"/shop/{PAGE}"), 500, "item-invalid")
    assert "77" in said["detail"]
    assert "price, url" in said["detail"]


@pytest.mark.parametrize(
    "header", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP", "CF-Connecting-IP"]
)
def test_a_request_through_a_proxy_nobody_declared_is_refused(shared_service: Running, header: str) -> None:
    answer = shared_service.get(f"/s0/{PAGE}", headers={header: "203.0.113.5"}, source="127.0.0.2")
    said = problem(answer, 403, "proxy-not-trusted")
    assert header.lower() in said["detail"]
    assert "203.0.113.5" not in said["detail"]


@pytest.mark.parametrize(
    ("scheme", "address", "safe"),
    [
        ("http", "127.0.0.1", True),
        ("http", "::1", True),
        ("http", "::ffff:127.0.0.1", True),
        ("http", "203.0.113.5", False),
        ("http", "10.0.0.1", False),
        ("http", "2001:db8::1", False),
        ("https", "203.0.113.5", True),
    ],
)
def test_plain_http_is_served_to_this_machine_only(scheme: str, address: str, safe: bool) -> None:
    request = Request(
        {
            "type": "http",
            "scheme": scheme,
            "server": ("feeds.shop.example", 80),
            "path": "/dk/products",
            "query_string": b"",
            "headers": [(b"host", b"feeds.shop.example")],
            "client": (address, 50_000),
        }
    )
    if safe:
        Clients([], []).of(request)
        return
    with pytest.raises(Refusal) as refused:
        Clients([], []).of(request)
    assert refused.value.problem.code == "not-secure"


def test_a_host_header_does_not_make_plain_http_safe() -> None:
    request = Request(
        {
            "type": "http",
            "scheme": "http",
            "server": ("127.0.0.1", 80),
            "path": "/dk/products",
            "query_string": b"",
            "headers": [(b"host", b"https://127.0.0.1")],
            "client": ("203.0.113.5", 50_000),
        }
    )
    with pytest.raises(Refusal) as refused:
        Clients([], []).of(request)
    assert refused.value.problem.code == "not-secure"


@pytest.mark.parametrize("admin", [False, True], ids=["public", "admin"])
def test_healthz_answers_without_a_token_on_both_addresses(shared_service: Running, admin: bool) -> None:
    for headers in ({}, {"X-Forwarded-For": "203.0.113.5"}):
        answer = shared_service.get("/-/healthz", token=None, admin=admin, headers=headers)
        assert (answer.status, answer.json) == (200, {"status": "ok"})
        assert answer.headers["Cache-Control"] == "no-store"


def test_feeds_are_not_served_on_the_admin_address(catalog: Shop) -> None:
    problem(catalog.service.get(f"/{catalog.name}/{PAGE}", admin=True), 404, "not-found")


def test_readyz_waits_for_every_feed_that_feed_toml_names_and_names_nothing(
    database: Database, clerk: FakeClerk, serve: Serve
) -> None:
    database.execute("create schema shop")
    service = serve(one_store(database.dsn, clerk, "[stores.shop.feeds.products]"))
    for admin in (False, True):
        answer = service.get("/-/readyz", token=None, admin=admin)
        assert (answer.status, answer.json["status"]) == (503, "unavailable")
        # Only operators are told why.
        assert ("shop" in answer.body.decode()) == admin
        assert answer.headers["Cache-Control"] == "no-store"
    assert service.get("/-/healthz", token=None).status == 200

    database.execute(PRODUCTS.replace("{s}", "shop"))
    for admin in (False, True):
        eventually(lambda admin=admin: service.get("/-/readyz", token=None, admin=admin).status == 200)  # type: ignore[misc]


class Door:
    """A way to the embedded server that can be shut: a folder with a link to its socket."""

    def __init__(self, database: Database, folder: Path) -> None:
        folder.mkdir()
        self._database = database
        where = dict(parse_qsl(urlsplit(database.dsn).query))["host"]
        [self._real] = Path(where).glob(".s.PGSQL.????")
        self._link = folder / self._real.name
        self.dsn = database.dsn.split("?")[0] + f"?host={quote(str(folder))}"
        self.open()

    def open(self) -> None:
        self._link.symlink_to(self._real)

    def shut(self) -> None:
        """No new connection comes through, and those there are end."""
        self._link.unlink()
        self._database.execute("""
            select pg_terminate_backend(pid) from pg_stat_activity
            where datname = current_database() and application_name = 'clerk-feed'
        """)


def test_while_the_database_is_away_requests_get_a_503_and_then_are_served_again(
    database: Database, clerk: FakeClerk, serve: Serve, tmp_path: Path
) -> None:
    prepare(database)
    door = Door(database, tmp_path / "s")
    service = serve(one_store(door.dsn, clerk, database='resume_for = "300ms"'))
    assert service.get("/-/readyz", token=None).status == 200
    door.shut()

    answer = service.get(f"/shop/{PAGE}")
    problem(answer, 503, "database-unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert str(tmp_path) not in answer.body.decode()
    eventually(lambda: service.get("/-/readyz", token=None).status == 503)
    assert service.get("/-/healthz", token=None).status == 200

    door.open()
    eventually(lambda: service.get(f"/shop/{PAGE}").status == 200)
    eventually(lambda: service.get("/-/readyz", token=None).status == 200)


def test_a_database_connection_is_not_waited_for_without_end(
    database: Database, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.catalog.pool._ACQUIRE_SECONDS", 0.1)
    events: list[Event] = []

    async def crowd() -> Refusal:
        pool = await Pool.open(database.dsn, DatabaseSettings(pool_size=1), events.append)
        first = await pool.take()
        try:
            with pytest.raises(Refusal) as refused:
                await pool.take()
        finally:
            await pool.give_back(first)
            await pool.close()
        return refused.value

    refusal = loop.run(crowd())
    assert refusal.problem.code == "busy"
    assert "1 database connection" in refusal.detail
    assert "Retry-After" in refusal.headers
    assert events == [PoolExhausted(waited=0.1, size=1)]


class Broken:
    """A pool that fails in a way nobody expected."""

    def connection(self) -> None:
        raise ZeroDivisionError("dsn=postgresql://shop:secret@db/shop")


def test_a_defect_of_ours_is_a_500_that_tells_the_log_and_not_the_caller(hosted: Hosted, tmp_path: Path) -> None:
    events: list[Event] = []
    url = hosted(create_admin(Settings(), cast("Pool", Broken()), tmp_path, events.append))
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request("GET", "/-/readyz")
    response = connection.getresponse()
    body = response.read()
    connection.close()
    said: dict[str, Any] = json.loads(body)
    assert (response.status, said["type"]) == (500, "/-/problems#internal-error")
    assert "secret" not in body.decode()
    [failed] = [event for event in events if type(event).__name__ == "Failed"]
    assert "ZeroDivisionError" in repr(failed)
