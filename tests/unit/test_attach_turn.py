"""The compiled part of a domain's process against plan.py, slots.py and unplugd.py: same accesses, same bytes."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unplugd.attach import turn
from unplugd.attach.plan import Ask, Reply, serve
from unplugd.attach.slots import PAGE_SIZE, SLOT_SIZE, Access, Kind, Slots, SlotState
from unplugd.attach.unplugd import encode

if TYPE_CHECKING:
    from unplugd.attach._turn import Turn

compiled = pytest.importorskip("unplugd.attach._turn")

LAYOUT = struct.Struct("<QQIIIHBB")
READ, STRING = 0x20, 0x10


@dataclass
class Host:
    """Xen's page and event channels, and unplugd's end of the socket. vCPU n has port 200 + n."""

    page: bytearray
    events: socket.socket
    xen: socket.socket
    unplugd: socket.socket
    client: socket.socket
    turn: Turn

    def request(self, vcpu: int, port: int, size: int, data: int = 0, bits: int = 0, count: int = 1,
                kind: int = 0) -> None:
        LAYOUT.pack_into(self.page, vcpu * SLOT_SIZE, port, data, count, size, 100 + vcpu, 0, bits | 1, kind)
        self.xen.send(struct.pack("<I", 200 + vcpu))

    def respond(self, data: int = 0, state: int = 3) -> None:
        """What unplugd will answer next."""
        self.unplugd.send(LAYOUT.pack(0, data, 1, 1, 0, 0, state, 0))

    def asked(self) -> bytes:
        """All that unplugd was sent."""
        try:
            return self.unplugd.recv(4096)
        except BlockingIOError:
            return b""

    def take(self) -> tuple[list[int], int, bytes]:
        return self.turn.take(self.client.fileno())

    def state(self, vcpu: int) -> int:
        return Slots(memoryview(self.page)).state(vcpu)

    def data(self, vcpu: int) -> int:
        return int.from_bytes(self.page[vcpu * SLOT_SIZE + 8:vcpu * SLOT_SIZE + 16], "little")


def make() -> Host:
    events, xen = socket.socketpair()
    unplugd, client = socket.socketpair()
    for end in (events, xen, unplugd, client):
        end.setblocking(False)
    page = bytearray(PAGE_SIZE)
    ports = {vcpu: 200 + vcpu for vcpu in (0, 1, 127)}
    return Host(page, events, xen, unplugd, client, compiled.Turn(memoryview(page), events.fileno(), ports, False))


def end(host: Host) -> None:
    for one in (host.events, host.xen, host.unplugd, host.client):
        one.close()


@pytest.fixture
def host() -> Iterator[Host]:
    one = make()
    yield one
    end(one)


def test_a_read_is_answered(host: Host) -> None:
    host.request(127, 0x10, 2, bits=READ)
    host.respond(0xFFFF_49D2)
    assert host.take() == ([], -1, b"")
    assert (host.state(127), host.data(127)) == (SlotState.RESPONSE, 0x49D2)
    assert host.xen.recv(100) == struct.pack("<I", 327)  # unmasked
    assert host.asked() == encode(Ask(0x10, 2, read=True))[0]


def test_a_write_leaves_the_slot_as_it_was(host: Host) -> None:
    host.request(0, 0x12, 1, data=0xFFFF_FF41)
    host.respond()
    assert host.take() == ([], -1, b"")
    assert (host.state(0), host.data(0)) == (SlotState.RESPONSE, 0xFFFF_FF41)
    assert host.asked() == encode(Ask(0x12, 1, data=0x41))[0]


def test_several_vcpus_take_turns(host: Host) -> None:
    host.request(0, 0x10, 2, bits=READ)
    host.request(1, 0x12, 1, bits=READ)
    host.request(5, 0x12, 1, bits=READ)  # a port that is nobody's
    host.respond(0xD249)
    host.respond(1)
    assert host.take() == ([], -1, b"")
    assert [host.data(0), host.data(1)] == [0xD249, 1]


def test_an_answer_that_is_late_is_left_to_the_event_loop(host: Host) -> None:
    host.request(0, 0x10, 2, bits=READ)
    host.request(1, 0x10, 2, bits=READ)
    host.unplugd.send(b"some")
    assert host.take() == ([1], 0, b"some")
    assert [host.state(0), host.state(1)] == [SlotState.IN_PROCESS] * 2
    assert host.asked() == encode(Ask(0x10, 2, read=True))[0]


@pytest.mark.parametrize(("state", "data", "bits"), [(1, 0, READ), (3, 3, 0)])
def test_a_response_that_is_odd_is_for_python(host: Host, state: int, data: int, bits: int) -> None:
    host.request(0, 0x12, 1, bits=bits)
    host.respond(data, state)
    handed, waiting, received = host.take()
    assert (handed, waiting, len(received)) == ([], 0, 32)
    assert host.state(0) == SlotState.IN_PROCESS


def test_a_connection_that_is_gone_is_for_python(host: Host) -> None:
    host.unplugd.close()
    host.request(0, 0x10, 2, bits=READ)
    assert host.take() == ([0], -1, b"")
    host.request(1, 0x10, 2, bits=READ)
    assert host.take() == ([1], -1, b"")


def test_events_without_a_request(host: Host) -> None:
    assert host.take() == ([], -1, b"")
    host.xen.send(struct.pack("<I", 200))
    assert host.take() == ([], -1, b"")
    assert host.asked() == b""


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="4096"):
        compiled.Turn(memoryview(bytearray(10)), 0, {}, False)
    with pytest.raises(ValueError, match="no such"):
        compiled.Turn(memoryview(bytearray(4096)), 0, {128: 1}, False)


def test_a_kernel_that_refuses_is_an_error(host: Host) -> None:
    real = compiled.Turn(memoryview(host.page), host.events.fileno(), {0: 200})
    host.request(0, 0x10, 2, bits=READ)
    host.respond(1)
    with pytest.raises(OSError, match="ioctl"):  # a socket knows no IOCTL_EVTCHN_NOTIFY
        real.take(host.client.fileno())


def test_pure_python_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNPLUGD_PURE", "1")
    assert turn.compiled(memoryview(bytearray(4096)), 0, {}) is None
    monkeypatch.delenv("UNPLUGD_PURE")
    assert turn.compiled(memoryview(bytearray(4096)), 0, {}) is not None


@given(
    st.integers(0x0D, 0x16), st.sampled_from([0, 1, 2, 3, 4, 8]), st.integers(0, 2**64 - 1), st.booleans(),
    st.booleans(), st.sampled_from([1, 1, 1, 2]),
    st.sampled_from([Kind.PIO, Kind.PIO, Kind.PCI_CONFIG, Kind.INVALIDATE]),
    st.integers(0, 2**64 - 1),
)  # fmt: skip
def test_it_does_what_the_plan_does(
    port: int, size: int, data: int, read: bool, string: bool, count: int, kind: int, value: int
) -> None:
    host = make()
    try:
        host.request(0, port, size, data, READ * read | STRING * string, count, kind)
        access = Slots(memoryview(bytearray(host.page))).take(0)
        host.respond(value if read else 0)
        handed, waiting, _ = host.take()
        assert waiting == -1
        if handed:
            assert handed == [0]
            assert host.asked() == b""
            assert host.state(0) == SlotState.IN_PROCESS
            assert Slots(memoryview(host.page)).take(0) == access
            # what is handed over is what is not one question to unplugd without a consequence
            assert not (access.kind == Kind.PIO and port == 0x12 and size in (1, 2) and count == 1 and not string)
            return
        step, result = plan(access, Reply(value if read else 0))
        assert host.asked() == encode(step)[0]
        expected = bytearray(host.page)
        if result is not None:
            expected[8:16] = result.to_bytes(8, "little")
        assert host.page == expected
    finally:
        end(host)


def plan(access: Access, reply: Reply) -> tuple[Ask, int | None]:
    """The only step of a plain access, and what goes into the slot."""
    steps = serve(access)
    step = steps.send(None)
    assert isinstance(step, Ask)
    with pytest.raises(StopIteration) as stop:
        steps.send(reply)
    result: int | None = stop.value.value
    return step, result
