"""Contract section 1, row by row, against the running daemon: what a device model sees on a domain's socket.

One daemon serves the whole module (the store is in its process); every test has a domain that nobody used before.
"""

from __future__ import annotations

import itertools
import os
import random
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.lab.daemon import Daemon, Wire, embedded, eventually, running
from tests.lab.frames import FRAME, RESET, frame, outs

DOMIDS = range(1, 100)
BAR = 0x10000
BLACKLIST = {
    "entry": [
        {"product": "xensource-windows", "build": 86451, "reason": "loses data"},
        {"product": "linux", "build": 0xFFFFFFFF},
        {"product": "linux", "build": 0x80000000},
        {"product": "experimental", "build": 666},
    ]
}


@dataclass
class Domain:
    """A domain of a running daemon that only this test uses."""

    daemon: Daemon
    domid: int
    stack: ExitStack = field(default_factory=ExitStack)

    def connect(self) -> Wire:
        return self.stack.enter_context(self.daemon.connect(self.domid))

    @property
    def state(self) -> dict[str, Any]:
        found = self.daemon.domain(self.domid)
        assert found is not None
        return found

    @property
    def lines(self) -> list[str]:
        return self.daemon.guest_lines(f"vm{self.domid}")

    def wait_for_record(self, pattern: str) -> str:
        return self.daemon.wait_for_record(rf"vm{self.domid} \(domain {self.domid}\): .*{pattern}")


Serve = Callable[..., Domain]


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """`serve(**config)` is a fresh domain of a daemon with this configuration; equal ones share the daemon."""
    daemons: dict[str, tuple[Daemon, Iterator[int]]] = {}
    with ExitStack() as stack:
        run = stack.enter_context(running())

        def domain(**config: Any) -> Domain:
            key = repr(config)
            if key not in daemons:
                changes = {"blacklist": BLACKLIST, **config}
                daemons[key] = run(embedded(*DOMIDS, **changes)), iter(DOMIDS)
            daemon, free = daemons[key]
            fresh = Domain(daemon, next(free))
            stack.callback(fresh.stack.close)
            return fresh

        yield domain


@pytest.fixture
def guest(serve: Serve) -> Iterator[Domain]:
    domain = serve()
    with domain.stack:
        yield domain


# --- the socket itself


def test_there_is_a_socket_for_each_domain_and_none_for_dom0(guest: Domain) -> None:
    status = guest.daemon.socket(guest.domid).stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_uid == 0
    assert not guest.daemon.socket(0).exists()
    assert stat.S_IMODE(guest.daemon.runtime.stat().st_mode) == 0o755
    assert stat.S_IMODE((guest.daemon.runtime / "control.sock").stat().st_mode) == 0o600


# --- frames


def test_opaque_fields_come_back(guest: Domain) -> None:
    wire = guest.connect()
    for request in (
        frame(read=True, eport=0xDEADBEEF, pad=0xCAFE, top=True, df=True),
        frame(0x12, 1, 0x41, eport=0xFFFFFFFF, pad=0xFFFF, top=True),
        frame(0x10, 2, 3, eport=1, pad=2, df=True),
        frame(0x77, 4, read=True, eport=7, pad=9, df=True, top=True),
    ):
        wire.ask(request)


def test_every_read_outside_the_table_is_all_ones(guest: Domain) -> None:
    wire = guest.connect()
    known = {(0x10, 2): 0x49D2, (0x12, 1): 1, (0x10, 1): 0, (BAR, 1): 0}
    addresses = [*range(0x40), 0x3F8, 0xFFFF, *range(BAR, BAR + 0x100)]
    for size in (1, 2, 4, 8):
        requests = [frame(addr, size, 0x1234567890, read=True, eport=addr) for addr in addresses]
        wire.send(b"".join(requests))
        for addr, request in zip(addresses, requests, strict=True):
            expected = known.get((addr, size), (1 << 8 * size) - 1)
            assert wire.answer(request) == expected, (hex(addr), size)


def test_every_write_outside_the_table_is_ignored(guest: Domain) -> None:
    wire = guest.connect()
    rows = {(0x10, 1), (0x10, 2), (0x10, 4), (0x12, 1), (0x12, 2), (BAR, 1), (BAR + 8, 1)}
    addresses = [*range(0x40), 0xFFFF, *range(BAR, BAR + 0x100)]
    before = guest.daemon.value("unplugd_ioreqs_total", kind="other") or 0
    ignored = [
        frame(addr, size, value)
        for size, addr, value in itertools.product((1, 2, 4, 8), addresses, (1, 2, 0xFF))
        if (addr, size) not in rows
    ]
    for at in range(0, len(ignored), 1000):
        wire.send(b"".join(ignored[at : at + 1000]))
        assert {wire.answer(request) for request in ignored[at : at + 1000]} == {0}
    assert guest.daemon.value("unplugd_ioreqs_total", kind="other") == before + len(ignored)
    state = guest.state
    assert (state["product"], state["build"], state["unplugged_mask"]) == (None, None, 0)
    assert (wire.read(0x10, 1), wire.read(0x10, 2)) == (0, 0x49D2)
    time.sleep(0.5)  # longer than flush_after: no log byte is waiting
    assert guest.lines == []


@pytest.mark.parametrize(
    ("request_bytes", "says"),
    [
        *((frame(read=True, state=state), "state") for state in (2, 3, 4, 5, 15)),
        *((frame(read=True, kind=kind), "type") for kind in (1, 2, 7, 8, 255)),
        (frame(read=True, count=0), "count"),
        (frame(0x12, 1, string=True, count=0), "count"),
        (frame(read=True, count=2), "count"),
        (frame(0x12, 1, 1, count=0xFFFFFFFF), "count"),
        *((frame(0x10, size, read=True), "size") for size in (0, 3, 5, 6, 7, 9, 16, 0x80000000, 0xFFFFFFFF)),
        (frame(0x12, 1, string=True, count=4097), "payload"),
        (frame(0x12, 1, string=True, count=0xFFFFFFFF), "payload"),
        (frame(0x12, 8, string=True, count=513), "payload"),
        (frame(0x10, 2, string=True, count=2049, read=True), "payload"),
        (frame(0x10, 4, string=True, count=0x40000001), "payload"),
        *((frame(addr, 1, read=True), "addr") for addr in (0x10100, 0x20000, 1 << 32, (1 << 64) - 1)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.hex()[32:]}",
)
def test_a_client_fault_closes_the_connection(guest: Domain, request_bytes: bytes, says: str) -> None:
    other, wire = guest.connect(), guest.connect()
    other.write(0x12, 2, 3)
    before = guest.daemon.samples("unplugd_protocol_errors_total")
    good = frame(0x12, 1, read=True, eport=1)
    wire.send(good + request_bytes + frame(0x10, 2, 3) * 3 + bytes(4096))
    assert wire.answer(good) == 1  # what came before it is answered
    assert wire.take(1) == b""  # and nothing that came after
    after = guest.daemon.samples("unplugd_protocol_errors_total")
    (reason,) = (labels for labels, value in after.items() if value != before.get(labels, 0))
    assert after[reason] == before.get(reason, 0) + 1
    ((label, text),) = reason
    assert label == "reason"
    assert says in text
    assert guest.wait_for_record(text)
    assert guest.state["product"] == 3
    assert guest.state["unplugged_mask"] == 0
    assert other.read(0x10, 2) == 0x49D2


def test_a_guest_can_do_no_fault(guest: Domain) -> None:
    wire, other = guest.connect(), guest.connect()
    faults = guest.daemon.total("unplugd_protocol_errors_total")
    chance = random.Random(4)
    requests = []
    for number in range(3000):
        size = chance.choice((1, 2, 4, 8))
        addr = chance.choice((chance.randrange(0x10, 0x20), chance.randrange(BAR + 0x100)))
        read, data = chance.random() < 0.5, chance.getrandbits(64)
        if chance.random() < 0.3:
            count = chance.randrange(1, 20)
            payload = b"" if read else chance.randbytes(count * size)
            requests.append((frame(addr, size, data, count=count, string=True, read=read, eport=number), payload))
        else:
            requests.append((frame(addr, size, data, read=read, eport=number), b""))
    for at in range(0, len(requests), 100):
        some = requests[at : at + 100]
        wire.send(b"".join(header + payload for header, payload in some))
        for header, _payload in some:
            wire.answer(header)
            _, _, count, size, _, _, bits, _ = FRAME.unpack(header)
            if bits & 0x30 == 0x30:
                assert len(wire.take(count * size)) == count * size
    assert guest.daemon.total("unplugd_protocol_errors_total") == faults
    assert other.read(0x10, 2) in (0x49D2, 0xD249)


# --- string I/O


def test_string_write_of_a_log_line(guest: Domain) -> None:
    wire = guest.connect()
    wire.log(b"XENBUS|one\r\nXENBUS|two\nthree")
    assert eventually(lambda: guest.lines, lambda lines: len(lines) == 3) == ["XENBUS|one", "XENBUS|two", "three"]


def test_df_changes_nothing_for_the_client_resolved_it(guest: Domain) -> None:
    wire = guest.connect()
    assert wire.ask(frame(0x12, 1, count=4, string=True, df=True) + b"abc\n") == 0
    assert eventually(lambda: guest.lines) == ["abc"]


def test_string_write_of_masks_gives_the_union(guest: Domain) -> None:
    wire = guest.connect()
    assert wire.ask(outs(0x10, b"\1\0\2\0\x10\0", size=2)) == 3
    assert guest.state["unplugged_mask"] == 3


def test_string_writes_are_accesses_in_order(guest: Domain) -> None:
    wire = guest.connect()
    assert wire.ask(outs(0x12, b"\2\0\0\0\3\0", size=2)) == 0
    assert wire.ask(outs(0x10, b"".join(build.to_bytes(4, "little") for build in (5, 0xFFFFFFFF, 9)), size=4)) == 0
    state = guest.state
    assert (state["product"], state["build"], state["blacklisted"]) == (3, 9, True)
    assert wire.ask(outs(0x10, b"\0\1\0\3", size=1)) == 0
    assert wire.read(0x10, 1) == 1
    assert wire.ask(outs(0x10, b"\1\2\3\4\5\6\7\x08" * 512, size=8)) == 0
    assert wire.ask(outs(BAR + 8, b"by the BAR\n")) == 0
    assert eventually(lambda: guest.lines) == ["by the BAR"]


@pytest.mark.parametrize(
    ("addr", "size", "count", "element"),
    [
        (0x10, 2, 3, b"\xd2\x49"),
        (0x10, 2, 2048, b"\xd2\x49"),
        (0x12, 1, 4096, b"\x01"),
        (0x10, 1, 2, b"\x00"),
        (0x10, 8, 512, b"\xff" * 8),
        (0x13, 4, 1, b"\xff" * 4),
        (0x10, 4, 1024, b"\xff" * 4),
        (BAR, 1, 5, b"\x00"),
        (BAR + 4, 2, 5, b"\xff\xff"),
    ],
)
def test_string_read(guest: Domain, addr: int, size: int, count: int, element: bytes) -> None:
    wire = guest.connect()
    assert wire.ask(frame(addr, size, 0x1234, count=count, string=True, read=True)) == 0
    assert wire.take(count * size) == element * count
    assert wire.read(0x12, 1) == 1


def test_the_most_that_a_frame_carries(guest: Domain) -> None:
    wire = guest.connect()
    assert wire.ask(outs(0x12, b"x" * 4095 + b"\n")) == 0
    assert wire.ask(outs(0x99, bytes(4096), size=8)) == 0
    assert eventually(lambda: guest.lines) == ["x" * 4095]


def test_a_write_counts_modulo_its_size(guest: Domain) -> None:
    wire = guest.connect()
    assert wire.ask(frame(0x12, 2, 0xFFFF_FFFF_0000_0003)) == 0
    assert wire.ask(frame(0x10, 4, 0xABCD_0000_0007)) == 0
    assert (guest.state["product"], guest.state["build"]) == (3, 7)
    assert wire.ask(frame(0x10, 2, 0x1_0003)) == 3
    assert wire.ask(frame(0x10, 1, 0x100)) == 0
    assert wire.read(0x10, 1) == 0
    for byte in b"hi\n":
        wire.ask(frame(0x12, 1, 0xFFFF_FF00 | byte))
    assert eventually(lambda: guest.lines) == ["hi"]


# --- pipelining, order, connections


def test_thousands_of_requests_at_once_are_answered_in_order(guest: Domain) -> None:
    wire = guest.connect()
    kinds = [
        lambda n: frame(0x10, 2, read=True, eport=n),
        lambda n: frame(0x12, 1, read=True, eport=n),
        lambda n: frame(0x12, 2, 3, eport=n),
        lambda n: frame(0x10, 4, n, eport=n),  # waits for a verdict
        lambda n: frame(0x12, 1, 0x41 + n % 26, eport=n),
        lambda n: frame(0x10, 2, n % 16, eport=n),
    ]
    requests = [kinds[number % len(kinds)](number) for number in range(6000)]
    for at in range(0, len(requests), 3000):  # what fits into the socket's buffers
        wire.send(b"".join(requests[at : at + 3000]))
        for number, request in enumerate(requests[at : at + 3000], at):
            data = wire.answer(request)
            expected = (0x49D2, 1, 0, 0, 0, number % 16)[number % 6]
            assert data == expected, number


def test_bytes_in_any_pieces(guest: Domain) -> None:
    wire = guest.connect()
    requests = [frame(0x10, 2, read=True, eport=1), outs(0x12, b"piecewise\n"), frame(0x10, 2, 3, eport=2)]
    stream = b"".join(requests)
    for at in range(len(stream)):
        wire.send(stream[at : at + 1])
    assert [wire.answer(request) for request in requests] == [0x49D2, 0, 3]
    wire.send(stream[:40])
    assert wire.answer(requests[0]) == 0x49D2
    assert wire.is_quiet(0.2)
    wire.send(stream[40:])
    assert [wire.answer(request) for request in requests[1:]] == [0, 3]
    assert eventually(lambda: guest.lines, lambda lines: len(lines) == 2) == ["piecewise"] * 2


def test_a_half_closed_client_gets_its_answers(guest: Domain) -> None:
    wire = guest.connect()
    builds = [frame(0x10, 4, build, eport=build) for build in range(20)]
    requests = [frame(0x12, 2, 3), *builds, frame(0x10, 2, read=True)]
    wire.send(b"".join(requests))
    wire.socket.shutdown(1)
    for request in requests:
        wire.answer(request)
    assert wire.take(1) == b""


def test_a_half_closed_client_that_has_much_to_read(guest: Domain) -> None:
    wire = guest.connect()
    request = frame(0x10, 8, count=512, string=True, read=True)
    wire.send(request * 500)
    wire.socket.shutdown(1)
    for _ in range(500):
        assert wire.answer(request) == 0
        assert len(wire.take(4096)) == 4096
    assert wire.take(1) == b""


def test_a_client_that_goes_in_the_middle_of_a_frame(guest: Domain) -> None:
    wire, other = guest.connect(), guest.connect()
    wire.send(frame(0x12, 2, 3) + outs(0x12, b"never complete\n")[:40])
    eventually(lambda: guest.state["product"], lambda product: product == 3)
    wire.close()
    assert eventually(lambda: guest.state["connections"], lambda count: count == 1) == 1
    assert other.read(0x10, 2) == 0x49D2
    time.sleep(0.5)
    assert guest.lines == []


def test_connections_share_the_state_and_a_closed_one_resets_nothing(guest: Domain) -> None:
    first, second = guest.connect(), guest.connect()
    assert first.write(0x12, 2, 1) == 0
    assert second.write(0x10, 4, 86451) == 0
    assert first.read(0x10, 2) == second.read(0x10, 2) == 0xD249
    first.ask(frame(0x12, 1, ord("a")))
    second.ask(frame(0x12, 1, ord("b")))
    first.close()
    second.close()
    third = guest.connect()
    third.log(b"c\n")
    assert eventually(lambda: guest.lines)[0] == "abc"
    assert third.read(0x10, 2) == 0xD249


def test_128_connections_at_once(guest: Domain) -> None:
    wires = [guest.connect() for _ in range(128)]
    for wire in wires:
        wire.send(frame(0x10, 2, read=True))
    assert {wire.answer(frame(0x10, 2, read=True)) for wire in wires} == {0x49D2}
    assert guest.state["connections"] == 128


def resident(daemon: Daemon) -> int:
    """Bytes of memory of the daemon."""
    pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def test_a_client_that_never_reads_costs_little_and_nobody_else(guest: Domain, serve: Serve) -> None:
    wire, other = guest.connect(), serve()
    neighbour = other.connect()
    before = resident(guest.daemon)
    request = frame(0x10, 8, count=512, string=True, read=True)
    wire.socket.settimeout(1.0)
    sent = 0
    with suppress(TimeoutError):
        while sent < 8 << 20:
            sent += wire.socket.send(request * 64)
    assert sent < 4 << 20  # the server reads no more
    assert {neighbour.read(0x10, 2) for _ in range(100)} == {0x49D2}
    same = guest.connect()
    assert same.read(0x10, 2) == 0x49D2
    assert resident(guest.daemon) - before < 16 << 20
    # When it reads at last, everything that was sent whole is answered.
    wire.socket.settimeout(30)
    for _ in range(sent // 32):
        assert wire.answer(request) == 0
        assert len(wire.take(4096)) == 4096
    other.stack.close()


# --- the table


def test_reset_forgets_and_flushes(guest: Domain) -> None:
    wire = guest.connect()
    assert wire.announce(1, 86451) == 0xD249
    assert wire.write(0x10, 2, 3) == 3
    wire.write(0x10, 1, 1)
    wire.ask(outs(0x12, b"partial"))
    resets = guest.daemon.value("unplugd_ioreqs_total", kind="reset") or 0
    wire.reset()
    assert eventually(lambda: guest.lines) == ["partial"]
    state = guest.state
    assert (state["product"], state["build"], state["blacklisted"], state["unplugged_mask"]) == (None, None, False, 0)
    assert (wire.read(0x10, 1), wire.read(0x10, 2)) == (0, 0x49D2)
    wire.write(0x10, 4, 86451)  # the product was forgotten
    assert wire.read(0x10, 2) == 0x49D2
    assert guest.daemon.value("unplugd_ioreqs_total", kind="reset") == resets + 1


def test_nothing_else_of_a_reset_is_checked(guest: Domain) -> None:
    wire = guest.connect()
    for request in (
        RESET,
        frame(1 << 63, 77, 5, count=0, kind=9, state=0, eport=5, pad=6, top=True, df=True, read=True),
        frame(0x12, 1, 5, count=4096, string=True, state=0),  # no payload follows
        frame(0x12, 1, count=0xFFFFFFFF, string=True, read=True, state=0),
    ):
        wire.send(request + frame(0x12, 1, read=True))
        assert wire.take(32) == request
        assert wire.answer(frame(0x12, 1, read=True)) == 1


def test_reset_in_a_pipeline(guest: Domain) -> None:
    wire = guest.connect()
    wire.send(frame(0x12, 2, 1) + frame(0x10, 4, 86451) + frame(read=True) + RESET + frame(read=True))
    assert [wire.answer(request) for request in (frame(0x12, 2, 1), frame(0x10, 4, 86451), frame(read=True))] == [
        0, 0, 0xD249,
    ]  # fmt: skip
    assert wire.take(32) == RESET
    assert wire.answer(frame(read=True)) == 0x49D2


def test_flags_are_kept_and_shared_with_the_bar(guest: Domain) -> None:
    wire = guest.connect()
    for write_at, read_at in itertools.product((0x10, BAR), repeat=2):
        assert wire.write(write_at, 1, 0xFF) == 0
        assert wire.read(read_at, 1) == 1
        assert wire.write(write_at, 1, 0xFE) == 0
        assert wire.read(read_at, 1) == 0


def test_masks(guest: Domain) -> None:
    wire = guest.connect()
    assert [wire.write(0x10, 2, mask) for mask in (5, 5, 1, 2, 8, 4, 0, 15)] == [5, 5, 1, 2, 8, 4, 0, 15]
    assert guest.state["unplugged_mask"] == 15
    devices = {"ide-disks", "nics", "aux-ide-disks", "nvme-disks"}
    labels = {"domid": guest.domid, "uuid": guest.state["uuid"]}
    assert {guest.daemon.value("unplugd_domain_unplugged", device=device, **labels) for device in devices} == {1}


def test_undefined_bits_are_dropped_and_recorded(guest: Domain) -> None:
    wire = guest.connect()
    assert wire.write(0x10, 2, 0xFFF0) == 0
    guest.wait_for_record("undefined bits")
    assert wire.write(0x10, 2, 0xFFFF) == 15


def test_openbsd_unplugs_at_once(guest: Domain) -> None:
    wire = guest.connect()
    assert wire.read(0x10, 2) == 0x49D2
    assert wire.write(0x10, 2, 3) == 3
    assert guest.state["product"] is None


def test_build_without_product_is_ignored_with_a_record(guest: Domain) -> None:
    wire = guest.connect()
    wire.write(0x10, 4, 86451)
    guest.wait_for_record("86451")
    wire.write(0x12, 2, 0)
    wire.write(0x10, 4, 86451)
    assert guest.state["build"] is None
    wire.write(0x12, 2, 1)
    wire.write(0x12, 2, 0)  # takes back
    assert wire.announce(0, 86451) == 0x49D2
    assert wire.announce(1, 86451) == 0xD249


def test_a_product_that_nobody_registered_is_never_blacklisted(guest: Domain) -> None:
    wire = guest.connect()
    before = guest.daemon.value("unplugd_blacklist_lookups_total", result="unknown-product") or 0
    assert wire.announce(0x4242, 86451) == 0x49D2
    assert guest.daemon.value("unplugd_blacklist_lookups_total", result="unknown-product") == before + 1


@pytest.mark.parametrize("build", [0x80000000, 0xFFFFFFFF])
def test_builds_from_2_to_the_31_are_unsigned(guest: Domain, build: int) -> None:
    assert guest.connect().announce(3, build) == 0xD249


def test_a_blacklisted_verdict_lasts_until_reset(guest: Domain) -> None:
    wire = guest.connect()
    assert wire.announce(1, 86451) == 0xD249
    assert wire.announce(3, 1) == 0xD249
    assert wire.announce(1, 1) == 0xD249
    wire.reset()
    assert wire.announce(3, 1) == 0x49D2


def test_a_blacklisted_driver_that_unplugs_is_obeyed(guest: Domain) -> None:
    wire = guest.connect()
    assert wire.announce(1, 86451) == 0xD249
    assert wire.write(0x10, 2, 7) == 7


# --- policy and versions


def test_policy_masks_the_order(serve: Serve) -> None:
    guest = serve(policy={"allow_unplug": ["nics", "nvme-disks"], "blacklisted_unplug": "deny"})
    with guest.stack:
        wire = guest.connect()
        assert [wire.write(0x10, 2, mask) for mask in (3, 15, 1, 0xFFFF)] == [2, 10, 0, 10]
        assert guest.state["unplugged_mask"] == 10
        guest.wait_for_record("refused")
        wire.reset()
        assert wire.announce(1, 86451) == 0xD249
        assert wire.write(0x10, 2, 15) == 0
        assert guest.state["unplugged_mask"] == 0


def test_legacy_writes_do_nothing_by_default(guest: Domain) -> None:
    wire = guest.connect()
    assert [wire.write(BAR + at, 4, value) for at, value in ((4, 1), (8, 1), (8, 2))] == [0, 0, 0]
    assert guest.state["unplugged_mask"] == 0


def test_legacy_unplug(serve: Serve) -> None:
    config = {"policy": {"legacy_unplug": True}}
    guest = serve(**config)
    with guest.stack:
        wire = guest.connect()
        wrong = [(at, value) for at in (4, 8) for value in (0, 3, 4, 0xFFFFFFFF)] + [(4, 2), (0, 1), (12, 1), (5, 1)]
        assert [wire.write(BAR + at, 4, value) for at, value in wrong] == [0] * len(wrong)
        assert [wire.write(BAR + at, size, 1) for at in (4, 8) for size in (1, 2, 8)] == [0] * 6
        assert guest.state["unplugged_mask"] == 0
        assert wire.write(BAR + 8, 4, 2) == 2
        assert guest.state["unplugged_mask"] == 2
        assert wire.write(BAR + 8, 4, 1) == 1
        assert guest.state["unplugged_mask"] == 3
    guest = serve(**config)
    with guest.stack:
        wire = guest.connect()
        assert wire.write(BAR + 4, 4, 1) == 3
        assert wire.ask(outs(BAR + 8, b"\1\0\0\0\2\0\0\0", size=4)) == 3
        assert guest.state["unplugged_mask"] == 3
        assert wire.write(0x10, 2, 3) == 3


def test_protocol_version_0(serve: Serve) -> None:
    guest = serve(protocol_version=0)
    with guest.stack:
        wire = guest.connect()
        assert wire.read(0x12, 1) == 0
        assert wire.announce(1, 86451) == 0x49D2
        state = guest.state
        assert (state["product"], state["build"], state["blacklisted"]) == (None, None, False)
        assert wire.write(0x10, 2, 3) == 3
        wire.log(b"version 0 logs too\n")
        assert eventually(lambda: guest.lines) == ["version 0 logs too"]


# --- counting


def test_frames_are_counted_by_kind_before_they_are_answered(guest: Domain) -> None:
    wire = guest.connect()
    kinds = ("magic", "version", "product", "build", "unplug", "log", "flags", "other", "reset")

    def counts() -> dict[str, float]:
        metrics = guest.daemon.metrics()
        return {kind: metrics["unplugd_ioreqs_total", frozenset({("kind", kind)})] for kind in kinds}

    before = counts()
    wire.announce(3, 1)
    wire.read(0x12, 1)
    wire.write(0x10, 2, 3)
    wire.log(b"a line in one frame\n")
    wire.write(0x12, 1, 10)
    wire.write(BAR + 8, 1, 10)
    wire.read(0x10, 1)
    wire.write(BAR, 1, 1)
    wire.read(0x10, 4)
    wire.write(0x12, 4, 1)
    wire.reset()
    after = counts()
    assert {kind: after[kind] - before[kind] for kind in kinds} == {
        "magic": 1, "version": 1, "product": 1, "build": 1, "unplug": 1, "log": 3, "flags": 2, "other": 2, "reset": 1,
    }  # fmt: skip
