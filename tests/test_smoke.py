from tests.conftest import Shop


def test_a_walk_delivers_every_item_once(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 2500)")
    items = catalog.walk("products")
    assert [item["id"] for item in items] == list(range(1, 2501))
