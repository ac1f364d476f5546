"""Designs of Clerk.js 1: Handlebars, one template for one product. Taken apart, every piece with its place.

The syntax is that of Handlebars' own grammar. Nothing is evaluated here, and nothing is refused: what does not fit
together is a piece like any other, so that whoever converts can leave it where it is.
"""

import re
from collections.abc import Sequence

import msgspec


class Text(msgspec.Struct, frozen=True):
    """What stands around the mustaches."""

    start: int
    end: int


class Comment(msgspec.Struct, frozen=True):
    """{{! … }} or {{!-- … --}}"""

    start: int
    end: int
    text: str


class Name(msgspec.Struct, frozen=True):
    """A variable: ../brand.name has one level up and two parts; @index is data with one part; this has none."""

    parts: tuple[str, ...]
    up: int = 0
    is_data: bool = False
    is_local: bool = False
    """Whether it began with this or a dot, so that it can't be the name of a helper or a block parameter."""


class Constant(msgspec.Struct, frozen=True):
    """Text in quotes, a number, true, false, null or undefined."""

    value: str | float | bool | None
    written: str


Argument = Name | Constant


class Call(msgspec.Struct, frozen=True):
    """The inside of a mustache: a name, and what it is given. `strange` says what no rule covers, if anything."""

    head: Argument | None
    arguments: tuple[Argument, ...] = ()
    params: tuple[str, ...] = ()
    """Names of {{#each colors as |color index|}}."""
    strange: str = ""

    @property
    def word(self) -> str:
        """The name in front, where it may be that of a helper."""
        head = self.head
        if isinstance(head, Name) and len(head.parts) == 1 and not (head.up or head.is_data or head.is_local):
            return head.parts[0]
        return ""


class Mustache(msgspec.Struct, frozen=True):
    """One {{ … }} that is no comment."""

    start: int
    end: int
    kind: str
    """value, open, close, else, or what can't be anything else: raw, triple, partial, escaped, inverse, …"""
    call: Call
    trims_before: bool = False
    trims_after: bool = False


class Branch(msgspec.Struct, frozen=True):
    """A part of a block: behind its opening, or behind an else."""

    tag: Mustache
    body: tuple["Piece", ...]


class Block(msgspec.Struct, frozen=True):
    """{{#name …}} … {{else}} … {{/name}}"""

    branches: tuple[Branch, ...]
    close: Mustache

    @property
    def start(self) -> int:
        return self.branches[0].tag.start

    @property
    def end(self) -> int:
        return self.close.end


class Broken(msgspec.Struct, frozen=True):
    """A stretch that belongs to nothing: a block that does not end, an end without a beginning."""

    start: int
    end: int
    why: str


Piece = Text | Comment | Mustache | Block | Broken


def parse(source: str) -> tuple[Piece, ...]:
    """The pieces of a design, in order and without gaps."""
    return _blocks(_flat(source), source)


def _flat(source: str) -> list[Text | Comment | Mustache | Broken]:
    found: list[Text | Comment | Mustache | Broken] = []
    at = 0
    while (start := source.find("{{", at)) >= 0:
        slashes = len(source[at:start]) - len(source[at:start].rstrip("\\"))
        if slashes == 1:
            start -= 1
        if start > at:
            found.append(Text(at, start))
        piece = _escaped(source, start) if slashes == 1 else _mustache(source, start)
        found.append(piece)
        at = piece.end
    if at < len(source):
        found.append(Text(at, len(source)))
    return found


def _escaped(source: str, start: int) -> Mustache | Broken:
    end = source.find("}}", start)
    if end < 0:
        return Broken(start, len(source), "braces that do not close")
    return Mustache(start, end + 2, "escaped", Call(None))


_OPENING = re.compile(r"\{\{(~?)(!--|!|#>|#\*|[#/^&>*]|\{)?")


def _mustache(source: str, start: int) -> Comment | Mustache | Broken:
    if source.startswith("{{{{", start):
        return _raw(source, start)
    opening = _OPENING.match(source, start)
    if opening is None:
        raise ValueError(f"no mustache begins at {start}")
    sign = opening.group(2) or ""
    if sign.startswith("!"):
        closing = re.compile(r"--~?\}\}" if sign == "!--" else r"~?\}\}").search(source, opening.end())
        if closing is None:
            return Broken(start, len(source), "a comment that does not end")
        return Comment(start, closing.end(), source[opening.end() : closing.start()])
    last = _closing(source, opening.end(), "}}}" if sign == "{" else "}}")
    if last < 0:
        return Broken(
            start, len(source), "three braces that do not close" if sign == "{" else "braces that do not close"
        )
    if sign != "{" and source.startswith("}}}", last):
        return Broken(start, last + 3, "two braces that three close, which Handlebars refuses")
    end = last + (3 if sign == "{" else 2)
    inside = source[opening.end() : last]
    if sign == "{" and source[last + 2] == "~":
        end += 1
    trims_after = inside.endswith("~")
    kind, rest = _kind(sign, inside.removesuffix("~").strip())
    return Mustache(start, end, kind, _call(rest), bool(opening.group(1)), trims_after)


def _raw(source: str, start: int) -> Mustache | Broken:
    closing = re.compile(r"\{\{\{\{/[^}]*\}\}\}\}").search(source, start)
    if closing is None:
        return Broken(start, len(source), "a raw block that does not end")
    return Mustache(start, closing.end(), "raw", Call(None))


def _closing(source: str, at: int, closing: str) -> int:
    """Where the mustache ends; what stands in quotes does not end it."""
    ends = re.compile(r'"(?:\\"|[^"])*"|' + r"'(?:\\'|[^'])*'|" + re.escape(closing))
    for found in ends.finditer(source, at):
        if found.group() == closing:
            return found.start()
    # A quote that has no partner is no text.
    return source.find(closing, at)


_KINDS = {"#": "open", "/": "close", "&": "triple", "{": "triple", ">": "partial", "#>": "partial", "*": "decorator"}


def _kind(sign: str, inside: str) -> tuple[str, str]:
    if sign == "^":
        return ("inverse", inside) if inside else ("else", "")
    if not sign and re.match(r"else\b(?![.\w/=-])", inside):
        return "else", inside[4:].strip()
    return _KINDS.get(sign, "decorator" if sign else "value"), inside


_PARTS = re.compile(
    r"""(?P<string>"(?:\\"|[^"])*"|'(?:\\'|[^'])*')
      | (?P<params>as\s*\|[^|]*\|)
      | (?P<pair>[^\s=()"'|]+=)
      | (?P<word>[^\s=()"'|]+)
      | (?P<space>\s+)
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)


def _call(inside: str) -> Call:
    values: list[Argument] = []
    params: tuple[str, ...] = ()
    for found in _PARTS.finditer(inside):
        text = found.group()
        match found.lastgroup:
            case "string":
                quote = text[0]
                values.append(Constant(text[1:-1].replace("\\" + quote, quote), text))
            case "params":
                params = tuple(text[text.index("|") + 1 : -1].split())
            case "word":
                value = _value(text)
                if value is None:
                    return Call(None, strange=text)
                values.append(value)
            case "pair" | "other":
                return Call(values[0] if values else None, strange=text if text != "(" else "(…)")
    if not values:
        return Call(None, params=params)
    return Call(values[0], tuple(values[1:]), params)


_CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "undefined": None}
_PART = re.compile(r"[^\W\d]\w*")


def _value(word: str) -> Argument | None:
    if word in _CONSTANTS:
        return Constant(_CONSTANTS[word], word)
    if re.fullmatch(r"-?\d+(?:\.\d+)?", word):
        return Constant(float(word), word)
    is_data = word.startswith("@")
    rest = word[1:] if is_data else word
    up = 0
    while rest == ".." or rest.startswith("../"):
        up += 1
        rest = rest[3:]
    is_local = bool(up)
    if rest in (".", "this", ""):
        return Name((), up, is_data, is_local=True) if rest or up else None
    for start in ("./", "this.", "this/"):
        if rest.startswith(start):
            rest = rest.removeprefix(start)
            is_local = True
            break
    parts = tuple(re.split(r"[./]", rest))
    if not all(map(_PART.fullmatch, parts)):
        return None
    return Name(parts, up, is_data, is_local)


class _Open(msgspec.Struct):
    """A block that has begun."""

    tag: Mustache
    branches: list[Branch]
    body: list[Piece]

    def close(self, tag: Mustache) -> Block:
        return Block((*self.branches, Branch(self.tag, tuple(self.body))), tag)


def _blocks(flat: Sequence[Text | Comment | Mustache | Broken], source: str) -> tuple[Piece, ...]:
    """Blocks put together from what opens, divides and closes them."""
    outside: list[Piece] = []
    stack: list[_Open] = []
    for piece in flat:
        body = stack[-1].body if stack else outside
        if not isinstance(piece, Mustache) or piece.kind not in ("open", "inverse", "else", "close"):
            body.append(piece)
        elif piece.kind in ("open", "inverse"):
            stack.append(_Open(piece, [], []))
        elif piece.kind == "else":
            if stack:
                block = stack[-1]
                block.branches.append(Branch(block.tag, tuple(block.body)))
                block.tag, block.body = piece, []
            else:
                body.append(Broken(piece.start, piece.end, "else outside of a block"))
        else:
            _close(stack, piece, outside, source)
    while stack:
        _unclosed(stack, outside, len(source))
    return tuple(outside)


def _opening_of(block: _Open) -> Mustache:
    return block.branches[0].tag if block.branches else block.tag


def _close(stack: list[_Open], tag: Mustache, outside: list[Piece], source: str) -> None:
    wanted = _written(tag, source)
    if not any(_written(_opening_of(block), source) == wanted for block in stack):
        body = stack[-1].body if stack else outside
        body.append(Broken(tag.start, tag.end, f"/{wanted} closes nothing"))
        return
    while _written(_opening_of(stack[-1]), source) != wanted:
        _unclosed(stack, outside, tag.start)
    block = stack.pop().close(tag)
    (stack[-1].body if stack else outside).append(block)


def _unclosed(stack: list[_Open], outside: list[Piece], end: int) -> None:
    """A block without its end may reach anywhere: all behind its beginning is left alone."""
    tag = _opening_of(stack.pop())
    name = tag.call.word or "…"
    (stack[-1].body if stack else outside).append(Broken(tag.start, end, f"#{name} without /{name}"))


def _written(tag: Mustache, source: str) -> str:
    """The name in a block's opening or closing, as it is written."""
    inside = source[tag.start : tag.end].strip("{}~").lstrip("#/^").strip()
    return inside.split(maxsplit=1)[0] if inside else ""
