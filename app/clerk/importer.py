"""Plays Clerk's importer: asks for a feed page by page until an empty answer, and counts what it gets.

It does what Clerk's guide says of the importer and no more: placeholders replaced, offset raised by limit, token and
Basic authentication sent with every request. It retries as a well-behaved client does: 429 and 503 after
Retry-After, lost connections and cut-off answers with a pause. http.client, because its own cost must not hide the
service's: 0.6 ms a page where httpx takes 1.5 to 4.6.
"""

import base64
import http.client
import re
import time
from collections.abc import Callable, Iterator, Set
from email.message import Message
from typing import Literal, cast
from urllib.parse import quote, unquote, urlsplit

import msgspec
import orjson

from app.protocol.coding import CodingError, decoded_body
from app.protocol.redaction import redacted

ItemId = str | int

_PLACEHOLDER = re.compile(r"\{\{\s*(limit|offset|modified_after)\s*\}\}")
_RETRIED = (429, 500, 502, 503, 504)
_MAX_PAUSE_SECONDS = 60.0


Failure = Literal["unreachable", "cut-off", "refused", "coding", "content"]


class ImportFailedError(Exception):
    """A page could not be had. `status` is None where no HTTP answer came; `body` is the start of the answer.

    `failure` is what kind it is: `unreachable` and `cut-off` where no complete answer came, `refused` by its status,
    `coding` where it could not be decompressed, `content` where it is not what Clerk reads.
    """

    def __init__(
        self,
        message: str,
        *,
        failure: Failure = "content",
        status: int | None = None,
        body: bytes = b"",
        headers: Message | None = None,
    ) -> None:
        super().__init__(message)
        self.failure = failure
        self.status = status
        self.body = body[:4000]
        self.headers = headers or Message()

    @property
    def media_type(self) -> str:
        return self.headers.get_content_type() if "Content-Type" in self.headers else ""


class _Identified(msgspec.Struct):
    """What counting needs of an item. Decoding only this checks all of it and is several times faster."""

    id: ItemId


class Page(msgspec.Struct, frozen=True):
    """One answer of a feed. `ids` are in the order of the answer."""

    number: int
    offset: int
    ids: list[ItemId]
    body: bytes
    seconds: float
    retries: int
    media_type: str = ""
    """As the server named it; empty where it named none."""
    coding: str = ""
    """How the answer was compressed: gzip, zstd or empty."""
    wire_bytes: int = 0
    """The size of the answer as it came."""
    has_end: bool = True
    """Whether HTTP says where the answer ends. Without, one that was cut off can't be told from a whole one."""

    @property
    def items(self) -> list[dict[str, object]]:
        """The items in full. Raises ImportFailedError."""
        return decoded(self.body)


class Report(msgspec.Struct):
    """What an import came to."""

    feed: str
    items: int = 0
    pages: int = 0
    bytes: int = 0
    seconds: float = 0.0
    retries: int = 0
    slowest_seconds: float = 0.0
    slowest_offset: int = 0
    first_seconds: float = 0.0
    last_seconds: float = 0.0
    duplicates: list[ItemId] = msgspec.field(default_factory=list)
    missing: list[ItemId] = msgspec.field(default_factory=list)
    ids: set[ItemId] = msgspec.field(default_factory=set)

    @property
    def items_per_second(self) -> float:
        return self.items / self.seconds if self.seconds else 0.0

    def count(self, page: Page) -> None:
        """Add a page."""
        if not self.pages:
            self.first_seconds = page.seconds
        self.pages += 1
        self.items += len(page.ids)
        self.bytes += len(page.body)
        self.retries += page.retries
        if page.ids:
            self.last_seconds = page.seconds
        if page.seconds > self.slowest_seconds:
            self.slowest_seconds, self.slowest_offset = page.seconds, page.offset
        fresh = set(page.ids)
        if self.ids.isdisjoint(fresh) and len(fresh) == len(page.ids):
            self.ids |= fresh
            return
        for id in page.ids:
            if id in self.ids:
                self.duplicates.append(id)
            self.ids.add(id)


class Importer:
    """An importer of one feed URL over one connection.

    The URL may hold the placeholders {{limit}}, {{offset}} and {{modified_after}}, and USER:PASS@. One without
    placeholders is asked once, and its answer is the whole feed.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | Callable[[], str] | None = None,
        limit: int = 1000,
        modified_after: str = "",
        timeout_seconds: float = 120.0,
        attempts: int = 5,
        pause: Callable[[float], None] = time.sleep,
        retrying: Callable[[str, float], None] | None = None,
        address: str | None = None,
        accept_encoding: str = "",
        requires_end: bool = True,
    ) -> None:
        """`token` may be a function that gives a fresh one a request. `address` is the local one to call from.

        `retrying` is told why a page is asked for again, and in how many seconds. `accept_encoding` is sent as it is;
        gzip and zstd are understood. `requires_end = False` takes answers whose end HTTP does not tell.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            # What follows the host may be a part of a password: nothing of it is shown.
            raise ValueError("not a feed URL: percent-encode / ? # @ : in user name and password") from None
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError(f"not a feed URL: {redacted(url)}")
        self.url = url
        # Without an offset every answer is the first page: a walk of it would never end.
        self.paged = any(match[1] == "offset" for match in _PLACEHOLDER.finditer(url))
        self.is_incremental = any(match[1] == "modified_after" for match in _PLACEHOLDER.finditer(url))
        self.limit = limit
        self._modified_after = modified_after
        self._token = token
        self._attempts = attempts
        self._pause = pause
        self._retrying = retrying
        self._headers = {
            "Accept": "application/x-ndjson, application/json;q=0.9",
            "User-Agent": "clerk-feed-importer",
        }
        if accept_encoding:
            self._headers["Accept-Encoding"] = accept_encoding
        self._requires_end = requires_end
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        self._target = parts.path or "/"
        if parts.query:
            self._target += "?" + parts.query
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        source = (address, 0) if address else None
        self._connection = kind(host, port, timeout=timeout_seconds, source_address=source)

    @property
    def sends_token(self) -> bool:
        return self._token is not None

    def pages(self) -> Iterator[Page]:
        """The pages of a walk in order, the empty one at its end included. Raises ImportFailedError."""
        offset = number = 0
        while True:
            page = self.page(offset, number)
            yield page
            if not page.ids or not self.paged:
                return
            offset += self.limit
            number += 1

    def page(self, offset: int, number: int = 0, *, modified_after: str | None = None) -> Page:
        """One page, with retries; `modified_after` in place of the importer's own. Raises ImportFailedError."""
        target = self._filled(offset, self._modified_after if modified_after is None else modified_after)
        for attempt in range(self._attempts):
            started = time.perf_counter()
            last = attempt == self._attempts - 1
            try:
                status, headers, sent, has_end = self._get(target)
            except (http.client.HTTPException, OSError) as error:
                self._connection.close()
                if last:
                    failure: Failure = "cut-off" if isinstance(error, http.client.IncompleteRead) else "unreachable"
                    raise ImportFailedError(_broken(error), failure=failure) from error
                self._pause_before_retry(_broken(error), min(0.1 * 2**attempt, 2.0))
                continue
            if status in _RETRIED and not last:
                self._pause_before_retry(f"HTTP status {status}", _retry_after(headers.get("Retry-After"), attempt))
                continue
            coding = headers.get("Content-Encoding", "").strip().lower()
            try:
                body = decoded_body(sent, coding)
            except CodingError as error:
                if status == 200:
                    raise ImportFailedError(
                        str(error), failure="coding", status=status, body=sent, headers=headers
                    ) from None
                body = b""
            if status != 200:
                raise ImportFailedError(
                    f"HTTP status {status}", failure="refused", status=status, body=body, headers=headers
                )
            seconds = time.perf_counter() - started
            try:
                ids = ids_of(body, offset)
            except ImportFailedError as error:
                error.headers = headers
                raise
            media_type = headers.get_content_type() if "Content-Type" in headers else ""
            return Page(number, offset, ids, body, seconds, attempt, media_type, coding, len(sent), has_end)
        raise AssertionError("the last attempt returns or raises")

    def _pause_before_retry(self, cause: str, seconds: float) -> None:
        if self._retrying:
            self._retrying(cause, seconds)
        self._pause(seconds)

    def _get(self, target: str) -> tuple[int, http.client.HTTPMessage, bytes, bool]:
        headers = dict(self._headers)
        if self._token is not None:
            token = self._token() if callable(self._token) else self._token
            if not (token.isascii() and token.isprintable()):
                raise ImportFailedError("the token holds characters that fit into no header")
            headers["X-Clerk-Authorization"] = f"Bearer {token}"
        self._connection.request("GET", target, headers=headers)
        response = self._connection.getresponse()
        body = response.read()
        has_end = response.length is not None or response.chunked
        if response.status == 200 and not has_end and self._requires_end:
            # Ended by closing the connection: one cut off, headers even, could not be told from a whole one.
            raise http.client.IncompleteRead(body)
        return response.status, response.headers, body, has_end

    def _filled(self, offset: int, modified_after: str) -> str:
        values = {"limit": str(self.limit), "offset": str(offset), "modified_after": modified_after}
        return _PLACEHOLDER.sub(lambda match: quote(values[match[1]], safe=""), self._target)

    def close(self) -> None:
        self._connection.close()

    def run(
        self,
        feed: str = "",
        *,
        expected: Set[ItemId] | None = None,
        progress: Callable[[Report], None] | None = None,
    ) -> Report:
        """Walk the feed to its end and report. `expected` ids that did not come are `missing`."""
        report = Report(feed or urlsplit(self.url).path)
        started = time.perf_counter()
        for page in self.pages():
            report.count(page)
            report.seconds = time.perf_counter() - started
            if progress:
                progress(report)
        if expected is not None:
            report.missing = sorted(expected - report.ids, key=str)
        return report


_ARRAY = msgspec.json.Decoder(list[_Identified])
_LINES = msgspec.json.Decoder(_Identified)


def ids_of(body: bytes, offset: int) -> list[ItemId]:
    """The ids of an answer's items. Raises ImportFailedError where it is not what Clerk reads."""
    text = body.strip()
    try:
        found = _ARRAY.decode(text) if text.startswith(b"[") else _LINES.decode_lines(text)
        return [item.id for item in found]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        items = decoded(body)  # says it where the JSON is at fault
    ids = [item.get("id") for item in items]
    if not all(isinstance(id, str | int) and not isinstance(id, bool) for id in ids):
        raise ImportFailedError(f"an item at offset {offset} has no id that is a number or text", status=200, body=body)
    return cast("list[ItemId]", ids)


def decoded(body: bytes) -> list[dict[str, object]]:
    """The items of an answer: a JSON array, or objects by line. Raises ImportFailedError."""
    text = body.strip()
    if not text:
        return []
    try:
        if text.startswith(b"["):
            items = orjson.loads(text)
        else:
            # Lines joined by commas are an array: one call decodes them all.
            items = orjson.loads(b"[" + b",".join(text.splitlines()) + b"]")
    except orjson.JSONDecodeError as error:
        raise ImportFailedError(f"the answer is not JSON: {error}", status=200, body=body) from None
    if not all(type(item) is dict for item in items):
        raise ImportFailedError("the answer holds something that is not an object", status=200, body=body)
    found: list[dict[str, object]] = items
    return found


def _broken(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "the answer was cut off before its end"
    return f"no answer: {type(error).__name__}: {error}"


def _retry_after(value: str | None, attempt: int) -> float:
    if value is not None and value.isascii() and value.isdigit():
        return min(float(value), _MAX_PAUSE_SECONDS)
    return float(min(0.5 * 2**attempt, _MAX_PAUSE_SECONDS))
