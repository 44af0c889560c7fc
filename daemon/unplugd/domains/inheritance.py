"""The sockets that systemd kept from the previous process, and the domains that they belong to.

With them, guests are served before xenstore has been read; the first scan of xenstore then shows which guests still
exist. Their state and logs are handled in domains/statefile.py and sinks/.
"""

from __future__ import annotations

import socket
from pathlib import Path

from unplugd.domains.nodes import DomainNodes
from unplugd.domains.statefile import read_note
from unplugd.host.systemd import forget_fd, listen_fds, passed_sockets


class Inheritance:
    """Made once, at start: the sockets that systemd passes are taken over then. Raises HostError."""

    def __init__(self) -> None:
        named = listen_fds()
        self.http: list[socket.socket] = named.pop("http", [])
        """The listeners of unplugd-http.socket."""
        self.sockets = passed_sockets(named)
        """The sockets of guests. A socket is removed from here when it is used."""

    @property
    def has_guests(self) -> bool:
        """Whether there is a socket of a guest, which shows that systemd keeps them."""
        return any(name.startswith("dom") for name in self.sockets)

    def domains(self, state: Path, boot: bytes) -> dict[int, DomainNodes]:
        """The domains whose sockets exist, from the notes of the last process of this boot in the `state` directory."""
        found = {}
        for name in self.sockets:
            domid, _, uuid = name.removeprefix("dom").partition("-")
            if domid.isdecimal():
                note = read_note(state, int(domid), boot)
                facts = DomainNodes.unpack(note) if note is not None else None
                if facts is not None and facts.uuid and facts.uuid == uuid:
                    found[int(domid)] = facts
        return found

    def let_go(self) -> None:
        """Close the unused sockets: their domains were released while unplugd did not run."""
        for sockets in self.sockets.values():
            for name, left in sockets:
                forget_fd(name)
                left.close()
        self.sockets.clear()
