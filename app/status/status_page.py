"""The status page: `/-/status`, and one page for each feed.

Made here, whole, for every reading; a script of our own reads it again every few seconds. It shows what the tables of
`clerk_feed` tell, so it is the same whichever process answers.
"""

import asyncio
import time
from importlib.resources import files

import asyncpg
import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from app import __version__
from app.catalog.pool import LOST, Pool
from app.protocol.feeds import FEEDS, SINGLE_FILE
from app.protocol.problems import DATABASE_UNAVAILABLE, Refusal
from app.settings import Settings
from app.status import history, view
from app.status.templates import template

_CSP = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_FRESH_SECONDS = 1.0
"""Several readers in one second are shown the same."""

_OVERVIEW = {"full": 40, "delta": 3}
_DETAIL = {"full": 200, "delta": 200}
_ASSETS = {"status.css": "text/css", "status.js": "text/javascript", "status.svg": "image/svg+xml"}


class _Kept(msgspec.Struct):
    body: str = ""
    made: float = -_FRESH_SECONDS


class StatusPage:
    """Serves the page of everything, those of each feed, and what they need."""

    def __init__(self, settings: Settings, pool: Pool) -> None:
        self._stores = list(settings.stores)
        self._pool = pool
        self._lock = asyncio.Lock()
        self._kept: dict[tuple[str, str], _Kept] = {}
        folder = files("app.status") / "static"
        self._assets = {name: (folder / name).read_bytes() for name in _ASSETS}

    def routes(self) -> list[Route]:
        return [
            Route("/-/status", self.overview),
            Route("/-/status/{store}/{feed}", self.detail),
            *(Route(f"/-/{name}", self.asset) for name in _ASSETS),
        ]

    async def overview(self, request: Request) -> Response:
        """Everything at a glance."""
        return await self._page("", "")

    async def detail(self, request: Request) -> Response:
        """One feed: its plots and its last walks."""
        store, feed = request.path_params["store"], request.path_params["feed"]
        if store not in self._stores or feed not in (*FEEDS, SINGLE_FILE):
            raise HTTPException(404)
        return await self._page(store, feed)

    async def asset(self, request: Request) -> Response:
        """A style sheet, a script or a picture of the pages."""
        name = request.scope["path"].rpartition("/")[2]
        headers = {"Content-Type": _ASSETS[name], "X-Content-Type-Options": "nosniff", "Cache-Control": "max-age=300"}
        return Response(self._assets[name], headers=headers)

    async def _page(self, store: str, feed: str) -> Response:
        async with self._lock:
            kept = self._kept.setdefault((store, feed), _Kept())
            if time.monotonic() - kept.made >= _FRESH_SECONDS:
                kept.body = await self._render(store, feed)
                kept.made = time.monotonic()
        return HTMLResponse(kept.body, headers=_HEADERS)

    async def _render(self, store: str, feed: str) -> str:
        places = [(store, feed)] if feed else [(s, f) for s in self._stores for f in FEEDS]
        most = _DETAIL if feed else _OVERVIEW
        try:
            async with self._pool.connection() as connection:
                facts = view.Facts(
                    now=time.time(),
                    walks=await history.walks(connection, places, **most),
                    rendered=await history.rendered(connection),
                    occurrences=await history.occurrences(connection),
                    processes=await history.processes(connection),
                    invalid=await history.invalid_items(connection, store or None),
                )
        except (asyncpg.PostgresError, *LOST) as error:
            raise Refusal(
                DATABASE_UNAVAILABLE,
                f"What this page shows is in the database, which could not be asked ({type(error).__name__}).",
                headers={"Retry-After": "10"},
            ) from error
        return await asyncio.to_thread(self._page_of, store, feed, facts)

    def _page_of(self, store: str, feed: str, facts: view.Facts) -> str:
        if feed:
            return template("feed.html").render(page=view.detail(store, feed, facts), version=__version__)
        return template("status.html").render(page=view.overview(self._stores, facts), version=__version__)
