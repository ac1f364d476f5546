"""Importers that nobody led to where they ask: an end they come to is no end of their sync.

Every feed here had a good sync before, whose bookmarks, and whose end, lie where they come by.
"""

import pytest

from tests.clerk import problem
from tests.conftest import Shop, ids


def synced(shop: Shop, limit: int, count: int, more: str = "", *, long_ago: bool = True) -> None:
    """A sync of pages of this length; the first of them fills the feed."""
    if not shop.database.value(f"select exists (select from {shop.name}.products)"):
        shop.execute(
            "insert into {s}.products (id, modified_at) select g, now() from generate_series(1, $1::int) g", count
        )
    for offset in range(0, count + limit, limit):
        assert shop.get(f"products?limit={limit}&offset={offset}{more}").status == 200
    if long_ago:
        shop.let_the_sync_be_over()


def refused_at_its_end(shop: Shop, query: str, step: int, start: int = 0) -> list[int]:
    """The ids that arrive at who steps so far from page to page, until it is told that this is no end."""
    found: list[int] = []
    for offset in range(start, 10_000, step):
        answer = shop.get(f"products?{query}offset={offset}")
        if answer.status != 200:
            problem(answer, 409, "offset-lost")
            return found
        assert answer.body, f"a clean end after {len(set(found))} items"
        found += ids(answer.lines)
    raise AssertionError("no end")


@pytest.mark.parametrize("count", [200, 230])
def test_a_url_without_limit_while_the_importer_steps_farther(catalog: Shop, count: int) -> None:
    synced(catalog, 50, count)
    assert len(refused_at_its_end(catalog, "", 50)) < count


def test_a_page_size_that_was_raised_while_the_url_has_no_limit(catalog: Shop) -> None:
    """The sync before had pages of 25 as well, so that bookmarks of its length lie wherever the importer comes by."""
    synced(catalog, 25, 300)
    refused_at_its_end(catalog, "", 50)


@pytest.mark.parametrize("syncs", [1, 2, 3])
@pytest.mark.parametrize("count", [290, 300])
def test_a_page_size_that_was_raised_right_after_syncs(catalog: Shop, count: int, syncs: int) -> None:
    """Their empty answers may still be asked for again, but not by whoever comes by."""
    for _ in range(syncs):
        synced(catalog, 25, count, long_ago=False)
    refused_at_its_end(catalog, "", 50)


def test_a_page_size_that_was_raised_twice(catalog: Shop) -> None:
    synced(catalog, 50, 300)
    synced(catalog, 25, 300)
    refused_at_its_end(catalog, "limit=25&", 50)


def test_a_url_changed_in_mid_walk(catalog: Shop) -> None:
    synced(catalog, 50, 300)
    for offset in (0, 50):
        assert len(catalog.items(f"products?limit=50&offset={offset}")) == 50
    refused_at_its_end(catalog, "limit=25&", 50, start=100)


def test_a_delta_of_too_short_pages(catalog: Shop) -> None:
    synced(catalog, 50, 300, "&modified_after=2")
    refused_at_its_end(catalog, "limit=25&modified_after=2&", 50)


@pytest.mark.parametrize("syncs", [1, 2, 3])
def test_a_page_that_failed_is_passed_over(catalog: Shop, syncs: int) -> None:
    """From the page behind it on, each page is in turn again."""
    for _ in range(syncs):
        synced(catalog, 50, 300)
    for offset in (0, 50):
        assert catalog.get(f"products?limit=50&offset={offset}").status == 200
    assert len(refused_at_its_end(catalog, "limit=50&", 50, start=150)) == 150


def test_an_end_of_long_ago_is_nobodys(catalog: Shop) -> None:
    """A sync stopped at its short last page; hours later the pages before that one are served by another database."""
    catalog.execute("insert into {s}.products (id) select generate_series(1, 230)")
    for offset in range(0, 250, 50):
        assert catalog.items(f"products?limit=50&offset={offset}")
    for moment in (
        "bookmark set written = written",
        "walk set last_page = last_page",
        "asked set asked = asked",
    ):
        catalog.execute(f"update clerk_feed.{moment} - interval '3 hours' where store = '{{s}}'")
    catalog.execute("insert into {s}.products (id) select generate_series(-29, 0)")
    problem(catalog.get("products?limit=50&offset=200"), 409, "offset-lost")


def test_who_is_refused_begins_anew_and_comes_to_the_end(catalog: Shop) -> None:
    synced(catalog, 50, 200)
    refused_at_its_end(catalog, "", 50)
    assert len(catalog.walk("products", 50)) == 200


def test_who_retries_or_changes_its_limit_is_led_all_the_same(catalog: Shop) -> None:
    synced(catalog, 50, 200)
    found: list[int] = []
    for limit, offset in ((50, 0), (50, 0), (50, 50), (25, 100), (25, 100), (25, 125), (50, 150), (50, 150), (50, 200)):
        answer = catalog.get(f"products?limit={limit}&offset={offset}")
        assert answer.status == 200
        found += ids(answer.lines)
    assert set(found) == set(range(1, 201))


def test_several_importers_are_led_by_their_own_pages(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 200)")
    found: list[list[int]] = [[], []]
    for offset in range(0, 250, 50):
        for number in (0, 1):
            answer = catalog.get(f"products?limit=50&offset={offset}")
            assert answer.status == 200
            found[number] += ids(answer.lines)
    assert [set(one) for one in found] == [set(range(1, 201))] * 2


def test_who_retries_while_others_look_is_led_all_the_same(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 230)")
    found: list[int] = []
    for offset in range(0, 300, 50):
        for _ in range(2 if offset < 250 else 1):
            answer = catalog.get(f"products?limit=50&offset={offset}")
            assert answer.status == 200
            assert catalog.get("products?limit=1&offset=0").status == 200
            found += ids(answer.lines)
    assert set(found) == set(range(1, 231))


def test_deltas_side_by_side_are_led_behind_their_short_pages(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id, modified_at) select g, now() from generate_series(1, 70) as g")
    for offset in range(0, 150, 50):
        for _ in range(2):
            assert catalog.get(f"products?limit=50&offset={offset}&modified_after=2").status == 200


@pytest.mark.parametrize("syncs", [1, 2])
@pytest.mark.parametrize("count", [290, 300])
def test_a_page_is_passed_over_right_after_syncs(catalog: Shop, syncs: int, count: int) -> None:
    for _ in range(syncs):
        synced(catalog, 50, count, long_ago=False)
    for offset in (0, 50):
        assert catalog.get(f"products?limit=50&offset={offset}").status == 200
    refused_at_its_end(catalog, "limit=50&", 50, start=150)


@pytest.mark.parametrize("count", [200, 300])
def test_a_page_size_that_was_raised_after_a_sync_that_lost_its_last_full_page(catalog: Shop, count: int) -> None:
    synced(catalog, 25, count, long_ago=False)
    for offset in (*range(0, count, 25), count - 25, count):
        assert catalog.get(f"products?limit=25&offset={offset}").status == 200
    catalog.let_the_sync_be_over()
    refused_at_its_end(catalog, "", 50)


def test_an_end_that_holds_items_for_who_was_not_led_there_leads_nobody(catalog: Shop) -> None:
    synced(catalog, 50, 300, long_ago=False)
    catalog.execute("insert into {s}.products (id) select generate_series(301, 390)")
    for offset in (0, 50, 150, 200, 250, 300):
        assert catalog.get(f"products?limit=50&offset={offset}").status == 200
    refused_at_its_end(catalog, "limit=50&", 50, start=300)


def test_what_a_change_of_the_limit_has_left_behind_leads_nobody(catalog: Shop) -> None:
    """The page at 50 is lost, and asked for again with another limit: nobody comes to 100."""
    catalog.execute("insert into {s}.products (id) select generate_series(1, 300)")
    for limit, offset in ((50, 0), (50, 50), *((30, offset) for offset in range(50, 321, 30))):
        assert catalog.get(f"products?limit={limit}&offset={offset}").status == 200
    catalog.let_the_sync_be_over()
    assert catalog.get("products?limit=50&offset=0").status == 200
    refused_at_its_end(catalog, "limit=50&", 50, start=100)
