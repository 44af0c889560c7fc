"""The supervisor: which domains there are, and one confined process for each.

It learns of domains from paths of xenstore that only dom0 writes, forks from itself (everything is loaded already, so a
domain costs what differs), connects sockets for its children, and replaces those that die. It never touches a guest.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pwd
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unplugd.attach import broker, child
from unplugd.attach.child import AttachedDomain, Ended
from unplugd.attach.confine import Identity, preload
from unplugd.attach.serverids import ServerIds
from unplugd.attach.xen import libraries
from unplugd.config.attach import AttachConfig
from unplugd.core import pageoffer
from unplugd.errors import HostError, NoSuchNode, StoreError
from unplugd.xenstore.store import INTRODUCE_DOMAIN, RELEASE_DOMAIN, Store

DEVICE_MODELS = "/local/domain/0/device-model"
STOP = 15.0
"""Seconds for all children to hand their ports back at the end."""
_RETRIES = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Pauses before a process that keeps dying is started again; a life of a minute starts the row anew."""
_LONG_LIFE = 60.0
_STARTING = 0.2
"""Seconds until a device model that says nothing of itself is looked for again."""
_LOOK_AGAIN = 2.0
"""Seconds until a domain of which xenstored could not say whether it is there is looked at again."""

Report = Callable[[int | None, str], None]
"""Called with the domid, or None, and what there is to record."""


@dataclass(slots=True, eq=False)
class _Child:
    """One domain's process."""

    domain: AttachedDomain
    uid: int = 0
    """Who its process becomes."""
    pid: int = 0
    pidfd: int = -1
    end: socket.socket | None = None
    born: float = 0.0
    deaths: int = 0
    unconfirmed: bool = False
    """True when xenstored was lost since it last knew the domain: a xenstored that crashed comes back empty, and that
    it does not know the domain says nothing."""
    timer: asyncio.TimerHandle | None = None
    finished: asyncio.Event = field(default_factory=asyncio.Event)


def identity(config: AttachConfig, domid: int) -> Identity:
    """Who the process of `domid` runs as. Raises HostError when the configured user is not there."""
    if not config.user:
        try:
            base = pwd.getpwnam("xen-qemuuser-range-base")
            return Identity(base.pw_uid + domid, base.pw_gid)
        except KeyError:
            pass
    for name in (config.user,) if config.user else ("unplugd-attach", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid == 0:
            raise HostError("the user of a domain's process", name, "is root")
        return Identity(entry.pw_uid, entry.pw_gid)
    raise HostError("the user of a domain's process", config.user or "nobody", "does not exist")


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Be `uid` for a moment: what it owns needs no capability then but CAP_SETUID. Nothing, where this is not root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


class Supervisor:
    """Serves until stop(); `runtime_dir` is unplugd's."""

    def __init__(self, store: Store, runtime_dir: Path, config: AttachConfig, report: Report) -> None:
        self._store = store
        self._runtime_dir = runtime_dir
        self._config = config
        self._report = report
        self._kept = ServerIds(runtime_dir)
        self._children: dict[int, _Child] = {}
        self._killed: set[_Child] = set()
        """Processes of domains that are gone, until they are reaped."""
        self._unserved: set[tuple[int, str]] = set()
        """Domains without ioreq servers or without a platform device."""
        self._examining: set[int] = set()
        self._again: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()

    def prepare(self) -> None:
        """Load and make what children need. Raises HostError and OSError."""
        libraries()
        preload()
        identity(self._config, 0)
        self._kept.prepare()
        (self._kept.directory / "empty").mkdir(mode=0o555, exist_ok=True)
        gc.collect()
        gc.freeze()

    async def run(self) -> None:
        """Attach to all domains, now and as they come, until stop(); then hand all ports back."""
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
        """Find out about one domain; changes that come meanwhile are looked at afterwards, once."""
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
                # Forgetting the server's id now could leave a vCPU hanging; nothing will tell when the domain goes.
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
        """Whether QEMU is there. A QEMU under `dm_restrict` may not say so in xenstore; its monitor says it then."""
        try:
            return await self._store.read(f"{DEVICE_MODELS}/{domid}/state") == b"running"
        except NoSuchNode:
            pass
        if self._has_device_model(domid):
            return True
        try:
            await self._store.directory(f"{DEVICE_MODELS}/{domid}")
        except NoSuchNode:
            return False  # it has none
        asyncio.get_running_loop().call_later(_STARTING, self._look_at, domid)
        return False

    def _has_device_model(self, domid: int) -> bool:
        """Whether QEMU's monitor is there; libxl removes its path when it destroys the domain."""
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
                self._connect(one.domain.domid, end, rest)
            case "log" | "attached":
                self._report(one.domain.domid, rest if verb == "log" else f"attached: {rest}")
        return True

    def _connect(self, domid: int, end: socket.socket, what: str) -> None:
        paths: tuple[str, ...] = ()
        kind = socket.SOCK_STREAM
        if what == "unplugd":
            paths = (str(self._runtime_dir / f"dom{domid}.sock"),)
        elif what == "pages":
            paths, kind = (str(self._runtime_dir / pageoffer.SOCKET),), socket.SOCK_SEQPACKET
        elif what == "qemu":
            paths = self._config.monitors(domid)
        connection = None
        for path in paths:
            try:
                # The socket of a domain whose QEMU is not root belongs to QEMU's user, and is only for that one.
                with acting_as(os.stat(path).st_uid):
                    connection = broker.connect(path, kind)
                if what == "pages":
                    connection.send(pageoffer.greet(domid))  # whose it is, unplugd believes us alone
                break
            except (FileNotFoundError, ConnectionRefusedError):
                continue  # nobody listens there
            except OSError:
                break  # busy: the next one is libxl's own, which must find it free
        try:
            if connection is None:
                end.send(f"refused {what}".encode())
            else:
                socket.send_fds(end, [f"connected {what}".encode()], [connection.fileno()])
        except OSError:
            pass  # it died; _ended() sees to it
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
        domid = one.domain.domid
        code = os.waitstatus_to_exitcode(status)
        if self._children.get(domid) is not one:
            return  # the domain is gone
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
    """SIGKILL, as the user that the process is: a signal to one's own needs no capability."""
    with acting_as(one.uid):
        os.kill(one.pid, signal.SIGKILL)
