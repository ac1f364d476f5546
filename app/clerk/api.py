"""Calls to Clerk's API.

`status` in the body decides, never the HTTP status: Clerk sends error envelopes with 200. An AuthenticationError is
a "no"; everything else that is not a "yes" means that Clerk could not be asked.
"""

import asyncio
import ssl
from typing import Any

import httpx
import msgspec

_MAX_ANSWER_BYTES = 65_536


class ClerkUnreachableError(Exception):
    """Clerk could not be asked. The message says why and holds no secret."""


class Verdict(msgspec.Struct, frozen=True):
    """Clerk's word on a token. `expires` is in unix seconds where the answer names a time."""

    good: bool
    expires: float | None = None


class ClerkApi:
    """A client of Clerk's API, with connections kept open. Proxy settings of the environment apply."""

    def __init__(self, verify_url: str, timeout_seconds: float) -> None:
        self._verify_url = verify_url
        self._timeout_seconds = timeout_seconds
        self._client = httpx.AsyncClient(
            timeout=timeout_seconds,
            follow_redirects=False,
            verify=ssl.create_default_context(),
            # An answer is small; compressed it could be a bomb.
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "clerk-feed"},
        )

    async def verify(self, token: str, public_key: str) -> Verdict:
        """Ask whether a token is good for a store. Raises ClerkUnreachableError."""
        answer = await self._post(self._verify_url, {"token": token, "key": public_key})
        status = answer.get("status")
        if status == "ok":
            return Verdict(True, _expires(answer.get("token_payload")))
        if status == "error" and answer.get("type") == "AuthenticationError":
            return Verdict(False)
        kind = answer.get("type")
        shown = kind if isinstance(kind, str) and kind.isidentifier() and len(kind) < 64 else "no known type"
        raise ClerkUnreachableError(f"it answered with an error of {shown}")

    async def _post(self, url: str, body: dict[str, str]) -> dict[str, Any]:
        try:
            # httpx bounds each step; this bounds the whole, against an answer that drips.
            async with asyncio.timeout(self._timeout_seconds):
                async with self._client.stream(
                    "POST",
                    url,
                    content=msgspec.json.encode(body),
                    headers={"Content-Type": "application/json"},
                ) as response:
                    received = bytearray()
                    async for piece in response.aiter_raw():
                        received += piece
                        if len(received) > _MAX_ANSWER_BYTES:
                            raise ClerkUnreachableError(f"its answer is longer than {_MAX_ANSWER_BYTES} bytes")
                    status = response.status_code
        except TimeoutError:
            raise ClerkUnreachableError(f"no answer within {self._timeout_seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClerkUnreachableError(f"the call failed: {type(error).__name__}") from None
        try:
            answer = msgspec.json.decode(received)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ClerkUnreachableError(f"HTTP status {status} with a body that is not a JSON object")
        return answer

    async def close(self) -> None:
        await self._client.aclose()


def _expires(payload: object) -> float | None:
    """`exp` of a token's payload: unix seconds, as in a JWT (RFC 7519)."""
    value = payload.get("exp") if isinstance(payload, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e12:
        return float(value)
    return None
