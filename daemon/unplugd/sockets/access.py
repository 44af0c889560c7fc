"""Who may connect to a domain's socket (contract sections 1 and 6)."""

from __future__ import annotations

import pwd
import socket
import struct
from collections.abc import Sequence

_CREDENTIALS = struct.Struct("3i")


class ConnectionPolicy:
    """Which uids may connect to which domain's socket."""

    def __init__(self, listed: Sequence[int] | None) -> None:
        """`listed` are configuration's uids; None for "auto"."""
        self._listed = None if listed is None else tuple(listed)
        self._users: dict[int, set[int]] = {}
        self._uid_of: dict[int, int] = {}
        self._base = _uid_of("xen-qemuuser-range-base") if listed is None else None
        self._shared = _uid_of("xen-qemuuser-shared") if listed is None else None

    def learn(self, domid: int, uid: int | None) -> set[int]:
        """A domain's device-model-kill-uid (None: it has none, or the domain is gone); which domains that changes."""
        changed = {domid}
        before = self._uid_of.pop(domid, None)
        if before is not None:
            left = self._users[before]
            left.discard(domid)
            if len(left) == 1:
                changed |= left
            elif not left:
                del self._users[before]
        if uid is not None:
            self._uid_of[domid] = uid
            users = self._users.setdefault(uid, set())
            users.add(domid)
            if len(users) == 2:
                changed |= users
        return changed

    def device_model_uid(self, domid: int, known: int | None) -> int | None:
        """The uid of a domain's device model, None for root; `known` is xenstore's device-model-kill-uid."""
        if self._listed is not None:
            return self._listed[0]
        if known is not None:
            # a uid that several domains share says nothing about the domain
            return None if known == self._shared or len(self._users.get(known, ())) > 1 else known
        return None if self._base is None else self._base + domid

    def allows(self, uid: int, domid: int, known: int | None) -> bool:
        """Whether a process of `uid` may connect."""
        if uid == 0:
            return True
        if self._listed is not None:
            return uid in self._listed
        return uid == self.device_model_uid(domid, known)


def _uid_of(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def credentials(peer: socket.socket) -> tuple[int, int]:
    """pid and uid of who has connected (SO_PEERCRED). Raises OSError."""
    pid, uid, _gid = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid & 0xFFFFFFFF
