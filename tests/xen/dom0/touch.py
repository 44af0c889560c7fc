#!/usr/bin/python3
"""Restricts itself to one domain as a domain's process does, then tries another: touch.py OWN OTHER."""

import ctypes
import fcntl
import mmap
import os
import struct
import sys
from collections.abc import Callable

from unplugd.attach.confine import Identity, confine, preload
from unplugd.attach.xen import EventChannels, ForeignMemory, XenDeviceModel, XenError, restricted_privcmd

own, other = int(sys.argv[1]), int(sys.argv[2])
pages = {domid: ForeignMemory(domid) for domid in (own, other)}
models = {domid: XenDeviceModel(domid) for domid in (own, other)}
events = EventChannels()
preload()


def map_ioreq_page(domid: int) -> None:
    """As unplugd does with the descriptor that a domain's process lends it: the page of ioreq server 1."""
    page = mmap.mmap(privcmd, mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    request = 32 << 16 | ord("P") << 8 | 7  # IOCTL_PRIVCMD_MMAP_RESOURCE
    try:
        fcntl.ioctl(privcmd, request, struct.pack("=HxxIIIQQ", domid, 0, 1, 1, 1, address))
    except OSError as error:
        raise XenError("map_ioreq_page", error.errno or 0) from error


def attempt(call: Callable[[], object]) -> int:
    """0, or the errno."""
    try:
        call()
    except XenError as error:
        return error.errno
    return 0


privcmd = restricted_privcmd(own)
for domid, allowed in ((own, (0,)), (other, (1, 13))):
    seen = attempt(lambda: map_ioreq_page(domid))  # noqa: B023 # called before the loop goes on
    assert seen in allowed, (domid, seen)
empty = "/run/unplugd/attach/empty"
out = os.dup(1)
supervisor = os.getpid()
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
from pathlib import Path  # noqa: E402 # after the path is set

confine(own, Identity(65534, 65534), Path(empty), supervisor, events.fd)

refused = []
calls: dict[str, Callable[[int], object]] = {
    "read memory": lambda domid: pages[domid].read(2, 0, 16),
    "write memory": lambda domid: pages[domid].write(2, 0, b"x"),
    "create a server": lambda domid: models[domid].create_server(),
    "destroy QEMU's server": lambda domid: models[domid].destroy_server(0) if domid == other else None,
    "take QEMU's ports": lambda domid: models[domid].map_ports(9, 0x10, 0x13) if domid == other else None,
    "bind an event channel": lambda domid: events.bind(domid, 3) if domid == other else None,
}
for name, call in calls.items():
    mine, theirs = attempt(lambda: call(own)), attempt(lambda: call(other))  # noqa: B023 # called before the loop goes on
    assert mine == 0, (name, mine)
    assert theirs in (1, 13), (name, theirs)
    refused.append(name)
refused.append("map its ioreq page")
os.write(out, f"refused: {', '.join(refused)}\n".encode())
os._exit(0)
