"""A stand-in for Clerk's verify endpoint, for the demo and the tests. It knows which tokens are good for which key."""

from collections.abc import Mapping, Set

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


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
