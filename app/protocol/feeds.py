"""The five feeds of Clerk's JSON Feed V2 and what each item must have.

Required attributes are those of Clerk's guide "Data Feeds", the holes in its tables filled from Clerk's API
reference. `id` is required everywhere and first.
"""

from typing import Literal, get_args

FeedName = Literal["products", "categories", "orders", "customers", "pages"]

FEEDS: tuple[FeedName, ...] = get_args(FeedName)

REQUIRED: dict[FeedName, tuple[str, ...]] = {
    "products": ("id", "name", "description", "price", "image", "url", "categories", "created_at"),
    "categories": ("id", "name", "url", "subcategories"),
    "orders": ("id", "products", "time"),
    "customers": ("id", "email"),
    "pages": ("id", "type", "url", "title", "text"),
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
