"""`python -m tests.xen.boots N`: how often the emulator alone loses a Linux guest. unplugd does not run.

Boots the Linux guest N times in one dom0, two at a time, and says how many came up and how many triple faults Xen saw.
"""

from __future__ import annotations

import signal
import sys
import time

from tests.xen import images
from tests.xen.__main__ import EMULATOR_FAULT
from tests.xen.lab import Lab
from tests.xen.machine import Machine


def main() -> int:
    """0 when all came up."""
    count = int(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    images.build()
    came_up = 0
    with Machine() as machine:
        machine.wait(600)
        lab = Lab(machine)
        for first in range(1, count + 1, 2):
            begin = time.monotonic()
            names = [f"boot{number}" for number in (first, first + 1) if number <= count]
            guests = [lab.create("linux", name, boot="stay") for name in names]
            for name in names:
                try:
                    lab.console(name, 300)
                    came_up += 1
                except AssertionError as error:
                    print(f"{name}: {error}")
            faults = int(machine.run(f"xl dmesg | grep -c '{EMULATOR_FAULT}'").out or 0)
            took = time.monotonic() - begin
            print(f"{names[-1]}: {took:.0f} s; {came_up} came up, {faults} faults so far", flush=True)
            for guest in guests:
                guest.destroy()
                machine.run(f"rm -f {guest.name}.img")
    return 0 if came_up == count else 1


if __name__ == "__main__":
    sys.exit(main())
