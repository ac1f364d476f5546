"""`clerk-feed end-walks`: an operator knows that no sync is under way."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clerk import FakeClerk, problem
from tests.conftest import Database, Running, Serve, base_config, eventually, ids

PAGE = "/dk/customers?limit=30&offset="


@pytest.fixture
def config(database: Database, clerk: FakeClerk, tmp_path: Path) -> Path:
    database.execute("create schema dk")
    database.execute("create table dk.customers (id int primary key, email text default 'e')")
    database.execute("insert into dk.customers select generate_series(101, 200)")
    path = tmp_path / "feed.toml"
    path.write_text(base_config(database.dsn, clerk.verify_url) + '[stores.dk]\npublic_key = "key-dk"\n')
    return path


@pytest.fixture
def service(config: Path, serve: Serve) -> Running:
    return serve(config.read_text())


def end_walks(config: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "app", "end-walks", "--config", str(config), *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def walked(service: Running) -> list[Any]:
    return ids([item for offset in range(0, 150, 30) for item in service.get(f"{PAGE}{offset}").lines])


def test_a_new_type_of_id_need_not_wait_for_the_old_one(config: Path, service: Running, database: Database) -> None:
    service.get(f"{PAGE}0")
    database.execute("alter table dk.customers alter id type text")
    eventually(lambda: service.get(f"{PAGE}30", method="HEAD").status == 500)
    service.get(f"{PAGE}0")
    assert (
        "clerk-feed end-walks --store dk --feed customers"
        in problem(service.get(f"{PAGE}30"), 500, "key-changed")["fix"]
    )
    done = end_walks(config, "--store", "dk", "--feed", "customers")
    assert done.returncode == 0, done.stderr
    assert "no sync of customers of dk is waited for any more" in done.stdout
    assert walked(service) == [str(id) for id in range(101, 201)]


def test_nor_does_a_sync_after_a_failover(config: Path, service: Running, database: Database) -> None:
    for _ in range(2):
        service.get(f"{PAGE}0")
    for table in ("bookmark", "asked"):
        database.execute(f"update clerk_feed.{table} set timeline = 'before'")
    service.get(f"{PAGE}0")
    for _ in range(2):
        said = problem(service.get(f"{PAGE}30"), 503, "walk-lost")
    assert "clerk-feed end-walks --store dk --feed customers" in said["fix"]
    assert "No sync was waited for." in end_walks(config, "--feed", "products").stdout
    problem(service.get(f"{PAGE}30"), 503, "walk-lost")
    assert end_walks(config).returncode == 0
    assert walked(service) == list(range(101, 201))


def test_a_sync_that_is_under_way_all_the_same_begins_anew(config: Path, service: Running, database: Database) -> None:
    for offset in (0, 30):
        service.get(f"{PAGE}{offset}")
    assert end_walks(config).returncode == 0
    database.execute("delete from dk.customers where id < 110")
    problem(service.get(f"{PAGE}60"), 503, "walk-lost")
    assert walked(service) == list(range(110, 201))


def test_what_it_says_where_there_is_nothing_to_end(config: Path, service: Running) -> None:
    assert "No sync was waited for." in end_walks(config).stdout
    unknown = end_walks(config, "--store", "se")
    assert unknown.returncode == 1
    assert "the stores are dk" in unknown.stderr
