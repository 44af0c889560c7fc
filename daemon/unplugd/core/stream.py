"""The bytes of one connection: requests in, responses out, in order, whatever pieces they come in.

Sans I/O. The caller feeds what it read and the time, sends what it gets, and looks at `waiting` (a frame waits for a
verdict or for tokens: resume() when it is there), `fault` (close the connection) and `stopped` (there is more to do).

What a guest's rows answer (answers.py) is answered by its table; every other frame is served here, which is the
specification in the open. Both do the same: without a table, all frames are served here.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple, Protocol

from unplugd.core.counters import KINDS, Counters
from unplugd.core.guest import Guest, Verdict
from unplugd.core.guestlog import SLOT
from unplugd.core.ioreq import FRAME_SIZE, Request, decode, response
from unplugd.core.protocol import LEGACY_MASKS, Effect, effects
from unplugd.errors import ClientFault


class NeedVerdict(NamedTuple):
    """A build number must be looked up before the frame goes on."""

    product: int
    build: int
    first: bool
    """True for the first build number of a frame: all of a frame's lookups share one deadline."""


class NeedTokens(NamedTuple):
    """The frame's response must wait until the guest's bucket is not negative (`log.on_limit` = delay)."""

    seconds: float


Waiting = NeedVerdict | NeedTokens
_Job = Generator[Waiting, Verdict | None, bytes]

OUTPUT_LIMIT = 64 * 1024
"""Bytes of responses after which receive() stops: 32 bytes of a string read ask for 4 KiB of answer."""

FRAMES_LIMIT = 32
"""Frames served here, not by the table, after which receive() stops: other guests wait meanwhile."""

_KIND = {effect: KINDS.index(effect.kind) for effect in Effect}
_RESET = KINDS.index("reset")


class Backing(Protocol):
    """What a domain does around the protocol of its guest."""

    def answer(self, data: bytes, at: int) -> tuple[bytes, int]:
        """Answers to the frames from offset `at` on that rows answer, and how many bytes of requests they took."""
    def catch_up(self) -> None:
        """Bring the guest up to date with what the rows did: its state is needed, or changes."""
    def log(self, data: bytes, now: float) -> None:
        """Bytes for the guest's log, of a frame that no row answers."""


class Alone:
    """A Backing without rows: the guest's state is all there is."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def answer(self, _data: bytes, _at: int) -> tuple[bytes, int]:
        """No row answers anything."""
        return b"", 0

    def catch_up(self) -> None:
        """There is nothing to catch up with."""

    def log(self, data: bytes, now: float) -> None:
        """The bytes are the guest's log at once."""
        self._guest.log.write_all(data, now)


class IoreqStream:
    """One connection of a domain's device model. Frames are counted before their response is handed out."""

    __slots__ = ("_backing", "_builds", "_counts", "_guest", "_job", "_now", "fault", "stopped", "waiting")

    def __init__(self, guest: Guest, counters: Counters, backing: Backing | None = None) -> None:
        self._guest = guest
        self._counts = counters.frames
        self._backing = backing or Alone(guest)
        self._job: _Job | None = None
        self._now = 0.0
        self._builds = 0
        self.waiting: Waiting | None = None
        self.fault: ClientFault | None = None
        self.stopped = False
        """A limit was reached: receive() has more to do with what is left of the bytes."""

    def receive(self, data: bytes, now: float) -> tuple[bytes, int]:
        """Serve the frames of `data`: their responses, and how many bytes were used. The rest comes again, with more.

        Must not be called while `waiting`; after a `fault` it does nothing.
        """
        self._now = now
        self.stopped = False
        pieces: list[bytes] = []
        at = served = size = 0
        while self.fault is None and self.waiting is None:
            if served == FRAMES_LIMIT or size >= OUTPUT_LIMIT:
                self.stopped = True
                break
            answers, used = self._backing.answer(data, at)
            pieces.append(answers)
            size += len(answers)
            at += used
            used = self._serve(data, at, pieces)
            if not used:
                break
            at += used
            served += 1
            if self.waiting is None:
                size += len(pieces[-1])
        return b"".join(pieces), at

    def resume(self, verdict: Verdict | None, now: float) -> bytes:
        """Go on with the frame that was `waiting`, with its verdict if it waited for one: its response, or b""."""
        self._now = now
        pieces: list[bytes] = []
        if self._job is not None:
            self._advance(self._job, verdict, pieces)
        return b"".join(pieces)

    def _serve(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Serve any frame at `at`; how many bytes it has, 0 if it is not all there or must not be."""
        begin = at + FRAME_SIZE
        if begin > len(data):
            return 0
        try:
            request = decode(data[at:begin])
        except ClientFault as fault:
            self.fault = fault
            return 0
        end = begin + request.payload_size
        if end > len(data):
            return 0
        self._backing.catch_up()
        self._builds = 0
        self._advance(self._job_of(request, data[begin:end]), None, pieces)
        return end - at

    def _advance(self, job: _Job, verdict: Verdict | None, pieces: list[bytes]) -> None:
        """Run a frame until it is done (its response becomes a piece) or must wait."""
        try:
            self.waiting = job.send(verdict)
            self._job = job
        except StopIteration as stop:
            self.waiting = self._job = None
            pieces.append(stop.value)

    def _job_of(self, request: Request, payload: bytes) -> _Job:
        """Carry one frame out, element by element; the generator's value is the response."""
        guest = self._guest
        if request.reset:
            self._counts[_RESET] += 1
            guest.reset(self._now)
            return response(request, 0)
        effect = effects(guest.platform.rules).get((request.read, request.addr, request.size), Effect.NONE)
        if effect is Effect.LEGACY_UNPLUG and not _legacy_masks(request, payload):
            effect = Effect.NONE
        self._counts[_KIND[effect]] += 1
        if request.read:
            if effect is Effect.MAGIC:
                guest.read_magic(self._now)
            elif effect is Effect.VERSION:
                guest.read_version(self._now)
            answer = guest.platform.read(effect, request.size)
            if request.string:
                return response(request, 0, answer.to_bytes(request.size, "little") * request.count)
            return response(request, answer)
        if effect is Effect.LOG:
            yield from self._log(payload if request.string else bytes((request.data,)), string=request.string)
            return response(request, 0)
        order = 0
        for value in _elements(request, payload):
            if effect is Effect.BUILD:
                yield from self._build(value)
            elif effect is Effect.LEGACY_UNPLUG:
                mask = LEGACY_MASKS.get((request.addr, value), 0)
                order |= guest.write(effect, mask, self._now) if mask else 0
            else:
                order |= guest.write(effect, value, self._now)
        return response(request, order)

    def _log(self, data: bytes, *, string: bool) -> Generator[Waiting, Verdict | None, None]:
        log = self._guest.log
        whole = string and len(data) == SLOT and not log.partial and b"\n" not in data
        if log.limits.delay:
            self._guest.changed = True
            log.charge_frame(len(data), self._now)
        self._backing.log(data, self._now)
        if whole:  # a line of XENBUS's that was cut
            self._guest.changed = True
            log.cut(self._now)
        while seconds := log.hold(self._now):
            self._guest.changed = True
            yield NeedTokens(seconds)

    def _build(self, build: int) -> Generator[Waiting, Verdict | None, None]:
        guest = self._guest
        product = guest.expected_product(build, self._now)
        if product is not None:
            self._builds += 1
            resets = guest.resets
            verdict = yield NeedVerdict(product, build, first=self._builds == 1)
            if guest.resets == resets:
                guest.judge(product, build, verdict or Verdict(blacklisted=False), self._now)


def _elements(request: Request, payload: bytes) -> list[int]:
    if not request.string:
        return [request.data]
    size = request.size
    return [int.from_bytes(payload[at:at + size], "little") for at in range(0, len(payload), size)]


def _legacy_masks(request: Request, payload: bytes) -> bool:
    return any((request.addr, value) in LEGACY_MASKS for value in _elements(request, payload))
