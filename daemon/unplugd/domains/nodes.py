"""What xenstore says about a domain: which nodes are read, what their values mean, and how that is kept over a restart.

When they are read, and which domains there are, is follow.py's. Sources: contract section 2; xen.git,
docs/misc/xenstore-paths.pandoc.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from typing import NamedTuple

from unplugd.errors import NoSuchNode
from unplugd.xenstore.watches import ignore

_NODES = ("name", "vm", "log-throttling", "image/device-model-kill-uid")


class DomainNodes(NamedTuple):
    """What xenstore says about a domain."""

    name: str = ""
    uuid: str = ""
    unlimited: bool = False
    """`log-throttling` is 0."""
    device_model_uid: int | None = None
    published: bool = False
    """What unplugd itself has written there: a domain whose directory is made anew does not have it (publish.py)."""

    def pack(self) -> bytes:
        """The facts as they are kept with the domain's state."""
        uuid = self.uuid.encode("ascii")
        uid = -1 if self.device_model_uid is None else self.device_model_uid
        head = _FACTS.pack(self.unlimited, self.published, uid, len(uuid))
        return head + uuid + self.name.encode("utf-8", "surrogateescape")

    @classmethod
    def unpack(cls, kept: bytes) -> DomainNodes | None:
        """What pack() gave; None for anything else."""
        try:
            unlimited, published, uid, length = _FACTS.unpack_from(kept)
            uuid = kept[_FACTS.size:_FACTS.size + length].decode("ascii")
        except (struct.error, UnicodeDecodeError):
            return None
        name = kept[_FACTS.size + length:].decode("utf-8", "surrogateescape")
        return cls(name, uuid, unlimited, None if uid < 0 else uid, published)


_FACTS = struct.Struct("<??qB")
"""`unlimited`, `published`, the uid or -1, the length of the uuid; then the uuid and the name."""


def paths(domid: int) -> list[str]:
    """The nodes of a domain that are read and watched, in the order of _NODES."""
    return [f"/local/domain/{domid}/{name}" for name in _NODES]


async def nodes_of(values: Sequence[asyncio.Future[bytes]]) -> DomainNodes:
    """What the values of paths() say. Raises StoreError."""
    try:
        name, vm, throttling, uid = [await _text(value) for value in values]
    except BaseException:
        let_go(values)
        raise
    uuid = vm.removeprefix("/vm/") if vm.startswith("/vm/") else ""
    if not uuid.isascii() or len(uuid) > 64 or not uuid.replace("-", "").isalnum():
        uuid = ""
    return DomainNodes(
        name, uuid, unlimited=throttling == "0",
        device_model_uid=int(uid) if uid.isascii() and uid.isdigit() and int(uid) < 0xFFFFFFFF else None,
    )


async def _text(value: asyncio.Future[bytes]) -> str:
    try:
        return (await value).decode("utf-8", "surrogateescape")
    except NoSuchNode:
        return ""


def let_go(values: Sequence[asyncio.Future[bytes]]) -> None:
    """Nobody waits for them any more."""
    for value in values:
        value.add_done_callback(ignore)
