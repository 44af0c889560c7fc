"""The interface of a xenstore, which `client` (a real xenstored) and `embedded` (in this process) implement.

No I/O and no wire format here.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

DEADLINE = 5.0
"""Default deadline of a request, in seconds."""

INTRODUCE_DOMAIN = "@introduceDomain"
RELEASE_DOMAIN = "@releaseDomain"
"""Watched like paths: a domain was introduced; a domain was released or shuts down (xen.git, docs/misc/xenstore.txt).
"""


class Store(Protocol):
    """A xenstore as dom0 sees it.

    Requests are sent in the order of the calls, and each returns an awaitable: many can be in flight
    (`asyncio.gather`). `tx` is the number from `transaction`, or 0. `deadline` is in seconds from the call. Paths are
    absolute. Values are bytes, at most 4096 together with their path.

    Every request may raise StoreUnavailable (no connection, a lost one, the deadline) or StoreRefused (any other error
    than those named below).
    """

    @property
    def connected(self) -> bool:
        """Whether requests are taken: connected, and all watches armed."""

    @property
    def reconnects(self) -> int:
        """How often a connection was made again after one was lost."""

    def read(self, path: str, *, tx: int = 0, deadline: float | None = None) -> Future[bytes]:
        """The value of the node. NoSuchNode."""

    def directory(self, path: str, *, tx: int = 0, deadline: float | None = None) -> Awaitable[list[str]]:
        """The names of all children of the node, unordered. Raises NoSuchNode if the node does not exist."""

    def write(
        self, path: str, value: bytes, *, tx: int = 0, deadline: float | None = None
    ) -> Awaitable[None]:
        """Set the value. Missing nodes are created, with the permissions of their nearest existing parent."""

    def remove(self, path: str, *, tx: int = 0, deadline: float | None = None) -> Awaitable[None]:
        """Remove the node and all nodes below it.

        A missing node is not an error in xenstore; NoSuchNode is raised if its parent is missing too.
        """

    def set_permissions(
        self, path: str, permissions: Sequence[str], *, tx: int = 0, deadline: float | None = None
    ) -> Awaitable[None]:
        """Set owner and access. The first permission, for example "n0", names the owner and the access (n, r, w, b) of
        all other domains. Raises NoSuchNode.

        Raises ValueError, at once, for an invalid permission.
        """

    def is_introduced(self, domid: int, *, deadline: float | None = None) -> Awaitable[bool]:
        """Whether xenstored knows the domain."""

    def transaction(self) -> AbstractAsyncContextManager[int]:
        """A transaction: committed at the end of the block, abandoned if the block raises.

        The end of the block raises TransactionConflict if another client changed a node that was read or written in the
        block. It raises StoreUnavailable if the connection was lost; nothing was written then, but if it was lost
        during the commit, the result is unknown.
        """

    def watch(self, path: str, callback: Callable[[str], None]) -> Awaitable[None]:
        """Call `callback` with the changed path, for every change at or below `path`, until `unwatch`.

        The awaitable is done when the watch is armed. Read values after that, because earlier changes have no event.
        Without a connection the watch is armed at the next connect, and again after every reconnect. Changes during a
        lost connection have no event, so read the values again in `on_connected`. Events may come without a change, and
        several changes may cause one event. The event that xenstored sends when a watch is armed is not delivered. If
        the awaitable is cancelled or ends in StoreRefused or NoSuchNode, there is no watch. Raises ValueError, at once,
        if this callback watches `path` already.
        """

    def unwatch(self, path: str, callback: Callable[[str], None]) -> Awaitable[None]:
        """End that watch; no callback once this was called. Nothing happens if there is none."""

    async def run(self, on_connected: Callable[[], None], on_lost: Callable[[str], None]) -> None:
        """Connect, and reconnect until cancelled or closed.

        Calls `on_connected()` at every connection, after all watches are armed. Calls `on_lost(reason)` at every loss,
        and when an attempt to connect fails for another reason than the last one.
        """

    async def close(self) -> None:
        """End the connection and `run`; afterwards every request is StoreUnavailable. May be called twice."""
