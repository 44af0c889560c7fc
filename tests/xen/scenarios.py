"""What must hold on real Xen: one function each, which raises AssertionError or returns in a few words what it saw.

They run in the order of SCENARIOS and share a machine; a guest that one leaves is there for the next (`lab.guest`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from tests.xen.lab import Guest, Lab

CHILD = "$(pgrep -P $(systemctl show -p MainPID --value unplugd-attach) | head -1)"
DENY = '[policy]\nallow_unplug = []\n'


def equal(seen: object, expected: object) -> None:
    """A comparison that says both sides."""
    if seen != expected:
        raise AssertionError(f"saw {seen!r}, expected {expected!r}")


def configure(lab: Lab, text: str) -> None:
    """Give unplugd another configuration."""
    lab.machine.put("/etc/unplugd/unplugd.toml", text)
    lab.machine.check("systemctl reload unplugd")


def put_right(lab: Lab) -> None:
    """What a scenario expects, after one that stopped in the middle."""
    lab.machine.run("pkill talk.py; systemctl start unplugd" + ("" if lab.builtin else " unplugd-attach"), 600)
    lab.machine.put("/etc/unplugd/unplugd.toml", "")
    lab.machine.until("systemctl reload unplugd", 240)  # it may have been killed just now


def attached(lab: Lab, guest: Guest) -> None:
    """Wait until the guest's process has said so; a QEMU that is unplugd's client connects before the guest runs."""
    if lab.builtin:
        return
    lab.machine.until(f"journalctl -q -o cat -t unplugd-attach XEN_DOMID={guest.domid} | grep -q attached", 240)


def services(lab: Lab) -> str:
    """unplugd and unplugd-attach run as their units say."""
    lab.machine.check("systemctl start unplugd unplugd-attach", 600)
    equal(lab.machine.check("systemctl is-active unplugd unplugd-attach").split(), ["active", "active"])
    return lab.machine.check("xl info | grep ^xen_version").split()[-1]


# --- a real Linux -----------------------------------------------------------------------------------------------------


def linux_unplugs(lab: Lab) -> str:
    """Debian's kernel unplugs, and everybody says the same."""
    guest = lab.create("linux", "linux1", boot="stay")
    console = lab.console("linux1", 900)
    assert "LAB block xvda" in console, console
    assert "LAB net eth0 ../../devices/vif-0/" in console, console
    assert "LAB block sda" not in console, console
    assert "0x10ec 0x8139" not in console, console
    equal(guest.emulated, set())
    uuid = guest.node("vm").removeprefix("/vm/")
    lines = lab.journal(f"XEN_DOMID={guest.domid}", f"XEN_DOMAIN_UUID={uuid}", "XEN_DOMAIN_NAME=linux1")
    assert any("PV driver linux (3) build 1: allowed" in line for line in lines), lines
    nodes = {"product": "3", "product-name": "linux", "build": "1", "blacklisted": "0", "unplugged": "3"}
    equal({name: guest.node(f"unplug/{name}") for name in nodes}, nodes)
    metrics = lab.machine.check("./control.py /metrics")
    info = f'domid="{guest.domid}",uuid="{uuid}",name="linux1",product="3",build="1"'
    assert f"unplugd_domain_info{{{info}}} 1" in metrics, metrics
    guest.destroy()
    return "xvda, PV NIC; no sda, no rtl8139"


def linux_blacklisted(lab: Lab) -> str:
    """The same kernel, blacklisted, keeps what QEMU emulates."""
    lab.machine.check("xenstore-write /mh/driver-blacklist/linux/1 'a test'")
    try:
        guest = lab.create("linux", "linux2", boot="stay")
        console = lab.console("linux2", 900)
        assert "Xen Platform: blacklisted by host" in console, console
        assert "LAB block sda" in console, console
        assert "0x10ec 0x8139" in console, console
        equal(guest.emulated, {"disk", "nic"})
        equal(guest.node("unplug/blacklisted"), "1")
        guest.destroy()
    finally:
        lab.machine.check("xenstore-rm /mh/driver-blacklist/linux")
    return "blacklisted by host; sda, rtl8139"


# --- the boot-sector guest --------------------------------------------------------------------------------------------


def sequences(lab: Lab) -> str:
    """What drivers do: XENBUS, XenServer's old ones, GPLPV, BSD."""
    lab.machine.check("xenstore-write /mh/driver-blacklist/xensource-windows/86451 'a test'")
    guest = lab.create("monitor", "mon1")
    attached(lab, guest)
    equal(guest.talk("rw 10", "rb 12", "rw 14", "rl 10"), ["= 49d2", "= 01", "= ffff", "= ffffffff"])
    equal(guest.talk("wl 10 7", "ww 12 2", "wl 10 9", "rw 10"), ["ok", "ok", "ok", "= 49d2"])
    equal(guest.talk("ww 12 ffff", "wl 10 080201", "rw 10"), ["ok", "ok", "= 49d2"])
    equal(guest.talk("wb 10 1", "rb 10", "wb 10 0", "rb 10"), ["ok", "= 01", "ok", "= 00"])
    lines = lab.journal(f"XEN_DOMID={guest.domid}")
    for text in ("build number 7 ignored", "gplpv-windows (2) build 9: allowed", "experimental (65535) build 524801"):
        assert any(text in line for line in lines), (text, lines)
    equal(guest.talk("ww 12 1", "wl 10 151b3", "rw 10"), ["ok", "ok", "= d249"])
    lab.machine.check("xenstore-rm /mh/driver-blacklist/xensource-windows")
    return "4 drivers, flags, blacklist"


def cost(lab: Lab) -> str:
    """What a domain's process costs beside the supervisor that it was forked from."""
    lab.guest("mon1")
    sums = {}
    for name, process in (("child", CHILD), ("supervisor", "$(systemctl show -p MainPID --value unplugd-attach)")):
        lines = lab.machine.check(f"cat /proc/{process}/smaps_rollup").splitlines()[1:]
        sums[name] = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    own = sums["child"]["Private_Dirty"] + sums["child"]["Private_Clean"]
    return f"{own} kB of its own (Pss {sums['child']['Pss']} kB); supervisor Rss {sums['supervisor']['Rss']} kB"


def strings(lab: Lab) -> str:
    """String I/O: both directions, across pages, with df, read and written; escaped and limited in the journal."""
    guest = lab.guest("mon1")
    guest.talk("m 2000 68656c6c6f0a", "ob 12 2000 6 0", "m 2ffd 61637269730a", "ob 12 2ffd 6 0",
               "m 3100 0a6b636162", "ob 12 3104 5 1", "m 2ffc 0a73756f6963617267", "ob 12 3004 9 1",
               "m 2000 1b5b316d07c30a", "ob 12 2000 7 0", "s 12 byte by byte")
    lines = lab.journal("SYSLOG_IDENTIFIER=unplugd-guest", f"XEN_DOMID={guest.domid}")
    equal(lines, ["hello", "acris", "back", "gracious", "\\x1b[1m\\x07\\xc3", "byte by byte"])
    magic = "49d2" if guest.talk("rw 10") == ["= 49d2"] else "d249"
    low = magic[2:] + magic[:2]
    zeroes = "00" * 10
    equal(guest.talk(f"m 4000 {zeroes}", "ib 12 4001 8 0", "d 4000 a")[-1], "= 00" + "01" * 8 + "00")
    equal(guest.talk(f"m 4ffc {zeroes}", "iw 10 4ffd 4 0", "d 4ffc a")[-1], "= 00" + low * 4 + "00")
    equal(guest.talk(f"m 4ffc {zeroes}", "iw 10 5003 4 1", "d 4ffc a")[-1], "= 00" + low * 4 + "00")
    return "outs, ins, df, page boundary"


_SIZES = (("b", 1), ("w", 2), ("l", 4))
NEAR = [
    form
    for size, _ in _SIZES
    for port in range(0x0B, 0x17)
    for form in (f"w{size} {port:02x} 03030303", f"o{size} {port:02x} 2000 4 0", f"o{size} {port:02x} 2000 4 1")
]
"""A write of every size, single and as a string in both directions, at every port from 0x0b to 0x16; in memory lie
words of 3, so that every form writes an unplug mask to whatever of it lies at 0x10."""


def bar_of(guest: Guest) -> int:
    """Where the platform device (00:02.0) has its I/O BAR, by its configuration space."""
    guest.talk("wl cf8 80001010")
    return guest.read("rl cfc") & 0xFFFC


def at_bar(bar: int) -> list[str]:
    """Every size and alignment that writes a 1 to BAR + 4 or a 1 or a 2 to BAR + 8, single and as a string."""
    forms = []
    for target, value in ((4, "01"), (8, "01"), (8, "02")):
        forms.append(f"m 2000 {value * 16}")
        for size, width in _SIZES:
            forms.append(f"o{size} {bar + target:x} 2000 2 0")
            forms += [f"w{size} {bar + at:x} {value * 4}" for at in range(target - width + 1, target + 1)]
    return forms


def bypass(lab: Lab) -> str:
    """Every way to QEMU's unplug, denied: QEMU keeps disk and NIC. Then what is allowed, by two of them."""
    guest = lab.guest("mon1")
    configure(lab, DENY)
    words = "03000300" * 16
    near = ["ww 10 3", f"m 1ff0 {words}", *NEAR, "wb 10 0"]
    guest.talk(*near, timeout=900)
    equal(guest.emulated, {"disk", "nic"})
    first = bar_of(guest)
    bar = [*at_bar(first)]
    guest.talk(*bar, timeout=600)
    equal(guest.emulated, {"disk", "nic"})
    moves = {
        "at once": (0xD000, ["wl cfc d001"]),
        "by a byte": (0xD100, ["wb cfd d1"]),
        "by a word": (0xD200, ["ww cfc d201"]),
        "as a string": (0xD300, ["m 2000 01d30000", "ol cfc 2000 1 0"]),
        "switched off and on": (0xD400, ["wl cf8 80001004", "ww cfc 2", "wl cf8 80001010", "wl cfc d401",
                                         "wl cf8 80001004", "ww cfc 3", "wl cf8 80001010"]),
    }  # fmt: skip
    for how, (place, commands) in moves.items():
        guest.talk("wl cf8 80001010", *commands, timeout=360)
        equal((how, bar_of(guest)), (how, place))
        assert f"I/O at 0x{place:04x}" in guest.monitor("info pci"), guest.monitor("info pci")
        guest.talk(f"wb {place + 4:x} 1", f"wl {place + 8:x} 2", f"wb {place + 8:x} 1", timeout=360)
        equal((how, guest.emulated), (how, {"disk", "nic"}))
    # across the border of the configuration data port, which Xen does not take for a configuration access
    for crossing in ("wl cfa d5010000", "ww cfb d500", "wl cf9 01000000"):
        guest.talk("wl cf8 80001010", crossing)
    equal(bar_of(guest), 0xD400)
    # 4 bytes at 0xcf9 are QEMU's; were the last of them the command register's, it would switch the BAR on
    guest.talk("wl cf8 80001004", "ww cfc 2", "wl cf8 80001010", "wl cfc d601", "wl cf8 80001004", "wl cf9 03000000")
    guest.talk("wb d604 1", "wl d608 2", "ww d607 0100")
    equal(guest.emulated, {"disk", "nic"})
    guest.talk("wl cf8 80001004", "ww cfc 3")
    assert "I/O at 0xd600" in guest.monitor("info pci"), guest.monitor("info pci")
    guest.talk("wb d604 1", "wl d608 2", "ww d607 0100")
    equal(guest.emulated, {"disk", "nic"})
    guest.talk("wl cf8 80001010", f"wl cfc {first + 1:x}")
    configure(lab, "[policy]\nlegacy_unplug = true\n")
    guest.talk(f"wl {first + 8:x} 2")
    equal(guest.emulated, {"disk"})
    configure(lab, "")
    guest.talk("m 2000 00000100", "ol 0e 2000 1 0")
    equal(guest.emulated, set())
    return f"{len(near) + len(bar)} accesses and {len(moves)} moves denied; 2 allowed unplug"


def not_ours(lab: Lab) -> str:
    """The DMA controller's ports reach QEMU unchanged."""
    guest = lab.guest("mon1")
    guest.talk("wb 0f 5")  # mask bits of channels 0 and 2
    direct = guest.monitor("i /b 0xf", "i /h 0xe")
    values = ["= " + line.split("0x")[-1].strip() for line in direct.split("\n") if "= 0x" in line]
    equal(guest.talk("rb 0f", "rw 0e"), values)
    low = guest.talk("rw 0e")[0].removeprefix("= ")
    magic = guest.talk("rw 10")[0].removeprefix("= ")
    equal(guest.talk("rl 0e"), [f"= {magic}{low}"])
    return "mask register 0x0f, crossing read"


# --- survival ---------------------------------------------------------------------------------------------------------


def pending(guest: Guest, stop: str, kill: str, access: str = "rb 12", answer: str = "= 01") -> None:
    """Make an access pend by stopping what serves it, then do `kill`: the access must be answered."""
    machine = guest.machine
    seconds = 300.0
    machine.check(stop)
    talk = f"./talk.py --timeout {seconds:.0f} /run/{guest.name}.serial '{access}'"
    machine.check(f"rm -f pending; (setsid {talk} >pending 2>&1 &)")
    machine.run("sleep 1.5")
    equal(machine.check("cat pending"), "")
    machine.check(kill)
    machine.until("grep -q . pending", seconds)
    equal(machine.check("cat pending").strip(), answer)


def child_killed(lab: Lab) -> str:
    """SIGKILL of a domain's process with an access pending that is its own to carry out."""
    guest = lab.guest("mon1")
    equal(guest.talk("rb 12"), ["= 01"])
    lab.machine.check(f"kill -STOP {CHILD}")
    equal(guest.talk("rb 12", "rb 12"), ["= 01", "= 01"])  # unplugd has the page
    equal(json.loads(lab.machine.check("./control.py /api/v1/status"))["lent_pages"], [guest.domid])
    pending(guest, f"kill -STOP {CHILD}", f"kill -KILL {CHILD}", "wb 10 0", "ok")
    equal(guest.talk("rb 12"), ["= 01"])
    assert "taken over" in " ".join(lab.journal("-t unplugd-attach", f"XEN_DOMID={guest.domid}"))
    return "answered by the next one"


def supervisor_killed(lab: Lab) -> str:
    """SIGKILL of the supervisor with an access pending."""
    guest = lab.guest("mon1")
    pending(guest, f"kill -STOP {CHILD}", "systemctl kill -s KILL --kill-who=main unplugd-attach", "wb 10 0", "ok")
    equal(guest.talk("rb 12"), ["= 01"])
    return "answered after the restart"


def unplugd_killed(lab: Lab) -> str:
    """SIGKILL of unplugd with an access pending; its state and the guest's are the same afterwards."""
    guest = lab.guest("mon1")
    before = guest.node("unplug/product")
    kill = "systemctl kill --kill-who=main unplugd -s "
    pending(guest, kill + "STOP", kill + "KILL")
    equal(guest.talk("rb 12"), ["= 01"])
    equal(guest.node("unplug/product"), before)
    lab.machine.check("(setsid ./talk.py --timeout 480 /run/mon1.serial 't 10 400' >pending 2>&1 &); sleep 1")
    for _ in range(3):
        lab.machine.check(kill + "KILL; sleep 1")
    lab.machine.until("grep -q = pending", 480)
    return "answered after the restart; 1,024 reads over three more"


def unplugd_away(lab: Lab) -> str:
    """While unplugd is stopped an access waits, then finds no device; afterwards the protocol is there again."""
    guest = lab.guest("mon1")
    lab.machine.check("systemctl stop unplugd", 240)
    equal(guest.talk("rw 10", "rb 12", timeout=540), ["= ffff", "= ff"])
    lab.machine.check("systemctl start unplugd", 480)
    lab.machine.until("./talk.py --timeout 20 /run/mon1.serial 'rb 12' | grep -q 01", 240)
    return "absent, then back"


def latency(lab: Lab) -> str:
    """A guest's access through unplugd against QEMU's own answer, in the same boot."""
    guest = lab.guest("mon1")
    count = 100
    guest.talk(f"t 10 {count:x}", timeout=360)
    through = min(guest.read(f"t 10 {count:x}") for _ in range(3))
    lab.machine.check("systemctl stop unplugd-attach", 240)
    direct = min(guest.read(f"t 10 {count:x}") for _ in range(3))
    lab.machine.check("systemctl start unplugd-attach", 480)
    return f"ratio {through / direct:.1f} (through unplugd / QEMU's own, {count} reads)"


def handed_back(lab: Lab) -> str:
    """A clean stop under fire: the guest reads on, and QEMU answers."""
    guest = lab.guest("mon2")
    attached(lab, guest)
    guest.talk("ww 12 3", "ww 10 2")
    equal(guest.emulated, {"disk"})
    lab.machine.check("(setsid ./talk.py --timeout 480 /run/mon2.serial 't 10 400' >pending 2>&1 &); sleep 1")
    lab.machine.check("systemctl stop unplugd-attach", 240)
    lab.machine.until("grep -q = pending", 480)
    guest.talk("ww 12 0", "rb 12")
    before = lab.machine.check("./control.py /metrics | grep ioreqs_total")
    equal(guest.talk("rw 10"), ["= 49d2"])
    equal(lab.machine.check("./control.py /metrics | grep ioreqs_total"), before)
    equal(lab.machine.check("ls /run/unplugd/attach").split(), ["empty"])
    # What the scenario `bypass` is about: alone, QEMU obeys this.
    guest.talk(f"wb {bar_of(guest) + 8:x} 1")
    equal(guest.emulated, set())
    lab.machine.check("systemctl start unplugd-attach", 480)
    return "QEMU answers, nothing is left"


def destroyed(lab: Lab) -> str:
    """`xl destroy` in the middle of an access leaves nothing behind."""
    guest = lab.guest("mon1")
    lab.machine.until("ls /run/unplugd/attach/dom*.json", 240)
    lab.machine.check(f"kill -STOP {CHILD}")
    lab.machine.check("(setsid ./talk.py --timeout 20 /run/mon1.serial 'wb 10 0' >/dev/null 2>&1 &); sleep 1")
    lab.machine.check("xl destroy mon1", 240)
    for file in (f"attach/dom{guest.domid}.json", f"dom{guest.domid}.sock"):
        lab.machine.until(f"! [ -e /run/unplugd/{file} ]", 240)
    lab.machine.until("[ $(xl list | wc -l) = 2 ]", 120)
    lab.machine.until("! pgrep -P $(systemctl show -p MainPID --value unplugd-attach)", 120)
    return "no domain, no process, no file"


# --- more than one ----------------------------------------------------------------------------------------------------


def two_vcpus(lab: Lab) -> str:
    """Both vCPUs of a guest, one at a time and at once."""
    guest = lab.create("monitor", "mon2", vcpus=2)
    attached(lab, guest)
    equal(guest.talk("x rw 10", "x rb 12", "x ww 12 3", "rw 10"), ["= 49d2", "= 01", "ok", "= 49d2"])
    equal(guest.talk("p 12 60", timeout=720), ["= 00000000"])
    guest.talk("x wl 0e 00020000")
    equal(guest.emulated, {"disk"})
    # 0x60 rounds on each: a byte a round, and a newline at the end
    said = json.loads(lab.machine.check(f"./control.py /api/v1/domains/{guest.domid}"))
    return f"0 wrong answers; log {said.get('log', said)}"[:100]


def restricted(lab: Lab) -> str:
    """A child cannot touch another domain: the calls that work for its own are refused for mon3."""
    first = lab.guest("mon2")
    second = lab.create("monitor", "mon3")
    attached(lab, second)
    out = lab.machine.check(f"./touch.py {first.domid} {second.domid}")
    status = lab.machine.check(f"cat /proc/{CHILD}/status")
    for text in ("CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert text in status, status
    assert "Uid:\t0" not in status, status
    second.destroy()
    return out.strip()


def saved_and_restored(lab: Lab) -> str:
    """Saved and restored, a guest finds the protocol again, and nothing of the old domain is left."""
    guest = lab.guest("mon2")
    old = guest.domid
    lab.machine.check("xl save mon2 /root/mon2.save", 720)
    lab.machine.check("xl restore /root/mon2.save", 720)
    guest.domid = int(lab.machine.check("xl domid mon2"))
    attached(lab, guest)
    equal(guest.talk("rw 10", "rb 12", "x rb 12", timeout=360), ["= 49d2", "= 01", "= 01"])
    lab.machine.until(f"! [ -e /run/unplugd/attach/dom{old}.json ]", 120)
    guest.destroy()
    return "served under the new domid"


def rebooted(lab: Lab) -> str:
    """A guest that reboots is a new domain."""
    guest = lab.create("monitor", "mon4", on_reboot="restart")
    attached(lab, guest)
    equal(guest.talk("ww 12 3", "wl 10 1", "R"), ["ok", "ok", "ok"])
    old = guest.domid
    lab.machine.until(f"d=$(xl domid mon4) && [ $d != {old} ]", 480)
    guest.domid = int(lab.machine.check("xl domid mon4"))
    guest.talk("ready", timeout=540)
    attached(lab, guest)
    equal(guest.talk("rw 10"), ["= 49d2"])
    equal(guest.node("unplug/product"), "")
    guest.destroy()
    return "fresh state"


def dm_restricted(lab: Lab) -> str:
    """With dm_restrict=1, QEMU is confined too; the unplug still happens."""
    for number, name in ((60000, "range-base"), (59999, "reaper")):
        lab.machine.check(f"useradd -r -M -u {number} -s /usr/sbin/nologin xen-qemuuser-{name}")
    try:
        guest = lab.create("monitor", "mon5", more="dm_restrict = 1", phy=True)
        attached(lab, guest)
        uid = lab.machine.check(f"stat -c %u /proc/{CHILD}").strip()
        equal(uid, str(60000 + guest.domid))
        equal(guest.talk("rw 10", "ww 10 3"), ["= 49d2", "ok"])
        equal(guest.emulated, set())
        guest.destroy()
    finally:
        lab.machine.run("userdel xen-qemuuser-range-base; userdel xen-qemuuser-reaper")
    return f"QEMU and child are uid {uid}"


def packaged(lab: Lab) -> str:
    """The package removed and installed again under a running guest, which goes on."""
    guest = lab.create("monitor", "mon6")
    attached(lab, guest)
    equal(guest.talk("ww 12 3", "wl 10 1", "rw 10"), ["ok", "ok", "= 49d2"])
    apt = "DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends "
    begin = time.monotonic()
    lab.machine.check(apt + "remove unplugd", 900)
    removed = time.monotonic() - begin
    assert lab.machine.run("pgrep -f [/]usr/bin/unplugd").status, "a process of unplugd still runs"
    equal(lab.machine.run("ls /usr/bin/unplugd /run/unplugd").out, "")
    equal(guest.talk("rw 10", "rb 12"), ["= 49d2", "= 01"])
    begin = time.monotonic()
    lab.machine.check(apt + "install ./unplugd.deb", 900)
    installed = time.monotonic() - begin
    lab.machine.check("systemctl start unplugd unplugd-attach", 600)
    lab.machine.until(f"[ -e /run/unplugd/attach/dom{guest.domid}.json ]", 240)
    equal(guest.talk("ww 12 3", "wl 10 1", "rw 10"), ["ok", "ok", "= 49d2"])
    # what the toolstack is told follows soon after
    lab.machine.until(f"[ $(xenstore-read /local/domain/{guest.domid}/unplug/product) = 3 ]", 60)
    guest.destroy()
    return f"removed in {removed:.0f} s, the guest goes on; installed in {installed:.0f} s, it is served again"


SCENARIOS: tuple[Callable[[Lab], str], ...] = (
    services, linux_unplugs, linux_blacklisted, sequences, cost, strings, bypass, not_ours, child_killed,
    supervisor_killed, unplugd_killed, unplugd_away, latency, destroyed, two_vcpus, restricted, handed_back,
    saved_and_restored, rebooted, dm_restricted, packaged,
)  # fmt: skip
"""With oxenstored, Debian's default."""

SCENARIOS_C: tuple[Callable[[Lab], str], ...] = (services, linux_unplugs, linux_blacklisted, sequences, strings)
"""With C xenstored, in a second boot."""
