"""The journal sink against a real systemd-journald: what it stores, and what becomes of entries while it is away."""

import asyncio
import errno
import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from tests.lab.journald import DEADLINE, Journald
from unplugd.sinks.journal import Journal
from unplugd.sinks.records import Entry

IDENTIFIER = "SYSLOG_IDENTIFIER=unplugd-guest"
FIELDS = (
    ("PRIORITY", "6"),
    ("SYSLOG_IDENTIFIER", "unplugd-guest"),
    ("MESSAGE_ID", "37f2b761cab142c6bf0b323a713e22ba"),
    ("XEN_DOMID", "7"),
    ("XEN_DOMAIN_UUID", "4f0e0c5e-0000-4000-8000-000000000007"),
    ("XEN_DOMAIN_NAME", "web-01"),
    ("UNPLUG_PRODUCT", "3"),
    ("UNPLUG_PRODUCT_NAME", "linux"),
    ("UNPLUG_BUILD", "1"),
)
NEVER_BLOCKED = 5.0
"""Seconds that thousands of sends may take on a busy machine; one that waited for journald would take for ever."""


def entry(message: bytes) -> Entry:
    return Entry(time.time(), message, FIELDS)


def numbered(count: int) -> list[bytes]:
    return [b"line %d" % number for number in range(count)]


async def send_all(journal: Journal, messages: list[bytes]) -> None:
    """What a caller does: in order, keep what is not taken, and wait to be called."""
    for message in messages:
        while not journal.send(entry(message)):
            event = asyncio.Event()
            journal.when_writable(event.set)
            await asyncio.wait_for(event.wait(), DEADLINE)


def fill(journal: Journal) -> list[bytes]:
    taken: list[bytes] = []
    start = time.monotonic()
    while journal.send(entry(b"line %d" % len(taken))):
        taken.append(b"line %d" % len(taken))
        assert time.monotonic() - start < DEADLINE
    return taken


def messages(entries: list[dict[str, Any]]) -> list[bytes]:
    return [found["MESSAGE"].encode() for found in entries]


def stored(journald: Journald, expected: list[bytes]) -> list[dict[str, Any]]:
    """Wait until exactly the `expected` messages are in the journal, in order."""
    entries = journald.wait_for(lambda found: len(found) >= len(expected), IDENTIFIER)
    assert messages(entries) == expected
    return entries


def test_fields_arrive(journald: Journald) -> None:
    journal = Journal(str(journald.socket))
    assert journal.send(entry(b"XENBUS|Initialize: ok"))
    (found,) = stored(journald, [b"XENBUS|Initialize: ok"])
    assert dict(FIELDS).items() <= found.items()
    assert "UNPLUG_TIMESTAMP" not in found
    journal.close()


def test_late_entry_says_when(journald: Journald) -> None:
    journal = Journal(str(journald.socket))
    assert journal.send(Entry(1700000000.25, b"late", FIELDS))
    (found,) = stored(journald, [b"late"])
    assert found["UNPLUG_TIMESTAMP"] == "2023-11-14T22:13:20.250Z"
    journal.close()


def test_domain_name_with_a_newline(journald: Journald) -> None:
    journal = Journal(str(journald.socket))
    fields = (*FIELDS[:2], ("XEN_DOMAIN_NAME", "a\nXEN_DOMID=0"))
    assert journal.send(Entry(time.time(), b"x", fields))
    (found,) = stored(journald, [b"x"])
    assert found["XEN_DOMAIN_NAME"] in ("a\nXEN_DOMID=0", list(b"a\nXEN_DOMID=0"))
    assert "XEN_DOMID" not in found
    journal.close()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", ""),
        (b"one\nPRIORITY=0\n_UID=12", r"one\x0aPRIORITY=0\x0a_UID=12"),
        (b"\xff\xfe\xc3", r"\xff\xfe\xc3"),
        (b"a\x00b", r"a\x00b"),
        (b"\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        (b"C:\\temp\\new", r"C:\temp\new"),
        ("Grüße".encode(), "Grüße"),
        ("\ufdd0hidden".encode(), r"\xef\xb7\x90hidden"),
        (b"\x1b" * 4095, r"\x1b" * 4095),
        (b"\xff" * 4095, r"\xff" * 4095),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_hostile_messages_are_stored_as_said(journald: Journald, raw: bytes, said: str) -> None:
    journal = Journal(str(journald.socket))
    assert journal.send(entry(raw))
    # A string in journalctl's JSON: it found nothing that it would not print.
    (found,) = journald.wait_for(lambda entries: len(entries) == 1, IDENTIFIER)
    assert found["MESSAGE"] == said
    assert found["PRIORITY"] == "6"
    assert found["_TRANSPORT"] == "journal"
    journal.close()


def test_stopped_journald_never_blocks_and_loses_nothing(journald: Journald) -> None:
    async def scenario() -> list[bytes]:
        journal = Journal(str(journald.socket))
        journald.suspend()
        taken = fill(journal)
        start = time.monotonic()
        for _ in range(2000):
            assert not journal.send(entry(b"never"))
        assert time.monotonic() - start < NEVER_BLOCKED
        later = [b"later %d" % number for number in range(500)]
        sender = asyncio.create_task(send_all(journal, later))
        await asyncio.sleep(0.2)
        assert not sender.done()
        journald.resume()
        await asyncio.wait_for(sender, DEADLINE)
        journal.close()
        return taken + later

    stored(journald, asyncio.run(scenario()))


def test_killed_journald_gets_the_rest_when_it_is_back(journald: Journald) -> None:
    async def scenario() -> None:
        journal = Journal(str(journald.socket))
        await send_all(journal, [b"before"])
        stored(journald, [b"before"])
        journald.kill()
        start = time.monotonic()
        for _ in range(2000):
            assert not journal.send(entry(b"never"))
        assert time.monotonic() - start < NEVER_BLOCKED
        sender = asyncio.create_task(send_all(journal, numbered(500)))
        await asyncio.sleep(0.2)
        assert not sender.done()
        journald.start()  # not in a thread: journald goes when that ends
        await asyncio.wait_for(sender, DEADLINE)
        journal.close()

    asyncio.run(scenario())
    stored(journald, [b"before", *numbered(500)])


def test_restarted_journald_loses_nothing(journald: Journald) -> None:
    async def scenario() -> None:
        journal = Journal(str(journald.socket))
        await send_all(journal, numbered(100))
        stored(journald, numbered(100))  # what it had not read would die with it
        journald.restart()
        await send_all(journal, numbered(200)[100:])
        journal.close()

    asyncio.run(scenario())
    stored(journald, numbered(200))


def test_absent_socket(journald: Journald) -> None:
    async def scenario() -> None:
        journald.kill()
        journald.remove_socket()
        journal = Journal(str(journald.socket))
        assert not journal.send(entry(b"never"))
        sender = asyncio.create_task(send_all(journal, numbered(100)))
        await asyncio.sleep(0.1)
        assert not sender.done()
        journald.start()  # not in a thread: journald goes when that ends
        await asyncio.wait_for(sender, DEADLINE)
        journal.close()

    asyncio.run(scenario())
    stored(journald, numbered(100))


def test_removed_socket_does_not_end_a_connection(journald: Journald) -> None:
    journal = Journal(str(journald.socket))
    assert journal.send(entry(b"one"))
    journald.remove_socket()
    assert journal.send(entry(b"two"))
    stored(journald, [b"one", b"two"])
    journal.close()


def test_entry_over_the_sockets_limit(journald: Journald) -> None:
    journal = Journal(str(journald.socket))
    with pytest.raises(OSError) as raised:
        journal.send(entry(b"x" * (1 << 24)))
    assert raised.value.errno == errno.EMSGSIZE
    assert journal.send(entry(b"next"))
    stored(journald, [b"next"])
    journal.close()


def test_what_was_sent_outlives_the_sender(journald: Journald) -> None:
    """A process at the fixed path that is killed right after `send`, while journald does not even read."""
    program = textwrap.dedent("""
        import os, signal, sys, time
        from unplugd.sinks.records import Entry
        from unplugd.sinks.journal import Journal
        journal = Journal()
        for number in range(5):
            assert journal.send(Entry(time.time(), b"line %d" % number, (("SYSLOG_IDENTIFIER", "unplugd-guest"),)))
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    journald.suspend()
    argv = journald.command([sys.executable, "-c", program], cwd=Path.cwd())
    assert subprocess.run(argv, timeout=DEADLINE, check=False).returncode == -9
    journald.resume()
    stored(journald, numbered(5))


def test_journalctl_of_the_namespace_shows_it(journald: Journald) -> None:
    journal = Journal(str(journald.socket))
    assert journal.send(entry(b"hello"))
    stored(journald, [b"hello"])
    argv = journald.command(["journalctl", "--output=json", "--quiet", "XEN_DOMID=7"])
    shown = subprocess.run(argv, stdout=subprocess.PIPE, timeout=DEADLINE, check=True).stdout
    assert [json.loads(line)["MESSAGE"] for line in shown.splitlines()] == ["hello"]
    journal.close()
