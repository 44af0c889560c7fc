"""Telling the toolstack which PV driver runs: `/local/domain/<domid>/unplug/*` (contract section 2).

One transaction a domain: it reads `vm` first and gives up where that is gone or another's, since a late write would
bring a destroyed domain's directory back. The first news of a domain go out soon, later ones at most once a second.

The nodes also tell a guest from the next one that has its domid and uuid, for the toolstack removes a domain's
directory with them: where they should be there and are not, the guest is another. That is looked at in the same
transaction, after a start and when something about the domain has changed (verify()).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from unplugd.domains.domain import Domain
from unplugd.domains.view import published
from unplugd.errors import NoSuchNode, StoreError, StoreUnavailable, TransactionConflict
from unplugd.sinks.records import Event
from unplugd.xenstore.store import Store

FIRST = 0.25
"""Seconds before the first one: a driver that comes up tells all that it has to tell within a few milliseconds, which
is one transaction then; and where many guests boot at once, these go on first."""
INTERVAL = 1.0
"""Seconds between two transactions of one domain."""
AT_ONCE = 8
"""Transactions under way at the same time."""
_AT_A_TIME = 64
ATTEMPTS = 10
"""How often a transaction that met somebody else's write is tried again."""

NODES = ("product", "product-name", "build", "blacklisted", "unplugged", "verdict")


class _Replaced(Exception):
    """The domain's directory is another than the one that was written to."""


class Publisher:
    """Writes what domains have to tell, into the store that use() says; before that, nothing."""

    _store: Store

    def __init__(self, say: Callable[[Event, str], None], *, noted: Callable[[Domain, bool], None],
                 replaced: Callable[[Domain], None]) -> None:
        """`noted` keeps whether a domain's nodes are there, for the next process too; `replaced` is called for a domain
        whose nodes have gone with its directory."""
        self._say = say
        self._noted = noted
        self._replaced = replaced
        self._doubted: set[Domain] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._soon: dict[Domain, asyncio.TimerHandle] = {}
        self._tasks: dict[Domain, asyncio.Task[None]] = {}
        self._again: set[Domain] = set()
        self._written: dict[Domain, dict[str, str] | None] = {}
        self.enabled = False

    def use(self, store: Store, *, enabled: bool) -> None:
        """Write into this one, if `enabled`. What was to be told before, publish_all() finds."""
        self._store = store
        self.enabled = enabled

    def changed(self, domain: Domain) -> None:
        """What the domain's nodes should say may have changed."""
        if not self.enabled:
            return
        if domain in self._tasks:
            self._again.add(domain)
        elif domain not in self._soon:
            self._soon[domain] = asyncio.get_running_loop().call_later(FIRST, self._begin, domain)

    def verify(self, domain: Domain) -> None:
        """The domain's nodes were written; they may have gone with its directory since."""
        self._doubted.add(domain)
        self._written.pop(domain, None)
        self.changed(domain)

    def _begin(self, domain: Domain) -> None:
        del self._soon[domain]
        self._tasks[domain] = asyncio.get_running_loop().create_task(self._follow(domain))

    async def publish_all(self, domains: Iterable[Domain]) -> None:
        """After a connect: what domains have to tell, and nodes of one that has nothing to tell any more removed."""
        silent = []
        for domain in domains:
            if published(domain) is not None:
                self.changed(domain)
            else:
                silent.append(domain)
        if self.enabled:
            for at in range(0, len(silent), _AT_A_TIME):
                some = silent[at:at + _AT_A_TIME]
                found = await asyncio.gather(
                    *(self._store.read(f"/local/domain/{domain.domid}/unplug/unplugged") for domain in some),
                    return_exceptions=True)
                for domain, value in zip(some, found, strict=True):
                    if not isinstance(value, NoSuchNode):
                        self.changed(domain)

    def lost(self) -> None:
        """The connection is gone: whatever was written may be gone too, with a xenstored that comes back empty."""
        for domain in self._written:
            self._noted(domain, False)
        self._written.clear()
        self._doubted.clear()

    def forget(self, domain: Domain) -> None:
        """The domain is gone."""
        self._again.discard(domain)
        self._doubted.discard(domain)
        self._written.pop(domain, None)
        soon = self._soon.pop(domain, None)
        if soon is not None:
            soon.cancel()
        task = self._tasks.pop(domain, None)
        if task is not None:
            task.cancel()

    async def stop(self) -> None:
        """Finish what is being written."""
        for soon in self._soon.values():
            soon.cancel()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, domain: Domain) -> None:
        try:
            while True:
                self._again.discard(domain)
                async with self._slots:
                    await self._publish(domain)
                await asyncio.sleep(INTERVAL)
                if domain not in self._again:
                    return
        finally:
            if self._tasks.get(domain) is asyncio.current_task():
                del self._tasks[domain]

    async def _publish(self, domain: Domain) -> None:
        nodes = published(domain)
        if domain in self._written and self._written[domain] == nodes:
            return
        try:
            for _ in range(ATTEMPTS):
                try:
                    if await self._write(domain, nodes):
                        self._written[domain] = nodes
                        self._noted(domain, nodes is not None)
                    return
                except TransactionConflict:
                    continue
            self._say(Event.STORE_REFUSED, f"domain {domain.domid}: nothing published: xenstore is too busy")
        except _Replaced:
            asyncio.get_running_loop().call_soon(self._replaced, domain)
        except StoreUnavailable:
            self._written.pop(domain, None)
            if self._store.connected:
                self._again.add(domain)  # a slow answer; after a lost connection everything is published anew
        except StoreError as error:
            self._say(Event.STORE_REFUSED, f"domain {domain.domid}: nothing published: {error}")

    async def _write(self, domain: Domain, nodes: dict[str, str] | None) -> bool:
        """One transaction; False where the domain is not (or no longer) the one that we know."""
        home = f"/local/domain/{domain.domid}"
        base = f"{home}/unplug"
        store = self._store
        async with store.transaction() as tx:
            try:
                vm = await store.read(f"{home}/vm", tx=tx)
            except NoSuchNode:
                return False
            if not domain.uuid or vm.decode("utf-8", "replace").rpartition("/")[2] != domain.uuid:
                return False
            if nodes is None:
                self._noted(domain, False)  # before they go: the next process must not miss them
                await self._remove(base, tx)
                return True
            if domain in self._doubted:
                await self._check(f"{base}/unplugged", tx)
                self._doubted.discard(domain)
            requests = []
            for name, value in nodes.items():
                requests.append(store.write(f"{base}/{name}", value.encode(), tx=tx))
                requests.append(store.set_permissions(f"{base}/{name}", ["n0"], tx=tx))
            requests.append(store.set_permissions(base, ["n0"], tx=tx))
            await asyncio.gather(*requests)
            for name in NODES:
                if name not in nodes:
                    await self._remove(f"{base}/{name}", tx)
        return True

    async def _check(self, path: str, tx: int) -> None:
        try:
            await self._store.read(path, tx=tx)
        except NoSuchNode:
            raise _Replaced from None

    async def _remove(self, path: str, tx: int) -> None:
        try:
            await self._store.remove(path, tx=tx)
        except NoSuchNode:
            pass
