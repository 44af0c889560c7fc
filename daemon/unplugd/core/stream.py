"""The bytes of one connection: requests in, responses out, in order, whatever pieces they come in.

Sans I/O. The caller feeds what it read and the time, writes what it gets, and looks at two things: `waiting` (a frame
waits for a verdict or for tokens: read no more, and resume() when it is there) and `fault` (close the connection).

Nearly all accesses of a running guest are magic reads and log bytes, and one guest's log byte is like another's: the
same 32 bytes. Such a frame is recognized once and answered from a table from then on (Dispatch). Everything else takes
the slow path, which is the specification in the open.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import NamedTuple

from unplugd.core.guest import Guest, Verdict
from unplugd.core.guestlog import LINE_LIMIT
from unplugd.core.ioreq import FRAME_SIZE, Request, decode, pio, response
from unplugd.core.protocol import LEGACY_MASKS, MAGIC, MAGIC_BLACKLISTED, Effect, Rules
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

_NEWLINE = 0x0A
_MAGIC = -1
_NOTHING, _ALLOWED, _DENIED = (value.to_bytes(8, "little") for value in (0, MAGIC, MAGIC_BLACKLISTED))
_WRITTEN, _READ = b"\x03\x00", b"\x23\x00"  # the last two bytes of a response: state and `dir`, type

_FIELDS = struct.Struct("<QB7xQ6xH")
"""addr; the lowest byte of data; count and size; (vp_eport and _pad0 left out;) state, flags and type."""
_ANSWER = struct.Struct("<8s8s14s2s")
"""As a request's first bytes, data, then as the request's from byte 16 on, the last two bytes; longer ones are cut."""

OUTPUT_LIMIT = 64 * 1024
"""Bytes of responses to string reads after which receive() stops: 32 bytes of request can ask for 4 KiB of answer."""

SEEN_LIMIT = 8192
"""Frames that are remembered with their responses (about 2 MiB); past it, remembering begins anew."""

_MARKS = 1 << 14
"""Frames that came once, of which so many bits and a byte of their hashes are remembered."""


Known = tuple[int, bytes, bytes]
"""What is known of a frame: the log byte that it writes, or _MAGIC; its response; that of a blacklisted guest."""


class Dispatch:
    """The protocol's table under given rules, ready for lookup. One serves all connections.

    With `delay` a log byte is charged and its response may be held back: it is never answered from `seen`.
    """

    def __init__(self, rules: Rules, *, delay: bool) -> None:
        self.effects = rules.effects()
        self.seen: dict[bytes, Known] = {}
        self._marks = bytearray(_MARKS)
        self._usual: dict[tuple[int, int, int], Effect] = {}
        for row in rules.rows():
            if row.effect is Effect.MAGIC or (row.effect is Effect.LOG and not delay):
                addr, _, shape, bits = _FIELDS.unpack(pio(row.addr, size=row.size, read=row.read))
                self._usual[addr, shape, bits] = row.effect

    def recognize(self, frame: bytes) -> Known | None:
        """What there is to know of a frame that is a single magic read or log byte; None for any other.

        It is remembered when it comes again: who never sends a frame twice pays for no memory, and takes away nobody's.
        """
        addr, byte, shape, bits = _FIELDS.unpack(frame)
        effect = self._usual.get((addr, shape, bits))
        if effect is None:
            return None
        known: Known
        if effect is Effect.LOG:
            answer = _ANSWER.pack(frame, _NOTHING, frame[16:], _WRITTEN)
            known = byte, answer, answer
        else:
            tail = frame[16:]
            known = _MAGIC, _ANSWER.pack(frame, _ALLOWED, tail, _READ), _ANSWER.pack(frame, _DENIED, tail, _READ)
        place, mark = (number := hash(frame)) & _MARKS - 1, number >> 16 & 0xFF
        if self._marks[place] != mark:
            self._marks[place] = mark
            return known
        if len(self.seen) >= SEEN_LIMIT:
            self.seen.clear()
        self.seen[frame] = known
        return known


class IoreqStream:
    """One connection of a domain's device model.

    `tally` counts frames by kind (contract section 4, `unplugd_ioreqs_total`) before their response is handed out.
    """

    __slots__ = ("_builds", "_dispatch", "_guest", "_job", "_now", "_rest", "_tally", "fault", "stopped", "waiting")

    def __init__(self, guest: Guest, dispatch: Dispatch, tally: dict[str, int]) -> None:
        self._guest = guest
        self._dispatch = dispatch
        self._tally = tally
        self._rest = b""
        self._job: _Job | None = None
        self._now = 0.0
        self._builds = 0
        self.waiting: Waiting | None = None
        self.fault: ClientFault | None = None
        self.stopped = False
        """The responses so far reached OUTPUT_LIMIT: there may be more once they are written, see proceed()."""

    @property
    def idle(self) -> bool:
        """Whether nothing waits here: the next byte begins a frame, and it may be served elsewhere."""
        return not self._rest and self.waiting is None and not self.stopped and self.fault is None

    def use(self, dispatch: Dispatch) -> None:
        """Go on under other rules, from the next frame on."""
        self._dispatch = dispatch

    def receive(self, data: bytes, now: float) -> bytes:
        """Take bytes in and return the responses that are ready.

        Must not be called while `waiting` or `stopped`; after a `fault` it does nothing.
        """
        self._now = now
        if self.fault is not None:
            return b""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        elif len(data) == FRAME_SIZE and data in self._dispatch.seen:
            return self._known(self._dispatch.seen[data], now)
        log = self._guest.log
        partial = log.partial
        blacklisted = self._guest.platform.blacklisted
        seen, recognize = self._dispatch.seen, self._dispatch.recognize
        pieces: list[bytes] = []
        position = magics = logged = answered = 0
        last = len(data) - FRAME_SIZE
        while position <= last:
            frame = data[position:position + FRAME_SIZE]
            known = seen.get(frame) or recognize(frame)
            if known is None:
                if magics:
                    self._read_magic(magics, now)
                    magics = 0
                begin = position
                position = self._slow(data, begin, pieces)
                if position == begin or self.waiting is not None:
                    break
                answered += len(pieces[-1])
                if answered >= OUTPUT_LIMIT:
                    self.stopped = True
                    break
                blacklisted = self._guest.platform.blacklisted
                continue
            position += FRAME_SIZE
            byte, allowed, denied = known
            if byte == _MAGIC:
                magics += 1
                pieces.append(denied if blacklisted else allowed)
                continue
            logged += 1
            pieces.append(allowed)
            if byte == _NEWLINE:
                log.end_line(now)
            else:
                partial.append(byte)
                if len(partial) >= LINE_LIMIT:
                    log.cut(now)
        if logged:
            log.heard(now)
            self._guest.grew = True
            self._tally["log"] += logged
        if magics:
            self._read_magic(magics, now)
        if position < len(data) and self.fault is None:
            self._rest = data[position:]
        return b"".join(pieces)

    def _known(self, known: Known, now: float) -> bytes:
        """What receive() does, for one frame on its own that is known: most come like that."""
        byte, allowed, denied = known
        guest = self._guest
        if byte == _MAGIC:
            self._tally["magic"] += 1
            guest.read_magic(now)
            return denied if guest.platform.blacklisted else allowed
        log = guest.log
        if byte == _NEWLINE:
            log.end_line(now)
        else:
            log.partial.append(byte)
            if len(log.partial) >= LINE_LIMIT:
                log.cut(now)
        log.heard(now)
        guest.grew = True
        self._tally["log"] += 1
        return allowed

    def _read_magic(self, times: int, now: float) -> None:
        self._tally["magic"] += times
        self._guest.read_magic(now)

    def proceed(self, now: float) -> bytes:
        """Go on after `stopped`, with what was received before."""
        self.stopped = False
        return self.receive(b"", now)

    def resume(self, verdict: Verdict | None, now: float) -> bytes:
        """Go on with the frame that was `waiting` (with its verdict, if it waited for one), then with what follows."""
        self._now = now
        pieces: list[bytes] = []
        if self._job is not None:
            self._advance(self._job, verdict, pieces)
        if self.waiting is None:
            pieces.append(self.receive(b"", now))
        return b"".join(pieces)

    def _slow(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        """Serve any frame at `position`; returns where the next one begins, or `position` if it is not all there."""
        try:
            request = decode(data[position:position + FRAME_SIZE])
        except ClientFault as fault:
            self.fault = fault
            return position
        begin = position + FRAME_SIZE
        end = begin + request.payload_size
        if end > len(data):
            return position
        self._builds = 0
        self._advance(self._serve(request, data[begin:end]), None, pieces)
        return end

    def _advance(self, job: _Job, verdict: Verdict | None, pieces: list[bytes]) -> None:
        """Run a frame until it is done (its response becomes a piece) or must wait."""
        try:
            self.waiting = job.send(verdict)
            self._job = job
        except StopIteration as stop:
            self.waiting = self._job = None
            pieces.append(stop.value)

    def _serve(self, request: Request, payload: bytes) -> _Job:
        """Carry one frame out, element by element; the generator's value is the response."""
        guest = self._guest
        if request.reset:
            self._tally["reset"] += 1
            guest.reset(self._now)
            return response(request, 0)
        effect = self._dispatch.effects.get((request.read, request.addr, request.size), Effect.NONE)
        if effect is Effect.LEGACY_UNPLUG and not _legacy_masks(request, payload):
            effect = Effect.NONE
        self._tally[effect.kind] += 1
        if request.read:
            if effect is Effect.VERSION:
                answer = guest.read_version(self._now)
            else:
                answer = guest.platform.read(effect, request.size)
            if request.string:
                return response(request, 0, answer.to_bytes(request.size, "little") * request.count)
            return response(request, answer)
        if effect is Effect.LOG:
            yield from self._log(payload if request.string else bytes((request.data,)))
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

    def _log(self, data: bytes) -> Generator[Waiting, Verdict | None, None]:
        log = self._guest.log
        self._guest.changed = True
        if log.limits.delay:
            log.charge_frame(len(data), self._now)
        log.write(data, self._now)
        while seconds := log.hold(self._now):
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
