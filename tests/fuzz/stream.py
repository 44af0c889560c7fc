"""Fuzz target: what a device model sends (core/stream.py).

The invariant: whatever the bytes and whatever their pieces, each whole frame before the first fault gets exactly one
response that echoes it, and nothing else happens.

    python -m tests.fuzz.stream [SECONDS]      # atheris, guided by coverage, from and into the corpus

Without atheris (`pip install atheris`; it is Linux's, on some Pythons) bytes are mutated at random instead, and it says
so. tests/unit/test_fuzz_corpus.py tries the corpus in every test run.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tests.lab.frames import FRAME

atheris: Any = importlib.import_module("atheris") if importlib.util.find_spec("atheris") else None

# The fuzzer sees the branches of what is imported here.
_guided = atheris is not None and __name__ == "__main__"
with atheris.instrument_imports(include=["unplugd.core"]) if _guided else nullcontext():
    from unplugd.core.counters import Counters
    from unplugd.core.guest import Guest, Verdict
    from unplugd.core.guestlog import Limits
    from unplugd.core.protocol import Action, Rules
    from unplugd.core.registry import Registry
    from unplugd.core.stream import IoreqStream, NeedTokens, NeedVerdict

CORPUS = Path(__file__).with_name("corpus") / "stream"
MEMORY = 512
"""MiB that the fuzzer's process may have: a leak ends it."""
LONGEST = 16384
"""Bytes of one input."""

_SIZES = (1, 2, 4, 8)


def frames(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The whole frames before the first fault, each with the payload bytes of its response.

    This is a second reading of the contract, section 1, on purpose not the one under test.
    """
    at = 0
    while at + 32 <= len(data):
        addr, _, count, size, _, _, bits, kind = FRAME.unpack_from(data, at)
        state, pointer, read = bits & 0x0F, bits & 0x10, bits & 0x20
        payload = 0
        if state:
            if state != 1 or kind or not count or size not in _SIZES or addr > 0x100FF:
                return
            if (count * size > 4096) if pointer else (count > 1):
                return
            payload = count * size if pointer else 0
        whole = 32 if read or not state else 32 + payload
        if at + whole > len(data):
            return
        yield data[at:at + 32], payload if read and state else 0
        at += whole


class Speaker:
    """A device model's connection to a guest, by core/ alone: what is sent, in any pieces, and what is answered."""

    def __init__(self, guest: Guest, counters: Counters, now: float = 1.0) -> None:
        """`now` is the virtual time at which it begins."""
        self.stream = IoreqStream(guest, counters)
        self.now = now
        self.rest = b""
        """What was sent and is not served: the beginning of a frame, or all from a fault on."""

    def say(self, data: bytes) -> bytes:
        """Bytes in, answers out, whatever must be waited for in between. Odd build numbers are blacklisted."""
        stream = self.stream
        out, self.rest = b"", self.rest + data
        for _ in range(20_000):
            answers = b""
            match stream.waiting:
                case NeedVerdict(_, build):
                    answers = stream.resume(verdict(build), self.now)
                case NeedTokens(seconds):
                    assert 0 < seconds < 3600
                    self.now += seconds
                    answers = stream.resume(None, self.now)
                case None:
                    answers, used = stream.receive(self.rest, self.now)
                    self.rest = self.rest[used:]
            out += answers
            if stream.waiting is None and not stream.stopped and not (self.rest and answers):
                return out
        raise AssertionError("it never comes to an end")


def verdict(build: int) -> Verdict:
    """What is said of a build number here."""
    return Verdict(blacklisted=bool(build & 1), action=(Action.REFUSE, Action.WITHHOLD, Action.REPORT)[build % 3])


class Outcome:
    """What comes of bytes in pieces."""

    def __init__(self, mode: int, pieces: Iterable[bytes]) -> None:
        """`mode`: bit 0 delay instead of drop, bit 1 protocol version 0, bit 2 no legacy, bit 3 no unplug allowed."""
        rules = Rules(
            protocol_version=0 if mode & 2 else 1, allow_unplug=0 if mode & 8 else 15, legacy_unplug=not mode & 4
        )
        limits = Limits(rate=1000, burst=2000, delay=bool(mode & 1))
        self.guest = Guest(rules, limits, Registry(), 0.0)
        self.counters = Counters()
        self.speaker = Speaker(self.guest, self.counters)
        self.out = b"".join([self.speaker.say(piece) for piece in pieces])
        self.events = list(map(repr, self.guest.take_events()))


def check(data: bytes) -> None:
    """Try one input: a byte of mode, two bytes where the pieces come from, then the device model's bytes."""
    mode, seed, sent = data[:1], data[1:3], data[3:]
    whole = Outcome(mode[0] if mode else 0, [sent])
    expected = list(frames(sent))
    at = 0
    for frame, payload in expected:
        answer = whole.out[at:at + 32]
        state = 0x03 if frame[30] & 0x0F else 0x00
        assert len(answer) == 32, (frame.hex(), answer.hex())
        if state:
            assert answer[:8] + answer[16:30] == frame[:8] + frame[16:30], (frame.hex(), answer.hex())
            assert answer[30] == frame[30] & 0xF0 | state, (frame.hex(), answer.hex())
        at += 32 + payload
    assert at == len(whole.out), (at, len(whole.out))
    assert sum(whole.counters.frames) == len(expected)
    pieces = Outcome(mode[0] if mode else 0, split(sent, int.from_bytes(seed, "little")))
    assert pieces.out == whole.out
    assert pieces.events == whole.events
    assert pieces.counters.frames == whole.counters.frames
    assert (pieces.speaker.stream.fault is None) == (whole.speaker.stream.fault is None)


def split(data: bytes, seed: int) -> list[bytes]:
    """The bytes in pieces: each of its own for small seeds, else at random places."""
    if seed < 16:
        return [data[at:at + seed + 1] for at in range(0, len(data), seed + 1)]
    chance = random.Random(seed)
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(seed % 9))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def corpus() -> list[Path]:
    """The inputs that are kept."""
    return sorted(path for path in CORPUS.iterdir() if path.is_file())


def mutate(chance: random.Random, data: bytes) -> bytes:
    """Another input from one that there is, for where there is no atheris."""
    changed = bytearray(data or bytes(35))
    for _ in range(chance.randrange(1, 8)):
        match chance.randrange(5):
            case 0:
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            case 1:
                changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            case 2:
                at = 3 + 32 * chance.randrange(1 + len(changed) // 32)
                changed[at:at] = changed[at - 32:at] if at >= 35 else bytes(32)
            case 3:
                del changed[chance.randrange(len(changed)):][:chance.randrange(40)]
            case _:
                at = chance.randrange(len(changed))
                changed[at:at] = chance.choice([b"\n", b"\x12", b"\x10", b"\0" * 8, b"\xff" * 4])
        changed = changed or bytearray(35)
    return bytes(changed[:LONGEST])


def without_guidance(seconds: float, test: Callable[[bytes], None] = check) -> int:
    """Mutate the corpus at random for so long; returns how many inputs were tried."""
    chance = random.Random()
    inputs = [path.read_bytes() for path in corpus()]
    tried = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutate(chance, chance.choice(inputs))
        try:
            test(data)
        except BaseException:
            Path(f"crash-{hashlib.sha1(data, usedforsecurity=False).hexdigest()}").write_bytes(data)
            raise
        tried += 1
        if tried % 500 == 0:
            inputs.append(data)
    return tried


def main() -> None:
    """Fuzz for so many seconds."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.stream", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=int, default=180)
    parser.add_argument("--found", type=Path, default=Path(".cache/fuzz"), help="directory for new inputs")
    options = parser.parse_args()
    options.found.mkdir(parents=True, exist_ok=True)
    if atheris is None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY << 21, MEMORY << 21))
        print(f"atheris is not installed: not guided by coverage. {without_guidance(options.seconds)} inputs tried")
        return
    arguments: list[Any] = [
        sys.argv[0], str(options.found), str(CORPUS), f"-max_total_time={options.seconds}", f"-max_len={LONGEST}",
        f"-rss_limit_mb={MEMORY}", "-timeout=25", f"-artifact_prefix={options.found}{os.sep}crash-",
        "-print_final_stats=1", "-verbosity=0",
    ]  # fmt: skip
    atheris.Setup(arguments, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
