"""The processes that are measured, and the stand-in that verifies their tokens.

Each is a context manager that ends its process in any case. Ports are the kernel's choice: a server is told 0 and
says which one it got.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec

from app.clerk.standin import running
from loadtests.baselines import datasette_file
from loadtests.memory import Memory, cpu_seconds_of, memory_of

TOKEN = "bench-token"  # noqa: S105 (good for the stand-in only)
PUBLIC_KEY = "bench-public-key"
_START_SECONDS = 60.0


class ProcessError(Exception):
    """A process did not start or went away. The message ends with what it said last."""


class Target(msgspec.Struct, frozen=True):
    """A running server of the feed bench/products."""

    url: str
    process_id: int
    path: str = "/bench/products"
    query: str = "limit={{limit}}&offset={{offset}}"

    def feed(self, *, paged: bool = True) -> str:
        """The URL as it would be entered at Clerk."""
        return self.url + self.path + (f"?{self.query}" if paged else "")

    def memory(self) -> Memory:
        return memory_of(self.process_id)

    def cpu_seconds(self) -> float:
        """CPU time used so far by the process and those it started, in user space and in the kernel."""
        return cpu_seconds_of(self.process_id)


def standin() -> AbstractContextManager[str]:
    """The stand-in for Clerk's verify endpoint, in a thread of its own; its URL."""
    return running({PUBLIC_KEY: {TOKEN}})


@contextmanager
def clerk_feed(
    dsn: str,
    verify_url: str,
    folder: Path,
    *,
    stores: Mapping[str, str] | None = None,
    paced: bool = False,
    of_store: str = "",
) -> Iterator[Target]:
    """`clerk-feed serve` with its defaults, one worker.

    `stores` are public keys by name, `of_store` a line of each store's settings. Unless `paced`, the pace of one store,
    made for shops, is lifted: it must not be what is measured.
    """
    text = _settings(dsn, verify_url, stores or {"bench": PUBLIC_KEY}, paced, of_store)
    with serving(text, folder) as target:
        yield target


@contextmanager
def serving(settings: str, folder: Path) -> Iterator[Target]:
    """`clerk-feed serve` on a feed.toml; without a [server] of its own it listens on free ports."""
    if "[server]" not in settings:
        settings = f'[server]\nbind = ["127.0.0.1:0"]\nadmin_bind = "127.0.0.1:0"\n{settings}'
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "feed.toml"
    config.write_text(settings, encoding="utf-8")
    command = [sys.executable, "-m", "app", "serve", "--config", str(config)]
    with _running(command, folder / "serve.log", r"^  feeds   (http://\S+)$", '"event":"Started"') as target:
        yield target


@contextmanager
def fastapi_app(dsn: str, verify_url: str, folder: Path, *, path: str = "/bench/products") -> Iterator[Target]:
    """The baseline under uvicorn with uvloop and httptools, one worker."""
    command = [sys.executable, "-m", "uvicorn", "loadtests.baselines.fastapi_app:app", "--port", "0"]
    command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--no-use-colors"]
    environment = {
        "DATABASE_URL": re.sub("^postgresql:", "postgresql+asyncpg:", dsn),
        "VERIFY_URL": verify_url,
        "PUBLIC_KEY": PUBLIC_KEY,
    }
    running = r"Uvicorn running on (http://\S+)"
    with _running(command, folder / "fastapi.log", running, "Uvicorn running", environment) as target:
        yield msgspec.structs.replace(target, path=path)


@contextmanager
def django_app(dsn: str, verify_url: str, folder: Path) -> Iterator[Target]:
    """Django REST framework under gunicorn, one worker with threads, which keeps connections alive."""
    command = [sys.executable, "-m", "gunicorn", "loadtests.baselines.django_app:application"]
    command += ["--bind", "127.0.0.1:0", "--worker-class", "gthread", "--threads", "4", "--keep-alive", "30"]
    environment = {"DATABASE_URL": dsn, "VERIFY_URL": verify_url, "PUBLIC_KEY": PUBLIC_KEY}
    listening = r"Listening at: (http://\S+)"
    with _running(command, folder / "django.log", listening, "Booting worker", environment) as target:
        yield target


@contextmanager
def datasette(file: Path, folder: Path) -> Iterator[Target]:
    """Datasette on a SQLite file, whose pages it may make as large as ours."""
    command = [sys.executable, "-m", "datasette", "serve", "--immutable", str(file), "--port", "0"]
    command += ["--setting", "max_returned_rows", "1000", "--setting", "sql_time_limit_ms", "60000"]
    command += ["--setting", "default_facet_size", "1", "--setting", "suggest_facets", "off"]
    with _running(command, folder / "datasette.log", r"Uvicorn running on (http://\S+)", "Uvicorn running") as target:
        yield msgspec.structs.replace(target, path="/bench/products.json", query=datasette_file.QUERY)


def _settings(dsn: str, verify_url: str, stores: Mapping[str, str], paced: bool, of_store: str) -> str:
    lines = [
        "[database]",
        f"dsn = {json.dumps(dsn)}",
        "[server]",
        'bind = ["127.0.0.1:0"]',
        'admin_bind = "127.0.0.1:0"',
        "[access]",
        f"verify_url = {json.dumps(verify_url)}",
    ]
    if not paced:
        lines.append('rate = "1000000/second"')
    for name, key in stores.items():
        lines += [f"[stores.{name}]", f"public_key = {json.dumps(key)}", of_store]
    return "\n".join(lines) + "\n"


@contextmanager
def _running(
    command: list[str], log: Path, url: str, ready: str, environment: Mapping[str, str] | None = None
) -> Iterator[Target]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        )
    try:
        yield Target(_await_url(process, log, url, ready), process.pid)
        if process.poll() is not None:
            raise ProcessError(f"{log.stem} went away:\n{_tail(log)}")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_url(process: "subprocess.Popen[bytes]", log: Path, url: str, ready: str) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        text = log.read_text(encoding="utf-8", errors="replace")
        if ready in text and (found := re.search(url, text, re.MULTILINE)):
            return found[1]
        time.sleep(0.02)
    raise ProcessError(f"{log.stem} did not start:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]
