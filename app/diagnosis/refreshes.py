"""Rendered feeds: whether their refreshes work, and are young enough."""

from typing import Any

from app.diagnosis.findings import Finding, error, note, warning
from app.protocol.feeds import FeedName
from app.settings import Store

_LATE = 3


async def refresh_findings(connection: Any, store: Store, feed: FeedName) -> list[Finding]:
    """How the refreshes of a rendered feed stand. Raises what asyncpg raises."""
    settings = store.feed(feed)
    command = f"clerk-feed refresh --store {store.name} --feed {feed}"
    known = await connection.fetchval("select to_regclass('clerk_feed.rendered_state') is not null")
    row = await connection.fetchrow(_STATE, store.name, feed) if known else None
    found: list[Finding] = []
    seconds = settings.refresh_seconds
    if seconds is None:
        found.append(
            note(
                "refresh-by-hand",
                "No refresh_every is set: the feed is as young as the last refresh.",
                f"Set refresh_every, or let a timer run: {command}",
            )
        )
    if row is None or not row["served"]:
        found.append(
            warning(
                "refresh-never",
                "The feed is rendered, and was never refreshed: it answers 503 until then.",
                f"Run: {command}",
            )
        )
    elif seconds is not None and row["age"] > _LATE * seconds:
        found.append(
            warning(
                "refresh-late",
                f"The last refresh was {row['age'] / 60:,.0f} minutes ago; one is due every {settings.refresh_every}.",
                f"Look into the service's log, or run: {command}",
            )
        )
    if row is not None and row["last_outcome"] in ("failed", "held back"):
        detail = f" {row['last_detail']}" if row["last_detail"] else ""
        found.append(
            error(
                "refresh-failed",
                f"The last refresh {'failed' if row['last_outcome'] == 'failed' else 'was held back'}:{detail}",
                f"Mend the view, then run: {command}"
                + (
                    f" --accept-shrink --items {row['last_items']}, if so few items are right"
                    if row["last_outcome"] == "held back"
                    else ""
                ),
            )
        )
    if row is not None and row["deletions_waiting"] and not store.private_key:
        found.append(
            note(
                "deletions-waiting",
                f"{row['deletions_waiting']:,} deletions wait for Clerk to be told of.",
                f"Set private_key for [stores.{store.name}], or let a full sync run now and then.",
            )
        )
    return found


_STATE = """
select
  served, last_outcome, last_detail, last_items, deletions_waiting,
  extract(epoch from now() - refreshed)::float8 as age
from clerk_feed.rendered_state
where store = $1 and feed = $2
"""
