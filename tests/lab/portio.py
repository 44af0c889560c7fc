"""A device model with one connection, in virtual time: it feeds an IoreqStream, answers its verdicts and waits out its
token waits. Its frames are those of the contract (frames.py). Nothing here knows a socket."""

from __future__ import annotations

from collections.abc import Collection

from tests.lab.frames import RESET, Answer, answers, frame
from unplugd.core.counters import Counters
from unplugd.core.events import Event, Line
from unplugd.core.guest import Guest, Verdict
from unplugd.core.guestlog import Limits
from unplugd.core.protocol import Action, Rules
from unplugd.core.registry import Registry
from unplugd.core.stream import Backing, IoreqStream, NeedTokens, NeedVerdict

BAR = 0x10000
UNLIMITED = Limits(unlimited=True)
RULES = Rules()


class Machine:
    """One guest behind one connection."""

    def __init__(
        self, rules: Rules = RULES, limits: Limits = UNLIMITED, *, blacklist: Collection[tuple[str, int]] = (),
        registry: Registry | None = None, action: Action = Action.REFUSE,
    ) -> None:
        self.now = 1000.0
        self.registry = registry or Registry()
        self.blacklist = blacklist
        self.action = action
        self.guest = Guest(rules, limits, self.registry, self.now)
        self.counters = Counters()
        self.stream = self.connect()
        self.rest = b""
        """The beginning of a frame."""
        self.looked_up: list[tuple[int, int]] = []
        self.waited = 0.0
        self.said: list[Event] = []

    def connect(self, backing: Backing | None = None) -> IoreqStream:
        """Another connection to this guest."""
        return IoreqStream(self.guest, self.counters, backing)

    def verdict(self, need: NeedVerdict) -> Verdict:
        """What xenstore says: the node exists or not; a product without a name has none."""
        self.looked_up.append((need.product, need.build))
        name = self.registry.name(need.product)
        return Verdict(blacklisted=(name, need.build) in self.blacklist, action=self.action)

    def feed(self, data: bytes) -> bytes:
        """Bytes in, bytes out, whatever must be waited for in between."""
        out = self.receive(data)
        while True:
            match self.stream.waiting:
                case NeedVerdict() as need:
                    out += self.stream.resume(self.verdict(need), self.now)
                case NeedTokens(seconds):
                    seconds += 1e-6  # as a timer, which is never early
                    self.now += seconds
                    self.waited += seconds
                    out += self.stream.resume(None, self.now)
                case None:
                    before = len(self.rest)
                    out += self.receive(b"")
                    if len(self.rest) == before:
                        break
        self.said += self.guest.take_events()
        return out

    def receive(self, data: bytes) -> bytes:
        """Bytes in, bytes out, up to what must be waited for or a limit."""
        out, used = self.stream.receive(self.rest + data, self.now)
        self.rest = (self.rest + data)[used:]
        return out

    def ask(self, request: bytes) -> Answer:
        """One request, one response."""
        (answer,) = answers(self.feed(request))
        return answer

    def inb(self, addr: int) -> int:
        """Read one byte."""
        return self.ask(frame(addr, 1, read=True)).data

    def inw(self, addr: int) -> int:
        """Read two bytes."""
        return self.ask(frame(addr, 2, read=True)).data

    def inl(self, addr: int) -> int:
        """Read four bytes."""
        return self.ask(frame(addr, 4, read=True)).data

    def outb(self, addr: int, value: int) -> int:
        """Write one byte; returns the order."""
        return self.ask(frame(addr, 1, data=value)).data

    def outw(self, addr: int, value: int) -> int:
        """Write two bytes; returns the order."""
        return self.ask(frame(addr, 2, data=value)).data

    def outl(self, addr: int, value: int) -> int:
        """Write four bytes; returns the order."""
        return self.ask(frame(addr, 4, data=value)).data

    def outs(self, addr: int, size: int, payload: bytes) -> int:
        """`rep outs`; returns the order."""
        return self.ask(frame(addr, size, count=len(payload) // size, string=True) + payload).data

    def reset(self) -> None:
        """The platform device comes out of reset."""
        assert self.feed(RESET) == RESET

    @property
    def lines(self) -> list[bytes]:
        """The lines of the guest's log so far."""
        return [event.text for event in self.said if isinstance(event, Line)]

    def events(self, *kinds: type[Event]) -> list[Event]:
        """What was said so far, of these kinds."""
        return [event for event in self.said if isinstance(event, kinds)]
