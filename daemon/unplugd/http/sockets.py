"""The listening sockets of HTTP. They exist from the start, before HTTP and its libraries are loaded.

So an early client waits in the queue and is not refused, and a port in use is found at once. client.py serves the
sockets.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unplugd.errors import HostError
from unplugd.host.runtimedir import listen_for_root

BACKLOG = 100


Address = tuple[Any, ...]
Found = Sequence[tuple[int, int, int, str, Address]]
"""The result of getaddrinfo(3)."""


def resolve(address: str, port: int) -> Found:
    """The addresses of an address or a host name. The lookup of a name can block. Raises HostError."""
    try:
        return socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise _cannot(address, port, error) from error


def listen_tcp(
    address: str, port: int, found: Found | None = None, beside: Sequence[socket.socket] = ()
) -> list[socket.socket]:
    """Listening sockets at a TCP address, one for each address that a host name has. Raises HostError.

    An empty list if this process may not use the network: then systemd passes the sockets, or there is no HTTP on TCP.
    Without `found`, the name is looked up, which can block: at the start only. `beside` are sockets of this process
    that listen already, perhaps at overlapping addresses (127.0.0.1 and 0.0.0.0). The caller then closes them, or the
    new ones.
    """
    bound: list[socket.socket] = []
    try:
        for one in beside:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for family, kind, protocol, _, where in dict.fromkeys(found or resolve(address, port)):
            one = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            bound.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, bool(beside))
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(where)
            one.listen(BACKLOG)
    except OSError as error:
        for one in bound:
            one.close()
        if error.errno == errno.EAFNOSUPPORT:
            return []
        raise _cannot(address, port, error) from error
    finally:
        for one in (*beside, *bound):
            if one.fileno() != -1:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)   # no other process may share them
    return bound


def _cannot(address: str, port: int, error: OSError | UnicodeError) -> HostError:
    return HostError("HTTP listener", f"{address}:{port}", why(error) if isinstance(error, OSError) else str(error))


def listen_control(path: Path) -> socket.socket:
    """A socket that listens at `path` for root only. Raises HostError."""
    return listen_for_root("control socket", path, BACKLOG)


def why(error: OSError) -> str:
    """The error text of the operating system, without the address that asyncio adds."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)
