"""The domains that are served: what becomes of each from its introduction to its release (follow.DomainObserver).

One has its state and log (domains/domain.py), its socket (sockets/listener.py) and what xenstore says of it
(domains/nodes.py). Which domains there are is domains/follow.py's; who else has something of a domain that goes is the
service's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

from unplugd.domains.domain import Domain
from unplugd.domains.nodes import DomainNodes
from unplugd.domains.settings import Settings
from unplugd.domains.statefile import read_note
from unplugd.domains.view import published
from unplugd.errors import HostError
from unplugd.host.longwork import LongWork
from unplugd.host.systemd import Passed
from unplugd.sinks.records import Event
from unplugd.sockets.access import ConnectionPolicy
from unplugd.sockets.connection import Judge
from unplugd.sockets.listener import Listener
from unplugd.sockets.poller import ReadsConnections

SOCKET_RETRY = 2.0
"""Seconds until a domain's socket that could not be made is tried again."""


class Domains:
    """The domains, by domid. All methods belong to the event loop's thread."""

    def __init__(self, settings: Settings, access: ConnectionPolicy, judge: Judge, poller: ReadsConnections,
                 passed: Passed, spawn: Callable[[Coroutine[None, None, None]], object], *,
                 gone: Callable[[Domain], None], quiet: Callable[[], Awaitable[object]],
                 verify: Callable[[Domain], None]) -> None:
        """`passed` are sockets that an earlier process left; what is used is taken out.

        `gone` is told of a domain that is released, before it is taken down. `quiet` returns once there is time for
        words about guests that had to wait for a restart. `verify` finds out whether a domain's published nodes are
        still there.
        """
        self.domains: dict[int, Domain] = {}
        self.keep = False
        """Whether new sockets are left with systemd for the next process."""
        self.changed_number: Callable[[], None] = _nothing
        """Called when a domain has come or gone."""
        self._settings = settings
        self._access = access
        self._judge = judge
        self._poller = poller
        self._passed = passed
        self._spawn = spawn
        self._gone = gone
        self._quiet = quiet
        self._verify = verify
        self._listeners: dict[int, Listener] = {}
        self._facts: dict[int, DomainNodes] = {}

    def introduced(self, domid: int, facts: DomainNodes) -> None:
        """xenstore has a domain that was not there."""
        facts = facts._replace(published=facts.published or self._was_published(domid, facts.uuid))
        domain = Domain(domid, facts.name, facts.uuid, self._settings)
        domain.limit(unlimited=facts.unlimited)
        listener = Listener(domain, self._settings.config.runtime_dir, self._access, self._judge, self._poller,
                            keep=self.keep)
        self.domains[domid] = domain
        self._listeners[domid] = listener
        self._facts[domid] = facts
        domain.state.note(facts.pack())
        self._learn_uid(domid, facts.device_model_uid)
        error = self._listen(listener)
        if error is not None:
            domain.records.own(Event.SINK_FAILED, f"no socket: {error}; trying again")
            self._spawn(self._listen_again(listener))
        self.changed_number()
        if facts.published:
            self._verify(domain)

    def touched(self, domid: int) -> None:
        """Its nodes may have been removed and made anew."""
        if self._facts[domid].published:
            self._verify(self.domains[domid])

    def noted(self, domain: Domain, published: bool) -> None:
        """Keep whether the domain's nodes are published."""
        facts = self._facts.get(domain.domid)
        if facts is not None and self.domains[domain.domid] is domain and facts.published != published:
            self._facts[domain.domid] = facts = facts._replace(published=published)
            domain.state.note(facts.pack())

    def replaced(self, domain: Domain) -> None:
        """Another guest has this domid and uuid: it begins anew."""
        if self.domains.get(domain.domid) is domain:
            facts = self._facts[domain.domid]._replace(published=False)
            self.released(domain.domid)
            self.introduced(domain.domid, facts)

    def _learn_uid(self, domid: int, uid: int | None) -> None:
        """As whom a device model runs decides about its socket, and about others' if they have the same uid."""
        for other in self._access.learn(domid, uid):
            if other in self._listeners:
                self._listeners[other].configure(self._access, self._facts[other].device_model_uid)

    def _listen(self, listener: Listener) -> HostError | None:
        """Have a domain's socket; returns why it is not to be had."""
        try:
            adopted = listener.start(self._facts[listener.domain.domid].device_model_uid, self._passed)
        except HostError as error:
            return error
        if adopted:
            self._spawn(self._introduce_later(listener))
        else:
            self._introduce(listener)
        return None

    def _was_published(self, domid: int, uuid: str) -> bool:
        """Whether an earlier process has written this domain's nodes."""
        note = read_note(self._settings.state_directory, domid, self._settings.boot)
        kept = DomainNodes.unpack(note) if note is not None else None
        return kept is not None and kept.published and uuid in ("", kept.uuid)

    async def _listen_again(self, listener: Listener) -> None:
        while True:
            await asyncio.sleep(SOCKET_RETRY)
            if not self._is_served(listener) or self._listen(listener) is None:
                return

    async def _introduce_later(self, listener: Listener) -> None:
        """Guests that wait for a restart come before the words about them."""
        await self._quiet()
        if self._is_served(listener):  # else it went meanwhile, which was said
            self._introduce(listener)

    def _is_served(self, listener: Listener) -> bool:
        return self._listeners.get(listener.domain.domid) is listener

    def _introduce(self, listener: Listener) -> None:
        listener.domain.records.own(Event.INTRODUCED, f"served at {listener.path}")

    def changed(self, domid: int, facts: DomainNodes) -> None:
        """xenstore says something else about a domain."""
        domain = self.domains[domid]
        facts = facts._replace(published=self._facts[domid].published)
        self._facts[domid] = facts
        if facts.uuid and not domain.identify(facts.uuid):
            # what an earlier unplugd left for this domid was another guest's
            self.released(domid)
            self.introduced(domid, facts._replace(published=False))
            return
        if facts.name:
            domain.rename(facts.name)
        domain.limit(unlimited=facts.unlimited)
        self._listeners[domid].configure(self._access, facts.device_model_uid)
        domain.state.note(facts.pack())
        self._learn_uid(domid, facts.device_model_uid)
        if published(domain) is not None:
            self._settings.published(domid)

    def released(self, domid: int) -> None:
        """A domain has gone."""
        domain = self.domains.pop(domid)
        self._gone(domain)
        self._facts.pop(domid)
        self._listeners.pop(domid).close()
        self._learn_uid(domid, None)
        domain.release()
        domain.records.own(Event.RELEASED, "released")
        self._settings.delivery.close(domain.outbox)
        self.changed_number()

    def configure(self, access: ConnectionPolicy) -> None:
        """Follow a reload, with guests served in between; the settings have followed it already."""
        self._access = access
        work = LongWork()
        for domid, facts in self._facts.items():
            access.learn(domid, facts.device_model_uid)
        for domid, domain in list(self.domains.items()):
            domain.configure()
            self._listeners[domid].configure(access, self._facts[domid].device_model_uid)
            work.serve()

    def stop(self) -> None:
        """unplugd stops: sockets first, so that who connects now waits for the next process."""
        for listener in self._listeners.values():
            listener.stop()
        for domain in self.domains.values():
            domain.stop()


def _nothing() -> None:
    pass
