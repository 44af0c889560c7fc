"""What a blacklist's actions do on real Xen: scenarios as in scenarios.py.

QEMU says by QMP which emulated devices remain (`query-block`, `query-pci`), not unplugd.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import Any

from tests.xen.lab import Guest, Lab
from tests.xen.scenarios import attached, configure, equal

XENBUS = 0xFFFF
"""The product number in all public sources of the Windows drivers."""
RUNS, BAD = 0x9035E, 0x90402
"""Builds of XENBUS: 9.2.350 and 9.4.2."""


def listed(action: str, product: str, build: int) -> str:
    """A configuration that has one build on the blacklist."""
    return (f'[[blacklist.entry]]\nproduct = "{product}"\nbuild = {build}\naction = "{action}"\n'
            'reason = "a test"\n')  # fmt: skip


def query(guest: Guest, command: str, **arguments: Any) -> Any:
    """What QEMU answers."""
    words = f"./qmp.py {guest.domid} {command} {shlex.quote(json.dumps(arguments))}"
    return json.loads(guest.machine.check(words))


def remaining(guest: Guest) -> set[str]:
    """What QEMU still emulates, of `disk` and `nic`."""
    disks = {block["device"] for block in query(guest, "query-block") if "inserted" in block}
    cards = {(device["id"]["vendor"], device["id"]["device"]) for bus in query(guest, "query-pci")
             for device in bus["devices"]}
    return {what for what, there in (("disk", "ide0-hd0" in disks), ("nic", (0x10EC, 0x8139) in cards)) if there}


def announce(guest: Guest, build: int) -> int:
    """XENBUS's beginning; returns the magic number after it."""
    equal(guest.talk("rb 12", f"ww 12 {XENBUS:x}", f"wl 10 {build:x}"), ["= 01", "ok", "ok"])
    return guest.read("rw 10")


def unplug(guest: Guest) -> None:
    """XENBUS's masks, which it writes whatever the magic number was: since 2026 disks with NVMe, then NICs."""
    equal(guest.talk("ww 10 9", "ww 10 2"), ["ok", "ok"])


def wait_for_verdict(guest: Guest, verdict: str) -> None:
    """What the toolstack is told follows soon."""
    guest.machine.until(f"[ $(xenstore-read /local/domain/{guest.domid}/unplug/verdict) = {verdict} ]", 120)


def told(lab: Lab, guest: Guest) -> list[tuple[int, int]]:
    """The product and build numbers that this QEMU's ports got, by its own trace: (port, value), the oldest first."""
    lines = lab.machine.check(
        f"grep -oE 'cpu_out addr 0x1[02]\\([wl]\\) value [0-9]+' /var/log/xen/qemu-dm-{guest.name}.log || true"
    ).splitlines()
    words = [line.replace("(", " (").split() for line in lines]
    return [(int(port, 16), int(value)) for _, _, port, size, _, value in words
            if (port, size) in (("0x12", "(w)"), ("0x10", "(l)"))]


def told_to_qemu(lab: Lab) -> str:
    """A driver that may run is passed on to QEMU, after the orders. Debian's QEMU keeps neither number; its trace of
    port writes shows them."""
    guest = lab.create("monitor", "xb1")
    attached(lab, guest)
    query(guest, "trace-event-set-state", name="cpu_out", enable=True)
    equal(announce(guest, RUNS), 0x49D2)
    lab.machine.until(f"grep -q 'cpu_out addr 0x10(l) value {RUNS}' /var/log/xen/qemu-dm-xb1.log", 120)
    equal(told(lab, guest), [(0x12, XENBUS), (0x10, RUNS)])
    return f"product {XENBUS}, build {RUNS} in QEMU's trace"


def xenbus_refused(lab: Lab) -> str:
    """The driver announces another build, is refused, and unplugs all the same: QEMU's devices go, and it is shown."""
    guest = lab.guest("xb1")
    equal(remaining(guest), {"disk", "nic"})
    configure(lab, listed("refuse", "experimental", BAD))
    before = told(lab, guest)
    equal(announce(guest, BAD), 0xD249)
    wait_for_verdict(guest, "refused")
    unplug(guest)
    equal(remaining(guest), set())
    wait_for_verdict(guest, "ignored")
    assert "IGNORED" in lab.machine.check("unplugctl list"), lab.machine.check("unplugctl list")
    lab.machine.run("sleep 5")
    equal(told(lab, guest), before)  # QEMU hears of no driver that is refused
    configure(lab, "")
    guest.destroy()
    return "d249, unplugged all the same, IGNORED; not passed on to QEMU"


def xenbus_withheld(lab: Lab) -> str:
    """The same under `withhold`: QEMU keeps both. A reload to `refuse` counts from the next mask on."""
    configure(lab, listed("withhold", "experimental", BAD))
    guest = lab.create("monitor", "xb2")
    attached(lab, guest)
    equal(announce(guest, BAD), 0xD249)
    unplug(guest)
    equal(remaining(guest), {"disk", "nic"})
    wait_for_verdict(guest, "withheld")
    equal(guest.node("unplug/unplugged"), "0")
    configure(lab, listed("refuse", "experimental", BAD))
    equal(guest.talk("ww 10 2"), ["ok"])
    equal(remaining(guest), {"disk"})
    wait_for_verdict(guest, "ignored")
    configure(lab, "")
    guest.destroy()
    return "d249; disk and NIC stay in query-block, query-pci"


def linux_reported(lab: Lab) -> str:
    """Debian's kernel on the blacklist with `report` boots paravirtual, and is reported."""
    configure(lab, listed("report", "linux", 1))
    guest = lab.create("linux", "linux3", boot="stay")
    console = lab.console("linux3", 900)
    assert "LAB block xvda" in console, console
    assert "LAB net eth0 ../../devices/vif-0/" in console, console
    assert "LAB block sda" not in console, console
    assert "blacklisted" not in console, console
    equal(remaining(guest), set())
    wait_for_verdict(guest, "reported")
    equal(guest.node("unplug/blacklisted"), "0")
    lines = lab.journal(f"XEN_DOMID={guest.domid}", "SYSLOG_IDENTIFIER=unplugd")
    assert any("is on the blacklist and only reported" in line for line in lines), lines
    metrics = lab.machine.check("./control.py /metrics")
    uuid = guest.node("vm").removeprefix("/vm/")
    series = f'unplugd_domain_verdict{{domid="{guest.domid}",uuid="{uuid}",verdict="reported"}} 1'
    assert series in metrics, metrics
    configure(lab, "")
    guest.destroy()
    return "xvda, PV NIC; reported in journal, xenstore, metrics"


VERDICTS: tuple[Callable[[Lab], str], ...] = (told_to_qemu, xenbus_refused, xenbus_withheld, linux_reported)
