"""`clerk-feed demo`: a sample catalog, the service, and an importer that walks it."""

import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path

import asyncpg
import click
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.catalog.embedded import Embedded, EmbeddedError
from app.catalog.schema import SQL_FOLDER
from app.clerk import standin
from app.clerk.importer import Importer, ImportFailedError, Report
from app.protocol.feeds import FEEDS
from app.sockets import PortTakenError, listen

TOKEN = "demo-token"  # noqa: S105 (good for the stand-in only)
PUBLIC_KEY = "demo-public-key"
_START_SECONDS = 30.0


@click.command()
@click.option("--exit", "exit_after", is_flag=True, help="End after the table instead of staying up.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8000,
    show_default=True,
    help="Port of the service; a free one is taken, and said, where it is in use.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".clerk-feed"),
    show_default=True,
    help="Where the embedded PostgreSQL keeps the sample catalog.",
)
def demo(exit_after: bool, port: int, data_dir: Path) -> None:
    """See it work: a sample catalog of 100 000 products, the service, and an importer.

    Starts an embedded PostgreSQL, a stand-in for Clerk's token verification and the service, all on this machine,
    then reads all five feeds as Clerk's importer does. The data is kept: a second start is ready at once.
    """
    console = Console(highlight=False)
    try:
        with ExitStack() as stack:
            _run(console, stack, exit_after=exit_after, port=port, data_dir=data_dir)
    except (EmbeddedError, ImportFailedError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        console.print("\nStopped.")


def _run(console: Console, stack: ExitStack, *, exit_after: bool, port: int, data_dir: Path) -> None:
    # Ending by SIGTERM must stop what was started, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    embedded = Embedded.start(data_dir)
    stack.callback(embedded.stop)
    totals = uvloop.run(_prepare(embedded.dsn, console))
    verify_url = stack.enter_context(standin.running({PUBLIC_KEY: {TOKEN}}))
    url = stack.enter_context(_service(console, embedded.dsn, verify_url, port, data_dir))
    console.print(f"Serving the sample catalog on {url}. An importer reads all of it:\n")
    reports = _import_all(console, url, totals)
    console.print(_table(reports))
    incomplete = [r.feed for r in reports if len(r.ids) != totals[r.feed] or r.duplicates]
    if incomplete:
        raise click.ClickException(f"not every item arrived exactly once: {', '.join(incomplete)}")
    console.print("Every item arrived, exactly once.")
    if exit_after:
        return
    console.print()
    _print_addresses(console, url, data_dir)
    console.print("\nIt stays up until Ctrl-C.")
    while True:
        time.sleep(3600)


async def _prepare(dsn: str, console: Console) -> dict[str, int]:
    """Build the sample catalog unless it is there; how many items each feed has."""
    script = (SQL_FOLDER / "sample_catalog.sql").read_text(encoding="utf-8")
    digest = sha256(script.encode()).hexdigest()
    connection = await asyncpg.connect(dsn)
    try:
        there = await connection.fetchval("select obj_description(to_regnamespace('demo'), 'pg_namespace')")
        if there != digest:
            started = time.perf_counter()
            with console.status("Building the sample catalog in the embedded PostgreSQL …"):
                async with connection.transaction():
                    await connection.execute("drop schema if exists demo, shop cascade")
                    await connection.execute(script)
                    await connection.execute(f"comment on schema demo is '{digest}'")
                await connection.execute("vacuum analyze")
            console.print(f"Built the sample catalog in {time.perf_counter() - started:.0f} s.")
        return {feed: await connection.fetchval(f"select count(*) from demo.{feed}") for feed in FEEDS}  # noqa: S608
    finally:
        await connection.close()


@contextmanager
def _service(console: Console, dsn: str, verify_url: str, port: int, data_dir: Path) -> Iterator[str]:
    """`clerk-feed serve` in a process of its own, with settings that the user may look at; its URL."""
    bind, admin = _free(port, console), _free(port + 1, console)
    config, log = data_dir / "demo.toml", data_dir / "serve.log"
    config.write_text(
        f"""# Written anew by every 'clerk-feed demo'. A stand-in on this machine plays Clerk.
[database]
dsn = {_toml(dsn)}

[server]
bind = ["127.0.0.1:{bind}"]
admin_bind = "127.0.0.1:{admin}"

[access]
verify_url = {_toml(verify_url)}

[stores.demo]
public_key = {_toml(PUBLIC_KEY)}
"""
    )
    command = [sys.executable, "-m", "app", "serve", "--config", str(config)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)  # noqa: S603
    try:
        _await_ready(process, bind, log)
        yield f"http://127.0.0.1:{bind}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free(port: int, console: Console) -> int:
    """The port, or a free one in its place, said so."""
    try:
        listen(f"127.0.0.1:{port}", user_timeout_seconds=30).close()
    except PortTakenError:
        with closing(socket.create_server(("127.0.0.1", 0))) as found:
            free: int = found.getsockname()[1]
        console.print(f"Port {port} is taken by another program: using {free} instead.")
        return free
    return port


def _await_ready(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/-/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise click.ClickException(f"the service did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _import_all(console: Console, url: str, totals: dict[str, int]) -> list[Report]:
    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(40),
        TaskProgressColumn(),
        TextColumn("{task.completed:>9,.0f} items"),
        TimeElapsedColumn(),
    )
    reports = []
    with Progress(*columns, console=console) as progress:
        tasks = {feed: progress.add_task(feed, total=totals[feed], start=False) for feed in FEEDS}
        for feed in FEEDS:
            progress.start_task(tasks[feed])
            importer = Importer(f"{url}/demo/{feed}?limit={{{{limit}}}}&offset={{{{offset}}}}", token=TOKEN)
            with closing(importer):
                advance = partial(_advance, progress, tasks[feed])
                reports.append(importer.run(feed, progress=advance))
    return reports


def _advance(progress: Progress, task: TaskID, report: Report) -> None:
    progress.update(task, completed=report.items)


def _table(reports: list[Report]) -> Table:
    table = Table(title="One importer, page by page, limit 1000", title_justify="left", title_style="bold")
    table.add_column("feed")
    for heading in ("items", "pages", "MB", "seconds", "items/s", "slowest page"):
        table.add_column(heading, justify="right")
    for report in reports:
        table.add_row(
            report.feed,
            f"{report.items:,}",
            f"{report.pages:,}",
            f"{report.bytes / 1e6:,.1f}",
            f"{report.seconds:.2f}",
            f"{report.items_per_second:,.0f}",
            f"{report.slowest_seconds * 1000:.0f} ms",
        )
    return table


def _print_addresses(console: Console, url: str, data_dir: Path) -> None:
    def show(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

    for feed in FEEDS:
        show(f"  {url}/demo/{feed}")
    show("\nTry one:\n")
    show(f"  curl -H 'X-Clerk-Authorization: Bearer {TOKEN}' '{url}/demo/products?limit=2&offset=0'")
    show(f"  curl -i '{url}/demo/products'    # without the token")
    show(f"\n  problems and their cures   {url}/-/problems")
    show(f"  settings and log           {data_dir / 'demo.toml'}, {data_dir / 'serve.log'}")
    show(f"  the views behind it        {SQL_FOLDER / 'sample_catalog.sql'}")


def _toml(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
