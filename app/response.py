"""The answer that carries a feed: complete where it fits in memory, streamed otherwise.

Two chunks are read before the status line is sent: whatever fails until then is a clean error, and an answer of one
chunk carries its length. What fails later is cut off visibly: the connection is aborted, never ended cleanly, so
that a truncated answer can't pass for a short one.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

import msgspec
from starlette.types import Receive, Scope, Send

from app.protocol.problems import VERSION_NOT_SUPPORTED, Refusal

Chunks = AsyncGenerator[bytes, None]


class CutOffError(Exception):
    """Raised to the server so that it aborts the connection. It has been reported already."""


class Tally(msgspec.Struct):
    """What an answer came to, for the record. Times are in seconds."""

    started: float = msgspec.field(default_factory=time.perf_counter)
    gate: float = 0.0
    bookmark: float = 0.0
    database: float = 0.0
    encode: float = 0.0
    items: int = 0
    invalid: int = 0
    bytes: int = 0
    walk: int | None = None
    found: str | None = None
    """What the offset was found by: the rank of a bookmark, or counted; None where there was nothing to find."""

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def timing(self) -> str:
        """Where the time went until now, as a Server-Timing header says it: in milliseconds."""
        return (
            f"gate;dur={self.gate * 1e3:.2f}, bookmark;dur={self.bookmark * 1e3:.2f},"
            f" database;dur={self.database * 1e3:.2f}, encode;dur={self.encode * 1e3:.2f}"
        )


class FeedResponse:
    """An ASGI response of its own: Starlette's has no deadline on a send, and cancels a reader in mid-query."""

    def __init__(
        self,
        chunks: Chunks,
        head: list[bytes],
        *,
        complete: bool,
        headers: list[tuple[bytes, bytes]],
        with_body: bool,
        tally: Tally,
        send_seconds: float,
        served: Callable[[], None],
        cut_off: Callable[[str], None],
    ) -> None:
        self._chunks = chunks
        self._head = head
        self._complete = complete
        self._with_body = with_body
        self._tally = tally
        self._send_seconds = send_seconds
        self._served = served
        self._cut_off = cut_off
        self._sending = False
        self._left = False
        self._headers = headers
        if complete:
            length = sum(map(len, head))
            # First: to a client that is lenient, a head that is cut before it is one of an empty body.
            self._headers.insert(0, (b"content-length", str(length).encode()))

    @classmethod
    async def begin(
        cls,
        chunks: Chunks,
        *,
        http_version: str,
        headers: Callable[[], list[tuple[bytes, bytes]]],
        with_body: bool,
        tally: Tally,
        send_seconds: float,
        served: Callable[[], None],
        cut_off: Callable[[str], None],
    ) -> "FeedResponse":
        """Read what decides the status line; `headers` is asked once that is known. Raises Refusal."""
        head: list[bytes] = []
        try:
            async for chunk in chunks:
                head.append(chunk)
                if len(head) == 2:
                    break
            complete = len(head) < 2
            if not complete and http_version == "1.0":
                raise Refusal(
                    VERSION_NOT_SUPPORTED,
                    "This answer is sent in pieces, and over HTTP/1.0 a cut-off one could not be told from a whole.",
                )
            if complete or not with_body:
                await chunks.aclose()
        except BaseException:
            await chunks.aclose()
            raise
        return cls(
            chunks,
            head,
            complete=complete,
            headers=headers(),
            with_body=with_body,
            tally=tally,
            send_seconds=send_seconds,
            served=served,
            cut_off=cut_off,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._chunks):
            if self._complete or not self._with_body:
                await self._whole(send)
            else:
                await self._stream(receive, send)

    async def _whole(self, send: Send) -> None:
        body = self._head[0] if self._head and self._with_body else b""
        try:
            async with asyncio.timeout(self._send_seconds):
                await send({"type": "http.response.start", "status": 200, "headers": self._headers})
                await send({"type": "http.response.body", "body": body})
        except TimeoutError:
            cause = f"the client took nothing for {self._send_seconds:g} s"
            self._cut_off(cause)
            raise CutOffError(cause) from None
        self._tally.bytes = len(body)
        self._served()

    async def _stream(self, receive: Receive, send: Send) -> None:
        pump = asyncio.create_task(self._pump(send))
        watch = asyncio.create_task(self._leave(receive, pump))
        try:
            await asyncio.wait({pump, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not pump.done():
                await asyncio.wait({pump})
        except asyncio.CancelledError:
            self._cut_off("the service was stopped")
            raise
        finally:
            for task in (pump, watch):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
        if self._left:
            self._cut_off("the client left")
        elif error := pump.exception():
            cause = _cause(error)
            self._cut_off(cause)
            raise CutOffError(cause) from error
        else:
            self._served()

    async def _pump(self, send: Send) -> None:
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": self._headers})
        while self._head and not self._left:
            await self._send_chunk(send, self._head.pop(0))
        async for chunk in self._chunks:
            if self._left:
                return
            await self._send_chunk(send, chunk)
        await self._send(send, {"type": "http.response.body", "body": b""})

    async def _send_chunk(self, send: Send, chunk: bytes) -> None:
        await self._send(send, {"type": "http.response.body", "body": chunk, "more_body": True})
        self._tally.bytes += len(chunk)

    async def _send(self, send: Send, message: dict[str, object]) -> None:
        self._sending = True
        try:
            async with asyncio.timeout(self._send_seconds):
                await send(message)
        except TimeoutError:
            raise CutOffError(f"the client took nothing for {self._send_seconds:g} s") from None
        finally:
            self._sending = False

    async def _leave(self, receive: Receive, pump: "asyncio.Task[None]") -> None:
        """Notice that the client has left. A read of the database is let finish: it is one batch."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left = True
        if self._sending:
            pump.cancel()


def _cause(error: BaseException) -> str:
    if isinstance(error, Refusal):
        return error.problem.code
    return str(error) if isinstance(error, CutOffError) else type(error).__name__
