"""confine() in a process of its own, without Xen: everything but the restriction of Xen's handles."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unplugd.attach import confine
from unplugd.config.attach import AttachConfig
from unplugd.errors import HostError

SCRIPT = """
import asyncio, os, signal, socket, sys
from pathlib import Path
from unplugd.attach import confine
restricted = []
confine.restrict_all = restricted.append
confine.preload()
ours, theirs = socket.socketpair()
events = os.open('/dev/null', os.O_RDWR | os.O_NONBLOCK)
loop = asyncio.new_event_loop()
confine.confine(7, confine.Identity(65534, 65534), Path(sys.argv[1]), os.getppid(), events)
out = [restricted, os.getuid(), os.geteuid()]
# what is left is enough for an event loop and its sockets
theirs.setblocking(False)
async def main():
    ours.send(b"x")
    async with asyncio.timeout(10):
        got = await loop.sock_recv(theirs, 1)
    return got, len(bytearray(64 << 20))
out.append(loop.run_until_complete(main()))
for call in (lambda: os.open("/", os.O_RDONLY), lambda: os.kill(os.getpid(), 0), lambda: socket.socket(),
             lambda: os.execv("/bin/true", ["true"]), lambda: os.listdir("/"), lambda: os.nice(0)):
    try:
        call()
        out.append("worked")
    except OSError as error:
        out.append(error.errno)
print(out, flush=True)
os._exit(0)
"""

EVENTS = """
import fcntl, struct
from errno import EPERM
def attempt(call):
    try:
        call()
    except OSError as error:
        return error.errno
    return 0
on, off = (struct.pack("i", value) for value in (1, 0))
FIONBIO = 0x5421
print([attempt(call) for call in (
    lambda: fcntl.ioctl(events, FIONBIO, off), lambda: fcntl.ioctl(events, FIONBIO, on),
    lambda: fcntl.fcntl(events, fcntl.F_SETFL, 0), lambda: fcntl.fcntl(events, fcntl.F_SETFL, os.O_NONBLOCK),
    lambda: os.set_blocking(events, True), lambda: os.dup(events), lambda: fcntl.fcntl(events, fcntl.F_DUPFD, 3),
    lambda: fcntl.fcntl(ours, fcntl.F_SETFL, os.O_NONBLOCK),
)], os.get_blocking(events))
# the kernel looks at the lower half of a descriptor's number; 16 is ioctl
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
high = ctypes.c_ulong(events | 1 << 32)
print(libc.syscall(16, high, ctypes.c_ulong(FIONBIO), ctypes.byref(ctypes.c_int(0))), ctypes.get_errno(),
      os.get_blocking(events))
before = os.get_blocking(ours.fileno())
print(before, attempt(lambda: fcntl.ioctl(ours, FIONBIO, on)), os.get_blocking(ours.fileno()))
print(attempt(lambda: fcntl.ioctl(ours, FIONBIO, off)), os.get_blocking(ours.fileno()), flush=True)
os._exit(0)
"""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="giving root up needs root"),
    pytest.mark.skipif(ctypes.util.find_library("seccomp") is None, reason="libseccomp is not installed"),
]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_everything_is_given_up(tmp_path: Path) -> None:
    done = run(SCRIPT, str(tmp_path))
    assert done.returncode == 0, done.stderr
    expected = [[7], 65534, 65534, (b"x", 64 << 20), 1, 1, 1, 1, 1, 1]
    assert done.stdout.strip() == str(expected)


def test_event_channels_never_come_to_block(tmp_path: Path) -> None:
    setup, _, _ = SCRIPT.partition("out = ")
    done = run(setup + EVENTS, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[1, 1, 1, 1, 1, 1, 1, 1] False", "-1 1 False", "True 0 False", "0 True"]


def test_a_supervisor_that_is_gone_is_noticed(tmp_path: Path) -> None:
    done = run(SCRIPT.replace("os.getppid(), events)\nout", "1, events)\nout"), str(tmp_path))
    assert done.returncode != 0
    assert "the supervisor is gone" in done.stderr


def test_what_could_be_had_back_is_noticed(tmp_path: Path) -> None:
    without = "confine.preload(); confine._filter_system_calls = lambda events: None"
    script = SCRIPT.replace("confine.preload()", without)
    done = run(script, str(tmp_path))
    assert done.returncode != 0
    assert "RuntimeError: confined, the process" in done.stderr


def test_the_user_of_a_process() -> None:
    assert confine.identity(AttachConfig(user="nobody"), 7).uid == 65534
    with pytest.raises(HostError, match="does not exist"):
        confine.identity(AttachConfig(user="no-such-user"), 7)
    with pytest.raises(HostError, match="is root"):
        confine.identity(AttachConfig(user="root"), 7)
