"""The blacklist: the verdict on a build number, and the nodes that unplugd writes into xenstore for it.

A verdict looks the build up in xenstored, on a connection that publishing and scanning do not use. If xenstored does
not answer in time, or a guest announces itself too often, the mirror decides (contract section 2). In the state
directory, `owned` lists the nodes that unplugd wrote, so that a reload after a restart removes these and no others.
`mirror` is the copy of the blacklist for a restart while xenstored does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from unplugd.blacklist.lookups import Answer, SharedReads
from unplugd.config.load import BlacklistConfig
from unplugd.core.blacklist import ROOT, Configured, Hit, for_guest, node, strictest
from unplugd.core.bucket import TokenBucket
from unplugd.core.counters import Counters
from unplugd.core.guest import ALLOWED, Verdict
from unplugd.core.guestrules import Stance
from unplugd.core.protocol import Action
from unplugd.core.registry import Registry
from unplugd.core.stream import NeedVerdict
from unplugd.domains.domain import Domain
from unplugd.errors import NoSuchNode, StoreError
from unplugd.sinks.records import Event
from unplugd.xenstore.store import Store

LOOKUPS_A_SECOND = 32
"""Lookups that one domain may cause in xenstored; beyond, the mirror answers."""

LEAST_WAIT = 0.001
"""Seconds that xenstored has at least, however late it is."""

REASON_LIMIT = 120
"""Characters of a reason that are kept and shown."""

SYNC_INTERVAL = 0.1
"""Seconds between two readings of the whole blacklist: a script that adds a thousand entries causes few."""

Say = Callable[[Event, str], None]


class _Lookup(NamedTuple):
    """A build number that xenstore is asked about."""

    product: str
    build: int
    path: str
    """Its node."""
    hit: Hit | None
    """What configuration itself says of it."""
    stance: Stance
    """How the blacklist counts for its guest."""


class Blacklist:
    """The verdicts of all domains. Which xenstore is asked, use() says; who asks before that waits for it."""

    _store: Store
    _lookups: SharedReads

    def __init__(self, config: BlacklistConfig, registry: Registry, counters: Counters, state_directory: Path,
                 boot: bytes, say: Say) -> None:
        self._counters = counters
        self._owned_file = state_directory / "owned"
        self._mirror_file = state_directory / "mirror"
        self._boot = boot.hex()
        self._say = say
        self._mirror = self._load(self._mirror_file)
        self.synced = False
        """Whether xenstore has what configuration puts there, and the mirror what xenstore has."""
        self._tried = asyncio.Event()
        """Set once xenstored was read, or could not be."""
        self._budgets: dict[int, TokenBucket] = {}
        self._dirty = asyncio.Event()
        self._owned = self._load(self._owned_file)
        self.configure(config, registry)

    def use(self, store: Store, lookups: Store) -> None:
        """Ask this one; `lookups` is a connection for verdicts alone (`store` itself where nothing can queue)."""
        self._store = store
        self._lookups = SharedReads(lookups)

    def configure(self, config: BlacklistConfig, registry: Registry) -> None:
        """Use another configuration; xenstore follows with the next put_entries()."""
        self._config = config
        self._registry = registry
        self._configured = Configured(config.entries, config.ranges, config.action)

    @property
    def entries(self) -> int:
        """How many builds xenstore blacklists, by the mirror."""
        return len(self._mirror)

    # --- verdicts

    def judge(self, domain: Domain, need: NeedVerdict, deadline: float) -> asyncio.Future[Verdict]:
        """The verdict about a build number, at the latest at `deadline` (time.monotonic()). Never raises.

        A future, and no coroutine, so that a guest that boots does not cost a task.
        """
        product, stance = self._registry.name(need.product), domain.stance
        if product is None:
            return self._known("unknown-product", Verdict(blacklisted=False, source="unknown-product"))
        if stance.exempt:
            return self._known("allowed", Verdict(blacklisted=False, source="configuration", rule=stance.rule))
        hit = self._configured.decide(product, need.build, domain.name, domain.uuid)
        path = node(product, need.build)
        lookup = _Lookup(product, need.build, path or "", hit, stance)
        if path is None or (hit is not None and (stance.observe or hit.action >= self._configured.action)):
            return self._known(*self._conclude(lookup, None, "configuration"))
        if not self._budget(domain).take(1, time.monotonic()):
            # the guest's own doing: what decides when xenstored is silent must not be the guest's to choose
            why = f"it asked more than {LOOKUPS_A_SECOND} times a second"
            return self._known(*self._by_mirror(lookup, why))
        if not self._tried.is_set():
            return asyncio.ensure_future(self._judge_later(lookup, deadline))
        return self._ask(lookup, deadline)

    async def _judge_later(self, lookup: _Lookup, deadline: float) -> Verdict:
        """A guest may need a verdict right after a restart, before there is a connection."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._tried.wait(), max(LEAST_WAIT, deadline - time.monotonic()))
        return await self._ask(lookup, deadline)

    def _ask(self, lookup: _Lookup, deadline: float) -> asyncio.Future[Verdict]:
        """The verdict of xenstore on a node, or of its fallback."""
        if not self.synced:
            return self._known(*self._fall_back(lookup, "xenstored is not connected"))
        verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._lookups.read(lookup.path, max(deadline, time.monotonic() + LEAST_WAIT),
                           partial(self._answered, lookup, verdict))
        return verdict

    def _answered(self, lookup: _Lookup, verdict: asyncio.Future[Verdict], answer: Answer) -> None:
        if verdict.done():
            return  # the caller does not wait any more
        match answer:
            case NoSuchNode():
                result, said = self._conclude(lookup, None, "xenstore")
            case StoreError() as error:
                result, said = self._fall_back(lookup, str(error))
            case _:
                found = self._configured.node_hit(lookup.product, lookup.build, answer.decode("utf-8", "replace"))
                result, said = self._conclude(lookup, found, "xenstore")
        self._counters.blacklist_lookups[result] += 1
        verdict.set_result(said)

    @staticmethod
    def _conclude(lookup: _Lookup, found: Hit | None, source: str, fallback: str = "") -> tuple[str, Verdict]:
        """The verdict, and how it is counted. `found` is the entry of `source`, beside what configuration says."""
        decided = for_guest(strictest(lookup.hit, found), lookup.stance)
        if decided is None:
            said = ALLOWED if source == "xenstore" else Verdict(blacklisted=False, source=source, fallback=fallback)
            return "fallback" if fallback else "allowed", said
        if found is None or (lookup.hit is not None and lookup.hit.action >= found.action):
            source = "configuration"
        said = Verdict(True, decided.reason[:REASON_LIMIT], source, fallback, decided.action,
                       decided.rule[:REASON_LIMIT], by_node=found is not None)
        return "fallback" if fallback else "reported" if decided.action is Action.REPORT else "blacklisted", said

    def _known(self, result: str, said: Verdict) -> asyncio.Future[Verdict]:
        """A verdict without a lookup in xenstore."""
        self._counters.blacklist_lookups[result] += 1
        verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        verdict.set_result(said)
        return verdict

    def _budget(self, domain: Domain) -> TokenBucket:
        budget = self._budgets.get(domain.domid)
        if budget is None:
            budget = TokenBucket(LOOKUPS_A_SECOND, LOOKUPS_A_SECOND, time.monotonic())
            self._budgets[domain.domid] = budget
        return budget

    def forget(self, domid: int) -> None:
        """A domain is gone."""
        self._budgets.pop(domid, None)

    def _fall_back(self, lookup: _Lookup, why: str) -> tuple[str, Verdict]:
        """The verdict without xenstored, according to `blacklist.on_error`."""
        on_error = self._config.on_error
        if on_error == "mirror":
            return self._by_mirror(lookup, why)
        rule = f'blacklist.on_error = "{on_error}"'
        denied = Hit(self._configured.action, "xenstored did not answer", rule) if on_error == "deny" else None
        return self._conclude(lookup, denied, "on-error", f"{why}; {rule} decided")

    def _by_mirror(self, lookup: _Lookup, why: str) -> tuple[str, Verdict]:
        """The verdict by what xenstore had last."""
        path, nodes = lookup.path, self._configured.nodes
        # a restarted xenstored may be empty: the configured entries count already
        there = path in self._mirror or (not self.synced and path in nodes)
        found = self._configured.node_hit(lookup.product, lookup.build, nodes.get(path, "")) if there else None
        return self._conclude(lookup, found, "mirror", f"{why}; what xenstore had last decided")

    # --- what xenstore has

    def lost(self) -> None:
        """The connection was lost: until sync() the mirror decides."""
        self.synced = False
        self._tried.set()

    async def sync(self) -> None:
        """After a connect: put configuration's entries there, then read everything. Raises StoreError."""
        await self.put_entries()
        self._dirty.clear()
        await self.read_all()
        self.synced = True
        self._tried.set()

    async def put_entries(self) -> None:
        """Write the configured entries to xenstore, and remove those of the previous one. Raises StoreUnavailable."""
        wanted = self._configured.nodes
        for path in sorted(self._owned - wanted.keys()):
            with contextlib.suppress(NoSuchNode):
                await self._store.remove(path)
            self._owned.discard(path)
            self._save_owned()
        for path, reason in wanted.items():
            await self._put(path, reason)

    async def _put(self, path: str, reason: str) -> None:
        try:
            present = await self._store.read(path)
        except NoSuchNode:
            present = None
        value = reason.encode("utf-8")[:2048]
        if present is not None and (path not in self._owned or present == value):
            return
        if path not in self._owned:
            # note the node before writing it: without the note it could never be removed again
            self._owned.add(path)
            self._save_owned()
        await self._store.write(path, value)

    async def read_all(self) -> None:
        """Read the mirror again. Raises StoreUnavailable."""
        mirror: set[str] = set()
        try:
            products = await self._store.directory(ROOT)
        except NoSuchNode:
            products = []
        for product in products:
            try:
                builds = await self._store.directory(f"{ROOT}/{product}")
            except NoSuchNode:
                continue
            mirror.update(f"{ROOT}/{product}/{build}" for build in builds if build.isdigit())
        if mirror != self._mirror:
            self._mirror = mirror
            self._save(self._mirror_file, mirror, "after a restart without a xenstored nothing is blacklisted by it")

    def arm(self) -> None:
        """Watch the blacklist's directory; once, before the store runs: it arms its watches at every connect."""
        self._armed = asyncio.ensure_future(self._store.watch(ROOT, self._changed))

    def _changed(self, _path: str) -> None:
        self._dirty.set()

    async def follow(self) -> None:
        """Keep the mirror up to date until cancelled."""
        while True:
            await self._dirty.wait()
            await asyncio.sleep(SYNC_INTERVAL)
            if not self.synced:
                continue  # sync() reads it all; what it may have missed is still marked here
            self._dirty.clear()
            try:
                await self.read_all()
            except StoreError as error:
                self._dirty.set()
                if self._store.connected:
                    self._say(Event.STORE_REFUSED, f"the blacklist could not be read: {error}")
                    await asyncio.sleep(1.0)

    # --- what the next process finds: which nodes are ours, and the mirror

    def _load(self, file: Path) -> set[str]:
        """The paths in a file of ours: the boot that it is of, then a path a line."""
        try:
            boot, *paths = file.read_text("ascii", "surrogateescape").split("\n")
        except OSError:
            return set()
        return {path for path in paths if path.startswith(ROOT + "/")} if boot == self._boot else set()

    def _save_owned(self) -> None:
        self._save(self._owned_file, self._owned,
                   "a reload after a restart will not take configuration's blacklist entries out of xenstore")

    def _save(self, file: Path, paths: set[str], otherwise: str) -> None:
        new = file.with_suffix(".new")
        try:
            new.write_text("\n".join((self._boot, *sorted(paths), "")), "ascii", "surrogateescape")
            os.replace(new, file)
        except OSError as error:
            self._say(Event.SINK_FAILED, f"{file}: {error.strerror}; {otherwise}")
