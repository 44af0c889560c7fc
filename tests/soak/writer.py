"""Guests that write their logs in every shape at full speed: each line arrives whole and in order, and a neighbour's
state survives SIGKILL.

    python -m tests.soak.writer [--seeds N] [--seconds N]

The running daemon, seen from outside: the sink `journal`, a socket in journald's place, four guests that write and one
that has announced its driver, unplugged, and begun a line. The lines follow from a seed, so that each is compared as it
arrives. Frames are cut anywhere, lines end within them, several are sent at once, by several connections in turn;
journald stops reading now and then. To put a socket in journald's place takes root.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

from tests.lab.daemon import Daemon, Wire, embedded
from tests.lab.frames import frame, outs
from tests.lab.journald import Journald

GUESTS = 4
NEIGHBOUR = GUESTS + 1
PRODUCT, BUILD, MASK = 3, 99, 3
OPEN = b"an open line of the neighbour"
AHEAD = 400
"""Lines that a guest may have written and journald not read: more than 1 MiB of a domain's would be dropped."""
LINE_LIMIT = 4095
MESSAGE_ID = b"37f2b761cab142c6bf0b323a713e22ba"
"""Of a guest's line, as docs/logging.md has it."""
LENGTHS = (0, 1, 2, 30, 63, 64, 200, 1000, 2047, 3000, 4000, 4093, 4094, 4095, 4096, 6000)


class Guest:
    """What a guest writes, and which lines must arrive."""

    def __init__(self, seed: int, domid: int) -> None:
        self._chance = random.Random(f"{seed} {domid}")
        self.domid = domid
        self.number = 0
        self.open = b""
        """Bytes that are made and not sent."""
        self.expected: deque[bytes] = deque()
        self.arrived = 0
        self.wrong = ""
        self.sent = 0

    def _line(self) -> bytes:
        """The next line; it must arrive, in pieces where it is long."""
        chance, self.number = self._chance, self.number + 1
        begin = b"%d:%d:" % (self.domid, self.number)
        size = chance.choice(LENGTHS) if chance.random() < 0.8 else chance.randrange(5000)
        text = (begin + bytes(chance.choices(b"abcdefgh", k=8)) * (size // 8 + 1))[:size]
        self.expected += [text[at:at + LINE_LIMIT] for at in range(0, len(text), LINE_LIMIT)]
        return text + (b"\r\n" if size < 4000 and chance.random() < 0.1 else b"\n")

    def batch(self) -> list[bytes]:
        """Some frames, of 1 to 4,096 bytes of log each."""
        chance = self._chance
        requests = []
        for _ in range(chance.choice((1, 1, 2, 3, 8))):
            size = chance.choice((1, 3, 64, 1000, 2000, 3002, 4094, 4095, 4096, 4096))
            while len(self.open) < size:
                self.open += self._line()
            requests += self._frames(size)
        return requests

    def last(self) -> list[bytes]:
        """The frames that end what is open."""
        if not self.open.endswith(b"\n"):
            self.open += b"\n"
        requests = []
        while self.open:
            requests += self._frames(min(4096, len(self.open)))
        return requests

    def _frames(self, size: int) -> list[bytes]:
        data, self.open = self.open[:size], self.open[size:]
        self.sent += size
        if size <= 64 and self._chance.random() < 0.5:
            return [frame(0x12, 1, byte) for byte in data]
        return [outs(self._chance.choice((0x12, 0x10008)), data)]

    def arrive(self, message: bytes) -> None:
        """A line has arrived."""
        self.arrived += 1
        if self.wrong:
            return
        if not self.expected:
            self.wrong = f"nothing was expected, there is {message[:60]!r}"
        elif (expected := self.expected.popleft()) != message:
            self.wrong = (f"line {self.arrived}: {len(message)} bytes, {message[:60]!r}; expected"
                          f" {len(expected)}, {expected[:60]!r}")


class Reader(Journald):
    """A socket in journald's place."""

    def __init__(self, directory: Path, guests: list[Guest]) -> None:
        super().__init__(directory)
        self._guests = {b"%d" % guest.domid: guest for guest in guests}
        self._end = threading.Event()
        self.hold = threading.Event()
        """While it is set, nothing is read."""
        self._thread = threading.Thread(target=self._read, daemon=True)

    def start(self) -> None:
        """Listen."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.socket))
        self._socket.settimeout(0.2)
        self._thread.start()

    def kill(self) -> None:
        """Listen no more."""
        self._end.set()
        self._thread.join(10)
        self._socket.close()

    def _read(self) -> None:
        while not self._end.is_set():
            if self.hold.is_set():
                time.sleep(0.01)
                continue
            with contextlib.suppress(TimeoutError):
                fields = dict(part.split(b"=", 1) for part in self._socket.recv(1 << 18).split(b"\n") if part)
                guest = self._guests.get(fields.get(b"XEN_DOMID", b""))
                if guest is not None and fields[b"MESSAGE_ID"] == MESSAGE_ID:
                    guest.arrive(fields[b"MESSAGE"])


def _write(guest: Guest, wires: list[Wire], end: float) -> None:
    """Write until the time is over. What one connection sends is answered before another goes on with the line."""
    chance = random.Random(guest.domid)
    while time.monotonic() < end and not guest.wrong:
        if len(guest.expected) > AHEAD:
            time.sleep(0.001)
            continue
        _exchange(chance.choice(wires), guest.batch())
        if chance.random() < 0.05:
            time.sleep(chance.choice((0.0002, 0.001, 0.01)))


def _exchange(wire: Wire, requests: list[bytes]) -> None:
    wire.send(b"".join(requests))
    for request in requests:
        assert wire.answer(request) == 0


def one(seed: int, seconds: float) -> tuple[dict[str, str], list[str]]:
    """Write for so long; figures and what does not hold."""
    guests = [Guest(seed, domid) for domid in range(1, GUESTS + 1)]
    neighbour = Guest(seed, NEIGHBOUR)
    neighbour.expected.append(OPEN)
    problems: list[str] = []
    log = {"sinks": ["journal"], "rate": 1e9, "burst": 1_000_000_000, "flush_after": 600.0}
    config = embedded(*range(1, NEIGHBOUR + 1), log=log)
    # A unix socket's path is at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="u-") as directory, Reader(Path(directory), [*guests, neighbour]) as reader:
        daemon = Daemon(config, command=reader.command)
        with contextlib.closing(daemon):
            daemon.start()
            with daemon.connect(NEIGHBOUR) as wire:
                wire.announce(PRODUCT, BUILD)
                assert wire.write(0x10, 2, MASK) == MASK
                wire.log(OPEN)
            before = _state(daemon)
            with contextlib.ExitStack() as stack:
                end = time.monotonic() + seconds
                threads = []
                for guest in guests:
                    wires = [stack.enter_context(daemon.connect(guest.domid)) for _ in range(3)]
                    threads.append(threading.Thread(target=_write, args=(guest, wires, end), daemon=True))
                for thread in threads:
                    thread.start()
                while any(thread.is_alive() for thread in threads):
                    time.sleep(0.5)
                    if random.Random(time.monotonic()).random() < 0.2:
                        reader.hold.set()
                        time.sleep(0.1)
                        reader.hold.clear()
                    if daemon.process is None or daemon.process.poll() is not None:
                        problems.append(f"the daemon ended: {daemon.stderr()[-2000:]}")
                        break
                    if time.monotonic() > end + 60:
                        problems.append("a writer is not answered")
                        break
            if not problems:
                daemon.kill()
                daemon.start()
                if (after := _state(daemon)) != before:
                    problems.append(f"the neighbour's state: {after}, before SIGKILL {before}")
                guests.append(neighbour)
                for guest in guests:
                    with daemon.connect(guest.domid) as wire:
                        _exchange(wire, guest.last())
                deadline = time.monotonic() + 60
                while any(guest.expected and not guest.wrong for guest in guests) and time.monotonic() < deadline:
                    time.sleep(0.05)
                for guest in guests:
                    if guest.wrong or guest.expected:
                        missing = f"{len(guest.expected)} lines are missing"
                        problems.append(f"seed {seed}, domain {guest.domid}: {guest.wrong or missing}")
    lines, size = sum(guest.arrived for guest in guests), sum(guest.sent for guest in guests)
    return {f"writers, seed {seed}": f"{lines} lines, {size / 1e6:.0f} MB"}, problems


def _state(daemon: Daemon) -> dict[str, object]:
    found = daemon.domain(NEIGHBOUR)
    assert found is not None
    return {key: found[key] for key in ("product", "build", "blacklisted", "unplugged")}


def run(seeds: int = 1, seconds: float = 40.0, first: int | None = None) -> tuple[dict[str, str], list[str]]:
    """So many seeds, one after the other."""
    figures: dict[str, str] = {}
    problems: list[str] = []
    begin = random.randrange(1 << 20) if first is None else first
    for seed in range(begin, begin + seeds):
        more, wrong = one(seed, seconds)
        figures |= more
        problems += wrong
    return figures, problems


def main() -> int:
    """Write for so long on each seed."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.writer", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--first", type=int, default=1)
    options = parser.parse_args()
    wrong = 0
    for seed in range(options.first, options.first + options.seeds):
        figures, problems = one(seed, options.seconds)
        for key, value in figures.items():
            print(f"{key}: {value}", *problems, sep="\n    ", flush=True)
        wrong += len(problems)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
