"""The language of Clerk.js 2's designs: a subset of Liquid, with arithmetic.

Parsed and rendered by python-liquid, with Clerk's own tags and filters in place of Liquid's. What Clerk's guide to
designs names: `{{ … }}`, `if` and `else`, `for` with `loop.index` (from 0), `loop.length`, `loop.first` and
`loop.last`, dotted access, `and`, `or`, `contains`, comparisons, arithmetic, and the filters `money` and `round`;
older pages of it show `&&` and `{% #if … %} … {% /if %}`. Clerk's standard designs use `assign`, `comment`,
`.length` and the filter `highlight` besides. Liquid's other tags are parsed, so that they can be told apart from
mistakes, and reported.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ClassVar, TextIO, cast

import msgspec
from liquid import BoundTemplate, Environment, RenderContext
from liquid.ast import BlockNode, ConditionalBlockNode, Node
from liquid.builtin.expressions import FilteredExpression, Identifier
from liquid.builtin.output import Output, OutputNode
from liquid.builtin.tags.assign_tag import AssignNode, AssignTag
from liquid.builtin.tags.for_tag import ForLoop
from liquid.builtin.tags.if_tag import IfNode
from liquid.builtin.tags.unless_tag import UnlessNode
from liquid.exceptions import LiquidError, LiquidSyntaxError
from liquid.expression import Expression
from liquid.parser import get_parser
from liquid.stream import TokenStream
from liquid.tag import Tag
from liquid.token import TOKEN_COMMENT, TOKEN_CONTENT, TOKEN_EXPRESSION, TOKEN_OUTPUT, TOKEN_TAG, Token

from app.designs.expressions import Expressions, Truth, number, shown

TAGS = frozenset({"if", "else", "for", "assign", "comment"})
"""The tags that Clerk's guide and its standard designs use, without those that end them."""

FILTERS = frozenset({"money", "round", "highlight"})
"""The filters that Clerk's guide and its standard designs use."""

_ENDS = {"if": "endif", "for": "endfor", "unless": "endunless", "comment": "endcomment"}


class DesignError(Exception):
    """A design can't be parsed or rendered. The message is for the person who wrote it."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line
        """Counted from 1."""


class Note(msgspec.Struct, frozen=True):
    """Something a design uses although Clerk's guide does not name it."""

    line: int
    what: str


class Design(msgspec.Struct, frozen=True):
    """A design of Clerk.js 2, parsed."""

    source: str
    template: BoundTemplate
    notes: tuple[Note, ...]

    def line(self, at: int) -> int:
        """The line that a place in the source is on."""
        return line_of(self.source, at)

    def tags(self) -> dict[str, list[int]]:
        """The tags that the design uses, with their lines. `else` and the tags that end a block are not among them."""
        analysis = self.template.analyze(include_partials=False)
        return {name: [self.line(span.index) for span in spans] for name, spans in analysis.tags.items()}

    def filters(self) -> dict[str, list[int]]:
        """The filters that the design uses, with their lines."""
        analysis = self.template.analyze(include_partials=False)
        return {name: [self.line(span.index) for span in spans] for name, spans in analysis.filters.items()}

    def globals(self) -> dict[str, list[int]]:
        """The variables that the design expects to be there, with their lines."""
        analysis = self.template.analyze(include_partials=False)
        return {name: [self.line(use.span.index) for use in uses] for name, uses in analysis.globals.items()}


def line_of(source: str, at: int) -> int:
    return source.count("\n", 0, max(at, 0)) + 1


def parse(source: str) -> Design:
    """Parse a design. Raises DesignError at the first place that is no Liquid."""
    language = _Language()
    try:
        template = language.from_string(source)
    except LiquidError as error:
        raise _told(error, source) from None
    return Design(source, template, tuple(Note(line_of(source, at), what) for at, what in language.noted))


def render(design: Design, values: Mapping[str, object], allowed: Iterable[str] = ()) -> str:
    """Render a design with the variables given. Of Liquid's own filters, only those `allowed` are there.

    Raises DesignError where a filter is unknown, and where the design does not come to an end.
    """
    environment = design.template.env
    environment.filters = {**CLERKS_FILTERS}
    for name in allowed:
        environment.filters.setdefault(name, _LIQUIDS_FILTERS.get(name, _unchanged))
    try:
        return design.template.render(**values)
    except LiquidError as error:
        raise _told(error, design.source) from None


def _told(error: LiquidError, source: str) -> DesignError:
    at = error.token.start_index if error.token is not None else 0
    return DesignError(str(error.args[0] if error.args else error), line_of(source, at))


def money(value: object, *arguments: object) -> str:
    """A price with two decimals and no currency. How the shop groups digits is a setting of Clerk's."""
    amount = number(value)
    return f"{amount:,.2f}" if math.isfinite(amount) else shown(amount)


def rounded(value: object, digits: object = 0) -> float:
    """To the nearest whole number, halves up, as in the browser."""
    amount, places = number(value), number(digits)
    if not math.isfinite(amount) or not math.isfinite(places):
        return math.nan
    power = 10.0 ** max(-10, min(10, int(places)))
    return math.floor(amount * power + 0.5) / power


def highlight(value: object, query: object = "", *arguments: object) -> str:
    """The text with what was searched for in bold."""
    text, wanted = shown(value), shown(query)
    if not wanted:
        return text
    return re.sub(re.escape(wanted), lambda found: f"<b>{found.group()}</b>", text, flags=re.IGNORECASE)


def _unchanged(value: object, *arguments: object) -> object:
    return value


CLERKS_FILTERS: dict[str, Callable[..., object]] = {"money": money, "round": rounded, "highlight": highlight}
_LIQUIDS_FILTERS: dict[str, Callable[..., object]] = dict(Environment().filters)
LIQUIDS_FILTERS = frozenset(_LIQUIDS_FILTERS)


class _Language(Environment):
    """Liquid as Clerk.js 2 has it. One for each design."""

    loop_iteration_limit: ClassVar[int | None] = 100_000
    output_stream_limit: ClassVar[int | None] = 20_000_000
    local_namespace_limit: ClassVar[int | None] = 20_000_000

    def __init__(self) -> None:
        self.noted: list[tuple[int, str]] = []
        super().__init__()

    def __hash__(self) -> int:
        return id(self)

    def setup_tags_and_filters(self, *, extra: bool = False) -> None:
        super().setup_tags_and_filters(extra=extra)
        for tag in (_Print, _Assign, _If, _Unless, _For):
            self.add_tag(tag)

    def tokenizer(self) -> Callable[[str], Iterator[Token]]:
        return lambda source: _tokens(source, self.note)

    def note(self, at: int, what: str) -> None:
        self.noted.append((at, what))


_OPENING = re.compile(r"\{\{|\{%")
_NAMED = re.compile(r"(#\s*|/\s*)?(\w+)\s*(.*)", re.DOTALL)
_COMMENTS = re.compile(r"\{%-?\s*(end)?comment\s*-?%\}")


def _tokens(source: str, note: Callable[[int, str], None]) -> Iterator[Token]:
    """The tags, outputs and texts of a design, as python-liquid's parser wants them."""
    at, trims = 0, False
    while found := _OPENING.search(source, at):
        start = found.start()
        closing = "}}" if found.group() == "{{" else "%}"
        end = source.find(closing, start + 2)
        if end < 0:
            raise LiquidSyntaxError(f"{found.group()} without {closing}", token=Token("tag", "", start, source))
        first, last = start + 2, end
        trims_before, trims_after = source[first] == "-", last > first + 1 and source[last - 1] == "-"
        if trims_before or trims_after:
            note(start, "the - that takes white space away")
        yield from _text(source, at, start, left=trims, right=trims_before)
        first, last, trims = first + trims_before, last - trims_after, trims_after
        first, inside = _stripped(source, first, last)
        at = end + 2
        if closing == "}}":
            if not inside:
                raise LiquidSyntaxError("{{ }} is empty", token=Token("tag", "", start, source))
            yield Token(TOKEN_OUTPUT, source[start:at], start, source)
            yield Token(TOKEN_EXPRESSION, inside, first, source)
            continue
        named = _NAMED.fullmatch(inside)
        if named is None:
            raise LiquidSyntaxError("a tag without a name", token=Token("tag", "", start, source))
        name = _name(named.group(1) or "", named.group(2))
        yield Token(TOKEN_TAG, name, start, source)
        if named.group(3):
            yield Token(TOKEN_EXPRESSION, named.group(3), first + named.start(3), source)
        if name == "comment":
            end = _comment_end(source, at)
            yield Token(TOKEN_COMMENT, source[at:end], at, source)
            at = end
    yield from _text(source, at, len(source), left=trims, right=False)


def _name(sign: str, word: str) -> str:
    """The name of a tag; older pages of Clerk's guide write #if and /if."""
    if sign.startswith("/"):
        return _ENDS.get(word, f"end{word}")
    return word


def _text(source: str, start: int, end: int, *, left: bool, right: bool) -> Iterator[Token]:
    text = source[start:end]
    text = text.lstrip() if left else text
    text = text.rstrip() if right else text
    if text:
        yield Token(TOKEN_CONTENT, text, start, source)


def _stripped(source: str, first: int, last: int) -> tuple[int, str]:
    inside = source[first:last]
    return first + len(inside) - len(inside.lstrip()), inside.strip()


def _comment_end(source: str, at: int) -> int:
    """Where the endcomment of a comment begins whose text begins at `at`; comments may hold comments."""
    depth = 1
    for found in _COMMENTS.finditer(source, at):
        depth += -1 if found.group(1) else 1
        if not depth:
            return found.start()
    raise LiquidSyntaxError("{% comment %} without {% endcomment %}", token=Token("tag", "", at, source))


def _expressions(tag: Tag, stream: TokenStream, of: Token) -> Expressions:
    """The expressions of a tag, whose own token has been taken from the stream."""
    token = stream.current
    if token.kind != TOKEN_EXPRESSION:
        raise LiquidSyntaxError(f"{of.value} needs an expression", token=of)
    return Expressions(token.value, token.start_index, token.source, cast("_Language", tag.env).note)


class _PrintNode(OutputNode):
    """{{ … }}, printed as Clerk.js prints it. Like Liquid, it leaves HTML in a value alone."""

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        return buffer.write(shown(self.expression.evaluate(context)))


class _Print(Output):
    node_class = _PrintNode

    def parse(self, stream: TokenStream) -> OutputNode:
        token = stream.eat(TOKEN_OUTPUT)
        return self.node_class(token, _expressions(self, stream, token).filtered())


class _Assign(AssignTag):
    def parse(self, stream: TokenStream) -> AssignNode:
        token = stream.eat(TOKEN_TAG)
        reading = _expressions(self, stream, token)
        name = reading.word()
        reading.expect("=")
        value: FilteredExpression = reading.filtered()
        return AssignNode(token, name=Identifier(name.value, token=name), expression=value)


class _If(Tag):
    """`if`, with `elsif` and `else`."""

    name = "if"
    end = "endif"

    def parse(self, stream: TokenStream) -> Node:
        token = stream.eat(TOKEN_TAG)
        condition = self._condition(stream, token)
        consequence = self._block(stream, token)
        alternatives: list[ConditionalBlockNode] = []
        while stream.current.is_tag("elsif"):
            tag = stream.next()
            cast("_Language", self.env).note(tag.start_index, "the tag elsif")
            other = self._condition(stream, tag)
            alternatives.append(ConditionalBlockNode(tag, other, self._block(stream, token)))
        otherwise = None
        if stream.current.is_tag("else"):
            tag = stream.next()
            if stream.current.kind == TOKEN_EXPRESSION:
                raise LiquidSyntaxError(f"else takes no condition: {stream.current.value!r}", token=tag)
            otherwise = self._block(stream, token)
        if not stream.current.is_tag(self.end):
            raise LiquidSyntaxError(f"a second {stream.current.value} in one {self.name}", token=stream.current)
        return self._node(token, condition, consequence, alternatives, otherwise)

    def _node(
        self,
        token: Token,
        condition: Expression,
        consequence: BlockNode,
        alternatives: list[ConditionalBlockNode],
        otherwise: BlockNode | None,
    ) -> Node:
        return IfNode(token, condition, consequence, alternatives, otherwise)

    def _condition(self, stream: TokenStream, token: Token) -> Expression:
        reading = _expressions(self, stream, token)
        condition = reading.condition()
        reading.end()
        stream.next()
        return Truth(condition)

    def _block(self, stream: TokenStream, token: Token) -> BlockNode:
        block = get_parser(self.env).parse_block(stream, ("elsif", "else", self.end))
        if stream.current.kind != TOKEN_TAG:
            raise LiquidSyntaxError(f"{self.name} without {self.end}", token=token)
        return block


class _Unless(_If):
    name = "unless"
    end = "endunless"

    def _node(
        self,
        token: Token,
        condition: Expression,
        consequence: BlockNode,
        alternatives: list[ConditionalBlockNode],
        otherwise: BlockNode | None,
    ) -> Node:
        return UnlessNode(token, condition, consequence, alternatives, otherwise)


class ForNode(Node):
    """A loop, with Clerk's `loop` in its body."""

    def __init__(self, token: Token, name: Token, iterable: Expression, block: BlockNode) -> None:
        super().__init__(token)
        self.name = name
        self.iterable = iterable
        self.block = block
        self.blank = block.blank

    def __str__(self) -> str:
        return f"{{% for {self.name.value} in {self.iterable} %}}{self.block}{{% endfor %}}"

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        values = self.iterable.evaluate(context)
        if not isinstance(values, list) or not values:
            return 0
        loop = ForLoop(name=self.name.value, it=iter(values), length=len(values), parentloop=context.parentloop())
        namespace: dict[str, object] = {}
        written = 0
        with context.loop(namespace, loop):
            for index, value in enumerate(loop):
                namespace[self.name.value] = value
                namespace["loop"] = {
                    "index": index,
                    "length": len(values),
                    "first": index == 0,
                    "last": index == len(values) - 1,
                }
                written += self.block.render(context, buffer)
        return written

    def children(self, static_context: RenderContext, *, include_partials: bool = True) -> Iterable[Node]:
        yield self.block

    def expressions(self) -> Iterable[Expression]:
        yield self.iterable

    def block_scope(self) -> Iterable[Identifier]:
        yield Identifier(self.name.value, token=self.name)
        yield Identifier("loop", token=self.token)


class _For(Tag):
    name = "for"
    end = "endfor"

    def parse(self, stream: TokenStream) -> Node:
        token = stream.eat(TOKEN_TAG)
        reading = _expressions(self, stream, token)
        name = reading.word()
        reading.expect("in")
        iterable = reading.condition()
        reading.end()
        stream.next()
        block = get_parser(self.env).parse_block(stream, ("else", "endfor"))
        if stream.current.is_tag("else"):
            raise LiquidSyntaxError("else in a for is not in Clerk's guide", token=stream.current)
        if not stream.current.is_tag("endfor"):
            raise LiquidSyntaxError("for without endfor", token=token)
        return ForNode(token, name, iterable, block)
