"""Counts the bytecodes that one access takes of Python's, from the wait to the next wait.

    python -m benchmarks.bytecodes

A guest makes its accesses one after the other, by a connection in this process; Python's own tracing counts what the
event loop's thread does for them. With the compiled part that is nothing, but where a line ends or a text is full.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tests.lab.client import allowed
from tests.lab.frames import frame
from tests.lab.host import host
from unplugd.config.load import Config, LogConfig
from unplugd.core.ioreq import FRAME_SIZE
from unplugd.sockets import loop as eventloop
from unplugd.sockets.access import ConnectionPolicy
from unplugd.sockets.listener import Listener

ACCESSES = 500

CASES = {
    "magic number": frame(0x10, 2, read=True),
    "log byte": frame(0x12, 1, data=ord("a")),
    "a line of 99 bytes, byte by byte, which is dropped": frame(0x12, 1, data=ord("a")) * 99 + frame(0x12, 1, data=10),
}
"""What is sent: accesses one after the other."""


class Tally:
    """Bytecodes of this thread, while it counts."""

    def __init__(self) -> None:
        self.counting = False
        self.codes = 0

    def trace(self, at: FrameType, event: str, arg: object) -> Any:
        """Python's trace function."""
        at.f_trace_opcodes, at.f_trace_lines = True, False
        if event == "opcode" and self.counting:
            self.codes += 1
        return self.trace


async def _count(tally: Tally) -> dict[str, float]:
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        async with host(Path(name), Config(log=LogConfig(rate=0, burst=700, flush_after=1000))) as one:
            domain = one.domain()
            listener = Listener(domain, one.directory, ConnectionPolicy([os.geteuid()]), allowed, one.poller)
            listener.start(None, {})
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.connect(str(listener.path))
                line = frame(0x12, 1, data=ord("x")) * 300 + frame(0x12, 1, data=10)
                await asyncio.to_thread(_guest, client, line * 5, 1, None)  # into the rate limit
                for case, sent in CASES.items():
                    times = max(1, ACCESSES // (len(sent) // FRAME_SIZE))
                    await asyncio.to_thread(_guest, client, sent, times, tally)
                    found[case] = tally.codes / (times * len(sent) // FRAME_SIZE)
                    tally.codes = 0
                    await asyncio.to_thread(_guest, client, frame(0x12, 1, data=10), 1, None)
            listener.close()
            domain.stop()
    return found


def _guest(client: socket.socket, sent: bytes, times: int, tally: Tally | None) -> None:
    """A thread of its own: one access after the other."""
    with _counting(tally):
        for _ in range(times):
            for at in range(0, len(sent), FRAME_SIZE):
                client.sendall(sent[at : at + FRAME_SIZE])
                client.recv(FRAME_SIZE, socket.MSG_WAITALL)


@contextlib.contextmanager
def _counting(tally: Tally | None) -> Iterator[None]:
    if tally is not None:
        tally.counting = True
    yield
    if tally is not None:
        tally.counting = False


def main() -> int:
    """The command line."""
    results = []
    for loop in (asyncio.SelectorEventLoop, eventloop.new_event_loop):
        tally = Tally()
        threading.settrace(None)  # guests' threads are not counted
        sys.settrace(tally.trace)
        try:
            with asyncio.Runner(loop_factory=loop) as runner:
                results.append(runner.run(_count(tally)))
        finally:
            sys.settrace(None)
    print(f"{'bytecodes of an access':<52} {'pure Python':>12} {'compiled':>9}")
    for case in CASES:
        print(f"{case:<52} {results[0][case]:>12.1f} {results[1][case]:>9.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
