"""A reload: a separate process reads and checks the files, then the service applies the configuration.

So no guest waits while a file is parsed, however long that takes, and a file that crashes its reader does not harm the
service. A refused reload changes nothing. What a new configuration changes is in service.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from unplugd import __version__
from unplugd.config.files import DEFAULT_FILE
from unplugd.config.load import Config
from unplugd.errors import ConfigError, HostError
from unplugd.host.runtimedir import RuntimeDirectory
from unplugd.host.status import ServiceStatus
from unplugd.host.systemd import notify
from unplugd.sinks.records import Event

PATIENCE = 30.0
"""Seconds for reading the files, in case their file system hangs; a busy dom0 may need ten. config/files.py limits what
parsing may take."""

_PROGRAM = "from unplugd.config.load import answer; answer()"
_PACKAGE = Path(__file__).parents[1]


async def read(path: Path | None) -> tuple[Config, list[str]]:
    """The configuration in these files, as config.load() reads it, and their names. Raises ConfigError."""
    file = str(path or DEFAULT_FILE)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", _PROGRAM, *([] if path is None else [str(path)]),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join((str(_PACKAGE), os.environ.get("PYTHONPATH", "")))})
    except OSError as error:
        raise ConfigError(file, "", f"is not read: no process can be started for it: {error.strerror}") from error
    try:
        async with asyncio.timeout(PATIENCE):
            said, complaint = await process.communicate()
    except TimeoutError:
        raise ConfigError(file, "", f"or another file of the configuration could not be read within {PATIENCE:g} s"
                                    ) from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                process.kill()
                async with asyncio.timeout(1.0):    # a file system that hangs can keep it alive
                    await process.wait()
    # in a thread, because ten thousand entries take 10 ms or more
    return await asyncio.to_thread(_understood, file, process.returncode, said, complaint)


def _understood(file: str, status: int | None, said: bytes, complaint: bytes) -> tuple[Config, list[str]]:
    import pickle  # not at the start: guests wait for it

    try:
        if status != 0:
            last = complaint.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise ValueError(last or f"it ended with status {status}")
        answer = pickle.loads(said)  # noqa: S301 # what a process of this program wrote into a pipe
        if answer[0] != __version__:
            raise ValueError(f"it is unplugd {answer[0]}, this one is {__version__}: restart unplugd")
    except Exception as error:  # whatever is wrong with that process must not end this one
        raise ConfigError(file, "", f"is not read: the process that reads it failed: {error}") from error
    if len(answer) == 4:
        raise ConfigError(*answer[1:])
    config, files = answer[1:]
    return config, files


class Reload:
    """The reloads of a service, one at a time.

    `apply` applies a configuration; if it raises ConfigError or HostError, it has changed nothing.
    """

    def __init__(self, path: Path | None, directory: RuntimeDirectory, standing: ServiceStatus,
                 apply: Callable[[Config], Awaitable[None]], say: Callable[[Event, str], None]) -> None:
        self._path = path
        self._configured = os.path.abspath(path) if path else ""
        self._directory = directory
        self._standing = standing
        self._apply = apply
        self._say = say
        self._asked = asyncio.Event()
        self._reading = asyncio.Lock()

    def ask(self) -> None:
        """Request a reload. Requests that come during a reload cause one more after it."""
        self._asked.set()

    async def follow(self, status: Callable[[], Sequence[str]]) -> None:
        """Reload at each request, until cancelled. `status` gives what to send to the service manager afterwards."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
            awaited = self._directory.reload_is_awaited()
            problem = await self._reload()
            notify(*status())
            if awaited:
                self._directory.answer_reload(problem)

    async def _reload(self) -> str:
        """Why the configuration was refused; "" if it was applied."""
        try:
            config, files = await self._read()
            await self._apply(config)
        except (ConfigError, HostError) as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 # a reload never ends a service that runs
            where = traceback.format_exception(error)[-2:]
            self._say(Event.INTERNAL, "a reload failed: " + " ".join(" ".join(where).split())[:1000])
            problem = f"a fault of unplugd's own: {type(error).__name__}"
        else:
            self._standing.taken(files)
            self._say(Event.RELOADED, "configuration reloaded")
            return ""
        self._standing.refused(problem)
        self._say(Event.RELOAD_REFUSED, f"configuration not reloaded, the previous one stays in effect: {problem}")
        return problem

    async def _read(self) -> tuple[Config, list[str]]:
        async with self._reading:
            return await read(self._path)

    async def check(self) -> Mapping[str, object]:
        """Whether a reload could read the files now, with the rights of this process: JSON's part (docs/api.md)."""
        named = {"configured": self._configured}
        try:
            _, files = await self._read()
        except ConfigError as error:
            return {**named, "valid": False, "file": error.file, "key": error.key, "problem": error.problem}
        return {**named, "valid": True, "files": files}
