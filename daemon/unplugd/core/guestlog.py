"""A guest's log: bytes become lines, and the limiter says which of them dom0 stores (contract section 3).

The bound that everything here serves: what a guest makes dom0 store is at most burst + rate x time, in charged bytes.
A line costs the bytes that it takes in the sinks, at least RECORD_COST; a record of unplugd's that the guest caused
costs its own. No I/O, no clock: the caller brings seconds of a clock that survives the process.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from unplugd.core.bucket import TokenBucket
from unplugd.core.events import Event, Line, LinesDropped, Resumed, Throttled

LINE_LIMIT = 4095
"""Bytes at which a line is cut and goes on as the next one (qemu-traditional's buffer)."""

SLOT = 256
"""Bytes that XENBUS has for a line. A string write of this length without a newline that begins a line is a line."""

RECORD_COST = 64
"""The least that a record costs, so that a flood of short lines is bounded too."""

REPORT_INTERVAL = 10.0
"""Seconds between two records about dropped lines while dropping goes on; also how long until it counts as over."""


_EMPTY_LINES = re.compile(rb"\n+")


class Limits(NamedTuple):
    """What the configuration and the toolstack decide about one guest's log."""

    rate: float = 256
    """Tokens (bytes) a second."""
    burst: float = 131072
    """Tokens that can be saved up."""
    delay: bool = False
    """At the limit: hold responses back (true) or drop whole lines (false)."""
    unlimited: bool = False
    """The toolstack switched the limit off (`log-throttling` = 0)."""
    flush_after: float = 5.0
    """Seconds without a byte after which a partial line is recorded."""


class GuestLog:
    """The log of one guest. What it has to say is appended to `events`."""

    __slots__ = (
        "_cost", "_events", "_last_byte", "_last_drop", "_last_report", "_throttle_unsaid", "bucket", "charged",
        "dropped_bytes", "dropped_lines", "limits", "line_number", "partial", "prefix", "product", "suppressed",
        "throttled", "unsaid_bytes", "unsaid_lines",
    )

    def __init__(self, limits: Limits, events: list[Event], now: float, cost: Callable[[bytes], int] = len) -> None:
        """`cost` tells how many bytes a line takes where it is stored (escaping makes it longer)."""
        self.limits = limits
        self.bucket = TokenBucket(limits.rate, limits.burst, now)
        self.partial = bytearray()
        self.product: tuple[int | None, int | None] = (None, None)
        self.line_number = 0
        """How many lines were ended: while it stays the same, `partial` only grows."""
        self.charged = 0
        """With `delay`: what the partial line has been charged so far, as part of its frames."""
        self.unsaid_lines = 0
        self.unsaid_bytes = 0
        self.throttled = False
        self.dropped_lines = 0
        self.dropped_bytes = 0
        self.prefix = 0
        """Bytes that unplugd's own records about this guest have before their sentence (its name)."""
        self.suppressed = 0
        """Records about this guest that were not written because its bucket could not pay for them."""
        self._events = events
        self._cost = cost
        self._last_byte = now
        self._last_drop = now
        self._last_report = now
        self._throttle_unsaid = False

    def configure(self, limits: Limits, now: float) -> None:
        """Change the limits of a running guest."""
        self.bucket.configure(limits.rate, limits.burst, now)
        if limits.delay != self.limits.delay:
            self.charged = 0  # what the partial line has paid counts only in the mode in which it paid
        self.limits = limits

    def begin_anew(self, now: float) -> None:
        """The guest was restored: times count from now on."""
        self._last_byte = self._last_drop = self._last_report = now

    def write_all(self, data: bytes, now: float) -> None:
        """Bytes from the guest, in any pieces."""
        at = 0
        while at < len(data):
            at += self.write(data[at:], now)

    def write(self, data: bytes, now: float) -> int:
        """Bytes from the guest, up to the first that causes an event or ends a dropped line; how many were taken.

        So the caller can record the event, and keep that it did, before it goes on: see Domain. And where one line is
        dropped, most of those behind it are dropped at once.
        """
        self._last_byte = now
        if self.throttled and self._drop_all(data, now):
            return len(data)
        events, dropped, partial = len(self._events), self.dropped_lines, self.partial
        at, size = 0, len(data)
        while at < size and len(self._events) == events and self.dropped_lines == dropped:
            if data[at] == 10 and not partial and (empty := _EMPTY_LINES.match(data, at)):
                self.line_number += empty.end() - at
                self.charged = 0
                at = empty.end()
                continue
            begin, room = at, LINE_LIMIT - len(partial)
            newline = data.find(b"\n", at, at + room)
            end = newline if newline >= 0 else min(at + room, size)
            at = end + (newline >= 0)
            partial += data[begin:end]
            if self.limits.delay:
                self.charged += at - begin
            if newline >= 0:
                self.end_line(now)
            elif len(partial) == LINE_LIMIT:
                self.cut(now)
        return at

    def _drop_all(self, data: bytes, now: float) -> bool:
        """Drop every line that ends in `data`, where none can pass: a flood must not cost more than what it writes.

        Only for a log that is throttled. False where one might pass, or would have to be cut: then nothing was done. A
        line passes only if the bucket can pay for it and for the record that says what was dropped before it, each of
        which costs RECORD_COST at least.
        """
        limits = self.limits
        if (limits.delay or limits.unlimited or not self.unsaid_lines
                or now >= self._last_report + REPORT_INTERVAL):
            return False
        *ended, rest = (bytes(self.partial) + data).split(b"\n")
        if max(map(len, ended), default=0) >= LINE_LIMIT or len(rest) >= LINE_LIMIT:
            return False
        sizes = [size for line in ended if (size := len(line) - line.endswith(b"\r"))]
        if self.bucket.refill(now) >= max(RECORD_COST, min(sizes, default=0)) + RECORD_COST:
            return False
        if ended:
            self.line_number += len(ended)
        if sizes:
            self.unsaid_lines += len(sizes)
            self.unsaid_bytes += sum(sizes)
            self.dropped_lines += len(sizes)
            self.dropped_bytes += sum(sizes)
            self._last_drop = now
        self.partial[:] = rest
        return True

    def end_line(self, now: float) -> None:
        """A newline came."""
        self._last_byte = now
        text = bytes(self.partial)
        if text.endswith(b"\r"):
            text = text[:-1]
        self._finish(text, now)

    def cut(self, now: float) -> None:
        """The partial line reached LINE_LIMIT, or nothing came for a while, or the guest is going: record it."""
        self._finish(bytes(self.partial), now)

    def _finish(self, text: bytes, now: float) -> None:
        self.partial.clear()
        self.line_number += 1
        if text:
            self._line(text, now)
        self.charged = 0

    def _line(self, text: bytes, now: float) -> None:
        cost = max(RECORD_COST, self._cost(text))
        limits = self.limits
        if limits.delay:
            if not limits.unlimited and cost > self.charged:
                self.bucket.overdraw(cost - self.charged, now)
        elif not self._pay(cost, now):
            self._drop(text, now)
            return
        self._events.append(Line(text, *self.product))
        if self.throttled:
            self._passed(now)

    def _pay(self, cost: int, now: float) -> bool:
        """Pay for a line and, where lines were dropped before it, for the record that says so: both or neither."""
        if self.limits.unlimited:
            self._report(now)
            return True
        if not self.unsaid_lines:
            return self.bucket.take(cost, now)
        report = self._record_cost(LinesDropped(self.unsaid_lines, self.unsaid_bytes))
        if self.bucket.refill(now) < cost + report:
            return False
        self._report(now)
        return self.bucket.take(cost, now)

    def _drop(self, text: bytes, now: float) -> None:
        self.unsaid_lines += 1
        self.unsaid_bytes += len(text)
        self.dropped_lines += 1
        self.dropped_bytes += len(text)
        self._last_drop = now
        if not self.throttled:
            self._last_report = now
            self._throttle(now)
        elif now - self._last_report >= REPORT_INTERVAL:
            self._report(now)

    def _report(self, now: float) -> None:
        """Say what was dropped, if there is something to say and the guest can pay for it."""
        if self.unsaid_lines and self.record(LinesDropped(self.unsaid_lines, self.unsaid_bytes), now, keep=True):
            self.unsaid_lines = self.unsaid_bytes = 0
            self._last_report = now

    def _throttle(self, now: float) -> None:
        self.throttled = True
        self._throttle_unsaid = not self.record(Throttled(self.limits.delay), now, keep=True)

    def _passed(self, now: float) -> None:
        """A line passed while throttled: it is over once half of the burst is there again."""
        if self.limits.unlimited or self.bucket.refill(now) >= self.bucket.burst / 2:
            self._resume(now)

    def _resume(self, now: float) -> None:
        self.throttled = False
        if not self._throttle_unsaid:
            self.record(Resumed(), now)
        self._throttle_unsaid = False

    def record(self, event: Event, now: float, *, keep: bool = False) -> bool:
        """Append a record that the guest caused and charge it; past the limit it is only counted.

        With `keep` the caller tries again later, so that it isn't counted as suppressed. Says whether it was written.
        """
        if self.limits.unlimited or self.bucket.take(self._record_cost(event), now):
            self._events.append(event)
            return True
        if not keep:
            self.suppressed += 1
        return False

    def _record_cost(self, event: Event) -> int:
        prefix = 0 if isinstance(event, LinesDropped) else self.prefix
        return max(RECORD_COST, prefix + len(str(event)))

    def charge_frame(self, count: int, now: float) -> None:
        """With `delay`: the bytes of one frame are charged at once."""
        if not self.limits.unlimited:
            self.bucket.overdraw(count, now)

    def hold(self, now: float) -> float:
        """With `delay`: seconds for which the response must wait until the balance is not negative; 0 for none."""
        if not self.limits.delay or self.limits.unlimited:
            return 0.0
        seconds = self.bucket.wait(0.0, now)
        if seconds > 0:
            self._last_drop = now
            if not self.throttled:
                self._throttle(now)
        return seconds

    def tick(self, now: float) -> None:
        """What time alone brings: a partial line flushed, what is left to be said."""
        if self.partial and now - self._last_byte >= self.limits.flush_after:
            self.cut(now)
        if self._throttle_unsaid and self.record(Throttled(self.limits.delay), now, keep=True):
            self._throttle_unsaid = False
        if self.unsaid_lines and now - self._last_report >= REPORT_INTERVAL:
            self._report(now)
        if self.throttled and not self.unsaid_lines and now - self._last_drop >= REPORT_INTERVAL:
            self._resume(now)

    def next_tick(self, now: float) -> float | None:
        """Seconds until tick() has something to do, or None."""
        waits = []
        if self.partial:
            waits.append(self._last_byte + self.limits.flush_after - now)
        if self._throttle_unsaid:
            waits.append(self.bucket.wait(self._record_cost(Throttled(self.limits.delay)), now))
        if self.unsaid_lines:
            cost = self._record_cost(LinesDropped(self.unsaid_lines, self.unsaid_bytes))
            waits.append(max(self._last_report + REPORT_INTERVAL - now, self.bucket.wait(cost, now)))
        elif self.throttled:
            waits.append(self._last_drop + REPORT_INTERVAL - now)
        waits = [seconds for seconds in waits if seconds != float("inf")]
        return max(0.0, min(waits)) if waits else None
