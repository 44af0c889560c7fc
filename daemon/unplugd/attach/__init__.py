"""unplugd-attach: unplugd in front of an unmodified QEMU (docs/attach.md).

    supervisor.py  root; learns of domains from xenstore, forks one child for each, connects sockets for them
     +- child.py     one domain: restricted to it, no user, no capabilities, few system calls
         +- plan.py      what one access needs, step by step        (sans I/O)
         +- lender.py    the ioreq page, lent to unplugd, which answers what is plain
         +- slots.py     Xen's shared page of ioreqs                (sans I/O)
         +- server.py    the ioreq server: create, take over, drain, destroy
         +- guestmem.py  the guest's memory, for string I/O
         +- unplugd.py   the connection to the domain's socket
         +- qemu.py      QEMU's monitor
         +- platform.py  the platform device's BAR, followed wherever the guest moves it
         +- pci.py       what PCI configuration space that takes    (sans I/O)
         +- confine.py   gives everything up and proves it
    xen.py         the Xen libraries' stable ABI, in ctypes
    serverids.py   what outlives a process: the id of each domain's ioreq server
    broker.py      what child and supervisor say to each other

Nothing of this package is needed where the device model itself talks to the socket (docs/device-models.md).
"""
