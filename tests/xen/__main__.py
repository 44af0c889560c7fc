"""`python -m tests.xen [--store STORE] [SCENARIO...]`: builds, boots, checks, and prints a table of what it saw.

`python -m tests.xen builtin [--qemu SUITE]`: only the scenarios with a QEMU that is unplugd's client itself, which is
built first. They are not part of a run without names.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.xen import builtin, images, qemu
from tests.xen.images import PROJECT
from tests.xen.lab import Lab
from tests.xen.machine import Dead, Machine
from tests.xen.scenarios import SCENARIOS, SCENARIOS_C, put_right
from tests.xen.verdicts import VERDICTS

SUM = PROJECT / ".cache/xen-tests"
"""Where the last run leaves its count, as the tests and the soak do."""
EMULATOR_FAULT = "Triple fault"
"""What `xl dmesg` says when QEMU's nested virtualization loses a guest; only then is a scenario tried again."""
ATTEMPTS = 3
"""How often a scenario is tried that the emulator does not let end."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    store: str
    name: str
    verdict: str
    seconds: float
    saw: str


def play(lab: Lab, store: str, scenario: Callable[[Lab], str]) -> Row:
    """Run one scenario; again if the emulator lost a guest meanwhile, which the row then says."""
    begin = time.monotonic()
    faults = 0
    while True:
        lab.again = faults > 0
        try:
            saw = scenario(lab) + (f" (attempt {faults + 1})" if faults else "")
            return Row(store, scenario.__name__, "ok", time.monotonic() - begin, saw)
        except (AssertionError, TimeoutError) as error:
            text = str(error)
        count = int(lab.machine.run(f"xl dmesg | grep -c '{EMULATOR_FAULT}'").out or 0)
        lost = count > lab.faults  # a guest, by the emulator
        lab.faults = count
        if not lost or faults + 1 == ATTEMPTS:
            if lost:
                text = f"{EMULATOR_FAULT} {ATTEMPTS} times in a row, which is a fault of ours; {text}"
            journal = lab.machine.run("journalctl -q --no-pager -o cat -n 15 -t unplugd-attach -t unplugd").out
            journal += lab.machine.run("ls -t /var/log/xen/qemu-dm-*.log | head -n 2 | xargs -r tail -n 5").out
            print(f"--- {scenario.__name__}: {text}\n{journal}", flush=True)
            put_right(lab)
            return Row(store, scenario.__name__, "FAILED", time.monotonic() - begin, " ".join(text.split())[:100])
        faults += 1
        dump = lab.machine.run(f"xl dmesg | grep -A 15 '{EMULATOR_FAULT}' | tail -n 16").out
        print(f"--- {scenario.__name__}: {EMULATOR_FAULT}: the emulator's, tried again\n{dump}", flush=True)
        put_right(lab)


def boot(store: str, scenarios: Sequence[Callable[[Lab], str]], *, with_builtin: bool = False) -> list[Row]:
    """One machine from start to end."""
    rows: list[Row] = []
    begin = time.monotonic()
    with Machine(c_xenstored=store == "C") as machine:
        try:
            machine.wait(600)
            rows.append(Row(store, "dom0 boots", "ok", time.monotonic() - begin, ""))
            show(rows[-1])
            lab = Lab(machine, builtin=with_builtin)
            for scenario in scenarios:
                rows.append(play(lab, store, scenario))
                show(rows[-1])
        except Dead as error:
            saw = " ".join(str(error).split())[:200]
            rows.append(Row(store, "the machine", "FAILED", time.monotonic() - begin, saw))
            show(rows[-1])
    return rows


def show(row: Row) -> None:
    """Print a line of the table."""
    print(f"{row.store:<7} {row.name:<20} {row.verdict:<7} {row.seconds:6.0f} s  {row.saw}", flush=True)


def main() -> int:
    """0 when all held, 1 when something did not, 77 when it cannot run here."""
    parser = argparse.ArgumentParser(prog="python -m tests.xen")
    parser.add_argument("--store", choices=("ocaml", "C"), help="only with this xenstored")
    parser.add_argument("--qemu", default=images.SUITE, help="the Debian suite whose QEMU `builtin` builds")
    parser.add_argument("scenario", nargs="*", help="only these; `builtin`: those with a QEMU of its own")
    options = parser.parse_args()
    SUM.parent.mkdir(exist_ok=True)
    SUM.unlink(missing_ok=True)
    if os.geteuid():
        print("tests.xen: not run: mmdebstrap and chroot need root")
        SUM.write_text("0 passed, 0 failed, 1 skipped\n")
        return 77
    if lacks := images.missing():
        print("installing " + " ".join(lacks), flush=True)
        images.install(lacks)
    # The emulated machine must not outlive the test.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begin = time.monotonic()
    rows = []
    own_qemu = "builtin" in options.scenario
    if own_qemu:
        program, saw = qemu.build(options.qemu)
        rows.append(Row("", "qemu", "ok", time.monotonic() - begin, saw))
        show(rows[-1])
        images.build(program, qemu.CLIENTS / "qemu/pass-socket.py")
    else:
        images.build()
    rows.append(Row("", "images", "ok", time.monotonic() - begin, ""))
    show(rows[-1])
    names = [name for name in options.scenario if name != "builtin"]
    # the rows of actions have not run behind all others yet: by name, for now
    ocaml = SCENARIOS + VERDICTS if names else SCENARIOS
    groups = [("ocaml", builtin.SCENARIOS)] if own_qemu else [("ocaml", ocaml), ("C", SCENARIOS_C)]
    for store, scenarios in groups:
        chosen = [one for one in scenarios if not names or one.__name__ in ("services", *names)]
        if options.store in (None, store):
            rows += boot(store, chosen, with_builtin=own_qemu)
    failed = [row for row in rows if row.verdict != "ok"]
    print(f"\n=== real Xen: {len(rows) - len(failed)} held, {len(failed)} failed, {time.monotonic() - begin:.0f} s ===")
    for row in rows:
        show(row)
    SUM.write_text(f"{len(rows) - len(failed)} passed, {len(failed)} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
