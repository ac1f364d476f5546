"""The expressions of Clerk.js 2's Liquid: what stands in {{ … }} and behind a tag's name.

More than Liquid has: arithmetic with the usual precedence, parentheses, `&&`, and arguments of a filter behind spaces.
Read into nodes of python-liquid, so that its static analysis finds the variables. Values behave as in the browser that
Clerk.js runs in: a missing attribute makes NaN of a sum and nothing of a comparison, and 50.0 is written 50.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from liquid import RenderContext
from liquid.builtin.expressions import FilteredExpression, Path
from liquid.builtin.expressions.arguments import KeywordArgument, PositionalArgument
from liquid.builtin.expressions.filtered import Filter
from liquid.exceptions import LiquidSyntaxError
from liquid.expression import Expression
from liquid.token import TOKEN_WORD, Token

Note = Callable[[int, str], None]
"""Takes what a design uses although Clerk's guide does not name it: where it begins, and what it is."""

_DEEPEST = 40
_LONGEST = 300
"""Words and signs of one tag. What is read into a tree must be shallow enough to be walked."""


class Literal(Expression):
    """Text, a number, true, false or nil."""

    def __init__(self, token: Token, value: object) -> None:
        super().__init__(token)
        self.value = value

    def evaluate(self, context: RenderContext) -> object:
        return self.value

    def children(self) -> list[Expression]:
        return []


class Lookup(Path):
    """A variable, with what is looked up in it: product.brand.name."""

    def evaluate(self, context: RenderContext) -> object:
        value: object = context.resolve(str(self.path[0]), default=None)
        for part in self.path[1:]:
            value = member(value, part.evaluate(context) if isinstance(part, Expression) else part)
        return value


class Unary(Expression):
    """`not` or `-` before an operand."""

    def __init__(self, token: Token, operator: str, operand: Expression) -> None:
        super().__init__(token)
        self.operator = operator
        self.operand = operand

    def evaluate(self, context: RenderContext) -> object:
        value = self.operand.evaluate(context)
        return not truthy(value) if self.operator == "not" else -number(value)

    def children(self) -> list[Expression]:
        return [self.operand]


class Truth(Expression):
    """A condition, as true or false."""

    def __init__(self, condition: Expression) -> None:
        super().__init__(condition.token)
        self.condition = condition

    def evaluate(self, context: RenderContext) -> object:
        return truthy(self.condition.evaluate(context))

    def children(self) -> list[Expression]:
        return [self.condition]


class Binary(Expression):
    """An operator between two operands."""

    def __init__(self, token: Token, operator: str, left: Expression, right: Expression) -> None:
        super().__init__(token)
        self.operator = operator
        self.left = left
        self.right = right

    def evaluate(self, context: RenderContext) -> object:
        left = self.left.evaluate(context)
        if self.operator == "and":
            return truthy(left) and truthy(self.right.evaluate(context))
        if self.operator == "or":
            return truthy(left) or truthy(self.right.evaluate(context))
        return _OPERATORS[self.operator](left, self.right.evaluate(context))

    def children(self) -> list[Expression]:
        return [self.left, self.right]


def member(value: object, name: object) -> object:
    """What a value has under a name or an index; None where it has nothing."""
    if isinstance(value, Mapping):
        return value.get(name)
    if isinstance(value, list | str) and name in ("length", "size"):
        return len(value)
    if isinstance(value, list) and value:
        if name == "first":
            return value[0]
        if name == "last":
            return value[-1]
        if isinstance(name, int) and -len(value) <= name < len(value):
            return value[name]
    return None


def truthy(value: object) -> bool:
    """As Liquid has it: all but false and nothing."""
    return value is not None and value is not False


def number(value: object) -> float:
    """A value in a sum, as in the browser: text that is no number, an array and nothing are NaN."""
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value) if value.strip() else 0.0
        except ValueError:
            return math.nan
    return math.nan


def shown(value: object) -> str:
    """A value as the design prints it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)
    if isinstance(value, list):
        return ",".join(map(shown, value))
    return "[object Object]" if isinstance(value, Mapping) else str(value)


def _add(left: object, right: object) -> object:
    if isinstance(left, str) or isinstance(right, str):
        return shown(left) + shown(right)
    return number(left) + number(right)


def _divide(left: object, right: object) -> float:
    over, under = number(left), number(right)
    if under == 0:
        return math.nan if over == 0 or math.isnan(over) else math.copysign(math.inf, over)
    return over / under


def _remainder(left: object, right: object) -> float:
    over, under = number(left), number(right)
    return math.nan if under == 0 or math.isinf(over) else math.fmod(over, under)


def _equal(left: object, right: object) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return left == right


def _before(left: object, right: object) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return left < right
    return number(left) < number(right)


def _not_after(left: object, right: object) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return left <= right
    return number(left) <= number(right)


def _contains(left: object, right: object) -> bool:
    if isinstance(left, str):
        return right is not None and shown(right) in left
    return isinstance(left, list) and any(_equal(element, right) for element in left)


_OPERATORS: dict[str, Callable[[Any, Any], object]] = {
    "+": _add,
    "-": lambda left, right: number(left) - number(right),
    "*": lambda left, right: number(left) * number(right),
    "/": _divide,
    "%": _remainder,
    "==": _equal,
    "!=": lambda left, right: not _equal(left, right),
    "<": _before,
    ">": lambda left, right: _before(right, left),
    "<=": _not_after,
    ">=": lambda left, right: _not_after(right, left),
    "contains": _contains,
}

ARITHMETIC = frozenset("+-*/%")
COMPARISONS = frozenset({"==", "!=", "<", ">", "<=", ">=", "contains"})


class _Piece(NamedTuple):
    kind: str
    text: str
    at: int


_PIECES = re.compile(
    r"""(?P<string>"[^"]*"|'[^']*')
      | (?P<number>\d+(?:\.\d+)?(?![\w.]))
      | (?P<word>[^\W\d]\w*)
      | (?P<operator>==|!=|<>|<=|>=|&&|\|\||[-+*/%<>|()\[\].,:!=])
      | (?P<space>\s+)
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_WORDS = {"true": True, "false": False, "nil": None, "null": None}
_SPELLINGS = {"&&": "and", "||": "or", "!": "not", "<>": "!="}


class Expressions:
    """Reads the expressions of one tag, left to right. Raises LiquidSyntaxError where it can't go on."""

    def __init__(self, text: str, start: int, source: str, note: Note) -> None:
        """`start` is the place of `text` in `source`, the whole design."""
        self._source = source
        self._note = note
        self._depth = 0
        self._pieces = list(_pieces(text, start))
        self._end = _Piece("end", "", start + len(text))
        self._next = 0
        if len(self._pieces) > _LONGEST:
            raise LiquidSyntaxError(
                f"more than {_LONGEST} words and signs in one tag", token=self._token(self._pieces[_LONGEST])
            )

    @property
    def _current(self) -> _Piece:
        return self._pieces[self._next] if self._next < len(self._pieces) else self._end

    def word(self) -> Token:
        """A name: of a loop's variable, or of what is assigned to."""
        piece = self._take()
        if piece.kind != "word" or piece.text in _WORDS:
            raise self._unexpected(piece, "a name")
        return self._token(piece)

    def expect(self, text: str) -> None:
        if not self.skips(text):
            raise self._unexpected(self._current, text)

    def skips(self, text: str) -> bool:
        """Whether this comes next; if so it is passed."""
        if self._current.kind in ("word", "operator") and self._current.text == text:
            self._next += 1
            return True
        return False

    def end(self) -> None:
        """Raise unless nothing is left."""
        if self._current.kind != "end":
            raise self._unexpected(self._current, "the end of the tag")

    def filtered(self) -> FilteredExpression:
        """An expression and the filters that it goes through, up to the end."""
        left = self.condition()
        filters = []
        while self.skips("|"):
            name = self.word()
            filters.append(Filter(name, name.value, self._arguments()))
        self.end()
        return FilteredExpression(left.token, left, filters)

    def condition(self) -> Expression:
        """An expression without filters. `or` binds least, then `and`, `not`, comparisons, sums, products."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise LiquidSyntaxError(f"more than {_DEEPEST} parentheses deep", token=self._token(self._current))
        left = self._both()
        while self._current.text in ("or", "||") and self._current.kind != "string":
            piece = self._take()
            left = Binary(self._token(piece), "or", left, self._both())
        self._depth -= 1
        return left

    def _both(self) -> Expression:
        left = self._negation()
        while self._current.text in ("and", "&&") and self._current.kind != "string":
            piece = self._take()
            left = Binary(self._token(piece), "and", left, self._negation())
        return left

    def _negation(self) -> Expression:
        nots = []
        while self._current.text in ("not", "!") and self._current.kind != "string":
            nots.append(self._take())
            self._note(nots[-1].at, f"the operator {nots[-1].text}")
        operand = self._comparison()
        for piece in reversed(nots):
            operand = Unary(self._token(piece), "not", operand)
        return operand

    def _comparison(self) -> Expression:
        left = self._sum()
        operator = _SPELLINGS.get(self._current.text, self._current.text)
        if operator not in COMPARISONS or self._current.kind == "string":
            return left
        piece = self._take()
        return Binary(self._token(piece), operator, left, self._sum())

    def _sum(self) -> Expression:
        left = self._product()
        while self._current.kind == "operator" and self._current.text in "+-":
            piece = self._take()
            left = Binary(self._token(piece), piece.text, left, self._product())
        return left

    def _product(self) -> Expression:
        left = self._operand()
        while self._current.kind == "operator" and self._current.text in "*/%":
            piece = self._take()
            if piece.text == "%":
                self._note(piece.at, "the operator %")
            left = Binary(self._token(piece), piece.text, left, self._operand())
        return left

    def _operand(self) -> Expression:
        piece = self._take()
        if piece.text == "-" and piece.kind == "operator":
            minuses = 1
            while self.skips("-"):
                minuses += 1
            operand = self._operand()
            return Unary(self._token(piece), "-", operand) if minuses % 2 else operand
        if piece.text == "(" and piece.kind == "operator":
            inside = self.condition()
            self.expect(")")
            return inside
        if piece.kind == "string":
            return Literal(self._token(piece), piece.text[1:-1])
        if piece.kind == "number":
            return Literal(self._token(piece), float(piece.text))
        if piece.kind == "word" and piece.text in _WORDS:
            return Literal(self._token(piece), _WORDS[piece.text])
        if piece.kind == "word":
            return self._path(piece)
        raise self._unexpected(piece, "a variable, a number or text in quotes")

    def _path(self, first: _Piece) -> Lookup:
        parts: list[str | int | Path] = [first.text]
        while self._current.kind == "operator" and self._current.text in (".", "["):
            piece = self._take()
            if piece.text == ".":
                name = self._take()
                if name.kind != "word":
                    raise self._unexpected(name, "a name")
                parts.append(name.text)
                continue
            self._note(piece.at, "an index in brackets")
            index = self._take()
            if index.kind == "word":
                parts.append(self._path(index))
            elif index.kind == "string":
                parts.append(index.text[1:-1])
            elif index.kind == "number" and index.text.isdigit():
                parts.append(int(index.text))
            else:
                raise self._unexpected(index, "an index")
            self.expect("]")
        return Lookup(self._token(first), parts)

    def _arguments(self) -> list[KeywordArgument | PositionalArgument]:
        found: list[KeywordArgument | PositionalArgument] = []
        colon = self.skips(":")
        while self._current.kind != "end" and self._current.text != "|":
            found.append(PositionalArgument(self._operand()))
            if colon and not self.skips(","):
                break
        if colon and not found:
            raise self._unexpected(self._current, "an argument")
        return found

    def _take(self) -> _Piece:
        piece = self._current
        self._next += 1
        return piece

    def _token(self, piece: _Piece) -> Token:
        return Token(TOKEN_WORD, piece.text, piece.at, self._source)

    def _unexpected(self, piece: _Piece, expected: str) -> LiquidSyntaxError:
        found = "the end of the tag" if piece.kind == "end" else repr(piece.text)
        return LiquidSyntaxError(f"{found} where {expected} was expected", token=self._token(piece))


def _pieces(text: str, start: int) -> Iterator[_Piece]:
    for found in _PIECES.finditer(text):
        kind = found.lastgroup or "other"
        if kind != "space":
            yield _Piece(kind, found.group(), start + found.start())
