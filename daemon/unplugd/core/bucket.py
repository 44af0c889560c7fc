"""The token bucket: how many bytes a guest may still make dom0 store.

One token is one byte. The caller brings the clock (seconds, any monotonic one that survives a restart of the
process, such as CLOCK_BOOTTIME). The figures are qemu-traditional's unless configured: 131072 and 256/s.
"""

from __future__ import annotations

ROUNDING = 1e-6
"""Tokens that are as good as none: a wait that was just long enough may end a rounding error too early."""


class TokenBucket:
    """A balance that starts full, refills at `rate` tokens a second up to `burst`, and may be overdrawn.

    `balance` is the balance at the time `at`; both are what must be kept over a restart.
    """

    __slots__ = ("at", "balance", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self.balance = float(burst)
        self.at = now

    def restore(self, balance: float, at: float, now: float) -> None:
        """Take over what was kept: a clock that went back counts as no time passed, a smaller `burst` holds."""
        self.balance = min(balance, float(self.burst))
        self.at = min(at, now)

    def configure(self, rate: float, burst: float, now: float) -> None:
        """Change the figures: what was earned until now was earned at the old rate."""
        self.refill(now)
        self.rate = rate
        self.burst = burst
        self.balance = min(self.balance, float(burst))

    def refill(self, now: float) -> float:
        """Credit the time since the last call and return the balance."""
        if now > self.at:
            self.balance = min(float(self.burst), self.balance + (now - self.at) * self.rate)
            self.at = now
        return self.balance

    def take(self, tokens: float, now: float) -> bool:
        """Spend `tokens` if all of them are there. Otherwise nothing changes but the time."""
        if self.refill(now) < tokens:
            return False
        self.balance -= tokens
        return True

    def overdraw(self, tokens: float, now: float) -> float:
        """Spend `tokens` whatever is there and return the balance, which may now be negative."""
        self.refill(now)
        self.balance -= tokens
        return self.balance

    def wait(self, tokens: float, now: float) -> float:
        """Seconds from `now` until the balance is at least `tokens`; infinity where that never comes."""
        missing = tokens - self.refill(now)
        if missing <= ROUNDING:
            return 0.0
        if self.rate <= 0 or tokens > self.burst:
            return float("inf")
        return missing / self.rate


class RecordLimit:
    """How many records somebody may cause: a few at once, then one now and then; the rest is counted."""

    __slots__ = ("_bucket", "left_out")

    def __init__(self, burst: int, rate: float, now: float) -> None:
        """`burst` at once, `rate` a second from then on."""
        self._bucket = TokenBucket(rate, burst, now)
        self.left_out = 0
        """How many were not written since the last that was."""

    def admit(self, text: str, now: float) -> str:
        """The record to be written: `text`, with how many before it were left out; "" where it is left out too."""
        if not self._bucket.take(1, now):
            self.left_out += 1
            return ""
        left_out, self.left_out = self.left_out, 0
        return f"{text} ({left_out} more like this not recorded)" if left_out else text
