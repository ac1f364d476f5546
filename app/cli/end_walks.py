"""`clerk-feed end-walks`: say that no sync is under way."""

from pathlib import Path

import click

from app.catalog.bookmarks import end_walks as end
from app.cli.said import config_option, say
from app.protocol.feeds import FEEDS


@click.command("end-walks")
@config_option
@click.option("--store", help="Only this store.")
@click.option("--feed", type=click.Choice(FEEDS), help="Only this feed.")
def end_walks(path: Path, store: str | None, feed: str | None) -> None:
    """Let the next syncs pass where some that nobody goes on with are still waited for.

    After a failover of the database, or when the type of a feed's id has changed, syncs are refused for up to two hours
    where another one may have been under way, because to go on from the other's place could lose items. If you know
    that none is, run this. One that is under way all the same is refused at its next page, but only as long as no
    other sync has come as far; after that it goes on from there and may lose items.
    """
    feeds: list[str] = list(FEEDS) if feed is None else [feed]
    ended = say(path, store, lambda connection, stores: end(connection, stores, feeds))
    for of_store, of_feed in ended:
        click.echo(f"Ended: no sync of {of_feed} of {of_store} is waited for any more.")
    click.echo("Start the next sync." if ended else "No sync was waited for.")
