"""Listening sockets: opened once, by us, so that they can be tuned, handed to workers and kept through a roll."""

import errno
import os
import socket

from app.settings import split_address

BACKLOG = 1024
_FIRST_ACTIVATED = 3


class PortTakenError(Exception):
    """Another program listens on an address."""


def listen(address: str, *, user_timeout_seconds: float) -> socket.socket:
    """A listening socket on 'host:port'. Raises PortTakenError, or OSError where the address is not ours."""
    host, port = split_address(address)
    if host is None or port is None:
        raise ValueError(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tune(listener, user_timeout_seconds=user_timeout_seconds)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(address) from None
        raise
    return listener


def tune(listener: socket.socket, *, user_timeout_seconds: float) -> None:
    """Let the kernel drop a peer that takes nothing for that long.

    TCP_USER_TIMEOUT is inherited by every accepted connection. Hypercorn has no such timeout, and would keep the
    socket with all that waits in it.
    """
    listener.setblocking(False)
    if hasattr(socket, "TCP_USER_TIMEOUT") and listener.family != socket.AF_UNIX:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(user_timeout_seconds * 1000))


def activated() -> tuple[list[socket.socket], socket.socket | None]:
    """The public sockets and the admin one that systemd listens on for us (sd_listen_fds(3)); none without it.

    The admin socket is the one its unit calls so: FileDescriptorName=admin.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return [], None
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(variable, None)  # they are for us, not for our children
    public: list[socket.socket] = []
    admin = None
    for number in range(count):
        listener = socket.socket(fileno=_FIRST_ACTIVATED + number)
        if names[number : number + 1] == ["admin"]:
            admin = listener
        else:
            public.append(listener)
    return public, admin


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    """The URL under which a listening socket is reached."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
