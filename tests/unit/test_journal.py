"""The journal sink against a datagram socket that stands in for journald's."""

import asyncio
import errno
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unplugd.sinks.journal import Journal, encode, encode_fields
from unplugd.sinks.records import Entry

DEADLINE = 30.0
FIELDS = (("PRIORITY", "6"), ("SYSLOG_IDENTIFIER", "unplugd-guest"), ("XEN_DOMID", "7"))


def entry(message: bytes = b"hello") -> Entry:
    return Entry(time.time(), message, FIELDS)


def decode(data: bytes) -> list[tuple[str, bytes]]:
    """Read a datagram as journald does."""
    fields = []
    while data:
        line, newline, data = data.partition(b"\n")
        assert newline, "a field without its end"
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(data[:8], "little")
            value, end, data = data[8 : 8 + length], data[8 + length : 9 + length], data[9 + length :]
            assert (len(value), end) == (length, b"\n")
        fields.append((name.decode("ascii"), value))
    return fields


class Listener:
    """What is bound at journald's path. Not read from unless a test does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(path))

    def messages(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(dict(decode(self.socket.recv(1 << 20)))["MESSAGE"])
            except BlockingIOError:
                return found

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def listener(path: Path) -> Iterator[Listener]:
    found = Listener(path)
    yield found
    found.close()


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    found = Journal(str(path))
    yield found
    found.close()


async def writable(journal: Journal) -> None:
    """Wait until the journal says that trying again makes sense."""
    event = asyncio.Event()
    journal.when_writable(event.set)
    await asyncio.wait_for(event.wait(), DEADLINE)


async def send_all(journal: Journal, messages: list[bytes]) -> None:
    for message in messages:
        while not journal.send(entry(message)):
            await writable(journal)


def fill(journal: Journal) -> list[bytes]:
    """Send until it says no, and return what it took."""
    taken: list[bytes] = []
    while journal.send(entry(b"%d" % len(taken))):
        taken.append(b"%d" % len(taken))
        assert len(taken) < 100_000
    return taken


NAMES = st.from_regex(r"[A-Z][A-Z0-9_]{0,10}", fullmatch=True)


@given(st.lists(st.tuples(NAMES, st.text(st.characters(exclude_categories=["Cs"])))))
def test_fields_arrive_as_they_are(fields: list[tuple[str, str]]) -> None:
    assert decode(encode_fields(tuple(fields))) == [(name, text.encode()) for name, text in fields]


@given(st.text(), st.binary())
def test_no_bytes_make_another_field(text: str, message: bytes) -> None:
    data = encode(Entry(0.0, message, (("XEN_DOMAIN_NAME", text),)), now=0.0)
    assert [name for name, _ in decode(data)] == ["XEN_DOMAIN_NAME", "MESSAGE"]


def test_an_undecodable_name_is_still_utf8() -> None:
    assert encode_fields((("XEN_DOMAIN_NAME", "a\udcff"),)) == b"XEN_DOMAIN_NAME=a\\udcff\n"


def test_a_late_entry_says_when_it_was_said() -> None:
    late = dict(decode(encode(Entry(1.25, b"x", ()), now=3.0)))
    assert late == {"MESSAGE": b"x", "UNPLUG_TIMESTAMP": b"1970-01-01T00:00:01.250Z"}
    assert dict(decode(encode(Entry(1.25, b"x", ()), now=2.0))) == {"MESSAGE": b"x"}
    assert dict(decode(encode(Entry(1.25, b"x", ()), now=0.0))) == {"MESSAGE": b"x"}  # the clock went back


def test_send(journal: Journal, listener: Listener) -> None:
    assert journal.send(entry(b"a\nPRIORITY=0\x1b"))
    assert journal.problem is None
    fields = decode(listener.socket.recv(4096))
    assert dict(fields)["MESSAGE"] == rb"a\x0aPRIORITY=0\x1b"
    assert len(fields) == len(FIELDS) + 1


def test_absent_socket_is_tried_again(journal: Journal, path: Path) -> None:
    async def scenario() -> None:
        assert not journal.send(entry())
        assert str(path) in str(journal.problem)
        sender = asyncio.create_task(send_all(journal, [b"one", b"two"]))
        await writable(journal)
        assert not sender.done()
        listener = Listener(path)
        await asyncio.wait_for(sender, DEADLINE)
        assert listener.messages() == [b"one", b"two"]
        listener.close()

    asyncio.run(scenario())


def test_retries_become_rarer(journal: Journal) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for _ in range(4):
            assert not journal.send(entry())
            await writable(journal)
        assert loop.time() - start >= 0.05 + 0.1 + 0.2 + 0.4 - 0.05

    asyncio.run(scenario())


def test_full_socket_waits_for_its_reader(journal: Journal, listener: Listener) -> None:
    async def scenario() -> None:
        taken = fill(journal)
        assert len(taken) > 0
        waiter = asyncio.create_task(writable(journal))
        await asyncio.sleep(0)
        assert not waiter.done()
        read = listener.messages()
        await asyncio.wait_for(waiter, DEADLINE)
        assert journal.send(entry(b"after"))
        assert read + listener.messages() == [*taken, b"after"]

    asyncio.run(scenario())


def test_callback_is_called_once(journal: Journal, listener: Listener) -> None:
    async def scenario() -> None:
        calls = []
        fill(journal)

        def called() -> None:
            calls.append(1)

        journal.when_writable(called)
        journal.when_writable(called)
        listener.messages()
        await writable(journal)
        await writable(journal)
        assert calls == [1]

    asyncio.run(scenario())


def test_who_need_not_wait_is_called_soon(journal: Journal) -> None:
    asyncio.run(writable(journal))


def test_restarted_listener_loses_nothing(journal: Journal, listener: Listener, path: Path) -> None:
    assert journal.send(entry(b"one"))
    listener.close()
    again = Listener(path)
    assert journal.send(entry(b"two"))
    assert again.messages() == [b"two"]
    again.close()


def test_listener_that_died_full_wakes_who_waits(journal: Journal, listener: Listener, path: Path) -> None:
    async def scenario() -> None:
        fill(journal)
        waiter = asyncio.create_task(writable(journal))
        await asyncio.sleep(0)
        listener.close()
        await asyncio.wait_for(waiter, DEADLINE)
        assert not journal.send(entry())
        again = Listener(path)
        await send_all(journal, [b"new"])
        assert again.messages() == [b"new"]
        again.close()

    asyncio.run(scenario())


def test_full_socket_that_nobody_reads_is_left_for_the_one_at_the_path(
    journal: Journal, listener: Listener, path: Path
) -> None:
    async def scenario() -> None:
        fill(journal)
        again = Listener(path)  # the old one stays open
        await asyncio.wait_for(send_all(journal, [b"new"]), DEADLINE)
        assert again.messages() == [b"new"]
        again.close()

    asyncio.run(scenario())


def test_removed_file_does_not_end_a_connection(journal: Journal, listener: Listener, path: Path) -> None:
    assert journal.send(entry(b"one"))
    path.unlink()
    assert journal.send(entry(b"two"))
    assert listener.messages() == [b"one", b"two"]


@pytest.mark.usefixtures("listener")
def test_entry_over_all_limits_raises_and_harms_no_other(journal: Journal) -> None:
    with pytest.raises(OSError) as raised:
        journal.send(entry(b"x" * (1 << 24)))
    assert raised.value.errno == errno.EMSGSIZE
    assert journal.send(entry())


def test_close_forgets_who_waits(journal: Journal) -> None:
    async def scenario() -> None:
        assert not journal.send(entry())
        journal.when_writable(lambda: pytest.fail("called after close"))
        journal.close()
        await asyncio.sleep(0.2)

    asyncio.run(scenario())
