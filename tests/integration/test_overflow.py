"""A guest's ordinary log writes never reach another guest's state, nor the daemon's memory (docs/security.md).

Once they did: lines that came quickly were gathered in a buffer of 4,095 bytes, and the first line that ended inside a
string write could bring twice as much. These are the three ways in which it was found, on a
daemon with the defaults that it took: the journal alone, a balance that pays, a line that ended a moment before.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from operator import eq
from typing import Any

import pytest

from tests.lab.daemon import Daemon, Wire, embedded, eventually
from tests.lab.frames import answers, outs
from tests.lab.journald import Journald

GUESTS = (1, 2, 3)
"""The second one writes; the others had their drivers announced, and have a line open."""
WRITER = 2
TIMES = 100


@pytest.fixture
def daemon(journald: Journald) -> Iterator[Daemon]:
    """A daemon that says everything to a journald of its own."""
    config = embedded(*GUESTS, log={"sinks": ["journal"], "burst": 1 << 24, "flush_after": 600.0})
    one = Daemon(config, command=journald.command)
    with contextlib.closing(one):
        yield one.start()


def settle(daemon: Daemon) -> dict[int, dict[str, Any]]:
    """Have neighbours with a state, and a line that is open; what the API says of them."""
    for domid in GUESTS:
        with daemon.connect(domid) as wire:
            wire.announce(3, 100 + domid)
            assert wire.write(0x10, 2, 3) == 3
            wire.log(b"open line of %d" % domid)
    return {domid: shown(daemon, domid) for domid in GUESTS}


def shown(daemon: Daemon, domid: int) -> dict[str, Any]:
    domain = daemon.domain(domid)
    assert domain is not None
    return {name: domain[name] for name in ("product", "build", "blacklisted", "unplugged")}


FIRST, SECOND = outs(0x12, b"a\n" + b"b" * 3000), outs(0x12, b"x\n" + b"y" * 4094)


def one_send(one: Wire, _other: Wire) -> None:
    """Three strings in one send: a short line, an open one, and its end with the longest open one behind it."""
    one.send(outs(0x12, b"a\n") + outs(0x12, b"b" * 3000) + SECOND)
    take(one, 3)


def two_sends(one: Wire, _other: Wire) -> None:
    """The same in two strings, the second of which is sent once the first is answered."""
    one.send(FIRST)
    answered = one.take(32)
    one.send(SECOND)
    assert len(answered) == 32
    take(one, 1)


def two_vcpus(one: Wire, other: Wire) -> None:
    """The same from two connections at the same moment."""
    one.send(FIRST)
    other.send(SECOND)
    take(one, 1)
    take(other, 1)


def take(wire: Wire, count: int) -> None:
    found = answers(wire.take(32 * count))
    assert [(answer.addr, answer.data, answer.bits) for answer in found] == [(0x12, 0, 0x13)] * count


VARIANTS = (one_send, two_sends, two_vcpus)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.__name__)
def test_neighbours_have_all_of_their_state_after_sigkill(
    daemon: Daemon, journald: Journald, variant: Callable[[Wire, Wire], None]
) -> None:
    before = settle(daemon)
    pid = daemon.pid
    with daemon.connect(WRITER) as first, daemon.connect(WRITER) as second:
        for _ in range(TIMES):
            variant(first, second)
            time.sleep(0.002)  # no line ended a moment before the first
        first.log(b"\n")
    assert daemon.pid == pid
    daemon.kill()
    daemon.start()
    for domid in GUESTS:
        assert shown(daemon, domid) == before[domid]
        with daemon.connect(domid) as wire:
            wire.log(b", ended\n")

    def lines(domid: int) -> list[str]:
        found = journald.entries("SYSLOG_IDENTIFIER=unplugd-guest", f"XEN_DOMID={domid}")
        return [str(entry["MESSAGE"]) for entry in found]

    for domid in GUESTS:
        if domid != WRITER:
            eventually(partial(lines, domid), partial(eq, [f"open line of {domid}, ended"]))
    # every byte, whole and in order
    eventually(lambda: lines(WRITER)[-1:] == [", ended"])
    text = "".join(lines(WRITER))
    assert text.count("b") == 3000 * TIMES
    assert text.count("y") == 4094 * TIMES
    assert text.count("x") == TIMES
