"""The listening sockets of HTTP. They exist from the start, before HTTP and its libraries are loaded.

So an early client waits in the queue and is not refused, and a port in use is found at once. client.py serves the
sockets.
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
    """Listening sockets at a TCP address, one for each address that a host name has. Raises HostError.

    An empty list if this process may not use the network: then systemd passes the sockets, or there is no HTTP on TCP.
    The lookup of a name can block, so call this at the start only.
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
    """The error text of the operating system, without the address that asyncio adds."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)
