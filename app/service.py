"""Where the parts are wired together: the only place that knows them all."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import asyncpg
import msgspec
import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import __version__
from app.access.client import address_of
from app.access.gate import Gate, require_http_1
from app.access.tokens import Tokens
from app.catalog import histories
from app.catalog.ahead import Ahead
from app.catalog.bookmarks import Bookmarks
from app.catalog.guard import Guard
from app.catalog.pool import LOST, Patience, Pool, of_primary
from app.catalog.reader import Reader
from app.catalog.rendered import Refresher, connection_for_refresh, leave_behind, note_still_served
from app.catalog.schema import migrate
from app.catalog.small_pages import MOST_ROWS, SmallPages
from app.catalog.source import Sources
from app.catalog.standbys import shows_our_schema
from app.clerk.api import ClerkApi
from app.clerk.deletions import Deletions
from app.endpoint import Catalog, FeedEndpoint
from app.protocol.feeds import FEEDS, SINGLE_FILE, FeedName
from app.protocol.problems import BODY_UNEXPECTED, INTERNAL, MEDIA_TYPE, METHOD_NOT_ALLOWED, NOT_FOUND, Refusal
from app.response import CutOffError
from app.settings import Settings, Store
from app.status import requests
from app.status.events import BookmarksSwept, DatabaseAwaited, Emit, Events, Failed, Refused
from app.status.metrics import Metrics
from app.status.pages import Pages, Readiness
from app.status.record import Activity, Record, connection_for_record
from app.upkeep import Upkeep, worries

_SWEEP_SECONDS = 600.0
_NOTE_SERVED_SECONDS = 5.0
_DELETE_SECONDS = 30.0
"""For one call of Clerk's that deletes; nobody waits for it."""
_CANCEL_SECONDS = 5.0
_HSTS = (b"strict-transport-security", b"max-age=31536000")
"""RFC 6797: who was here by HTTPS once does not ask by plain HTTP again. Where a proxy ends TLS, it is the proxy's."""


class StartError(Exception):
    """The service can't start. The message says why and what to do."""


class Service(msgspec.Struct, frozen=True):
    """A service that is ready to be put behind sockets."""

    app: ASGIApp
    pool: Pool
    sources: Sources
    database: str
    """What answers, e.g. "PostgreSQL 18.4"."""
    warm: Callable[[], Coroutine[None, None, None]]
    """Makes ready what the first request needs and the start does not."""


@asynccontextmanager
async def open_service(settings: Settings, dsn: str, emit: Emit, *, measure: bool = False) -> AsyncIterator[Service]:
    """Connect, bring our schema up to date, and wire the parts. Raises StartError or SchemaError.

    With `measure` this process keeps metrics, in the folder that app.status.metrics_folder has made.
    """
    happened = Events(emit)
    async with AsyncExitStack() as stack:
        pool = await connect(settings, dsn, happened)
        stack.push_async_callback(pool.close)
        async with pool.connection() as connection:
            await migrate(connection)
            version = await connection.fetchval("show server_version")
        clerk = ClerkApi(settings.access.verify_url, settings.access.verify_timeout.seconds)
        stack.push_async_callback(clerk.close)
        sources = Sources(pool, settings.database.resume_for.seconds)
        bookmarks = Bookmarks(pool, settings.database.resume_for.seconds, happened)
        tokens = Tokens(clerk, settings.access, happened)
        guard = Guard(pool, settings.database.resume_for.seconds, happened)
        standbys = await _standbys(settings, happened, stack)
        endpoint = _endpoint(settings, pool, sources, bookmarks, guard, tokens, happened, stack, standbys)

        def activity() -> Activity:
            connections, in_use, waiting = pool.usage()
            return Activity(len(tokens), connections, in_use, waiting, tokens.known_total, endpoint.streams())

        recorder = Record(__version__, activity, lambda: connection_for_record(dsn))
        happened.add(recorder)
        stack.push_async_callback(recorder.close)
        if measure:
            metrics = Metrics(activity)
            happened.add(metrics)
            stack.callback(metrics.flush)
            stack.push_async_callback(cancelled, asyncio.create_task(metrics.run()))
        stack.push_async_callback(cancelled, asyncio.create_task(recorder.run()))
        stack.push_async_callback(cancelled, asyncio.create_task(_sweep(guard, bookmarks, happened)))

        def direct() -> Awaitable[Any]:
            return connection_for_refresh(dsn)

        deleting = ClerkApi(settings.access.verify_url, _DELETE_SECONDS)
        stack.push_async_callback(deleting.close)
        deletions = Deletions(direct, deleting, settings.clerk.api_url, happened)
        for work in Upkeep(settings, Refresher(direct, happened), deletions, happened).works():
            stack.push_async_callback(cancelled, asyncio.create_task(work()))
        # Last: settings under which no process can start change nothing.
        async with pool.connection() as connection:
            began = await leave_behind(connection, settings.stores.values())
            await histories.seen(connection)
        serving = asyncio.create_task(_note_served(pool, list(settings.stores.values()), began))
        stack.push_async_callback(cancelled, serving)
        pages = Pages(readiness(settings, pool, sources))
        feeds = Route("/{store}/{feed}", endpoint, methods=["GET"])
        yield Service(
            app=application([*pages.routes(), feeds], settings.stores, happened),
            pool=pool,
            sources=sources,
            database=f"PostgreSQL {version.split()[0]}",
            warm=clerk.warm,
        )


def _endpoint(
    settings: Settings,
    pool: Pool,
    sources: Sources,
    bookmarks: Bookmarks,
    guard: Guard,
    tokens: Tokens,
    emit: Emit,
    stack: AsyncExitStack,
    standbys: Pool | None,
) -> FeedEndpoint:
    """The feeds behind the gate."""
    resume_seconds = settings.database.resume_for.seconds
    reader = Reader(pool, sources, settings.database, emit, standbys)
    ahead = Ahead(reader, pool, least_rows=MOST_ROWS + 1)
    stack.push_async_callback(ahead.close)
    catalog = Catalog(sources, reader, bookmarks, SmallPages(pool, resume_seconds, emit), ahead, guard)
    gate = Gate(settings.stores, tokens, settings.access)
    return FeedEndpoint(gate, catalog, settings.server.send_timeout.seconds, emit)


async def cancelled(task: "asyncio.Task[None]", seconds: float = _CANCEL_SECONDS) -> None:
    """End a task that would go on for ever, after what it does in the end has had so many seconds.

    A cancellation that comes together with what the task waits for may be swallowed (before Python 3.12
    asyncio.wait_for does that): then the task goes on, and is cancelled again.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=seconds)
    with suppress(asyncio.CancelledError):
        await task


def application(
    routes: list[Route], stores: Container[str], emit: Emit, *, guard: Callable[[ASGIApp], ASGIApp] | None = None
) -> ASGIApp:
    """Routes without Starlette's own error pages: every error is a problem of ours. `guard` stands before them."""
    router = Router(routes, redirect_slashes=False)
    return _Outermost(guard(router) if guard else router, stores, emit)


def problem_response(request: Request, refusal: Refusal, stores: Container[str], emit: Emit) -> Response:
    """The answer to a refusal, as RFC 9457 has it, and its event."""
    store, feed = _place(request, stores)
    emit(
        Refused(
            store=store,
            feed=feed,
            method=request.method,
            path=request.scope["path"][:200],
            address=address_of(request),
            status=refusal.problem.status,
            code=refusal.problem.code,
            detail=refusal.detail,
        )
    )
    headers = {"Cache-Control": "no-store", **refusal.headers}
    return Response(orjson.dumps(refusal.body()), refusal.problem.status, headers, media_type=MEDIA_TYPE)


def _place(request: Request, stores: Container[str]) -> tuple[str, str]:
    """The store and the feed a path names, each empty where there is none: a path may say anything."""
    named = request.scope.get("path_params", {})
    store, feed = named.get("store", ""), named.get("feed", "")
    feed = feed if feed == SINGLE_FILE else feed.partition(".")[0]
    return store if store in stores else "", feed if feed in FEEDS or feed == SINGLE_FILE else ""


class _Outermost:
    """Gives a request its id, answers whatever is raised inside with a problem, and refuses HTTP/2 before any route."""

    def __init__(self, app: ASGIApp, stores: Container[str], emit: Emit) -> None:
        self._app = app
        self._stores = stores
        self._emit = emit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        id = (requests.HEADER, requests.begin(request.headers.get("cf-ray")).encode())
        scope["app"] = self  # Starlette's routes raise their 404 and 405 only inside an application
        begun = False
        drain: asyncio.Task[None] | None = None

        async def watched(message: Message) -> None:
            nonlocal begun
            if not begun:
                begun = True
                ours = (id, _HSTS) if scope["scheme"] == "https" else (id,)
                message["headers"] = [*message.get("headers", ()), *ours]
            await send(message)

        try:
            require_http_1(request)
            if "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0":
                # Hypercorn's reader waits without end for a place in its queue of body pieces (0.18).
                drain = asyncio.create_task(_drain(receive))
                raise Refusal(BODY_UNEXPECTED, "The request carries a body.", headers={"Connection": "close"})
            await self._app(scope, receive, watched)
        except CutOffError:
            raise
        except Exception as error:
            if begun:
                self._emit(_failed(request, error))
                raise
            answer = problem_response(request, self._refusal(request, error), self._stores, self._emit)
            await answer(scope, receive, watched)
        finally:
            if drain:
                await asyncio.wait({drain}, timeout=1)
                drain.cancel()

    def _refusal(self, request: Request, error: Exception) -> Refusal:
        if isinstance(error, Refusal):
            return error
        path = request.scope["path"][:200]
        if isinstance(error, HTTPException) and error.status_code == 405:
            detail = f"{request.method} is not allowed at {path!r}."
            return Refusal(METHOD_NOT_ALLOWED, detail, headers=error.headers)
        if isinstance(error, HTTPException):
            return Refusal(NOT_FOUND, f"There is nothing at {path!r}.")
        self._emit(_failed(request, error))
        return Refusal(INTERNAL, f"An unexpected {type(error).__name__} stopped the request.")


async def _drain(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _failed(request: Request, error: Exception) -> Failed:
    trace = "".join(traceback.format_exception(error))
    return Failed(path=request.scope["path"][:200], error=type(error).__name__, traceback=trace)


def readiness(settings: Settings, pool: Pool, sources: Sources) -> Callable[[], Awaitable[Readiness]]:
    """Whether every feed named in feed.toml can be served now, and whether somebody should look."""
    named: list[tuple[str, FeedName]] = [
        (store.name, feed) for store in settings.stores.values() for feed in FEEDS if feed in store.feeds
    ]

    async def ready() -> Readiness:
        try:
            await sources.answer()
            for name, feed in named:
                await sources.of(settings.stores[name], feed)
            return Readiness("ok", tuple(await worries(settings, pool)))
        except Refusal as refusal:
            return Readiness("unavailable", (f"{refusal.detail} {refusal.fix}",))
        except (asyncpg.PostgresError, *LOST) as error:
            return Readiness("unavailable", (f"The database does not answer ({type(error).__name__}).",))

    return ready


async def connect(settings: Settings, dsn: str, emit: Emit) -> Pool:
    """A pool on the database, waited for as long as resume_for: it may be starting too."""
    ours = settings.database
    key = "state_dsn" if ours.state_dsn and of_primary(ours.state_dsn.reveal()) == dsn else "dsn"
    patience = Patience(settings.database.resume_for.seconds)
    while True:
        try:
            return await Pool.open(dsn, settings.database, emit)
        except asyncpg.ClientConfigurationError as error:
            raise StartError(f"database.{key} in feed.toml can't be used: {error}.") from None
        except LOST as error:
            if not patience.attempts:
                seconds = settings.database.resume_for.seconds
                emit(DatabaseAwaited(cause=type(error).__name__, seconds=seconds))
            try:
                await patience.wait(error)
            except Refusal:
                raise StartError(
                    f"The database does not answer ({type(error).__name__}: {error})."
                    f" Check that PostgreSQL runs and that database.{key} in feed.toml names it."
                ) from None
        except ValueError as error:
            raise StartError(
                f"database.{key} in feed.toml is not a URL of PostgreSQL ({type(error).__name__})."
            ) from None
        except asyncpg.PostgresError as error:
            raise StartError(
                f"PostgreSQL refused the connection: {error}. Check database.{key} in feed.toml."
            ) from None


async def _standbys(settings: Settings, emit: Emit, stack: AsyncExitStack) -> Pool | None:
    """The servers that full walks are read from, where that is not the primary. Raises StartError."""
    dsn, seconds = settings.database.dsn, settings.database.resume_for.seconds
    if dsn is None or not settings.database.state_dsn:
        return None
    pool = await connect(settings, dsn.reveal(), emit)
    stack.push_async_callback(pool.close)
    async with pool.connection() as connection:
        if not await shows_our_schema(connection, seconds):
            raise StartError(
                f"The servers of database.dsn did not show within {seconds:g} s what was written by database.state_dsn."
                " Both must name the same database: the primary, and standbys that follow it."
            )
    return pool


async def _note_served(pool: Pool, stores: list[Store], last: str) -> None:
    """Say again and again which feeds are served unrendered, `last` at the start; see app/catalog/rendered.py."""
    try:
        while True:
            await asyncio.sleep(_NOTE_SERVED_SECONDS)
            with suppress(Refusal, asyncpg.PostgresError, *LOST):
                async with pool.connection() as connection:
                    last = await note_still_served(connection, stores)
                    await histories.seen(connection)
    finally:
        with suppress(Refusal, asyncpg.PostgresError, *LOST):
            async with pool.connection() as connection:
                await note_still_served(connection, stores, ended=last)


async def _sweep(guard: Guard, bookmarks: Bookmarks, emit: Emit) -> None:
    while True:
        with suppress(Refusal, asyncpg.PostgresError):
            await guard.remember()
            count = await bookmarks.sweep()
            if count:
                emit(BookmarksSwept(count=count))
        await asyncio.sleep(_SWEEP_SECONDS)
