"""unplugd where its package puts it, looked at with the tools of dom0: journalctl, xenstore-ls, unplugctl."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import ALL_BLOCKS, IN_DOM0, Block
from tests.lab.dom0 import GUESTS, ROOT, Dom0
from tests.lab.journald import missing
from tests.lab.xenstored import needed
from unplugd.sinks.records import Event

CATALOG = (ROOT / "systemd" / "unplugd.catalog").read_text()


@pytest.fixture(scope="module")
def dom0() -> Iterator[Dom0]:
    if reason := missing():
        pytest.skip(reason)
    needed()
    with tempfile.TemporaryDirectory(prefix="dom0-") as directory, Dom0(Path(directory)) as host:
        for domid, (_, guest) in GUESTS.items():
            host.play(domid, guest)
        yield host


def test_journalctl_explains_every_record(dom0: Dom0) -> None:
    """-x shows the catalog's text for each MESSAGE_ID, with the guest's name in it."""
    for event in Event:
        dom0.run(
            f"printf 'MESSAGE=tried\\nMESSAGE_ID={event.message_id}\\nXEN_DOMID=7\\nXEN_DOMAIN_NAME=web-01\\n"
            f"UNPLUG_PRODUCT_NAME=linux\\nUNPLUG_BUILD=1\\n' | logger --journald"
        )
    for event in Event:
        command = f"journalctl -x --no-pager MESSAGE_ID={event.message_id} MESSAGE=tried"
        said = dom0.run(f"for i in $(seq 100); do {command} | grep -q tried && break; sleep 0.1; done; {command}")
        subject = re.search(rf"^-- {event.message_id}\nSubject: (.*)$", CATALOG, re.MULTILINE)
        assert subject is not None
        expected = re.sub(r"@(\w+)@", lambda field: {"XEN_DOMAIN_NAME": "web-01", "XEN_DOMID": "7"}.get(
            field[1], field[0]), subject[1])  # fmt: skip
        assert f"Subject: {expected}" in said
        assert "Defined-By: unplugd" in said


def test_real_records_are_explained(dom0: Dom0) -> None:
    said = dom0.run("journalctl -x --no-pager SYSLOG_IDENTIFIER=unplugd XEN_DOMAIN_NAME=old-win")
    assert "PV driver xensource-windows build 86451 is blacklisted: loses data on resume" in said
    assert "Subject: " in said
    assert "unplugctl blacklist remove xensource-windows 86451" in said


def test_events_and_logs_are_found_where_they_are(dom0: Dom0) -> None:
    kinds = [line.split()[2] for line in dom0.run("unplugctl events old-win").splitlines()]
    assert {"introduced", "announced", "blacklisted"} <= set(kinds)
    assert "XENBUS|UnplugInitialize" in dom0.run("unplugctl log win-ts")
    assert "XENBUS|UnplugInitialize" in dom0.run("cat /var/log/xen/unplugd/guest-win-ts.log")


def test_the_toolstacks_nodes(dom0: Dom0) -> None:
    listed = dom0.run("for i in $(seq 100); do xenstore-exists /local/domain/9/unplug/blacklisted && break;"
                      " sleep 0.1; done; xenstore-ls -p /local/domain/9/unplug")  # fmt: skip
    assert dict(re.findall(r"^([a-z-]+) = \"(.*)\"[ .]+\(n0\)$", listed, re.MULTILINE)) == {
        "product": "1", "product-name": "xensource-windows", "build": "86451", "blacklisted": "1", "unplugged": "0",
        "verdict": "refused",
    }  # fmt: skip


def test_a_node_that_is_written_by_hand_blacklists(dom0: Dom0) -> None:
    dom0.run('xenstore-write /mh/driver-blacklist/experimental/590080 "by hand"')
    try:
        assert "by hand" in dom0.run("unplugctl blacklist check experimental 9.1.0", status=1)
        dom0.play(8, "xenbus")
        assert "by hand" in dom0.run("unplugctl show win-ts")
    finally:
        dom0.run("xenstore-rm /mh/driver-blacklist/experimental/590080")
        dom0.play(8, "xenbus")
    assert "is allowed" in dom0.run("unplugctl show win-ts")


@pytest.mark.parametrize("block", [block for block in ALL_BLOCKS if block.note == IN_DOM0], ids=lambda b: b.page)
def test_commands_of_the_documentation(block: Block, dom0: Dom0) -> None:
    """As they stand there, one after another. One that follows is ended after a while; "no" (1) is an answer."""
    for command in block.text.splitlines():
        follows = re.search(r" (-f|top)\b", command) and " -b " not in command
        done = dom0.call(f"timeout 3 {command}" if follows else command)
        answered = (0, 124) if follows else (0, 1) if "blacklist check" in command else (0,)
        assert done.returncode in answered, (command, done.stdout, done.stderr)
        assert done.stdout or "xenstore-" in command or follows, command
