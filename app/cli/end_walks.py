"""`clerk-feed end-walks`: say that no sync is under way."""

from pathlib import Path
from typing import Any

import click

from app.catalog import histories
from app.catalog.bookmarks import end_walks as end
from app.cli.said import config_option, say
from app.protocol.feeds import FEEDS


@click.command("end-walks")
@config_option
@click.option("--store", help="Only this store.")
@click.option("--feed", type=click.Choice(FEEDS), help="Only this feed.")
@click.option(
    "--set-back", is_flag=True, help="The database shows an earlier state than Clerk was told. Of all stores and feeds."
)
def end_walks(path: Path, store: str | None, feed: str | None, *, set_back: bool) -> None:
    """Let the next syncs pass where some that nobody goes on with are still waited for.

    After a failover of the database, or when the type of a feed's id has changed, syncs are refused for up to two hours
    where another one may have been under way, because to go on from the other's place could lose items. If you know
    that none is, run this. One that is under way all the same is refused at its next page, but only as long as no
    other sync has come as far; after that it goes on from there and may lose items.

    With --set-back, the next deltas are of everything. Say so where nothing in the database shows that Clerk was told
    of a later state: its disks were set back to a snapshot, tables of the shop were restored from a backup, or the
    service was moved here from another database that it had been moved to.
    """
    if set_back and (store or feed):
        raise click.UsageError("--set-back is said of the database, and so of all stores and feeds.")
    feeds: list[str] = list(FEEDS) if feed is None else [feed]

    async def work(connection: Any, stores: list[str]) -> list[tuple[str, str]]:
        if set_back:
            await histories.forget(connection)
        return await end(connection, stores, feeds)

    ended = say(path, store, work)
    if set_back:
        click.echo("The next deltas bring everything.")
    for of_store, of_feed in ended:
        click.echo(f"Ended: no sync of {of_feed} of {of_store} is waited for any more.")
    click.echo("Start the next sync." if ended else "No sync was waited for.")
