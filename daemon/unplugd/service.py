"""The service: one read of this file tells the main job, from xenstore's news to a guest's answer.

    store.run ── connected ─> _synchronize: blacklist into xenstore and mirrored, domains read, READY=1
    DomainFollower ─ introduced ─> Domains: Domain (state, log) + Listener (socket) ── Connection ── core: frames
                     released ──> all of it taken down, its partial line recorded
    Connection ───── build number ─> Blacklist.judge ── xenstored or mirror
    Domain ───────── events ─> Delivery (journal, files, stderr), Publisher (/local/domain/<domid>/unplug)

Nothing here knows a frame or a xenstore packet.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import time
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path

from unplugd import __version__
from unplugd.blacklist.verdicts import Blacklist
from unplugd.config.load import Config
from unplugd.core.bucket import RecordLimit
from unplugd.core.counters import Counters
from unplugd.core.guest import Verdict
from unplugd.core.stream import NeedVerdict
from unplugd.domains.domain import Domain
from unplugd.domains.follow import DomainFollower
from unplugd.domains.inheritance import Inheritance
from unplugd.domains.publish import Publisher
from unplugd.domains.records import COMPLAINT_INTERVAL, COMPLAINTS
from unplugd.domains.settings import Settings
from unplugd.domains.view import describe, describe_history
from unplugd.errors import ConfigError, HostError, StoreError
from unplugd.host.runtimedir import RuntimeDirectory
from unplugd.host.status import ServiceStatus, StatusLine
from unplugd.host.systemd import fd_store_works, notify, watchdog_interval
from unplugd.http.front import HttpFront
from unplugd.http.sockets import listen_tcp
from unplugd.lifecycle import Domains
from unplugd.oversight import Oversight
from unplugd.reload import Reload
from unplugd.sinks.delivery import Delivery
from unplugd.sinks.records import Entry, Event
from unplugd.sockets.access import ConnectionPolicy
from unplugd.sockets.listener import Listener
from unplugd.sockets.loop import open_poller, table_types
from unplugd.sockets.page import IoreqPages
from unplugd.xenstore.stores import Stores

HTTP_DELAY = 0.25
"""Seconds that HTTP waits for the guests' sockets at most: without a xenstore there is something to see, too."""

FIRST_ANSWERS = 0.01
"""Seconds that guests which wait for a restart have to themselves, before what they do not need is loaded."""

WORDS_AFTER = 1.0
"""Seconds after which it is said who was taken over, at the latest: without a xenstore, too."""

LOADED_AFTER = 10.0
"""Seconds after which the start counts as over, also without a xenstore."""

COLLECT_AFTER = 10_000
"""Objects after which the garbage collector looks at the youngest (Python's own figure is 700): what a guest causes is
freed by its references, and while a thousand boot, the collector was a fifteenth of the work."""


class Service:
    """unplugd, from configuration to the end of the process. It is what metrics, health and API look at (HostView)."""

    version = __version__

    def __init__(self, config: Config, config_path: Path | None = None) -> None:
        self.config = config
        self.counters = Counters()
        self.ready = False
        self.standing = ServiceStatus(config_path)
        self._config_path = config_path
        self._stores: Stores
        self._store_tasks: set[asyncio.Task[None]] = set()
        self._awaited = "xenstore"
        self._synchronizing: asyncio.Task[None] | None = None
        self._status = StatusLine(self._status_text)
        self._ended: asyncio.Future[int]
        self._served: asyncio.Future[int]
        self._oversight = Oversight(self._say, self._end)
        self._denials = RecordLimit(COMPLAINTS, 1 / COMPLAINT_INTERVAL, time.monotonic())

    # --- from start to end

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit status. Raises HostError where the host won't have it."""
        if not gc.isenabled():
            gc.freeze()  # what is loaded stays for good; domains come and go
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._served = loop.create_future()
        self._prepare()
        self._pages.start()
        loop.set_exception_handler(self._oversight.surprised)
        sys.unraisablehook = self._oversight.unraisable
        # what systemd passes, it has kept; and the guests whose sockets these are wait
        domains = self._domains
        domains.keep = self._inherited.has_guests
        if domains.keep:
            self._follower.restore(self._inherited.domains(self._directory.state, self.settings.boot))
            await asyncio.sleep(FIRST_ANSWERS)
        else:
            domains.keep = await fd_store_works()
        self._use_xenstore()
        self._say(Event.STARTED, f"unplugd {__version__} started" + (
            "; sockets are kept over restarts" if domains.keep else "") + (
            "; no HTTP by TCP: there is no network here, and no socket was passed"
            if self.config.http.listen is not None and not self._tcp_sockets else ""))
        self._warn(self.config)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, 0)
        loop.add_signal_handler(signal.SIGHUP, self._reload.ask)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # __main__.py let it wait
        self._oversight.keep_running(self._reload.follow(self._status_after_reload))
        self._oversight.keep_running(self._follower.follow())
        self._oversight.keep_running(self._blacklist.follow())
        interval = watchdog_interval()
        if interval is not None:
            self._oversight.keep_running(self._status.ping(interval))
        self._status.tell()
        loop.call_later(LOADED_AFTER, self._loaded)
        try:
            # guests come first: HTTP is loaded once they are served, and somebody asks
            await asyncio.wait({self._served, self._ended}, timeout=HTTP_DELAY)
            self._oversight.spawn(self._http.serve())
            return await self._ended
        finally:
            await self._stop()

    def _prepare(self) -> None:
        config = self.config
        self._directory = RuntimeDirectory(config.runtime_dir)
        self._reload = Reload(self._config_path, self._directory, self.standing, self._apply, self._say)
        self._delivery = Delivery(config.log, self._directory.state)
        self._delivery.on_problem = self._status.soon
        self.settings = Settings(config, self._delivery, self.counters, self._directory.state, self._published)
        self.settings.throttling = self._status.soon
        self.settings.table_type, self.settings.rows_type = table_types()
        self._inherited = Inheritance()
        self._tcp_sockets = self._inherited.http
        if not self._inherited.http and config.http.listen is not None:
            self._tcp_sockets = listen_tcp(*config.http.listen)
        self._http = HttpFront(self, config.runtime_dir / "control.sock", self._tcp_sockets)
        self._domains = Domains(
            self.settings, ConnectionPolicy(config.socket.device_model_uids), self._judge,
            open_poller(self.counters), self._inherited.sockets, self._oversight.spawn, gone=self._gone,
            quiet=self._guests_served, verify=self._verify)
        self._domains.changed_number = self._status.soon
        self._pages = IoreqPages(config.runtime_dir, self.domains.get)
        self._follower = DomainFollower(self._domains, self._say)
        self._publisher = Publisher(self._say, noted=self._noted, replaced=self._domains.replaced)
        self._blacklist = Blacklist(config.blacklist, self.settings.registry, self.counters, self._directory.state,
                                    self.settings.boot, self._say, self.settings.blacklist)

    def _use_xenstore(self) -> None:
        # those that were taken over are served already: reading them is not urgent
        stores = self._stores = Stores(self.config.xenstore, quick=not self.domains)
        self._follower.use(stores.main, stores.readers)
        self._publisher.use(stores.main, enabled=self.config.publish)
        self._blacklist.use(stores.main, stores.lookups)
        self._blacklist.arm()
        self._follower.arm()
        for running in stores.run(self._connected, self._lost):
            self._store_tasks.add(self._oversight.keep_running(running))
        for running in stores.run_readers():
            self._oversight.spawn(running)

    @staticmethod
    def _loaded() -> None:
        """The start is over: the garbage collector goes on (see __main__.py), first with what the start left behind."""
        if not gc.isenabled():
            gc.enable()
            gc.set_threshold(COLLECT_AFTER, 10, 10)
            gc.collect()

    def _end(self, status: int) -> None:
        if not self._ended.done():
            self._ended.set_result(status)

    async def _stop(self) -> None:
        """End in an order in which guests are answered as long as can be: the next process is the sooner there."""
        notify("STOPPING=1", "STATUS=stopping")
        self._publisher.enabled = False
        await self._oversight.cancel(but=self._store_tasks)  # verdicts need a store to the last
        await self._follower.stop()
        await self._publisher.stop()
        await self._http.close()
        self._pages.stop()
        self._domains.stop()
        self._say(Event.STOPPED, "unplugd stopped")
        await self._delivery.stop()
        await self._stores.close()

    def _say(self, event: Event, message: str) -> None:
        self._delivery.record(Entry(time.time(), message.encode("utf-8", "surrogateescape"), (
            ("PRIORITY", event.priority), ("SYSLOG_IDENTIFIER", "unplugd"), ("MESSAGE_ID", event.message_id),
        )))

    # --- xenstore comes and goes

    def _connected(self) -> None:
        self.counters.xenstore_reconnects = self._stores.main.reconnects
        self._synchronizing = self._oversight.spawn(self._synchronize())

    def _lost(self, reason: str) -> None:
        if self._synchronizing is not None:
            self._synchronizing.cancel()
        self._blacklist.lost()
        self._follower.lost()
        self._publisher.lost()
        self._awaited = f"xenstore: {reason}"
        self._say(Event.STORE_LOST, f"xenstore: {reason}; trying again")
        self._status.soon()

    async def _synchronize(self) -> None:
        """Bring xenstore and what is known here together, after every connect."""
        self._awaited = "xenstore's domains and blacklist to be read"
        while True:
            try:
                await self._blacklist.sync()
                await self._follower.scan(after_release=not self.ready)
                break
            except StoreError as error:
                if not self._stores.main.connected:
                    return  # _connected() is called again
                self._say(Event.STORE_REFUSED, f"xenstore could not be read: {error}; trying again")
                await asyncio.sleep(1.0)
        self._oversight.spawn(self._publisher.publish_all(list(self.domains.values())))
        self._say(Event.STORE_CONNECTED, f"xenstore connected: {_count(len(self.domains), 'domain')},"
                                         f" {_count(self._blacklist.entries, 'blacklisted build')}")
        self._awaited = ""
        if not self.ready:
            self._delivery.adopt_orphans()
            self._remove_stale_files()
            self.ready = True
            notify("READY=1", self._status.assignment)
            self._loaded()
            readers, self._follower.readers = self._follower.readers, ()
            for store in readers:
                self._oversight.spawn(store.close())
        if not self._served.done():
            self._served.set_result(0)
        self._status.soon()

    def _remove_stale_files(self) -> None:
        """Sockets and state of domains that went while no unplugd ran."""
        self._inherited.let_go()
        self._directory.remove_stale(self.domains)

    def _gone(self, domain: Domain) -> None:
        """A domain was released: who else has something of it forgets it."""
        self._pages.give_back(domain.domid)
        self._publisher.forget(domain)
        self._blacklist.forget(domain.domid)

    async def _guests_served(self) -> None:
        await asyncio.wait({self._served, self._ended}, timeout=WORDS_AFTER)

    def _judge(self, domain: Domain, need: NeedVerdict, deadline: float) -> asyncio.Future[Verdict]:
        return self._blacklist.judge(domain, need, deadline)

    def _published(self, domid: int) -> None:
        self._publisher.changed(self.domains[domid])

    def _noted(self, domain: Domain, published: bool) -> None:
        if self.config.xenstore.backend != "embedded":  # that one forgets them with the process
            self._domains.noted(domain, published)

    def _verify(self, domain: Domain) -> None:
        self._publisher.verify(domain)

    # --- reload

    def _status_after_reload(self) -> list[str]:
        return ["READY=1"] * self.ready + [self._status.assignment]

    def _warn(self, config: Config) -> None:
        for warning in config.warnings:
            self._say(Event.CONFIGURATION_WARNING, warning)

    async def _apply(self, config: Config) -> None:
        """Follow a new configuration. Raises before anything has changed."""
        self._refuse_what_needs_a_restart(config)
        prepared = await asyncio.to_thread(self._blacklist.prepare, config.blacklist)
        moved = config.http != self.config.http and not self._inherited.http
        http = await self._http.prepare(config.http.listen) if moved else None
        try:
            self._delivery.configure(config.log)
        except HostError:
            if http is not None:
                await http.close()
            raise
        if http is not None:
            await self._http.replace(http)
        self.config = config
        self.settings.configure(config, prepared)
        self._publisher.enabled = config.publish
        self._domains.configure(ConnectionPolicy(config.socket.device_model_uids))
        self._oversight.spawn(self._publisher.publish_all(list(self.domains.values())))
        self._blacklist.configure(config.blacklist, self.settings.registry, prepared)
        self._stores.follow_configuration(config.xenstore.domains)
        if self._stores.main.connected:
            try:
                await self._blacklist.put_entries()
            except StoreError as error:
                self._say(Event.STORE_REFUSED, f"the configured blacklist is not in xenstore yet: {error}")
        self._warn(config)

    def _refuse_what_needs_a_restart(self, config: Config) -> None:
        old = self.config
        for key, before, after in (
            ("runtime_dir", old.runtime_dir, config.runtime_dir),
            ("xenstore.backend", old.xenstore.backend, config.xenstore.backend),
            ("xenstore.socket", old.xenstore.socket, config.xenstore.socket),
        ):
            if before != after:
                file = str(self._config_path or "configuration")
                raise ConfigError(file, key, f"was {before} at start; to change it, restart unplugd")

    # --- what is shown (metrics.HostView, STATUS=)

    @property
    def domains(self) -> dict[int, Domain]:
        """The domains that are served now, by domid."""
        return self._domains.domains

    @property
    def connections(self) -> int:
        """Connections of device models that are open."""
        return Listener.open_connections

    @property
    def lent_pages(self) -> list[int]:
        """The domains whose ioreq page unplugd-attach has lent."""
        return self._pages.lent

    @property
    def xenstore_up(self) -> bool:
        """Whether xenstore is connected."""
        return self._stores.main.connected

    @property
    def blacklist_entries(self) -> int:
        """Builds that xenstore blacklists."""
        return self._blacklist.entries

    @property
    def awaited(self) -> str:
        """What readiness waits for; "" when ready."""
        return self._awaited

    @property
    def problem(self) -> str:
        """What a sink lacks, for people; "" when all is well."""
        return self._delivery.problem or ""

    def check_configuration(self) -> Awaitable[Mapping[str, object]]:
        """Whether the files could be used by a reload now."""
        return self._reload.check()
    def denied(self, pid: int, uid: int) -> None:
        """A process has connected to the control socket that may not: it is counted and recorded."""
        self.counters.denied_connections += 1
        text = f"control socket: connection of uid {uid} (pid {pid}) refused: it is neither root nor unplugd's user"
        if admitted := self._denials.admit(text, time.monotonic()):
            self._say(Event.CONNECTION_DENIED, admitted)

    def describe(self, domid: int) -> Mapping[str, object]:
        """A domain as the API shows it in the list of all; KeyError if there is none."""
        return describe(self.domains[domid])

    def describe_history(self, domid: int) -> Sequence[Mapping[str, object]]:
        """The last steps of a domain's driver, as the API shows them; KeyError if there is none."""
        return describe_history(self.domains[domid])

    def _status_text(self) -> str:
        throttled = sum(domain.throttled for domain in self.domains.values())
        xenstore = f"waiting for {self._awaited}" if self._awaited else "xenstore connected"
        return f"{len(self.domains)} domains, {throttled} throttled; {xenstore}" + (
            f"; {self.problem}" if self.problem else "") + (
            f"; last reload refused: {self.standing.problem[:300]}" if self.standing.problem else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
