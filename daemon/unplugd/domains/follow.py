"""Which domains there are: xenstore's introductions and releases. What it says about each is nodes.py's.

The rules (contract section 1) in short:

- A domain is there while XS_IS_DOMAIN_INTRODUCED says T. F is its release, but only while the connection has not been
  lost since the last T: a xenstored that crashed comes back empty and answers F for everybody.
- After a loss a domain is kept until a later @releaseDomain finds it gone again, or its domid is introduced anew.
- A domid whose `vm` names another uuid is another guest: the old one is released, the new one introduced. So is one
  whose `vm` was gone in between, while the connection lasted.

Watched is only what dom0 alone can write. Events say that something changed, never what: everything is read anew, and
a spurious event finds nothing new.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from unplugd.domains.nodes import DomainNodes, let_go, nodes_of, paths
from unplugd.errors import NoSuchNode, StoreError
from unplugd.host.longwork import LongWork
from unplugd.sinks.records import Event
from unplugd.xenstore.store import INTRODUCE_DOMAIN, RELEASE_DOMAIN, Store

RETRY = 1.0
"""Seconds until xenstored is asked again what it did not answer."""

_AT_ONCE = 128
"""Domains whose nodes are read at the same time: verdicts' neighbours in xenstored should not wait for thousands."""

_TURN = 2e-3
"""Seconds of telling of domains, with guests served in between, after which the event loop turns."""

_ARMED_AT_ONCE = 16
"""Domains whose nodes are being watched at the same time, behind what is more urgent."""

_PROBED = 256
"""How far beyond the highest domid that is listed a domain without any node is looked for."""


class DomainObserver(Protocol):
    """Who is told about domains."""

    def introduced(self, domid: int, facts: DomainNodes) -> None:
        """A domain has come, or was there at start."""

    def changed(self, domid: int, facts: DomainNodes) -> None:
        """xenstore says something else about it (never another uuid, unless it had none)."""

    def touched(self, domid: int) -> None:
        """Something happened to its nodes: they may have been removed and made anew, with the same values."""

    def released(self, domid: int) -> None:
        """A domain has gone."""


class _Known:
    """A domain that was introduced."""

    __slots__ = ("callback", "confirmed", "facts", "meeting", "restored", "told", "vanished")

    def __init__(self) -> None:
        self.confirmed = True
        """XS_IS_DOMAIN_INTRODUCED said T on this connection."""
        self.facts = DomainNodes()
        self.told = False
        self.restored = False
        """Its facts are an earlier process's."""
        self.meeting = False
        """It is being read right now."""
        self.vanished = False
        """Its `vm` was there and is not any more, while xenstored was connected: it is being destroyed."""
        self.callback: Callable[[str], None] | None = None
        """What watches of its nodes call; None where they are not watched."""


class DomainFollower:
    """Follows xenstore and tells a DomainObserver. Which xenstore, use() says."""

    _store: Store

    def __init__(self, observer: DomainObserver, say: Callable[[Event, str], None]) -> None:
        self._observer = observer
        self._say = say
        self._known: dict[int, _Known] = {}
        self._scan_wanted = asyncio.Event()
        self._introductions = 0
        self._release_seen = False
        self._stale: set[int] = set()
        self._arming = asyncio.Semaphore(_ARMED_AT_ONCE)
        self._unarmed: list[int] = []
        self.readers: Sequence[Store] = ()
        """See use()."""
        self._tasks: set[asyncio.Task[None]] = set()

    def use(self, store: Store, readers: Sequence[Store] = ()) -> None:
        """Follow this one. `readers`: more connections to the same xenstored, for reading all domains at start."""
        self._store = store
        self.readers = readers

    def arm(self) -> None:
        """Watch for comings and goings; once, before the store runs: it arms its watches at every connect."""
        self._armed = [
            asyncio.ensure_future(self._store.watch(INTRODUCE_DOMAIN, self._introduced_event)),
            asyncio.ensure_future(self._store.watch(RELEASE_DOMAIN, self._released_event)),
        ]

    def restore(self, found: dict[int, DomainNodes]) -> None:
        """Domains that an earlier process served a moment ago: they are there until the first scan finds them gone."""
        for domid, facts in found.items():
            known = self._known[domid] = _Known()
            known.confirmed, known.restored, known.told, known.facts = False, True, True, facts
            self._observer.introduced(domid, facts)

    def lost(self) -> None:
        """The connection is gone: from now on F means nothing about the domains that are known."""
        for known in self._known.values():
            known.confirmed = known.vanished = False

    def _introduced_event(self, _path: str) -> None:
        self._introductions += 1
        self._scan_wanted.set()

    def _released_event(self, _path: str) -> None:
        self._release_seen = True
        self._scan_wanted.set()

    async def follow(self) -> None:
        """Scan whenever something came or went, until cancelled."""
        while True:
            await self._scan_wanted.wait()
            self._scan_wanted.clear()
            released, self._release_seen = self._release_seen, False
            introductions, self._introductions = self._introductions, 0
            begin = time.monotonic()
            try:
                found = await self.scan(after_release=released)
                if found < introductions:
                    await self._probe()
            except StoreError as error:
                if self._store.connected:
                    self._say(Event.STORE_REFUSED, f"the domains could not be read: {error}")
                    self._release_seen = self._release_seen or released
                    self._scan_wanted.set()
                    await asyncio.sleep(RETRY)
            # a scan asks about every domain: many releases at once must not keep xenstored from anything else
            await asyncio.sleep(min(RETRY, time.monotonic() - begin))

    async def scan(self, *, after_release: bool) -> int:
        """Compare what xenstored knows with what is known here; how many domains were found. Raises StoreError.

        `after_release`: a @releaseDomain was seen, so that F is news about the domains from before a loss too, and
        everybody must be asked about; otherwise only whoever is not known to be there.
        """
        domids = await self._listed() | self._known.keys()
        if not after_release:
            domids -= {domid for domid, known in self._known.items() if known.confirmed and known.told}
        return await self._ask(sorted(domids), after_release=after_release)

    async def _probe(self) -> None:
        """Look for a domain that was introduced before it got any node: it is in no directory."""
        listed = await self._listed() | self._known.keys()
        last = max(listed, default=0) + _PROBED
        await self._ask([domid for domid in range(1, last + 1) if domid not in self._known], after_release=False)
        await asyncio.sleep(0.1)  # events that come in numbers cause few probes

    async def _ask(self, domids: list[int], *, after_release: bool) -> int:
        found = 0
        for at in range(0, len(domids), _AT_ONCE):
            some = domids[at:at + _AT_ONCE]
            there = await asyncio.gather(*(self._reader(domid).is_introduced(domid) for domid in some))
            fresh = []
            for domid, introduced in zip(some, there, strict=True):
                if self._judge(domid, introduced=introduced, after_release=after_release):
                    fresh.append(domid)
            found += len(fresh)
            await self._meet(fresh)
        # what is watched can wait until everybody is served
        unarmed, self._unarmed = self._unarmed, []
        for domid in unarmed:
            known = self._known.get(domid)
            if known is not None and known.callback is None:
                known.callback = functools.partial(self._changed, domid)
                self._spawn(self._watch(domid, known))
        return found

    def _reader(self, domid: int) -> Store:
        """Who is asked about a domain.

        xenstored looks at each of its domains before it takes one request of each connection: with a thousand domains,
        eight connections are answered nearly eight times as fast as one.
        """
        if self.readers:
            reader = self.readers[domid % len(self.readers)]
            if reader.connected:
                return reader
        return self._store

    async def _listed(self) -> set[int]:
        try:
            names = await self._store.directory("/local/domain")
        except NoSuchNode:
            return set()
        return {int(name) for name in names if name.isascii() and name.isdigit() and name != "0" and len(name) <= 5}

    def _judge(self, domid: int, *, introduced: bool, after_release: bool) -> bool:
        """Note what XS_IS_DOMAIN_INTRODUCED said; true where the domain's nodes must be read."""
        known = self._known.get(domid)
        if introduced:
            if known is None:
                self._known[domid] = _Known()
                return True
            again, known.confirmed = not (known.confirmed and known.told), True
            return again and not known.meeting
        if known is not None and (known.confirmed or after_release):
            self._release(domid)
        return False

    def _release(self, domid: int) -> None:
        known = self._known.pop(domid)
        self._unwatch_all(domid, known)
        if known.told:
            self._observer.released(domid)

    async def _unwatch(self, path: str, callback: Callable[[str], None]) -> None:
        try:
            await self._store.unwatch(path, callback)
        except StoreError:
            pass  # then the watch went with its connection

    async def _meet(self, domids: list[int]) -> None:
        """Read domains' nodes and tell of them; their nodes are watched soon after. One without nodes is there too.

        Guests are served in between. Raises the StoreError of one that could not be read, once the others are told of.
        """
        reading = [(domid, self._known[domid], self._ask_for(domid)) for domid in domids if domid in self._known]
        for _, known, _ in reading:
            known.meeting = True
        failed: StoreError | None = None
        work = LongWork(at_least=_TURN, at_most=_TURN)
        try:
            while reading:
                domid, known, values = reading[0]
                try:
                    self._tell(domid, known, await nodes_of(values))
                    self._unarmed.append(domid)
                except StoreError as error:
                    failed = error
                known.meeting = False
                del reading[0]
                await work.let_others()
        finally:
            for _, known, values in reading:
                known.meeting = False
                let_go(values)
        if failed is not None:
            raise failed

    async def _watch(self, domid: int, known: _Known) -> None:
        """Watch a domain's nodes, then read them again: what changed before they were watched was no event."""
        async with self._arming:
            callback = known.callback
            if callback is None:
                return  # it went meanwhile
            try:
                await asyncio.gather(*(self._store.watch(path, callback) for path in paths(domid)))
            except StoreError as error:
                self._unwatch_all(domid, known)  # to be armed anew by the scan after the next connect
                if self._known.get(domid) is known:
                    self._say(Event.STORE_REFUSED, f"domain {domid} is not watched: {error}")
            if self._known.get(domid) is known:
                await self._look_again(domid)

    def _unwatch_all(self, domid: int, known: _Known) -> None:
        callback, known.callback = known.callback, None
        if callback is not None:
            for path in paths(domid):
                self._spawn(self._unwatch(path, callback))

    def _ask_for(self, domid: int) -> list[asyncio.Future[bytes]]:
        reader = self._reader(domid)
        return [reader.read(path) for path in paths(domid)]

    async def _read(self, domid: int) -> DomainNodes:
        return await nodes_of(self._ask_for(domid))

    def _tell(self, domid: int, known: _Known, facts: DomainNodes) -> None:
        if self._known.get(domid) is not known:
            return  # released meanwhile
        before = known.facts
        if not known.told:
            known.told, known.facts = True, facts
            self._observer.introduced(domid, facts)
            return
        restored, known.restored = known.restored, False
        if before.uuid and not facts.uuid:
            known.vanished = known.confirmed
        if facts.uuid and before.uuid and (facts.uuid != before.uuid or known.vanished):
            known.facts, known.vanished = facts, False
            self._observer.released(domid)
            self._observer.introduced(domid, facts)
            return
        # what was there and is gone is a domain that is being destroyed, or a xenstored that came back empty
        kept = DomainNodes(facts.name or before.name, facts.uuid or before.uuid, facts.unlimited,
                     before.device_model_uid if facts.device_model_uid is None else facts.device_model_uid)
        if restored and facts.uuid:
            kept = facts  # what the domain lost since is no sign of its end
        if kept != before:
            known.facts = kept
            self._observer.changed(domid, kept)

    def _changed(self, domid: int, _path: str) -> None:
        if domid not in self._stale:
            self._stale.add(domid)
            self._spawn(self._look_again(domid, touched=True))

    async def _look_again(self, domid: int, *, touched: bool = False) -> None:
        self._stale.discard(domid)
        known = self._known.get(domid)
        if known is None or not known.told:
            return
        try:
            facts = await self._read(domid)
        except StoreError:
            if self._store.connected:
                await asyncio.sleep(RETRY)
                self._changed(domid, "")
            return  # without a connection, the scan after the next one reads everything
        self._tell(domid, known, facts)
        if touched and facts.uuid and self._known.get(domid) is known:
            self._observer.touched(domid)

    def _spawn(self, work: asyncio._CoroutineLike[None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Leave nothing running."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
