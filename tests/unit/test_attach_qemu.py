from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable

import pytest

from unplugd.attach import qemu
from unplugd.attach.qemu import Monitor, MonitorFailure, read_command, read_result, write_command


class FakeQemu:
    """The monitor of a QEMU whose ports are a dictionary. `refuse` connections are refused first, then `mute` ones
    say nothing."""

    def __init__(self, *, refuse: int = 0, mute: int = 0, drop_after: int | None = None) -> None:
        self.ports: dict[int, int] = {}
        self.commands: list[str] = []
        self.connections = 0
        self.refuse = refuse
        self.mute = mute
        self.drop_after = drop_after
        self.open = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def connect(self) -> socket.socket:
        if self.refuse:
            self.refuse -= 1
            raise ConnectionRefusedError("no")
        self.connections += 1
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._tasks.append(asyncio.create_task(self._serve(theirs)))
        return ours

    async def finish(self) -> None:
        """Let both ends of every connection close."""
        async with asyncio.timeout(30):
            await asyncio.gather(*self._tasks)
        for _ in range(5):
            await asyncio.sleep(0)

    async def _serve(self, end: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=end)
        self.open += 1
        if self.mute:
            self.mute -= 1
        else:
            writer.write(b'{"QMP": {"version": {}, "capabilities": []}}\r\n')
        while line := await reader.readline():
            request = json.loads(line)
            if request["execute"] == "qmp_capabilities":
                writer.write(b'{"return": {}}\r\n')
                continue
            if request["execute"] == "query-pci":
                writer.write(b'{"return": [{"bus": 0, "devices": []}]}\r\n')
                continue
            command = request["arguments"]["command-line"]
            self.commands.append(command)
            if self.drop_after == len(self.commands):
                break
            writer.write(b'{"timestamp": {}, "event": "DEVICE_DELETED"}\r\n')
            writer.write(json.dumps({"return": self._run(command)}).encode() + b"\r\n")
        writer.close()
        await writer.wait_closed()
        self.open -= 1

    def _run(self, command: str) -> str:
        verb, form, port, *value = command.split()
        if verb == "o":
            self.ports[int(port, 16)] = int(value[0], 16)
            return ""
        letter, digits = {"/b": ("b", 2), "/h": ("w", 4), "/w": ("l", 8)}[form]
        return f"port{letter}[0x{int(port, 16):04x}] = 0x{self.ports.get(int(port, 16), 0xFF):0{digits}x}\r\n"


def run(fake: FakeQemu, work: Callable[[Monitor], Awaitable[object]]) -> list[str]:
    said: list[str] = []

    async def main() -> None:
        monitor = Monitor(fake.connect, said.append)
        async with asyncio.timeout(30):
            await work(monitor)
        monitor.close()
        await fake.finish()

    asyncio.run(main())
    return said


def test_commands() -> None:
    assert write_command(0x10, 2, 3) == "o /h 0x10 0x3"
    assert write_command(0xD, 1, 0xFF) == "o /b 0xd 0xff"
    assert read_command(0xE, 2) == "i /h 0xe"
    assert read_command(0xC, 4) == "i /w 0xc"
    assert read_result("portw[0x0010] = 0x49d2\r\n") == 0x49D2
    with pytest.raises(MonitorFailure):
        read_result("unknown command: 'i'")


def test_ports_are_written_and_read_over_one_connection() -> None:
    fake = FakeQemu()

    async def work(monitor: Monitor) -> None:
        await monitor.write(0x10, 2, 3)
        await monitor.write(0x0D, 1, 0xAB)
        assert await monitor.read(0x0D, 1) == 0xAB
        assert await monitor.read(0x0E, 2) == 0xFF

    assert run(fake, work) == []
    assert fake.ports == {0x10: 3, 0x0D: 0xAB}
    assert fake.connections == 1


def test_qmp_commands_are_answered_beside_ports() -> None:
    fake = FakeQemu()

    async def work(monitor: Monitor) -> None:
        assert await monitor.query("query-pci") == [{"bus": 0, "devices": []}]
        assert await monitor.read(0x0E, 2) == 0xFF

    assert run(fake, work) == []
    assert fake.connections == 1


def test_many_at_once_take_turns() -> None:
    fake = FakeQemu()

    async def work(monitor: Monitor) -> None:
        await asyncio.gather(*(monitor.write(port, 1, port) for port in range(20)))

    run(fake, work)
    assert fake.ports == {port: port for port in range(20)}


def test_an_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "IDLE", 0.05)
    fake = FakeQemu()

    async def work(monitor: Monitor) -> None:
        await monitor.write(0x10, 2, 3)
        while fake.open:
            await asyncio.sleep(0.01)
        await monitor.write(0x10, 2, 1)

    run(fake, work)
    assert fake.connections == 2


def test_what_fails_is_tried_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "ATTEMPT", 0.3)
    fake = FakeQemu(refuse=2, mute=1, drop_after=1)

    async def work(monitor: Monitor) -> None:
        await monitor.write(0x10, 2, 3)

    said = run(fake, work)
    assert fake.ports == {0x10: 3}
    assert fake.commands == ["o /h 0x10 0x3"] * 2
    assert len(said) == 2, said
    assert said[-1].endswith("is done")


def test_an_attempt_fails_in_time_and_the_next_command_has_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "ONCE", 0.2)
    fake = FakeQemu(refuse=1, mute=1)

    async def work(monitor: Monitor) -> None:
        with pytest.raises(MonitorFailure, match="no"):
            await monitor.attempt(0x12, 2, 3)
        with pytest.raises(MonitorFailure, match="TimeoutError"):
            await monitor.attempt(0x12, 2, 3)
        await monitor.attempt(0x12, 2, 3)
        assert await monitor.read(0x12, 2) == 3

    assert run(fake, work) == []
    assert fake.commands == ["o /h 0x12 0x3", "i /h 0x12"]


def test_an_attempt_waits_only_so_long_for_an_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "ONCE", 0.2)
    fake = FakeQemu(refuse=1000)

    async def work(monitor: Monitor) -> None:
        order = asyncio.create_task(monitor.write(0x10, 2, 3))
        await asyncio.sleep(0)
        with pytest.raises(MonitorFailure):
            await monitor.attempt(0x12, 2, 3)
        fake.refuse = 0
        await order

    assert len(run(fake, work)) == 2
    assert fake.ports == {0x10: 3}
