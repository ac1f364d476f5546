"""`clerk-feed accept-shrink`: say that a feed is right to have so few items."""

from pathlib import Path

import click

from app.catalog.guard import accept_shrink as accept
from app.cli.one_feed import config_option, feed_option, say, store_option


@click.command("accept-shrink")
@config_option
@store_option
@feed_option
def accept_shrink(path: Path, store: str, feed: str) -> None:
    """Let a walk end although its feed has lost many items.

    When a full walk would end with far fewer items than the last one, its end is held back, because Clerk would delete
    what is missing. If the items are rightly gone, run this; Clerk's next attempt goes through. A feed that shrinks
    further still is held back again.
    """
    found = say(path, store, lambda connection: accept(connection, store, feed))
    if found is None:
        raise click.ClickException(f"no walk of {feed} of {store} is held back: there is nothing to accept")
    items, last = found
    before = "" if last is None else f", {last:,} before"
    click.echo(f"Accepted: {feed} of {store} may end with {items:,} items{before}. Clerk's next attempt goes through.")
