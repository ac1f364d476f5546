"""A network namespace: addresses of Cloudflare and of strangers, on a machine that has neither. Needs root and ip."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x4000_0000


class Namespace:
    """What runs `inside` opens its sockets in the namespace, and so do the processes it starts."""

    def __init__(self, name: str) -> None:
        self._path = Path("/run/netns") / name

    def inside(self, work: Callable[[], T]) -> T:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._entered, work).result()

    def _entered(self, work: Callable[[], T]) -> T:
        # A thread's own: the others stay where they are, and this one ends with its work.
        with self._path.open("rb") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        return work()


def lacks() -> str:
    """What is missing on this machine for a namespace; empty where nothing is."""
    if os.geteuid() != 0:
        return "needs root, to make a network namespace"
    if shutil.which("ip") is None:
        return "needs the program ip (Debian: iproute2), to make a network namespace"
    tried = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "may not make a network namespace here (in a container: --privileged)"


@contextmanager
def namespace(name: str, addresses: list[str]) -> Iterator[Namespace]:
    """A namespace with these addresses on its loopback interface."""
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        for address in addresses:
            # Of IPv6 nobody else may have it: no need to find that out first.
            options = ("nodad",) if ":" in address else ()
            _ip("-n", name, "address", "add", address, "dev", "lo", *options)
        yield Namespace(name)
    finally:
        _ip("netns", "delete", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
