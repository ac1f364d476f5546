"""The preview: a page on loopback that shows a design with items of the feed, anew whenever its file is saved.

The design is shown in a frame without scripts, without an origin and without the network, but for images of the hosts
that the shown items name. The page answers to its own address only, so that no other site can read it.
"""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import jinja2
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.designs.examine import LISTS, attributes_used, examine
from app.designs.facts import Facts
from app.designs.items import PICKS, Item, Pick
from app.designs.language import DesignError, parse, render

Picker = Callable[[Pick, list[str]], Awaitable[list[Item]]]
"""Picks items; is given the attributes that the design uses. Raises PickError."""

_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_PAGE_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; frame-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_LOOPBACK = ("127.0.0.1", "localhost")
_LOOK_SECONDS = 0.25
_KEPT = 20


class PickError(Exception):
    """Items could not be read. The message is for the person at the page."""


class Subject(msgspec.Struct, frozen=True):
    """What is previewed."""

    design: Path
    css: Path | None
    store: str
    feed: str
    attributes: tuple[str, ...]
    """What the feed can serve."""
    allowed: frozenset[str] = frozenset()


class Shown(msgspec.Struct):
    """What the page says about one rendering."""

    frame: str = ""
    """The address of the rendered design; empty where there is none."""
    error: str = ""
    items: int = 0
    problems: list[str] = []
    missing: list[str] = []
    hosts: list[str] = []


class Preview:
    """The application. `stop` ends the streams that wait for a change."""

    def __init__(self, subject: Subject, pick: Picker, stop: asyncio.Event) -> None:
        self._subject = subject
        self._pick = pick
        self._stop = stop
        self._versions = itertools.count(1)
        self._frames: dict[int, tuple[str, str]] = {}
        self._drawn: tuple[str, str, list[Item]] | None = None
        self._lock = asyncio.Lock()
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("app.designs"), autoescape=True, undefined=jinja2.StrictUndefined
        )

    def app(self) -> ASGIApp:
        """The application, behind a guard against names that point to loopback."""
        routes = [
            Route("/", self.page),
            Route("/page.js", self.static),
            Route("/page.css", self.static),
            Route("/state", self.state),
            Route("/frame/{version:int}", self.frame),
            Route("/changes", self.changes),
        ]
        return _LoopbackOnly(Starlette(routes=routes))

    async def page(self, request: Request) -> Response:
        subject = self._subject
        text = self._templates.get_template("page.html").render(
            name=subject.design.name, store=subject.store, feed=subject.feed, picks=PICKS
        )
        return HTMLResponse(text, headers={**_HEADERS, "Content-Security-Policy": _PAGE_CSP})

    async def static(self, request: Request) -> Response:
        name = request.url.path.removeprefix("/")
        kinds = {"page.js": "text/javascript", "page.css": "text/css"}
        text = self._templates.get_template(name).render()
        return Response(text, media_type=kinds[name], headers=_HEADERS)

    async def state(self, request: Request) -> Response:
        """Render the design as its file is now, with the items asked for, and say what came of it."""
        how: Pick = request.query_params.get("pick", "random")  # type: ignore[assignment]
        if how not in PICKS:
            raise HTTPException(400, f"pick is none of {', '.join(PICKS)}")
        async with self._lock:
            shown = await self._shown(how, request.query_params.get("draw", ""))
        return JSONResponse(msgspec.to_builtins(shown), headers=_HEADERS)

    async def frame(self, request: Request) -> Response:
        """A rendered design, which may do nothing but look."""
        try:
            text, policy = self._frames[request.path_params["version"]]
        except KeyError:
            raise HTTPException(404, "this rendering is gone; reload the page") from None
        return HTMLResponse(text, headers={**_HEADERS, "Content-Security-Policy": policy})

    async def changes(self, request: Request) -> Response:
        headers = {**_HEADERS, "X-Accel-Buffering": "no"}
        return StreamingResponse(self._changes(), media_type="text/event-stream", headers=headers)

    async def _changes(self) -> AsyncIterator[str]:
        """An event whenever one of the files is saved; a comment now and then finds out who has left."""
        known = self._signature()
        yield "retry: 1000\n\n"
        for look in itertools.count(1):
            try:
                await asyncio.wait_for(self._stop.wait(), _LOOK_SECONDS)
            except TimeoutError:
                now = self._signature()
                if now != known:
                    known = now
                    yield "data: saved\n\n"
                elif look % 40 == 0:
                    yield ": still here\n\n"
            else:
                return

    def _signature(self) -> list[tuple[int, int, int] | None]:
        return [_signature(path) for path in (self._subject.design, self._subject.css) if path]

    async def _shown(self, how: Pick, draw: str) -> Shown:
        subject = self._subject
        try:
            source = _read(subject.design)
            css = _read(subject.css) if subject.css else ""
        except OSError as error:
            return Shown(error=f"{error.filename} can't be read: {error.strerror}")
        except UnicodeDecodeError:
            return Shown(error="the file is not in UTF-8")
        try:
            design = parse(source)
        except DesignError as error:
            return Shown(error=f"line {error.line}: {error}")
        try:
            items = await self._items(how, draw, attributes_used(design, subject.feed))
        except PickError as error:
            return Shown(error=str(error))
        facts = Facts(subject.feed, subject.attributes, total=len(items))
        facts.count(items)
        examined = examine(source, facts, subject.allowed)
        shown = Shown(items=len(items), problems=[f"line {found.line}: {found.text}" for found in examined.errors])
        for used in examined.used:
            if used.share < 1 and used.of == "items" and used.exists:
                lacking = round((1 - used.share) * len(items))
                shown.missing.append(f"{used.name}: missing in {lacking} of {len(items)}")
        lists: dict[str, object] = {name: [] for name in LISTS}
        values = {"headline": "Headline", "query": "", "hits": len(items), **lists, subject.feed: items}
        try:
            text = await asyncio.to_thread(render, design, values, subject.allowed)
        except DesignError as error:
            shown.error = f"line {error.line}: {error}"
            return shown
        shown.hosts = sorted(set(_origins(items)))
        shown.frame = f"/frame/{self._keep(_document(text, css), shown.hosts)}"
        return shown

    async def _items(self, how: Pick, draw: str, attributes: list[str]) -> list[Item]:
        """The items to show; the same ones as before as long as nobody asks for others."""
        wanted = f"{how} {' '.join(attributes)}" if how == "missing" else how
        if self._drawn is None or self._drawn[:2] != (wanted, draw):
            self._drawn = (wanted, draw, await self._pick(how, attributes))
        return self._drawn[2]

    def _keep(self, text: str, origins: list[str]) -> int:
        version = next(self._versions)
        policy = (
            f"default-src 'none'; img-src {' '.join(['data:', *origins])}; style-src 'unsafe-inline'; base-uri 'none';"
            " form-action 'none'; frame-ancestors 'self'; sandbox"
        )
        self._frames[version] = (text, policy)
        self._frames.pop(version - _KEPT, None)
        return version


class _LoopbackOnly:
    """Refuses requests for another host than loopback: a site elsewhere may let its own name point here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Any port: it may be forwarded from another machine's.
        if scope["type"] != "http" or Request(scope).headers.get("host", "").rpartition(":")[0] in _LOOPBACK:
            await self._app(scope, receive, send)
            return
        answer = PlainTextResponse("This page is for 127.0.0.1 and localhost only.\n", 403, headers=_HEADERS)
        await answer(scope, receive, send)


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _document(text: str, css: str) -> str:
    # A style sheet ends at the first </style>, wherever it stands.
    style = "<style>" + css.replace("</", "<\\/") + "</style>" if css else ""
    return f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Design</title>{style}</head><body>{text}'


_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?")


def _origins(value: object) -> Iterator[str]:
    """The hosts that items name, as a Content-Security-Policy has them."""
    if isinstance(value, list):
        for inner in value:
            yield from _origins(inner)
    elif isinstance(value, dict):
        yield from _origins(list(value.values()))
    elif isinstance(value, str) and value[:8].lower().startswith(("http://", "https://")):
        try:
            parts = urlsplit(value)
            host = (parts.hostname or "").encode("idna").decode()
            origin = f"{parts.scheme.lower()}://{host}" + (f":{parts.port}" if parts.port else "")
        except ValueError:
            return
        if _ORIGIN.fullmatch(origin):
            yield origin
