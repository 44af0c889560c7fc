"""Carries out the accesses of one domain: gives the steps of plan.py to the parts that can do them.

Each vCPU has at most one access in flight; accesses of different vCPUs run at the same time. Nothing here blocks: a
step that takes time gets a callback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from unplugd.attach.plan import (
    Ask,
    Brought,
    Locate,
    Plan,
    ReadConfig,
    ReadGuest,
    ReadQemu,
    Reply,
    Step,
    WriteConfig,
    WriteGuest,
    WriteQemu,
    serve,
)
from unplugd.attach.slots import Access


class AsksUnplugd(Protocol):
    """unplugd.Unplugd."""

    def ask(self, ask: Ask, done: Callable[[Reply], None]) -> None:
        """Send a request; `done` is called later, with the answer."""


class DrivesQemu(Protocol):
    """qemu.Monitor."""

    async def write(self, port: int, size: int, value: int) -> None:
        """Write a port of QEMU; returns when QEMU has done it."""

    async def read(self, port: int, size: int) -> int:
        """Read a port of QEMU."""


class HasPlatform(Protocol):
    """platform.PlatformBar."""

    def locate(self, port: int, size: int) -> int | None:
        """The offset of an access in the BAR; None when it lies elsewhere."""

    async def read(self, port: int, size: int) -> int:
        """Read a port beside the BAR."""

    async def write(self, port: int, size: int, value: int) -> None:
        """Write a port beside the BAR."""

    async def config_read(self, register: int, size: int) -> int:
        """Read the device's configuration space."""

    async def config_write(self, register: int, size: int, value: int) -> None:
        """Write the device's configuration space."""


class HasMemory(Protocol):
    """guestmem.GuestMemory."""

    def read(self, address: int, length: int) -> bytes:
        """Bytes of guest-physical memory."""

    def write(self, address: int, data: bytes) -> None:
        """Write guest-physical memory."""


class Agent:
    """Serves accesses. When one is done, `answer` is called with the vCPU and the value for its slot.

    `failed` is called with an unexpected exception. Its access has no answer then, so the process must end; the next
    process answers the access.
    """

    def __init__(
        self,
        unplugd: AsksUnplugd,
        qemu: DrivesQemu,
        platform: HasPlatform,
        memory: HasMemory,
        answer: Callable[[int, int | None], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._unplugd = unplugd
        self._qemu = qemu
        self._platform = platform
        self._memory = memory
        self._answer = answer
        self._failed = failed
        self._tasks: set[asyncio.Task[None]] = set()
        self.busy: set[int] = set()
        """The vCPUs whose access has no answer yet."""

    def take(self, vcpu: int, access: Access) -> None:
        """Begin with an access."""
        self.busy.add(vcpu)
        self._advance(vcpu, serve(access), None)

    def _advance(self, vcpu: int, plan: Plan, brought: Brought) -> None:
        try:
            while True:
                step = plan.send(brought)
                match step:
                    case ReadGuest(address, length):
                        brought = self._memory.read(address, length)
                    case WriteGuest(address, data):
                        self._memory.write(address, data)
                        brought = None
                    case Locate(port, size):
                        brought = self._platform.locate(port, size)
                    case Ask():
                        self._unplugd.ask(step, partial(self._advance, vcpu, plan))
                        return
                    case WriteQemu() | ReadQemu() | ReadConfig() | WriteConfig():
                        self._start(self._drive(vcpu, plan, step))
                        return
        except StopIteration as stop:
            self.busy.discard(vcpu)
            self._answer(vcpu, stop.value)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    async def _drive(self, vcpu: int, plan: Plan, step: Step) -> None:
        brought: Brought = None
        match step:
            case WriteQemu(port, size, value, beside):
                await (self._platform if beside else self._qemu).write(port, size, value)
            case ReadQemu(port, size, beside):
                brought = await (self._platform if beside else self._qemu).read(port, size)
            case ReadConfig(register, size):
                brought = await self._platform.config_read(register, size)
            case WriteConfig(register, size, value):
                await self._platform.config_write(register, size, value)
            case _:
                raise AssertionError(step)
        self._advance(vcpu, plan, brought)
