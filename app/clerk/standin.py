"""A stand-in for Clerk's verify endpoint, for the demo and the tests. It knows which tokens are good for which key."""

import asyncio
import threading
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager

import msgspec
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.hosting import host
from app.settings import Server
from app.sockets import listen, url_of


class _Asked(msgspec.Struct):
    token: str
    key: str


def verify_endpoint(tokens: Mapping[str, Set[str]]) -> Starlette:
    """An application that answers POST /v2/token/verify as Clerk does.

    `tokens` holds the good tokens of each public key. A wrong one is told with HTTP status 200, as Clerk does.
    """

    async def verify(request: Request) -> Response:
        try:
            asked = msgspec.json.decode(await request.body(), type=_Asked)
        except msgspec.MsgspecError:
            return JSONResponse({"status": "error", "type": "ParsingError", "message": "Not what I expected."})
        if asked.token in tokens.get(asked.key, set()):
            return JSONResponse({"status": "ok", "token_payload": {"store": asked.key}})
        return JSONResponse(
            {
                "status": "error",
                "type": "AuthenticationError",
                "message": "Invalid token.",
                "id": "0",
                "moreInfo": "",
            }
        )

    return Starlette(routes=[Route("/v2/token/verify", verify, methods=["POST"])])


@contextmanager
def running(tokens: Mapping[str, Set[str]]) -> Iterator[str]:
    """The endpoint on a free loopback port, in a thread of its own, while the block runs; its URL."""
    listener = listen("127.0.0.1:0", user_timeout_seconds=30)
    url = url_of(listener) + "/v2/token/verify"
    loop = uvloop.new_event_loop()
    stop = asyncio.Event()
    serving = host(verify_endpoint(tokens), [listener], Server(), stop)
    thread = threading.Thread(target=loop.run_until_complete, args=(serving,), daemon=True)
    thread.start()
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
