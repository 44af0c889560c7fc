from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from unplugd.attach import forward
from unplugd.attach.forward import Forward, written
from unplugd.attach.plan import Ask, Reply
from unplugd.attach.qemu import MonitorFailure


class FakeUnplugd:
    """Answers at once: 0 to writes, `magic` to reads. With `absent`, as a port without a device."""

    def __init__(self, magic: int = 0x49D2, *, absent: bool = False) -> None:
        self.magic = magic
        self.absent = absent
        self.asked: list[Ask] = []

    def ask(self, ask: Ask, done: Callable[[Reply], None]) -> None:
        self.asked.append(ask)
        reply = Reply(self.magic if ask.read else 0, absent=self.absent)
        asyncio.get_running_loop().call_soon(done, reply)


class FakeQemu:
    """Takes writes, after `failures` that fail."""

    def __init__(self, failures: int = 0) -> None:
        self.written: list[tuple[int, int, int]] = []
        self.failures = failures
        self.attempts = 0

    async def attempt(self, port: int, size: int, value: int) -> None:
        self.attempts += 1
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise MonitorFailure("away")
        self.written.append((port, size, value))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter times."""
    monkeypatch.setattr(forward, "PAUSE", 0.01)
    monkeypatch.setattr(forward, "RETRY", 0.01)


def run(unplugd: FakeUnplugd, qemu: FakeQemu, work: Callable[[Forward], Awaitable[None]]) -> list[str]:
    said: list[str] = []
    failures: list[BaseException] = []

    async def main() -> None:
        passing = Forward(unplugd, qemu, said.append, failures.append)
        async with asyncio.timeout(30):
            await work(passing)
            await rest()

    asyncio.run(main())
    assert failures == []
    return said


async def rest() -> None:
    """Wait until nothing is being passed on."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)
        await asyncio.sleep(0)


async def write(passing: Forward, port: int, size: int, value: int) -> None:
    """One write of the guest, until its answer."""
    answered = asyncio.Event()
    passing.ask(Ask(port, size, value), lambda reply: answered.set())
    await answered.wait()


def test_a_driver_that_may_run_is_passed_on_after_its_answer() -> None:
    unplugd, qemu = FakeUnplugd(), FakeQemu()

    async def work(passing: Forward) -> None:
        await write(passing, 0x12, 2, 3)
        await write(passing, 0x10, 4, 1)
        assert qemu.attempts == 0
        await rest()

    assert run(unplugd, qemu, work) == []
    assert qemu.written == [(0x12, 2, 3), (0x10, 4, 1)]
    assert unplugd.asked == [Ask(0x12, 2, 3), Ask(0x10, 4, 1), Ask(0x10, 2, read=True)]


@pytest.mark.parametrize("magic", [0xD249, 0xFFFF])
def test_a_blacklisted_driver_is_not_passed_on(magic: int) -> None:
    qemu = FakeQemu()

    async def work(passing: Forward) -> None:
        await write(passing, 0x12, 2, 3)
        await write(passing, 0x10, 4, 1)

    run(FakeUnplugd(magic), qemu, work)
    assert qemu.attempts == 0


def test_without_unplugd_nothing_is_passed_on() -> None:
    unplugd, qemu = FakeUnplugd(absent=True), FakeQemu()

    async def work(passing: Forward) -> None:
        await write(passing, 0x12, 2, 3)
        await write(passing, 0x10, 4, 1)

    run(unplugd, qemu, work)
    assert (qemu.attempts, len(unplugd.asked)) == (0, 2)


@pytest.mark.parametrize("product", [(), (0,)])
def test_a_build_without_a_product_is_not_passed_on(product: tuple[int, ...]) -> None:
    unplugd, qemu = FakeUnplugd(), FakeQemu()

    async def work(passing: Forward) -> None:
        for number in product:
            await write(passing, 0x12, 2, number)
        await write(passing, 0x10, 4, 1)
        await write(passing, 0x10, 2, 3)  # an unplug mask
        await write(passing, 0x12, 1, 65)  # a log byte

    run(unplugd, qemu, work)
    assert (qemu.attempts, [ask for ask in unplugd.asked if ask.read]) == (0, [])


def test_a_guest_that_announces_in_a_loop_costs_qemu_little() -> None:
    unplugd, qemu = FakeUnplugd(), FakeQemu()

    async def work(passing: Forward) -> None:
        await write(passing, 0x12, 2, 3)
        for build in range(499):
            passing.ask(Ask(0x10, 4, build), lambda reply: None)
        await write(passing, 0x10, 4, 499)

    run(unplugd, qemu, work)
    assert qemu.written == [(0x12, 2, 3), (0x10, 4, 499)]


def test_an_announcement_is_passed_on_again() -> None:
    """A guest that resumes announces again, and QEMU would hear it without unplugd-attach."""
    qemu = FakeQemu()

    async def work(passing: Forward) -> None:
        for _ in range(2):
            await write(passing, 0x12, 2, 0xFFFF)
            await write(passing, 0x10, 4, 0x9035E)
            await rest()

    run(FakeUnplugd(), qemu, work)
    assert qemu.written == 2 * [(0x12, 2, 0xFFFF), (0x10, 4, 0x9035E)]


def test_a_monitor_that_is_away_is_tried_again() -> None:
    qemu = FakeQemu(failures=3)

    async def work(passing: Forward) -> None:
        await write(passing, 0x12, 2, 3)
        await write(passing, 0x10, 4, 1)

    assert run(FakeUnplugd(), qemu, work) == []
    assert qemu.written == [(0x12, 2, 3), (0x10, 4, 1)]


def test_a_monitor_that_stays_away_is_given_up_and_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "DEADLINE", 0.05)
    qemu = FakeQemu(failures=1000)

    async def work(passing: Forward) -> None:
        await write(passing, 0x12, 2, 3)
        for build in (1, 2):
            await write(passing, 0x10, 4, build)
            await rest()
        qemu.failures = 0
        await write(passing, 0x10, 4, 3)
        await rest()
        qemu.failures = 1000
        await write(passing, 0x10, 4, 4)

    said = run(FakeUnplugd(), qemu, work)
    assert said == [f"QEMU was not told of product 3, build {build}: away" for build in (1, 4)]
    assert qemu.written == [(0x12, 2, 3), (0x10, 4, 3)]


def test_a_later_driver_replaces_one_that_qemu_did_not_take() -> None:
    qemu = FakeQemu(failures=1000)

    async def work(passing: Forward) -> None:
        await write(passing, 0x12, 2, 3)
        await write(passing, 0x10, 4, 1)
        while not qemu.attempts:
            await asyncio.sleep(0.001)
        await write(passing, 0x12, 2, 2)
        await write(passing, 0x10, 4, 7)
        qemu.failures = 0

    assert run(FakeUnplugd(), qemu, work) == []
    assert qemu.written == [(0x12, 2, 2), (0x10, 4, 7)]


def test_of_a_string_the_last_element_counts() -> None:
    assert written(Ask(0x12, 2, count=2, payload=b"\x01\x00\xff\xff")) == 0xFFFF
    assert written(Ask(0x10, 4, count=1, payload=b"\x5e\x03\x09\x00")) == 0x9035E
    assert written(Ask(0x10, 2, read=True, payload=b"")) is None
    assert written(Ask(0x10, 2, 3)) == 3


def test_an_unexpected_exception_ends_the_process() -> None:
    class Broken(FakeQemu):
        async def attempt(self, port: int, size: int, value: int) -> None:
            raise AssertionError("broken")

    failures: list[BaseException] = []

    async def main() -> None:
        passing = Forward(FakeUnplugd(), Broken(), lambda text: None, failures.append)
        await write(passing, 0x12, 2, 3)
        await write(passing, 0x10, 4, 1)
        async with asyncio.timeout(30):
            while not failures:
                await asyncio.sleep(0.001)

    asyncio.run(main())
    assert str(failures[0]) == "broken"
