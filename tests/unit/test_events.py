"""What people read about a guest: one sentence an event, no text of the guest's in it."""

from __future__ import annotations

import pytest

from unplugd.core.events import (
    Announced,
    Blacklisted,
    BuildWithoutProduct,
    Event,
    Ignored,
    Line,
    LinesDropped,
    Reported,
    Resumed,
    Throttled,
    UndefinedBits,
    UnplugDenied,
    Unplugged,
    VerdictFallback,
    WasReset,
)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (LinesDropped(12, 340), ["12 lines", "340 bytes", "rate limit"]),
        (Announced(3, "linux", 1, False, ""), ["linux", "(3)", "build 1", "allowed"]),
        (Announced(7, None, 2**32 - 1, True, ""), ["(7)", "4294967295", "blacklisted"]),
        (Blacklisted(1, "xensource-windows", 86451, "loses data"), ["xensource-windows", "86451", "loses data"]),
        (Blacklisted(3, "linux", 1, ""), ["linux", "is blacklisted"]),
        (Reported(1, "xensource-windows", 86451, "loses data"), ["xensource-windows", "only reported", "loses"]),
        (Reported(3, "linux", 1, ""), ["linux", "only reported"]),
        (Ignored(3), ["refused", "ide-disks", "nics", "all the same"]),
        (VerdictFallback(5, "not connected"), ["build 5", "not connected"]),
        (Unplugged(3), ["ide-disks", "nics"]),
        (UnplugDenied(1, withheld=True), ["ide-disks", "withheld"]),
        (UnplugDenied(2, withheld=False), ["nics", "policy.allow_unplug"]),
        (UndefinedBits(0xFF00), ["0xff00"]),
        (BuildWithoutProduct(5), ["build number 5", "ignored"]),
        (WasReset(), ["reset"]),
        (Throttled(delaying=True), ["rate limit", "wait"]),
        (Throttled(delaying=False), ["rate limit", "dropped"]),
        (Resumed(), ["within its rate limit"]),
    ],
)
def test_sentences(event: Event, words: list[str]) -> None:
    text = str(event)
    for word in words:
        assert word in text
    assert text.isprintable()
    assert not text.endswith((":", " "))


def test_events_are_facts() -> None:
    for event in (Line(b"x", None, None), WasReset(), Unplugged(1)):
        assert not hasattr(event, "__dict__")
    with pytest.raises(AttributeError):
        Unplugged(1).mask = 2  # type: ignore[misc] # it is frozen
