"""`make soak`: walks, changes and faults for a quarter of an hour, and a table of what was lost. It should be nothing.

Two services share one PostgreSQL. Importers walk a feed, in full and by deltas, every page from a service chosen at
random; others read it whole. Meanwhile a writer inserts, changes and deletes items, and something breaks every few
seconds: backends are terminated and frozen, PostgreSQL is restarted and killed, a service is killed, clients leave in
mid-answer. Everything follows from a seed, but for the order in which threads run.
"""

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import click
import uvloop
from rich.console import Console
from rich.table import Table

from app.catalog.pool import LOST
from app.clerk.importer import ImportFailedError, ids_of
from loadtests.memory import memory_of
from loadtests.postgres import Postgres
from loadtests.processes import PUBLIC_KEY, TOKEN, standin

FIRST_ITEMS = 4000
PATIENCE_SECONDS = 120.0
"""How long an importer goes on asking for one page, as Clerk would by trying again."""
SERVICES = 2
IMPORTERS = 3


class Tally:
    """Everything counted, behind one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.done: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.lost: list[str] = []
        self.false: list[str] = []

    def count(self, what: str, by: int = 1) -> None:
        with self._lock:
            self.done[what] += by

    def fault(self, kind: str) -> None:
        with self._lock:
            self.faults[kind] += 1


class Truth:
    """Which items exist for sure.

    An item whose change failed may or may not be there: it is expected of nobody. An item is doubted before it is
    deleted and believed only after its insert was committed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sure: set[int] = set()
        self._watched: list[set[int]] = []

    def watch(self) -> set[int]:
        """What a walk that begins now must deliver. It shrinks while items are deleted."""
        with self._lock:
            must = set(self._sure)
            self._watched.append(must)
            return must

    def unwatch(self, must: set[int]) -> None:
        with self._lock:
            self._watched = [other for other in self._watched if other is not must]

    def doubt(self, ids: set[int]) -> None:
        with self._lock:
            self._sure -= ids
            for must in self._watched:
                must.difference_update(ids)

    def believe(self, ids: set[int]) -> None:
        with self._lock:
            self._sure |= ids

    def some(self, choose: random.Random, count: int) -> set[int]:
        with self._lock:
            return set(choose.sample(sorted(self._sure), min(count, len(self._sure))))


class Service:
    """`clerk-feed serve` in a process of its own, on an address it keeps."""

    def __init__(self, folder: Path, dsn: str, verify_url: str) -> None:
        folder.mkdir()
        self._config, self._log = folder / "feed.toml", folder / "serve.log"
        self._text = (
            f'[database]\ndsn = "{dsn}"\n[access]\nverify_url = "{verify_url}"\n'
            f'[stores.soak]\npublic_key = "{PUBLIC_KEY}"\n[server]\nadmin_bind = "127.0.0.1:0"\n'
        )
        self._port = 0
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        self._config.write_text(f'{self._text}bind = ["127.0.0.1:{self._port}"]\n')
        with self._log.open("wb") as output:
            command = [sys.executable, "-m", "app", "serve", "--config", str(self._config)]
            # What a killed one leaves behind goes with the folder.
            environment = {**os.environ, "TMPDIR": str(self._config.parent)}
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, env=environment)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            for line in self._log.read_text(errors="replace").splitlines():
                if line.startswith("  feeds ") and '"Started"' in self._log.read_text(errors="replace"):
                    self._port = urlsplit(line.split()[1]).port or 0
                    return process
            time.sleep(0.05)
        raise RuntimeError(f"the service did not start:\n{self._log.read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process = self._start()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def megabytes(self) -> float:
        return memory_of(self.process.pid).now

    def get(self, target: str) -> bytes:
        """One answer, complete as far as HTTP can tell. Raises OSError, HTTPException or ImportFailedError."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("GET", target, headers={"X-Clerk-Authorization": f"Bearer {TOKEN}"})
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ImportFailedError(f"HTTP status {answer.status}", status=answer.status, body=body)
        return body

    def leave_early(self, target: str, size: int) -> None:
        """Ask, take so many bytes, and go."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("GET", target, headers={"X-Clerk-Authorization": f"Bearer {TOKEN}"})
            connection.getresponse().read(size)
        finally:
            connection.close()


class Soak:
    """One run: its parts, and the loops that the threads are."""

    def __init__(self, seed: int, minutes: float, postgres: Postgres, services: list[Service]) -> None:
        self._seed = seed
        self._postgres = postgres
        self.services = services
        self.tally = Tally()
        self._truth = Truth()
        self.ends = time.monotonic() + minutes * 60

    def over(self) -> bool:
        return time.monotonic() > self.ends

    def prepare(self) -> None:
        uvloop.run(self._execute(_SCHEMA))
        self._truth.believe(set(range(1, FIRST_ITEMS + 1)))

    def walk(self, number: int) -> None:
        """An importer: full walks and deltas, with retries, changed limits and walks it gives up."""
        choose = random.Random(f"{self._seed}-importer-{number}")
        while not self.over():
            must, seen, limit = self._truth.watch(), set[int](), choose.choice([25, 100, 333, 1000])
            delta = "&modified_after=2000" if choose.random() < 0.3 else ""
            gives_up = choose.randrange(1, 40) if choose.random() < 0.15 else None
            offset = pages = 0
            try:
                while pages != gives_up:
                    target = f"/soak/products?limit={limit}&offset={offset}{delta}"
                    ids = self._page(choose, target)
                    if choose.random() < 0.05:
                        ids = self._page(choose, target)
                    if len(ids) > limit:
                        self.tally.false.append(f"{len(ids)} items on a page of {limit}")
                    seen |= ids
                    pages += 1
                    offset += limit
                    self.tally.count("pages")
                    if not ids:
                        break
                else:
                    self.tally.count("walks given up")
                    continue
                lost = must - seen
                self.tally.lost += [f"item {id} by importer {number}, limit {limit}{delta}" for id in sorted(lost)]
                self.tally.count("deltas" if delta else "full walks")
                self.tally.count("items", len(seen))
            finally:
                self._truth.unwatch(must)

    def _page(self, choose: random.Random, target: str) -> set[int]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return {int(id) for id in ids_of(choose.choice(self.services).get(target), 0)}
            except (OSError, HTTPException, ImportFailedError):
                self.tally.count("retries")
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def read_whole(self) -> None:
        """A reader of the whole feed in one answer: what ends well must be complete."""
        choose = random.Random(f"{self._seed}-reader")
        while not self.over():
            must = self._truth.watch()
            try:
                target = choose.choice(["/soak/products", "/soak/products.json"])
                seen = {int(id) for id in ids_of(choose.choice(self.services).get(target), 0)}
                lost = must - seen
                if lost:
                    self.tally.false.append(f"a whole feed without {len(lost)} items, such as {min(lost)}")
                self.tally.count("whole feeds")
                self.tally.count("items", len(seen))
            except (OSError, HTTPException, ImportFailedError):
                self.tally.count("whole feeds cut off, visibly")
            finally:
                self._truth.unwatch(must)
            time.sleep(choose.random())

    def write(self) -> None:
        """A shop at work: items come, change and go, at both ends of the keys and between."""
        choose = random.Random(f"{self._seed}-writer")
        uvloop.run(self._write(choose))

    async def _write(self, choose: random.Random) -> None:
        fresh = FIRST_ITEMS * 1000
        while not self.over():
            with suppress(*LOST, asyncpg.PostgresError):
                connection = await asyncpg.connect(self._postgres.dsn, timeout=10, command_timeout=10)
                try:
                    while not self.over():
                        kind = choose.random()
                        if kind < 0.4:
                            # A little more comes than goes, or the guard would rightly hold the walks back.
                            new = set[int]()
                            for _ in range(choose.randrange(1, 5)):
                                fresh += 1
                                new.add(choose.choice([fresh, -fresh, fresh // 1000 * 1000 - fresh % 1000]))
                            await connection.execute(
                                "insert into shop.product (id) select unnest($1::bigint[]) on conflict do nothing", new
                            )
                            self._truth.believe(new)
                        elif kind < 0.75:
                            gone = self._truth.some(choose, choose.randrange(1, 4))
                            self._truth.doubt(gone)
                            await connection.execute("delete from shop.product where id = any($1::bigint[])", gone)
                        else:
                            some = self._truth.some(choose, choose.randrange(1, 30))
                            await connection.execute(
                                "update shop.product set price = price + 1, modified_at = clock_timestamp()"
                                " where id = any($1::bigint[])",
                                some,
                            )
                        self.tally.count("changes")
                        await asyncio.sleep(choose.random() * 0.02)
                finally:
                    connection.terminate()
            await asyncio.sleep(0.2)

    def break_things(self) -> None:
        """A fault every few seconds."""
        choose = random.Random(f"{self._seed}-faults")
        faults: list[tuple[str, Callable[[], None]]] = [
            ("backends terminated", lambda: self._quietly(_TERMINATE)),
            ("backends terminated", lambda: self._quietly(_TERMINATE)),
            ("clients that left", lambda: choose.choice(self.services).leave_early("/soak/products", 100_000)),
            ("clients that left", lambda: choose.choice(self.services).leave_early("/soak/products.json", 10)),
            ("backend frozen", lambda: self._freeze(choose)),
            ("PostgreSQL restarted, fast", lambda: self._postgres.restart("fast")),
            ("PostgreSQL restarted, immediate", lambda: self._postgres.restart("immediate")),
            ("PostgreSQL killed, -9", lambda: self._postgres.restart("kill -9")),
            ("service killed, -9", lambda: choose.choice(self.services).kill()),
        ]
        while not self.over():
            time.sleep(choose.uniform(1, 6))
            kind, fault = choose.choice(faults)
            with suppress(OSError, HTTPException):
                fault()
            self.tally.fault(kind)

    def _quietly(self, sql: str) -> None:
        with suppress(*LOST, asyncpg.PostgresError):
            uvloop.run(self._execute(sql))

    def _freeze(self, choose: random.Random) -> None:
        """Stop a backend of the services for some seconds."""
        pids: list[int] = []
        with suppress(*LOST, asyncpg.PostgresError):
            pids = uvloop.run(self._backends())
        if not pids:
            return
        pid = choose.choice(pids)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            try:
                time.sleep(choose.uniform(0.5, 4))
            finally:
                os.kill(pid, signal.SIGCONT)

    async def _backends(self) -> list[int]:
        connection = await asyncpg.connect(self._postgres.dsn, timeout=10)
        try:
            rows = await connection.fetch("select pid from pg_stat_activity where application_name = 'clerk-feed'")
        finally:
            connection.terminate()
        return [row["pid"] for row in rows]

    async def _execute(self, sql: str) -> None:
        connection = await asyncpg.connect(self._postgres.dsn, timeout=10)
        try:
            await connection.execute(sql)
        finally:
            connection.terminate()


_TERMINATE = (
    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'clerk-feed' and random() < 0.6"
)

_SCHEMA = f"""
create schema shop;
create table shop.product (
  id bigint primary key,
  price numeric not null default 10,
  description text not null default repeat('En god stol til stuen. ', 30),
  created_at timestamptz not null default now(),
  modified_at timestamptz default clock_timestamp()
);
create index on shop.product (modified_at, id);
insert into shop.product (id, modified_at)
select n, case when n % 50 > 0 then clock_timestamp() end from generate_series(1, {FIRST_ITEMS}) as n;
analyze shop.product;
create schema soak;
create view soak.products as
select
  id, 'Stol ' || id as name, description, price, 'https://images.shop.example/' || id as image,
  'https://shop.example/' || id as url, array[1, 2] as categories, created_at, modified_at
from shop.product;
"""


@click.command()
@click.option("--minutes", type=click.FloatRange(0.1), default=15.0, show_default=True)
@click.option("--seed", type=int, help="Choose the same faults and changes again.  [default: by the clock]")
def main(minutes: float, seed: int | None) -> None:
    """Walks, changes and faults for a while; exit status 1 if anything was lost."""
    console = Console(highlight=False)
    seed = int(time.time()) if seed is None else seed
    console.print(f"Seed {seed}, {minutes:g} minutes, {SERVICES} services, {IMPORTERS} importers.")
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="clerk-feed-soak-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)  # the user PostgreSQL runs as goes through it
        postgres = Postgres(folder / "data")
        stack.callback(postgres.discard)
        soak = Soak(seed, minutes, postgres, [])
        soak.prepare()
        verify_url = stack.enter_context(standin())
        for number in range(SERVICES):
            service = Service(folder / f"service{number}", postgres.dsn, verify_url)
            stack.callback(service.stop)
            soak.services.append(service)
        before = [service.megabytes() for service in soak.services]
        loops = [soak.read_whole, soak.write, soak.break_things]
        with ThreadPoolExecutor(len(loops) + IMPORTERS) as threads:
            running = [threads.submit(loop) for loop in loops]
            running += [threads.submit(soak.walk, number) for number in range(IMPORTERS)]
            for thread in running:
                thread.result()
        after = [service.megabytes() for service in soak.services]
    _report(console, soak.tally, before, after)
    if soak.tally.lost or soak.tally.false:
        raise SystemExit(1)


def _report(console: Console, tally: Tally, before: list[float], after: list[float]) -> None:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for what in sorted(tally.done):
        table.add_row(what, f"{tally.done[what]:,}")
    table.add_section()
    for kind in sorted(tally.faults):
        table.add_row(kind, f"{tally.faults[kind]:,}")
    table.add_section()
    table.add_row("items lost", str(len(tally.lost)))
    table.add_row("answers that looked complete and were not", str(len(tally.false)))
    table.add_section()
    for number, (first, last) in enumerate(zip(before, after, strict=True)):
        table.add_row(f"memory of service {number}, MB", f"{first:.0f} → {last:.0f}")
    console.print(table)
    for line in [*tally.lost[:20], *tally.false[:20]]:
        console.print(f"  {line}")


if __name__ == "__main__":
    main()
