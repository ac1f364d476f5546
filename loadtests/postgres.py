"""A PostgreSQL to be restarted, killed, frozen and copied: the embedded one, in a folder of its own.

It listens on a Unix socket only.
"""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from app.catalog.embedded import Embedded

StopMode = Literal["fast", "immediate", "kill -9"]

_START_SECONDS = 60.0


class Postgres:
    """A server that runs from its making until it is discarded. Folders are the caller's to remove."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        """Make a server in an empty folder that others may enter: as root, PostgreSQL runs as a user of its own.

        `durable`: whether it writes to the disk once restarted; a kill of its processes loses nothing either way.
        """
        embedded = Embedded.start(folder)
        self._embedded: Embedded | None = embedded
        self._begin(folder / "postgres", embedded.dsn, embedded.programs, durable=durable)

    def _begin(self, data: Path, dsn: str, programs: Path, *, durable: bool) -> None:
        self.data = data
        self.dsn = dsn
        [self.sockets] = parse_qs(urlsplit(dsn).query)["host"]
        self.programs = programs
        self._durable = durable
        self._frozen: list[int] = []

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop it, fast, immediately, or by killing the postmaster."""
        if mode == "kill -9":
            os.kill(self._postmaster(), signal.SIGKILL)
        else:
            self._control("stop", "-m", mode)

    def start(self) -> None:
        """Start it again, as soon as sessions left over from a kill let it. Raises TimeoutError after a minute."""
        options = f'{"" if self._durable else "-F "}-h "" -k {self.sockets}'
        deadline = time.monotonic() + _START_SECONDS
        while self._control("start", "-o", options, "-l", str(self.data / "log"), check=False) != 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"PostgreSQL in {self.data} did not start")
            time.sleep(0.1)

    def restart(self, mode: StopMode) -> None:
        self.stop(mode)
        self.start()

    def ensure_running(self) -> None:
        self.thaw()
        if self._control("status", check=False) != 0:
            self.start()

    def promote(self) -> None:
        """Make a standby a primary; it is one on return."""
        self._control("promote")

    def freeze(self, pid: int) -> None:
        """Stop one of its processes until `thaw`."""
        self._frozen.append(pid)
        os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        while self._frozen:
            with suppress(ProcessLookupError):
                os.kill(self._frozen.pop(), signal.SIGCONT)

    def standby(self, folder: Path) -> "Postgres":
        """A running streaming-replication standby of this server, in an empty folder.

        Its socket lies in that folder, so the folder's path must be a short one.
        """
        _own(folder)
        data = folder / "postgres"
        source = f"host={self.sockets} user=postgres application_name=standby"
        self._run("pg_basebackup", "-D", str(data), "-d", source, "-R", "-X", "stream", "-c", "fast")
        copy = Postgres.__new__(Postgres)
        copy._embedded = None  # noqa: SLF001 (of this very class)
        copy._begin(data, self.dsn.replace(self.sockets, str(folder)), self.programs, durable=self._durable)  # noqa: SLF001
        copy.start()
        return copy

    def discard(self) -> None:
        """Stop it in any case."""
        self.thaw()
        self._control("stop", "-m", "immediate", check=False)
        if self._embedded is not None:
            self._embedded.stop()

    def _postmaster(self) -> int:
        return int((self.data / "postmaster.pid").read_text(encoding="utf-8").split()[0])

    def _control(self, *arguments: str, check: bool = True) -> int:
        return self._run("pg_ctl", "-w", "-D", str(self.data), *arguments, check=check)

    def _run(self, program: str, *arguments: str, check: bool = True) -> int:
        return subprocess.run(
            [str(self.programs / program), *arguments],
            check=check,
            user=_USER if os.geteuid() == 0 else None,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ).returncode


_USER = "pgserver"
"""Whom the wheel's servers run as where we are root."""


def _own(folder: Path) -> None:
    if os.geteuid() == 0:
        subprocess.run(["chown", _USER, str(folder)], check=True)
