"""Delivers records to their sinks: at once if the sink accepts them, otherwise through a bounded queue and the spool.

The caller never waits. Records that a sink does not accept wait in order, separately for each domain, up to the
domain's limit and TOTAL_LIMIT for all. Further records are dropped and counted (reason `sink`). core/guestlog.py has
applied the rate limit before.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import time
from collections.abc import Callable
from pathlib import Path

from unplugd.config.load import LogConfig
from unplugd.core.escape import escape_journal, escape_text, plain
from unplugd.core.guestlog import RECORD_COST
from unplugd.sinks.files import GuestFiles, format_line
from unplugd.sinks.journal import Journal
from unplugd.sinks.outbox import OVERHEAD, Outbox
from unplugd.sinks.records import Entry, Event
from unplugd.sinks.spool import Spool, begun, load
from unplugd.sinks.stderr import StandardError

QUEUE_LIMIT, QUEUE_LIMIT_MOST = 256 * 1024, 1024 * 1024
"""Bytes of records that one domain may have on their way: as many as its burst of short lines, between these two."""
TOTAL_LIMIT = 32 * 1024 * 1024
"""Bytes of records that all domains together may have on their way."""

_TURN = 32  # entries of one domain before the next domain is served
_BUDGET = 256  # entries sent before the event loop gets its turn
_RETRY_FIRST, _RETRY_LAST = 0.25, 10.0


class Delivery:
    """The sinks that configuration chose, and everything that is on its way to them."""

    def __init__(self, config: LogConfig, directory: Path) -> None:
        """`directory` is where spools are. Raises HostError where the directory of the guests' files can't be used."""
        self._directory = directory
        self._journal = Journal()
        self._stderr: StandardError | None = None
        self._files: GuestFiles | None = None
        self._outboxes: dict[int, Outbox] = {}
        self._waiting: dict[str, dict[Outbox, None]] = {"journal": {}, "stderr": {}}
        self._total = 0
        self._failing: set[Outbox] = set()
        self._own = Outbox(0, "", None, self._lost_own, self._count)
        self._own_lost = 0
        self._drained: asyncio.Event | None = None
        self.on_problem: Callable[[], None] = _nothing
        """Called when `problem` may have become another."""
        self._config = config
        self._orphans: dict[int, list[Path]] = {}
        """Spools that an earlier process left, by domid, until a domain or adopt_orphans() takes them."""
        for path in sorted(directory.glob("dom*.spool")):
            domid = path.name.removeprefix("dom").removesuffix(".spool").partition("-")[0]
            if domid.isdecimal():
                self._orphans.setdefault(int(domid), []).append(path)
        self.configure(config)

    def configure(self, config: LogConfig) -> None:
        """Use other sinks from now on. Raises HostError and changes nothing if the directory can't be used."""
        previous = self._config
        if "file" in config.sinks:
            if self._files is None or (previous.directory, previous.max_file_bytes) != (
                config.directory, config.max_file_bytes):
                files = GuestFiles(config.directory, config.max_file_bytes, self._rename_failed)
                for outbox in self._outboxes.values():
                    files.open(outbox.domid, outbox.name)
                self._files = files
            else:
                self._files.reopen()
        if self._stderr is None and ("stderr" in config.sinks or "journal" not in config.sinks):
            self._stderr = StandardError()
        burst = config.burst / RECORD_COST * (RECORD_COST + OVERHEAD)
        self._limit = int(min(max(QUEUE_LIMIT, burst), QUEUE_LIMIT_MOST))
        self._config = config

    def cost(self, text: bytes) -> int:
        """Bytes that a guest's line takes where it is stored: the longest of the sinks' forms."""
        if plain(text):
            return len(text)
        sinks = self._config.sinks
        return max(
            len(escape_journal(text)) if "journal" in sinks else len(text),
            len(escape_text(text)) if "file" in sinks or "stderr" in sinks else len(text),
        )

    # --- domains

    def open(self, domid: int, name: str, uuid: str, lost: Callable[[int, int], None]) -> Outbox:
        """A domain's outbox, with the records that a previous process left. `lost` is called with dropped lines and
        bytes."""
        if domid in self._outboxes:
            self.close(self._outboxes[domid])
        path = head = self._spool_path(domid, uuid)
        left: list[tuple[Entry, list[str]]] = []
        orphans = self._orphans.pop(domid, ())
        mine = {path, self._spool_path(domid, "")} if orphans else ()  # the latter from before its uuid was known
        for orphan in orphans:
            if orphan in mine and _belongs(found := self._load(orphan), uuid):
                head = head if left else orphan
                left += found
            else:
                self._adopt(domid, orphan)
        outbox = Outbox(domid, name, Spool(path), lost, self._count)
        self._outboxes[domid] = outbox
        if self._files is not None:
            self._files.open(domid, name)
        if orphans:
            self._take_over(outbox, left, head)
        for other in mine:
            if other != path:
                other.unlink(missing_ok=True)
        return outbox

    def _spool_path(self, domid: int, uuid: str) -> Path:
        return self._directory / f"dom{domid}{'-' if uuid else ''}{uuid}.spool"

    def _load(self, path: Path) -> list[tuple[Entry, list[str]]]:
        """The records left in a spool, for the sinks in use."""
        usable = {"journal", "stderr"} if self._files is None else {"journal", "stderr", "file"}
        try:
            return [(entry, [sink for sink in sinks if sink in usable]) for entry, sinks in load(path)]
        except OSError as error:
            self._say(Event.SINK_FAILED, f"{path}: {error.strerror}; lines of a guest that were kept there are lost")
            return []

    def _take_over(self, outbox: Outbox, left: list[tuple[Entry, list[str]]], head: Path) -> None:
        """Queue what is `left`; the first of it was in the spool `head`."""
        outbox.take_over(left, begun(head))
        for sink, queue in outbox.queues.items():
            if queue:
                self._schedule(outbox, sink)

    def rename(self, outbox: Outbox, name: str) -> None:
        """The domain has another name."""
        outbox.name = name
        if self._files is not None and self._outboxes.get(outbox.domid) is outbox:
            self._files.rename(outbox.domid, name)

    def close(self, outbox: Outbox) -> None:
        """The domain was released and its name is free. Waiting records are still delivered if the sinks accept them.
        """
        if self._outboxes.get(outbox.domid) is not outbox:
            return
        del self._outboxes[outbox.domid]
        self._failing.discard(outbox)
        if self._files is not None:
            self._write_last(outbox, self._files)

    def _write_last(self, outbox: Outbox, files: GuestFiles) -> None:
        """Give a file its last lines and let go of it."""
        lines = [kept.line() for kept in list(outbox.waiting("file"))[outbox.in_flight:]]
        outbox.in_flight += len(lines)
        last = files.close(outbox.domid, lines, outbox.ledger(outbox.in_flight))
        if last is not None:
            last.add_done_callback(functools.partial(self._wrote_last, outbox, len(lines)))

    def _wrote_last(self, outbox: Outbox, count: int, last: asyncio.Task[None]) -> None:
        error = None if last.cancelled() else last.exception()
        if isinstance(error, OSError):
            self._file_failed(outbox, error)
            self._failing.discard(outbox)
            outbox.forget("file", count)
        else:
            outbox.done("file", count)

    def adopt_orphans(self) -> None:
        """Deliver the records that a previous process left for released domains. Call it when the domains are known."""
        for domid, paths in self._orphans.items():
            for path in paths:
                self._adopt(domid, path)
        self._orphans.clear()

    def _adopt(self, domid: int, path: Path) -> None:
        """Deliver the records left in the spool of a released domain."""
        left = self._load(path)
        fields = dict(left[0][0].fields) if left else {}
        orphan = Outbox(domid, fields.get("XEN_DOMAIN_NAME", f"dom{domid}"), Spool(path), _ignore, self._count)
        self._take_over(orphan, left, path)
        if not left:
            path.unlink(missing_ok=True)
        elif orphan.waiting("file") and self._files is not None:
            if domid in self._outboxes:
                orphan.forget("file", len(orphan.waiting("file")))
            else:
                self._files.open(domid, orphan.name)
                self._write_last(orphan, self._files)

    # --- records

    def put(self, outbox: Outbox, entry: Entry) -> None:
        """A record of a guest's log, for all sinks. When this returns it is where SIGKILL does not reach it."""
        # what waits already goes first
        left = [sink for sink in self._config.sinks
                if outbox.queues.get(sink) or not self._try(outbox, entry, sink)]
        if left:
            self._keep(outbox, entry, left, self._limit)

    def record(self, entry: Entry) -> None:
        """A record of unplugd's own: to the journal, or to standard error where the journal is not among the sinks."""
        sink = "journal" if "journal" in self._config.sinks else "stderr"
        if self._own.queues.get(sink) or not self._try(self._own, entry, sink):
            self._keep(self._own, entry, [sink], QUEUE_LIMIT)

    def _try(self, outbox: Outbox, entry: Entry, sink: str) -> bool:
        """Hand an entry to a sink that can take it at once; True too where it never will."""
        try:
            if sink == "journal":
                return self._journal.send(entry)
            if sink == "stderr":
                return self._standard_error().write_line(self._line(outbox, entry))
        except OSError:
            outbox.refuse(entry)
            return True
        return False

    def _standard_error(self) -> StandardError:
        if self._stderr is None:
            self._stderr = StandardError()
        return self._stderr

    def _line(self, outbox: Outbox, entry: Entry) -> bytes:
        if outbox is self._own:
            return format_line(entry.time, b"unplugd: " + entry.message)
        return format_line(entry.time, f"{outbox.name}: ".encode("utf-8", "surrogateescape") + entry.message)

    def _keep(self, outbox: Outbox, entry: Entry, sinks: list[str], limit: int) -> None:
        size = len(entry.message) + OVERHEAD
        if outbox.pending + size > limit or self._total + size > TOTAL_LIMIT:
            outbox.refuse(entry)
            return
        outbox.compact(4 * limit)
        outbox.keep(entry, sinks)
        for sink in sinks:
            self._schedule(outbox, sink)

    def _count(self, size: int) -> None:
        self._total += size
        if not self._total and self._drained is not None:
            self._drained.set()

    # --- sinks that were busy

    def _schedule(self, outbox: Outbox, sink: str) -> None:
        if sink == "file":
            if outbox.task is None and self._outboxes.get(outbox.domid) is outbox:
                outbox.task = asyncio.get_running_loop().create_task(self._write_file(outbox))
            return
        if not self._waiting[sink]:
            self.on_problem()
        self._waiting[sink][outbox] = None
        if sink == "journal":
            self._journal.when_writable(self._drain_journal)
        else:
            self._standard_error().when_writable(self._drain_stderr)

    def _drain_journal(self) -> None:
        self._drain("journal")
        if self._waiting["journal"]:
            self._journal.when_writable(self._drain_journal)

    def _drain_stderr(self) -> None:
        self._drain("stderr")
        if self._waiting["stderr"]:
            self._standard_error().when_writable(self._drain_stderr)

    def _drain(self, sink: str) -> None:
        """Send what the sink takes, domain by domain in turns."""
        waiting = self._waiting[sink]
        budget = _BUDGET
        while waiting and budget > 0:
            outbox = next(iter(waiting))
            del waiting[outbox]
            queue = outbox.waiting(sink)
            sent = 0
            while queue and sent < _TURN and self._try(outbox, queue[0].entry, sink):
                outbox.done(sink, 1)  # one by one: a process that is killed repeats one at most
                sent += 1
            refused = bool(queue) and sent < _TURN
            budget -= max(1, sent)
            if queue:
                waiting[outbox] = None
            if refused:
                return
        if not waiting:
            self.on_problem()
        self._say_lost()

    async def _write_file(self, outbox: Outbox) -> None:
        delay = _RETRY_FIRST
        try:
            while outbox.waiting("file") and self._outboxes.get(outbox.domid) is outbox:
                lines = outbox.batch()
                outbox.in_flight = len(lines)
                try:
                    await self._append(outbox, lines)
                except OSError as error:
                    self._file_failed(outbox, error)
                    if self._outboxes.get(outbox.domid) is not outbox:
                        outbox.forget("file", len(lines))
                        return
                    outbox.in_flight = 0
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, _RETRY_LAST)
                    continue
                outbox.in_flight -= len(lines)
                delay = _RETRY_FIRST
                self._file_recovered(outbox)
                outbox.done("file", len(lines))
        finally:
            outbox.task = None

    async def _append(self, outbox: Outbox, lines: list[bytes]) -> None:
        if self._files is None:
            raise FileNotFoundError(errno.ENOENT, "the sink `file` is off")
        ledger = outbox.ledger(len(lines))
        try:
            await self._files.append(outbox.domid, lines, ledger)
        except TimeoutError:
            if ledger is not None:
                ledger.abandon()  # the disk may still write them
            raise

    def _file_failed(self, outbox: Outbox, error: OSError) -> None:
        if outbox not in self._failing:
            self._failing.add(outbox)
            self.on_problem()
            where = error.filename or str(self._config.directory)
            self._say(
                Event.SINK_FAILED, f"guest log of {outbox.name}: {where}: {error.strerror}; lines are kept"
            )

    def _file_recovered(self, outbox: Outbox) -> None:
        if outbox in self._failing:
            self._failing.discard(outbox)
            self.on_problem()
            self._say(Event.SINK_RECOVERED, f"guest log of {outbox.name}: written again")

    def _rename_failed(self, domid: int, error: OSError) -> None:
        self._say(Event.SINK_FAILED, f"guest log of domain {domid} keeps its old name: {error.strerror}")

    def _lost_own(self, lines: int, _size: int) -> None:
        self._own_lost += lines

    def _say_lost(self) -> None:
        if self._own_lost and not self._own.queues.get("journal"):
            lost, self._own_lost = self._own_lost, 0
            self._say(Event.RECORDS_LOST, f"{lost} records of unplugd were lost while their sink took none")

    def _say(self, event: Event, message: str) -> None:
        self.record(Entry(time.time(), message.encode("utf-8", "surrogateescape"), (
            ("PRIORITY", event.priority), ("SYSLOG_IDENTIFIER", "unplugd"), ("MESSAGE_ID", event.message_id),
        )))

    @property
    def problem(self) -> str | None:
        """Why records are waiting, for the status; None where none do."""
        if self._waiting["journal"]:
            return f"journal: {self._journal.problem or 'busy'}"
        if self._failing:
            return f"files: {len(self._failing)} guest logs cannot be written"
        return None

    async def stop(self, deadline: float = 2.0) -> None:
        """Deliver waiting records for up to `deadline` seconds; the others stay in the spools."""
        end = time.monotonic() + deadline
        before = self._total + 1
        while 0 < self._total < before and time.monotonic() < end:
            # only while the number decreases: do not wait for a sink that accepts nothing
            before = self._total
            self._drained = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), 0.1)
        for outbox in self._outboxes.values():
            if outbox.task is not None:
                outbox.task.cancel()
            if outbox.spool is not None:
                outbox.spool.close()
        self._journal.close()
        if self._stderr is not None:
            self._stderr.close()


def _belongs(left: list[tuple[Entry, list[str]]], uuid: str) -> bool:
    """Whether the records left in a spool are of the guest with this uuid, as far as known."""
    return all(dict(entry.fields).get("XEN_DOMAIN_UUID", "") in ("", uuid) for entry, _ in left)


def _nothing() -> None:
    """The default callback."""


def _ignore(lines: int, size: int) -> None:
    """A released domain has no counters."""
