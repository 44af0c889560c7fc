# The compiled part, see daemon/fastpath/poller.c.

import mmap
from collections.abc import Callable
from typing import Protocol, TypeAlias

STATE_SIZE: int
READ_SIZE: int
LINE_LIMIT: int
RECORD_COST: int
PAYLOAD_LIMIT: int
BUDGET: int

# When the last byte came, or 0; lines that ended; of these, lines and bytes dropped; when.
_Log: TypeAlias = tuple[float, int, int, int, float]
# Sequence number and area of the last commit.
_Place: TypeAlias = tuple[int, int]
# Magic reads, log bytes, seconds that their batches took, and (bucket, batches) of the histogram.
_Count: TypeAlias = tuple[int, int, float, list[tuple[int, int]]]
# What the driver did beside logging (one of STEPS), what it wrote, and when.
_Step: TypeAlias = tuple[int, int, float]
# Lines and bytes that journald has, and what is left of the balance since when; lines 0: nothing of that changed.
_Passed: TypeAlias = tuple[int, int, float, float]

class _Owner(Protocol):
    def caught_up(
        self, log: _Log, place: _Place, count: _Count, passed: _Passed, steps: tuple[_Step, ...], /
    ) -> None: ...
    def line_ended(self, now: float, /) -> None: ...
    def settle(self, now: float, /) -> None: ...

# A descriptor, responses that could not be sent, and bytes that are Python's; None: somebody has connected.
_Handed: TypeAlias = Callable[[int, bytes, bytes | None], None]

class Tail:
    held: int
    others: int
    def __init__(self, owner: _Owner, partial: bytearray, state: mmap.mmap) -> None: ...
    def offer(
        self, sequence: int, area: int, blacklisted: bool, logging: bool, begin_from: float, drop_until: float,
        noted: int, /,
    ) -> None: ...
    def offer_lines(
        self, fields: bytes, limited: bool, balance: float, balance_at: float, rate: float, burst: float, /
    ) -> None: ...
    def rules(self, version: int, allowed: int, allowed_blacklisted: int, /) -> None: ...
    def close(self) -> None: ...

class Poller:
    held: int
    others: int
    def __init__(self, epoll: int, bounds: tuple[float, ...]) -> None: ...
    def poll(
        self, timeout: float | None, /
    ) -> tuple[list[tuple[int, int]], list[tuple[_Handed, int, bytes, bytes | None]]]: ...
    def attach(self, fd: int, tail: Tail, handed: _Handed, /) -> None: ...
    def arm(self, fd: int, window: int, /) -> None: ...
    def journal(self, fd: int, /) -> None: ...
    def listen(self, fd: int, tail: Tail, handed: _Handed, uid: int, most: int, in_all: int, /) -> None: ...
    def answer(self, fd: int, out: bytes, /) -> int: ...
    def take(self, fd: int, /) -> None: ...
    def cut(self, fd: int, /) -> None: ...
    def hang_up(self, tail: Tail, /) -> None: ...
    def detach(self, fd: int, /) -> None: ...
