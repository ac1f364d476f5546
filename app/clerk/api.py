"""Calls to Clerk's API.

`status` in the body decides, never the HTTP status: Clerk sends error envelopes with 200. An AuthenticationError is
a "no"; everything else that is not a "yes" means that Clerk could not be asked.
"""

import asyncio
import email.utils
import json
import logging
import math
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from app.protocol.feeds import FeedName

if TYPE_CHECKING:
    import httpx

_MAX_ANSWER_BYTES = 65_536
_MAY_BE_THE_IDS = (400, 403, 406, 422, 500)
"""HTTP statuses without a word of Clerk's: a firewall before it, or Clerk itself, may break at one of the ids."""


class ClerkUnreachableError(Exception):
    """Clerk could not be asked. The message says why and holds no secret.

    `wait_seconds` is how long Clerk asked to be left alone, where it did.
    """

    def __init__(self, message: str, *, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class ClerkDeniedError(Exception):
    """Clerk does not accept the keys. The message holds no secret."""


class ClerkRefusedError(Exception):
    """Clerk answered that it won't do this call. The message says with which error, and holds no secret."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing
        """Whether the same call may succeed a little later."""


class Verdict(msgspec.Struct, frozen=True):
    """Clerk's word on a token. `expires` is in unix seconds where the answer names a time."""

    good: bool
    expires: float | None = None


class ClerkApi:
    """A client of Clerk's API, with connections kept open. Proxy settings of the environment apply."""

    def __init__(self, verify_url: str, timeout_seconds: float) -> None:
        self._verify_url = verify_url
        self._timeout_seconds = timeout_seconds
        self._opening: asyncio.Task[httpx.AsyncClient] | None = None

    async def verify(self, token: str, public_key: str) -> Verdict:
        """Ask whether a token is good for a store. Raises ClerkUnreachableError."""
        body = msgspec.json.encode({"token": token, "key": public_key})
        answer, _ = await self._call(
            "POST", self._verify_url, content=body, headers={"Content-Type": "application/json"}
        )
        status = answer.get("status")
        if status == "ok":
            return Verdict(True, _expires(answer.get("token_payload")))
        if status == "error" and answer.get("type") == "AuthenticationError":
            return Verdict(False)
        raise ClerkUnreachableError(f"it answered with an error of {_kind(answer)}")

    async def delete(
        self, api_url: str, feed: FeedName, ids: Sequence[int | str], *, public_key: str, private_key: str
    ) -> None:
        """Delete items at Clerk; return only when it said so.

        Raises ClerkDeniedError, ClerkRefusedError, or ClerkUnreachableError where it is not known what happened.
        """
        # A list that is not JSON is read by Clerk as one plain string.
        parameters = {"key": public_key, "private_key": private_key, feed: json_ids(ids)}
        answer, status = await self._call("DELETE", f"{api_url.rstrip('/')}/{feed}", params=parameters)
        if answer.get("status") == "ok":
            return
        kind = _kind(answer)
        if kind == "AuthenticationError":
            raise ClerkDeniedError("Clerk does not accept public_key and private_key together")
        if status >= 500 and answer.get("status") != "error":
            raise ClerkUnreachableError(f"HTTP status {status}")
        passing = kind == "InternalError" or status >= 500
        raise ClerkRefusedError(f"Clerk answered with an error of {kind}", passing=passing)

    async def _call(self, method: str, url: str, **parts: Any) -> tuple[dict[str, Any], int]:
        """The JSON object and the HTTP status of an answer."""
        client = await self._client()
        import httpx  # noqa: PLC0415 (it has been by now, in a thread)

        try:
            # httpx bounds each step; this bounds the whole, against an answer that drips.
            async with asyncio.timeout(self._timeout_seconds):
                async with client.stream(method, url, **parts) as response:
                    received = bytearray()
                    async for piece in response.aiter_raw():
                        received += piece
                        if len(received) > _MAX_ANSWER_BYTES:
                            raise ClerkUnreachableError(f"its answer is longer than {_MAX_ANSWER_BYTES} bytes")
                    status, headers = response.status_code, response.headers
        except TimeoutError:
            raise ClerkUnreachableError(f"no answer within {self._timeout_seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClerkUnreachableError(f"the call failed: {type(error).__name__}") from None
        if status == 429:
            wait = _retry_after(headers.get("retry-after", ""))
            raise ClerkUnreachableError("HTTP status 429: too many requests", wait_seconds=wait)
        try:
            answer = msgspec.json.decode(received)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            answer = None
        if isinstance(answer, dict):
            return answer, status
        if status in (413, 414, 431):
            raise ClerkRefusedError(f"HTTP status {status}: the request is too long")
        if method == "DELETE" and status in _MAY_BE_THE_IDS:
            raise ClerkRefusedError(f"HTTP status {status} with a body that is not a JSON object", passing=True)
        wait = _retry_after(headers.get("retry-after", "")) if status == 503 else None
        raise ClerkUnreachableError(f"HTTP status {status} with a body that is not a JSON object", wait_seconds=wait)

    async def _client(self) -> "httpx.AsyncClient":
        if self._opening is None:
            self._opening = asyncio.create_task(asyncio.to_thread(_opened, self._timeout_seconds))
        try:
            return await asyncio.shield(self._opening)
        except ClerkUnreachableError:
            self._opening = None
            raise

    async def warm(self) -> None:
        """Make ready what the first call needs, so that it need not wait for it."""
        with suppress(ClerkUnreachableError):  # which that call will tell
            await self._client()

    async def close(self) -> None:
        if self._opening is not None:
            with suppress(ClerkUnreachableError):
                await (await self._opening).aclose()


def _opened(timeout_seconds: float) -> "httpx.AsyncClient":
    """A client. With its imports and the certificates of the system it takes longer than a start may wait.

    Raises ClerkUnreachableError.
    """
    import httpx  # noqa: PLC0415 (as said above)

    # It logs the URL of every request, with private_key and with user name and password where they are in it.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        return httpx.AsyncClient(
            timeout=timeout_seconds,
            follow_redirects=False,
            verify=ssl.create_default_context(),
            # Plain HTTP goes to this machine only: never through a proxy, which would read what is secret.
            mounts={"http://": httpx.AsyncHTTPTransport()},
            # An answer is small; compressed it could be a bomb.
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "clerk-feed"},
        )
    except (httpx.InvalidURL, ValueError, OSError, ImportError) as error:
        raise ClerkUnreachableError(
            f"the proxy or the certificates that the environment names can't be used ({type(error).__name__})"
        ) from None


def json_ids(ids: Sequence[int | str]) -> str:
    """Ids as the parameter of a deletion."""
    return json.dumps(list(ids), ensure_ascii=False, separators=(",", ":"))


def _kind(answer: dict[str, Any]) -> str:
    """The type of error in an answer: only what looks like one is shown."""
    kind = answer.get("type")
    return kind if isinstance(kind, str) and kind.isidentifier() and len(kind) < 64 else "no known type"


def _retry_after(value: str) -> float | None:
    """Seconds, or until a date (RFC 9110)."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _expires(payload: object) -> float | None:
    """`exp` of a token's payload: unix seconds, as in a JWT (RFC 7519)."""
    value = payload.get("exp") if isinstance(payload, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e12:
        return float(value)
    return None
