"""`clerk-feed accept-shrink`: say that a feed is right to have so few items."""

from pathlib import Path

import click

from app.catalog.guard import AcceptError
from app.catalog.guard import accept_shrink as accept
from app.cli.said import config_option, say
from app.protocol.feeds import FEEDS


@click.command("accept-shrink")
@config_option
@click.option("--store", required=True, help="The store's name in feed.toml.")
@click.option("--feed", required=True, type=click.Choice(FEEDS), help="The feed whose end is held back.")
@click.option("--items", type=click.IntRange(0), help="How many are right; without it, what was held back last.")
def accept_shrink(path: Path, store: str, feed: str, items: int | None) -> None:
    """Let a walk end although its feed has lost many items.

    When a full walk would end with far fewer items than the last one, its end is held back, because Clerk would delete
    what is missing. If the items are rightly gone, run this; Clerk's next attempt goes through. A feed that shrinks
    further still is held back again.
    """
    try:
        accepted, last = say(path, store, lambda connection, _: accept(connection, store, feed, items))
    except AcceptError as error:
        raise click.ClickException(str(error)) from None
    before = "" if last is None else f", {last:,} before"
    click.echo(
        f"Accepted: {feed} of {store} may end with {accepted:,} items{before}. Clerk's next attempt goes through."
    )
