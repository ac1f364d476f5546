"""`clerk-feed design convert`: designs of Clerk.js 1 become designs of Clerk.js 2, or say where they don't."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from app.cli import main
from app.designs.convert import MARK, translate
from app.designs.examine import examine
from app.designs.facts import Facts
from app.designs.language import parse, render

DESIGNS = Path(__file__).parent / "designs"
OLD = sorted((DESIGNS / "clerkjs1").glob("*.html"))

ITEM = {
    "name": "Chair",
    "price": 80.5,
    "list_price": 100,
    "brand": "Fjord",
    "on_sale": True,
    "stock": 7,
    "color_names": ["red", "green"],
    "maker": {"name": "Arne", "places": ["Aarhus", "Oslo"]},
    "variants": [{"sku": "a1", "sizes": ["S", "M"]}, {"sku": "b2", "sizes": ["L"]}],
    "images": ["1.jpg", "2.jpg", "3.jpg"],
}


def convert(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["design", "convert", *map(str, arguments)])


def shown(old: str) -> str:
    """What a design of Clerk.js 1 shows once it is translated, between the frame's tags, white space squeezed."""
    translated = translate(old)
    assert translated.left == ()
    text = render(parse(translated.design), {"products": [ITEM]})
    inside = text.split('<li class="clerk-product">\n', 1)[1].rsplit("</li>", 1)[0]
    return " ".join(inside.split())


def test_there_are_designs_to_convert() -> None:
    assert len(OLD) >= 8


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_a_design_becomes_what_stands_beside_it(path: Path) -> None:
    expected = DESIGNS / "converted" / path.name
    left = expected.with_suffix(".left.txt").read_text(encoding="utf-8").splitlines()
    result = convert(path)
    assert result.stdout_bytes.decode() == expected.read_bytes().decode()
    assert result.stderr.splitlines()[: len(left)] == [f"{path}:{line}" for line in left]
    assert result.exit_code == (1 if left else 0)
    assert result.stdout.count(MARK) == len(left), "every place that is left has its comment"


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_what_is_left_is_no_design_that_passes(path: Path) -> None:
    translated = translate(path.read_bytes().decode())
    examined = examine(translated.design, Facts("products", tuple(ITEM)))
    refused = [found for found in examined.errors if "does not exist" not in found.text]
    assert bool(refused) == bool(translated.left)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{{name}} for {{money price}}", "Chair for 80.50"),
        ("{{#if on_sale}}sale{{else}}full{{/if}}", "sale"),
        ("{{#if missing}}a{{else if brand}}b{{else}}c{{/if}}", "b"),
        ("{{#is brand '!=' 'X'}}other{{else}}X{{/is}}", "other"),
        ("{{#is price '<' list_price}}cheap{{/is}}{{#is price '>' 80.5}}dear{{/is}}", "cheap"),
        ("{{#unless missing}}none{{/unless}}{{#unless brand}}a{{else}}b{{/unless}}", "noneb"),
        ("{{#each color_names}}{{@index}}{{this}}{{#unless @last}}, {{/unless}}{{/each}}", "0red, 1green"),
        ("{{#each color_names}}{{#if @index}}, {{/if}}{{.}}{{/each}}", "red, green"),
        (
            "{{#each variants as |v n|}}{{n}}{{v.sku}}{{#each sizes}}{{this}}{{../sku}}{{/each}} {{/each}}",
            "0a1Sa1Ma1 1b2Lb2",
        ),
        ("{{#each variants}}{{#each sizes}}{{../../name}}{{@root.brand}}{{/each}}{{/each}}", "ChairFjord" * 3),
        ("{{#with maker}}{{name}} {{../name}} {{#each places}}{{this}}{{/each}}{{/with}}", "Arne Chair AarhusOslo"),
        ("{{#with missing}}a{{else}}nobody{{/with}}", "nobody"),
        ("a {{~name~}} b", "aChairb"),
        ("{{images.length}} {{maker/name}} {{this.name}} {{./name}}", "3 Arne Chair Chair"),
        ("<i>{{!-- {{name}} --}}</i>", "<i></i>"),
    ],
)
def test_the_translation_shows_what_the_design_showed(old: str, new: str) -> None:
    assert shown(old) == new


@pytest.mark.parametrize(
    "old",
    [
        "{{{description}}}",
        "{{&description}}",
        "{{> partial}}",
        "{{helper name}}",
        "{{#helper name}}{{brand}}{{/helper}}",
        "{{#if (eq a b)}}x{{/if}}",
        "{{#if name includeZero=true}}x{{/if}}",
        "{{#is name}}x{{/is}}",
        "{{#is name 'in' brand}}x{{/is}}",
        "{{#is name '==' null}}x{{/is}}",
        "{{#is name '==' \"a'b\\\"c\"}}x{{/is}}",
        "{{#each color_names}}{{else}}none{{/each}}",
        "{{#each color_names}}{{@key}}{{/each}}",
        "{{#each a}}{{#if b}}{{../name}}{{/if}}{{/each}}",
        "{{#each a as |x i|}}{{#each x.b}}{{i}}{{/each}}{{/each}}",
        "{{../name}}",
        "{{this}}",
        "{{@index}}",
        "{{list-price}}",
        "{{images.[0]}}",
        "{{'name'}}",
        "{{money price 2}}",
        "{{^name}}x{{/name}}",
        "{{#name}}x{{/name}}",
        "\\{{name}}",
        "{{#if name}}",
        "{{/if}}",
        "{{else}}",
        "{{name",
        "{{name}}}",
        "{{}}",
        "{% if name %}",
        "<li></li>",
        "</ul>",
    ],
)
def test_what_no_rule_covers_stays_and_is_listed(old: str) -> None:
    translated = translate("first line\n" + old)
    assert [left.line for left in translated.left] == [2]
    assert "{% endcomment %}" + translated.left[0].written in translated.design
    assert MARK in translated.design


def test_inside_of_a_block_that_is_left_nothing_is_translated() -> None:
    translated = translate("{{#list colors}}{{name}}{{#if a}}{{b}}{{/if}}{{/list}}{{name}}")
    assert "{{#list colors}}{{name}}{{#if a}}{{b}}{{/if}}{{/list}}{{ product.name }}" in translated.design
    assert len(translated.left) == 1


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("{{#if a}}", "{{/if}}"),
        ("{{#each a}}", "{{/each}}"),
        ("{{#if a}}{{else if b}}" + "{{else if c}}" * 9, "{{/if}}"),
    ],
)
def test_blocks_without_measure_are_left(opening: str, closing: str) -> None:
    translated = translate(opening * 2000 + closing * 2000)
    assert [left.why for left in translated.left] == ["more than 25 blocks deep"]
    assert translate(opening * 2 + closing * 2).left == ()


def test_the_new_file_is_written_and_not_replaced_unasked(tmp_path: Path) -> None:
    old, new = tmp_path / "old.html", tmp_path / "new.html"
    old.write_bytes("<b>{{name}}</b>\r\nÆblegrød\r\n".encode())
    assert convert(old, "-o", new).exit_code == 0
    written = new.read_bytes().decode()
    assert "<b>{{ product.name }}</b>\r\nÆblegrød\r\n" in written
    assert "\n" not in written.replace("\r\n", "")
    new.write_text("mine")
    refused = convert(old, "-o", new)
    assert refused.exit_code == 1
    assert refused.stderr == f"Error: {new} exists already; nothing was written. Replace it with --force.\n"
    assert new.read_text() == "mine"
    assert convert(old, "-o", new, "--force").exit_code == 0
    assert new.read_bytes().decode() == written


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "old.html"
    old.write_bytes(b"<b>\xe6bler</b>")
    result = convert(old)
    assert (result.exit_code, result.stderr) == (1, f"Error: {old} is not in UTF-8: byte 3 does not fit\n")


def test_a_file_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    old = tmp_path / "old.html"
    old.write_text("{{name}}")
    result = convert(old, "-o", tmp_path / "nowhere" / "new.html")
    assert result.exit_code == 1
    assert result.stderr.endswith("nowhere/new.html can't be written: No such file or directory\n")


_PARTS = st.sampled_from(
    [
        *("{{", "}}", "{{{", "}}}", "{{else}}", "{{/if}}", "{{/each}}", "{{/is}}", "{{name}}", "{{../x}}"),
        *("{{#if a}}", "{{#each b}}", "{{#is a '==' 1}}", "{{~", "~}}", "{%", "%}", "{{!", "--}}"),
        *("\\", "'", '"', "<li>", "</li>", "a", " ", "\n"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_PARTS, max_size=20).map("".join))
def test_anything_becomes_a_design_that_parses_or_says_what_is_left(old: str) -> None:
    translated = translate(old)
    if not translated.left:
        parse(translated.design)
        for text in re.split(r"\{\{.*?\}\}", old, flags=re.DOTALL):
            assert "".join(text.split()) in "".join(translated.design.split()) or "\\" in old or "{{!" in old
