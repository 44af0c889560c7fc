"""The supervisor: which domains there are, and one confined process for each.

It learns of domains from paths of xenstore that only dom0 writes, forks from itself (everything is loaded already, so a
domain costs what differs), connects sockets for its children, and replaces those that die. It never touches a guest.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unplugd.attach import broker, child
from unplugd.attach.child import AttachedDomain, Ended
from unplugd.attach.confine import identity, preload
from unplugd.attach.connect import acting_as, connect
from unplugd.attach.serverids import ServerIds
from unplugd.attach.xen import libraries
from unplugd.config.attach import AttachConfig
from unplugd.core import pageoffer
from unplugd.core.bucket import RecordLimit, TokenBucket
from unplugd.errors import NoSuchNode, StoreError
from unplugd.xenstore.store import INTRODUCE_DOMAIN, RELEASE_DOMAIN, Store

DEVICE_MODELS = "/local/domain/0/device-model"
STOP = 15.0
"""Seconds for all children to hand their ports back at the end."""
_RETRIES = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Pauses in seconds before a process that dies repeatedly is started again. After a minute of life, the list starts
from the beginning."""
_LONG_LIFE = 60.0
_STARTING = 0.2
"""Seconds until a starting device model without a state in xenstore is checked again."""
_LOOK_AGAIN = 2.0
"""Seconds until a domain is checked again, if xenstored could not say whether it exists."""

_RECORDS, _RECORDS_A_SECOND = 100, 0.5
"""Records that one domain's process may have written at once, and from then on: it may be in a guest's hands."""
_CONNECTIONS, _CONNECTIONS_A_SECOND = 200, 20
"""The same for connections that it asks for. While unplugd restarts, it tries every 0.02 to 1 s."""

Report = Callable[[int | None, str], None]
"""Called with the domid, or None, and the text of the record."""


@dataclass(slots=True, eq=False)
class _Child:
    """One domain's process."""

    domain: AttachedDomain
    uid: int = 0
    """The uid of its process."""
    pid: int = 0
    pidfd: int = -1
    end: socket.socket | None = None
    born: float = 0.0
    deaths: int = 0
    unconfirmed: bool = False
    """True if the connection to xenstored was lost since xenstored last knew the domain. A xenstored that crashed comes
    back empty, so it is not a release if it does not know the domain."""
    records: RecordLimit = field(
        default_factory=lambda: RecordLimit(_RECORDS, _RECORDS_A_SECOND, time.monotonic()))
    connections: TokenBucket = field(
        default_factory=lambda: TokenBucket(_CONNECTIONS_A_SECOND, _CONNECTIONS, time.monotonic()))
    timer: asyncio.TimerHandle | None = None
    finished: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """Serves until stop(); `runtime_dir` is that of unplugd."""

    def __init__(self, store: Store, runtime_dir: Path, config: AttachConfig, report: Report) -> None:
        self._store = store
        self._runtime_dir = runtime_dir
        self._config = config
        self._report = report
        self._kept = ServerIds(runtime_dir)
        self._children: dict[int, _Child] = {}
        self._killed: set[_Child] = set()
        """Killed processes of released domains, until they are reaped."""
        self._unserved: set[tuple[int, str]] = set()
        """Domains without ioreq servers or without a platform device."""
        self._examining: set[int] = set()
        self._again: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()

    def prepare(self) -> None:
        """Load the libraries and create the directories that children need. Raises HostError and OSError."""
        libraries()
        preload()
        identity(self._config, 0)
        self._kept.prepare()
        gc.collect()
        gc.freeze()

    async def run(self) -> None:
        """Attach to all present and new domains until stop(); then give all ports back to QEMU."""
        connection = asyncio.create_task(self._store.run(self._connected, self._lost))
        await self._store.watch(INTRODUCE_DOMAIN, self._changed)
        await self._store.watch(RELEASE_DOMAIN, self._changed)
        await self._store.watch(DEVICE_MODELS, self._changed)
        await self._stop.wait()
        await self._detach_all()
        for one in list(self._killed):
            await one.finished.wait()  # it was killed: nothing can keep it
        connection.cancel()
        await self._store.close()

    def stop(self) -> None:
        """End run()."""
        self._stop.set()

    @property
    def domids(self) -> list[int]:
        """The domains that have a process."""
        return sorted(domid for domid, one in self._children.items() if one.pid)

    def _connected(self) -> None:
        self._start(self._look_at_all())

    def _lost(self, reason: str) -> None:
        for one in self._children.values():
            one.unconfirmed = True
        self._report(None, f"xenstore: {reason}")

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _changed(self, path: str) -> None:
        if path.startswith(DEVICE_MODELS + "/"):
            name = path[len(DEVICE_MODELS) + 1:].partition("/")[0]
            if name.isdecimal():
                self._look_at(int(name))
        else:
            self._start(self._look_at_all())

    async def _look_at_all(self) -> None:
        try:
            names = await self._store.directory(DEVICE_MODELS)
        except NoSuchNode:
            names = []
        except StoreError:
            return  # looked at again when the store is back
        domids = {int(name) for name in names if name.isdecimal()}
        for domid in domids | set(self._children) | set(self._kept.domids()):
            self._look_at(domid)

    def _look_at(self, domid: int) -> None:
        """Examine one domain. If it changes during this, it is examined once more."""
        if domid == 0 or self._stop.is_set():
            return
        if domid in self._examining:
            self._again.add(domid)
            return
        self._examining.add(domid)
        self._start(self._examine(domid))

    async def _examine(self, domid: int) -> None:
        try:
            while True:
                self._again.discard(domid)
                await self._examine_once(domid)
                if domid not in self._again:
                    return
        except StoreError:
            asyncio.get_running_loop().call_later(_LOOK_AGAIN, self._look_at, domid)
        finally:
            self._examining.discard(domid)

    async def _examine_once(self, domid: int) -> None:
        introduced = await self._store.is_introduced(domid)
        running = False
        uuid = ""
        if introduced:
            try:
                running = await self._device_model_runs(domid)
                vm = (await self._store.read(f"/local/domain/{domid}/vm")).decode("utf-8", "replace")
                uuid = vm.removeprefix("/vm/")
            except NoSuchNode:
                introduced = False
        known = self._children.get(domid)
        if not introduced:
            if (known is None or known.unconfirmed) and self._has_device_model(domid):
                # Without the server's id a vCPU could hang. There is no event for the domain's end in this state, so
                # check again.
                asyncio.get_running_loop().call_later(_LOOK_AGAIN, self._look_at, domid)
            else:
                self._gone(domid)
            return
        if known is not None:
            known.unconfirmed = False
        if running and not self._stop.is_set():
            if known is not None and known.domain.uuid != uuid:
                self._gone(domid)
                known = None
            if known is None and (domid, uuid) not in self._unserved:
                one = self._children[domid] = _Child(AttachedDomain(domid, uuid))
                self._fork(one)

    async def _device_model_runs(self, domid: int) -> bool:
        """Whether QEMU runs. Under `dm_restrict` QEMU cannot write its state to xenstore; then its monitor shows it."""
        try:
            return await self._store.read(f"{DEVICE_MODELS}/{domid}/state") == b"running"
        except NoSuchNode:
            pass
        if self._has_device_model(domid):
            return True
        try:
            await self._store.directory(f"{DEVICE_MODELS}/{domid}")
        except NoSuchNode:
            return False  # there is no device model
        asyncio.get_running_loop().call_later(_STARTING, self._look_at, domid)
        return False

    def _has_device_model(self, domid: int) -> bool:
        """Whether the path of QEMU's monitor exists; libxl removes it when it destroys the domain."""
        return any(os.path.exists(path) for path in self._config.monitors(domid))

    def _gone(self, domid: int) -> None:
        self._kept.forget(domid)
        self._unserved = {key for key in self._unserved if key[0] != domid}
        one = self._children.pop(domid, None)
        if one is None:
            return
        if one.timer is not None:
            one.timer.cancel()
        if one.pid:
            _kill(one)
            self._killed.add(one)
        self._report(domid, "the domain is gone")

    def _fork(self, one: _Child) -> None:
        one.timer = None
        who = identity(self._config, one.domain.domid)
        one.uid = who.uid
        ours, theirs = broker.pair()
        supervisor = os.getpid()
        one.born = asyncio.get_running_loop().time()
        pid = os.fork()
        if pid == 0:
            child.run(one.domain, theirs, self._kept, who, self._config, supervisor)
        theirs.close()
        one.pid, one.end = pid, ours
        one.pidfd = os.pidfd_open(pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(ours.fileno(), self._message, one, ours)
        loop.add_reader(one.pidfd, self._ended, one)

    def _message(self, one: _Child, end: socket.socket) -> bool:
        """Take one message; False when there is none."""
        try:
            message = end.recv(broker.MESSAGE_LIMIT)
        except BlockingIOError:
            return False
        except OSError:
            message = b""
        if not message:
            asyncio.get_running_loop().remove_reader(end.fileno())
            return False
        verb, _, rest = message.decode("utf-8", "replace").partition(" ")
        match verb:
            case "connect":
                self._connect(one, end, rest)
            case "log" | "attached":
                self._record(one, rest if verb == "log" else f"attached: {rest}")
        return True

    def _record(self, one: _Child, text: str) -> None:
        """A record that the process of a domain causes: a few at once, then one now and then."""
        if admitted := one.records.admit(text, time.monotonic()):
            self._report(one.domain.domid, admitted)

    def _connect(self, one: _Child, end: socket.socket, what: str) -> None:
        domid = one.domain.domid
        paths: tuple[str, ...] = ()
        kind = socket.SOCK_STREAM
        if what == "unplugd":
            paths = (str(self._runtime_dir / f"dom{domid}.sock"),)
        elif what == "pages":
            paths, kind = (str(self._runtime_dir / pageoffer.SOCKET),), socket.SOCK_SEQPACKET
        elif what == "qemu":
            paths = self._config.monitors(domid)
        if not one.connections.take(1, time.monotonic()):
            paths = ()
        connection = None
        for path in paths:
            try:
                connection = connect(path, kind)
                if what == "pages":
                    connection.send(pageoffer.greet(domid))  # only the supervisor may name the domain
                break
            except (FileNotFoundError, ConnectionRefusedError):
                continue  # no process listens there
            except PermissionError as error:
                self._record(one, f"{path}: {error.strerror}: not connected")
                break
            except OSError:
                break  # busy; do not try the next one, which libxl itself needs
        try:
            if connection is None:
                end.send(f"refused {what}".encode())
            else:
                socket.send_fds(end, [f"connected {what}".encode()], [connection.fileno()])
        except OSError:
            pass  # the child has died; _ended() handles it
        if connection is not None:
            connection.close()

    def _ended(self, one: _Child) -> None:
        loop = asyncio.get_running_loop()
        pid, status = os.waitpid(one.pid, 0)
        if one.end is not None:
            while self._message(one, one.end):  # its last words
                pass
            loop.remove_reader(one.end.fileno())
            one.end.close()
        loop.remove_reader(one.pidfd)
        os.close(one.pidfd)
        one.pid, one.pidfd, one.end = 0, -1, None
        one.finished.set()
        self._killed.discard(one)
        if one.records.left_out:
            self._report(one.domain.domid, f"{one.records.left_out} records of process {pid} were not written")
            one.records.left_out = 0
        domid = one.domain.domid
        code = os.waitstatus_to_exitcode(status)
        if self._children.get(domid) is not one:
            return  # the domain was released
        match code:
            case Ended.HANDED_BACK:
                del self._children[domid]
                self._kept.forget(domid)
                self._report(domid, "handed back to QEMU")
                return
            case Ended.LEFT:
                del self._children[domid]
                return
            case Ended.NOT_HVM | Ended.NO_PLATFORM:
                del self._children[domid]
                self._unserved.add((domid, one.domain.uuid))
                if code == Ended.NO_PLATFORM:
                    self._report(domid, "not served: its QEMU has no platform device")
                return
        if self._stop.is_set():
            return
        if code != Ended.NOT_YET:
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
            self._report(domid, f"process {pid} ended {how}; a new one takes its ioreq server over")
        if loop.time() - one.born > _LONG_LIFE:
            one.deaths = 0
        pause = _RETRIES[min(one.deaths, len(_RETRIES) - 1)]
        one.deaths += 1
        one.timer = loop.call_later(pause, self._fork_again, one)

    def _fork_again(self, one: _Child) -> None:
        one.timer = None
        if self._children.get(one.domain.domid) is one and not self._stop.is_set():
            one.finished.clear()
            self._fork(one)

    async def _detach_all(self) -> None:
        running = [one for one in self._children.values() if one.pid]
        for one in running:
            try:
                if one.end is not None:
                    one.end.send(b"detach")
            except OSError:
                pass
        try:
            async with asyncio.timeout(STOP):
                for one in running:
                    await one.finished.wait()
        except TimeoutError:
            for one in running:
                if one.pid:
                    self._report(one.domain.domid, "did not hand its ports back in time")
                    _kill(one)


def _kill(one: _Child) -> None:
    """Send SIGKILL as the user of the process, because this needs no capability."""
    with acting_as(one.uid):
        os.kill(one.pid, signal.SIGKILL)
