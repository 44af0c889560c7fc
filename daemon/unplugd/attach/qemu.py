"""The client of QEMU's monitor: writes and reads I/O ports of an unmodified QEMU, as if the guest did it.

QEMU has no QMP command for ports, but its human monitor has the commands `o` and `i`, and QMP runs them with
`human-monitor-command`. When QEMU answers, the work is done: an unplug written this way is complete.

QEMU serves one client per socket, and other programs (xentop, libxl) use it too. So a connection is made when it is
needed, and closed after a second without use.

The library qemu.qmp is not used: Debian 12 has no package for it, and only three requests are needed here.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

ATTEMPT = 30.0
"""Seconds for one command, the connection included: QEMU may be busy starting, or serve xentop on this socket."""
ONCE = 5.0
"""Seconds for a command that may fail. While it holds the connection, an unplug order waits for it."""
IDLE = 1.0
"""Seconds after which an unused connection is closed."""
_FIRST_RETRY, _LAST_RETRY = 0.05, 1.0
_LETTERS = {1: "b", 2: "h", 4: "w"}
_READ = re.compile(r"port[bwl]\[0x[0-9a-f]+\] = 0x([0-9a-f]+)")
_LINE_LIMIT = 1 << 20

_T = TypeVar("_T")


class MonitorFailure(Exception):
    """QEMU's monitor answered something else than it should, or nothing."""


def write_command(port: int, size: int, value: int) -> str:
    """The monitor command that writes a port: `o /h 0x10 0x3`."""
    return f"o /{_LETTERS[size]} {port:#x} {value:#x}"


def read_command(port: int, size: int) -> str:
    """The monitor command that reads a port."""
    return f"i /{_LETTERS[size]} {port:#x}"


def read_result(text: str) -> int:
    """The value in the answer to a read: `portw[0x0010] = 0x49d2`. Raises MonitorFailure."""
    match = _READ.search(text)
    if match is None:
        raise MonitorFailure(f"monitor answered {text[:80]!r}")
    return int(match[1], 16)


_FAILURES = (OSError, TimeoutError, EOFError, ValueError, MonitorFailure)


def _silent(text: str) -> None:
    """Check the answer to a write. Raises MonitorFailure."""
    if text.strip():
        raise MonitorFailure(f"monitor answered {text[:80]!r}")


class Monitor:
    """The monitor of one domain's QEMU. `connect` brings a connected socket or raises OSError."""

    def __init__(self, connect: Callable[[], Awaitable[socket.socket]], report: Callable[[str], None]) -> None:
        self._connect = connect
        self._report = report
        self._lock = asyncio.Lock()
        self._link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def write(self, port: int, size: int, value: int) -> None:
        """Write a port; returns when QEMU has done it, and retries without limit.

        The guest must not continue while QEMU still has a device that should be unplugged: two paths to one disk
        corrupt it. So this waits, as the guest would wait for QEMU itself.
        """

        await self._insist(write_command(port, size, value), _silent)

    async def attempt(self, port: int, size: int, value: int) -> None:
        """Write a port, with one attempt. Raises MonitorFailure if QEMU has not done it in time; it may do it later."""
        try:
            async with asyncio.timeout(ONCE), self._lock:
                self._stay_open()
                try:
                    _silent(await self._run(write_command(port, size, value)))
                except BaseException:
                    self.close()  # an answer may still come, and would be taken for that of the next command
                    raise
                self._close_later()
        except _FAILURES as error:
            raise MonitorFailure(str(error) or type(error).__name__) from error

    async def read(self, port: int, size: int) -> int:
        """Read a port; tries for as long as it takes."""
        return await self._insist(read_command(port, size), read_result)

    async def query(self, command: str) -> Any:
        """The result of a QMP command without arguments; retries without limit."""
        return await self._insist({"execute": command}, lambda answer: answer)

    async def _insist(self, command: str | dict[str, Any], parse: Callable[[Any], _T]) -> _T:
        retry, failed = _FIRST_RETRY, False
        async with self._lock:
            self._stay_open()
            while True:
                try:
                    async with asyncio.timeout(ATTEMPT):
                        answer = parse(await self._run(command))
                except _FAILURES as error:
                    self.close()
                    if not failed:
                        failed = True
                        self._report(f"QEMU's monitor, {command!r}: {str(error) or type(error).__name__}; trying again")
                else:
                    if failed:
                        self._report(f"QEMU's monitor: {command!r} is done")
                    self._close_later()
                    return answer
                await asyncio.sleep(retry)
                retry = min(2 * retry, _LAST_RETRY)

    async def _run(self, command: str | dict[str, Any]) -> Any:
        if self._link is None:
            connection = await self._connect()
            self._link = await asyncio.open_unix_connection(sock=connection, limit=_LINE_LIMIT)
            await _answer(self._link[0], "QMP")  # the greeting
            await _execute(self._link, {"execute": "qmp_capabilities"})
        if isinstance(command, dict):
            return await _execute(self._link, command)
        answer = await _execute(
            self._link, {"execute": "human-monitor-command", "arguments": {"command-line": command}}
        )
        if not isinstance(answer, str):
            raise MonitorFailure(f"monitor answered {answer!r}")
        return answer

    def _stay_open(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _close_later(self) -> None:
        self._idle = asyncio.get_running_loop().call_later(IDLE, self.close)

    def close(self) -> None:
        """End the connection, if there is one."""
        self._stay_open()
        if self._link is not None:
            self._link[1].close()
        self._link = None


async def _execute(link: tuple[asyncio.StreamReader, asyncio.StreamWriter], command: dict[str, Any]) -> Any:
    link[1].write(json.dumps(command).encode() + b"\n")
    return await _answer(link[0], "return")


async def _answer(reader: asyncio.StreamReader, key: str) -> Any:
    """The next message that has `key`; events pass by."""
    while True:
        line = await reader.readline()
        if not line:
            raise MonitorFailure("QEMU closed the connection")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise MonitorFailure(f"QEMU sent {line[:80]!r}")
        if "error" in message:
            raise MonitorFailure(str(message["error"])[:200])
        if key in message:
            return message[key]
