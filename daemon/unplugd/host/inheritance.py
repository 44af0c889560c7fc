"""What an earlier process left for this one: the sockets that systemd kept, and whose they were.

With both, guests are served before xenstore was asked; whether they are still there, its first scan says. What
becomes of their state and logs is domains/statefile.py's and sinks/'s.
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
        """Those of guests. Whoever uses one takes it out."""

    @property
    def has_guests(self) -> bool:
        """Whether there is any guest's: then systemd does keep them."""
        return any(name.startswith("dom") for name in self.sockets)

    def domains(self, state: Path, boot: bytes) -> dict[int, DomainNodes]:
        """The domains whose sockets are there, by what the last process of this boot noted in the `state` directory."""
        found = {}
        for name in self.sockets:
            domid, _, uuid = name.removeprefix("dom").partition("-")
            if domid.isdigit():
                note = read_note(state, int(domid), boot)
                facts = DomainNodes.unpack(note) if note is not None else None
                if facts is not None and facts.uuid and facts.uuid == uuid:
                    found[int(domid)] = facts
        return found

    def let_go(self) -> None:
        """Close what nobody took: its domains went while no unplugd ran."""
        for sockets in self.sockets.values():
            for name, left in sockets:
                forget_fd(name)
                left.close()
        self.sockets.clear()
