"""`make load PROFILE=nightly`: a load profile against a service of its own, judged, with a report in HTML.

Starts what it needs (an embedded PostgreSQL, the bench's catalog, a stand-in for Clerk's verify endpoint, the service,
locust) and ends it in any case. Exit status 1 where a threshold of the profile does not hold.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Set
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import click
import jinja2
import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from app.catalog.embedded import Embedded, EmbeddedError
from app.clerk.standin import running
from loadtests import catalog, plots
from loadtests.processes import TOKEN, ProcessError, Target, clerk_feed
from loadtests.profiles import PROFILES, Plan, Profile, Recording, Sample
from loadtests.report import Machine, cpu_ticks, machine, troubles
from loadtests.verdict import Outcome, judge

HERE = Path(__file__).parent
SLOW_STORE = "elsewhere"
_FEEDS = HERE / "feeds.sql"
_SAMPLE_SECONDS = 0.5


class AnyTokenOf(Set[str]):
    """Every token that begins like ours is good, as if Clerk made a new one for each request."""

    def __contains__(self, token: object) -> bool:
        return isinstance(token, str) and token.startswith(TOKEN)

    def __iter__(self) -> Iterator[str]:
        return iter([TOKEN])

    def __len__(self) -> int:
        return 1


@click.command()
@click.argument("name", metavar="PROFILE", type=click.Choice(list(PROFILES)))
@click.option("--items", type=click.IntRange(1000), help="Products in all.  [default: the profile's]")
@click.option("--minutes", type=click.FloatRange(0.05), help="How long.  [default: the profile's]")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".clerk-feed/bench"),
    show_default=True,
    help="Where the embedded PostgreSQL keeps the catalog between runs.",
)
@click.option(
    "--reports",
    type=click.Path(path_type=Path, file_okay=False),
    default=HERE / "reports",
    help="Folder of the reports.  [default: loadtests/reports]",
)
@click.option(
    "--picture", type=click.Path(path_type=Path), help="Keep the plots as PICTURE-light.svg and -dark.svg too."
)
def load(
    name: str, items: int | None, minutes: float | None, data_dir: Path, reports: Path, picture: Path | None
) -> None:
    """Load the service as a profile says, and judge how it bore it."""
    profile = PROFILES[name]
    profile = msgspec.structs.replace(profile, items=items or profile.items, minutes=minutes or profile.minutes)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    # Ending by SIGTERM must stop what was started, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    reports.mkdir(parents=True, exist_ok=True)
    stem = reports / f"{profile.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    try:
        with ExitStack() as stack:
            run = _run(stack, console, profile, data_dir, stem)
    except (EmbeddedError, ProcessError) as error:
        raise click.ClickException(str(error)) from None
    _show(console, profile, run)
    page = stem.with_suffix(".html")
    page.write_text(_page(profile, run), encoding="utf-8")
    console.print(f"Report: {page}")
    if picture:
        picture.parent.mkdir(parents=True, exist_ok=True)
        for theme in plots.THEMES:
            drawn = plots.svg(plots.load(_title(profile), run.recording, run.samples, theme))
            Path(f"{picture}-{theme}.svg").write_text(drawn, encoding="utf-8")
    if not run.outcome.holds:
        raise SystemExit(1)


class Run(msgspec.Struct):
    """A run and what came of it."""

    recording: Recording
    samples: list[Sample]
    outcome: Outcome
    machine: Machine


def _run(stack: ExitStack, console: Console, profile: Profile, data_dir: Path, stem: Path) -> Run:
    server = Embedded.start(data_dir)
    stack.callback(server.stop)
    dsn = uvloop.run(catalog.prepare(server, profile.items, console.print))
    stores = ("bench",) if profile.stores == 1 else tuple(f"shop{number}" for number in range(profile.stores))
    totals, firsts, version = uvloop.run(_prepare(dsn, profile, stores))
    keys = {f"key-{store}": AnyTokenOf() for store in (*stores, SLOW_STORE)}
    verify_url = stack.enter_context(running(keys))
    served = {store: f"key-{store}" for store in (*stores, SLOW_STORE)}
    # Deltas are checked one by one: reaching back an hour, each would bring all that changed in the run.
    extra = 'incremental_overlap = "2s"' if profile.changes_per_second else ""
    target = stack.enter_context(clerk_feed(dsn, verify_url, data_dir, stores=served, paced=True, of_store=extra))
    plan = Plan(
        profile=profile,
        seconds=profile.minutes * 60,
        stores=stores,
        token=TOKEN,
        totals=totals,
        first_ids=firsts,
        slow_store=SLOW_STORE,
        recording=str(stem.with_suffix(".json")),
    )
    at = machine(version)
    before = cpu_ticks()
    console.print(f"{profile.name}: {profile.about}")
    samples: list[Sample] = []
    first = time.time()
    with _sampling(target, first, samples), _changing(dsn, profile):
        _locust(plan, target, stem.with_suffix(".log"))
    after = cpu_ticks()
    if before and after:
        at = msgspec.structs.replace(at, stolen=(after[0] - before[0]) / max(after[1] - before[1], 1))
    recording = msgspec.json.decode(Path(plan.recording).read_bytes(), type=Recording)
    # Locust takes a while to start: the plots begin when its users do.
    shift = recording.first - first
    samples = [msgspec.structs.replace(sample, at=sample.at - shift) for sample in samples if sample.at >= shift]
    outcome = judge(profile, recording, samples, uvloop.run(_changes(dsn)))
    return Run(recording, samples, outcome, at)


async def _prepare(dsn: str, profile: Profile, stores: tuple[str, ...]) -> tuple[dict[str, int], dict[str, int], str]:
    """The feeds and stores of a run; how many items each feed has, and where each store's products begin."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute(_FEEDS.read_text(encoding="utf-8").replace(":items", str(profile.items)))
            share = profile.items // len(stores)
            firsts = {store: number * share + 1 for number, store in enumerate(stores)}
            slices = {} if stores == ("bench",) else firsts
            for store, first in {**slices, SLOW_STORE: 1}.items():
                last = profile.items if store == SLOW_STORE else first + share - 1
                await connection.execute(
                    f"create schema if not exists {store}; create or replace view {store}.products as"
                    f" select * from bench.products where id between {first} and {last}"
                )
        feeds = ("products", "categories", "orders", "customers", "pages") if profile.all_feeds else ("products",)
        totals = {feed: await connection.fetchval(f"select count(*) from bench.{feed}") for feed in feeds}
        if len(stores) > 1:
            totals["products"] = share
        return totals, firsts, str(await connection.fetchval("show server_version"))
    finally:
        await connection.close()


@contextmanager
def _sampling(target: Target, first: float, samples: list[Sample]) -> Iterator[None]:
    """Look at the service twice a second while the block runs."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(_SAMPLE_SECONDS):
            samples.append(Sample(time.time() - first, target.memory().now, target.cpu_seconds()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _changing(dsn: str, profile: Profile) -> Iterator[None]:
    """A shop at work while the block runs: some items change ten times a second, and what changed is written down."""
    if not profile.changes_per_second:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=lambda: uvloop.run(_change(dsn, profile, over)))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


async def _change(dsn: str, profile: Profile, over: threading.Event) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        while not over.is_set():
            count = max(1, profile.changes_per_second // 10)
            ids = [random.randint(1, profile.items) for _ in range(count)]
            await connection.execute(
                """
                with changed as (
                  update bench.item set stock = (stock + 1) % 500, modified_at = clock_timestamp()
                  where id = any($1::int[]) returning id, modified_at
                )
                insert into bench.change select id, modified_at from changed
                """,
                ids,
            )
            await asyncio.sleep(0.1)
    finally:
        await connection.close()


async def _changes(dsn: str) -> dict[int, list[float]]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("select id, extract(epoch from changed)::float8 as at from bench.change")
    finally:
        await connection.close()
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(row["id"], []).append(row["at"])
    return found


def _locust(plan: Plan, target: Target, log: Path) -> None:
    """Run locust to its end. Raises ProcessError where it left no recording."""
    told = log.with_suffix(".plan")
    told.write_bytes(msgspec.json.encode(plan))
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless", "--host", target.url]
    command += ["--stop-timeout", "20", "--only-summary", "--exit-code-on-error", "0", "--loglevel", "WARNING"]
    environment = {**os.environ, "LOAD_PLAN": str(told), "PYTHONPATH": str(HERE.parent)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, cwd=HERE.parent, start_new_session=True
        )
    try:
        process.wait(plan.seconds + 120)
    except subprocess.TimeoutExpired:
        raise ProcessError(f"locust did not end:\n{log.read_text(errors='replace')[-2000:]}") from None
    finally:
        process.kill()
        process.wait()
    if not Path(plan.recording).exists():
        raise ProcessError(f"locust wrote nothing down:\n{log.read_text(errors='replace')[-2000:]}")
    told.unlink()


def _show(console: Console, profile: Profile, run: Run) -> None:
    table = Table(title=f"{profile.name}, {profile.items:,} products", title_justify="left", title_style="bold")
    for heading in ("", "measured", "threshold", ""):
        table.add_column(heading)
    for check in run.outcome.checks:
        verdict = "[green]holds[/]" if check.holds else "[bold red]fails[/]"
        table.add_row(check.name, check.measured, check.rule, verdict)
    console.print(table)
    outcome = run.outcome
    console.print(
        f"{outcome.items:,} items in {outcome.requests:,} requests, {outcome.items_per_second:,.0f} items/s;"
        f" p50 {outcome.p50_ms:.1f} ms, p99 {outcome.p99_ms:.1f} ms"
    )
    for cause, count in outcome.causes.items():
        console.print(f"  {count} times: {cause}", markup=False)
    for trouble in troubles(run.machine):
        console.print(f"[bold]{trouble}: the figures are too low.[/]")


def _title(profile: Profile) -> str:
    return f"Answers, profile {profile.name}, {profile.items:,} products, limit {profile.limit}"


def _page(profile: Profile, run: Run) -> str:
    """The report, a page that needs nothing else."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    feeds: dict[str, list[float]] = {}
    for walk in run.recording.walks:
        sums = feeds.setdefault(walk.feed + (", deltas" if walk.since is not None else ""), [0, 0, 0, 0, 0])
        for place, value in enumerate((1, walk.items, walk.pages, walk.seconds, walk.repeated)):
            sums[place] += value
    return templates.get_template("load.html.j2").render(
        profile=profile,
        outcome=run.outcome,
        machine=run.machine,
        troubles=list(troubles(run.machine)),
        walks=feeds,
        drawn={
            theme: plots.svg(plots.load(_title(profile), run.recording, run.samples, theme)) for theme in plots.THEMES
        },
        profile_data=json.dumps(msgspec.to_builtins(profile), indent=2),
    )


if __name__ == "__main__":
    load()
