"""From Clerk.js 1 to Clerk.js 2: a design's Handlebars becomes Liquid, its HTML stays as it is.

By the rules of Clerk's guide alone: a value becomes `{{ product.value }}`, `{{money price}}` the filter, `if` and `is`
become `{% if %}`, `each` becomes `{% for %}`, and the frame goes around it all, since Clerk.js 2 has one template for
the whole result. `unless` and `with` are Handlebars' own and can be said with those. What no rule covers is left where
it is, behind a comment that says why, and `design check` refuses such a design: a guess never looks finished.
"""

import re
from html.parser import HTMLParser

import msgspec

from app.designs import handlebars, language
from app.designs.handlebars import (
    Argument,
    Block,
    Branch,
    Broken,
    Call,
    Comment,
    Constant,
    Mustache,
    Name,
    Piece,
    Text,
)

MARK = "clerk-feed:"
"""What a comment begins with that stands before something left to a person."""

_DEEPEST = 25
"""Blocks in each other. Liquid's parsers have such a limit too; python-liquid's is 30."""
_OPERATORS = frozenset({"==", "!=", "<", ">", "<=", ">="})
_LOOP = {"index": "loop.index", "first": "loop.first", "last": "loop.last"}
_RESERVED = frozenset(
    {"product", "products", "headline", "loop", "query", "content", "and", "or", "not", "contains", "in"}
    | {"true", "false", "nil", "null", "empty", "blank"}
)


class Left(msgspec.Struct, frozen=True):
    """Something that could not be translated."""

    line: int
    written: str
    """What stands there, the beginning of it, in one line."""
    why: str


class Converted(msgspec.Struct, frozen=True):
    """A design of Clerk.js 2, and what is left to do in it."""

    design: str
    left: tuple[Left, ...]


def translate(source: str) -> Converted:
    """Translate a design of Clerk.js 1."""
    converter = _Converter(source)
    body = converter.pieces(handlebars.parse(source), _Scope("product"))
    for at, why in _outside_of_the_frame(source):
        converter.leave(at, at, why)
    newline = "\r\n" if "\r\n" in source else "\n"
    notes = "".join(_comment(why) + newline for why in converter.unplaced)
    top = f'{notes}<ul class="clerk-slider">{newline}{{% for product in products %}}{newline}<li class="clerk-product">'
    bottom = f"</li>{newline}{{% endfor %}}{newline}</ul>{newline}"
    design = newline.join([top, body if body.endswith("\n") else body + newline]) + bottom
    if not converter.left:
        try:
            language.parse(design)
        except language.DesignError as error:
            line = max(1, error.line - 3)
            converter.left.append(Left(line, "", f"the translation is no Liquid: {error}"))
    return Converted(design, tuple(sorted(converter.left, key=lambda left: left.line)))


class _Unknown(Exception):
    """No rule covers it. The message says what is in the way."""


class _Scope(msgspec.Struct):
    """What names mean at a place."""

    prefix: str
    """What a name belongs to: product, or the variable of a loop."""
    parent: "_Scope | None" = None
    params: dict[str, str] = {}
    is_loop: bool = False
    blocks: int = 0
    """Blocks open here that are no scope: older Handlebars count them as a level of ../ all the same."""

    @property
    def nesting(self) -> int:
        """How many blocks are open around a place."""
        return self.blocks + (0 if self.parent is None else 1 + self.parent.nesting)

    @property
    def depth(self) -> int:
        """How many loops are."""
        return 0 if self.parent is None else self.parent.depth + self.is_loop


class _Converter:
    def __init__(self, source: str) -> None:
        self._source = source
        self.left: list[Left] = []
        self.unplaced: list[str] = []
        self._trim_next = False

    def leave(self, start: int, end: int, why: str) -> str:
        """Put on record what can't be translated. Answers what stands in the design for it."""
        written = self._source[start:end]
        self.left.append(Left(language.line_of(self._source, start), " ".join(written.split())[:60], why))
        if start == end:
            self.unplaced.append(f"line {self.left[-1].line} of the old design: {why}")
        return _comment(why) + written

    def pieces(self, pieces: tuple[Piece, ...], scope: _Scope) -> str:
        done = []
        for number, piece in enumerate(pieces):
            following = pieces[number + 1] if number + 1 < len(pieces) else None
            done.append(self._piece(piece, scope, following))
        return "".join(done)

    def _piece(self, piece: Piece, scope: _Scope, following: Piece | None) -> str:
        trims, self._trim_next = self._trim_next, False
        match piece:
            case Text():
                return self._text(piece, following, trims=trims)
            case Comment():
                return f"{{% comment %}}{_harmless(piece.text)}{{% endcomment %}}"
            case Broken():
                return self.leave(piece.start, piece.end, piece.why)
            case Mustache():
                self._trim_next = piece.trims_after
                try:
                    return self._value(piece, scope)
                except _Unknown as unknown:
                    return self.leave(piece.start, piece.end, str(unknown))
            case Block():
                before = len(self.left)
                try:
                    done = self._block(piece, scope)
                except _Unknown as unknown:
                    # Inside of what nobody understands nothing can be understood.
                    del self.left[before:]
                    done = self.leave(piece.start, piece.end, str(unknown))
                self._trim_next = piece.close.trims_after
                return done

    def _text(self, piece: Text, following: Piece | None, *, trims: bool) -> str:
        text = self._source[piece.start : piece.end]
        if isinstance(following, Mustache | Block) and text.endswith("\\\\"):
            text = text[:-1]  # two backslashes before a mustache are one
        text = text.lstrip() if trims else text
        if _trims_before(following):
            text = text.rstrip()
            text += " " * text.endswith("{")  # or the brace would become one of the mustache's
        if "{%" not in text:
            return text
        parts = text.split("{%")
        at = self._source.index("{%", piece.start)
        done = [parts[0]]
        for part in parts[1:]:
            why = "plain text in Handlebars, a statement in Liquid; is this design converted already?"
            self.leave(at, at + 2, why)
            done.append(_comment(why) + "{%" + part)
            at = self._source.find("{%", at + 2)
        return "".join(done)

    def _value(self, piece: Mustache, scope: _Scope) -> str:
        call = piece.call
        if piece.kind in _UNKNOWN_KINDS:
            raise _Unknown(_UNKNOWN_KINDS[piece.kind])
        self._plain(call)
        if not call.arguments:
            if isinstance(call.head, Constant):
                raise _Unknown("a constant by itself")
            return f"{{{{ {self._name(call.head, scope)} }}}}"
        if call.word != "money":
            raise _Unknown(f"the helper {call.word or 'here'} is none that Clerk's guide names")
        if len(call.arguments) > 1:
            raise _Unknown("what money does with more than a price is not in Clerk's guide")
        return f"{{{{ {self._argument(call.arguments[0], scope)} | money }}}}"

    def _plain(self, call: Call) -> None:
        if call.strange:
            raise _Unknown(_why_strange(call.strange))

    def _block(self, block: Block, scope: _Scope) -> str:
        return self._branches(block.branches, block.close, scope)

    def _branches(self, branches: tuple[Branch, ...], close: Mustache, scope: _Scope) -> str:
        """A block from one of its branches on: behind an {{else if}} it is a block inside the {% else %}."""
        if scope.nesting > _DEEPEST:
            raise _Unknown(f"more than {_DEEPEST} blocks deep")
        call = branches[0].tag.call
        if branches[0].tag.kind == "inverse":
            raise _Unknown(_UNKNOWN_KINDS["inverse"])
        self._plain(call)
        match call.word:
            case "if" | "is":
                condition = self._condition(call, scope)
                body, otherwise = self._parts(branches, close, scope)
                middle = "" if otherwise is None else "{% else %}" + otherwise
                return f"{{% if {condition} %}}{body}{middle}{{% endif %}}"
            case "unless":
                condition = self._condition(call, scope)
                body, otherwise = self._parts(branches, close, scope)
                after = "" if otherwise is None else f"{{% if {condition} %}}{otherwise}{{% endif %}}"
                return f"{{% if {condition} %}}{{% else %}}{body}{{% endif %}}{after}"
            case "each":
                return self._each(call, branches, close, scope)
            case "with":
                return self._with(call, branches, close, scope)
        raise _Unknown(f"the block #{call.word} is none that Clerk's guide or Handlebars names")

    def _parts(self, branches: tuple[Branch, ...], close: Mustache, scope: _Scope) -> tuple[str, str | None]:
        """What stands in the first branch, and in the rest of them together."""
        scope.blocks += 1
        try:
            body = self._body(branches, 0, close, scope)
            if len(branches) == 1:
                return body, None
            if branches[1].tag.call.head is not None or branches[1].tag.call.strange:
                return body, self._branches(branches[1:], close, scope)
            if len(branches) > 2:
                raise _Unknown("a second else in one block")
            return body, self._body(branches, 1, close, scope)
        finally:
            scope.blocks -= 1

    def _body(self, branches: tuple[Branch, ...], number: int, close: Mustache, scope: _Scope) -> str:
        """A branch's body, without the white space that ~ takes away at its ends."""
        branch = branches[number]
        following = branches[number + 1].tag if number + 1 < len(branches) else close
        self._trim_next = branch.tag.trims_after
        body = self.pieces(branch.body, scope)
        self._trim_next = False
        return body.rstrip() if following.trims_before else body

    def _condition(self, call: Call, scope: _Scope) -> str:
        if call.word != "is":
            if len(call.arguments) != 1 or not isinstance(call.arguments[0], Name):
                raise _Unknown(f"#{call.word} of anything but one value")
            name = self._name(call.arguments[0], scope)
            # 0 is false in Handlebars; whether it is in Clerk.js 2 its guide does not say.
            return f"{name} > 0" if name == "loop.index" else name
        if len(call.arguments) != 3:
            raise _Unknown("#is without exactly a value, an operator in quotes and a value")
        left, operator, right = call.arguments
        if not isinstance(operator, Constant) or operator.value not in _OPERATORS:
            raise _Unknown(f"the operator of #is is none of {' '.join(sorted(_OPERATORS))} in quotes")
        return f"{self._argument(left, scope)} {operator.value} {self._argument(right, scope)}"

    def _each(self, call: Call, branches: tuple[Branch, ...], close: Mustache, scope: _Scope) -> str:
        if len(call.arguments) != 1 or not isinstance(call.arguments[0], Name) or len(call.params) > 2:
            raise _Unknown("#each of anything but one list")
        if len(branches) > 1:
            raise _Unknown("Clerk's guide names no else of a for")
        over = self._name(call.arguments[0], scope)
        variable = _variable(call.params[0] if call.params else "", scope)
        params = {call.params[0]: variable} if call.params else {}
        if len(call.params) == 2:
            params[call.params[1]] = "loop.index"
        inner = _Scope(variable, scope, params, is_loop=True)
        return f"{{% for {variable} in {over} %}}{self._body(branches, 0, close, inner)}{{% endfor %}}"

    def _with(self, call: Call, branches: tuple[Branch, ...], close: Mustache, scope: _Scope) -> str:
        if len(call.arguments) != 1 or not isinstance(call.arguments[0], Name) or len(call.params) > 1:
            raise _Unknown("#with of anything but one value")
        over = self._name(call.arguments[0], scope)
        inner = _Scope(over, scope, dict.fromkeys(call.params, over))
        body = self._body(branches, 0, close, inner)
        otherwise = ""
        if len(branches) > 1:
            if branches[1].tag.call.head is not None or len(branches) > 2:
                raise _Unknown("#with with more than a plain else")
            scope.blocks += 1
            try:
                otherwise = "{% else %}" + self._body(branches, 1, close, scope)
            finally:
                scope.blocks -= 1
        return f"{{% if {over} %}}{body}{otherwise}{{% endif %}}"

    def _argument(self, argument: Argument, scope: _Scope) -> str:
        return self._name(argument, scope) if isinstance(argument, Name) else _constant(argument)

    def _name(self, name: Argument | None, scope: _Scope) -> str:
        if not isinstance(name, Name):
            raise _Unknown("no name stands here")
        if name.is_data:
            return _data(name, scope)
        if not (name.up or name.is_local) and (found := _param(name.parts[0], scope)):
            return ".".join([found, *name.parts[1:]])
        at = scope
        for _ in range(name.up):
            if at.blocks:
                raise _Unknown("../ inside a block like #if: Handlebars' versions differ in what it means")
            if at.parent is None:
                raise _Unknown("../ leads out of the product")
            at = at.parent
        if not name.parts and at.prefix == "product":
            raise _Unknown("the whole product is no value")
        return ".".join([at.prefix, *name.parts])


_UNKNOWN_KINDS = {
    "triple": "it prints HTML as it is; whether Clerk.js 2 escapes is not in Clerk's guide",
    "partial": "Clerk.js 2 has no partials",
    "decorator": "Clerk.js 2 has no decorators",
    "escaped": "a mustache meant as text has no form in Clerk's guide",
    "raw": "a raw block has no form in Clerk's guide",
    "inverse": "it asks for what is missing or empty, which Clerk's guide has no test for",
}


def _why_strange(strange: str) -> str:
    if strange == "(…)":
        return "a helper inside a helper has no form in Clerk's guide"
    if strange.endswith("="):
        return f"the option {strange.removesuffix('=')[:40]!r} is not in Clerk's guide"
    return f"{strange[:40]!r} is no attribute: those are letters, digits and underscore"


def _data(name: Name, scope: _Scope) -> str:
    written = "@" + "../" * name.up + ".".join(name.parts)
    if name.parts and name.parts[0] == "root" and not name.up and len(name.parts) > 1:
        return ".".join(["product", *name.parts[1:]])
    if len(name.parts) != 1 or name.up or name.parts[0] not in _LOOP:
        raise _Unknown(f"{written} has no form in Clerk's guide")
    if not scope.depth:
        raise _Unknown(f"{written} outside of an #each")
    return _LOOP[name.parts[0]]


def _param(name: str, scope: _Scope) -> str | None:
    """What a block parameter stands for, if it is one."""
    at: _Scope | None = scope
    inner_loops = 0
    while at is not None:
        if name in at.params:
            if at.params[name] == "loop.index" and inner_loops:
                raise _Unknown(f"{name} is the place in an outer loop, which Clerk's guide has no name for")
            return at.params[name]
        inner_loops += at.is_loop
        at = at.parent
    return None


def _variable(wanted: str, scope: _Scope) -> str:
    """A name for the variable of a loop, that means nothing else there."""
    taken = {"product"}
    at: _Scope | None = scope
    while at is not None:
        taken |= {at.prefix, *at.params.values()}
        at = at.parent
    if re.fullmatch(r"[a-z_]\w*", wanted, re.ASCII) and wanted not in _RESERVED | taken:
        return wanted
    return next(name for name in ("item", *(f"item{n}" for n in range(2, 1000))) if name not in taken)


def _constant(constant: Constant) -> str:
    if isinstance(constant.value, bool):
        return str(constant.value).lower()
    if constant.value is None:
        raise _Unknown(f"{constant.written} has no form in Clerk's guide")
    if not isinstance(constant.value, str):
        return constant.written
    if any(mark in constant.value for mark in ("{{", "}}", "{%", "%}")):
        raise _Unknown("text with braces in it would end the Liquid")
    quote = '"' if "'" in constant.value else "'"
    if quote in constant.value:
        raise _Unknown("text with both kinds of quotes can't be written in Liquid")
    return f"{quote}{constant.value}{quote}"


def _trims_before(piece: Piece | None) -> bool:
    if isinstance(piece, Block):
        return piece.branches[0].tag.trims_before
    return isinstance(piece, Mustache) and piece.trims_before


def _comment(text: str) -> str:
    return f"{{% comment %}}{MARK} {_harmless(text)}{{% endcomment %}}"


def _harmless(text: str) -> str:
    """Text that Liquid sees no tag in, even where it should look into comments."""
    return re.sub(r"([{}%])(?=[{}%])", r"\1 ", text)


_NEEDS = {
    "li": ("ul", "ol", "menu"),
    "tr": ("table", "tbody", "thead", "tfoot"),
    "td": ("tr",),
    "th": ("tr",),
    "tbody": ("table",),
    "thead": ("table",),
    "option": ("select", "optgroup", "datalist"),
}


class _Outside(HTMLParser):
    """Finds elements that stand right below the design's root and can't stand in the frame's <li>."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, str]] = []
        """Lines, and what is wrong there."""
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _NEEDS and not set(_NEEDS[tag]) & set(self._open):
            why = f"<{tag}> stands in no {_NEEDS[tag][0]}, and can't stand in the frame's <li>: merge them"
            self.found.append((self.getpos()[0], why))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass
        elif tag in ("li", "ul"):
            self.found.append((self.getpos()[0], f"</{tag}> closes nothing here, and would close the frame's <{tag}>"))


def _outside_of_the_frame(source: str) -> list[tuple[int, str]]:
    """Where the design's own elements don't fit into the frame, and why."""
    blank = re.compile(r"\{\{.*?\}\}", re.DOTALL).sub(lambda found: re.sub(r"[^\n]", " ", found.group()), source)
    parser = _Outside()
    parser.feed(blank)
    parser.close()
    starts = [0, *(found.end() for found in re.finditer("\n", source))]
    first = dict(reversed([(why, line) for line, why in parser.found]))
    return [(starts[line - 1], why) for why, line in sorted(first.items(), key=lambda found: found[1])]
