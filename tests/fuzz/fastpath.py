"""Fuzzing the compiled part (daemon/fastpath) under AddressSanitizer and UBSan, with the domains and records around it.

    python -m tests.fuzz.fastpath [SECONDS] [--seed N] [--pure]

A session is one domain with connections, timers, a journald, and what happens to them: lines of 0 to 4,095 bytes,
several in a frame; frames cut at any byte; several connections; every other access; a balance that pays or does not; a
journald that stops; a release, or SIGKILL, in the middle of a batch. core/ alone is told the same.

The invariant: every answer, every line of the guest's log and the state that is left are what core/ alone says, byte by
byte; and no memory is touched that is not one's own. What a release or SIGKILL cuts short is what core/ says after some
frame, and never before the last one that was answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

from tests.fuzz import sanitized
from tests.fuzz.stream import Speaker, verdict
from tests.lab.frames import RESET, frame, outs
from tests.lab.host import Host, delivery, host, until
from unplugd.config.load import Config, LogConfig, PolicyConfig
from unplugd.core import guestlog
from unplugd.core.counters import Counters
from unplugd.core.escape import escape_journal
from unplugd.core.events import Line, LinesDropped
from unplugd.core.guest import Guest, Verdict
from unplugd.core.stream import NeedVerdict
from unplugd.domains import domain as domains
from unplugd.domains import turns
from unplugd.domains.domain import Domain
from unplugd.sinks import journal
from unplugd.sinks.records import Event
from unplugd.sockets import loop as eventloop
from unplugd.sockets import poller
from unplugd.sockets.access import ConnectionPolicy
from unplugd.sockets.listener import Listener

LOG_PORTS = (0x12, 0x12, 0x12, 0x10008)
LENGTHS = (1, 2, 3, 10, 63, 64, 65, 100, 1000, 2000, 2047, 3000, 4000, 4090, 4091, 4092, 4093, 4094, 4095, 4096)
LINES = (0, 1, 1, 2, 5, 30, 60, 63, 64, 200, 1000, 3000, 4093, 4094, 4095)
MOST = 600_000
"""Bytes of records that may be on their way. A domain's limit is 1 MiB, and what is beyond is dropped."""
EVER = 1e12
KINDS = {Event.GUEST_LINE.message_id: "line", Event.LINES_DROPPED.message_id: "dropped"}

CONFIGURATIONS = {
    "pays": LogConfig(rate=EVER, burst=EVER, flush_after=1000.0),
    # a rate of next to nothing: what is dropped does not depend on the time that passes
    "drops": LogConfig(rate=1e-3, burst=20_000, flush_after=1000.0),
    "waits": LogConfig(rate=1e7, burst=2000, flush_after=1000.0, on_limit="delay"),
    "timers": LogConfig(rate=EVER, burst=EVER, flush_after=0.01),
}
"""How a session is limited. With "timers" lines end where they will: all else is compared without their ends."""


class Requests:
    """What a device model may send."""

    def __init__(self, chance: random.Random, *, plain: bool) -> None:
        """`plain`: letters and newlines only."""
        self._chance = chance
        self._plain = plain

    def text(self, size: int) -> bytes:
        """Part of a line."""
        kind = 0.0 if self._plain else self._chance.random()
        if kind < 0.8:
            return bytes(self._chance.choices(b"abcxyz", k=min(size, 16))) * (size // 16 + 1)
        return self._chance.randbytes(size).replace(b"\n", b"\r") if kind < 0.9 else b"\\" * size

    def log(self) -> bytes:
        """A payload: lines, the last of which may be open."""
        size = self._chance.choice(LENGTHS) if self._chance.random() < 0.7 else self._chance.randrange(1, 4097)
        payload = bytearray()
        while len(payload) < size:
            length = self._chance.choice(LINES)
            payload += self.text(length)[:length]
            kind = self._chance.random()
            payload += b"\n" if kind < 0.9 else b"\r\n" if kind < 0.95 and not self._plain else b""
        return bytes(payload[:size])

    def access(self) -> bytes:
        """One access that is no log byte, or a reset."""
        choice = self._chance.choice
        return choice((
            frame(0x10, 2, read=True), frame(0x12, 1, read=True), frame(0x10, 1, read=True),
            frame(0x12, 2, choice((0, 1, 3, 3, 4, 0xFFFF))),
            frame(0x10, 4, choice((11, 13, 14, 99, 86451))),
            frame(0x10, 2, choice((0, 1, 2, 3, 5, 15, 0xFFFF))),
            frame(0x10, 1, self._chance.randrange(256)),
            frame(0x10004, 4, 1), frame(0x10008, 4, choice((1, 2, 3))),
            frame(choice((0x11, 0x13, 0x1F, 0x10000)), choice((1, 2, 4, 8)), read=choice((True, False))),
            RESET,
        ))  # fmt: skip

    def request(self) -> bytes:
        """A frame, or some that belong together."""
        choice, kind = self._chance.choice, self._chance.random()
        if kind < 0.6:
            return outs(choice(LOG_PORTS), self.log())
        if kind < 0.75:
            return b"".join(frame(choice(LOG_PORTS), 1, byte, df=choice((True, False)), eport=byte)
                            for byte in self.log()[:choice((1, 2, 5, 40, 200, 600))])
        if kind < 0.95:
            return self.access()
        if kind < 0.98:
            size = choice((1, 2, 4, 8))
            count = self._chance.randrange(1, 4096 // size + 1)
            return frame(choice((0x10, 0x12, 0x10004)), size, read=True, count=count, string=True)
        return outs(choice((0x10, 0x12)), self._chance.randbytes(4 * choice((1, 2, 10))), choice((2, 4)))

    def broken(self) -> bytes:
        """A frame of which one byte is another."""
        one = bytearray(self.request())
        one[self._chance.randrange(32)] = self._chance.randrange(256)
        return bytes(one)


class Client:
    """A device model's connection, and the same in core/ alone."""

    def __init__(self, path: Path, speaker: Speaker) -> None:
        self.speaker = speaker
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.socket.connect(str(path))

    async def receive(self, size: int) -> bytes:
        """So many bytes, fewer where the connection ends."""
        loop = asyncio.get_running_loop()
        got = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while len(got) < size and (more := await loop.sock_recv(self.socket, min(1 << 16, size - len(got)))):
                got += more
        return bytes(got)


class Session:
    """One domain, its connections, and what core/ alone says of them."""

    def __init__(self, one: Host, kind: str, domid: int, chance: random.Random) -> None:
        self.one = one
        self.kind = kind
        self.domid = domid
        self.chance = chance
        self.requests = Requests(chance, plain=kind == "timers")
        self.clients: list[Client] = []
        self.expected: defaultdict[str, list[tuple[str, bytes]]] = defaultdict(list)
        """Lines and records in the guest's log, by the domain's uuid."""
        self.arrived: defaultdict[str, list[tuple[str, bytes]]] = defaultdict(list)
        self.counters = Counters()
        self.before = one.counters.frames[:]
        self.now = 1.0
        self.on_its_way = 0
        self.generation = 0
        self.introduce()

    # --- the domain

    def introduce(self) -> None:
        """A new guest by the same domid."""
        self.generation += 1
        self.uuid = f"4f0e0c5e-0000-4000-{self.domid:04x}-{self.generation:012d}"
        self.open()
        self.guest = self.new_guest()
        self.again: Counter[str] = Counter()
        """What was dropped before SIGKILL, and is counted by the process after it."""
        self.connect()

    def new_guest(self) -> Guest:
        """core/ alone, as the Domain makes it."""
        settings, domain = self.one.settings, self.domain
        limits = settings.limits_of(domain.rule, unlimited=domain.unlimited)
        guest = Guest(settings.rules_of(domain.rule), limits, settings.registry, self.now, settings.delivery.cost)
        guest.log.prefix = len(domain.records.prefix)
        return guest

    def open(self) -> None:
        """Its Domain and socket."""
        self.domain = self.one.domain(self.domid, uuid=self.uuid)
        policy = ConnectionPolicy([os.geteuid()])
        self.listener = Listener(self.domain, self.one.directory, policy, self.judge, self.one.poller)
        self.listener.start(None, {})

    def connect(self) -> None:
        """As many connections as there were, or some."""
        for client in self.clients:
            client.socket.close()
        self.clients = [self.new_client() for _ in range(len(self.clients) or self.chance.choice((1, 1, 2, 3)))]

    def new_client(self) -> Client:
        return Client(self.listener.path, Speaker(self.guest, self.counters, self.now))

    def judge(self, _domain: Domain, need: NeedVerdict, _deadline: float) -> asyncio.Future[Verdict]:
        """xenstore's word, at once or later."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Verdict] = loop.create_future()
        if self.chance.random() < 0.3:
            answer.set_result(verdict(need.build))
        else:
            loop.call_later(self.chance.choice((0, 0, 0.001)), _give, answer, verdict(need.build))
        return answer

    def collect(self) -> None:
        """What core/ alone has recorded since."""
        for event in self.guest.take_events():
            if isinstance(event, Line):
                self.expected[self.uuid].append(("line", escape_journal(event.text)))
            elif isinstance(event, LinesDropped):
                self.expected[self.uuid].append(("dropped", str(event).encode()))

    # --- journald

    def read(self) -> None:
        """Read what journald has."""
        journald = self.one.journald
        while journald.socket is not None:
            try:
                data = journald.socket.recv(1 << 20)
            except BlockingIOError:
                return
            fields = dict(part.split(b"=", 1) for part in data.split(b"\n") if part)
            kind = KINDS.get(fields[b"MESSAGE_ID"].decode())
            if kind is not None:
                self.arrived[fields[b"XEN_DOMAIN_UUID"].decode()].append((kind, fields[b"MESSAGE"]))

    async def delivered(self) -> None:
        """Until nothing is on its way."""
        if self.one.journald.socket is None:
            self.one.journald.start()

        def nothing_waits() -> bool:
            self.domain.catch_up()  # text of which nobody has asked yet may still wait for the domain's turn
            self.read()
            return self.one.settings.delivery._total == 0

        await until(nothing_waits)
        self.read()
        self.on_its_way = 0

    def change_journald(self) -> None:
        if self.one.journald.socket is None:
            self.one.journald.start()
        else:
            self.read()
            self.one.journald.stop()

    # --- steps

    async def talk(self) -> None:
        """Send some requests on one connection; every answer is what core/ says."""
        chance, client = self.chance, self.chance.choice(self.clients)
        data = b""
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8, 20))):
            data += self.requests.request() if chance.random() < 0.98 else self.requests.broken()
            if 320 * data.count(b"\n") + len(data) > MOST // 2:
                break
        if chance.random() < 0.1:
            data = data[:-chance.randrange(1, min(len(data), 5000))]
        self.on_its_way += 320 * data.count(b"\n") + len(data)
        if self.on_its_way > MOST:
            await self.delivered()
        client.speaker.now = self.now
        expected = client.speaker.say(data)
        self.now = client.speaker.now
        self.collect()
        async with asyncio.timeout(60):
            _, got = await asyncio.gather(self.send(client, data), client.receive(len(expected)))
        assert got == expected, _difference(got, expected)
        if client.speaker.stream.fault is not None:
            async with asyncio.timeout(60):
                assert await client.receive(1) == b"", "answered after a fault"
            client.socket.close()
            self.clients[self.clients.index(client)] = self.new_client()

    async def send(self, client: Client, data: bytes) -> None:
        loop, chance = asyncio.get_running_loop(), self.chance
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if chance.random() < 0.7:
                await loop.sock_sendall(client.socket, data)
                return
            at = 0
            while at < len(data):
                size = chance.choice((1, 31, 32, 33, 63, 500, 4127, 4128, 16384)) if len(data) - at > 64 else 1
                await loop.sock_sendall(client.socket, data[at:at + size])
                at += size
                if chance.random() < 0.3:
                    await asyncio.sleep(0)

    async def crowd(self) -> None:
        """All connections at once, whole lines each: all of them arrive whole, each connection's in order."""
        end = outs(0x12, b"\n")
        for client in self.clients:
            if client.speaker.rest:
                return
        assert await self.answer(self.clients[0], end) == 32
        await self.delivered()
        already = len(self.arrived[self.uuid])
        said = []
        for which, client in enumerate(self.clients):
            lines = [b"%d:%d:%s" % (which, number, self.requests.text(self.chance.choice(LINES[:-3])))
                     for number in range(self.chance.choice((1, 5, 40)))]
            lines = [line.replace(b"\r", b"r")[:4000] for line in lines]
            requests = [outs(self.chance.choice(LOG_PORTS), line + b"\n") for line in lines]
            client.speaker.say(b"".join(requests))
            said.append((client, lines, requests))
        self.guest.take_events()
        await asyncio.gather(*(self.exchange(client, requests) for client, _, requests in said))
        await self.delivered()
        new = self.arrived[self.uuid][already:]
        for which, (_, lines, _) in enumerate(said):
            begin = b"%d:" % which
            mine = [text for _, text in new if text.startswith(begin)]
            assert mine == list(map(escape_journal, lines)), "lines of one connection"
        assert len(new) == sum(len(lines) for _, lines, _ in said), "lines of all connections"
        self.expected[self.uuid] += new

    async def exchange(self, client: Client, requests: list[bytes]) -> None:
        async with asyncio.timeout(60):
            _, got = await asyncio.gather(self.send(client, b"".join(requests)), client.receive(32 * len(requests)))
        assert len(got) == 32 * len(requests)

    async def answer(self, client: Client, data: bytes) -> int:
        expected = client.speaker.say(data)
        self.collect()
        _, got = await asyncio.gather(self.send(client, data), client.receive(len(expected)))
        assert got == expected
        return len(got)

    async def interrupt(self, *, kill: bool) -> None:
        """Release the domain, or end the process by SIGKILL and start another, in the middle of a batch."""
        client = self.chance.choice(self.clients)
        if client.speaker.rest or self.kind != "pays":
            return
        await self.delivered()
        requests: list[bytes] = []
        size = 0
        while size < 60_000 and (not requests or self.chance.random() < 0.9):
            one = outs(0x12, self.requests.log()) if self.chance.random() < 0.7 else self.requests.access()
            requests.append(one)
            size += len(one) + 320 * one.count(b"\n")
        client.socket.send(b"".join(requests))
        for _ in range(self.chance.choice((0, 1, 1, 2, 2, 3, 5))):
            await asyncio.sleep(0)
        if kill:
            self.kill()
        else:
            self.listener.close()
            self.domain.release()
            self.one.settings.delivery.close(self.domain.outbox)
        async with asyncio.timeout(60):
            answered = await client.receive(1 << 30)
        if kill:
            self.open()
            self.one.settings.delivery.adopt_orphans()
        await self.delivered()
        self.find(client, requests, answered, kill=kill)
        if kill:
            self.restore()
            self.connect()
        else:
            self.introduce()

    def find(self, client: Client, requests: list[bytes], answered: bytes, *, kill: bool) -> None:
        """After which frame core/ has this log and this state: not before the last one that was answered."""
        speaker = client.speaker
        arrived = self.arrived[self.uuid]
        left, said = list(requests), b""
        while True:
            self.collect()
            partial = bytes(self.guest.log.partial)
            assert answered[:len(said)] == said[:len(answered)], "answers in the middle of a batch"
            if len(said) >= len(answered):
                if kill:
                    found = (arrived == self.expected[self.uuid] and self.domain.guest.log.partial == partial
                             and self.domain.guest.platform.__getstate__() == self.guest.platform.__getstate__())
                else:
                    cut = [("line", escape_journal(partial))] if partial else []
                    found = arrived == self.expected[self.uuid] + cut
                if found:
                    break
            assert left, (f"kill: {kill}; {len(answered)} of {len(said)} bytes answered; there is no frame after which"
                          f" core/ has this log, this state and {len(partial)} bytes of an open line; "
                          + _difference(arrived, self.expected[self.uuid]))
            said += speaker.say(left.pop(0))
        if not kill:
            self.expected[self.uuid] = list(arrived)
        self.before = self.one.counters.frames[:]
        self.counters.frames[:] = type(self.before)("Q", bytes(8 * len(self.before)))

    def kill(self) -> None:
        """What SIGKILL leaves: the state as it is, what is in journald's socket, and the spools."""
        self.listener.close()
        self.domain._close()
        self.domain.state.close()
        settings = self.one.settings
        settings.delivery._journal.close()
        settings.delivery = delivery(settings.config.log, self.one.directory / "state", self.one.journald.path)

    def restore(self) -> None:
        """core/ alone, restored from what it was."""
        before = self.guest
        self.guest = self.new_guest()
        self.guest.restore(before.snapshot(), self.now)
        self.guest.log.write_all(bytes(before.log.partial), self.now)
        assert not self.guest.take_events()
        # A new process drops again what the killed one dropped after its last commit, and counts it again.
        self.again = _dropped(self.domain.guest)
        assert self.again <= _dropped(before)

    async def restart(self) -> None:
        """SIGKILL while nothing is under way: what was acknowledged is there, and not twice."""
        if any(client.speaker.rest for client in self.clients):
            return
        self.kill()
        self.open()
        self.one.settings.delivery.adopt_orphans()
        self.restore()
        self.connect()

    async def reintroduce(self) -> None:
        """Another guest by the same domid, while connections are open."""
        self.guest.log.cut(self.now)
        self.collect()
        self.listener.close()
        self.domain.release()
        self.one.settings.delivery.close(self.domain.outbox)
        for client in self.clients:
            async with asyncio.timeout(60):
                assert await client.receive(1) == b""
        self.introduce()

    def limit(self) -> None:
        """The toolstack switches the limit off or on, or renames the domain."""
        if self.chance.random() < 0.5:
            self.domain.rename(self.chance.choice(("a", "web-01", "x" * 200)))
        else:
            unlimited = not self.domain.unlimited
            self.domain.limit(unlimited=unlimited)
            limits = self.one.settings.limits_of(self.domain.rule, unlimited=unlimited)
            self.guest.log.configure(limits, self.now)
        self.guest.log.prefix = len(self.domain.records.prefix)

    def compare(self) -> None:
        """The state is what core/ alone has."""
        ours, theirs = self.domain.guest, self.guest
        assert ours.platform.__getstate__() == theirs.platform.__getstate__()
        assert self.domain.dropped_lines["sink"] == 0, "the test itself sends too much"
        frames = [now - before for now, before in zip(self.one.counters.frames, self.before, strict=True)]
        assert frames == list(self.counters.frames), (frames, list(self.counters.frames))
        if self.kind != "timers":
            assert ours.log.partial == theirs.log.partial
            assert ours.log.charged == theirs.log.charged
        if self.kind in {"pays", "drops"}:
            mine, other = ours.snapshot(), theirs.snapshot()
            assert abs(mine.balance - other.balance) < 1 or self.kind == "pays", (mine, other)
            assert mine._replace(balance=0, balance_at=0) == other._replace(balance=0, balance_at=0)
            assert _dropped(ours) - self.again == _dropped(theirs), (_dropped(ours), self.again, _dropped(theirs))

    async def step(self) -> None:
        """Something happens."""
        kind = self.chance.random()
        if kind < 0.7:
            await self.talk()
        elif kind < 0.76:
            if self.kind in {"pays", "timers"}:
                await self.crowd()
        elif kind < 0.82:
            await self.interrupt(kill=self.chance.random() < 0.5)
        elif kind < 0.85:
            await self.restart()
        elif kind < 0.87:
            await self.reintroduce()
        elif kind < 0.91:
            self.change_journald()
        elif kind < 0.93:
            self.limit()
        elif kind < 0.97:
            self.compare()
        else:
            await asyncio.sleep(self.chance.choice((0, 0.001, 0.02 if self.kind == "timers" else 0.001)))
        if self.chance.random() < 0.3:
            self.read()

    async def end(self) -> None:
        """Release the domain, and compare all that has arrived."""
        self.compare()
        self.guest.log.cut(self.now)
        self.collect()
        self.listener.close()
        self.domain.release()
        self.one.settings.delivery.close(self.domain.outbox)
        for client in self.clients:
            client.socket.close()
        await self.delivered()
        for uuid, expected in self.expected.items():
            arrived = self.arrived[uuid]
            if self.kind == "timers":
                ours, theirs = (b"".join(text for _, text in lines) for lines in (arrived, expected))
                assert ours == theirs, _difference(ours, theirs)
            else:
                assert arrived == expected, _difference(arrived, expected)
        assert self.arrived.keys() <= self.expected.keys()


def _dropped(guest: Guest) -> Counter[str]:
    log = guest.log
    return Counter(lines=log.dropped_lines, bytes=log.dropped_bytes, suppressed=log.suppressed)


def _give(answer: asyncio.Future[Verdict], result: Verdict) -> None:
    if not answer.done():
        answer.set_result(result)


def _difference(got: bytes | list[tuple[str, bytes]], expected: bytes | list[tuple[str, bytes]]) -> str:
    differ = (at for at, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b)
    at = next(differ, min(len(got), len(expected)))

    def there(what: bytes | list[tuple[str, bytes]]) -> str:
        if isinstance(what, bytes):
            return repr(what[at:at + 40])
        return repr([f"{kind} of {len(text)}: {text[:20]!r}" for kind, text in what[max(0, at - 1):at + 3]])

    return f"{len(got)} came, {len(expected)} were expected; from {at} on: {there(got)}, expected {there(expected)}"


@contextlib.contextmanager
def _pace(turn: float) -> Iterator[None]:
    """Every domain has so many seconds in its turn. With next to none most lines are recorded later, as on a slow host.

    Nothing is recorded because time passes: core/ alone has another clock.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(guestlog, "REPORT_INTERVAL", EVER))
        for module in (turns, domains, poller):
            stack.enter_context(patch.object(module, "BUDGET", turn))
        yield


async def _fuzz(seconds: float, seed: int, first: int) -> tuple[int, int]:
    """Sessions until the time is over: how many there were, and how many frames were answered."""
    failed: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    end = time.monotonic() + seconds
    sessions = answered = 0
    kinds = itertools.cycle(itertools.product(CONFIGURATIONS, (turns.BUDGET, 1e-6)))
    while time.monotonic() < end:
        kind, turn = next(kinds)
        config = Config(policy=PolicyConfig(legacy_unplug=True), log=CONFIGURATIONS[kind])
        with tempfile.TemporaryDirectory() as directory, _pace(turn):
            async with host(Path(directory), config) as one:
                for _ in range(8):
                    number = first + sessions
                    chance = random.Random(f"{seed} {number}")
                    try:
                        session = Session(one, kind, 1 + number % 30_000, chance)
                        for _ in range(chance.choice((3, 10, 25))):
                            await session.step()
                            assert not failed, failed
                        await session.end()
                        assert not failed, failed
                    except BaseException:
                        print(f"session {number} of seed {seed}, {kind}", file=sys.stderr)
                        raise
                    sessions += 1
                    if time.monotonic() > end:
                        break
                answered += sum(one.counters.frames)
    return sessions, answered


def main() -> int:
    """Fuzz for so many seconds."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.fastpath", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--session", type=int, default=0, help="begin with this one")
    parser.add_argument("--pure", action="store_true", help="the same without the compiled part")
    options = parser.parse_args()
    loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop
    if not options.pure:
        if sanitized.LIBRARY not in os.environ:
            if reason := sanitized.missing():
                print(f"the compiled part is not fuzzed: {reason}")
                return 0
            arguments = ["--seed", str(options.seed), *sys.argv[1:]]
            command = [sys.executable, "-m", "tests.fuzz.fastpath", *arguments]
            done = subprocess.run(command, env=sanitized.environment(), check=False, timeout=options.seconds + 600)
            return done.returncode
        loop = eventloop.new_event_loop
    journal.FIRST_RETRY = journal.LAST_RETRY = 0.002  # a journald that is back is soon noticed
    with asyncio.Runner(loop_factory=loop) as runner:
        assert options.pure or isinstance(runner.get_loop(), eventloop.Loop)
        sessions, answered = runner.run(_fuzz(options.seconds, options.seed, options.session))
    what = "without the compiled part" if options.pure else "with the sanitized compiled part"
    print(f"{sessions} sessions, {answered} frames {what}; seed {options.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
