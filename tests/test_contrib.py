"""What the wheel's PostgreSQL lacks: tables of another server, citext, ICU. Debian's packages have them."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.clerk import FakeClerk
from tests.conftest import PRODUCTS, Database, Loop, Running, Serve, ids, reloaded
from tests.test_faults import one_store
from tests.test_wrong_data import WORDS

USER = "postgres"


@pytest.fixture(scope="module")
def create_with_contrib(loop: Loop) -> Iterator[Callable[..., Database]]:
    """Makes fresh databases of a server of the machine's packages; the second argument says with what."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        pytest.skip("no PostgreSQL with contrib here; on Debian: apt-get install postgresql")
    programs = found[-1].parent
    # Its socket lies in it, whose path must be a short one.
    folder = Path(tempfile.mkdtemp(prefix="clerk-feed-contrib-"))
    user = USER if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)

    def run(program: str, *arguments: str) -> None:
        command = [str(programs / program), "-D", str(folder / "data"), *arguments]
        quiet = subprocess.DEVNULL
        subprocess.run(command, check=True, user=user, cwd="/", stdin=quiet, stdout=quiet, stderr=quiet)

    run("initdb", "-U", USER, "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
    run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", f'-F -h "" -k {folder}', "start")
    made: list[Database] = []

    def create(name: str, options: str = "") -> Database:
        dsn = f"postgresql://{USER}@/{{}}?host={folder}"
        with closing(Database(loop, dsn.format("postgres"))) as admin:
            admin.execute(f"drop database if exists {name} with (force)")
            admin.execute(f"create database {name} {options}")
        made.append(Database(loop, dsn.format(name)))
        return made[-1]

    yield create
    for database in made:
        database.close()
    run("pg_ctl", "-w", "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database(create_with_contrib: Callable[..., Database]) -> Database:
    shop = create_with_contrib("shop")
    shop.execute("create schema shop")
    return shop


class Shop(NamedTuple):
    """A shop whose prices another database has: an item without one is not valid."""

    database: Database
    prices: Database

    loop: Loop

    def walked(self, service: Running, *, at: int) -> list[int]:
        """The ids of a walk; the prices are filled anew while the page at an offset is read."""
        found: list[int] = []
        for offset in range(0, 10**6, 1000):
            page = partial(service.get, f"/shop/products?limit=1000&offset={offset}")
            if offset == at:
                with reloaded(self.loop, self.prices, "prices") as meanwhile:
                    answer = meanwhile(page)
            else:
                answer = page()
            assert answer.status == 200, answer.body
            if not answer.body:
                break
            found += ids(answer.lines)
        return found

    def fill(self, count: int, *, size: int = 10) -> None:
        self.database.execute(
            "insert into shop.chairs (id, description) select i, repeat('x', $2) from generate_series(1, $1::int) as i",
            count,
            size,
        )
        self.prices.execute("insert into prices select i, 10 from generate_series(1, $1::int) as i", count)
        self.prices.execute("analyze")
        self.database.execute("analyze shop.chairs, shop.prices")


@pytest.fixture
def shop(database: Database, create_with_contrib: Callable[..., Database], loop: Loop) -> Shop:
    prices = create_with_contrib("prices")
    prices.execute("create table prices (id bigint primary key, price numeric)")
    host = database.dsn.rpartition("=")[2]
    database.execute("create extension postgres_fdw")
    database.execute(f"create server other foreign data wrapper postgres_fdw options (host '{host}', dbname 'prices')")
    database.execute(f"create user mapping for current_user server other options (user '{USER}')")
    database.execute(PRODUCTS.replace("{s}.products", "shop.chairs"))
    database.execute(
        "create foreign table shop.prices (id bigint, price numeric) server other options (schema_name 'public')"
    )
    database.execute(
        "create view shop.products as select c.id, name, description, p.price, image, url, categories, created_at"
        " from shop.chairs as c left join shop.prices as p on p.id = c.id"
    )
    return Shop(database, prices, loop)


def test_a_first_page_that_waits_for_another_server_to_refill_a_table_lacks_nothing(
    shop: Shop, clerk: FakeClerk, serve: Serve
) -> None:
    """There a transaction of ours sees one state from its first row on, so another look must be another transaction."""
    shop.fill(5000)
    service = serve(one_store(shop.database.dsn, clerk))  # which knows no sizes yet, and reads by a cursor
    assert shop.walked(service, at=0) == list(range(1, 5001))


def test_a_page_of_large_items_that_waits_for_another_server_lacks_nothing(
    shop: Shop, clerk: FakeClerk, serve: Serve
) -> None:
    shop.fill(3000, size=12_000)
    service = serve(one_store(shop.database.dsn, clerk))
    assert shop.walked(service, at=1000) == list(range(1, 3001))


def test_a_whole_feed_that_waits_for_another_server_lacks_nothing(shop: Shop, clerk: FakeClerk, serve: Serve) -> None:
    shop.fill(20_000)
    service = serve(one_store(shop.database.dsn, clerk))
    with reloaded(shop.loop, shop.prices, "prices") as meanwhile:
        answer = meanwhile(partial(service.get, "/shop/products"))
    assert answer.status == 200
    assert sorted(ids(answer.lines)) == list(range(1, 20_001))


@pytest.mark.parametrize("limit", [500, 1000])
def test_text_ids_of_another_server_that_sorts_otherwise_are_walked(
    create_with_contrib: Callable[..., Database], clerk: FakeClerk, serve: Serve, limit: int
) -> None:
    """Both orders are called "default". It compares what may be asked of it, and what it answers is sorted here."""
    here = create_with_contrib("shop", "template template0 locale_provider icu icu_locale 'en-US'")
    there = create_with_contrib("pim")
    skus = [f"p{number:05}" for number in range(1900)]
    skus += [f"{letter}{number:03}" for letter in "Xq" for number in range(100)]
    for database in (here, there):
        database.execute("create schema shop")
    there.execute(PRODUCTS.replace("{s}.products", "shop.items").replace("id bigint", "id text"))
    there.execute("insert into shop.items (id) select unnest($1::text[])", skus)
    there.execute("analyze")
    host = here.dsn.rpartition("=")[2]
    here.execute("create extension postgres_fdw")
    here.execute(f"create server pim foreign data wrapper postgres_fdw options (host '{host}', dbname 'pim')")
    here.execute(f"create user mapping for current_user server pim options (user '{USER}')")
    here.execute("import foreign schema shop limit to (items) from server pim into shop")
    here.execute("create table shop.stock as select unnest($1::text[]) as sku, 5 as stock", skus)
    here.execute("alter table shop.stock add primary key (sku)")
    here.execute(
        "create view shop.products as"
        " select i.*, coalesce(s.stock, 0) as stock from shop.items as i left join shop.stock as s on s.sku = i.id"
    )
    service = serve(one_store(here.dsn, clerk))
    found: list[str] = []
    for offset in range(0, 10 * limit, limit):
        answer = service.get(f"/shop/products?limit={limit}&offset={offset}")
        assert answer.status == 200
        if not answer.body:
            break
        found += [item["id"] for item in answer.lines]
    assert sorted(found) == sorted(skus)


def test_citext_is_served_as_text_and_is_a_key(database: Database, clerk: FakeClerk, serve: Serve) -> None:
    database.execute("create extension citext")
    database.execute("create table shop.customers (id citext primary key, email citext)")
    database.execute("insert into shop.customers values ('b', 'X@Y'), ('A', 'z')")
    service = serve(one_store(database.dsn, clerk))
    pages = [service.get(f"/shop/customers?limit=1&offset={offset}").lines for offset in range(3)]
    assert pages == [[{"id": "A", "email": "z"}], [{"id": "b", "email": "X@Y"}], []]


def test_ids_of_a_nondeterministic_collation_are_walked(database: Database, clerk: FakeClerk, serve: Serve) -> None:
    """There 'a' and 'A' may be equal, so that only one of them is an id."""
    database.execute("create collation shop.loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    words = sorted({word.lower() for word in WORDS} - {"e\u0301"})
    database.execute("create table shop.customers (id text collate shop.loose primary key, email text default 'e')")
    database.execute("insert into shop.customers select unnest($1::text[])", words)
    service = serve(one_store(database.dsn, clerk))
    found = []
    for offset in range(0, len(words) + 3, 3):
        found += ids(service.get(f"/shop/customers?limit=3&offset={offset}").lines)
    assert sorted(found) == words
