"""The description of the public routes, OpenAPI 3.1, from the types the code itself goes by.

It names nothing of the shop: no store, no address, no column.
"""

from typing import Any

import msgspec

from app.protocol.feeds import FEEDS, ITEMS, SINGLE_FILE, SINGLE_FILE_KEYS, FeedName
from app.protocol.problems import ALL, MEDIA_TYPE, PROBLEMS_PATH, ProblemDetails
from app.protocol.request import FeedQuery, Format
from app.protocol.wire import MEDIA_TYPES

OPENAPI_PATH = "/-/openapi.json"


class Health(msgspec.Struct, frozen=True):
    """How the service is. Degraded: everything is served, and somebody should look."""

    status: str
    reasons: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    """What is amiss; told on the address of operators only."""


_REFERENCE = "#/components/schemas/{name}"
_FORMATS: dict[str, tuple[Format, ...]] = {"": ("ndjson", "json"), ".json": ("json",), ".ndjson": ("ndjson",)}
_ANY_TIME = (405, 413, 500, 505)
"""What any route may answer with: another method, a body, a defect, another version of HTTP."""

_HEADERS: dict[str, Any] = {
    "X-Request-Id": {"description": "The CF-Ray of the request, or an id of ours.", "schema": {"type": "string"}},
}
_FEED_HEADERS: dict[str, Any] = _HEADERS | {
    "Server-Timing": {
        "description": "Where the time went: gate, bookmark, database, encode, in milliseconds.",
        "schema": {"type": "string"},
    },
    "Link": {
        "description": 'With `after`: where the next page is, rel="next". Absent at the end.',
        "schema": {"type": "string"},
    },
}


def document(version: str) -> dict[str, Any]:
    """The whole description."""
    types = [*ITEMS.values(), ProblemDetails, Health]
    references, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    named = dict(zip(types, references, strict=True))
    paths: dict[str, Any] = {}
    for feed in FEEDS:
        for suffix, formats in _FORMATS.items():
            paths[f"/{{store}}/{feed}{suffix}"] = {"get": _feed(feed, suffix, formats, named[ITEMS[feed]])}
    paths[f"/{{store}}/{SINGLE_FILE}"] = {"get": _single_file(named)}
    paths["/-/healthz"] = {"get": _own("healthz", "The process answers.", {200: _json(named[Health])})}
    paths["/-/readyz"] = {
        "get": _own(
            "readyz",
            "The database answers, and every feed named in the settings can be served.",
            {200: _json(named[Health]), 503: _json(named[Health])},
        )
    }
    paths[PROBLEMS_PATH] = {
        "get": _own("problems", "Every problem, its cause and its cure, for people.", {200: {"text/html": {}}})
    }
    paths[OPENAPI_PATH] = {"get": _own("openapi", "This document.", {200: _json({"type": "object"})})}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "clerk-feed",
            "version": version,
            "description": "A shop's catalog for Clerk.io's importer, as JSON Feed V2.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "clerk": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-Clerk-Authorization",
                    "description": "Bearer, and the token that Clerk sends with every request.",
                },
                "basic": {"type": "http", "scheme": "basic", "description": "Where the store asks for it."},
            },
        },
    }


def _feed(feed: FeedName, suffix: str, formats: tuple[Format, ...], item: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if "ndjson" in formats:
        text = {"type": "string", "description": f"One item a line, each as in {feed}.json."}
        content[MEDIA_TYPES["ndjson"].decode()] = {"schema": text}
    if "json" in formats:
        content |= _json({"type": "array", "items": item})
    return _guarded(
        f"{feed}{suffix.replace('.', '_')}",
        f"One page of {feed}, or all of them where no limit is given.",
        [_store(), *_query()],
        content,
    )


def _single_file(named: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    lists = {SINGLE_FILE_KEYS[feed]: {"type": "array", "items": named[ITEMS[feed]]} for feed in FEEDS}
    schema = {
        "type": "object",
        "properties": {**lists, "created": {"type": "integer"}, "strict": {"type": "boolean"}},
        "required": ["created", "strict"],
        "description": "A feed that the store does not have leaves its key out.",
    }
    return _guarded("single_file", "The older feed: all feeds in one object.", [_store()], _json(schema))


def _guarded(id: str, summary: str, parameters: list[dict[str, Any]], content: dict[str, Any]) -> dict[str, Any]:
    """A route behind the gate."""
    # Any of our problems may come, but for those of the operators' own address.
    statuses = {problem.status for problem in ALL}
    return {
        "operationId": id,
        "summary": summary,
        "parameters": parameters,
        "security": [{"clerk": []}, {"clerk": [], "basic": []}, {"basic": []}],
        "responses": {
            "200": {"description": "The items.", "headers": _FEED_HEADERS, "content": content},
            **{str(status): _problem(status) for status in sorted(statuses)},
        },
    }


def _own(id: str, summary: str, answers: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """A route that anybody may ask."""
    return {
        "operationId": id,
        "summary": summary,
        "responses": {
            **{str(s): {"description": summary, "headers": _HEADERS, "content": c} for s, c in answers.items()},
            **{str(status): _problem(status) for status in _ANY_TIME if status not in answers},
        },
    }


def _problem(status: int) -> dict[str, Any]:
    titles = [f"`{problem.code}`: {problem.title}" for problem in ALL if problem.status == status]
    return {
        "description": " ".join(titles),
        "headers": _HEADERS,
        "content": {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(name=ProblemDetails.__name__)}}},
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {MEDIA_TYPES["json"].decode(): {"schema": schema}}


def _store() -> dict[str, Any]:
    schema = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,63}$"}
    return {"name": "store", "in": "path", "required": True, "description": "The store's name.", "schema": schema}


def _query() -> list[dict[str, Any]]:
    """The parameters of a feed, from the type that names them."""
    (_,), components = msgspec.json.schema_components([FeedQuery], ref_template=_REFERENCE)
    return [
        {"name": name, "in": "query", "required": False, "description": schema.pop("description", ""), "schema": schema}
        for name, schema in components[FeedQuery.__name__]["properties"].items()
    ]
