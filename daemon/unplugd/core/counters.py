"""What the hot path counts: plain integers, with the label values that are known beforehand.

What is shown of them is http/metrics.py's. Source of the label values: contract section 4.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left

KINDS = ("magic", "version", "product", "build", "unplug", "log", "flags", "other", "reset")
"""Label `kind` of unplugd_ioreqs_total: what a frame did."""

LOOKUPS = ("allowed", "blacklisted", "reported", "unknown-product", "fallback")
"""Label `result` of unplugd_blacklist_lookups_total."""

DROPS = ("rate-limit", "sink")
"""Label `reason` of the log_dropped metrics."""

PROTOCOL_ERRORS = ("bad-state", "bad-type", "bad-count", "bad-size", "payload-too-long", "bad-address")
"""Label `reason` of unplugd_protocol_errors_total: ClientFault's reasons."""

DURATION_BOUNDS = (
    10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6,
    1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0,
)  # fmt: skip
"""Upper bounds of the buckets of unplugd_ioreq_duration_seconds, in seconds; +Inf follows."""


class Counters:
    """What the hot path counts since the process began: plain integers, no library, no lock (one thread).

    `frames` and `durations` are arrays, so that the compiled part counts in them too.
    """

    __slots__ = (
        "blacklist_lookups", "denied_connections", "durations", "frames", "protocol_errors", "xenstore_reconnects",
    )  # fmt: skip

    def __init__(self) -> None:
        self.frames = array("Q", bytes(8 * len(KINDS)))
        """Frames by kind, in the order of KINDS."""
        self.durations = array("Q", bytes(8 * (len(DURATION_BOUNDS) + 2)))
        """Batches of frames by bucket, not cumulated, then those beyond the last bound, then nanoseconds in sum."""
        self.blacklist_lookups = dict.fromkeys(LOOKUPS, 0)
        self.protocol_errors = dict.fromkeys(PROTOCOL_ERRORS, 0)
        self.denied_connections = 0
        self.xenstore_reconnects = 0

    @property
    def ioreqs(self) -> dict[str, int]:
        """Frames by kind."""
        return dict(zip(KINDS, self.frames, strict=True))

    @property
    def duration_counts(self) -> list[int]:
        """Batches by bucket, not cumulated; the last one is for all beyond the last bound."""
        return self.durations[:-1].tolist()

    @property
    def duration_sum(self) -> float:
        """Seconds that batches took, in sum."""
        return self.durations[-1] * 1e-9

    def observe(self, seconds: float) -> None:
        """Count a batch of frames that took `seconds` into the histogram of durations."""
        self.durations[bisect_left(DURATION_BOUNDS, seconds)] += 1
        self.durations[-1] += max(0, int(seconds * 1e9))
