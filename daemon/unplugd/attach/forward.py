"""Passes product and build number of a driver that may run on to QEMU, which would hear nothing of it otherwise.

The QEMU of XenServer and XCP-ng keeps both numbers and sends an event, from which their toolstack knows what the guest
can do. Other QEMUs ignore them. A driver that is blacklisted is not passed on.

The guest never waits for this. It has its answer before anything here begins; unplug orders go first; and a QEMU that
does not take the numbers in time does not get them. Nothing is passed on twice: a new process waits for the driver's
next announcement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from unplugd.attach.plan import Ask, Reply
from unplugd.attach.qemu import MonitorFailure
from unplugd.core.protocol import MAGIC

PAUSE = 0.5
"""Seconds between a verdict and the first write to QEMU. A driver's unplug masks follow its build number at once, and
their orders go first. Also the shortest time between two drivers of a guest that announces in a loop; the last one of
this time is passed on."""
DEADLINE = 15.0
"""Seconds after which a driver is not passed on any more."""
RETRY = 1.0
"""Seconds between two attempts."""

_PRODUCT = 0x12, 2
"""Port and size of a product number."""
_BUILD = 0x10, 4
_MAGIC = Ask(0x10, 2, read=True)


class AsksUnplugd(Protocol):
    """unplugd.Unplugd."""

    def ask(self, ask: Ask, done: Callable[[Reply], None]) -> None:
        """Send a request; `done` is called later, with the answer."""


class TriesQemu(Protocol):
    """qemu.Monitor."""

    async def attempt(self, port: int, size: int, value: int) -> None:
        """Write a port of QEMU, or raise MonitorFailure soon."""


@dataclass(frozen=True, slots=True)
class Driver:
    """What a driver announced."""

    product: int
    build: int


def written(ask: Ask) -> int | None:
    """The value that a port has after a request: of a string, its last element. None for a read."""
    if ask.read:
        return None
    if ask.payload is None:
        return ask.data
    return int.from_bytes(ask.payload[-ask.size:], "little")


class Forward:
    """Stands between the agent and unplugd, and sees what the driver announces.

    `report` gets a text if QEMU does not take the numbers, once until it does. `failed` gets an unexpected exception.
    """

    def __init__(
        self,
        unplugd: AsksUnplugd,
        qemu: TriesQemu,
        report: Callable[[str], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._unplugd = unplugd
        self._qemu = qemu
        self._report = report
        self._failed = failed
        self._product = 0
        self._next: Driver | None = None
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    def ask(self, ask: Ask, done: Callable[[Reply], None]) -> None:
        """Send a request, as unplugd.Unplugd does."""
        value = written(ask)
        if value is not None and (ask.port, ask.size) == _PRODUCT:
            self._product = value
        elif value is not None and (ask.port, ask.size) == _BUILD and self._product:
            done = partial(self._judged, Driver(self._product, value), done)
        self._unplugd.ask(ask, done)

    def _judged(self, driver: Driver, done: Callable[[Reply], None], reply: Reply) -> None:
        """unplugd has its verdict. Which one it is, it says by the magic number."""
        done(reply)
        if reply.absent:
            return
        self._next = driver
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    async def _work(self) -> None:
        while self._next is not None:
            await asyncio.sleep(PAUSE)
            driver, self._next = self._next, None
            if await self._may_run():
                await self._pass_on(driver)

    async def _may_run(self) -> bool:
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def done(reply: Reply) -> None:
            if not answer.done():
                answer.set_result(reply)

        self._unplugd.ask(_MAGIC, done)
        return (await answer).data == MAGIC

    async def _pass_on(self, driver: Driver) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DEADLINE
        while self._next is None:  # else there is a later driver
            try:
                await self._qemu.attempt(*_PRODUCT, driver.product)
                await self._qemu.attempt(*_BUILD, driver.build)
            except MonitorFailure as error:
                if loop.time() + RETRY > deadline:
                    self._give_up(driver, error)
                    return
                await asyncio.sleep(RETRY)
            else:
                self._failing = False
                return

    def _give_up(self, driver: Driver, error: MonitorFailure) -> None:
        if not self._failing:
            self._failing = True
            self._report(f"QEMU was not told of product {driver.product}, build {driver.build}: {error}")
