"""Guests that count what they were answered, and know what the answer had to be.

A guest's plan is random but repeatable. Each access says beforehand which answer is right; each line of the log knows
how many of its bytes were acknowledged, and which were sent again after a connection was lost: only those may come
twice. All guests share one thread and one selector, which leaves the CPU to the daemon.
"""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.frames import FRAME, RESET, frame, outs

MAGIC_READ = frame(0x10, 2, read=True)
PRODUCT, BUILD, BLACKLISTED_BUILD = 3, 1, 666
RETRY = 0.02
"""Seconds between two tries to connect."""


@dataclass(slots=True)
class Line:
    """A line of a guest's log."""

    text: bytes
    acknowledged: int = 0
    """Bytes of it, its newline included, whose response was seen."""
    doubtful: list[int] = field(default_factory=list)
    """What `acknowledged` was each time when the rest was sent again."""

    @property
    def complete(self) -> bool:
        """All of it was acknowledged: it must not be missing."""
        return self.acknowledged == len(self.text) + 1

    def matches(self, recorded: bytes) -> bool:
        """Whether a recorded line is this one, bytes that were sent again once or twice."""
        if recorded == self.text:
            return True
        if not self.doubtful:
            return False
        return recorded.startswith(self.text[:self.doubtful[0]]) and recorded.endswith(self.text[self.doubtful[-1]:])


@dataclass(slots=True)
class Pending:
    """A request without a response yet."""

    request: bytes
    answer: int
    line: Line | None = None
    weight: int = 0
    """Bytes of the line that the response acknowledges."""
    since: float = 0.0


class Guest:
    """One guest's device model: one connection, several requests under way."""

    def __init__(self, domid: int, path: Path, *, blacklisted: bool, interval: float) -> None:
        """`interval` is the mean time between two lines, in seconds."""
        self.domid = domid
        self.lines: list[Line] = []
        self.answers = 0
        self.wrong: list[str] = []
        self.longest = 0.0
        self.resumed = 0.0
        """When the first answer on this connection came, by time.monotonic(); 0 while there is none."""
        self.settled = 0.0
        """When last nothing was unanswered any more."""
        self.refused = 0
        self.unanswered: deque[Pending] = deque()
        self.socket: socket.socket | None = None
        self.retry_at = 0.0
        self._path = str(path)
        self._blacklisted = blacklisted
        self._interval = interval
        self._next_line = 0.0
        self._announced = False
        self._random = random.Random(domid)
        self._unread = b""

    # --- what it does

    def plan(self, now: float) -> None:
        """Begin something new."""
        choice = self._random.random()
        if now >= self._next_line:
            self._next_line = now + self._interval * self._random.uniform(0.5, 1.5)
            self._say()
        elif choice < 0.01:
            self._ask(RESET, 0)
            self._announced = False
        elif choice < 0.03:
            self._announce()
        elif choice < 0.05:
            self._ask(frame(0x10, 2, 3), 3)
        elif choice < 0.1:
            flag = self._random.randrange(2)
            self._ask(frame(0x10, 1, flag), 0)
            self._ask(frame(0x10, 1, read=True), flag)
        elif choice < 0.2:
            self._ask(frame(0x12, 1, read=True), 1)
        else:
            for _ in range(self._random.randrange(1, 5)):
                self._ask(MAGIC_READ, self._magic())
        for pending in self.unanswered:
            pending.since = now

    def _magic(self) -> int:
        return 0xD249 if self._announced and self._blacklisted else 0x49D2

    def _announce(self) -> None:
        self._ask(frame(0x12, 2, PRODUCT), 0)
        self._ask(frame(0x10, 4, BLACKLISTED_BUILD if self._blacklisted else BUILD), 0)
        self._announced = True
        self._ask(MAGIC_READ, self._magic())

    def _say(self) -> None:
        text = b"guest %d line %d %s" % (
            self.domid, len(self.lines), b"x" * self._random.randrange(30))
        line = Line(text)
        self.lines.append(line)
        if self._random.random() < 0.5:
            self._ask(outs(0x12, text + b"\n"), 0, line, len(text) + 1)
            return
        for byte in text + b"\n":
            self._ask(frame(0x12, 1, byte), 0, line, 1)

    def _ask(self, request: bytes, answer: int, line: Line | None = None, weight: int = 0) -> None:
        self.unanswered.append(Pending(request, answer, line, weight))

    # --- its connection

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self.socket is not None

    def connect(self, now: float) -> bool:
        """Try to connect and to send again what was not answered."""
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            connection.connect(self._path)
        except OSError:
            connection.close()
            self.refused += 1
            self.retry_at = now + RETRY
            return False
        self.socket = connection
        self._unread = b""
        seen: set[int] = set()
        for pending in self.unanswered:
            line = pending.line
            if line is not None and id(line) not in seen:
                seen.add(id(line))
                line.doubtful.append(line.acknowledged)
        return self.send()

    def send(self) -> bool:
        """Send all that is unanswered: a few KiB, which a socket takes at once."""
        assert self.socket is not None
        data = b"".join(pending.request for pending in self.unanswered)
        try:
            if data and self.socket.send(data) != len(data):
                raise AssertionError("the socket's buffer is too small for this test")
        except OSError:
            self.lose()
            return False
        return True

    def lose(self) -> None:
        """The connection is gone."""
        assert self.socket is not None
        self.socket.close()
        self.socket = None
        self.resumed = self.retry_at = 0.0

    def receive(self, now: float) -> None:
        """Take responses in."""
        assert self.socket is not None
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.lose()
            return
        self._unread += data
        while len(self._unread) >= 32:
            self._check(self._unread[:32], now)
            self._unread = self._unread[32:]

    def _check(self, got: bytes, now: float) -> None:
        pending = self.unanswered.popleft()
        asked, said = FRAME.unpack(pending.request[:32]), FRAME.unpack(got)
        state = 0 if pending.request == RESET else asked[6] & 0xF0 | 3
        if said != (asked[0], pending.answer, *asked[2:6], state, asked[7]):
            self.wrong.append(f"domain {self.domid}: {pending.request[:32].hex()}: {got.hex()}")
        if pending.line is not None:
            pending.line.acknowledged += pending.weight
        self.answers += 1
        self.resumed = self.resumed or now
        self.longest = max(self.longest, now - pending.since)
        if not self.unanswered:
            self.settled = now


def first_in_line() -> None:
    """Let this thread have a CPU whenever it wants one: guests, and who looks at them, are not what is tried."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


class Load:
    """All guests, in a thread of their own; a context manager."""

    def __init__(self, guests: list[Guest], pause: float = 0.005) -> None:
        """`pause`: seconds between a guest's last answer and its next plan."""
        self.guests = guests
        self._pause = pause
        self._ending = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Let them begin."""
        self._thread.start()

    @property
    def thread(self) -> int:
        """The kernel's number of the thread that all guests share."""
        assert self._thread.native_id is not None
        return self._thread.native_id

    def finish(self, deadline: float = 60.0) -> None:
        """Let everybody get the answers that are due, then end. AssertionError where they don't come."""
        self._ending.set()
        self._thread.join(deadline)
        assert not self._thread.is_alive(), "guests still wait for answers"
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        first_in_line()
        try:
            with selectors.DefaultSelector() as selector:
                self._serve(selector)
        except BaseException as error:  # noqa: BLE001 - finish() raises it in the test's own thread
            self._error = error

    def _serve(self, selector: selectors.BaseSelector) -> None:
        due = dict.fromkeys(self.guests, 0.0)
        while True:
            now = time.monotonic()
            for guest in self.guests:
                if not guest.connected and now >= guest.retry_at and guest.connect(now):
                    assert guest.socket is not None
                    selector.register(guest.socket, selectors.EVENT_READ, guest)
                if guest.socket is not None and not guest.unanswered and now >= due[guest]:
                    if self._ending.is_set():
                        continue
                    guest.plan(now)
                    connection = guest.socket
                    if not guest.send():
                        selector.unregister(connection)
            if self._ending.is_set() and not any(guest.unanswered for guest in self.guests):
                return
            for key, _ in selector.select(self._pause):
                guest = key.data
                now = time.monotonic()
                guest.receive(now)
                if not guest.connected:
                    selector.unregister(key.fileobj)
                elif not guest.unanswered:
                    due[guest] = now + self._pause * len(self.guests) / 10
