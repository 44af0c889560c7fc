"""The parts of Xen's stable libraries that an ioreq server needs, through ctypes.

Sources: xendevicemodel.h, xenforeignmemory.h, xenevtchn.h and xentoolcore.h of libxen-dev 4.17; these four have a
stable ABI (soname .so.1 since Xen 4.7). A failed call raises XenError with the library's errno. server.py and
guestmem.py use them.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import mmap
import os
import struct
from ctypes import (
    POINTER,
    byref,
    c_char,
    c_int,
    c_size_t,
    c_uint,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_ulong,
    c_void_p,
)
from typing import Any

from unplugd.errors import HostError, UnplugdError

PAGE_SIZE = 4096

BUFIOREQ_OFF = 0
"""HVM_IOREQSRV_BUFIOREQ_OFF: no buffered requests."""
RESOURCE_IOREQ_SERVER = 0
"""XENMEM_resource_ioreq_server."""
FRAME_SYNCHRONOUS = 1
"""XENMEM_resource_ioreq_server_frame_ioreq(0)."""


_PRIVCMD_RESTRICT = 2 << 16 | ord("P") << 8 | 6


class XenError(UnplugdError):
    """A call of a Xen library failed: `call`, `errno`."""

    def __init__(self, call: str, errno: int) -> None:
        self.call = call
        self.errno = errno
        super().__init__(f"{call}: {os.strerror(errno)}")


_ID = c_uint16
_PROTOTYPES: dict[str, dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "libxendevicemodel.so.1": {
        "xendevicemodel_open": (c_void_p, (c_void_p, c_uint)),
        "xendevicemodel_create_ioreq_server": (c_int, (c_void_p, c_uint16, c_int, POINTER(_ID))),
        "xendevicemodel_destroy_ioreq_server": (c_int, (c_void_p, c_uint16, _ID)),
        "xendevicemodel_set_ioreq_server_state": (c_int, (c_void_p, c_uint16, _ID, c_int)),
        "xendevicemodel_map_io_range_to_ioreq_server": (
            c_int, (c_void_p, c_uint16, _ID, c_int, c_uint64, c_uint64)),
        "xendevicemodel_unmap_io_range_from_ioreq_server": (
            c_int, (c_void_p, c_uint16, _ID, c_int, c_uint64, c_uint64)),
        "xendevicemodel_map_pcidev_to_ioreq_server": (
            c_int, (c_void_p, c_uint16, _ID, c_uint16, c_uint8, c_uint8, c_uint8)),
    },
    "libxenforeignmemory.so.1": {
        "xenforeignmemory_open": (c_void_p, (c_void_p, c_uint)),
        "xenforeignmemory_map": (c_void_p, (c_void_p, c_uint32, c_int, c_size_t, POINTER(c_ulong), POINTER(c_int))),
        "xenforeignmemory_unmap": (c_int, (c_void_p, c_void_p, c_size_t)),
        "xenforeignmemory_map_resource": (
            c_void_p, (c_void_p, c_uint16, c_uint, c_uint, c_ulong, c_ulong, POINTER(c_void_p), c_int, c_int)),
        "xenforeignmemory_unmap_resource": (c_int, (c_void_p, c_void_p)),
    },
    "libxenevtchn.so.1": {
        "xenevtchn_open": (c_void_p, (c_void_p, c_uint)),
        "xenevtchn_fd": (c_int, (c_void_p,)),
        "xenevtchn_bind_interdomain": (c_int, (c_void_p, c_uint32, c_uint32)),
        "xenevtchn_pending": (c_int, (c_void_p,)),
        "xenevtchn_unmask": (c_int, (c_void_p, c_uint32)),
        "xenevtchn_notify": (c_int, (c_void_p, c_uint32)),
    },
    "libxentoolcore.so.1": {
        "xentoolcore_restrict_all": (c_int, (c_uint16,)),
    },
}  # fmt: skip


@functools.cache
def libraries() -> dict[str, Any]:
    """All functions by name. Raises HostError where the libraries are not installed."""
    functions: dict[str, Any] = {}
    for soname, prototypes in _PROTOTYPES.items():
        try:
            library = ctypes.CDLL(soname, use_errno=True)
        except OSError as error:
            raise HostError("Xen's library", soname, str(error)) from error
        for name, (result, arguments) in prototypes.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            functions[name] = function
    return functions


def _call(name: str, *arguments: Any) -> Any:
    """Call a function; a negative number or a null pointer raises XenError."""
    result = libraries()[name](*arguments)
    if result is None or (isinstance(result, int) and result < 0):
        raise XenError(name, ctypes.get_errno())
    return result


def restricted_privcmd(domid: int) -> int:
    """A descriptor of privcmd, restricted to this domain, with which unplugd maps the ioreq page.

    Source: xen/sys/privcmd.h, IOCTL_PRIVCMD_RESTRICT. Raises OSError.
    """
    descriptor = os.open("/dev/xen/privcmd", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, _PRIVCMD_RESTRICT, struct.pack("=H", domid))
    return descriptor


def restrict_all(domid: int) -> None:
    """From here on no handle that this process has open may touch another domain than `domid`."""
    _call("xentoolcore_restrict_all", domid)


class XenDeviceModel:
    """libxendevicemodel, for one domain."""

    def __init__(self, domid: int) -> None:
        self.domid = domid
        self._handle = _call("xendevicemodel_open", None, 0)

    def create_server(self) -> int:
        """Create an ioreq server without ranges, not enabled; returns its id, the lowest that was free."""
        server = _ID()
        _call("xendevicemodel_create_ioreq_server", self._handle, self.domid, BUFIOREQ_OFF, byref(server))
        return server.value

    def destroy_server(self, server: int) -> None:
        """Destroy a server. With a request in flight the vCPU would hang for good: drain first."""
        _call("xendevicemodel_destroy_ioreq_server", self._handle, self.domid, server)

    def enable_server(self, server: int, *, enabled: bool) -> None:
        """Enable or disable the server; accesses in flight stay with it. The domain is paused during the call."""
        _call("xendevicemodel_set_ioreq_server_state", self._handle, self.domid, server, int(enabled))

    def map_ports(self, server: int, first: int, last: int) -> None:
        """Send accesses that lie wholly within ports `first` to `last` to the server."""
        _call("xendevicemodel_map_io_range_to_ioreq_server", self._handle, self.domid, server, 0, first, last)

    def unmap_ports(self, server: int, first: int, last: int) -> None:
        """Take ports away from the server again; they must be its."""
        _call("xendevicemodel_unmap_io_range_from_ioreq_server", self._handle, self.domid, server, 0, first, last)

    def map_device(self, server: int, bus: int, slot: int, function: int) -> None:
        """Send accesses to the configuration space of a PCI device to the server, as IOREQ_TYPE_PCI_CONFIG."""
        _call("xendevicemodel_map_pcidev_to_ioreq_server", self._handle, self.domid, server, 0, bus, slot, function)


class ForeignMemory:
    """libxenforeignmemory, for one domain."""

    def __init__(self, domid: int) -> None:
        self.domid = domid
        self._handle = _call("xenforeignmemory_open", None, 0)

    def map_ioreq_page(self, server: int) -> memoryview:
        """The page of synchronous ioreqs of a server, readable and writable, for as long as the process lives."""
        address = c_void_p()
        _call("xenforeignmemory_map_resource", self._handle, self.domid, RESOURCE_IOREQ_SERVER, server,
              FRAME_SYNCHRONOUS, 1, byref(address), mmap.PROT_READ | mmap.PROT_WRITE, 0)
        return memoryview((c_char * PAGE_SIZE).from_address(address.value or 0)).cast("B")

    def read(self, frame: int, offset: int, length: int) -> bytes:
        """Bytes of one guest page, by its frame number."""
        page = self._map(frame, mmap.PROT_READ)
        try:
            return ctypes.string_at(page + offset, length)
        finally:
            self._unmap(page)

    def write(self, frame: int, offset: int, data: bytes) -> None:
        """Write into one guest page, by its frame number."""
        page = self._map(frame, mmap.PROT_READ | mmap.PROT_WRITE)
        try:
            ctypes.memmove(page + offset, data, len(data))
        finally:
            self._unmap(page)

    def _map(self, frame: int, protection: int) -> int:
        frames, errors = (c_ulong * 1)(frame), (c_int * 1)()
        page: int = _call("xenforeignmemory_map", self._handle, self.domid, protection, 1, frames, errors)
        if errors[0]:
            self._unmap(page)
            raise XenError("xenforeignmemory_map", -errors[0])
        return page

    def _unmap(self, page: int) -> None:
        libraries()["xenforeignmemory_unmap"](self._handle, page, 1)


class EventChannels:
    """libxenevtchn. Its descriptor does not block: pending() returns None when nothing is."""

    def __init__(self) -> None:
        self._handle = _call("xenevtchn_open", None, 0)
        self.fd: int = _call("xenevtchn_fd", self._handle)
        os.set_blocking(self.fd, False)
        self._pending = libraries()["xenevtchn_pending"]

    def bind(self, domid: int, remote_port: int) -> int:
        """Bind to a port of the domain; returns the local port."""
        port: int = _call("xenevtchn_bind_interdomain", self._handle, domid, remote_port)
        return port

    def pending(self) -> int | None:
        """The next port that has an event; it stays masked until unmask()."""
        port: int = self._pending(self._handle)
        return port if port >= 0 else None

    def unmask(self, port: int) -> None:
        """Let further events of the port through."""
        _call("xenevtchn_unmask", self._handle, port)

    def notify(self, port: int) -> None:
        """Notify the other side of the port."""
        _call("xenevtchn_notify", self._handle, port)
