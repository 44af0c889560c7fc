"""Xen's `struct ioreq` on a domain's socket, as the contract says it (section 1, "Frame").

This is the tests' own reading of the contract, independent of core/ioreq.py: nothing of unplugd is imported here.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

FRAME = struct.Struct("<QQIIIHBB")
"""addr, data, count, size, vp_eport, _pad0, the byte of state and bits, type."""


def frame(
    addr: int = 0x10,
    size: int = 2,
    data: int = 0,
    *,
    read: bool = False,
    count: int = 1,
    string: bool = False,
    df: bool = False,
    top: bool = False,
    high: int = 0,
    state: int = 1,
    kind: int = 0,
    eport: int = 0,
    pad: int = 0,
) -> bytes:
    """The 32 bytes of a request, whatever is put into it. `high` is `df` (0x40) and `top` (0x80) in one."""
    bits = state | string << 4 | read << 5 | df << 6 | top << 7 | high
    return FRAME.pack(addr, data, count, size, eport, pad, bits, kind)


RESET = frame(0, 0, 0, state=0, count=0)


def outs(addr: int, data: bytes, size: int = 1) -> bytes:
    """`rep outs`: a frame and its payload."""
    return frame(addr, size, count=len(data) // size, string=True) + data


class Answer(NamedTuple):
    """A response, field by field, with the payload of a string read."""

    addr: int
    data: int
    elements: int
    size: int
    eport: int
    pad: int
    bits: int
    kind: int
    payload: bytes = b""


def answers(data: bytes) -> list[Answer]:
    """The responses in `data`, which must be whole."""
    found = []
    while data:
        addr, value, elements, size, eport, pad, bits, kind = FRAME.unpack_from(data)
        more = elements * size if bits & 0x3F == 0x33 else 0
        assert len(data) >= 32 + more, "a response is cut off"
        found.append(Answer(addr, value, elements, size, eport, pad, bits, kind, data[32 : 32 + more]))
        data = data[32 + more :]
    return found
