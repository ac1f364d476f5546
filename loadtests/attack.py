"""`python -m loadtests.attack`: how many attack requests a second the service holds while an importer keeps its pace.

An importer reads a feed page by page while attackers send wrong tokens, a fresh one with every request, at a rate that
grows. Every step is measured between two without an attack, because a machine is never as fast twice. Attackers and
importer have processes of their own, but the machine's cores are shared by all.
"""

import http.client
import json
import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from urllib.parse import urlsplit

import click
import msgspec
import uvloop

from app.catalog.embedded import Embedded, EmbeddedError
from app.clerk.standin import running
from loadtests.eager import good_tokens, kept, prepare, settings
from loadtests.processes import ProcessError, serving

KEPT = 0.9
"""Of its pace the importer must keep so much."""
_RATES = (50, 100, 200, 400, 800, 1600)


class Step(msgspec.Struct, frozen=True):
    """Pages a second of the importer beside so many attack requests a second, and alone before and after."""

    attack: float
    beside: float
    alone: float

    @property
    def kept(self) -> float:
        return self.beside / self.alone


def _import(url: str, limit: int, pages: "Synchronized[int]") -> None:
    """Read walks without end, and count pages."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
    token = kept()
    offset = 0
    while True:
        path = f"/shop0/products?limit={limit}&offset={offset}"
        connection.request("GET", path, headers={"X-Clerk-Authorization": f"Bearer {token()}"})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"the importer got a {answer.status}")
        offset = offset + limit if body else 0
        with pages:
            pages.value += 1


def _attack(url: str, per_second: float, requests: "Synchronized[int]", stop: Event) -> None:
    """Send wrong tokens at a rate, as far as the service answers that fast."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
    due = time.perf_counter()
    while not stop.is_set():
        headers = {"X-Clerk-Authorization": f"Bearer wrong-{time.monotonic_ns()}"}
        connection.request("GET", "/shop0/products?limit=1000&offset=0", headers=headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status not in (401, 429):
            raise SystemExit(f"an attacker got a {answer.status}")
        with requests:
            requests.value += 1
        due = max(due + 1 / per_second, time.perf_counter() - 0.1)
        time.sleep(max(0.0, due - time.perf_counter()))


def _rate(counter: "Synchronized[int]", seconds: float) -> float:
    before, started = counter.value, time.perf_counter()
    time.sleep(seconds)
    return (counter.value - before) / (time.perf_counter() - started)


@contextmanager
def _attackers(url: str, per_second: float) -> Iterator["Synchronized[int]"]:
    count: Synchronized[int] = multiprocessing.Value("q", 0)
    stop = multiprocessing.Event()
    number = max(1, round(per_second / 200))
    processes = [
        multiprocessing.Process(target=_attack, args=(url, per_second / number, count, stop)) for _ in range(number)
    ]
    for process in processes:
        process.start()
    try:
        yield count
    finally:
        stop.set()
        for process in processes:
            process.join(10)


def measure(url: str, limit: int, seconds: float) -> Iterator[Step]:
    """Steps of a growing attack."""
    pages: Synchronized[int] = multiprocessing.Value("q", 0)
    importer = multiprocessing.Process(target=_import, args=(url, limit, pages))
    importer.start()
    try:
        time.sleep(1)
        before = _rate(pages, seconds)
        for rate in _RATES:
            with _attackers(url, rate) as requests:
                time.sleep(0.5)
                counted, started = requests.value, time.perf_counter()
                beside = _rate(pages, seconds)
                attack = (requests.value - counted) / (time.perf_counter() - started)
            after = _rate(pages, seconds)
            yield Step(attack, beside, (before + after) / 2)
            before = after
    finally:
        importer.terminate()
        importer.join(10)


@click.command()
@click.option("--items", type=click.IntRange(1000), default=50_000, show_default=True, help="Of the feed.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=1000, show_default=True, help="The importer's Page Size."
)
@click.option("--seconds", type=click.FloatRange(0.5), default=5.0, show_default=True, help="Of each measurement.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".clerk-feed/eager"),
    show_default=True,
    help="Where the embedded PostgreSQL keeps its data.",
)
def attack(items: int, limit: int, seconds: float, data_dir: Path) -> None:
    """Attack the service with wrong tokens, faster and faster, while an importer reads."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    held = 0.0
    try:
        with ExitStack() as stack:
            server = Embedded.start(data_dir)
            stack.callback(server.stop)
            uvloop.run(prepare(server.dsn, items))
            verify_url = stack.enter_context(running(good_tokens(["shop0"])))
            config = f"[database]\ndsn = {json.dumps(server.dsn)}\n[access]\nverify_url = {json.dumps(verify_url)}\n"
            target = stack.enter_context(serving(config + settings(["shop0"]), data_dir))
            for step in measure(target.url, limit, seconds):
                click.echo(
                    f"{step.attack:7,.0f} attacks/s: {step.beside:6,.1f} pages/s at limit {limit},"
                    f" {step.kept:.0%} of {step.alone:,.1f} without"
                )
                if step.kept >= KEPT:
                    held = max(held, step.attack)
    except (EmbeddedError, ProcessError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"The importer keeps {KEPT:.0%} of its pace beside {held:,.0f} attacks/s.")


if __name__ == "__main__":
    attack()
