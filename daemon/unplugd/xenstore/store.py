"""What unplugd asks of a xenstore, whichever it is.

This room has the interface that `client` (a real xenstored) and `embedded` (one in this process) share. No input or
output, no wire format: those belong to them.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

DEADLINE = 5.0
"""Seconds that a request may take when its caller does not say."""

INTRODUCE_DOMAIN = "@introduceDomain"
RELEASE_DOMAIN = "@releaseDomain"
"""Watched like paths: a domain has come, a domain has gone or is about to (xen.git, docs/misc/xenstore.txt)."""


class Store(Protocol):
    """A xenstore as dom0 sees it.

    Requests are sent when they are called, in that order, and answer through an awaitable: many may be under way at
    once (`asyncio.gather`). `tx` is what `transaction` gave, or 0. `deadline` is in seconds from the call. Paths are
    absolute; values are bytes, at most 4096 together with their path.

    Every request may end in StoreUnavailable (no connection, a lost one, the deadline) or StoreRefused (any error
    that has no name of its own below).
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
        """The names of the node's children, however many, in no order. NoSuchNode if the node is not there."""

    def write(
        self, path: str, value: bytes, *, tx: int = 0, deadline: float | None = None
    ) -> Awaitable[None]:
        """Set the value; the node and its parents come to be, with the permissions of the nearest parent there is."""

    def remove(self, path: str, *, tx: int = 0, deadline: float | None = None) -> Awaitable[None]:
        """Take the node away with all below it.

        A node that is not there is no error to xenstore as long as its parent is; NoSuchNode if that is gone too.
        """

    def set_permissions(
        self, path: str, permissions: Sequence[str], *, tx: int = 0, deadline: float | None = None
    ) -> Awaitable[None]:
        """Set owner and access: the first, as "n0", names the owner and everybody's access (n, r, w, b); NoSuchNode.

        ValueError, at once, for what is not a permission.
        """

    def is_introduced(self, domid: int, *, deadline: float | None = None) -> Awaitable[bool]:
        """Whether xenstored knows the domain."""

    def transaction(self) -> AbstractAsyncContextManager[int]:
        """A transaction: committed when the block ends, dropped when it raises.

        Leaving the block raises TransactionConflict when somebody else changed what was read or written in it, and
        StoreUnavailable when the connection it was begun on is gone: nothing was written then (or, if the connection
        was lost during the commit, nobody knows).
        """

    def watch(self, path: str, callback: Callable[[str], None]) -> Awaitable[None]:
        """Call `callback` with the path of what changed, for every change at or below `path`, until `unwatch`.

        Done when armed: read then, not before, for what changed earlier is not told. Without a connection that is when
        there is one: the watch is noted all the same, and is armed again after every reconnect. What happened while
        there was none is lost: read anew in `on_connected`. Events may come for no reason, and several changes may
        make one; the one that xenstored sends at every arming does not come. A cancelled awaitable, or one
        that ends in StoreRefused or NoSuchNode, leaves no watch. ValueError, at once, if this callback watches `path`
        already.
        """

    def unwatch(self, path: str, callback: Callable[[str], None]) -> Awaitable[None]:
        """End that watch; no callback once this was called. Nothing happens if there is none."""

    async def run(self, on_connected: Callable[[], None], on_lost: Callable[[str], None]) -> None:
        """Connect, and stay connected until cancelled or closed.

        `on_connected()` at every connection, once all watches are armed; `on_lost(reason)` at every loss, and when an
        attempt to connect fails for a reason that was not said last.
        """

    async def close(self) -> None:
        """End the connection and `run`; afterwards every request is StoreUnavailable. May be called twice."""
