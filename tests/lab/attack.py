"""What an attack costs: everybody else is answered within NOW seconds, and the daemon grows by at most MEMORY.

Domain 1 attacks, domain 2 is the bystander.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from tests.lab.bystander import Bystander
from tests.lab.daemon import Daemon

NOW = 1.0
"""Seconds within which everybody else must be answered."""
MEMORY = 24
"""MiB that an attack may cost."""
COMPLAINTS = 20 + 3
"""Records that the device models of one domain can cause at once, and what comes on top while a test runs."""
BURST, RATE = 131072, 256
"""The contract's figures for a guest's log: bytes at once, bytes a second."""
BEFORE = 3 * 128
"""Charged bytes of the records that are said before a guest can do anything: not its doing."""


def resident(daemon: Daemon) -> float:
    """The daemon's memory in MiB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


@contextlib.contextmanager
def attacked(daemon: Daemon) -> Iterator[Bystander]:
    """What happens inside costs the others nothing."""
    with daemon.connect(1) as wire:
        wire.log(b"first\n")  # what is loaded when first used is loaded
    before = resident(daemon)
    with Bystander(daemon, 2) as other:
        yield other
    assert other.longest < NOW
    assert resident(daemon) - before < MEMORY


def complaints(daemon: Daemon, text: str) -> int:
    """How many records say this."""
    return len(re.findall(text, daemon.stderr()))


def stored(daemon: Daemon) -> int:
    """Bytes that the guest made dom0 store, as the contract charges them: its file and the records about it."""
    charged = sum(max(64, len(line)) for line in daemon.guest_lines("vm1"))
    about = [line.split("unplugd: ", 1)[-1] for line in daemon.stderr().splitlines() if "vm1 (domain 1)" in line]
    return charged + sum(max(64, len(line)) for line in about)
