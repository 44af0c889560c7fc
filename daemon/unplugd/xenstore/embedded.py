"""A xenstore in this process, for demos and tests without Xen and xenstored.

It behaves like a real one (both have the same tests) and has the domains of the configuration. `tree` is the tree of
nodes; requests, watches and domains are here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from unplugd.errors import StoreError, StoreRefused, StoreUnavailable
from unplugd.xenstore.store import INTRODUCE_DOMAIN, RELEASE_DOMAIN
from unplugd.xenstore.tree import Transaction, Tree, View
from unplugd.xenstore.wire import MAX_PAYLOAD, node_path, permission_list, watch_path

if TYPE_CHECKING:
    from unplugd.config.load import EmbeddedDomain

T = TypeVar("T")


class EmbeddedStore:
    """A `Store` (see there) that starts with `domains`. `deadline` has no effect here, because every answer is ready.
    """

    def __init__(self, domains: Iterable[EmbeddedDomain] = ()) -> None:
        self._tree = Tree()
        self._domids: set[int] = set()
        self._transactions: dict[int, Transaction] = {}
        self._last_transaction = 0
        self._watches: dict[tuple[str, Callable[[str], None]], asyncio.Future[None]] = {}
        self._connected = False
        self._reconnects = 0
        self._reason = "not connected yet"
        self._notify: tuple[Callable[[], None], Callable[[str], None]] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._closed = False
        for domain in domains:
            self.introduce(domain.domid, domain.name, domain.uuid)

    # --- domains: what a toolstack does ---

    def introduce(self, domid: int, name: str, uuid: str) -> None:
        """Introduce a domain: its nodes as libxl writes them, then @introduceDomain. An empty name or uuid has no node.
        """
        base = f"/local/domain/{domid}"
        nodes = {f"{base}/domid": str(domid)}
        if uuid:
            nodes |= {f"/vm/{uuid}/uuid": uuid, f"{base}/vm": f"/vm/{uuid}"}
        if name:
            nodes[f"{base}/name"] = name
        for path, value in nodes.items():
            self._tree.write(path, value.encode())
        self._domids.add(domid)
        self._tree.touched.append((INTRODUCE_DOMAIN, False))
        self._tell()

    def release(self, domid: int) -> None:
        """Release a domain: remove its nodes, then @releaseDomain. Does nothing if there is no such domain."""
        if domid not in self._domids:
            return
        base = f"/local/domain/{domid}"
        vm = self._tree.get(f"{base}/vm")
        for path in (base, vm.value.decode() if vm else ""):
            if path and self._tree.get(path):
                self._tree.remove(path)
        self._domids.discard(domid)
        self._tree.touched.append((RELEASE_DOMAIN, False))
        self._tell()

    def follow(self, wanted: Iterable[EmbeddedDomain]) -> None:
        """Introduce the new ones of these domains, and release all others."""
        domains = {domain.domid: domain for domain in wanted}
        for domid in self.domids - domains.keys():
            self.release(domid)
        for domid in sorted(domains.keys() - self.domids):
            self.introduce(domid, domains[domid].name, domains[domid].uuid)

    @property
    def domids(self) -> frozenset[int]:
        """The present domains."""
        return frozenset(self._domids)

    # --- requests ---

    @property
    def connected(self) -> bool:
        """`Store.connected`: while `run` runs, but for `lose`."""
        return self._connected

    @property
    def reconnects(self) -> int:
        """`Store.reconnects`."""
        return self._reconnects

    def read(self, path: str, *, tx: int = 0, deadline: float | None = None) -> asyncio.Future[bytes]:
        """`Store.read`."""
        return self._answer(path, b"", tx, lambda view: view.node(path).value)

    def directory(
        self, path: str, *, tx: int = 0, deadline: float | None = None
    ) -> asyncio.Future[list[str]]:
        """`Store.directory`."""
        return self._answer(path, b"", tx, lambda view: list(view.node(path).children))

    def write(
        self, path: str, value: bytes, *, tx: int = 0, deadline: float | None = None
    ) -> asyncio.Future[None]:
        """`Store.write`."""
        return self._answer(path, value, tx, lambda view: view.write(path, value))

    def remove(self, path: str, *, tx: int = 0, deadline: float | None = None) -> asyncio.Future[None]:
        """`Store.remove`."""
        return self._answer(path, b"", tx, lambda view: view.remove(path))

    def set_permissions(
        self, path: str, permissions: Sequence[str], *, tx: int = 0, deadline: float | None = None
    ) -> asyncio.Future[None]:
        """`Store.set_permissions`: stored and inherited, but not checked, because only dom0 uses this store."""
        permission_list(permissions)
        return self._answer(path, b"", tx, lambda view: view.set_permissions(path, permissions))

    def permissions(self, path: str) -> list[str]:
        """The permissions of a node, for tests. NoSuchNode."""
        return list(self._tree.node(path).permissions)

    def is_introduced(self, domid: int, *, deadline: float | None = None) -> asyncio.Future[bool]:
        """`Store.is_introduced`."""
        return self._answer("/", b"", 0, lambda view: domid in self._domids)

    def _answer(self, path: str, value: bytes, tx: int, act: Callable[[View], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            if not self._connected:
                raise StoreUnavailable(self._reason)
            if len(node_path(path)) + 1 + len(value) > MAX_PAYLOAD:
                raise StoreRefused(path, "E2BIG")
            future.set_result(act(self._view(tx)))
            self._tell()
        except StoreError as error:
            future.set_exception(error)
        return future

    def _view(self, tx: int) -> View:
        if not tx:
            return self._tree
        if tx not in self._transactions:
            raise StoreUnavailable("the connection of the transaction was lost")
        return self._transactions[tx]

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[int]:
        """`Store.transaction`."""
        if not self._connected:
            raise StoreUnavailable(self._reason)
        self._last_transaction += 1
        tx = self._last_transaction
        self._transactions[tx] = Transaction(self._tree)
        try:
            yield tx
            view = self._view(tx)
            if isinstance(view, Transaction):
                view.commit()
        finally:
            self._transactions.pop(tx, None)
        self._tell()

    # --- watches ---

    def watch(self, path: str, callback: Callable[[str], None]) -> asyncio.Future[None]:
        """`Store.watch`."""
        armed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if (path, callback) in self._watches:
            raise ValueError(f"this callback watches {path} already")
        try:
            watch_path(path)
            if self._closed:
                raise StoreUnavailable(self._reason)
        except StoreError as error:
            armed.set_exception(error)
            return armed
        self._watches[path, callback] = armed
        armed.add_done_callback(lambda future: self._forget_unless_armed(path, callback, future))
        if self._connected:
            armed.set_result(None)
        return armed

    def unwatch(self, path: str, callback: Callable[[str], None]) -> asyncio.Future[None]:
        """`Store.unwatch`."""
        armed = self._watches.pop((path, callback), None)
        if armed and not armed.done():
            armed.set_exception(StoreUnavailable(f"the watch of {path} was ended before it was armed"))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def _forget_unless_armed(
        self, path: str, callback: Callable[[str], None], armed: asyncio.Future[None]
    ) -> None:
        failed = armed.cancelled() or armed.exception() is not None
        if failed and self._watches.get((path, callback)) is armed:
            del self._watches[path, callback]

    def _tell(self) -> None:
        """Send the events of changes, later from the event loop, because a callback may send a request itself."""
        touched = list(self._tree.touched)
        self._tree.touched.clear()
        if not touched or not self._connected:
            return
        for (watched, callback), armed in self._watches.items():
            for path, exact in touched:
                if path == watched or (not exact and path.startswith(watched.rstrip("/") + "/")):
                    armed.get_loop().call_soon(self._event, watched, callback, armed, path)

    def _event(
        self, watched: str, callback: Callable[[str], None], armed: asyncio.Future[None], path: str
    ) -> None:
        if self._watches.get((watched, callback)) is not armed:
            return
        try:
            callback(path)
        except Exception as error:  # noqa: BLE001 - as `Client`: one callback's bug is not the store's
            message = f"the callback for xenstore's {watched} failed"
            asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})

    # --- connected or not ---

    async def run(self, on_connected: Callable[[], None], on_lost: Callable[[str], None]) -> None:
        """`Store.run`."""
        ended = self._start(on_connected, on_lost)
        try:
            self._connect()
            await ended
        finally:
            self._connected = False
            self._notify = self._ended = None
            self._reason = "closed" if self._closed else "not connected"

    def _start(
        self, on_connected: Callable[[], None], on_lost: Callable[[str], None]
    ) -> asyncio.Future[None]:
        if self._ended or self._closed:
            raise RuntimeError("the store runs already, or is closed")
        self._ended = asyncio.get_running_loop().create_future()
        self._notify = (on_connected, on_lost)
        return self._ended

    def _connect(self) -> None:
        self._connected = True
        for armed in self._watches.values():
            if not armed.done():
                armed.set_result(None)
        if self._notify:
            self._notify[0]()

    def lose(self, reason: str) -> None:
        """For tests: as if the connection was lost, until `restore`. Transactions end, watches stay."""
        self._connected = False
        self._reason = reason
        self._transactions.clear()
        if self._notify:
            self._notify[1](reason)

    def restore(self) -> None:
        """For tests: connected again after `lose`, with all that is in the tree."""
        self._reconnects += 1
        self._connect()

    async def close(self) -> None:
        """`Store.close`."""
        self._closed = True
        self._connected = False
        self._reason = "closed"
        for armed in list(self._watches.values()):
            if not armed.done():
                armed.set_exception(StoreUnavailable(self._reason))
        self._watches.clear()
        if self._ended and not self._ended.done():
            self._ended.set_result(None)
