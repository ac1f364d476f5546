"""Feed URLs as they are entered in Clerk's Data Sync: their placeholders, and which feed they name."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from urllib.parse import parse_qsl, unquote, urlsplit

from app.diagnosis.findings import Finding, error, note, warning
from app.protocol.feeds import FEEDS, REQUIRED, FeedName
from app.settings import is_loopback

PLACEHOLDERS = ("limit", "offset", "modified_after")

_BRACES = re.compile(r"\{+\s*([^{}]*?)\s*\}+")
_WORDS: dict[str, FeedName] = {
    "product": "products",
    "categor": "categories",
    "order": "orders",
    "sale": "orders",
    "customer": "customers",
    "page": "pages",
}


def misspelled(url: str) -> list[Finding]:
    """Placeholders that Clerk would not replace."""
    found = []
    for match in _BRACES.finditer(unquote(url)):
        shown, name = match[0], match[1]
        if shown.startswith("{{") and shown.endswith("}}") and shown.strip("{} ") in PLACEHOLDERS and shown in url:
            continue
        close = get_close_matches(name.lower(), PLACEHOLDERS, n=1, cutoff=0.5)
        if name in PLACEHOLDERS:
            cure = f"Write it with two braces on each side, as they are: {{{{{name}}}}}."
        elif close:
            cure = f"Did you mean {{{{{close[0]}}}}}?"
        else:
            cure = "Clerk replaces {{limit}}, {{offset}} and {{modified_after}}, and nothing else."
        found.append(
            error("placeholder-unknown", f"{shown} in the URL is no placeholder of Clerk's: it is sent as it is.", cure)
        )
    return found


def remarks(url: str, limit: int) -> list[Finding]:
    """What the URL itself says of a sync. `limit` is Clerk's Page Size."""
    parts = urlsplit(url)
    given = set(re.findall(r"\{\{\s*(limit|offset|modified_after)\s*\}\}", url))
    query = {name: value for name, value in parse_qsl(parts.query, keep_blank_values=True) if "{" not in value}
    found = []
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        found.append(
            warning("url-insecure", "The URL begins with http://, and Clerk reads https:// only.", "Ask over https://.")
        )
    if "offset" not in given and ("limit" in given or "offset" in query):
        found.append(
            error(
                "offset-missing",
                "The URL asks for pages without {{offset}}: every answer is the first page, and Clerk gets no more.",
                "Add offset={{offset}} to the URL, or leave limit and offset out: then one answer must hold all.",
            )
        )
    elif "limit" in query and "offset" not in given and "offset" not in query:
        found.append(
            error(
                "offset-missing",
                f"The URL asks for {query['limit']} items and never for more: it has no {{{{offset}}}}.",
                "Add offset={{offset}} to the URL, or leave limit out: then one answer must hold all.",
            )
        )
    if "offset" in given and "limit" not in given and "limit" not in query:
        found.append(
            warning(
                "limit-missing",
                f"There is {{{{offset}}}} but no {{{{limit}}}}: the server is not told that Clerk goes on by {limit}.",
                "Add limit={{limit}} to the URL.",
            )
        )
    if "offset" in given and query.get("limit", str(limit)) != str(limit):
        found.append(
            warning(
                "limit-fixed",
                f"The URL asks for {query['limit']} items a page, while the offset goes on by {limit}.",
                f"Write limit={{{{limit}}}} in the URL, or set Page Size (here --limit) to {query['limit']}.",
            )
        )
    if "offset" in given and "modified_after" not in given:
        found.append(
            note(
                "full-only",
                "The URL has no {{modified_after}}: every sync is a full one.",
                "That is right for a small feed. For a large one add modified_after={{modified_after}}.",
            )
        )
    return found


def feed_named(url: str) -> FeedName | None:
    """The feed that a URL names, by the words in it; the last one wins, and the path's before the query's."""
    parts = urlsplit(url)
    for text in (*reversed(parts.path.split("/")), parts.query):
        places = {text.lower().rfind(word): feed for word, feed in _WORDS.items()}
        if max(places) >= 0:
            return places[max(places)]
    return None


def feed_like(items: Iterable[Mapping[str, object]]) -> FeedName | None:
    """The feed whose required attributes are most at home in these items."""
    names = {name for item in items for name in item}
    shares = {feed: len(names.intersection(REQUIRED[feed]) - {"id"}) / (len(REQUIRED[feed]) - 1) for feed in FEEDS}
    best = max(FEEDS, key=lambda feed: shares[feed])
    return best if shares[best] > 0 else None
