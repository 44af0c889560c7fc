"""unplugd-attach: unplugd in front of an unmodified QEMU (docs/attach.md).

    supervisor.py  root; follows the domains in xenstore, forks one child for each, connects sockets for them
     +- child.py     one domain: restricted to it, no user, no capabilities, few system calls
         +- plan.py      what one access needs, step by step        (sans I/O)
         +- lender.py    the ioreq page, lent to unplugd, which answers simple accesses
         +- slots.py     Xen's shared page of ioreqs                (sans I/O)
         +- server.py    the ioreq server: create, take over, drain, destroy
         +- guestmem.py  the guest's memory, for string I/O
         +- unplugd.py   the connection to the domain's socket
         +- qemu.py      QEMU's monitor
         +- platform.py  tracks the platform device's BAR when the guest moves it
         +- pci.py       the PCI configuration space that this needs (sans I/O)
         +- confine.py   gives up all privileges and checks it
    xen.py         the Xen libraries' stable ABI, in ctypes
    serverids.py   the id of each domain's ioreq server, which outlives a process
    broker.py      the messages between child and supervisor

This package is not needed if the device model uses the socket itself (docs/device-models.md).
"""
