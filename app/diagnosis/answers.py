"""Answers that are no page of a feed: what came instead, why, and the cure.

By status with Clerk's own causes and cures, by the problem details where the feed sends them, and by what the body
looks like.
"""

import http.client
import re

import msgspec
import orjson

from app.clerk.importer import ImportFailedError
from app.diagnosis.findings import Finding, error
from app.protocol.problems import MEDIA_TYPE
from app.protocol.redaction import redacted
from app.protocol.sync_errors import of_status

_START = 120
_GZIP, _ZSTD, _BOM = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xef\xbb\xbf"


class _Problem(msgspec.Struct):
    """What we read of RFC 9457 problem details, and our own `fix`."""

    title: str = ""
    detail: str = ""
    fix: str = ""


def explained(failure: ImportFailedError, where: str, *, sends_token: bool) -> Finding:
    """The finding of a page that could not be had. `where` says which, e.g. "at the first page"."""
    if failure.failure == "refused":
        return _refused(failure, where, sends_token=sends_token)
    if failure.failure == "content":
        return _content(failure, where)
    if failure.failure == "coding":
        return error(
            "compression-broken",
            f"No page came {where}: {failure}.",
            "Check what compresses on the way: a body compressed twice, a header without its coding, or one cut off."
            " Clerk can't read it either. --compression none asks without.",
        )
    if failure.failure == "cut-off":
        return error(
            "cut-off",
            f"The answer {where} was cut off before its end, again and again.",
            "The server, or a proxy before it, stops in the middle: look for a limit of time, memory or size there and"
            " for an error in its log. A smaller Page Size makes answers shorter.",
        )
    return error("unreachable", f"No answer came {where}: {_cause(failure)}.", _reach_cure(failure))


def _refused(failure: ImportFailedError, where: str, *, sends_token: bool) -> Finding:
    status = failure.status or 0
    problem = _problem(failure)
    meaning = of_status(status)
    what = f"HTTP status {status} {http.client.responses.get(status, '')}".rstrip() + f" {where}"
    if problem is not None:
        what += ": " + " ".join(filter(None, (problem.title, problem.detail)))
        cures = [problem.fix or meaning.cure]
    else:
        what += f". {meaning.cause}"
        cures = [meaning.cure]
    asks_for_basic = failure.headers.get("WWW-Authenticate", "").lower().startswith("basic")
    if status == 401 and not sends_token and not asks_for_basic:
        cures.append(
            "No token was sent: give one with --token or CLERK_TOKEN, if you have one; only Clerk makes them. To try a"
            " feed of your own without: token_auth = false and basic in feed.toml, USER:PASS in the URL."
        )
    if 300 <= status < 400 and (location := failure.headers.get("Location")):
        cures = [f"Enter the address it redirects to: {_plain(redacted(location))}"]
    if "cf-ray" in failure.headers and status in (403, 429, 503):
        cures.append("Cloudflare answered: look for the request under Security, Events in its dashboard.")
    if problem is None and status >= 500 and (said := _text(failure.body)):
        cures.append(f"The answer says: {said}")
    return error(f"status-{status}", what if what.endswith((".", "!", "?")) else what + ".", " ".join(cures))


def _problem(failure: ImportFailedError) -> _Problem | None:
    if failure.media_type != MEDIA_TYPE:
        return None
    try:
        return msgspec.json.decode(failure.body, type=_Problem)
    except msgspec.MsgspecError:
        return None


def _content(failure: ImportFailedError, where: str) -> Finding:
    body = failure.body.lstrip()
    start = _plain(body[:_START].decode(errors="replace"))
    if body.startswith((_GZIP, _ZSTD)):
        return error(
            "compression-unnamed",
            f"The answer {where} is compressed, but no Content-Encoding says so.",
            "Let the server send the header, or not compress.",
        )
    if body.startswith(_BOM):
        return error(
            "byte-order-mark",
            f"A byte order mark stands before the JSON {where}, and JSON allows none.",
            "Save or send it as UTF-8 without BOM.",
        )
    if body.startswith(b"<"):
        return _page_of_html(body, start, where)
    if (key := _wrapped_in(body)) is not None:
        return error(
            "wrapped",
            f"The answer {where} is one object, with the items under {key!r}.",
            "Send the array itself, or one item a line: Clerk reads nothing around it.",
        )
    if "no id" in str(failure):
        return error(
            "id-missing",
            f"The page could not be used: {failure}.",
            "Give every item an id, a number or text: Clerk knows items by nothing else.",
        )
    cure = "Clerk reads NDJSON or a JSON array of objects, nothing else."
    if re.search(rb"[\[:,]\s*-?(NaN|Infinity)\b", failure.body):
        cure = "NaN and Infinity are no JSON: leave such attributes out."
    elif not _is_utf8(failure.body):
        cure = "Send it as UTF-8."
    return error("not-json", f"No feed came {where}: {failure}. It begins with: {start}", cure)


def _page_of_html(body: bytes, start: str, where: str) -> Finding:
    lower = body.lower()
    if b"just a moment" in lower or b"cf-challenge" in lower or b"captcha" in lower:
        what = "It is a check for bots."
        cure = "Exempt the importer from it: in Cloudflare a WAF rule that skips checks for this path and address."
    elif b"<b>warning</b>" in lower or b"<b>notice</b>" in lower or b"fatal error" in lower:
        what = "It is an error message of PHP."
        cure = "Mend what it names, and turn display_errors off: a warning before the JSON breaks every item."
    elif b'type="password"' in lower or b"login" in lower or b"log in" in lower:
        what = "It is a page to log in."
        cure = "Let the importer in by USER:PASS in the URL or by its token, not by a form."
    elif b"maintenance" in lower:
        what, cure = "It is a page about maintenance.", "Sync again when it is over; let it answer with status 503."
    else:
        what, cure = "", "Check the URL: it leads to a page for people, not to a feed."
    return error("html", f"HTML came instead of JSON {where}. {what} It begins with: {start}".replace("  ", " "), cure)


def _wrapped_in(body: bytes) -> str | None:
    """The key under which an object holds the items, where the answer is such an object."""
    match = re.match(rb'\{\s*"([A-Za-z0-9_-]{1,40})"\s*:', body)
    if not match:
        return None
    try:
        whole = orjson.loads(body)
    except orjson.JSONDecodeError:
        # Only the start of a long answer is kept: one that begins with a list of objects under its first key is one.
        return match[1].decode() if re.match(rb'\{\s*"[^"]+"\s*:\s*\[\s*\{', body) and b"\n{" not in body else None
    if not whole.keys().isdisjoint(("id", "name", "url", "title", "email")):
        return None  # an item, if a poor one
    return next((key for key, value in whole.items() if isinstance(value, list | dict)), None)


def _is_utf8(body: bytes) -> bool:
    try:
        body[:-4].decode()
    except UnicodeDecodeError as fault:
        return fault.start >= len(body) - 8
    return True


def _text(body: bytes) -> str:
    """What a body says to a person, in short: without tags."""
    return _plain(
        re.sub(rb"<(script|style).*?</\1>|<[^>]*>", b" ", body, flags=re.DOTALL)[:600].decode(errors="replace")
    )


def _plain(text: str) -> str:
    """Text of a stranger on one line of a terminal."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _START else line[: _START - 1] + "…"


def _cause(failure: ImportFailedError) -> str:
    return str(failure).removeprefix("no answer: ")


def _reach_cure(failure: ImportFailedError) -> str:
    text = str(failure)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            "Clerk trusts no such certificate: use one that is valid for this host, not expired, and sent together"
            " with the intermediate ones."
        )
    if "gaierror" in text:
        return "The host's name is unknown: check it, and its DNS."
    if "Refused" in text:
        return "Nothing listens there: check host and port, and that the server runs."
    if "timed out" in text or "TimeoutError" in text:
        return "The server takes too long or a firewall drops the request: check both, or try a smaller Page Size."
    if "SSL" in text:
        return "TLS failed: check that this port speaks https, and its certificate."
    return "Check the address, that the server runs, and its certificate."
