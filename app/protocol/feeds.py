"""The five feeds of Clerk's JSON Feed V2 and what each item must have.

Required attributes are those of Clerk's guide "Data Feeds", the holes in its tables filled from Clerk's API
reference. `id` is required everywhere and first.
"""

from typing import Literal, get_args

import msgspec

FeedName = Literal["products", "categories", "orders", "customers", "pages"]

FEEDS: tuple[FeedName, ...] = get_args(FeedName)

Id = int | str
Text = str | dict[str, str]
"""Text, or in a multi-language feed an object of language and text."""


class Product(msgspec.Struct, frozen=True):
    """An item of products. Further attributes are welcome, here as in all feeds."""

    id: Id
    name: Text
    description: Text
    price: float
    image: Text
    url: Text
    categories: list[Id]
    created_at: int


class Category(msgspec.Struct, frozen=True):
    """An item of categories."""

    id: Id
    name: Text
    url: Text
    subcategories: list[Id]


class OrderLine(msgspec.Struct, frozen=True):
    """What was ordered of one product."""

    id: Id
    quantity: int
    price: float


class Order(msgspec.Struct, frozen=True):
    """An item of orders."""

    id: Id
    products: list[OrderLine]
    time: int


class Customer(msgspec.Struct, frozen=True):
    """An item of customers."""

    id: Id
    email: str


class Page(msgspec.Struct, frozen=True):
    """An item of pages."""

    id: Id
    type: str
    url: str
    title: str
    text: str


ITEMS: dict[FeedName, type[msgspec.Struct]] = {
    "products": Product,
    "categories": Category,
    "orders": Order,
    "customers": Customer,
    "pages": Page,
}
"""What an item of a feed must have, as Clerk's guide types it."""

REQUIRED: dict[FeedName, tuple[str, ...]] = {
    feed: tuple(field.name for field in msgspec.structs.fields(item)) for feed, item in ITEMS.items()
}
"""Attributes without which Clerk can't use an item."""

SINGLE_FILE = "feed.json"
"""The older feed: all five in one JSON object, without paging."""

SINGLE_FILE_KEYS: dict[FeedName, str] = {
    "products": "products",
    "categories": "categories",
    "orders": "sales",
    "customers": "customers",
    "pages": "pages",
}
"""Under which name a feed stands in the single file."""
