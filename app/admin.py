"""The operators' application, on an address of its own: status, metrics, health.

It needs the settings, a small pool of its own and the folder of the metrics, and nothing of the processes that serve
feeds: one of it is right for any number of them.
"""

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access import basic
from app.access.client import Client, address_of
from app.access.pace import Refusals
from app.catalog.pool import LOST, Pool
from app.catalog.source import Sources
from app.protocol.feeds import FEEDS
from app.protocol.problems import ADMIN_NAME, ADMIN_REQUIRED, Refusal
from app.service import application, connect, readiness
from app.settings import Access, Settings, Store, replace
from app.status import history
from app.status.events import Emit
from app.status.gauges import gauges
from app.status.metrics import exposition
from app.status.pages import Pages
from app.status.status_page import StatusPage

_CONNECTIONS = 2
_OPEN_TO_ALL = ("/-/healthz", "/-/readyz")


@asynccontextmanager
async def open_admin(settings: Settings, dsn: str, folder: Path, emit: Emit) -> AsyncIterator[ASGIApp]:
    """Connect, and wire the application. `folder` is that of the metrics. Raises StartError."""
    small = replace(settings, database=replace(settings.database, pool_size=_CONNECTIONS))
    pool = await connect(small, dsn, emit)
    try:
        yield create_admin(settings, pool, folder, emit)
    finally:
        await pool.close()


def create_admin(settings: Settings, pool: Pool, folder: Path, emit: Emit) -> ASGIApp:
    """The application; everything but the health routes is behind access.admin where that is set."""
    sources = Sources(pool, settings.database.resume_for.seconds)
    metrics = MetricsPage(settings, pool, folder)
    routes = [Route("/-/metrics", metrics.metrics), *StatusPage(settings, pool).routes()]
    routes += Pages(readiness(settings, pool, sources), with_reasons=not settings.access.admin).routes()
    return application(routes, settings.stores, emit, guard=lambda app: BehindAdmin(app, settings.access))


class BehindAdmin:
    """Lets operators in: by HTTP authentication where access.admin is set, else by a name of this machine's own."""

    def __init__(self, app: ASGIApp, settings: Access) -> None:
        self._app = app
        self._wanted = settings.admin
        self._refusals = Refusals(settings.refusal_rate)
        # Refusals are counted by store: this is one that no feed.toml can have.
        self._door = Store(public_key="", name="admin_bind")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN_TO_ALL:
            if self._wanted:
                await self._check(Request(scope))
            else:
                _require_own_name(Request(scope))
        await self._app(scope, receive, send)

    async def _check(self, request: Request) -> None:
        client = Client(address_of(request), address_of(request))
        header = request.headers.get("authorization")
        async with self._refusals.turn(self._door, client):
            try:
                basic.check(header, self._wanted)
            except Refusal as refusal:
                if header is not None:  # the first challenge is no guess
                    self._refusals.count(self._door, client)
                raise Refusal(ADMIN_REQUIRED, refusal.detail, headers=refusal.headers) from None


def _require_own_name(request: Request) -> None:
    """Refuse who was led here by a name that somebody else owns: DNS rebinding. Raises Refusal."""
    host = request.headers.get("host", "")
    with suppress(ValueError):
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost" or ipaddress.ip_address(name).is_loopback:
            return
    raise Refusal(ADMIN_NAME, f"The request is for {host[:100]!r}.")


class MetricsPage:
    """`/-/metrics`: what the processes wrote, and what the database knows."""

    def __init__(self, settings: Settings, pool: Pool, folder: Path) -> None:
        self._places = [(store, feed) for store in settings.stores for feed in FEEDS]
        self._pool = pool
        self._folder = folder

    async def metrics(self, request: Request) -> Response:
        """The metrics, those of the processes also while the database is away."""
        try:
            async with self._pool.connection() as connection:
                walks = await history.walks(connection, self._places, full=20, delta=5)
                asked = gauges(walks, await history.rendered(connection), time.time())
        except (Refusal, asyncpg.PostgresError, *LOST):
            asked = gauges(None, [], time.time())
        body, media_type = await asyncio.to_thread(exposition, self._folder, asked)
        return Response(body, headers={"Content-Type": media_type, "Cache-Control": "no-store"})
