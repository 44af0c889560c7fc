"""The blacklist: the verdict on a build number, and the nodes that unplugd writes into xenstore for it.

A verdict looks the build up in xenstored, on a connection that publishing and scanning do not use. If xenstored does
not answer in time, or a guest announces itself too often, the mirror decides (contract section 2). In the state
directory, `owned` lists the nodes that unplugd wrote, so that a reload after a restart removes these and no others.
`mirror` is the copy of the blacklist for a restart while xenstored does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from unplugd.blacklist.lookups import Answer, SharedReads
from unplugd.config.load import BlacklistConfig
from unplugd.core.blacklist import ROOT, Configured, Hit, build_number, for_guest, node, strictest
from unplugd.core.bucket import TokenBucket
from unplugd.core.counters import Counters
from unplugd.core.guest import ALLOWED, Verdict
from unplugd.core.guestrules import Stance
from unplugd.core.protocol import Action
from unplugd.core.registry import Registry
from unplugd.core.stream import NeedVerdict
from unplugd.domains.domain import Domain
from unplugd.errors import NoSuchNode, StoreError
from unplugd.host.ownfiles import read_file, replace_file
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

REASON_BYTES = 2048
"""Bytes of a reason that are written into xenstore."""

PIPELINED = 32
"""Requests in flight at a time while the configured entries are written."""

REMEMBERED = 1024
"""Nodes that are noted in the file `owned` at once."""

MALFORMED_SHOWN = 5
"""Malformed nodes that a record names."""

T = TypeVar("T")
FILE_LIMIT = 16 << 20
"""Bytes of a file with paths of the blacklist: 200,000 of them."""

_NOT_OWNED = "a reload after a restart will not take configuration's blacklist entries out of xenstore"
_NOT_MIRRORED = "after a restart without a xenstored nothing is blacklisted by it"

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
    """The verdicts of all domains. use() says which xenstore is asked; a request before that waits."""

    _store: Store
    _lookups: SharedReads

    def __init__(self, config: BlacklistConfig, registry: Registry, counters: Counters, state_directory: Path,
                 boot: bytes, say: Say, prepared: Configured | None = None) -> None:
        self._counters = counters
        self._owned_file = state_directory / "owned"
        self._mirror_file = state_directory / "mirror"
        self._boot = boot.hex()
        self._say = say
        self._mirror = self._load(self._mirror_file, _NOT_MIRRORED)
        self.synced = False
        """Whether xenstore has what configuration puts there, and the mirror what xenstore has."""
        self._tried = asyncio.Event()
        """Set once xenstored was read, or could not be."""
        self._budgets: dict[int, TokenBucket] = {}
        self._dirty = asyncio.Event()
        self._malformed: set[str] = set()
        """Nodes without effect; there was a record about each."""
        self._owned = self._load(self._owned_file, _NOT_OWNED)
        self.configure(config, registry, prepared)

    def use(self, store: Store, lookups: Store) -> None:
        """Ask this one; `lookups` is a connection for verdicts alone (`store` itself where nothing can queue)."""
        self._store = store
        self._lookups = SharedReads(lookups)

    @staticmethod
    def prepare(config: BlacklistConfig) -> Configured:
        """The long part of configure(), for thousands of entries. Any thread may run it."""
        return Configured(config.entries, config.ranges, config.action)

    def configure(self, config: BlacklistConfig, registry: Registry, prepared: Configured | None = None) -> None:
        """Use another configuration; xenstore follows with the next put_entries()."""
        self._config = config
        self._registry = registry
        self._configured = prepared or self.prepare(config)

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
        """Write the configured entries to xenstore, and remove those of the previous one. Raises StoreError.

        There may be ten thousand entries: they are written in groups, and guests are served meanwhile.
        """
        wanted = self._configured.nodes
        for paths in _groups(sorted(self._owned - wanted.keys()), REMEMBERED):
            await self._all(self._store.remove, paths)
            self._owned.difference_update(paths)
            self._save_owned()
        there = set(await self._nodes()) if wanted else set()
        for paths in _groups(wanted, REMEMBERED):
            values = {path: wanted[path].encode("utf-8")[:REASON_BYTES] for path in paths}
            ours = await self._all(self._store.read, [path for path in paths if path in there and path in self._owned])
            new = [path for path in paths if path not in there]
            if not self._owned.issuperset(new):
                # note the nodes before writing them: without the note they could never be removed again
                self._owned.update(new)
                self._save_owned()

            def write(path: str, values: dict[str, bytes] = values) -> Awaitable[None]:
                return self._store.write(path, values[path])

            await self._all(write, [*new, *(path for path, value in ours.items() if value != values[path])])

    async def _all(self, request: Callable[[str], Awaitable[T]], paths: Sequence[str]) -> dict[str, T]:
        """The answers to one request per path, without those for missing nodes. Raises StoreError."""
        answers: dict[str, T] = {}
        for group in _groups(paths, PIPELINED):
            for path, answer in zip(group, await asyncio.gather(*map(request, group), return_exceptions=True),
                                    strict=True):
                if not isinstance(answer, BaseException):
                    answers[path] = answer
                elif not isinstance(answer, NoSuchNode):
                    raise answer
            await asyncio.sleep(0)
        return answers

    async def _nodes(self) -> list[str]:
        """The paths of all nodes PRODUCT/BUILD, whatever their names are. Raises StoreError."""
        nodes: list[str] = []
        for product in (await self._all(self._store.directory, [ROOT])).get(ROOT, ()):
            path = f"{ROOT}/{product}"
            builds = (await self._all(self._store.directory, [path])).get(path, ())
            nodes += [f"{path}/{build}" for build in builds]
        return nodes

    async def read_all(self) -> None:
        """Read the mirror again. Raises StoreUnavailable."""
        nodes = await self._nodes()
        mirror = {path for path in nodes if build_number(path.rpartition("/")[2]) is not None}
        malformed = {path for path in nodes if path not in mirror}
        await asyncio.sleep(0)  # there may be ten thousand
        if mirror != self._mirror:
            self._mirror = mirror
            self._save(self._mirror_file, mirror, _NOT_MIRRORED)
        if malformed - self._malformed:
            some = sorted(malformed - self._malformed)
            self._say(Event.MALFORMED_NODE, ", ".join(some[:MALFORMED_SHOWN])
                      + (f" and {len(some) - MALFORMED_SHOWN} more" if len(some) > MALFORMED_SHOWN else "")
                      + " blacklists nothing: a build is a decimal number up to 4294967295 without leading zeros")
        self._malformed = malformed

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

    def _load(self, file: Path, otherwise: str) -> set[str]:
        """The paths in a file of ours: the boot that it is of, then a path a line. `otherwise`: what follows if not."""
        try:
            boot, *paths = read_file(file, FILE_LIMIT).decode("ascii", "surrogateescape").split("\n")
        except FileNotFoundError:
            return set()
        except OSError as error:
            self._say(Event.SINK_FAILED, f"{file}: {error.strerror}; {otherwise}")
            return set()
        return {path for path in paths if path.startswith(ROOT + "/")} if boot == self._boot else set()

    def _save_owned(self) -> None:
        self._save(self._owned_file, self._owned, _NOT_OWNED)

    def _save(self, file: Path, paths: set[str], otherwise: str) -> None:
        text = "\n".join((self._boot, *sorted(paths), ""))
        try:
            replace_file(file, text.encode("ascii", "surrogateescape"))
        except OSError as error:
            self._say(Event.SINK_FAILED, f"{file}: {error.strerror}; {otherwise}")


def _groups(paths: Collection[str], size: int) -> Iterator[list[str]]:
    """`paths` in lists of at most so many."""
    rest = iter(paths)
    while group := list(islice(rest, size)):
        yield group
