"""The supervisor: opens the sockets once, keeps workers running on them, and rolls them onto new settings.

It serves nothing and holds no connection, so that there is little that could bring it down. New workers are all ready
before an old one is told to stop: a roll refuses nobody, and settings under which no worker can start change nothing.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from app import __version__
from app.catalog.embedded import EmbeddedError
from app.certificates import CertificateError, require_usable
from app.orders import Orders, Ready, Unable
from app.settings import Server, Settings, SettingsError, of_file, read
from app.sockets import PortTakenError, activated, listen, tune, url_of
from app.status.events import Emit, Reloaded, ReloadRefused, Started, Stopping, WorkerLost, WorkerReplaced, WorkerUnable

FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 30.0
_STEADY_SECONDS = 60.0
"""A worker that lived that long did not die of its start: the next is started without a wait."""

_KILL_SECONDS = 10.0
"""What a worker gets beyond shutdown_timeout before it is killed."""


class SupervisorError(Exception):
    """The service can't start. The message says why and what to do."""


class _Plan(msgspec.Struct, frozen=True):
    """What the workers are to run by."""

    settings: Settings
    text: str
    dsn: str


class _Worker:
    """A worker process and the socket to it."""

    def __init__(self, process: asyncio.subprocess.Process, link: asyncio.StreamWriter) -> None:
        self.process = process
        self.link = link
        self.since = time.monotonic()
        self.exit: asyncio.Task[int] = asyncio.create_task(process.wait())

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)


class Sockets:
    """The listening sockets, by the address in feed.toml; those systemd opened stay as they are."""

    def __init__(self) -> None:
        self._public, self._admin = activated()
        self._opened: dict[tuple[str, str, int], socket.socket] = {}

    def of(self, server: Server) -> tuple[list[socket.socket], socket.socket]:
        """The public sockets and the admin one for these settings; open ones are kept. Raises SupervisorError."""
        seconds = server.send_timeout.seconds
        wanted = [] if self._public else [("bind", a, server.bind[:n].count(a)) for n, a in enumerate(server.bind)]
        keys = [(key, f"server.bind[{number}]") for number, key in enumerate(wanted)]
        if self._admin is None:
            keys.append((("admin", server.admin_bind, 0), "server.admin_bind"))
        for listener in (*self._public, *([self._admin] if self._admin else []), *self._opened.values()):
            tune(listener, user_timeout_seconds=seconds)
        for key, place in keys:
            if key not in self._opened:
                self._opened[key] = _opened(place, key[1], seconds)
        found = [self._opened[key] for key, _ in keys]
        admin = self._admin or found.pop()
        return self._public or found, admin

    def keep(self, used: list[socket.socket]) -> None:
        """Close what is not in use any more."""
        for key, listener in list(self._opened.items()):
            if listener not in used:
                del self._opened[key]
                listener.close()

    def close(self) -> None:
        for listener in (*self._public, *([self._admin] if self._admin else []), *self._opened.values()):
            listener.close()


def _opened(place: str, address: str, seconds: float) -> socket.socket:
    try:
        return listen(address, user_timeout_seconds=seconds)
    except PortTakenError:
        raise SupervisorError(
            f'{place} = "{address}": another program listens there. Stop it, or choose another port.'
        ) from None
    except OSError as error:
        raise SupervisorError(f'{place} = "{address}": it can\'t be listened on: {error.strerror}') from None


class Supervisor:
    """Runs the workers of one feed.toml until SIGTERM or SIGINT; SIGHUP rolls them.

    `dsn_of` gives the database to use for settings, which may mean to start the embedded one.
    """

    def __init__(self, path: Path, dsn_of: Callable[[Settings], str], emit: Emit) -> None:
        self._path = path
        self._dsn_of = dsn_of
        self._emit = emit
        self._sockets = Sockets()
        self._workers: list[_Worker] = []
        self._leaving: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()

    async def run(self, settings: Settings, text: str) -> None:
        """Serve. Raises SupervisorError where the workers can't start the first time."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        seconds = settings.server.shutdown_timeout.seconds
        try:
            plan = _Plan(settings, text, self._dsn_of(settings))
            fresh = await self._unless_stopped(self._start_all(plan, greets=True))
            if fresh is None:
                return
            self._workers, database = fresh
            public, _ = self._sockets.of(settings.server)
            urls = tuple(url_of(listener, tls=settings.server.tls) for listener in public)
            self._emit(Started(urls=urls, version=__version__, database=database))
            _notify("READY=1")
            plan = await self._keep_running(plan)
            seconds = plan.settings.server.shutdown_timeout.seconds
            _notify("STOPPING=1")
            self._emit(Stopping(seconds=seconds))
        finally:
            self._sockets.close()
            await self._end(seconds)

    async def _keep_running(self, plan: _Plan) -> _Plan:
        """Replace workers that are lost and roll on SIGHUP, until told to stop; the plan at the end."""
        backoff = 0.0
        stopping = asyncio.create_task(self._stop.wait())
        try:
            while True:
                reloading = asyncio.create_task(self._reload.wait())
                exits = {worker.exit: worker for worker in self._workers}
                await asyncio.wait({stopping, reloading, *exits}, return_when=asyncio.FIRST_COMPLETED)
                reloading.cancel()
                if self._stop.is_set():
                    return plan
                if self._reload.is_set():
                    self._reload.clear()
                    plan = await self._unless_stopped(self._rolled(plan)) or plan
                for worker in [w for w in self._workers if w.exit.done()]:
                    if time.monotonic() - worker.since > _STEADY_SECONDS:
                        backoff = 0.0
                    self._emit(WorkerLost(pid=worker.process.pid, status=worker.exit.result(), seconds=backoff))
                    self._workers.remove(worker)
                    worker.link.close()
                    await self._unless_stopped(self._replace(plan, backoff))
                    backoff = _longer(backoff)
        finally:
            stopping.cancel()

    async def _replace(self, plan: _Plan, seconds: float) -> None:
        """One worker more, tried until it answers or a reload is asked for."""
        while not self._reload.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._reload.wait(), seconds)
                return  # under the new settings all workers are started anew
            try:
                started, _ = await self._start(plan, greets=False)
            except SupervisorError as error:
                seconds = _longer(seconds)
                self._emit(WorkerUnable(reason=str(error), seconds=seconds))
                continue
            self._workers.append(started)
            self._emit(WorkerReplaced(pid=started.process.pid))
            return

    async def _rolled(self, plan: _Plan) -> _Plan:
        """The plan after a reload: the one that feed.toml now holds, or the same where nothing can run by it."""
        _notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        before = list(self._workers)
        try:
            text = read(self._path)
            settings = of_file(text, self._path)
            require_usable(settings.server)
            fresh = _Plan(settings, text, await asyncio.to_thread(self._dsn_of, settings))
            self._workers, _ = await self._start_all(fresh, greets=False)
        except (SettingsError, CertificateError, EmbeddedError, SupervisorError) as error:
            self._emit(ReloadRefused(reason=str(error)))
            used, admin = self._sockets.of(plan.settings.server)
            self._sockets.keep([*used, admin])
            return plan
        finally:
            _notify("READY=1")
        for worker in before:
            self._let_go(worker, plan.settings.server.shutdown_timeout.seconds)
        used, admin = self._sockets.of(settings.server)
        self._sockets.keep([*used, admin])
        urls = tuple(url_of(listener, tls=settings.server.tls) for listener in used)
        self._emit(Reloaded(urls=urls, workers=len(self._workers)))
        return fresh

    async def _start_all(self, plan: _Plan, *, greets: bool) -> tuple[list[_Worker], str]:
        """All workers of a plan, ready; where one can't start, none. Raises SupervisorError."""
        count = plan.settings.server.workers
        tasks = [asyncio.create_task(self._start(plan, greets=greets and not n)) for n in range(count)]
        try:
            found = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            for done in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(done, tuple):
                    self._let_go(done[0], 0)
            raise
        return [worker for worker, _ in found], found[0][1]

    async def _start(self, plan: _Plan, *, greets: bool) -> tuple[_Worker, str]:
        """A worker that is ready, and what database it found. Raises SupervisorError."""
        public, admin = self._sockets.of(plan.settings.server)
        numbers = tuple(listener.fileno() for listener in public)
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "app.worker", str(theirs.fileno())),
                pass_fds=(*numbers, admin.fileno(), theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
            )
        reader, link = await asyncio.open_connection(sock=ours)
        worker = _Worker(process, link)
        orders = Orders(plan.text, str(self._path), plan.dsn, numbers, admin.fileno(), greets)
        line = b""
        try:
            with suppress(ConnectionError):
                link.write(msgspec.json.encode(orders) + b"\n")
                line = await reader.readline()
            word = msgspec.json.decode(line, type=Ready | Unable) if line else None
        except BaseException:
            self._let_go(worker, 0)
            raise
        if isinstance(word, Ready):
            return worker, word.database
        status = await worker.exit
        link.close()
        raise SupervisorError(word.message if word else f"A worker ended with status {status} before it answered.")

    def _let_go(self, worker: _Worker, seconds: float) -> None:
        task = asyncio.create_task(self._ended(worker, seconds))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _ended(self, worker: _Worker, seconds: float) -> None:
        """Let a worker finish its answers, or kill it where it does not end in time."""
        worker.send_signal(signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(worker.exit), seconds + _KILL_SECONDS)
        worker.send_signal(signal.SIGKILL)
        await worker.exit
        worker.link.close()

    async def _end(self, seconds: float) -> None:
        for worker in self._workers:
            self._let_go(worker, seconds)
        while self._leaving:
            await asyncio.wait(self._leaving)

    async def _unless_stopped(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What the work comes to; None where the service is told to stop meanwhile."""
        task = asyncio.create_task(work)
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            return None
        return task.result()


def _longer(seconds: float) -> float:
    return min(max(FIRST_BACKOFF, 2 * seconds), LONGEST_BACKOFF)


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); nothing where it does not ask."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect("\0" + address[1:] if address.startswith("@") else address)
        out.sendall(state.encode())
