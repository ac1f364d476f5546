"""`make bench-xl`: a rendered feed of ten million products. About 25 GB of disk, and half an hour the first time."""

import shutil
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import click
import orjson
import uvloop
from rich.console import Console

from app.catalog.embedded import Embedded, EmbeddedError
from app.clerk.importer import ImportFailedError
from loadtests import catalog, measure, rendered, report
from loadtests.processes import ProcessError, clerk_feed, standin

_BYTES_AN_ITEM = 2500
"""The catalog, the items rendered from it, their indexes, and the log of writing them."""


@click.command()
@click.option("--items", type=click.IntRange(10_000), default=10_000_000, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Where to keep the figures.")
@click.option("--seconds", type=float, default=300.0, show_default=True, help="The longest that one measurement takes.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".clerk-feed/bench-xl"),
    show_default=True,
    help="Where the embedded PostgreSQL keeps the catalog between runs.",
)
def bench_xl(items: int, json_path: Path | None, seconds: float, data_dir: Path) -> None:
    """Walk ten million rendered products, page by page and in one answer."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    data_dir.mkdir(parents=True, exist_ok=True)
    there = sum(path.stat().st_size for path in data_dir.rglob("*") if path.is_file())
    free, needed = shutil.disk_usage(data_dir).free, items * _BYTES_AN_ITEM - there
    if free < needed:
        console.print(f"Skipped: it takes {needed / 1e9:.0f} GB, and {data_dir} has {free / 1e9:.0f} GB left.")
        return
    try:
        with ExitStack() as stack:
            server = Embedded.start(data_dir)
            stack.callback(server.stop)
            dsn = uvloop.run(catalog.prepare(server, items, console.print))
            refreshing = uvloop.run(rendered.refresh(dsn, items, console.print, server, times=1))
            table = uvloop.run(rendered.items_table(dsn))
            url = stack.enter_context(standin())
            console.print(f"A walk of {items:,} items, and all in one answer …")
            with clerk_feed(dsn, url, data_dir, of_store=rendered.OF_STORE) as target:
                walk = rendered.walk(target, items, seconds)
            with clerk_feed(dsn, url, data_dir, of_store=rendered.OF_STORE) as target:
                stream = measure.stream(target, items, seconds)
            copy = rendered.copy(server, dsn, f"select doc from {table} where doc is not null")
    except (EmbeddedError, ProcessError, ImportFailedError) as error:
        raise click.ClickException(str(error)) from None
    figures = rendered.Rendered(items, copy, refreshing, walk, None, stream)
    report.show_rendered(figures, console, report.xl_goals(figures))
    if json_path:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_bytes(orjson.dumps(report.data(figures), option=orjson.OPT_INDENT_2) + b"\n")


if __name__ == "__main__":
    bench_xl()
