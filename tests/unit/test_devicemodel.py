"""simulator/devicemodel.py: the frames it sends, the answers it takes, and what it does when a connection breaks."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.fakeunplugd import FakeUnplugd
from tests.lab.frames import FRAME
from unplugd.simulator.devicemodel import (
    MAX_PAYLOAD,
    ConnectionClosed,
    DeviceModel,
    NoAnswer,
    NotReachable,
    PortAccess,
    WrongAnswer,
    encode,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dom7.sock"


def test_a_frame_is_struct_ioreq() -> None:
    frame = encode(PortAccess(0x10, 2, read=True), vp_eport=0x01020304, pad=0x0506)
    assert frame == bytes.fromhex("1000000000000000 0000000000000000 01000000 02000000 04030201 0605 21 00")


@pytest.mark.parametrize(
    ("access", "text"),
    [
        (PortAccess(0x10, 2, read=True), "inw 0x10"),
        (PortAccess(0x12, 1, read=False, data=10), "outb 0x12 0x0a"),
        (PortAccess(0x10, 8, read=False, data=1), "outq 0x10 0x0000000000000001"),
        (PortAccess(0x10, 3, read=True), "in<3> 0x10"),
        (PortAccess(0x12, 1, read=False, count=7, string=True), "rep outsb 0x12 7 elements"),
        (PortAccess(0x10, 2, read=True, count=2, string=True), "rep insw 0x10 2 elements"),
    ],
)
def test_an_access_in_words(access: PortAccess, text: str) -> None:
    assert str(access) == text


def test_a_string_write_carries_its_payload() -> None:
    frame = encode(PortAccess(0x12, 1, read=False, count=3, string=True, payload=b"a\r\n"))
    assert FRAME.unpack(frame[:32]) == (0x12, 0, 3, 1, 0, 0, 0x11, 0)
    assert frame[32:] == b"a\r\n"


def test_each_width_reads_and_writes_what_it_says(path: Path) -> None:
    with FakeUnplugd(path) as server, DeviceModel(path) as device:
        assert (device.inb(0x12), device.inw(0x10), device.inl(0x10)) == (1, 0x49D2, 0xFFFFFFFF)
        assert (device.outb(0x10, 1), device.inb(0x10)) == (0, 1)
        assert device.outw(0x10, 3) == 3
        assert device.outl(0x10004, 1) == 3
    sizes = [FRAME.unpack(frame)[3] for frame in server.frames]
    assert sizes == [1, 2, 4, 1, 1, 2, 4]


def test_strings_are_split_at_the_largest_payload(path: Path) -> None:
    text = os.urandom(2 * MAX_PAYLOAD + 5)
    with FakeUnplugd(path) as server, DeviceModel(path) as device:
        assert device.outsb(0x12, text) == 0
        (answer,) = device.exchange([PortAccess(0x10, 2, read=True, count=3, string=True)])
        assert answer.payload == b"\xd2\x49" * 3
    assert server.log == text
    assert [FRAME.unpack(frame)[2] for frame in server.frames] == [4096, 4096, 5, 3]


def test_a_string_of_broken_elements_is_refused(path: Path) -> None:
    with FakeUnplugd(path), DeviceModel(path) as device, pytest.raises(ValueError, match="whole number"):
        device.outsb(0x10, b"abc", size=2)


def test_reset_is_answered_by_itself(path: Path) -> None:
    with FakeUnplugd(path) as server, DeviceModel(path) as device:
        device.reset()
    assert FRAME.unpack(server.frames[0])[6] == 0


@given(sizes=st.lists(st.integers(0, 3000), max_size=60))
def test_pipelined_answers_come_in_order(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    path = tmp_path_factory.mktemp("d") / "s"
    accesses = [PortAccess(0x10 if n % 2 else 0x12, 1, read=True, count=n + 1, string=True) for n in sizes]
    with FakeUnplugd(path), DeviceModel(path) as device:
        answers = device.exchange(accesses)
    assert [len(answer.payload) for answer in answers] == [n + 1 for n in sizes]


def test_more_than_any_buffer_holds_does_not_deadlock(path: Path) -> None:
    accesses = [PortAccess(0x12, 1, read=True, count=MAX_PAYLOAD, string=True)] * 200
    with FakeUnplugd(path), DeviceModel(path) as device:
        assert sum(len(answer.payload) for answer in device.exchange(accesses)) == 200 * MAX_PAYLOAD


def test_what_was_not_answered_is_sent_again(path: Path) -> None:
    """Each connection dies with a frame unanswered; every byte of the log arrives, in order, once."""
    text = b"abcdefghij"
    with FakeUnplugd(path, closures=(3, 0, 4)) as server, DeviceModel(path) as device:
        device.exchange([PortAccess(0x12, 1, read=False, data=byte) for byte in text])
        assert device.reconnects == 3
    assert server.log == text
    assert server.connections == 4


def test_a_restart_of_the_server_is_waited_out(path: Path) -> None:
    with FakeUnplugd(path):
        device = DeviceModel(path, reconnect=20)
        assert device.inw(0x10) == 0x49D2

    def come_back() -> None:
        time.sleep(0.1)
        with FakeUnplugd(path):
            done.wait(20)

    done = threading.Event()
    thread = threading.Thread(target=come_back)
    thread.start()
    try:
        assert device.inb(0x12) == 1
    finally:
        done.set()
        thread.join()
        device.close()


def test_a_server_that_stays_away_is_given_up(path: Path) -> None:
    with FakeUnplugd(path):
        device = DeviceModel(path, reconnect=0.1)
        device.inw(0x10)
    with pytest.raises(NotReachable, match=r"no such socket.*tried for 0\.1 s"):
        device.inw(0x10)


def test_a_frame_that_is_always_refused_is_given_up(path: Path) -> None:
    with (
        FakeUnplugd(path, closures=(0,) * 10) as server,
        DeviceModel(path) as device,
        pytest.raises(ConnectionClosed, match="without an answer"),
    ):
        device.inw(0x10)
    assert server.connections == 3


def test_a_server_that_is_restarted_again_and_again_is_not_given_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection is another process's: what closed it was that process's end, not an objection."""
    pids = iter(range(100, 200))
    monkeypatch.setattr(DeviceModel, "_peer", lambda self: next(pids))
    with FakeUnplugd(path, closures=(0,) * 10) as server, DeviceModel(path) as device:
        assert device.inw(0x10) == 0x49D2
    assert server.connections == 11


def test_without_reconnection_the_first_loss_is_final(path: Path) -> None:
    with (
        FakeUnplugd(path, closures=(1,)),
        DeviceModel(path, reconnect=0) as device,
        pytest.raises(ConnectionClosed),
    ):
        device.exchange([PortAccess(0x10, 2, read=True)] * 2)


def test_silence_ends_at_the_timeout_and_the_late_answer_is_nobodys(path: Path) -> None:
    class Slow(FakeUnplugd):
        def answer(self, frame: bytes, payload: bytes) -> bytes:
            if len(self.frames) == 1:
                heard.wait(20)
            return super().answer(frame, payload)

    heard = threading.Event()
    with Slow(path), DeviceModel(path, timeout=0.1) as device:
        with pytest.raises(NoAnswer, match=r"no answer within 0\.1 s"):
            device.inw(0x10)
        heard.set()
        device.timeout = 20
        assert device.inb(0x12) == 1


@pytest.mark.parametrize(
    ("at", "bit"), [(0, 1), (16, 1), (20, 1), (24, 1), (28, 1), (30, 2), (30, 0x20), (31, 1)]
)
def test_an_answer_that_is_not_the_requests_is_an_error(path: Path, at: int, bit: int) -> None:
    class Wrong(FakeUnplugd):
        def answer(self, frame: bytes, payload: bytes) -> bytes:
            answer = bytearray(super().answer(frame, payload))
            answer[at] ^= bit
            return bytes(answer)

    with Wrong(path), DeviceModel(path) as device, pytest.raises(WrongAnswer, match="but the answer was"):
        device.inw(0x10)


def test_nobody_to_connect_to(path: Path) -> None:
    with pytest.raises(NotReachable, match="no such socket: is unplugd running") as caught:
        DeviceModel(path)
    assert caught.value.path == str(path)
    path.write_bytes(b"")
    with pytest.raises(NotReachable, match="no process listens"):
        DeviceModel(path)


def test_a_path_that_no_socket_can_have() -> None:
    with pytest.raises(NotReachable, match="path too long"):
        DeviceModel("/" + "x" * 200)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_permission_denied_says_whose_the_socket_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o600)
        directory = os.open(tmp_path, os.O_PATH)  # pytest's own directories are closed to others
        os.seteuid(65534)
        try:
            with pytest.raises(NotReachable, match="permission denied"):
                DeviceModel(f"/proc/self/fd/{directory}/s")
        finally:
            os.seteuid(0)
            os.close(directory)


def test_a_full_queue_of_connections_is_waited_for(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with DeviceModel(path), pytest.raises(NotReachable, match=r"tried for 0\.2 s"):
            DeviceModel(path, timeout=0.2)
