"""The service manager: readiness, status, watchdog, the sockets that it passes, and those that it keeps.

This module implements sd_notify(3), sd_listen_fds(3), sd_pid_notify_with_fds(3) and sd_watchdog_enabled(3). service.py
decides when the service is ready, what its status is, and when the watchdog is pinged.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence

from unplugd.errors import HostError


def notify(*assignments: str, descriptors: Sequence[int] = ()) -> bool:
    """Send assignments such as "READY=1" or "STATUS=7 domains" to the service manager, in one datagram.

    `descriptors` go with them. Never blocks and never raises. Returns True when the datagram is in the manager's
    socket. Returns False if there is no manager ($NOTIFY_SOCKET), if it has ended, or if its queue is full. An
    assignment is one line: line ends within it become spaces. Source: sd_notify(3), sd_pid_notify_with_fds(3).
    """
    # Not systemd.daemon.notify: while the manager's queue is full, it waits and holds Python's interpreter lock, so no
    # thread runs and no guest is served. Each call here is made on the running event loop.
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # a name in the abstract namespace
        address = "\0" + address[1:]
    datagram = "\n".join(" ".join(assignment.splitlines()) for assignment in assignments).encode()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
            manager.connect(address)
            socket.send_fds(manager, [datagram], descriptors)
    except OSError:
        return False
    return True


def store_fd(name: str, descriptor: int) -> bool:
    """Ask the manager to keep a descriptor for the next process, which gets it from `listen_fds` by `name`.

    Returns True when the request is in the manager's socket. The manager does not say whether it grants the request
    (fd_store_works).
    """
    return notify("FDSTORE=1", f"FDNAME={name}", descriptors=(descriptor,))


def forget_fd(name: str) -> bool:
    """Take all descriptors of that name out of the manager's store."""
    return notify("FDSTOREREMOVE=1", f"FDNAME={name}")


_PROBE = "probe"
"""Name of the descriptor that tests the manager's store; it is not a socket and belongs to no domain."""


async def fd_store_works(deadline: float = 2.0) -> bool:
    """Whether descriptors that are stored now reach the next process.

    systemd gives no answer when it refuses one (`FileDescriptorStoreMax=` is 0 unless set). So this stores one end of a
    pipe and closes its own copy. If the manager refuses the descriptor, it closes it too, and the other end of the pipe
    shows this. BARRIER=1 shows when the manager has read the request.
    """
    if not os.environ.get("NOTIFY_SOCKET"):
        return False
    stored, kept = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    barrier, passed = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        sent = store_fd(_PROBE, kept) and notify("BARRIER=1", descriptors=(passed,))
        os.close(kept)
        os.close(passed)
        return sent and await _closed(barrier, deadline) and not await _closed(stored, 0.0)
    finally:
        forget_fd(_PROBE)
        os.close(stored)
        os.close(barrier)


async def _closed(descriptor: int, deadline: float) -> bool:
    """Whether the other end of a pipe is closed, at the latest `deadline` seconds from now."""
    loop = asyncio.get_running_loop()
    end = loop.create_future()
    loop.add_reader(descriptor, lambda: None if end.done() else end.set_result(None))
    try:
        # the first iteration of the loop finds a pipe that is closed already
        await asyncio.wait({end}, timeout=max(deadline, 0.01))
        return end.done()
    finally:
        loop.remove_reader(descriptor)


def listen_fds() -> dict[str, list[socket.socket]]:
    """Take over the sockets that systemd passed to this process, by their names (`FileDescriptorName=`).

    Returns {} if none were passed. A second call returns {} too, and child processes do not get them. The sockets are
    non-blocking and close-on-exec. Raises HostError if one of them is not a socket, or if systemd-python is not
    installed. Source: sd_listen_fds_with_names(3).
    """
    passed = f"LISTEN_FDS={os.environ.get('LISTEN_FDS', '0')}"
    if passed == "LISTEN_FDS=0" or os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    try:
        # Imported here: a checkout without a C compiler has no systemd-python, and then nobody passes sockets.
        from systemd.daemon import listen_fds_with_names

        names = listen_fds_with_names(unset_environment=True)
    except ImportError:
        why = "systemd-python is not installed: apt-get install python3-systemd, or pip install systemd-python"
        raise HostError("sockets passed by systemd", passed, why) from None
    except (OSError, ValueError) as error:
        raise HostError("sockets passed by systemd", passed, str(error)) from None
    sockets: dict[str, list[socket.socket]] = {}
    for fd, name in names.items():
        if name == _PROBE:  # left by a process that was killed during the test
            os.close(fd)
            forget_fd(_PROBE)
            continue
        try:
            passed_socket = socket.socket(fileno=fd)
        except OSError as error:
            raise HostError("socket passed by systemd", f"{name} (fd {fd})", error.strerror or str(error)) from None
        passed_socket.setblocking(False)
        sockets.setdefault(name, []).append(passed_socket)
    return sockets


Passed = dict[str, list[tuple[str, socket.socket]]]
"""Sockets that systemd passed, each with its name, by what the name begins with: all before the inode's suffix."""


def passed_sockets(named: Mapping[str, Sequence[socket.socket]]) -> Passed:
    """The sockets that systemd passed, given by name (listen_fds())."""
    passed: Passed = {}
    for name, sockets in named.items():
        passed.setdefault(name.partition("@")[0], []).extend((name, one) for one in sockets)
    return passed


def watchdog_interval() -> float | None:
    """Seconds between two "WATCHDOG=1", half of what systemd waits for one; None where it does not watch this process.

    Source: sd_watchdog_enabled(3), which recommends the half.
    """
    environment = os.environ
    try:
        microseconds = int(environment.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    if microseconds <= 0 or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return microseconds / 2_000_000
