"""Real Xen: Xen 4.17, a Debian dom0 and HVM guests, all under QEMU's software emulation; `python -m tests.xen`.

    images.py     builds what is booted, from Debian packages alone, into .cache/xen
    machine.py    starts the emulated machine, runs commands in its dom0
    guests.py     the guests: a boot sector that plays port accesses, and a real Linux kernel
    scenarios.py  what must hold, one function each
    qemu.py       builds a QEMU that is unplugd's client itself; by hand
    builtin.py    what must hold with that QEMU
    dom0/         what runs in dom0 beside unplugd itself
    guests/       sources of what runs in guests

Nothing here is collected by pytest: a run takes minutes and root.
"""
