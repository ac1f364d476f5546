"""The language of Clerk.js 2: what its designs show, and what is refused."""

import ast
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import app
from app.cli import main
from app.designs.examine import examine
from app.designs.facts import Facts
from app.designs.language import DesignError, parse, render

VALUES: dict[str, object] = {
    "headline": "New & old",
    "products": [
        {"name": "Chair", "price": 80, "list_price": 100, "colors": ["red", "green"], "maker": {"name": "Arne"}},
        {"name": "Table", "price": 99.5, "text_price": "12.5", "on_sale": False, "none": []},
    ],
}


def shown(source: str, *allowed: str) -> str:
    return render(parse(source), VALUES, allowed)


def each(body: str) -> list[str]:
    """What a body shows for the chair and for the table."""
    return shown("{% for product in products %}" + body + "|{% endfor %}").split("|")[:-1]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{{ product.name }}", ["Chair", "Table"]),
        ("{{ product.maker.name }}", ["Arne", ""]),
        ("{{ product.price | money }}", ["80.00", "99.50"]),
        ("{{ 100 - product.price / product.list_price * 100 | round }}", ["20", "NaN"]),
        ("{{ (product.price + 1) * 2 }}", ["162", "201"]),
        ("{{ product.price - 1 - 1 }}", ["78", "97.5"]),
        ("{{ -product.price }}", ["-80", "-99.5"]),
        ("{{ product.price / 0 }}", ["Infinity", "Infinity"]),
        ("{{ product.price % 7 }}", ["3", "1.5"]),
        ("{{ product.name + '!' }}", ["Chair!", "Table!"]),
        ("{{ 2.5 | round }}{{ -2.5 | round }}{{ 1.25 | round: 1 }}", ["3-21.3", "3-21.3"]),
        ("{{ 1234567.891 | money }}", ["1,234,567.89"] * 2),
        ("{% if product.price < product.list_price %}less{% else %}more{% endif %}", ["less", "more"]),
        ("{% if product.price >= 99.5 and product.name == 'Table' %}x{% endif %}", ["", "x"]),
        ("{% if product.maker or product.on_sale == false %}x{% endif %}", ["x", "x"]),
        ("{% if product.maker && product.price < 90 || false %}x{% endif %}", ["x", ""]),
        ("{% if product.colors contains 'red' %}red{% endif %}", ["red", ""]),
        ("{% if product.name contains 'abl' %}x{% endif %}", ["", "x"]),
        ("{% if product.name != 'Chair' %}x{% endif %}", ["", "x"]),
        ("{% if not product.maker %}x{% endif %}{% if !product.maker %}y{% endif %}", ["", "xy"]),
        ("{% #if product.maker %}old{% /if %}", ["old", ""]),
        ("{% if product.x %}a{% elsif product.maker %}b{% else %}c{% endif %}", ["b", "c"]),
        ("{% unless product.maker %}x{% endunless %}", ["", "x"]),
        (
            "{{ loop.index }}/{{ loop.length }}{% if loop.first %}f{% endif %}{% if loop.last %}l{% endif %}",
            ["0/2f", "1/2l"],
        ),
        ("{% for c in product.colors %}{{ c }}{{ loop.index }}{% endfor %}", ["red0green1", ""]),
        ("{{ product.colors.length }}{{ product.colors.first }}{{ product.colors.last }}", ["2redgreen", ""]),
        ("{{ product.colors[1] }}{{ product['name'] }}", ["greenChair", "Table"]),
        ("{{ product.colors }}{{ product.maker }}", ["red,green[object Object]", ""]),
        ("{% assign twice = product.price * 2 %}{{ twice }}", ["160", "199"]),
        ("{% comment %}{{ {% if %} {% comment %}x{% endcomment %} y{% endcomment %}z", ["z", "z"]),
        ("{{ product.name | highlight 'A' }}", ["Ch<b>a</b>ir", "T<b>a</b>ble"]),
        ("{{ product.name | highlight query 'bold' true }}", ["Chair", "Table"]),
        ("  {{- product.name -}}  .", ["Chair.", "Table."]),
        ("{{ product.on_sale }}", ["", "false"]),
    ],
)
def test_a_design_shows(body: str, expected: list[str]) -> None:
    assert each(body) == expected


def test_html_in_values_is_left_alone_as_liquid_does() -> None:
    assert shown("<h2>{{ headline }}</h2>") == "<h2>New & old</h2>"


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        ("\n\n{{ product.name }", 3, "{{ without }}"),
        ("\n{% if a", 2, "{% without %}"),
        ("{% if a %}", 1, "if without endif"),
        ("a\n{% endif %}", 2, "unexpected tag 'endif'"),
        ("{% for a in b %}", 1, "for without endfor"),
        ("{% for a b %}{% endfor %}", 1, "'b' where in was expected"),
        ("{% for a in b %}{% else %}{% endfor %}", 1, "else in a for is not in Clerk's guide"),
        ("{% if a %}{% else %}{% else %}{% endif %}", 1, "a second else in one if"),
        ("{% if a %}{% else if b %}{% endif %}", 1, "else takes no condition: 'if b'"),
        ("{% if %}{% endif %}", 1, "if needs an expression"),
        ("{% comment %} x", 1, "{% comment %} without {% endcomment %}"),
        ("{{ }}", 1, "{{ }} is empty"),
        ("{{ a b }}", 1, "'b' where the end of the tag was expected"),
        ("{{#if a}}", 1, "'#' where a variable, a number or text in quotes was expected"),
        ("{{{ a }}}", 1, "'{' where a variable, a number or text in quotes was expected"),
        ("{{ a | }}", 1, "the end of the tag where a name was expected"),
        ("{{ (a }}", 1, "the end of the tag where ) was expected"),
        ("{{ a. }}", 1, "the end of the tag where a name was expected"),
        ("{{ 'a }}", 1, '"\'" where a variable, a number or text in quotes was expected'),
        ("{% assign 1 = 2 %}", 1, "'1' where a name was expected"),
        ("{% frobnicate %}", 1, "unexpected tag 'frobnicate'"),
        ("{% %}", 1, "a tag without a name"),
        ("{{ " + "(" * 100 + "a" + ")" * 100 + " }}", 1, "more than 40 parentheses deep"),
        ("{{ 1" + " + 1" * 1000 + " }}", 1, "more than 300 words and signs in one tag"),
        ("{% if a %}" * 40 + "{% endif %}" * 40, 1, "block nesting limit reached"),
    ],
)
def test_what_is_no_design_is_refused_with_its_line(source: str, line: int, message: str) -> None:
    with pytest.raises(DesignError) as refused:
        parse(source)
    assert (refused.value.line, str(refused.value)) == (line, message)


def test_a_filter_that_clerk_does_not_have_is_no_filter_unless_allowed() -> None:
    with pytest.raises(DesignError, match="unknown filter 'upcase'"):
        shown("{{ headline | upcase }}")
    assert shown("{{ headline | upcase }}", "upcase") == "NEW & OLD"
    assert shown("{{ headline | our_own: 1 }}", "our_own") == "New & old"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in p %}{% for b in p %}{% for c in p %}{{ a }}{% endfor %}{% endfor %}{% endfor %}",
        "{% assign x = 'xxxxxxxxxx' %}{% for a in p %}{% assign x = x + x %}{% endfor %}",
        "{% for a in p %}{% for b in p %}{{ long }}{% endfor %}{% endfor %}",
    ],
)
def test_a_design_without_end_is_stopped(source: str) -> None:
    with pytest.raises(DesignError, match="limit reached"):
        render(parse(source), {"p": [1] * 60, "long": "x" * 10_000})


def test_without_the_extra_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("app.cli.design.find_spec", lambda name: None)
    old = tmp_path / "old.html"
    old.write_text("{{name}}")
    result = CliRunner().invoke(main, ["design", "convert", str(old)])
    assert result.exit_code == 1
    assert (
        result.stderr
        == "Error: designs need python-liquid, which is not installed: pip install 'clerk-feed[designs]'\n"
    )


def test_nothing_else_imports_this_room() -> None:
    """Its command does, inside of functions: what is imported with a module must be there without the extra."""
    for path in sorted(Path(app.__file__).parent.rglob("*.py")):
        if path.parent.name == "designs":
            continue
        for node in ast.parse(path.read_text()).body:
            imported = node.module if isinstance(node, ast.ImportFrom) else None
            assert not (imported or "").startswith(("app.designs", "liquid")), path


_PIECES = st.sampled_from(
    [
        *("{{", "}}", "{%", "%}", "-", "if", "else", "elsif", "endif", "for", "in", "endfor", "assign", "=", "comment"),
        *("endcomment", "unless", "endunless", "case", "when", "endcase", "capture", "include", "cycle", "liquid"),
        *(
            "products",
            "product",
            ".",
            "price",
            "[",
            "]",
            "0",
            "1.5",
            "'a'",
            '"',
            "|",
            "money",
            "round",
            ":",
            ",",
            "(",
            ")",
        ),
        *("+", "*", "/", "%", "<", ">=", "!=", "and", "or", "not", "&&", "#", "/if", "loop", "\n", " ", "ü", "{", "}"),
    ]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(_PIECES, max_size=25).map(" ".join))
def test_anything_is_shown_or_refused_with_a_line(source: str) -> None:
    line = 1
    try:
        render(parse(source), VALUES)
    except DesignError as refused:
        line = refused.line
    assert 1 <= line <= source.count("\n") + 1
    facts = Facts("products", ("name",))
    facts.count([{"name": "Chair", "price": 1, "tags": [{"a": 1}]}])
    examine(source, facts)
