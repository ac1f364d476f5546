"""The example of a store with several languages: it serves what Clerk reads, and `check` finds where it would not."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app.catalog.schema import SQL_FOLDER
from app.cli import main
from tests.clerk import FakeClerk
from tests.conftest import Database, Serve, base_config


@pytest.fixture
def example(database: Database) -> Database:
    database.execute((SQL_FOLDER / "several_languages.sql").read_text(encoding="utf-8"))
    return database


def alarms(example: Database, folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "feed.toml"
    path.write_text(f'[database]\ndsn = "{example.dsn}"\n[stores.languages]\npublic_key = "key-languages"\n')
    done = CliRunner().invoke(main, ["check", "--config", str(path), "--scan", "--json"], catch_exceptions=False)
    findings = json.loads(done.stdout)["findings"]
    ignored = ("note",)
    return {f["code"]: f for f in findings if f["severity"] not in ignored and f["code"] != "role-superuser"}


def test_the_example_serves_every_language_of_every_item(example: Database, serve: Serve, clerk: FakeClerk) -> None:
    config = base_config(example.dsn, clerk.verify_url) + '[stores.languages]\npublic_key = "key-languages"\n'
    service = serve(config)
    products = service.get("/languages/products?limit=10&offset=0").lines
    assert [item["name"] for item in products] == [
        {"danish": "Stol", "german": "Stuhl"},
        {"danish": "Gyngestol", "german": "Gyngestol"},
    ]
    assert products[0]["url"]["german"] == "https://www.shop.example/de/stuhl"
    assert products[1]["description"]["german"] == "En gyngestol"
    assert {frozenset(item[name]) for item in products for name in ("name", "description", "image", "url")} == {
        frozenset(("danish", "german"))
    }
    categories = service.get("/languages/categories?limit=10&offset=0").lines
    assert categories[0]["name"] == {"danish": "Møbler", "german": "Möbel"}
    assert categories[0]["subcategories"] == [2]


def test_check_has_nothing_against_the_example(example: Database, tmp_path: Path) -> None:
    assert alarms(example, tmp_path) == {}


def test_check_finds_what_breaks_clerks_index(example: Database, tmp_path: Path) -> None:
    example.execute(
        "create view languages.pages as"
        " select 1 as id, 'cms' as type, 'https://x.example' as url, 'T' as title, 'x' as text"
    )
    assert list(alarms(example, tmp_path)) == ["pages-multilingual"]
    example.execute("drop view languages.pages")
    # Without the fallback an item has the languages that are there, and others elsewhere.
    view = example.value("select pg_get_viewdef('languages.products'::regclass)")
    view = view.replace(
        "json_object_agg(l.name, COALESCE(t.name, main.name))",
        "json_object_agg(t.language, t.name) FILTER (WHERE t.name IS NOT NULL)",
    )
    example.execute(f"create or replace view languages.products as {view}")
    assert set(alarms(example, tmp_path)) == {"item-languages-across", "item-languages-within"}
