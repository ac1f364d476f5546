"""`clerk-feed end-walks`: say that no sync of a feed is under way."""

from pathlib import Path

import click

from app.catalog.bookmarks import end_walks as end
from app.cli.one_feed import config_option, feed_option, say, store_option


@click.command("end-walks")
@config_option
@store_option
@feed_option
def end_walks(path: Path, store: str, feed: str) -> None:
    """Let the next sync pass where one that nobody goes on with is still waited for.

    After a failover of the database, or when the type of a feed's id has changed, syncs are refused for up to two hours
    where another one may have been under way, because to go on from the other's place could lose items. If you know
    that none is, run this. A sync that is under way all the same is refused at its next page and must begin anew.
    """
    if say(path, store, lambda connection: end(connection, store, feed)):
        click.echo(f"Ended: no sync of {feed} of {store} is waited for any more. Start the next one.")
    else:
        click.echo(f"No sync of {feed} of {store} was waited for.")
