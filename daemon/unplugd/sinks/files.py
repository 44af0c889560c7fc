"""One log file per guest: `<directory>/guest-<name>.log`, of limited size, with one older generation (`.1`).

This module names the files after the domains, and keeps the operations on a file in order. A few threads of its own do
the work (through aiofiles), so a disk that hangs blocks guest files and nothing else.

The directory holds guest logs only. Names come from dom0, contents from guests; neither is trusted: no name leads out
of the directory, and what is not a regular file of root's is not written to (host/ownfiles.py).

Every append opens its file again. So a file that was removed or moved is created again, idle guests need no open
descriptor, and SIGHUP only has to check the directory.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from unplugd.core.escape import escape_text, utf8
from unplugd.core.guestrules import MIGRATED_AWAY
from unplugd.errors import HostError
from unplugd.host.ownfiles import make_directory
from unplugd.sinks import guestfile
from unplugd.sinks.guestfile import DIRECTORY_MODE, Ledger

LONGEST_NAME = 200
"""Bytes of an encoded name that a file name keeps."""
DEADLINE = 10.0
"""Seconds for an append; after that its caller gets a TimeoutError."""
THREADS = 2
"""More would only queue on the same disk; the second lets small appends pass beside a large one."""

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-")


def file_name(name: str, domid: int, *, taken: Callable[[str], bool] = lambda _: False) -> str:
    """Return the name of the log file of the domain `domid` called `name` (contract section 3).

    Bytes outside `A-Za-z0-9._+-` become `%NN`. A name over 200 bytes so encoded is cut and gets `-<domid>`, and so does
    one whose file is `taken` already, repeatedly if needed. The result is a plain file name of at most 255 bytes
    (with `.1`), never `.` or `..`; without `taken` two names never give one file, unless both are cut and the domid is
    the same.
    """
    encoded = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in utf8(name))
    if len(encoded) > LONGEST_NAME:
        # Exactly this many bytes, even within a %NN: so a cut name is always longer than an uncut one.
        encoded = f"{encoded[:LONGEST_NAME]}-{domid}"
    while taken(f"guest-{encoded}.log"):
        encoded = f"{encoded}-{domid}"
    return f"guest-{encoded}.log"


def format_line(time: float, raw: bytes) -> bytes:
    """Return the line of a text log: RFC 3339 UTC time with milliseconds, space, escaped `raw`, newline.

    `time` is CLOCK_REALTIME in seconds.
    """
    milliseconds = int(time * 1000)
    second, rest = divmod(milliseconds, 1000)
    return f"{_second(second)}.{rest:03d}Z {escape_text(raw)}\n".encode("ascii")


@lru_cache(maxsize=4)  # many lines have the same second
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat().removesuffix("+00:00")


class _Guest:
    """A domain's file. `file` is the file of the next append; `claimed` is the name after the last rename().

    `before` are the tasks that must end before the next one: those of this guest, or of the file's previous domain.
    """

    __slots__ = ("appending", "before", "claimed", "file", "left", "name")

    def __init__(self, name: str, file: str, before: list[asyncio.Task[None]]) -> None:
        self.name = name
        self.file = file
        self.claimed = file
        self.left = False
        """It was seen to migrate away; a domain can also be created with such a name."""
        self.before = before
        self.appending: asyncio.Task[None] | None = None


class GuestFiles:
    """The files of all domains in `directory`, each of at most `max_bytes` (and as much again in `.1`).

    The directory is created if it is missing. Raises HostError if it cannot be used. Call all methods in the thread of
    the event loop. Operations on one file are done in the order of the calls. `rename_failed` is called with the domid
    and the error if a file could not be renamed; new lines go to the new name.
    """

    def __init__(
        self,
        directory: Path,
        max_bytes: int,
        rename_failed: Callable[[int, OSError], None] = lambda domid, error: None,
    ) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self._rename_failed = rename_failed
        self._guests: dict[int, _Guest] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._renames: list[asyncio.Task[None]] = []
        self._left: dict[str, list[asyncio.Task[None]]] = {}
        self._claimed: set[str] = set()
        """The files of `_guests`."""
        self.reopen()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="guest-files")

    def reopen(self) -> None:
        """Check the directory, and create it if it is missing (SIGHUP). Raises HostError."""
        try:
            status = make_directory(self.directory, DIRECTORY_MODE)
        except OSError as error:
            where = str(error.filename or self.directory)
            raise HostError("directory of guest logs", where, str(error.strerror)) from error
        if status.st_mode & stat.S_IWOTH:
            raise HostError("directory of guest logs", str(self.directory), "anybody may write to it: chmod o-w")
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise HostError("directory of guest logs", str(self.directory), "not writable for this process")

    def open(self, domid: int, name: str) -> None:
        """Add a domain with its name. Its file is created with its first line.

        If the domain is open already, this is `rename`.
        """
        if domid in self._guests:
            self.rename(domid, name)
            return
        # Another domain may have had this file until now: its pending work on the file must end first.
        file = self._free_file(domid, name)
        self._guests[domid] = _Guest(name, file, self._renames + self._left.get(file, []))

    def rename(self, domid: int, name: str) -> None:
        """Rename the file after the domain's new name, after all pending appends. Raises KeyError if not open."""
        guest = self._guests[domid]
        if name == guest.name:
            return
        guest.left = name == guest.name + MIGRATED_AWAY
        guest.name = name
        before = guest.claimed
        self._claimed.discard(before)
        guest.claimed = self._free_file(domid, name)
        if guest.claimed == before:
            return  # both names are cut, and equal up to there
        # Renames wait for each other: one domain often takes the name that another has just given up.
        guest.before += self._renames + self._left.get(guest.claimed, [])
        self._renames = [self._start(guest, partial(self._rename, domid, guest, guest.claimed))]

    def close(
        self, domid: int, last: Sequence[bytes] = (), ledger: Ledger | None = None
    ) -> asyncio.Task[None] | None:
        """Remove a domain. Its file stays; pending lines are still written, and then those of `last`.

        A guest that has migrated away is known by its own name when it returns, so its file gets this name back.

        Its name is free at once. Returns the task that writes `last`; its result is that of `append`. Raises KeyError
        if the domain is not open.
        """
        guest = self._guests.pop(domid)
        self._claimed.discard(guest.claimed)
        writing = self._start(guest, partial(self._append, guest, list(last), ledger)) if last else None
        if guest.left:
            self._give_back(domid, guest)
        if before := [task for task in guest.before if not task.done()]:
            self._left[guest.claimed] = before
        return writing

    def _give_back(self, domid: int, guest: _Guest) -> None:
        """Rename the file after the guest's own name; if a domain has this file now, it becomes its older generation.
        """
        file = file_name(guest.name.removesuffix(MIGRATED_AWAY), domid)
        now = next((other for other in self._guests.values() if other.claimed == file), None)
        guest.before += self._renames + self._left.get(file, []) + (now.before if now else [])
        work = guestfile.rename if now is None else guestfile.become_older
        task = self._start(guest, partial(self._rename, domid, guest, file, work))
        self._renames = [task]
        if now is None:
            self._left[file] = [task]
        else:
            now.before = [task]

    def append(
        self,
        domid: int,
        lines: Sequence[bytes],
        ledger: Ledger | None = None,
        deadline: float = DEADLINE,
    ) -> Coroutine[Any, Any, None]:
        """Append `lines`, each complete with its newline (see `format_line`), to the domain's file; to be awaited.

        If an earlier process began to append these lines (see `ledger`), only the missing ones are written.

        The append is started when this returns, even if the domain is closed before the await. Raises OSError (ENOSPC,
        EROFS, ELOOP, ...) if the lines could not be written: then none of them is in the file, unless together they are
        more than `max_bytes`. Raises KeyError at once for a domain that is not open.

        A domain can have only one append in flight, so the work that waits for a slow disk is bounded: a second append
        raises OSError (EBUSY) at once and writes nothing. Raises TimeoutError (an OSError too) after `deadline`
        seconds. Then, and after a cancelled call, the lines may or may not be written: the thread continues.
        """
        guest = self._guests[domid]
        if guest.appending is not None and not guest.appending.done():
            raise OSError(errno.EBUSY, "the disk has not answered yet", str(self.directory / guest.file))
        guest.appending = self._start(guest, partial(self._append, guest, list(lines), ledger))
        return self._appended(guest.appending, deadline)

    def _free_file(self, domid: int, name: str) -> str:
        file = file_name(name, domid, taken=self._claimed.__contains__)
        self._claimed.add(file)
        return file

    def _start(self, guest: _Guest, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Start `work` as a task that waits for what must be done before it."""
        before = [task for task in guest.before if not task.done()]
        task = asyncio.get_running_loop().create_task(_run_after(before, work))
        guest.before = [task]
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def _appended(self, task: asyncio.Task[None], deadline: float) -> None:
        done, _ = await asyncio.wait({task}, timeout=deadline)
        if not done:
            raise TimeoutError(errno.ETIMEDOUT, "the disk does not answer", str(self.directory))
        task.result()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        for file in [file for file, before in self._left.items() if all(task.done() for task in before)]:
            del self._left[file]
        if not task.cancelled():
            task.exception()  # append() raises it to its caller, unless the caller was cancelled

    async def _in_thread(self, work: Callable[..., None], *arguments: object) -> None:
        # loaded with the first line, so that the start is fast
        from aiofiles.os import wrap

        await wrap(work)(*arguments, executor=self._threads)

    async def _append(self, guest: _Guest, lines: list[bytes], ledger: Ledger | None) -> None:
        await self._in_thread(guestfile.append, self.directory / guest.file, lines, self.max_bytes, ledger)

    async def _rename(
        self, domid: int, guest: _Guest, target: str, work: Callable[[Path, Path, int], None] = guestfile.rename
    ) -> None:
        source, guest.file = guest.file, target
        try:
            await self._in_thread(work, self.directory / source, self.directory / target, self.max_bytes)
        except OSError as error:
            self._rename_failed(domid, error)


async def _run_after(before: list[asyncio.Task[None]], work: Callable[[], Awaitable[None]]) -> None:
    if before:
        await asyncio.wait(before)
    await work()
