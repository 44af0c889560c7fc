"""The frame: Xen's `struct ioreq` as it travels on a domain's socket (contract section 1, "Frame").

Source of the layout: xen/include/public/hvm/ioreq.h. Only the layout and what a device model may put into it
belong here; what an access does is protocol.py's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from unplugd.errors import ClientFault

FRAME_SIZE = 32
"""Bytes of a frame, request and response alike."""

PAYLOAD_LIMIT = 4096
"""Bytes of string I/O that may follow one frame: a guest page, since Xen splits string I/O at page boundaries."""

LAST_ADDRESS = 0x100FF
"""The last address there is: I/O ports below 0x10000, then 0x100 bytes of the platform device's I/O BAR."""

BAR = 0x10000
"""Where the platform device's I/O BAR begins in `addr`."""

IOREQ_TYPE_PIO = 0

_LAYOUT = struct.Struct("<QQIIIHBB")
_STATE, _DATA_IS_PTR, _DIR = 0x0F, 0x10, 0x20


class State(IntEnum):
    """`state` of a frame."""

    NONE = 0
    """STATE_IOREQ_NONE: on the socket, the platform device came out of reset."""
    READY = 1
    """STATE_IOREQ_READY: a request."""
    RESPONSE = 3
    """STATE_IORESP_READY: its response."""


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request, or a reset (`reset` is true and nothing else counts)."""

    frame: bytes
    """The 32 bytes as received."""
    addr: int
    data: int
    """Value of a single write, reduced to its size; whatever was sent for anything else."""
    count: int
    size: int
    read: bool
    string: bool
    """`data_is_ptr`: the elements are in the payload, `count * size` bytes after the frame."""
    reset: bool = False

    @property
    def payload_size(self) -> int:
        """Bytes that follow the request on the socket."""
        return self.count * self.size if self.string and not self.read else 0


def decode(frame: bytes) -> Request:
    """Check the 32 bytes of a request.

    Raises ClientFault for what no device model may send. What a guest may cause (odd ports, odd sizes) passes.
    """
    addr, data, count, size, _eport, _pad, bits, kind = _LAYOUT.unpack(frame)
    state = bits & _STATE
    if state == State.NONE:
        return Request(frame, 0, 0, 0, 0, read=False, string=False, reset=True)
    if state != State.READY:
        raise ClientFault("bad-state", f"state {state}, a request has 1 (ready) or 0 (reset)")
    if kind != IOREQ_TYPE_PIO:
        raise ClientFault("bad-type", f"type {kind}, only 0 (port I/O) is served")
    string = bool(bits & _DATA_IS_PTR)
    if count == 0:
        raise ClientFault("bad-count", "count 0")
    if count > 1 and not string:
        raise ClientFault("bad-count", f"count {count} without data_is_ptr")
    if size not in (1, 2, 4, 8):
        raise ClientFault("bad-size", f"size {size}, an element has 1, 2, 4 or 8 bytes")
    if count * size > PAYLOAD_LIMIT:
        raise ClientFault("payload-too-long", f"{count} elements of {size} bytes, at most {PAYLOAD_LIMIT} bytes")
    if addr > LAST_ADDRESS:
        raise ClientFault("bad-address", f"addr {addr:#x}, the last one is {LAST_ADDRESS:#x}")
    read = bool(bits & _DIR)
    if not (read or string):
        data &= (1 << 8 * size) - 1
    return Request(frame, addr, data, count, size, read, string)


def response(request: Request, data: int, payload: bytes = b"") -> bytes:
    """The response: the request's bytes with the state and `data` replaced, then the payload of a string read."""
    frame = request.frame
    if request.reset:
        return frame
    bits = frame[30] & ~_STATE | State.RESPONSE
    return b"%b%b%b%c%b%b" % (frame[:8], data.to_bytes(8, "little"), frame[16:30], bits, frame[31:], payload)


def pio(addr: int, *, size: int, data: int = 0, read: bool = False, count: int = 1, string: bool = False,
        eport: int = 0) -> bytes:
    """The frame of a request, as a device model makes it; a string write's payload comes after it."""
    bits = State.READY | (_DATA_IS_PTR if string else 0) | (_DIR if read else 0)
    return _LAYOUT.pack(addr, data, count, size, eport, 0, bits, IOREQ_TYPE_PIO)


RESET = bytes(FRAME_SIZE)
"""The frame that says: the platform device came out of reset."""
