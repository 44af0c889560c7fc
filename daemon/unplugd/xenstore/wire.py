"""xenstore's wire protocol: converts requests to bytes, and bytes to replies and events
(xen/include/public/io/xs_wire.h).

The table of operations, the header's layout and the rules for permissions come from pyxs. Its `Packet` is not used for
replies, because it raises for a directory over 4096 bytes, which oxenstored sends. Pure: no socket, no clock.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from pyxs._internal import Op, Packet
from pyxs.exceptions import InvalidPath, InvalidPermission
from pyxs.helpers import check_perms, check_watch_path

from unplugd.errors import NoSuchNode, StoreError, StoreRefused, TransactionConflict

__all__ = [
    "DIRECTORY_PART",
    "HEADER",
    "MAX_PAYLOAD",
    "MAX_REPLY",
    "Decoder",
    "Message",
    "Op",
    "WireFault",
    "names",
    "node_path",
    "permission_list",
    "refusal",
    "request",
    "strings",
    "watch_path",
]

DIRECTORY_PART = 22
"""XS_DIRECTORY_PART, which came after pyxs's table: a slice of a directory, by byte offset (C xenstored only)."""

HEADER: Final[struct.Struct] = Packet._struct
"""struct xsd_sockmsg: type, req_id, tx_id, len; 32 bits each, in the byte order of the machine."""

MAX_PAYLOAD = 4096
"""XENSTORE_PAYLOAD_MAX. xenstored closes the connection if a request is longer."""

MAX_REPLY = 16 << 20
"""The longest accepted reply: oxenstored has no limit for directories."""

_PATH = re.compile(rb"/|(?:/[-\w@]+)+", re.ASCII)
_PATH_LIMIT = 3072
"""XENSTORE_ABS_PATH_MAX. pyxs's check_path() takes a newline at the end, and ten times as long."""

_KNOWN = frozenset(Op) | {DIRECTORY_PART}


class WireFault(Exception):
    """The received bytes violate xenstore's protocol; the connection cannot be used any more."""


class Message(NamedTuple):
    """A received reply, error or event."""

    op: int
    """The operation of the request, or `Op.ERROR`, or `Op.WATCH_EVENT`."""
    request_id: int
    """The number of the request that it answers; 0 in an event."""
    payload: bytes


def request(op: int, request_id: int, tx: int, payload: bytes) -> bytes:
    """The bytes of one request. `request_id` and `tx` are below 2**32; the payload is at most MAX_PAYLOAD long."""
    return HEADER.pack(op, request_id, tx, len(payload)) + payload


def strings(*parts: bytes) -> bytes:
    """A payload of NUL-terminated strings."""
    return b"\0".join(parts) + b"\0"


def node_path(path: str) -> bytes:
    """An absolute path in the wire format.

    Raises NoSuchNode for a path that xenstore cannot have (it would answer EINVAL), also with a NUL or newline.
    """
    raw = path.encode("ascii", "replace")
    if _PATH.fullmatch(raw) is None or len(raw) > _PATH_LIMIT:
        raise NoSuchNode(path)
    return raw


def watch_path(path: str) -> bytes:
    """As `node_path`, and the special watches "@introduceDomain" and "@releaseDomain" too."""
    if not path.startswith("@"):
        return node_path(path)
    raw = path.encode("ascii", "replace")
    try:
        check_watch_path(raw)
    except InvalidPath:
        raise NoSuchNode(path) from None
    if not raw[-1:].isalpha():
        raise NoSuchNode(path)
    return raw


def permission_list(permissions: Sequence[str]) -> list[bytes]:
    """Permissions in the wire format. Raises ValueError for an empty list or an invalid permission."""
    raw = [permission.encode("ascii", "replace") for permission in permissions]
    if not raw or any(not permission[-1:].isdigit() for permission in raw):
        raise ValueError(f"not xenstore permissions: {list(permissions)!r}")
    try:
        check_perms(raw)
    except InvalidPermission:
        raise ValueError(f"not xenstore permissions: {list(permissions)!r}") from None
    return raw


def names(payload: bytes) -> list[str]:
    """The children in a reply to DIRECTORY."""
    return [name for name in payload.decode("ascii").split("\0") if name]


def refusal(path: str, payload: bytes) -> StoreError:
    """The error in a reply of type ERROR; `path` is what the request was about."""
    code = payload.rstrip(b"\0").decode("ascii", "replace")
    if code in ("ENOENT", "EINVAL"):
        return NoSuchNode(path)
    if code == "EAGAIN":
        return TransactionConflict("xenstored answered EAGAIN: another client wrote in between")
    return StoreRefused(path, code)


class Decoder:
    """Decodes received bytes, in any pieces, into messages."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._needed = HEADER.size

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes. Raises WireFault for invalid data; do not call it again then."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        messages: list[Message] = []
        at, end = 0, len(data)
        self._needed = HEADER.size
        while end - at >= HEADER.size:
            op, request_id, _tx, length = HEADER.unpack_from(data, at)
            if op not in _KNOWN or length > MAX_REPLY:
                raise WireFault(f"a message of type {op} and {length} bytes")
            begin = at + HEADER.size
            if end - begin < length:
                self._needed = HEADER.size + length
                break
            at = begin + length
            messages.append(Message(op, request_id, data[begin:at]))
        self._rest += data[at:]
        return messages
