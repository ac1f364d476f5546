"""A stand-in for Clerk's API that can be told to misbehave."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.protocol.problems import ALL

if TYPE_CHECKING:
    from tests.conftest import Answer

Behaviour = Callable[[str, str], Awaitable[Response]]


class FakeClerk:
    """Answers POST /v2/token/verify. Set `behaviour` to change how; `calls` are the (token, key) it was asked."""

    def __init__(self, good: str = "good-token") -> None:
        self.url = ""
        self.good = {good}
        self.calls: list[tuple[str, str]] = []
        self.behaviour: Behaviour | None = None
        self._lock = threading.Lock()
        self.deletions: list[tuple[str, list[Any]]] = []
        self.deletes: Callable[[str, list[Any]], Awaitable[Response]] | None = None
        """How a deletion of some ids of a feed is answered."""
        self.app = Starlette(
            routes=[
                Route("/v2/token/verify", self._verify, methods=["POST"]),
                Route("/v2/{feed}", self._delete, methods=["DELETE"]),
            ]
        )

    @property
    def api_url(self) -> str:
        return self.url + "/v2"

    @property
    def verify_url(self) -> str:
        return self.url + "/v2/token/verify"

    def calls_for(self, key: str) -> list[str]:
        return [token for token, asked in list(self.calls) if asked == key]

    async def _verify(self, request: Request) -> Response:
        asked = msgspec.json.decode(await request.body(), type=dict[str, str])
        token, key = asked["token"], asked["key"]
        with self._lock:
            self.calls.append((token, key))
        if self.behaviour is not None:
            return await self.behaviour(token, key)
        return accepted() if token in self.good and key.startswith("key-") else rejected()

    async def _delete(self, request: Request) -> Response:
        feed, asked = request.path_params["feed"], request.query_params
        assert set(asked) == {"key", "private_key", feed}, asked
        ids = msgspec.json.decode(asked[feed].encode(), type=list[Any])
        if self.deletes is not None:
            response = await self.deletes(feed, ids)
        else:
            known = asked["private_key"] == "private-" + asked["key"]
            response = JSONResponse({"status": "ok"}) if known else rejected()
        if response.body == b'{"status":"ok"}':
            with self._lock:
                self.deletions.append((feed, ids))
        return response


def accepted(**payload: object) -> Response:
    return JSONResponse({"status": "ok", "token_payload": payload})


def rejected() -> Response:
    return error("AuthenticationError")


def error(kind: str, status: int = 200) -> Response:
    """Clerk's error envelope, which comes with HTTP status 200 too."""
    return JSONResponse(
        {"status": "error", "type": kind, "message": "Something about it.", "id": "1", "moreInfo": ""}, status
    )


async def silent(token: str, key: str) -> Response:
    """Never answers in time."""
    await asyncio.sleep(30)
    return accepted()


def problem(answer: "Answer", status: int, code: str) -> dict[str, Any]:
    """The problem details of a refusal, which must be whole: every member, its type, and no caching."""
    assert answer.status == status, (answer.status, answer.body)
    assert answer.headers["Content-Type"] == "application/problem+json", answer.headers.items()
    assert answer.headers["Cache-Control"] == "no-store", answer.headers.items()
    said: dict[str, Any] = answer.json
    assert set(said) == {"type", "title", "status", "detail", "fix"}, said
    assert (said["type"], said["status"]) == (f"/-/problems#{code}", status), said
    assert code in {known.code for known in ALL}
    assert all(isinstance(said[name], str) and said[name].strip() for name in ("title", "detail", "fix")), said
    return said
