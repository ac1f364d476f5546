"""`clerk-feed check`: each thing that would go wrong has a schema here in which it does, and healthy ones pass."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trustme
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from app.cli import main
from app.diagnosis.check import Check
from app.diagnosis.database import Server, server_findings
from app.settings import Database as DatabaseSettings
from app.settings import Secret, Settings, Store
from tests.conftest import PRODUCTS, Database, Loop

_numbers = count()

# Every feed of a healthy shop, as tables with the indexes that pages need.
CATEGORIES = """
create table {s}.categories (
  id int primary key, name text not null, url text not null, subcategories int[] not null, modified_at timestamptz
);
create index on {s}.categories (modified_at, id);
insert into {s}.categories values
  (1, 'Furniture', 'https://shop.example/c/1', '{2}', '2026-01-01'),
  (2, 'Chairs', 'https://shop.example/c/2', '{}', null)
"""
ORDERS = """
create table {s}.orders (id bigint primary key, products jsonb not null, time timestamptz not null, customer text);
insert into {s}.orders
select n, '[{"id": 1, "quantity": 2, "price": 10.5}]', '2026-01-01', 'c' || n from generate_series(1, 20) as n
"""
CUSTOMERS = """
create table {s}.customers (id text primary key, email text not null, subscribed bool, age smallint);
insert into {s}.customers select 'c' || n, 'c' || n || '@shop.example', true, 40 from generate_series(1, 20) as n
"""
PAGES = """
create table {s}.pages (
  id uuid primary key, type text not null, url text not null, title text not null, text text not null
);
insert into {s}.pages values (gen_random_uuid(), 'cms', 'https://shop.example/p', 'Hours', 'We are open')
"""
ITEMS = "insert into {s}.products (id) select generate_series(1, 20)"
MANY_ITEMS = "insert into {s}.products (id) select generate_series(1, 2000)"


@dataclass
class Schema:
    """A schema of its own, and the feed.toml of a store on it, read by a role that can read it and no more."""

    name: str
    database: Database
    dsn: str
    path: Path
    extra: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def execute(self, sql: str) -> None:
        self.database.execute(sql.replace("{s}", self.name))

    def run(self, *options: str) -> Result:
        """The command, run in this process."""
        config = f'[database]\ndsn = "{self.dsn}"\n[stores.{self.name}]\npublic_key = "key"\n{self.extra}'
        self.path.write_text(config.replace("{s}", self.name), encoding="utf-8")
        return CliRunner(env=self.environment).invoke(
            main, ["check", "--config", str(self.path), *options], catch_exceptions=False
        )

    def report(self, *options: str) -> dict[str, Any]:
        done = self.run("--json", *options)
        found: dict[str, Any] = json.loads(done.stdout)
        assert done.exit_code == (1 if found["errors"] else 0)
        return found

    def found(self, *options: str) -> dict[str, dict[str, Any]]:
        """The findings by their codes, but for notes."""
        findings = self.report(*options)["findings"]
        return {finding["code"]: finding for finding in findings if finding["severity"] != "note"}

    def notes(self, *options: str) -> dict[str, dict[str, Any]]:
        findings = self.report(*options)["findings"]
        return {finding["code"]: finding for finding in findings if finding["severity"] == "note"}


@pytest.fixture(scope="session")
def checked_database(create_database: Callable[[], Database]) -> Database:
    return create_database()


@pytest.fixture
def schema(checked_database: Database, tmp_path: Path, worker_id: str) -> Schema:
    """An empty schema, with the role that `init --print-sql` describes."""
    name, role = f"shop{next(_numbers)}", f"check_{worker_id}"
    database = checked_database
    database.execute(f"create schema {name}")
    made = CliRunner().invoke(main, ["init", "--print-sql", "--store", name, "--role", role], catch_exceptions=False)
    database.execute(made.stdout)
    dsn = database.dsn.replace("//postgres:@", f"//{role}:@")
    return Schema(name, database, dsn, tmp_path / "feed.toml")


@pytest.fixture
def shop(schema: Schema) -> Schema:
    """A schema with a healthy products feed."""
    schema.execute(PRODUCTS)
    schema.execute(ITEMS)
    return schema


@pytest.fixture
def whole_shop(shop: Schema) -> Schema:
    """A schema with all five feeds, healthy."""
    for sql in (CATEGORIES, ORDERS, CUSTOMERS, PAGES):
        shop.execute(sql)
    return shop


# Healthy schemas, and what the command looks like


@pytest.mark.parametrize("options", [(), ("--scan",)])
def test_a_healthy_shop_raises_no_alarm(whole_shop: Schema, options: tuple[str, ...]) -> None:
    assert whole_shop.found(*options) == {}
    assert whole_shop.run("--strict", *options).exit_code == 0


def test_a_healthy_shop_of_views_raises_no_alarm(schema: Schema) -> None:
    schema.execute("create schema {s}_tables")
    for sql in (PRODUCTS, ITEMS, CATEGORIES, ORDERS):
        schema.execute(sql.replace("{s}.", "{s}_tables."))
    schema.execute(
        "create table {s}_tables.brand (id int primary key, name text); insert into {s}_tables.brand values (1, 'A')"
    )
    schema.execute("create view {s}.categories as select * from {s}_tables.categories")
    schema.execute("create view {s}.orders as select * from {s}_tables.orders")
    schema.execute(
        "create view {s}.products as"
        " select p.*, b.name as brand, (select count(*) from {s}_tables.orders as o where o.id = p.id) as sold"
        " from {s}_tables.products as p left join {s}_tables.brand as b on b.id = p.id % 2"
    )
    assert schema.found() == {}
    assert schema.found("--scan") == {}


def test_what_a_person_sees(whole_shop: Schema) -> None:
    command = [sys.executable, "-m", "app", "check", "--config", str(whole_shop.path), "--scan"]
    whole_shop.run()
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONWARNINGS": "error"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert lines[f"{whole_shop.name}/products"][1:5] == ["bigint", "modified_at", "20", "0"]
    assert lines[f"{whole_shop.name}/products"][-1] == "good"
    assert done.stdout.splitlines()[-1] == "Ready: 5 feeds can be served."


def test_exit_status_tells_errors_from_warnings(shop: Schema) -> None:
    assert shop.run("--strict").exit_code == 0
    shop.execute("update {s}.products set image = 'http://shop.example/i.jpg'")
    assert shop.run().exit_code == 0
    assert shop.run("--strict").exit_code == 2
    assert shop.run("--strict", "--json").exit_code == 2
    shop.execute("alter table {s}.products drop column price")
    assert shop.run().exit_code == 1
    assert shop.run("--strict").exit_code == 1
    assert shop.run().output.splitlines()[-1].startswith("Not ready: 1 error")


def test_json_keeps_letters_as_they_are(shop: Schema) -> None:
    shop.execute("update {s}.products set url = '/Bücherregal-é-椅子'")
    assert "Bücherregal-é-椅子" in shop.run("--json").stdout


def test_one_store_of_many(shop: Schema) -> None:
    shop.extra = '[stores.other]\npublic_key = "other"\n'
    assert "store-empty" in shop.found()
    assert shop.found("--store", shop.name) == {}
    done = shop.run("--store", "nobody")
    assert done.exit_code == 1
    assert f"the stores are {shop.name}, other" in done.output


def test_nothing_is_written(shop: Schema) -> None:
    shop.database.execute("drop schema clerk_feed cascade")
    shop.run("--scan")
    assert not shop.database.value("select to_regnamespace('clerk_feed') is not null")


# Settings and certificate


def test_settings_that_can_not_be_used_are_a_finding(schema: Schema) -> None:
    schema.extra = "[server]\nbnd = []\n"
    assert "server.bnd: unknown key; did you mean bind?" in schema.found()["settings"]["what"]
    done = CliRunner().invoke(main, ["check", "--config", str(schema.path.with_name("nowhere.toml"))])
    assert done.exit_code == 1
    assert "there is no such file" in done.output


@dataclass
class Certificates:
    folder: Path
    authority: trustme.CA = field(default_factory=trustme.CA)

    def settings(self, ends: timedelta, begins: timedelta = timedelta(days=-9)) -> str:
        now = datetime.now(UTC)
        issued = self.authority.issue_cert("feeds.shop.example", not_before=now + begins, not_after=now + ends)
        issued.cert_chain_pems[0].write_to_path(self.folder / "cert.pem")
        issued.private_key_pem.write_to_path(self.folder / "key.pem")
        return '[server]\ncertfile = "cert.pem"\nkeyfile = "key.pem"\n'


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.mark.parametrize(
    ("ends", "begins", "code"),
    [
        (timedelta(days=90), timedelta(days=-9), None),
        (timedelta(days=20), timedelta(days=-9), "tls-expires"),
        (timedelta(days=-1), timedelta(days=-9), "tls-expired"),
        (timedelta(days=90), timedelta(days=2), "tls-not-yet"),
    ],
)
def test_a_certificate_is_held_against_the_calendar(
    shop: Schema, certificates: Certificates, ends: timedelta, begins: timedelta, code: str | None
) -> None:
    shop.extra = certificates.settings(ends, begins)
    assert list(shop.found()) == ([code] if code else [])
    day = f"{datetime.now(UTC) + ends:%Y-%m-%d}"
    assert shop.report()["certificate_ends"] == day
    if code in ("tls-expires", "tls-expired"):
        assert day in shop.found()[code]["what"]
        assert "feeds.shop.example" in shop.found()[code]["what"]


def test_certificate_files_that_can_not_be_used_are_told(
    shop: Schema, certificates: Certificates, tmp_path: Path
) -> None:
    shop.extra = certificates.settings(timedelta(days=90))
    other = trustme.CA().issue_cert("other.example")
    other.private_key_pem.write_to_path(tmp_path / "key.pem")
    assert "not the key of the certificate" in shop.found()["tls"]["what"]
    (tmp_path / "key.pem").unlink()
    assert "key.pem" in shop.found()["tls"]["what"]
    (tmp_path / "cert.pem").write_text("what?")
    assert "cert.pem" in shop.found()["tls"]["what"]


def expired_authority() -> bytes:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Old Authority")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=9)).not_valid_after(now - timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_an_authority_that_has_expired_is_told(shop: Schema, certificates: Certificates, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(expired_authority())
    shop.extra = certificates.settings(timedelta(days=90)) + 'client_ca = "ca.pem"\n'
    finding = shop.found()["tls-expired"]
    assert "client_ca" in finding["what"]
    assert "Old Authority" in finding["what"]
    # The same behind our own certificate, as one that is sent along.
    shop.extra = certificates.settings(timedelta(days=90))
    chain = (tmp_path / "cert.pem").read_bytes() + expired_authority()
    (tmp_path / "cert.pem").write_bytes(chain)
    assert "certfile" in shop.found()["tls-expired"]["what"]


# The database


def test_a_database_that_does_not_answer_is_told(schema: Schema) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    schema.dsn = f"postgresql://me:s3cret@127.0.0.1:{port}/shop"
    done = schema.run()
    assert done.exit_code == 1
    assert "Check that PostgreSQL runs" in done.output
    assert "s3cret" not in done.output
    assert list(schema.found()) == ["database-unreachable"]


def test_a_wrong_role_database_and_dsn_are_told(schema: Schema) -> None:
    good = schema.dsn
    schema.dsn = good.replace("//check", "//nobody")
    assert list(schema.found()) == ["database-refused"]
    schema.dsn = good.replace("?", "_gone?")
    assert list(schema.found()) == ["database-unknown"]
    schema.dsn = "postgresql://me:s3cret/x#y@h:port/shop"
    assert "s3cret" not in schema.run().output
    assert list(schema.found()) == ["database-dsn"]


def test_a_superuser_and_a_role_that_may_write_are_told(shop: Schema) -> None:
    least = shop.dsn
    shop.dsn = shop.database.dsn
    assert f"--print-sql --store {shop.name}" in shop.found()["role-superuser"]["cure"]
    shop.dsn = least
    assert "role-writes" not in shop.notes()
    role = least.split("//")[1].split(":")[0]
    shop.execute(f"grant update on {{s}}.products to {role}")
    assert "may change 1 tables" in shop.notes()["role-writes"]["what"]


def test_a_clock_that_is_wrong_is_told(shop: Schema) -> None:
    role = shop.dsn.split("//")[1].split(":")[0]
    shop.execute(
        "create schema {s}_clock; create function {s}_clock.clock_timestamp() returns timestamptz language sql"
        " as $$ select pg_catalog.clock_timestamp() - interval '90 s' $$;"
        f"grant usage on schema {{s}}_clock to {role}"
    )
    shop.dsn += f"&options=-csearch_path%3D{shop.name}_clock%2Cpg_catalog"
    finding = shop.found()["clock"]
    assert "90 s behind" in finding["what"]
    assert "NTP" in finding["cure"]


def test_a_schema_for_bookmarks_that_can_not_be_had_is_told(
    create_database: Callable[[], Database], shop: Schema
) -> None:
    # Of the shared schema as it stands it is true that the role owns it.
    assert "schema-privilege" not in shop.found()
    fresh = create_database()
    shop.dsn = fresh.dsn.replace("//postgres:@", "//" + shop.dsn.split("//")[1].split("@")[0] + "@")
    found = shop.found()["schema-privilege"]
    assert "may not create the schema clerk_feed" in found["what"]
    assert "create schema if not exists clerk_feed authorization" in found["cure"]
    fresh.execute("create schema clerk_feed")
    assert "belongs to another role" in shop.found()["schema-privilege"]["what"]


def test_bookmarks_kept_elsewhere_are_looked_for_there(
    create_database: Callable[[], Database], shop: Schema, loop: Loop
) -> None:
    store = Store(public_key="key", schema=shop.name, name=shop.name)

    def found(state_dsn: str) -> list[tuple[str, str]]:
        settings = Settings(
            database=DatabaseSettings(dsn=Secret(shop.dsn), state_dsn=Secret(state_dsn)), stores={shop.name: store}
        )
        report = loop.run(Check(settings, shop.dsn, stores=[shop.name], scan=False).run())
        return [(finding.code, finding.cure) for finding in report.findings if finding.severity != "note"]

    assert found(shop.dsn) == []
    role = shop.dsn.split("//")[1].split("@")[0]
    assert found(create_database().dsn.replace("//postgres:@", f"//{role}@"))[0][0] == "schema-privilege"
    [(code, cure)] = found("postgresql://me@127.0.0.1:1/shop")
    assert code == "database-unreachable"
    assert "database.state_dsn" in cure


def test_a_schema_newer_than_the_program_is_told(create_database: Callable[[], Database], shop: Schema) -> None:
    fresh = create_database()
    fresh.execute("create schema clerk_feed; create table clerk_feed.migration (number int)")
    fresh.execute("insert into clerk_feed.migration values (999)")
    shop.dsn = fresh.dsn
    assert "is at migration 999" in shop.found()["schema-newer"]["what"]


def test_a_store_without_a_schema_is_told(schema: Schema) -> None:
    schema.extra = 'schema = "nowhere"\n'
    assert "clerk-feed init" in schema.found()["store-empty"]["cure"]


# Relations and columns


def test_a_feed_that_is_named_but_not_there_is_told(shop: Schema) -> None:
    shop.extra = "[stores.{s}.feeds.pages]\nstrict = true\n"
    assert shop.found()["source-missing"]["feed"] == "pages"


def test_products_that_are_not_there_are_told(schema: Schema) -> None:
    schema.execute(CUSTOMERS)
    assert schema.found()["source-missing"]["severity"] == "warning"


def test_a_view_with_a_name_like_a_feeds_is_told(shop: Schema) -> None:
    shop.execute("create view {s}.category as select 1 as id")
    shop.execute("create view {s}.order as select 1 as id")
    finding = shop.found()["source-misspelled"]
    assert "did you mean that?" in finding["what"]
    assert 'source = "' in finding["cure"]


def test_a_relation_that_may_not_be_read_is_told_with_the_grant(shop: Schema) -> None:
    role = shop.dsn.split("//")[1].split(":")[0]
    shop.execute(f"revoke select on {{s}}.products from {role}")
    assert "grant select on" in shop.found()["source-unreadable"]["cure"]


def test_every_column_that_is_wrong_is_told_at_once(schema: Schema) -> None:
    schema.execute(
        "create table {s}.products (id money, name text, description bytea, price text, image text, url json,"
        ' categories int, created_at text, modified_at text, "primary-color" text, list_price text, size point)'
    )
    findings = schema.report()["findings"]
    wrong = {(f["code"], f["attribute"]): f for f in findings if f["severity"] != "note"}
    assert set(wrong) == {
        ("column-type", "id"),
        ("column-type", "description"),
        ("column-type", "price"),
        ("column-type", "categories"),
        ("column-type", "created_at"),
        ("column-type", "modified_at"),
        ("column-type", "list_price"),
        ("column-type", "size"),
        ("column-name", "primary-color"),
    }
    assert wrong["column-type", "list_price"]["severity"] == "warning"
    assert wrong["column-name", "primary-color"]["severity"] == "error"
    assert "price::numeric" in wrong["column-type", "price"]["cure"]
    assert "timestamptz" in wrong["column-type", "modified_at"]["what"]


def test_a_required_column_that_is_missing_is_told(shop: Schema) -> None:
    shop.execute("alter table {s}.products drop column price, drop column url")
    assert [f["attribute"] for f in shop.report()["findings"] if f["code"] == "column-missing"] == ["price", "url"]


@pytest.mark.parametrize(
    ("feed", "columns"),
    [
        ("orders", "1 as id, 'x' as products, 'x' as time"),
        ("customers", "1 as id, 5 as email, 'x' as subscribed"),
        ("pages", "1 as id, 'x' as type, 'x' as url, '{}'::json as title, array['x'] as text"),
        ("categories", "1 as id, true as name, 'x' as url, '1,2' as subcategories"),
    ],
)
def test_types_that_clerk_can_not_read_are_told_of_every_feed(shop: Schema, feed: str, columns: str) -> None:
    shop.execute(f"create view {{s}}.{feed} as select {columns}")
    findings = [f for f in shop.report()["findings"] if f["code"] == "column-type"]
    assert len(findings) == 2
    assert {f["feed"] for f in findings} == {feed}


# Keys and indexes


def run_cure(shop: Schema, cure: str) -> None:
    """Do what a finding says: the SQL behind 'Run:'."""
    sql = cure.removeprefix("Run: ").split(";")[0]
    shop.execute(sql)


def test_ids_that_repeat_are_told(schema: Schema) -> None:
    schema.execute("create schema {s}_tables")
    schema.execute((PRODUCTS + ";" + ITEMS).replace("{s}.", "{s}_tables."))
    schema.execute(
        "create view {s}.products as select p.*"
        " from {s}_tables.products as p, generate_series(1, 2 - p.id % 2) as images"
    )
    finding = schema.found()["key-repeated"]
    assert finding["count"] == 10
    assert finding["severity"] == "error"
    assert "join" in finding["cure"]
    assert "key-repeated" in schema.found("--scan")


def test_rows_without_an_id_are_told(schema: Schema) -> None:
    schema.execute((PRODUCTS + ";" + ITEMS).replace("id bigint primary key", "id bigint unique"))
    schema.execute("insert into {s}.products (id) values (null), (null)")
    assert schema.found()["key-null"]["count"] == 2


@pytest.mark.parametrize("key", ["bigint", "text", "uuid"])
@pytest.mark.parametrize("walk", ["full", "incremental"])
def test_a_missing_index_is_told_with_the_statement_that_makes_it(schema: Schema, key: str, walk: str) -> None:
    schema.execute("create schema {s}_tables")
    tables = PRODUCTS.replace("{s}.", "{s}_tables.").replace("id bigint primary key", f"nr {key} not null")
    tables = tables.replace("(modified_at, id)", "(name)").replace("modified_at timestamptz", '"changedAt" timestamptz')
    schema.execute(tables)
    value = "md5(n::text)::uuid" if key == "uuid" else f"n::{key}"
    schema.execute(f"insert into {{s}}_tables.products (nr) select {value} from generate_series(1, 2000) as n")
    schema.execute(
        'create view {s}.products as select nr as id, "changedAt" as modified_at, name, description, price, image, url,'
        " categories, created_at from {s}_tables.products"
    )
    finding = schema.found()[f"index-{walk}"]
    columns = '("changedAt", nr)' if walk == "incremental" else "(nr)"
    assert finding["cure"].startswith(
        f"Run: create index concurrently on {schema.name}_tables.products {columns}; Or set rendered = true"
    )
    run_cure(schema, finding["cure"])
    assert f"index-{walk}" not in schema.found()


def test_an_expression_in_place_of_a_key_is_told_with_an_index_on_it(schema: Schema) -> None:
    schema.execute("create schema {s}_tables")
    schema.execute((PRODUCTS + ";" + MANY_ITEMS).replace("{s}.", "{s}_tables."))
    schema.execute(
        "create view {s}.products as select 'p' || id as id, name, description, price, image, url, categories,"
        " created_at from {s}_tables.products"
    )
    finding = schema.found()["index-full"]
    run_cure(schema, finding["cure"])
    assert schema.found() == {}


def test_a_key_that_no_index_can_serve_is_told_to_be_rendered(schema: Schema) -> None:
    schema.execute("create schema {s}_tables")
    schema.execute((PRODUCTS + ";" + MANY_ITEMS).replace("{s}.", "{s}_tables."))
    schema.execute("create table {s}_tables.stock (id bigint primary key, changed timestamptz)")
    schema.execute(
        "create view {s}.products as select p.id, name, description, price, image, url, categories, created_at,"
        " greatest(p.modified_at, s.changed) as modified_at"
        " from {s}_tables.products as p left join {s}_tables.stock as s using (id)"
    )
    finding = schema.found()["index-incremental"]
    assert "create index" not in finding["cure"]
    assert "rendered = true" in finding["cure"]
    schema.execute("drop view {s}.products")
    schema.execute(
        "create view {s}.products as select * from {s}_tables.products union all"
        " select -id, name, description, price, image, url, categories, created_at, now() from {s}_tables.products"
    )
    assert {"index-full", "index-incremental"} <= set(schema.found())


def test_a_partitioned_table_gets_its_index_as_a_whole(schema: Schema) -> None:
    schema.execute(
        CUSTOMERS.split(";", maxsplit=1)[0].replace("id text primary key", "id int") + " partition by range (id)"
    )
    for number in range(3):
        schema.execute(
            f"create table {{s}}.part{number} partition of {{s}}.customers"
            f" for values from ({number}000) to ({number + 1}000)"
        )
    schema.execute("insert into {s}.customers select n, 'x' from generate_series(0, 2999) as n")
    finding = schema.found()["index-full"]
    assert finding["cure"].startswith(f"Run: create index on {schema.name}.customers (id); Or set rendered")
    run_cure(schema, finding["cure"])
    assert "index-full" not in schema.found()


def test_an_empty_and_never_analysed_table_raises_no_false_alarm_about_its_indexes(schema: Schema) -> None:
    schema.execute(PRODUCTS)
    assert list(schema.found()) == ["empty"]


def test_a_feed_that_fits_one_page_needs_no_index(shop: Schema) -> None:
    shop.execute(
        "create view {s}.pages as select 'p' || n as id, 'cms' as type, 'https://x.example' as url, 'T' as title,"
        " 'x' as text from generate_series(1, 50) as n"
    )
    assert shop.found() == {}
    assert "index-full" in shop.notes()


def test_a_join_without_an_index_is_told_with_the_statement_that_makes_it(shop: Schema) -> None:
    shop.execute("create schema {s}_tables")
    shop.execute("create table {s}_tables.line (order_id bigint, product_id int, note text)")
    shop.execute("insert into {s}_tables.line select n, 1, repeat('x', 100) from generate_series(1, 12000) as n")
    shop.execute("create table {s}_tables.orders (id bigint primary key, time timestamptz)")
    shop.execute("insert into {s}_tables.orders select n, '2026-01-01' from generate_series(1, 50) as n")
    shop.execute(
        "create view {s}.orders as select o.id, o.time, coalesce((select json_agg(json_build_object('id', l.product_id,"
        " 'quantity', 1, 'price', 2) order by l.product_id) from {s}_tables.line as l where l.order_id = o.id), '[]')"
        " as products from {s}_tables.orders as o"
    )
    finding = shop.found()["index-join"]
    assert finding["cure"] == f"Run: create index concurrently on {shop.name}_tables.line (order_id);"
    run_cure(shop, finding["cure"])
    assert shop.found() == {}


ZONED = """
create table {s}.changed (id int primary key, email text default 'a@shop.example', at timestamp);
insert into {s}.changed (id, at) select n, '2026-03-01' from generate_series(1, 20) as n;
create view {s}.customers as select id, email, %s as modified_at from {s}.changed
"""


@pytest.fixture
def shop_of_new_york(create_database: Callable[[], Database], tmp_path: Path) -> Schema:
    database = create_database()
    name = database.value("select current_database()")
    database.execute(f"alter database \"{name}\" set timezone = 'America/New_York'")
    database.execute("create schema shop")
    return Schema("shop", database, database.dsn, tmp_path / "feed.toml")


@pytest.mark.parametrize("moment", ["at", "at::timestamptz"])
def test_a_time_that_is_read_in_another_zone_than_it_was_written_is_told(shop_of_new_york: Schema, moment: str) -> None:
    shop_of_new_york.execute(ZONED % moment)
    found = shop_of_new_york.found()["modified-at-zone"]
    assert "America/New_York" in found["what"]
    assert "at time zone 'America/New_York'" in found["cure"]
    shop_of_new_york.execute("drop view {s}.customers; drop table {s}.changed")
    shop_of_new_york.execute(ZONED % "at at time zone 'America/New_York'")
    assert "modified-at-zone" not in shop_of_new_york.found()


@pytest.mark.parametrize(
    "moment", ["now()", "clock_timestamp()", "now() - interval '3 hours'", "now() + interval '1 d'"]
)
def test_a_time_of_change_that_is_reckoned_from_the_moment_of_asking_is_told(schema: Schema, moment: str) -> None:
    schema.execute(ZONED % f"coalesce(case when id > 2 then '2026-01-01'::timestamptz end, {moment})")
    found = schema.found()["modified-at-moving"]
    assert (found["severity"], found["count"], sorted(found["examples"])) == ("warning", 2, ["1", "2"])
    schema.execute("drop view {s}.customers; drop table {s}.changed")
    schema.execute(ZONED % "case when id > 2 then '2026-01-01'::timestamptz end")
    assert "modified-at-moving" not in schema.found("--scan")


def test_what_a_sync_of_changes_can_not_know_is_a_note(shop: Schema) -> None:
    assert "full sync" in shop.notes()["deltas-without-deletions"]["cure"]
    shop.execute("alter table {s}.products drop column modified_at")
    assert "modified_at" in shop.notes()["full-only"]["what"]


# Items


def test_the_first_items_are_looked_at_and_with_scan_all_of_them(shop: Schema) -> None:
    shop.execute("insert into {s}.products (id) select generate_series(21, 5000)")
    shop.execute("update {s}.products set price = null where id = 4999")
    assert shop.found() == {}
    finding = shop.found("--scan")["item-attribute-missing"]
    assert (finding["attribute"], finding["count"], finding["of"]) == ("price", 1, 5000)
    assert finding["examples"] == ["id 4999"]
    [feed] = [feed for feed in shop.report("--scan")["feeds"] if feed["feed"] == "products"]
    assert (feed["items"], feed["invalid"], feed["is_whole"]) == (4999, 1, True)


@pytest.mark.parametrize(
    ("change", "code", "attribute"),
    [
        ("name = null", "item-attribute-missing", "name"),
        ("price = 'NaN'", "item-attribute-missing", "price"),
        ("image = '/chair.jpg'", "item-address-relative", "image"),
        ("url = 'http://shop.example/chair'", "item-address-insecure", "url"),
        ("created_at = '2100-01-01'", "item-time-future", "created_at"),
        ('size = \'{"width": {"cm": [null]}}\'', "item-null-nested", "size"),
        ("title = '{\"text\": [1]}'", "item-object", "name"),
        ("title = '{}'", "item-object", "name"),
        ("title = '5'", "item-type", "name"),
        ('title = \'{"danish": "Stol"}\'', "item-languages-across", "name"),
        ("title = '\"Stol\"'", "item-languages-mixed", "name"),
        ("stamp = 1767225600000", "item-time-milliseconds", "created_at"),
        ("categories = '{1,77}'", "reference-unknown", "categories"),
    ],
)
def test_an_item_that_clerk_can_not_read_is_told(schema: Schema, change: str, code: str, attribute: str) -> None:
    schema.execute("create schema {s}_tables")
    schema.execute((PRODUCTS + ";" + ITEMS).replace("{s}.", "{s}_tables."))
    schema.execute(CATEGORIES)
    schema.execute(
        "alter table {s}_tables.products add size json default '{\"width\": 5}', add stamp bigint,"
        ' add title json default \'{"danish": "Stol", "german": "Stuhl"}\''
    )
    name = "title" if change.startswith("title") else "name"
    created = "stamp" if change.startswith("stamp") else "created_at"
    schema.execute("update {s}_tables.products set stamp = 1767225600")
    schema.execute(
        f"create view {{s}}.products as select id, {name} as name, description, price, image, url, categories, size,"
        f" {created} as created_at, modified_at from {{s}}_tables.products"
    )
    assert schema.found("--scan") == {}
    schema.execute(f"update {{s}}_tables.products set {change} where id = 7")
    finding = schema.found("--scan")[code]
    assert finding["attribute"] == attribute
    assert "7" in finding["examples"][0]


def test_how_many_items_do_without_an_attribute_is_told(shop: Schema) -> None:
    shop.execute("alter table {s}.products add brand text; update {s}.products set brand = 'A' where id <= 5")
    [feed] = [feed for feed in shop.report("--scan")["feeds"] if feed["feed"] == "products"]
    [brand] = [attribute for attribute in feed["attributes"] if attribute["name"] == "brand"]
    assert (brand["present"], brand["absent"]) == (5, 15)
    assert "15 of 20" in shop.run("--scan").output


def test_a_feed_without_a_valid_item_is_told(shop: Schema) -> None:
    shop.execute("update {s}.products set price = null")
    assert "the feed is empty" in shop.found("--scan")["all-invalid"]["what"]


def test_an_empty_feed_is_told(shop: Schema) -> None:
    shop.execute("delete from {s}.products")
    assert shop.found()["empty"]["severity"] == "warning"


def test_a_view_that_fails_at_one_row_is_told_with_what_postgresql_says(shop: Schema) -> None:
    shop.execute(
        "alter table {s}.products rename to goods;"
        "create view {s}.products as select id, name, description, 10 / (id - 7) as price, image, url, categories,"
        " created_at from {s}.goods"
    )
    finding = shop.found("--scan")["source-failed"]
    assert "division by zero" in finding["what"]
    assert "22012" in finding["what"]


def test_json_that_strict_readers_refuse_is_told(shop: Schema) -> None:
    shop.execute("alter table {s}.products add note json")
    shop.execute(r"""update {s}.products set note = '"\ud83d"' where id = 3""")
    finding = shop.found("--scan")["item-unreadable"]
    assert (finding["attribute"], finding["examples"]) == ("note", ["id 3"])


def test_orders_with_unknown_products_are_told(whole_shop: Schema) -> None:
    whole_shop.execute("""update {s}.orders set products = '[{"id": 999, "quantity": 1, "price": 1}]' where id = 4""")
    finding = whole_shop.found("--scan")["reference-unknown"]
    assert (finding["feed"], finding["attribute"]) == ("orders", "products")
    assert finding["examples"] == ["999 in id 4"]


def test_references_of_another_type_are_told(whole_shop: Schema) -> None:
    whole_shop.execute("""update {s}.orders set products = '[{"id": "1", "quantity": 1, "price": 1}]' where id = 4""")
    assert list(whole_shop.found("--scan")) == ["reference-type"]
    whole_shop.execute("""update {s}.orders set products = '[{"id": "x", "quantity": 1, "price": 1}]' where id = 4""")
    assert set(whole_shop.found("--scan")) == {"reference-type", "reference-unknown"}


def test_cycles_of_categories_are_told(whole_shop: Schema) -> None:
    whole_shop.execute(
        "insert into {s}.categories select n, 'n', 'https://x.example', array[n+1], null from generate_series(3, 9) n"
    )
    whole_shop.execute("insert into {s}.categories values (10, 'n', 'https://shop.example', '{}', null)")
    assert whole_shop.found("--scan") == {}
    whole_shop.execute("update {s}.categories set subcategories = '{2,8}' where id = 10")
    assert "8 → 9 → 10 → 8" in whole_shop.found("--scan")["category-cycle"]["what"]


def test_pages_of_a_store_with_several_languages_are_told(whole_shop: Schema) -> None:
    whole_shop.execute(
        'alter table {s}.products alter name type json using \'{"danish": "Stol", "german": "Stuhl"}\','
        " alter name drop default"
    )
    assert list(whole_shop.found()) == ["pages-multilingual"]
    whole_shop.execute("drop table {s}.pages")
    assert whole_shop.found() == {}


# Rendered feeds


@pytest.fixture
def rendered(shop: Schema) -> Schema:
    """A rendered feed over a view that no index could serve."""
    shop.execute(MANY_ITEMS.replace("1, 2000", "21, 2000"))
    shop.execute("alter table {s}.products rename to goods")
    shop.execute(
        "create view {s}.products as select -id as id, name, description, price, image, url, categories, created_at"
        " from {s}.goods"
    )
    shop.extra = "[stores.{s}.feeds.products]\nrendered = true\n"
    return shop


def refresh(shop: Schema, *options: str) -> Result:
    shop.run()
    return CliRunner().invoke(main, ["refresh", "--config", str(shop.path), *options])


def test_a_rendered_feed_needs_no_index_but_a_refresh(rendered: Schema) -> None:
    assert "clerk-feed refresh" in rendered.found()["refresh-never"]["cure"]
    assert refresh(rendered).exit_code == 0
    assert rendered.found("--scan") == {}
    assert "refresh-by-hand" in rendered.notes()
    rendered.extra += 'refresh_every = "10m"\n'
    # What other tests let the role write is no matter of this one.
    assert set(rendered.notes()) <= {"role-writes"}


def test_a_refresh_that_fails_is_held_back_or_late_is_told(rendered: Schema) -> None:
    refresh(rendered)
    rendered.execute("delete from {s}.goods where id > 100")
    assert refresh(rendered).exit_code == 1
    finding = rendered.found()["refresh-failed"]
    assert "was held back" in finding["what"]
    assert "--accept-shrink" in finding["cure"]
    rendered.execute("update clerk_feed.refresh set finished = finished - interval '2 hours'")
    rendered.extra += 'refresh_every = "10m"\n'
    assert "one is due every 10m" in rendered.found()["refresh-late"]["what"]


@pytest.mark.parametrize(("number", "found"), [(119_999, ["database-version"]), (120_000, [])])
def test_a_server_that_is_too_old_is_told(number: int, found: list[str]) -> None:
    facts = Server(
        version="of before",
        version_number=number,
        database="shop",
        role="clerk_feed",
        is_superuser=False,
        is_standby=False,
        may_create=True,
        schema_exists=True,
        schema_is_ours=True,
        migration=1,
        writable_tables=0,
        clock_ahead=0.0,
    )
    findings = server_findings(facts, stores=["shop"], embedded=False)
    assert [(f.severity, f.code) for f in findings] == [("error", code) for code in found]
