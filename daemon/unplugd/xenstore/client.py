"""The client of a real xenstored: requests, transactions and reconnecting.

`connection` handles the bytes and deadlines of one connection, `watches` handles watches.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar

from unplugd.errors import NoSuchNode, StoreError, StoreRefused, StoreUnavailable
from unplugd.xenstore import device
from unplugd.xenstore.connection import StoreConnection
from unplugd.xenstore.store import DEADLINE
from unplugd.xenstore.watches import Watches, ignore, nothing
from unplugd.xenstore.wire import (
    DIRECTORY_PART,
    MAX_REPLY,
    Op,
    names,
    node_path,
    permission_list,
    strings,
)

T = TypeVar("T")

FIRST_BACKOFF, LAST_BACKOFF = 0.05, 2.0
"""Seconds between attempts to connect: doubling from the first to the last."""

_DIRECTORY_ATTEMPTS = 16
"""How often the reading of a large directory is restarted because the directory changed."""


class Endpoint(NamedTuple):
    """A path at which xenstored can be reached."""

    path: str
    is_device: bool = False
    """The kernel's device, /dev/xen/xenbus or /proc/xen/xenbus, rather than a unix socket."""


def _introduced(payload: bytes) -> bool:
    return payload.startswith(b"T")


def _number(payload: bytes) -> int:
    return int(payload.rstrip(b"\0"))


class Client:
    """A `Store` (see there) on a real xenstored.

    At every attempt to connect, the first of `endpoints` whose path exists is used.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = tuple(endpoints)
        self._connection: StoreConnection | None = None
        self._ready = False
        self._reason = "not connected yet"
        self._connections = 0
        self._watches = Watches()
        self._transactions: dict[int, tuple[StoreConnection, int]] = {}
        self._last_transaction = 0
        self._readers: set[asyncio.Task[None]] = set()
        self._runner: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def connected(self) -> bool:
        """`Store.connected`."""
        return self._ready

    @property
    def reconnects(self) -> int:
        """`Store.reconnects`."""
        return max(0, self._connections - 1)

    # --- requests ---

    def read(self, path: str, *, tx: int = 0, deadline: float | None = None) -> asyncio.Future[bytes]:
        """`Store.read`."""
        return self._node_request(Op.READ, path, b"", bytes, tx, deadline)

    def directory(
        self, path: str, *, tx: int = 0, deadline: float | None = None
    ) -> asyncio.Future[list[str]]:
        """`Store.directory`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[str]] = loop.create_future()
        expires = loop.time() + (DEADLINE if deadline is None else deadline)

        def refused(code: bytes) -> bool:
            if not code.startswith(b"E2BIG"):
                return False
            task = loop.create_task(self._read_parts(path, tx, expires, future))
            self._readers.add(task)
            task.add_done_callback(self._readers.discard)
            return True

        return self._node_request(
            Op.DIRECTORY, path, b"", names, tx, deadline, future=future, refused=refused
        )

    def write(
        self, path: str, value: bytes, *, tx: int = 0, deadline: float | None = None
    ) -> asyncio.Future[None]:
        """`Store.write`."""
        return self._node_request(Op.WRITE, path, value, nothing, tx, deadline)

    def remove(self, path: str, *, tx: int = 0, deadline: float | None = None) -> asyncio.Future[None]:
        """`Store.remove`."""
        return self._node_request(Op.RM, path, b"", nothing, tx, deadline)

    def set_permissions(
        self, path: str, permissions: Sequence[str], *, tx: int = 0, deadline: float | None = None
    ) -> asyncio.Future[None]:
        """`Store.set_permissions`."""
        payload = strings(*permission_list(permissions))
        return self._node_request(Op.SET_PERMS, path, payload, nothing, tx, deadline)

    def is_introduced(self, domid: int, *, deadline: float | None = None) -> asyncio.Future[bool]:
        """`Store.is_introduced`."""
        payload = strings(b"%d" % domid)
        return self._request(Op.IS_DOMAIN_INTRODUCED, f"domain {domid}", payload, _introduced, 0, deadline)

    def _node_request(
        self,
        op: int,
        path: str,
        rest: bytes,
        decode: Callable[[bytes], T],
        tx: int,
        deadline: float | None,
        future: asyncio.Future[T] | None = None,
        refused: Callable[[bytes], bool] | None = None,
    ) -> asyncio.Future[T]:
        try:
            payload = node_path(path) + b"\0" + rest
        except NoSuchNode as error:
            return _failed(error, future)
        return self._request(op, path, payload, decode, tx, deadline, future, refused)

    def _request(
        self,
        op: int,
        path: str,
        payload: bytes,
        decode: Callable[[bytes], T],
        tx: int,
        deadline: float | None,
        future: asyncio.Future[T] | None = None,
        refused: Callable[[bytes], bool] | None = None,
        late: Callable[[bytes], object] | None = None,
    ) -> asyncio.Future[T]:
        connection = self._connection
        if connection is None or not self._ready:
            return _failed(StoreUnavailable(self._reason), future)
        if tx:
            begun_on, tx = self._transactions.get(tx, (None, 0))
            if begun_on is not connection:
                return _failed(
                    StoreUnavailable("the connection of the transaction was lost"), future
                )
        seconds = DEADLINE if deadline is None else deadline
        return connection.request(
            op, path, payload, decode, tx=tx, deadline=seconds, future=future, refused=refused, late=late
        )

    async def _read_parts(
        self, path: str, tx: int, expires: float, future: asyncio.Future[list[str]]
    ) -> None:
        """Read a directory that does not fit into one reply, in parts; restart when it changes in between."""
        loop = asyncio.get_running_loop()
        try:
            for _ in range(_DIRECTORY_ATTEMPTS):
                generation, listing = b"", bytearray()
                while not future.done():
                    payload = strings(node_path(path), b"%d" % len(listing))
                    left = expires - loop.time()
                    reply = await self._request(DIRECTORY_PART, path, payload, bytes, tx, left)
                    now, _, part = reply.partition(b"\0")
                    generation = generation or now
                    if now != generation:
                        break
                    # An empty name ends the last part: the directory's bytes are over.
                    ended = part in (b"", b"\0") or part.endswith(b"\0\0")
                    listing += part
                    if len(listing) > MAX_REPLY:
                        raise StoreUnavailable(f"the directory {path} is too large")
                    if ended and not future.done():
                        future.set_result(names(bytes(listing)))
                if future.done():
                    return
            raise StoreUnavailable(f"the directory {path} changes faster than it can be read")
        except (StoreError, ValueError) as error:
            if not future.done():
                future.set_exception(error)

    # --- transactions ---

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[int]:
        """`Store.transaction`. The number is this client's own, because xenstored reuses its numbers after a reconnect.
        """
        connection = self._connection
        if connection is None or not self._ready:
            raise StoreUnavailable(self._reason)

        def abandon(wire_tx: int) -> None:
            end = connection.request(Op.TRANSACTION_END, "", b"F\0", nothing, tx=wire_tx, deadline=DEADLINE)
            end.add_done_callback(ignore)

        # If xenstored grants the transaction too late, it must be ended here.
        wire_tx = await self._request(
            Op.TRANSACTION_START, "", b"\0", _number, 0, None, late=lambda payload: abandon(_number(payload))
        )
        self._last_transaction += 1
        tx = self._last_transaction
        self._transactions[tx] = (connection, wire_tx)
        try:
            yield tx
            commit = self._request(Op.TRANSACTION_END, "", b"T\0", nothing, tx, None)
        except BaseException:
            abandon(wire_tx)
            raise
        finally:
            del self._transactions[tx]
        try:
            await commit
        except NoSuchNode:
            raise StoreRefused("the transaction", "ENOENT") from None

    # --- watches ---

    def watch(self, path: str, callback: Callable[[str], None]) -> asyncio.Future[None]:
        """`Store.watch`."""
        if self._closed:
            return _failed(StoreUnavailable(self._reason))
        return self._watches.add(path, callback)

    def unwatch(self, path: str, callback: Callable[[str], None]) -> asyncio.Future[None]:
        """`Store.unwatch`."""
        return self._watches.end(path, callback)

    # --- reconnecting ---

    async def run(self, on_connected: Callable[[], None], on_lost: Callable[[str], None]) -> None:
        """`Store.run`."""
        runner = self._start(on_connected, on_lost)
        try:
            await runner
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closed or (task and task.cancelling()):
                raise
        finally:
            self._runner = None

    def _start(self, on_connected: Callable[[], None], on_lost: Callable[[str], None]) -> asyncio.Task[None]:
        if self._runner or self._closed:
            raise RuntimeError("the store runs already, or is closed")
        self._runner = asyncio.get_running_loop().create_task(self._stay_connected(on_connected, on_lost))
        return self._runner

    async def _stay_connected(self, on_connected: Callable[[], None], on_lost: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        backoff, said = FIRST_BACKOFF, ""
        try:
            while True:
                try:
                    connection = await self._connect()
                except StoreError as error:
                    self._disconnect(str(error))
                else:
                    begun, said = loop.time(), ""
                    on_connected()
                    await asyncio.wait([connection.lost])
                    self._disconnect(connection.lost.result())
                    if loop.time() - begun > LAST_BACKOFF:
                        backoff = FIRST_BACKOFF
                if self._reason != said:
                    said = self._reason
                    on_lost(said)
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, LAST_BACKOFF)
        finally:
            self._disconnect("closed" if self._closed else "not connected")

    def _disconnect(self, reason: str) -> None:
        self._ready = False
        self._reason = reason
        connection, self._connection = self._connection, None
        if connection:
            connection.drop(reason)
        self._watches.disarm()

    async def _connect(self) -> StoreConnection:
        """Connect to the first existing endpoint, check that xenstored answers, arm all watches. Raises StoreError."""
        endpoint = self._present()
        try:
            connection = self._connection = await self._open(endpoint)
            # Any answer is enough. The connect alone proves nothing: the backlog of a hanging xenstored accepts it too.
            await connection.request(
                Op.GET_DOMAIN_PATH, "its first answer", b"0\0", nothing, deadline=DEADLINE
            )
            await self._watches.arm_all(connection)
            if connection.dropped:
                raise StoreUnavailable(connection.dropped)
        except OSError as error:
            raise StoreUnavailable(f"{endpoint.path}: {error.strerror or error}") from None
        except StoreError as error:
            raise StoreUnavailable(f"{endpoint.path}: {error}") from None
        self._connections += 1
        self._ready = True
        return connection

    def _present(self) -> Endpoint:
        for endpoint in self._endpoints:
            if os.path.exists(endpoint.path):
                return endpoint
        tried = ", ".join(endpoint.path for endpoint in self._endpoints)
        raise StoreUnavailable(f"no xenstored at {tried}: {os.strerror(errno.ENOENT)}")

    async def _open(self, endpoint: Endpoint) -> StoreConnection:
        if endpoint.is_device:
            connection = StoreConnection(self._watches.event, device.MAX_PAYLOAD)
            device.DeviceTransport(endpoint.path, connection)
            return connection
        connection = StoreConnection(self._watches.event)
        # By hand: a full backlog is EAGAIN, which asyncio would take for a connection that is being made.
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.connect(endpoint.path)
        except OSError:
            sock.close()
            raise
        await asyncio.get_running_loop().create_unix_connection(lambda: connection, sock=sock)
        return connection

    async def close(self) -> None:
        """`Store.close`."""
        self._closed = True
        connection, runner = self._connection, self._runner
        self._disconnect("closed")
        if runner:
            runner.cancel()
            await asyncio.wait([runner])
        self._watches.close(self._reason)
        if connection:
            await asyncio.wait([connection.lost])
        if self._readers:
            await asyncio.wait(self._readers)


def _failed(error: StoreError, future: asyncio.Future[T] | None = None) -> asyncio.Future[T]:
    if future is None:
        future = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future
