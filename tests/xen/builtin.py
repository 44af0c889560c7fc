"""What must hold with a QEMU that is unplugd's client itself (clients/qemu), on real Xen; by hand, for it builds QEMU.

`python -m tests.xen builtin`. The guests have no word about unplugd in them, and unplugd-attach does not run. Most are
the scenarios that hold for unplugd-attach, too.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.xen import scenarios
from tests.xen.lab import Guest, Lab
from tests.xen.scenarios import DENY, configure, equal

_PASS = "./pass-socket.py"
_KILL = "systemctl kill --kill-who=main unplugd -s "


def connected(guest: Guest) -> bool:
    """What the device says of itself."""
    return "true" in guest.monitor("qom-get /machine/peripheral/unplugd connected")


def services(lab: Lab) -> str:
    """unplugd runs, and unplugd-attach does not."""
    lab.machine.check("systemctl stop unplugd-attach; systemctl start unplugd", 600)
    return lab.machine.check("./qemu-builtin --version").splitlines()[0]


def covered(lab: Lab) -> str:
    """Every way to QEMU's unplug, denied, also where the BAR has moved; then what is allowed, by two of them."""
    guest = lab.guest("mon1")
    configure(lab, DENY)
    near = ["ww 10 3", f"m 1ff0 {'03000300' * 16}", *scenarios.NEAR, "wb 10 0"]
    guest.talk(*near, timeout=900)
    equal(guest.emulated, {"disk", "nic"})
    first = scenarios.bar_of(guest)
    accesses = len(near)
    for place in (first, 0xD000):
        guest.talk("wl cf8 80001010", f"wl cfc {place + 1:x}")
        assert f"I/O at 0x{place:04x}" in guest.monitor("info pci"), guest.monitor("info pci")
        forms = scenarios.at_bar(place)
        guest.talk(*forms, timeout=600)
        equal((place, guest.emulated), (place, {"disk", "nic"}))
        accesses += len(forms)
    configure(lab, "[policy]\nlegacy_unplug = true\n")
    guest.talk("wl d008 2")
    equal(guest.emulated, {"disk"})
    configure(lab, "")
    guest.talk("m 2000 00000100", "ol 0e 2000 1 0")
    equal(guest.emulated, set())
    return f"{accesses} accesses denied; 2 allowed unplug"


def machine_reset(lab: Lab) -> str:
    """The guest resets its machine: unplugd hears it, forgets, and the guest goes on as another domain."""
    guest = lab.create("monitor", "mon7", on_reboot="restart")
    lab.machine.check("xenstore-write /mh/driver-blacklist/gplpv-windows/9 'a test'")
    try:
        equal(guest.talk("ww 12 2", "wl 10 9", "rw 10", "R"), ["ok", "ok", "= d249", "ok"])
        old = guest.domid
        lab.machine.until(f"d=$(xl domid mon7) && [ $d != {old} ]", 480)
        guest.domid = int(lab.machine.check("xl domid mon7"))
        guest.talk("ready", timeout=540)
        equal(guest.talk("rw 10"), ["= 49d2"])
    finally:
        lab.machine.check("xenstore-rm /mh/driver-blacklist/gplpv-windows")
    lines = lab.journal(f"XEN_DOMID={old}")
    assert any("platform device reset" in line for line in lines), lines
    return "unplugd heard it"


def order_sent_again(lab: Lab) -> str:
    """unplugd dies with an unplug mask that it has not answered: the next one answers it, and QEMU unplugs."""
    guest = lab.guest("mon7")
    scenarios.pending(guest, _KILL + "STOP", _KILL + "KILL", "ww 10 2", "ok")
    equal(guest.emulated, {"disk"})
    return "the NIC is gone, the disk is there"


def latency(lab: Lab) -> str:
    """A guest's access through unplugd against one of a guest whose QEMU answers by itself, in the same boot."""
    guest = lab.guest("mon7")
    lab.builtin = False
    try:
        stock = lab.create("monitor", "mon8")
    finally:
        lab.builtin = True
    count = 100
    guest.talk(f"t 10 {count:x}", timeout=360)
    stock.talk(f"t 10 {count:x}", timeout=360)
    through, direct = (min(one.read(f"t 10 {count:x}") for _ in range(3)) for one in (guest, stock))
    stock.destroy()
    guest.destroy()
    return f"ratio {through / direct:.1f} (through unplugd / QEMU's own, {count} reads)"


def dm_restricted(lab: Lab) -> str:
    """A confined QEMU keeps its first connection, and gets the next one from its monitor."""
    machine = lab.machine
    for number, name in ((60000, "range-base"), (59999, "reaper")):
        machine.check(f"useradd -r -M -u {number} -s /usr/sbin/nologin xen-qemuuser-{name}")
    drop_in = "/etc/systemd/system/unplugd.service.d/pass-socket.conf"
    try:
        guest = lab.create("monitor", "mon5", more="dm_restrict = 1", phy=True)
        uid = machine.check(f"stat -c %u /proc/$(pgrep -f 'qemu-builtin.*-xen-domid {guest.domid} ')").strip()
        equal(uid, str(60000 + guest.domid))
        equal(guest.talk("rw 10", "ww 12 3", "wl 10 1"), ["= 49d2", "ok", "ok"])
        machine.check("systemctl restart unplugd", 480)
        equal(guest.talk("rw 10", "rb 12"), ["= ffff", "= ff"])
        equal(connected(guest), False)
        equal(machine.check(_PASS).strip(), f"domain {guest.domid} got a new connection")
        equal(machine.check(f"{_PASS} {guest.domid}").strip(), f"domain {guest.domid} is connected")
        equal(guest.talk("rw 10"), ["= 49d2"])
        # as README.md has it: unplugd's unit passes them by itself
        machine.put(drop_in, "[Service]\nExecStartPost=+-/root/pass-socket.py\n")
        machine.check("systemctl daemon-reload")
        machine.check(_KILL + "KILL")
        machine.until("systemctl is-active -q unplugd", 480)
        equal(connected(guest), True)
        equal(guest.talk("rw 10", "ww 10 3"), ["= 49d2", "ok"])
        equal(guest.emulated, set())
        guest.destroy()
    finally:
        machine.run(f"rm -f {drop_in}; systemctl daemon-reload")
        machine.run("userdel xen-qemuuser-range-base; userdel xen-qemuuser-reaper")
    return f"QEMU is uid {uid}; a socket by hand, one by the unit"


SCENARIOS: tuple[Callable[[Lab], str], ...] = (
    services, scenarios.linux_unplugs, scenarios.linux_blacklisted, scenarios.sequences, scenarios.strings,
    machine_reset, order_sent_again, dm_restricted, covered, scenarios.unplugd_killed, scenarios.unplugd_away, latency,
    scenarios.two_vcpus, scenarios.saved_and_restored, scenarios.rebooted,
)  # fmt: skip
