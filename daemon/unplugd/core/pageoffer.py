"""What is said when a domain's ioreq page is lent (sockets/page.py, attach/lender.py): two messages, a byte for a vCPU.

    supervisor -> unplugd   greeting: the domid
    process    -> unplugd   offer: the ioreq server's id, and each vCPU with the process's end of its event channel;
                            with two descriptors, of its event channels and of privcmd, restricted to the domain
    unplugd    -> process   the number of a vCPU, a byte each, whose access is the process's to carry out

The end of the connection, whosever it is, gives the page back.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

SOCKET = "pages.sock"
"""Below the runtime directory, of messages (SOCK_SEQPACKET)."""
DESCRIPTORS = 2
"""That come with an offer."""
VCPUS = 128
"""Slots of an ioreq page."""

_GREETING = struct.Struct("<H")
_SERVER = struct.Struct("<H")
_PORT = struct.Struct("<BI")

MESSAGE_LIMIT = _SERVER.size + VCPUS * _PORT.size
"""Bytes of the longest message."""


class Offer(NamedTuple):
    """The page of ioreq server `server`; `ports` as the compiled part takes them: for each vCPU its number, u8, and a
    port, u32."""

    server: int
    ports: bytes


def greet(domid: int) -> bytes:
    """The supervisor's greeting."""
    return _GREETING.pack(domid)


def greeted(message: bytes) -> int:
    """The domid of a greeting. Raises ValueError."""
    if len(message) != _GREETING.size:
        raise ValueError(f"a greeting has {_GREETING.size} bytes, this has {len(message)}")
    domid: int = _GREETING.unpack(message)[0]
    return domid


def offer(server: int, ports: Mapping[int, int]) -> bytes:
    """An offer; `ports` by vCPU."""
    return _SERVER.pack(server) + b"".join(_PORT.pack(vcpu, port) for vcpu, port in sorted(ports.items()))


def offered(message: bytes) -> Offer:
    """What an offer says. Raises ValueError."""
    ports = message[_SERVER.size:]
    if not ports or len(ports) % _PORT.size or len(message) > MESSAGE_LIMIT:
        raise ValueError(f"no offer of an ioreq page has {len(message)} bytes")
    return Offer(_SERVER.unpack_from(message)[0], ports)
