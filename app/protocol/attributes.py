"""What Clerk expects in an attribute, by feed: from its guide "Data Feeds" and its API reference.

Only those whose type matters to Clerk are listed; a shop may send any others. `is_b2b` is not: Clerk's own example
has it as a bool and as a text.
"""

import re
from typing import Literal

from app.protocol.feeds import FeedName

Kind = Literal["id", "text", "address", "number", "time", "ids", "lines", "flag"]
"""`address` is a full URL, `time` unix seconds, `ids` an array of ids, `lines` an array of {id, quantity, price}."""

ATTRIBUTES: dict[FeedName, dict[str, Kind]] = {
    "products": {
        "id": "id",
        "name": "text",
        "description": "text",
        "price": "number",
        "image": "address",
        "url": "address",
        "categories": "ids",
        "created_at": "time",
        "list_price": "number",
        "stock": "number",
        "reviews_amount": "number",
        "reviews_avg": "number",
    },
    "categories": {
        "id": "id",
        "name": "text",
        "url": "address",
        "subcategories": "ids",
        "image": "address",
        "description": "text",
    },
    "orders": {"id": "id", "products": "lines", "time": "time", "email": "text"},
    "customers": {"id": "id", "email": "text", "name": "text", "subscribed": "flag", "age": "number"},
    "pages": {"id": "id", "type": "text", "url": "address", "title": "text", "text": "text", "image": "address"},
}

WORDS: dict[Kind, str] = {
    "id": "a whole number or text",
    "text": "text",
    "address": "text, a full URL",
    "number": "a number",
    "time": "a number, unix seconds",
    "ids": "an array of ids",
    "lines": "an array of objects with id, quantity and price",
    "flag": "true or false",
}

TRANSLATED: dict[FeedName, tuple[str, ...]] = {
    "products": ("name", "description", "image", "url"),
    "categories": ("name", "description", "image", "url"),
    "orders": (),
    "customers": (),
    "pages": (),
}
"""Attributes that may be an object of language and text, in a multi-language feed."""

_NAME = re.compile(r"[A-Za-z0-9_]+")


def known_to_clerk(name: str) -> bool:
    """Whether the sync takes an attribute of this name: letters, digits and underscore only."""
    return _NAME.fullmatch(name) is not None
