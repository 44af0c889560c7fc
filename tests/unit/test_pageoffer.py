from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unplugd.core.pageoffer import MESSAGE_LIMIT, VCPUS, Offer, greet, greeted, offer, offered

SERVERS = st.integers(0, 2**16 - 1)
PORTS = st.dictionaries(st.integers(0, VCPUS - 1), st.integers(0, 2**32 - 1), min_size=1)


@given(st.integers(0, 2**16 - 1))
def test_a_greeting_says_the_domid(domid: int) -> None:
    assert greeted(greet(domid)) == domid


@given(st.binary(max_size=20).filter(lambda message: len(message) != 2))
def test_what_is_no_greeting_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match=f"^a greeting has 2 bytes, this has {len(message)}$"):
        greeted(message)


@given(SERVERS, PORTS)
def test_an_offer_says_the_server_and_its_ports(server: int, ports: dict[int, int]) -> None:
    message = offer(server, ports)
    said = offered(message)
    assert said.server == server
    assert len(message) <= MESSAGE_LIMIT
    found = [said.ports[at:at + 5] for at in range(0, len(said.ports), 5)]
    assert {one[0]: int.from_bytes(one[1:], "little") for one in found} == ports
    assert [one[0] for one in found] == sorted(ports)


def test_bytes_of_an_offer() -> None:
    assert offer(0x0201, {127: 7, 0: 0x0A090807}) == bytes.fromhex("0102 00 0708090a 7f 07000000")
    assert offered(bytes.fromhex("0102 00 0708090a")) == Offer(0x0201, bytes.fromhex("00 0708090a"))


def test_the_longest_offer() -> None:
    assert len(offer(1, dict.fromkeys(range(VCPUS), 1))) == MESSAGE_LIMIT


@pytest.mark.parametrize("size", [0, 1, 2, 3, 6, 8, MESSAGE_LIMIT - 1, MESSAGE_LIMIT + 1, MESSAGE_LIMIT + 5])
def test_what_is_no_offer_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"no offer of an ioreq page has {size} bytes")):
        offered(bytes(size))
