"""Our own routes under `/-/`: health, readiness, and the page of problems."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Literal

import msgspec
import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from app import __version__
from app.protocol.openapi import OPENAPI_PATH, Health, document
from app.protocol.problems import ALL, PROBLEMS_PATH
from app.status.templates import template

_NO_STORE = {"Cache-Control": "no-store"}
_CSP = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_READY_SECONDS = 1.0


async def _nothing(request: Request) -> Response:
    raise HTTPException(404)


class Readiness(msgspec.Struct, frozen=True):
    """Whether the database answers and every feed named in feed.toml can be served, and what is amiss, for people."""

    state: Literal["ok", "unavailable"]
    reasons: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """Degraded: everything is served, and somebody should look."""
        return "degraded" if self.state == "ok" and self.reasons else self.state


class Pages:
    """Own routes that name nothing of the shop, so that they may stand outside the gate.

    Reasons do: they are told where `with_reasons`, on the address of operators.
    """

    def __init__(self, ready: Callable[[], Awaitable[Readiness]], *, with_reasons: bool = False) -> None:
        self._ready = ready
        self._with_reasons = with_reasons
        self._lock = asyncio.Lock()
        self._last: tuple[float, Readiness] = (-_READY_SECONDS, Readiness("unavailable"))

    def routes(self) -> list[Route]:
        return [
            Route("/-/healthz", self.healthz),
            Route("/-/readyz", self.readyz),
            Route(PROBLEMS_PATH, self.problems),
            Route(OPENAPI_PATH, self.openapi),
            Route("/-/{rest:path}", _nothing),
        ]

    async def healthz(self, request: Request) -> Response:
        """The process answers."""
        return JSONResponse(msgspec.to_builtins(Health("ok")), headers=_NO_STORE)

    async def readyz(self, request: Request) -> Response:
        """The service can do its work. Asked of the database once a second at most: the route is public."""
        async with self._lock:
            if time.monotonic() - self._last[0] >= _READY_SECONDS:
                ready = await self._ready()
                self._last = (time.monotonic(), ready)
        ready = self._last[1]
        reasons = ready.reasons if self._with_reasons and ready.reasons else msgspec.UNSET
        said = msgspec.to_builtins(Health(ready.status, reasons))
        return JSONResponse(said, 200 if ready.state == "ok" else 503, headers=_NO_STORE)

    async def openapi(self, request: Request) -> Response:
        """The description of the public routes."""
        return Response(await asyncio.to_thread(_openapi), media_type="application/json")

    async def problems(self, request: Request) -> Response:
        """Every problem the service answers with, its cause and its cure."""
        return HTMLResponse(
            await asyncio.to_thread(_problems),
            headers={"Content-Security-Policy": _CSP, "X-Content-Type-Options": "nosniff"},
        )


@cache
def _openapi() -> bytes:
    return orjson.dumps(document(__version__))


@cache
def _problems() -> str:
    return template("problems.html").render(problems=ALL)
