"""`clerk-feed serve`: run the service."""

import asyncio
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import click

from app.catalog.embedded import Embedded, EmbeddedError
from app.catalog.pool import of_primary
from app.certificates import CertificateError, require_usable
from app.settings import DEFAULT_PATH, Settings, SettingsError, of_file, read
from app.status.events import Events
from app.status.log import Log
from app.status.metrics_folder import MetricsFolderError, metrics_folder
from app.supervisor import Supervisor, SupervisorError


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=DEFAULT_PATH,
    show_default=True,
    help="The settings to serve by.",
)
def serve(path: Path) -> None:
    """Serve the feeds named in feed.toml until stopped.

    Prints the addresses and what was found for every feed, then one line a request: for people on a terminal, JSON
    otherwise. SIGTERM or Ctrl-C stops it; answers under way get shutdown_timeout to finish. SIGHUP reads feed.toml and
    the certificates again and moves to them without refusing anyone.
    """
    try:
        text = read(path)
        settings = of_file(text, path)
        require_usable(settings.server)
        with closing(Log()) as log, ExitStack() as stack:
            stack.enter_context(metrics_folder())
            supervisor = Supervisor(path, partial(database, stack=stack), Events(log))
            asyncio.run(supervisor.run(settings, text))
    except (SettingsError, CertificateError, SupervisorError, EmbeddedError, MetricsFolderError) as error:
        raise click.ClickException(str(error)) from None


def database(settings: Settings, stack: ExitStack) -> str:
    """The DSN of the primary, with the embedded server started where none is set, and stopped by the stack."""
    if settings.database.state_dsn:
        return of_primary(settings.database.state_dsn.reveal())
    if settings.database.dsn is not None:
        return of_primary(settings.database.dsn.reveal())
    embedded = Embedded.start(Path(settings.database.data_dir))
    stack.callback(embedded.stop)
    return embedded.dsn
