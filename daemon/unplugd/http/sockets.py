"""Where HTTP listens: sockets that are there from the start, before HTTP itself and its libraries are loaded.

A client that connects early waits in a queue instead of being refused, and a port that is in use is found at once.
What is said on the sockets is client.py's.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from unplugd.errors import HostError
from unplugd.host.runtimedir import listen_for_root

BACKLOG = 100


def listen_tcp(address: str, port: int) -> list[socket.socket]:
    """Sockets that listen at a TCP address, one for each address that a name stands for. Raises HostError.

    None where this process may not use a network at all: then systemd passes the sockets, or there is no HTTP by TCP.
    A name is looked up, which may take its time: for the start only.
    """
    bound: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, where in dict.fromkeys(found):
            one = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            bound.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(where)
            one.listen(BACKLOG)
    except OSError as error:
        for one in bound:
            one.close()
        if error.errno == errno.EAFNOSUPPORT:
            return []
        raise HostError("HTTP listener", f"{address}:{port}", why(error)) from error
    return bound


def listen_control(path: Path) -> socket.socket:
    """A socket that listens at `path` for root only. Raises HostError."""
    return listen_for_root("control socket", path, BACKLOG)


def why(error: OSError) -> str:
    """What the operating system says, without the address that asyncio repeats."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)
