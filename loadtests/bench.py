"""`make bench`: clerk-feed beside what else one would use, on one catalog, by one importer, in one run.

Starts what it needs (an embedded PostgreSQL, a stand-in for Clerk's verify endpoint, the service, the baselines) and
ends it in any case. Every measurement has a process of its own, so that none inherits the memory of another.
"""

import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import asyncpg
import click
import msgspec
import orjson
import uvloop
from rich.console import Console

from app.catalog.embedded import Embedded, EmbeddedError
from app.clerk.importer import ImportFailedError
from loadtests import catalog, measure, plots, rendered, report
from loadtests.baselines import datasette_file
from loadtests.processes import ProcessError, Target, clerk_feed, datasette, django_app, fastapi_app, standin

_COMPARED_PAGES = 50
_FAR_PAGES = 10
_NAMES = ("walk", "baseline", "mapped", "draft", "django", "datasette", "stream", "small", "start", "rendered")
_STARTS = 5


@click.command()
@click.option("--items", type=click.IntRange(100), default=1_000_000, show_default=True, help="Products to make.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Where to keep the figures.")
@click.option(
    "--only", type=click.Choice(_NAMES), multiple=True, help="Measure only this; may be given more than once."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=120.0,
    show_default=True,
    help="The longest that one measurement may take; what is not done by then is left out, and said.",
)
@click.option(
    "--small-pages",
    type=click.IntRange(1),
    default=4000,
    show_default=True,
    help="Pages to ask for at limit 25.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".clerk-feed/bench"),
    show_default=True,
    help="Where the embedded PostgreSQL keeps the catalog between runs.",
)
@click.option(
    "--plots",
    "plots_dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Draw latency by offset and time by size into this folder, as SVG, light and dark.",
)
def bench(
    items: int,
    json_path: Path | None,
    only: tuple[str, ...],
    seconds: float,
    small_pages: int,
    data_dir: Path,
    plots_dir: Path | None,
) -> None:
    """Measure clerk-feed and, in the same run, what else one would serve the same items with."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    # Ending by SIGTERM must stop what was started, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            figures = _run(stack, console.print, items, only or _NAMES, seconds, small_pages, data_dir)
    except (EmbeddedError, ProcessError, ImportFailedError) as error:
        raise click.ClickException(str(error)) from None
    report.show(figures, console)
    if plots_dir:
        plots_dir.mkdir(parents=True, exist_ok=True)
        for theme in plots.THEMES:
            for name, draw in (("latency", plots.latency_by_offset), ("sync", plots.sync_by_size)):
                (plots_dir / f"{name}-{theme}.svg").write_text(plots.svg(draw(figures, theme)), encoding="utf-8")
        console.print(f"Plots drawn into {plots_dir}.")
    if json_path:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_bytes(orjson.dumps(figures.as_data(), option=orjson.OPT_INDENT_2) + b"\n")
        console.print(f"Figures kept in {json_path}.")


def _run(
    stack: ExitStack,
    say: Callable[[str], None],
    items: int,
    names: tuple[str, ...],
    seconds: float,
    small_pages: int,
    data_dir: Path,
) -> report.Figures:
    server = Embedded.start(data_dir)
    stack.callback(server.stop)
    dsn = uvloop.run(catalog.prepare(server, items, say))
    machine = report.machine(uvloop.run(_version(dsn)))
    figures = report.Figures(items, machine)
    began, waited, ticks = time.monotonic(), report.cpu_waited(), report.cpu_ticks()
    url = stack.enter_context(standin())
    if "walk" in names:
        say("clerk-feed: a walk of all items …")
        with clerk_feed(dsn, url, data_dir) as target:
            walk = measure.walk(target, items, _COMPARED_PAGES, seconds)
        figures = msgspec.structs.replace(figures, walk=walk)
    others: dict[str, tuple[str, Callable[[], AbstractContextManager[Target]]]] = {
        "baseline": ("FastAPI + SQLAlchemy", lambda: fastapi_app(dsn, url, data_dir)),
        "mapped": (
            "FastAPI + SQLAlchemy, mapped objects",
            lambda: fastapi_app(dsn, url, data_dir, path="/bench/products-mapped"),
        ),
        "draft": (
            "FastAPI + SQLAlchemy, dicts without a model",
            lambda: fastapi_app(dsn, url, data_dir, path="/bench/products-draft"),
        ),
        "django": ("Django REST framework", lambda: django_app(dsn, url, data_dir)),
        "datasette": (
            "Datasette, by key",
            lambda: datasette(uvloop.run(datasette_file.build(dsn, items, data_dir)), data_dir),
        ),
    }
    for name, (about, launch) in others.items():
        if name in names:
            say(f"{about}: {_COMPARED_PAGES} pages from offset 0, {_FAR_PAGES} from 0.9 N, 3 from each tenth …")
            with clerk_feed(dsn, url, data_dir) as target:
                reference = measure.first_page(target)
            with launch() as target:
                beside = measure.baseline(target, reference, items, _COMPARED_PAGES, _FAR_PAGES, seconds)
            figures = msgspec.structs.replace(figures, **{name: beside})
    if "stream" in names:
        say("clerk-feed: all items in one answer …")
        with clerk_feed(dsn, url, data_dir) as target:
            streams = [measure.stream(target, items, seconds)]
        for coding in measure.CODINGS:
            with clerk_feed(dsn, url, data_dir) as target:
                streams.append(measure.stream(target, items, seconds, coding))
        figures = msgspec.structs.replace(figures, streams=tuple(streams))
    if "small" in names:
        say(f"clerk-feed: {small_pages:,} pages of {measure.SMALL_ITEMS} items …")
        with clerk_feed(dsn, url, data_dir) as target:
            small = measure.small(target, small_pages, seconds)
        figures = msgspec.structs.replace(figures, small=small)
    if "start" in names:
        say(f"clerk-feed: {_STARTS} starts …")
        started = measure.start(lambda: clerk_feed(dsn, url, data_dir), _STARTS)
        figures = msgspec.structs.replace(figures, start=started)
    if "rendered" in names:
        # Last: it changes the source.
        refreshing = uvloop.run(rendered.refresh(dsn, items, say, server))
        say("clerk-feed, rendered: walks, all items in one answer, and COPY …")
        table = uvloop.run(rendered.items_table(dsn))
        ready = rendered.rendered(server, dsn, url, data_dir, items, refreshing, table, seconds)
        figures = msgspec.structs.replace(figures, rendered=ready)
    if waited is not None and (waited_since := report.cpu_waited()) is not None:
        machine = msgspec.structs.replace(machine, cpu_waits=(waited_since - waited) / (time.monotonic() - began))
    if ticks is not None and (now := report.cpu_ticks()) is not None:
        machine = msgspec.structs.replace(machine, stolen=(now[0] - ticks[0]) / max(now[1] - ticks[1], 1))
    return msgspec.structs.replace(figures, machine=machine)


async def _version(dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        return str(await connection.fetchval("show server_version"))
    finally:
        await connection.close()


if __name__ == "__main__":
    bench()
