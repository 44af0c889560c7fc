"""The frame: layout, what a device model may send, and what its response looks like (contract section 1)."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.frames import FRAME, frame
from unplugd.core.ioreq import FRAME_SIZE, LAST_ADDRESS, PAYLOAD_LIMIT, RESET, decode, pio, response
from unplugd.errors import ClientFault

WORDS = {
    "eport": st.integers(0, 0xFFFFFFFF),
    "pad": st.integers(0, 0xFFFF),
    "high": st.sampled_from([0, 0x40, 0x80, 0xC0]),
}


def test_layout_is_xens() -> None:
    raw = bytes.fromhex("1200000000000000 0300000000000000 01000000 02000000 2a000000 0700 01 00")
    assert len(raw) == FRAME_SIZE
    request = decode(raw)
    assert (request.addr, request.data, request.count, request.size) == (0x12, 3, 1, 2)
    assert (request.read, request.string, request.reset) == (False, False, False)


@pytest.mark.parametrize(
    ("bits", "read", "string"), [(0x01, False, False), (0x11, False, True), (0x21, True, False), (0xF1, True, True)]
)
def test_bits_of_byte_30(bits: int, read: bool, string: bool) -> None:
    request = decode(FRAME.pack(0x10, 0, 1, 2, 0, 0, bits, 0))
    assert (request.read, request.string) == (read, string)


@given(size=st.sampled_from([1, 2, 4, 8]), data=st.integers(0, 2**64 - 1))
def test_data_of_a_write_counts_modulo_its_size(size: int, data: int) -> None:
    assert decode(frame(0x12, size, data=data)).data == data % (1 << 8 * size)


@pytest.mark.parametrize(("string", "read", "payload"), [(False, False, 0), (True, False, 12), (True, True, 0)])
def test_payload_follows_string_writes_only(string: bool, read: bool, payload: int) -> None:
    count = 3 if string else 1
    assert decode(frame(0x12, 4, string=string, read=read, count=count)).payload_size == payload


@given(addr=st.integers(0, 2**64 - 1), data=st.integers(0, 2**64 - 1), rest=st.binary(min_size=14, max_size=14),
       high=st.integers(0, 15), kind=st.integers(0, 255))
def test_state_0_is_a_reset_whatever_else_is_in_it(addr: int, data: int, rest: bytes, high: int, kind: int) -> None:
    raw = addr.to_bytes(8, "little") + data.to_bytes(8, "little") + rest + bytes((high << 4, kind))
    request = decode(raw)
    assert request.reset
    assert request.payload_size == 0
    assert response(request, 0) == raw


@pytest.mark.parametrize("state", [2, *range(3, 16)])
def test_another_state_is_the_clients_fault(state: int) -> None:
    with pytest.raises(ClientFault) as caught:
        decode(frame(0x10, 2, state=state))
    assert caught.value.reason == "bad-state"


@pytest.mark.parametrize("kind", [1, 2, 7, 8, 255])
def test_another_type_is_the_clients_fault(kind: int) -> None:
    with pytest.raises(ClientFault) as caught:
        decode(frame(0x10, 2, kind=kind))
    assert caught.value.reason == "bad-type"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (frame(0x10, 2, count=0), "bad-count"),
        (frame(0x10, 2, count=0, string=True), "bad-count"),
        (frame(0x10, 2, count=2), "bad-count"),
        (frame(0x10, 2, count=2, read=True), "bad-count"),
        (frame(0x10, 0), "bad-size"),
        (frame(0x10, 3), "bad-size"),
        (frame(0x10, 16), "bad-size"),
        (frame(0x10, 0xFFFFFFFF, count=0xFFFFFFFF, string=True), "bad-size"),
        (frame(0x12, 1, count=4097, string=True), "payload-too-long"),
        (frame(0x12, 8, count=513, string=True), "payload-too-long"),
        (frame(0x12, 1, count=0xFFFFFFFF, string=True, read=True), "payload-too-long"),
        (frame(0x10100, 1), "bad-address"),
        (frame(2**64 - 1, 1, read=True), "bad-address"),
    ],
)
def test_other_faults_of_the_client(raw: bytes, reason: str) -> None:
    with pytest.raises(ClientFault) as caught:
        decode(raw)
    assert caught.value.reason == reason
    assert caught.value.detail


@pytest.mark.parametrize(
    "raw",
    [
        frame(0x100FF, 8, read=True),
        frame(0xFFFF, 4),
        frame(0, 1),
        frame(0x12, 1, count=4096, string=True),
        frame(0x12, 8, count=512, string=True, read=True),
        frame(0x10, 2, count=1, string=True),
        frame(0x11, 4),
    ],
)
def test_what_a_guest_can_do_is_no_fault(raw: bytes) -> None:
    assert not decode(raw).reset


@given(addr=st.integers(0, LAST_ADDRESS), size=st.sampled_from([1, 2, 4, 8]), data=st.integers(0, 2**64 - 1),
       read=st.booleans(), string=st.booleans(), answer=st.integers(0, 2**64 - 1), **WORDS)
def test_a_response_echoes_all_but_state_and_data(
    addr: int, size: int, data: int, read: bool, string: bool, answer: int, eport: int, pad: int, high: int
) -> None:
    raw = frame(addr, size, data=data, read=read, string=string, eport=eport, pad=pad, high=high)
    out = response(decode(raw), answer)
    expected = bytearray(raw)
    expected[8:16] = answer.to_bytes(8, "little")
    expected[30] = raw[30] & 0xF0 | 3
    assert out == bytes(expected)


def test_payload_comes_behind_the_response() -> None:
    request = decode(frame(0x10, 2, read=True, string=True, count=2))
    assert response(request, 0, b"abcd")[32:] == b"abcd"


@given(raw=st.binary(min_size=32, max_size=32))
def test_any_32_bytes_are_a_request_or_a_fault(raw: bytes) -> None:
    try:
        request = decode(raw)
    except ClientFault:
        return
    assert request.frame == raw
    assert request.payload_size <= PAYLOAD_LIMIT
    assert len(response(request, 0)) == FRAME_SIZE


def test_pio_is_what_a_device_model_sends() -> None:
    assert pio(0x10, size=2, read=True, eport=9) == frame(0x10, 2, read=True, eport=9)
    assert pio(0x12, size=1, count=5, string=True) == frame(0x12, 1, count=5, string=True)
    assert pio(0x12, size=2, data=3) == frame(0x12, 2, data=3)
    assert decode(RESET).reset


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        decode(RESET).addr = 1  # type: ignore[misc] # it is frozen
