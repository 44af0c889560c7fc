from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unplugd.attach.pci import PlatformDevice, may_become, platform_device, words


def answer(**changed: Any) -> list[dict[str, Any]]:
    """What QEMU 7.2's `query-pci` says, without what nobody reads."""
    ide = {"id": {"vendor": 0x8086, "device": 0x7010}, "bus": 0, "slot": 1, "function": 1, "regions": [
        {"bar": 4, "type": "io", "size": 16, "address": 0xC200}]}
    regions = [{"bar": 0, "type": "io", "size": 256, "address": 0xC000} | changed,
               {"bar": 1, "type": "memory", "size": 1 << 24, "address": 0xF2000000}]
    platform = {"id": {"vendor": 0x5853, "device": 1}, "bus": 0, "slot": 2, "function": 0, "regions": regions}
    return [{"bus": 0, "devices": [ide, platform]}]


def test_the_device_is_found_where_qemu_has_it() -> None:
    assert platform_device(answer()) == PlatformDevice(0, 2, 0, 0xC000)
    for nowhere in (-1, 0, (1 << 64) - 1, 0x10000):
        assert platform_device(answer(address=nowhere)) == PlatformDevice(0, 2, 0, None)


def test_without_it_there_is_none() -> None:
    assert platform_device([]) is None
    assert platform_device(answer(size=8)) is None
    assert platform_device(answer(type="memory")) is None


@pytest.mark.parametrize("nonsense", [None, 5, [{}], [{"devices": [{"id": {}}]}], [{"devices": None}]])
def test_an_answer_that_makes_no_sense_is_an_error(nonsense: Any) -> None:
    with pytest.raises(ValueError, match="query-pci"):
        platform_device(nonsense)


def test_the_address_register() -> None:
    assert PlatformDevice(0, 2, 0, None).address(0x11) == 0x80001010
    assert PlatformDevice(1, 31, 7, None).address(0xFF) == 0x8001FFFC


@given(st.integers(0, 255), st.sampled_from([1, 2, 4]))
def test_words_cover_an_access_once(register: int, size: int) -> None:
    pieces = list(words(register, size))
    assert [at + i for at, part, _ in pieces for i in range(part)] == list(range(register, register + size))
    for at, part, shift in pieces:
        assert part in (1, 2, 4)
        assert at // 4 == (at + part - 1) // 4
        assert shift == 8 * (at - register)


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 3), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF))
def test_wherever_a_write_puts_the_bar_is_known_before(old: int, lane: int, size: int, value: int) -> None:
    """Against a BAR of 256 ports kept byte by byte: its place changes only to what may_become() says."""
    for at, part, shift in words(0x10 + lane, size):
        if at >= 0x14:
            continue
        piece = value >> shift & (1 << 8 * part) - 1
        register = bytearray(old.to_bytes(4, "little"))
        register[at - 0x10:at - 0x10 + part] = piece.to_bytes(part, "little")
        new = int.from_bytes(register, "little")
        if new & 0xFF00 != old & 0xFF00:
            assert may_become(at, part, piece) == (new & 0xFF00 or None)
        old = new
