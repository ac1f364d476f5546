import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import click.testing
import msgspec
import pytest

from app.catalog.tables import identifier
from app.cli import main
from app.protocol.feeds import FEEDS, REQUIRED
from app.settings import Access, Clerk, FeedSettings, Server, Settings, Store, parse
from app.settings import Database as DatabaseSettings
from tests.clerk import FakeClerk
from tests.conftest import Database, Loop, Running, Serve

ENVIRONMENT = {"DATABASE_URL": "postgresql://reader@db/shop", "CLERK_PUBLIC_KEY": "key-init"}

NORTHWIND = """
create table categories (category_id smallint primary key, category_name varchar(15) not null, description text,
  picture bytea);
create table suppliers (supplier_id smallint primary key, company_name varchar(40) not null, homepage text);
create table customers (customer_id varchar(5) primary key, company_name varchar(40) not null,
  contact_name varchar(30), city varchar(15), postal_code varchar(10));
create table employees (employee_id smallint primary key, last_name varchar(20) not null, first_name varchar(10),
  title varchar(30), notes text);
create table products (product_id smallint primary key, product_name varchar(40) not null,
  supplier_id smallint references suppliers, category_id smallint references categories,
  quantity_per_unit varchar(20), unit_price real, units_in_stock smallint, discontinued integer not null);
create table orders (order_id smallint primary key, customer_id varchar(5) references customers,
  employee_id smallint references employees, order_date date, shipped_date date, freight real);
create table order_details (order_id smallint not null references orders, product_id smallint not null
  references products, unit_price real not null, quantity smallint not null, discount real not null,
  primary key (order_id, product_id));
insert into categories values (1, 'Beverages', 'Soft drinks'), (2, 'Condiments', null);
insert into customers values ('ALFKI', 'Alfreds Futterkiste', 'Maria Anders', 'Berlin', '12209');
insert into products values (1, 'Chai', null, 1, '10 boxes', 18, 39, 1), (2, 'Chang', null, null, null, 4.8, 17, 0);
insert into orders values (10248, 'ALFKI', null, '1996-07-04', null, 32.38),
  (10249, null, null, '1996-07-05', null, null);
insert into order_details values (10248, 1, 14, 12, 0), (10248, 2, 9.8, 10, 0);
"""

DJANGO = """
create table auth_user (id serial primary key, username varchar(150) not null, email varchar(254) not null,
  first_name varchar(150) not null, last_name varchar(150) not null, is_active boolean not null);
create table django_session (session_key varchar(40) primary key, session_data text not null);
create table shop_brand (id bigserial primary key, name varchar(100) not null);
create table shop_category (id bigserial primary key, name varchar(100) not null, slug varchar(50) not null,
  parent_id bigint references shop_category);
create table shop_product (id bigserial primary key, title varchar(200) not null, slug varchar(50) not null,
  description text not null, price numeric(10, 2) not null, compare_at_price numeric(10, 2),
  brand_id bigint references shop_brand, is_active boolean not null default true,
  created_at timestamptz not null, updated_at timestamptz not null);
create table shop_product_categories (id bigserial primary key, product_id bigint not null references shop_product,
  category_id bigint not null references shop_category);
create table shop_productimage (id bigserial primary key, product_id bigint not null references shop_product,
  image varchar(100) not null, sort_order integer not null);
create table shop_productreview (id bigserial primary key, product_id bigint references shop_product, title text,
  body text, created_at timestamptz);
create table shop_cart (id bigserial primary key, user_id integer references auth_user, created_at timestamptz);
create table shop_cartitem (id bigserial primary key, cart_id bigint references shop_cart,
  product_id bigint references shop_product, quantity integer not null);
create table shop_order (id uuid primary key default gen_random_uuid(), user_id integer references auth_user,
  status varchar(20) not null, created_at timestamptz not null, updated_at timestamptz not null);
create table shop_orderitem (id bigserial primary key, order_id uuid not null references shop_order,
  product_id bigint references shop_product, quantity integer not null, price numeric(10, 2) not null);
create table blog_post (id bigserial primary key, title varchar(200) not null, slug varchar(50) not null,
  content text not null, updated_at timestamptz not null);
insert into auth_user (username, email, first_name, last_name, is_active)
  values ('ada', 'ada@shop.example', 'Ada', 'Lovelace', true);
insert into shop_brand (name) values ('Hay');
insert into shop_category (name, slug, parent_id) values ('Home', 'home', null), ('Chairs', 'chairs', 1);
insert into shop_product (title, slug, description, price, compare_at_price, brand_id, created_at, updated_at)
  values ('Chair', 'chair', 'A chair', 99.50, 120, 1, '2026-01-01Z', '2026-02-01Z');
insert into shop_product_categories (product_id, category_id) values (1, 2), (1, 1);
insert into shop_productimage (product_id, image, sort_order) values (1, 'back.jpg', 2), (1, 'front.jpg', 1);
insert into shop_order values ('6b4d4b5e-0000-4000-8000-000000000001', 1, 'paid', '2026-01-02Z', '2026-01-02Z');
insert into shop_orderitem (order_id, product_id, quantity, price)
  values ('6b4d4b5e-0000-4000-8000-000000000001', 1, 2, 99.50),
         ('6b4d4b5e-0000-4000-8000-000000000001', null, 1, 5);
insert into blog_post (title, slug, content, updated_at) values ('News', '/news', 'Something', '2026-01-01Z');
"""

DANISH = """
create schema "Butik";
create table "Butik"."Varegrupper" ("GruppeNr" integer primary key, "Navn" text not null, "Sti" text not null,
  "OverordnetId" integer);
create table "Butik"."Varer" ("VareNr" text primary key, "Varenavn" text not null, "Beskrivelse" text,
  "PrisIncl Moms" numeric, "Pris" integer not null, "Billede" text not null, "Link" text not null,
  "Mærke" text, "PåLager" integer, "GruppeNr" integer references "Butik"."Varegrupper",
  "Oprettet" timestamp not null, "Ændret" timestamp);
create table "Butik"."Kunder" ("Id" bigint primary key, "Fornavn" text, "Efternavn" text, "E-mail" text,
  "Nyhedsbrev" boolean, "Postnr" text);
create table "Butik"."Ordrer" ("Id" bigint primary key, "KundeId" bigint, "OrdreDato" timestamp not null,
  "user" text);
create table "Butik"."Ordrelinjer" ("Id" bigint primary key, "OrdreId" bigint not null, "VareNr" text not null,
  "Antal" integer not null, "Stykpris" numeric not null);
create table "Butik"."Sider" ("Id" integer primary key, "Overskrift" text not null, "Indhold" text not null,
  "Slug" text not null, "order" integer);
insert into "Butik"."Varegrupper" values (1, 'Alt', 'alt', null), (2, 'Stole', 'alt/stole', 1);
insert into "Butik"."Varer" values ('V-1', 'Stol', null, null, 995, 'https://cdn.example/stol.jpg', '/stol', 'Hay', 3,
  2, '2026-01-01', '2026-01-02');
insert into "Butik"."Kunder" values (7, 'Bo', 'Ørsted', 'bo@shop.example', true, '8000');
insert into "Butik"."Ordrer" values (70, 7, '2026-01-03', 'x');
insert into "Butik"."Ordrelinjer" values (1, 70, 'V-1', 2, 995.00);
insert into "Butik"."Sider" values (1, 'Om os', 'Vi er her', 'om-os', 1);
"""

ADDRESSES = {
    '"TODO: start of product URLs"': "'https://shop.example/p/'",
    '"TODO: start of category URLs"': "'https://shop.example/c/'",
    '"TODO: start of page URLs"': "'https://shop.example/'",
    '"TODO: start of image URLs"': "'https://images.shop.example/'",
}


def init(*arguments: str | Path, code: int = 0) -> str:
    """Run `clerk-feed init`; what it printed."""
    result = click.testing.CliRunner().invoke(main, ["init", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def completed(folder: Path, **values: str) -> str:
    """views.sql with every marked place replaced: addresses by examples, the others by `values`."""
    sql = (folder / "views.sql").read_text()
    for marker, value in ADDRESSES.items():
        sql = sql.replace(marker, value)
    for feed, line in re.findall(r"create or replace view shop\.(\w+) as(.*?);\n", sql, re.DOTALL):
        for alias, name in re.findall(r'(\w)\."TODO: (\w+)"', line):
            sql = sql.replace(f'{alias}."TODO: {name}"', values[f"{feed}_{name}"], 1)
    live = "\n".join(line for line in sql.splitlines() if not line.startswith("--"))
    assert "TODO" not in live
    return sql


@pytest.fixture
def served(database: Database, serve: Serve, clerk: FakeClerk, tmp_path: Path) -> Any:
    """Runs the views.sql of a folder and serves its feed.toml as it stands, but for ports and Clerk's address."""

    def start(folder: Path, **values: str) -> Running:
        database.execute(completed(folder, **values))
        config = (folder / "feed.toml").read_text()
        for key, value in (
            ("bind", '["127.0.0.1:0"]'),
            ("admin_bind", '"127.0.0.1:0"'),
            ("verify_url", f'"{clerk.verify_url}"'),
        ):
            config, count = re.subn(rf"(?m)^# {key} = \S+", f"{key} = {value}", config)
            assert count == 1
        return serve(config, environment={**ENVIRONMENT, "DATABASE_URL": database.dsn})

    return start


def items(service: Running, feed: str, query: str = "") -> list[dict[str, Any]]:
    answer = service.get(f"/shop/{feed}?limit=1000&offset=0{query}")
    assert answer.status == 200, answer.body
    return answer.lines


def test_without_a_database_the_settings_are_valid_and_every_required_attribute_is_named(tmp_path: Path) -> None:
    init("--directory", tmp_path)
    settings = parse((tmp_path / "feed.toml").read_text(), ENVIRONMENT)
    assert settings.stores["shop"].public_key == "key-init"
    sql = (tmp_path / "views.sql").read_text()
    for feed in FEEDS:
        body = re.search(
            rf"create or replace view shop\.{feed} as\nselect(.*?)\n;|view shop\.{feed} as(.*?);", sql, re.DOTALL
        )
        assert body is not None
        for attribute in REQUIRED[feed]:
            assert re.search(rf"(as |\.){attribute}\b", body[0]), f"{feed}.{attribute}"


def test_every_optional_setting_that_works_is_shown_with_its_default(tmp_path: Path) -> None:
    init("--directory", tmp_path)
    text = (tmp_path / "feed.toml").read_text()
    taken_in = re.sub(r"(?m)^# (\[|\w+ = )", r"\1", text)
    document = tomllib.loads(taken_in)
    store = document["stores"]["shop"]
    for shown_table, table in (
        (document["database"], DatabaseSettings),
        (document["server"], Server),
        (document["access"], Access),
        (document.get("clerk", {}), Clerk),
        (store, Store),
        (store["feeds"]["products"], FeedSettings),
    ):
        works = {field.name for field in msgspec.structs.fields(table)}
        assert set(shown_table) == works - {"name"}

    plain = parse('[stores.shop]\npublic_key = "key-init"', {})
    shown = parse(taken_in, ENVIRONMENT)
    assert msgspec.structs.replace(shown.database, dsn=None) == plain.database
    assert (shown.server, shown.access, shown.clerk) == (plain.server, plain.access, plain.clerk)
    assert msgspec.structs.replace(shown.stores["shop"], feeds={}) == plain.stores["shop"]
    assert shown.stores["shop"].feed("products") == FeedSettings()
    assert isinstance(shown, Settings)


def test_a_template_that_is_not_filled_in_is_refused_and_changes_nothing(database: Database, tmp_path: Path) -> None:
    init("--directory", tmp_path)
    with pytest.raises(asyncpg.PostgresError, match="TODO"):
        database.execute((tmp_path / "views.sql").read_text())
    database.execute("rollback")
    assert database.value("select to_regnamespace('shop')") is None


def test_a_shop_like_northwind_is_recognised_and_served(database: Database, served: Any, tmp_path: Path) -> None:
    database.execute(NORTHWIND)
    output = init("--dsn", database.dsn, "--directory", tmp_path)
    assert re.search(r"products +public\.products", output)
    assert "TODO description" in output
    assert "pages       nothing was recognised" in output
    for line in re.findall(r"line (\d+)", output):
        assert "TODO" in (tmp_path / "views.sql").read_text().splitlines()[int(line) - 1]
    service = served(
        tmp_path,
        products_description="''",
        products_image="'https://images.shop.example/' || p.product_id",
        products_url="shop.address('product', p.product_id::text)",
        products_created_at="timestamptz '2020-01-01Z'",
        categories_url="shop.address('category', c.category_id::text)",
        customers_email="c.customer_id || '@shop.example'",
    )
    chai, chang = items(service, "products")
    assert chai == {
        "id": 1,
        "name": "Chai",
        "description": "",
        "price": 18.0,
        "image": "https://images.shop.example/1",
        "url": "https://shop.example/p/1",
        "categories": [1],
        "stock": 39,
        "created_at": 1577836800,
    }
    assert (chang["price"], chang["categories"]) == (4.8, [])
    assert items(service, "categories")[0]["subcategories"] == []
    first, second = items(service, "orders")
    assert first == {
        "id": 10248,
        "products": [{"id": 1, "quantity": 12, "price": 14}, {"id": 2, "quantity": 10, "price": 9.8}],
        "time": 836438400,
        "customer": "ALFKI",
    }
    assert second["products"] == []
    assert items(service, "customers") == [
        {"id": "ALFKI", "email": "ALFKI@shop.example", "name": "Maria Anders", "zip": "12209"}
    ]
    assert service.get("/shop/pages?limit=10&offset=0").status == 404


def test_a_shop_like_djangos_is_recognised_and_served(database: Database, served: Any, tmp_path: Path) -> None:
    database.execute(DJANGO)
    output = init("--dsn", database.dsn, "--directory", tmp_path)
    assert "create index concurrently on public.shop_product (updated_at, id);" in output
    assert "create index concurrently on public.shop_orderitem (order_id);" in output
    assert "where p.is_active" in output
    service = served(tmp_path, products_x="")
    assert items(service, "products") == [
        {
            "id": 1,
            "name": "Chair",
            "description": "A chair",
            "price": 99.50,
            "list_price": 120.0,
            "image": "https://images.shop.example/front.jpg",
            "url": "https://shop.example/p/chair",
            "categories": [1, 2],
            "brand": "Hay",
            "created_at": 1767225600,
        }
    ]
    assert items(service, "products", "&modified_after=2026-03-01") == []
    assert [(c["id"], c["subcategories"]) for c in items(service, "categories")] == [(1, [2]), (2, [])]
    (order,) = items(service, "orders")
    assert order == {
        "id": "6b4d4b5e-0000-4000-8000-000000000001",
        "products": [{"id": 1, "quantity": 2, "price": 99.50}],
        "time": 1767312000,
        "customer": 1,
        "email": "ada@shop.example",
    }
    assert items(service, "customers") == [{"id": 1, "email": "ada@shop.example", "name": "Ada Lovelace"}]
    assert items(service, "pages") == [
        {"id": 1, "type": "blog", "url": "https://shop.example/news", "title": "News", "text": "Something"}
    ]


def test_danish_names_that_need_quotes_and_have_few_foreign_keys_are_recognised(
    database: Database, served: Any, tmp_path: Path
) -> None:
    database.execute(DANISH)
    output = init("--dsn", database.dsn, "--schema", "Butik", "--directory", tmp_path)
    assert "no foreign key is declared" in output
    assert "REVIEW: a whole number" in (tmp_path / "views.sql").read_text()
    service = served(tmp_path)
    assert items(service, "products") == [
        {
            "id": "V-1",
            "name": "Stol",
            "description": "",
            "price": 995,
            "image": "https://cdn.example/stol.jpg",
            "url": "https://shop.example/p/stol",
            "categories": [2],
            "brand": "Hay",
            "sku": "V-1",
            "stock": 3,
            "created_at": 1767225600,
        }
    ]
    assert [(c["id"], c["url"], c["subcategories"]) for c in items(service, "categories")] == [
        (1, "https://shop.example/c/alt", [2]),
        (2, "https://shop.example/c/alt/stole", []),
    ]
    assert items(service, "orders") == [
        {
            "id": 70,
            "products": [{"id": "V-1", "quantity": 2, "price": 995.00}],
            "time": 1767398400,
            "customer": 7,
            "email": "bo@shop.example",
        }
    ]
    assert items(service, "customers") == [
        {"id": 7, "email": "bo@shop.example", "name": "Bo Ørsted", "subscribed": True, "zip": "8000"}
    ]
    assert [page["title"] for page in items(service, "pages")] == ["Om os"]


def test_camel_case_without_foreign_keys_and_prices_in_cents_are_recognised(
    database: Database, served: Any, tmp_path: Path
) -> None:
    database.execute(
        """
        create table "Product" (id text primary key, title text not null, description text,
          "priceInCents" int not null, images text[] not null, slug text not null,
          "stockQuantity" int, "createdAt" timestamp(3) not null,
          "updatedAt" timestamp(3) not null);
        create table "Category" (id text primary key, name text not null, slug text not null, "parentId" text);
        create table "_CategoryToProduct" ("A" text not null references "Category", "B" text not null
          references "Product");
        create table "User" (id text primary key, email text not null, name text, role text);
        create table "Order" (id text primary key, "userId" text, "createdAt" timestamp(3) not null);
        create table "OrderItem" (id text primary key, "orderId" text not null, "productId" text not null,
          quantity int not null, "unitPriceInCents" int not null);
        insert into "Product" values
          ('p1', 'Chair', null, 1995, '{a.jpg,b.jpg}', 'chair', 3, '2026-01-01', '2026-01-01');
        insert into "Category" values ('c1', 'All', 'all', null), ('c2', 'Chairs', 'chairs', 'c1');
        insert into "_CategoryToProduct" values ('c2', 'p1');
        insert into "User" values ('u1', 'ada@shop.example', 'Ada', 'user');
        insert into "Order" values ('o1', 'u1', '2026-01-01');
        insert into "OrderItem" values ('i1', 'o1', 'p1', 2, 1995);
        """
    )
    init("--dsn", database.dsn, "--directory", tmp_path)
    service = served(tmp_path)
    (product,) = items(service, "products", "&modified_after=2025-01-01")
    assert (product["price"], product["categories"], product["stock"]) == (19.95, ["c2"], 3)
    assert product["image"] == "https://images.shop.example/a.jpg"
    assert [(c["id"], c["subcategories"]) for c in items(service, "categories")] == [("c1", ["c2"]), ("c2", [])]
    (order,) = items(service, "orders")
    assert order["products"] == [{"id": "p1", "quantity": 2, "price": 19.95}]
    assert (order["customer"], order["email"]) == ("u1", "ada@shop.example")
    assert items(service, "customers") == [{"id": "u1", "email": "ada@shop.example", "name": "Ada"}]


def test_carts_employees_and_suppliers_pass_for_nothing_else(database: Database, tmp_path: Path) -> None:
    database.execute(
        """
        create table supplier (id int primary key, name text, email text);
        create table purchase_orders (id int primary key, supplier_id int references supplier, created_at timestamptz);
        create table employees (id int primary key, name text, email text);
        create table product (id int primary key, name text, price numeric);
        create table cart (id int primary key, created_at timestamptz);
        create table cart_items (cart_id int references cart, product_id int references product, quantity int);
        create table products_backup (id int primary key, name text, price numeric, sku text);
        """
    )
    output = init("--dsn", database.dsn, "--directory", tmp_path)
    assert re.search(r"products +public\.product\n", output)
    for feed in ("categories", "orders", "customers", "pages"):
        assert re.search(rf"{feed} +nothing was recognised", output), output


def test_an_index_that_is_there_is_not_asked_for(database: Database, tmp_path: Path) -> None:
    database.execute(DJANGO + "create index on shop_product (updated_at, id);")
    output = init("--dsn", database.dsn, "--directory", tmp_path)
    assert "on public.shop_product (updated_at" not in output
    assert "on public.shop_order (updated_at, id)" in output


def test_the_drafted_view_leaves_paging_to_the_index_of_the_table(database: Database, tmp_path: Path) -> None:
    database.execute(DJANGO + "create index on shop_product (updated_at, id);")
    init("--dsn", database.dsn, "--directory", tmp_path)
    database.execute(completed(tmp_path))
    database.execute("set enable_seqscan = off")
    for order in ("s.id", "s.modified_at, s.id"):
        plan = database.fetch(f"explain verbose select * from shop.products as s order by {order} limit 10")
        text = "\n".join(row[0] for row in plan)
        assert re.search(r"Index Scan using shop_product_\w+ on public\.shop_product p", text), text
        assert not re.search(r"Sort Key:.*updated_at", text), text
        assert ".address(" not in text, "the function would cost a call for each item"


def test_a_database_without_a_shop_is_said_to_be_one(database: Database, tmp_path: Path) -> None:
    database.execute("create table measurement (id int primary key, celsius real)")
    output = init("--dsn", database.dsn, "--directory", tmp_path, code=1)
    assert "Without --dsn you get a template" in " ".join(output.split())
    assert list(tmp_path.iterdir()) == []


def test_a_schema_of_the_stores_name_that_holds_tables_is_refused(database: Database, tmp_path: Path) -> None:
    database.execute("create schema shop; create table shop.products (id int primary key, name text, price numeric)")
    output = init("--dsn", database.dsn, "--directory", tmp_path, code=1)
    assert "--store shop-feeds" in " ".join(output.split())
    init("--dsn", database.dsn, "--directory", tmp_path, "--store", "shop-feeds")
    assert 'create or replace view "shop-feeds".products' in (tmp_path / "views.sql").read_text()
    assert parse((tmp_path / "feed.toml").read_text(), ENVIRONMENT).stores["shop-feeds"].schema == "shop-feeds"


def test_existing_files_are_kept_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "views.sql").write_text("-- mine")
    output = init("--directory", tmp_path, code=1)
    assert "views.sql exists already; nothing was written" in " ".join(output.split())
    assert (tmp_path / "views.sql").read_text() == "-- mine"
    assert not (tmp_path / "feed.toml").exists()
    init("--directory", tmp_path, "--force")
    assert "create or replace view" in (tmp_path / "views.sql").read_text()


def test_the_password_of_the_dsn_is_written_nowhere(database: Database, tmp_path: Path) -> None:
    database.execute(NORTHWIND)
    dsn = database.dsn.replace("postgres:@", "postgres:hunter2@")
    assert "hunter2" in dsn
    output = init("--dsn", dsn, "--directory", tmp_path)
    assert "hunter2" not in output
    for path in tmp_path.iterdir():
        assert "hunter2" not in path.read_text()


@pytest.mark.parametrize("dsn", ["postgresql://u:hunter2@h:hunter2/db", "mysql://u:hunter2@h/db", "hunter2"])
def test_a_dsn_that_cannot_be_read_is_not_quoted(dsn: str, tmp_path: Path) -> None:
    output = init("--dsn", dsn, "--directory", tmp_path, code=1)
    assert "hunter2" not in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("store", ["", "my shop", "a/b", "x" * 64, 'a"b'])
def test_a_store_name_that_fits_no_url_is_refused(store: str, tmp_path: Path) -> None:
    init("--store", store, "--directory", tmp_path, code=2)
    assert list(tmp_path.iterdir()) == []


def test_identifiers_are_quoted_where_postgresql_needs_it(database: Database) -> None:
    names = [row[0] for row in database.fetch("select word from pg_get_keywords()")]
    names += ["plain", "With Space", "Upper", 'in"side', "ærø", "1st", "a$b", "snake_case_2", "line\nbreak", ""]
    for name in names:
        there = database.value("select ($1 || quote_ident($2))", "", name)
        assert identifier(name) == there or identifier(name) == '"' + name.replace('"', '""') + '"'
        assert identifier(name).startswith('"') or not there.startswith('"'), name


def test_names_that_would_break_out_of_a_comment_stay_in_it(database: Database, tmp_path: Path) -> None:
    database.execute(
        """
        create table product (id int primary key, name text not null, price numeric not null,
          "x\n; create table broken_out (i int) --" int, "active\n" bool);
        create table "order
        s" (id int primary key, placed_at timestamptz);
        """
    )
    init("--dsn", database.dsn, "--directory", tmp_path)
    sql = completed(
        tmp_path,
        products_description="''",
        products_image="''",
        products_url="''",
        products_categories="'{}'::int[]",
        products_created_at="now()",
        orders_products="'[]'::json",
    )
    database.execute(sql)
    assert database.value("select to_regclass('broken_out')") is None


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    """The name of a role that is gone after the test: roles belong to the whole server."""
    name = "feed reader " + database.value("select current_database()")
    yield name
    with suppress(asyncpg.UndefinedObjectError):
        database.execute(f'drop owned by "{name}" cascade')
        database.execute(f'drop role "{name}"')


def test_the_printed_role_is_enough_to_serve_and_for_nothing_else(
    database: Database, loop: Loop, serve: Serve, clerk: FakeClerk, tmp_path: Path, role: str
) -> None:
    database.execute(DJANGO)
    init("--dsn", database.dsn, "--directory", tmp_path)
    database.execute(completed(tmp_path))
    database.execute(init("--print-sql", "--role", role))
    dsn = database.dsn.replace("postgres:@", f"{role.replace(' ', '%20')}:@")
    config = f"""
[database]
dsn = "{dsn}"
[server]
bind = ["127.0.0.1:0"]
admin_bind = "127.0.0.1:0"
[access]
verify_url = "{clerk.verify_url}"
[stores.shop]
public_key = "key-init"
"""
    service = serve(config)
    assert [item["id"] for item in items(service, "products")] == [1]
    assert service.get("/shop/products?limit=1000&offset=1000").lines == []
    assert [item["id"] for item in items(service, "products", "&modified_after=2020-01-01")] == [1]

    database.execute("create view shop.later as select 1 as id")
    as_role = Database(loop, dsn)
    try:
        assert as_role.value("select current_user") == role
        assert as_role.value("select count(*) from clerk_feed.bookmark") > 0
        assert as_role.value("select id from shop.later") == 1
        for statement in (
            "select * from public.shop_product",
            "update public.shop_product set price = 0",
            "update shop.products set name = ''",
            "delete from shop.customers",
            "create table shop.mine (id int)",
            "create schema mine",
            "create or replace view shop.pages as select 1 as id",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                as_role.execute(statement)
    finally:
        as_role.close()


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    assert "--role goes with --print-sql" in init("--role", "x", "--directory", tmp_path, code=2)
    assert "leave --dsn and --schema out" in init("--print-sql", "--dsn", "postgresql://h/d", code=2)
    assert "name it with --dsn" in init("--schema", "public", "--directory", tmp_path, code=2)
