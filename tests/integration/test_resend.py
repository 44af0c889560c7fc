"""The rule "resend what was unanswered", kept by each client of this project, for each kind of access.

A client's access is under way when unplugd is killed; its own code connects again and sends again, and the guest
gets the right answer. The server's side of the rule is in test_restart.py. docs/device-models.md tells both.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest

from tests.integration.test_client_c import CLIENTS, STRICT, Probe
from tests.lab.daemon import PATIENCE, Daemon, Run, embedded, eventually, merged
from unplugd.attach.plan import Ask, Reply
from unplugd.attach.unplugd import Unplugd
from unplugd.simulator.devicemodel import DeviceModel, PortAccess


class Do(NamedTuple):
    """One access: a read, a write of `value`, a string of log; all zeroes: a reset."""

    addr: int = 0
    size: int = 0
    value: int | None = None
    text: bytes = b""


RESET = Do()
MAGIC = Do(0x10, 2)


class Kind(NamedTuple):
    """An access in question, what comes before and after it, and their right answers."""

    access: Do
    answer: int = 0
    before: tuple[Do, ...] = ()
    after: tuple[tuple[Do, int], ...] = ()
    line: str = ""
    """What the guest's log has at the end."""


KINDS = {
    "magic": Kind(MAGIC, 0x49D2),
    "version": Kind(Do(0x12, 1), 1),
    "product": Kind(Do(0x12, 2, 3), after=((Do(0x10, 4, 666), 0), (MAGIC, 0xD249))),
    "build, allowed": Kind(Do(0x10, 4, 1), before=(Do(0x12, 2, 3),), after=((MAGIC, 0x49D2),)),
    "build, blacklisted": Kind(Do(0x10, 4, 666), before=(Do(0x12, 2, 3),), after=((MAGIC, 0xD249),)),
    "unplug": Kind(Do(0x10, 2, 3), 3, after=((Do(0x10, 2, 1), 1),)),
    "flags": Kind(Do(0x10, 1, 1), after=((Do(0x10, 1), 1),)),
    "log byte": Kind(Do(0x12, 1, 0x65), before=(Do(0x12, 1, text=b"on"),), after=((Do(0x12, 1, 10), 0),), line="one"),
    "log string": Kind(Do(0x12, 1, text=b"two"), after=((Do(0x12, 1, 10), 0),), line="two"),
    "reset": Kind(RESET, before=(Do(0x12, 2, 3), Do(0x10, 4, 666)), after=((MAGIC, 0x49D2),)),
    "nothing": Kind(Do(0x1F, 4), 0xFFFFFFFF),
}
DOMIDS = {kind: number for number, kind in enumerate(KINDS, 1)}


class Client(Protocol):
    """A client of one domain's socket."""

    def begin(self, do: Do) -> None:
        """Have the access made."""

    def end(self) -> int:
        """Its answer."""


class Python:
    """unplugd.simulator.devicemodel, which simulator, demo and tests use."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._model = stack.enter_context(DeviceModel(path, timeout=PATIENCE, reconnect=PATIENCE))
        self._thread = stack.enter_context(ThreadPoolExecutor(1))
        self._answer: Future[int]

    def begin(self, do: Do) -> None:
        self._answer = self._thread.submit(self._do, do)

    def _do(self, do: Do) -> int:
        if do == RESET:
            self._model.reset()
            return 0
        return self._model.access(PortAccess(
            do.addr, do.size, read=do.value is None and not do.text, data=do.value or 0,
            count=len(do.text) or 1, string=bool(do.text), payload=do.text,
        )).data

    def end(self) -> int:
        return self._answer.result(PATIENCE)


class C:
    """clients/unplugd-client.h."""

    def __init__(self, binary: Path, path: Path, stack: ExitStack) -> None:
        self._probe = Probe(binary, path, -1)
        self._reset = False
        stack.callback(self._probe.close)

    def begin(self, do: Do) -> None:
        self._reset = do == RESET
        if do.text:
            self._probe.send(f"o {do.addr:#x} {do.size} {do.text.decode()}")
        elif self._reset:
            self._probe.send("reset")
        elif do.value is None:
            self._probe.send(f"r {do.addr:#x} {do.size}")
        else:
            self._probe.send(f"w {do.addr:#x} {do.size} {do.value}")

    def end(self) -> int:
        answer = int(self._probe.answer(), 0)
        return answer - 1 if self._reset else answer


class Attach:
    """unplugd-attach's connection."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path = path
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._unplugd: Unplugd
        self._ended: asyncio.Event
        self._answer: Future[int]
        thread = threading.Thread(target=asyncio.run, args=(self._run(),))
        thread.start()
        assert self._ready.wait(PATIENCE)
        stack.callback(thread.join)
        stack.callback(lambda: self._loop.call_soon_threadsafe(self._ended.set))

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()

        async def connect() -> socket.socket:
            connection = socket.socket(socket.AF_UNIX)
            connection.setblocking(False)
            try:
                await self._loop.sock_connect(connection, str(self._path))
            except BaseException:
                connection.close()
                raise
            return connection

        self._unplugd = Unplugd(connect, give_up_after=None, report=lambda text: None)
        task = self._loop.create_task(self._unplugd.run())
        self._ready.set()
        await self._ended.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._unplugd.close()
        await asyncio.sleep(0)

    def begin(self, do: Do) -> None:
        answer: Future[int] = Future()
        self._answer = answer

        def done(reply: Reply) -> None:
            assert not reply.absent
            answer.set_result(reply.data)

        ask = Ask(do.addr, do.size, read=do.value is None and not do.text, data=do.value or 0,
                  count=len(do.text) or 1, payload=do.text or None)  # fmt: skip
        self._loop.call_soon_threadsafe(self._unplugd.ask, ask, done)

    def end(self) -> int:
        return self._answer.result(PATIENCE)


@pytest.fixture
def daemon(run: Run) -> Daemon:
    blacklist = {"entry": [{"product": "linux", "build": 666}]}
    return run(merged(embedded(*DOMIDS.values()), {"blacklist": blacklist, "log": {"flush_after": 60.0}}))


@pytest.fixture(params=["python", "c", "attach"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Path], Client]]:
    """Makes clients of one kind."""
    with ExitStack() as stack:
        match request.param:
            case "python":
                yield lambda path: Python(path, stack)
            case "attach":
                yield lambda path: Attach(path, stack)
            case _:
                if shutil.which("gcc") is None:
                    pytest.skip("gcc is not installed")
                binary = tmp_path / "probe"
                subprocess.run(["gcc", *STRICT.split(), CLIENTS / "probe.c", "-o", binary], check=True)
                yield lambda path: C(binary, path, stack)


def test_an_access_of_each_kind_outlives_unplugd(
    daemon: Daemon, make: Callable[[Path], Client], request: pytest.FixtureRequest
) -> None:
    # What unplugd-attach tells of a reset is that there is a new domain, with a socket of its own.
    kinds = {name: kind for name, kind in KINDS.items() if "attach" not in request.node.name or name != "reset"}
    clients = {name: make(daemon.socket(DOMIDS[name])) for name in kinds}

    def ask(client: Client, do: Do) -> int:
        client.begin(do)
        return client.end()

    for name, kind in kinds.items():
        for do in kind.before:
            ask(clients[name], do)
    os.kill(daemon.pid, signal.SIGSTOP)
    for name, kind in kinds.items():
        clients[name].begin(kind.access)
    time.sleep(0.3)  # for all of them to be sent; what is not goes to the next process alone, which is right as well
    daemon.kill()
    daemon.start()
    for name, kind in kinds.items():
        assert clients[name].end() == kind.answer, name
        for do, answer in kind.after:
            assert ask(clients[name], do) == answer, name
    for name, kind in kinds.items():
        if kind.line:
            eventually(partial(daemon.guest_lines, f"vm{DOMIDS[name]}"), [kind.line].__eq__)
