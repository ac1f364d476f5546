"""What a design uses, held against what the feed's items have.

Every attribute is followed from the loop that names its item to the places that print, compare or count it. An error
is what shows a hole or nonsense in the shop; a warning is what does so for some items, or what Clerk's guide does not
say.
"""

from collections.abc import Collection, Iterator
from difflib import get_close_matches

import msgspec
from liquid import RenderContext
from liquid.ast import ConditionalBlockNode, Node
from liquid.builtin.expressions import FilteredExpression
from liquid.builtin.output import OutputNode
from liquid.builtin.tags.assign_tag import AssignNode
from liquid.builtin.tags.comment_tag import CommentNode
from liquid.builtin.tags.if_tag import IfNode
from liquid.builtin.tags.unless_tag import UnlessNode
from liquid.expression import Expression

from app.designs.convert import MARK
from app.designs.expressions import ARITHMETIC, Binary, Literal, Lookup, Truth, Unary
from app.designs.facts import Fact, Facts, Kind, kind_of
from app.designs.language import CLERKS_FILTERS, FILTERS, TAGS, Design, DesignError, ForNode, parse

LISTS = ("products", "categories", "pages")
"""The feeds that a design can show."""

GLOBALS: dict[str, Kind | None] = {
    "headline": "text",
    "query": "text",
    "hits": "number",
    "suggestions": "array",
    "facets": "array",
    "content": "object",
}
"""What Clerk.js 2 gives a design beside the items: `headline` by its guide, the others by its standard designs."""

_LENGTHS = ("length", "size")
_LOOP: dict[str, Kind] = {"index": "number", "length": "number", "first": "bool", "last": "bool"}
_COUNTING = {"money": "money", "round": "round"}


class Finding(msgspec.Struct, frozen=True, order=True):
    """Something wrong, or worth a look, on a line."""

    line: int
    text: str


class Used(msgspec.Struct):
    """An attribute that a design uses, and what the items have of it."""

    name: str
    """product.brand.name; the elements of an array have brackets: colors[]."""
    lines: list[int]
    kind: str
    """Its types in the items; empty where none has it."""
    share: float
    """From 0 to 1: of the items, or of the elements of the array that it belongs to."""
    of: str
    """items, or what array it is a share of."""
    exists: bool
    """Whether the feed can have it at all."""


class Examination(msgspec.Struct, frozen=True):
    """What was found in a design."""

    used: list[Used]
    errors: list[Finding]
    warnings: list[Finding]


class _Value(msgspec.Struct, frozen=True):
    """What is known of an expression's value."""

    name: str = ""
    """As a person would write it: product.price. Empty where it is no attribute."""
    kinds: frozenset[Kind] = frozenset()
    """What it may be; empty where nothing is known."""
    fact: Fact | None = None
    share: float = 1.0
    of: str = "items"


_UNKNOWN = _Value()


def examine(source: str, facts: Facts, allowed: Collection[str] = ()) -> Examination:
    """Examine a design against the items of one feed.

    `allowed` are filters, tags and variables that the shop's Clerk.js has although Clerk's guide does not name them.
    """
    try:
        design = parse(source)
    except DesignError as error:
        return Examination([], [Finding(error.line, str(error)), *_left_to_a_person(source)], [])
    examiner = _Examiner(design, facts, allowed)
    examiner.run()
    return Examination(
        sorted(examiner.used.values(), key=lambda used: used.lines[0]),
        sorted(set(examiner.errors)),
        sorted(set(examiner.warnings)),
    )


def attributes_used(design: Design, feed: str) -> list[str]:
    """The attributes of the feed's items that a design uses itself, whatever items have."""
    examiner = _Examiner(design, Facts(feed, ()), ())
    examiner.run()
    names = (used.name.split(".")[1].removesuffix("[]") for used in examiner.used.values() if "." in used.name)
    return list(dict.fromkeys(names))


def _left_to_a_person(source: str) -> Iterator[Finding]:
    """The comments of `design convert`, which stand also where a design can't be parsed."""
    for number, line in enumerate(source.split("\n"), 1):
        if MARK in line:
            yield Finding(number, _left(line.split(MARK, 1)[1].split("{%", 1)[0]))


def _left(why: str) -> str:
    return f"'design convert' left something here: {why.strip()}"


class _Examiner:
    def __init__(self, design: Design, facts: Facts, allowed: Collection[str]) -> None:
        self._design = design
        self._facts = facts
        self._allowed = frozenset(allowed)
        self._context = RenderContext(design.template)
        self._names: dict[str, _Value] = {}
        self._guarded: frozenset[str] = frozenset()
        self._assigned: set[str] = set()
        self.used: dict[str, Used] = {}
        self.errors: list[Finding] = []
        self.warnings: list[Finding] = []

    def run(self) -> None:
        self._nodes(self._design.template.nodes)
        if self._facts.feed not in self._design.globals():
            self.errors.append(
                Finding(1, f"the design shows no {self._facts.feed}: it never looks at {self._facts.feed}")
            )
        self._vocabulary()

    def _vocabulary(self) -> None:
        """What Clerk's guide does not name: tags, filters, variables and spellings."""
        for name, lines in self._design.tags().items():
            if name not in TAGS | self._allowed:
                self._at(self.errors, lines, f"the tag {name} is not in Clerk's guide{_or_allow(name)}")
        for name, lines in self._design.filters().items():
            if name not in FILTERS | self._allowed:
                near = _nearest(name, FILTERS)
                self._at(self.errors, lines, f"Clerk.js 2 has no filter {name}{near}{_or_allow(name)}")
        for name, lines in self._design.globals().items():
            if name in GLOBALS or name in LISTS or name in self._allowed:
                continue
            self._at(self.errors, lines, f"there is no variable {name}{self._meant(name)}")
        for note in self._design.notes:
            if note.what.removeprefix("the tag ") not in self._allowed:
                self.warnings.append(Finding(note.line, f"{note.what} is not in Clerk's guide"))

    def _meant(self, name: str) -> str:
        if name == "forloop":
            return "; Clerk.js 2 has loop.index, from 0, with loop.length, loop.first and loop.last"
        item = self._facts.feed.removesuffix("s").replace("categorie", "category")
        if name in self._facts.attributes:
            return f"; an attribute belongs to its item: {item}.{name}"
        return _nearest(name, [*GLOBALS, *LISTS, *self._assigned, item]) + _or_allow(name)

    def _at(self, findings: list[Finding], lines: list[int], text: str) -> None:
        findings += [Finding(line, text) for line in lines]

    def _line(self, expression: Expression) -> int:
        return self._design.line(expression.token.start_index)

    def _error(self, expression: Expression, text: str) -> None:
        self.errors.append(Finding(self._line(expression), text))

    def _warning(self, expression: Expression, text: str) -> None:
        self.warnings.append(Finding(self._line(expression), text))

    # Nodes, in the order in which they are rendered.

    def _nodes(self, nodes: Collection[Node]) -> None:
        for node in nodes:
            self._node(node)

    def _node(self, node: Node) -> None:
        match node:
            case OutputNode():
                self._print(node.expression)
            case AssignNode():
                self._names[str(node.name)] = self._value(node.expression, guarded=True)
                self._assigned.add(str(node.name))
            case ForNode():
                self._loop(node)
            case IfNode():
                self._branch(node.condition, node.consequence)
                self._nodes(node.alternatives)
                self._nodes([node.default] if node.default else [])
            case ConditionalBlockNode():
                self._branch(node.expression, node.block)
            case UnlessNode():
                self._test(node.condition)
                self._children(node)
            case CommentNode():
                if (node.text or "").lstrip().startswith(MARK):
                    text = _left((node.text or "").split(MARK, 1)[1])
                    self.errors.append(Finding(self._design.line(node.token.start_index), text))
            case _:
                for expression in node.expressions():
                    self._value(expression)
                self._children(node)

    def _children(self, node: Node) -> None:
        self._nodes(list(node.children(self._context, include_partials=False)))

    def _branch(self, condition: Expression, block: Node) -> None:
        self._test(condition)
        before = self._guarded
        self._guarded = before | _guards(condition)
        self._children(block)
        self._guarded = before

    def _loop(self, node: ForNode) -> None:
        over = self._value(node.iterable, guarded=True)
        if over.kinds and "array" not in over.kinds:
            self._error(node.iterable, f"{over.name or 'this'} is {_kinds(over)} and no array: nothing to loop over")
        if isinstance(node.iterable, Lookup) and node.iterable.path == [self._facts.feed]:
            # Items may lack whatever they lack: a share of them is a share of all.
            element = _Value(node.name.value, frozenset({"object"}), self._facts.items)
        elif over.fact is not None and over.fact.elements is not None:
            inner = over.fact.elements
            element = _Value(f"{over.name}[]", frozenset(inner.kinds), inner)
        else:
            element = _UNKNOWN
        shadowed = {name: self._names.get(name) for name in (node.name.value, "loop")}
        self._names[node.name.value] = element
        self._names["loop"] = _Value("loop", frozenset({"object"}))
        self._children(node)
        for name, value in shadowed.items():
            if value is None:
                del self._names[name]
            else:
                self._names[name] = value

    # Expressions.

    def _print(self, expression: Expression) -> None:
        value = self._value(expression)
        if value.name and value.kinds & {"array", "object"}:
            kind = "array" if "array" in value.kinds else "object"
            cure = "loop over it" if kind == "array" else "name what is in it"
            self._warning(expression, f"{value.name} is an {kind}; printed whole it reads badly: {cure}")

    def _test(self, condition: Expression) -> None:
        inside = condition.condition if isinstance(condition, Truth) else condition
        if isinstance(inside, Binary) and inside.operator in ("and", "or"):
            self._test(inside.left)
            self._test(inside.right)
            return
        if isinstance(inside, Unary) and inside.operator == "not":
            self._test(inside.operand)
            return
        value = self._value(inside, guarded=True)
        if isinstance(inside, Lookup) and value.fact is not None and value.fact.blank:
            empty = {"number": "0", "text": "empty text", "array": "an empty array"}
            kind = next(kind for kind in empty if kind in value.kinds)
            clear = f"{inside} > 0" if kind == "number" else f"{inside}.length > 0"
            some = percent(value.fact.blank / value.fact.seen)
            self._warning(
                inside,
                f"{value.name} is {empty[kind]} in {some} of its values, and Clerk's guide does not say whether that"
                f" counts as true; write {clear}",
            )

    def _value(self, expression: Expression, *, guarded: bool = False) -> _Value:
        match expression:
            case Lookup():
                return self._lookup(expression, guarded=guarded)
            case Literal():
                known = expression.value is not None
                return _Value(kinds=frozenset({kind_of(expression.value)}) if known else frozenset())
            case Truth():
                return self._value(expression.condition, guarded=guarded)
            case Unary():
                value = self._value(expression.operand, guarded=guarded)
                if expression.operator == "not":
                    return _Value(kinds=frozenset({"bool"}))
                self._number(expression, value)
                return _Value(kinds=frozenset({"number"}))
            case Binary():
                return self._binary(expression, guarded=guarded)
            case FilteredExpression():
                return self._filtered(expression, guarded=guarded)
        for child in expression.children():
            self._value(child)
        return _UNKNOWN

    def _binary(self, expression: Binary, *, guarded: bool) -> _Value:
        operator = expression.operator
        tests = operator not in ARITHMETIC
        left = self._value(expression.left, guarded=guarded or tests)
        right = self._value(expression.right, guarded=guarded or tests)
        if not tests:
            if operator == "+" and not (left.name or right.name) and "text" in left.kinds | right.kinds:
                return _Value(kinds=frozenset({"text"}))
            self._number(expression, left)
            self._number(expression, right)
            return _Value(kinds=frozenset({"number"}))
        if operator == "contains":
            if left.kinds and not left.kinds & {"text", "array"}:
                self._error(expression, f"{left.name or 'this'} is {_kinds(left)}: contains looks into text and arrays")
        elif operator not in ("and", "or") and left.kinds and right.kinds and not left.kinds & right.kinds:
            self._warning(
                expression, f"{_called(left)} is {_kinds(left)} and is compared with {_called(right)}, {_kinds(right)}"
            )
        return _Value(kinds=frozenset({"bool"}))

    def _filtered(self, expression: FilteredExpression, *, guarded: bool) -> _Value:
        value = self._value(expression.left, guarded=guarded)
        for applied in expression.filters or []:
            for argument in applied.children():
                self._value(argument)
            if applied.name in _COUNTING:
                self._number(expression.left, value, f"the filter {applied.name}")
                value = _Value(kinds=frozenset({"text" if applied.name == "money" else "number"}))
            elif applied.name in CLERKS_FILTERS:
                value = _Value(kinds=frozenset({"text"}))
            else:
                value = _UNKNOWN
        return value

    def _number(self, where: Expression, value: _Value, what: str = "arithmetic") -> None:
        wrong = value.kinds - {"number"}
        if not wrong:
            return
        kind = _kinds(_Value(kinds=frozenset(wrong)))
        part = ""
        if value.fact is not None and "number" in value.kinds:
            count = sum(value.fact.kinds.get(name, 0) for name in wrong)
            part = f" in {percent(count / value.fact.seen)} of its values"
        cure = (
            f"; cast it in the view: {value.name.split('.')[-1]}::numeric"
            if value.name and value.kinds == {"text"}
            else ""
        )
        self._error(where, f"{_called(value)} is {kind}{part}, and {what} needs a number{cure}")

    def _lookup(self, expression: Lookup, *, guarded: bool) -> _Value:
        parts = list(expression.path)
        root = str(parts.pop(0))
        if root in self._names:
            value = self._names[root]
            if not (parts or guarded or {root, value.name} & self._guarded):
                self._hole(expression, value)
        elif root in LISTS:
            elements = self._facts.items if root == self._facts.feed else None
            value = _Value(root, frozenset({"array"}), Fact(elements=elements) if elements else None)
        else:
            kind = GLOBALS.get(root)
            value = _Value(root if kind else "", frozenset({kind} if kind else ()))
        for part in parts:
            if isinstance(part, Lookup):
                self._lookup(part, guarded=guarded)
                part = 0  # noqa: PLW2901  (an index that is only known when it is rendered)
            value = self._member(expression, value, part, guarded=guarded or str(expression) in self._guarded)
        return value

    def _member(self, expression: Lookup, value: _Value, part: object, *, guarded: bool) -> _Value:
        if value.name == "loop":
            if part not in _LOOP:
                near = _nearest(str(part), _LOOP)
                self._error(expression, f"there is no loop.{part}{near}")
                return _UNKNOWN
            return _Value(kinds=frozenset({_LOOP[str(part)]}))
        if part in _LENGTHS and value.kinds & {"array", "text"} and not (value.fact and part in value.fact.members):
            return _Value(kinds=frozenset({"number"}))
        fact = value.fact
        if fact is None:
            return _UNKNOWN
        if isinstance(part, int) or (part in ("first", "last") and "array" in value.kinds):
            inner = fact.elements
            return _Value(f"{value.name}[]", frozenset(inner.kinds), inner) if inner else _UNKNOWN
        if fact is self._facts.items or fact.members or "object" in value.kinds:
            return self._attribute(expression, value, fact, str(part), guarded=guarded)
        if value.kinds:
            self._error(expression, f"{value.name} is {_kinds(value)}: there is no {part} in it")
        return _UNKNOWN

    def _attribute(self, expression: Lookup, value: _Value, fact: Fact, part: str, *, guarded: bool) -> _Value:
        name = f"{value.name}.{part}"
        line = self._line(expression)
        found = fact.members.get(part)
        share = found.seen / fact.seen if found and fact.seen else 0.0
        kind = found.shown_kind if found else ""
        exists = found is not None or (fact is self._facts.items and part in self._facts.attributes)
        of = f"the elements of {value.name.removesuffix('[]')}" if value.name.endswith("[]") else "items"
        if of == "items" and fact is not self._facts.items:
            share *= value.share
        used = self.used.setdefault(name, Used(name, [], kind, share, of, exists))
        if line not in used.lines:
            used.lines.append(line)
        if found is None:
            self._missing(expression, name, fact, part)
            return _Value(name)
        value = _Value(name, frozenset(found.kinds), found, share, of)
        if not guarded:
            self._hole(expression, value)
        return value

    def _hole(self, expression: Expression, value: _Value) -> None:
        if value.share < 1:
            missing = percent(1 - value.share)
            self._warning(expression, f"{value.name} is missing in {missing} of {value.of}, where this shows a hole")

    def _missing(self, expression: Lookup, name: str, fact: Fact, part: str) -> None:
        known = self._facts.attributes if fact is self._facts.items else ()
        if part in known:
            if self._facts.items.seen:
                self._warning(expression, f"{name}: none of the items looked at has it")
            return
        if fact.seen or known:
            near = _nearest(part, {*fact.members, *known})
            self._error(expression, f"{name} does not exist in the feed{near}")


def _guards(condition: Expression) -> frozenset[str]:
    """The variables that are there wherever a condition holds."""
    inside = condition.condition if isinstance(condition, Truth) else condition
    if isinstance(inside, Lookup):
        return frozenset({str(inside)})
    if not isinstance(inside, Binary):
        return frozenset()
    if inside.operator == "and":
        return _guards(inside.left) | _guards(inside.right)
    if inside.operator == "or":
        return _guards(inside.left) & _guards(inside.right)
    if inside.operator == "!=":
        return frozenset()
    sides = (side for side in (inside.left, inside.right) if isinstance(side, Lookup))
    return frozenset(str(side).removesuffix(".length") for side in sides)


def _kinds(value: _Value) -> str:
    articles = {"text": "text", "number": "a number", "bool": "a bool", "array": "an array", "object": "an object"}
    return " or ".join(articles[kind] for kind in sorted(value.kinds))


def _called(value: _Value) -> str:
    return value.name or "this"


def _nearest(name: str, known: Collection[str]) -> str:
    """The known name that was probably meant, as the end of a sentence."""
    lower = {candidate.lower(): candidate for candidate in known}
    found = get_close_matches(name.lower(), list(lower), 1, 0.55)
    return f"; did you mean {lower[found[0]]}?" if found else ""


def _or_allow(name: str) -> str:
    return f" (if your Clerk.js has it: --allow {name})"


def percent(share: float) -> str:
    """A share for people: never 0 % or 100 % where it is not exactly that."""
    hundredths = share * 100
    if 0 < hundredths < 0.1:
        return "under 0.1 %"
    if 99.9 < hundredths < 100:
        return "over 99.9 %"
    return f"{hundredths:.1f}".removesuffix(".0") + " %"
