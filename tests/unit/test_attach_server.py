from __future__ import annotations

from collections import deque
from errno import EEXIST, EINVAL, ENOENT, EPERM
from typing import cast

import pytest

from tests.lab.frames import FRAME
from unplugd.attach import server as server_module
from unplugd.attach.server import IoreqServer, NotYet
from unplugd.attach.slots import PAGE_SIZE, SLOT_SIZE, SlotState
from unplugd.attach.xen import EventChannels, ForeignMemory, XenDeviceModel, XenError


class FakeXen:
    """One domain's ioreq servers, as the three libraries see them. vCPU n has event channel 100 + n."""

    domid = 7
    fd = -1

    def __init__(self, *, vcpus: int = 1, servers: int = 1) -> None:
        self.calls: list[str] = []
        self.pages: dict[int, bytearray] = {number: self._page(vcpus) for number in range(servers)}
        self.vcpus = vcpus
        self.ranges: set[tuple[int, int, int]] = set()
        self.events: deque[int] = deque()
        self.notified: list[int] = []
        self.unmasked: list[int] = []

    def _page(self, vcpus: int) -> bytearray:
        page = bytearray(PAGE_SIZE)
        for vcpu in range(vcpus):
            FRAME.pack_into(page, vcpu * SLOT_SIZE, 0, 0, 0, 0, 100 + vcpu, 0, 0, 0)
        return page

    def request(self, server: int, vcpu: int, state: SlotState = SlotState.READY) -> None:
        """The vCPU reads 2 bytes at 0x10."""
        FRAME.pack_into(self.pages[server], vcpu * SLOT_SIZE, 0x10, 0, 1, 2, 100 + vcpu, 0, state | 0x20, 0)
        self.events.append(200 + vcpu)

    def taken(self, server: int, vcpu: int) -> int:
        """The vCPU takes its answer."""
        at = vcpu * SLOT_SIZE
        data, bits = FRAME.unpack_from(self.pages[server], at)[1], self.pages[server][at + 30]
        assert bits & 0xF == SlotState.RESPONSE
        self.pages[server][at + 30] = bits & ~0xF
        return int(data)

    def create_server(self) -> int:
        number = next(number for number in range(8) if number not in self.pages)
        self.pages[number] = self._page(self.vcpus)
        self.calls.append(f"create {number}")
        return number

    def destroy_server(self, server: int) -> None:
        del self.pages[server]
        self.calls.append(f"destroy {server}")

    def enable_server(self, server: int, *, enabled: bool) -> None:
        self.calls.append(f"{'enable' if enabled else 'disable'} {server}")

    def map_ports(self, server: int, first: int, last: int) -> None:
        if (server, first, last) in self.ranges:
            raise XenError("map", EEXIST)
        self.ranges.add((server, first, last))
        self.calls.append(f"map {server}")

    def unmap_ports(self, server: int, first: int, last: int) -> None:
        if (server, first, last) not in self.ranges:
            raise XenError("unmap", ENOENT)
        self.ranges.remove((server, first, last))
        self.calls.append(f"unmap {server}")

    def map_device(self, server: int, bus: int, slot: int, function: int) -> None:
        self.calls.append(f"device {server} {bus:02x}:{slot:02x}.{function}")

    def map_ioreq_page(self, server: int) -> memoryview:
        if server not in self.pages:
            raise XenError("map_resource", ENOENT)
        return memoryview(self.pages[server])

    def bind(self, domid: int, remote_port: int) -> int:
        assert domid == self.domid
        self.calls.append(f"bind {remote_port}")
        return remote_port + 100

    def pending(self) -> int | None:
        return self.events.popleft() if self.events else None

    def unmask(self, port: int) -> None:
        self.unmasked.append(port)

    def notify(self, port: int) -> None:
        self.notified.append(port)


def serve(xen: FakeXen, known: int | None = None) -> IoreqServer:
    return IoreqServer(
        cast(XenDeviceModel, xen), cast(ForeignMemory, xen), cast(EventChannels, xen), [(0x0D, 0x16)], (0, 2, 0),
        lambda number: xen.calls.append(f"keep {number}"), known,
    )  # fmt: skip


def idle(server: IoreqServer) -> bool:
    return server.idle


def test_the_id_is_kept_before_an_access_can_come() -> None:
    xen = FakeXen(vcpus=2)
    server = serve(xen)
    assert xen.calls == ["create 1", "keep 1", "map 1", "device 1 00:02.0", "enable 1", "bind 100", "bind 101"]
    assert server.vcpus == 2
    assert not server.taken_over
    assert server.accesses() == []


def test_accesses_are_answered() -> None:
    xen = FakeXen(vcpus=2)
    server = serve(xen)
    xen.request(1, 1)
    xen.request(1, 0)
    xen.events.append(200)  # one event too many
    xen.events.append(999)
    assert [(vcpu, access.port) for vcpu, access in server.accesses()] == [(1, 0x10), (0, 0x10)]
    assert server.accesses() == []
    server.answer(1, 0x49D2)
    assert xen.notified == [201]
    assert xen.taken(1, 1) == 0x49D2


def test_a_server_left_behind_is_taken_over_with_what_is_pending() -> None:
    xen = FakeXen(vcpus=4)
    serve(xen)
    xen.request(1, 0, SlotState.READY)
    xen.request(1, 1, SlotState.IN_PROCESS)
    xen.request(1, 2, SlotState.RESPONSE)
    xen.events.clear()
    xen.calls.clear()
    server = serve(xen, known=1)
    assert server.taken_over
    assert "create 2" not in xen.calls
    assert xen.calls[:2] == ["device 1 00:02.0", "enable 1"]
    assert [vcpu for vcpu, _ in server.left_over()] == [0, 1]
    assert xen.notified == [202, 203]  # answered, perhaps not told; and one that waits for nothing
    xen.events.append(200)
    assert server.accesses() == []  # in process already


def test_what_somebody_else_left_is_found_but_for_busy_vcpus() -> None:
    xen = FakeXen(vcpus=6)
    server = serve(xen)
    for vcpu, state in enumerate((SlotState.READY, SlotState.IN_PROCESS, SlotState.RESPONSE, SlotState.READY,
                                  SlotState.IN_PROCESS)):
        xen.request(1, vcpu, state)
    assert [(vcpu, access.port) for vcpu, access in server.left_over({1, 3})] == [(0, 0x10), (4, 0x10)]
    assert xen.unmasked == [200, 201, 202, 203, 204, 205]
    assert xen.notified == [202, 205]
    states = [xen.pages[1][vcpu * SLOT_SIZE + 30] & 0xF for vcpu in range(6)]
    assert states == [SlotState.IN_PROCESS] * 2 + [SlotState.RESPONSE, SlotState.READY, SlotState.IN_PROCESS, 0]
    server.answer(4, 7)
    assert xen.taken(1, 4) == 7


def test_an_access_that_is_handed_over_is_in_process() -> None:
    xen = FakeXen(vcpus=2)
    server = serve(xen)
    xen.request(1, 1, SlotState.IN_PROCESS)
    assert server.access(1).port == 0x10
    assert xen.pages[1][SLOT_SIZE + 30] & 0xF == SlotState.IN_PROCESS
    assert server.ports == {0: 200, 1: 201}


class Held(FakeXen):
    """Somebody has a predecessor's event channels still, for so many attempts to bind one."""

    def __init__(self, attempts: int, errno: int = EINVAL) -> None:
        super().__init__(vcpus=2)
        self.attempts = attempts
        self.errno = errno

    def bind(self, domid: int, remote_port: int) -> int:
        port = super().bind(domid, remote_port)
        if self.attempts > 0:
            self.attempts -= 1
            raise XenError("xenevtchn_bind_interdomain", self.errno)
        return port


def test_event_channels_are_bound_when_they_are_let_go() -> None:
    xen = Held(0)
    serve(xen)
    xen.calls.clear()
    xen.attempts = 3
    server = serve(xen, known=1)
    assert server.ports == {0: 200, 1: 201}
    assert xen.calls[2:] == ["bind 100"] * 4 + ["bind 101"]


def test_a_new_servers_event_channels_are_nobodys() -> None:
    xen = Held(1)
    with pytest.raises(XenError):
        serve(xen)
    assert xen.calls.count("bind 100") == 1


def test_other_errors_of_event_channels_are_final() -> None:
    xen = Held(0, EPERM)
    serve(xen)
    xen.attempts = 1
    with pytest.raises(XenError) as caught:
        serve(xen, known=1)
    assert caught.value.errno == EPERM
    assert xen.attempts == 0
    assert xen.calls.count("bind 100") == 2


def test_event_channels_that_are_never_let_go_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LET_GO", 0.02)
    xen = Held(0)
    serve(xen)
    xen.calls.clear()
    xen.attempts = 1000
    with pytest.raises(XenError) as caught:
        serve(xen, known=1)
    assert caught.value.errno == EINVAL
    assert 2 <= xen.calls.count("bind 100") < 1000
    assert xen.calls.count("bind 101") == 0


def test_a_kept_id_without_a_server_is_no_use() -> None:
    xen = FakeXen()
    server = serve(xen, known=5)
    assert (server.id, server.taken_over) == (1, False)


def test_a_server_before_qemus_would_be_of_no_use() -> None:
    xen = FakeXen(servers=0)
    with pytest.raises(NotYet):
        serve(xen)
    assert xen.calls == ["create 0", "destroy 0"]


def test_ports_are_handed_back_when_nobody_waits() -> None:
    xen = FakeXen()
    server = serve(xen)
    xen.request(1, 0)
    server.accesses()
    with pytest.raises(RuntimeError):
        server.destroy()
    server.disable()
    assert not idle(server)
    with pytest.raises(RuntimeError):
        server.destroy()
    server.answer(0, 1)
    assert not idle(server)
    xen.taken(1, 0)
    assert idle(server)
    server.destroy()
    assert xen.calls[-2:] == ["disable 1", "destroy 1"]


def test_ports_come_and_go() -> None:
    xen = FakeXen()
    server = serve(xen)
    for _ in range(2):  # the second time there is nothing to do
        server.own(0xC000, 0xC0FF)
    assert (1, 0xC000, 0xC0FF) in xen.ranges
    for _ in range(2):
        server.disown(0xC000, 0xC0FF)
    assert xen.ranges == {(1, 0x0D, 0x16)}


def test_errors_of_xen_are_said() -> None:
    class Refusing(FakeXen):
        def create_server(self) -> int:
            raise XenError("xendevicemodel_create_ioreq_server", EINVAL)

    with pytest.raises(XenError) as caught:
        serve(Refusing())
    assert caught.value.errno == EINVAL
