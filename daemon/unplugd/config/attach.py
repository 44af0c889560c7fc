"""`[attach]` of the configuration: what unplugd-attach can be told."""

from __future__ import annotations

from typing import NamedTuple


class AttachConfig(NamedTuple):
    """`[attach]`."""

    when_unreachable: str = "absent"
    """What a guest's access gets while unplugd cannot be reached: "absent" (after `unreachable_after` it reads all
    ones, so that its driver stays with the emulated devices) or "wait" (until unplugd is back)."""
    unreachable_after: float = 10.0
    """Seconds that an access waits for unplugd before it is answered as absent."""
    forward: bool = True
    """Whether product and build number of a driver that is not blacklisted are passed on to QEMU."""
    user: str = ""
    """The user that the process of each domain runs as. Empty: the uid of `xen-qemuuser-range-base` plus the domid
    where this user exists, else `unplugd-attach`, else `nobody`."""
    monitor: str = ""
    """The path of QEMU's QMP socket, in which `{domid}` stands for the domid. Empty: those that libxl gives QEMU."""

    def monitors(self, domid: int) -> tuple[str, ...]:
        """The QMP sockets to try, in order.

        libxl's own is the second choice: QEMU serves one client at a time, and libxl needs it to save a domain.
        """
        if self.monitor:
            return (self.monitor.replace("{domid}", str(domid)),)
        return f"/var/run/xen/qmp-libxenstat-{domid}", f"/var/run/xen/qmp-libxl-{domid}"
