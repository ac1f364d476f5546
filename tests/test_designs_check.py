"""`clerk-feed design check`: a design is held against what the feed's real items have."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.cli import main
from app.designs.examine import examine, percent
from app.designs.facts import Facts
from tests.conftest import Database

DESIGNS = Path(__file__).parent / "designs" / "clerkjs2"

CATALOG = """
create schema dk;
create table dk.products as select
  g as id, 'Chair ' || g as name, 'A chair' as description, 10.5 + g as price,
  'https://images.shop.example/' || g || '.jpg' as image, 'https://shop.example/' || g as url,
  array[1, 2] as categories, timestamptz '2026-01-01' + g * interval '1 day' as created_at,
  case when g % 4 = 0 then 20 + g end as list_price,
  case when g % 2 = 0 then 'Fjord' end as brand,
  g % 3 as stock, g % 2 = 0 as on_sale, lpad(g::text, 6, '0') as code,
  case when g % 2 = 0 then array['red', 'green'] end as colors,
  json_build_object('name', 'Arne', 'city', case when g % 2 = 0 then 'Aarhus' end) as maker,
  json_build_array(json_build_object('sku', 'a' || g, 'sizes', json_build_array('S', 'M')),
    json_build_object('sku', 'b' || g)) as variants,
  case when g % 10 = 0 then '"few"' else '7' end::json as mixed,
  array['1.jpg'] as images,
  null::text as ghost
from generate_series(1, 200) as g;
alter table dk.products add primary key (id);
create view dk.categories as
select 1 as id, 'All' as name, 'https://shop.example/c' as url, '{}'::int[] as subcategories;
"""


@pytest.fixture(scope="module")
def config(create_database: Callable[[], Database], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feed.toml for a shop with 200 products."""
    database = create_database()
    database.execute(CATALOG)
    path = tmp_path_factory.mktemp("designs") / "feed.toml"
    path.write_text(f'[database]\ndsn = {json.dumps(database.dsn)}\n[stores.dk]\npublic_key = "key"\n')
    return path


def check(config: Path, design: str | Path, *options: str) -> Result:
    arguments = ["design", "check", str(design), "--config", str(config), "--store", "dk", *options]
    return CliRunner().invoke(main, arguments)


def section(result: Result, title: str) -> list[str]:
    """The findings under a title, without the file's name."""
    found: list[str] = []
    inside = False
    for line in result.stdout.splitlines():
        if line == title:
            inside = True
        elif not line.startswith("  "):
            inside = False
        elif inside:
            found.append(line.split(".html:", 1)[1])
    return found


def attributes(result: Result) -> dict[str, tuple[str, str, str]]:
    """Name to type, share and lines, as the table has them."""
    lines = result.stdout.split("\n\n")[1].splitlines()[1:]
    rows = [[cell for cell in line.strip().split("  ") if cell] for line in lines]
    return {row[0]: (row[1].strip(), row[2].strip(), row[3].strip()) for row in rows}


def test_the_guide_s_own_design_passes(config: Path) -> None:
    result = check(config, DESIGNS / "slider.html")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{DESIGNS / 'slider.html'} with products of dk: 200 items\n")
    assert attributes(result) == {
        "product.url": ("text", "100 %", "5"),
        "product.image": ("text", "100 %", "5"),
        "product.name": ("text", "100 %", "5, 6"),
        "product.price": ("number", "100 %", "7, 9, 10, 12"),
        "product.list_price": ("number", "25 %", "7, 8, 10"),
    }
    assert section(result, "errors") == section(result, "warnings") == []
    assert result.stdout.endswith("\nNo errors.\n")


def test_every_construct_of_the_language_passes(config: Path) -> None:
    result = check(config, DESIGNS / "everything.html")
    assert (result.exit_code, section(result, "errors")) == (0, [])
    found = attributes(result)
    assert found["product.maker.city"] == ("text", "50 %", "14")
    assert found["product.variants[].sku"] == ("text", "100 % of the elements of product.variants", "12")
    assert found["product.variants[].sizes"] == ("array", "50 % of the elements of product.variants", "12")
    assert section(result, "warnings") == [
        "6: product.brand is missing in 50 % of items, where this shows a hole",
        "14: product.maker.city is missing in 50 % of items, where this shows a hole",
        "15: product.colors is missing in 50 % of items, where this shows a hole",
    ]


def test_older_spellings_pass(config: Path) -> None:
    result = check(config, DESIGNS / "search.html")
    assert (result.exit_code, section(result, "errors"), section(result, "warnings")) == (0, [], [])


def test_everything_that_is_wrong_is_told(config: Path) -> None:
    result = check(config, DESIGNS / "wrong.html")
    assert result.exit_code == 1
    loop = "Clerk.js 2 has loop.index, from 0, with loop.length, loop.first and loop.last"
    assert section(result, "errors") == [
        "2: product.Name does not exist in the feed; did you mean name?",
        "2: product.colour does not exist in the feed; did you mean colors?",
        "2: product.maker.town does not exist in the feed",
        "2: product.variants[].skuu does not exist in the feed; did you mean sku?",
        "3: product.code is text, and arithmetic needs a number; cast it in the view: code::numeric",
        "3: product.code is text, and the filter money needs a number; cast it in the view: code::numeric",
        "3: product.colors is an array, and the filter round needs a number",
        "3: product.name is text, and arithmetic needs a number; cast it in the view: name::numeric",
        "4: Clerk.js 2 has no filter mony; did you mean money? (if your Clerk.js has it: --allow mony)",
        "4: Clerk.js 2 has no filter upcase (if your Clerk.js has it: --allow upcase)",
        "5: there is no loop.indx; did you mean index?",
        f"5: there is no variable forloop; {loop}",
        "5: there is no variable headlin; did you mean headline? (if your Clerk.js has it: --allow headlin)",
        "5: there is no variable name; an attribute belongs to its item: product.name",
        "6: product.name is text and no array: nothing to loop over",
        "7: the tag case is not in Clerk's guide (if your Clerk.js has it: --allow case)",
        "7: the tag unless is not in Clerk's guide (if your Clerk.js has it: --allow unless)",
        "8: product.price is a number: contains looks into text and arrays",
        "9: product.mixed is text in 10 % of its values, and arithmetic needs a number",
        "11: product.name is text: there is no first in it",
    ]
    zero = "product.stock is 0 in 33 % of its values, and Clerk's guide does not say whether that counts as true"
    assert section(result, "warnings") == [
        "3: product.colors is missing in 50 % of items, where this shows a hole",
        f"7: {zero}; write product.stock > 0",
        f"8: {zero}; write product.stock > 0",
        "8: product.stock is a number and is compared with this, text",
        "9: product.colors is an array; printed whole it reads badly: loop over it",
        "9: product.colors is missing in 50 % of items, where this shows a hole",
        "9: product.ghost: none of the items looked at has it",
        "9: product.list_price is missing in 75 % of items, where this shows a hole",
        "9: product.maker is an object; printed whole it reads badly: name what is in it",
        "10: an index in brackets is not in Clerk's guide",
        "10: the - that takes white space away is not in Clerk's guide",
        "10: the operator % is not in Clerk's guide",
        "10: the operator not is not in Clerk's guide",
        "10: the tag elsif is not in Clerk's guide",
    ]


def test_what_the_shop_s_clerk_has_can_be_allowed(config: Path) -> None:
    allowed = [word for name in ("upcase", "mony", "unless", "case", "headlin") for word in ("--allow", name)]
    result = check(config, DESIGNS / "wrong.html", *allowed)
    told = " ".join(section(result, "errors"))
    assert all(word not in told for word in ("upcase", "mony", "unless", "case", "headlin"))
    assert "product.colour" in told


@pytest.mark.parametrize(
    ("design", "error"),
    [
        ("leftover.html", "4: '#' where a variable, a number or text in quotes was expected"),
        ("broken.html", "4: unexpected tag 'endfor'"),
    ],
)
def test_what_is_no_liquid_is_an_error_with_its_line(config: Path, design: str, error: str) -> None:
    result = check(config, DESIGNS / design)
    assert (result.exit_code, section(result, "errors")) == (1, [error])


def test_what_convert_left_is_told_even_where_nothing_parses(config: Path) -> None:
    result = check(config, DESIGNS.parent / "converted" / "helpers.html")
    assert result.exit_code == 1
    assert "4: 'design convert' left something here: it prints HTML as it is; whether Clerk.js 2 escapes is not in" in (
        result.stdout
    )
    assert len(section(result, "errors")) >= 15


def test_a_sample_says_that_it_is_one(config: Path) -> None:
    result = check(config, DESIGNS / "slider.html", "--sample", "50")
    first = result.stdout.splitlines()[0]
    assert first.endswith(" items, drawn at random out of 200 rows")
    seen = int(first.split(": ")[1].split()[0])
    assert 0 < seen < 150
    whole = check(config, DESIGNS / "slider.html", "--sample", "0")
    assert whole.stdout.splitlines()[0].endswith(": 200 items")


def test_a_design_of_another_feed_is_told(config: Path) -> None:
    result = check(config, DESIGNS / "slider.html", "--feed", "categories")
    assert result.exit_code == 1
    assert section(result, "errors") == ["1: the design shows no categories: it never looks at categories"]


def test_categories_are_checked_too(config: Path, tmp_path: Path) -> None:
    design = tmp_path / "categories.html"
    design.write_text("{% for category in categories %}{{ category.name }}{{ category.title }}{{ url }}{% endfor %}")
    result = check(config, design, "--feed", "categories")
    assert section(result, "errors") == [
        "1: category.title does not exist in the feed",
        "1: there is no variable url; an attribute belongs to its item: category.url",
    ]


def test_items_that_clerk_does_not_get_are_not_counted(create_database: Callable[[], Database], tmp_path: Path) -> None:
    database = create_database()
    database.execute(CATALOG + "update dk.products set name = null where list_price is null")
    path = tmp_path / "feed.toml"
    path.write_text(f'[database]\ndsn = {json.dumps(database.dsn)}\n[stores.dk]\npublic_key = "key"\n')
    result = check(path, DESIGNS / "slider.html", "--sample", "0")
    assert result.stdout.splitlines()[0].endswith(": 50 items; 150 rows lack what Clerk requires")
    assert attributes(result)["product.list_price"] == ("number", "100 %", "7, 8, 10")


def test_a_rendered_feed_is_checked_by_what_it_is_rendered_from(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "feed.toml"
    path.write_text(config.read_text() + "[stores.dk.feeds.products]\nrendered = true\n")
    result = check(path, DESIGNS / "slider.html")
    assert result.exit_code == 0, result.output
    assert attributes(result)["product.list_price"] == ("number", "25 %", "7, 8, 10")


def test_an_empty_feed_shows_what_could_be_checked(create_database: Callable[[], Database], tmp_path: Path) -> None:
    database = create_database()
    database.execute(CATALOG + "truncate dk.products")
    path = tmp_path / "feed.toml"
    path.write_text(f'[database]\ndsn = {json.dumps(database.dsn)}\n[stores.dk]\npublic_key = "key"\n')
    result = check(path, DESIGNS / "wrong.html")
    assert "Without items only the names of attributes could be checked.\n" in result.stdout
    assert "2: product.colour does not exist in the feed; did you mean colors?" in section(result, "errors")


def test_a_feed_that_does_not_exist_says_what_to_create(config: Path) -> None:
    result = check(config, DESIGNS / "slider.html", "--feed", "pages")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        'Error: The database has no view or table "dk"."pages". Create view "dk"."pages" with'
    )


def test_a_store_that_does_not_exist_is_named(config: Path) -> None:
    result = CliRunner().invoke(
        main, ["design", "check", str(DESIGNS / "slider.html"), "--config", str(config), "--store", "se"]
    )
    assert (result.exit_code, result.stderr) == (1, f"Error: there is no store 'se' in {config}; the stores are dk\n")


def test_a_database_that_is_away_is_told_without_its_password(tmp_path: Path) -> None:
    path = tmp_path / "feed.toml"
    path.write_text('[database]\ndsn = "postgresql://u:secret@127.0.0.1:1/x"\n[stores.dk]\npublic_key = "key"\n')
    result = check(path, DESIGNS / "slider.html")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: the database could not be asked: ")
    assert "secret" not in result.output


def test_a_relation_that_fails_is_told(create_database: Callable[[], Database], tmp_path: Path) -> None:
    database = create_database()
    database.execute(
        CATALOG + "create view dk.pages as select 1 as id, 'a' as type, 'u' as url, 't' as title, (1 / 0)::text as text"
    )
    path = tmp_path / "feed.toml"
    path.write_text(f'[database]\ndsn = {json.dumps(database.dsn)}\n[stores.dk]\npublic_key = "key"\n')
    result = check(path, DESIGNS / "slider.html", "--feed", "pages")
    assert (result.exit_code, result.stderr) == (1, "Error: the database could not be asked: division by zero\n")


@pytest.mark.parametrize(
    ("share", "written"),
    [(0, "0 %"), (0.00001, "under 0.1 %"), (0.25, "25 %"), (0.3333, "33.3 %"), (0.99999, "over 99.9 %"), (1, "100 %")],
)
def test_a_share_is_never_rounded_to_all_or_nothing(share: float, written: str) -> None:
    assert percent(share) == written


@pytest.mark.parametrize(
    "body",
    [
        "{% if p.sale %}{{ p.sale }}{% endif %}",
        "{% if p.sale < p.price %}{{ p.sale | money }}{% endif %}",
        "{% if p.name and p.sale > 1 %}{{ p.sale }}{% endif %}",
        "{% if p.sale > 1 or p.sale == 0 %}{{ p.sale }}{% endif %}",
        "{% if p.sale %}{% if p.name %}{{ p.sale }}{% endif %}{% endif %}",
    ],
)
def test_a_hole_that_an_if_keeps_out_is_none(body: str) -> None:
    assert _warnings(body) == []


@pytest.mark.parametrize(
    "body",
    [
        "{{ p.sale }}",
        "{% if p.sale %}{% else %}{{ p.sale }}{% endif %}",
        "{% if p.sale or p.name %}{{ p.sale }}{% endif %}",
        "{% if p.sale != 1 %}{{ p.sale }}{% endif %}",
        "{% if p.sale %}x{% endif %}{{ p.sale }}",
        "{% for q in products %}{{ q.sale }}{% endfor %}",
    ],
)
def test_a_hole_that_no_if_keeps_out_is_one(body: str) -> None:
    assert len(_warnings(body)) == 1


def _warnings(body: str) -> list[str]:
    facts = Facts("products", ("name", "price", "sale"), total=2)
    facts.count([{"name": "A", "price": 2, "sale": 1}, {"name": "B", "price": 2}])
    examined = examine("{% for p in products %}" + body + "{% endfor %}", facts)
    assert examined.errors == []
    return [found.text for found in examined.warnings]


def test_what_a_name_stands_for_is_followed() -> None:
    facts = Facts("products", ("name",), total=1)
    facts.count([{"name": "A", "tags": [{"label": "x", "size": "9"}]}])
    source = (
        "{% for p in products %}{% assign tags = p.tags %}{% for t in tags %}{% assign s = t.size %}"
        "{{ s * 2 }}{{ t.lable }}{{ tags.first.label }}{{ products.first.nam }}{% endfor %}{% endfor %}"
    )
    assert [found.text for found in examine(source, facts).errors] == [
        "p.tags[].lable does not exist in the feed; did you mean label?",
        "p.tags[].size is text, and arithmetic needs a number; cast it in the view: size::numeric",
        "products[].nam does not exist in the feed; did you mean name?",
    ]


@pytest.mark.parametrize(("value", "write"), [(0, "p.x > 0"), ("", "p.x.length > 0"), ([], "p.x.length > 0")])
def test_a_condition_on_what_is_there_and_yet_nothing_is_worth_a_look(value: object, write: str) -> None:
    facts = Facts("products", ("x",), total=2)
    facts.count([{"x": value}, {"x": [1] if value == [] else 7 if value == 0 else "a"}])
    examined = examine("{% for p in products %}{% if p.x %}y{% endif %}{% endfor %}", facts)
    assert [found.text.endswith(f"write {write}") for found in examined.warnings] == [True]


@pytest.mark.parametrize("value", [False, {}, 1, "a", [1]])
def test_a_condition_on_anything_else_is_not(value: object) -> None:
    facts = Facts("products", ("x",), total=1)
    facts.count([{"x": value}])
    assert examine("{% for p in products %}{% if p.x %}y{% endif %}{% endfor %}", facts).warnings == []


def test_an_object_with_a_name_for_each_item_does_not_fill_the_memory() -> None:
    facts = Facts("products", ("prices",))
    facts.count({"prices": {f"store{number}-{name}": 1 for name in range(50)}} for number in range(1000))
    assert len(facts.items.members["prices"].members) == 500
